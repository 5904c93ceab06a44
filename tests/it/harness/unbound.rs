//! Unbound as a second opinion: the same job as nodens, in front of the same upstream.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::message::{ask, qtype};
use super::place::{Place, free_port, until};
use super::process::{Process, command};
use super::wire::Udp;

/// A running unbound that forwards everything to one upstream.
#[derive(Debug)]
pub struct Unbound {
    pub address: SocketAddr,
    pub process: Process,
    _place: Place,
}

/// An unbound that is asked over TLS and HTTPS.
#[derive(Debug)]
pub struct Encrypted {
    pub tls: SocketAddr,
    pub https: SocketAddr,
    /// PEM file of the only certificate that it shows.
    pub ca: PathBuf,
    _unbound: Unbound,
}

impl Unbound {
    /// Starts it in front of `upstream` with a certificate for `name` of its own.
    pub fn encrypted(upstream: SocketAddr, name: &str) -> Encrypted {
        let place = Place::new();
        let own = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let ca = place.write("cert.pem", &own.cert.pem());
        let key = place.write("key.pem", &own.signing_key.serialize_pem());
        let (tls, https) = (free_port(), free_port());
        let lines = format!(
            "  interface: 127.0.0.1@{tls}\n  interface: 127.0.0.1@{https}\n  tls-port: {tls}\n  \
             https-port: {https}\n  tls-service-key: {key:?}\n  tls-service-pem: {ca:?}\n"
        );
        Encrypted {
            tls: (Ipv4Addr::LOCALHOST, tls).into(),
            https: (Ipv4Addr::LOCALHOST, https).into(),
            ca,
            _unbound: Self::with(upstream, place, &lines),
        }
    }

    /// Starts it in front of `upstream`: no validation, no minimisation, no built-in zones for our names.
    pub fn before(upstream: SocketAddr) -> Self {
        let unbound = Self::unasked(upstream);
        let answers = || {
            let (socket, question) = (Udp::to(unbound.address), ask("www.example.org", qtype::A));
            let sent = socket.0.send(&question.to_wire()).is_ok();
            sent && socket.answer_to(question.id, Duration::from_millis(200)).is_some()
        };
        assert!(until(Duration::from_secs(20), answers), "unbound: {}", unbound.process.log());
        unbound
    }

    /// The same without waiting for an answer: the upstream may not be there yet.
    pub fn unasked(upstream: SocketAddr) -> Self {
        Self::with(upstream, Place::new(), "")
    }

    /// The same with further lines of the server clause.
    fn with(upstream: SocketAddr, place: Place, lines: &str) -> Self {
        let port = free_port();
        let text = format!(
            "server:\n  interface: 127.0.0.1@{port}\n  access-control: 127.0.0.0/8 allow\n  \
             chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  directory: {:?}\n  use-syslog: no\n  \
             do-daemonize: no\n  do-not-query-localhost: no\n  module-config: iterator\n  \
             num-threads: 1\n  qname-minimisation: no\n  aggressive-nsec: no\n  \
             rrset-roundrobin: no\n  minimal-responses: no\n  unblock-lan-zones: yes\n  \
             local-zone: 2.0.192.in-addr.arpa. nodefault\n  \
             local-zone: 8.b.d.0.1.0.0.2.ip6.arpa. nodefault\n{lines}\
             forward-zone:\n  name: .\n  forward-addr: {}@{}\n\
             remote-control:\n  control-enable: no\n",
            place.as_path().display(),
            upstream.ip(),
            upstream.port()
        );
        let config = place.write("unbound.conf", &text);
        let mut unbound = command("unbound");
        unbound.args(["-d", "-c"]).arg(config);
        let process = Process::start(unbound, &place.path("log"));
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let listens = || std::net::TcpStream::connect(address).is_ok();
        assert!(until(Duration::from_secs(20), listens), "unbound: {}", process.log());
        Self { address, process, _place: place }
    }
}
