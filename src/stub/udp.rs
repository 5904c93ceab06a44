//! One query by UDP from a fresh port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::Message;
use crate::clock;

/// The largest UDP response that is read, in bytes.
const MAX_DATAGRAM: usize = 65_535;

/// Sends `message` and waits for its response; others are passed over.
///
/// # Errors
/// `TimedOut` or `WouldBlock` when the time is over; what the kernel says otherwise.
pub(super) fn exchange(
    server: SocketAddr,
    message: &Message,
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // Connected, the socket hears of a closed port, and of nobody but the server.
    socket.connect(server)?;
    let deadline = clock::now() + timeout;
    socket.send(&message.wire)?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let len = socket.recv(&mut buffer)?;
        let received = buffer.get(..len).unwrap_or_default();
        if message.is_answered_by(received) {
            return Ok(received.to_vec());
        }
    }
}
