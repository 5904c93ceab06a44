//! Responses from our own data: encoded once, in the same form as forwarded ones.

use super::ede::Ede;
use super::edns;
use super::name::Name;
use super::query::Query;
use super::response::Encoded;
use super::ttl::Ttl;
use super::wire::{self, flag};
use super::{HEADER_LEN, Qclass, Qtype, Rcode};

/// A compression pointer to the qname.
const QNAME_POINTER: u16 = 0xc000 | HEADER_LEN as u16;

/// The largest message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// A record of class IN from our own data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRecord {
    pub owner: Name,
    pub rtype: Qtype,
    pub ttl: Ttl,
    /// Uncompressed wire form.
    pub rdata: Vec<u8>,
}

/// The SOA record that makes a negative response of zone `apex` cachable for `ttl`.
///
/// Source: RFC 2308 §5; the other numbers say that nobody transfers this zone.
pub fn soa(apex: &Name, ttl: Ttl) -> LocalRecord {
    let mut rdata = Vec::with_capacity(64);
    rdata.extend(b"\x09localhost\0\x06nobody\x07invalid\0");
    for number in [1, 3600, 1200, 604_800, ttl.as_secs()] {
        rdata.extend(number.to_be_bytes());
    }
    LocalRecord { owner: apex.clone(), rtype: Qtype::SOA, ttl, rdata }
}

/// Encodes an authoritative response to `query`: records of the answer and authority sections.
///
/// Records that no longer fit into 65,535 bytes are left out.
pub fn authoritative(
    query: &Query,
    rcode: Rcode,
    answer: &[LocalRecord],
    authority: &[LocalRecord],
) -> Encoded {
    sections(query, rcode, [answer, authority, &[]])
}

/// As [`authoritative`], of all three sections in their order on the wire.
pub fn sections(query: &Query, rcode: Rcode, sections: [&[LocalRecord]; 3]) -> Encoded {
    let mut out = header_and_question(query, rcode);
    for (count_at, records) in [6, 8, 10].into_iter().zip(sections) {
        let mut count = 0;
        for record in records {
            let before = out.len();
            push_record(&mut out, query, record);
            if out.len() > MAX_MESSAGE {
                out.truncate(before);
                break;
            }
            count += 1;
        }
        wire::put_u16(&mut out, count_at, count);
    }
    Encoded::from_wire(&out).expect("our own records are well-formed").with_authority(true)
}

/// Encodes a response without records: a resolution failure as it is remembered.
pub fn failure(query: &Query, rcode: Rcode, ede: Option<&Ede>) -> Encoded {
    let mut out = header_and_question(query, Rcode(rcode.0 & 0xf));
    if let Some(ede) = ede {
        let mut options = Vec::new();
        edns::push_ede(&mut options, ede);
        let at = out.len();
        out.resize(at + edns::OPT_LEN + options.len(), 0);
        edns::write_opt(&mut out, at, 0, false, &options);
        wire::put_u16(&mut out, 10, 1);
    }
    Encoded::from_wire(&out).expect("a header and a question are well-formed")
}

/// The beginning of a response: header and question.
fn header_and_question(query: &Query, rcode: Rcode) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    wire::put_u16(&mut out, 2, flag::QR | flag::RA | rcode.0);
    wire::put_u16(&mut out, 4, 1);
    out.extend(query.qname.as_wire());
    out.extend(query.qtype.0.to_be_bytes());
    out.extend(query.qclass.0.to_be_bytes());
    out
}

/// Appends one record; an owner that repeats the qname becomes a pointer, which follows its case.
fn push_record(out: &mut Vec<u8>, query: &Query, record: &LocalRecord) {
    if record.owner == query.qname {
        out.extend(QNAME_POINTER.to_be_bytes());
    } else {
        out.extend(record.owner.as_wire());
    }
    out.extend(record.rtype.0.to_be_bytes());
    // A question of class ANY is about class IN, as every other one but CH.
    let class = if query.qclass == Qclass::CH { Qclass::CH } else { Qclass::IN };
    out.extend(class.0.to_be_bytes());
    out.extend(record.ttl.as_secs().to_be_bytes());
    let len = u16::try_from(record.rdata.len()).expect("rdata is at most 65,535 bytes");
    out.extend(len.to_be_bytes());
    out.extend(&record.rdata);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::ede::EdeCode;

    fn query() -> Query {
        Query::new(Name::from_text("db.example.org").expect("name"), Qtype::A)
    }

    #[test]
    fn a_negative_response_carries_its_soa() {
        let apex = Name::from_text("example.org").expect("name");
        let ttl = Ttl::from_wire(60);
        let encoded = authoritative(&query(), Rcode::NXDOMAIN, &[], &[soa(&apex, ttl)]);
        assert_eq!(encoded.negative_ttl(), Some(ttl));
        assert!(encoded.is_negative());
    }

    #[test]
    fn what_does_not_fit_into_a_message_is_left_out() {
        let record = LocalRecord {
            owner: query().qname,
            rtype: Qtype::TXT,
            ttl: Ttl::from_wire(60),
            rdata: [&[255][..], &[b'x'; 255]].concat(),
        };
        let encoded = authoritative(&query(), Rcode::NOERROR, &vec![record; 1000], &[]);
        let count = encoded.records().count();
        assert!((200..260).contains(&count), "{count} records");
    }

    #[test]
    fn a_failure_keeps_its_extended_error() {
        let ede = Ede::new(EdeCode::NETWORK_ERROR, "away");
        let encoded = failure(&query(), Rcode::SERVFAIL, Some(&ede));
        assert_eq!((encoded.rcode(), encoded.ede()), (Rcode::SERVFAIL, Some(ede)));
    }
}
