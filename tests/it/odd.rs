//! What odd upstreams say that is no stub resolver's business, or no knowledge.

use crate::harness::{Daemon, Setup, Sink, ask, flag, qtype, rcode, sink, wire};

/// A daemon in front of an upstream with this script.
fn before(sink: &Sink) -> Daemon {
    Setup::towards(sink.address).start()
}

#[test]
fn flags_of_upstreams_and_of_their_opt_never_reach_stub_resolvers() {
    // OPT with an extended flags word of all ones, and an option that nobody knows.
    let opt = [&[0, 0, 41, 4, 208, 0, 0, 0xff, 0xff, 0, 6], &[0xff, 0x31, 0, 2, 7, 7][..]].concat();
    let sink = Sink::start(move |seen| {
        let mut wire = sink::ordinary(seen).flags(flag::AA | flag::Z | flag::AD).additional(&opt);
        if seen.qname.starts_with("no-ra") {
            wire = wire.without_flags(flag::RA | flag::RD);
        }
        wire.now()
    });
    let daemon = before(&sink);
    for name in ["www.example.org", "no-ra.example.org"] {
        for _ in 0..2 {
            let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
            assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "{name}");
            assert_eq!(answer.flags, flag::QR | flag::RD | flag::RA, "{name}");
            let opt = answer.opt.expect("one was sent");
            assert_eq!((opt.flags, opt.options.len()), (0, 0), "{name}");
        }
    }
}

#[test]
fn a_negative_answer_with_the_soa_of_another_zone_is_believed_once_and_not_kept() {
    for code in [rcode::NXDOMAIN, rcode::NOERROR] {
        let sink = Sink::start(move |seen| match seen.qname.as_str() {
            "right.example.org." => seen.reply().rcode(code).soa(300, 60).now(),
            _ => seen.reply().rcode(code).soa_of("example.net", 300, 60).now(),
        });
        let daemon = before(&sink);
        for (name, asked) in [("right.example.org.", 1), ("wrong.example.org.", 2)] {
            for _ in 0..2 {
                let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
                assert_eq!((answer.rcode(), answer.answers.len()), (code, 0), "{name}");
            }
            assert_eq!(sink.seen_for(name).len(), asked, "{name} {code}");
        }
    }
}
