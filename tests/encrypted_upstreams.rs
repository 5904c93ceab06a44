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
    manners: Arc<Mutex<Manners>>,
    plain: Scripted,
    _tasks: JoinSet<()>,
}

/// What is odd about it at this moment.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// How long it takes before it begins to shake hands; for ever with `None`.
    delay: Option<Duration>,
    /// The HTTP status of its responses; 0 means 200, with a DNS message.
    status: u16,
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

/// A certificate for [`NAME`], which is valid until that year, and its authority in PEM form.
fn certificate(until: i32) -> (ServerConfig, String) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let pem = authority.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("parameters");
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
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
async fn by_udp(stream: TlsStream<TcpStream>, plain: SocketAddr, manners: Arc<Mutex<Manners>>) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/dns-query");
        let status = manners.lock().expect("no panic").status;
        if status != 0 {
            let head = http::Response::builder().status(status).body(()).expect("a head");
            let mut body = respond.send_response(head, false).expect("the stream is open");
            body.send_data(Bytes::from_static(b"<html>come back later</html>"), true)
                .expect("sent");
            continue;
        }
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

/// What serves connections.
#[derive(Clone)]
struct FarEnd {
    acceptor: TlsAcceptor,
    https: bool,
    onward: SocketAddr,
    names: Arc<Mutex<Vec<Option<String>>>>,
    manners: Arc<Mutex<Manners>>,
}

impl FarEnd {
    /// Serves one connection to its end.
    async fn serve(self, stream: TcpStream) {
        let delay = self.manners.lock().expect("no panic").delay;
        match delay {
            Some(delay) => tokio::time::sleep(delay).await,
            None => std::future::pending().await,
        }
        // A handshake that fails is what some tests are about.
        let Ok(stream) = self.acceptor.accept(stream).await else { return };
        let name = stream.get_ref().1.server_name().map(str::to_owned);
        self.names.lock().expect("no panic").push(name);
        if self.https {
            by_udp(stream, self.onward, self.manners).await;
        } else {
            by_tcp(stream, self.onward).await;
        }
    }
}

impl Encrypted {
    /// Starts one; `https` speaks HTTP/2 inside.
    async fn start(https: bool) -> Self {
        Self::start_until(https, 4000).await
    }

    /// Starts one whose certificate is valid until that year.
    async fn start_until(https: bool, until: i32) -> Self {
        let (mut config, pem) = certificate(until);
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
        let names = Arc::<Mutex<Vec<_>>>::default();
        let manners = Manners { delay: Some(Duration::ZERO), status: 0 };
        let manners = Arc::new(Mutex::new(manners));
        let far_end = FarEnd {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            https,
            onward: plain.address,
            names: Arc::clone(&names),
            manners: Arc::clone(&manners),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(far_end.clone().serve(stream));
            }
        });
        Self { address, ca, names, manners, plain, _tasks: tasks }
    }

    /// Changes what is odd about it.
    fn behave(&self, delay: Option<Duration>, status: u16) {
        *self.manners.lock().expect("no panic") = Manners { delay, status };
    }

    /// A zone that forwards to it under `name`, trusting its authority or else the world's.
    fn group(&self, transport: Transport, trusted: bool) -> Arc<Group> {
        self.zone(transport, trusted).1
    }

    /// The same with what goes on in the background.
    fn zone(&self, transport: Transport, trusted: bool) -> (Arc<Upstreams>, Arc<Group>) {
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
        let upstreams = Arc::new(Upstreams::new(range, 0, Metrics::new()));
        let group = upstreams.group(&forward, &[upstream]);
        (upstreams, group)
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

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    for is_https in [false, true] {
        let upstream = Encrypted::start_until(is_https, 2001).await;
        let transport = if is_https { https(NAME) } else { tls(NAME) };
        let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
        let error = upstream.group(transport, true).exchange(&query).await.expect_err("expired");
        assert!(error.to_string().to_lowercase().contains("expired"), "{error}");
        assert_eq!(upstream.plain.count(), 0, "no query leaves");
    }
}

#[tokio::test]
async fn an_http_error_is_a_failure_and_costs_no_connection() {
    let upstream = Encrypted::start(true).await;
    let group = upstream.group(https(NAME), true);
    ask(&group, 1).await;
    for status in [404, 429, 503, 204] {
        upstream.behave(Some(Duration::ZERO), status);
        let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
        let error = group.exchange(&query).await.expect_err("no DNS message");
        assert!(matches!(error, ExchangeError::Failed { .. }), "{status}: {error:?}");
        assert!(!format!("{error:?}").contains("html"), "{error:?}");
    }
    assert!(!group.is_down(), "it speaks");
    upstream.behave(Some(Duration::ZERO), 0);
    ask(&group, 3).await;
    assert_eq!(upstream.names.lock().expect("no panic").len(), 1, "one connection for all");
}

#[tokio::test]
async fn a_file_of_roots_that_is_replaced_is_read_again() {
    let (one, other) = (Encrypted::start(false).await, Encrypted::start(false).await);
    let right = std::fs::read(&one.ca).expect("a file");
    let mut wrong = std::fs::read(&other.ca).expect("a file");
    wrong.push(b'\n'); // another length
    std::fs::write(&one.ca, wrong).expect("written");
    let group = one.group(tls(NAME), true);
    let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
    group.exchange(&query).await.expect_err("another authority");
    std::fs::write(&one.ca, right).expect("written");
    ask(&group, 1).await;
}

#[tokio::test]
async fn an_upstream_far_away_whose_handshakes_hung_comes_back_by_probes_alone() {
    for is_https in [false, true] {
        let upstream = Encrypted::start(is_https).await;
        let transport = if is_https { https(NAME) } else { tls(NAME) };
        let (upstreams, group) = upstream.zone(transport, true);
        let maintenance = tokio::spawn(Arc::clone(&upstreams).maintain());
        upstream.behave(None, 0);
        let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
        let ask = || group.exchange(&query);
        // As long as the probes of the outage queue up behind each other.
        let outage = tokio::time::Instant::now() + Duration::from_secs(4);
        while !group.is_down() || tokio::time::Instant::now() < outage {
            let many = std::iter::repeat_with(ask).take(5);
            let all = futures_util::future::join_all(many).await;
            assert!(all.iter().all(Result::is_err), "no handshake ends");
        }
        // Longer than the time between two probes.
        upstream.behave(Some(Duration::from_millis(800)), 0);
        let wait = async {
            while group.is_down() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it is back");
        ask().await.expect("an answer");
        maintenance.abort();
    }
}
