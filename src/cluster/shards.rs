//! A map that is cheap to copy and to change a little: an immutable snapshot holds one.
//!
//! Copies share all parts; a change copies only the part that it is in, and only if a copy shares it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Parts. With 50,000 entries one holds 200: a change copies those and 256 pointers.
const SHARDS: usize = 256;

/// One part.
type Shard<K, V> = HashMap<K, V, RandomState>;

/// The map.
#[derive(Clone, Debug)]
pub struct Shards<K, V> {
    shards: Arc<[Arc<Shard<K, V>>]>,
    hasher: RandomState,
}

impl<K: Clone + Eq + Hash, V: Clone> Default for Shards<K, V> {
    /// Empty.
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(Shard::with_hasher(hasher.clone()));
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), hasher }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    /// The value of a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[self.index(key)].get(key)
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: K, value: V) {
        self.shard_of(&key).insert(key, value);
    }

    /// Takes a key out.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if self.get(key).is_some() {
            self.shard_of(key).remove(key);
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// The part of a key, ours alone.
    fn shard_of<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut Shard<K, V> {
        let index = self.index(key);
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index])
    }

    /// Which part a key is in.
    fn index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The maps within use the low and the topmost bits.
        usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or_default() % SHARDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_in_the_changed_copy_alone_and_copies_one_part() {
        let mut ours = Shards::default();
        (0..1000).for_each(|number| ours.insert(number, number));
        let theirs = ours.clone();
        ours.insert(1000, 7);
        ours.remove(&3);
        ours.remove(&5000);
        assert_eq!((ours.get(&1000), ours.get(&3), ours.len()), (Some(&7), None, 1000));
        assert_eq!((theirs.get(&1000), theirs.get(&3), theirs.len()), (None, Some(&3), 1000));
        let pairs = ours.shards.iter().zip(theirs.shards.iter());
        let copied = pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!((1..=2).contains(&copied), "{copied} parts copied");
    }
}
