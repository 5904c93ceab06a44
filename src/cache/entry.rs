//! One stored response with its times.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::Source;
use super::epoch::Epoch;
use super::key::Key;
use super::policy::Lifetime;
use crate::dns::response::{Aging, Encoded};
use crate::metrics::{Origin, ZoneId};

/// What moka, the index and the allocator add to an entry beyond what is counted by name, in bytes.
///
/// Measured: 117,097 entries of one A record raised the resident size by 84.6 MB, which is 520 bytes
/// each beyond what is counted: moka's nodes and tables, the index's slots, the allocator's rounding.
/// With it a full 64 MiB cache of such entries had 66 MB in use.
const OVERHEAD: usize = 520;

/// Hits in the last tenth of a lifetime that make a name popular enough to be prefetched.
const POPULAR: u32 = 3;

/// A response as the cache stores it.
#[derive(Debug)]
pub struct Entry {
    encoded: Encoded,
    source: Source,
    stored_at: Instant,
    lifetime: Lifetime,
    /// Hits since the last tenth of the lifetime began; `u32::MAX` once a prefetch is claimed.
    late_hits: AtomicU32,
    /// Read since the store was last told.
    touched: AtomicBool,
    /// Read at all.
    read: AtomicBool,
}

/// How an entry stands at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Within its lifetime.
    Fresh,
    /// Past it, but within the stale time.
    Stale,
    /// Past both.
    Dead,
}

impl Entry {
    /// Stored at `now` for `lifetime`.
    pub fn new(encoded: Encoded, lifetime: Lifetime, source: Source, now: Instant) -> Self {
        let (touched, read) = (AtomicBool::new(false), AtomicBool::new(false));
        Self {
            encoded,
            source,
            stored_at: now,
            lifetime,
            late_hits: AtomicU32::new(0),
            touched,
            read,
        }
    }

    /// The response.
    pub fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// The zone under which it is counted.
    pub fn zone(&self) -> ZoneId {
        self.source.zone
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
        self.source.origin
    }

    /// The epoch of its name when work on it began.
    pub fn epoch(&self) -> Epoch {
        self.source.epoch
    }

    /// How the entry stands at `now`.
    pub fn state(&self, now: Instant) -> State {
        let age = self.age(now);
        if age < self.lifetime.fresh {
            State::Fresh
        } else if age < self.lifetime.fresh.saturating_add(self.lifetime.stale) {
            State::Stale
        } else {
            State::Dead
        }
    }

    /// How long the entry is past its lifetime at `now`; zero while it is fresh.
    pub fn overdue(&self, now: Instant) -> Duration {
        self.age(now).saturating_sub(self.lifetime.fresh)
    }

    /// How the TTLs of the entry are to be written at `now`: local and cluster ones are constant.
    pub fn aging(&self, now: Instant) -> Aging {
        match (self.source.origin, self.state(now)) {
            (Origin::Local | Origin::Cluster, _) => Aging::Fresh,
            (_, State::Fresh) => {
                // Whole seconds, so that a fresh record is never served with TTL 0.
                Aging::Elapsed(u32::try_from(self.age(now).as_secs()).unwrap_or(u32::MAX))
            }
            _ => Aging::Stale,
        }
    }

    /// Counts a hit near the end of the lifetime; true for the one caller that shall prefetch.
    ///
    /// Costs one comparison before the last tenth of the lifetime.
    pub fn claims_prefetch(&self, now: Instant) -> bool {
        let age = self.age(now);
        if self.source.origin != Origin::Forward || age < self.lifetime.fresh.mul_f32(0.9) {
            return false;
        }
        let hits = self.late_hits.fetch_add(1, Ordering::Relaxed);
        hits + 1 == POPULAR
    }

    /// Notes that the entry was read.
    pub fn touch(&self) {
        // Most hits find it noted; a read that two threads share costs less than a write.
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
            self.read.store(true, Ordering::Relaxed);
        }
    }

    /// Tells whether the entry was ever read.
    pub fn was_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }

    /// Tells whether the entry was read since the last call.
    pub fn take_touch(&self) -> bool {
        self.touched.load(Ordering::Relaxed) && self.touched.swap(false, Ordering::Relaxed)
    }

    /// Bytes that the entry costs the budget, its key and the store's overhead included.
    pub fn weight(&self, key: &Key) -> u32 {
        let bytes = size_of::<Self>() + self.encoded.heap_bytes() + key.heap_bytes() + OVERHEAD;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// How long ago it was stored.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored_at)
    }
}
