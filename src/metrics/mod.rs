//! Everything that is counted. One table; `tests/house.rs` holds the README's table against it.
//!
//! Names that people's dashboards know come from CoreDNS where the meaning is the same; our own are `nodens_*`.
//! A UDP thread counts into a [`ThreadTally`] of its own, tasks into a shared [`Tally`]; the rest uses shared
//! counters. Read `table` for the names; `scrape` writes them.

mod forward;
mod namespaces;
mod scrape;
mod table;
mod tally;
mod watch;
mod zone;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

pub use forward::{ForwardMetrics, ForwardZoneMetrics};
pub use namespaces::{ByNamespace, UNKNOWN};
pub use table::TABLE;
pub use tally::{Tally, ThreadTally};
pub use watch::{ApiResource, ApiVerb, WatchMetrics};
pub use zone::ZoneMetrics;

use crate::dns::name::Name;
use crate::dns::{Qtype, Rcode};
use tally::{Counters, DURATION_BUCKETS, RCODE_LABELS, ZONES};

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

/// A forward, local or cluster zone's place in the tables of a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneId(pub u16);

impl ZoneId {
    /// Queries that reached no zone: refused, malformed. Labelled `dropped`, as CoreDNS does.
    pub const NONE: Self = Self(0);
    /// All zones beyond the 62 first. Labelled `other`.
    pub const OTHER: Self = Self(ZONES as u16 - 1);
}

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

/// The cache's counters. Hits and stale responses are not among them: they are the tallies' responses
/// with the origins [`Origin::Hit`] and [`Origin::Stale`], so that no hit pays for a shared counter.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {
    pub misses: Counter,
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
    /// Conntrack entries of our own queries that were deleted behind them.
    pub tracks_deleted: Counter,
}

/// Counters of configuration and life cycle.
#[derive(Clone, Debug, Default)]
pub struct LifeMetrics {
    pub reloads: Counter,
    pub reloads_failed: Counter,
    pub loops_found: Counter,
    /// Checksum of the configuration in use; 0 before there is one.
    checksum: Arc<AtomicU64>,
}

impl LifeMetrics {
    /// Remembers the checksum of the effective configuration, given as text.
    pub fn configured(&self, text: &str) {
        // FNV-1a: told apart is all that is asked, and it needs no crate.
        let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.checksum.store(sum, Ordering::Relaxed);
    }
}

/// Counters of the intercept.
#[derive(Clone, Debug, Default)]
pub struct InterceptMetrics {
    /// 1 while new queries are taken.
    pub claiming: Gauge,
    /// 1 while the kernel ties our table to us.
    pub owned: Gauge,
    pub beats: Counter,
    /// Times that the dead-man switch went off while we lived.
    pub lapses: Counter,
    /// Steps that mended what somebody else had changed.
    pub repairs: Counter,
    /// Times that the table was withdrawn because a firewall ate what it rewrote.
    pub withdrawals: Counter,
    /// UDP queries rewritten, as the kernel counts them.
    pub rewritten: Gauge,
    /// Those of them that passed the firewalls.
    pub arrived: Gauge,
}

/// Counters of one upstream, by its configuration form.
#[derive(Clone, Debug, Default)]
pub struct UpstreamMetrics {
    pub queries: Counter,
    pub responses: Counter,
    pub timeouts: Counter,
    /// Queries sent again to it.
    pub retries: Counter,
    /// Queries sent to it while another one was waited for.
    pub hedges: Counter,
    pub failures: Counter,
    /// Truncated UDP responses fetched again by TCP.
    pub tcp_fallbacks: Counter,
    /// Messages ignored: another id, question, case, or malformed.
    pub mismatched: Counter,
    pub unreachable: Counter,
    /// How many of its form count as down: one, unless the forms of several are the same.
    pub down: Gauge,
    pub in_flight: Gauge,
    /// Probes of a down upstream that got no response.
    pub probe_failures: Counter,
    /// Exchanges over a connection or pooled socket that was there already.
    pub reused: Counter,
    /// Exchanges that had to open a connection or pooled socket.
    pub opened: Counter,
    rtts: Arc<Rtts>,
}

/// Round-trip times of one upstream: per rcode the buckets, then the sum in nanoseconds.
#[derive(Debug, Default)]
struct Rtts([[AtomicU64; DURATION_BUCKETS + 1]; RCODE_LABELS.len()]);

impl UpstreamMetrics {
    /// Records the round-trip time of one accepted response with its response code.
    pub fn observe_rtt(&self, rtt: Duration, rcode: Rcode) {
        let row = &self.rtts.0[tally::rcode_slot(rcode)];
        row[tally::duration_bucket(rtt)].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
        row[DURATION_BUCKETS].fetch_add(nanos, Ordering::Relaxed);
    }
}

/// All metrics of a process.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub serve: ServeMetrics,
    pub cache: CacheMetrics,
    pub ports: PortMetrics,
    pub forward: ForwardMetrics,
    pub life: LifeMetrics,
    pub intercept: InterceptMetrics,
    pub watch: WatchMetrics,
    /// Counters of the cluster zone. (`zone()` gives places in tallies.)
    pub zone: ZoneMetrics,
    tallies: Arc<Mutex<Tallies>>,
    upstreams: Arc<Mutex<BTreeMap<String, UpstreamMetrics>>>,
}

/// The tallies handed out, and the names of the zones that they have room for.
#[derive(Debug, Default)]
struct Tallies {
    /// The zones of places 1, 2, …; at most 62.
    zones: Vec<Name>,
    /// Kept when their thread ends: a counter never falls.
    counters: Vec<Arc<Counters>>,
}

/// Upstreams told apart at one time.
const UPSTREAMS: usize = 256;

/// The form of all others.
const OTHER: &str = "other";

impl Metrics {
    /// A fresh set, nothing counted.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A new [`Tally`] that scrapes will sum, for tasks that may run on several threads.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::new(Tally(self.counters()))
    }

    /// A new [`ThreadTally`] that scrapes will sum, for one thread alone.
    pub fn thread_tally(&self) -> ThreadTally {
        ThreadTally(self.counters(), PhantomData)
    }

    /// A new set of counters with room for all zones known so far.
    fn counters(&self) -> Arc<Counters> {
        let mut tallies = locked(&self.tallies);
        let counters = Arc::new(Counters::with_zones(1 + tallies.zones.len()));
        tallies.counters.push(Arc::clone(&counters));
        counters
    }

    /// The place of `zone`; the same name gives the same place. After 62 names all share one, "other".
    pub fn zone(&self, zone: &Name) -> ZoneId {
        let mut tallies = locked(&self.tallies);
        let known = tallies.zones.iter().position(|known| known == zone);
        let place = 1 + known.unwrap_or(tallies.zones.len());
        if place >= usize::from(ZoneId::OTHER.0) {
            return ZoneId::OTHER;
        }
        if known.is_none() {
            tallies.zones.push(zone.clone());
            tallies.counters.iter().for_each(|counters| counters.make_room(place));
        }
        ZoneId(place as u16)
    }

    /// The counters of one upstream; the same form gives the same counters. Beyond 255 forms at one time all
    /// share one, "other".
    pub fn upstream(&self, form: &str) -> UpstreamMetrics {
        let mut upstreams = locked(&self.upstreams);
        let is_full = upstreams.len() + 1 >= UPSTREAMS && !upstreams.contains_key(form);
        let form = if is_full { OTHER } else { form };
        upstreams.entry(form.to_owned()).or_default().clone()
    }

    /// Forgets the counters of upstreams that nobody asks any more: those whose forms `is_known` does not know.
    pub fn keep_upstreams(&self, is_known: impl Fn(&str) -> bool) {
        locked(&self.upstreams).retain(|form, _| form == OTHER || is_known(form));
    }

    /// The whole set in Prometheus's text form (OpenMetrics).
    pub fn encode(&self) -> String {
        scrape::encode(self)
    }

    /// Responses served from the cache so far, stale ones included.
    pub fn hits(&self) -> u64 {
        scrape::responses_of(self, &[Origin::Hit, Origin::Stale])
    }

    /// Stale responses served so far.
    pub fn stale(&self) -> u64 {
        scrape::responses_of(self, &[Origin::Stale])
    }

    /// Stale responses served so far, by the zone's name.
    pub fn stale_by_zone(&self) -> Vec<(String, u64)> {
        scrape::stale_by_zone(&scrape::sum_zones(self))
    }
}

/// Locks; a panic elsewhere leaves counters as good as they were.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
