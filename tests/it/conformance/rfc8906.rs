//! "A Common Operational Problem in DNS Servers": the check list of §8, as raw queries.

use crate::harness::message::{Answer, Ask, Opt};
use crate::harness::wire;
use crate::harness::{Daemon, Knot, Setup, ask, flag, needs, qtype, rcode};

fn parts() -> (Knot, Daemon) {
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    (knot, daemon)
}

fn soa() -> Ask {
    ask("example.org", qtype::SOA)
}

/// Twice by UDP (a miss, then a hit) and once by TCP.
fn each(daemon: &Daemon, ask: &Ask, check: impl Fn(&Answer)) {
    for answer in [
        wire::udp(daemon.address(), ask),
        wire::udp(daemon.address(), ask),
        wire::tcp(daemon.address(), ask),
    ] {
        check(&answer);
    }
}

/// Asserts an ordinary answer: NOERROR and the SOA.
fn assert_soa(answer: &Answer) {
    assert_eq!(answer.rcode(), rcode::NOERROR);
    assert_eq!(answer.answers.iter().map(|record| record.rtype).collect::<Vec<_>>(), [qtype::SOA]);
}

#[test]
fn section_8_1_1_the_zone_is_served_without_edns() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    each(&daemon, &soa().plain(), |answer| {
        assert_soa(answer);
        assert!(answer.opt.is_none());
    });
}

#[test]
fn section_8_1_2_unknown_types_are_empty_answers() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for kind in [1000, 65_280, 61_000] {
        each(&daemon, &ask("example.org", kind).plain(), |answer| {
            assert_eq!((answer.rcode(), answer.answers.len()), (rcode::NOERROR, 0), "{kind}");
            assert_eq!(answer.authority.first().map(|record| record.rtype), Some(qtype::SOA));
        });
    }
}

#[test]
fn section_8_1_3_header_bits_change_nothing() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for bits in [flag::CD, flag::AD, flag::Z, flag::AA, flag::TC, flag::RA] {
        each(&daemon, &soa().plain().with_flags(bits), |answer| {
            assert_soa(answer);
            assert!(!answer.has(flag::Z) && !answer.has(flag::AA), "for bits {bits:04x}");
            assert!(!answer.has(flag::TC) && answer.has(flag::RA), "for bits {bits:04x}");
        });
    }
    each(&daemon, &soa().plain().with_flags(flag::CD), |answer| assert!(answer.has(flag::CD)));
}

#[test]
fn section_8_1_4_unknown_opcodes_are_not_implemented() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    let header = [0x12, 0x34, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let reply = wire::raw_udp(daemon.address(), &header).expect("a response");
    let answer = Answer::read(&reply);
    assert_eq!((answer.rcode(), answer.flags & 0x7800), (rcode::NOTIMP, 0x7800));
    assert_eq!((answer.id, answer.answers.len()), (0x1234, 0));
}

#[test]
fn section_8_2_1_edns_is_answered_with_edns() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    each(&daemon, &soa(), |answer| {
        assert_soa(answer);
        assert_eq!(answer.opt.as_ref().map(|opt| opt.version), Some(0));
    });
}

#[test]
fn section_8_2_2_version_1_is_badvers_without_data() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for (flags, options) in
        [(0, vec![]), (0x40, vec![]), (0, vec![(100, vec![])]), (0x40, vec![(100, vec![1, 2, 3])])]
    {
        let mut ask = soa();
        ask.opt = Some(Opt { version: 1, flags, options, ..Opt::new(1232) });
        each(&daemon, &ask, |answer| {
            assert_eq!((answer.rcode(), answer.answers.len()), (rcode::BADVERS, 0));
            let opt = answer.opt.as_ref().expect("an OPT record");
            assert_eq!((opt.version, opt.flags, opt.options.len()), (0, 0, 0));
        });
    }
}

#[test]
fn section_8_2_3_unknown_options_are_ignored() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for (code, data) in [(100, vec![]), (65_001, vec![7; 40]), (3, vec![]), (9, vec![])] {
        each(&daemon, &soa().option(code, &data), |answer| {
            assert_soa(answer);
            assert_eq!(answer.opt.as_ref().map(|opt| opt.options.len()), Some(0), "option {code}");
        });
    }
}

#[test]
fn section_8_2_4_unknown_edns_flags_are_ignored_and_not_returned() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for flags in [0x0040, 0x4000, 0x7fff] {
        let mut ask = soa();
        ask.opt = Some(Opt { flags, ..Opt::new(1232) });
        each(&daemon, &ask, |answer| {
            assert_soa(answer);
            assert_eq!(answer.opt.as_ref().map(|opt| opt.flags), Some(0), "{flags:04x}");
        });
    }
}

#[test]
fn section_8_2_6_truncated_responses_keep_their_opt_record() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    for _ in 0..2 {
        let ask = ask("big.example.org", qtype::TXT).payload(512).dnssec_ok();
        let answer = wire::udp(daemon.address(), &ask);
        assert!(answer.has(flag::TC) && answer.wire.len() <= 512);
        assert!(answer.opt.is_some());
    }
}

#[test]
fn section_8_2_7_dnssec_ok_is_returned() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    each(&daemon, &soa().dnssec_ok(), |answer| {
        assert_soa(answer);
        assert_eq!(answer.opt.as_ref().map(|opt| opt.flags), Some(0x8000));
    });
}

#[test]
fn section_8_2_8_many_defined_options_at_once_are_no_trouble() {
    needs!("knotd");
    let (_knot, daemon) = parts();
    let ask = soa().option(3, &[]).option(10, &[1; 8]).option(9, &[]).option(8, &[0, 1, 0, 0]);
    each(&daemon, &ask, assert_soa);
}
