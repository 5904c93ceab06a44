//! One TCP connection: queries in, responses out as they finish, and never much in between.
//!
//! What a stub resolver does not read stays with it: a connection holds a bounded number of bytes
//! for it, then the reading stops, and one that takes nothing for too long is given up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;

use super::batch::DATAGRAM;
use super::front::{Facts, Look};
use super::handler;
use super::quota::Share;
use super::seats::Seated;
use super::tcp::Server;
use crate::clock;
use crate::dns::query::QueryView;
use crate::dns::wire;
use crate::resolve::Carrier;

/// How long a stub resolver may take to read one response before the connection is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How long we wait for the other side's FIN after ours; closing earlier may reset the connection
/// and take back responses that are still on their way.
const LINGER: Duration = Duration::from_millis(500);

/// How long a drain waits for one more query of a connection, so that our FIN comes right behind a
/// response: a FIN that meets a query on its way leaves that query without one.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a drain waits for queries that were sent together with the one just answered.
const LULL: Duration = Duration::from_millis(10);

/// The largest message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Room for every response that is not a stored one.
const SMALL: usize = 512;

/// Unsent bytes at which the reading stops: one response of the largest size.
const ENOUGH: usize = MAX_MESSAGE;

/// Unsent bytes at which a connection is given up: queries that were in flight already may still
/// add to what waits, and many connections of this kind are an attack.
const TOO_MUCH: usize = 4 * ENOUGH;

/// One connection's state.
pub(super) struct Connection {
    server: Arc<Server>,
    seated: Seated,
    room: Arc<Semaphore>,
    unsent: Unsent,
}

/// Responses that the stub resolver has not taken yet.
#[derive(Default)]
struct Unsent {
    bytes: AtomicUsize,
    /// One was written; only the reader waits for it.
    written: Notify,
    /// There are too many.
    overflown: Notify,
}

impl Unsent {
    /// Completes when little enough is unsent for more to be added.
    async fn ebb(&self) {
        while self.bytes.load(Ordering::Acquire) >= ENOUGH {
            self.written.notified().await;
        }
    }

    /// Adds a response of `len` bytes; false when that is too much.
    fn add(&self, len: usize) -> bool {
        let fits = self.bytes.fetch_add(len, Ordering::AcqRel) + len <= TOO_MUCH;
        if !fits {
            self.overflown.notify_one();
        }
        fits
    }

    /// Takes a response of `len` bytes that was written off again.
    fn remove(&self, len: usize) {
        self.bytes.fetch_sub(len, Ordering::AcqRel);
        self.written.notify_one();
    }
}

/// A query that is being resolved for a connection.
struct Working(Arc<Connection>);

impl Working {
    /// One more.
    fn new(connection: &Arc<Connection>) -> Self {
        connection.seated.seat.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(connection))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.seated.touch(clock::now());
        self.0.seated.seat.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why reading ended.
enum Ended {
    /// FIN, reset, or bytes that are no DNS.
    ByThem,
    /// Idle, or draining.
    ByUs,
}

/// Serves one connection from its first query to its FIN.
pub(super) async fn converse(server: Arc<Server>, stream: TcpStream, seated: Seated) {
    // Responses are whole messages; waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(server.pipeline);
    let connection = Arc::new(Connection {
        seated,
        room: Arc::new(Semaphore::new(server.pipeline)),
        unsent: Unsent::default(),
        server,
    });
    let mut reader = Reader { half: reader, buffer: Vec::new(), skip: 0 };
    let reading = async {
        let ended = connection.read_all(&mut reader, sender).await;
        (ended, reader)
    };
    let writing = connection.write_all(writer, receiver);
    tokio::pin!(reading, writing);
    // When the writer fails first nobody reads our responses: there is nothing more to do.
    let by_us = tokio::select! {
        (ended, reader) = &mut reading => {
            let writer = tokio::select! {
                writer = writing => writer,
                () = connection.unsent.overflown.notified() => None,
            };
            Some((ended, reader, writer))
        }
        _ = &mut writing => None,
        () = connection.unsent.overflown.notified() => None,
    };
    if let Some((Ended::ByUs, mut reader, Some(mut writer))) = by_us {
        let _ = writer.shutdown().await;
        let _ = timeout(LINGER, reader.discard()).await;
    }
}

impl Connection {
    /// Reads and answers queries until the other side ends, idles too long, or we drain.
    ///
    /// A drain answers what has been sent already, and ends behind a response where one is asked for.
    async fn read_all(
        self: &Arc<Self>,
        reader: &mut Reader,
        sender: mpsc::Sender<Vec<u8>>,
    ) -> Ended {
        let seat = &self.seated.seat;
        let mut last_call: Option<Instant> = None;
        let mut lull = LAST_CALL;
        loop {
            let left = last_call.map(|end| end.saturating_duration_since(clock::now()));
            if left == Some(Duration::ZERO) {
                return Ended::ByUs;
            }
            let patience = left.map_or(self.server.idle, |left| left.min(lull));
            let next = tokio::select! {
                biased;
                next = timeout(patience, reader.message()) => next,
                () = self.server.shutdown.begun(), if last_call.is_none() => {
                    last_call = Some(clock::now() + LAST_CALL);
                    continue;
                }
                () = seat.given_up() => return Ended::ByUs,
            };
            match next {
                Ok(Ok(Some(message))) => {
                    if self.serve(message, &sender).await.is_none() {
                        return Ended::ByThem;
                    }
                    if last_call.is_some() {
                        lull = LULL;
                    }
                }
                Ok(_) => return Ended::ByThem,
                Err(_elapsed) if last_call.is_some() => return Ended::ByUs,
                Err(_elapsed) if seat.in_flight.load(Ordering::Acquire) > 0 => {}
                Err(_elapsed) => return Ended::ByUs,
            }
        }
    }

    /// Answers one message, or has it resolved; `None` when the connection is of no more use.
    async fn serve(
        self: &Arc<Self>,
        message: Vec<u8>,
        sender: &mpsc::Sender<Vec<u8>>,
    ) -> Option<()> {
        self.unsent.ebb().await;
        let received = clock::now();
        self.seated.touch(received);
        let (front, source) = (&self.server.front, self.seated.seat.source);
        let policy = front.policy.load_full();
        let allowed = policy.allow.admits(source.ip(), self.server.is_intercepted);
        let look = front.look(&message, source.ip(), received, allowed);
        let room = match &look {
            Look::Hit(_, entry) => entry.encoded().max_fitted_len().clamp(SMALL, MAX_MESSAGE),
            _ => SMALL,
        };
        let mut out = vec![0; room];
        let mut facts = front.answer(&look, &message, received, &mut out);
        let logged = policy.query_log.is_on().then(|| look.qname().to_vec());
        match &look {
            Look::Silence => return None,
            Look::Miss(view) => match front.in_flight.take(source.ip()) {
                None => facts = Some(self.crowded_out((view, message.len()), &mut out)),
                Some(share) => self.submit(message, sender, (share, received)).await,
            },
            Look::Hit(view, entry) if entry.claims_prefetch(received) => {
                front.resolver.prefetch(view.to_query());
            }
            _ => {}
        }
        let Some(facts) = facts else { return Some(()) };
        out.truncate(facts.response_len);
        self.send(out, sender).await?;
        self.account(&facts, received, logged.as_deref());
        Some(())
    }

    /// Answers a miss that finds no share: stale, or with a refusal.
    fn crowded_out(&self, (view, len): (&QueryView<'_>, usize), out: &mut Vec<u8>) -> Facts {
        let front = &self.server.front;
        match front.resolver.stale(view, self.seated.seat.source.ip()) {
            Some(stale) => {
                let room = stale.entry.encoded().max_fitted_len().clamp(SMALL, MAX_MESSAGE);
                out.resize(room, 0);
                front.answer_stale((view, &stale), len, out)
            }
            None => front.shed(view, len, out),
        }
    }

    /// Counts and logs what was answered.
    fn account(&self, facts: &Facts, received: Instant, logged: Option<&[u8]>) {
        let source = self.seated.seat.source;
        let arrival = handler::arrival_of(source, Carrier::Stream);
        let duration = clock::now().saturating_duration_since(received);
        let answered = facts.answered(arrival, duration);
        self.server.tally.record(&answered);
        if let Some(qname) = logged {
            self.server.front.policy.load().query_log.log(source, qname, &answered);
        }
    }

    /// Hands a response to the writer; `None` when nobody takes it.
    async fn send(&self, response: Vec<u8>, sender: &mpsc::Sender<Vec<u8>>) -> Option<()> {
        if !self.unsent.add(response.len()) {
            return None;
        }
        sender.send(response).await.ok()
    }

    /// Resolves a message in a task of its own; waits first while too many of this connection run.
    async fn submit(
        self: &Arc<Self>,
        message: Vec<u8>,
        sender: &mpsc::Sender<Vec<u8>>,
        (share, received): (Share, Instant),
    ) {
        let permit = Arc::clone(&self.room).acquire_owned().await.expect("never closed");
        let (working, sender) = (Working::new(self), sender.clone());
        let owed = self.server.shutdown.owe();
        tokio::spawn(async move {
            let this = &working.0;
            let (handler, source) = (&this.server.handler, this.seated.seat.source);
            let response =
                handler::handle(handler, &message, (source, Carrier::Stream), received, || true)
                    .await;
            // It is resolved: what the stub resolver does not read must not hold others up.
            drop(share);
            if let Some(response) = response {
                let _ = this.send(response, &sender).await;
            }
            drop((permit, owed));
        });
    }

    /// Writes responses as they come; gives the half back when all senders are gone, `None` when
    /// the other side does not take them.
    async fn write_all(
        &self,
        mut half: OwnedWriteHalf,
        mut responses: mpsc::Receiver<Vec<u8>>,
    ) -> Option<OwnedWriteHalf> {
        while let Some(response) = responses.recv().await {
            let len = u16::try_from(response.len()).ok()?;
            let mut framed = Vec::with_capacity(2 + response.len());
            framed.extend(len.to_be_bytes());
            framed.extend(response);
            timeout(WRITE_PATIENCE, half.write_all(&framed)).await.ok()?.ok()?;
            self.unsent.remove(usize::from(len));
        }
        Some(half)
    }
}

/// The receiving half, with bytes that are not yet a whole message.
struct Reader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes to come of a message that was too long to be kept whole.
    skip: usize,
}

impl Reader {
    /// The next message without its length; `None` at the end of the stream.
    ///
    /// One that is longer than any query is cut to [`DATAGRAM`] bytes, as by UDP.
    ///
    /// # Cancel safety
    /// Bytes that were read stay in the buffer.
    async fn message(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.drain(..skipped);
            self.skip -= skipped;
            if let Some(message) = self.take() {
                return Ok(Some(message));
            }
            self.buffer.reserve(512);
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Takes a message out of the buffer if all that is kept of it is there.
    fn take(&mut self) -> Option<Vec<u8>> {
        if self.skip > 0 {
            return None;
        }
        let len = usize::from(wire::u16_at(&self.buffer, 0)?);
        let end = 2 + len.min(DATAGRAM);
        if self.buffer.len() < end {
            return None;
        }
        self.skip = 2 + len - end;
        let rest = self.buffer.split_off(end);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..2);
        Some(message)
    }

    /// Reads and forgets until the other side ends.
    async fn discard(&mut self) {
        self.buffer.clear();
        while self.half.read_buf(&mut self.buffer).await.is_ok_and(|count| count > 0) {
            self.buffer.clear();
        }
    }
}
