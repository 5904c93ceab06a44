//! Kept connections to an upstream by TCP, TLS (RFC 7858) and HTTPS (RFC 8484), through hickory.
//!
//! Each [`Connection`] carries many queries at once (RFC 7766 §6.2.1.1); ids are drawn at random per
//! connection by hickory's multiplexer, which matches responses by id alone: whoever asks judges the rest.
//! One that died costs a reconnect, not the queries on it; one that is silent or slow to be made holds up
//! nobody who could be answered by another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use tokio::sync::{Semaphore, watch};

use super::connection::{Connection, Heard, Lost, Seat};
use super::dial::{Dial, MAX_ACTIVE};
use super::verify::Verdict;
use crate::clock;
use crate::metrics::UpstreamMetrics;

/// After so long without anything from a connection a query is sent on another one too.
const SILENCE: Duration = Duration::from_millis(750);

/// Connections per upstream that take queries.
const MAX_CONNECTIONS: usize = 4;

/// Those and the ones that were given up while queries still listen to them.
const MAX_LISTENED_TO: usize = 2 * MAX_CONNECTIONS;

/// Connections for one query each, at one time.
const MAX_LONE: usize = 16;

/// How long a query waits for one of these; then another upstream is asked.
const TURN: Duration = Duration::from_millis(1500);

/// Queries on one connection at a time before another one is opened.
const BUSY: usize = 64;

/// Kept connections that may break under one query: a restarted upstream closes all at once.
const MAX_BROKEN: usize = 2;

/// Why a query got no response by a stream.
#[derive(Clone, Debug)]
pub enum Broken {
    /// Every connection carries as many queries as it may.
    Full,
    /// The endpoint has vanished.
    Gone,
    /// No connection could be made, or several broke.
    Unreachable(Arc<str>),
    /// The upstream spoke, but no DNS.
    Refused(Arc<str>),
}

/// One way to ask under way.
type Try<'a> = BoxFuture<'a, Result<Heard, Lost>>;

/// The kept connections to one upstream, made when needed.
pub struct Connections {
    dial: Dial,
    metrics: UpstreamMetrics,
    /// Those that take queries.
    kept: Mutex<Vec<Arc<Connection>>>,
    /// One for each connection that is kept or was.
    places: Arc<Semaphore>,
    /// Held while a query has a connection for itself.
    lone: Arc<Semaphore>,
    /// Nobody may be asked here any more.
    shut: watch::Sender<bool>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("address", &self.dial.address).finish_non_exhaustive()
    }
}

impl Connections {
    /// No connection yet.
    pub fn new(dial: Dial, metrics: UpstreamMetrics) -> Self {
        Self {
            dial,
            metrics,
            kept: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_LISTENED_TO)),
            lone: Arc::new(Semaphore::new(MAX_LONE)),
            shut: watch::Sender::new(false),
        }
    }

    /// Sends a query over a kept connection until `judge` finds something that answers it.
    ///
    /// Messages have the id that the connection gave the query. It has no time limit of its own.
    ///
    /// # Errors
    /// [`Broken`] as its variants say.
    /// # Cancel safety
    /// Dropping it gives the query up; connections stay.
    pub async fn exchange(
        &self,
        wire: &[u8],
        judge: impl Fn(&[u8]) -> Verdict + Send + Sync,
    ) -> Result<Heard, Broken> {
        let message = Message::from_vec(wire)
            .map_err(|error| Broken::Unreachable(error.to_string().into()))?;
        let request = DnsRequest::new(message, DnsRequestOptions::default());
        let mut shut = self.shut.subscribe();
        tokio::select! {
            biased;
            _ = shut.wait_for(|shut| *shut) => Err(Broken::Gone),
            result = self.ask(&request, &judge) => result,
        }
    }

    /// Asks on one connection, and on further ones where that breaks or gives nothing; whatever was
    /// asked on is listened to until the end.
    async fn ask(
        &self,
        request: &DnsRequest,
        judge: &(impl Fn(&[u8]) -> Verdict + Send + Sync),
    ) -> Result<Heard, Broken> {
        let on_kept = |seat: Seat| -> Try<'_> { Box::pin(self.on_kept(seat, request, judge)) };
        let seat = self.seat().ok_or(Broken::Full)?;
        let (mut latest, mut since) = (Arc::clone(seat.connection()), clock::now());
        let mut tries = FuturesUnordered::from_iter([on_kept(seat)]);
        let (mut broken, mut is_replaced, mut is_alone) = (0, false, false);
        loop {
            let ended = tokio::time::timeout(SILENCE, tries.next()).await;
            match ended {
                Ok(Some(Ok(heard))) => return Ok(heard),
                Ok(Some(Err(Lost::Refused(reason)))) => return Err(Broken::Refused(reason)),
                Ok(Some(Err(Lost::Broke(_)))) if broken < MAX_BROKEN => broken += 1,
                Ok(Some(Err(lost))) if tries.is_empty() => return Err(lost.into()),
                Err(_) if !is_replaced && latest.is_silent(since) => {
                    is_replaced = true;
                    self.forget(&latest);
                }
                _ => {
                    since = clock::now();
                    continue;
                }
            }
            // Some answer one query or a few and close, whatever else is on the connection by then.
            if broken == MAX_BROKEN && !is_alone {
                is_alone = true;
                tries.push(Box::pin(self.alone(request, judge)));
            } else if let Some(seat) = self.seat() {
                (latest, since) = (Arc::clone(seat.connection()), clock::now());
                tries.push(on_kept(seat));
            } else if tries.is_empty() {
                return Err(Broken::Full);
            }
        }
    }

    /// Sends a query on a connection that others are on too.
    async fn on_kept(
        &self,
        seat: Seat,
        request: &DnsRequest,
        judge: &(impl Fn(&[u8]) -> Verdict + Sync),
    ) -> Result<Heard, Lost> {
        let result = seat.connection().ask(request.clone(), judge, &self.metrics).await;
        match &result {
            Ok(_) => self.keep(seat.connection()),
            Err(Lost::Broke(_)) => self.forget(seat.connection()),
            Err(_) => {}
        }
        result
    }

    /// Sends a query on a connection that nothing else is sent on.
    async fn alone(
        &self,
        request: &DnsRequest,
        judge: &(impl Fn(&[u8]) -> Verdict + Sync),
    ) -> Result<Heard, Lost> {
        let turn = tokio::time::timeout(TURN, Arc::clone(&self.lone).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(Lost::Full) };
        self.metrics.opened.inc();
        Connection::open(&self.dial, turn).ask(request.clone(), judge, &self.metrics).await
    }

    /// A place on the first connection that is not busy, else on the one with most room. Where all are busy
    /// another is opened, which nobody waits for who has a place.
    fn seat(&self) -> Option<Seat> {
        let mut kept = self.kept();
        if *self.shut.borrow() {
            return None;
        }
        let now = clock::now();
        kept.retain(|connection| !connection.is_over(now));
        let is_ready = |of: &&Arc<Connection>| of.is_open() && of.load() < BUSY;
        let ready = kept.iter().find(is_ready).and_then(Seat::take);
        if ready.is_some() {
            self.metrics.reused.inc();
            return ready;
        }
        let is_opening = kept.iter().any(|of| !of.is_open() && of.load() < MAX_ACTIVE);
        let has_room = !is_opening && kept.len() < MAX_CONNECTIONS;
        let place = has_room.then(|| Arc::clone(&self.places).try_acquire_owned());
        match place {
            Some(Ok(place)) => {
                self.metrics.opened.inc();
                kept.push(Arc::new(Connection::open(&self.dial, place)));
            }
            _ => {
                self.metrics.reused.inc();
            }
        }
        let with_room = kept.iter().filter(|of| of.load() < MAX_ACTIVE);
        with_room.min_by_key(|of| (!of.is_open(), of.load())).and_then(Seat::take)
    }

    /// Takes a connection out, so that the next query makes another.
    fn forget(&self, given_up: &Arc<Connection>) {
        self.kept().retain(|connection| !Arc::ptr_eq(connection, given_up));
    }

    /// Takes a connection in again that has answered after it was given up: it was a name that took long.
    fn keep(&self, alive: &Arc<Connection>) {
        let mut kept = self.kept();
        let is_known = kept.iter().any(|connection| Arc::ptr_eq(connection, alive));
        if !is_known && kept.len() < MAX_CONNECTIONS && !*self.shut.borrow() {
            kept.push(Arc::clone(alive));
        }
    }

    /// Locks those that take queries.
    fn kept(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all connections and makes no more, or allows them again.
    pub fn set_shut(&self, shut: bool) {
        self.shut.send_replace(shut);
        if shut {
            self.kept().clear();
        }
    }

    /// Closes the connections that idle; all of them where the endpoint is gone.
    pub fn sweep(&self, now: Instant) {
        let is_shut = *self.shut.borrow();
        self.kept().retain(|connection| !is_shut && !connection.is_over(now));
    }
}

impl From<Lost> for Broken {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Full => Self::Full,
            Lost::NotMade(reason) | Lost::Broke(reason) => Self::Unreachable(reason),
            Lost::Refused(reason) => Self::Refused(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PortRange, Transport};
    use crate::metrics::Metrics;
    use crate::upstream::dial::Runtime;
    use crate::upstream::lease::Ports;
    use crate::upstream::tls::Trust;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_connection_of_its_own_for_ever() {
        let range = PortRange { first: 30_000, last: 60_999, reserved: Vec::new() };
        let metrics = Metrics::new();
        let dial = Dial {
            runtime: Runtime::new(Ports::new(range, 0, metrics.ports.clone())),
            address: ([127, 0, 0, 1], 1).into(),
            transport: Transport::Tcp,
            trust: Arc::new(Trust::new(None)),
        };
        let connections = Connections::new(dial, metrics.upstream("127.0.0.1:1"));
        let places = u32::try_from(MAX_LONE).expect("few");
        let _taken = connections.lone.acquire_many(places).await.expect("open");
        let request = DnsRequest::new(Message::query(), DnsRequestOptions::default());
        let result = connections.alone(&request, &|_| Verdict::Ignored).await;
        assert!(matches!(result, Err(Lost::Full)), "{result:?}");
    }
}
