//! Servers under test as child processes: started, waited for, asked what they used, killed.
//! Shared by the benches that start servers.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // fails only when it is gone already
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts `command` and waits until `address` answers a query for `example.org`.
    pub fn start(name: &str, command: &mut Command, address: SocketAddr) -> io::Result<Self> {
        let mut process = Self(command.stdin(Stdio::null()).spawn()?);
        let began = Instant::now();
        while !answers(address, "example.org") {
            if let Some(status) = process.0.try_wait()? {
                return Err(io::Error::other(format!("{name} ended at once: {status}")));
            }
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{name} gave no answer for {PATIENCE:?}")));
            }
        }
        Ok(process)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// CPU time so far, user and system.
    pub fn cpu(&self) -> io::Result<Duration> {
        let stat = self.proc("stat")?;
        // The name in parentheses may hold spaces; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // SAFETY: sysconf has no preconditions.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// Resident megabytes.
    pub fn resident(&self) -> io::Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kilobytes = line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
        Ok(kilobytes.ok_or(io::ErrorKind::InvalidData)? / 1024.0)
    }

    /// A file of the process in /proc.
    fn proc(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.id()))
    }
}

/// The daemon: another build than this program's own where `NODENS` names one.
pub fn nodens() -> Command {
    Command::new(std::env::var_os("NODENS").unwrap_or(env!("CARGO_BIN_EXE_nodens").into()))
}

/// Tells whether `name` is answered with NOERROR within 100 ms.
pub fn answers(address: SocketAddr, name: &str) -> bool {
    // A server that is still starting may answer SERVFAIL.
    answer(address, name).is_some_and(|response| response[2] & 0x80 != 0 && response[3] & 15 == 0)
}

/// The response to a query for `name`, with a header at least, if it comes within 100 ms.
fn answer(address: SocketAddr, name: &str) -> Option<Vec<u8>> {
    let wait = Duration::from_millis(100);
    let asked = || -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(wait))?;
        socket.send(&query(rand::random(), name, None))?;
        let mut response = vec![0; 4096];
        let length = socket.recv(&mut response)?;
        response.truncate(length);
        Ok(response)
    };
    let response = asked().unwrap_or_else(|_| {
        std::thread::sleep(wait / 10); // refused at once: nobody listens yet
        Vec::new()
    });
    (response.len() >= 12).then_some(response)
}

/// The TTL of the last A record that `name` is answered with, within 100 ms.
pub fn ttl(address: SocketAddr, name: &str) -> Option<u32> {
    let response = answer(address, name).filter(|response| response[7] > 0)?;
    // Behind it are only its length and the address: the query had no EDNS.
    let ttl = response.len().checked_sub(10).and_then(|at| response.get(at..at + 4))?;
    Some(u32::from_be_bytes(ttl.try_into().ok()?))
}

/// The sum of a counter's samples, over all labels, as `/metrics` of nodens tells it.
pub fn counted(admin: SocketAddr, name: &str) -> io::Result<f64> {
    let mut stream = TcpStream::connect(admin)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    Ok(values.sum())
}

/// A query by UDP: `name` in presentation form without the last dot, type A.
pub fn query(id: u16, name: &str, payload: Option<u16>) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(payload.is_some())]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    if let Some(size) = payload {
        out.extend([0, 0, 41]);
        out.extend(size.to_be_bytes());
        out.extend([0; 6]);
    }
    out
}

/// A folder for files of a bench, removed when dropped.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// A fresh folder below the build's own for such files.
    pub fn new() -> io::Result<Self> {
        let name = format!("bench-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
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
