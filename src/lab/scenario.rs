//! What pods do: each scenario is a schedule of queries, and what came of it.
//!
//! Every pod has a thread that stands in its namespace. Queries leave when they should, whatever has
//! become of those before (open loop).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::LabError;
use super::net::Host;
use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::stub::load::{Basket, Collector, wait_until};
use crate::stub::pair::{Fired, Outcome, Patience, Salvo};

/// Names that pods ask for.
pub(super) const NAMES: u64 = 200;
/// How long a pod waits for the others at the gate; then it goes alone.
const GATE: Duration = Duration::from_millis(20);
/// The first source port of `snat`, and how many are used in turn: none rests shorter than a flow lives.
const PORTS: (u16, u64) = (10_000, 40_000);

/// What pods do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// A and AAAA at the same instant from one socket, a new socket each time.
    Pair,
    /// Two pods, same source port, same destination, same instant.
    Snat,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pair, Self::Snat];

    /// How many pods it takes.
    pub(super) fn pods(self) -> u8 {
        match self {
            Self::Pair => 1,
            Self::Snat => 2,
        }
    }

    /// How many threads of a pod send: packets of one thread would follow one another on one CPU.
    fn threads(self) -> u64 {
        match self {
            Self::Pair => 2,
            Self::Snat => 1,
        }
    }

    /// The source port of a round; 0 is any.
    fn port(self, round: u64) -> u16 {
        match self {
            Self::Pair => 0,
            Self::Snat => PORTS.0 + u16::try_from(round % PORTS.1).unwrap_or_default(),
        }
    }

    /// What leaves in a round.
    fn queries(self, round: u64) -> Vec<Query> {
        let qname = Name::from_text(&service(round % NAMES)).expect("a name of the lab");
        let qtypes = match self {
            Self::Pair => &[Qtype::A, Qtype::AAAA][..],
            Self::Snat => &[Qtype::A],
        };
        qtypes.iter().map(|qtype| Query::new(qname.clone(), *qtype)).collect()
    }
}

/// The name of a Service of the lab.
pub(super) fn service(number: u64) -> String {
    format!("web-{number}.default.svc.cluster.local")
}

/// How a scenario runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub scenario: Scenario,
    /// Whom pods ask.
    pub server: SocketAddr,
    pub rounds: u64,
    /// Between two rounds.
    pub interval: Duration,
    /// Where the names and ports begin.
    pub seed: u64,
    pub patience: Patience,
}

/// Runs a scenario to its end: every outcome goes to `take`, in the order in which they are known.
///
/// # Errors
/// When a pod cannot send at all.
pub(super) fn run(
    course: Course,
    pods: &[Host],
    mut take: impl FnMut(&Outcome),
) -> Result<(), LabError> {
    let (sender, outcomes) = mpsc::channel();
    let collector = Collector::start(course.patience, sender).map_err(LabError::Runtime)?;
    let parties = count(pods) * course.scenario.threads();
    let gate = Arc::new(Gate { arrived: AtomicU64::new(0), parties });
    let start = clock::now() + Duration::from_millis(100);
    let threads: Vec<JoinHandle<Result<(), LabError>>> = pods
        .iter()
        .map(|pod| {
            let (pod, basket, gate) = (pod.clone(), collector.basket(), Arc::clone(&gate));
            std::thread::spawn(move || {
                pod.namespace.enter()?;
                fire_all(&course, &basket, &gate, start)
            })
        })
        .collect();
    // Ends when the collector does: its sender is then gone.
    let waiting = std::thread::spawn(move || {
        let fired = threads.into_iter().map(|thread| thread.join());
        let fired: Result<Vec<()>, _> = fired.map(flat).collect();
        collector.finish();
        fired
    });
    outcomes.iter().flatten().for_each(|outcome| take(&outcome));
    flat(waiting.join()).map(drop)
}

/// A thread's result, a panic included.
fn flat<T>(joined: std::thread::Result<Result<T, LabError>>) -> Result<T, LabError> {
    joined.unwrap_or(Err(LabError::Vanished("a thread of the load")))
}

/// A number of hosts.
fn count(hosts: &[Host]) -> u64 {
    u64::try_from(hosts.len()).unwrap_or(u64::MAX)
}

/// One pod's part: aims before the time, fires when all threads are there.
fn fire_all(
    course: &Course,
    basket: &Basket,
    gate: &Arc<Gate>,
    start: Instant,
) -> Result<(), LabError> {
    let second = (course.scenario.threads() > 1).then(|| Second::start(Arc::clone(gate)));
    let mut intended = start;
    for round in 0..course.rounds {
        let turn = course.seed.wrapping_add(round);
        let queries = course.scenario.queries(turn);
        let salvo = Salvo::aim(course.server, course.scenario.port(turn), &queries)
            .map_err(LabError::Aim)?;
        match &second {
            Some(second) => basket.put(second.fire(salvo, intended, round)),
            None => {
                wait_until(intended);
                gate.meet(round);
                basket.put(salvo.fire(intended));
            }
        }
        intended += course.interval;
    }
    Ok(())
}

/// A pod's second thread: it sends the second query of each salvo while the first thread sends the first.
struct Second {
    gate: Arc<Gate>,
    salvos: mpsc::Sender<(Arc<Salvo>, Instant, u64)>,
}

impl Second {
    /// Starts the thread; it ends when this is dropped.
    fn start(gate: Arc<Gate>) -> Self {
        let (salvos, next) = mpsc::channel::<(Arc<Salvo>, Instant, u64)>();
        let at = Arc::clone(&gate);
        std::thread::spawn(move || {
            for (salvo, intended, round) in next {
                wait_until(intended);
                at.meet(round);
                salvo.send(1);
            }
        });
        Self { gate, salvos }
    }

    /// Sends both queries at the same instant from the one socket.
    fn fire(&self, salvo: Salvo, intended: Instant, round: u64) -> Fired {
        let salvo = Arc::new(salvo);
        // It lives as long as this does, and so takes everything.
        let _ = self.salvos.send((Arc::clone(&salvo), intended, round));
        wait_until(intended);
        self.gate.meet(round);
        salvo.send(0);
        Fired::new(salvo, intended)
    }
}

/// Where threads wait for each other, so that they fire in the same microsecond.
struct Gate {
    arrived: AtomicU64,
    parties: u64,
}

impl Gate {
    /// Waits, spinning, until all have come to this round; not for ever.
    fn meet(&self, round: u64) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (round + 1) * self.parties;
        let deadline = clock::now() + GATE;
        while self.arrived.load(Ordering::Acquire) < all && clock::now() < deadline {
            std::hint::spin_loop();
        }
    }
}
