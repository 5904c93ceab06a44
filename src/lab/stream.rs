//! Thousands of queries a second from all pods, while nodens is killed, stopped or replaced.
//!
//! Each pod keeps a few sockets, and some keep a TCP connection beside them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::LabError;
use super::net::Host;
use super::scenario::{Course, NAMES, service};
use super::steady::{Act, act_on_time};
use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::stub::flow::{Flow, Questions, Receiver};
use crate::stub::pair::Outcome;
use crate::stub::tcp::Connection;

/// Sockets of each pod.
const SOCKETS: usize = 16;
/// A shorter sleep is not worth it: what is due then leaves a moment late, and the load costs less.
const NAP: Duration = Duration::from_micros(250);
/// TCP connections of all pods together.
const CONNECTIONS: usize = 50;
/// Between two queries of a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What became of the TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TcpSum {
    /// Connections kept at a time.
    pub connections: u64,
    pub queries: u64,
    /// Ended before the response to a query that had been sent.
    pub broken: u64,
    /// Closed by the server while nothing was owed, and opened again.
    pub closed: u64,
    /// Attempts to connect that failed.
    pub refused: u64,
}

/// Counts of all connections.
#[derive(Default)]
struct Counts {
    queries: AtomicU64,
    broken: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
}

/// Sends all queries in time; returns when every outcome is known.
///
/// # Errors
/// When a pod cannot send at all, and those of `act`.
pub(super) fn fire(
    course: &Course,
    pods: &[Host],
    act: &Act<'_>,
    outcomes: mpsc::Sender<Vec<Outcome>>,
) -> Result<TcpSum, LabError> {
    let flows = open(course, pods)?;
    let receiver = Receiver::start(&flows, course.patience, outcomes).map_err(LabError::Aim)?;
    let (is_over, counts) = (AtomicBool::new(false), Counts::default());
    thread::scope(|scope| {
        for pod in pods.iter().cycle().take(CONNECTIONS) {
            let (is_over, counts) = (&is_over, &counts);
            scope.spawn(move || keep_asking(course, pod, is_over, counts));
        }
        let acting = scope.spawn(|| act_on_time(course, act));
        send(course, &flows);
        let acted = acting.join().unwrap_or(Err(LabError::Vanished("what happens")));
        is_over.store(true, Ordering::Release);
        acted
    })?;
    receiver.finish();
    let read = |count: &AtomicU64| count.load(Ordering::Acquire);
    Ok(TcpSum {
        connections: u64::try_from(CONNECTIONS).unwrap_or(u64::MAX),
        queries: read(&counts.queries),
        broken: read(&counts.broken),
        closed: read(&counts.closed),
        refused: read(&counts.refused),
    })
}

/// The sockets of all pods.
fn open(course: &Course, pods: &[Host]) -> Result<Vec<Arc<Flow>>, LabError> {
    let queries: Vec<_> = (0..NAMES).map(query).collect();
    let questions = Questions::new(&queries);
    let mut flows = Vec::new();
    for pod in pods {
        let of_pod = pod.namespace.run(|| {
            let flow = |_| Flow::open(course.server, &questions).map(Arc::new);
            (0..SOCKETS).map(flow).collect::<Result<Vec<_>, _>>().map_err(LabError::Aim)
        })?;
        flows.extend(of_pod);
    }
    Ok(flows)
}

/// What is asked for: a Service's A record.
fn query(number: u64) -> Query {
    let qname = Name::from_text(&service(number)).expect("names of the lab are domain names");
    Query::new(qname, Qtype::A)
}

/// Sends everything when it should leave, from one socket after the other.
fn send(course: &Course, flows: &[Arc<Flow>]) {
    for (number, flow) in (0..course.rounds).zip(flows.iter().cycle()) {
        let after = u32::try_from(number).unwrap_or(u32::MAX);
        let intended = course.start + course.interval * after;
        let left = intended.saturating_duration_since(clock::now());
        if !left.is_zero() {
            thread::sleep(left.max(NAP));
        }
        flow.send(course.seed.wrapping_add(number), intended);
    }
}

/// One stub resolver with a TCP connection: asks again and again, connects again when it ends.
fn keep_asking(course: &Course, pod: &Host, is_over: &AtomicBool, counts: &Counts) {
    if pod.namespace.enter().is_err() {
        return;
    }
    let timeout = course.patience.timeout;
    let count = |what: &AtomicU64| what.fetch_add(1, Ordering::AcqRel);
    let mut connection = None;
    for number in course.seed.. {
        if is_over.load(Ordering::Acquire) {
            return;
        }
        if connection.as_ref().is_some_and(Connection::is_over) {
            count(&counts.closed);
            connection = None;
        }
        let mut open = match connection.take() {
            Some(open) => open,
            None => match Connection::open(course.server, timeout) {
                Ok(open) => open,
                Err(_) => {
                    count(&counts.refused);
                    thread::sleep(PAUSE);
                    continue;
                }
            },
        };
        count(&counts.queries);
        match open.ask(&query(number % NAMES), timeout) {
            Ok(_) => connection = Some(open),
            Err(_) => {
                count(&counts.broken);
            }
        }
        thread::sleep(PAUSE);
    }
}
