//! One query by TCP over a fresh connection, or many over a kept one.
//!
//! Source: RFC 1035 §4.2.2, RFC 7766

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Message;
use crate::clock;
use crate::dns::query::Query;

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
    ask_over(&mut stream, message, deadline)
}

/// A connection that is kept between queries.
pub struct Connection(TcpStream);

impl Connection {
    /// Connects from the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(server: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, timeout)?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Tells whether the server has closed or reset it, or sent what nobody asked for. Only while nothing is owed.
    pub fn is_over(&self) -> bool {
        let looked = self.0.set_nonblocking(true).and_then(|()| self.0.peek(&mut [0]));
        let is_quiet = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.0.set_nonblocking(false).is_err() || !is_quiet
    }

    /// Asks one question and waits for its response.
    ///
    /// # Errors
    /// `TimedOut` or `WouldBlock` when the time is over, others when the connection ended before the response.
    pub fn ask(&mut self, query: &Query, timeout: Duration) -> io::Result<Vec<u8>> {
        ask_over(&mut self.0, &Message::new(query), clock::now() + timeout)
    }
}

/// Sends `message` and waits for its response; others are passed over.
fn ask_over(stream: &mut TcpStream, message: &Message, deadline: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    let length = u16::try_from(message.wire.len()).expect("a query is shorter than 64 KiB");
    // One write, so that length and message leave in one segment (RFC 7766 §8).
    stream.write_all(&[&length.to_be_bytes(), &message.wire[..]].concat())?;
    loop {
        let mut length = [0; 2];
        read_exact(stream, &mut length, deadline)?;
        let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
        read_exact(stream, &mut response, deadline)?;
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
