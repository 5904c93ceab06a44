//! DO, CD and AD for a forwarder that does not validate (also RFC 6840 §5.7, §5.8).

use crate::harness::message::Ask;
use crate::harness::wire;
use crate::harness::{Daemon, Setup, Sink, ask, flag, qtype};

/// A signed upstream: RRSIG only where DO is set, AD always.
fn signed() -> Sink {
    Sink::start(|seen| {
        let dnssec_ok = seen.behind_question().get(7).is_some_and(|byte| byte & 0x80 != 0);
        let reply = seen.reply().flags(flag::AD).a(seen, 300, [192, 0, 2, 7]);
        match dnssec_ok {
            true => reply.answer(&seen.qname, 46, 300, &[0; 24]).now(),
            false => reply.now(),
        }
    })
}

fn parts(forward: &str) -> (Sink, Daemon) {
    let sink = signed();
    let daemon = Setup::towards(sink.address).forward(forward).start();
    (sink, daemon)
}

fn question() -> Ask {
    ask("www.example.org", qtype::A)
}

#[test]
fn signatures_go_only_to_those_who_ask_for_them() {
    let (sink, daemon) = parts("");
    for _ in 0..2 {
        let without = wire::udp(daemon.address(), &question());
        assert_eq!(without.answers.len(), 1);
        assert_eq!(without.opt.map(|opt| opt.flags), Some(0));
        let with = wire::udp(daemon.address(), &question().dnssec_ok());
        assert_eq!(with.answers.len(), 2);
        assert_eq!(with.opt.map(|opt| opt.flags), Some(0x8000), "DO is copied (RFC 3225 §3)");
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 2, "two entries, one exchange each");
}

#[test]
fn checking_disabled_travels_upstream_and_has_entries_of_its_own() {
    let (sink, daemon) = parts("");
    for _ in 0..2 {
        let checked = wire::udp(daemon.address(), &question());
        let unchecked = wire::udp(daemon.address(), &question().with_flags(flag::CD));
        assert!(!checked.has(flag::CD) && unchecked.has(flag::CD));
    }
    let bits: Vec<_> =
        sink.seen_for("www.example.org.").iter().map(|seen| seen.wire[3] & 0x10 != 0).collect();
    assert_eq!(bits, [false, true]);
}

#[test]
fn authentic_data_is_passed_on_only_where_the_zone_trusts_its_upstream() {
    let (_sink, daemon) = parts("");
    let asks = [question(), question().dnssec_ok(), question().with_flags(flag::AD)];
    for ask in &asks {
        assert!(!wire::udp(daemon.address(), ask).has(flag::AD), "an untrusted path: {ask:?}");
    }
    let (_sink, daemon) = parts("trust_ad = true");
    for (ask, expected) in asks.iter().zip([false, true, true]) {
        for _ in 0..2 {
            let answer = wire::udp(daemon.address(), ask);
            assert_eq!(answer.has(flag::AD), expected, "a trusted path: {ask:?}");
        }
    }
}

#[test]
fn authoritative_is_never_claimed_for_what_was_forwarded() {
    let sink = Sink::start(|seen| seen.reply().flags(flag::AA).a(seen, 300, [192, 0, 2, 7]).now());
    let daemon = Setup::towards(sink.address).start();
    for _ in 0..2 {
        assert!(!wire::udp(daemon.address(), &question()).has(flag::AA));
    }
}
