//! Many queries a second from kept sockets: one thread sends them when they should leave, another one
//! takes the responses, asks again, and gives up.
//!
//! A fresh socket for each query ([`super::pair`]) costs several times as much, and fills conntrack's table.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Message;
use super::pair::{MAX_DATAGRAM, Outcome, Patience};
use crate::clock;
use crate::dns::query::Query;
use crate::dns::wire;

/// How often it is looked who has waited long enough.
const ROUND: Duration = Duration::from_millis(10);

/// Questions that flows ask, with their messages made ready.
#[derive(Clone)]
pub struct Questions(Arc<[Message]>);

impl Questions {
    /// Encodes them.
    pub fn new(queries: &[Query]) -> Self {
        Self(queries.iter().map(Message::new).collect())
    }
}

/// A connected socket with the queries that it owes its stub resolver.
pub struct Flow {
    socket: UdpSocket,
    questions: Questions,
    owed: Mutex<Owed>,
}

/// Queries without a response, by their ids.
#[derive(Default)]
struct Owed {
    next: u16,
    by_id: HashMap<u16, Waiting>,
}

/// A query that waits.
struct Waiting {
    question: usize,
    /// When it should have left, and when it left the last time.
    intended: Instant,
    sent: Instant,
    outcome: Outcome,
    tries: u32,
}

impl Flow {
    /// Makes a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(server: SocketAddr, questions: &Questions) -> io::Result<Self> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        let owed = Mutex::new(Owed { next: rand::random(), by_id: HashMap::new() });
        Ok(Self { socket, questions: questions.clone(), owed })
    }

    /// Asks the question of this number, in turn; the response is for the receiver to take.
    pub fn send(&self, question: u64, intended: Instant) {
        let count = u64::try_from(self.questions.0.len()).unwrap_or(1).max(1);
        let question = usize::try_from(question % count).unwrap_or_default();
        let sent = clock::now();
        let late = sent.saturating_duration_since(intended);
        let outcome =
            Outcome { took: None, intended, late, lost: 0, rcode: None, is_authoritative: false };
        let mut owed = self.owed();
        owed.next = owed.next.wrapping_add(1);
        let id = owed.next;
        owed.by_id.insert(id, Waiting { question, intended, sent, outcome, tries: 1 });
        drop(owed);
        self.put_out(id, question);
    }

    /// Sends a query. What the kernel refuses to send is one more datagram without response.
    fn put_out(&self, id: u16, question: usize) {
        if let Some(message) = self.questions.0.get(question) {
            let _ = self.socket.send(&message.with_id(id).wire);
        }
    }

    /// What is owed.
    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a received message to the query that it answers.
    fn take(&self, received: &[u8]) -> Option<Outcome> {
        let now = clock::now();
        let id = wire::u16_at(received, 0)?;
        let mut owed = self.owed();
        let question = owed.by_id.get(&id)?.question;
        if !self.questions.0.get(question)?.with_id(id).is_answered_by(received) {
            return None;
        }
        let waiting = owed.by_id.remove(&id)?;
        let mut outcome = waiting.outcome;
        outcome.answer(received, now.saturating_duration_since(waiting.intended));
        Some(outcome)
    }

    /// Asks again for what has waited long enough, and hands over what is given up. False while something is owed.
    fn sweep(&self, patience: Patience, done: &mut Vec<Outcome>) -> bool {
        let now = clock::now();
        let mut again = Vec::new();
        let mut owed = self.owed();
        owed.by_id.retain(|id, waiting| {
            if now.saturating_duration_since(waiting.sent) < patience.timeout {
                return true;
            }
            waiting.outcome.lost += 1;
            if waiting.tries >= patience.tries {
                done.push(waiting.outcome);
                return false;
            }
            waiting.tries += 1;
            waiting.sent = now;
            again.push((*id, waiting.question));
            true
        });
        let is_empty = owed.by_id.is_empty();
        drop(owed);
        again.into_iter().for_each(|(id, question)| self.put_out(id, question));
        is_empty
    }
}

/// The thread that takes responses.
pub struct Receiver {
    all_sent: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Receiver {
    /// Starts it; outcomes go to `outcomes` as they come.
    ///
    /// # Errors
    /// When there is no runtime, or no descriptor for a socket.
    pub fn start(
        flows: &[Arc<Flow>],
        patience: Patience,
        outcomes: mpsc::Sender<Vec<Outcome>>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = Arc::new(Mutex::new(Vec::new()));
        for flow in flows {
            let _inside = runtime.enter();
            let socket = tokio::net::UdpSocket::from_std(flow.socket.try_clone()?)?;
            runtime.spawn(listen(Arc::clone(flow), socket, Arc::clone(&done)));
        }
        let all_sent = Arc::new(AtomicBool::new(false));
        let (flows, is_over) = (flows.to_vec(), Arc::clone(&all_sent));
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                // Read before the sweep: what is sent after it is seen by the next one.
                let mut is_last = is_over.load(Ordering::Acquire);
                while !hand_on(&flows, patience, &done, &outcomes) || !is_last {
                    tokio::time::sleep(ROUND).await;
                    is_last = is_over.load(Ordering::Acquire);
                }
            });
        });
        Ok(Self { all_sent, thread })
    }

    /// Waits until every outcome is known. Nothing may be sent any more.
    pub fn finish(self) {
        self.all_sent.store(true, Ordering::Release);
        let _ = self.thread.join();
    }
}

/// Hands on what is known by now; tells whether nothing is owed any more.
fn hand_on(
    flows: &[Arc<Flow>],
    patience: Patience,
    done: &Mutex<Vec<Outcome>>,
    outcomes: &mpsc::Sender<Vec<Outcome>>,
) -> bool {
    let mut known = Vec::new();
    let owing = flows.iter().filter(|flow| !flow.sweep(patience, &mut known)).count();
    known.append(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
    // Nobody takes them any more when the scenario has failed.
    let _ = outcomes.send(known);
    owing == 0
}

/// Takes responses for ever.
async fn listen(flow: Arc<Flow>, socket: tokio::net::UdpSocket, done: Arc<Mutex<Vec<Outcome>>>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        // An error tells of a closed port; the stub resolver goes on waiting.
        let Ok(len) = socket.recv(&mut buffer).await else { continue };
        if let Some(outcome) = flow.take(buffer.get(..len).unwrap_or_default()) {
            done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Qtype;
    use crate::dns::name::Name;

    /// Sends 100 queries to a server that answers what `takes` says of the n-th datagram.
    fn ask(takes: fn(u32) -> bool) -> Vec<Outcome> {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let at = server.local_addr().expect("bound");
        thread::spawn(move || {
            let mut buffer = [0; 512];
            for count in 0.. {
                let Ok((len, from)) = server.recv_from(&mut buffer) else { return };
                buffer[2] |= 0x84;
                if takes(count) {
                    server.send_to(&buffer[..len], from).expect("sent");
                }
            }
        });
        let names = ["a.example.org", "b.example.org", "c.example.org"];
        let query = |name| Query::new(Name::from_text(name).expect("a name"), Qtype::A);
        let questions = Questions::new(&names.map(query));
        let flows = [(), ()].map(|()| Arc::new(Flow::open(at, &questions).expect("a socket")));
        let (sender, outcomes) = mpsc::channel();
        let patience = Patience { timeout: Duration::from_millis(500), tries: 2 };
        let receiver = Receiver::start(&flows, patience, sender).expect("a runtime");
        for number in 0..100 {
            flows[usize::from(number % 2 == 1)].send(number, clock::now());
        }
        receiver.finish();
        outcomes.iter().flatten().collect()
    }

    #[test]
    fn every_query_of_a_flow_has_one_outcome_and_the_lost_ones_are_asked_again() {
        let outcomes = ask(|count| count % 10 != 3);
        assert_eq!(outcomes.len(), 100);
        assert!(outcomes.iter().all(|one| one.is_authoritative || one.took.is_none()));
        assert!(outcomes.iter().map(|one| one.lost).sum::<u32>() >= 10);
        assert!(outcomes.iter().filter(|one| one.took.is_some()).count() >= 98);
    }

    #[test]
    fn a_flow_without_responses_gives_up_on_each_query_after_its_last_try() {
        let outcomes = ask(|_| false);
        assert_eq!(outcomes.len(), 100);
        assert!(outcomes.iter().all(|one| one.took.is_none() && one.lost == 2));
    }
}
