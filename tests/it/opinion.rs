//! A second opinion: the same 200 queries to nodens and to unbound in front of the same knot.

use crate::harness::message::Answer;
use crate::harness::unbound::Unbound;
use crate::harness::{Ask, Knot, Record, Setup, ask, flag, needs, qtype, wire};

/// A part of a response that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Rcode,
    Answer,
    Authority,
}

/// Names that are asked for with each of [`KINDS`].
const NAMES: &[&str] = &[
    "example.org",
    "www.example.org",
    "v4.example.org",
    "v6.example.org",
    "WwW.eXample.ORG",
    "mixed.example.org",
    "alias.example.org",
    "chain1.example.org",
    "dangling.example.org",
    "outward.example.org",
    "a.old.example.org",
    "old.example.org",
    "one.wild.example.org",
    "a.b.wild.example.org",
    "empty.example.org",
    "leaf.empty.example.org",
    "many.example.org",
    "zero.example.org",
    "long.example.org",
    "nobody.example.org",
    "deep.er.nobody.example.org",
    "_http._tcp.example.org",
    "example.net",
    "nobody.example.net",
];

const KINDS: [u16; 6] = [qtype::A, qtype::AAAA, qtype::TXT, qtype::SRV, qtype::MX, qtype::CNAME];

/// Reverse names that are asked for with PTR, SOA and A.
const REVERSE: &[&str] = &[
    "1.2.0.192.in-addr.arpa",
    "9.2.0.192.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
];

/// Names with one type each.
const SINGLE: &[(&str, u16)] = &[
    ("example.org", qtype::SOA),
    ("example.org", qtype::NS),
    ("example.org", 257),
    ("naptr.example.org", 35),
    ("https.example.org", 65),
    ("sshfp.example.org", 44),
    ("_443._tcp.example.org", 52),
    ("loc.example.org", 29),
    ("odd.example.org", 65_280),
    ("hinfo.example.org", 13),
    ("big.example.org", qtype::TXT),
    ("huge.example.org", qtype::TXT),
    ("www.example.org", 65_281),
    ("nobody.example.org", 65_281),
    ("ns1.example.org", qtype::A),
    ("mail.example.org", qtype::A),
    ("example.org", 48),
    ("example.org", 43),
    ("top-level-nobody", qtype::A),
    (".", qtype::SOA),
    (".", qtype::NS),
    ("short.example.org", qtype::A),
];

/// 200 queries of all kinds.
fn queries() -> Vec<Ask> {
    let by_kind = NAMES.iter().flat_map(|name| KINDS.map(|kind| ask(name, kind)));
    let reverse = REVERSE
        .iter()
        .flat_map(|name| [qtype::PTR, qtype::SOA, qtype::A].map(|kind| ask(name, kind)));
    let single = SINGLE.iter().map(|(name, kind)| ask(name, *kind));
    let mut all: Vec<Ask> = by_kind.chain(reverse).chain(single).collect();
    // Some again, asked otherwise: without EDNS, with DO, with CD.
    for index in 0..200 - all.len() {
        let ask = all[index * 5].clone();
        all.push(match index % 3 {
            0 => ask.plain(),
            1 => ask.dnssec_ok(),
            _ => ask.with_flags(flag::CD),
        });
    }
    all
}

/// A section without TTLs, in an order of its own.
fn section(records: &[Record]) -> Vec<(String, u16, String)> {
    let fold = |record: &Record| (record.owner.to_lowercase(), record.rtype, record.data.clone());
    let mut all: Vec<_> = records.iter().map(fold).collect();
    all.sort();
    all
}

/// The parts in which two responses differ.
fn differences(ours: &Answer, theirs: &Answer) -> Vec<Part> {
    let mut parts = Vec::new();
    if ours.rcode() != theirs.rcode() {
        parts.push(Part::Rcode);
    }
    if section(&ours.answers) != section(&theirs.answers) {
        parts.push(Part::Answer);
    }
    if section(&ours.authority) != section(&theirs.authority) {
        parts.push(Part::Authority);
    }
    parts
}

#[test]
fn nodens_and_unbound_agree_on_two_hundred_queries() {
    needs!("knotd", "unbound");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let unbound = Unbound::before(knot.address);
    let queries = queries();
    assert_eq!(queries.len(), 200);
    let mut found = Vec::new();
    for ask in &queries {
        // By TCP: where a response is cut is each one's own affair.
        let (ours, theirs) = (wire::tcp(daemon.address(), ask), wire::tcp(unbound.address, ask));
        let parts = differences(&ours, &theirs).into_iter();
        found.extend(parts.map(|part| describe(ask, part, &ours, &theirs)));
    }
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

/// One line about a difference.
fn describe(ask: &Ask, part: Part, ours: &Answer, theirs: &Answer) -> String {
    let show = |answer: &Answer| match part {
        Part::Rcode => answer.rcode().to_string(),
        Part::Answer => format!("{:?}", section(&answer.answers)),
        Part::Authority => format!("{:?}", section(&answer.authority)),
    };
    let (mut ours, mut theirs) = (show(ours), show(theirs));
    ours.truncate(300);
    theirs.truncate(300);
    format!("{} {} {part:?}: nodens {ours}, unbound {theirs}", ask.qname, ask.qtype)
}
