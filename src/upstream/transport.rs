//! Kept connections to an upstream by TCP, TLS (RFC 7858) and HTTPS (RFC 8484), through hickory.
//!
//! Each connection carries many queries at once (RFC 7766 §6.2.1.1); ids are drawn at random per
//! connection by hickory's multiplexer. It matches responses by id alone, so whoever asks compares
//! the question. A connection that died costs one reconnect, not the queries on it.
//!
//! hickory's own DoT entry point sends no SNI, hence the few lines that put its parts together.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use hickory_resolver::net::h2::HttpsClientStream;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, Spawn, TokioHandle, TokioTime};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::tls::tls_client_connect_with_bind_addr;
use hickory_resolver::net::xfer::{DnsExchange, FirstAnswer};
use hickory_resolver::net::{DnsHandle, DnsMultiplexer, NetError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::lease::Ports;
use crate::clock;
use crate::config::Transport;
use crate::metrics::UpstreamMetrics;

/// How long a TCP handshake may take: a lost SYN is sent again after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long hickory keeps an exchange; longer than any zone's patience that makes sense.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that gave nothing for so long after a query is replaced.
const SILENCE: Duration = Duration::from_millis(1500);

/// A connection idle for so long is closed, before the upstream does it (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(8);

/// Connections per upstream.
const MAX_CONNECTIONS: usize = 4;

/// Queries on one connection at a time before another one is opened.
const BUSY: usize = 64;

/// Queries on one connection at a time, at most.
const MAX_ACTIVE: usize = 256;

/// hickory's view of the runtime: our sockets, one shared set of tasks.
#[derive(Clone)]
pub struct Runtime {
    // Its tasks die with its last clone.
    handle: TokioHandle,
    ports: Arc<Ports>,
}

impl Runtime {
    /// A runtime whose sockets are made as `ports` says.
    pub fn new(ports: Arc<Ports>) -> Self {
        Self { handle: TokioHandle::default(), ports }
    }
}

impl RuntimeProvider for Runtime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        _timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let ports = Arc::clone(&self.ports);
        Box::pin(async move {
            let socket = match server {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            ports.set_mark(&socket);
            socket.set_nodelay(true)?;
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(server));
            Ok(AsyncIoTokioAsStd(connecting.await.map_err(|_| io::ErrorKind::TimedOut)??))
        })
    }

    fn bind_udp(
        &self,
        _local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        // UDP is ours: hickory would let the kernel choose the port.
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

/// Why a query got no response from a connection.
#[derive(Clone, Debug)]
pub enum Broken {
    /// Every connection carries as many queries as it may.
    Full,
    /// Connected, but nothing came back.
    Silent,
    /// No connection could be made, or it broke twice.
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

/// How to reach an upstream by a stream.
pub struct Dial {
    pub runtime: Runtime,
    pub address: SocketAddr,
    /// [`Transport::Udp`] means the TCP that UDP falls back to.
    pub transport: Transport,
    /// Ready for TLS and HTTPS, or why it is not.
    pub tls: Result<Arc<ClientConfig>, Arc<str>>,
}

impl Dial {
    /// Connects.
    async fn connect(&self) -> Result<DnsExchange<Runtime>, NetError> {
        let (address, runtime) = (self.address, self.runtime.clone());
        let tls = || self.tls.clone().map_err(|reason| NetError::from(reason.to_string()));
        match &self.transport {
            Transport::Udp | Transport::Tcp => {
                let active = Some(MAX_ACTIVE);
                TcpClientStream::exchange(address, None, REQUEST_TIMEOUT, active, runtime).await
            }
            Transport::Tls { server_name } => self.connect_tls(server_name, tls()?).await,
            Transport::Https { server_name, path } => {
                let builder = HttpsClientStream::builder(tls()?, runtime);
                let (name, path) = (server_name.as_str().into(), path.as_str().into());
                builder.exchange(address, name, path).await
            }
        }
    }

    /// Connects by TLS, with SNI and the certificate's name checked.
    async fn connect_tls(
        &self,
        server_name: &str,
        tls: Arc<ClientConfig>,
    ) -> Result<DnsExchange<Runtime>, NetError> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| NetError::from(format!("{server_name} is no server name")))?;
        let runtime = self.runtime.clone();
        let (stream, sender) =
            tls_client_connect_with_bind_addr(self.address, None, name, tls, runtime.clone());
        let multiplexer = DnsMultiplexer::new(stream.await?, sender)
            .with_timeout(REQUEST_TIMEOUT)
            .with_max_active_requests(MAX_ACTIVE);
        let (exchange, background) = DnsExchange::from_stream(multiplexer);
        runtime.create_handle().spawn_bg(background);
        Ok(exchange)
    }
}

/// The kept connections to one upstream, made when needed.
pub struct Connections {
    dial: Dial,
    metrics: UpstreamMetrics,
    /// Locked while one is being made, so that those who need it wait for the same.
    slots: [tokio::sync::Mutex<Slot>; MAX_CONNECTIONS],
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
        Self { dial, metrics, slots: Default::default(), is_shut: AtomicBool::new(false) }
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
        let mut reason = Broken::Full;
        for _ in 0..2 {
            let seat = self.seat().await?;
            match self.patiently(&seat.0, request.clone()).await {
                Ok(message) => return Ok(message),
                Err(NetError::Timeout) => reason = Broken::Silent,
                Err(error) => reason = unreachable(&error),
            }
            // A restarted upstream closes connections with queries on them: one more try.
            self.remove(&seat.0).await;
        }
        Err(reason)
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
            return Err(Broken::Unreachable("the endpoint is gone".into()));
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
            return Err(Broken::Unreachable("the endpoint is gone".into()));
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
