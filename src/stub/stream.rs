//! Lookups over TCP and TLS: a connection for each, or some that are kept and carry many at once.
//!
//! Source: RFC 7766, RFC 7858

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::demand::{Course, Done, End, Load, Pace};
use super::wanted::{self, Said, Wanted};
use crate::clock;

/// How to speak TLS to a server.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts Mozilla's roots, or only those in `roots` (PEM); the certificate must hold `name`.
    ///
    /// # Errors
    /// When the name is none, or the text holds no certificate.
    pub fn new(name: &str, roots: Option<&[u8]>) -> io::Result<Self> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let bad = |error: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
        };
        let mut store = RootCertStore::empty();
        match roots {
            None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| bad(&error))?;
                    store.add(certificate).map_err(|error| bad(&error))?;
                }
            }
        }
        if store.is_empty() {
            return Err(bad(&"there is no certificate in it"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"dot".to_vec()];
        let name = ServerName::try_from(name.to_owned()).map_err(|error| bad(&error))?;
        Ok(Self { config: Arc::new(config), name })
    }
}

/// Who waits for the response with which id.
type Pending = Rc<RefCell<HashMap<u16, oneshot::Sender<Vec<u8>>>>>;

/// A connection; it ends when this is dropped.
struct Connection {
    out: mpsc::UnboundedSender<Vec<u8>>,
    pending: Pending,
}

/// What all lookups of a thread share.
struct Hub<'a> {
    load: &'a Load,
    /// For each server; TCP where there is none.
    tls: &'a [Option<Tls>],
    kept: RefCell<HashMap<(usize, u64), Rc<Connection>>>,
    course: RefCell<Course>,
}

/// Runs this thread's share of the load; every lookup that ends goes to `take`. `stop` ends it early.
///
/// # Errors
/// When there is no runtime.
pub fn run(
    load: &Load,
    tls: &[Option<Tls>],
    stop: &AtomicBool,
    take: impl FnMut(&Done),
) -> io::Result<Course> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hub = Hub { load, tls, kept: RefCell::default(), course: RefCell::default() };
    LocalSet::new().block_on(&runtime, hub.drive(stop, take));
    Ok(hub.course.into_inner())
}

/// The runtime's clock counts milliseconds: the last of a wait is spent awake.
const COARSE: Duration = Duration::from_millis(2);
/// How often the thread looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

impl Hub<'_> {
    /// Fires what is due and takes what ends, until nothing is left.
    async fn drive(&self, stop: &AtomicBool, mut take: impl FnMut(&Done)) {
        let mut waiting = FuturesUnordered::new();
        let mut turn = self.load.thread.0;
        loop {
            if stop.load(Ordering::Relaxed) {
                let unfinished = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
                self.course.borrow_mut().unfinished = unfinished;
                return;
            }
            turn = self.load.skip_warm_up(turn, clock::now());
            let next = self.next(turn, waiting.len());
            match next {
                Next::Now(server, intended) => {
                    waiting.push(self.lookup(turn, server, intended));
                    turn += self.load.thread.1;
                    let mut course = self.course.borrow_mut();
                    (course.due, course.fired) = (course.due + 1, course.fired + 1);
                }
                Next::Never if waiting.is_empty() => return,
                Next::Never | Next::At(_) => {}
            }
            tokio::select! {
                biased;
                Some(done) = waiting.next() => take(&done),
                () = nap(next) => {}
            }
        }
    }

    /// What is due next.
    fn next(&self, turn: u64, waiting: usize) -> Next {
        let now = clock::now();
        let Some((due, server)) = self.load.due(turn) else { return Next::Never };
        if now >= self.load.end {
            let left = (turn..).step_by(usize::try_from(self.load.thread.1).unwrap_or(1));
            let is_open = matches!(self.load.pace, Pace::Open { .. });
            let count = left.take_while(|turn| is_open && self.load.due(*turn).is_some()).count();
            let mut course = self.course.borrow_mut();
            course.due = course.fired + u64::try_from(count).unwrap_or(0);
            return Next::Never;
        }
        match self.load.pace {
            Pace::Open { .. } if due > now => Next::At(due),
            Pace::Open { .. } => Next::Now(server, due),
            Pace::Closed { in_flight } => {
                let servers = self.load.servers.len();
                let most = usize::try_from(in_flight).unwrap_or(1) * servers;
                if waiting < most { Next::Now(server, now) } else { Next::At(now + LOOK) }
            }
        }
    }

    /// One lookup, to its end.
    async fn lookup(&self, turn: u64, server: usize, intended: Instant) -> Done {
        let left = clock::now();
        let mut done = Done {
            server,
            end: End::GaveUp,
            intended,
            took: Duration::ZERO,
            late: left.saturating_duration_since(intended),
            unread: None,
            sent: 0,
            retries: 0,
            responses: 0,
            rcodes: [None; 2],
            truncated: 0,
        };
        if let Some(wanted) = self.load.wanted.get(self.load.wanted(turn)) {
            self.search(turn, wanted, &mut done).await;
        }
        done.took = clock::now().saturating_duration_since(intended);
        done
    }

    /// Asks for one name after the other until one exists.
    async fn search(&self, turn: u64, wanted: &Wanted, done: &mut Done) {
        for candidate in 0.. {
            let messages = wanted.messages(candidate);
            if messages.is_empty() {
                return;
            }
            let Some(said) = self.persist(turn, messages, done).await else {
                done.end = End::GaveUp;
                return;
            };
            done.end = End::Answered;
            done.responses += u32::try_from(said.len()).unwrap_or(0);
            for (rcode, said) in done.rcodes.iter_mut().zip(&said) {
                *rcode = Some(said.rcode);
            }
            let exists = said.iter().any(|said| said.has_answers || !said.rcode.is_conclusive());
            if exists {
                return;
            }
        }
    }

    /// Asks for one name until the tries are used up.
    async fn persist(
        &self,
        turn: u64,
        messages: &[Box<[u8]>],
        done: &mut Done,
    ) -> Option<Vec<Said>> {
        let count = u32::try_from(messages.len()).unwrap_or(0);
        for attempt in 0..self.load.habit.tries {
            done.sent += count;
            done.retries += if attempt > 0 { count } else { 0 };
            let asked = self.ask(turn, done.server, messages);
            match tokio::time::timeout(self.load.habit.timeout, asked).await {
                Ok(Ok(said)) => return Some(said),
                Ok(Err(error)) => self.note(done.server, &error),
                Err(_) => {}
            }
        }
        None
    }

    /// Remembers why a connection is not to be had.
    fn note(&self, server: usize, error: &io::Error) {
        let mut course = self.course.borrow_mut();
        course.refused += 1;
        let at = self.load.servers.get(server).map_or(String::new(), ToString::to_string);
        course.last_failure = Some(format!("{at}: {error}"));
    }

    /// Asks over a connection and waits for all responses.
    async fn ask(&self, turn: u64, server: usize, messages: &[Box<[u8]>]) -> io::Result<Vec<Said>> {
        let connection = self.connection(turn, server).await?;
        let mut owed = Vec::new();
        let mut bytes = Vec::new();
        for message in messages {
            let (id, response) = connection.claim();
            let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
            bytes.extend(len.to_be_bytes());
            bytes.extend(id.to_be_bytes());
            bytes.extend(message.get(2..).unwrap_or_default());
            owed.push((message, response));
        }
        let gone = || io::Error::from(io::ErrorKind::ConnectionReset);
        // Both in one write, as glibc does.
        connection.out.send(bytes).map_err(|_| gone())?;
        let mut said = Vec::new();
        for (message, response) in owed {
            let response = response.await.map_err(|_| gone())?;
            let other =
                || io::Error::new(io::ErrorKind::InvalidData, "another question's response");
            said.push(wanted::read(message, &response).ok_or_else(other)?);
        }
        Ok(said)
    }

    /// A connection: a new one, or one that is kept and still lives.
    async fn connection(&self, turn: u64, server: usize) -> io::Result<Rc<Connection>> {
        let servers = u64::try_from(self.load.servers.len().max(1)).unwrap_or(1);
        let key = self.load.kept.map(|kept| (server, turn / servers % u64::from(kept.max(1))));
        let living = |key| self.kept.borrow().get(&key).filter(|one| !one.out.is_closed()).cloned();
        if let Some(connection) = key.and_then(living) {
            return Ok(connection);
        }
        let connection = Rc::new(self.connect(turn, server).await?);
        if let Some(key) = key {
            self.kept.borrow_mut().insert(key, Rc::clone(&connection));
        }
        Ok(connection)
    }

    /// Connects, by TLS where that is wanted.
    async fn connect(&self, turn: u64, server: usize) -> io::Result<Connection> {
        let Some(at) = self.load.servers.get(server).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let stream = open(at, self.load.source(turn)).await?;
        let (out, written) = mpsc::unbounded_channel();
        let pending = Pending::default();
        match self.tls.get(server).and_then(Option::as_ref) {
            None => start(stream, written, &pending),
            Some(tls) => {
                let connector = TlsConnector::from(Arc::clone(&tls.config));
                start(connector.connect(tls.name.clone(), stream).await?, written, &pending);
            }
        }
        Ok(Connection { out, pending })
    }
}

/// What is due next.
#[derive(Clone, Copy)]
enum Next {
    Now(usize, Instant),
    At(Instant),
    Never,
}

/// Waits until it is time to look again.
async fn nap(next: Next) {
    let left = match next {
        Next::Now(..) => return,
        Next::At(at) => at.saturating_duration_since(clock::now()),
        Next::Never => LOOK,
    };
    match left.checked_sub(COARSE) {
        Some(long) => tokio::time::sleep(long.min(LOOK)).await,
        None => tokio::task::yield_now().await,
    }
}

/// Opens a TCP connection.
async fn open(server: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Starts what reads and writes a connection, until one of them ends or nobody writes any more.
fn start<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    mut written: mpsc::UnboundedReceiver<Vec<u8>>,
    pending: &Pending,
) {
    let pending = Rc::clone(pending);
    tokio::task::spawn_local(async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let writing = async {
            while let Some(bytes) = written.recv().await {
                writer.write_all(&bytes).await?;
                writer.flush().await?;
            }
            io::Result::Ok(())
        };
        tokio::select! {
            _ = writing => {}
            _ = read_all(&mut reader, &pending) => {}
        }
        // Whoever still waits hears that the connection is gone.
        pending.borrow_mut().clear();
    });
}

/// Hands responses to whom they belong, until the server hangs up.
async fn read_all(reader: &mut (impl AsyncRead + Unpin), pending: &Pending) -> io::Result<()> {
    loop {
        let len = reader.read_u16().await?;
        let mut response = vec![0; usize::from(len)];
        reader.read_exact(&mut response).await?;
        let waiting = pending.borrow_mut().remove(&wanted::id_of(&response));
        if let Some(waiting) = waiting {
            // A lookup that gave up does not wait any more.
            let _ = waiting.send(response);
        }
    }
}

impl Connection {
    /// Takes an id that nobody waits for.
    fn claim(&self) -> (u16, oneshot::Receiver<Vec<u8>>) {
        let mut pending = self.pending.borrow_mut();
        pending.retain(|_, waiting| !waiting.is_closed());
        let mut id: u16 = rand::random();
        while pending.contains_key(&id) && pending.len() < usize::from(u16::MAX) {
            id = id.wrapping_add(1);
        }
        let (sender, receiver) = oneshot::channel();
        pending.insert(id, sender);
        (id, receiver)
    }
}
