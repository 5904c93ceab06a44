//! A stub resolver of our own: asks one server and waits, as an application does.
//!
//! It refuses to cache, to choose among servers and to follow aliases. Read [`ask`] first: one question,
//! synchronous. [`pair`] asks several at the same instant, [`load`] at any rate, [`flow`] many from kept
//! sockets, [`tcp`] over kept connections; [`engine`] and [`stream`] ask as the bench does, at any rate
//! from one thread; [`habit`] is what glibc and musl do while nothing comes; [`reply`] reads what came back.

pub mod demand;
pub mod engine;
mod flight;
pub mod flow;
pub mod habit;
pub mod load;
pub mod pair;
mod rack;
pub mod reply;
mod sockets;
pub mod stream;
pub mod tcp;
mod udp;
mod vigil;
pub mod wanted;

pub use sockets::{pin, raise_descriptors};

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::clock;
use crate::dns::query::Query;
use crate::dns::wire::{self, flag};
use crate::dns::{HEADER_LEN, Rcode};

/// Datagrams that one system call moves at most.
const MAX_BATCH: usize = 64;

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// UDP, and TCP after a truncated response.
    Udp,
    Tcp,
}

/// One question and the patience for it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub server: SocketAddr,
    pub query: Query,
    pub carrier: Carrier,
    /// For each try.
    pub timeout: Duration,
    /// How often the query is sent; at least once.
    pub tries: u32,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// A response to the question, as received.
    pub wire: Vec<u8>,
    /// What carried the response in the end.
    pub carrier: Carrier,
    /// From the first send to the last byte, retries included.
    pub took: Duration,
    /// Which try was answered, from 1.
    pub tries: u32,
}

/// Why nothing came back.
#[derive(Debug, Error)]
pub enum AskError {
    #[error("{server} did not answer {tries} times within {timeout:?} each")]
    Timeout { server: SocketAddr, tries: u32, timeout: Duration },
    #[error("nobody listens at {server}")]
    Refused { server: SocketAddr },
    #[error("asking {server}: {reason}")]
    Io { server: SocketAddr, reason: io::Error },
}

/// Asks until a response to the question comes or the tries are used up.
///
/// # Errors
/// `Timeout` after the last try, `Refused` at once when nobody listens, `Io` for any other failure.
pub fn ask(ask: &Ask) -> Result<Answer, AskError> {
    let start = clock::now();
    let tries = ask.tries.max(1);
    for attempt in 1..=tries {
        let message = Message::new(&ask.query);
        let asked = match ask.carrier {
            Carrier::Udp => udp::exchange(ask.server, &message, ask.timeout),
            Carrier::Tcp => tcp::exchange(ask.server, &message, ask.timeout),
        };
        let answer = |wire, carrier| Answer {
            wire,
            carrier,
            took: clock::now().duration_since(start),
            tries: attempt,
        };
        match asked {
            Ok(wire) if ask.carrier == Carrier::Udp && is_truncated(&wire) => {
                // A server without TCP leaves the cut response as the best there is.
                return Ok(match tcp::exchange(ask.server, &message, ask.timeout) {
                    Ok(whole) => answer(whole, Carrier::Tcp),
                    Err(_) => answer(wire, Carrier::Udp),
                });
            }
            Ok(wire) => return Ok(answer(wire, ask.carrier)),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(failure(ask.server, error)),
        }
    }
    Err(AskError::Timeout { server: ask.server, tries, timeout: ask.timeout })
}

/// The error that an I/O error means here.
fn failure(server: SocketAddr, reason: io::Error) -> AskError {
    match reason.kind() {
        io::ErrorKind::ConnectionRefused => AskError::Refused { server },
        _ => AskError::Io { server, reason },
    }
}

/// Tells whether the time ran out; a socket's own timeout says `WouldBlock`.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Tells whether TC is set.
fn is_truncated(wire: &[u8]) -> bool {
    wire::u16_at(wire, 2).is_some_and(|flags| flags & flag::TC != 0)
}

/// A query with an id of its own.
struct Message {
    wire: Vec<u8>,
}

impl Message {
    /// Encodes `query` with EDNS and a random id.
    fn new(query: &Query) -> Self {
        Self { wire: query.to_wire(rand::random(), query.qname.as_wire(), true) }
    }

    /// The same query with another id.
    fn with_id(&self, id: u16) -> Self {
        let mut wire = self.wire.clone();
        wire::put_u16(&mut wire, 0, id);
        Self { wire }
    }

    /// Tells whether `response` answers this query: a response of its id and question.
    ///
    /// A server that could not read the question leaves it out and says so by its RCODE.
    fn is_answered_by(&self, response: &[u8]) -> bool {
        let number = |at| wire::u16_at(response, at);
        let (Some(flags), Some(questions)) = (number(2), number(4)) else { return false };
        if flags & flag::QR == 0 || number(0) != wire::u16_at(&self.wire, 0) {
            return false;
        }
        if questions == 0 {
            return flags & flag::RCODE != Rcode::NOERROR.0;
        }
        // The query has one question and, behind it, its OPT record.
        let end = self.wire.len() - crate::dns::edns::OPT_LEN;
        let question = self.wire.get(HEADER_LEN..end).unwrap_or_default();
        questions == 1
            && response
                .get(HEADER_LEN..end)
                .is_some_and(|theirs| theirs.eq_ignore_ascii_case(question))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, UdpSocket};
    use std::thread;

    use super::*;
    use crate::dns::Qtype;
    use crate::dns::name::Name;

    /// Asks `server` for `example.org. A` with little patience.
    fn question(server: SocketAddr) -> Ask {
        let qname = Name::from_text("example.org").expect("a name");
        Ask {
            server,
            query: Query::new(qname, Qtype::A),
            carrier: Carrier::Udp,
            timeout: Duration::from_millis(200),
            tries: 2,
        }
    }

    /// The query as an empty response.
    fn response(query: &[u8]) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2] |= 0x80;
        out
    }

    /// A server on a free port that sends, for each query, what `answers` makes of it.
    fn udp_server(answers: fn(&[u8], u32) -> Vec<Vec<u8>>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound");
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            let mut count = 0;
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                count += 1;
                for answer in answers(&buffer[..len], count) {
                    socket.send_to(&answer, from).expect("sent");
                }
            }
        });
        address
    }

    #[test]
    fn a_response_with_another_id_or_question_is_passed_over() {
        let server = udp_server(|query, _| {
            let (mut other_id, mut other_question) = (response(query), response(query));
            other_id[0] ^= 1;
            other_question[13] ^= 1;
            let mut last = response(query);
            last[13] = last[13].to_ascii_uppercase();
            vec![query.to_vec(), other_id, other_question, vec![1, 2, 3], last]
        });
        let answer = ask(&question(server)).expect("the last one fits");
        assert_eq!(answer.wire[13], b'E');
        assert_eq!((answer.tries, answer.carrier), (1, Carrier::Udp));
    }

    #[test]
    fn a_lost_query_is_sent_again_with_another_id() {
        let server = udp_server(|query, count| match count {
            1 => vec![],
            _ => vec![response(query)],
        });
        let answer = ask(&question(server)).expect("the second is answered");
        assert_eq!(answer.tries, 2);
        assert!(answer.took >= Duration::from_millis(200));
    }

    #[test]
    fn silence_ends_with_a_timeout_and_a_closed_port_at_once() {
        let server = udp_server(|_, _| vec![]);
        assert!(matches!(ask(&question(server)), Err(AskError::Timeout { tries: 2, .. })));
        let free = UdpSocket::bind("127.0.0.1:0").expect("a free port").local_addr();
        let start = clock::now();
        let error = ask(&question(free.expect("bound"))).expect_err("nobody listens");
        assert!(matches!(error, AskError::Refused { .. }), "{error}");
        assert!(clock::now().duration_since(start) < Duration::from_millis(200));
    }

    #[test]
    fn a_truncated_response_is_fetched_again_by_tcp() {
        let (udp, tcp) = same_port();
        let server = udp.local_addr().expect("bound");
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            let (len, from) = udp.recv_from(&mut buffer).expect("a query");
            let mut cut = response(&buffer[..len]);
            cut[2] |= 0x02;
            udp.send_to(&cut, from).expect("sent");
            let (mut stream, _) = tcp.accept().expect("a connection");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).expect("a query");
            let whole = [&length[..], &response(&query)].concat();
            for byte in whole.chunks(7) {
                stream.write_all(byte).expect("written");
            }
        });
        let answer = ask(&question(server)).expect("TCP answers");
        assert_eq!(answer.carrier, Carrier::Tcp);
        assert!(!is_truncated(&answer.wire));
    }

    /// A UDP and a TCP socket on one free port.
    fn same_port() -> (UdpSocket, TcpListener) {
        loop {
            let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")) {
                return (udp, tcp);
            }
        }
    }
}
