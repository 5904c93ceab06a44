//! Idle sockets: those of the `pooled` policy, connected, one exchange at a time, rotated; and those
//! of `per-query`, which hold no port while they are here.
//!
//! A kept port must be no easier to guess than one that is drawn for a single query. Each was drawn as those are.
//! Which of the idle ones carries the next query is drawn too, so that one that was seen says nothing about the
//! next. A forger who tries ports finds one no sooner because it stays; one that he has found serves him for 128
//! exchanges or 20 s at most, each of which still has an id of its own. Sockets are connected: the
//! kernel takes datagrams from the upstream's address alone.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::ports::PortClass;
use super::udp::{Spare, Tuple};

/// Exchanges after which a socket is closed, so that a port that was guessed is soon worth nothing.
const MAX_USES: u32 = 128;

/// Age at which a socket is closed: below the 30 s that conntrack keeps a flow without a response,
/// so that no exchange falls on an entry that has just expired.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Idle sockets kept per class and thread; beyond that they give up their ports after use. More than may be busy at
/// one time under full load: each that is not kept costs the next exchange five system calls.
const MAX_IDLE: usize = 256;

/// The same where each holds an entry of the conntrack table: three classes on two threads stay below 100.
const MAX_IDLE_TRACKED: usize = 12;

/// A socket with what its rotation depends on.
#[derive(Debug)]
pub struct Kept {
    pub tuple: Tuple,
    born: Instant,
    uses: u32,
}

impl Kept {
    /// A socket that was just made, for its first exchange.
    pub fn new(tuple: Tuple, now: Instant) -> Self {
        Self { tuple, born: now, uses: 1 }
    }

    /// Tells whether the socket has served its time.
    fn is_worn(&self, now: Instant) -> bool {
        self.uses >= MAX_USES || now.saturating_duration_since(self.born) >= MAX_AGE
    }
}

/// Age at which an idle socket without a port is closed.
const MAX_SPARE_AGE: Duration = Duration::from_secs(20);

/// Idle sockets without a port kept per thread: what a busy moment leaves behind.
const MAX_SPARE: usize = 256;

/// The idle sockets towards one upstream.
#[derive(Debug, Default)]
pub struct Pool {
    kept: [Mutex<Shelves<Kept>>; 3],
    /// With the moment at which each was given back.
    spare: Mutex<Shelves<(Instant, Spare)>>,
}

/// A shelf per thread, since a socket is watched by the runtime that it began on.
#[derive(Debug)]
struct Shelves<T>(Vec<(ThreadId, VecDeque<T>)>);

impl<T> Default for Shelves<T> {
    /// No shelf yet.
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Shelves<T> {
    /// The shelf of the current thread.
    fn own(&mut self) -> &mut VecDeque<T> {
        let thread = std::thread::current().id();
        let place = self.0.iter().position(|(owner, _)| *owner == thread).unwrap_or_else(|| {
            self.0.push((thread, VecDeque::new()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }

    /// Takes out what is not to stay, and forgets threads that have nothing left.
    fn sort_out(&mut self, stays: impl Fn(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for (_, idle) in &mut self.0 {
            for _ in 0..idle.len() {
                match idle.pop_front() {
                    Some(one) if stays(&one) => idle.push_back(one),
                    one => out.extend(one),
                }
            }
        }
        self.0.retain(|(_, idle)| !idle.is_empty());
        out
    }
}

// Sockets are closed by whoever called, after the lock: that costs microseconds, and other threads wait for it.
impl Pool {
    /// Takes any of this thread's idle sockets of `class`; worn ones are closed on the way.
    pub fn take(&self, class: PortClass, now: Instant) -> Option<Kept> {
        loop {
            let mut shelves = self.shelves(class);
            let idle = shelves.own();
            let place = (idle.len() > 1).then(|| rand::rng().random_range(0..idle.len()));
            let mut kept = idle.swap_remove_back(place.unwrap_or(0))?;
            drop(shelves);
            if !kept.is_worn(now) {
                kept.uses += 1;
                return Some(kept);
            }
        }
    }

    /// Gives a socket back after an exchange that had its response, on the thread that took it; the socket
    /// itself where it is not kept. `tracked`: each holds an entry of the conntrack table.
    pub fn put(&self, class: PortClass, kept: Kept, now: Instant, tracked: bool) -> Option<Kept> {
        let room = if tracked { MAX_IDLE_TRACKED } else { MAX_IDLE };
        if kept.is_worn(now) {
            return Some(kept);
        }
        let mut shelves = self.shelves(class);
        let idle = shelves.own();
        if idle.len() >= room {
            return Some(kept);
        }
        idle.push_back(kept);
        None
    }

    /// Takes this thread's socket without a port that idles shortest: the others may be closed soon.
    pub fn take_spare(&self) -> Option<Spare> {
        locked(&self.spare).own().pop_back().map(|(_, spare)| spare)
    }

    /// Gives a socket back that holds no port any more, on the thread that took it.
    pub fn put_spare(&self, spare: Spare, now: Instant) {
        let mut shelves = locked(&self.spare);
        let idle = shelves.own();
        if idle.len() < MAX_SPARE {
            idle.push_back((now, spare));
        }
    }

    /// Closes the idle sockets that are too old, and forgets threads that have none.
    pub fn sweep(&self, now: Instant) {
        for class in PortClass::ALL {
            let worn = self.shelves(class).sort_out(|kept| !kept.is_worn(now));
            drop(worn);
        }
        let is_young = |since: Instant| now.saturating_duration_since(since) < MAX_SPARE_AGE;
        let old = locked(&self.spare).sort_out(|(since, _)| is_young(*since));
        drop(old);
    }

    /// Closes all idle sockets.
    pub fn clear(&self) {
        for class in PortClass::ALL {
            let all = std::mem::take(&mut *self.shelves(class));
            drop(all);
        }
        let spares = std::mem::take(&mut *locked(&self.spare));
        drop(spares);
    }

    /// Locks one class.
    fn shelves(&self, class: PortClass) -> MutexGuard<'_, Shelves<Kept>> {
        locked(&self.kept[class as usize])
    }
}

/// Locks; nobody panics while a shelf is half filled.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
