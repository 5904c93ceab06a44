//! Where misses wait while too many are being resolved: a stub resolver has seconds, and a busy moment is
//! over sooner.
//!
//! What waits costs its message and little more; what is resolved costs kilobytes. In each look every source's
//! first gets what its share allows, so that a greedy source keeps nobody else waiting.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::quota::Shares;
use super::slots::Slots;
use super::udp::{Job, Miss};
use crate::clock;

/// Misses that wait, at most, for each serve thread: up to a kilobyte each.
const PLACES: usize = 4096;

/// The longest query that may wait, in bytes: what is larger is hardly a stub resolver's.
const MAX_QUERY: usize = 512;

/// How long a query may wait: then something is left of a stub resolver's patience to resolve it.
const WAIT: Duration = Duration::from_secs(4);

/// When a response of any kind goes to who had to wait, from the query's arrival on: later its stub resolver has
/// asked again.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Between two looks whether there are shares again.
const LOOK: Duration = Duration::from_millis(2);

/// The waiting room of one serve thread.
pub struct Room {
    door: UnboundedSender<Miss>,
    waiting: Arc<AtomicUsize>,
}

/// Who lets in those that wait.
struct Usher {
    shares: Arc<Shares>,
    slots: Arc<Slots<Job>>,
    waiting: Arc<AtomicUsize>,
    /// In the order of arrival.
    queue: VecDeque<Miss>,
}

impl Room {
    /// An empty one, whose misses `worker` lets in as soon as there are shares.
    pub fn open(worker: &Handle, shares: &Arc<Shares>, slots: &Arc<Slots<Job>>) -> Self {
        let ((door, arriving), waiting) = (mpsc::unbounded_channel(), Arc::default());
        let usher = Usher {
            shares: Arc::clone(shares),
            slots: Arc::clone(slots),
            waiting: Arc::clone(&waiting),
            queue: VecDeque::new(),
        };
        worker.spawn(usher.let_in(arriving));
        Self { door, waiting }
    }

    /// The part of its share that a source may use which comes past the room: those that wait come first.
    pub fn part(&self) -> usize {
        if self.waiting.load(Ordering::Relaxed) == 0 { 1 } else { 2 }
    }

    /// Tells whether there is a place for a query of so many bytes.
    pub fn admits(&self, query_len: usize) -> bool {
        query_len <= MAX_QUERY && self.waiting.load(Ordering::Relaxed) < PLACES
    }

    /// Lets a miss wait; it needs a place.
    pub fn put(&self, miss: Miss) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // It fails only when the worker has ended.
        let _ = self.door.send(miss);
    }
}

impl Usher {
    /// Lets in who waits, and sends away who has waited too long.
    async fn let_in(mut self, mut arriving: UnboundedReceiver<Miss>) {
        while let Some(miss) = arriving.recv().await {
            self.queue.push_back(miss);
            while !self.queue.is_empty() {
                while let Ok(miss) = arriving.try_recv() {
                    self.queue.push_back(miss);
                }
                self.shed_until(clock::now());
                self.give_shares();
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Sends away who has waited too long at `now`.
    fn shed_until(&mut self, now: Instant) {
        while self.queue.front().is_some_and(|miss| now >= miss.received + WAIT) {
            let Some(miss) = self.queue.pop_front() else { return };
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let share = self.shares.take_beyond(miss.source().ip());
            miss.shed(share);
        }
    }

    /// Looks once at everybody, in order; a source that has no share left is not tried again.
    fn give_shares(&mut self) {
        if self.shares.is_used_up() {
            return;
        }
        let mut without = HashSet::new();
        for _ in 0..self.queue.len() {
            let Some(mut miss) = self.queue.pop_front() else { return };
            let source = miss.source().ip();
            match (!without.contains(&source)).then(|| self.shares.take(source)).flatten() {
                Some(share) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    miss.deadline = Some(miss.received + PATIENCE);
                    self.slots.give((miss, share), Miss::resolve);
                }
                None => {
                    without.insert(source);
                    self.queue.push_back(miss);
                }
            }
        }
    }
}
