//! The three that are compared, each in front of the same upstreams, as their users run them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::{self, Place, Process};

/// Where contenders listen.
pub const LISTEN: &str = "127.0.0.1:5300";

/// Where nodens tells what it counts.
pub const ADMIN: &str = "127.0.0.1:9253";

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    process: Process,
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
        let log_path = place.path().join("log");
        let log = fs::File::create(&log_path)?;
        command.stdout(log.try_clone()?).stderr(log);
        let address = LISTEN.parse().expect("the constant is an address");
        let process = Process::start(kind.name(), &mut command, address).map_err(|error| {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            io::Error::other(format!("{error}: {log}"))
        })?;
        Ok(Self { address, process, _place: place })
    }

    /// Tells whether `name` is answered with NOERROR within 100 ms.
    pub fn answers(&self, name: &str) -> bool {
        process::answers(self.address, name)
    }

    /// The TTL that `name` is answered with within 100 ms.
    pub fn ttl(&self, name: &str) -> Option<u32> {
        process::ttl(self.address, name)
    }

    /// CPU time so far, user and system.
    pub fn cpu(&self) -> io::Result<Duration> {
        self.process.cpu()
    }

    /// Resident megabytes.
    pub fn resident(&self) -> io::Result<f64> {
        self.process.resident()
    }
}

/// The daemon with its defaults.
fn nodens(place: &Place, upstreams: &[String], ports: &str) -> io::Result<Command> {
    let text = format!(
        "listen = [\"{LISTEN}\"]\n[[forward]]\nzone = \".\"\nupstreams = {upstreams:?}\nports = \"{ports}\"\n\
         [admin]\nlisten = [\"{ADMIN}\"]\nsocket = \"\"\n[log]\nlevel = \"warn\"\n"
    );
    let mut command = process::nodens();
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
        place.path()
    );
    for upstream in upstreams {
        let _ = writeln!(text, "  forward-addr: {}", upstream.replace(':', "@"));
    }
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(place.write("unbound.conf", &text)?);
    Ok(command)
}
