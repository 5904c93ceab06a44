//! The two kinds of sockets of the intercept: one that holds a private address, one that beats.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// The port on which an instance holds its private addresses: privileged, used by nobody else, and
/// next to the one that is served.
const HOLD_PORT: u16 = 52;

/// Holds a private address: nobody else can while the socket lives, and its end lets go.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "lives to be bound")] Socket);

impl Hold {
    /// Takes `ip`, which no link needs to have yet.
    ///
    /// # Errors
    /// `AddrInUse` while another instance holds it.
    pub fn take(ip: IpAddr) -> io::Result<Self> {
        Self::bind(ip, false)
    }

    /// Takes `ip` together with other instances that share it: nobody can [`Hold::take`] it.
    ///
    /// # Errors
    /// `AddrInUse` while an instance holds it alone.
    pub fn share(ip: IpAddr) -> io::Result<Self> {
        Self::bind(ip, true)
    }

    /// A socket on the address' port of holds.
    fn bind(ip: IpAddr, is_shared: bool) -> io::Result<Self> {
        let address = SocketAddr::new(ip, HOLD_PORT);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        match ip {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            IpAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.set_reuse_port(is_shared)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }
}

/// What became of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The rule ran: it renewed the switch and dropped the datagram.
    Proven,
    /// The datagram went through: there is no such rule.
    Unheard,
}

/// Sends marked datagrams to itself.
#[derive(Debug)]
pub struct Drum {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Drum {
    /// A socket with the mark, on a port of loopback that is ours alone.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_ADMIN.
    pub fn new(mark: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_mark(mark)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let socket = UdpSocket::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The port that tells our beats from those of other instances.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sends one beat.
    ///
    /// # Errors
    /// Whatever is neither a proof nor its absence.
    pub fn beat(&self) -> io::Result<Beat> {
        match self.socket.send_to(&[0], self.address) {
            // The kernel says EPERM when a rule of the output hook drops the datagram.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Beat::Proven),
            Err(error) => Err(error),
            Ok(_) => {
                // Nobody dropped it, so it came to us.
                while self.socket.recv(&mut [0; 8]).is_ok() {}
                Ok(Beat::Unheard)
            }
        }
    }
}
