//! The parts around the daemon work as the tests suppose.

use std::time::Duration;

use crate::harness::capture::Capture;
use crate::harness::load::Load;
use crate::harness::message::{Answer, flag, u16_at};
use crate::harness::stubs::{Libc, Stub};
use crate::harness::unbound::Unbound;
use crate::harness::{Knot, Place, Sink, ask, namespace, needs, qtype, rcode, sink, wire};

#[test]
fn knot_serves_its_zones_and_truncates_by_udp() {
    needs!("knotd");
    let knot = Knot::start();
    let www = wire::udp(knot.address, &ask("www.example.org", qtype::A));
    assert_eq!((www.rcode(), www.data(qtype::A)), (rcode::NOERROR, vec!["192.0.2.1"]));
    for (name, kind) in [
        ("1.2.0.192.in-addr.arpa", qtype::PTR),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", qtype::PTR),
        ("_http._tcp.example.org", qtype::SRV),
        ("unique-1.wild.example.org", qtype::AAAA),
        ("a.old.example.org", qtype::A),
    ] {
        assert!(!wire::udp(knot.address, &ask(name, kind)).answers.is_empty(), "{name}");
    }
    let big = ask("big.example.org", qtype::TXT);
    assert!(wire::udp(knot.address, &big).has(flag::TC));
    assert_eq!(wire::tcp(knot.address, &big).answers.len(), crate::harness::knot::BIG);
    let huge = wire::tcp(knot.address, &ask("huge.example.org", qtype::TXT));
    assert_eq!(huge.answers.len(), crate::harness::knot::HUGE);
    assert!(huge.wire.len() > 60_000, "{} bytes", huge.wire.len());
    let nobody = wire::udp(knot.address, &ask("nobody.example.org", qtype::A));
    assert_eq!((nobody.rcode(), nobody.authority.len()), (rcode::NXDOMAIN, 1));
    let outside = wire::udp(knot.address, &ask("random.invalid", qtype::A));
    assert_eq!(outside.rcode(), rcode::NXDOMAIN);
}

#[test]
fn unbound_forwards_to_knot() {
    needs!("knotd", "unbound");
    let knot = Knot::start();
    let unbound = Unbound::before(knot.address);
    let www = wire::udp(unbound.address, &ask("www.example.org", qtype::AAAA));
    assert_eq!(www.data(qtype::AAAA), ["2001:db8::1"]);
    let reverse = wire::udp(unbound.address, &ask("1.2.0.192.in-addr.arpa", qtype::PTR));
    assert_eq!(reverse.data(qtype::PTR), ["www.example.org."]);
}

#[test]
fn a_scripted_upstream_records_what_it_sees_and_answers_by_its_script() {
    let sink = Sink::start(|seen| match seen.qname.as_str() {
        "late.example.org." => sink::ordinary(seen).after(Duration::from_millis(100)),
        _ => sink::ordinary(seen).now(),
    });
    let stub = wire::Udp::to(sink.address);
    let (late, early) = (ask("late.example.org", qtype::A), ask("Early.example.org", qtype::AAAA));
    stub.send(&late.to_wire());
    stub.send(&early.to_wire());
    let order: Vec<Answer> = (0..2)
        .filter_map(|_| stub.receive(wire::PATIENCE))
        .map(|wire| Answer::read(&wire))
        .collect();
    assert_eq!(order.iter().map(|answer| answer.id).collect::<Vec<_>>(), [early.id, late.id]);
    assert_eq!(wire::tcp(sink.address, &early).data(qtype::AAAA), ["2001:db8::7"]);
    let seen = sink.seen_for("early.example.org.");
    assert_eq!(seen.iter().map(|query| query.by_tcp).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_capture_sees_each_datagram_once() {
    needs!("knotd", "tcpdump", "ip");
    namespace::inside(|| {
        let knot = Knot::start();
        let capture = Capture::start(&format!("udp dst port {}", knot.address.port()));
        let stub = wire::Udp::to(knot.address);
        let ids: Vec<u16> = (0..500)
            .map(|number| {
                let ask = ask(&format!("n{number}.wild.example.org"), qtype::A);
                stub.exchange(&ask).id
            })
            .collect();
        let packets = capture.packets();
        let port = stub.0.local_addr().expect("an address").port();
        assert!(packets.iter().all(|packet| packet.from.port() == port));
        let seen: Vec<_> = packets.iter().filter_map(|packet| u16_at(&packet.payload, 0)).collect();
        assert_eq!(seen, ids);
    });
}

#[test]
fn dnsperf_counts_what_it_sent() {
    needs!("knotd", "dnsperf");
    let knot = Knot::start();
    let names = vec!["www.example.org A".to_owned(), "nobody.example.org AAAA".to_owned()];
    let report = Load::full_speed(1, names).rate(500).run(knot.address);
    assert!((300..=600).contains(&report.sent), "{}", report.text);
    assert_eq!((report.completed, report.lost), (report.sent, 0));
    assert_eq!(report.rcodes.keys().collect::<Vec<_>>(), ["NOERROR", "NXDOMAIN"]);
    assert_eq!(report.rcodes.values().sum::<u64>(), report.completed);
}

#[test]
fn c_programs_ask_who_their_resolv_conf_names() {
    needs!("knotd", "gcc", "musl-gcc", "ip");
    for library in [Libc::Glibc, Libc::Musl] {
        let (stub, place) = (Stub::compile(library), Place::new());
        let file = place.write("resolv.conf", "nameserver 127.0.0.1\nsearch example.org\n");
        namespace::inside(|| {
            namespace::bind_over(&file, "/etc/resolv.conf");
            let _knot = Knot::at("127.0.0.1:53".parse().expect("an address"));
            assert_eq!(stub.addresses("www"), ["192.0.2.1", "2001:db8::1"], "{library:?}");
            assert_eq!(stub.name_of("192.0.2.1"), "www.example.org", "{library:?}");
            assert!(stub.addresses("nobody.example.org")[0].starts_with("error"), "{library:?}");
        });
    }
}
