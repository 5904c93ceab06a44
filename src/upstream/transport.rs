//! Kept connections to an upstream by TCP, TLS (RFC 7858) and HTTPS (RFC 8484), through hickory.
//!
//! Each connection carries many queries at once (RFC 7766 §6.2.1.1); ids are drawn at random per
//! connection by hickory's multiplexer. It matches responses by id alone, so whoever asks compares
//! the question. A connection that died costs one reconnect, not the queries on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use hickory_resolver::net::xfer::{DnsExchange, FirstAnswer};
use hickory_resolver::net::{DnsHandle, NetError};

use super::dial::{Dial, MAX_ACTIVE, Runtime};
use crate::clock;
use crate::metrics::UpstreamMetrics;

/// A connection that gave nothing for so long after a query is replaced.
const SILENCE: Duration = Duration::from_millis(1500);

/// A connection idle for so long is closed, before the upstream does it (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(8);

/// Connections per upstream.
const MAX_CONNECTIONS: usize = 4;

/// Connections for one query each, at one time.
const MAX_LONE: usize = 16;

/// How long a query waits for one of these; then another upstream is asked.
const TURN: Duration = Duration::from_millis(1500);

/// Why nobody is asked at an endpoint that vanished.
const GONE: &str = "the endpoint is gone";

/// Queries on one connection at a time before another one is opened.
const BUSY: usize = 64;

/// Why a query got no response from a connection.
#[derive(Clone, Debug)]
pub enum Broken {
    /// Every connection carries as many queries as it may.
    Full,
    /// Connected, but nothing came back.
    Silent,
    /// No connection could be made, or several broke.
    Unreachable(Arc<str>),
}

/// One connection.
struct Live {
    exchange: DnsExchange<Runtime>,
    in_flight: AtomicUsize,
    /// When the last response came, or the connection was made.
    heard: Mutex<Instant>,
}

impl Live {
    /// When the last response came.
    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one query and waits for its response.
    async fn ask(&self, request: DnsRequest) -> Result<Vec<u8>, NetError> {
        let response = self.exchange.send(request).first_answer().await?;
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = clock::now();
        Ok(response.into_buffer())
    }

    /// Tells whether nothing is in flight and nothing came for long.
    fn is_idle(&self, now: Instant) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
            && now.saturating_duration_since(self.heard()) >= IDLE
    }
}

/// One query on a connection.
struct Seat(Arc<Live>);

impl Seat {
    /// Takes a place; `None` when the connection is full.
    fn take(live: &Arc<Live>) -> Option<Self> {
        let taken = live.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < MAX_ACTIVE).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(live)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The kept connections to one upstream, made when needed.
pub struct Connections {
    dial: Dial,
    metrics: UpstreamMetrics,
    /// Locked while one is being made, so that those who need it wait for the same.
    slots: [tokio::sync::Mutex<Slot>; MAX_CONNECTIONS],
    /// Held while a query has a connection for itself.
    lone: tokio::sync::Semaphore,
    /// Nobody may be asked here any more.
    is_shut: AtomicBool,
}

/// The place of one connection.
#[derive(Default)]
struct Slot {
    live: Option<Arc<Live>>,
    /// When the last attempt to connect failed, and why.
    failed: Option<(Instant, Broken)>,
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
            slots: Default::default(),
            lone: tokio::sync::Semaphore::new(MAX_LONE),
            is_shut: AtomicBool::new(false),
        }
    }

    /// Sends a query over a kept connection and gives back the response message.
    ///
    /// The response has the id that the connection gave the query; its question is unchecked.
    ///
    /// # Errors
    /// [`Broken`] as its variants say.
    /// # Cancel safety
    /// Dropping it gives the query up; the connection stays.
    pub async fn exchange(&self, wire: &[u8]) -> Result<Vec<u8>, Broken> {
        let message = Message::from_vec(wire).map_err(|error| unreachable(&error))?;
        let request = DnsRequest::new(message, DnsRequestOptions::default());
        let (mut silent, mut broken) = (0, 0);
        // A restarted upstream closes connections with queries on them: one more try.
        while silent + broken < 2 {
            let seat = self.seat().await?;
            match self.patiently(&seat.0, request.clone()).await {
                Ok(message) => return Ok(message),
                Err(NetError::Timeout) => silent += 1,
                Err(_) => broken += 1,
            }
            self.remove(&seat.0).await;
        }
        if broken == 0 {
            return Err(Broken::Silent);
        }
        // Some answer one query or a few and close, whatever else is on the connection by then.
        self.alone(request).await
    }

    /// Sends a query over a connection that nothing else is sent on.
    async fn alone(&self, request: DnsRequest) -> Result<Vec<u8>, Broken> {
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.lone.acquire()).await else {
            return Err(Broken::Full);
        };
        if self.is_shut() {
            return Err(Broken::Unreachable(GONE.into()));
        }
        self.metrics.opened.inc();
        let exchange = self.dial.connect().await.map_err(|error| unreachable(&error))?;
        match tokio::time::timeout(SILENCE, exchange.send(request).first_answer()).await {
            Ok(Ok(response)) => Ok(response.into_buffer()),
            Ok(Err(error)) => Err(unreachable(&error)),
            Err(_) => Err(Broken::Silent),
        }
    }

    /// Waits for a response as long as the connection gives any.
    async fn patiently(&self, live: &Live, request: DnsRequest) -> Result<Vec<u8>, NetError> {
        let mut asking = std::pin::pin!(live.ask(request));
        loop {
            let since = clock::now();
            match tokio::time::timeout(SILENCE, &mut asking).await {
                Ok(result) => return result,
                Err(_) if live.heard() < since => return Err(NetError::Timeout),
                Err(_) => {}
            }
        }
    }

    /// A place on the first connection that is not busy, else on any that is not full.
    async fn seat(&self) -> Result<Seat, Broken> {
        for limit in [BUSY, MAX_ACTIVE] {
            for (index, slot) in self.slots.iter().enumerate() {
                let live = match self.live(slot).await {
                    Ok(live) => live,
                    Err(broken) if index == 0 => return Err(broken),
                    // The upstream takes no further connection: fill those that it took.
                    Err(_) => break,
                };
                if live.in_flight.load(Ordering::Relaxed) < limit
                    && let Some(seat) = Seat::take(&live)
                {
                    return Ok(seat);
                }
            }
        }
        Err(Broken::Full)
    }

    /// The connection of a slot, made now if there is none or it has idled too long.
    async fn live(&self, slot: &tokio::sync::Mutex<Slot>) -> Result<Arc<Live>, Broken> {
        let began = clock::now();
        let mut slot = slot.lock().await;
        if let Some(live) = slot.live.as_ref().filter(|live| !live.is_idle(clock::now())) {
            self.metrics.reused.inc();
            return Ok(Arc::clone(live));
        }
        slot.live = None;
        if let Some((when, broken)) = &slot.failed
            && *when >= began
        {
            // Another query's attempt failed while this one waited for it.
            return Err(broken.clone());
        }
        if self.is_shut() {
            return Err(Broken::Unreachable(GONE.into()));
        }
        self.metrics.opened.inc();
        let exchange = match self.dial.connect().await {
            Ok(exchange) => exchange,
            Err(error) => {
                let broken = unreachable(&error);
                slot.failed = Some((clock::now(), broken.clone()));
                return Err(broken);
            }
        };
        let live = Arc::new(Live {
            exchange,
            in_flight: AtomicUsize::new(0),
            heard: Mutex::new(clock::now()),
        });
        if self.is_shut() {
            return Err(Broken::Unreachable(GONE.into()));
        }
        slot.live = Some(Arc::clone(&live));
        Ok(live)
    }

    /// Takes a broken connection out, so that the next query makes another.
    async fn remove(&self, broken: &Arc<Live>) {
        for slot in &self.slots {
            let mut slot = slot.lock().await;
            if slot.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, broken)) {
                slot.live = None;
            }
        }
    }

    /// Takes all connections out; exchanges on them end by themselves.
    pub async fn discard(&self) {
        for slot in &self.slots {
            slot.lock().await.live = None;
        }
    }

    /// Tells whether the endpoint is gone.
    fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::SeqCst)
    }

    /// Closes all connections and makes no more, or allows them again.
    ///
    /// One that is being made at this very moment is not kept, or closed by the next sweep.
    pub fn set_shut(&self, shut: bool) {
        self.is_shut.store(shut, Ordering::SeqCst);
        self.sweep(clock::now());
    }

    /// Closes the connections that idle; all of them where the endpoint is gone.
    pub fn sweep(&self, now: Instant) {
        for slot in &self.slots {
            if let Ok(mut slot) = slot.try_lock()
                && slot.live.as_ref().is_some_and(|live| self.is_shut() || live.is_idle(now))
            {
                slot.live = None;
            }
        }
    }
}

/// An error as a reason for people.
fn unreachable(error: &dyn std::fmt::Display) -> Broken {
    Broken::Unreachable(error.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PortRange, Transport};
    use crate::metrics::Metrics;
    use crate::upstream::lease::Ports;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_connection_of_its_own_for_ever() {
        let range = PortRange { first: 30_000, last: 60_999, reserved: Vec::new() };
        let metrics = Metrics::new();
        let dial = Dial {
            runtime: Runtime::new(Ports::new(range, 0, metrics.ports.clone())),
            address: ([127, 0, 0, 1], 1).into(),
            transport: Transport::Tcp,
            tls: Err("no TLS".into()),
        };
        let connections = Connections::new(dial, metrics.upstream("127.0.0.1:1"));
        let places = u32::try_from(MAX_LONE).expect("few");
        let _taken = connections.lone.acquire_many(places).await.expect("open");
        let request = DnsRequest::new(Message::query(), DnsRequestOptions::default());
        let result = connections.alone(request).await;
        assert!(matches!(result, Err(Broken::Full)), "{result:?}");
    }
}
