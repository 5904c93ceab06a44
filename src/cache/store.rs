//! Where entries lie: one table that hits read, and two that decide what has to go when the room is full: a
//! line for what was asked for once ([`Probation`]), and moka for the rest.
//!
//! The table holds what these two hold. Hits touch the table alone ([`Index`]); moka is told in bulk what was read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::entry::Entry;
use super::index::{Index, Parting};
use super::key::{ByCarried, Key, KeyBuffer};
use super::probation::{Held, Probation};
use crate::metrics::CacheMetrics;

/// How often [`Store::maintain`] tells moka what has been read.
const TOUCH_EVERY: Duration = Duration::from_secs(1);

/// Every entry, by key.
pub struct Store {
    /// Where entries are found; holds what `probation` and `kept` hold.
    index: Arc<Index>,
    /// What was asked for once.
    probation: Probation,
    /// Decides what stays of the rest.
    kept: Cache<Key, Arc<Entry>, ByCarried>,
    /// Bytes for `kept`.
    room: u64,
    touched_at: Mutex<Instant>,
    metrics: CacheMetrics,
}

impl Store {
    /// An empty one for `bytes`.
    pub fn new(bytes: u64, metrics: &CacheMetrics) -> Self {
        let index = Arc::new(Index::default());
        let (evictions, of_kept) = (metrics.evictions.clone(), Arc::clone(&index));
        let probation = Probation::new(bytes);
        let room = bytes.saturating_sub(probation.share());
        let kept = Cache::builder()
            .max_capacity(room)
            .weigher(|key: &Key, entry: &Arc<Entry>| entry.weight(key))
            .eviction_listener(move |key: Arc<Key>, entry, cause| {
                of_kept.remove(&key, &entry);
                if cause == RemovalCause::Size {
                    evictions.inc();
                }
            })
            .build_with_hasher(ByCarried::default());
        let (touched_at, metrics) = (Mutex::new(crate::clock::now()), metrics.clone());
        Self { index, probation, kept, room, touched_at, metrics }
    }

    /// The entry under a key, which counts as asked for. Allocates nothing.
    pub fn find(&self, key: &KeyBuffer) -> Option<Arc<Entry>> {
        let entry = self.index.find(key)?;
        entry.touch();
        Some(entry)
    }

    /// Puts an entry in, in place of any other under the same key.
    pub fn insert(&self, key: Key, entry: Arc<Entry>) {
        // First the index: moka may turn the entry away at once, and takes it out again then.
        let was_there = self.index.insert(key.clone(), Arc::clone(&entry));
        if was_there || self.probation.recalls(&key) {
            return self.keep(key, entry, 2);
        }
        self.probation.put(key, entry);
        while let Some(held) = self.probation.overflow() {
            self.let_go(held);
        }
    }

    /// Decides on an entry at the end of its probation.
    fn let_go(&self, (key, entry, weight): Held) {
        let has_room = self.kept.weighted_size() + u64::from(weight) <= self.room;
        match self.index.part_with(&key, &entry, has_room) {
            Parting::Unknown => {}
            Parting::Stays => {
                let asked = if entry.was_read() { 2 } else { 1 };
                self.keep(key, entry, asked);
            }
            Parting::Gone => {
                self.probation.remember(&key);
                self.metrics.evictions.inc();
            }
        }
    }

    /// Gives to moka an entry that was asked for so often, as far as moka does not know.
    fn keep(&self, key: Key, entry: Arc<Entry>, asked: u32) {
        // moka lets in what is asked for more often than what would have to go, and counts only its own
        // reads: a full one would turn every new name away, however often it was missed.
        for _ in 0..asked {
            drop(self.kept.get(&key));
        }
        self.kept.insert(key, entry);
    }

    /// Tells whether there is an entry under a key; it does not count as asked for.
    pub fn holds(&self, key: &Key) -> bool {
        self.index.find(key).is_some()
    }

    /// Takes an entry out.
    pub fn remove(&self, key: &Key) {
        self.index.take(key);
        self.kept.invalidate(key);
    }

    /// Takes entries out, and looks at all that wait in line for those that nothing finds any more.
    pub fn remove_all(&self, keys: &[Key]) {
        keys.iter().for_each(|key| self.remove(key));
        self.probation.retain(|key, entry| self.index.holds(key, entry));
    }

    /// The keys for which `holds`, each looked at by itself.
    pub fn keys(&self, holds: impl Fn(&Key) -> bool) -> Vec<Key> {
        self.index.keys(holds)
    }

    /// Applies pending inserts and evictions, and tells moka what was read.
    pub fn maintain(&self, now: Instant) {
        let mut touched_at = self.touched_at.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(*touched_at) >= TOUCH_EVERY {
            *touched_at = now;
            self.index.touched(|key| drop(self.kept.get(key)));
        }
        drop(touched_at);
        self.kept.run_pending_tasks();
    }

    /// How many entries there are, and their bytes as of the last [`Store::maintain`]; replaced ones that still wait in
    /// line count among the bytes.
    pub fn fill(&self) -> (u64, u64) {
        (self.index.len() as u64, self.kept.weighted_size() + self.probation.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Store {
        /// Panics unless all parts hold the same entries, over 100 of them and at most `most` bytes.
        pub fn assert_parts_agree(&self, most: u64) {
            (0..10).for_each(|_| self.kept.run_pending_tasks());
            let mut weight = 0;
            let keys = self.keys(|_| true);
            for key in &keys {
                let found = self.index.find(key).expect("nobody takes it out");
                weight += u64::from(found.weight(key));
                let is_kept = self.kept.get(key).is_some_and(|held| Arc::ptr_eq(&found, &held));
                assert!(is_kept || self.probation.holds(&found), "found and held nowhere");
            }
            assert!(keys.len() as u64 == self.fill().0 && keys.len() > 100);
            assert!(weight <= most, "{weight} bytes");
        }
    }
}
