//! The executable under test, with its files, its ports and its measures.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use super::http::{self, Reply};
use super::place::{Place, free_port, has_ipv6, until};
use super::process::Process;

/// How long a start may take in a debug build on a busy machine.
const START: Duration = Duration::from_secs(20);

/// What to start a daemon with.
#[derive(Debug)]
pub struct Setup {
    upstreams: Vec<String>,
    listen: Vec<String>,
    top: String,
    forward: String,
    tables: String,
    admin: Vec<SocketAddr>,
    port: Option<u16>,
    files_limit: Option<u64>,
    place: Place,
}

impl Setup {
    /// A daemon that forwards everything to `upstream`, in configuration form or as an address.
    pub fn towards(upstream: impl ToString) -> Self {
        Self {
            upstreams: vec![upstream.to_string()],
            listen: Vec::new(),
            top: String::new(),
            forward: String::new(),
            tables: String::new(),
            admin: Vec::new(),
            port: None,
            files_limit: None,
            place: Place::new(),
        }
    }

    /// One upstream more for the zone `.`.
    pub fn and(mut self, upstream: impl ToString) -> Self {
        self.upstreams.push(upstream.to_string());
        self
    }

    /// This host (IPv6 in brackets) instead of 127.0.0.1 and ::1.
    pub fn listen(mut self, host: &str) -> Self {
        self.listen.push(host.to_owned());
        self
    }

    /// Lines at the file's top level.
    pub fn top(mut self, lines: &str) -> Self {
        writeln!(self.top, "{lines}").expect("a string");
        self
    }

    /// Lines of the forward zone `.`.
    pub fn forward(mut self, lines: &str) -> Self {
        writeln!(self.forward, "{lines}").expect("a string");
        self
    }

    /// Whole tables.
    pub fn tables(mut self, lines: &str) -> Self {
        writeln!(self.tables, "{lines}").expect("a string");
        self
    }

    /// An admin address on TCP too.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin.push(address);
        self
    }

    /// This port, not a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// RLIMIT_NOFILE, soft and hard.
    pub fn files_limit(mut self, limit: u64) -> Self {
        self.files_limit = Some(limit);
        self
    }

    /// The configuration file's text for `port`.
    fn text(&self, port: u16) -> String {
        let hosts = match (self.listen.as_slice(), has_ipv6()) {
            ([], true) => &["127.0.0.1".to_owned(), "[::1]".to_owned()],
            ([], false) => &["127.0.0.1".to_owned()][..],
            (written, _) => written,
        };
        let listen: Vec<_> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
        let admin: Vec<_> = self.admin.iter().map(ToString::to_string).collect();
        format!(
            "listen = {listen:?}\n{}\n[admin]\nlisten = {admin:?}\nsocket = {:?}\n\n\
             [[forward]]\nzone = \".\"\nupstreams = {:?}\n{}\n{}",
            self.top,
            self.place.path("admin.sock"),
            self.upstreams,
            self.forward,
            self.tables
        )
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Daemon {
        let mut daemon = self.launch();
        daemon.wait_for("/readyz");
        daemon
    }

    /// Starts it and waits until it lives, ready or not (its upstream may be dead).
    pub fn start_unready(self) -> Daemon {
        let mut daemon = self.launch();
        daemon.wait_for("/livez");
        let here = daemon.address();
        assert!(
            until(START, || std::net::TcpStream::connect(here).is_ok()),
            "nobody listens on {here}:\n{}",
            daemon.log()
        );
        daemon
    }

    /// Starts it and waits for nothing.
    pub fn launch(self) -> Daemon {
        let port = self.port.unwrap_or_else(free_port);
        let text = self.text(port);
        let config = self.place.write("nodens.toml", &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.arg("run").arg("--config").arg(&config);
        if let Some(limit) = self.files_limit {
            limit_files(&mut command, limit);
        }
        Daemon::run(command, self.place, port, text)
    }
}

/// Sets RLIMIT_NOFILE for the program.
fn limit_files(command: &mut Command, limit: u64) {
    use std::os::unix::process::CommandExt;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the closure makes one async-signal-safe system call with a value of its own.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// A running daemon; dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    pub process: Process,
    pub place: Place,
    pub port: u16,
    /// The configuration file as first written.
    pub text: String,
}

impl Daemon {
    /// Starts any command line whose admin socket is `admin.sock` in `place`.
    pub fn run(command: Command, place: Place, port: u16, text: String) -> Self {
        let process = Process::start(command, &place.path("log"));
        Self { process, place, port, text }
    }

    /// Where it answers by IPv4.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where it answers by IPv6.
    pub fn address6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.port).into()
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.place.path("nodens.toml")
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the admin endpoint `target` says 200.
    pub fn wait_for(&mut self, target: &str) {
        let socket = self.place.path("admin.sock");
        let mut last = None;
        let good = until(START, || {
            if let Some(status) = self.process.ended() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            last = http::over_socket(&socket, "GET", target, "");
            last.as_ref().is_some_and(|reply| reply.status == 200)
        });
        assert!(good, "{target} never said 200, last {last:?}:\n{}", self.log());
    }

    /// One GET over the admin socket.
    pub fn admin(&self, target: &str) -> Reply {
        let reply = http::over_socket(&self.place.path("admin.sock"), "GET", target, "");
        reply.unwrap_or_else(|| panic!("{target} was not answered:\n{}", self.log()))
    }

    /// The sum of all samples of the metric `name` whose labels hold `label`; 0 when there is none.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.admin("/metrics").body;
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.contains(label)).then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }

    /// Runs the same executable with other arguments, to its end.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let socket = self.place.path("admin.sock");
        Command::new(env!("CARGO_BIN_EXE_nodens"))
            .args(arguments)
            .arg("--socket")
            .arg(socket)
            .output()
            .expect("the executable runs")
    }

    /// Writes a new configuration in the old one's place and asks for a reload.
    pub fn reload(&self, text: &str) {
        std::fs::write(self.config(), text).expect("the configuration file");
        self.process.signal(libc::SIGHUP);
    }
}
