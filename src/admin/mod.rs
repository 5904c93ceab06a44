//! Where operators and probes look in: HTTP over TCP for reading, over a unix socket for changing too.
//!
//! It owns sockets, paths and limits; what it shows comes from the app through [`Inspect`]. It refuses to
//! judge the daemon: `/livez` asks [`crate::pulse`], `/readyz` asks [`readiness`]. A stuck or hostile asker
//! costs a bounded number of connections for a bounded time (`connection`).
//!
//! Read `routes` first, then `doors`.

pub mod client;
mod connection;
mod doors;
pub mod readiness;
mod routes;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;

use crate::dns::name::Name;
use crate::pulse::{Pulses, Watcher};
use crate::shutdown::Shutdown;
pub use doors::{Doors, DoorsError};
use readiness::Readiness;
use routes::Door;

/// A loop that has not gone round for this long is stuck. Loops go round every 200 ms or so.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the loops are looked at between probes.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long after the drain's begin we go on answering at most: longer than any drain.
const LONGEST_DRAIN: Duration = Duration::from_secs(60);

/// How long requests that are being answered may take when everything else has ended.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// What the daemon shows of itself and lets be changed. Called on the control runtime: must not block.
pub trait Inspect: Send + Sync + 'static {
    /// All metrics, gauges brought up to date, in OpenMetrics text.
    fn metrics(&self) -> String;
    /// The effective configuration as TOML.
    fn config(&self) -> String;
    /// Every upstream of every forward zone.
    fn upstreams(&self) -> Vec<UpstreamStatus>;
    /// Every forward zone at this moment.
    fn zones(&self) -> Vec<ZoneStatus>;
    /// The cache at this moment.
    fn cache(&self) -> CacheStatus;
    /// Drops entries; gives back how many, where that is known.
    fn flush(&self, what: Flush) -> Option<u64>;
    /// Puts another log filter in force, or says why not.
    fn set_log_level(&self, level: &str) -> Result<(), String>;
}

/// One upstream of one forward zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UpstreamStatus {
    /// Presentation form.
    pub zone: String,
    /// Configuration form: `198.18.1.2:53`.
    pub upstream: String,
    /// `up`, `suspect` (it failed lately, and is asked last), `down`, `unknown`, `loop`.
    pub state: String,
    /// Smoothed round-trip time; `None` before the first response.
    pub srtt_ms: Option<f64>,
    pub in_flight: u64,
    pub queries: u64,
    pub responses: u64,
    pub timeouts: u64,
    pub failures: u64,
    /// Queries sent to it again.
    pub retries: u64,
    /// Queries sent to it while another one was waited for.
    pub hedges: u64,
    pub tcp_fallbacks: u64,
    /// Messages that were ignored: forged, late, or for another question.
    pub mismatched: u64,
    pub unreachable: u64,
    /// The conntrack entries of queries are deleted behind them.
    pub leaves_no_tracks: bool,
}

/// One forward zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ZoneStatus {
    /// Presentation form.
    pub zone: String,
    pub retries: u64,
    pub hedges: u64,
    pub stale: u64,
    pub prefetches: u64,
    pub coalesced: u64,
}

/// The cache at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheStatus {
    pub entries: u64,
    pub bytes: u64,
    pub budget_bytes: u64,
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub prefetches: u64,
    pub coalesced: u64,
    pub evictions: u64,
}

/// What a flush drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Everything.
    All,
    /// All types of one name.
    Name(Name),
    /// A name and all below it.
    Below(Name),
}

/// What admin answers from.
#[derive(Clone)]
pub struct Deps {
    pub inspect: Arc<dyn Inspect>,
    pub pulses: Arc<Pulses>,
    pub readiness: Readiness,
}

/// The loops' memory that probes and the ticking look share.
#[derive(Clone)]
struct Liveness {
    pulses: Arc<Pulses>,
    watcher: Arc<Mutex<Watcher>>,
}

impl Liveness {
    /// Looks at all loops now; gives back the names of those that are stuck.
    fn stuck(&self) -> Vec<String> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.stuck(&self.pulses, PATIENCE, crate::clock::now())
    }

    /// Looks for ever, so that a stuck loop is known when the next probe comes.
    async fn watch(self) {
        loop {
            self.stuck();
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Answers until the drain is over: while it lasts `/readyz` says so and `/metrics` still counts.
///
/// Runs on the control runtime, which must have timers and I/O. A TCP address that is taken is tried again
/// each second.
pub async fn serve(doors: Doors, deps: Deps, shutdown: Shutdown) {
    let liveness = Liveness { pulses: deps.pulses, watcher: Arc::default() };
    let stop = Shutdown::default();
    let (tcp, unix) = doors.split();
    let mut tasks = JoinSet::new();
    for address in tcp {
        let app = routes::router(&deps.inspect, &deps.readiness, &liveness, Door::Tcp);
        tasks.spawn(doors::serve_tcp(address, app, stop.clone()));
    }
    if let Some(socket) = unix {
        let app = routes::router(&deps.inspect, &deps.readiness, &liveness, Door::Unix);
        tasks.spawn(doors::serve_unix(socket, app, stop.clone()));
    }
    let watch = tokio::spawn(liveness.watch());
    shutdown.begun().await;
    shutdown.drained(LONGEST_DRAIN).await;
    stop.begin();
    watch.abort();
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_REQUESTS, ended).await.is_err() {
        tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::config::Admin;

    /// A daemon with one upstream that writes down what was changed.
    #[derive(Default)]
    struct Fake {
        changes: Mutex<Vec<String>>,
    }

    impl Inspect for Fake {
        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }

        fn config(&self) -> String {
            "listen = []\n".to_owned()
        }

        fn upstreams(&self) -> Vec<UpstreamStatus> {
            vec![UpstreamStatus {
                zone: ".".to_owned(),
                upstream: "192.0.2.1:53".to_owned(),
                state: "up".to_owned(),
                srtt_ms: Some(1.25),
                queries: 12345,
                ..UpstreamStatus::default()
            }]
        }

        fn zones(&self) -> Vec<ZoneStatus> {
            vec![ZoneStatus { zone: ".".to_owned(), stale: 678, ..ZoneStatus::default() }]
        }

        fn cache(&self) -> CacheStatus {
            CacheStatus { entries: 7, ..CacheStatus::default() }
        }

        fn flush(&self, what: Flush) -> Option<u64> {
            self.changes.lock().expect("no panic").push(format!("{what:?}"));
            Some(3)
        }

        fn set_log_level(&self, level: &str) -> Result<(), String> {
            if level == "loud" {
                return Err("no such level".to_owned());
            }
            self.changes.lock().expect("no panic").push(level.to_owned());
            Ok(())
        }
    }

    /// A running admin on a free TCP port and a socket file.
    struct Stage {
        fake: Arc<Fake>,
        pulses: Arc<Pulses>,
        readiness: Readiness,
        shutdown: Shutdown,
        address: SocketAddr,
        socket: PathBuf,
        served: JoinHandle<()>,
    }

    impl Stage {
        /// Starts it; `name` makes the socket's path unique.
        fn new(name: &str, address: SocketAddr) -> Self {
            let file = format!("nodens-admin-{name}-{}.sock", std::process::id());
            let socket = std::env::temp_dir().join(file);
            let config = Admin {
                listen: vec![address],
                socket: Some(socket.clone()),
                socket_required: true,
            };
            let shutdown = Shutdown::default();
            let (fake, pulses) = (Arc::new(Fake::default()), Arc::new(Pulses::default()));
            let readiness = Readiness::new(shutdown.clone());
            let inspect = Arc::clone(&fake) as Arc<dyn Inspect>;
            let deps = Deps { inspect, pulses: Arc::clone(&pulses), readiness: readiness.clone() };
            let doors = Doors::open(&config).expect("the socket can be made");
            let served = tokio::spawn(serve(doors, deps, shutdown.clone()));
            Self { fake, pulses, readiness, shutdown, address, socket, served }
        }

        /// Starts it on a free port of a loopback address that no other test uses: between finding
        /// the port and binding it again nobody takes it.
        async fn on_free_port(name: &str) -> Self {
            static NEXT: AtomicU8 = AtomicU8::new(1);
            let pid = std::process::id().to_be_bytes();
            let own = Ipv4Addr::new(127, pid[2], pid[3], NEXT.fetch_add(1, Ordering::Relaxed));
            let free = TcpListener::bind((own, 0)).await.expect("a free port");
            let address = free.local_addr().expect("bound");
            drop(free);
            Self::new(name, address)
        }

        async fn by_socket(&self, method: &'static str, path: &str) -> (u16, String) {
            let (socket, path) = (self.socket.clone(), path.to_owned());
            let asked =
                tokio::task::spawn_blocking(move || client::request(&socket, method, &path));
            asked.await.expect("no panic").expect("answered")
        }

        /// The whole response over TCP, as text.
        async fn by_tcp(&self, method: &str, path: &str, headers: &str) -> String {
            let mut stream = connect(self.address).await;
            let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let mut response = String::new();
            stream.read_to_string(&mut response).await.expect("closed by the daemon");
            response
        }
    }

    /// Connects as soon as somebody listens.
    async fn connect(address: SocketAddr) -> TcpStream {
        for _ in 0..100 {
            if let Ok(stream) = TcpStream::connect(address).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody listens on {address}");
    }

    #[tokio::test]
    async fn both_doors_show_everything() {
        let stage = Stage::on_free_port("show").await;
        for (path, part) in [
            ("/metrics", "# EOF"),
            ("/livez", "ok"),
            ("/readyz", "ok"),
            ("/config", "listen = []"),
            ("/upstreams", ".     192.0.2.1:53  up     1.2ms  0          12345"),
            ("/upstreams?format=json", "\"srtt_ms\": 1.25"),
            ("/cache", "entries     7"),
            ("/cache?format=json", "\"entries\": 7"),
        ] {
            let (code, body) = stage.by_socket("GET", path).await;
            assert_eq!(code, 200, "{path}: {body}");
            assert!(body.contains(part), "{path}: {body}");
            let response = stage.by_tcp("GET", path, "").await;
            assert!(response.starts_with("HTTP/1.1 200") && response.contains(part), "{response}");
        }
        let json = stage.by_tcp("GET", "/cache", "Accept: text/x, application/json\r\n").await;
        assert!(json.contains("content-type: application/json"), "{json}");
        let metrics = stage.by_tcp("GET", "/metrics", "").await;
        assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"));
        let (code, body) = stage.by_socket("GET", "/nowhere").await;
        assert!(code == 404 && body.contains("/readyz"), "{body}");
    }

    #[tokio::test]
    async fn changes_come_by_the_socket_only() {
        let stage = Stage::on_free_port("change").await;
        for path in ["/cache/flush?all=1", "/log-level?level=debug"] {
            let response = stage.by_tcp("POST", path, "Content-Length: 0\r\n").await;
            assert!(response.starts_with("HTTP/1.1 403"), "{response}");
        }
        assert!(stage.fake.changes.lock().expect("no panic").is_empty());
        for (path, code) in [
            ("/cache/flush?all=1", 200),
            ("/cache/flush?name=Example.org", 200),
            ("/cache/flush?name=example.org.&below=1", 200),
            ("/log-level?level=nodens%3Ddebug", 200),
            ("/cache/flush", 400),
            ("/cache/flush?all=1&name=example.org", 400),
            ("/cache/flush?all=yes", 400),
            ("/cache/flush?name=a..b", 400),
            ("/cache/flush?everything=1", 400),
            ("/log-level?level=loud", 400),
            ("/log-level", 400),
        ] {
            let (answered, body) = stage.by_socket("POST", path).await;
            assert_eq!(answered, code, "{path}: {body}");
        }
        assert_eq!(stage.by_socket("GET", "/cache/flush?all=1").await.0, 405);
        assert_eq!(
            *stage.fake.changes.lock().expect("no panic"),
            ["All", "Name(example.org.)", "Below(example.org.)", "nodens=debug"]
        );
    }

    #[tokio::test]
    async fn a_loop_that_stops_is_named_by_livez_within_its_patience() {
        let stage = Stage::on_free_port("live").await;
        let (moving, _stopped) = (stage.pulses.register("udp-0"), stage.pulses.register("udp-1"));
        let beats = tokio::spawn(async move {
            loop {
                moving.beat();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert_eq!(stage.by_socket("GET", "/livez").await.0, 200);
        tokio::time::sleep(PATIENCE + 2 * LOOK_INTERVAL).await;
        assert_eq!(stage.by_socket("GET", "/livez").await, (503, "stuck: udp-1\n".to_owned()));
        beats.abort();
    }

    #[tokio::test]
    async fn readyz_lists_what_is_missing_and_tells_the_drain() {
        let stage = Stage::on_free_port("ready").await;
        let gate = stage.readiness.gate("sockets bound");
        let missing = (503, "missing: sockets bound\n".to_owned());
        assert_eq!(stage.by_socket("GET", "/readyz").await, missing);
        gate.pass();
        assert_eq!(stage.by_socket("GET", "/readyz").await.0, 200);
        let owed = stage.shutdown.owe();
        stage.shutdown.begin();
        let draining = (503, "missing: not draining\n".to_owned());
        assert_eq!(stage.by_socket("GET", "/readyz").await, draining);
        drop(owed);
        stage.served.await.expect("ends when nothing is owed");
        assert!(!stage.socket.exists());
    }

    #[tokio::test]
    async fn an_idle_asker_does_not_keep_us_from_leaving() {
        let stage = Stage::on_free_port("leave").await;
        let _idle = connect(stage.address).await;
        stage.by_socket("GET", "/livez").await;
        stage.shutdown.begin();
        tokio::time::timeout(Duration::from_secs(2), stage.served)
            .await
            .expect("left")
            .expect("ok");
    }

    #[tokio::test]
    async fn a_taken_address_is_bound_as_soon_as_it_is_free() {
        let first = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let stage = Stage::new("taken", first.local_addr().expect("bound"));
        assert_eq!(stage.by_socket("GET", "/livez").await.0, 200);
        drop(first);
        let response = stage.by_tcp("GET", "/livez", "").await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }

    #[tokio::test]
    async fn askers_that_hold_connections_open_do_not_keep_a_probe_out() {
        let stage = Stage::on_free_port("stuck").await;
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut stream = connect(stage.address).await;
            stream.write_all(b"GET /metrics HTT").await.expect("sent");
            held.push(stream);
        }
        let probe = tokio::time::timeout(Duration::from_secs(2), stage.by_tcp("GET", "/livez", ""));
        assert!(probe.await.expect("in time").starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_request_without_end_is_cut() {
        let stage = Stage::on_free_port("endless").await;
        let mut stream = connect(stage.address).await;
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.expect("sent");
        let mut sent = 0;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
            assert!(sent < 16 << 20, "never cut");
        }
    }
}
