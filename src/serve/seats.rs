//! Who may hold a TCP connection, and who gives one up when there is no room left.
//!
//! A source has its fair share (see `quota`). When that is used up, a newcomer takes the seat of the
//! connection that has idled longest, of the same source first: idle connections are a courtesy
//! (RFC 7766 §6.2.3), and one program's thousand of them must not keep its next query out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::quota::{Share, Shares};

/// A connection that was used within this many milliseconds keeps its seat: its next query may be
/// on its way.
const BUSY_MS: u64 = 500;

/// All connections.
pub struct Seats {
    shares: Arc<Shares>,
    taken: Mutex<HashMap<u64, Arc<Seat>>>,
    next: AtomicU64,
    /// What idle times count from.
    began: Instant,
}

/// One connection's seat.
pub struct Seat {
    pub source: SocketAddr,
    /// Queries that are worked on.
    pub in_flight: AtomicUsize,
    /// Milliseconds since `began` at the last query or response.
    active: AtomicU64,
    /// Given to a newcomer: to be closed now.
    given_up: AtomicBool,
    leave: Notify,
}

/// A seat with the duty to give it back.
pub struct Seated {
    pub seat: Arc<Seat>,
    id: u64,
    seats: Arc<Seats>,
    _share: Share,
}

impl Seats {
    /// No connection yet, `limit` at most, of one source at most `per_source`.
    pub fn new(limit: usize, per_source: usize, now: Instant) -> Arc<Self> {
        let shares = Shares::new(limit, per_source);
        Arc::new(Self { shares, taken: Mutex::default(), next: AtomicU64::new(0), began: now })
    }

    /// A seat for a connection from `source`; `None` when there is none and nobody idles.
    pub fn take(self: &Arc<Self>, source: SocketAddr, now: Instant) -> Option<Seated> {
        let share = match self.shares.take(source.ip()) {
            Some(share) => share,
            None => {
                self.idlest(source.ip(), self.millis(now))?.give_up();
                // The other one leaves at once; until then there is one too many.
                self.shares.take_beyond(source.ip())
            }
        };
        let seat = Arc::new(Seat {
            source,
            in_flight: AtomicUsize::new(0),
            active: AtomicU64::new(self.millis(now)),
            given_up: AtomicBool::new(false),
            leave: Notify::new(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.taken().insert(id, Arc::clone(&seat));
        Some(Seated { seat, id, seats: Arc::clone(self), _share: share })
    }

    /// The seat that has idled longest, of `source` if one of its seats idles.
    fn idlest(&self, source: IpAddr, now_ms: u64) -> Option<Arc<Seat>> {
        let taken = self.taken();
        let idle = taken.values().filter(|seat| seat.is_idle(now_ms));
        let by_rank =
            |seat: &&Arc<Seat>| (seat.source.ip() != source, seat.active.load(Ordering::Relaxed));
        idle.min_by_key(by_rank).cloned()
    }

    /// Milliseconds from the beginning to `now`.
    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// Locks the table; a panic elsewhere leaves it as good as it was.
    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Tells whether nothing was done for a while and nobody was given the seat.
    fn is_idle(&self, now_ms: u64) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
            && !self.given_up.load(Ordering::Acquire)
            && self.active.load(Ordering::Relaxed) + BUSY_MS <= now_ms
    }

    /// Tells the connection to close.
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.leave.notify_one();
    }

    /// Completes when the connection shall close.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn given_up(&self) {
        if !self.given_up.load(Ordering::Acquire) {
            self.leave.notified().await;
        }
    }
}

impl Seated {
    /// Notes that the connection was used.
    pub fn touch(&self, now: Instant) {
        self.seat.active.store(self.seats.millis(now), Ordering::Relaxed);
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seats.taken().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn source(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn a_newcomer_takes_the_seat_that_idled_longest_of_its_own_source() {
        let now = crate::clock::now();
        let seats = Seats::new(100, 3, now);
        let later = |secs| now + Duration::from_secs(secs);
        let (ours, other) = (source("192.0.2.1:1"), source("192.0.2.2:1"));
        let _oldest_of_all = seats.take(other, now).expect("free");
        let held: Vec<_> = (1..4).map(|s| seats.take(ours, later(s)).expect("free")).collect();
        held[0].touch(later(10));
        let newcomer = seats.take(ours, later(11)).expect("somebody idles");
        assert!(held[1].seat.given_up.load(Ordering::Relaxed), "idle since the second second");
        assert!(!held[0].seat.given_up.load(Ordering::Relaxed));
        assert!(!newcomer.seat.given_up.load(Ordering::Relaxed));
    }

    #[test]
    fn who_is_worked_for_keeps_the_seat() {
        let now = crate::clock::now();
        let seats = Seats::new(100, 2, now);
        let (ours, later) = (source("192.0.2.1:1"), now + Duration::from_secs(1));
        let held: Vec<_> = (0..2).map(|_| seats.take(ours, now).expect("free")).collect();
        assert!(seats.take(ours, now).is_none(), "both have only just come");
        held.iter().for_each(|seated| seated.seat.in_flight.store(1, Ordering::Relaxed));
        assert!(seats.take(ours, later).is_none(), "both are worked for");
        drop(held);
        assert!(seats.take(ours, now).is_some());
    }
}
