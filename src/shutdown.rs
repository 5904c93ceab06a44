//! Drain: one signal that it has begun, and guards for what is still owed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Shared by everything that must stop together; cloning shares.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<State>);

/// What all clones of a [`Shutdown`] share.
#[derive(Debug, Default)]
struct State {
    begun: AtomicBool,
    owed: AtomicUsize,
    /// Wakes those who wait for either field to change.
    changed: Notify,
}

impl Shutdown {
    /// Begins the drain; further calls change nothing.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Tells whether the drain has begun; cheap enough for a thread's loop.
    pub fn is_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Completes when the drain begins.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn begun(&self) {
        self.wait_until(|state| state.begun.load(Ordering::Acquire)).await;
    }

    /// Marks one response (or connection) as owed until the guard is dropped.
    pub fn owe(&self) -> Owed {
        self.0.owed.fetch_add(1, Ordering::AcqRel);
        Owed(Arc::clone(&self.0))
    }

    /// How many guards live.
    pub fn owed(&self) -> usize {
        self.0.owed.load(Ordering::Acquire)
    }

    /// Waits until nothing is owed, at most `deadline`; tells whether that was reached.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let done = self.wait_until(|state| state.owed.load(Ordering::Acquire) == 0);
        tokio::time::timeout(deadline, done).await.is_ok()
    }

    /// Completes when `holds` does; asked again at each change.
    async fn wait_until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if holds(&self.0) {
                return;
            }
            changed.await;
        }
    }
}

/// Something that is owed before we may leave.
#[derive(Debug)]
pub struct Owed(Arc<State>);

impl Drop for Owed {
    fn drop(&mut self) {
        if self.0.owed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_is_owed_and_no_longer_than_its_deadline() {
        let shutdown = Shutdown::default();
        let owed = shutdown.owe();
        shutdown.begin();
        shutdown.begun().await;
        assert!(!shutdown.drained(Duration::from_secs(5)).await, "a response is still owed");
        let waiter = shutdown.clone();
        let drained = tokio::spawn(async move { waiter.drained(Duration::from_secs(5)).await });
        tokio::task::yield_now().await;
        drop(owed);
        assert!(drained.await.expect("no panic"));
    }
}
