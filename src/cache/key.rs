//! The name of a stored response: folded qname, qtype, qclass, and what else shapes an answer.
//!
//! A key is hashed once, with a secret, when it is read off a query; every table takes that hash.

use std::borrow::Borrow;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use crate::dns::query::{Query, QueryView};
use crate::dns::{MAX_NAME_LEN, Qclass, Qtype, wire};

/// Bytes behind the qname: qtype, qclass, flags.
const TAIL: usize = 5;

/// The flag byte's bits.
const DO: u8 = 1;
const CD: u8 = 2;
const FAILURE: u8 = 4;

/// What makes hashes unforeseeable, so that nobody can crowd names into one place of a table.
static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The keyed hash of a folded qname in wire form.
pub fn hash_name(qname: &[u8]) -> u64 {
    let mut hasher = SECRET.build_hasher();
    hasher.write(qname);
    hasher.finish()
}

/// What a table looks keys up by: the two forms of a key.
pub trait Lookup {
    /// The key's bytes.
    fn as_slice(&self) -> &[u8];

    /// The keyed hash of [`Lookup::qname`].
    fn name_hash(&self) -> u64;

    /// The owned form.
    fn to_key(&self) -> Key;

    /// The folded qname in wire form.
    fn qname(&self) -> &[u8] {
        let bytes = self.as_slice();
        &bytes[..bytes.len() - TAIL]
    }

    /// The name's hash, spread by what else is asked: one odd factor, so that no two types of one
    /// name share the lower 16 bits, which choose the place in a table.
    fn hash_value(&self) -> u64 {
        let bytes = self.as_slice();
        let tail = bytes.len() - TAIL;
        let qtype = wire::u16_at(bytes, tail).unwrap_or_default();
        let rest = bytes[tail + 2..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) << 16;
        self.name_hash() ^ (rest | u64::from(qtype)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hash for dyn Lookup + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash_value());
    }
}

impl PartialEq for dyn Lookup + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for dyn Lookup + '_ {}

/// Takes the hash that a key carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried(u64);

/// Makes a table take its keys' own hashes.
pub type ByCarried = BuildHasherDefault<Carried>;

impl Hasher for Carried {
    fn write(&mut self, bytes: &[u8]) {
        // Keys write one whole number; anything else would still be hashed, if badly.
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// An owned key, as store and index hold it; cloning shares.
#[derive(Clone, Debug)]
pub struct Key {
    bytes: Arc<[u8]>,
    name_hash: u64,
}

impl Key {
    /// Tells whether a failure is remembered under it.
    pub fn is_failure(&self) -> bool {
        self.bytes.last().is_some_and(|flags| flags & FAILURE != 0)
    }

    /// The question's type.
    pub fn qtype(&self) -> Qtype {
        let at = self.bytes.len().saturating_sub(TAIL);
        Qtype(wire::u16_at(&self.bytes, at).unwrap_or_default())
    }

    /// Bytes that the key owns on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl Lookup for Key {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    fn name_hash(&self) -> u64 {
        self.name_hash
    }

    fn to_key(&self) -> Key {
        self.clone()
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash_value());
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl<'a> Borrow<dyn Lookup + 'a> for Key {
    fn borrow(&self) -> &(dyn Lookup + 'a) {
        self
    }
}

/// A key on the stack, to look up with.
#[derive(Clone)]
pub struct KeyBuffer {
    bytes: [u8; MAX_NAME_LEN + TAIL],
    len: usize,
    name_hash: u64,
}

impl KeyBuffer {
    /// The key of a query as it lies in the receive buffer. Allocates nothing.
    pub fn from_view(view: &QueryView<'_>) -> Self {
        let flags = (view.dnssec_ok(), view.checking_disabled());
        Self::from_parts(view.qname(), view.qtype(), view.qclass(), flags)
    }

    /// The key of an owned query.
    pub fn from_query(query: &Query) -> Self {
        let flags = (query.dnssec_ok, query.checking_disabled);
        Self::from_parts(query.qname.as_wire(), query.qtype, query.qclass, flags)
    }

    /// Folds `qname` (at most 255 bytes) and appends the rest; `flags` are DO and CD.
    fn from_parts(qname: &[u8], qtype: Qtype, qclass: Qclass, flags: (bool, bool)) -> Self {
        let mut bytes = [0; MAX_NAME_LEN + TAIL];
        let end = qname.len();
        bytes[..end].copy_from_slice(qname);
        wire::fold(&mut bytes[..end]);
        wire::put_u16(&mut bytes, end, qtype.0);
        wire::put_u16(&mut bytes, end + 2, qclass.0);
        bytes[end + 4] = if flags.0 { DO } else { 0 } | if flags.1 { CD } else { 0 };
        let name_hash = hash_name(&bytes[..end]);
        Self { bytes, len: end + TAIL, name_hash }
    }

    /// The key under which a failure of the same question is remembered.
    pub fn for_failure(&self) -> Self {
        let mut other = self.clone();
        other.bytes[other.len - 1] |= FAILURE;
        other
    }
}

impl Lookup for KeyBuffer {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn name_hash(&self) -> u64 {
        self.name_hash
    }

    fn to_key(&self) -> Key {
        Key { bytes: self.as_slice().into(), name_hash: self.name_hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::name::Name;

    fn query(name: &str, qtype: Qtype) -> Query {
        Query::new(Name::from_text(name).expect("name"), qtype)
    }

    #[test]
    fn case_does_not_matter_and_everything_else_does() {
        let base = query("example.org", Qtype::A);
        let key = |query: &Query| KeyBuffer::from_query(query).as_slice().to_vec();
        assert_eq!(key(&base), key(&query("EXAMPLE.org", Qtype::A)));
        let wire = base.to_wire(9, b"\x07eXAMPLe\x03ORG\0", true);
        let view = QueryView::parse(&wire).expect("well-formed");
        assert_eq!(KeyBuffer::from_view(&view).as_slice(), key(&base));
        let others = [
            query("example.net", Qtype::A),
            query("example.org", Qtype::AAAA),
            Query { qclass: Qclass::CH, ..base.clone() },
            Query { dnssec_ok: true, ..base.clone() },
            Query { checking_disabled: true, ..base.clone() },
        ];
        for other in &others {
            assert_ne!(key(&base), key(other), "{other:?}");
        }
        let failure = KeyBuffer::from_query(&base).for_failure();
        assert_ne!(failure.as_slice(), key(&base));
        assert_eq!(failure.qname(), base.qname.as_wire());
    }

    #[test]
    fn equal_keys_have_equal_hashes_and_all_types_of_a_name_different_ones() {
        let asked = query("example.org", Qtype::A);
        let buffer = KeyBuffer::from_query(&asked);
        assert_eq!(buffer.hash_value(), buffer.to_key().hash_value());
        assert_eq!(buffer.name_hash(), hash_name(asked.qname.as_wire()));
        let low = |qtype| {
            let asked = Query { qtype: Qtype(qtype), ..asked.clone() };
            KeyBuffer::from_query(&asked).hash_value() & 0xffff
        };
        let places: std::collections::HashSet<u64> = (0..=u16::MAX).map(low).collect();
        assert_eq!(places.len(), 1 << 16);
        let table =
            std::collections::HashMap::<Key, (), ByCarried>::from_iter([(buffer.to_key(), ())]);
        assert!(table.contains_key(&buffer as &dyn Lookup));
    }

    #[test]
    fn the_longest_name_fits() {
        let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)];
        let longest = query(&labels.join("."), Qtype::A);
        assert_eq!(KeyBuffer::from_query(&longest).as_slice().len(), 255 + TAIL);
    }
}
