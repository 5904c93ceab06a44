//! Our own upstream queries and conntrack: nothing is left behind, and nobody on the node loses by it.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::node::{Host, Node, entries_of, nft, sh};
use crate::harness::{Daemon, Setup, Sink, Udp, ask, namespace, qtype, sink, until};
use crate::ports::{ask_pairs, assert_random, class_ports};
use crate::takeover::needs_node;

/// The node's address towards the upstream, and the upstream's.
const NODE: &str = "198.18.9.9";
const UPSTREAM: &str = "198.18.9.1:53";

/// A Service address that leads to the upstream.
const SERVICE: &str = "10.96.0.53:53";

/// Pods are masqueraded, the Service is translated, and responses come in only where a query went out.
const RULES: &str = "
table ip nat {
  chain out { type nat hook output priority -100;
    ip daddr 10.96.0.53 udp dport 53 dnat to 198.18.9.1:53
  }
  chain post { type nat hook postrouting priority 100;
    ip saddr 10.244.0.0/24 oifname \"up0\" masquerade
  }
}
table inet wall {
  chain in { type filter hook input priority 0; policy drop;
    iifname { \"lo\", \"cable\" } accept
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
  }
}
";

/// A node whose uplink leads to a host with a scripted upstream.
struct Place {
    node: Node,
    upstream: Sink,
    _far: Host,
}

impl Place {
    /// Makes it; the upstream answers after `delay`.
    fn new(delay: Duration) -> Self {
        let (node, far) = (Node::new(), Host::new());
        sh(&format!("ip link set up1 netns {}", far.pid()));
        far.run(|| {
            sh("ip link set lo up
                ip address add 198.18.9.1/24 dev up1
                ip link set up1 up");
        });
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the namespace is ours");
        nft(RULES);
        let address = UPSTREAM.parse().expect("an address");
        let script = move |seen: &sink::Seen| sink::ordinary(seen).after(delay);
        let upstream = far.run(|| Sink::at(address, script));
        Self { node, upstream, _far: far }
    }
}

/// Asks the upstream from the pod, some 50 times a second, until told; gives back how many asked, and how many in vain.
fn pod_asks(place: &Place, ended: &AtomicBool) -> (usize, usize) {
    let upstream: SocketAddr = UPSTREAM.parse().expect("an address");
    place.node.in_pod(|| {
        let (mut asked, mut lost) = (0, 0);
        while !ended.load(Ordering::Relaxed) {
            // Each from a port that the kernel draws, which MASQUERADE keeps where it can.
            let Ok(socket) = UdpSocket::bind(("0.0.0.0", 0)) else { continue };
            socket.connect(upstream).expect("a route");
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
            socket.send(&ask("pod.example.org", qtype::A).to_wire()).expect("sent");
            asked += 1;
            lost += usize::from(socket.recv(&mut [0; 512]).is_err());
            std::thread::sleep(Duration::from_millis(20));
        }
        (asked, lost)
    })
}

/// Loads the daemon with unique names for `span`, 20 at a time, while the pod asks too; gives back how many queries
/// there were, how many conntrack entries they had at most, and how the pod fared.
fn load(place: &Place, daemon: &Daemon, span: Duration) -> (usize, usize, (usize, usize)) {
    let (ended, most) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let pod = scope.spawn(|| pod_asks(place, ended));
        let watch = scope.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(entries_of(NODE), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let mut asked = 0;
        while began.elapsed() < span {
            ask_pairs(daemon, 1000, 10);
            asked += 2000;
        }
        ended.store(true, Ordering::Relaxed);
        watch.join().expect("conntrack lists");
        let pod = pod.join().expect("the pod asks");
        (asked, most.load(Ordering::Relaxed), pod)
    })
}

/// How long the load lasts.
fn span() -> Duration {
    Duration::from_secs(if std::env::var_os("IT_LONG").is_some() { 60 } else { 8 })
}

#[test]
fn our_queries_leave_no_conntrack_entries_behind_and_pods_that_ask_the_same_upstream_lose_nothing()
{
    needs_node!();
    namespace::inside(|| {
        let place = Place::new(Duration::from_millis(1));
        let daemon = Setup::towards(UPSTREAM).tables("[cache]\nsize = \"0\"").start();
        let (asked, most, (pod_asked, pod_lost)) = load(&place, &daemon, span());
        eprintln!("{asked} asked, {most} entries at most; the pod {pod_asked}, {pod_lost} in vain");
        assert!(asked >= 2000 && pod_asked >= 100, "{asked} {pod_asked}");
        assert!(most < 100, "{most} entries after {asked} queries");
        assert_eq!(pod_lost, 0, "of {pod_asked}");
        let deleted = daemon.metric("nodens_tracks_deleted_total", "");
        // Of every 32nd the kernel is asked about those before it.
        assert!(deleted + 64.0 >= asked as f64, "{deleted} deleted of {asked}");
        assert_eq!(daemon.metric("nodens_upstream_mismatched_total", ""), 0.0);
        assert!(daemon.log().contains("conntrack entries of our own queries are deleted"));
        let shown = daemon.admin("/upstreams").body;
        assert!(shown.lines().any(|line| line.ends_with("deleted")), "{shown}");
        assert_unguessable(&place.upstream, pod_asked);
    });
}

/// Asserts that the source ports of our queries are spread evenly over their class and tell nothing of the next.
/// The kernel moves those few to other ports that it has given to one of `pods` before.
fn assert_unguessable(upstream: &Sink, pods: usize) {
    let seen = upstream.seen();
    for kind in [qtype::A, qtype::AAAA] {
        let class = (0..).zip(class_ports(kind, 32_768, 60_999));
        let index: HashMap<u16, u16> = class.map(|(n, port)| (port, n)).collect();
        let is_ours = |seen: &&sink::Seen| seen.qtype == kind && seen.qname.contains("miss");
        let ports: Vec<u16> = seen.iter().filter(is_ours).map(|seen| seen.from.port()).collect();
        let places: Vec<u16> = ports.iter().filter_map(|port| index.get(port).copied()).collect();
        let moved = (ports.len() - places.len()) as f64 / ports.len() as f64;
        let taken = pods as f64 / 28_232.0;
        assert!(moved <= taken + 0.01, "{moved} of our ports were moved, {taken} taken by pods");
        assert_random(&format!("ports of type {kind}"), &places, 0, index.len() as u16 - 1);
    }
}

#[test]
fn queries_to_a_service_address_are_translated_and_leave_nothing_either() {
    needs_node!();
    namespace::inside(|| {
        let place = Place::new(Duration::from_millis(1));
        let daemon = Setup::towards(SERVICE).start();
        ask_pairs(&daemon, 1000, 10);
        let left = || entries_of(NODE);
        assert!(until(Duration::from_secs(3), || left() < 40), "{} entries", left());
        assert!(place.upstream.seen().len() >= 2000, "translated");
        drop(daemon);
        let daemon = Setup::towards(SERVICE).top("upstream_conntrack = \"keep\"").start();
        ask_pairs(&daemon, 1000, 10);
        assert!(left() >= 1900, "kept as the configuration says: {}", left());
        assert_eq!(daemon.metric("nodens_tracks_deleted_total", ""), 0.0);
    });
}

#[test]
fn a_pod_that_asks_from_the_port_of_a_query_in_flight_gets_its_response_and_so_do_we() {
    needs_node!();
    namespace::inside(|| {
        let place = Place::new(Duration::from_millis(500));
        let daemon = Setup::towards(UPSTREAM)
            .forward("retransmit_min = \"2s\"\nretransmit_max = \"2s\"")
            .start();
        let ours = Udp::to(daemon.address());
        ours.send(&ask("ours.example.org", qtype::A).to_wire());
        let port_of = |qname: &str| Some(place.upstream.seen_for(qname).first()?.from.port());
        let arrived = || port_of("ours.example.org.").is_some();
        assert!(until(Duration::from_secs(5), arrived), "nobody asks");
        let port = port_of("ours.example.org.").expect("it arrived");
        let pod = place.node.in_pod(|| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a port");
            socket.connect(UPSTREAM).expect("a route");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            socket.send(&ask("pod.example.org", qtype::A).to_wire()).expect("sent");
            socket.recv(&mut [0; 512]).is_ok()
        });
        assert!(pod, "the pod's response went elsewhere");
        assert!(ours.receive(Duration::from_secs(5)).is_some(), "ours went elsewhere");
        let moved = port_of("pod.example.org.");
        assert!(moved.is_some_and(|moved| moved != port), "{moved:?} is kept apart from {port}");
    });
}
