//! Everything that is counted. One table; `tests/house.rs` holds the README's table against it.
//!
//! Names that people's dashboards know come from CoreDNS where the meaning is the same; our own are `nodens_*`.
//! The hot path counts into a [`Tally`] of its own thread; the rest uses shared counters.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::dns::name::Name;
use crate::dns::{Qtype, Rcode};

/// How a query came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    Udp4,
    Udp6,
    Tcp4,
    Tcp6,
}

/// What gave the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Hit,
    Stale,
    Forward,
    Local,
    Cluster,
    /// We ourselves: refusals, shed queries, failures.
    Failure,
}

/// A forward, local or cluster zone's place in the tables of [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneId(pub u16);

/// One answered query, as the front ends report it.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub arrival: Arrival,
    pub zone: ZoneId,
    pub qtype: Qtype,
    pub dnssec_ok: bool,
    pub rcode: Rcode,
    pub origin: Origin,
    pub query_len: usize,
    pub response_len: usize,
    /// From the receive call's return to the response's hand-over to the kernel.
    pub duration: Duration,
}

/// Counters of one thread: added to without locks or allocation, summed when scraped.
#[derive(Debug, Default)]
pub struct Tally {}

impl Tally {
    /// Counts one answered query.
    pub fn record(&self, answered: &Answered) {
        let _ = answered;
    }
}

/// The front ends' counters.
#[derive(Clone, Debug, Default)]
pub struct ServeMetrics {
    /// Queries from sources outside the allowed networks, answered REFUSED.
    pub refused: Counter,
    /// Messages answered FORMERR, NOTIMP or BADVERS, or dropped as no query at all.
    pub malformed: Counter,
    /// Queries answered SERVFAIL because too many were in flight.
    pub shed: Counter,
    /// Responses that the kernel did not take.
    pub send_failures: Counter,
    /// Datagrams that the kernel dropped because a receive buffer of ours was full.
    pub receive_drops: Counter,
    pub in_flight: Gauge,
    pub tcp_connections: Gauge,
    /// Connections closed at once because a limit was reached.
    pub tcp_refused: Counter,
    /// accept() failures (descriptors ran out).
    pub tcp_accept_failures: Counter,
    /// Panics caught in a task that worked on a query.
    pub panics: Counter,
}

/// The cache's counters.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {
    pub hits: Counter,
    pub misses: Counter,
    pub stale: Counter,
    pub prefetches: Counter,
    pub coalesced: Counter,
    pub evictions: Counter,
    pub flushes: Counter,
    pub failures_cached: Counter,
    pub entries: Gauge,
    pub bytes: Gauge,
}

/// Source ports' counters.
#[derive(Clone, Debug, Default)]
pub struct PortMetrics {
    /// Ports taken before their rest was over, because none had rested.
    pub unrested: Counter,
    /// Exchanges that found every port of their class in flight.
    pub exhausted: Counter,
    /// Draws of a port that another program holds.
    pub conflicts: Counter,
}

/// Counters of configuration and life cycle.
#[derive(Clone, Debug, Default)]
pub struct LifeMetrics {
    pub reloads: Counter,
    pub reloads_failed: Counter,
    pub loops_found: Counter,
}

/// All metrics of a process.
#[derive(Debug, Default)]
pub struct Metrics {
    pub serve: ServeMetrics,
    pub cache: CacheMetrics,
    pub ports: PortMetrics,
    pub life: LifeMetrics,
}

/// Counters of one upstream, by its configuration form.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    pub queries: Counter,
    pub responses: Counter,
    pub timeouts: Counter,
    pub retries: Counter,
    pub failures: Counter,
    /// Truncated UDP responses fetched again by TCP.
    pub tcp_fallbacks: Counter,
    /// Messages ignored: another id, question, case, or malformed.
    pub mismatched: Counter,
    pub unreachable: Counter,
    pub in_flight: Gauge,
}

impl UpstreamMetrics {
    /// Records the round-trip time of one accepted response.
    pub fn observe_rtt(&self, rtt: Duration) {
        let _ = rtt;
    }
}

impl Metrics {
    /// A fresh set, nothing counted.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A new [`Tally`] that scrapes will sum.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::new(Tally::default())
    }

    /// The place of `zone`; the same name gives the same place. After 62 names all share one, "other".
    pub fn zone(&self, zone: &Name) -> ZoneId {
        let _ = zone;
        ZoneId(0)
    }

    /// The counters of one upstream; the same form gives the same counters.
    pub fn upstream(&self, form: &str) -> UpstreamMetrics {
        let _ = form;
        UpstreamMetrics::default()
    }

    /// The whole set in Prometheus's text form (OpenMetrics).
    pub fn encode(&self) -> String {
        String::new()
    }
}
