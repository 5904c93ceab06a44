//! Where a response waits that nobody has asked for twice: in line, and out at its end.
//!
//! Most names of a flood, and many of a quiet day, are asked for once. They pass by here at the price of a
//! queue, and never push out of moka what is asked for again and again. Who was read here, or was here
//! not long ago, goes on to moka.
//!
//! Source: Yang et al., FIFO queues are all you need for cache eviction (SOSP 2023); moka counts in place of
//! its main queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Entry;
use super::key::{Key, Lookup};

/// The part of the cache's bytes that is for entries here.
const SHARE: u64 = 8;

/// Bytes of the cache for each name that is remembered after it has left.
const BYTES_PER_NAME: u64 = 256;

/// An entry under its key, with its weight: who leaves unread is not touched again for that.
pub type Held = (Key, Arc<Entry>, u32);

/// The entries that wait, and traces of those that left unread.
pub struct Probation {
    /// In bytes.
    room: u64,
    line: Mutex<Line>,
    /// Fingerprints of keys, each in the place that its hash says.
    left: Box<[AtomicU16]>,
}

/// Entries in the order in which they came.
#[derive(Default)]
struct Line {
    held: VecDeque<Held>,
    bytes: u64,
}

impl Probation {
    /// An empty one of a cache of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let names = (bytes / BYTES_PER_NAME).clamp(1, 1 << 24).next_power_of_two();
        let left = (0..names).map(|_| AtomicU16::new(0)).collect();
        Self { room: bytes / SHARE, line: Mutex::default(), left }
    }

    /// Bytes of the cache that are for this: entries and traces.
    pub fn share(&self) -> u64 {
        self.room + size_of_val(&*self.left) as u64
    }

    /// Puts an entry at the end of the line.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        let weight = entry.weight(&key);
        let mut line = self.line();
        line.bytes += u64::from(weight);
        line.held.push_back((key, entry, weight));
    }

    /// Takes out the first in the line, for whom there is no room any more.
    pub fn overflow(&self) -> Option<Held> {
        let mut line = self.line();
        if line.bytes <= self.room {
            return None;
        }
        let held = line.held.pop_front()?;
        line.bytes -= u64::from(held.2);
        Some(held)
    }

    /// Remembers a key that left unread.
    pub fn remember(&self, key: &Key) {
        let (place, print) = self.trace(key);
        place.store(print, Ordering::Relaxed);
    }

    /// Tells whether a key left unread not long ago; forgets it.
    pub fn recalls(&self, key: &Key) -> bool {
        let (place, print) = self.trace(key);
        let is_known = place.load(Ordering::Relaxed) == print;
        if is_known {
            place.store(0, Ordering::Relaxed);
        }
        is_known
    }

    /// Lets go of those that do not `stay`.
    pub fn retain(&self, stay: impl Fn(&Key, &Arc<Entry>) -> bool) {
        let mut line = self.line();
        line.held.retain(|(key, entry, _)| stay(key, entry));
        line.bytes = line.held.iter().map(|held| u64::from(held.2)).sum();
    }

    /// Bytes of the entries here.
    pub fn bytes(&self) -> u64 {
        self.line().bytes
    }

    /// Locks the line, which nobody leaves half changed.
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a key is remembered, and as what: never 0, which is nothing.
    fn trace(&self, key: &Key) -> (&AtomicU16, u16) {
        let hash = key.hash_value();
        let [.., high, low] = (hash >> 48).to_be_bytes();
        let place = usize::try_from(hash % self.left.len() as u64).unwrap_or_default();
        (&self.left[place], u16::from_be_bytes([high, low]).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Probation {
        /// Tells whether exactly this entry waits here.
        pub fn holds(&self, entry: &Arc<Entry>) -> bool {
            let line = self.line();
            line.held.iter().any(|(_, held, _)| Arc::ptr_eq(held, entry))
        }
    }
}
