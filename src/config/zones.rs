//! Forward zones and their upstreams: Spec → Config.

use std::path::PathBuf;

use super::bounds;
use super::endpoint::{self, Scheme};
use super::endpoints::{self, Endpoints};
use super::error::{Fault, Place};
use super::host::Host;
use super::reader::{self, Reader};
use super::spec::{Table, Value, Written};
use super::{Cache, Forward, PortPolicy, PortRange, Rewrite, Upstream, UpstreamSource, rewrite};
use crate::dns::name::Name;

/// The file whose nameservers are asked when nobody else is named.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Upstreams with the places where they were written.
#[derive(Default)]
struct WrittenUpstreams {
    fixed: Vec<(Upstream, Place)>,
    endpoints: Vec<(Endpoints, Place)>,
}

impl WrittenUpstreams {
    /// Tells whether nobody is named.
    fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.endpoints.is_empty()
    }

    /// Where one equal to this was written before.
    fn first(&self, text: &str) -> Option<&Place> {
        let fixed = self.fixed.iter().map(|(upstream, place)| (upstream.to_string(), place));
        let sets = self.endpoints.iter().map(|(set, place)| (set.to_string(), place));
        fixed.chain(sets).find(|(known, _)| known == text).map(|(_, place)| place)
    }

    /// Puts them in force.
    fn apply(self, zone: &mut Zone) {
        let fixed = self.fixed.iter().map(|(upstream, _)| upstream.clone()).collect();
        zone.forward.upstreams = UpstreamSource::Fixed(fixed);
        zone.forward.endpoints = self.endpoints.iter().map(|(set, _)| set.clone()).collect();
        (zone.written, zone.endpoints) = (self.fixed, self.endpoints);
    }
}

/// A forward zone, with where its upstreams were written.
pub struct Zone {
    pub forward: Forward,
    pub written: Vec<(Upstream, Place)>,
    /// The same of those that come and go.
    pub endpoints: Vec<(Endpoints, Place)>,
    /// Where TTL bounds of its own were written.
    pub ttl_place: Option<Place>,
}

impl Zone {
    /// A zone of which nothing is written.
    fn new(forward: Forward) -> Self {
        Self { forward, written: Vec::new(), endpoints: Vec::new(), ttl_place: None }
    }

    /// Where the first of its upstreams was written.
    fn first_place(&self) -> Option<&Place> {
        let sets = self.endpoints.iter().map(|(_, place)| place);
        self.written.iter().map(|(_, place)| place).chain(sets).next()
    }
}

/// Reads every `[[forward]]` and the keys `upstreams` and `resolv_conf` of the zone `.`, which is
/// added where it is not written. In the order of the file, `.` as the last where it was added.
pub fn read_zones(reader: &mut Reader<'_, '_>, host: &Host) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    let mut places: Vec<&Place> = Vec::new();
    for item in reader.list("forward").unwrap_or_default() {
        let Value::Table(table) = &item.value else { continue };
        let Some(zone) = read_zone(reader, table, item, host) else { continue };
        match zones.iter().position(|known| known.forward.zone == zone.forward.zone) {
            Some(at) => {
                let what = format!("the zone {}", zone.forward.zone);
                let first = places[at].source.to_string();
                reader.fail(&item.place, Fault::Duplicate { what, first });
            }
            None => {
                zones.push(zone);
                places.push(&item.place);
            }
        }
    }
    let root = match zones.iter().position(|zone| zone.forward.zone.is_root()) {
        Some(at) => at,
        None => {
            zones.push(Zone::new(root_zone()));
            zones.len() - 1
        }
    };
    give_root_upstreams(reader, host, &mut zones[root]);
    refuse_names_in_a_ring(reader, &zones);
    zones
}

/// Refuses names that can only be resolved by asking them.
fn refuse_names_in_a_ring(reader: &mut Reader<'_, '_>, zones: &[Zone]) {
    let views: Vec<_> = zones.iter().map(|zone| (&zone.forward, &zone.endpoints[..])).collect();
    if let Some((zone, place)) = endpoints::without_ground(&views) {
        reader.fail(place, Fault::NamesInARing { zone: zone.to_string() });
    }
}

/// The zone `.` where nobody wrote it.
fn root_zone() -> Forward {
    Forward {
        zone: Name::root(),
        upstreams: UpstreamSource::ResolvConf(PathBuf::from(RESOLV_CONF)),
        endpoints: Vec::new(),
        ports: PortPolicy::PerQuery,
        timeout: bounds::FORWARD_TIMEOUT.default,
        retransmit_min: bounds::RETRANSMIT_MIN.default,
        retransmit_max: bounds::RETRANSMIT_MAX.default,
        trust_ad: false,
        tls_ca: None,
        rewrite: Rewrite::default(),
    }
}

/// Applies the topmost keys to the zone `.`: `upstreams` of a later layer than the zone's own win;
/// `resolv_conf` counts where there are none.
fn give_root_upstreams(reader: &mut Reader<'_, '_>, host: &Host, root: &mut Zone) {
    if let Some(path) = reader.text("resolv_conf")
        && matches!(root.forward.upstreams, UpstreamSource::ResolvConf(_))
    {
        root.forward.upstreams = UpstreamSource::ResolvConf(PathBuf::from(path));
    }
    let Some(items) = reader.some_list("upstreams", "upstream") else { return };
    let place = reader.table.get("upstreams").map(|written| &written.place);
    if let (Some(place), Some(own)) = (place, root.first_place())
        && place.source.is_same_layer(&own.source)
    {
        let what = "upstreams of the zone .".to_owned();
        reader.fail(place, Fault::Duplicate { what, first: own.to_string() });
        return;
    }
    let upstreams = read_upstreams(reader, items, Scheme::Udp, host);
    if !upstreams.is_empty() {
        upstreams.apply(root);
    }
}

/// Reads one `[[forward]]`; `None` when its zone is no name.
fn read_zone(
    outer: &mut Reader<'_, '_>,
    table: &Table,
    item: &Written,
    host: &Host,
) -> Option<Zone> {
    let reader = &mut Reader { table, errors: outer.errors };
    let Some(written) = table.get("forward.zone") else {
        reader.fail(&item.place, Fault::Missing { what: "zone" });
        return None;
    };
    let read = reader::text(&written.value).and_then(read_name);
    let zone = reader.accept(&written.place, read)?;
    let schemes = ["udp", "tcp", "tls", "https"];
    let schemes = schemes.map(|name| (name, Scheme::from_name(name).unwrap_or(Scheme::Udp)));
    let bare = reader.choice("forward.transport", &schemes, "udp, tcp, tls, https");
    let items = reader.some_list("forward.upstreams", "upstream");
    if items.is_none() && !zone.is_root() && !table.contains_key("forward.upstreams") {
        reader.fail(&item.place, Fault::NoUpstreams { zone: zone.to_string() });
    }
    let upstreams =
        read_upstreams(reader, items.unwrap_or_default(), bare.unwrap_or(Scheme::Udp), host);
    let ttl_place = rewrite::ttl_place(table);
    let mut zone = Zone { ttl_place, ..Zone::new(read_policy(reader, zone)) };
    if !upstreams.is_empty() {
        upstreams.apply(&mut zone);
    }
    Some(zone)
}

/// A domain name.
pub fn read_name(text: &str) -> Result<Name, Fault> {
    Name::from_text(text).map_err(|_| Fault::NotA {
        text: text.to_owned(),
        what: "a domain name",
        example: "\"example.org\" or \".\"",
    })
}

/// The keys of a zone that are not its upstreams.
fn read_policy(reader: &mut Reader<'_, '_>, zone: Name) -> Forward {
    let policies = [("per-query", PortPolicy::PerQuery), ("pooled", PortPolicy::Pooled)];
    let default = root_zone();
    let forward = Forward {
        zone,
        upstreams: default.upstreams,
        endpoints: Vec::new(),
        ports: reader
            .choice("forward.ports", &policies, "per-query, pooled")
            .unwrap_or(default.ports),
        timeout: reader.duration("forward.timeout", &bounds::FORWARD_TIMEOUT),
        retransmit_min: reader.duration("forward.retransmit_min", &bounds::RETRANSMIT_MIN),
        retransmit_max: reader.duration("forward.retransmit_max", &bounds::RETRANSMIT_MAX),
        trust_ad: reader.switch("forward.trust_ad", false),
        tls_ca: reader.text("forward.tls_ca").map(PathBuf::from),
        rewrite: rewrite::read(reader),
    };
    if forward.retransmit_min > forward.retransmit_max {
        let fault = Fault::Crossed { other: "retransmit_max" };
        match reader.table.contains_key("forward.retransmit_min") {
            true => fail_at(reader, "forward.retransmit_min", fault),
            false => {
                fail_at(reader, "forward.retransmit_max", Fault::Below { other: "retransmit_min" })
            }
        }
    }
    forward
}

/// Refuses zones whose floor of TTLs lies above their ceiling, where one of the two may be the cache's.
pub fn refuse_crossed_ttls(reader: &mut Reader<'_, '_>, zones: &[Zone], cache: &Cache) {
    for zone in zones {
        let (min, max) = zone.forward.rewrite.ttl.over(cache);
        // Without a place neither is the zone's own, and the cache's are compared elsewhere.
        if let Some(place) = zone.ttl_place.as_ref().filter(|_| min > max) {
            let fault = match zone.forward.rewrite.ttl.min {
                Some(_) => Fault::Crossed { other: "max_ttl" },
                None => Fault::Below { other: "min_ttl" },
            };
            reader.fail(place, fault);
        }
    }
}

/// Notes an error at the place of a key that is written.
pub fn fail_at(reader: &mut Reader<'_, '_>, key: &str, fault: Fault) {
    if let Some(written) = reader.table.get(key) {
        reader.fail(&written.place, fault);
    }
}

/// What stands in a list of upstreams.
enum Either {
    Fixed(Upstream),
    Endpoints(Endpoints),
}

impl std::fmt::Display for Either {
    /// Writes the configuration form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(upstream) => upstream.fmt(f),
            Self::Endpoints(set) => set.fmt(f),
        }
    }
}

/// Reads an upstream, or a set of them.
fn read_upstream(text: &str, bare: Scheme, host: &Host) -> Result<Either, Fault> {
    if endpoints::is_endpoints(text) {
        return endpoints::parse_endpoints(text, bare).map(Either::Endpoints);
    }
    endpoint::parse_upstream(text, bare, &host.interfaces).map(Either::Fixed)
}

/// Reads upstreams, each once.
fn read_upstreams(
    reader: &mut Reader<'_, '_>,
    items: &[Written],
    bare: Scheme,
    host: &Host,
) -> WrittenUpstreams {
    let mut upstreams = WrittenUpstreams::default();
    for item in items {
        let read = reader::text(&item.value).and_then(|text| read_upstream(text, bare, host));
        let Some(read) = reader.accept(&item.place, read) else { continue };
        if let Some(first) = upstreams.first(&read.to_string()) {
            let what = format!("the upstream {read}");
            reader.fail(&item.place, Fault::Duplicate { what, first: first.source.to_string() });
            continue;
        }
        match read {
            Either::Fixed(upstream) => upstreams.fixed.push((upstream, item.place.clone())),
            Either::Endpoints(set) => upstreams.endpoints.push((set, item.place.clone())),
        }
    }
    upstreams
}

/// Refuses a range with too few ports for one of the three classes, which a port's remainder
/// by 3 tells apart.
///
/// # Errors
/// `FewPorts`
pub fn enough_ports(range: &PortRange) -> Result<(), Fault> {
    let mut classes = [0; 3];
    for port in range.first..=range.last {
        let is_usable = range.reserved.binary_search(&port).is_err();
        classes[usize::from(port % 3)] += usize::from(is_usable);
    }
    let usable = classes.into_iter().min().unwrap_or_default();
    if usable >= bounds::MIN_CLASS_PORTS {
        return Ok(());
    }
    let (first, last) = (range.first, range.last);
    Err(Fault::FewPorts { first, last, usable, least: bounds::MIN_CLASS_PORTS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::ports::PortClass;

    #[test]
    fn a_range_must_hold_enough_ports_of_every_class() {
        let range = |first, last, reserved: Vec<u16>| PortRange { first, last, reserved };
        assert_eq!(enough_ports(&range(1000, 1047, vec![])), Ok(()));
        assert!(enough_ports(&range(1000, 1046, vec![])).is_err());
        assert_eq!(enough_ports(&range(65_000, 65_535, vec![])), Ok(()));
        for class in PortClass::ALL {
            let reserved = (1000..=2000).filter(|port| PortClass::of_port(*port) == class);
            let fault = enough_ports(&range(1000, 2000, reserved.skip(15).collect()));
            assert!(matches!(fault, Err(Fault::FewPorts { usable: 15, .. })), "{class:?}");
        }
    }
}
