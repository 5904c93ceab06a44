//! How to reach an upstream by TCP, TLS (RFC 7858) and HTTPS (RFC 8484), through hickory.
//!
//! hickory's own DoT entry point sends no SNI, hence the few lines that put its parts together.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::net::h2::HttpsClientStream;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, Spawn, TokioHandle, TokioTime};
use hickory_resolver::net::tcp::TcpClientStream;
use hickory_resolver::net::tls::tls_client_connect_with_bind_addr;
use hickory_resolver::net::xfer::DnsExchange;
use hickory_resolver::net::{DnsMultiplexer, NetError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::lease::Ports;
use crate::config::Transport;

/// How long a TCP handshake may take: a lost SYN is sent again after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long hickory keeps an exchange; longer than any zone's patience that makes sense.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Queries on one connection at a time, at most.
pub const MAX_ACTIVE: usize = 256;

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
    pub async fn connect(&self) -> Result<DnsExchange<Runtime>, NetError> {
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
