//! What shall be asked, of whom and when; and what came of each lookup.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::habit::Habit;
use super::wanted::Wanted;
use crate::dns::Rcode;

/// When lookups leave.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each server is asked every `interval`.
    Open { interval: Duration },
    /// So many lookups are on their way to each server at any time.
    Closed { in_flight: u32 },
}

/// What shall be asked, of whom, how fast. Threads share it.
#[derive(Clone, Debug)]
pub struct Load {
    /// Asked in turns, so that noise hits all alike.
    pub servers: Vec<SocketAddr>,
    pub wanted: Arc<[Wanted]>,
    pub pace: Pace,
    pub habit: Habit,
    /// Local addresses, used in turns; the kernel's choice when there are none.
    pub sources: Vec<IpAddr>,
    /// Local ports, one for each lookup in turns; the kernel's choice when there are none.
    pub ports: Option<RangeInclusive<u16>>,
    /// Sockets that are kept for each server and thread; a new one for each lookup when `None`.
    pub kept: Option<u32>,
    pub start: Instant,
    /// What is due earlier is warm-up.
    pub measured: Instant,
    /// Nothing leaves from here on.
    pub end: Instant,
    /// At most so many lookups for each server.
    pub count: Option<u64>,
    /// The share of this thread: which one of how many.
    pub thread: (u64, u64),
}

impl Load {
    /// When the `turn`-th lookup of all servers and threads is due, and whom it asks; `None` when there
    /// is no such one.
    pub(super) fn due(&self, turn: u64) -> Option<(Instant, usize)> {
        let servers = u64::try_from(self.servers.len()).ok().filter(|count| *count > 0)?;
        let (round, server) = (turn / servers, turn % servers);
        if self.count.is_some_and(|count| round >= count) {
            return None;
        }
        let due = match self.pace {
            Pace::Closed { .. } => self.start,
            Pace::Open { interval } => {
                let nanos = interval.as_nanos() * u128::from(turn) / u128::from(servers);
                self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        };
        (due < self.end).then(|| (due, usize::try_from(server).unwrap_or(0)))
    }

    /// The turn to go on with at `now`: a warm-up that fell behind is not made up for.
    pub(super) fn skip_warm_up(&self, mut turn: u64, now: Instant) -> u64 {
        let is_open = matches!(self.pace, Pace::Open { .. });
        let is_stale = |turn| self.due(turn).is_some_and(|(due, _)| due < self.measured);
        while is_open && now >= self.measured && is_stale(turn) {
            turn += self.thread.1;
        }
        turn
    }

    /// The local address of the `turn`-th lookup, all servers are asked from the same; `None` is the
    /// kernel's choice.
    pub(super) fn source(&self, turn: u64) -> Option<IpAddr> {
        let count = u64::try_from(self.sources.len()).ok().filter(|count| *count > 0)?;
        self.sources.get(usize::try_from(self.round(turn) % count).unwrap_or(0)).copied()
    }

    /// The local port of the `turn`-th lookup; 0 is the kernel's choice.
    pub(super) fn port(&self, turn: u64) -> u16 {
        let Some(ports) = &self.ports else { return 0 };
        let count = u64::from(ports.end().saturating_sub(*ports.start())) + 1;
        ports.start().saturating_add(u16::try_from(turn % count).unwrap_or(0))
    }

    /// Which names the `turn`-th lookup asks for: all servers are asked for the same.
    pub(super) fn wanted(&self, turn: u64) -> usize {
        let count = u64::try_from(self.wanted.len().max(1)).unwrap_or(1);
        usize::try_from(self.round(turn) % count).unwrap_or(0)
    }

    /// How often each server has been asked before the `turn`-th lookup.
    fn round(&self, turn: u64) -> u64 {
        turn / u64::try_from(self.servers.len().max(1)).unwrap_or(1)
    }
}

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Answered,
    /// glibc took one response of two.
    Partial,
    GaveUp,
}

/// One lookup that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub server: usize,
    pub end: End,
    /// When it should have left.
    pub intended: Instant,
    /// From then until the last response is here, or the application gives up.
    pub took: Duration,
    /// How much of that is the load's own: it left so late.
    pub late: Duration,
    /// How long the last response lay here before the load read it, which is not in `took`; `None` where
    /// the kernel does not tell when it came.
    pub unread: Option<Duration>,
    /// Datagrams, or messages on a connection.
    pub sent: u32,
    /// Of those, the ones that were sent again.
    pub retries: u32,
    pub responses: u32,
    /// Those of the name that ended it, by question.
    pub rcodes: [Option<Rcode>; 2],
    pub truncated: u32,
}

/// How the load itself went.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Lookups that were due.
    pub due: u64,
    pub fired: u64,
    /// How often the kernel said that nobody listens.
    pub refused: u64,
    /// Lookups that were still waiting when it was stopped.
    pub unfinished: u64,
    /// What the kernel or TLS said last.
    pub last_failure: Option<String>,
    /// Why it ended early.
    pub broke: Option<String>,
}
