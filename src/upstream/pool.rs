//! Kept sockets of the `pooled` policy: connected, one exchange at a time, rotated.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ports::PortClass;
use super::udp::Tuple;

/// Exchanges after which a socket is closed, so that a port that was guessed is soon worth nothing.
const MAX_USES: u32 = 128;

/// Age at which a socket is closed: below the 30 s that conntrack keeps a flow without a response,
/// so that no exchange falls on an entry that has just expired.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Idle sockets kept per class; beyond that they are closed after use.
const MAX_IDLE: usize = 128;

/// A socket with what its rotation depends on.
#[derive(Debug)]
pub struct Kept {
    pub tuple: Tuple,
    born: Instant,
    uses: u32,
}

impl Kept {
    /// A socket that was just made.
    pub fn new(tuple: Tuple, now: Instant) -> Self {
        Self { tuple, born: now, uses: 0 }
    }

    /// Tells whether the socket has served its time.
    fn is_worn(&self, now: Instant) -> bool {
        self.uses >= MAX_USES || now.saturating_duration_since(self.born) >= MAX_AGE
    }
}

/// The idle sockets towards one upstream.
#[derive(Debug, Default)]
pub struct Pool([Mutex<VecDeque<Kept>>; 3]);

impl Pool {
    /// Takes the idle socket of `class` that waited longest; worn ones are closed on the way.
    pub fn take(&self, class: PortClass, now: Instant) -> Option<Kept> {
        let mut idle = self.0[class as usize].lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut kept) = idle.pop_front() {
            if !kept.is_worn(now) {
                kept.uses += 1;
                return Some(kept);
            }
        }
        None
    }

    /// Gives a socket back after an exchange that had its response.
    pub fn put(&self, class: PortClass, kept: Kept, now: Instant) {
        let mut idle = self.0[class as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.is_worn(now) && idle.len() < MAX_IDLE {
            idle.push_back(kept);
        }
    }

    /// Closes the idle sockets that are too old.
    pub fn sweep(&self, now: Instant) {
        for idle in &self.0 {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|kept| !kept.is_worn(now));
        }
    }
}
