//! Sockets on source ports: a [`Lease`] is one port in flight, towards one upstream.
//!
//! [`Ports`] puts the allocator of [`ports`](super::ports) behind a lock for the whole process.
//! It refuses to let the kernel choose among ports.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::ports::{Draw, Pools, PoolsOf, PortClass, REST};
use super::spare;
use super::tracks::{Tracks, Trail};
use crate::clock;
use crate::config::PortRange;
use crate::metrics::PortMetrics;

/// How many ports of other programs one draw may meet before it gives up.
const MAX_CONFLICTS: usize = 64;

/// How long a port rests whose conntrack entry was deleted and whose query had its response: nothing more comes.
const CLEAN_REST: Duration = Duration::from_secs(1);

/// The process's source ports and the sockets on them.
#[derive(Debug)]
pub struct Ports {
    pools: Mutex<Pools>,
    metrics: PortMetrics,
    mark: u32,
    /// SO_MARK was refused once; it is not tried again.
    unmarked: AtomicBool,
    /// Descriptors or memory ran out since somebody looked.
    short: AtomicBool,
    /// Sockets keep their ports here until they are closed: see `spare`.
    fixed: AtomicBool,
    pub tracks: Tracks,
}

/// Why there is no socket.
#[derive(Debug)]
pub enum NoSocket {
    /// Every port of the class is in flight, or held by other programs.
    Exhausted,
    /// We ran out of descriptors or memory.
    Shortage,
    /// The kernel refused it: no route.
    Refused(io::Error),
}

impl From<io::Error> for NoSocket {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Shortage,
            _ => Self::Refused(error),
        }
    }
}

impl Ports {
    /// Source ports out of `range`; sockets carry `mark` where that is permitted.
    pub fn new(range: PortRange, mark: u32, metrics: PortMetrics) -> Arc<Self> {
        let pools = Mutex::new(Pools::new(range, clock::now()));
        let [unmarked, short, fixed] = [mark == 0, false, false].map(AtomicBool::new);
        Arc::new(Self { pools, metrics, mark, unmarked, short, fixed, tracks: Tracks::default() })
    }

    /// Adds an upstream to draw ports for, until the value is dropped.
    pub fn towards(self: &Arc<Self>, address: SocketAddr) -> Arc<Towards> {
        let pools = self.lock().add();
        let (trail, conflict) = (Trail::default(), AtomicBool::new(false));
        Arc::new(Towards { ports: Arc::clone(self), pools, address, trail, conflict })
    }

    /// Tells whether descriptors or memory ran out since the last call.
    pub fn take_shortage(&self) -> bool {
        self.short.swap(false, Ordering::Relaxed)
    }

    /// Locks the allocator.
    fn lock(&self) -> std::sync::MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets SO_MARK, until the kernel says once that we may not.
    pub fn set_mark(&self, socket: &impl AsFd) {
        if self.unmarked.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = SockRef::from(socket).set_mark(self.mark)
            && !self.unmarked.swap(true, Ordering::Relaxed)
        {
            tracing::debug!(%error, "upstream sockets carry no mark");
        }
    }
}

/// The source ports towards one upstream.
#[derive(Debug)]
pub struct Towards {
    ports: Arc<Ports>,
    pools: PoolsOf,
    address: SocketAddr,
    trail: Trail,
    /// The last port that was tried was another program's. To be left one port that is taken costs the kernel
    /// 0.45 ms, to be refused one by name nothing: the next one is bound by name.
    conflict: AtomicBool,
}

impl Towards {
    /// Tells whether the conntrack entries of queries to this upstream are deleted behind them.
    pub fn leaves_no_tracks(&self) -> bool {
        self.trail.is_deleted(&self.ports.tracks)
    }

    /// A connected, non-blocking UDP socket on a port of `class` that rests for `rest` afterwards.
    ///
    /// # Errors
    /// [`NoSocket`] says whose fault it is.
    pub fn socket(
        self: &Arc<Self>,
        class: PortClass,
        rest: Duration,
    ) -> Result<(UdpSocket, Lease), NoSocket> {
        // Held until the search ends: within a tick of its rest a port could be drawn again.
        let mut taken_by_others = Vec::new();
        for _ in 0..MAX_CONFLICTS {
            let mut lease = self.lease(class, rest).ok_or(NoSocket::Exhausted)?;
            match self.connect(lease.port) {
                Ok((socket, is_movable)) => {
                    lease.is_movable = is_movable;
                    return Ok((socket, lease));
                }
                Err(error) if self.is_conflict(&error) => taken_by_others.push(lease),
                Err(error) => {
                    let reason = NoSocket::from(error);
                    if matches!(reason, NoSocket::Shortage) {
                        self.ports.short.store(true, Ordering::Relaxed);
                    }
                    return Err(reason);
                }
            }
        }
        self.ports.metrics.exhausted.inc();
        Err(NoSocket::Exhausted)
    }

    /// Connects a socket without a port from one of `class` that rests for `rest` afterwards.
    ///
    /// # Errors
    /// [`NoSocket`]; where it is `Refused`, a new socket may do better.
    pub fn renew(
        self: &Arc<Self>,
        socket: &UdpSocket,
        class: PortClass,
        rest: Duration,
    ) -> Result<Lease, NoSocket> {
        let mut lease = self.lease(class, rest).ok_or(NoSocket::Exhausted)?;
        let taken = self.take(socket, lease.port);
        lease.is_movable = *taken.as_ref().unwrap_or(&false);
        match taken {
            Ok(true) => Ok(lease),
            Ok(false) => Err(NoSocket::Refused(io::ErrorKind::Unsupported.into())),
            Err(error) => {
                self.is_conflict(&error);
                Err(error.into())
            }
        }
    }

    /// Tells whether another program holds the port, and remembers it.
    fn is_conflict(&self, error: &io::Error) -> bool {
        let is_conflict = error.kind() == io::ErrorKind::AddrInUse;
        if is_conflict {
            self.ports.metrics.conflicts.inc();
            self.conflict.store(true, Ordering::Relaxed);
        }
        is_conflict
    }

    /// Draws a port; `None` when all of the class are in flight.
    fn lease(self: &Arc<Self>, class: PortClass, rest: Duration) -> Option<Lease> {
        let metrics = &self.ports.metrics;
        let port = match self.ports.lock().draw(self.pools, class, clock::now(), &mut rand::rng()) {
            Draw::Rested(port) => port,
            Draw::Unrested(port) => {
                metrics.unrested.inc();
                port
            }
            Draw::Exhausted => {
                metrics.exhausted.inc();
                return None;
            }
        };
        Some(Lease { towards: Arc::clone(self), port, rest, is_movable: false })
    }

    /// Makes the socket on `port`; tells whether it can give the port back.
    fn connect(&self, port: u16) -> io::Result<(UdpSocket, bool)> {
        let by_name = self.conflict.swap(false, Ordering::Relaxed);
        if !by_name && !self.ports.fixed.load(Ordering::Relaxed) {
            let socket = self.open()?;
            if self.take(&socket, port)? {
                return Ok((socket.into(), true));
            }
        }
        let local = match self.address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        let socket = self.open()?;
        socket.bind(&local.into())?;
        socket.connect(&self.address.into())?;
        Ok((socket.into(), false))
    }

    /// Connects a socket without a port from `port`, so that it can be given back; false: not here.
    fn take(&self, socket: &impl AsFd, port: u16) -> io::Result<bool> {
        let taken = spare::connect(socket, port, self.address)?;
        if !taken && !self.ports.fixed.swap(true, Ordering::Relaxed) {
            tracing::debug!(port, "sockets keep their ports: each exchange gets a new one");
        }
        Ok(taken)
    }

    /// A socket without a port.
    fn open(&self) -> io::Result<Socket> {
        // Both flags ride on the type, which saves two system calls.
        let kind = Type::DGRAM.cloexec().nonblocking();
        let domain = Domain::for_address(self.address);
        let socket = Socket::new_raw(domain, kind, Some(Protocol::UDP))?;
        if self.address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.ports.set_mark(&socket);
        Ok(socket)
    }
}

impl Drop for Towards {
    fn drop(&mut self) {
        self.ports.lock().remove(self.pools);
    }
}

/// One source port in flight; it rests when this is dropped, after its socket.
#[derive(Debug)]
pub struct Lease {
    towards: Arc<Towards>,
    port: u16,
    rest: Duration,
    is_movable: bool,
}

impl Lease {
    /// Tells whether the port can be given back without closing the socket on it.
    pub fn is_movable(&self) -> bool {
        self.is_movable
    }

    /// Deletes the conntrack entry of the exchange on `socket`, which is about to give up its port. `settled`: no
    /// response is to come any more.
    pub fn end(&mut self, socket: &UdpSocket, settled: bool) {
        let Towards { ports, address, trail, .. } = &*self.towards;
        let deleted = trail.forget(&ports.tracks, socket, *address);
        if deleted > 0 {
            ports.metrics.tracks_deleted.inc_by(deleted);
        }
        if self.towards.leaves_no_tracks() {
            self.rest = self.rest.min(if settled { CLEAN_REST } else { REST });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.towards.ports.lock().release(self.towards.pools, self.port, clock::now(), self.rest);
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    /// A small range that the kernel never hands out by itself here.
    fn small_range() -> (Arc<Ports>, PortMetrics, PortRange) {
        let metrics = PortMetrics::default();
        let first = 20_000 + 30 * rand::rng().random_range(0..300);
        let range = PortRange { first, last: first + 29, reserved: Vec::new() };
        (Ports::new(range.clone(), 0, metrics.clone()), metrics, range)
    }

    #[test]
    fn a_port_of_another_program_is_passed_by_and_counted() {
        let (ports, metrics, range) = small_range();
        let towards = ports.towards("127.0.0.1:9".parse().expect("an address"));
        let ours: Vec<_> =
            range.usable().filter(|port| PortClass::of_port(*port) == PortClass::A).collect();
        let _others: Vec<_> =
            ours[..9].iter().map(|port| UdpSocket::bind(("0.0.0.0", *port))).collect();
        let (socket, _lease) = towards.socket(PortClass::A, REST).expect("one is left");
        assert_eq!(socket.local_addr().expect("bound").port(), ours[9]);
        assert!(metrics.conflicts.get() <= 9);
        let again = towards.socket(PortClass::A, REST);
        assert!(matches!(again, Err(NoSocket::Exhausted)), "{again:?}");
        assert!(metrics.conflicts.get() >= 9 && metrics.exhausted.get() == 1);
    }

    #[test]
    fn a_lease_gives_its_port_back_when_it_ends() {
        let (ports, metrics, _) = small_range();
        let towards = ports.towards("[::1]:9".parse().expect("an address"));
        for _ in 0..25 {
            let (socket, lease) = towards.socket(PortClass::Aaaa, REST).expect("a port");
            let local = socket.local_addr().expect("bound");
            assert_eq!(
                (local.port(), PortClass::of_port(local.port())),
                (lease.port, PortClass::Aaaa)
            );
        }
        assert_eq!(metrics.unrested.get(), 15, "ten ports, each used once before its rest");
    }

    #[test]
    fn sockets_carry_the_mark_where_that_is_permitted_and_none_is_tried_where_it_is_not() {
        const MARK: u32 = 0x306e;
        let range = PortRange { first: 29_000, last: 29_299, reserved: Vec::new() };
        let plain = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let is_permitted = SockRef::from(&plain).set_mark(MARK).is_ok();
        for (mark, expected) in [(MARK, if is_permitted { MARK } else { 0 }), (0, 0)] {
            let ports = Ports::new(range.clone(), mark, PortMetrics::default());
            let towards = ports.towards("127.0.0.1:9".parse().expect("an address"));
            let (socket, _lease) = towards.socket(PortClass::A, REST).expect("a port");
            assert_eq!(SockRef::from(&socket).mark().expect("readable"), expected);
            let is_tried = !ports.unmarked.load(Ordering::Relaxed);
            assert_eq!(is_tried, mark != 0 && is_permitted);
        }
    }
}
