//! Open-loop load: queries leave at a steady pace, whatever comes back, and nothing is sent twice.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::process::query;

/// Sockets that queries leave from in turns; each has 65,536 ids of its own.
const SOCKETS: usize = 8;

/// A response that comes later than this counts as none.
const PATIENCE: Duration = Duration::from_secs(5);

/// One query and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Since the run's start.
    pub sent: Duration,
    /// Until the response; `None` without one.
    pub took: Option<Duration>,
    pub rcode: u8,
    /// The last byte of the response: of the address that was answered.
    pub tail: u8,
}

impl Ask {
    /// Tells whether an answer came within `limit`.
    pub fn is_within(&self, limit: Duration) -> bool {
        self.rcode == 0 && self.took.is_some_and(|took| took <= limit)
    }
}

/// What the receivers note of a query, in atomics: microseconds when sent and received, and the rest.
#[derive(Default)]
struct Slot {
    sent: AtomicU64,
    received: AtomicU64,
    /// RCODE, then the response's last byte.
    said: AtomicU32,
}

/// Asks `server` for `name(n)` at `rate` queries per second for `span`.
pub fn run(
    server: SocketAddr,
    rate: u32,
    span: Duration,
    name: impl Fn(usize) -> String,
) -> Vec<Ask> {
    let count = (f64::from(rate) * span.as_secs_f64()) as usize;
    let slots: Vec<Slot> = (0..count).map(|_| Slot::default()).collect();
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(|_| socket(server)).collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (place, socket) in sockets.iter().enumerate() {
            let slots = &slots;
            let until = start + span + PATIENCE;
            scope.spawn(move || receive(socket, place, slots, start, until));
        }
        for (n, slot) in slots.iter().enumerate() {
            let due = start + span.mul_f64(n as f64 / count as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let wire = query((n / SOCKETS) as u16, &name(n), None);
            slot.sent.store(start.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
            let _ = sockets[n % SOCKETS].send(&wire);
        }
    });
    slots.iter().map(Slot::ask).collect()
}

/// A connected socket with room for bursts.
fn socket(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    let size = libc::c_int::from(4i16) << 20;
    let length = size_of_val(&size) as libc::socklen_t;
    // SAFETY: a system call on an open socket, with a value that outlives it.
    unsafe {
        use std::os::fd::AsRawFd;
        let value = (&raw const size).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, length);
    }
    socket
}

/// Notes responses until all are there or the time is over.
fn receive(socket: &UdpSocket, place: usize, slots: &[Slot], start: Instant, until: Instant) {
    let mut buffer = [0; 4096];
    let mut left = slots.len() / SOCKETS + usize::from(place < slots.len() % SOCKETS);
    while left > 0 && Instant::now() < until {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let at = start.elapsed().as_micros() as u64;
        if length < 12 {
            continue;
        }
        let n = usize::from(u16::from_be_bytes([buffer[0], buffer[1]])) * SOCKETS + place;
        let Some(slot) = slots.get(n) else { continue };
        let tail = if buffer[11] == 0 { length - 1 } else { length - 12 };
        let said = u32::from(buffer[3] & 15) | u32::from(buffer[tail]) << 8;
        slot.said.store(said, Ordering::Relaxed);
        if slot.received.swap(at, Ordering::Relaxed) == 0 {
            left -= 1;
        }
    }
}

impl Slot {
    /// What became of the query.
    fn ask(&self) -> Ask {
        let (sent, received) =
            (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        let said = self.said.load(Ordering::Relaxed);
        let took = (received > 0).then(|| Duration::from_micros(received.saturating_sub(sent)));
        Ask {
            sent: Duration::from_micros(sent),
            took: took.filter(|took| *took <= PATIENCE),
            rcode: said as u8,
            tail: (said >> 8) as u8,
        }
    }
}

/// How late the latest of `asks` left, where they were to leave evenly over `span`.
pub fn late(asks: &[Ask], span: Duration) -> Duration {
    let due = |n: usize| span.mul_f64(n as f64 / asks.len() as f64);
    let lates = asks.iter().enumerate().map(|(n, ask)| ask.sent.saturating_sub(due(n)));
    lates.max().unwrap_or_default()
}

/// The share of `asks` that were answered within `limit`, in percent.
pub fn share(asks: &[Ask], limit: Duration) -> f64 {
    let within = asks.iter().filter(|ask| ask.is_within(limit)).count();
    100.0 * within as f64 / asks.len().max(1) as f64
}

/// The wait that `part` of the queries stayed within, those without an answer counted as endless, in ms.
pub fn quantile(asks: &[Ask], part: f64) -> f64 {
    let wait = |ask: &Ask| ask.took.filter(|_| ask.rcode == 0).map(|took| took.as_secs_f64() * 1e3);
    let mut waits: Vec<f64> = asks.iter().map(|ask| wait(ask).unwrap_or(f64::INFINITY)).collect();
    waits.sort_by(f64::total_cmp);
    let place = ((waits.len() as f64 * part).ceil() as usize).clamp(1, waits.len().max(1));
    waits.get(place - 1).copied().unwrap_or(f64::NAN)
}

/// A wait in milliseconds as the report writes it.
pub fn millis(wait: f64, digits: usize) -> String {
    if wait.is_finite() { format!("{wait:.digits$}ms") } else { "never".to_owned() }
}
