//! How to reach an upstream by TCP, TLS (RFC 7858) and HTTPS (RFC 8484), through hickory.
//!
//! hickory's own DoT entry point sends no SNI and queues 32 queries at most, hence the few lines that put its
//! parts together. Its multiplexer is told no more of a message than it needs to find whose it is: what hickory cannot
//! decode may be an answer all the same.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hickory_proto::op::SerialMessage;
use hickory_resolver::net::h2::HttpsClientStream;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, Spawn, TokioHandle, TokioTime};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::xfer::{DnsClientStream, DnsExchange};
use hickory_resolver::net::{DnsMultiplexer, NetError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

use super::lease::Ports;
use super::tls::Trust;
use crate::config::Transport;
use crate::dns::HEADER_LEN;

/// How long a TCP handshake may take: a lost SYN is sent again after one second. Not so long that an upstream
/// that comes back after that is found late.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long connecting may take in all.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);

/// How long hickory keeps an exchange; longer than any zone's patience that makes sense.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Queries on one connection at a time, at most.
pub const MAX_ACTIVE: usize = 256;

/// Queries that hickory holds for one connection: those and the ones that were given up a moment ago. Many
/// that come at once wait for the turn of its task; what finds no room would look like a broken connection.
const MAX_QUEUED: usize = 2 * MAX_ACTIVE;

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

    /// Connects by TCP.
    async fn connect(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = match server {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        self.ports.set_mark(&socket);
        socket.set_nodelay(true)?;
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(server));
        connecting.await.map_err(|_| io::ErrorKind::TimedOut)?
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
        let this = self.clone();
        Box::pin(async move { Ok(AsyncIoTokioAsStd(this.connect(server).await?)) })
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

/// How to reach an upstream by a stream.
#[derive(Clone)]
pub struct Dial {
    pub runtime: Runtime,
    pub address: SocketAddr,
    /// [`Transport::Udp`] means the TCP that UDP falls back to.
    pub transport: Transport,
    /// For TLS and HTTPS.
    pub trust: Arc<Trust>,
}

impl Dial {
    /// Connects, or says after a while why not.
    pub async fn connect(&self) -> Result<DnsExchange<Runtime>, NetError> {
        let connecting = tokio::time::timeout(DIAL_TIMEOUT, self.connect_somehow());
        connecting.await.unwrap_or(Err(NetError::Timeout))
    }

    /// Connects as the transport says.
    async fn connect_somehow(&self) -> Result<DnsExchange<Runtime>, NetError> {
        let (address, runtime) = (self.address, self.runtime.clone());
        let tls = || self.trust.config().map_err(|reason| NetError::from(reason.to_string()));
        match &self.transport {
            Transport::Udp | Transport::Tcp => {
                Ok(self.multiplex(self.runtime.connect(address).await?))
            }
            Transport::Tls { server_name } => {
                let name = ServerName::try_from(server_name.clone())
                    .map_err(|_| NetError::from(format!("{server_name} is no server name")))?;
                let connector = TlsConnector::from(tls()?);
                let stream = self.runtime.connect(address).await?;
                Ok(self.multiplex(connector.connect(name, stream).await?))
            }
            Transport::Https { server_name, path } => {
                let builder = HttpsClientStream::builder(tls()?, runtime);
                let (name, path) = (server_name.as_str().into(), path.as_str().into());
                builder.exchange(address, name, path).await
            }
        }
    }

    /// Many queries on one stream.
    fn multiplex<S>(&self, stream: S) -> DnsExchange<Runtime>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let stream = AsyncIoTokioAsStd(stream);
        let (stream, sender) = hickory_resolver::net::tcp::TcpStream::from_stream_with_buffer_size(
            stream,
            self.address,
            MAX_QUEUED,
        );
        let stream = Sealed { stream: TcpClientStream::from_stream(stream), at_once: 0 };
        let multiplexer = DnsMultiplexer::new(stream, sender)
            .with_timeout(REQUEST_TIMEOUT)
            .with_max_active_requests(MAX_QUEUED);
        let (exchange, background) = DnsExchange::from_stream(multiplexer);
        self.runtime.create_handle().spawn_bg(background);
        exchange
    }
}

/// A stream of messages whose records hickory does not see: it would pass over those that it cannot decode.
struct Sealed<S> {
    stream: S,
    /// Messages given since it last had none.
    at_once: usize,
}

/// Messages that are given at once. hickory goes no further after 100 of them, and waits for the next query: one
/// TLS record can hold more.
const MAX_AT_ONCE: usize = 50;

impl<S: DnsClientStream> Stream for Sealed<S> {
    type Item = Result<SerialMessage, NetError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.at_once >= MAX_AT_ONCE {
            self.at_once = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.stream.poll_next_unpin(context);
        self.at_once = if next.is_ready() { self.at_once + 1 } else { 0 };
        next.map_ok(|message| {
            let (message, from) = message.into_parts();
            SerialMessage::new(seal(message), from)
        })
    }
}

impl<S: DnsClientStream> DnsClientStream for Sealed<S> {
    type Time = S::Time;

    fn name_server_addr(&self) -> SocketAddr {
        self.stream.name_server_addr()
    }
}

/// Where the four counts of a header stand.
const COUNTS: std::ops::Range<usize> = 4..HEADER_LEN;

/// Moves the counts of a message to its end, so that the header says that nothing follows.
fn seal(mut message: Vec<u8>) -> Vec<u8> {
    if let Some(counts) = message.first_chunk::<HEADER_LEN>().map(|header| header[COUNTS].to_vec())
    {
        message[COUNTS].fill(0);
        message.extend(counts);
    }
    message
}

/// The message that was sealed.
pub fn unseal(mut message: Vec<u8>) -> Vec<u8> {
    if let Some(rest) = message.len().checked_sub(COUNTS.len()).filter(|rest| *rest >= HEADER_LEN) {
        let counts = message.split_off(rest);
        message[COUNTS].copy_from_slice(&counts);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that has a message at any time.
    struct Endless;

    impl Stream for Endless {
        type Item = Result<SerialMessage, NetError>;

        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            let from = self.name_server_addr();
            Poll::Ready(Some(Ok(SerialMessage::new(vec![0; HEADER_LEN], from))))
        }
    }

    impl DnsClientStream for Endless {
        type Time = TokioTime;

        fn name_server_addr(&self) -> SocketAddr {
            ([127, 0, 0, 1], 53).into()
        }
    }

    /// Counts how often a task was woken.
    struct Woken(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn messages_come_in_portions_that_hickory_reads_to_their_end() {
        let woken = Arc::new(Woken(0.into()));
        let waker = Arc::clone(&woken).into();
        let mut context = Context::from_waker(&waker);
        let mut sealed = Sealed { stream: Endless, at_once: 0 };
        for portion in 1..=3 {
            let mut given = 0;
            while sealed.poll_next_unpin(&mut context).is_ready() {
                given += 1;
                assert!(given < 100, "it would go no further, and nobody would wake it");
            }
            assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), portion);
        }
    }

    #[test]
    fn a_sealed_message_comes_out_as_it_was_and_looks_empty_meanwhile() {
        for length in [0, 5, 11, 12, 13, 19, 20, 100, 65_535] {
            let message: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8 + 1).collect();
            let sealed = seal(message.clone());
            assert_eq!(sealed.get(COUNTS).is_some_and(|counts| counts == [0; 8]), length >= 12);
            if length >= 12 {
                assert_eq!(unseal(sealed), message, "{length}");
            }
        }
    }
}
