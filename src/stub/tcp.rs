//! One query by TCP over a fresh connection.
//!
//! Source: RFC 1035 §4.2.2, RFC 7766

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Message;
use crate::clock;

/// Sends `message` and waits for its response; others are passed over.
///
/// # Errors
/// `TimedOut` or `WouldBlock` when the time is over, `UnexpectedEof` when the server hangs up.
pub(super) fn exchange(
    server: SocketAddr,
    message: &Message,
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let deadline = clock::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    let length = u16::try_from(message.wire.len()).expect("a query is shorter than 64 KiB");
    // One write, so that length and message leave in one segment (RFC 7766 §8).
    stream.write_all(&[&length.to_be_bytes(), &message.wire[..]].concat())?;
    loop {
        let mut length = [0; 2];
        read_exact(&mut stream, &mut length, deadline)?;
        let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
        read_exact(&mut stream, &mut response, deadline)?;
        if message.is_answered_by(&response) {
            return Ok(response);
        }
    }
}

/// The time that is left, never zero.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Fills `buffer`; the deadline holds for all of it, however slowly it trickles.
fn read_exact(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
