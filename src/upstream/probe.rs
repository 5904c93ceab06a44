//! Whether a query that we send comes back to us: a random name that only we know, and who saw it.
//!
//! A probe asks an upstream for such a name; the front end shows every miss to
//! [`LoopProbe::matches`]. When the name arrives there, that upstream forwards to us.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::Notify;

use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;

/// The label below which probe names stand. No special-use name holds it: those go no further than
/// the next resolver (`invalid.` ends in systemd-resolved), and a loop through it would stay unseen.
const LABEL: &[u8] = b"\x0bnodens-loop";

/// The qtype of probes: nobody else asks for it, and no answer to it matters.
const QTYPE: Qtype = Qtype::HINFO;

/// How long a name is known as ours; late copies of it must not be forwarded again.
const KEPT: Duration = Duration::from_secs(30);

/// The names that were sent as probes.
#[derive(Debug, Default)]
pub struct LoopProbe(Mutex<HashMap<Name, Arc<Sent>>>);

/// One probe name.
#[derive(Debug)]
struct Sent {
    at: Instant,
    seen: AtomicBool,
    arrived: Notify,
}

impl LoopProbe {
    /// Tells whether a query that came in is one of our own probes; if so, its arrival is noted.
    ///
    /// Such a query is answered REFUSED and never forwarded.
    pub fn matches(&self, qname: &Name) -> bool {
        let wire = qname.as_wire();
        let labelled = wire.first().is_some_and(|length| {
            wire.get(1 + usize::from(*length)..).is_some_and(|rest| rest.starts_with(LABEL))
        });
        if !labelled {
            return false;
        }
        let Some(sent) = self.sent().get(qname).cloned() else { return false };
        sent.seen.store(true, Ordering::Release);
        sent.arrived.notify_one();
        true
    }

    /// A new probe below `zone`; `None` where the zone's name leaves no room.
    pub fn probe(&self, zone: &Name) -> Option<Probe> {
        let now = clock::now();
        let label = format!("{:016x}", rand::rng().random::<u64>());
        let wire = [&[16], label.as_bytes(), LABEL, zone.as_wire()].concat();
        let qname = Name::from_wire(&wire)?;
        let sent = Arc::new(Sent { at: now, seen: AtomicBool::new(false), arrived: Notify::new() });
        let mut all = self.sent();
        all.retain(|_, sent| now.saturating_duration_since(sent.at) < KEPT);
        all.insert(qname.clone(), Arc::clone(&sent));
        Some(Probe { query: Query::new(qname, QTYPE), sent })
    }

    /// Locks the names.
    fn sent(&self) -> MutexGuard<'_, HashMap<Name, Arc<Sent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One probe to send.
#[derive(Debug)]
pub struct Probe {
    pub query: Query,
    sent: Arc<Sent>,
}

impl Probe {
    /// Tells whether the query has arrived at our own front end.
    pub fn was_seen(&self) -> bool {
        self.sent.seen.load(Ordering::Acquire)
    }

    /// Completes when the query arrives at our own front end.
    ///
    /// # Cancel safety
    /// An arrival is never lost.
    pub async fn seen(&self) {
        if !self.was_seen() {
            self.sent.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).expect("name")
    }

    #[tokio::test]
    async fn our_own_probe_is_known_by_its_name_and_no_other_name_is() {
        let (probes, others) = (LoopProbe::default(), LoopProbe::default());
        for zone in [".", "cluster.local", "example.org"] {
            let probe = probes.probe(&name(zone)).expect("room");
            assert!(probe.query.qname.is_within(&name(zone)));
            assert!(!others.matches(&probe.query.qname), "another process's probe is forwarded");
            assert!(!probes.matches(&name("0123456789abcdef.nodens-loop.example.org")));
            assert!(!probes.matches(&name("nodens-loop")) && !probes.matches(&Name::root()));
            assert!(!probe.was_seen());
            assert!(probes.matches(&probe.query.qname));
            assert!(probe.was_seen());
            probe.seen().await;
            assert!(probes.matches(&probe.query.qname), "and so are its later copies");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_probes_are_forgotten() {
        let probes = LoopProbe::default();
        let old = probes.probe(&Name::root()).expect("room");
        tokio::time::advance(KEPT).await;
        probes.probe(&Name::root()).expect("room");
        assert!(!probes.matches(&old.query.qname));
    }

    #[test]
    fn a_zone_with_the_longest_name_has_no_room_for_a_probe() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert!(LoopProbe::default().probe(&name(&long)).is_none());
    }
}
