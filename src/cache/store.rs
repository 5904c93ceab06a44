//! Where entries lie: one table that hits read, and moka, which decides what has to go when the room is full.
//!
//! Both hold the same entries. Hits touch the table alone ([`Index`]); moka is told in bulk what was read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::entry::Entry;
use super::index::Index;
use super::key::{ByCarried, Key, KeyBuffer};
use crate::metrics::CacheMetrics;

/// How often [`Store::maintain`] tells moka what has been read.
const TOUCH_EVERY: Duration = Duration::from_secs(1);

/// Every entry, by key.
pub struct Store {
    /// Where entries are found; holds what `kept` holds.
    index: Arc<Index>,
    /// Decides what stays.
    kept: Cache<Key, Arc<Entry>, ByCarried>,
    touched_at: Mutex<Instant>,
}

impl Store {
    /// An empty one for `bytes`.
    pub fn new(bytes: u64, metrics: &CacheMetrics) -> Self {
        let index = Arc::new(Index::default());
        let (evictions, of_kept) = (metrics.evictions.clone(), Arc::clone(&index));
        let kept = Cache::builder()
            .max_capacity(bytes)
            .weigher(|key: &Key, entry: &Arc<Entry>| entry.weight(key))
            .eviction_listener(move |key: Arc<Key>, entry, cause| {
                of_kept.remove(&key, &entry);
                if cause == RemovalCause::Size {
                    evictions.inc();
                }
            })
            .build_with_hasher(ByCarried::default());
        Self { index, kept, touched_at: Mutex::new(crate::clock::now()) }
    }

    /// The entry under a key, which counts as asked for. Allocates nothing.
    pub fn find(&self, key: &KeyBuffer) -> Option<Arc<Entry>> {
        let entry = self.index.find(key)?;
        entry.touch();
        Some(entry)
    }

    /// Puts an entry in, in place of any other under the same key.
    pub fn insert(&self, key: Key, entry: Arc<Entry>) {
        // moka lets in what is asked for more often than what would have to go, and counts only its own
        // reads: a full one would turn every new name away, however often it was missed.
        drop(self.kept.get(&key));
        // First the index: moka may turn the entry away at once, and takes it out again then.
        self.index.insert(key.clone(), Arc::clone(&entry));
        self.kept.insert(key, entry);
    }

    /// Tells whether there is an entry under a key for which `is_such`; it does not count as asked for.
    pub fn holds(&self, key: &Key, is_such: impl Fn(&Entry) -> bool) -> bool {
        self.index.find(key).is_some_and(|entry| is_such(&entry))
    }

    /// Takes an entry out.
    pub fn remove(&self, key: &Key) {
        self.kept.invalidate(key);
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

    /// How many entries there are, and their bytes, as of the last [`Store::maintain`].
    pub fn fill(&self) -> (u64, u64) {
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Store {
        /// Panics unless both parts hold the same entries, over 100 of them and at most `most` bytes.
        pub fn assert_parts_agree(&self, most: u64) {
            (0..10).for_each(|_| self.kept.run_pending_tasks());
            let mut weight = 0;
            let keys = self.keys(|_| true);
            for key in &keys {
                let (found, held) = (self.index.find(key), self.kept.get(key));
                weight += found.as_ref().map_or(0, |found| u64::from(found.weight(key)));
                assert!(found.zip(held).is_some_and(|(found, held)| Arc::ptr_eq(&found, &held)));
            }
            assert!(keys.len() as u64 <= self.kept.entry_count() && keys.len() > 100);
            assert!(weight <= most, "{weight} bytes");
        }
    }
}
