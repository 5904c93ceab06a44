//! Where entries lie: found by many at once, written by misses, never more of them than the budget allows.
//!
//! quick_cache decides what has to go (CLOCK-Pro, close to S3-FIFO): a new name gets a small part of the
//! room until it is asked for again, and one that had to go and is asked for soon after gets the large part.
//! A read leaves a mark on the entry and nothing else; there is no work to be caught up on.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::entry::Entry;
use super::key::{ByCarried, Key, KeyBuffer, Lookup};
use crate::metrics::CacheMetrics;

/// Parts with a lock each, so that one that is written stops few readers.
const SHARDS: usize = 16;

/// Bytes of room for each name that had to go and is remembered: of a flood of names each of which is
/// asked for twice few are still known the second time.
const ROOM_PER_MEMORY: u64 = 2048;

/// The part of the room that names have which were asked for again.
const WANTED: f64 = 0.9;

/// Every entry, by key.
pub struct Store(Cache<Key, Arc<Entry>, Weigher, ByCarried, Evictions>);

/// Weighs entries in bytes.
#[derive(Clone)]
struct Weigher;

/// Counts what has to go.
#[derive(Clone)]
struct Evictions(CacheMetrics);

impl Store {
    /// An empty one for `bytes`.
    pub fn new(bytes: u64, metrics: CacheMetrics) -> Self {
        let memories = usize::try_from(bytes / ROOM_PER_MEMORY).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(memories)
            .ghost_allocation(1.0)
            .weight_capacity(bytes)
            .hot_allocation(WANTED)
            .shards(SHARDS)
            .build()
            .expect("both capacities are given");
        Self(Cache::with_options(options, Weigher, ByCarried::default(), Evictions(metrics)))
    }

    /// The entry under a key, which counts as asked for. Allocates nothing.
    pub fn find(&self, key: &KeyBuffer) -> Option<Arc<Entry>> {
        self.0.get(key)
    }

    /// Puts an entry in, in place of any other under the same key.
    pub fn insert(&self, key: Key, entry: Arc<Entry>) {
        self.0.insert(key, entry);
    }

    /// Takes an entry out.
    pub fn remove(&self, key: &Key) {
        self.0.remove(key);
    }

    /// The keys for which `holds`, each looked at by itself.
    pub fn keys(&self, holds: impl Fn(&Key) -> bool) -> Vec<Key> {
        self.0.iter().map(|(key, _)| key).filter(|key| holds(key)).collect()
    }

    /// How many entries there are, and their bytes.
    pub fn fill(&self) -> (u64, u64) {
        (self.0.len() as u64, self.0.weight())
    }
}

impl Weighter<Key, Arc<Entry>> for Weigher {
    fn weight(&self, key: &Key, entry: &Arc<Entry>) -> u64 {
        u64::from(entry.weight(key))
    }
}

impl Lifecycle<Key, Arc<Entry>> for Evictions {
    /// What goes, to be freed after the lock is given back.
    type RequestState = Option<(Key, Arc<Entry>)>;

    fn before_evict(&self, _: &mut Self::RequestState, _: &Key, _: &mut Arc<Entry>) {
        self.0.evictions.inc();
    }

    fn on_evict(&self, gone: &mut Self::RequestState, key: Key, entry: Arc<Entry>) {
        *gone = Some((key, entry));
    }
}

impl Hash for KeyBuffer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash_value());
    }
}

impl Equivalent<Key> for KeyBuffer {
    fn equivalent(&self, key: &Key) -> bool {
        self.as_slice() == key.as_slice()
    }
}
