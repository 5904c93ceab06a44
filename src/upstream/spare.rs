//! Sockets that move from port to port: between two exchanges they hold none.
//!
//! A port that a socket was bound to by name stays its own until it is closed. One that the kernel
//! chose while connecting is free again when the connection is dissolved; so the kernel is left one
//! single port to choose from. Making, watching and closing a socket for each exchange costs 4 µs
//! more. Needs Linux 6.3, and a port within `net.ipv4.ip_local_port_range`.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockRef;

/// Bounds what the kernel chooses a port from; the libc crate has no name for it.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// More datagrams than a receive buffer of the usual size holds.
const MAX_QUEUED: usize = 1024;

/// Connects a socket that holds no port to `address`, from `port`; false where this kernel does not
/// take the port from us, after which the socket is of no use.
///
/// # Errors
/// `AddrInUse` when another program holds the port; else what connecting gives.
pub fn connect(socket: &impl AsFd, port: u16, address: SocketAddr) -> io::Result<bool> {
    // An old kernel does not know the option; a sandbox may forbid it.
    if set_port(socket, port).is_err() {
        return Ok(false);
    }
    let socket = SockRef::from(socket);
    match socket.connect(&address.into()) {
        // No other cause is known: the one port of the range was not to be had.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::ErrorKind::AddrInUse.into())
        }
        Err(error) => Err(error),
        // A port outside the system's range is passed over without a word.
        Ok(()) => Ok(socket.local_addr()?.as_socket().is_some_and(|local| local.port() == port)),
    }
}

/// Leaves the kernel one port to choose.
fn set_port(socket: &impl AsFd, port: u16) -> io::Result<()> {
    let range = u32::from(port) << 16 | u32::from(port);
    let (length, value) = (size_of_val(&range), &raw const range);
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while `socket` is borrowed, and `value` points at `length` bytes.
    let result = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_IP,
            IP_LOCAL_PORT_RANGE,
            value.cast(),
            length as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Dissolves the connection that [`connect`] made, and with it the hold on the port.
///
/// # Errors
/// What the kernel says; the port may then be held until the socket is closed.
pub fn disconnect(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sockaddr.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the address has that length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes out what a disconnected socket still holds of its last exchange: datagrams and ICMP errors.
/// Tells whether it is empty now.
///
/// Nothing of it may be judged as a response to the next query, which leaves from another port.
pub fn empty(socket: &UdpSocket) -> bool {
    // Nothing is added: nobody finds a socket that holds no port.
    (0..MAX_QUEUED).any(|_| {
        let received = socket.recv(&mut [0]);
        received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    })
}

#[cfg(test)]
mod tests {
    //! On a kernel that cannot do it there is nothing to see, which is said.

    use super::*;

    /// A socket and the one that it talks to, if this kernel lets a port be given back.
    fn pair(loopback: &str) -> Option<(UdpSocket, UdpSocket)> {
        let upstream = UdpSocket::bind((loopback, 0)).expect("a port");
        let address = upstream.local_addr().expect("bound");
        let kind = socket2::Type::DGRAM.nonblocking();
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new_raw(domain, kind, None).expect("a socket").into();
        if move_on(&socket, address).is_none() {
            eprintln!("skipped: this kernel lets no socket give its port back (Linux 6.3 does)");
            return None;
        }
        Some((socket, upstream))
    }

    /// Connects the socket from a port that is free, and gives it.
    fn move_on(socket: &UdpSocket, address: SocketAddr) -> Option<u16> {
        for _ in 0..100 {
            let free = UdpSocket::bind("0.0.0.0:0").expect("a port").local_addr().expect("bound");
            match connect(socket, free.port(), address) {
                Ok(can) => return can.then_some(free.port()),
                // Another program was faster.
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
        }
        panic!("no port is free");
    }

    #[test]
    fn a_socket_moves_from_port_to_port_and_leaves_each_free() {
        for loopback in ["127.0.0.1", "::1"] {
            let Some((socket, upstream)) = pair(loopback) else { return };
            let address = upstream.local_addr().expect("bound");
            let mut free = 0;
            for round in 1..=20u8 {
                let before = socket.local_addr().expect("bound").port();
                disconnect(&socket).expect("dissolved");
                free += usize::from(UdpSocket::bind((loopback, before)).is_ok());
                let port = move_on(&socket, address);
                socket.send(&[round]).expect("sent");
                let (mut byte, mut from) = ([0], address);
                while byte != [round] {
                    from = upstream.recv_from(&mut byte).expect("received").1;
                }
                assert_eq!(Some(from.port()), port);
            }
            assert!(free > 10, "{free} of 20: another program takes a few at most");
        }
    }

    #[test]
    fn what_came_to_the_last_port_is_forgotten() {
        let Some((socket, upstream)) = pair("127.0.0.1") else { return };
        for _ in 0..3 {
            upstream.send_to(b"late", socket.local_addr().expect("bound")).expect("sent");
        }
        disconnect(&socket).expect("dissolved");
        assert!(empty(&socket));
        move_on(&socket, upstream.local_addr().expect("bound"));
        let error = socket.recv(&mut [0; 8]).expect_err("nothing is there");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_of_another_program_is_in_use() {
        let Some((socket, upstream)) = pair("127.0.0.1") else { return };
        disconnect(&socket).expect("dissolved");
        let other = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let taken = other.local_addr().expect("bound").port();
        let error = connect(&socket, taken, upstream.local_addr().expect("bound"));
        assert_eq!(error.expect_err("it is taken").kind(), io::ErrorKind::AddrInUse);
    }
}
