//! Where misses wait while too many are being resolved: a stub resolver has seconds, and a busy moment is
//! over sooner.
//!
//! What waits costs its message and little more; what is resolved costs kilobytes. Who holds few shares goes
//! past the room, so that a greedy source keeps nobody else waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::quota::Shares;
use super::slots::Slots;
use super::udp::{Job, Miss};
use crate::clock;

/// Misses that wait, at most, for each serve thread: half a kilobyte each.
const PLACES: usize = 4096;

/// How long a query may take that had to wait, from its arrival on: what comes later finds that the stub
/// resolver has asked again.
const PATIENCE: Duration = Duration::from_millis(4500);

/// How long it may wait, so that something is left of that to resolve it.
const WAIT: Duration = Duration::from_secs(4);

/// Between two looks whether there is a share again.
const LOOK: Duration = Duration::from_millis(1);

/// The waiting room of one serve thread.
pub struct Room(Sender<Miss>);

impl Room {
    /// An empty one, whose misses `worker` lets in as soon as there are shares.
    pub fn open(worker: &Handle, shares: &Arc<Shares>, slots: &Arc<Slots<Job>>) -> Self {
        let (sender, waiting) = mpsc::channel(PLACES);
        worker.spawn(let_in(waiting, Arc::clone(shares), Arc::clone(slots)));
        Self(sender)
    }

    /// Tells whether there is a place.
    pub fn has_place(&self) -> bool {
        self.0.capacity() > 0
    }

    /// Lets a miss wait; it needs a place.
    pub fn put(&self, miss: Miss) {
        // One thread alone fills the room, and has seen the place.
        let _ = self.0.try_send(miss);
    }
}

/// Lets in who waits, first come first served, or sends them away when it has been too long.
async fn let_in(mut waiting: Receiver<Miss>, shares: Arc<Shares>, slots: Arc<Slots<Job>>) {
    while let Some(mut miss) = waiting.recv().await {
        let source = miss.source().ip();
        let leaves_at = miss.received + WAIT;
        let share = loop {
            match shares.take(source) {
                None if clock::now() < leaves_at => tokio::time::sleep(LOOK).await,
                share => break share,
            }
        };
        miss.deadline = Some(miss.received + PATIENCE);
        match share {
            Some(share) => slots.give((miss, share), Miss::resolve),
            None => miss.shed(shares.take_beyond(source)),
        }
    }
}
