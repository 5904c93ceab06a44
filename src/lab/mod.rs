//! `nodens lab`: a cluster of network namespaces on this kernel, in which queries are lost, and then not.
//!
//! [`shelter`] is where it lives, so that it goes with the command. [`topology`] wires pods, node and
//! cluster DNS; `stage` starts it all; `rules` are those of kube-proxy; `authority` is the cluster DNS, `apiserver` the
//! API server; [`scenario`] is what pods do (`race`, `steady`, `stream`), [`report`] what came of it, `timeline` and
//! `drivers` when, [`page`] the same with plots. It never touches the namespace that it was started in.

mod apiserver;
mod authority;
mod conntrack;
mod daemon;
mod drivers;
mod endpoints;
mod foreign;
mod leftovers;
mod memory;
mod namespace;
mod net;
pub mod page;
mod race;
pub mod report;
mod rules;
pub mod scenario;
pub mod shelter;
mod side;
mod sockets;
mod stage;
mod steady;
mod stream;
mod timeline;
pub mod topology;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use thiserror::Error;

use self::net::CLUSTER_DNS;
pub use self::net::Family;
use self::report::Report;
use self::scenario::Scenario;
pub use self::side::Side;
use self::stage::Lab;
use self::topology::Topology;
use crate::bench::progress::Progress;
use crate::clock;
use crate::netlink::links::LinkError;
use crate::netlink::netfilter::NetlinkError;
use crate::stub::AskError;

/// Steps of progress in one run.
const STEPS: u64 = 100;

/// What shall be run.
#[derive(Clone, Debug)]
pub struct Options {
    pub topologies: Vec<Topology>,
    pub scenarios: Vec<Scenario>,
    pub families: Vec<Family>,
    /// Each scenario has its own, where this is empty.
    pub sides: Vec<Side>,
    /// A program in place of our own cluster DNS.
    pub cluster_dns: Option<String>,
    /// How often each run is repeated.
    pub repeat: u32,
    /// Of each run; each scenario has its own number.
    pub rounds: Option<u64>,
    /// Rounds that begin in a second; each scenario has its own number.
    pub rate: Option<u32>,
    /// Where names and ports begin.
    pub seed: u64,
    /// How long a stub resolver waits before it asks again.
    pub timeout: Duration,
}

/// Why the lab failed.
#[derive(Debug, Error)]
pub enum LabError {
    #[error("the namespace of {name} is not to be had: {reason}")]
    Namespace { name: String, reason: io::Error },
    #[error("the setting {key} cannot be written: {reason}")]
    Setting { key: String, reason: io::Error },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Rules(#[from] NetlinkError),
    #[error("there is no runtime: {0}")]
    Runtime(io::Error),
    #[error("the cluster DNS cannot listen at {at}: {reason}")]
    Listen { at: SocketAddr, reason: io::Error },
    #[error("the program {program} does not start as cluster DNS: {reason}")]
    Foreign { program: String, reason: io::Error },
    #[error("a file in memory is not to be had: {0}")]
    Memory(io::Error),
    #[error("the API server has no socket: {0}")]
    ApiServer(io::Error),
    #[error("{0} has vanished")]
    Vanished(&'static str),
    #[error("nodens does not start on the node: {0}")]
    Daemon(io::Error),
    #[error("a pod has no way to the cluster DNS: {0}")]
    Unanswered(#[from] AskError),
    #[error("nodens ended on the node with {0}")]
    DaemonEnded(ExitStatus),
    #[error("nodens on the node does not take queries after {0:?}")]
    Unclaimed(Duration),
    #[error("a pod cannot send: {0}")]
    Aim(io::Error),
    #[error("the command does not start in the pod: {0}")]
    Command(io::Error),
}

/// Runs everything, and shows on stderr how far it is.
///
/// # Errors
/// The first thing that the kernel refuses, or a daemon that does not come up.
pub fn run(options: &Options) -> Result<Report, LabError> {
    let mut rows = Vec::new();
    let runs = runs(options);
    let all = u64::try_from(runs.len()).unwrap_or(u64::MAX).saturating_mul(STEPS);
    let mut progress = Progress::start(all, false);
    for (done, run) in (0..all).step_by(STEPS as usize).zip(runs) {
        progress.show(done, &format!("{run}: wiring"), clock::now());
        // A new one each time: scenarios leave it changed.
        let lab = Lab::build(&run, options)?;
        let show = |part: u64, message: &str| {
            progress.show(done + part.min(STEPS - 1), message, clock::now());
        };
        rows.push(lab.measure(&run, options, show)?);
    }
    progress.finish();
    let timeout_ms = u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX);
    Ok(Report { kernel: kernel(), timeout_ms, rows })
}

/// One run of a scenario.
#[derive(Clone, Copy, Debug)]
struct Run {
    topology: Topology,
    scenario: Scenario,
    side: Side,
    family: Family,
    /// From 0, where it is repeated.
    turn: u32,
}

/// All runs, in order.
fn runs(options: &Options) -> Vec<Run> {
    let mut runs = Vec::new();
    for topology in options.topologies.iter().copied() {
        for scenario in options.scenarios.iter().copied() {
            let sides = if options.sides.is_empty() { scenario.sides() } else { &options.sides };
            for side in sides.iter().copied() {
                for family in options.families.iter().copied() {
                    let run = |turn| Run { topology, scenario, side, family, turn };
                    runs.extend((0..options.repeat).map(run));
                }
            }
        }
    }
    runs
}

/// Builds one lab, with nodens unless another side is wanted.
fn build_one(options: &Options) -> Result<Lab, LabError> {
    let topology = options.topologies.first().copied().unwrap_or(Topology::Bridge);
    let scenario = options.scenarios.first().copied().unwrap_or(Scenario::Pair);
    let side = options.sides.first().copied().unwrap_or(Side::With);
    Lab::build(&Run { topology, scenario, side, family: Family::V4, turn: 0 }, options)
}

/// Builds one lab, and runs a command in its first pod to its end.
///
/// # Errors
/// The first thing that the kernel refuses, a daemon that does not come up, a command that does not start.
pub fn run_in_pod(options: &Options, command: &mut Command) -> Result<ExitStatus, LabError> {
    let lab = build_one(options)?;
    lab.warm_up(Family::V4)?;
    let Some(pod) = lab.net.pods.first() else { return Err(LabError::Vanished("the first pod")) };
    pod.namespace.run(|| command.status().map_err(LabError::Command))
}

/// Builds one lab, and says how to enter it; it stays while what comes back lives.
///
/// # Errors
/// The first thing that the kernel refuses, or a daemon that does not come up.
pub fn keep(options: &Options) -> Result<(impl Sized + use<>, String), LabError> {
    let lab = build_one(options)?;
    let mut text = String::new();
    for namespace in lab.net.namespaces() {
        text += &format!("{:8} {}\n", namespace.name, namespace.entrance());
    }
    text += &format!("pods ask {} and {}\n", CLUSTER_DNS.v4, CLUSTER_DNS.v6);
    Ok((lab, text))
}

impl fmt::Display for Run {
    /// Says which run it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topology, scenario, family, side, turn } = self;
        let (topology, scenario) = (topology.as_str(), scenario.as_str());
        write!(f, "{topology} {scenario} {} {}", family.as_str(), side.label())?;
        if *turn > 0 { write!(f, ", {}", turn + 1) } else { Ok(()) }
    }
}

/// The kernel's release.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or("?".to_owned(), |release| release.trim().to_owned())
}
