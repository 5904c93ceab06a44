//! Epochs by name: a bump makes every older answer to a name unservable, stored or still in flight.
//!
//! A fixed table indexed by a keyed hash of the folded name. Two names may share a slot; then a
//! change of one drops the other's answers too, which costs an exchange and never a wrong answer.

use std::sync::atomic::{AtomicU32, Ordering};

use super::entry::Entry;
use super::key::hash_name;

/// Slots: 16,384 numbers of 4 bytes. A change then drops one in 16,384 of the unrelated names.
const SLOTS: usize = 1 << 14;

/// What a name's slot read when work on an answer began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    slot: u32,
    count: u32,
    /// Flushes of whole trees that had begun.
    flushes: u32,
}

/// The table.
pub struct Epochs {
    counts: Box<[AtomicU32]>,
    flushes: AtomicU32,
}

impl Default for Epochs {
    /// All names at their first epoch.
    fn default() -> Self {
        let counts = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { counts, flushes: AtomicU32::new(0) }
    }
}

impl Epochs {
    /// The epoch of a folded wire name now.
    pub fn of(&self, qname: &[u8]) -> Epoch {
        self.at(hash_name(qname))
    }

    /// The epoch now of the name whose keyed hash this is.
    pub fn at(&self, name_hash: u64) -> Epoch {
        let slot = slot(name_hash);
        let count = self.counts[slot].load(Ordering::Acquire);
        let flushes = self.flushes.load(Ordering::Acquire);
        Epoch { slot: u32::try_from(slot).expect("the table is small"), count, flushes }
    }

    /// Notes that a tree of names is about to be flushed, whose names in flight nobody knows.
    pub fn begin_flush(&self) {
        self.flushes.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells whether a tree, perhaps this name's, was flushed since `epoch`.
    pub fn is_overtaken(&self, epoch: Epoch) -> bool {
        self.flushes.load(Ordering::Acquire) != epoch.flushes
    }

    /// Begins a new epoch for a folded wire name.
    pub fn bump(&self, qname: &[u8]) {
        self.counts[slot(hash_name(qname))].fetch_add(1, Ordering::AcqRel);
    }

    /// Tells whether the entry's name is still in the epoch in which work on it began.
    pub fn is_current(&self, entry: &Entry) -> bool {
        let Epoch { slot, count, .. } = entry.epoch();
        self.counts[slot as usize].load(Ordering::Acquire) == count
    }
}

/// The slot of the name whose keyed hash this is.
fn slot(name_hash: u64) -> usize {
    usize::try_from(name_hash % SLOTS as u64).expect("the table is small")
}
