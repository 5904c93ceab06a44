//! Servers as child processes: started on free ports, bound to cores, asked for their CPU time, killed.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails only when it is gone already
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts `command` and waits until `address` answers a query for `example.org`, at most 20 s.
    pub fn start(
        name: &'static str,
        command: &Command,
        address: SocketAddr,
        cores: Cores,
    ) -> io::Result<Self> {
        let mut command = bound(command, cores);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn()?;
        let mut server = Self { address, child };
        for _ in 0..200 {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("{name} ended at once: {status}")));
            }
            if answers(address) {
                return Ok(server);
            }
        }
        Err(io::Error::other(format!("{name} gave no answer within 20 s")))
    }

    /// Binds every thread of the process to `cores`, also those that chose one for themselves.
    pub fn bind_threads(&self, cores: Cores) -> io::Result<()> {
        let Some(list) = list(cores) else { return Ok(()) };
        let mut command = Command::new("taskset");
        command.args(["-a", "-p", "-c", &list, &self.child.id().to_string()]);
        let output = command.output()?;
        output
            .status
            .success()
            .then_some(())
            .ok_or_else(|| io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// CPU time of the process so far, user and system.
    pub fn cpu(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may hold spaces; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // SAFETY: sysconf has no preconditions.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
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

/// Whether a query sent to `address` comes back as a response within 100 ms.
fn answers(address: SocketAddr) -> bool {
    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    let wait = Duration::from_millis(100);
    let asked = || -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(wait))?;
        socket.send(QUERY)?;
        let mut response = [0; 512];
        let len = socket.recv(&mut response)?;
        // NOERROR with the QR bit: a server that is still starting may answer SERVFAIL.
        Ok(len >= 12 && response[2] & 0x80 != 0 && response[3] & 0x0f == 0)
    };
    asked().unwrap_or_else(|_| {
        std::thread::sleep(wait / 2); // refused at once: nobody listens yet
        false
    })
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

/// A folder for configuration files, removed when dropped.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// A fresh folder below the build's own for such files.
    pub fn new() -> io::Result<Self> {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and gives back where it is.
    pub fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what stays is in the build's folder
    }
}
