//! A network namespace of this process's own: only loopback, or a node with a pod and an upstream's host; no
//! route out.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set for the process that runs again in a user namespace.
const AGAIN: &str = "UPSTREAMS_NAMESPACE";

/// Moves this process into a new network namespace, `lo` up; without root through a user namespace.
///
/// To be called before any thread is started: threads and children follow.
pub fn enter() -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 && std::env::var_os(AGAIN).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--user", "--map-root-user", "--"]).arg(std::env::current_exe()?);
        return Err(again.args(std::env::args().skip(1)).env(AGAIN, "1").exec());
    }
    leave()
}

/// Moves the calling thread into a network namespace of its own, `lo` up, nothing else in it.
fn leave() -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    ip("link set lo up")
}

/// Runs `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> io::Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {arguments}"))) }
}

/// Another host, or a pod: a network namespace that lives as long as this.
pub struct Host(File);

impl Host {
    /// Makes it, with only `lo` in it.
    fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            leave()?;
            File::open("/proc/thread-self/ns/net")
        });
        Ok(Self(made.join().map_err(|_| io::ErrorKind::Other)??))
    }

    /// As `ip link set … netns` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `body` on a thread in it; threads that it starts are in it too.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let run = || {
            // SAFETY: a plain system call with a descriptor that outlives it.
            match unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => body(),
                _ => Err(io::Error::last_os_error()),
            }
        };
        std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| io::ErrorKind::Other)?
    }
}

/// A node: this process's namespace, new, with a pod behind it and an upstream's host at its uplink.
pub struct Node {
    pub pod: Host,
    pub far: Host,
}

impl Node {
    /// Leaves the namespace that this process was in, and all that was kept there, for a node.
    ///
    /// To be called while no other thread runs.
    pub fn enter() -> io::Result<Self> {
        leave()?;
        let (pod, far) = (Host::new()?, Host::new()?);
        ip(&format!("link add cable type veth peer name eth0 netns {}", pod.path()))?;
        ip(&format!("link add up0 type veth peer name up1 netns {}", far.path()))?;
        for (link, address) in [("cable", "10.244.0.1/24"), ("up0", "198.18.9.9/24")] {
            ip(&format!("address add {address} dev {link}"))?;
            ip(&format!("link set {link} up"))?;
        }
        pod.run(|| {
            ip("address add 10.244.0.2/24 dev eth0")?;
            ip("link set eth0 up")?;
            ip("route add default via 10.244.0.1")
        })?;
        far.run(|| {
            ip("address add 198.18.9.1/24 dev up1")?;
            ip("link set up1 up")
        })?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        Ok(Self { pod, far })
    }
}

/// Rules in this namespace; they are gone when this is dropped.
pub struct Rules;

impl Rules {
    /// Loads chains into a table of their own.
    fn load(chains: &str) -> io::Result<Self> {
        nft(&format!("table inet bench {{\n{chains}\n}}\n"))?;
        Ok(Self)
    }

    /// Counts queries to the upstreams by UDP, and loses this share of all packets from and to them, in percent,
    /// each way.
    pub fn lose(percent: u32) -> io::Result<Self> {
        let lost = format!("numgen random mod 100 < {percent} drop");
        let lost = if percent == 0 { "accept" } else { &lost };
        Self::load(&format!(
            "set upstreams {{ type ipv4_addr; elements = {{ 127.0.0.2, 127.0.0.3 }}\n}}\n\
             counter sent {{\n}}\n\
             chain in {{ type filter hook input priority 0;\n\
             udp dport 53 ip daddr @upstreams counter name sent\n\
             meta l4proto {{ tcp, udp }} th dport 53 ip daddr @upstreams {lost}\n\
             meta l4proto {{ tcp, udp }} th sport 53 ip saddr @upstreams {lost}\n\
             }}"
        ))
    }

    /// How many queries were sent to the upstreams by UDP, lost or not.
    pub fn sent(&self) -> io::Result<u64> {
        let list =
            Command::new("nft").args(["list", "counter", "inet", "bench", "sent"]).output()?;
        let text = String::from_utf8_lossy(&list.stdout);
        let count = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
        count
            .and_then(|count| count.parse().ok())
            .ok_or_else(|| io::Error::other("nft: no counter"))
    }

    /// Tracks connections, those of the stub resolvers left out; pods are masqueraded.
    pub fn track() -> io::Result<Self> {
        let untracked = "udp dport 5300 notrack\nudp sport 5300 notrack\n";
        Self::load(&format!(
            "chain raw_out {{ type filter hook output priority raw;\n{untracked}}}\n\
             chain raw_in {{ type filter hook prerouting priority raw;\n{untracked}}}\n\
             chain post {{ type nat hook postrouting priority 100;\n\
             ip saddr 10.244.0.0/24 oifname \"up0\" masquerade\n}}\n\
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
