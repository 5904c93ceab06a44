//! Open-loop load: queries leave when they should, whatever has become of those before.
//!
//! Threads aim and fire; one runtime waits for all responses and hands each outcome on.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc as relay;
use tokio::task::JoinSet;

use super::pair::{Fired, Outcome, Patience};
use crate::clock;
use crate::dns::Rcode;

/// A thread spins instead of sleeping for the last of the wait: the kernel wakes no sleeper on time.
const SPIN: Duration = Duration::from_micros(150);

/// Waits for the responses to what was fired.
pub struct Collector {
    fired: relay::UnboundedSender<Fired>,
    thread: JoinHandle<()>,
}

/// Where firing threads put what they fired.
#[derive(Clone)]
pub struct Basket(relay::UnboundedSender<Fired>);

impl Basket {
    /// Leaves it to the collector.
    pub fn put(&self, fired: Fired) {
        // The collector outlives all baskets: it ends when the last one is gone.
        let _ = self.0.send(fired);
    }
}

impl Collector {
    /// Starts the waiting thread; outcomes go to `outcomes` as they come.
    ///
    /// # Errors
    /// When there is no runtime.
    pub fn start(patience: Patience, outcomes: mpsc::Sender<Vec<Outcome>>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (fired, mut baskets) = relay::unbounded_channel::<Fired>();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let mut waiting = JoinSet::new();
                while let Some(fired) = baskets.recv().await {
                    waiting.spawn(hand_on(fired, patience, outcomes.clone()));
                    // Two leave for each that comes: what is done does not pile up.
                    let _ = waiting.try_join_next();
                    let _ = waiting.try_join_next();
                }
                waiting.join_all().await;
            });
        });
        Ok(Self { fired, thread })
    }

    /// A place for a thread to put what it fired.
    pub fn basket(&self) -> Basket {
        Basket(self.fired.clone())
    }

    /// Waits until every outcome is known. All baskets must be gone.
    pub fn finish(self) {
        drop(self.fired);
        let _ = self.thread.join();
    }
}

/// Waits for the responses to one salvo, and to those behind it while no name exists; hands the outcomes on.
async fn hand_on(first: Fired, patience: Patience, outcomes: mpsc::Sender<Vec<Outcome>>) {
    let mut next = Some(first);
    while let Some(mut fired) = next.take() {
        let mut rest = fired.take_rest();
        let Ok(done) = fired.wait(patience).await else { return };
        let is_denied = done.iter().any(|outcome| outcome.rcode == Some(Rcode::NXDOMAIN));
        // Nobody takes them any more when the scenario has failed.
        let _ = outcomes.send(done);
        if is_denied && !rest.is_empty() {
            let salvo = rest.remove(0);
            next = Some(salvo.fire(clock::now()).then(rest));
        }
    }
}

/// Waits for `when`, to the microsecond as far as the scheduler lets.
pub fn wait_until(when: Instant) {
    let left = when.saturating_duration_since(clock::now());
    if left > SPIN {
        thread::sleep(left - SPIN);
    }
    while clock::now() < when {
        std::hint::spin_loop();
    }
}
