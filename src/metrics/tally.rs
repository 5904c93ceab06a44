//! The hot path's counters: one flat array per zone, summed over the threads when scraped.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Answered, Arrival, Origin, ZoneId};
use crate::dns::{Qtype, Rcode};

/// Zones told apart, [`ZoneId::NONE`] and [`ZoneId::OTHER`] among them.
pub(super) const ZONES: usize = 64;

/// The types that CoreDNS tells apart.
pub(super) const TYPE_LABELS: [&str; 19] = [
    "A", "AAAA", "MX", "SOA", "CNAME", "PTR", "TXT", "NS", "SRV", "DS", "DNSKEY", "RRSIG", "NSEC",
    "NSEC3", "HTTPS", "IXFR", "AXFR", "ANY", "other",
];

/// The response codes told apart; the last stands for all others.
pub(super) const RCODE_LABELS: [&str; 8] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "other"];

/// The protocols told apart.
pub(super) const PROTO_LABELS: [&str; 2] = ["udp", "tcp"];

/// CoreDNS's duration buckets: 0.25 ms, doubled 15 times, and infinity.
pub(super) const DURATION_BUCKETS: usize = 17;

/// Nanoseconds of the first duration bucket's upper bound.
const FIRST_DURATION: u64 = 250_000;

/// CoreDNS's upper bounds of sizes in bytes, without infinity.
pub(super) const SIZE_BOUNDS: [usize; 14] =
    [0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000];

/// Size buckets, infinity counted.
pub(super) const SIZE_BUCKETS: usize = SIZE_BOUNDS.len() + 1;

/// Where [`super::Origin::Hit`] and its siblings lie in a row of responses.
pub(super) const ORIGINS: usize = 6;

/// The offsets of the tables inside one zone's array. A histogram's sum follows its buckets.
const REQUESTS: usize = 0;
const DO_REQUESTS: usize = REQUESTS + 4 * TYPE_LABELS.len();
const RESPONSES: usize = DO_REQUESTS + 1;
const DURATIONS: usize = RESPONSES + RCODE_LABELS.len() * ORIGINS;
const QUERY_SIZES: usize = DURATIONS + TYPE_LABELS.len() * (DURATION_BUCKETS + 1);
const RESPONSE_SIZES: usize = QUERY_SIZES + 2 * (SIZE_BUCKETS + 1);
const CELLS: usize = RESPONSE_SIZES + 2 * (SIZE_BUCKETS + 1);

/// The counters of one zone in one [`Counters`]: 4 KiB.
type Cells = [AtomicU64; CELLS];

/// One set of counters; zones beyond the first are added when they are named, never while counting.
#[derive(Debug)]
pub(super) struct Counters {
    zones: [OnceLock<Box<Cells>>; ZONES],
    other: Box<Cells>,
}

impl Counters {
    /// Zeroes, with room for the first `zones` places.
    pub(super) fn with_zones(zones: usize) -> Self {
        let counters = Self { zones: [const { OnceLock::new() }; ZONES], other: zeroes() };
        (0..zones).for_each(|zone| counters.make_room(zone));
        counters
    }

    /// Allocates the counters of place `zone`, unless they are there.
    pub(super) fn make_room(&self, zone: usize) {
        if let Some(room) = self.zones.get(zone) {
            room.get_or_init(zeroes);
        }
    }

    /// The counters of `zone`; those of [`ZoneId::OTHER`] for a place that nobody made room for.
    fn cells(&self, zone: ZoneId) -> &Cells {
        self.zones.get(usize::from(zone.0)).and_then(OnceLock::get).unwrap_or(&self.other)
    }

    /// Adds the counters of `zone` to `sums`.
    pub(super) fn add_to(&self, zone: ZoneId, sums: &mut Sums) {
        let own = self.zones.get(usize::from(zone.0)).and_then(OnceLock::get);
        let cells = if zone == ZoneId::OTHER { Some(&self.other) } else { own };
        for (sum, cell) in sums.0.iter_mut().zip(cells.into_iter().flat_map(|cells| cells.iter())) {
            *sum += cell.load(Ordering::Relaxed);
        }
    }

    /// Counts one answered query, each addition by `add`.
    fn count(&self, answered: &Answered, add: impl Fn(&AtomicU64, u64)) {
        let cells = self.cells(answered.zone);
        let (qtype, proto) = (type_slot(answered.qtype), proto_slot(answered.arrival));
        let one = |at: usize| add(&cells[at], 1);
        one(requests_at(answered.arrival, qtype));
        one(responses_at(rcode_slot(answered.rcode), answered.origin));
        if answered.dnssec_ok {
            one(DO_REQUESTS);
        }
        let durations = DURATIONS + qtype * (DURATION_BUCKETS + 1);
        let nanos = u64::try_from(answered.duration.as_nanos()).unwrap_or(u64::MAX);
        one(durations + duration_bucket(answered.duration));
        add(&cells[durations + DURATION_BUCKETS], nanos);
        for (table, len) in
            [(QUERY_SIZES, answered.query_len), (RESPONSE_SIZES, answered.response_len)]
        {
            let sizes = table + proto * (SIZE_BUCKETS + 1);
            one(sizes + size_bucket(len));
            add(&cells[sizes + SIZE_BUCKETS], len as u64);
        }
    }
}

/// One zone's counters, nothing counted.
fn zeroes() -> Box<Cells> {
    Box::new([const { AtomicU64::new(0) }; CELLS])
}

/// Counters that several threads may add to at one time: about 8 locked additions per query.
#[derive(Debug)]
pub struct Tally(pub(super) Arc<Counters>);

impl Tally {
    /// Counts one answered query. Takes no lock and allocates nothing.
    pub fn record(&self, answered: &Answered) {
        self.0.count(answered, |cell, by| {
            cell.fetch_add(by, Ordering::Relaxed);
        });
    }
}

/// Counters that one thread alone adds to, with plain loads and stores: for the UDP threads.
///
/// It can move to another thread but not be shared (it is not `Sync`), so no addition is lost.
#[derive(Debug)]
pub struct ThreadTally(pub(super) Arc<Counters>, pub(super) PhantomData<Cell<()>>);

impl ThreadTally {
    /// Counts one answered query. Takes no lock and allocates nothing.
    pub fn record(&self, answered: &Answered) {
        self.0.count(answered, |cell, by| {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        });
    }
}

/// One zone's counters summed over all tallies.
#[derive(Clone, Debug)]
pub(super) struct Sums([u64; CELLS]);

impl Default for Sums {
    fn default() -> Self {
        Self([0; CELLS])
    }
}

impl Sums {
    /// Queries by arrival and type slot.
    pub(super) fn requests(&self, arrival: Arrival, qtype: usize) -> u64 {
        self.0[requests_at(arrival, qtype)]
    }

    /// Queries with the DO bit.
    pub(super) fn do_requests(&self) -> u64 {
        self.0[DO_REQUESTS]
    }

    /// Responses by rcode slot and origin.
    pub(super) fn responses(&self, rcode: usize, origin: Origin) -> u64 {
        self.0[responses_at(rcode, origin)]
    }

    /// Duration buckets, then the sum in nanoseconds, of a type slot.
    pub(super) fn durations(&self, qtype: usize) -> &[u64] {
        &self.0[DURATIONS + qtype * (DURATION_BUCKETS + 1)..][..=DURATION_BUCKETS]
    }

    /// Query size buckets, then the sum in bytes, of a protocol slot.
    pub(super) fn query_sizes(&self, proto: usize) -> &[u64] {
        &self.0[QUERY_SIZES + proto * (SIZE_BUCKETS + 1)..][..=SIZE_BUCKETS]
    }

    /// Response size buckets, then the sum in bytes, of a protocol slot.
    pub(super) fn response_sizes(&self, proto: usize) -> &[u64] {
        &self.0[RESPONSE_SIZES + proto * (SIZE_BUCKETS + 1)..][..=SIZE_BUCKETS]
    }
}

/// The cell of one arrival and type slot.
fn requests_at(arrival: Arrival, qtype: usize) -> usize {
    REQUESTS + arrival as usize * TYPE_LABELS.len() + qtype
}

/// The cell of one rcode slot and origin.
fn responses_at(rcode: usize, origin: Origin) -> usize {
    RESPONSES + rcode * ORIGINS + origin as usize
}

/// The place in [`TYPE_LABELS`].
fn type_slot(qtype: Qtype) -> usize {
    match qtype.0 {
        1 => 0,
        28 => 1,
        15 => 2,
        6 => 3,
        5 => 4,
        12 => 5,
        16 => 6,
        2 => 7,
        33 => 8,
        43 => 9,
        48 => 10,
        46 => 11,
        47 => 12,
        50 => 13,
        65 => 14,
        251 => 15,
        252 => 16,
        255 => 17,
        _ => 18,
    }
}

/// The place in [`RCODE_LABELS`].
pub(super) fn rcode_slot(rcode: Rcode) -> usize {
    match rcode {
        Rcode::BADVERS => 6,
        Rcode(code @ 0..=5) => usize::from(code),
        Rcode(_) => 7,
    }
}

/// The place in [`PROTO_LABELS`].
fn proto_slot(arrival: Arrival) -> usize {
    match arrival {
        Arrival::Udp4 | Arrival::Udp6 => 0,
        Arrival::Tcp4 | Arrival::Tcp6 => 1,
    }
}

/// The first bucket whose upper bound is not below `duration`.
pub(super) fn duration_bucket(duration: Duration) -> usize {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let doublings = u64::BITS - (nanos.saturating_sub(1) / FIRST_DURATION).leading_zeros();
    (doublings as usize).min(DURATION_BUCKETS - 1)
}

/// Upper bounds of the duration buckets in seconds, infinity last.
pub(super) fn duration_bounds() -> Vec<f64> {
    let finite = (0..DURATION_BUCKETS - 1).map(|n| 0.00025 * f64::from(1_u32 << n));
    finite.chain([f64::INFINITY]).collect()
}

/// The first bucket whose upper bound is not below `len` bytes.
fn size_bucket(len: usize) -> usize {
    SIZE_BOUNDS.partition_point(|bound| *bound < len)
}

/// Upper bounds of the size buckets in bytes, infinity last.
pub(super) fn size_bounds() -> Vec<f64> {
    SIZE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::INFINITY]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_falls_below_it_and_one_above_falls_above() {
        let finite = duration_bounds();
        for (bucket, bound) in finite.iter().take(DURATION_BUCKETS - 1).enumerate() {
            let on = Duration::from_secs_f64(*bound);
            assert_eq!(duration_bucket(on), bucket, "{bound}");
            assert_eq!(duration_bucket(on + Duration::from_nanos(1)), bucket + 1, "{bound}");
        }
        assert_eq!(duration_bucket(Duration::ZERO), 0);
        assert_eq!(duration_bucket(Duration::MAX), DURATION_BUCKETS - 1);
        for (bucket, bound) in SIZE_BOUNDS.into_iter().enumerate() {
            assert_eq!(size_bucket(bound), bucket);
            assert_eq!(size_bucket(bound + 1), bucket + 1);
        }
    }

    #[test]
    fn every_type_that_has_a_label_falls_on_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for code in 0..=u16::MAX {
            let slot = type_slot(Qtype(code));
            if slot != TYPE_LABELS.len() - 1 {
                assert_eq!(TYPE_LABELS[slot], Qtype(code).to_string());
                assert!(seen.insert(slot), "{code} shares a slot");
            }
        }
        assert_eq!(seen.len(), TYPE_LABELS.len() - 1);
        for code in 0..=17 {
            let label = RCODE_LABELS[rcode_slot(Rcode(code))];
            assert!(label == Rcode(code).to_string() || label == "other", "{code}");
        }
    }
}
