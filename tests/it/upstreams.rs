//! The parts around the daemon work as the tests suppose.

use std::time::Duration;

use crate::harness::message::{Answer, flag};
use crate::harness::unbound::Unbound;
use crate::harness::{Knot, Sink, ask, needs, qtype, rcode, sink, wire};

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
