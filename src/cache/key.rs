//! The name of a stored response: folded qname, qtype, qclass, and what else shapes an answer.

use std::borrow::Borrow;
use std::sync::Arc;

use crate::dns::query::{Query, QueryView};
use crate::dns::{MAX_NAME_LEN, Qclass, Qtype, wire};

/// Bytes behind the qname: qtype, qclass, flags.
const TAIL: usize = 5;

/// The flag byte's bits.
const DO: u8 = 1;
const CD: u8 = 2;
const FAILURE: u8 = 4;

/// An owned key, as store and index hold it; cloning shares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The folded qname in wire form.
    pub fn qname(&self) -> &[u8] {
        &self.0[..self.0.len() - TAIL]
    }

    /// The key's bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Tells whether a failure is remembered under it.
    pub fn is_failure(&self) -> bool {
        self.0.last().is_some_and(|flags| flags & FAILURE != 0)
    }

    /// Bytes that the key owns on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.0.len()
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A key on the stack, to look up with.
#[derive(Clone)]
pub struct KeyBuffer {
    bytes: [u8; MAX_NAME_LEN + TAIL],
    len: usize,
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
        Self { bytes, len: end + TAIL }
    }

    /// The key under which a failure of the same question is remembered.
    pub fn for_failure(&self) -> Self {
        let mut other = self.clone();
        other.bytes[other.len - 1] |= FAILURE;
        other
    }

    /// The key's bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The folded qname in wire form.
    pub fn qname(&self) -> &[u8] {
        &self.bytes[..self.len - TAIL]
    }

    /// The owned form.
    pub fn to_key(&self) -> Key {
        Key(self.as_slice().into())
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
    fn the_longest_name_fits() {
        let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)];
        let longest = query(&labels.join("."), Qtype::A);
        assert_eq!(KeyBuffer::from_query(&longest).as_slice().len(), 255 + TAIL);
    }
}
