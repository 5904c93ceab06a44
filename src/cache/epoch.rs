//! Epochs by name: a bump makes every older answer to a name unservable, stored or still in flight.
//!
//! A fixed table indexed by a keyed hash of the folded name. Two names may share a slot; then a
//! change of one drops the other's answers too, which costs an exchange and never a wrong answer.
//!
//! Within a cluster domain names share their epoch with what they are made of: those below a Service's
//! name (its ports and endpoints, by the thousand) with that, those below `NAMESPACE.pod` with that.

use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

use super::entry::Entry;
use super::key::hash_name;
use crate::dns::name::{Name, suffixes};

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
    domains: ArcSwap<Vec<Name>>,
}

impl Default for Epochs {
    /// All names at their first epoch.
    fn default() -> Self {
        let counts = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { counts, flushes: AtomicU32::new(0), domains: ArcSwap::default() }
    }
}

impl Epochs {
    /// Names within these share epochs from now on. Set them before anything is stored.
    pub fn set_domains(&self, domains: Vec<Name>) {
        self.domains.store(domains.into());
    }

    /// The epoch of a folded wire name now.
    pub fn of(&self, qname: &[u8]) -> Epoch {
        self.at(qname, hash_name(qname))
    }

    /// The epoch now of a folded wire name whose keyed hash this is.
    pub fn at(&self, qname: &[u8], name_hash: u64) -> Epoch {
        let slot = self.slot(qname, name_hash);
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
        self.counts[self.slot(qname, hash_name(qname))].fetch_add(1, Ordering::AcqRel);
    }

    /// Tells whether the entry's name is still in the epoch in which work on it began.
    pub fn is_current(&self, entry: &Entry) -> bool {
        let Epoch { slot, count, .. } = entry.epoch();
        self.counts[slot as usize].load(Ordering::Acquire) == count
    }

    /// The slot of a folded wire name whose keyed hash this is.
    fn slot(&self, qname: &[u8], name_hash: u64) -> usize {
        let owner = owner(qname, &self.domains.load());
        let hash = if owner.len() == qname.len() { name_hash } else { hash_name(owner) };
        usize::try_from(hash % SLOTS as u64).expect("the table is small")
    }
}

/// The name whose epoch is that of a folded wire name: its own, but within a cluster domain that of
/// `SERVICE.NAMESPACE.svc` or `NAMESPACE.pod`.
fn owner<'a>(qname: &'a [u8], domains: &[Name]) -> &'a [u8] {
    if domains.is_empty() {
        return qname;
    }
    // The three suffixes that were seen last, the shortest of them last.
    let mut above = [qname; 3];
    for suffix in suffixes(qname) {
        if domains.iter().any(|domain| domain.as_wire() == suffix) {
            let [three, two, one] = above;
            return match one {
                _ if one.starts_with(b"\x03svc") => three,
                _ if one.starts_with(b"\x03pod") => two,
                _ => qname,
            };
        }
        above = [above[1], above[2], suffix];
    }
    qname
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_a_cluster_domain_share_the_epoch_of_what_they_are_made_of() {
        let name = |text: &str| Name::from_text(text).expect(text);
        let domains = [name("example.org"), name("cluster.example")];
        for (qname, expected) in [
            ("a.b.c.example", "a.b.c.example"),
            ("s.n.svc.cluster.example", "s.n.svc.cluster.example"),
            ("_p._tcp.s.n.svc.cluster.example", "s.n.svc.cluster.example"),
            ("e.s.n.svc.example.org", "s.n.svc.example.org"),
            ("n.svc.cluster.example", "n.svc.cluster.example"),
            ("svc.cluster.example", "svc.cluster.example"),
            ("cluster.example", "cluster.example"),
            ("a.n.pod.cluster.example", "n.pod.cluster.example"),
            ("x.a.n.pod.cluster.example", "n.pod.cluster.example"),
            ("n.pod.cluster.example", "n.pod.cluster.example"),
            ("ns.dns.cluster.example", "ns.dns.cluster.example"),
        ] {
            assert_eq!(owner(name(qname).as_wire(), &domains), name(expected).as_wire(), "{qname}");
        }
        let qname = name("e.s.n.svc.cluster.example");
        assert_eq!(owner(qname.as_wire(), &[]), qname.as_wire());
    }
}
