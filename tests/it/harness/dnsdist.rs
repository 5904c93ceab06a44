//! Dnsdist in front of an upstream, asked over TLS and HTTPS, its certificate by an authority of the test's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::place::{Place, free_port, until};
use super::process::{Process, command};

/// A running dnsdist.
#[derive(Debug)]
pub struct Dnsdist {
    pub tls: SocketAddr,
    pub https: SocketAddr,
    /// PEM file of the authority, which the server does not show.
    pub ca: PathBuf,
    process: Process,
    place: Place,
}

impl Dnsdist {
    /// Starts it in front of `upstream` with a certificate for `name`.
    pub fn start(upstream: SocketAddr, name: &str) -> Self {
        let place = Place::new();
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().expect("a key");
        let own = authority.self_signed(&authority_key).expect("a certificate");
        let ca = place.write("ca.pem", &own.pem());
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let signed = params.signed_by(&key, &issuer).expect("a certificate");
        let cert = place.write("cert.pem", &signed.pem());
        let key = place.write("key.pem", &key.serialize_pem());
        let [plain, tls, https] =
            [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let text = format!(
            "setLocal(\"{plain}\")\nnewServer({{address=\"{upstream}\", healthCheckMode=\"up\"}})\n\
             addTLSLocal(\"{tls}\", {cert:?}, {key:?})\n\
             addDOHLocal(\"{https}\", {cert:?}, {key:?}, \"/dns-query\")\n"
        );
        place.write("dnsdist.conf", &text);
        let process = Self::run(&place);
        let dnsdist = Self { tls, https, ca, process, place };
        dnsdist.await_ports();
        dnsdist
    }

    /// Ends it and starts it again, with the same ports and the same certificate.
    pub fn restart(&mut self) {
        self.process.signal(libc::SIGKILL);
        assert!(self.process.wait(Duration::from_secs(5)).is_some(), "it was killed");
        self.process = Self::run(&self.place);
        self.await_ports();
    }

    /// Runs it with the configuration in `place`.
    fn run(place: &Place) -> Process {
        let mut dnsdist = command("dnsdist");
        dnsdist.args(["--supervised", "--disable-syslog", "-C"]).arg(place.path("dnsdist.conf"));
        Process::start(dnsdist, &place.path("dnsdist.log"))
    }

    /// Waits until both ports are open.
    fn await_ports(&self) {
        let listens = |address| std::net::TcpStream::connect(address).is_ok();
        let both = || listens(self.tls) && listens(self.https);
        assert!(until(Duration::from_secs(20), both), "dnsdist: {}", self.process.log());
    }
}
