//! The TCP front end: two-byte length framing, pipelined queries answered as they finish.
//!
//! Every bound is a key: connections in all and per source, queries of one connection that are worked
//! on at one time, and how long a connection may idle. What a stub resolver does not read stays
//! with it: a full outbox stops the reading.
//!
//! Source: RFC 7766

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::Runners;
use super::batch::DATAGRAM;
use super::front::{Front, Look};
use super::handler::{self, Handler};
use super::quota::{Share, Shares};
use crate::clock;
use crate::config;
use crate::metrics::Tally;
use crate::pulse::Pulse;
use crate::resolve::Carrier;
use crate::shutdown::Shutdown;

/// How long the accept loop waits before it goes round.
const ACCEPT_ROUND: Duration = Duration::from_millis(200);

/// How long the accept loop rests when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long a stub resolver may take to read one response before the connection is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How long we wait for the other side's FIN after ours; closing earlier may reset the connection
/// and take back responses that are still on their way.
const LINGER: Duration = Duration::from_millis(500);

/// What all connections share.
struct Server {
    front: Arc<Front>,
    handler: Arc<Handler>,
    tally: Arc<Tally>,
    connections: Arc<Shares>,
    pipeline: usize,
    idle: Duration,
    shutdown: Shutdown,
}

/// Starts an accept loop for each listener; connections go round the resolver's workers.
///
/// # Errors
/// When a listener cannot be registered with the runtime.
pub fn start(
    listeners: Vec<std::net::TcpListener>,
    serve: &config::Serve,
    runners: &Runners<'_>,
) -> io::Result<()> {
    let server = Arc::new(Server {
        front: Arc::clone(runners.front),
        handler: Arc::new(Handler::new(Arc::clone(runners.front))),
        tally: runners.front.metrics.tally(),
        connections: Shares::new(serve.tcp_connections, serve.tcp_connections_per_source),
        pipeline: serve.tcp_pipeline,
        idle: serve.tcp_idle,
        shutdown: runners.shutdown.clone(),
    });
    for (index, listener) in listeners.into_iter().enumerate() {
        let pulse = runners.pulses.register(format!("tcp-accept-{index}"));
        let workers = runners.workers.to_vec();
        let worker = &runners.workers[index % runners.workers.len()];
        let guard = worker.enter();
        let listener = TcpListener::from_std(listener)?;
        drop(guard);
        worker.spawn(Arc::clone(&server).accept(listener, workers, pulse));
    }
    Ok(())
}

impl Server {
    /// Accepts until the drain begins.
    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        workers: Vec<tokio::runtime::Handle>,
        pulse: Arc<Pulse>,
    ) {
        let mut next = 0;
        let mut starved = false;
        while !self.shutdown.is_begun() {
            pulse.beat();
            let accepted = tokio::select! {
                accepted = timeout(ACCEPT_ROUND, listener.accept()) => accepted,
                () = self.shutdown.begun() => return,
            };
            match accepted {
                Err(_elapsed) => {}
                Ok(Ok((stream, source))) => {
                    starved = false;
                    next = (next + 1) % workers.len();
                    self.admit(stream, source, &workers[next]);
                }
                Ok(Err(error)) if is_starvation(&error) => {
                    self.front.metrics.serve.tcp_accept_failures.inc();
                    if !std::mem::replace(&mut starved, true) {
                        tracing::warn!(%error, "cannot accept TCP connections for now");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
                // The other side has gone before we came.
                Ok(Err(_)) => {}
            }
        }
    }

    /// Gives a connection to a worker, or closes it when its source holds too many.
    fn admit(self: &Arc<Self>, stream: TcpStream, source: SocketAddr, to: &tokio::runtime::Handle) {
        let Some(share) = self.connections.take(source.ip()) else {
            self.front.metrics.serve.tcp_refused.inc();
            return;
        };
        let Ok(stream) = stream.into_std() else { return };
        let server = Arc::clone(self);
        to.spawn(async move {
            if let Ok(stream) = TcpStream::from_std(stream) {
                server.converse(stream, source, share).await;
            }
        });
    }

    /// One connection from its first query to its FIN.
    async fn converse(self: Arc<Self>, stream: TcpStream, source: SocketAddr, share: Share) {
        let gauge = &self.front.metrics.serve.tcp_connections;
        gauge.inc();
        let owed = self.shutdown.owe();
        // Responses are whole messages; waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let (sender, receiver) = mpsc::channel(self.pipeline);
        let connection = Arc::new(Connection {
            server: Arc::clone(&self),
            source,
            in_flight: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(self.pipeline)),
        });
        let mut reader = Reader { half: reader, buffer: Vec::new() };
        let reading = async {
            let ended = connection.read_all(&mut reader, sender).await;
            (ended, reader)
        };
        let writing = write_all(writer, receiver);
        tokio::pin!(reading, writing);
        // When the writer fails first nobody reads our responses: there is nothing more to do.
        let by_us = tokio::select! {
            (ended, reader) = &mut reading => {
                let writer = writing.await;
                Some((ended, reader, writer))
            }
            _ = &mut writing => None,
        };
        if let Some((Ended::ByUs, mut reader, Some(mut writer))) = by_us {
            let _ = writer.shutdown().await;
            let _ = timeout(LINGER, reader.discard()).await;
        }
        gauge.dec();
        drop((owed, share));
    }
}

/// Tells whether an accept failed for want of descriptors or memory, which does not pass at once.
fn is_starvation(error: &io::Error) -> bool {
    let starving = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| starving.contains(&code))
}

/// Why reading ended.
enum Ended {
    /// FIN, reset, or bytes that are no DNS.
    ByThem,
    /// Idle, or draining.
    ByUs,
}

/// One connection's state.
struct Connection {
    server: Arc<Server>,
    source: SocketAddr,
    in_flight: AtomicUsize,
    room: Arc<Semaphore>,
}

impl Connection {
    /// Reads and answers queries until the other side ends, idles too long, or we drain.
    async fn read_all(
        self: &Arc<Self>,
        reader: &mut Reader,
        sender: mpsc::Sender<Vec<u8>>,
    ) -> Ended {
        loop {
            let next = tokio::select! {
                next = timeout(self.server.idle, reader.message()) => next,
                () = self.server.shutdown.begun() => return Ended::ByUs,
            };
            match next {
                Ok(Ok(Some(message))) => {
                    if self.serve(message, &sender).await.is_none() {
                        return Ended::ByThem;
                    }
                }
                Ok(_) => return Ended::ByThem,
                Err(_elapsed) if self.in_flight.load(Ordering::Acquire) > 0 => {}
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
        let received = clock::now();
        let front = &self.server.front;
        let policy = front.policy.load_full();
        let look = front.look(&message, self.source.ip(), received, &policy);
        let room = match &look {
            Look::Hit(_, entry) => entry.encoded().max_fitted_len().max(DATAGRAM),
            _ => DATAGRAM,
        };
        let mut out = vec![0; room];
        let mut facts = front.answer(&look, &message, received, &mut out);
        let logged = policy.query_log.is_on().then(|| look.qname().to_vec());
        match &look {
            Look::Silence => return None,
            Look::Miss(view) => match front.in_flight.take(self.source.ip()) {
                None => facts = Some(front.shed(view, &mut out)),
                Some(share) => self.submit(message, sender, share).await,
            },
            Look::Hit(view, entry) if entry.claims_prefetch(received) => {
                front.resolver.prefetch(view.to_query());
            }
            _ => {}
        }
        let Some(facts) = facts else { return Some(()) };
        out.truncate(facts.response_len);
        sender.send(out).await.ok()?;
        let arrival = handler::arrival_of(self.source, Carrier::Stream);
        let duration = clock::now().saturating_duration_since(received);
        let answered = facts.answered(arrival, duration);
        self.server.tally.record(&answered);
        if let Some(qname) = logged {
            policy.query_log.log(self.source, &qname, &answered);
        }
        Some(())
    }

    /// Resolves a message in a task of its own; waits first while too many of this connection run.
    async fn submit(
        self: &Arc<Self>,
        message: Vec<u8>,
        sender: &mpsc::Sender<Vec<u8>>,
        share: Share,
    ) {
        let received = clock::now();
        let permit = Arc::clone(&self.room).acquire_owned().await.expect("never closed");
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let (this, sender) = (Arc::clone(self), sender.clone());
        let owed = self.server.shutdown.owe();
        tokio::spawn(async move {
            let handler = &this.server.handler;
            let response =
                handler::handle(handler, message, this.source, Carrier::Stream, received).await;
            if let Some(response) = response {
                let _ = sender.send(response).await;
            }
            this.in_flight.fetch_sub(1, Ordering::AcqRel);
            drop((permit, share, owed));
        });
    }
}

/// The receiving half, with bytes that are not yet a whole message.
struct Reader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Reader {
    /// The next message without its length; `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// Bytes that were read stay in the buffer.
    async fn message(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(len) = crate::dns::wire::u16_at(&self.buffer, 0) {
                let end = 2 + usize::from(len);
                if self.buffer.len() >= end {
                    let rest = self.buffer.split_off(end);
                    let mut message = std::mem::replace(&mut self.buffer, rest);
                    message.drain(..2);
                    return Ok(Some(message));
                }
            }
            self.buffer.reserve(512);
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads and forgets until the other side ends.
    async fn discard(&mut self) {
        self.buffer.clear();
        while self.half.read_buf(&mut self.buffer).await.is_ok_and(|count| count > 0) {
            self.buffer.clear();
        }
    }
}

/// Writes responses as they come; gives the half back when all senders are gone, `None` when the
/// other side does not take them.
async fn write_all(
    mut half: OwnedWriteHalf,
    mut responses: mpsc::Receiver<Vec<u8>>,
) -> Option<OwnedWriteHalf> {
    while let Some(response) = responses.recv().await {
        let len = u16::try_from(response.len()).ok()?;
        let mut framed = Vec::with_capacity(2 + response.len());
        framed.extend(len.to_be_bytes());
        framed.extend(response);
        timeout(WRITE_PATIENCE, half.write_all(&framed)).await.ok()?.ok()?;
    }
    Some(half)
}
