//! Writes all families in OpenMetrics text: sums the tallies, reads the shared counters.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::forward;
use super::tally::{self, PROTO_LABELS, RCODE_LABELS, Sums, TYPE_LABELS};
use super::{Arrival, Metrics, Origin, TABLE, UpstreamMetrics, ZoneId, locked};

/// CoreDNS's `server` label: we are one server, whatever the addresses.
const SERVER: (&str, &str) = ("server", "dns://:53");

/// CoreDNS's `view` label: we have none.
const VIEW: (&str, &str) = ("view", "");

/// How a query came in, with its protocol and family labels (1 is IPv4, 2 is IPv6).
const ARRIVALS: [(Arrival, &str, &str); 4] = [
    (Arrival::Udp4, "udp", "1"),
    (Arrival::Udp6, "udp", "2"),
    (Arrival::Tcp4, "tcp", "1"),
    (Arrival::Tcp6, "tcp", "2"),
];

/// CoreDNS's `plugin` label and the origins that stand for it.
const PLUGINS: [(&str, &[Origin]); 5] = [
    ("cache", &[Origin::Hit, Origin::Stale]),
    ("forward", &[Origin::Forward]),
    ("local", &[Origin::Local]),
    ("kubernetes", &[Origin::Cluster]),
    ("", &[Origin::Failure]),
];

/// The place of NXDOMAIN among the rcodes.
const NXDOMAIN: usize = 3;

/// The whole set as text.
pub(super) fn encode(metrics: &Metrics) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { metrics: metrics.clone() }));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("writing to a String does not fail");
    out
}

/// Responses that came from any of `origins`.
pub(super) fn responses_of(metrics: &Metrics, origins: &[Origin]) -> u64 {
    let zones = sum_zones(metrics);
    zones.iter().map(|(_, sums)| responses(sums, 0..RCODE_LABELS.len(), origins)).sum()
}

/// Each zone's label and counters, summed over all tallies; zones that nobody asked are left out.
pub(super) fn sum_zones(metrics: &Metrics) -> Vec<(String, Sums)> {
    let tallies = locked(&metrics.tallies);
    let named = tallies.zones.iter().zip(1..).map(|(name, id)| (name.to_string(), ZoneId(id)));
    let unnamed = [("dropped".to_owned(), ZoneId::NONE), ("other".to_owned(), ZoneId::OTHER)];
    let mut zones = Vec::new();
    for (label, id) in named.chain(unnamed) {
        let mut sums = Sums::default();
        tallies.counters.iter().for_each(|counters| counters.add_to(id, &mut sums));
        zones.push((label, sums));
    }
    zones
}

/// Stale responses by the zone's label.
pub(super) fn stale_by_zone(zones: &[(String, Sums)]) -> Vec<(String, u64)> {
    let all = 0..RCODE_LABELS.len();
    let stale = |sums| responses(sums, all.clone(), &[Origin::Stale]);
    zones.iter().map(|(zone, sums)| (zone.clone(), stale(sums))).collect()
}

/// The responses of some rcode slots and origins.
fn responses(sums: &Sums, rcodes: std::ops::Range<usize>, origins: &[Origin]) -> u64 {
    let of_rcode = |rcode| origins.iter().map(move |origin| sums.responses(rcode, *origin));
    rcodes.flat_map(of_rcode).sum()
}

/// One scrape of a set of metrics.
#[derive(Debug)]
struct Scrape {
    metrics: Metrics,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let zones = sum_zones(&self.metrics);
        let upstreams: Vec<_> = locked(&self.metrics.upstreams).clone().into_iter().collect();
        let mut families = Families(encoder);
        self.process(&mut families)?;
        queries(&zones, &mut families)?;
        query_histograms(&zones, &mut families)?;
        self.cache(&zones, &mut families)?;
        proxies(&upstreams, &mut families)?;
        self.plain(&mut families)?;
        self.metrics.watch.write(&mut families)?;
        self.metrics.zone.write(&mut families)?;
        forward::write(&self.metrics, &stale_by_zone(&zones), &mut families)?;
        forward::write_upstreams(&upstreams, &mut families)
    }
}

impl Scrape {
    /// What describes the process: build, panics, configuration.
    fn process(&self, families: &mut Families<'_>) -> fmt::Result {
        let revision = option_env!("NODENS_REVISION").unwrap_or("");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("revision", revision)];
        families.gauges("coredns_build_info", [(build.to_vec(), 1)])?;
        let checksum = self.metrics.life.checksum.load(Ordering::Relaxed);
        let checksum_text = format!("{checksum:016x}");
        let labels = vec![("hash", "fnv1a64"), ("value", checksum_text.as_str())];
        let known = (checksum != 0).then_some((labels, 1));
        families.gauges("coredns_reload_version_info", known)
    }

    /// The cache under CoreDNS's names.
    fn cache(&self, zones: &[(String, Sums)], families: &mut Families<'_>) -> fmt::Result {
        let cache = &self.metrics.cache;
        let of_all = |rcodes: std::ops::Range<usize>, origins: &[Origin]| -> u64 {
            zones.iter().map(|(_, sums)| responses(sums, rcodes.clone(), origins)).sum()
        };
        let from_cache = [Origin::Hit, Origin::Stale];
        let hits = of_all(0..RCODE_LABELS.len(), &from_cache);
        let denials = of_all(NXDOMAIN..NXDOMAIN + 1, &from_cache);
        let stale = of_all(0..RCODE_LABELS.len(), &[Origin::Stale]);
        let labels = || vec![SERVER, ("zones", "."), VIEW];
        let typed = |kind| [labels(), vec![("type", kind)]].concat();
        families.gauges("coredns_cache_entries", [(typed("all"), cache.entries.get())])?;
        families.counters(
            "coredns_cache_hits_total",
            [(typed("success"), hits - denials), (typed("denial"), denials)],
        )?;
        let evictions = cache.evictions.get();
        families.counters("coredns_cache_evictions_total", [(typed("all"), evictions)])?;
        for (name, value) in [
            ("coredns_cache_requests_total", hits + cache.misses.get()),
            ("coredns_cache_misses_total", cache.misses.get()),
            ("coredns_cache_prefetch_total", cache.prefetches.get()),
            ("coredns_cache_served_stale_total", stale),
        ] {
            families.counters(name, [(labels(), value)])?;
        }
        Ok(())
    }

    /// Everything without labels.
    fn plain(&self, families: &mut Families<'_>) -> fmt::Result {
        let Metrics { serve, cache, ports, forward, life, intercept, .. } = &self.metrics;
        for (name, counter) in [
            ("coredns_panics_total", &serve.panics),
            ("coredns_forward_max_concurrent_rejects_total", &serve.shed),
            ("coredns_forward_healthcheck_broken_total", &forward.all_down),
            ("coredns_reload_failed_total", &life.reloads_failed),
            ("nodens_queries_refused_total", &serve.refused),
            ("nodens_messages_malformed_total", &serve.malformed),
            ("nodens_queries_shed_total", &serve.shed),
            ("nodens_send_failures_total", &serve.send_failures),
            ("nodens_receive_drops_total", &serve.receive_drops),
            ("nodens_tcp_connections_refused_total", &serve.tcp_refused),
            ("nodens_tcp_accept_failures_total", &serve.tcp_accept_failures),
            ("nodens_cache_coalesced_total", &cache.coalesced),
            ("nodens_cache_flushes_total", &cache.flushes),
            ("nodens_cache_failures_cached_total", &cache.failures_cached),
            ("nodens_ports_unrested_total", &ports.unrested),
            ("nodens_ports_exhausted_total", &ports.exhausted),
            ("nodens_ports_conflicts_total", &ports.conflicts),
            ("nodens_tracks_deleted_total", &ports.tracks_deleted),
            ("nodens_rebind_blocked_total", &forward.rebind_blocked),
            ("nodens_endpoint_changes_total", &forward.endpoint_changes),
            ("nodens_reloads_total", &life.reloads),
            ("nodens_loops_found_total", &life.loops_found),
            ("nodens_intercept_beats_total", &intercept.beats),
            ("nodens_intercept_lapses_total", &intercept.lapses),
            ("nodens_intercept_repairs_total", &intercept.repairs),
            ("nodens_intercept_withdrawals_total", &intercept.withdrawals),
        ] {
            families.counters(name, [(Vec::new(), counter.get())])?;
        }
        for (name, gauge) in [
            ("nodens_queries_in_flight", &serve.in_flight),
            ("nodens_tcp_connections", &serve.tcp_connections),
            ("nodens_cache_bytes", &cache.bytes),
            ("nodens_intercept_claiming", &intercept.claiming),
            ("nodens_intercept_owned", &intercept.owned),
            ("nodens_intercept_queries", &intercept.rewritten),
            ("nodens_intercept_arrived", &intercept.arrived),
        ] {
            families.gauges(name, [(Vec::new(), gauge.get())])?;
        }
        Ok(())
    }
}

/// The counters of queries and responses by zone.
fn queries(zones: &[(String, Sums)], families: &mut Families<'_>) -> fmt::Result {
    let (mut requests, mut do_requests, mut by_rcode) = (Vec::new(), Vec::new(), Vec::new());
    for (zone, sums) in zones {
        let labels = vec![SERVER, ("zone", zone.as_str()), VIEW];
        do_requests.push((labels.clone(), sums.do_requests()));
        for (arrival, proto, family) in ARRIVALS {
            for (slot, qtype) in TYPE_LABELS.into_iter().enumerate() {
                let more = vec![("proto", proto), ("family", family), ("type", qtype)];
                let count = sums.requests(arrival, slot);
                requests.push(([labels.clone(), more].concat(), count));
            }
        }
        for (plugin, origins) in PLUGINS {
            for (slot, rcode) in RCODE_LABELS.into_iter().enumerate() {
                let more = vec![("rcode", rcode), ("plugin", plugin)];
                let count = responses(sums, slot..slot + 1, origins);
                by_rcode.push(([labels.clone(), more].concat(), count));
            }
        }
    }
    // As CoreDNS does: a combination that never occurred has no line.
    for (name, mut samples) in [
        ("coredns_dns_requests_total", requests),
        ("coredns_dns_do_requests_total", do_requests),
        ("coredns_dns_responses_total", by_rcode),
    ] {
        samples.retain(|(_, count)| *count > 0);
        families.counters(name, samples)?;
    }
    Ok(())
}

/// The histograms of queries and responses by zone.
fn query_histograms(zones: &[(String, Sums)], families: &mut Families<'_>) -> fmt::Result {
    let mut durations = Vec::new();
    let mut query_sizes = Vec::new();
    let mut response_sizes = Vec::new();
    for (zone, sums) in zones {
        let labels = vec![SERVER, ("zone", zone.as_str()), VIEW];
        let with = |key, value| [labels.clone(), vec![(key, value)]].concat();
        for (slot, qtype) in TYPE_LABELS.into_iter().enumerate() {
            durations.push((with("type", qtype), sums.durations(slot)));
        }
        for (slot, proto) in PROTO_LABELS.into_iter().enumerate() {
            query_sizes.push((with("proto", proto), sums.query_sizes(slot)));
            response_sizes.push((with("proto", proto), sums.response_sizes(slot)));
        }
    }
    families.histograms("coredns_dns_request_duration_seconds", SECONDS, durations)?;
    families.histograms("coredns_dns_request_size_bytes", BYTES, query_sizes)?;
    families.histograms("coredns_dns_response_size_bytes", BYTES, response_sizes)
}

/// Picks one counter of an upstream.
type CounterOf = fn(&UpstreamMetrics) -> &Counter;

/// The upstreams under CoreDNS's names.
fn proxies(upstreams: &[(String, UpstreamMetrics)], families: &mut Families<'_>) -> fmt::Result {
    let labels = |to| vec![("proxy_name", "forward"), ("to", to)];
    let mut rtts = Vec::new();
    for (to, upstream) in upstreams {
        for (rcode, row) in RCODE_LABELS.into_iter().zip(&upstream.rtts.0) {
            let row: Vec<u64> = row.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
            rtts.push(([labels(to.as_str()), vec![("rcode", rcode)]].concat(), row));
        }
    }
    let rows = rtts.iter().map(|(labels, row)| (labels.clone(), row.as_slice()));
    families.histograms("coredns_proxy_request_duration_seconds", SECONDS, rows)?;
    let failures =
        upstreams.iter().map(|(to, upstream)| (labels(to), upstream.probe_failures.get()));
    families.counters("coredns_proxy_healthcheck_failures_total", failures)?;
    let connections = |count: CounterOf| {
        upstreams.iter().map(move |(to, upstream)| {
            ([labels(to), vec![("proto", proto_of(to))]].concat(), count(upstream).get())
        })
    };
    let reused = connections(|upstream| &upstream.reused);
    families.counters("coredns_proxy_conn_cache_hits_total", reused)?;
    let opened = connections(|upstream| &upstream.opened);
    families.counters("coredns_proxy_conn_cache_misses_total", opened)
}

/// CoreDNS's `proto` label for an upstream in configuration form.
fn proto_of(form: &str) -> &'static str {
    match form.split_once("://") {
        Some(("tcp", _)) => "tcp",
        Some(("tls", _)) => "tcp-tls",
        Some(("https", _)) => "https",
        _ => "udp",
    }
}

/// The labels of one sample.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A histogram's upper bounds, and what its sum is divided by to reach the unit of its name.
pub(super) struct Scale {
    bounds: fn() -> Vec<f64>,
    divisor: f64,
}

/// Counted in nanoseconds, shown in seconds.
pub(super) const SECONDS: Scale = Scale { bounds: tally::duration_bounds, divisor: 1e9 };

/// Counted and shown in bytes.
const BYTES: Scale = Scale { bounds: tally::size_bounds, divisor: 1.0 };

/// Writes families that [`TABLE`] describes.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// Writes the head of the family `name` and gives back the encoder of its samples.
    fn head<'s>(&'s mut self, name: &'s str) -> Result<MetricEncoder<'s>, fmt::Error> {
        let row = TABLE.iter().find(|(known, _, _)| *known == name);
        let (_, kind, help) = row.ok_or(fmt::Error)?;
        let (stem, kind) = match *kind {
            // The encoder adds the suffix again.
            "counter" => (name.strip_suffix("_total").ok_or(fmt::Error)?, MetricType::Counter),
            "gauge" => (name, MetricType::Gauge),
            _ => (name, MetricType::Histogram),
        };
        self.0.encode_descriptor(stem, help, None, kind)
    }

    /// Writes a family of counters.
    pub(super) fn counters<'l>(
        &mut self,
        name: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut head = self.head(name)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                head.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
                continue;
            }
            head.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// Writes a family of gauges.
    pub(super) fn gauges<'l>(
        &mut self,
        name: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, i64)>,
    ) -> fmt::Result {
        let mut head = self.head(name)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                head.encode_gauge(&value)?;
                continue;
            }
            head.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Writes a family of histograms; a sample is its buckets, not cumulative, then its sum. Those in
    /// which nothing was counted are left out.
    pub(super) fn histograms<'l, 'v>(
        &mut self,
        name: &str,
        scale: Scale,
        samples: impl IntoIterator<Item = (Labels<'l>, &'v [u64])>,
    ) -> fmt::Result {
        let mut head = self.head(name)?;
        let bounds = (scale.bounds)();
        for (labels, cells) in samples {
            let (sum, buckets) = cells.split_last().ok_or(fmt::Error)?;
            let count = buckets.iter().sum();
            if count == 0 {
                continue;
            }
            let rows: Vec<_> = bounds.iter().copied().zip(buckets.iter().copied()).collect();
            let sum = *sum as f64 / scale.divisor;
            head.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &rows, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;
    use crate::dns::name::Name;
    use crate::dns::{Qtype, Rcode};
    use crate::metrics::Answered;

    /// A query of 40 bytes for A by UDP over IPv4, answered from the cache with 100 bytes.
    const ANSWERED: Answered = Answered {
        arrival: Arrival::Udp4,
        zone: ZoneId(1),
        qtype: Qtype::A,
        dnssec_ok: false,
        rcode: Rcode::NOERROR,
        origin: Origin::Hit,
        query_len: 40,
        response_len: 100,
        duration: Duration::from_micros(3),
    };

    /// The types and the samples of a scrape, by a reader of the OpenMetrics text form that is as strict
    /// as this set needs: a family's lines stand together, under its HELP and TYPE; labels are quoted.
    #[derive(Debug, Default)]
    struct Parsed {
        types: BTreeMap<String, String>,
        samples: BTreeMap<String, f64>,
    }

    impl Parsed {
        fn of(text: &str) -> Self {
            let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
            let mut parsed = Self::default();
            let (mut family, mut helped) = (String::new(), String::new());
            for line in body.lines() {
                if let Some(rest) = line.strip_prefix("# HELP ") {
                    helped = rest.split_once(' ').expect("help text").0.to_owned();
                } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                    let (name, kind) = rest.split_once(' ').expect("type");
                    assert_eq!(name, helped, "TYPE without its HELP");
                    name.clone_into(&mut family);
                    let old = parsed.types.insert(name.to_owned(), kind.to_owned());
                    assert_eq!(old, None, "{name} twice");
                } else {
                    parsed.sample(line, &family);
                }
            }
            parsed
        }

        fn sample(&mut self, line: &str, family: &str) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let suffixes: &[&str] = match self.types[family].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("unknown type {other}"),
            };
            let suffix = name.strip_prefix(family).expect("inside its family");
            assert!(suffixes.contains(&suffix), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let inner = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix("\"}"));
                for label in inner.expect("closed").split("\",") {
                    let (key, value) = label.split_once("=\"").expect("key and value");
                    assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{key}");
                    assert!(!value.replace("\\\\", "").replace("\\\"", "").contains(['"', '\\']));
                }
            }
            let old = self.samples.insert(series.to_owned(), value.parse().expect("a number"));
            assert_eq!(old, None, "{series} twice");
        }

        /// The value of the only series that holds all of `parts`.
        fn one(&self, parts: &[&str]) -> f64 {
            let fits = |series: &str| parts.iter().all(|part| series.contains(part));
            let found: Vec<_> = self.samples.iter().filter(|(series, _)| fits(series)).collect();
            assert_eq!(found.len(), 1, "{parts:?}: {found:?}");
            *found[0].1
        }
    }

    #[test]
    fn every_encoded_family_is_in_the_table_and_the_reverse() {
        let metrics = Metrics::default();
        metrics.life.configured("listen = []");
        let parsed = Parsed::of(&metrics.encode());
        let encoded = parsed.types.iter().map(|(name, kind)| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{suffix}"), kind.clone())
        });
        let table = TABLE.iter().map(|(name, kind, _)| ((*name).to_owned(), (*kind).to_owned()));
        assert_eq!(encoded.collect::<BTreeSet<_>>(), table.collect());
    }

    #[test]
    fn a_scrape_sums_what_all_threads_counted() {
        let metrics = Metrics::new();
        let first = metrics.thread_tally();
        let zone = metrics.zone(&Name::from_text("example.org").expect("name"));
        let second = metrics.tally();
        let hit = Answered { zone, ..ANSWERED };
        std::thread::spawn(move || (0..10).for_each(|_| first.record(&hit)))
            .join()
            .expect("no panic");
        second.record(&Answered { dnssec_ok: true, ..hit });
        second.record(&Answered {
            arrival: Arrival::Tcp6,
            qtype: Qtype(999),
            rcode: Rcode::NXDOMAIN,
            origin: Origin::Forward,
            duration: Duration::from_millis(3),
            response_len: 600,
            ..hit
        });
        metrics.cache.misses.inc();
        let parsed = Parsed::of(&metrics.encode());
        let zone = "zone=\"example.org.\"";
        let expected: &[(&[&str], f64)] = &[
            (&["coredns_dns_requests_total{", "proto=\"udp\",family=\"1\",type=\"A\""], 11.0),
            (&["coredns_dns_requests_total{", "proto=\"tcp\",family=\"2\",type=\"other\""], 1.0),
            (&["coredns_dns_do_requests_total{", zone], 1.0),
            (&["coredns_dns_responses_total{", "rcode=\"NOERROR\",plugin=\"cache\""], 11.0),
            (&["coredns_dns_responses_total{", "rcode=\"NXDOMAIN\",plugin=\"forward\""], 1.0),
            (
                &["coredns_dns_request_duration_seconds_bucket{", "type=\"A\"", "le=\"0.00025\""],
                11.0,
            ),
            (&["coredns_dns_request_duration_seconds_count{", "type=\"A\""], 11.0),
            (
                &["coredns_dns_request_duration_seconds_bucket{", "type=\"other\"", "le=\"0.002\""],
                0.0,
            ),
            (
                &["coredns_dns_request_duration_seconds_bucket{", "type=\"other\"", "le=\"0.004\""],
                1.0,
            ),
            (
                &["coredns_dns_request_duration_seconds_bucket{", "type=\"other\"", "le=\"+Inf\""],
                1.0,
            ),
            (&["coredns_dns_request_size_bytes_sum{", "proto=\"udp\""], 440.0),
            (&["coredns_dns_response_size_bytes_bucket{", "proto=\"tcp\"", "le=\"1023.0\""], 1.0),
            (&["coredns_dns_response_size_bytes_bucket{", "proto=\"tcp\"", "le=\"511.0\""], 0.0),
            (&["coredns_cache_hits_total{", "type=\"success\""], 11.0),
            (&["coredns_cache_hits_total{", "type=\"denial\""], 0.0),
            (&["coredns_cache_requests_total{", ""], 12.0),
        ];
        for (parts, value) in expected {
            assert_eq!(parsed.one(parts), *value, "{parts:?}");
        }
        assert_eq!(metrics.hits(), 11);
    }

    #[test]
    fn the_same_zone_has_one_place_and_the_63rd_shares_other() {
        let metrics = Metrics::default();
        let tally = metrics.tally();
        let name = |n: usize| Name::from_text(&format!("z{n}.example.org")).expect("name");
        let first = metrics.zone(&name(1));
        assert_eq!(metrics.zone(&name(1)), first);
        let places: BTreeSet<u16> = (1..=62).map(|n| metrics.zone(&name(n)).0).collect();
        assert_eq!(places, (1..=62).collect());
        assert_eq!(
            (metrics.zone(&name(63)), metrics.zone(&name(64))),
            (ZoneId::OTHER, ZoneId::OTHER)
        );
        assert_eq!(metrics.zone(&name(62)), ZoneId(62), "still known");
        for zone in [ZoneId::OTHER, ZoneId(700), ZoneId::NONE, ZoneId(62)] {
            tally.record(&Answered { zone, ..ANSWERED });
        }
        let parsed = Parsed::of(&metrics.encode());
        for (zone, count) in [("other", 2.0), ("dropped", 1.0), ("z62.example.org.", 1.0)] {
            let label = format!("zone=\"{zone}\"");
            assert_eq!(parsed.one(&["coredns_dns_requests_total{", &label]), count);
        }
    }

    #[test]
    fn an_upstream_is_counted_under_its_form_with_its_rcodes() {
        let metrics = Metrics::default();
        let upstream = metrics.upstream("tls://192.0.2.9:853#dns.example");
        upstream.queries.inc();
        upstream.reused.inc_by(3);
        upstream.observe_rtt(Duration::from_millis(2), Rcode::SERVFAIL);
        metrics.upstream("tls://192.0.2.9:853#dns.example").queries.inc();
        metrics.upstream("odd\"\\form").opened.inc();
        let parsed = Parsed::of(&metrics.encode());
        let to = "to=\"tls://192.0.2.9:853#dns.example\"";
        assert_eq!(parsed.one(&["nodens_upstream_queries_total{", to]), 2.0);
        assert_eq!(parsed.one(&["conn_cache_hits_total{", to, "proto=\"tcp-tls\""]), 3.0);
        assert_eq!(parsed.one(&["conn_cache_misses_total{", r#"to="odd\"\\form""#]), 1.0);
        let rtt = "coredns_proxy_request_duration_seconds_sum{proxy_name=\"forward\",";
        assert_eq!(parsed.one(&[rtt, to, "rcode=\"SERVFAIL\""]), 0.002);
    }

    #[test]
    fn upstreams_beyond_the_limit_share_one_set_of_counters() {
        let metrics = Metrics::default();
        (0..1000).for_each(|n| {
            metrics.upstream(&format!("192.0.2.1:{n}")).queries.inc();
        });
        assert!(locked(&metrics.upstreams).len() <= super::super::UPSTREAMS);
        assert!(metrics.upstream("other").queries.get() > 700);
        assert_eq!(metrics.upstream("192.0.2.1:5").queries.get(), 1);
        metrics.keep_upstreams(|form| form == "192.0.2.1:5");
        metrics.upstream("192.0.2.2:5").queries.inc();
        assert_eq!(locked(&metrics.upstreams).len(), 3, "room for others again");
        assert_eq!(metrics.upstream("192.0.2.1:5").queries.get(), 1);
        assert!(metrics.upstream("other").queries.get() > 700);
    }
}
