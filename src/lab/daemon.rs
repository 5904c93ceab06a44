//! nodens itself in the lab: this executable, started on the node.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::LabError;
use super::namespace::Namespace;
use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::stub::{Ask, Carrier, ask};

/// How long the daemon may take until it answers.
const START: Duration = Duration::from_secs(10);

/// A running daemon; it is killed when this is dropped.
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts the daemon on a node and waits until it answers at the first of `listen`.
    ///
    /// # Errors
    /// When it does not start, or does not answer in time.
    pub(super) fn start(
        node: &Namespace,
        listen: &[SocketAddr],
        upstreams: &[SocketAddr],
    ) -> Result<Self, LabError> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["run", "--config", "/dev/null", "--log-level", "warn", "--take-over"]);
        for (flag, addresses) in [("--listen", listen), ("--upstream", upstreams)] {
            command.args(addresses.iter().flat_map(|at| [flag.to_owned(), at.to_string()]));
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NODENS_") {
                command.env_remove(name);
            }
        }
        // The file system is everybody's: no socket in it.
        command.env("NODENS_ADMIN__SOCKET", "").stdin(Stdio::null()).stdout(Stdio::null());
        // A child begins in the namespace of the thread that starts it.
        let child = node.run(|| command.spawn().map_err(LabError::Daemon))?;
        let daemon = Self { child };
        let first = *listen.first().ok_or(LabError::Vanished("the daemon's address"))?;
        node.run(|| await_answer(first))?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that is gone already cannot be killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until a response comes.
fn await_answer(server: SocketAddr) -> Result<(), LabError> {
    let deadline = clock::now() + START;
    let qname = Name::from_text("web-0.default.svc.cluster.local");
    let query = Query::new(qname.expect("a name of the lab"), Qtype::A);
    let question =
        Ask { server, query, carrier: Carrier::Udp, timeout: Duration::from_millis(200), tries: 1 };
    loop {
        match ask(&question) {
            Ok(_) => return Ok(()),
            Err(error) if clock::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
