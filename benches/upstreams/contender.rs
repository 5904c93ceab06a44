//! The three that are compared, each in front of the same upstreams, as their users run them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where contenders listen.
pub const LISTEN: &str = "127.0.0.1:5300";

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nodens,
    /// The same with `ports = "pooled"`.
    NodensPooled,
    NodeCache,
    Unbound,
}

impl Kind {
    /// In the order of the report.
    pub const ALL: [Self; 3] = [Self::Nodens, Self::NodeCache, Self::Unbound];

    /// As the report writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodens => "nodens",
            Self::NodensPooled => "nodens pooled",
            Self::NodeCache => "node-cache",
            Self::Unbound => "unbound",
        }
    }
}

/// A running contender; killed when dropped.
pub struct Contender {
    pub address: SocketAddr,
    child: Child,
    _place: Place,
}

impl Contender {
    /// Starts one that forwards everything to `upstreams` (configuration forms), and waits until it answers.
    pub fn start(kind: Kind, upstreams: &[String]) -> io::Result<Self> {
        let place = Place::new()?;
        let mut command = match kind {
            Kind::Nodens => nodens(&place, upstreams, "per-query")?,
            Kind::NodensPooled => nodens(&place, upstreams, "pooled")?,
            Kind::NodeCache => node_cache(&place, upstreams)?,
            Kind::Unbound => unbound(&place, upstreams)?,
        };
        let log = fs::File::create(place.0.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let address = LISTEN.parse().expect("the constant is an address");
        let child = command.spawn()?;
        let mut contender = Self { address, child, _place: place };
        let began = Instant::now();
        while !contender.answers("ready.example.org") {
            let log = || fs::read_to_string(contender._place.0.join("log")).unwrap_or_default();
            if let Some(status) = contender.child.try_wait()? {
                return Err(io::Error::other(format!("{} {status}: {}", kind.name(), log())));
            }
            if began.elapsed() > Duration::from_secs(30) {
                let text = format!("{} gives no answer: {}", kind.name(), log());
                return Err(io::Error::other(text));
            }
        }
        Ok(contender)
    }

    /// Tells whether `name` is answered with NOERROR within 100 ms.
    pub fn answers(&self, name: &str) -> bool {
        let wire = super::load::query(rand::random(), name, None);
        let wait = Duration::from_millis(100);
        let asked = || -> io::Result<bool> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(self.address)?;
            socket.set_read_timeout(Some(wait))?;
            socket.send(&wire)?;
            let mut response = [0; 4096];
            let length = socket.recv(&mut response)?;
            Ok(length >= 12 && response[3] & 15 == 0)
        };
        asked().unwrap_or_else(|_| {
            std::thread::sleep(wait / 10); // refused at once: nobody listens yet
            false
        })
    }

    /// CPU time so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10) // USER_HZ is 100 on every Linux we build for
    }

    /// Resident megabytes.
    pub fn resident(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kilobytes = line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
        kilobytes.unwrap_or_default() / 1024.0
    }

    /// A file of the process in /proc.
    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails only when it is gone already
        let _ = self.child.wait();
    }
}

/// The daemon with its defaults.
fn nodens(place: &Place, upstreams: &[String], ports: &str) -> io::Result<Command> {
    let text = format!(
        "listen = [\"{LISTEN}\"]\n[[forward]]\nzone = \".\"\nupstreams = {upstreams:?}\nports = \"{ports}\"\n\
         [admin]\nlisten = [\"127.0.0.1:9253\"]\nsocket = \"\"\n[log]\nlevel = \"warn\"\n"
    );
    // Another build, say that of a release beside a debug build of this program.
    let program = std::env::var_os("NODENS").unwrap_or(env!("CARGO_BIN_EXE_nodens").into());
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(place.write("nodens.toml", &text)?);
    Ok(command)
}

/// node-cache's engine with its default Corefile for the zone `.`.
fn node_cache(place: &Place, upstreams: &[String]) -> io::Result<Command> {
    let text = format!(
        ".:5300 {{\n  errors\n  cache 30\n  reload\n  loop\n  bind 127.0.0.1\n  forward . {}\n  \
         prometheus :9254\n}}\n",
        upstreams.join(" ")
    );
    let mut command = Command::new(node_cache_program().ok_or(io::ErrorKind::NotFound)?);
    command.arg("-conf").arg(place.write("Corefile", &text)?);
    Ok(command)
}

/// The program that `benches/upstreams/run` built, if it did.
pub fn node_cache_program() -> Option<PathBuf> {
    std::env::var_os("NODE_CACHE").map(PathBuf::from).filter(|path| path.is_file())
}

/// unbound as a forwarder that serves expired answers.
fn unbound(place: &Place, upstreams: &[String]) -> io::Result<Command> {
    let mut text = format!(
        "server:\n  interface: 127.0.0.1@5300\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
         directory: {:?}\n  use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  \
         module-config: iterator\n  num-threads: 1\n  serve-expired: yes\n  so-rcvbuf: 4m\n  \
         outgoing-range: 8192\n  num-queries-per-thread: 4096\n  infra-keep-probing: yes\n\
         remote-control:\n  control-enable: no\nforward-zone:\n  name: .\n",
        place.0
    );
    for upstream in upstreams {
        let _ = writeln!(text, "  forward-addr: {}", upstream.replace(':', "@"));
    }
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(place.write("unbound.conf", &text)?);
    Ok(command)
}

/// A folder for configuration files, removed when dropped.
pub struct Place(pub PathBuf);

impl Place {
    /// A fresh folder below the build's own for such files.
    pub fn new() -> io::Result<Self> {
        let name = format!("upstreams-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Writes a file and gives back its path.
    pub fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
