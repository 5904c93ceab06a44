//! Upstreams behind TLS and HTTPS: names are verified, roots are those that were named.
//!
//! The far end is a scripted upstream behind a TLS terminator with a certificate made for the test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nodens::config::{
    Forward, PortPolicy, PortRange, Rewrite, Transport, Upstream, UpstreamSource,
};
use nodens::dns::Qtype;
use nodens::dns::name::Name;
use nodens::dns::query::Query;
use nodens::metrics::Metrics;
use nodens::testing::scripted::{Scripted, well_behaved};
use nodens::upstream::{ExchangeError, Group, Upstreams};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The name in the certificate.
const NAME: &str = "dns.example";

/// An upstream behind TLS.
struct Encrypted {
    address: SocketAddr,
    /// The PEM file of the authority that signed its certificate.
    ca: PathBuf,
    /// The server names that callers asked for.
    names: Arc<Mutex<Vec<Option<String>>>>,
    plain: Scripted,
    _tasks: JoinSet<()>,
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

/// A certificate for [`NAME`], and its authority in PEM form.
fn certificate() -> (ServerConfig, String) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let pem = authority.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![NAME.to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("key and certificate belong together");
    (config, pem)
}

/// Carries one TLS connection to the plain upstream, byte by byte.
async fn by_tcp(mut stream: TlsStream<TcpStream>, plain: SocketAddr) {
    let mut onward = TcpStream::connect(plain).await.expect("the scripted upstream listens");
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
}

/// Carries the POST requests of one HTTP/2 connection to the plain upstream by UDP.
async fn by_udp(stream: TlsStream<TcpStream>, plain: SocketAddr) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/dns-query");
        tokio::spawn(async move {
            let query = request.into_body().data().await.expect("a body").expect("whole");
            assert_eq!(query[..2], [0, 0], "RFC 8484 §4.1: id 0");
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            socket.send_to(&query, plain).await.expect("sent");
            let mut buffer = vec![0; 4096];
            let length = socket.recv(&mut buffer).await.expect("a response");
            let head = http::Response::builder().header("content-type", "application/dns-message");
            let mut body = respond
                .send_response(head.body(()).expect("a head"), false)
                .expect("the stream is open");
            body.send_data(Bytes::copy_from_slice(&buffer[..length]), true).expect("sent");
        });
    }
}

impl Encrypted {
    /// Starts one; `https` speaks HTTP/2 inside.
    async fn start(https: bool) -> Self {
        let (mut config, pem) = certificate();
        if https {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let ca = std::env::temp_dir().join(format!(
            "nodens-ca-{}-{}.pem",
            std::process::id(),
            address.port()
        ));
        std::fs::write(&ca, pem).expect("a file");
        let plain = Scripted::start(well_behaved).await;
        let (onward, names) = (plain.address, Arc::<Mutex<Vec<_>>>::default());
        let seen = Arc::clone(&names);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                // A handshake that fails is what some tests are about.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                seen.lock().expect("no panic").push(name);
                if https {
                    tokio::spawn(by_udp(stream, onward));
                } else {
                    tokio::spawn(by_tcp(stream, onward));
                }
            }
        });
        Self { address, ca, names, plain, _tasks: tasks }
    }

    /// A zone that forwards to it under `name`, trusting its authority or else the world's.
    fn group(&self, transport: Transport, trusted: bool) -> Arc<Group> {
        let range = PortRange { first: 20_000, last: 20_999, reserved: Vec::new() };
        let forward = Forward {
            zone: Name::root(),
            upstreams: UpstreamSource::Fixed(Vec::new()),
            endpoints: Vec::new(),
            ports: PortPolicy::PerQuery,
            timeout: Duration::from_secs(4),
            retransmit_min: Duration::from_millis(20),
            retransmit_max: Duration::from_millis(400),
            trust_ad: false,
            tls_ca: trusted.then(|| self.ca.clone()),
            rewrite: Rewrite::default(),
        };
        let upstream = Upstream { address: self.address, transport };
        Arc::new(Upstreams::new(range, 0, Metrics::new())).group(&forward, &[upstream])
    }
}

fn tls(name: &str) -> Transport {
    Transport::Tls { server_name: name.to_owned() }
}

fn https(name: &str) -> Transport {
    Transport::Https { server_name: name.to_owned(), path: "/dns-query".to_owned() }
}

/// Asks for many names at once; each must be answered.
async fn ask(group: &Arc<Group>, count: usize) {
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let group = Arc::clone(group);
        tasks.spawn(async move {
            let qname = Name::from_text(&format!("n{n}.example.org")).expect("a name");
            let query = Query::new(qname, Qtype::A);
            let received = group.exchange(&query).await.expect("an answer");
            assert!(received.encoded.has_answer());
            assert!(received.encoded.question().starts_with(query.qname.as_wire()));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}

#[tokio::test]
async fn queries_share_one_tls_connection_that_names_its_server() {
    let upstream = Encrypted::start(false).await;
    ask(&upstream.group(tls(NAME), true), 30).await;
    assert_eq!(*upstream.names.lock().expect("no panic"), [Some(NAME.to_owned())]);
    assert_eq!(upstream.plain.count(), 30);
}

#[tokio::test]
async fn queries_share_one_https_connection_that_names_its_server() {
    let upstream = Encrypted::start(true).await;
    ask(&upstream.group(https(NAME), true), 30).await;
    assert_eq!(*upstream.names.lock().expect("no panic"), [Some(NAME.to_owned())]);
    assert_eq!(upstream.plain.count(), 30);
}

#[tokio::test]
async fn a_certificate_for_another_name_or_by_a_stranger_is_refused() {
    for is_https in [false, true] {
        let upstream = Encrypted::start(is_https).await;
        let transport = |name| if is_https { https(name) } else { tls(name) };
        for (name, trusted) in [("other.example", true), (NAME, false)] {
            let group = upstream.group(transport(name), trusted);
            let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
            let error = group.exchange(&query).await.expect_err("not to be trusted");
            let ExchangeError::Unreachable { reason, .. } = &error else {
                panic!("{error:?}");
            };
            assert!(reason.to_lowercase().contains("certificate"), "{reason}");
        }
        assert_eq!(upstream.plain.count(), 0, "no query leaves for a stranger");
    }
}

#[tokio::test]
async fn a_missing_file_of_roots_is_told_with_its_path() {
    let upstream = Encrypted::start(false).await;
    std::fs::remove_file(&upstream.ca).expect("it is there");
    let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
    let error = upstream.group(tls(NAME), true).exchange(&query).await.expect_err("no roots");
    assert!(error.to_string().contains(&upstream.ca.display().to_string()), "{error}");
}
