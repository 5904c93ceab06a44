//! EDNS: versions, sizes, options, and truncation to what the stub resolver takes.

use crate::harness::knot::{BIG, HUGE};
use crate::harness::message::Opt;
use crate::harness::wire;
use crate::harness::{Action, Daemon, Knot, Setup, Sink, ask, flag, needs, qtype, rcode, sink};

fn parts() -> (Knot, Daemon) {
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    (knot, daemon)
}

#[test]
fn an_opt_record_comes_back_exactly_where_one_was_sent() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for name in ["www.example.org", "nobody.example.org", "localhost", "a.invalid"] {
        for _ in 0..2 {
            assert!(wire::udp(daemon.address(), &ask(name, qtype::A).plain()).opt.is_none());
            let opt = wire::udp(daemon.address(), &ask(name, qtype::A)).opt.expect("an OPT record");
            assert_eq!((opt.version, opt.flags, opt.payload), (0, 0, 1232), "{name}");
            assert!(wire::tcp(daemon.address(), &ask(name, qtype::A)).opt.is_some());
        }
    }
}

#[test]
fn other_versions_are_badvers() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for version in [1, 2, 255] {
        let mut ask = ask("www.example.org", qtype::A);
        ask.opt = Some(Opt { version, ..Opt::new(1232) });
        for answer in [wire::udp(daemon.address(), &ask), wire::tcp(daemon.address(), &ask)] {
            assert_eq!(answer.rcode(), rcode::BADVERS, "version {version}");
            assert_eq!(answer.opt.map(|opt| opt.version), Some(0), "ours is 0");
            assert!(answer.answers.is_empty());
        }
    }
}

#[test]
fn two_opt_records_are_a_format_error() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    let mut bytes = ask("www.example.org", qtype::A).to_wire();
    bytes.extend(Opt::new(1232).to_wire());
    bytes[11] = 2;
    let reply = wire::raw_udp(daemon.address(), &bytes).expect("a response");
    assert_eq!(wire_rcode(&reply), rcode::FORMERR);
}

/// The lower RCODE bits of a message.
fn wire_rcode(message: &[u8]) -> u16 {
    u16::from(message[3] & 0xf)
}

#[test]
fn a_udp_response_never_exceeds_what_the_stub_resolver_takes() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for (payload, limit) in [
        (None, 512),
        (Some(0), 512),
        (Some(512), 512),
        (Some(700), 700),
        (Some(1232), 1232),
        (Some(65_535), 1232),
    ] {
        for _ in 0..2 {
            let mut ask = ask("big.example.org", qtype::TXT).plain();
            ask.opt = payload.map(Opt::new);
            let answer = wire::udp(daemon.address(), &ask);
            assert!(answer.wire.len() <= limit, "{payload:?}: {} bytes", answer.wire.len());
            assert!(answer.has(flag::TC), "{payload:?}");
            assert_eq!(answer.opt.is_some(), payload.is_some());
            let whole = answer.answers.len();
            assert!(whole > 0 && whole < BIG, "what fits is sent: {whole} records");
            assert!(limit - answer.wire.len() < 140, "{payload:?}: room for one more was left");
        }
    }
}

#[test]
fn what_was_cut_by_udp_comes_whole_by_tcp() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for (name, count) in [("big.example.org", BIG), ("huge.example.org", HUGE)] {
        assert!(wire::udp(daemon.address(), &ask(name, qtype::TXT)).has(flag::TC));
        for _ in 0..2 {
            let whole = wire::tcp(daemon.address(), &ask(name, qtype::TXT));
            assert_eq!((whole.answers.len(), whole.has(flag::TC)), (count, false), "{name}");
        }
    }
}

#[test]
fn a_larger_limit_of_ours_lets_larger_responses_through() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).tables("[serve]\nudp_payload = 4096").start();
    for (payload, cut) in [(4096, false), (1232, true)] {
        let answer =
            wire::udp(daemon.address(), &ask("big.example.org", qtype::TXT).payload(payload));
        assert_eq!(answer.has(flag::TC), cut, "{payload}");
    }
}

#[test]
fn an_upstream_that_refuses_edns_is_asked_without() {
    let sink = Sink::start(|seen| match seen.behind_question().is_empty() {
        true => sink::ordinary(seen).now(),
        false => seen.reply().rcode(rcode::FORMERR).now(),
    });
    let daemon = Setup::towards(sink.address).start();
    for number in 0..5 {
        let answer = wire::udp(daemon.address(), &ask(&format!("n{number}.example.org"), qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        assert!(answer.opt.is_some(), "EDNS is hop by hop");
    }
    assert!(sink.seen_for("n4.example.org.").len() == 1, "and that is remembered");
}

#[test]
fn an_upstream_that_drops_edns_queries_is_asked_without() {
    let sink = Sink::start(|seen| match seen.behind_question().is_empty() {
        true => sink::ordinary(seen).now(),
        false => Action::Ignore,
    });
    let daemon = Setup::towards(sink.address).start_unready();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
}
