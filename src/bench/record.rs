//! Counts what becomes of lookups, for each server, as they end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Latencies;
use crate::stub::demand::{Done, End};

/// Time slices of a run: enough for a distribution of their medians, and for a curve over time.
pub const SLICES: u32 = 60;
/// A slice is no shorter than this: it needs lookups.
const SHORTEST: Duration = Duration::from_millis(20);
/// From when on a wait is a stall.
pub const STALLS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_millis(2500), Duration::from_secs(5)];

/// What became of all lookups of one server.
#[derive(Clone)]
pub struct Record {
    pub lookups: u64,
    pub partial: u64,
    pub gave_up: u64,
    pub sent: u64,
    pub responses: u64,
    pub retries: u64,
    pub truncated: u64,
    pub rcodes: BTreeMap<u16, u64>,
    /// What applications waited, also those that gave up.
    pub latencies: Latencies,
    /// The same, quicker to read while it goes on.
    pub live: Latencies,
    /// How much of it is the load's own: lookups left so late.
    pub late: Latencies,
    /// How long last responses lay here before the load read them, which is in no latency.
    pub unread: Latencies,
    pub stalls: [u64; 3],
    pub slices: Vec<Slice>,
    start: Instant,
    slice: Duration,
}

/// A part of the run, by the time at which lookups should have left.
#[derive(Clone)]
pub struct Slice {
    pub latencies: Latencies,
    pub lost: u64,
    pub gave_up: u64,
}

impl Record {
    /// Begins to count at `start`: what should have left earlier is warm-up.
    pub fn new(start: Instant, duration: Duration) -> Self {
        Self {
            lookups: 0,
            partial: 0,
            gave_up: 0,
            sent: 0,
            responses: 0,
            retries: 0,
            truncated: 0,
            rcodes: BTreeMap::new(),
            latencies: Latencies::default(),
            live: Latencies::with_digits(2),
            late: Latencies::with_digits(2),
            unread: Latencies::with_digits(2),
            stalls: [0; 3],
            slices: Vec::new(),
            start,
            slice: (duration / SLICES).max(SHORTEST),
        }
    }

    /// The length of a slice.
    pub fn slice(&self) -> Duration {
        self.slice
    }

    /// Takes one lookup in.
    pub fn take(&mut self, done: &Done) {
        let Some(after) = done.intended.checked_duration_since(self.start) else { return };
        let lost = u64::from(done.sent.saturating_sub(done.responses));
        let gave_up = u64::from(done.end == End::GaveUp);
        self.lookups += 1;
        self.partial += u64::from(done.end == End::Partial);
        self.gave_up += gave_up;
        self.sent += u64::from(done.sent);
        self.responses += u64::from(done.responses);
        self.retries += u64::from(done.retries);
        self.truncated += u64::from(done.truncated);
        for rcode in done.rcodes.iter().flatten() {
            *self.rcodes.entry(rcode.0).or_default() += 1;
        }
        self.latencies.record(done.took);
        self.live.record(done.took);
        self.late.record(done.late);
        if let Some(unread) = done.unread {
            self.unread.record(unread);
        }
        let waited = done.took.saturating_sub(done.late);
        for (stalls, least) in self.stalls.iter_mut().zip(STALLS) {
            *stalls += u64::from(waited >= least);
        }
        let index = usize::try_from(after.as_nanos() / self.slice.as_nanos()).unwrap_or(0);
        let slice = self.slice_at(index);
        slice.latencies.record(done.took);
        slice.lost += lost;
        slice.gave_up += gave_up;
    }

    /// The slice `index`, made when it is missing.
    fn slice_at(&mut self, index: usize) -> &mut Slice {
        // Without an end (a count, a closed loop) the last slice holds the rest.
        let index = index.min(usize::try_from(SLICES).unwrap_or(1) * 4 - 1);
        while self.slices.len() <= index {
            let latencies = Latencies::with_digits(2);
            self.slices.push(Slice { latencies, lost: 0, gave_up: 0 });
        }
        self.slices.get_mut(index).expect("it was just made")
    }

    /// Adds what is shown while it goes on.
    pub fn add_live(&mut self, other: &Self) {
        self.lookups += other.lookups;
        self.gave_up += other.gave_up;
        self.sent += other.sent;
        self.responses += other.responses;
        self.live.add(&other.live);
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        self.lookups += other.lookups;
        self.partial += other.partial;
        self.gave_up += other.gave_up;
        self.sent += other.sent;
        self.responses += other.responses;
        self.retries += other.retries;
        self.truncated += other.truncated;
        for (rcode, count) in &other.rcodes {
            *self.rcodes.entry(*rcode).or_default() += count;
        }
        self.latencies.add(&other.latencies);
        self.live.add(&other.live);
        self.late.add(&other.late);
        self.unread.add(&other.unread);
        for (ours, theirs) in self.stalls.iter_mut().zip(other.stalls) {
            *ours += theirs;
        }
        for (index, theirs) in other.slices.iter().enumerate() {
            let ours = self.slice_at(index);
            ours.latencies.add(&theirs.latencies);
            ours.lost += theirs.lost;
            ours.gave_up += theirs.gave_up;
        }
    }
}
