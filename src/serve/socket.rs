//! The front ends' system calls: sockets with their options, batches of datagrams, links' prefixes.
//!
//! The only unsafe code of `serve`. Everything above works on slices and values.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Listen, Network, Serve};

/// Datagrams that one system call moves at most.
pub const BATCH: usize = 32;

/// The largest datagram that is read or written whole, in bytes; longer queries are malformed.
pub const DATAGRAM: usize = 4096;

/// Room for one IP_PKTINFO or IPV6_PKTINFO control message.
const CONTROL: usize = 64;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 1024;

/// The index of the drop counter in what SO_MEMINFO gives (`SK_MEMINFO_DROPS`).
const MEMINFO_DROPS: usize = 8;

/// Control messages must be aligned like their header.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Who sent a datagram, and to which of our addresses: what a response needs to go back.
#[derive(Clone, Copy)]
pub struct Peer {
    name: libc::sockaddr_storage,
    name_len: libc::socklen_t,
    control: Control,
    control_len: usize,
}

impl Peer {
    const fn empty() -> Self {
        // SAFETY: sockaddr_storage is plain old data; all zeroes is a valid value (AF_UNSPEC).
        let name = unsafe { mem::zeroed() };
        Self { name, name_len: 0, control: Control([0; CONTROL]), control_len: 0 }
    }

    /// The source address.
    pub fn source(&self) -> SocketAddr {
        match i32::from(self.name.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel wrote a sockaddr_in; sockaddr_storage is at least as large and aligned.
                let v4 = unsafe { &*(&raw const self.name).cast::<libc::sockaddr_in>() };
                let address = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
                SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into()
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for sockaddr_in6.
                let v6 = unsafe { &*(&raw const self.name).cast::<libc::sockaddr_in6>() };
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                SocketAddrV6::new(address, port, v6.sin6_flowinfo, v6.sin6_scope_id).into()
            }
            _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// Makes the received control message fit for sending: the address stays, the link is left to
    /// routing but for link-local addresses.
    fn prepare_reply(&mut self) {
        let header_len = size_of::<libc::cmsghdr>();
        if self.control_len < header_len {
            self.control_len = 0;
            return;
        }
        // SAFETY: control is aligned for cmsghdr and longer than one; the kernel filled it.
        let header = unsafe { &*self.control.0.as_ptr().cast::<libc::cmsghdr>() };
        let data = header_len;
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => self.control.0[data..data + 4].fill(0),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let is_link_local =
                    self.control.0[data] == 0xfe && self.control.0[data + 1] & 0xc0 == 0x80;
                if !is_link_local {
                    self.control.0[data + 16..data + 20].fill(0);
                }
            }
            _ => self.control_len = 0,
        }
    }
}

/// One UDP socket of the front end.
pub struct UdpSocket {
    socket: Socket,
    /// Bound to no single address: responses need IP_PKTINFO to leave from the one that was asked.
    wildcard: bool,
}

impl UdpSocket {
    /// Binds one of possibly many sockets (SO_REUSEPORT) on the address.
    ///
    /// # Errors
    /// As the kernel says; buffer sizes that it does not grant are no error.
    pub fn bind(listen: &Listen, serve: &Serve) -> io::Result<Self> {
        let socket = open(listen, Type::DGRAM)?;
        socket.set_reuse_port(true)?;
        set_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, serve.receive_buffer)?;
        set_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, serve.send_buffer)?;
        let wildcard = listen.address.ip().is_unspecified();
        if wildcard {
            match listen.address {
                SocketAddr::V4(_) => set_int(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
                SocketAddr::V6(_) => {
                    set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                }
            }
        }
        socket.bind(&listen.address.into())?;
        Ok(Self { socket, wildcard })
    }

    /// Datagrams that the kernel has dropped because the receive buffer was full, since `bind`.
    pub fn drops(&self) -> u64 {
        let mut info = [0u32; MEMINFO_DROPS + 1];
        let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
        // SAFETY: info and len outlive the call and len says how large info is.
        let result = unsafe {
            libc::getsockopt(
                self.raw(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result == 0 { u64::from(info[MEMINFO_DROPS]) } else { 0 }
    }

    /// Sends one datagram without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full; others as the kernel says.
    pub fn send(&self, peer: &Peer, bytes: &[u8]) -> io::Result<()> {
        let mut peer = *peer;
        let mut iov = iovec(bytes.as_ptr().cast_mut(), bytes.len());
        let header = header(&mut peer, &mut iov, self.wildcard);
        // SAFETY: header points at peer, iov and bytes, which outlive the call; the kernel only reads.
        let sent = unsafe { libc::sendmsg(self.raw(), &raw const header, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Waits until one of `sockets` can be read, at most `timeout_ms`; marks which in `ready`.
pub fn wait_readable(
    sockets: &[std::sync::Arc<UdpSocket>],
    timeout_ms: i32,
    ready: &mut Vec<bool>,
) {
    let mut polls: Vec<libc::pollfd> = sockets
        .iter()
        .map(|socket| libc::pollfd { fd: socket.raw(), events: libc::POLLIN, revents: 0 })
        .collect();
    let count = libc::nfds_t::try_from(polls.len()).unwrap_or(0);
    // SAFETY: polls is an array of `count` initialised pollfd.
    unsafe { libc::poll(polls.as_mut_ptr(), count, timeout_ms) };
    ready.clear();
    ready.extend(polls.iter().map(|poll| poll.revents != 0));
}

/// Waits until `socket` can be written, at most `timeout_ms`.
pub fn wait_writable(socket: &UdpSocket, timeout_ms: i32) {
    let mut poll = libc::pollfd { fd: socket.raw(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll is one initialised pollfd.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
}

/// Datagrams as received, up to [`BATCH`].
pub struct Inbox {
    peers: Vec<Peer>,
    buffers: Vec<[u8; DATAGRAM]>,
    lens: [usize; BATCH],
}

impl Default for Inbox {
    /// Empty, with room for a whole batch.
    fn default() -> Self {
        Self {
            peers: vec![Peer::empty(); BATCH],
            buffers: vec![[0; DATAGRAM]; BATCH],
            lens: [0; BATCH],
        }
    }
}

impl Inbox {
    /// Receives what is there, without waiting; gives back how many datagrams.
    ///
    /// Errors of earlier sends (ICMP) may come back here; they are the caller's to ignore.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut iovs: [libc::iovec; BATCH] =
            std::array::from_fn(|i| iovec(self.buffers[i].as_mut_ptr(), DATAGRAM));
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
            let peer = &mut self.peers[i];
            peer.name_len = socklen::<libc::sockaddr_storage>();
            peer.control_len = CONTROL;
            libc::mmsghdr { msg_hdr: header(peer, &mut iovs[i], socket.wildcard), msg_len: 0 }
        });
        // SAFETY: headers point at peers, iovs and buffers, which all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.raw(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (i, header) in headers.iter().enumerate().take(count) {
            self.peers[i].name_len = header.msg_hdr.msg_namelen;
            self.peers[i].control_len = header.msg_hdr.msg_controllen;
            if socket.wildcard {
                self.peers[i].prepare_reply();
            }
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            // What was cut off must not look whole: a cut message is malformed in any case.
            self.lens[i] = if truncated { DATAGRAM } else { header.msg_len as usize };
        }
        Ok(count)
    }

    /// The bytes of datagram `i` of the last batch.
    pub fn datagram(&self, i: usize) -> &[u8] {
        &self.buffers[i][..self.lens[i].min(DATAGRAM)]
    }

    /// The sender of datagram `i` of the last batch.
    pub fn peer(&self, i: usize) -> &Peer {
        &self.peers[i]
    }
}

/// Responses to one batch, sent together.
pub struct Outbox {
    buffers: Vec<[u8; DATAGRAM]>,
    /// Length, and the index of the datagram that is answered.
    filled: Vec<(usize, usize)>,
}

impl Default for Outbox {
    /// Empty, with room for a whole batch.
    fn default() -> Self {
        Self { buffers: vec![[0; DATAGRAM]; BATCH], filled: Vec::with_capacity(BATCH) }
    }
}

impl Outbox {
    /// The buffer that the next [`Outbox::commit`] sends.
    pub fn slot(&mut self) -> &mut [u8; DATAGRAM] {
        &mut self.buffers[self.filled.len()]
    }

    /// Takes the first `len` bytes of [`Outbox::slot`] as the response to datagram `i`.
    pub fn commit(&mut self, i: usize, len: usize) {
        self.filled.push((len, i));
    }

    /// Sends everything and empties the box; gives back how many the kernel did not take.
    ///
    /// Waits a moment when the send buffer is full, once per batch.
    pub fn send(&mut self, socket: &UdpSocket, inbox: &mut Inbox) -> usize {
        let total = self.filled.len();
        let mut iovs: [libc::iovec; BATCH] =
            std::array::from_fn(|k| iovec(self.buffers[k].as_mut_ptr(), self.len_of(k)));
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|k| {
            let peer = self.filled.get(k).map_or(0, |(_, i)| *i);
            let msg_hdr = header(&mut inbox.peers[peer], &mut iovs[k], socket.wildcard);
            libc::mmsghdr { msg_hdr, msg_len: 0 }
        });
        let (mut done, mut lost, mut waited) = (0, 0, false);
        while done < total {
            let rest = &mut headers[done..total];
            // SAFETY: headers point at peers, iovs and buffers, which outlive the call; `rest` has that length.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.raw(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) if is_full() && !waited => {
                    waited = true;
                    wait_writable(socket, 5);
                }
                // The first one is refused: skip it, the others may still go.
                Err(_) => (done, lost) = (done + 1, lost + 1),
            }
        }
        self.filled.clear();
        lost
    }

    fn len_of(&self, k: usize) -> usize {
        self.filled.get(k).map_or(0, |(len, _)| *len)
    }
}

/// Tells whether the last system call failed for want of buffer space.
fn is_full() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

/// A message header over `peer` and `iov`; with control data on a wildcard socket only.
fn header(peer: &mut Peer, iov: &mut libc::iovec, wildcard: bool) -> libc::msghdr {
    // SAFETY: msghdr is plain old data; all zeroes is a valid (empty) value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = (&raw mut peer.name).cast();
    header.msg_namelen = peer.name_len;
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    if wildcard && peer.control_len > 0 {
        header.msg_control = peer.control.0.as_mut_ptr().cast();
        header.msg_controllen = peer.control_len;
    }
    header
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("socket structures are small")
}

/// A non-blocking, close-on-exec socket for the address' family and device, not yet bound.
fn open(listen: &Listen, kind: Type) -> io::Result<Socket> {
    let domain = Domain::for_address(listen.address);
    let protocol = if kind == Type::DGRAM { Protocol::UDP } else { Protocol::TCP };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if listen.address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(device) = &listen.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    Ok(socket)
}

/// A TCP socket that listens (SO_REUSEPORT, so that a new instance may take over).
///
/// # Errors
/// As the kernel says.
pub fn tcp(listen: &Listen) -> io::Result<std::net::TcpListener> {
    let socket = open(listen, Type::STREAM)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&listen.address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds without SO_REUSEPORT and lets go again: fails when anybody else is there.
///
/// # Errors
/// The protocol that is taken, and what the kernel said.
pub fn probe(listen: &Listen) -> Result<(), (&'static str, io::Error)> {
    let address = listen.address.into();
    let udp = open(listen, Type::DGRAM).and_then(|socket| socket.bind(&address));
    udp.map_err(|error| ("UDP", error))?;
    let tcp = open(listen, Type::STREAM).and_then(|socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&address)?;
        socket.listen(1)
    });
    tcp.map_err(|error| ("TCP", error))
}

/// Sets a buffer size, beyond the system's limit where we are permitted to.
fn set_buffer(socket: &Socket, force: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    // The kernel doubles what it is given, for its own bookkeeping.
    match set_int(socket, libc::SOL_SOCKET, force, bytes / 2) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            set_int(socket, libc::SOL_SOCKET, plain, bytes / 2)
        }
        result => result,
    }
}

/// Sets an integer socket option.
fn set_int(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option value is an i32 that outlives the call, and its length is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            socklen::<i32>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The networks of this host's own addresses.
///
/// # Errors
/// As `getifaddrs` says.
pub fn interface_networks() -> io::Result<Vec<Network>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut networks = Vec::new();
    let mut next = first;
    // SAFETY: the list is valid until freeifaddrs; each entry is read through a checked pointer.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: both pointers come from the kernel's list and are null or valid sockaddrs.
        let (address, mask) = unsafe { (ip_of(entry.ifa_addr), ip_of(entry.ifa_netmask)) };
        if let (Some(address), Some(mask)) = (address, mask) {
            networks.push(Network { address, prefix: prefix_of(mask) });
        }
    }
    // SAFETY: first came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(networks)
}

/// The leading ones of a netmask.
fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(v4) => v4.to_bits().leading_ones(),
        IpAddr::V6(v6) => v6.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(128)
}

/// The IP address in a socket address.
///
/// # Safety
/// `address` is null or points at a valid sockaddr of its family's size.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = &*address.cast::<libc::sockaddr_in>();
                Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*address.cast::<libc::sockaddr_in6>();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// Raises the limit of open descriptors to what the system permits; gives it back.
///
/// # Errors
/// As `setrlimit` says.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit outlives the call and is written by it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: limit outlives the call and is only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}
