//! nodens itself in the lab: this executable, started on the node.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::LabError;
use super::endpoints::Endpoints;
use super::namespace::Namespace;
use super::net::{CLUSTER_DNS, Dual};
use super::side::Side;
use crate::clock;

/// How long the daemon may take until it claims queries.
const START: Duration = Duration::from_secs(15);
/// Patience with its admin address.
const ADMIN: Duration = Duration::from_secs(1);
/// The metrics that count how often it fell open, and how many queries it had no room for.
const LAPSES: &str = "nodens_intercept_lapses_total ";
const SHED: &str = "nodens_queries_shed_total ";
/// The metric that says that queries are taken.
const CLAIMING: &str = "\nnodens_intercept_claiming 1";
/// The metric that says that the cluster zone answers.
const SYNCED: &str = "\nnodens_cluster_synced 1";

/// What a daemon learns of the cluster.
#[derive(Clone, Copy)]
pub(super) struct Knowledge<'a> {
    /// Its upstreams.
    pub endpoints: &'a Endpoints,
    /// Who answers 169.254.20.10 when nodens does not.
    pub below: &'a [Dual],
    /// The way to the API server, where it has the cluster zone itself.
    pub kubeconfig: Option<&'a str>,
}

/// A running daemon; it is killed when this is dropped.
pub(super) struct Daemon {
    child: Child,
    admin: SocketAddr,
}

/// What a daemon says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// How often it fell open because it was starved.
    pub lapses: u64,
    /// Queries answered SERVFAIL because too many were being resolved.
    pub shed: u64,
}

/// What can be done to a daemon.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Kill,
    Stop,
    Continue,
    Terminate,
}

impl Daemon {
    /// Starts a daemon on a node and waits until it takes what is asked of the cluster DNS address.
    ///
    /// `number` tells several on one node apart.
    ///
    /// # Errors
    /// When it does not start, or does not claim in time.
    pub(super) fn start(
        node: &Namespace,
        number: u16,
        side: Side,
        knowledge: Knowledge<'_>,
    ) -> Result<Self, LabError> {
        let Knowledge { endpoints, below, kubeconfig } = knowledge;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9253 + number));
        let mut command = Command::new("/proc/self/exe");
        command.args(["run", "--config", "/dev/null", "--log-level", "warn", "--take-over"]);
        command.args(["--intercept", side.mode().unwrap_or("none"), "--admin", &admin.to_string()]);
        command.args(["--upstream", &endpoints.upstream()]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NODENS_") {
                command.env_remove(name);
            }
        }
        let [v4, v6] = CLUSTER_DNS.both();
        command.env("NODENS_INTERCEPT__ADDRESSES", format!("{v4},{v6},169.254.20.10"));
        let fallback = below.iter().flat_map(|server| server.sockets());
        let fallback: Vec<_> = fallback.map(|at| at.to_string()).collect();
        command.env("NODENS_INTERCEPT__FALLBACK", fallback.join(","));
        if let Some(kubeconfig) = kubeconfig {
            command.env("NODENS_CLUSTER__SOURCE", "watch");
            command.env("NODENS_CLUSTER__KUBECONFIG", kubeconfig);
        }
        // The file system is everybody's: no socket in it.
        command.env("NODENS_ADMIN__SOCKET", "").stdin(Stdio::null()).stdout(Stdio::null());
        // A child begins in the namespace of the thread that starts it.
        let child = node.run(|| command.spawn().map_err(LabError::Daemon))?;
        let mut daemon = Self { child, admin };
        let signs = [Some(CLAIMING), kubeconfig.map(|_| SYNCED)];
        node.run(|| daemon.await_signs(&signs))?;
        Ok(daemon)
    }

    /// Reads the metrics until they show all signs of being ready.
    fn await_signs(&mut self, signs: &[Option<&str>]) -> Result<(), LabError> {
        let deadline = clock::now() + START;
        let shows_all = |text: String| signs.iter().flatten().all(|sign| text.contains(sign));
        while !metrics(self.admin).is_ok_and(shows_all) {
            if let Some(status) = self.child.try_wait().map_err(LabError::Daemon)? {
                return Err(LabError::DaemonEnded(status));
            }
            if clock::now() > deadline {
                return Err(LabError::Unclaimed(START));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it has counted; `None` when it does not say, as the dead do not.
    ///
    /// # Errors
    /// When the node cannot be entered.
    pub(super) fn counts(&self, node: &Namespace) -> Result<Option<Counts>, LabError> {
        let text = node.run(|| Ok(metrics(self.admin).ok()))?;
        let count = |name: &str| {
            let mut lines = text.as_deref()?.lines();
            lines.find_map(|line| line.strip_prefix(name)?.parse().ok())
        };
        let counts = count(LAPSES).zip(count(SHED));
        Ok(counts.map(|(lapses, shed)| Counts { lapses, shed }))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let number = match signal {
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
            Signal::Terminate => libc::SIGTERM,
        };
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        // SAFETY: the child is ours and not yet waited for, so the pid is its own.
        match unsafe { libc::kill(pid, number) } {
            0 => Ok(()),
            _ => Err(LabError::Daemon(io::Error::last_os_error())),
        }
    }
}

/// The daemon's metrics, by HTTP as it answers a bare request.
fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, ADMIN)?;
    stream.set_read_timeout(Some(ADMIN))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that is gone already cannot be killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
