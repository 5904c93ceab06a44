//! Source ports: which one a query may leave from, for how long a port rests, and the sockets on them.
//!
//! The rule that a capture shows is [`PortClass::of_port`]. [`Pools`] is the pure allocator, `now`
//! passed in; [`Ports`] puts it behind a lock for the whole process; a [`Lease`] is one port in
//! flight. It refuses to let the kernel choose a port, and never binds port 0 for UDP.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::clock;
use crate::config::PortRange;
use crate::dns::Qtype;
use crate::metrics::PortMetrics;

/// How long the port of a single query rests: the kernel's unreplied UDP conntrack timeout.
pub const REST: Duration = Duration::from_secs(30);

/// How long the port of a kept socket rests: the conntrack timeout of a UDP flow seen both ways.
pub const POOLED_REST: Duration = Duration::from_secs(120);

/// How many ports of other programs one draw may meet before it gives up.
const MAX_CONFLICTS: usize = 64;

/// The source ports that one qtype family may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortClass {
    A,
    Aaaa,
    /// Every other qtype.
    Other,
}

impl PortClass {
    /// All classes, in the order of their remainders.
    pub const ALL: [Self; 3] = [Self::A, Self::Aaaa, Self::Other];

    /// The class of a source port: port mod 3, where 0 is A, 1 is AAAA and 2 is everything else.
    pub fn of_port(port: u16) -> Self {
        Self::ALL[usize::from(port % 3)]
    }

    /// The class of a query.
    pub fn of_qtype(qtype: Qtype) -> Self {
        match qtype {
            Qtype::A => Self::A,
            Qtype::AAAA => Self::Aaaa,
            _ => Self::Other,
        }
    }
}

impl PortRange {
    /// The ports that may be used: the range without reserved ones and without port 0, ascending.
    pub fn usable(&self) -> impl Iterator<Item = u16> {
        (self.first.max(1)..=self.last).filter(|port| self.reserved.binary_search(port).is_err())
    }
}

/// What a draw gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// A port whose rest was over.
    Rested(u16),
    /// None had rested; this one has for longest.
    Unrested(u16),
    /// Every port of the class is in flight.
    Exhausted,
}

/// The ports of one class towards one upstream.
#[derive(Debug, Default)]
struct Pool {
    /// Free and rested, in no order.
    rested: Vec<u16>,
    /// End of the rest in [`Pools::tenths`], then the port.
    resting: BinaryHeap<Reverse<(u32, u16)>>,
}

impl Pool {
    /// Moves what has rested until `now` to the rested ones.
    fn settle(&mut self, now: u32) {
        while let Some(Reverse((due, port))) = self.resting.peek().copied() {
            if due > now {
                return;
            }
            self.resting.pop();
            self.rested.push(port);
        }
    }

    /// Takes a port uniformly at random among the rested ones that `busy` does not name.
    fn take_rested(&mut self, busy: &Bits, rng: &mut impl Rng) -> Option<u16> {
        let mut candidates = self.rested.len();
        while candidates > 0 {
            let index = rng.random_range(0..candidates);
            if !busy.holds(self.rested[index]) {
                return Some(self.rested.swap_remove(index));
            }
            // In flight towards another upstream: set aside, and draw among the others.
            candidates -= 1;
            self.rested.swap(index, candidates);
        }
        None
    }

    /// Takes the port whose rest ends first and that `busy` does not name.
    fn take_resting(&mut self, busy: &Bits) -> Option<u16> {
        let mut passed = Vec::new();
        let mut taken = None;
        while let Some(Reverse((due, port))) = self.resting.pop() {
            if !busy.holds(port) {
                taken = Some(port);
                break;
            }
            passed.push(Reverse((due, port)));
        }
        self.resting.extend(passed);
        taken
    }
}

/// A set of ports, one bit each.
#[derive(Debug)]
struct Bits(Box<[u64; 1024]>);

impl Bits {
    fn holds(&self, port: u16) -> bool {
        self.0[usize::from(port >> 6)] & (1 << (port & 63)) != 0
    }

    fn set(&mut self, port: u16, held: bool) {
        let bit = 1 << (port & 63);
        let word = &mut self.0[usize::from(port >> 6)];
        *word = if held { *word | bit } else { *word & !bit };
    }
}

/// One upstream's place in [`Pools`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolsOf(usize);

/// The allocator: ports in flight of the whole process, and who rests towards which upstream.
///
/// About 60 kB per upstream over the usual range while idle, at most 190 kB while all ports rest.
#[derive(Debug)]
pub struct Pools {
    range: PortRange,
    start: Instant,
    /// In flight, whatever the upstream.
    busy: Bits,
    /// Three pools per upstream; `None` where an upstream was forgotten.
    upstreams: Vec<Option<[Pool; 3]>>,
}

impl Pools {
    /// An allocator over `range` with nothing in flight.
    pub fn new(range: PortRange, now: Instant) -> Self {
        let busy = Bits(Box::new([0; 1024]));
        Self { range, start: now, busy, upstreams: Vec::new() }
    }

    /// Adds an upstream, all of whose ports have rested.
    pub fn add(&mut self) -> PoolsOf {
        let mut pools = <[Pool; 3]>::default();
        for port in self.range.usable() {
            pools[PortClass::of_port(port) as usize].rested.push(port);
        }
        let free = self.upstreams.iter().position(Option::is_none);
        let place = free.unwrap_or(self.upstreams.len());
        if free.is_none() {
            self.upstreams.push(None);
        }
        self.upstreams[place] = Some(pools);
        PoolsOf(place)
    }

    /// Forgets an upstream; its leases must have ended.
    pub fn remove(&mut self, upstream: PoolsOf) {
        if let Some(place) = self.upstreams.get_mut(upstream.0) {
            *place = None;
        }
    }

    /// Draws a port and marks it as in flight.
    pub fn draw(
        &mut self,
        upstream: PoolsOf,
        class: PortClass,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Draw {
        let now = self.tenths(now);
        let Some(Some(pools)) = self.upstreams.get_mut(upstream.0) else { return Draw::Exhausted };
        let pool = &mut pools[class as usize];
        pool.settle(now);
        let draw = match pool.take_rested(&self.busy, rng) {
            Some(port) => Draw::Rested(port),
            None => pool.take_resting(&self.busy).map_or(Draw::Exhausted, Draw::Unrested),
        };
        if let Draw::Rested(port) | Draw::Unrested(port) = draw {
            self.busy.set(port, true);
        }
        draw
    }

    /// Ends the flight of a drawn port, which then rests until `now + rest`.
    pub fn release(&mut self, upstream: PoolsOf, port: u16, now: Instant, rest: Duration) {
        // Rounded up: a rest is never shorter than said.
        let due = self.tenths(now + rest) + 1;
        self.busy.set(port, false);
        if let Some(Some(pools)) = self.upstreams.get_mut(upstream.0) {
            pools[PortClass::of_port(port) as usize].resting.push(Reverse((due, port)));
        }
    }

    /// Tenths of a second since the allocator's start, good for 13 years.
    fn tenths(&self, at: Instant) -> u32 {
        let tenths = at.saturating_duration_since(self.start).as_millis() / 100;
        u32::try_from(tenths).unwrap_or(u32::MAX - 1)
    }
}

/// The process's source ports and the sockets on them.
#[derive(Debug)]
pub struct Ports {
    pools: Mutex<Pools>,
    metrics: PortMetrics,
    mark: u32,
    /// SO_MARK was refused once; it is not tried again.
    unmarked: AtomicBool,
}

/// Why there is no socket.
#[derive(Debug)]
pub enum NoSocket {
    /// Every port of the class is in flight, or held by other programs.
    Exhausted,
    /// The kernel refused it: no route, no descriptor.
    Refused(io::Error),
}

impl Ports {
    /// Source ports out of `range`; sockets carry `mark` where that is permitted.
    pub fn new(range: PortRange, mark: u32, metrics: PortMetrics) -> Arc<Self> {
        let pools = Mutex::new(Pools::new(range, clock::now()));
        Arc::new(Self { pools, metrics, mark, unmarked: AtomicBool::new(mark == 0) })
    }

    /// Adds an upstream to draw ports for, until the value is dropped.
    pub fn towards(self: &Arc<Self>, address: SocketAddr) -> Arc<Towards> {
        let pools = self.lock().add();
        Arc::new(Towards { ports: Arc::clone(self), pools, address })
    }

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
}

impl Towards {
    /// A connected, non-blocking UDP socket on a port of `class` that rests for `rest` afterwards.
    ///
    /// # Errors
    /// [`NoSocket`] says whose fault it is.
    pub fn socket(
        self: &Arc<Self>,
        class: PortClass,
        rest: Duration,
    ) -> Result<(UdpSocket, Lease), NoSocket> {
        for _ in 0..MAX_CONFLICTS {
            let lease = self.lease(class, rest).ok_or(NoSocket::Exhausted)?;
            match self.connect(lease.port) {
                Ok(socket) => return Ok((socket, lease)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    self.ports.metrics.conflicts.inc();
                }
                Err(error) => return Err(NoSocket::Refused(error)),
            }
        }
        self.ports.metrics.exhausted.inc();
        Err(NoSocket::Exhausted)
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
        Some(Lease { towards: Arc::clone(self), port, rest })
    }

    /// Makes the socket on `port`.
    fn connect(&self, port: u16) -> io::Result<UdpSocket> {
        let (domain, local) = match self.address {
            SocketAddr::V4(_) => (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            SocketAddr::V6(_) => (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        };
        // Both flags ride on the type, which saves two system calls.
        let kind = Type::DGRAM.cloexec().nonblocking();
        let socket = Socket::new_raw(domain, kind, Some(Protocol::UDP))?;
        if self.address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.ports.set_mark(&socket);
        socket.bind(&local.into())?;
        socket.connect(&self.address.into())?;
        Ok(socket.into())
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
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.towards.ports.lock().release(self.towards.pools, self.port, clock::now(), self.rest);
    }
}
