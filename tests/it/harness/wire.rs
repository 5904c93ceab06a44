//! The ways to a server: one datagram, or one TCP connection with its framing in our own hands.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::message::{Answer, Ask, u16_at};

/// How long a test waits for a response that must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a test waits to be sure that nothing comes.
pub const SILENCE: Duration = Duration::from_millis(400);

/// A stub resolver's UDP socket, connected to one server.
pub struct Udp(pub UdpSocket);

impl Udp {
    /// A socket on any port towards `server`.
    pub fn to(server: SocketAddr) -> Self {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Self::from(any, server)
    }

    /// A socket on any port of `source` towards `server`.
    pub fn from(source: IpAddr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((source, 0)).expect("a free port");
        socket.connect(server).expect("a route to the server");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(socket)
    }

    /// Sends any bytes.
    pub fn send(&self, bytes: &[u8]) {
        self.0.send(bytes).expect("the kernel takes the datagram");
    }

    /// The next datagram, or `None` when none came for `wait`.
    pub fn receive(&self, wait: Duration) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(wait)).expect("a timeout");
        let mut buffer = vec![0; 65_535];
        let len = self.0.recv(&mut buffer).ok()?;
        buffer.truncate(len);
        Some(buffer)
    }

    /// Sends a query and reads its response; messages with other ids are passed over.
    pub fn exchange(&self, ask: &Ask) -> Answer {
        self.send(&ask.to_wire());
        self.answer_to(ask.id, PATIENCE)
            .unwrap_or_else(|| panic!("no response to {} {}", ask.qname, ask.qtype))
    }

    /// The response with `id`, if it comes within `wait` of the message before it.
    pub fn answer_to(&self, id: u16, wait: Duration) -> Option<Answer> {
        loop {
            let answer = Answer::read(&self.receive(wait)?);
            if answer.id == id {
                return Some(answer);
            }
        }
    }
}

/// A stub resolver's TCP connection.
pub struct Tcp(pub TcpStream);

impl Tcp {
    /// A connection to `server`.
    pub fn to(server: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&server, PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self(stream)
    }

    /// Sends one message with its length in one write.
    pub fn send(&mut self, message: &[u8]) {
        self.0.write_all(&framed(message)).expect("the connection takes the message");
    }

    /// The next message; `None` when the connection ends or nothing came for `wait`.
    pub fn receive(&mut self, wait: Duration) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(wait)).expect("a timeout");
        let mut length = [0; 2];
        self.0.read_exact(&mut length).ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut message).ok()?;
        Some(message)
    }

    /// Sends a query and reads the next response, which must be its own.
    pub fn exchange(&mut self, ask: &Ask) -> Answer {
        self.send(&ask.to_wire());
        let message = self.receive(PATIENCE);
        let answer = Answer::read(
            &message.unwrap_or_else(|| panic!("no response to {} {}", ask.qname, ask.qtype)),
        );
        assert_eq!(answer.id, ask.id);
        answer
    }

    /// Tells whether the other side ends the connection (FIN or RST) within `wait`.
    pub fn ends_within(&mut self, wait: Duration) -> bool {
        self.0.set_read_timeout(Some(wait)).expect("a timeout");
        match self.0.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => panic!("bytes came where an end was expected"),
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// A message with its two length bytes.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = (message.len() as u16).to_be_bytes().to_vec();
    out.extend(message);
    out
}

/// One query by UDP from a port of its own.
pub fn udp(server: SocketAddr, ask: &Ask) -> Answer {
    Udp::to(server).exchange(ask)
}

/// One query by TCP on a connection of its own.
pub fn tcp(server: SocketAddr, ask: &Ask) -> Answer {
    Tcp::to(server).exchange(ask)
}

/// Sends bytes from a port of their own; what comes back, if anything does.
pub fn raw_udp(server: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let socket = Udp::to(server);
    socket.send(bytes);
    let wait = if expects_nothing(bytes) { SILENCE } else { PATIENCE };
    socket.receive(wait)
}

/// Tells whether DESIGN §8 answers these bytes with silence, so that waiting long is of no use.
fn expects_nothing(bytes: &[u8]) -> bool {
    bytes.len() < 12 || u16_at(bytes, 2).is_some_and(|flags| flags & 0x8000 != 0)
}
