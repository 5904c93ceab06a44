//! The law of lifetimes: how long a response may be reused, and how long it may serve stale. Pure.

use std::time::Duration;

use crate::config;
use crate::dns::response::Encoded;
use crate::dns::ttl::Ttl;
use crate::dns::{Qtype, Rcode};
use crate::metrics::Origin;

/// How long a response is fresh, and for how long after that it may be served stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub fresh: Duration,
    pub stale: Duration,
}

impl Lifetime {
    /// Served once to those who wait, never stored.
    pub const NONE: Self = Self { fresh: Duration::ZERO, stale: Duration::ZERO };
}

/// How long the encoded form of a cluster answer is kept while nothing changes; any time would do.
const UNCHANGED: Duration = Duration::from_secs(86_400);

/// Brings the TTLs of a response within the policy's bounds and decides its lifetime.
///
/// TTLs below the first of `bounds` are raised to it, but in negative responses; then those above the
/// second lowered.
///
/// A response from our own data keeps its TTLs, which do not age; its lifetime bounds only how
/// long the encoded form is kept. One of the cluster zone is kept until its name changes.
pub fn admit(
    mut encoded: Encoded,
    policy: &config::Cache,
    bounds: (Duration, Duration),
    origin: Origin,
) -> (Encoded, Lifetime) {
    if origin == Origin::Cluster {
        // Stored, it would be given by UDP too (RFC 8482).
        let fresh = if encoded.qtype() == Qtype::ANY { Duration::ZERO } else { UNCHANGED };
        return (encoded, Lifetime { fresh, stale: Duration::ZERO });
    }
    if origin == Origin::Local {
        let fresh = lifetime(&encoded, policy).map_or(Duration::ZERO, Ttl::as_duration);
        return (encoded, Lifetime { fresh, stale: Duration::ZERO });
    }
    let (min, max) = (Ttl::from_duration(bounds.0), Ttl::from_duration(bounds.1));
    // How long a name is believed absent is its zone's decision (RFC 2308 §5): it may come to exist.
    let min = if encoded.is_negative() { Ttl::from_wire(0) } else { min };
    encoded.map_ttls(|ttl| ttl.max(min).min(max));
    encoded.level_ttls();
    let lifetime = lifetime(&encoded, policy);
    if let Some(ttl) = lifetime.filter(|_| encoded.is_negative()) {
        // What a stub resolver caches of it must not outlive what we cache of it, be that nothing.
        encoded.map_ttls(|stored| stored.min(ttl));
    }
    match lifetime.filter(|ttl| ttl.as_secs() > 0) {
        Some(ttl) => (encoded, Lifetime { fresh: ttl.as_duration(), stale: policy.stale }),
        None => (encoded, Lifetime::NONE),
    }
}

/// How long the whole response may be reused; `None`: not at all.
///
/// Source: RFC 2308 §5 (negatives; without an SOA they are not cached), RFC 2181 §5.2 (the least
/// TTL of an RRset counts), RFC 8482 §4 (ANY is not a question about data)
fn lifetime(encoded: &Encoded, policy: &config::Cache) -> Option<Ttl> {
    if !encoded.rcode().is_conclusive() || encoded.qtype() == Qtype::ANY {
        return None;
    }
    if encoded.is_referral() {
        return None;
    }
    let least = encoded.min_ttl()?;
    if !encoded.is_negative() {
        return Some(least);
    }
    let cap = Ttl::from_duration(policy.max_negative_ttl);
    match encoded.negative_ttl() {
        Some(negative) => Some(negative.min(least).min(cap)),
        // An alias without its target's records is data all the same, if the name exists; that the
        // target has none is a negative fact, which must not hold for longer than others.
        None if encoded.rcode() == Rcode::NOERROR => {
            let is_alias = encoded.answer_types().any(|rtype| rtype == Qtype::CNAME);
            is_alias.then_some(least.min(cap))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::testing::{Record, message};

    fn policy() -> config::Cache {
        config::Cache {
            size: 1 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(7 * 86_400),
            max_negative_ttl: Duration::from_secs(3600),
            failure_ttl: Duration::from_secs(1),
            stale: Duration::from_secs(86_400),
            prefetch: true,
        }
    }

    fn fresh_secs(rcode: Rcode, records: &[Record<'_>], policy: &config::Cache) -> u64 {
        let wire = message("example.org", Qtype::A, rcode, records);
        let encoded = Encoded::from_wire(&wire).expect("well-formed");
        let bounds = (policy.min_ttl, policy.max_ttl);
        admit(encoded, policy, bounds, Origin::Forward).1.fresh.as_secs()
    }

    const A: Record<'_> = Record::answer("example.org", Qtype::A, 300, &[192, 0, 2, 1]);
    const CNAME: Record<'_> = Record::answer("example.org", Qtype::CNAME, 60, b"\x01b\0");

    #[test]
    fn the_law_of_lifetimes() {
        let soa = |ttl, minimum| Record::soa("org", ttl, minimum);
        let (ok, nx) = (Rcode::NOERROR, Rcode::NXDOMAIN);
        let zero = Record { ttl: 0, ..A };
        let huge = Record { ttl: u32::MAX, ..A };
        for (what, rcode, records, secs) in [
            ("an answer lives as long as its least TTL", ok, vec![CNAME, A], 60),
            ("TTL 0 is not kept", ok, vec![zero], 0),
            ("a TTL with the top bit set is large and capped", ok, vec![huge], 7 * 86_400),
            ("NODATA lives as long as the SOA's minimum", ok, vec![soa(900, 120)], 120),
            ("NXDOMAIN no longer than the SOA's TTL", nx, vec![soa(90, 120)], 90),
            ("a negative no longer than its cap", nx, vec![soa(86_400, 86_400)], 3600),
            ("no SOA, no negative caching", nx, vec![], 0),
            ("NODATA without SOA neither", ok, vec![], 0),
            ("an alias that leads nowhere lives as its SOA says", nx, vec![CNAME, soa(50, 50)], 50),
            ("an alias without its target is data", ok, vec![CNAME], 60),
            ("but no longer than a negative", ok, vec![Record { ttl: 86_400, ..CNAME }], 3600),
            ("a failure is no answer", Rcode::SERVFAIL, vec![A], 0),
            ("a referral is no answer", ok, vec![Record::authority("org", Qtype::NS, 9, b"\0")], 0),
        ] {
            assert_eq!(fresh_secs(rcode, &records, &policy()), secs, "{what}");
        }
    }

    #[test]
    fn a_cluster_answer_keeps_its_ttl_and_is_kept_until_its_name_changes() {
        for records in [vec![Record { ttl: 5, ..A }], vec![Record::soa("org", 5, 5)]] {
            let wire = message("example.org", Qtype::A, Rcode::NOERROR, &records);
            let encoded = Encoded::from_wire(&wire).expect("well-formed");
            let bounds = (Duration::from_secs(60), Duration::from_secs(60));
            let (encoded, lifetime) = admit(encoded, &policy(), bounds, Origin::Cluster);
            assert_eq!(encoded.min_ttl().map(Ttl::as_secs), Some(5));
            assert_eq!(lifetime, Lifetime { fresh: UNCHANGED, stale: Duration::ZERO });
        }
    }

    #[test]
    fn a_negative_response_lives_no_longer_than_its_zone_says_whatever_the_floor() {
        let bounds = (Duration::from_secs(60), Duration::from_secs(600));
        for (rcode, records, secs) in [
            (Rcode::NXDOMAIN, vec![Record::soa("org", 5, 300)], 5),
            (Rcode::NOERROR, vec![Record::soa("org", 300, 5)], 5),
            (Rcode::NXDOMAIN, vec![Record::soa("org", 300, 0)], 0),
            (Rcode::NXDOMAIN, vec![Record { ttl: 7, ..CNAME }, Record::soa("org", 9, 9)], 7),
            (Rcode::NXDOMAIN, vec![Record::soa("org", 900, 900)], 600),
        ] {
            let wire = message("example.org", Qtype::A, rcode, &records);
            let encoded = Encoded::from_wire(&wire).expect("well-formed");
            let (encoded, lifetime) = admit(encoded, &policy(), bounds, Origin::Forward);
            assert_eq!(lifetime.fresh.as_secs(), secs, "{records:?}");
            let served = encoded.negative_ttl().map(|ttl| u64::from(ttl.as_secs()));
            assert_eq!(served, Some(secs), "{records:?}");
            let longest = encoded.records().map(|(_, record)| encoded.ttl_of(&record).as_secs());
            assert_eq!(longest.max().map(u64::from), Some(secs), "{records:?}");
        }
    }

    #[test]
    fn bounds_raise_and_lower_what_is_served_too() {
        let bounds = (Duration::from_secs(10), Duration::from_secs(100));
        let short = Record { ttl: 1, ..A };
        for (record, secs) in [(short, 10), (A, 100)] {
            let wire = message("example.org", Qtype::A, Rcode::NOERROR, &[record]);
            let encoded = Encoded::from_wire(&wire).expect("well-formed");
            let (encoded, lifetime) = admit(encoded, &policy(), bounds, Origin::Forward);
            assert_eq!(lifetime.fresh.as_secs(), secs);
            assert_eq!(
                encoded.min_ttl().map(Ttl::as_secs),
                Some(u32::try_from(secs).expect("small"))
            );
        }
    }
}
