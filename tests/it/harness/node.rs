//! A node of a cluster, small: the test's own namespace is the node, with one pod behind a cable,
//! and a cluster DNS behind translation as kube-proxy makes it.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::message::{Answer, ask, qtype};
use super::place::{Place, until};
use super::process::{Process, command};
use super::sink::{self, Sink};
use super::wire::{self, Udp};

/// What pods' resolv.conf says.
pub const ASKED: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// The pod's own addresses.
pub const POD: [&str; 2] = ["10.244.0.2", "fd00:10:244::2"];

/// The node's end of the cable, where the cluster DNS answers on port 5353.
const NODE: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];

/// Translates what is asked of the cluster DNS, as kube-proxy does.
pub const TRANSLATION: &str = "
table inet kube {
  chain services {
    meta nfproto ipv4 ip daddr 10.96.0.10 meta l4proto { udp, tcp } th dport 53 dnat ip to 10.244.0.1:5353
    meta nfproto ipv6 ip6 daddr fd00:10:96::a meta l4proto { udp, tcp } th dport 53 dnat ip6 to [fd00:10:244::1]:5353
  }
  chain prerouting { type nat hook prerouting priority -100;
    jump services
  }
  chain output { type nat hook output priority -100;
    jump services
  }
}
";

/// The node with its pod; made in the calling thread's namespace.
pub struct Node {
    /// What answers where nobody intercepts, one of each family.
    pub cluster: [Sink; 2],
    pod: Host,
}

/// A network namespace of another host, or of a pod; nothing is in it yet.
pub struct Host {
    process: Process,
    _place: Place,
}

impl Host {
    /// Makes it.
    pub fn new() -> Self {
        let place = Place::new();
        let process = Process::start(holder(), &place.path("host.log"));
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let path = format!("/proc/{}/ns/net", process.pid());
        let moved = || std::fs::read_link(&path).is_ok_and(|other| other != own);
        assert!(until(Duration::from_secs(5), moved), "the host has no namespace");
        Self { process, _place: place }
    }

    /// Whose namespace it is, as `ip link set … netns` takes it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Runs `body` on a thread in it; threads that it starts are in it too.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let run = || {
            self.enter();
            body()
        };
        std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    }

    /// Runs `body` in it on the calling thread: programs that it starts live on.
    pub fn visit<T>(&self, body: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").expect("a namespace");
        self.enter();
        let outcome = body();
        set_namespace(&home);
        outcome
    }

    /// Moves the calling thread into it.
    fn enter(&self) {
        set_namespace(&File::open(format!("/proc/{}/ns/net", self.pid())).expect("the host lives"));
    }
}

/// Moves the calling thread into a network namespace.
fn set_namespace(namespace: &File) {
    // SAFETY: a plain system call with a descriptor that outlives it.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

impl Node {
    /// Makes links, addresses, routes, translation and the cluster DNS.
    pub fn new() -> Self {
        let pod = Host::new();
        let pid = pod.pid().to_string();
        sh(&format!(
            "ip link add cable type veth peer name eth0 netns {pid}
             ip link add up0 type veth peer name up1
             ip link set up1 up
             ip address add 198.18.9.9/24 dev up0
             ip address add 2001:db8:9::9/64 dev up0 nodad
             ip address add {}/24 dev cable
             ip address add {}/64 dev cable nodad
             ip link set cable up
             ip link set up0 up
             ip route add default dev up0
             ip -6 route add default dev up0",
            NODE[0], NODE[1]
        ));
        sh(&format!(
            "in_pod() {{ nsenter --net=/proc/{pid}/ns/net -- ip \"$@\"; }}
             in_pod address add {}/24 dev eth0
             in_pod address add {}/64 dev eth0 nodad
             in_pod link set lo up
             in_pod link set eth0 up
             in_pod route add default via {}
             in_pod -6 route add default via {}",
            POD[0], POD[1], NODE[0], NODE[1]
        ));
        nft(TRANSLATION);
        let cluster = NODE.map(|ip| {
            let ip: IpAddr = ip.parse().expect("an address");
            Sink::at(SocketAddr::new(ip, 5353), |seen| sink::ordinary(seen).now())
        });
        Self { cluster, pod }
    }

    /// Waits until the kernel has given the node's links the addresses that it gives by itself.
    pub fn settle(&self) {
        let settled = || {
            let addresses = say("ip", &["-6", "address"]);
            addresses.matches("inet6 fe80").count() >= 3 && !addresses.contains("tentative")
        };
        assert!(until(Duration::from_secs(10), settled), "{}", say("ip", &["-6", "address"]));
    }

    /// Runs `body` on a thread in the pod.
    pub fn in_pod<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pod.run(body)
    }

    /// One query from the pod by UDP; `None` when no response came for `wait`.
    pub fn try_pod(&self, asked: &str, name: &str, wait: Duration) -> Option<Answer> {
        let server = server(asked);
        self.in_pod(|| {
            let socket = Udp::to(server);
            let ask = ask(name, qtype::A);
            socket.send(&ask.to_wire());
            socket.answer_to(ask.id, wait)
        })
    }

    /// Asks from the pod and from the host, by UDP and TCP, both families; all must be answered.
    pub fn ask_all(&self, label: &str) {
        for (family, asked) in ASKED.iter().enumerate() {
            let server = server(asked);
            let from = |place: &str| {
                let name = |transport| format!("{label}-{place}-{transport}-{family}.example.org");
                let udp = wire::udp(server, &ask(&name("udp"), qtype::A));
                let tcp = wire::tcp(server, &ask(&name("tcp"), qtype::A));
                assert_eq!(udp.data(qtype::A), ["192.0.2.7"]);
                assert_eq!(tcp.data(qtype::A), ["192.0.2.7"]);
            };
            self.in_pod(|| from("pod"));
            from("host");
        }
    }

    /// How many queries took the ordinary path.
    pub fn ordinary(&self) -> usize {
        self.cluster.iter().map(|sink| sink.seen().len()).sum()
    }

    /// Waits until a query of the pod takes (or does not take) the ordinary path.
    pub fn takes_ordinary_path(&self, ordinary: bool, label: &str, limit: Duration) -> bool {
        let mut number = 0;
        until(limit, || {
            number += 1;
            let name = format!("{label}-{number}.example.org");
            let answer = self.try_pod(ASKED[0], &name, Duration::from_millis(100));
            let seen = !self.cluster[0].seen_for(&format!("{name}.")).is_empty();
            answer.is_some() && seen == ordinary
        })
    }
}

/// The server `ip`, port 53.
pub fn server(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), 53)
}

/// A process that does nothing in a network namespace of its own.
fn holder() -> Command {
    let mut unshare = command("unshare");
    unshare.args(["--net", "sleep", "600"]);
    unshare
}

/// Runs lines of shell, each of which must succeed.
pub fn sh(script: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh").env("PATH", path).args(["-euc", script]).output();
    let output = output.expect("sh runs");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// What a program says on standard output.
pub fn say(program: &str, arguments: &[&str]) -> String {
    let output = command(program).args(arguments).output().expect("the program runs");
    let is_missing = output.status.code() == Some(1);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || is_missing, "{program} {arguments:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives nft a script.
pub fn nft(script: &str) {
    let mut nft = command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft runs");
    nft.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft ends").success(), "{script}");
}

/// The names of the tables of ours that exist.
pub fn tables() -> Vec<String> {
    let text = say("nft", &["list", "tables"]);
    let names = text.lines().filter_map(|line| line.strip_prefix("table inet "));
    names.filter(|name| name.starts_with("nodens-")).map(str::to_owned).collect()
}

/// How many conntrack entries have this source, as the node sees it.
pub fn entries_of(source: &str) -> usize {
    let family = if source.contains(':') { "ipv6" } else { "ipv4" };
    say("conntrack", &["-L", "-f", family, "-s", source]).lines().count()
}
