//! Negative responses: cached by their SOA, not without one.

use std::time::Duration;

use crate::harness::wire;
use crate::harness::{Daemon, Setup, Sink, ask, qtype, rcode};

/// An upstream that says no: the first label chooses how.
fn parts() -> (Sink, Daemon) {
    let sink = Sink::start(|seen| {
        let reply = seen.reply();
        match seen.qname.split('.').next() {
            Some("nxdomain") => reply.rcode(rcode::NXDOMAIN).soa(300, 60).now(),
            Some("nodata") => reply.soa(300, 60).now(),
            Some("small") => reply.rcode(rcode::NXDOMAIN).soa(20, 60).now(),
            Some("brief") => reply.rcode(rcode::NXDOMAIN).soa(300, 1).now(),
            Some("endless") => reply.rcode(rcode::NXDOMAIN).soa(999_999, 999_999).now(),
            Some("bare") => reply.rcode(rcode::NXDOMAIN).now(),
            _ => reply.a(seen, 300, [192, 0, 2, 7]).now(),
        }
    });
    let daemon = Setup::towards(sink.address).start();
    (sink, daemon)
}

#[test]
fn a_second_query_for_a_negative_name_sends_nothing_upstream() {
    let (sink, daemon) = parts();
    for (name, expected) in
        [("nxdomain.example.org.", rcode::NXDOMAIN), ("nodata.example.org.", rcode::NOERROR)]
    {
        for _ in 0..3 {
            let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
            assert_eq!((answer.rcode(), answer.answers.len()), (expected, 0));
            let soa = answer.authority.first().expect("the SOA comes along (RFC 2308 §6)");
            assert_eq!((soa.rtype, soa.owner.as_str()), (qtype::SOA, "example.org."));
        }
        assert_eq!(sink.seen_for(name).len(), 1, "{name}");
    }
}

#[test]
fn the_soa_goes_out_with_the_smaller_of_its_ttl_and_minimum() {
    let (_sink, daemon) = parts();
    for (name, limit) in [("nxdomain.example.org", 60), ("small.example.org", 20)] {
        for _ in 0..2 {
            let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
            let ttl = answer.authority.first().expect("an SOA").ttl;
            assert!((limit - 5..=limit).contains(&ttl), "{name}: {ttl}");
        }
    }
}

#[test]
fn a_negative_response_lives_as_long_as_its_soa_says() {
    let (sink, daemon) = parts();
    wire::udp(daemon.address(), &ask("brief.example.org", qtype::A));
    std::thread::sleep(Duration::from_millis(1300));
    wire::udp(daemon.address(), &ask("brief.example.org", qtype::A));
    assert_eq!(sink.seen_for("brief.example.org.").len(), 2);
}

#[test]
fn negative_lifetimes_are_capped_at_three_hours() {
    let (_sink, daemon) = parts();
    for _ in 0..2 {
        let answer = wire::udp(daemon.address(), &ask("endless.example.org", qtype::A));
        assert!(answer.authority[0].ttl <= 3 * 3600, "{}", answer.authority[0].ttl);
    }
}

#[test]
fn without_an_soa_a_negative_response_is_not_cached() {
    let (sink, daemon) = parts();
    for _ in 0..3 {
        let answer = wire::udp(daemon.address(), &ask("bare.example.org", qtype::A));
        assert_eq!(answer.rcode(), rcode::NXDOMAIN);
    }
    assert_eq!(sink.seen_for("bare.example.org.").len(), 3);
}

#[test]
fn nodata_for_one_type_says_nothing_about_another() {
    let sink = Sink::start(|seen| match seen.qtype {
        qtype::A => seen.reply().a(seen, 300, [192, 0, 2, 7]).now(),
        _ => seen.reply().soa(300, 60).now(),
    });
    let daemon = Setup::towards(sink.address).start();
    for (kind, count) in [(qtype::AAAA, 0), (qtype::A, 1), (qtype::AAAA, 0), (qtype::A, 1)] {
        let answer = wire::udp(daemon.address(), &ask("v4.example.org", kind));
        assert_eq!((answer.rcode(), answer.answers.len()), (rcode::NOERROR, count), "{kind}");
    }
    assert_eq!(sink.seen_for("v4.example.org.").len(), 2);
}
