//! Whom to trust on TLS and HTTPS.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::SYSTEM_ROOTS;

/// Whom to trust, as the file says at this moment: certificates of authorities are exchanged while we run.
pub struct Trust {
    ca: Option<PathBuf>,
    /// What was read last, of which version of the file.
    known: Mutex<Option<(Version, Arc<ClientConfig>)>>,
}

/// What tells two versions of a file apart: when it was written, and its length.
type Version = Option<(SystemTime, u64)>;

impl Trust {
    /// Trusts the certificates that [`configure`] reads from `ca`.
    pub fn new(ca: Option<PathBuf>) -> Self {
        Self { ca, known: Mutex::default() }
    }

    /// The TLS configuration, read again where its file has changed. The last good one stays while it cannot
    /// be read.
    ///
    /// # Errors
    /// Why it never could be read, for people.
    pub fn config(&self) -> Result<Arc<ClientConfig>, Arc<str>> {
        let version = self.version();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, config)) = &*known
            && (*read == version || version.is_none())
        {
            return Ok(Arc::clone(config));
        }
        match (configure(self.ca.as_deref()), &*known) {
            (Err(_), Some((_, config))) => Ok(Arc::clone(config)),
            (read, _) => {
                let config = read?;
                *known = Some((version, Arc::clone(&config)));
                Ok(config)
            }
        }
    }

    /// The version of the file; `None` where there is none.
    fn version(&self) -> Version {
        let found = std::fs::metadata(self.ca.as_ref()?).ok()?;
        Some((found.modified().ok()?, found.len()))
    }
}

/// A TLS configuration that trusts the certificates of the PEM file `ca` alone, the system's where that is
/// [`SYSTEM_ROOTS`], or webpki's.
///
/// # Errors
/// Why the file cannot be used, for people.
fn configure(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Arc<str>> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) if path == Path::new(SYSTEM_ROOTS) => add_system(&mut roots)?,
        Some(path) => add_file(&mut roots, path)
            .map_err(|reason| Arc::from(format!("tls_ca {}: {reason}", path.display())))?,
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Arc::from(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Adds the system's roots, as OpenSSL would find them; one at least must be there.
fn add_system(roots: &mut RootCertStore) -> Result<(), Arc<str>> {
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match (added, found.errors.first()) {
        (0, Some(error)) => Err(Arc::from(format!("the system's roots: {error}"))),
        (0, None) => Err(Arc::from("the system has no roots")),
        _ => Ok(()),
    }
}

/// Adds every certificate of a PEM file; one at least must be there.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_roots_are_trusted_where_that_is_said_and_a_missing_file_is_an_error() {
        let has_roots = !rustls_native_certs::load_native_certs().certs.is_empty();
        assert_eq!(configure(Some(Path::new(SYSTEM_ROOTS))).is_ok(), has_roots);
        assert!(configure(Some(Path::new("/nowhere/roots.pem"))).is_err());
        assert!(configure(None).is_ok());
    }
    #[test]
    fn a_file_is_read_when_it_appears_and_again_when_it_has_changed() {
        let path = std::env::temp_dir().join(format!("nodens-trust-{}.pem", std::process::id()));
        let authority = || {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]);
            params.expect("parameters").self_signed(&key).expect("a certificate").pem()
        };
        let _ = std::fs::remove_file(&path);
        let trust = Trust::new(Some(path.clone()));
        assert!(trust.config().is_err());
        std::fs::write(&path, authority()).expect("written");
        let first = trust.config().expect("it is there");
        assert!(Arc::ptr_eq(&first, &trust.config().expect("known")), "read once");
        std::fs::write(&path, authority() + &authority()).expect("written");
        let second = trust.config().expect("it is there");
        assert!(!Arc::ptr_eq(&first, &second), "read again");
        std::fs::write(&path, "nothing").expect("written");
        assert!(Arc::ptr_eq(&second, &trust.config().expect("the last good one")));
        std::fs::remove_file(&path).expect("it is there");
        assert!(Arc::ptr_eq(&second, &trust.config().expect("the last good one")));
    }
}
