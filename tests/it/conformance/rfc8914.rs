//! Extended errors: every failure of ours says why.

use crate::harness::wire;
use crate::harness::{Action, Knot, Setup, Sink, ask, needs, qtype, rcode};

#[test]
fn a_silent_upstream_is_named_as_the_reason() {
    let sink = Sink::start(|_| Action::Ignore);
    let daemon = Setup::towards(sink.address).start_unready();
    let start = std::time::Instant::now();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(
        (answer.rcode(), answer.ede()),
        (rcode::SERVFAIL, vec![22]),
        "No Reachable Authority"
    );
    assert!(
        start.elapsed().as_secs() < 5,
        "before a stub resolver gives up: {:?}",
        start.elapsed()
    );
}

#[test]
fn an_upstream_that_nobody_listens_at_is_a_network_error_at_once() {
    let port = crate::harness::place::free_port();
    let daemon = Setup::towards(format!("127.0.0.1:{port}")).start_unready();
    let start = std::time::Instant::now();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.rcode(), rcode::SERVFAIL);
    assert!(matches!(answer.ede()[..], [22 | 23]), "{:?}", answer.ede());
    assert!(start.elapsed().as_millis() < 1500, "ICMP says so at once: {:?}", start.elapsed());
}

#[test]
fn failures_without_edns_have_no_room_for_a_reason_and_are_sent_plain() {
    let sink = Sink::start(|seen| seen.reply().rcode(rcode::SERVFAIL).now());
    let daemon = Setup::towards(sink.address).start();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A).plain());
    assert_eq!(answer.rcode(), rcode::SERVFAIL);
    assert!(answer.opt.is_none());
}

#[test]
fn a_source_outside_the_allowed_networks_is_refused_and_told_why() {
    needs!("::1", "knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).top("allow = [\"::1/128\"]").start();
    for answer in [
        wire::udp(daemon.address(), &ask("www.example.org", qtype::A)),
        wire::tcp(daemon.address(), &ask("www.example.org", qtype::A)),
    ] {
        assert_eq!((answer.rcode(), answer.ede()), (rcode::REFUSED, vec![18]), "Prohibited");
        assert!(answer.answers.is_empty());
    }
    let allowed = wire::udp(daemon.address6(), &ask("www.example.org", qtype::A));
    assert_eq!(allowed.rcode(), rcode::NOERROR);
    let refused = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(refused.rcode(), rcode::REFUSED, "also when the answer lies in the cache");
}
