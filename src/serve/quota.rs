//! Fair shares of what is bounded: queries in flight, TCP connections.
//!
//! A source may hold as much as is still free. One source alone gets half of everything; the busier
//! the others, the less; and a quiet source always finds room, because the greedy one stops first
//! (dynamic thresholds, as in shared-memory switches).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counters of sources; two sources that share one also share their part.
const SLOTS: usize = 4096;

/// A bounded good.
pub struct Shares {
    limit: usize,
    per_source: usize,
    total: AtomicUsize,
    held: Box<[AtomicUsize]>,
    hasher: RandomState,
}

/// One unit of it, given back when dropped.
pub struct Share {
    shares: Arc<Shares>,
    slot: usize,
}

impl Shares {
    /// `limit` units, of which one source never holds more than `per_source`.
    pub fn new(limit: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            per_source,
            total: AtomicUsize::new(0),
            held: (0..SLOTS).map(|_| AtomicUsize::new(0)).collect(),
            hasher: RandomState::new(),
        })
    }

    /// Takes one unit for `source`; `None` when its share is used up.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Share> {
        self.take_of_part(source, 1)
    }

    /// As [`Shares::take`], where a source's share is only the `part`th of what it may have.
    pub fn take_of_part(self: &Arc<Self>, source: IpAddr, part: usize) -> Option<Share> {
        let share = self.take_beyond(source);
        let total = self.total.load(Ordering::Relaxed).saturating_sub(1);
        let held = self.held[share.slot].load(Ordering::Relaxed).saturating_sub(1);
        let free = self.limit.saturating_sub(total);
        // A source that holds nothing needs one free unit only.
        (held * part < free.min(self.per_source)).then_some(share)
    }

    /// Takes one unit although none is left; for one that replaces another which is being given back.
    pub fn take_beyond(self: &Arc<Self>, source: IpAddr) -> Share {
        self.take_slot(self.slot(source))
    }

    /// Takes one unit for the sources of a counter.
    fn take_slot(self: &Arc<Self>, slot: usize) -> Share {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.held[slot].fetch_add(1, Ordering::Relaxed);
        Share { shares: Arc::clone(self), slot }
    }

    /// Tells whether nothing is left for anybody.
    pub fn is_used_up(&self) -> bool {
        self.taken() >= self.limit
    }

    /// Units that are taken.
    pub fn taken(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// The counter of a source, which is one address: a node's pods share one IPv6 /64.
    fn slot(&self, source: IpAddr) -> usize {
        let hash = self.hasher.hash_one(source.to_canonical());
        usize::try_from(hash).unwrap_or(usize::MAX) % SLOTS
    }
}

impl Share {
    /// One unit more for the same source, although none may be left.
    pub fn another(&self) -> Self {
        self.shares.take_slot(self.slot)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.held[self.slot].fetch_sub(1, Ordering::Relaxed);
        self.shares.total.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(shares: &Arc<Shares>, source: &str) -> Vec<Share> {
        let source = source.parse().expect("address");
        std::iter::from_fn(|| shares.take(source)).collect()
    }

    #[test]
    fn a_greedy_source_leaves_room_for_a_quiet_one() {
        let shares = Shares::new(100, usize::MAX);
        let greedy = take_all(&shares, "192.0.2.1");
        assert_eq!(greedy.len(), 50);
        let second = take_all(&shares, "192.0.2.2");
        assert_eq!(second.len(), 25);
        assert!(shares.take("192.0.2.3".parse().expect("address")).is_some());
        drop((greedy, second));
        assert_eq!(shares.taken(), 0);
    }

    #[test]
    fn a_cap_per_source_holds_and_pods_of_one_v6_prefix_are_sources_of_their_own() {
        let shares = Shares::new(1000, 10);
        let held = take_all(&shares, "2001:db8::1");
        assert_eq!(held.len(), 10);
        assert!(shares.take("2001:db8::2".parse().expect("address")).is_some());
        assert!(shares.take("::ffff:192.0.2.1".parse().expect("address")).is_some());
    }
}
