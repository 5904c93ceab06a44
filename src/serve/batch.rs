//! Datagrams in batches: received together, answered together, each with its sender.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::socket::{UdpSocket, socklen, wait_writable};

/// Datagrams that one system call moves at most.
pub const BATCH: usize = 32;

/// The largest datagram that is read or written whole, in bytes; longer queries are malformed.
pub const DATAGRAM: usize = 4096;

/// Room for one IP_PKTINFO or IPV6_PKTINFO control message.
const CONTROL: usize = 40;

/// Control messages must be aligned like their header.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Who sent a datagram, and to which of our addresses: what a response needs to go back.
#[derive(Clone, Copy)]
pub struct Peer {
    /// Room for a sockaddr_in too.
    name: libc::sockaddr_in6,
    name_len: libc::socklen_t,
    control: Control,
    control_len: usize,
}

impl Peer {
    /// Nobody yet.
    const fn empty() -> Self {
        // SAFETY: sockaddr_in6 is plain old data; all zeroes is a valid value (AF_UNSPEC).
        let name = unsafe { mem::zeroed() };
        Self { name, name_len: 0, control: Control([0; CONTROL]), control_len: 0 }
    }

    /// The source address.
    pub fn source(&self) -> SocketAddr {
        match i32::from(self.name.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the kernel wrote a sockaddr_in; sockaddr_in6 is at least as large and aligned.
                let v4 = unsafe { &*(&raw const self.name).cast::<libc::sockaddr_in>() };
                let address = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
                SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into()
            }
            libc::AF_INET6 => {
                let v6 = &self.name;
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

impl UdpSocket {
    /// Sends the first responses, at most [`BATCH`], without waiting; gives back how many.
    ///
    /// # Errors
    /// Why the first one was not sent: `WouldBlock` when the send buffer is full; others as the kernel
    /// says.
    pub fn send<'a>(
        &self,
        responses: impl Iterator<Item = &'a mut (Peer, Vec<u8>)>,
    ) -> io::Result<usize> {
        let mut iovs = [iovec(std::ptr::null_mut(), 0); BATCH];
        // SAFETY: mmsghdr is plain old data; all zeroes is a valid (empty) value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut count = 0;
        for (((peer, wire), iov), slot) in responses.zip(&mut iovs).zip(&mut headers) {
            *iov = iovec(wire.as_mut_ptr(), wire.len());
            slot.msg_hdr = header(peer, iov, self.wildcard);
            count += 1;
        }
        send(self, &mut headers[..count])
    }
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
            peer.name_len = socklen::<libc::sockaddr_in6>();
            peer.control_len = CONTROL;
            libc::mmsghdr { msg_hdr: header(peer, &mut iovs[i], socket.wildcard), msg_len: 0 }
        });
        // SAFETY: headers point at peers, iovs and buffers, which all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.raw(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                // A signed or an unsigned word, as the C library has it.
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (i, header) in headers.iter().enumerate().take(count) {
            self.peers[i].name_len = header.msg_hdr.msg_namelen;
            // A size_t with glibc, a socklen_t with musl.
            self.peers[i].control_len = header.msg_hdr.msg_controllen as _;
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

    /// Drops what was committed after the first `count` responses.
    pub fn keep(&mut self, count: usize) {
        self.filled.truncate(count);
    }

    /// Sends everything and empties the box; gives back how many the kernel did not take.
    ///
    /// Waits a moment when the send buffer is full, once per batch.
    pub fn send(&mut self, socket: &UdpSocket, inbox: &mut Inbox) -> usize {
        let total = self.filled.len();
        if total == 0 {
            return 0;
        }
        let mut iovs: [libc::iovec; BATCH] =
            std::array::from_fn(|k| iovec(self.buffers[k].as_mut_ptr(), self.len_of(k)));
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|k| {
            let peer = self.filled.get(k).map_or(0, |(_, i)| *i);
            let msg_hdr = header(&mut inbox.peers[peer], &mut iovs[k], socket.wildcard);
            libc::mmsghdr { msg_hdr, msg_len: 0 }
        });
        let (mut done, mut lost, mut waited) = (0, 0, false);
        while done < total {
            match send(socket, &mut headers[done..total]) {
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
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

    /// The length of the `k`-th response; 0 where there is none.
    fn len_of(&self, k: usize) -> usize {
        self.filled.get(k).map_or(0, |(len, _)| *len)
    }
}

/// Sends datagrams without waiting; gives back how many went. Headers point at what their caller holds.
fn send(socket: &UdpSocket, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let count = libc::c_uint::try_from(headers.len()).expect("at most BATCH");
    // SAFETY: headers are initialised and `count` of them; their callers hold the peers, iovs and buffers
    // that they point at until this returns, and the kernel only reads those.
    let sent = unsafe {
        libc::sendmmsg(socket.raw(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A buffer as system calls want it.
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
        header.msg_controllen = peer.control_len as _;
    }
    header
}
