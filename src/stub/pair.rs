//! Several questions at the same instant from one socket, as glibc and musl ask for A and AAAA.
//!
//! Aiming (the socket, its port, the bytes) is apart from firing, so that several threads can fire in
//! the same microsecond, even from one socket. Waiting is for a runtime: thousands may be owed at a time.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Message;
use crate::clock;
use crate::dns::Rcode;
use crate::dns::query::Query;
use crate::dns::wire::{self, flag};

/// The largest response that is read, in bytes.
pub(super) const MAX_DATAGRAM: usize = 4096;

/// How long a stub resolver waits before it asks again, and how often it asks.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub timeout: Duration,
    pub tries: u32,
}

/// A socket and the queries that will leave from it.
pub struct Salvo {
    socket: UdpSocket,
    messages: Vec<Message>,
}

/// Queries that have left.
pub struct Fired {
    salvo: Arc<Salvo>,
    /// When they should have left: latency counts from here.
    intended: Instant,
    sent: Instant,
    /// What leaves next, one by one, while nothing of the name exists.
    rest: Vec<Salvo>,
}

/// How it went for one query.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// From the intended send time to the response, waits included; `None` when the stub resolver gave up.
    pub took: Option<Duration>,
    /// When it should have left.
    pub intended: Instant,
    /// How much of that is the load's own: it sent so long after it should have.
    pub late: Duration,
    /// How many of its datagrams got no response in time.
    pub lost: u32,
    /// Of the response.
    pub rcode: Option<Rcode>,
    /// The response has AA: it came from the authority itself, not from a cache.
    pub is_authoritative: bool,
}

impl Outcome {
    /// How long the stub resolver waited for the response; `None` when it gave up.
    pub fn waited(&self) -> Option<Duration> {
        Some(self.took?.saturating_sub(self.late))
    }

    /// Writes the response in.
    pub(super) fn answer(&mut self, received: &[u8], took: Duration) {
        let flags = wire::u16_at(received, 2);
        self.took = Some(took);
        self.rcode = flags.map(|flags| Rcode(flags & flag::RCODE));
        self.is_authoritative = flags.is_some_and(|flags| flags & flag::AA != 0);
    }
}

impl Salvo {
    /// Makes the socket, from `port` or any, and the messages.
    ///
    /// # Errors
    /// What the kernel says: the port is in use, there is no route.
    pub fn aim(server: SocketAddr, port: u16, queries: &[Query]) -> io::Result<Self> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, messages: queries.iter().map(Message::new).collect() })
    }

    /// Sends the query `index`. What the kernel refuses to send is one more datagram without response.
    pub fn send(&self, index: usize) {
        if let Some(message) = self.messages.get(index) {
            let _ = self.socket.send(&message.wire);
        }
    }

    /// Sends all of them, back to back.
    pub fn fire(self, intended: Instant) -> Fired {
        (0..self.messages.len()).for_each(|index| self.send(index));
        Fired::new(Arc::new(self), intended)
    }
}

impl Fired {
    /// What several threads have just sent, or are about to.
    pub fn new(salvo: Arc<Salvo>, intended: Instant) -> Self {
        Self { salvo, intended, sent: clock::now(), rest: Vec::new() }
    }

    /// With what leaves next, one by one, until a name exists: a search list.
    #[must_use]
    pub fn then(mut self, rest: Vec<Salvo>) -> Self {
        self.rest = rest;
        self
    }

    /// Takes what leaves next.
    pub(super) fn take_rest(&mut self) -> Vec<Salvo> {
        std::mem::take(&mut self.rest)
    }

    /// Waits for the responses, asks again in time, gives up in the end: an outcome for each query.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub async fn wait(self, patience: Patience) -> io::Result<Vec<Outcome>> {
        let socket = tokio::net::UdpSocket::from_std(self.salvo.socket.try_clone()?)?;
        let mut awaited = Awaited::new(&self);
        let mut buffer = [0; MAX_DATAGRAM];
        for attempt in 1..=patience.tries {
            let deadline = tokio::time::sleep(patience.timeout);
            tokio::pin!(deadline);
            while awaited.is_owed() {
                tokio::select! {
                    () = &mut deadline => break,
                    received = socket.recv(&mut buffer) => match received {
                        Ok(len) => awaited.take(buffer.get(..len).unwrap_or_default()),
                        // A closed port is told again and again; the stub resolver goes on waiting.
                        Err(_) => continue,
                    },
                }
            }
            awaited.count_lost();
            if !awaited.is_owed() || attempt == patience.tries {
                break;
            }
            for message in awaited.owed() {
                // A send that fails is one more datagram without response.
                let _ = socket.send(&message.wire).await;
            }
        }
        Ok(awaited.outcomes)
    }
}

/// Queries and what has become of each.
struct Awaited<'a> {
    messages: &'a [Message],
    outcomes: Vec<Outcome>,
    intended: Instant,
}

impl<'a> Awaited<'a> {
    /// Nothing has come yet.
    fn new(fired: &'a Fired) -> Self {
        let late = fired.sent.saturating_duration_since(fired.intended);
        let intended = fired.intended;
        let outcome =
            Outcome { took: None, intended, late, lost: 0, rcode: None, is_authoritative: false };
        let messages = fired.salvo.messages.as_slice();
        Self { messages, outcomes: vec![outcome; messages.len()], intended: fired.intended }
    }

    /// Tells whether a response is owed.
    fn is_owed(&self) -> bool {
        self.outcomes.iter().any(|outcome| outcome.took.is_none())
    }

    /// The queries without a response.
    fn owed(&self) -> impl Iterator<Item = &'a Message> {
        let both = self.messages.iter().zip(&self.outcomes);
        both.filter(|(_, outcome)| outcome.took.is_none()).map(|(message, _)| message)
    }

    /// Counts one lost datagram for each query without a response.
    fn count_lost(&mut self) {
        let owed = self.outcomes.iter_mut().filter(|outcome| outcome.took.is_none());
        owed.for_each(|outcome| outcome.lost += 1);
    }

    /// Gives a received message to the query that it answers.
    fn take(&mut self, received: &[u8]) {
        let took = clock::now().saturating_duration_since(self.intended);
        for (message, outcome) in self.messages.iter().zip(&mut self.outcomes) {
            if outcome.took.is_none() && message.is_answered_by(received) {
                outcome.answer(received, took);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Qtype;
    use crate::dns::name::Name;

    /// Asks for A and AAAA, with little patience, a server that answers what `takes` says of the n-th datagram.
    fn ask(takes: fn(u32) -> bool) -> Vec<Outcome> {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let at = server.local_addr().expect("bound");
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            for count in 0.. {
                let Ok((len, from)) = server.recv_from(&mut buffer) else { return };
                buffer[2] |= 0x80;
                if takes(count) {
                    server.send_to(&buffer[..len], from).expect("sent");
                }
            }
        });
        let qname = Name::from_text("example.org").expect("a name");
        let queries = [Qtype::A, Qtype::AAAA].map(|qtype| Query::new(qname.clone(), qtype));
        let salvo = Salvo::aim(at, 0, &queries).expect("a socket");
        let patience = Patience { timeout: Duration::from_millis(50), tries: 2 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let waiting = async { salvo.fire(clock::now()).wait(patience).await };
        runtime.expect("a runtime").block_on(waiting).expect("waited")
    }

    #[test]
    fn a_query_without_a_response_is_asked_again_and_counted_as_lost_once() {
        let outcomes = ask(|count| count != 1);
        assert_eq!(outcomes.iter().map(|one| one.lost).collect::<Vec<_>>(), [0, 1]);
        assert!(outcomes[0].took.expect("answered") < Duration::from_millis(50));
        assert!(outcomes[1].took.expect("answered") >= Duration::from_millis(50));
        assert_eq!(outcomes[1].rcode, Some(Rcode::NOERROR));
    }

    #[test]
    fn a_stub_resolver_gives_up_after_its_last_try() {
        let outcomes = ask(|_| false);
        assert!(outcomes.iter().all(|one| one.took.is_none() && one.lost == 2));
    }
}
