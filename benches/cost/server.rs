//! Servers bound to cores, on free ports: what is measured has one core, all else the others.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::Process;

/// Where a process may run.
#[derive(Clone, Copy, Debug)]
pub enum Cores {
    /// The first core: what is measured.
    First,
    /// All others: load and upstream.
    Others,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    process: Process,
}

impl Server {
    /// Starts `command` and waits until `address` answers.
    pub fn start(
        name: &'static str,
        command: &Command,
        address: SocketAddr,
        cores: Cores,
    ) -> io::Result<Self> {
        let mut command = bound(command, cores);
        let process = Process::start(name, command.stdout(Stdio::null()), address)?;
        Ok(Self { address, process })
    }

    /// Binds every thread of the process to `cores`, also those that chose one for themselves.
    pub fn bind_threads(&self, cores: Cores) -> io::Result<()> {
        let Some(list) = list(cores) else { return Ok(()) };
        let mut command = Command::new("taskset");
        command.args(["-a", "-p", "-c", &list, &self.process.id().to_string()]);
        let output = command.output()?;
        output
            .status
            .success()
            .then_some(())
            .ok_or_else(|| io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// CPU time of the process so far, user and system.
    pub fn cpu(&self) -> io::Result<Duration> {
        self.process.cpu()
    }
}

/// The cores as `taskset` takes them; `None` on a machine with only one.
fn list(cores: Cores) -> Option<String> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    (count > 1).then(|| match cores {
        Cores::First => "0".to_owned(),
        Cores::Others => format!("1-{}", count - 1),
    })
}

/// The same command, bound to `cores` where the machine has more than one.
pub fn bound(command: &Command, cores: Cores) -> Command {
    let mut wrapped = match list(cores) {
        Some(list) => {
            let mut taskset = Command::new("taskset");
            taskset.args(["-c", &list]).arg(command.get_program());
            taskset
        }
        None => Command::new(command.get_program()),
    };
    wrapped.args(command.get_args());
    wrapped
}

/// A port of loopback that is free for UDP and TCP at this moment.
pub fn free_address() -> io::Result<SocketAddr> {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = udp.local_addr()?;
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
}
