//! Races: all threads fire in the same microsecond, round after round.
//!
//! Each pod has a thread that stands in its namespace, or two.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::LabError;
use super::net::Host;
use super::scenario::{Course, Scenario, service};
use crate::clock;
use crate::dns::Qtype;
use crate::stub::load::{Basket, wait_until};
use crate::stub::pair::{Fired, Salvo};

/// How long a thread waits for the others at the gate; then it goes alone.
const GATE: Duration = Duration::from_millis(20);
/// The first source port of `snat`, and how many are used in turn: none rests shorter than a flow lives.
const PORTS: (u16, u64) = (10_000, 40_000);

/// Fires all rounds of `pair` or `snat`; returns when the last has left.
///
/// # Errors
/// When a pod cannot send at all.
pub(super) fn fire(course: &Course, pods: &[Host], basket: &Basket) -> Result<(), LabError> {
    let threads = if course.scenario == Scenario::Pair { 2 } else { 1 };
    let parties = u64::try_from(pods.len()).unwrap_or(u64::MAX) * threads;
    let gate = Arc::new(Gate { arrived: AtomicU64::new(0), parties });
    std::thread::scope(|scope| {
        let start = |pod: &'_ Host| {
            let (pod, gate) = (pod.clone(), Arc::clone(&gate));
            scope.spawn(move || {
                pod.namespace.enter()?;
                fire_all(course, basket, &gate)
            })
        };
        let threads: Vec<_> = pods.iter().map(start).collect();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|done| done.unwrap_or(Err(LabError::Vanished("a pod's thread"))))
    })
}

/// One pod's part: aims before the time, fires when all threads are there.
fn fire_all(course: &Course, basket: &Basket, gate: &Arc<Gate>) -> Result<(), LabError> {
    let is_pair = course.scenario == Scenario::Pair;
    let second = is_pair.then(|| Second::start(Arc::clone(gate)));
    let mut intended = course.start;
    for round in 0..course.rounds {
        let turn = course.seed.wrapping_add(round);
        let (port, qtypes) = match is_pair {
            true => (0, &[Qtype::A, Qtype::AAAA][..]),
            false => (port(turn), &[Qtype::A][..]),
        };
        let salvo = course.aim(&service(turn), port, qtypes)?;
        // A race that begins late is a race all the same: the rounds after it move, none catches up.
        intended = intended.max(clock::now());
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

/// The source port of a round of `snat`.
fn port(round: u64) -> u16 {
    PORTS.0 + u16::try_from(round % PORTS.1).unwrap_or_default()
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
