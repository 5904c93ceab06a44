//! The TCP front end: two-byte length framing, pipelined queries answered as they finish.
//!
//! Every bound is a key: connections in all and per source, queries of one connection that are worked
//! on at one time, and how long a connection may idle. `connection` is one of them.
//!
//! Source: RFC 7766

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::front::Front;
use super::handler::Handler;
use super::seats::{Seated, Seats};
use super::{Runners, connection, system};
use crate::clock;
use crate::config::{self, Listen};
use crate::metrics::{Metrics, Tally};
use crate::pulse::{Pulse, Pulses};
use crate::shutdown::{Owed, Shutdown};

/// How long the accept loop waits before it goes round.
const ACCEPT_ROUND: Duration = Duration::from_millis(200);

/// How long the accept loop rests when descriptors have run out.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Connections taken at one time when the drain begins: all that the kernel completed for us.
const LAST_ACCEPTS: usize = 1024;

/// How long a drain waits for connections that are being set up at intercepted addresses: a lost packet of
/// the handshake is sent again after a second.
const SETTING_UP: Duration = Duration::from_millis(1500);

/// What all connections share.
pub(super) struct Server {
    pub(super) front: Arc<Front>,
    pub(super) handler: Arc<Handler>,
    pub(super) tally: Arc<Tally>,
    seats: Arc<Seats>,
    pub(super) pipeline: usize,
    pub(super) idle: Duration,
    pub(super) shutdown: Shutdown,
    /// What comes here was sent to an intercepted address.
    pub(super) is_intercepted: bool,
}

/// The accept loops; connections go round the resolver's workers.
pub struct Acceptors {
    /// What connections to our own addresses share, and those to intercepted ones; of both they share the seats.
    servers: [Arc<Server>; 2],
    workers: Vec<Handle>,
    count: usize,
}

impl Acceptors {
    /// None yet.
    pub fn new(serve: &config::Serve, runners: &Runners<'_>) -> Self {
        let connections = affordable(serve.tcp_connections);
        let seats = Seats::new(connections, serve.tcp_connections_per_source, clock::now());
        let handler = Arc::new(Handler::new(Arc::clone(runners.front)));
        let tally = runners.front.metrics.tally();
        let servers = [false, true].map(|is_intercepted| {
            Arc::new(Server {
                front: Arc::clone(runners.front),
                handler: Arc::clone(&handler),
                tally: Arc::clone(&tally),
                seats: Arc::clone(&seats),
                pipeline: serve.tcp_pipeline,
                idle: serve.tcp_idle,
                shutdown: runners.shutdown.clone(),
                is_intercepted,
            })
        });
        Self { servers, workers: runners.workers.to_vec(), count: 0 }
    }

    /// Starts an accept loop for each listener.
    ///
    /// # Errors
    /// When a listener cannot be registered with the runtime.
    pub fn add(
        &mut self,
        listeners: Vec<(Listen, std::net::TcpListener)>,
        pulses: &Pulses,
    ) -> io::Result<()> {
        for (listen, listener) in listeners {
            let pulse = pulses.register(format!("tcp-accept-{}", self.count));
            let worker = &self.workers[self.count % self.workers.len()];
            self.count += 1;
            let guard = worker.enter();
            let listener = TcpListener::from_std(listener)?;
            drop(guard);
            let server = Arc::clone(&self.servers[usize::from(listen.is_intercepted)]);
            // From here on: nobody has looked yet at what the kernel completes.
            let owed = server.shutdown.owe();
            let workers = self.workers.clone();
            worker.spawn(async move {
                server.accept(&listener, &workers, &pulse).await;
                match listen.is_led_to {
                    true => {
                        server.accept_what_was_begun(&listener, &workers, (&pulse, owed)).await;
                    }
                    false => server.accept_the_last(listener, &workers),
                }
            });
        }
        Ok(())
    }
}

/// The connections that leave half of the process's descriptors to upstreams and the rest.
fn affordable(wanted: usize) -> usize {
    let descriptors = system::descriptor_limit().ok().and_then(|limit| usize::try_from(limit).ok());
    let affordable = wanted.min(descriptors.map_or(wanted, |limit| (limit / 2).max(1)));
    if affordable < wanted {
        tracing::warn!(wanted, affordable, "the limit of open descriptors lowers tcp_connections");
    }
    affordable
}

impl Server {
    /// Accepts until the drain begins.
    async fn accept(self: &Arc<Self>, listener: &TcpListener, workers: &[Handle], pulse: &Pulse) {
        let mut next = 0;
        let mut starved = false;
        while !self.shutdown.is_begun() {
            pulse.beat();
            let accepted = tokio::select! {
                accepted = timeout(ACCEPT_ROUND, listener.accept()) => accepted,
                () = self.shutdown.begun() => break,
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
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Ok(Err(_)) => {
                    self.front.metrics.serve.tcp_accept_failures.inc();
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Takes the connections that the kernel has completed: closing the listener would reset them,
    /// with the queries that they carry.
    fn accept_the_last(self: &Arc<Self>, listener: TcpListener, workers: &[Handle]) {
        // Asked of the kernel itself: the runtime may not have heard yet of those that came last.
        let Ok(listener) = listener.into_std() else { return };
        for next in 0..LAST_ACCEPTS {
            let Ok((stream, source)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.seat(stream, source, &workers[next % workers.len()]);
            }
        }
    }

    /// Accepts as long as we live where no new connection is led to any more: those that are being set up would
    /// be reset. They are owed for a while.
    async fn accept_what_was_begun(
        self: &Arc<Self>,
        listener: &TcpListener,
        workers: &[Handle],
        (pulse, owed): (&Pulse, Owed),
    ) {
        let until = clock::now() + SETTING_UP;
        let (mut owed, mut next) = (Some(owed), 0);
        loop {
            pulse.beat();
            owed = owed.filter(|_| clock::now() < until);
            match timeout(ACCEPT_ROUND, listener.accept()).await {
                Ok(Ok((stream, source))) => {
                    next = (next + 1) % workers.len();
                    self.admit(stream, source, &workers[next]);
                }
                Ok(Err(_)) => tokio::time::sleep(ACCEPT_REST).await,
                Err(_elapsed) => {}
            }
        }
    }

    /// Takes a connection from this worker's hands.
    fn admit(self: &Arc<Self>, stream: TcpStream, source: SocketAddr, to: &Handle) {
        if let Ok(stream) = stream.into_std() {
            self.seat(stream, source, to);
        }
    }

    /// Gives a connection to a worker, or closes it when there is no seat for its source.
    fn seat(self: &Arc<Self>, stream: std::net::TcpStream, source: SocketAddr, to: &Handle) {
        let Some(seated) = self.seats.take(source, clock::now()) else {
            self.front.metrics.serve.tcp_refused.inc();
            return;
        };
        let server = Arc::clone(self);
        let owed = self.shutdown.owe();
        to.spawn(async move {
            if let Ok(stream) = TcpStream::from_std(stream) {
                server.converse(stream, seated).await;
            }
            drop(owed);
        });
    }

    /// One connection as long as it lasts; a panic in it ends it alone.
    async fn converse(self: Arc<Self>, stream: TcpStream, seated: Seated) {
        let open = Open::new(&self.front.metrics);
        let serve = &self.front.metrics.serve;
        let source = seated.seat.source;
        let conversation = connection::converse(Arc::clone(&self), stream, seated);
        if AssertUnwindSafe(conversation).catch_unwind().await.is_err() {
            serve.panics.inc();
            tracing::error!(%source, "a panic was caught in a TCP connection");
        }
        drop(open);
    }
}

/// A connection in the gauge.
struct Open(Arc<Metrics>);

impl Open {
    /// One more.
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.serve.tcp_connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.serve.tcp_connections.dec();
    }
}

/// Tells whether an accept failed for want of descriptors or memory, which does not pass at once.
fn is_starvation(error: &io::Error) -> bool {
    let starving = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| starving.contains(&code))
}
