//! AAAA answers made of A answers, for those who have IPv6 and a translator only. Pure.
//!
//! Source: RFC 6147; addresses as in RFC 6052, the well-known name as in RFC 8880

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;
use hickory_proto::rr::{RData, RecordType};

use super::Response;
use super::alias::decode;
use super::local::LocalAnswer;
use super::rewrite::{address_of as address_of_record, signs_address};
use crate::config::Network;
use crate::dns::build::{self, LocalRecord};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::ttl::Ttl;
use crate::dns::{Qtype, Rcode};

/// How long a synthesised answer may be reused when upstream's NODATA came without an SOA, in seconds.
///
/// Source: RFC 6147 §5.1.7
const TTL_WITHOUT_SOA: u32 = 600;

/// TTL of our own records, in seconds; the prefix changes with the configuration only.
const OWN_TTL: u32 = 600;

/// The name that stub resolvers find the prefix by.
const IPV4ONLY: &str = "ipv4only.arpa.";

/// Its addresses.
///
/// Source: RFC 7050 §8.2
const IPV4ONLY_ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The byte that no IPv4 address lies in: bits 64 to 71 of the IPv6 address.
///
/// Source: RFC 6052 §2.2
const RESERVED: usize = 8;

/// A prefix that IPv4 addresses are embedded in.
#[derive(Clone, Debug)]
pub struct Dns64 {
    prefix: [u8; 16],
    /// Whole bytes of the prefix: 4, 5, 6, 7, 8 or 12.
    len: usize,
    ipv4only: Name,
}

impl Dns64 {
    /// Synthesis with this prefix; `None` where it is none that addresses can be embedded in.
    pub fn new(prefix: &Network) -> Option<Self> {
        let IpAddr::V6(address) = prefix.address else { return None };
        let len = usize::from(prefix.prefix / 8);
        let ipv4only = Name::from_text(IPV4ONLY).ok()?;
        matches!(len, 4..=8 | 12).then_some(Self { prefix: address.octets(), len, ipv4only })
    }

    /// The four places of an embedded IPv4 address.
    fn places(&self) -> impl Iterator<Item = usize> {
        (self.len..16).filter(|at| *at != RESERVED).take(4)
    }

    /// The IPv6 address that stands for an IPv4 address.
    ///
    /// Source: RFC 6052 §2.3
    pub fn embed(&self, address: Ipv4Addr) -> Ipv6Addr {
        let mut out = self.prefix;
        for (at, byte) in self.places().zip(address.octets()) {
            out[at] = byte;
        }
        out.into()
    }

    /// The IPv4 address that an IPv6 address stands for, if it is one of ours.
    pub fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = address.octets();
        let mut embedded = [0; 4];
        for (byte, at) in embedded.iter_mut().zip(self.places()) {
            *byte = octets[at];
        }
        let embedded = Ipv4Addr::from(embedded);
        (self.embed(embedded) == address).then_some(embedded)
    }

    /// Tells whether an answer holds an address that stands for an IPv4 address.
    pub fn has_made(&self, encoded: &Encoded) -> bool {
        let is_made = |address| matches!(address, IpAddr::V6(v6) if self.extract(v6).is_some());
        encoded
            .records()
            .any(|(_, record)| address_of_record(encoded, &record).is_some_and(is_made))
    }

    /// What we answer ourselves: the well-known name, its reverse names, and the reverse names of
    /// synthesised addresses, which are aliases of those of the IPv4 addresses.
    ///
    /// Source: RFC 8880 §7.1, §7.2, RFC 6147 §5.3.1
    pub fn own_answer(&self, query: &Query) -> Option<LocalAnswer> {
        if query.qname.is_within(&self.ipv4only) {
            return Some(LocalAnswer::Whole(self.well_known(query)));
        }
        if query.qtype != Qtype::PTR {
            return None;
        }
        let record = |rtype, target: &Name| LocalRecord {
            owner: query.qname.clone(),
            rtype,
            ttl: Ttl::from_wire(OWN_TTL),
            rdata: target.as_wire().to_vec(),
        };
        let reverse = |address: &Ipv4Addr| Name::reverse_of((*address).into());
        if IPV4ONLY_ADDRESSES.iter().map(reverse).any(|name| name == query.qname) {
            let answer = [record(Qtype::PTR, &self.ipv4only)];
            let encoded = build::authoritative(query, Rcode::NOERROR, &answer, &[]);
            return Some(LocalAnswer::Whole(encoded));
        }
        let address = self.extract(address_of(&query.qname)?)?;
        Some(LocalAnswer::Alias(record(Qtype::CNAME, &reverse(&address))))
    }

    /// The response to a question about the well-known name or one below it.
    fn well_known(&self, query: &Query) -> Encoded {
        let ttl = Ttl::from_wire(OWN_TTL);
        let negative = [build::soa(&self.ipv4only, ttl)];
        if query.qname != self.ipv4only {
            return build::authoritative(query, Rcode::NXDOMAIN, &[], &negative);
        }
        let rdata = |address: Ipv4Addr| match query.qtype {
            Qtype::A => Some(address.octets().to_vec()),
            Qtype::AAAA => Some(self.embed(address).octets().to_vec()),
            _ => None,
        };
        let record =
            |rdata| LocalRecord { owner: query.qname.clone(), rtype: query.qtype, ttl, rdata };
        let answer: Vec<_> = IPV4ONLY_ADDRESSES.into_iter().filter_map(rdata).map(record).collect();
        let authority = if answer.is_empty() { &negative[..] } else { &[] };
        build::authoritative(query, Rcode::NOERROR, &answer, authority)
    }

    /// The AAAA response made of an A response, with its aliases; `None` where it holds no address.
    ///
    /// `asked` is the question that `response` answers. No TTL is above `least`. Nothing is signed:
    /// AD and the signatures over addresses are left out.
    ///
    /// Source: RFC 6147 §5.1.6, §5.1.7, §5.4, §5.5
    pub fn synthesise(&self, response: &Response, asked: &Query, least: Ttl) -> Option<Encoded> {
        let mut message: Message = decode(response, asked)?;
        let encoded = response.entry.encoded();
        let mut signatures = encoded.records().map(|(_, record)| signs_address(encoded, &record));
        message.answers.retain(|_| !signatures.next().unwrap_or_default());
        let mut found = false;
        for record in &mut message.answers {
            if let RData::A(address) = &record.data {
                found = true;
                record.data = RData::AAAA(self.embed(address.0).into());
                record.ttl = record.ttl.min(least.as_secs());
            }
        }
        for question in &mut message.queries {
            question.query_type = RecordType::AAAA;
        }
        message.metadata.authentic_data = false;
        let encoded = Encoded::from_wire(&message.to_vec().ok()?).ok()?;
        found.then(|| encoded.with_authority(false))
    }
}

/// The most that the TTLs of an answer synthesised in place of this NODATA may be.
pub fn least_ttl(nodata: Option<&Encoded>) -> Ttl {
    nodata.and_then(Encoded::negative_ttl).unwrap_or(Ttl::from_wire(TTL_WITHOUT_SOA))
}

/// The IPv6 address whose reverse name this is, all 32 digits of it.
///
/// Source: RFC 3596 §2.5
fn address_of(name: &Name) -> Option<Ipv6Addr> {
    let labels: Vec<&[u8]> = name.labels().collect();
    let (digits, [ip6, arpa]) = labels.split_last_chunk()?;
    if (digits.len(), *ip6, *arpa) != (32, b"ip6", b"arpa") {
        return None;
    }
    let bits = digits.iter().rev().try_fold(0u128, |bits, label| {
        let [digit] = **label else { return None };
        Some(bits << 4 | u128::from(char::from(digit).to_digit(16)?))
    })?;
    Some(Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::forms::parse_network;

    fn dns64(prefix: &str) -> Dns64 {
        Dns64::new(&parse_network(prefix).expect("a prefix")).expect("of a known length")
    }

    fn ask(name: &str, qtype: Qtype) -> Query {
        Query::new(Name::from_text(name).expect("name"), qtype)
    }

    #[test]
    fn addresses_are_embedded_as_in_the_rfcs_table() {
        // RFC 6052 §2.4, table 2.
        for (prefix, address) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ] {
            let (dns64, v4) = (dns64(prefix), Ipv4Addr::new(192, 0, 2, 33));
            let expected: Ipv6Addr = address.parse().expect("address");
            assert_eq!(dns64.embed(v4), expected, "{prefix}");
            assert_eq!(dns64.extract(expected), Some(v4), "{prefix}");
        }
    }

    #[test]
    fn other_addresses_stand_for_none() {
        let dns64 = dns64("2001:db8:122:344::/64");
        for address in
            ["2001:db8::1", "2001:db8:122:344:1c0:2:2100::", "2001:db8:122:344:c0:2:2100:1"]
        {
            assert_eq!(dns64.extract(address.parse().expect("address")), None, "{address}");
        }
    }

    #[test]
    fn a_reverse_name_is_an_address_only_with_all_its_digits() {
        let address: Ipv6Addr = "64:ff9b::192.0.2.33".parse().expect("address");
        let name = Name::reverse_of(address.into());
        assert_eq!(address_of(&name), Some(address));
        let text = name.to_string();
        for broken in
            [&text[2..], &format!("0.{text}"), &text.replacen('1', "g", 1), "ip6.arpa", "."]
        {
            assert_eq!(address_of(&Name::from_text(broken).expect("name")), None, "{broken}");
        }
    }

    #[test]
    fn the_well_known_name_and_reverse_names_are_answered_without_asking() {
        let dns64 = dns64("64:ff9b::/96");
        let whole = |name: &str, qtype| match dns64.own_answer(&ask(name, qtype)) {
            Some(LocalAnswer::Whole(encoded)) => encoded,
            other => panic!("{name}: {other:?}"),
        };
        let aaaa = whole("ipv4only.arpa", Qtype::AAAA);
        assert_eq!(aaaa.records().count(), 2);
        let first: Ipv6Addr = "64:ff9b::192.0.0.170".parse().expect("address");
        assert!(aaaa.as_wire().windows(16).any(|bytes| bytes == first.octets()));
        assert_eq!(whole("ipv4only.arpa", Qtype::A).records().count(), 2);
        assert!(whole("ipv4only.arpa", Qtype::MX).negative_ttl().is_some());
        assert_eq!(whole("x.ipv4only.arpa", Qtype::A).rcode(), Rcode::NXDOMAIN);
        let reverse = whole("171.0.0.192.in-addr.arpa", Qtype::PTR);
        assert!(reverse.as_wire().ends_with(b"\x08ipv4only\x04arpa\0"));
        let address: Ipv6Addr = "64:ff9b::192.0.2.33".parse().expect("address");
        let name = Name::reverse_of(address.into()).to_string();
        match dns64.own_answer(&ask(&name, Qtype::PTR)) {
            Some(LocalAnswer::Alias(alias)) => {
                let target = Name::from_wire(&alias.rdata).expect("a name");
                assert_eq!(target.to_string(), "33.2.0.192.in-addr.arpa.");
            }
            other => panic!("{other:?}"),
        }
        for (name, qtype) in
            [("example.org", Qtype::AAAA), (&name, Qtype::TXT), ("ip6.arpa", Qtype::PTR)]
        {
            assert!(dns64.own_answer(&ask(name, qtype)).is_none(), "{name}");
        }
    }
}
