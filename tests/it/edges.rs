//! Where the intercept ends: hosts without IPv6, sources that nobody listed, a full map of flows.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use nodens::netlink::netfilter::Netfilter;
use nodens::netlink::nft::Table;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::node::{ASKED, Node, say, server, sh, tables};
use crate::harness::process::Process;
use crate::harness::{Daemon, Place, Tcp, Udp, ask, namespace, qtype, rcode, until, wire};
use crate::starved::knock;
use crate::takeover::{is_claiming, needs_node, start, start_with, upstream};

/// More flows than are remembered.
const TOO_MANY: u32 = 70_000;

/// What is remembered.
const FLOWS: usize = 1 << 16;

#[test]
fn a_host_without_ipv6_is_no_lack_of_capabilities() {
    needs_node!();
    namespace::inside(|| {
        sh("for at in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$at/disable_ipv6; done");
        let (place, upstream) = (Place::new(), upstream());
        let run = |asked: &[&str]| {
            let config = place.write(
                "nodens.toml",
                &format!(
                    "listen = [\"127.0.0.1:5300\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\nsocket = {:?}\n\
                     [intercept]\naddresses = {asked:?}\n",
                    upstream.address,
                    place.path("admin.sock")
                ),
            );
            let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
            command.args(["run", "--config"]).arg(config);
            Process::start(command, &place.path("log"))
        };
        let mut refused = run(&ASKED);
        let status = refused.wait(Duration::from_secs(10)).expect("an IPv6 address was written");
        assert_eq!(status.code(), Some(1), "{}", refused.log());
        let log = refused.log();
        assert!(log.contains("has no IPv6") && !log.contains("needs the capability"), "{log}");
        let running = run(&ASKED[..1]);
        let takes = || running.log().contains("intercepted asked=10.96.0.10");
        assert!(until(Duration::from_secs(10), takes), "{}", running.log());
    });
}

#[test]
fn pods_with_public_addresses_are_answered_unless_it_is_written_who_may_ask() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let public = ["203.0.113.2", "2001:db8:244::2"];
        sh("ip route add 203.0.113.2/32 dev cable
            ip -6 route add 2001:db8:244::2/128 dev cable");
        node.in_pod(|| {
            sh("ip address add 203.0.113.2/32 dev eth0
                ip address add 2001:db8:244::2/128 dev eth0 nodad
                ip route replace default via 10.244.0.1 src 203.0.113.2
                ip -6 route replace default via fd00:10:244::1 src 2001:db8:244::2");
        });
        let ask_all = |label: &str| {
            let answers = [0, 1].map(|family| {
                let query =
                    |way: &str| ask(&format!("{label}-{way}-{family}.example.org"), qtype::A);
                node.in_pod(|| {
                    let stub =
                        Udp::from(public[family].parse().expect("IP"), server(ASKED[family]));
                    let (udp, mut tcp) =
                        (stub.exchange(&query("udp")), Tcp::to(server(ASKED[family])));
                    [udp.rcode(), tcp.exchange(&query("tcp")).rcode()]
                })
            });
            answers.concat()
        };
        let daemon = start(upstream.address);
        assert_eq!(ask_all("default"), [rcode::NOERROR; 4], "{}", daemon.log());
        assert_eq!(node.ordinary(), 0, "it was us who answered");
        drop(daemon);
        let listed = crate::harness::Setup::towards(upstream.address)
            .top("allow = [\"10.0.0.0/8\"]")
            .tables(&format!("[intercept]\naddresses = {ASKED:?}\n"))
            .start();
        assert!(until(Duration::from_secs(3), || is_claiming(&listed)));
        assert_eq!(ask_all("written"), [rcode::REFUSED; 4], "{}", listed.log());
    });
}

/// A SYN without a checksum: the table remembers its flow, and nobody answers.
fn syn(source: Ipv4Addr, port: u16, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(source.octets().into_iter().chain(to.octets()));
    packet.extend(port.to_be_bytes().into_iter().chain(53u16.to_be_bytes()));
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

/// Sends more SYNs than flows are remembered, each of another flow.
fn flood() {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    let socket = socket.expect("a raw socket");
    let to: Ipv4Addr = ASKED[0].parse().expect("an address");
    for number in 0..TOO_MANY {
        let port = u16::try_from(number % 50_000).expect("small") + 1024;
        let source = Ipv4Addr::new(10, 244, 0, u8::try_from(100 + number / 50_000).expect("small"));
        let packet = syn(source, port, to);
        socket.send_to(&packet, &SocketAddr::from((to, 0)).into()).expect("sent");
    }
}

#[test]
fn flows_beyond_those_that_are_remembered_take_the_ordinary_path() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        let mut kept = node.in_pod(|| Tcp::to(server(ASKED[0])));
        kept.exchange(&ask("kept-1.example.org", qtype::A));
        let mut netfilter = Netfilter::open().expect("a socket");
        let table = Table::inet(tables()[0].clone());
        let mut count = || netfilter.elements(&table, "mine4").expect("read").len();
        // A starved daemon falls open for a while.
        for _ in 0..3 {
            node.in_pod(flood);
            if count() >= FLOWS {
                break;
            }
            assert!(until(Duration::from_secs(10), || is_claiming(&daemon)));
        }
        assert_eq!(count(), FLOWS, "{}", daemon.log());
        assert!(
            node.takes_ordinary_path(false, "udp", Duration::from_secs(10)),
            "{}",
            daemon.log()
        );
        let query = ask("beyond.example.org", qtype::A);
        let answer = node.in_pod(|| wire::tcp(server(ASKED[0]), &query));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        assert_eq!(node.cluster[0].seen_for("beyond.example.org.").len(), 1, "{}", daemon.log());
        // SYNs of this host's processes, for longer than a firewall would be given.
        let mut given_back = || {
            knock(ASKED[0]);
            let count = netfilter.counter(&table, "given-back-tcp4-host").expect("read");
            count.unwrap_or_else(|| panic!("no table:\n{}", daemon.log())).packets
        };
        assert!(until(Duration::from_secs(10), || given_back() >= 20), "{}", daemon.log());
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(500));
            given_back();
        }
        assert_eq!(
            daemon.metric("nodens_intercept_withdrawals_total", ""),
            0.0,
            "{}",
            daemon.log()
        );
        kept.exchange(&ask("kept-2.example.org", qtype::A));
        assert_eq!(upstream.seen_for("kept-2.example.org.").len(), 1, "what is remembered goes on");
    });
}

#[test]
fn a_net_below_without_its_rules_is_made_again_and_one_without_ipv4_endpoints_never() {
    needs_node!();
    namespace::inside(|| {
        let (_node, upstream) = (Node::new(), upstream());
        let repairs = |daemon: &Daemon| daemon.metric("nodens_intercept_repairs_total", "");
        let daemon = start_with(upstream.address, "fallback = [\"10.244.0.1:5353\"]");
        let rules =
            || say("nft", &["list", "table", "inet", "nodens-below"]).matches("dnat").count();
        let before = rules();
        assert!(before >= 4, "{before}");
        for chain in ["pre", "out"] {
            sh(&format!("nft flush chain inet nodens-below {chain}"));
            assert!(
                until(Duration::from_secs(5), || rules() == before),
                "{chain}: {}",
                daemon.log()
            );
        }
        assert_eq!(repairs(&daemon), 2.0, "{}", daemon.log());
        drop(daemon);
        sh("nft delete table inet nodens-below");
        let daemon = start_with(upstream.address, "fallback = [\"[fd00:10:244::1]:5353\"]");
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!((repairs(&daemon), tables().len()), (0.0, 1), "{}", daemon.log());
    });
}
