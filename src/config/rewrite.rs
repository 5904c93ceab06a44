//! What a forward zone changes about its upstreams' answers: Spec → Config.

use std::net::IpAddr;
use std::time::Duration;

use super::error::{Fault, Place};
use super::reader::{self, Reader};
use super::spec::{Table, Value};
use super::{Cache, Network, bounds, forms, zones};
use crate::dns::name::Name;

/// What a forward zone changes about its upstreams' answers; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub aaaa: Aaaa,
    /// IPv6; its length is one that RFC 6052 knows.
    pub dns64: Option<Network>,
    pub ttl: TtlBounds,
    /// Begin address records at another one in each response.
    pub shuffle: bool,
    /// Withhold addresses that no public name should have.
    pub rebind_protection: bool,
    /// Names at and below which they may.
    pub rebind_allow: Vec<Name>,
}

/// What becomes of AAAA queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aaaa {
    /// Upstreams are asked.
    #[default]
    Forward,
    /// NODATA, without asking.
    Nodata,
    /// NODATA while IPv6 leads nowhere from here.
    Auto,
}

/// TTL bounds of a zone's own; `None` leaves the cache's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TtlBounds {
    pub min: Option<Duration>,
    pub max: Option<Duration>,
}

/// The policies of [`Aaaa`] as written.
const AAAA: [(&str, Aaaa); 3] =
    [("forward", Aaaa::Forward), ("nodata", Aaaa::Nodata), ("auto", Aaaa::Auto)];

/// The lengths of a prefix that addresses can be embedded in.
///
/// Source: RFC 6052 §2.2
const DNS64_LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

impl Aaaa {
    /// The word that is read as this policy.
    pub fn as_text(self) -> &'static str {
        AAAA.iter().find(|(_, policy)| *policy == self).map_or("", |(word, _)| word)
    }
}

impl TtlBounds {
    /// Floor and ceiling: the zone's own over the cache's.
    pub fn over(&self, cache: &Cache) -> (Duration, Duration) {
        (self.min.unwrap_or(cache.min_ttl), self.max.unwrap_or(cache.max_ttl))
    }
}

/// Reads the keys of one `[[forward]]` that change answers.
pub fn read(reader: &mut Reader<'_, '_>) -> Rewrite {
    let aaaa = reader.choice("forward.aaaa", &AAAA, "forward, nodata, auto").unwrap_or_default();
    let dns64 = reader.value("forward.dns64", read_prefix).flatten();
    if aaaa == Aaaa::Nodata && dns64.is_some() {
        zones::fail_at(reader, "forward.dns64", Fault::Conflict { other: "aaaa = \"nodata\"" });
    }
    let mut own = |key, bounds| {
        let is_written = reader.table.contains_key(key);
        is_written.then(|| reader.duration(key, bounds))
    };
    let ttl = TtlBounds {
        min: own("forward.min_ttl", &bounds::MIN_TTL),
        max: own("forward.max_ttl", &bounds::MAX_TTL),
    };
    let mut rebind_allow = Vec::new();
    for item in reader.list("forward.rebind_allow").unwrap_or_default() {
        let read = reader::text(&item.value).and_then(zones::read_name);
        rebind_allow.extend(reader.accept(&item.place, read));
    }
    Rewrite {
        aaaa,
        dns64,
        ttl,
        shuffle: reader.switch("forward.shuffle", false),
        rebind_protection: reader.switch("forward.rebind_protection", false),
        rebind_allow,
    }
}

/// Where a zone's own TTL bounds are written; the floor's place first.
pub fn ttl_place(table: &Table) -> Option<Place> {
    let keys = ["forward.min_ttl", "forward.max_ttl"];
    keys.iter().find_map(|key| table.get(*key)).map(|written| written.place.clone())
}

/// A prefix to embed IPv4 addresses in; an empty text is none.
fn read_prefix(value: &Value) -> Result<Option<Network>, Fault> {
    let text = reader::text(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let fault = || Fault::NotA {
        text: text.to_owned(),
        what: "a DNS64 prefix: IPv6, of 32, 40, 48, 56, 64 or 96 bits, the bits 64 to 71 zero",
        example: "\"64:ff9b::/96\"",
    };
    forms::parse_network(text).filter(is_dns64_prefix).map(Some).ok_or_else(fault)
}

/// Tells whether IPv4 addresses can be embedded in a prefix.
///
/// Source: RFC 6052 §2.2
fn is_dns64_prefix(prefix: &Network) -> bool {
    match prefix.address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => DNS64_LENGTHS.contains(&prefix.prefix) && address.octets()[8] == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_that_rfc_6052_knows_are_taken() {
        for (text, is_taken) in [
            ("64:ff9b::/96", true),
            ("2001:db8::/32", true),
            ("2001:db8:100::/40", true),
            ("2001:db8:122::/48", true),
            ("2001:db8:122:300::/56", true),
            ("2001:db8:122:344::/64", true),
            ("2001:db8:122:344:100::/96", false),
            ("2001:db8:122:344::1:0:0/96", true),
            ("2001:db8::/33", false),
            ("64:ff9b::/128", false),
            ("64:ff9b::1/96", false),
            ("192.0.2.0/24", false),
            ("dns64", false),
        ] {
            let read = read_prefix(&Value::Text(text.to_owned()));
            assert_eq!(matches!(read, Ok(Some(_))), is_taken, "{text}: {read:?}");
        }
        assert_eq!(read_prefix(&Value::Text(String::new())), Ok(None));
    }
}
