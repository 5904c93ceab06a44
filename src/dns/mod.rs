//! The vocabulary of DNS messages: names, TTLs, queries, responses, EDNS, extended errors.
//!
//! Pure: no clock, no socket, no allocation on the path of a cached response. Wire bytes come in as
//! slices and are read through [`wire`], which never indexes past an end.
//! It refuses to decide: what a query gets is `resolve`'s business, how it travels is `serve`'s.
//!
//! Read [`query`] first, then [`response`].

pub mod build;
pub mod ede;
pub mod edns;
pub mod name;
pub mod query;
pub mod response;
mod rotation;
#[cfg(test)]
pub mod testing;
pub mod text;
pub mod ttl;
mod walk;
pub mod wire;

use std::fmt;

/// Bytes of a DNS message header.
///
/// Source: RFC 1035 §4.1.1
pub const HEADER_LEN: usize = 12;

/// Bytes that one domain name takes at most, the root label included.
///
/// Source: RFC 1035 §2.3.4
pub const MAX_NAME_LEN: usize = 255;

/// The type of a question or record.
///
/// Source: IANA "Resource Record (RR) TYPEs"
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Qtype(pub u16);

impl Qtype {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const CNAME: Self = Self(5);
    pub const SOA: Self = Self(6);
    pub const PTR: Self = Self(12);
    pub const HINFO: Self = Self(13);
    pub const MX: Self = Self(15);
    pub const TXT: Self = Self(16);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const NAPTR: Self = Self(35);
    pub const DNAME: Self = Self(39);
    pub const OPT: Self = Self(41);
    pub const DS: Self = Self(43);
    pub const RRSIG: Self = Self(46);
    pub const NSEC: Self = Self(47);
    pub const NSEC3: Self = Self(50);
    pub const SVCB: Self = Self(64);
    pub const HTTPS: Self = Self(65);
    pub const NXNAME: Self = Self(128);
    pub const TKEY: Self = Self(249);
    pub const TSIG: Self = Self(250);
    pub const IXFR: Self = Self(251);
    pub const AXFR: Self = Self(252);
    pub const MAILB: Self = Self(253);
    pub const MAILA: Self = Self(254);
    pub const ANY: Self = Self(255);

    /// Tells whether the type asks for a zone transfer.
    pub fn is_transfer(self) -> bool {
        matches!(self, Self::IXFR | Self::AXFR)
    }
}

impl fmt::Display for Qtype {
    /// Writes the mnemonic, or `TYPE123` (RFC 3597 §5).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match hickory_proto::rr::RecordType::from(self.0) {
            hickory_proto::rr::RecordType::Unknown(code) => write!(f, "TYPE{code}"),
            known => write!(f, "{known}"),
        }
    }
}

/// The class of a question.
///
/// Source: IANA "DNS CLASSes"
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Qclass(pub u16);

impl Qclass {
    pub const IN: Self = Self(1);
    pub const CH: Self = Self(3);
    pub const ANY: Self = Self(255);
}

/// A response code, 12 bits with the extended ones.
///
/// Source: RFC 1035 §4.1.1, RFC 6891 §6.1.3
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NOERROR: Self = Self(0);
    pub const FORMERR: Self = Self(1);
    pub const SERVFAIL: Self = Self(2);
    pub const NXDOMAIN: Self = Self(3);
    pub const NOTIMP: Self = Self(4);
    pub const REFUSED: Self = Self(5);
    pub const BADVERS: Self = Self(16);

    /// Tells whether this code ends a resolution with knowledge: NOERROR or NXDOMAIN.
    pub fn is_conclusive(self) -> bool {
        matches!(self, Self::NOERROR | Self::NXDOMAIN)
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NOERROR => f.write_str("NOERROR"),
            Self::FORMERR => f.write_str("FORMERR"),
            Self::SERVFAIL => f.write_str("SERVFAIL"),
            Self::NXDOMAIN => f.write_str("NXDOMAIN"),
            Self::NOTIMP => f.write_str("NOTIMP"),
            Self::REFUSED => f.write_str("REFUSED"),
            Self::BADVERS => f.write_str("BADVERS"),
            Self(other) => write!(f, "RCODE{other}"),
        }
    }
}
