//! Whom to trust on TLS and HTTPS.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::SYSTEM_ROOTS;

/// A TLS configuration that trusts the certificates of the PEM file `ca` alone, the system's where that is
/// [`SYSTEM_ROOTS`], or webpki's.
///
/// # Errors
/// Why the file cannot be used, for people.
pub fn configure(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Arc<str>> {
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
}
