//! One connection to an upstream, made in a task of its own: it does not end with the query that needed it first.
//!
//! Many queries are on it at once; each listens until something answers it. What does not is counted
//! and waited past, as by UDP.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hickory_proto::op::DnsRequest;
use hickory_resolver::net::xfer::DnsExchange;
use hickory_resolver::net::{DnsHandle, NetError};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::dial::{self, Dial, MAX_ACTIVE, Runtime};
use super::lease::NoSocket;
use super::verify::Verdict;
use crate::clock;
use crate::config::Transport;
use crate::metrics::UpstreamMetrics;

/// A connection idle for so long is closed, before the upstream does it (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(8);

/// Messages that do not answer a query, after which its connection is given up.
const MAX_STRANGE: usize = 64;

/// Why a query got no response from a connection.
#[derive(Clone, Debug)]
pub enum Lost {
    /// There is no room for the connection, or no descriptor.
    Full,
    /// It could not be made.
    NotMade(Arc<str>),
    /// It ended with the query on it.
    Broke(Arc<str>),
    /// The upstream spoke, but no DNS: an HTTP error.
    Refused(Arc<str>),
}

/// What answered a query.
#[derive(Debug)]
pub struct Heard {
    pub verdict: Verdict,
    /// When the query left.
    pub sent: Instant,
}

/// What came of connecting, and when.
type Made = Result<(DnsExchange<Runtime>, Instant), Lost>;

/// One connection, or one that is being made.
pub struct Connection {
    made: watch::Receiver<Option<Made>>,
    in_flight: AtomicUsize,
    /// When the last response came, or the connection was begun.
    heard: Mutex<Instant>,
    is_https: bool,
    /// Bounds how many there are.
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Begins to connect. Nobody listens any more when this is dropped: the connection ends.
    pub fn open(dial: &Dial, place: OwnedSemaphorePermit) -> Self {
        let (told, made) = watch::channel(None);
        let is_https = matches!(dial.transport, Transport::Https { .. });
        let dial = dial.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = dial.connect() => result,
                () = told.closed() => return,
            };
            let made = result.map(|exchange| (exchange, clock::now()));
            told.send_replace(Some(made.map_err(|error| not_made(&error))));
        });
        let heard = Mutex::new(clock::now());
        Self { made, in_flight: AtomicUsize::new(0), heard, is_https, _place: place }
    }

    /// Sends one query and waits for what answers it.
    ///
    /// # Errors
    /// [`Lost`] as its variants say.
    /// # Cancel safety
    /// Dropping it gives the query up; the connection stays.
    pub async fn ask(
        &self,
        request: DnsRequest,
        judge: impl Fn(&[u8]) -> Verdict,
        metrics: &UpstreamMetrics,
    ) -> Result<Heard, Lost> {
        let exchange = self.exchange().await?;
        let sent = clock::now();
        metrics.queries.inc();
        let mut responses = exchange.send(request);
        for _ in 0..MAX_STRANGE {
            let message = match responses.next().await {
                Some(Ok(response)) if self.is_https => response.into_buffer(),
                Some(Ok(response)) => dial::unseal(response.into_buffer()),
                Some(Err(error)) => return Err(self.lost(&error)),
                None => return Err(Lost::Broke("no response".into())),
            };
            match judge(&message) {
                Verdict::Ignored | Verdict::WrongCase => {
                    metrics.mismatched.inc();
                }
                verdict => {
                    *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = clock::now();
                    return Ok(Heard { verdict, sent });
                }
            }
        }
        Err(Lost::Broke("it carried other queries' responses".into()))
    }

    /// What to send on, as soon as the connection is made.
    async fn exchange(&self) -> Result<DnsExchange<Runtime>, Lost> {
        let mut made = self.made.clone();
        let told = made.wait_for(Option::is_some).await;
        match told.as_deref() {
            Ok(Some(Ok((exchange, _)))) => Ok(exchange.clone()),
            Ok(Some(Err(lost))) => Err(lost.clone()),
            // Its task was ended.
            Ok(None) | Err(_) => Err(Lost::NotMade("connecting was given up".into())),
        }
    }

    /// What an error says of the connection: an HTTP response other than hoped for does not end it.
    fn lost(&self, error: &NetError) -> Lost {
        let reason = error.to_string().into();
        let is_said = matches!(
            error,
            NetError::Msg(_)
                | NetError::Decode(_)
                | NetError::ParseInt(_)
                | NetError::Proto(_)
                | NetError::RequestTooLarge
        );
        if self.is_https && is_said { Lost::Refused(reason) } else { Lost::Broke(reason) }
    }

    /// Tells whether it can be sent on at once.
    pub fn is_open(&self) -> bool {
        matches!(*self.made.borrow(), Some(Ok(_)))
    }

    /// Queries on it.
    pub fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Tells whether it gave nothing since `since`, when it was open already; or is being made still.
    pub fn is_silent(&self, since: Instant) -> bool {
        match &*self.made.borrow() {
            None => true,
            Some(Ok((_, opened))) => *opened <= since && self.heard() < since,
            Some(Err(_)) => false,
        }
    }

    /// Tells whether it takes no further query: it could not be made, or idles.
    pub fn is_over(&self, now: Instant) -> bool {
        match *self.made.borrow() {
            None => false,
            Some(Ok(_)) => self.load() == 0 && now.saturating_duration_since(self.heard()) >= IDLE,
            Some(Err(_)) => true,
        }
    }

    /// When the last response came.
    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection could not be made: a lack of our own says nothing of the upstream.
fn not_made(error: &NetError) -> Lost {
    let code = if let NetError::Io(error) = error { error.raw_os_error() } else { None };
    match code.map(io::Error::from_raw_os_error).map(NoSocket::from) {
        Some(NoSocket::Shortage) => Lost::Full,
        _ => Lost::NotMade(error.to_string().into()),
    }
}

/// One query on a connection.
pub struct Seat(Arc<Connection>);

impl Seat {
    /// Takes a place; `None` when the connection is full.
    pub fn take(connection: &Arc<Connection>) -> Option<Self> {
        let count = &connection.in_flight;
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < MAX_ACTIVE).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(connection)))
    }

    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_we_have_no_descriptor_left_is_not_held_against_the_upstream() {
        let of = |code| not_made(&NetError::from(io::Error::from_raw_os_error(code)));
        let (no_descriptor, refused) = (24, 111);
        assert!(matches!(of(no_descriptor), Lost::Full));
        assert!(matches!(of(refused), Lost::NotMade(_)));
    }
}
