//! What pods do: each scenario is a schedule of queries, and what came of it.
//!
//! Queries leave when they should, whatever has become of those before (open loop). `race`
//! fires in one microsecond, `steady` at a rate while things happen to the cluster.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::net::Host;
use super::side::Side;
use super::steady::Act;
use super::stream::TcpSum;
use super::{LabError, race, steady, stream};
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::stub::load::Collector;
use crate::stub::pair::{Outcome, Patience, Salvo};

/// Services that pods ask for.
pub(super) const NAMES: u64 = 200;

/// What pods do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// A and AAAA at the same instant from one socket, a new socket each time.
    Pair,
    /// Two pods, same source port, same destination, same instant.
    Snat,
    /// A cluster DNS server goes, and another one comes, while pods keep asking.
    Churn,
    /// 50 executors ask at once for a driver's Service before, while and after it exists.
    Spark,
    /// Forward and reverse names of 100 data nodes, from all pods at once.
    Hdfs,
    /// Search lists with ndots:5, from 200 pods.
    Mixed,
    /// The daemon is killed under load.
    Kill,
    /// The daemon is stopped under load, and goes on later.
    Stop,
    /// A second daemon starts under load, and the first one leaves.
    Upgrade,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pair,
        Self::Snat,
        Self::Churn,
        Self::Spark,
        Self::Hdfs,
        Self::Mixed,
        Self::Kill,
        Self::Stop,
        Self::Upgrade,
    ];

    /// Its name, as it is chosen by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Snat => "snat",
            Self::Churn => "churn",
            Self::Spark => "spark",
            Self::Hdfs => "hdfs",
            Self::Mixed => "mixed",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Upgrade => "upgrade",
        }
    }

    /// What pods do in it, for people.
    pub fn as_sentence(self) -> &'static str {
        match self {
            Self::Pair => "A and AAAA at the same instant from one socket, a new socket each time.",
            Self::Snat => "Two pods ask at the same instant from the same source port.",
            Self::Churn => {
                "A cluster DNS server goes, and another one comes, while pods keep asking."
            }
            Self::Spark => {
                "50 executors ask at once for a driver's Service before, while and after it exists."
            }
            Self::Hdfs => {
                "20 pods ask at once for the forward and reverse names of 100 data nodes."
            }
            Self::Mixed => {
                "200 pods with search lists and ndots:5 ask for names inside and outside."
            }
            Self::Kill => "nodens gets SIGKILL under load.",
            Self::Stop => "nodens gets SIGSTOP under load, and SIGCONT later.",
            Self::Upgrade => "A second nodens starts under load, and the first one gets SIGTERM.",
        }
    }

    /// How many pods it takes.
    pub(super) fn pods(self) -> u8 {
        match self {
            Self::Pair => 1,
            Self::Snat => 2,
            Self::Churn | Self::Hdfs | Self::Kill | Self::Stop | Self::Upgrade => 20,
            Self::Spark => 50,
            Self::Mixed => 200,
        }
    }

    /// Rounds that begin in a second, unless somebody wishes otherwise.
    pub(super) fn rate(self) -> u32 {
        if self.is_fault() { 20_000 } else { 1000 }
    }

    /// Rounds of a run at this rate, unless somebody wishes otherwise: what happens to nodens takes its time.
    pub(super) fn rounds(self, rate: u32) -> u64 {
        match self {
            Self::Kill => u64::from(rate) * 3,
            Self::Upgrade => u64::from(rate) * 9,
            Self::Stop => u64::from(rate) * 12,
            _ => 10_000,
        }
    }

    /// What is compared, unless somebody wishes otherwise: what happens to nodens happens to a daemon of
    /// node-cache's kind too.
    pub(super) fn sides(self) -> &'static [Side] {
        if self.is_fault() { &Side::ALL } else { &[Side::Without, Side::With] }
    }

    /// Tells whether something happens to nodens.
    pub(super) fn is_fault(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Upgrade)
    }

    /// Tells whether nodens must know the cluster zone itself, not ask the cluster DNS: only so it learns that
    /// a name exists before what was said of it has run out.
    pub(super) fn needs_zone(self) -> bool {
        self == Self::Spark && cfg!(feature = "kubernetes")
    }

    /// Tells whether it matters when which query was lost.
    pub(super) fn has_timeline(self) -> bool {
        self == Self::Churn || self.is_fault()
    }
}

/// The name of a Service of the lab.
pub(super) fn service(number: u64) -> String {
    in_zone(&service_label(number))
}

/// The Service's own name.
pub(super) fn service_label(number: u64) -> String {
    format!("web-{}", number % NAMES)
}

/// The name in the cluster zone of a Service of the namespace `default`.
pub(super) fn in_zone(service: &str) -> String {
    format!("{service}.default.svc.cluster.local")
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
    /// When the first query leaves.
    pub start: Instant,
}

impl Course {
    /// Gets a salvo ready from `port`, or any, in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub(super) fn aim(&self, qname: &str, port: u16, qtypes: &[Qtype]) -> Result<Salvo, LabError> {
        let qname = Name::from_text(qname).expect("names of the lab are domain names");
        let query = |qtype: &Qtype| Query::new(qname.clone(), *qtype);
        let queries: Vec<_> = qtypes.iter().map(query).collect();
        Salvo::aim(self.server, port, &queries).map_err(LabError::Aim)
    }
}

/// Runs a scenario to its end: every outcome goes to `take`, in the order in which they are known;
/// what happens to the cluster goes to `act`, in time. Tells of TCP connections where it keeps any.
///
/// # Errors
/// When a pod cannot send at all, and those of `act`.
pub(super) fn run(
    course: &Course,
    pods: &[Host],
    act: &Act<'_>,
    mut take: impl FnMut(&Outcome),
) -> Result<Option<TcpSum>, LabError> {
    let (sender, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        // It ends when all is fired and every outcome is known: then nobody holds the sender.
        let firing = scope.spawn(move || match course.scenario.is_fault() {
            true => stream::fire(course, pods, act, sender).map(Some),
            false => collect(course, pods, act, sender).map(|()| None),
        });
        outcomes.iter().flatten().for_each(|outcome| take(&outcome));
        firing.join().unwrap_or(Err(LabError::Vanished("the load")))
    })
}

/// Fires from fresh sockets; returns when every outcome is known.
fn collect(
    course: &Course,
    pods: &[Host],
    act: &Act<'_>,
    outcomes: mpsc::Sender<Vec<Outcome>>,
) -> Result<(), LabError> {
    let collector = Collector::start(course.patience, outcomes).map_err(LabError::Runtime)?;
    let basket = collector.basket();
    let fired = match course.scenario {
        Scenario::Pair | Scenario::Snat => race::fire(course, pods, &basket),
        _ => steady::fire(course, pods, &basket, act),
    };
    drop(basket);
    collector.finish();
    fired
}
