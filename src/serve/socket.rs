//! The front ends' sockets with their options, and waiting for them.
//!
//! Unsafe code of `serve` stands here, in [`super::batch`] and in [`super::system`] only; everything
//! above works on slices and values.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Listen, Serve};

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 1024;

/// The index of the drop counter in what SO_MEMINFO gives (`SK_MEMINFO_DROPS`).
const MEMINFO_DROPS: usize = 8;

/// One UDP socket of the front end.
pub struct UdpSocket {
    socket: Socket,
    /// Bound to no single address: responses need IP_PKTINFO to leave from the one that was asked.
    pub(super) wildcard: bool,
    /// What comes here was sent to an intercepted address.
    pub(super) is_intercepted: bool,
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
        Ok(Self { socket, wildcard, is_intercepted: listen.is_intercepted })
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

    /// Makes the kernel bring no more datagrams: another socket on the address gets them, or their
    /// sender learns at once that nobody is here. What has come can still be read, and responses go.
    ///
    /// A socket that is not read but still open, because responses are owed, would swallow queries.
    pub fn stop_receiving(&self) {
        // Connected to its own address, where nobody else can send from. When that fails, queries
        // are lost until the last response has gone.
        if let Err(error) = self.socket.local_addr().and_then(|own| self.socket.connect(&own)) {
            tracing::debug!(%error, "the socket goes on receiving");
        }
    }

    /// The address that it is bound to.
    #[cfg(test)]
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr().map(|address| address.as_socket().expect("an IP socket"))
    }

    /// The descriptor, for system calls.
    pub(super) fn raw(&self) -> RawFd {
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

/// The size of a socket structure, as system calls want it.
pub(super) fn socklen<T>() -> libc::socklen_t {
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
    if listen.is_intercepted {
        // Who else starts or ends may have removed the address at this moment; it comes back.
        match listen.address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
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

/// Sets a buffer size, beyond the system's limit where we are permitted to; else what it grants, which is
/// said once.
fn set_buffer(socket: &Socket, force: i32, plain: i32, bytes: usize) -> io::Result<()> {
    /// One line for all sockets.
    static SAID: Once = Once::new();
    let asked = i32::try_from(bytes).unwrap_or(i32::MAX);
    // The kernel doubles what it is given, for its own bookkeeping.
    match set_int(socket, libc::SOL_SOCKET, force, asked / 2) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            set_int(socket, libc::SOL_SOCKET, plain, asked / 2)?;
        }
        result => return result,
    }
    let granted = match plain {
        libc::SO_RCVBUF => socket.recv_buffer_size()?,
        _ => socket.send_buffer_size()?,
    };
    if granted < bytes {
        SAID.call_once(|| {
            tracing::warn!(
                asked = bytes,
                granted,
                "socket buffers are smaller than asked for: without CAP_NET_ADMIN they end at \
                 net.core.rmem_max and net.core.wmem_max"
            );
        });
    }
    Ok(())
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
