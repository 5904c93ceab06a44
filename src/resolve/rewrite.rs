//! What a forward zone changes about its upstreams' answers. Pure: who asks and stores is `forward`.
//!
//! Before anybody is asked: [`Rewrite::own_answer`]. On what came back: [`Rewrite::screen`], DNS64
//! (see [`super::dns64`]), and last [`Rewrite::offer`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::Message;

use super::dns64::Dns64;
use super::local::LocalAnswer;
use super::reach::Reach;
use crate::cache::Offer;
use crate::config::{self, Aaaa};
use crate::dns::build;
use crate::dns::ede::{Ede, EdeCode};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::ttl::Ttl;
use crate::dns::wire::{self, RecordAt};
use crate::dns::{Qclass, Qtype, Rcode};

/// How long NODATA may be reused that the configuration alone decides, in seconds.
const NODATA_TTL: u32 = 60;

/// How long NODATA may be reused that the node's routes decide: a new route is of use so soon.
const AUTO_TTL: u32 = 10;

/// What stub resolvers are told when addresses were withheld.
const BLOCKED: Ede = Ede::new(EdeCode::BLOCKED, "rebinding protection withholds addresses");

/// The parameters of SVCB and HTTPS records that hold addresses.
///
/// Source: RFC 9460 §14.3.2
const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;

/// What one forward zone changes.
pub struct Rewrite {
    zone: Name,
    settings: config::Rewrite,
    dns64: Option<Dns64>,
    reach: Arc<Reach>,
}

impl Rewrite {
    /// What `forward` says; `reach` is consulted where the policy of AAAA is `auto`.
    pub fn new(forward: &config::Forward, reach: Arc<Reach>) -> Self {
        let settings = forward.rewrite.clone();
        let dns64 = settings.dns64.as_ref().and_then(Dns64::new);
        Self { zone: forward.zone.clone(), settings, dns64, reach }
    }

    /// The configuration that this follows.
    pub fn settings(&self) -> &config::Rewrite {
        &self.settings
    }

    /// What is answered without asking anybody.
    pub fn own_answer(&self, query: &Query) -> Option<LocalAnswer> {
        if query.qtype == Qtype::AAAA
            && let Some(ttl) = self.refuses_ipv6()
        {
            return Some(LocalAnswer::Whole(self.nodata(query, ttl)));
        }
        self.dns64.as_ref()?.own_answer(query)
    }

    /// The TTL of the NODATA that AAAA queries get, if they get one: never NXDOMAIN, since the name
    /// may well have an A record.
    fn refuses_ipv6(&self) -> Option<u32> {
        match self.settings.aaaa {
            Aaaa::Nodata => Some(NODATA_TTL),
            Aaaa::Auto if !self.reach.has_ipv6() => Some(AUTO_TTL),
            Aaaa::Forward | Aaaa::Auto => None,
        }
    }

    /// NODATA with an SOA of the zone.
    fn nodata(&self, query: &Query, ttl: u32) -> Encoded {
        let soa = build::soa(&self.zone, Ttl::from_wire(ttl));
        // The zone's data is somebody else's: no AA.
        build::authoritative(query, Rcode::NOERROR, &[], &[soa]).with_authority(false)
    }

    /// The synthesis that an AAAA response without addresses is to go through.
    ///
    /// With DO and CD set the stub resolver validates and synthesises itself (RFC 6147 §5.5).
    pub fn dns64(&self, query: &Query) -> Option<&Dns64> {
        let does_it_itself = query.dnssec_ok && query.checking_disabled;
        let is_ours = query.qtype == Qtype::AAAA && query.qclass == Qclass::IN && !does_it_itself;
        self.dns64.as_ref().filter(|_| is_ours)
    }

    /// Takes out the addresses that rebinding protection withholds; tells whether there were any.
    pub fn screen(&self, query: &Query, encoded: Encoded) -> (Encoded, bool) {
        let settings = &self.settings;
        let is_allowed = || settings.rebind_allow.iter().any(|name| query.qname.is_within(name));
        if !settings.rebind_protection || is_allowed() {
            return (encoded, false);
        }
        let rebinds = |address| match (address, &self.dns64) {
            (IpAddr::V6(v6), Some(dns64)) => {
                is_inner(address) || dns64.extract(v6).is_some_and(|v4| is_inner(v4.into()))
            }
            _ => is_inner(address),
        };
        match self.withhold(query, &encoded, rebinds) {
            Some(rest) => (rest.with_ede(&BLOCKED), true),
            None => (encoded, false),
        }
    }

    /// Takes out IPv4-mapped addresses, which DNS64 counts as none.
    ///
    /// Source: RFC 6147 §5.1.4
    pub fn without_mapped(&self, query: &Query, encoded: Encoded) -> Encoded {
        let is_mapped =
            |address| matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        self.withhold(query, &encoded, is_mapped).unwrap_or(encoded)
    }

    /// The response without the addresses that `is_withheld` names; `None` when it holds none of them.
    ///
    /// When nothing of the question's type is left it is NODATA, with an SOA so that it is cached.
    fn withhold(
        &self,
        query: &Query,
        encoded: &Encoded,
        is_withheld: impl Fn(IpAddr) -> bool,
    ) -> Option<Encoded> {
        let condemned = |record: &RecordAt| {
            let mut hints = hints_of(encoded, record).unwrap_or_default().into_iter();
            address_of(encoded, record).is_some_and(&is_withheld) || hints.any(&is_withheld)
        };
        encoded.records().any(|(_, record)| condemned(&record)).then(|| {
            let goes = |record: &RecordAt| condemned(record) || signs_withheld(encoded, record);
            let nodata = self.nodata(query, NODATA_TTL);
            // What cannot be written without them is not written with them.
            rewritten(encoded, &nodata, goes).unwrap_or(nodata)
        })
    }

    /// The response as the cache shall have it.
    pub fn offer(&self, encoded: Encoded) -> Offer {
        let encoded = if self.settings.shuffle { encoded.with_rotation() } else { encoded };
        Offer { encoded, ttl: self.settings.ttl }
    }
}

/// Tells whether addresses were withheld from a response.
pub fn is_blocked(encoded: &Encoded) -> bool {
    encoded.ede().is_some_and(|ede| ede == BLOCKED)
}

/// Tells whether a record signs addresses: a signature over a set that has changed holds no longer.
pub(super) fn signs_address(encoded: &Encoded, record: &RecordAt) -> bool {
    signs_one_of(&[Qtype::A, Qtype::AAAA], encoded, record)
}

/// Tells whether a record signs a set of which some may be withheld.
fn signs_withheld(encoded: &Encoded, record: &RecordAt) -> bool {
    signs_one_of(&[Qtype::A, Qtype::AAAA, Qtype::SVCB, Qtype::HTTPS], encoded, record)
}

/// Tells whether a record is a signature over one of these types.
fn signs_one_of(types: &[Qtype], encoded: &Encoded, record: &RecordAt) -> bool {
    let covered = wire::u16_at(encoded.as_wire(), record.rdata).map(Qtype);
    Qtype(record.rtype) == Qtype::RRSIG && covered.is_some_and(|covered| types.contains(&covered))
}

/// The address of an A or AAAA record.
pub(super) fn address_of(encoded: &Encoded, record: &RecordAt) -> Option<IpAddr> {
    if record.class != Qclass::IN.0 {
        return None;
    }
    let data = encoded.as_wire().get(record.rdata..record.end)?;
    match Qtype(record.rtype) {
        Qtype::A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        Qtype::AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The addresses that an SVCB or HTTPS record says to try; `None` where it is none that can be read.
///
/// Source: RFC 9460 §2.2, §7.3
fn hints_of(encoded: &Encoded, record: &RecordAt) -> Option<Vec<IpAddr>> {
    if record.class != Qclass::IN.0 || ![Qtype::SVCB, Qtype::HTTPS].contains(&Qtype(record.rtype)) {
        return None;
    }
    let data = encoded.as_wire().get(record.rdata..record.end)?;
    let mut at = wire::skip_plain_name(data, 2)?;
    let mut hints = Vec::new();
    while at < data.len() {
        let (key, len) = (wire::u16_at(data, at)?, usize::from(wire::u16_at(data, at + 2)?));
        let value = data.get(at + 4..at + 4 + len)?;
        match key {
            IPV4_HINT => {
                hints.extend(value.as_chunks().0.iter().map(|four: &[u8; 4]| IpAddr::from(*four)))
            }
            IPV6_HINT => {
                hints.extend(value.as_chunks().0.iter().map(|all: &[u8; 16]| IpAddr::from(*all)))
            }
            _ => {}
        }
        at += 4 + len;
    }
    Some(hints)
}

/// The response without the records that go, the authority section of `nodata` added when it needs one.
///
/// Names may point into what goes, so hickory writes it anew.
fn rewritten(
    encoded: &Encoded,
    nodata: &Encoded,
    goes: impl Fn(&RecordAt) -> bool,
) -> Option<Encoded> {
    let mut message = Message::from_vec(encoded.as_wire()).ok()?;
    let mut gone = encoded.records().map(|(_, record)| goes(&record));
    let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
    for section in sections {
        section.retain(|_| !gone.next().unwrap_or(true));
    }
    message.metadata.authentic_data = false;
    let written = |message: &Message| Encoded::from_wire(&message.to_vec().ok()?).ok();
    let rest = written(&message)?;
    if !rest.is_negative() || rest.negative_ttl().is_some() {
        return Some(rest);
    }
    message.add_authorities(Message::from_vec(nodata.as_wire()).ok()?.authorities);
    written(&message)
}

/// Tells whether an address leads into a host or a network that is not everybody's.
///
/// Source: RFC 6890 and the registries behind it
fn is_inner(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_inner_v4(v4),
        IpAddr::V6(v6) => is_inner_v6(v6),
    }
}

/// [`is_inner`] for IPv4.
fn is_inner_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let is_shared = first == 100 && second & 0xc0 == 64; // RFC 6598
    first == 0 // "this network"; Linux takes 0.0.0.0 for loopback
        || is_shared
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || first >= 240 // reserved, the broadcast address too; clouds number pods with it
}

/// [`is_inner`] for IPv6; an address that stands for an IPv4 address is as inner as that.
fn is_inner_v6(address: Ipv6Addr) -> bool {
    let [head @ .., sixth, seventh] = address.segments();
    let stands_for = |high: u16, low: u16| {
        is_inner_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    let embedded = match head {
        // Compatible (which `::` and `::1` are too), mapped, translated (RFC 2765), and the well-known prefix
        // of RFC 6052.
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            stands_for(sixth, seventh)
        }
        [0x64, 0xff9b, 1, ..] => true, // for translators of one's own (RFC 8215)
        [0x2002, high, low, ..] => stands_for(high, low), // 6to4
        _ => false,
    };
    let is_site_local = head[0] & 0xffc0 == 0xfec0; // RFC 3879: gone, but still nobody's
    embedded || is_site_local || address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::forms::parse_network;
    use crate::config::{PortPolicy, UpstreamSource};
    use crate::dns::testing::{Record, message};
    use std::time::Duration;

    /// What a zone `example.org.` with these settings does.
    fn rewrite(settings: config::Rewrite) -> Rewrite {
        let forward = config::Forward {
            zone: Name::from_text("example.org").expect("name"),
            upstreams: UpstreamSource::Fixed(Vec::new()),
            endpoints: Vec::new(),
            ports: PortPolicy::PerQuery,
            timeout: Duration::from_secs(1),
            retransmit_min: Duration::ZERO,
            retransmit_max: Duration::ZERO,
            trust_ad: false,
            tls_ca: None,
            rewrite: settings,
        };
        Rewrite::new(&forward, Arc::default())
    }

    /// One that protects against rebinding.
    fn protecting() -> Rewrite {
        rewrite(config::Rewrite {
            rebind_protection: true,
            rebind_allow: vec![Name::from_text("in.example.org").expect("name")],
            dns64: parse_network("2001:db8:64::/96"),
            ..config::Rewrite::default()
        })
    }

    fn ask(name: &str, qtype: Qtype) -> Query {
        Query::new(Name::from_text(name).expect("name"), qtype)
    }

    #[test]
    fn inner_addresses_are_those_that_no_public_name_should_have() {
        for (address, is_one) in [
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("10.1.2.3", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("127.0.0.53", true),
            ("169.254.169.254", true),
            ("172.16.0.1", true),
            ("172.32.0.1", false),
            ("192.168.1.1", true),
            ("240.0.0.1", true),
            ("255.255.255.255", true),
            ("239.0.0.1", false),
            ("198.18.0.1", false),
            ("192.0.2.1", false),
            ("::", true),
            ("::1", true),
            ("::10.0.0.1", true),
            ("::ffff:192.168.1.1", true),
            ("::ffff:192.0.2.1", false),
            ("64:ff9b::10.0.0.1", true),
            ("64:ff9b::192.0.2.1", false),
            ("64:ff9b:1::192.0.2.1", true),
            ("::ffff:0:10.0.0.1", true),
            ("::ffff:0:192.0.2.1", false),
            ("2002:a00:1::1", true),
            ("2002:c000:201::1", false),
            ("fc00::1", true),
            ("fd12::1", true),
            ("fe80::1", true),
            ("fec0::1", true),
            ("2001:db8::1", false),
            ("2001:db8::a00:1", false),
        ] {
            assert_eq!(is_inner(address.parse().expect(address)), is_one, "{address}");
        }
    }

    /// The RCODE, the types of the records left, and whether anything was withheld.
    fn screened(qname: &str, qtype: Qtype, records: &[Record<'_>]) -> (Rcode, Vec<u16>, bool) {
        let wire = message(qname, qtype, Rcode::NOERROR, records);
        let encoded = Encoded::from_wire(&wire).expect("well-formed");
        let (encoded, is_screened) = protecting().screen(&ask(qname, qtype), encoded);
        assert_eq!(is_blocked(&encoded), is_screened);
        let types = encoded.records().map(|(_, record)| record.rtype).collect();
        (encoded.rcode(), types, is_screened)
    }

    #[test]
    fn addresses_that_rebind_are_withheld_and_the_rest_is_kept() {
        let a = |data: &'static [u8]| Record::answer("www.example.org", Qtype::A, 60, data);
        let (inner, outer) = (a(&[10, 0, 0, 1]), a(&[192, 0, 2, 1]));
        let alias =
            Record::answer("w.example.org", Qtype::CNAME, 60, b"\x03www\x07example\x03org\0");
        let signature = Record::answer("www.example.org", Qtype::RRSIG, 60, &[0, 1, 8, 3]);
        let (ok, name) = (Rcode::NOERROR, "w.example.org");
        for (what, records, expected) in [
            ("nothing inner", vec![alias, outer, signature], (vec![5, 1, 46], false)),
            ("some inner", vec![alias, inner, outer, signature], (vec![5, 1], true)),
            ("all inner", vec![alias, inner], (vec![5, 6], true)),
            ("nothing at all", vec![Record::soa("org", 9, 9)], (vec![6], false)),
        ] {
            let (types, is_screened) = expected;
            assert_eq!(screened(name, Qtype::A, &records), (ok, types, is_screened), "{what}");
        }
        let v6 = Record::answer("w.example.org", Qtype::AAAA, 60, &[0xfd; 16]);
        assert_eq!(screened(name, Qtype::AAAA, &[v6]), (ok, vec![6], true));
        let translated: Ipv6Addr = "2001:db8:64::10.0.0.1".parse().expect("address");
        let octets = translated.octets();
        let v6 = Record { rdata: &octets, ..v6 };
        assert_eq!(screened(name, Qtype::AAAA, &[v6]), (ok, vec![6], true), "in our own prefix");
        assert_eq!(screened("a.in.example.org", Qtype::A, &[inner]), (ok, vec![1], false));
        let (_, types, is_screened) = screened(
            name,
            Qtype::MX,
            &[
                Record::answer("w.example.org", Qtype::MX, 60, b"\0\x01\x01m\0"),
                Record { section: crate::dns::response::Section::Additional, ..inner },
            ],
        );
        assert_eq!((types, is_screened), (vec![15], true), "addresses that come along count too");
    }

    #[test]
    fn a_service_record_that_hints_at_inner_addresses_is_withheld_with_its_signature() {
        let name = "w.example.org";
        let outer = b"\0\x01\0\0\x01\0\x03\x02h2\0\x04\0\x04\xc0\0\x02\x01";
        let v4 = b"\0\x01\0\0\x01\0\x03\x02h2\0\x04\0\x08\xc0\0\x02\x01\x0a\0\0\x01";
        let mut v6 = b"\0\x01\x03svc\0\0\x06\0\x10".to_vec();
        v6.extend([0xfd; 16]);
        let signature = Record::answer(name, Qtype::RRSIG, 60, &[0, 65, 8, 3]);
        let https = |data| Record::answer(name, Qtype::HTTPS, 60, data);
        for (what, records, types, is_screened) in [
            ("outer", vec![https(outer), signature], vec![65, 46], false),
            ("no hints", vec![https(b"\0\0\0")], vec![65], false),
            ("cut off", vec![https(b"\0\x01\0\0\x04\0\x04\x0a")], vec![65], false),
            ("IPv4", vec![https(v4), signature], vec![6], true),
            ("IPv6", vec![https(&v6), https(outer)], vec![65], true),
        ] {
            let expected = (Rcode::NOERROR, types, is_screened);
            assert_eq!(screened(name, Qtype::HTTPS, &records), expected, "{what}");
        }
    }

    #[test]
    fn a_blocked_answer_is_cached_as_the_nodata_that_it_is() {
        let inner = Record::answer("www.example.org", Qtype::A, 86_400, &[127, 0, 0, 1]);
        let wire = message("www.example.org", Qtype::A, Rcode::NOERROR, &[inner]);
        let encoded = Encoded::from_wire(&wire).expect("well-formed");
        let asked = ask("www.example.org", Qtype::A);
        let (encoded, _) = protecting().screen(&asked, encoded);
        assert_eq!(encoded.negative_ttl(), Some(Ttl::from_wire(NODATA_TTL)));
        assert_eq!(encoded.ede().map(|ede| ede.code), Some(EdeCode::BLOCKED));
    }

    #[test]
    fn without_settings_nothing_changes() {
        let plain = rewrite(config::Rewrite::default());
        let inner = Record::answer("www.example.org", Qtype::A, 60, &[127, 0, 0, 1]);
        let wire = message("www.example.org", Qtype::A, Rcode::NOERROR, &[inner]);
        let encoded = Encoded::from_wire(&wire).expect("well-formed");
        let asked = ask("www.example.org", Qtype::A);
        let (screened, is_screened) = plain.screen(&asked, encoded.clone());
        assert_eq!((screened.as_wire(), is_screened), (encoded.as_wire(), false));
        for name in ["www.example.org", "ipv4only.arpa"] {
            assert!(plain.own_answer(&ask(name, Qtype::AAAA)).is_none());
        }
        assert!(plain.dns64(&ask("www.example.org", Qtype::AAAA)).is_none());
    }

    #[test]
    fn aaaa_queries_get_nodata_where_the_policy_says_so_and_never_nxdomain() {
        let policy = |aaaa| rewrite(config::Rewrite { aaaa, ..config::Rewrite::default() });
        let auto = policy(Aaaa::Auto);
        for (rewrite, ttl) in [(&policy(Aaaa::Nodata), 60), (&auto, 10)] {
            match rewrite.own_answer(&ask("www.example.org", Qtype::AAAA)) {
                Some(LocalAnswer::Whole(encoded)) => {
                    assert_eq!((encoded.rcode(), encoded.is_negative()), (Rcode::NOERROR, true));
                    assert_eq!(encoded.negative_ttl(), Some(Ttl::from_wire(ttl)));
                }
                other => panic!("{other:?}"),
            }
            assert!(rewrite.own_answer(&ask("www.example.org", Qtype::A)).is_none());
        }
        auto.reach.set_node(true);
        assert!(auto.own_answer(&ask("www.example.org", Qtype::AAAA)).is_none());
    }

    #[test]
    fn who_validates_for_himself_synthesises_for_himself() {
        let rewrite = protecting();
        let asked = ask("www.example.org", Qtype::AAAA);
        for (dnssec_ok, checking_disabled, applies) in
            [(false, false, true), (true, false, true), (false, true, true), (true, true, false)]
        {
            let asked = Query { dnssec_ok, checking_disabled, ..asked.clone() };
            assert_eq!(rewrite.dns64(&asked).is_some(), applies, "{dnssec_ok} {checking_disabled}");
        }
        assert!(rewrite.dns64(&ask("www.example.org", Qtype::A)).is_none());
    }
}
