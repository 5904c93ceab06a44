//! The upstreams that all contenders ask: one thread each for UDP and TCP, with faults on command.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What an upstream does with queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Answer,
    Silent,
    Servfail,
}

/// One upstream; it ends, and its ports are closed, when this is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What its threads share.
struct Shared {
    mode: AtomicU8,
    ttl: AtomicU32,
    delay_ms: AtomicU32,
    /// A records in each answer.
    records: AtomicU32,
    ended: AtomicBool,
    queries: AtomicU64,
    /// Names of queries as they came, while wanted.
    names: Mutex<Option<Vec<Vec<u8>>>>,
    /// Queries by UDP as they came, while wanted.
    sightings: Mutex<Option<Vec<Sighting>>>,
}

/// What a forger would have to guess of a query.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    pub at: Instant,
    pub port: u16,
    pub id: u16,
    /// Letters of the name, and how many of them are upper case.
    pub letters: u16,
    pub upper: u16,
}

impl Upstream {
    /// Opens both ports at `address`; answers are one A record with this TTL in seconds.
    pub fn start(address: SocketAddr, ttl: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            mode: AtomicU8::new(Mode::Answer as u8),
            ttl: AtomicU32::new(ttl),
            delay_ms: AtomicU32::new(0),
            records: AtomicU32::new(1),
            ended: AtomicBool::new(false),
            queries: AtomicU64::new(0),
            names: Mutex::default(),
            sightings: Mutex::default(),
        });
        let udp = UdpSocket::bind(address)?;
        udp.set_read_timeout(Some(Duration::from_millis(20)))?;
        let tcp = TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        let (by_udp, by_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || by_udp.serve_udp(&udp)),
            std::thread::spawn(move || by_tcp.serve_tcp(&tcp)),
        ];
        Ok(Self { address, shared, threads })
    }

    /// Behaves otherwise from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Answers so much later.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u32, Ordering::Relaxed);
    }

    /// Answers with so many A records.
    pub fn set_records(&self, records: u32) {
        self.shared.records.store(records, Ordering::Relaxed);
    }

    /// Queries so far.
    pub fn queries(&self) -> u64 {
        self.shared.queries.load(Ordering::Relaxed)
    }

    /// Begins to note queries by UDP, and gives back those noted before.
    pub fn take_sightings(&self) -> Vec<Sighting> {
        let mut sightings = self.shared.sightings.lock().expect("no panic with it");
        sightings.replace(Vec::new()).unwrap_or_default()
    }

    /// Begins to remember names, and gives back those remembered before.
    pub fn take_names(&self) -> Vec<Vec<u8>> {
        let mut names = self.shared.names.lock().expect("no panic with it");
        names.replace(Vec::new()).unwrap_or_default()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Answers datagrams until the end; late ones wait in a queue of their own.
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        let mut late: std::collections::VecDeque<(Instant, SocketAddr, Vec<u8>)> =
            Default::default();
        while !self.ended.load(Ordering::Relaxed) {
            let wait = late.front().map_or(Duration::from_millis(20), |(due, ..)| {
                due.saturating_duration_since(Instant::now()).max(Duration::from_micros(200))
            });
            let _ = socket.set_read_timeout(Some(wait));
            let received = socket.recv_from(&mut buffer).ok();
            let seen =
                received.inspect(|(length, from)| self.note(&buffer[..*length], from.port()));
            if let Some((length, from)) = seen
                && let Some(response) = self.answer(&buffer[..length], true)
            {
                let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed).into());
                match delay.is_zero() {
                    true => drop(socket.send_to(&response, from)),
                    false => late.push_back((Instant::now() + delay, from, response)),
                }
            }
            while late.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
                if let Some((_, from, response)) = late.pop_front() {
                    let _ = socket.send_to(&response, from);
                }
            }
        }
    }

    /// Notes a query for A by UDP, where that is wanted.
    fn note(&self, query: &[u8], port: u16) {
        let mut sightings = self.sightings.lock().expect("no panic with it");
        let Some(sightings) = sightings.as_mut() else { return };
        // Probes of other types leave from ports of another class.
        let is_a = |end: &usize| query[end - 4..*end] == [0, 1, 0, 1];
        let Some(end) = question_end(query).filter(is_a) else { return };
        let count = |is: fn(&u8) -> bool| query[12..end - 4].iter().filter(|byte| is(byte)).count();
        let [letters, upper] = [u8::is_ascii_alphabetic, u8::is_ascii_uppercase].map(count);
        sightings.push(Sighting {
            at: Instant::now(),
            port,
            id: u16::from_be_bytes([query[0], query[1]]),
            letters: letters as u16,
            upper: upper as u16,
        });
    }

    /// Serves connections, a thread each, until the end.
    fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let this = Arc::clone(self);
                    std::thread::spawn(move || this.serve_connection(stream));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Answers the queries of one connection until either side closes it.
    fn serve_connection(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nonblocking(false).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(50))).ok()?;
        let mut bytes: Vec<u8> = Vec::new();
        let mut buffer = [0; 4096];
        while !self.ended.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => bytes.extend(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return None,
            }
            while bytes.len() >= 2 {
                let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
                if bytes.len() < 2 + length {
                    break;
                }
                let message: Vec<u8> = bytes.drain(..2 + length).skip(2).collect();
                if let Some(response) = self.answer(&message, false) {
                    let framed = u16::try_from(response.len()).ok()?.to_be_bytes();
                    stream.write_all(&[&framed[..], &response].concat()).ok()?;
                }
            }
        }
        None
    }

    /// The response to a query; `None` where there shall be none.
    fn answer(&self, query: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let end = question_end(query)?;
        if let Some(names) = self.names.lock().expect("no panic with it").as_mut() {
            names.push(query[12..end - 4].to_ascii_lowercase());
        }
        let mode = self.mode.load(Ordering::Relaxed);
        if mode == Mode::Silent as u8 {
            return None;
        }
        let is_a = query[end - 4..end] == [0, 1, 0, 1];
        let failed = mode == Mode::Servfail as u8;
        let records = if is_a && !failed { self.records.load(Ordering::Relaxed) } else { 0 };
        let has_edns = query[10..12] != [0, 0];
        let limit = if by_udp { payload_of(query, end) } else { usize::from(u16::MAX) };
        let whole = end + 16 * records as usize + 11;
        let records = if whole > limit { 0 } else { records };
        let mut out = query[..end].to_vec();
        let truncated = if whole > limit { 2 } else { 0 };
        out[2..4].copy_from_slice(&[0x81 | truncated, 0x80 | if failed { 2 } else { 0 }]);
        let counts = [0, 1, 0, records as u8, 0, 0, 0, u8::from(has_edns)];
        out[4..12].copy_from_slice(&counts);
        for n in 0..records {
            out.extend([0xc0, 12, 0, 1, 0, 1]);
            out.extend(self.ttl.load(Ordering::Relaxed).to_be_bytes());
            out.extend([0, 4, 192, 0, 2, n as u8 + 1]);
        }
        if has_edns {
            out.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        Some(out)
    }
}

/// The first byte behind the question of a message.
pub fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    while *message.get(at)? != 0 {
        at += 1 + usize::from(message[at]);
    }
    (at + 5 <= message.len()).then_some(at + 5)
}

/// The largest response that the sender of `query` takes by UDP.
fn payload_of(query: &[u8], end: usize) -> usize {
    match query.get(end..end + 5) {
        Some([0, 0, 41, high, low]) => usize::from(u16::from_be_bytes([*high, *low])).max(512),
        _ => 512,
    }
}
