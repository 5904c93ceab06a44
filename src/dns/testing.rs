//! Messages for tests: built by hand, so that they do not depend on what they test.

use super::name::Name;
use super::response::Section;
use super::{HEADER_LEN, Qtype, Rcode, wire};

/// One record to put into a message.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub section: Section,
    pub owner: &'a str,
    pub rtype: Qtype,
    pub ttl: u32,
    /// Wire form, taken as it is.
    pub rdata: &'a [u8],
}

impl<'a> Record<'a> {
    /// A record of the answer section.
    pub const fn answer(owner: &'a str, rtype: Qtype, ttl: u32, rdata: &'a [u8]) -> Self {
        Self { section: Section::Answer, owner, rtype, ttl, rdata }
    }

    /// A record of the authority section.
    pub const fn authority(owner: &'a str, rtype: Qtype, ttl: u32, rdata: &'a [u8]) -> Self {
        Self { section: Section::Authority, owner, rtype, ttl, rdata }
    }

    /// An SOA in the authority section; the data is leaked, tests are short.
    pub fn soa(owner: &'a str, ttl: u32, minimum: u32) -> Self {
        let mut rdata = vec![0; 2 + 16];
        rdata.extend(minimum.to_be_bytes());
        Self::authority(owner, Qtype::SOA, ttl, rdata.leak())
    }
}

/// A response message of class IN: id 0, QR, RD and RA set, nothing compressed; records must come
/// in section order.
pub fn message(qname: &str, qtype: Qtype, rcode: Rcode, records: &[Record<'_>]) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    wire::put_u16(&mut out, 2, 0x8180 | rcode.0);
    wire::put_u16(&mut out, 4, 1);
    push_name(&mut out, qname);
    out.extend([qtype.0, 1].map(u16::to_be_bytes).concat());
    for record in records {
        let count_at = 6 + 2 * record.section as usize;
        let count = wire::u16_at(&out, count_at).expect("header") + 1;
        wire::put_u16(&mut out, count_at, count);
        push_name(&mut out, record.owner);
        out.extend([record.rtype.0, 1].map(u16::to_be_bytes).concat());
        out.extend(record.ttl.to_be_bytes());
        out.extend(u16::try_from(record.rdata.len()).expect("short").to_be_bytes());
        out.extend(record.rdata);
    }
    out
}

/// Appends a name in wire form.
fn push_name(out: &mut Vec<u8>, name: &str) {
    out.extend(Name::from_text(name).expect("a test's name").as_wire());
}
