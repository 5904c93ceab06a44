//! A scripted upstream: sees every query as it arrives, and does with it what the test says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::message::{flag, name_to_wire, qtype, read_name, u16_at};
use super::place::free_port;
use super::wire::framed;

/// One query that came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub wire: Vec<u8>,
    pub from: SocketAddr,
    pub at: Instant,
    pub by_tcp: bool,
    /// In lower case, absolute.
    pub qname: String,
    pub qtype: u16,
}

/// What the upstream does with a query.
#[derive(Clone, Debug)]
pub enum Action {
    /// Sends these bytes after that time.
    Send(Vec<u8>, Duration),
    /// Sends several messages at once, in this order.
    SendAll(Vec<Vec<u8>>),
    /// Says nothing.
    Ignore,
}

type Script = dyn Fn(&Seen) -> Action + Send + Sync;

/// A running scripted upstream on one loopback port, UDP and TCP.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    ended: AtomicBool,
}

/// Both sockets of an address.
fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?))
}

impl Sink {
    /// Starts one that treats each query as `script` says.
    pub fn start(script: impl Fn(&Seen) -> Action + Send + Sync + 'static) -> Self {
        // Another test, or a query's source port, may take a free port before we do.
        let bound = (0..100).find_map(|_| bind((Ipv4Addr::LOCALHOST, free_port()).into()).ok());
        Self::on(bound.expect("a free port"), script)
    }

    /// Starts it on `address`.
    pub fn at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Action + Send + Sync + 'static,
    ) -> Self {
        Self::on(bind(address).expect("a free port"), script)
    }

    /// Starts it on sockets of one address.
    fn on(
        (udp, tcp): (UdpSocket, TcpListener),
        script: impl Fn(&Seen) -> Action + Send + Sync + 'static,
    ) -> Self {
        let address = udp.local_addr().expect("a bound socket");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        tcp.set_nonblocking(true).expect("a listener that does not block");
        let (for_udp, for_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || for_udp.serve_udp(&udp)),
            std::thread::spawn(move || for_tcp.serve_tcp(&tcp)),
        ];
        Self { address, shared, threads }
    }

    /// All queries so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic in the upstream").clone()
    }

    /// The queries for `qname` (lower case, absolute) so far.
    pub fn seen_for(&self, qname: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|query| query.qname == qname);
        seen
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Records a query and asks the script; `None` for bytes that are no query.
    fn treat(&self, wire: &[u8], from: SocketAddr, by_tcp: bool) -> Option<Action> {
        let (qname, end) = read_name(wire, 12)?;
        let seen = Seen {
            wire: wire.to_vec(),
            from,
            at: Instant::now(),
            by_tcp,
            qname: qname.to_ascii_lowercase(),
            qtype: u16_at(wire, end)?,
        };
        let action = (self.script)(&seen);
        self.seen.lock().expect("no panic in the upstream").push(seen);
        Some(action)
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        let mut later: Vec<(Instant, Vec<u8>, SocketAddr)> = Vec::new();
        let pause = Duration::from_millis(50);
        while !self.has_ended() {
            let now = Instant::now();
            for (_, message, to) in later.extract_if(.., |(when, _, _)| *when <= now) {
                let _ = socket.send_to(&message, to);
            }
            let next = later.iter().map(|(when, _, _)| when.duration_since(now)).min();
            let wait = next.unwrap_or(pause).clamp(Duration::from_millis(1), pause);
            socket.set_read_timeout(Some(wait)).expect("a timeout");
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
            match self.treat(&buffer[..len], from, false) {
                Some(Action::Send(message, delay)) if delay.is_zero() => {
                    let _ = socket.send_to(&message, from);
                }
                Some(Action::Send(message, delay)) => {
                    later.push((Instant::now() + delay, message, from))
                }
                Some(Action::SendAll(messages)) => {
                    for message in messages {
                        let _ = socket.send_to(&message, from);
                    }
                }
                Some(Action::Ignore) | None => {}
            }
        }
    }

    fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        let mut connections = Vec::new();
        while !self.has_ended() {
            match listener.accept() {
                Ok((stream, from)) => {
                    let shared = Arc::clone(self);
                    connections.push(std::thread::spawn(move || shared.serve_stream(stream, from)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        for connection in connections {
            let _ = connection.join();
        }
    }

    /// Serves one connection, one query after the other.
    fn serve_stream(&self, mut stream: TcpStream, from: SocketAddr) {
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let mut pending = Vec::new();
        let mut buffer = [0; 4096];
        while !self.has_ended() {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => pending.extend(&buffer[..len]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            while let Some(message) = take_message(&mut pending) {
                self.treat_by_tcp(&mut stream, &message, from);
            }
        }
    }

    /// Does with one query of a connection what the script says.
    fn treat_by_tcp(&self, stream: &mut TcpStream, message: &[u8], from: SocketAddr) {
        let (replies, delay) = match self.treat(message, from, true) {
            Some(Action::Send(reply, delay)) => (vec![reply], delay),
            Some(Action::SendAll(replies)) => (replies, Duration::ZERO),
            Some(Action::Ignore) | None => return,
        };
        std::thread::sleep(delay);
        for reply in replies {
            let _ = stream.write_all(&framed(&reply));
        }
    }
}

/// Takes one whole message off the front of a stream's bytes.
fn take_message(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16_at(pending, 0)?);
    let message = pending.get(2..2 + len)?.to_vec();
    pending.drain(..2 + len);
    Some(message)
}

/// One record in wire form, class IN.
pub fn record(owner: &str, rtype: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    let mut wire = name_to_wire(owner);
    wire.extend(rtype.to_be_bytes());
    wire.extend(1u16.to_be_bytes());
    wire.extend(ttl.to_be_bytes());
    wire.extend((rdata.len() as u16).to_be_bytes());
    wire.extend(rdata);
    wire
}

/// A response under construction.
#[derive(Clone, Debug)]
pub struct Reply {
    wire: Vec<u8>,
    counts: [u16; 4],
}

impl Seen {
    /// An empty response to this query: QR and RA set, id, RD, CD and the question's case as they came.
    pub fn reply(&self) -> Reply {
        let (_, end) = read_name(&self.wire, 12).expect("a query that was read before");
        let mut wire = self.wire[..end + 4].to_vec();
        let flags = u16_at(&wire, 2).expect("a header") & (flag::RD | flag::CD);
        wire[2..4].copy_from_slice(&(flags | flag::QR | flag::RA).to_be_bytes());
        Reply { wire, counts: [1, 0, 0, 0] }
    }

    /// The query's OPT record in wire form begins behind the question; its bytes, empty without one.
    pub fn behind_question(&self) -> &[u8] {
        let (_, end) = read_name(&self.wire, 12).expect("a query that was read before");
        &self.wire[end + 4..]
    }
}

impl Reply {
    /// The same with this RCODE.
    pub fn rcode(mut self, rcode: u16) -> Self {
        self.wire[3] = self.wire[3] & 0xf0 | (rcode & 0xf) as u8;
        self
    }

    /// The same with further bits of the flags word.
    pub fn flags(mut self, bits: u16) -> Self {
        for (byte, more) in self.wire[2..4].iter_mut().zip(bits.to_be_bytes()) {
            *byte |= more;
        }
        self
    }

    /// The same without these bits of the flags word.
    pub fn without_flags(mut self, bits: u16) -> Self {
        for (byte, less) in self.wire[2..4].iter_mut().zip(bits.to_be_bytes()) {
            *byte &= !less;
        }
        self
    }

    /// The same with one record more in the answer section, which must be filled first.
    pub fn answer(self, owner: &str, rtype: u16, ttl: u32, rdata: &[u8]) -> Self {
        self.push(1, &record(owner, rtype, ttl, rdata))
    }

    /// The same with one record more in the authority section.
    pub fn authority(self, owner: &str, rtype: u16, ttl: u32, rdata: &[u8]) -> Self {
        self.push(2, &record(owner, rtype, ttl, rdata))
    }

    /// The same with raw record bytes in the additional section (an OPT record), which must be filled last.
    pub fn additional(self, bytes: &[u8]) -> Self {
        self.push(3, bytes)
    }

    /// Appends one record's bytes and counts it to `section` (1 answer, 2 authority, 3 additional).
    fn push(mut self, section: usize, bytes: &[u8]) -> Self {
        self.wire.extend(bytes);
        self.counts[section] += 1;
        self
    }

    /// The same with an A record of the qname.
    pub fn a(self, seen: &Seen, ttl: u32, address: [u8; 4]) -> Self {
        self.answer(&seen.qname, qtype::A, ttl, &address)
    }

    /// The same with an SOA of `example.org` in the authority section.
    pub fn soa(self, ttl: u32, minimum: u32) -> Self {
        self.soa_of("example.org", ttl, minimum)
    }

    /// The same with an SOA of `zone`.
    pub fn soa_of(self, zone: &str, ttl: u32, minimum: u32) -> Self {
        let mut rdata = name_to_wire("ns1.example.org");
        rdata.extend(name_to_wire("hostmaster.example.org"));
        for number in [1, 3600, 600, 86_400, minimum] {
            rdata.extend(u32::to_be_bytes(number));
        }
        self.authority(zone, qtype::SOA, ttl, &rdata)
    }

    /// The message in wire form.
    pub fn into_wire(mut self) -> Vec<u8> {
        for (index, count) in self.counts.iter().enumerate() {
            self.wire[4 + 2 * index..6 + 2 * index].copy_from_slice(&count.to_be_bytes());
        }
        self.wire
    }

    /// Sends it at once.
    pub fn now(self) -> Action {
        Action::Send(self.into_wire(), Duration::ZERO)
    }

    /// Sends it after `delay`.
    pub fn after(self, delay: Duration) -> Action {
        Action::Send(self.into_wire(), delay)
    }
}

/// A script for names that exist: 192.0.2.7 for A, 2001:db8::7 for AAAA, TTL 300, NODATA for the rest.
pub fn ordinary(seen: &Seen) -> Reply {
    let address6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    match seen.qtype {
        qtype::A => seen.reply().a(seen, 300, [192, 0, 2, 7]),
        qtype::AAAA => seen.reply().answer(&seen.qname, qtype::AAAA, 300, &address6),
        _ => seen.reply().soa(300, 60),
    }
}
