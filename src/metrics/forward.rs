//! Counters of forward zones, of all together and of each by its name, and how those and the upstreams' are
//! written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use prometheus_client::metrics::counter::Counter;

use super::scrape::Families;
use super::{Metrics, UpstreamMetrics, locked};
use crate::dns::name::Name;

/// Zones told apart; reloads may name ever new ones over the years.
const ZONES: usize = 256;

/// Counters of all forward zones together.
#[derive(Clone, Debug, Default)]
pub struct ForwardMetrics {
    /// Queries for a zone whose upstreams were all down.
    pub all_down: Counter,
    /// Responses that rebinding protection took addresses from.
    pub rebind_blocked: Counter,
    /// Changes of upstreams that come and go.
    pub endpoint_changes: Counter,
    zones: Arc<Mutex<BTreeMap<String, ForwardZoneMetrics>>>,
}

/// Counters of one forward zone.
#[derive(Clone, Debug, Default)]
pub struct ForwardZoneMetrics {
    /// Queries sent again to an upstream that was asked before.
    pub retries: Counter,
    /// Queries sent to another upstream while one is waited for.
    pub hedges: Counter,
    /// Popular entries renewed before their end.
    pub prefetches: Counter,
    /// Queries that joined an exchange in flight.
    pub coalesced: Counter,
}

/// Picks one counter of an upstream.
type UpstreamCounterOf = fn(&UpstreamMetrics) -> &Counter;

/// Picks one counter of a zone.
type CounterOf = fn(&ForwardZoneMetrics) -> &Counter;

impl ForwardMetrics {
    /// The counters of `zone`; the same name gives the same ones. After 255 names all share one, "other".
    pub fn zone(&self, zone: &Name) -> ForwardZoneMetrics {
        let mut zones = locked(&self.zones);
        let name = zone.to_string();
        let is_full = zones.len() + 1 >= ZONES && !zones.contains_key(&name);
        zones.entry(if is_full { "other".to_owned() } else { name }).or_default().clone()
    }
}

/// Writes the counters of each zone; `stale` are stale responses by zone, which the tallies count.
pub(super) fn write(
    metrics: &Metrics,
    stale: &[(String, u64)],
    families: &mut Families<'_>,
) -> fmt::Result {
    let zones: Vec<_> = locked(&metrics.forward.zones).clone().into_iter().collect();
    let by_name: [(&str, CounterOf); 4] = [
        ("nodens_forward_retries_total", |zone| &zone.retries),
        ("nodens_forward_hedges_total", |zone| &zone.hedges),
        ("nodens_forward_prefetches_total", |zone| &zone.prefetches),
        ("nodens_forward_coalesced_total", |zone| &zone.coalesced),
    ];
    for (name, count) in by_name {
        let labelled =
            zones.iter().map(|(zone, of)| (vec![("zone", zone.as_str())], count(of).get()));
        families.counters(name, labelled)?;
    }
    let asked = stale.iter().filter(|(zone, _)| zones.iter().any(|(name, _)| name == zone));
    let stale = asked.map(|(zone, count)| (vec![("zone", zone.as_str())], *count));
    families.counters("nodens_forward_stale_total", stale)
}

/// Writes the counters of each upstream under our own names.
pub(super) fn write_upstreams(
    upstreams: &[(String, UpstreamMetrics)],
    families: &mut Families<'_>,
) -> fmt::Result {
    let by_name: [(&str, UpstreamCounterOf); 9] = [
        ("nodens_upstream_queries_total", |upstream| &upstream.queries),
        ("nodens_upstream_responses_total", |upstream| &upstream.responses),
        ("nodens_upstream_timeouts_total", |upstream| &upstream.timeouts),
        ("nodens_upstream_retries_total", |upstream| &upstream.retries),
        ("nodens_upstream_hedges_total", |upstream| &upstream.hedges),
        ("nodens_upstream_failures_total", |upstream| &upstream.failures),
        ("nodens_upstream_tcp_fallbacks_total", |upstream| &upstream.tcp_fallbacks),
        ("nodens_upstream_mismatched_total", |upstream| &upstream.mismatched),
        ("nodens_upstream_unreachable_total", |upstream| &upstream.unreachable),
    ];
    let upstreams = || upstreams.iter().map(|(to, upstream)| (vec![("to", to.as_str())], upstream));
    for (name, count) in by_name {
        let samples = upstreams().map(|(labels, upstream)| (labels, count(upstream).get()));
        families.counters(name, samples)?;
    }
    let down = upstreams().map(|(labels, upstream)| (labels, upstream.down.get().min(1)));
    families.gauges("nodens_upstream_down", down)?;
    let in_flight = upstreams().map(|(labels, upstream)| (labels, upstream.in_flight.get()));
    families.gauges("nodens_upstream_in_flight", in_flight)
}
