//! Gates that must be passed before stub resolvers should ask us. Once passed, a gate stays passed:
//! losing upstreams later does not un-ready. Only the drain does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::shutdown::Shutdown;

/// All gates of the process; cloning shares.
#[derive(Clone, Debug)]
pub struct Readiness {
    closed: Arc<Mutex<Vec<&'static str>>>,
    shutdown: Shutdown,
}

/// One gate, closed until it is passed. Dropping it leaves it closed: whoever fails is not ready.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    closed: Arc<Mutex<Vec<&'static str>>>,
}

/// How often [`Gate::pass_once`] looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Readiness {
    /// No gate yet; not ready once `shutdown` has begun.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { closed: Arc::default(), shutdown }
    }

    /// A new closed gate, `name` for people: `sockets bound`. Make all before the first is passed.
    pub fn gate(&self, name: &'static str) -> Gate {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Gate { name, closed: Arc::clone(&self.closed) }
    }

    /// What is missing, sorted as the gates were made; empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.shutdown.is_begun() {
            missing.push("not draining");
        }
        missing
    }
}

impl Gate {
    /// Opens the gate for good.
    pub fn pass(self) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = closed.iter().position(|name| *name == self.name) {
            closed.remove(at);
        }
        tracing::debug!(gate = self.name, "passed");
    }

    /// Passes as soon as `holds`, at the latest after `patience`.
    ///
    /// # Cancel safety
    /// Dropped before, the gate stays closed.
    pub async fn pass_once(self, holds: impl Fn() -> bool, patience: Duration) {
        let look = async {
            while !holds() {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        if tokio::time::timeout(patience, look).await.is_err() {
            tracing::warn!(gate = self.name, ?patience, "not waited for any longer");
        }
        self.pass();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn ready_means_that_all_gates_were_passed_and_no_drain_has_begun() {
        let shutdown = Shutdown::default();
        let readiness = Readiness::new(shutdown.clone());
        let (sockets, upstream) = (readiness.gate("sockets bound"), readiness.gate("upstream"));
        assert_eq!(readiness.missing(), ["sockets bound", "upstream"]);
        sockets.pass();
        assert_eq!(readiness.missing(), ["upstream"]);
        upstream.pass();
        assert!(readiness.missing().is_empty());
        shutdown.begin();
        assert_eq!(readiness.missing(), ["not draining"]);
    }

    #[test]
    fn a_gate_that_is_dropped_stays_closed() {
        let readiness = Readiness::new(Shutdown::default());
        drop(readiness.gate("zone synced"));
        assert_eq!(readiness.missing(), ["zone synced"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_gate_passes_when_its_condition_holds_or_its_patience_ends() {
        let readiness = Readiness::new(Shutdown::default());
        let answered = Arc::new(AtomicBool::new(false));
        let patience = Duration::from_secs(5);
        let (soon, late) = (readiness.gate("soon"), readiness.gate("late"));
        let seen = Arc::clone(&answered);
        let first = soon.pass_once(move || seen.load(Ordering::Relaxed), patience);
        let first = tokio::spawn(first);
        let second = tokio::spawn(late.pass_once(|| false, patience));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(readiness.missing(), ["soon", "late"]);
        answered.store(true, Ordering::Relaxed);
        first.await.expect("no panic");
        assert_eq!(readiness.missing(), ["late"]);
        tokio::time::sleep(Duration::from_millis(3900)).await;
        assert_eq!(readiness.missing(), ["late"]);
        second.await.expect("no panic");
        assert!(readiness.missing().is_empty());
    }
}
