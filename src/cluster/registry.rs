//! Which objects of one kind there are, and which streams hold them.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// A stream's number.
pub type StreamId = u32;

/// An object with those who hold it.
#[derive(Debug)]
struct Held<V> {
    value: V,
    /// The object's resource version, where it is a number.
    version: Option<u64>,
    streams: Vec<StreamId>,
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Registry<K, V> {
    objects: HashMap<K, Held<V>>,
    /// Streams that ever held one of them.
    streams: HashSet<StreamId>,
}

impl<K, V> Default for Registry<K, V> {
    /// Empty.
    fn default() -> Self {
        Self { objects: HashMap::new(), streams: HashSet::new() }
    }
}

/// What became of an object that a stream told of.
#[derive(Debug, PartialEq)]
pub enum Put<V> {
    /// It is as it was.
    Same,
    New,
    /// It was this before.
    Changed(V),
}

impl<K: Clone + Eq + Hash, V: PartialEq> Registry<K, V> {
    /// Takes an object in that `stream` holds.
    ///
    /// A stream that lags behind another does not bring an older version back; alone it may, since
    /// an API server restored from a backup counts anew.
    pub fn put(&mut self, stream: StreamId, key: K, version: Option<u64>, value: V) -> Put<V> {
        self.streams.insert(stream);
        let Some(held) = self.objects.get_mut(&key) else {
            self.objects.insert(key, Held { value, version, streams: vec![stream] });
            return Put::New;
        };
        if !held.streams.contains(&stream) {
            held.streams.push(stream);
        }
        if held.streams.len() > 1 && version < held.version {
            return Put::Same;
        }
        held.version = version;
        if held.value == value {
            return Put::Same;
        }
        Put::Changed(std::mem::replace(&mut held.value, value))
    }

    /// Notes that `stream` does not hold the object any more; gives it back when no stream does.
    pub fn take<Q: Hash + Eq + ?Sized>(&mut self, stream: StreamId, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let held = self.objects.get_mut(key)?;
        held.streams.retain(|held| *held != stream);
        if held.streams.is_empty() { self.objects.remove(key).map(|held| held.value) } else { None }
    }

    /// The keys that `stream` holds and `listed` lacks.
    pub fn missing(&self, stream: StreamId, listed: &HashSet<K>) -> Vec<K> {
        if !self.streams.contains(&stream) {
            return Vec::new();
        }
        let held = self.objects.iter().filter(|(_, held)| held.streams.contains(&stream));
        held.map(|(key, _)| key).filter(|key| !listed.contains(*key)).cloned().collect()
    }

    /// An object.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.objects.get(key).map(|held| &held.value)
    }

    /// A key as it is held here, to be shared.
    pub fn key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        self.objects.get_key_value(key).map(|(key, _)| key)
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.objects.keys()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_gone_when_no_stream_holds_it() {
        let mut registry = Registry::default();
        assert_eq!(registry.put(1, "a", Some(5), "x"), Put::New);
        assert_eq!(registry.put(2, "a", Some(5), "x"), Put::Same);
        assert_eq!(registry.take(1, &"a"), None);
        assert_eq!(registry.take(2, &"a"), Some("x"));
        assert_eq!(registry.take(2, &"a"), None);
    }

    #[test]
    fn a_stream_that_lags_brings_no_older_version_back_and_one_alone_may() {
        let mut registry = Registry::default();
        registry.put(1, "a", Some(5), "old");
        assert_eq!(registry.put(1, "a", Some(6), "new"), Put::Changed("old"));
        assert_eq!(registry.put(2, "a", Some(5), "old"), Put::Same);
        assert_eq!(registry.get(&"a"), Some(&"new"));
        registry.take(2, &"a");
        assert_eq!(registry.put(1, "a", Some(3), "restored"), Put::Changed("new"));
    }

    #[test]
    fn what_a_fresh_list_lacks_is_missing() {
        let mut registry = Registry::default();
        registry.put(1, "a", None, ());
        registry.put(1, "b", None, ());
        registry.put(2, "c", None, ());
        assert_eq!(registry.missing(1, &HashSet::from(["a"])), ["b"]);
        assert_eq!(registry.missing(3, &HashSet::new()), [""; 0]);
    }
}
