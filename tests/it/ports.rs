//! Source ports on the wire: classes apart, tuples unique, order unpredictable.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use nodens::dns::Qtype;
use nodens::upstream::ports::PortClass;

use crate::harness::capture::{Capture, Packet};
use crate::harness::message::{read_name, u16_at};
use crate::harness::statistics::{LIMIT, chi_square, histogram, lag_one, runs};
use crate::harness::wire::PATIENCE;
use crate::harness::{Action, Daemon, Setup, Sink, Udp, ask, namespace, needs, qtype, rcode, sink};

/// How long a port rests before it is used again towards the same upstream (DESIGN §4).
const REST: Duration = Duration::from_secs(30);

/// One query on the wire towards the upstream.
struct Sent {
    at: Duration,
    port: u16,
    id: u16,
    qtype: u16,
}

/// The queries for names under `miss.example.org` among the packets.
fn sent(packets: &[Packet], upstream: u16) -> Vec<Sent> {
    let queries = packets.iter().filter(|packet| packet.to.port() == upstream);
    queries
        .filter_map(|packet| {
            let (name, end) = read_name(&packet.payload, 12)?;
            name.to_ascii_lowercase().ends_with("miss.example.org.").then_some(())?;
            let (id, qtype) = (u16_at(&packet.payload, 0)?, u16_at(&packet.payload, end)?);
            Some(Sent { at: packet.at, port: packet.from.port(), id, qtype })
        })
        .collect()
}

/// Asks for `count` unique names, A and AAAA of each at once, `window` names in flight; all must be answered.
pub fn ask_pairs(daemon: &Daemon, count: usize, window: usize) {
    let socket = Udp::to(daemon.address());
    let (mut next, mut owed) = (0, HashSet::new());
    while next < count || !owed.is_empty() {
        while next < count && owed.len() + 2 <= 2 * window {
            for (kind, id) in [(qtype::A, 2 * next), (qtype::AAAA, 2 * next + 1)] {
                let mut ask = ask(&format!("n{next}.miss.example.org"), kind);
                ask.id = id as u16;
                owed.insert(ask.id);
                socket.send(&ask.to_wire());
            }
            next += 1;
        }
        let wire = socket.receive(PATIENCE).unwrap_or_else(|| panic!("{} lost", owed.len()));
        let answer = crate::harness::Answer::read(&wire);
        assert_eq!((answer.rcode(), answer.answers.len()), (rcode::NOERROR, 1), "{answer:?}");
        assert!(owed.remove(&answer.id), "an answer that nobody is owed");
    }
}

/// Captures what `count` pairs of misses look like towards an upstream that answers after `delay`.
fn capture(count: usize, delay: Duration, range: &str) -> (Vec<Sent>, Daemon, Sink) {
    let sink = Sink::start(move |seen| sink::ordinary(seen).after(delay));
    let daemon = Setup::towards(sink.address)
        .top(&format!("upstream_ports = {range:?}"))
        .forward("retransmit_min = \"300ms\"")
        .start();
    let capture = Capture::start(&format!("udp dst port {}", sink.address.port()));
    ask_pairs(&daemon, count, 40);
    let sent = sent(&capture.packets(), sink.address.port());
    (sent, daemon, sink)
}

/// The ports of one type's queries in the order of the wire.
fn ports_of(sent: &[Sent], kind: u16) -> Vec<u16> {
    sent.iter().filter(|sent| sent.qtype == kind).map(|sent| sent.port).collect()
}

/// Asserts that no port carried both types.
fn assert_classes_apart(sent: &[Sent]) {
    let set = |kind| ports_of(sent, kind).into_iter().collect::<HashSet<u16>>();
    let both: Vec<_> = set(qtype::A).intersection(&set(qtype::AAAA)).copied().collect();
    assert!(both.is_empty(), "ports in both classes: {both:?}");
}

/// Asserts that no port was used twice within its rest.
fn assert_rested(sent: &[Sent]) {
    let mut last: HashMap<u16, Duration> = HashMap::new();
    for one in sent {
        if let Some(before) = last.insert(one.port, one.at) {
            let rest = one.at - before;
            assert!(rest >= REST, "port {} again after {rest:?}", one.port);
        }
    }
}

/// Asserts that values of 16 bits between `first` and `last` are spread evenly, in no order.
pub fn assert_random(what: &str, values: &[u16], first: u16, last: u16) {
    let spread = chi_square(&histogram(values, first, last, 50));
    assert!(spread < LIMIT, "{what}: chi-square is {spread:.1} deviations off");
    let (lag, runs) = (lag_one(values), runs(values));
    assert!(lag.abs() < LIMIT, "{what}: one value tells the next, {lag:.1} deviations");
    assert!(runs.abs() < LIMIT, "{what}: runs are {runs:.1} deviations off");
}

#[test]
fn ten_thousand_misses_never_share_a_tuple_and_cannot_be_predicted() {
    needs!("tcpdump", "ip");
    namespace::inside(|| {
        let (sent, daemon, sink) = capture(5000, Duration::from_millis(2), "32768-60999");
        let retries = daemon.metric("nodens_upstream_retries_total", "");
        assert!(sent.len() >= 10_000, "{} captured", sent.len());
        assert!(
            sent.len() <= 10_000 + retries as usize,
            "{} captured, {retries} retries",
            sent.len()
        );
        assert!(sink.seen().iter().filter(|seen| seen.qname.contains("miss")).count() >= 10_000);
        assert_classes_apart(&sent);
        assert_documented_rule(&sent);
        assert_rested(&sent);
        assert_eq!(daemon.metric("nodens_ports_unrested_total", ""), 0.0);
        for kind in [qtype::A, qtype::AAAA] {
            let ports = ports_of(&sent, kind);
            // The class is a part of the range: its own ends are the frame of its histogram.
            let frame = class_ports(kind, 32_768, 60_999);
            let index: HashMap<u16, u16> =
                frame.iter().enumerate().map(|(index, port)| (*port, index as u16)).collect();
            let places: Vec<u16> = ports
                .iter()
                .map(|port| {
                    *index.get(port).unwrap_or_else(|| panic!("{port} is of another class"))
                })
                .collect();
            assert_random(&format!("ports of type {kind}"), &places, 0, frame.len() as u16 - 1);
        }
        let ids: Vec<u16> = sent.iter().map(|sent| sent.id).collect();
        assert_random("ids", &ids, 0, u16::MAX);
    });
}

/// The ports of the class of `kind`, by nodens's own rule.
pub fn class_ports(kind: u16, first: u16, last: u16) -> Vec<u16> {
    let class = PortClass::of_qtype(Qtype(kind));
    (first..=last).filter(|port| PortClass::of_port(*port) == class).collect()
}

/// Asserts that every query left from a port of its class, by the documented rule: port mod 3 is 0
/// for A, 1 for AAAA, 2 for everything else. Nodens's own function must say the same.
fn assert_documented_rule(sent: &[Sent]) {
    for one in sent {
        let class = match one.qtype {
            qtype::A => 0,
            qtype::AAAA => 1,
            _ => 2,
        };
        assert_eq!(one.port % 3, class, "type {} from port {}", one.qtype, one.port);
        assert_eq!(PortClass::of_port(one.port), PortClass::of_qtype(Qtype(one.qtype)));
    }
}

#[test]
fn three_hundred_ports_are_enough_to_lose_nothing() {
    needs!("tcpdump", "ip");
    namespace::inside(|| {
        let (sent, daemon, _sink) = capture(1000, Duration::from_millis(20), "40000-40299");
        assert!(sent.iter().all(|sent| (40_000..40_300).contains(&sent.port)), "out of the range");
        assert_classes_apart(&sent);
        assert_documented_rule(&sent);
        let mut last: HashMap<u16, Duration> = HashMap::new();
        for one in &sent {
            if let Some(before) = last.insert(one.port, one.at) {
                let apart = one.at - before;
                let free = apart >= Duration::from_millis(20);
                assert!(free, "port {} in two exchanges at once: {apart:?}", one.port);
            }
        }
        let unrested = daemon.metric("nodens_ports_unrested_total", "");
        assert!(unrested >= 1000.0, "{unrested} unrested ports counted");
    });
}

#[test]
fn reserved_ports_and_ports_of_others_are_left_alone() {
    needs!("ip");
    namespace::inside(|| {
        let reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        std::fs::write(reserved, "40000-40099").expect("a namespace has reserved ports of its own");
        let held: Vec<_> = (40_100..40_150)
            .map(|port| std::net::UdpSocket::bind(("0.0.0.0", port)).expect("a free port"))
            .collect();
        let sink = Sink::start(|seen| sink::ordinary(seen).now());
        let daemon = Setup::towards(sink.address).top("upstream_ports = \"40000-40399\"").start();
        ask_pairs(&daemon, 300, 10);
        for seen in sink.seen() {
            let free = (40_150..40_400).contains(&seen.from.port());
            assert!(free, "{} {} TCP {}: {}", seen.qname, seen.qtype, seen.by_tcp, seen.from);
        }
        assert!(daemon.metric("nodens_ports_conflicts_total", "") > 0.0, "conflicts are counted");
        drop(held);
    });
}

#[test]
fn a_full_port_class_fails_its_queries_at_once_and_not_the_other_classs() {
    needs!("ip");
    namespace::inside(|| {
        let sink = Sink::start(|seen| match seen.qtype {
            qtype::A if seen.qname.contains("hang") => Action::Ignore,
            _ => sink::ordinary(seen).now(),
        });
        let daemon = Setup::towards(sink.address)
            .top("upstream_ports = \"40000-40299\"")
            .forward("timeout = \"3s\"")
            .start();
        let socket = Udp::to(daemon.address());
        for number in 0..400u16 {
            let mut ask = ask(&format!("hang{number}.example.org"), qtype::A);
            ask.id = number;
            socket.send(&ask.to_wire());
        }
        let other = Udp::to(daemon.address()).exchange(&ask("www.example.org", qtype::AAAA));
        assert_eq!(other.data(qtype::AAAA), ["2001:db8::7"], "the other class goes on");
        let failed = (0..400).filter_map(|_| socket.receive(PATIENCE)).count();
        assert_eq!(failed, 400, "every query gets a response");
        assert!(daemon.metric("nodens_ports_exhausted_total", "") > 0.0, "counted");
        let later = Udp::to(daemon.address()).exchange(&ask("later.example.org", qtype::A));
        assert_eq!(later.rcode(), rcode::NOERROR, "free again");
    });
}

#[test]
fn pooled_sockets_keep_the_classes_apart_too() {
    needs!("tcpdump", "ip");
    namespace::inside(|| {
        let sink = Sink::start(|seen| sink::ordinary(seen).now());
        let daemon = Setup::towards(sink.address).forward("ports = \"pooled\"").start();
        let capture = Capture::start(&format!("udp dst port {}", sink.address.port()));
        ask_pairs(&daemon, 1000, 40);
        let sent = sent(&capture.packets(), sink.address.port());
        assert!(sent.len() >= 2000, "{} captured", sent.len());
        assert_classes_apart(&sent);
        assert_documented_rule(&sent);
        let ports: HashSet<u16> = sent.iter().map(|sent| sent.port).collect();
        assert!(ports.len() < 1500, "sockets are kept: {} ports for 2,000 queries", ports.len());
    });
}
