//! The UDP front end: plain threads that receive, answer and send in batches.
//!
//! A hit is answered in the thread, with no allocation and no await. A miss is copied and given to a
//! worker of the resolver runtime, which sends its response through the same socket.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::time::timeout_at;

use super::Runners;
use super::batch::{BATCH, DATAGRAM, Inbox, Outbox, Peer};
use super::departures::{Departure, Departures};
use super::front::{Facts, Front, Look, Policy, SHED};
use super::handler::{self, Handler};
use super::quota::Share;
use super::reply;
use super::room::Room;
use super::slots::Slots;
use super::socket::{self, UdpSocket};
use crate::clock;
use crate::dns::query::QueryView;
use crate::dns::wire::{self, flag};
use crate::dns::{HEADER_LEN, Rcode};
use crate::metrics::{Arrival, Origin, ThreadTally};
use crate::pulse::Pulse;
use crate::resolve::Carrier;
use crate::shutdown::{Owed, Shutdown};

/// How long a thread waits for datagrams before it goes round.
const POLL_MS: i32 = 200;

/// Batches that are taken from one socket before the others get their turn.
const TURN: usize = 16;

/// How long a thread rests when a socket gives nothing but errors.
const REST: Duration = Duration::from_millis(20);

/// Bytes that are room enough for nearly every query.
const USUAL_LEN: usize = 96;

/// One serve thread.
struct Serve {
    sockets: Vec<Arc<UdpSocket>>,
    /// Sockets that were bound later.
    more: mpsc::Receiver<Arc<UdpSocket>>,
    front: Arc<Front>,
    handler: Arc<Handler>,
    worker: tokio::runtime::Handle,
    departures: Departures,
    /// The worker's tasks that resolve what this thread leaves to it.
    slots: Arc<Slots<Job>>,
    /// Where misses wait that find no share.
    room: Room,
    tally: ThreadTally,
    pulse: Arc<Pulse>,
    shutdown: Shutdown,
    inbox: Inbox,
    outbox: Outbox,
    /// Facts of the responses in the outbox.
    facts: Vec<(Facts, Arrival)>,
    /// What is left to the resolver.
    misses: Vec<Job>,
}

/// Starts serve thread `index` over its sockets; it takes more of them through what is given back.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    index: usize,
    sockets: Vec<Arc<UdpSocket>>,
    runners: &Runners<'_>,
) -> io::Result<mpsc::Sender<Arc<UdpSocket>>> {
    let (give, more) = mpsc::channel();
    let front = Arc::clone(runners.front);
    let worker = runners.workers[index % runners.workers.len()].clone();
    let pulse = runners.pulses.register(format!("serve-{index}"));
    let shutdown = runners.shutdown.clone();
    let owed = shutdown.owe();
    let departures = Departures::start(&worker, Arc::clone(&front.metrics));
    let slots = Arc::default();
    let room = Room::open(&worker, &front.in_flight, &slots);
    let run = move || {
        let serve = Serve {
            sockets,
            more,
            handler: Arc::new(Handler::new(Arc::clone(&front))),
            tally: front.metrics.thread_tally(),
            front,
            worker,
            departures,
            slots,
            room,
            pulse,
            shutdown,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            facts: Vec::with_capacity(BATCH),
            misses: Vec::new(),
        };
        serve.run(owed);
    };
    std::thread::Builder::new().name(format!("serve-{index}")).spawn(run).map(|_| give)
}

impl Serve {
    /// Goes round until the drain begins and nothing is left to read.
    fn run(mut self, _owed: Owed) {
        let mut ready = Vec::with_capacity(self.sockets.len());
        let mut deaf = false;
        loop {
            self.sockets.extend(self.more.try_iter());
            let draining = self.shutdown.is_begun();
            if draining && !std::mem::replace(&mut deaf, true) {
                self.sockets.iter().for_each(|socket| socket.stop_receiving());
            }
            let timeout_ms = if draining { 0 } else { POLL_MS };
            socket::wait_readable(&self.sockets, timeout_ms, &mut ready);
            self.pulse.beat();
            if draining && !ready.contains(&true) {
                return;
            }
            for (index, _) in ready.iter().enumerate().filter(|(_, is_ready)| **is_ready) {
                self.take_turn(index);
            }
        }
    }

    /// Reads one socket until it is empty or its turn is over.
    fn take_turn(&mut self, index: usize) {
        let socket = Arc::clone(&self.sockets[index]);
        let mut failed = 0;
        for _ in 0..TURN {
            // Errors of earlier sends (ICMP) surface here and concern nobody.
            match self.inbox.receive(&socket) {
                Ok(0) => break,
                Ok(count) => {
                    self.serve_batch(&socket, count);
                    // After a full batch there is more to read, for which its misses need not wait.
                    if count == BATCH {
                        self.hand_over();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => failed += 1,
            }
        }
        self.hand_over();
        // Not a passing error, and `poll` does not wait for it to go away.
        if failed == TURN {
            std::thread::sleep(REST);
        }
    }

    /// Answers what can be answered at once, and hands the rest to the resolver.
    fn serve_batch(&mut self, socket: &Arc<UdpSocket>, count: usize) {
        let now = clock::now();
        let front = Arc::clone(&self.front);
        let policy = front.policy.load();
        for i in 0..count {
            // A panic must cost one datagram, not the thread.
            let serving = AssertUnwindSafe(|| self.serve_one(i, socket, now, &policy));
            if catch_unwind(serving).is_err() {
                self.apologise(i);
            }
        }
        let lost = self.outbox.send(socket, &mut self.inbox);
        if lost > 0 {
            self.front.metrics.serve.send_failures.inc_by(lost as u64);
        }
        let duration = clock::now().saturating_duration_since(now);
        for (facts, arrival) in self.facts.drain(..) {
            self.tally.record(&facts.answered(arrival, duration));
        }
    }

    /// Counts a panic over datagram `i`, and answers it with what cannot panic again.
    fn apologise(&mut self, i: usize) {
        self.front.metrics.serve.panics.inc();
        tracing::error!("a panic was caught in a serve thread");
        let wire = self.inbox.datagram(i);
        // Where the response was committed already, its facts are what is missing.
        self.outbox.keep(self.facts.len());
        let is_query = wire::u16_at(wire, 2).is_some_and(|flags| flags & flag::QR == 0);
        if wire.len() < HEADER_LEN || !is_query {
            return;
        }
        let len = reply::header(wire, Rcode::SERVFAIL, self.outbox.slot());
        let facts = Facts::of_malformed(Rcode::SERVFAIL, wire.len(), len);
        self.outbox.commit(i, len);
        self.facts
            .push((facts, handler::arrival_of(self.inbox.peer(i).source(), Carrier::Datagram)));
    }

    /// Answers datagram `i` of the inbox into the outbox, or submits it.
    fn serve_one(&mut self, i: usize, socket: &Arc<UdpSocket>, now: Instant, policy: &Policy) {
        let source = self.inbox.peer(i).source();
        let wire = self.inbox.datagram(i);
        let allowed = policy.allow.admits(source.ip(), socket.is_intercepted);
        let look = self.front.look(wire, source.ip(), now, allowed);
        let limit = match &look {
            Look::Hit(view, _) => view.udp_limit(policy.udp_payload),
            _ => DATAGRAM,
        };
        let out = &mut self.outbox.slot()[..limit];
        let mut facts = self.front.answer(&look, wire, now, out);
        match &look {
            Look::Miss(view) => {
                match self.front.in_flight.take_of_part(source.ip(), self.room.part()) {
                    Some(share) => self.misses.push((self.miss(i, socket, now), share)),
                    None => {
                        let limit = view.udp_limit(policy.udp_payload);
                        let (room, out) = (&self.room, &mut out[..limit]);
                        facts =
                            crowded_out((&self.front, room), (view, source.ip()), wire.len(), out);
                        if facts.is_none() {
                            self.room.put(self.miss(i, socket, now));
                        }
                    }
                }
            }
            Look::Hit(view, entry) if entry.claims_prefetch(now) => {
                let (resolver, query) = (Arc::clone(&self.front.resolver), view.to_query());
                self.worker.spawn(async move { resolver.prefetch(query) });
            }
            _ => {}
        }
        if let Some(facts) = facts {
            let arrival = handler::arrival_of(source, Carrier::Datagram);
            if policy.query_log.is_on() {
                let answered = facts.answered(arrival, clock::now() - now);
                policy.query_log.log(source, look.qname(), &answered);
            }
            self.outbox.commit(i, facts.response_len);
            self.facts.push((facts, arrival));
        }
    }

    /// Datagram `i` on its way to the resolver.
    fn miss(&self, i: usize, socket: &Arc<UdpSocket>, received: Instant) -> Miss {
        Miss {
            wire: SmallVec::from_slice(self.inbox.datagram(i)),
            handler: Arc::clone(&self.handler),
            received,
            deadline: None,
            back: Back {
                peer: *self.inbox.peer(i),
                socket: Arc::clone(socket),
                departures: self.departures.clone(),
                owed: self.shutdown.owe(),
            },
        }
    }

    /// Gives the misses to the resolver runtime, which is woken once for all of them.
    fn hand_over(&mut self) {
        if self.misses.is_empty() {
            return;
        }
        let (misses, slots) = (std::mem::take(&mut self.misses), Arc::clone(&self.slots));
        self.worker.spawn(async move {
            misses.into_iter().for_each(|miss| slots.give(miss, Miss::resolve));
        });
    }
}

/// Answers a miss that finds no share, stale or with a refusal; `None` where it is to wait in the room.
///
/// Where nobody can be asked waiting is of no use.
fn crowded_out(
    (front, room): (&Front, &Room),
    (view, source): (&QueryView<'_>, IpAddr),
    query_len: usize,
    out: &mut [u8],
) -> Option<Facts> {
    let has_place = room.admits(query_len);
    let stale = match has_place {
        true => front.resolver.stale_while_down(view, source),
        false => front.resolver.stale(view, source),
    };
    match stale {
        Some(stale) => Some(front.answer_stale((view, &stale), query_len, out)),
        None if has_place => None,
        None => Some(front.shed(view, query_len, out)),
    }
}

/// A miss with the share that it holds while it is resolved.
pub type Job = (Miss, Share);

/// A query on its way through the resolver.
pub struct Miss {
    /// Nearly every query fits: what one thread allocates and another frees costs both of them.
    wire: SmallVec<[u8; USUAL_LEN]>,
    handler: Arc<Handler>,
    pub received: Instant,
    /// Of a query that had to wait: until then it is owed a response of any kind.
    pub deadline: Option<Instant>,
    back: Back,
}

/// The way back to who asked.
struct Back {
    peer: Peer,
    socket: Arc<UdpSocket>,
    departures: Departures,
    /// Given back when the response is sent.
    owed: Owed,
}

impl Miss {
    /// Who asks.
    pub fn source(&self) -> SocketAddr {
        self.back.peer.source()
    }

    /// Resolves the query and leaves its response to be sent.
    #[expect(clippy::manual_async_fn, reason = "a function's arguments lie in its future twice")]
    pub fn resolve(job: Job) -> impl Future<Output = ()> + Send {
        async move {
            if let Some(deadline) = job.0.deadline {
                // Boxed: few have had to wait.
                return Box::pin(Self::resolve_by(deadline, job)).await;
            }
            let (miss, asked) = (&job.0, (job.0.source(), Carrier::Datagram));
            let answer = handler::handle(&miss.handler, &miss.wire, asked, miss.received, || true);
            if let Some(response) = answer.await {
                let (miss, share) = job;
                miss.back.depart(response, share);
            }
        }
    }

    /// The same for a query that had to wait: something is answered by the deadline.
    async fn resolve_by(deadline: Instant, (miss, share): Job) {
        let source = miss.source();
        let Self { wire, handler, received, back, .. } = miss;
        let is_shed = AtomicBool::new(false);
        let is_owed = || !is_shed.load(Ordering::Relaxed);
        let asked = (source, Carrier::Datagram);
        let mut answer = pin!(handler::handle(&handler, &wire, asked, received, is_owed));
        match timeout_at(deadline.into(), answer.as_mut()).await {
            Ok(Some(response)) => back.depart(response, share),
            Ok(None) => {}
            Err(_) => {
                if let Some(response) = handler::shed(&handler, &wire, source, received) {
                    is_shed.store(true, Ordering::Relaxed);
                    back.depart(response, share.another());
                }
                // The exchange goes on: others may wait for it, and the cache wants what comes of it.
                let _ = answer.await;
            }
        }
    }

    /// Says that too many queries are in flight.
    pub fn shed(self, share: Share) {
        let (source, Self { wire, handler, received, back, .. }) = (self.source(), self);
        if let Some(response) = handler::shed(&handler, &wire, source, received) {
            back.depart(response, share);
        }
    }
}

impl Back {
    /// Leaves the response to be sent.
    fn depart(self, response: Vec<u8>, share: Share) {
        let Self { peer, socket, departures, owed } = self;
        departures.push(Departure { response: (peer, response), socket, _held: (share, owed) });
    }
}

impl Front {
    /// Writes the response that says that too many queries are in flight.
    pub fn shed(&self, view: &QueryView<'_>, query_len: usize, out: &mut [u8]) -> Facts {
        self.metrics.serve.shed.inc();
        let response_len = reply::refusal(view, Rcode::SERVFAIL, Some(&SHED), out);
        Facts {
            zone: crate::metrics::ZoneId::NONE,
            qtype: view.qtype(),
            dnssec_ok: view.dnssec_ok(),
            rcode: Rcode::SERVFAIL,
            origin: Origin::Failure,
            query_len,
            response_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Stub;

    use super::*;
    use crate::config::Listen;
    use crate::dns::Qtype;
    use crate::dns::name::Name;
    use crate::dns::query::Query;
    use crate::pulse::Pulses;
    use crate::serve::testing;

    /// The RCODE of the response to `query`.
    fn rcode(stub: &Stub, query: &[u8]) -> u8 {
        stub.send(query).expect("sent");
        let mut response = [0; 512];
        stub.recv(&mut response).expect("never silence");
        assert_eq!(response[..2], query[..2]);
        response[3] & 0xf
    }

    #[test]
    fn a_panic_in_a_serve_thread_costs_one_query_and_is_counted() {
        // It promises more than a buffer holds, which panics.
        let (front, config) = testing::front(u16::MAX);
        let listen = Listen {
            address: "127.0.0.1:0".parse().expect("address"),
            device: None,
            required: true,
            is_intercepted: false,
            is_led_to: false,
        };
        let socket = Arc::new(UdpSocket::bind(&listen, &config.serve).expect("a free port"));
        let address = socket.local_address().expect("bound");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (pulses, shutdown) = (Pulses::default(), Shutdown::default());
        let workers = [runtime.handle().clone()];
        let runners =
            Runners { front: &front, workers: &workers, pulses: &pulses, shutdown: &shutdown };
        start(0, vec![socket], &runners).expect("a thread");
        let stub = Stub::bind("127.0.0.1:0").expect("a free port");
        stub.connect(address).expect("a route");
        stub.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let query = Query::new(Name::from_text("localhost").expect("name"), Qtype::A);
        let small = query.to_wire(1, query.qname.as_wire(), false);
        let mut large = query.to_wire(2, query.qname.as_wire(), true);
        // The payload size in the OPT record.
        let at = large.len() - 8;
        wire::put_u16(&mut large, at, u16::MAX);
        assert_eq!(rcode(&stub, &small), 0, "resolved and stored");
        assert_eq!(rcode(&stub, &large), 2, "the hit panics");
        assert_eq!(front.metrics.serve.panics.get(), 1);
        assert_eq!(rcode(&stub, &small), 0, "the thread goes on");
        shutdown.begin();
    }
}
