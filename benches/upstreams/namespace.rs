//! A network namespace of this process's own: only loopback, no route out.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set for the process that runs again in a user namespace.
const AGAIN: &str = "UPSTREAMS_NAMESPACE";

/// Moves this process into a new network namespace, `lo` up; without root through a user namespace.
///
/// To be called before any thread is started: threads and children follow.
pub fn enter() -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        if libc::geteuid() != 0 && std::env::var_os(AGAIN).is_none() {
            let mut again = Command::new("unshare");
            again.args(["--user", "--map-root-user", "--"]).arg(std::env::current_exe()?);
            return Err(again.args(std::env::args().skip(1)).env(AGAIN, "1").exec());
        }
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("ip link set lo up")) }
}

/// Rules in this namespace; they are gone when this is dropped.
pub struct Rules;

impl Rules {
    /// Loads chains into a table of their own.
    pub fn load(chains: &str) -> io::Result<Self> {
        nft(&format!("table inet bench {{\n{chains}\n}}\n"))?;
        Ok(Self)
    }

    /// Loses this share of all packets from and to the upstreams, in percent, each way.
    pub fn lose(percent: u32) -> io::Result<Self> {
        Self::load(&format!(
            "set upstreams {{ type ipv4_addr; elements = {{ 127.0.0.2, 127.0.0.3 }}\n}}\n\
             chain in {{ type filter hook input priority 0;\n\
             meta l4proto {{ tcp, udp }} th dport 53 ip daddr @upstreams numgen random mod 100 < {percent} drop\n\
             meta l4proto {{ tcp, udp }} th sport 53 ip saddr @upstreams numgen random mod 100 < {percent} drop\n\
             }}"
        ))
    }

    /// Tracks connections, those of the stub resolvers left out.
    pub fn track() -> io::Result<Self> {
        let untracked = "udp dport 5300 notrack\nudp sport 5300 notrack\n";
        Self::load(&format!(
            "chain raw_out {{ type filter hook output priority raw;\n{untracked}}}\n\
             chain raw_in {{ type filter hook prerouting priority raw;\n{untracked}}}\n\
             chain in {{ type filter hook input priority 0;\nct state new counter\n}}"
        ))
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let _ = nft("delete table inet bench\n");
    }
}

/// Gives a script to nft.
fn nft(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(script.as_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("nft: {script}"))) }
}
