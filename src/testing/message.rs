//! Responses made by hand, each from the query that it answers.

use crate::dns::edns::{OPT_LEN, write_opt};
use crate::dns::wire::{self, flag};
use crate::dns::{HEADER_LEN, Qclass, Qtype, Rcode};

/// Where the question of a well-formed query ends.
fn question_end(query: &[u8]) -> usize {
    wire::skip_plain_name(query, HEADER_LEN).expect("a well-formed query") + 4
}

/// The question's type.
pub fn qtype(query: &[u8]) -> Qtype {
    Qtype(wire::u16_at(query, question_end(query) - 4).expect("a well-formed query"))
}

/// Tells whether the query carries EDNS.
pub fn has_edns(query: &[u8]) -> bool {
    wire::u16_at(query, 10).is_some_and(|count| count > 0)
}

/// A response of `rcode` without records, with OPT where the query has it.
pub fn empty(query: &[u8], rcode: Rcode) -> Vec<u8> {
    with_records(query, rcode, [&[], &[]])
}

/// The header alone, without the question.
pub fn header(query: &[u8], rcode: Rcode) -> Vec<u8> {
    let mut out = empty(query, rcode);
    out.truncate(HEADER_LEN);
    out[4..].fill(0);
    out
}

/// The same response with TC set.
pub fn truncated(query: &[u8]) -> Vec<u8> {
    let mut out = empty(query, Rcode::NOERROR);
    out[2] |= 2;
    out
}

/// A response with one A record.
pub fn answer_a(query: &[u8], address: [u8; 4], ttl: u32) -> Vec<u8> {
    answer(query, &[(Qtype::A, ttl, &address)])
}

/// A response whose answer section holds these records, each owned by the qname.
pub fn answer(query: &[u8], records: &[(Qtype, u32, &[u8])]) -> Vec<u8> {
    let records: Vec<_> = records
        .iter()
        .map(|(rtype, ttl, rdata)| record(&[0xc0, 12], *rtype, *ttl, rdata))
        .collect();
    with_records(query, Rcode::NOERROR, [&records, &[]])
}

/// NXDOMAIN (or NODATA, with NOERROR) and the root's SOA, whose MINIMUM and TTL are `ttl`.
pub fn negative(query: &[u8], rcode: Rcode, ttl: u32) -> Vec<u8> {
    let mut soa = b"\x01a\0\x01b\0".to_vec();
    for number in [1, 2, 3, 4, ttl] {
        soa.extend(number.to_be_bytes());
    }
    with_records(query, rcode, [&[], &[record(&[0], Qtype::SOA, ttl, &soa)]])
}

/// A delegation to `ns.example.`.
pub fn referral(query: &[u8]) -> Vec<u8> {
    let ns = record(&[0], Qtype::NS, 60, b"\x02ns\x07example\0");
    with_records(query, Rcode::NOERROR, [&[], &[ns]])
}

/// One record on the wire.
pub fn record(owner: &[u8], rtype: Qtype, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    let mut out = owner.to_vec();
    out.extend(rtype.0.to_be_bytes());
    out.extend(Qclass::IN.0.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(rdata.len()).expect("short data").to_be_bytes());
    out.extend(rdata);
    out
}

/// A response with answer and authority records.
pub fn with_records(query: &[u8], rcode: Rcode, sections: [&[Vec<u8>]; 2]) -> Vec<u8> {
    let mut out = query[..question_end(query)].to_vec();
    let asked = wire::u16_at(query, 2).expect("a header") & (flag::RD | flag::CD);
    wire::put_u16(&mut out, 2, flag::QR | flag::RA | asked | (rcode.0 & flag::RCODE));
    for (index, section) in sections.iter().enumerate() {
        let count = u16::try_from(section.len()).expect("few records");
        wire::put_u16(&mut out, 6 + 2 * index, count);
        section.iter().for_each(|record| out.extend(record));
    }
    let edns = has_edns(query);
    wire::put_u16(&mut out, 10, u16::from(edns));
    if edns {
        let at = out.len();
        out.resize(at + OPT_LEN, 0);
        let high = u8::try_from(rcode.0 >> 4).expect("12 bits");
        write_opt(&mut out, at, high, false, &[]);
    }
    out
}
