//! Many UDP sockets of one thread: who has something to read, and datagrams in batches.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use super::MAX_BATCH as BATCH;
use crate::clock;

/// The largest datagram that is read, in bytes: what is behind is not looked at.
const DATAGRAM: usize = 2048;
/// Room for one control message: the kernel's stamp.
const CONTROL: usize = size_of::<libc::cmsghdr>() + size_of::<libc::timespec>();
/// Sockets that one look tells about at most.
const EVENTS: usize = 256;

/// Opens a socket to `server`, from `source` or any address, from `port` or one that the kernel draws.
///
/// # Errors
/// What the kernel says: no descriptor, no port, no route.
pub(super) fn open(server: SocketAddr, source: Option<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let domain = socket2::Domain::for_address(server);
    let kind = socket2::Type::DGRAM.nonblocking();
    let socket = socket2::Socket::new(domain, kind, None)?;
    if port != 0 {
        socket.bind(&SocketAddr::new(source.unwrap_or(any), port).into())?;
    } else if let Some(source) = source.filter(|source| *source != any) {
        // The port is drawn when the peer is known: it may be in use towards another one.
        switch_on(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    stamp(&socket);
    socket.connect(&server.into())?;
    Ok(socket.into())
}

/// Lets the kernel stamp datagrams when they come. Where it does not, the time of reading counts.
fn stamp(socket: &socket2::Socket) {
    let _ = switch_on(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS);
}

/// Sets a socket's option to 1.
fn switch_on(socket: &socket2::Socket, level: i32, option: i32) -> io::Result<()> {
    let (on, len) = (1_i32, libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4));
    let value = (&raw const on).cast();
    // SAFETY: the kernel reads one int that outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A receive buffer for many responses at once.
pub(super) fn widen(socket: &UdpSocket) {
    // As much as the kernel allows; less is no failure.
    let _ = socket2::SockRef::from(socket).set_recv_buffer_size(8 << 20);
}

/// Raises the limit of open descriptors as far as it may be; gives back what it is then.
pub fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read and write one rlimit that outlives them.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    limit.rlim_cur
}

/// Lets the kernel wake the calling thread on time, instead of 50 µs later.
pub(super) fn wake_on_time() {
    // SAFETY: sets one number of the calling thread, in nanoseconds.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
}

/// How often the calling thread has had to leave its core to others.
pub(super) fn preemptions() -> u64 {
    // SAFETY: rusage is plain old data, all zeroes are a valid one; the call writes one that outlives it.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    u64::try_from(usage.ru_nivcsw).unwrap_or(0)
}

/// Puts the calling thread on the `number`-th of the CPUs that it may use, counted round.
pub fn pin(number: u64) {
    // SAFETY: cpu_set_t is a bit field, all zeroes are a valid one; both calls get one that outlives them.
    unsafe {
        let mut allowed: libc::cpu_set_t = mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed);
        let most = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        let own: Vec<_> = (0..most).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed)).collect();
        let at = usize::try_from(number).unwrap_or(0) % own.len().max(1);
        let Some(cpu) = own.get(at) else { return };
        let mut one: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(*cpu, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
}

/// Tells which sockets have something to read.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes a flag only.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS] })
    }

    /// Watches a socket, called `token`, until it is closed.
    ///
    /// # Errors
    /// When the kernel has no room.
    pub(super) fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        let (epoll, socket) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: both descriptors are open; the event is copied.
        match unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits at most `patience`, to the microsecond; the tokens of those that have something.
    pub(super) fn wait(&mut self, patience: Duration, tokens: &mut Vec<u64>) {
        tokens.clear();
        if !patience.is_zero() {
            self.sleep(patience);
        }
        let room = i32::try_from(EVENTS).unwrap_or(i32::MAX);
        let events = self.events.as_mut_ptr();
        // SAFETY: there is room for EVENTS events; a timeout of 0 does not wait.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events, room, 0) };
        let ready = self.events.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
        tokens.extend(ready.iter().map(|event| event.u64));
    }

    /// Waits for any socket; epoll itself counts whole milliseconds only.
    fn sleep(&self, patience: Duration) {
        let time = libc::timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut watched =
            libc::pollfd { fd: self.epoll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd and one timespec that outlive the call; no signal mask.
        unsafe { libc::ppoll(&raw mut watched, 1, &raw const time, std::ptr::null()) };
    }
}

/// Datagrams that leave together from one connected socket.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Outbox {
    /// Puts a message in, with its id.
    pub(super) fn push(&mut self, message: &[u8], id: u16) {
        self.bytes.extend(id.to_be_bytes());
        self.bytes.extend(message.get(2..).unwrap_or_default());
        self.ends.push(self.bytes.len());
    }

    /// Tells whether a batch is full.
    pub(super) fn is_full(&self) -> bool {
        self.ends.len() >= BATCH
    }

    /// Sends all; what the kernel refuses to send is lost as if on the way.
    pub(super) fn flush(&mut self, socket: &UdpSocket) {
        match self.ends.len() {
            0 => return,
            // The plain call is the quicker one, and what an application makes.
            1 => drop(socket.send(&self.bytes)),
            _ => self.send_together(socket),
        }
        self.bytes.clear();
        self.ends.clear();
    }

    /// Sends all in as few calls as can be.
    fn send_together(&self, socket: &UdpSocket) {
        let mut start = 0;
        // SAFETY: iovec and mmsghdr are plain old data; all zeroes are valid values.
        let (mut parts, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let count = self.ends.len().min(BATCH);
        for ((end, part), head) in self.ends.iter().zip(&mut parts).zip(&mut heads) {
            let datagram = self.bytes.get(start..*end).unwrap_or_default();
            part.iov_base = datagram.as_ptr().cast_mut().cast();
            part.iov_len = datagram.len();
            head.msg_hdr.msg_iov = part;
            head.msg_hdr.msg_iovlen = 1;
            start = *end;
        }
        let mut sent = 0;
        while let Some(rest) = heads.get_mut(sent..count).filter(|rest| !rest.is_empty()) {
            let len = u32::try_from(rest.len()).unwrap_or(0);
            // SAFETY: each header points at one iovec, and that into bytes; all outlive the call.
            let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), len, 0) };
            // One that is refused is left out; those behind it still leave.
            sent += usize::try_from(done).unwrap_or(1).max(1);
        }
    }
}

/// When a datagram was read, and when it had come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) read: Instant,
    /// By the kernel's stamp; `None` where there is none.
    pub(super) stamped: Option<Instant>,
}

/// Aligned like the header of a control message.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Datagrams that were received together.
pub(super) struct Inbox {
    buffers: Vec<[u8; DATAGRAM]>,
    controls: Vec<Control>,
    lens: [usize; BATCH],
    arrivals: [Arrival; BATCH],
    /// The kernel stamps as long as some socket wants it: not anew with each of the short-lived ones.
    _stamped: socket2::Socket,
}

impl Inbox {
    /// Nothing yet.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub(super) fn new() -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        stamp(&socket);
        Ok(Self {
            buffers: vec![[0; DATAGRAM]; BATCH],
            controls: vec![Control([0; CONTROL]); BATCH],
            lens: [0; BATCH],
            arrivals: [Arrival { read: clock::now(), stamped: None }; BATCH],
            _stamped: socket,
        })
    }

    /// Receives what is there, at most `most` datagrams; tells how many.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, `ConnectionRefused` when nobody listens there.
    pub(super) fn receive(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        // SAFETY: iovec and mmsghdr are plain old data; all zeroes are valid values.
        let (mut parts, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let most = most.min(BATCH);
        let rooms = self.buffers.iter_mut().zip(&mut self.controls);
        for ((room, part), head) in rooms.zip(&mut parts).zip(&mut heads).take(most) {
            // What an earlier datagram left there is not this one's.
            room.1.0.fill(0);
            part.iov_base = room.0.as_mut_ptr().cast();
            part.iov_len = DATAGRAM;
            head.msg_hdr.msg_iov = part;
            head.msg_hdr.msg_iovlen = 1;
            head.msg_hdr.msg_control = room.1.0.as_mut_ptr().cast();
            // A size_t or a socklen_t, as the C library has it.
            head.msg_hdr.msg_controllen = CONTROL as _;
        }
        let len = u32::try_from(most).unwrap_or(0);
        let (fd, no_time) = (socket.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: each header points at a control buffer and at one iovec, and that at a buffer of its length;
        // all outlive the call. Flags are a signed or an unsigned word, as the C library has it.
        let done = unsafe {
            libc::recvmmsg(fd, heads.as_mut_ptr(), len, libc::MSG_DONTWAIT as _, no_time)
        };
        let count = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
        // Both clocks are read once: what lies between the readings makes latencies longer, never shorter.
        let (wall, read) = (clock::wall(), clock::now());
        let places = self.lens.iter_mut().zip(&mut self.arrivals).zip(&self.controls);
        for (((len, arrival), control), head) in places.zip(&heads).take(count) {
            *len = usize::try_from(head.msg_len).unwrap_or(0);
            let age = control.stamp().and_then(|stamp| wall.duration_since(stamp).ok());
            *arrival = Arrival { read, stamped: age.and_then(|age| read.checked_sub(age)) };
        }
        Ok(count)
    }

    /// The datagram `index` of the last batch.
    pub(super) fn datagram(&self, index: usize) -> &[u8] {
        let (buffer, len) = (self.buffers.get(index), self.lens.get(index));
        let both = buffer.zip(len);
        both.and_then(|(buffer, len)| buffer.get(..*len)).unwrap_or_default()
    }
    /// When the datagram `index` of the last batch came.
    pub(super) fn arrival(&self, index: usize) -> Arrival {
        let none = || Arrival { read: clock::now(), stamped: None };
        self.arrivals.get(index).copied().unwrap_or_else(none)
    }
}

impl Control {
    /// The kernel's stamp, by the wall clock.
    fn stamp(&self) -> Option<SystemTime> {
        // SAFETY: control is aligned for a header and longer than one.
        let header = unsafe { &*self.0.as_ptr().cast::<libc::cmsghdr>() };
        let is_stamp =
            (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS);
        if !is_stamp {
            return None;
        }
        let number = |at: usize| {
            let bytes = self.0.get(at..at + 8)?.try_into().ok()?;
            u64::try_from(i64::from_ne_bytes(bytes)).ok()
        };
        let data = size_of::<libc::cmsghdr>();
        let nanos = u32::try_from(number(data + 8)?).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(number(data)?, nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_datagram_that_lies_unread_came_when_the_kernel_stamped_it() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let socket = open(server.local_addr().expect("bound"), None, 0).expect("a socket");
        let mut inbox = Inbox::new().expect("a descriptor");
        let (before, lies) = (clock::now(), Duration::from_millis(50));
        let to = socket.local_addr().expect("connected");
        // The kernel may begin to stamp a moment after it is asked to: the last one counts.
        for _ in 0..3 {
            server.send_to(b"response", to).expect("sent");
            thread::sleep(lies);
        }
        assert_eq!(inbox.receive(&socket, 3).expect("they are there"), 3);
        let Arrival { read, stamped } = inbox.arrival(2);
        let stamped = stamped.expect("a stamp");
        assert!(read.duration_since(stamped) >= lies, "{:?}", read.duration_since(stamped));
        assert!(stamped >= before);
        assert_eq!(inbox.datagram(2), b"response");
    }
}
