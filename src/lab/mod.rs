//! `nodens lab`: a cluster of network namespaces on this kernel, in which queries are lost, and then not.
//!
//! [`shelter`] is where it lives, so that it goes with the command. [`topology`] wires pods, node and
//! cluster DNS; `rules` are those of kube-proxy; `authority` is the cluster DNS; [`scenario`] is
//! what pods do (`race`, `steady`, `stream`), [`report`] what came of it, `timeline` when,
//! [`page`] the same with plots. It never touches the namespace that it was started in.

mod authority;
mod conntrack;
mod daemon;
mod leftovers;
mod namespace;
mod net;
pub mod page;
mod race;
pub mod report;
mod rules;
pub mod scenario;
pub mod shelter;
mod sockets;
mod steady;
mod stream;
mod timeline;
pub mod topology;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;

use self::authority::{Authority, Zone};
use self::conntrack::{Counters, Entries};
pub use self::daemon::Way;
use self::daemon::{Daemon, Signal};
use self::leftovers::Leftovers;
pub use self::net::Family;
use self::net::{CLUSTER_DNS, DNS, Net};
use self::report::{Report, Row, Sum};
use self::scenario::{Course, NAMES, Scenario};
use self::sockets::Overruns;
use self::steady::Event;
use self::topology::Topology;
use crate::bench::progress::Progress;
use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::netlink::links::LinkError;
use crate::netlink::netfilter::NetlinkError;
use crate::stub::pair::Patience;
use crate::stub::{self, Ask, AskError, Carrier};

/// The address of every Spark driver.
const DRIVER: [u8; 4] = [10, 244, 0, 200];
/// Between the start of the threads and the first query.
const LEAD: Duration = Duration::from_millis(200);
/// Steps of progress in one run.
const STEPS: u64 = 100;
/// How often a stub resolver asks.
const TRIES: u32 = 2;

/// What shall be run.
#[derive(Clone, Debug)]
pub struct Options {
    pub topologies: Vec<Topology>,
    pub scenarios: Vec<Scenario>,
    pub families: Vec<Family>,
    /// Without nodens (false), with it (true).
    pub sides: Vec<bool>,
    pub way: Way,
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
        let lab = Lab::build(run.topology, run.scenario, run.with_nodens.then_some(options.way))?;
        let show = |part: u64, message: &str| {
            progress.show(done + part.min(STEPS - 1), message, clock::now());
        };
        rows.push(lab.measure(&run, options, show)?);
    }
    progress.finish();
    let timeout_ms = u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX);
    Ok(Report { kernel: kernel(), way: options.way, timeout_ms, rows })
}

/// One run of a scenario.
#[derive(Clone, Copy, Debug)]
struct Run {
    topology: Topology,
    scenario: Scenario,
    with_nodens: bool,
    family: Family,
    /// From 0, where it is repeated.
    turn: u32,
}

/// All runs, in order.
fn runs(options: &Options) -> Vec<Run> {
    let mut runs = Vec::new();
    for topology in options.topologies.iter().copied() {
        for scenario in options.scenarios.iter().copied() {
            for with_nodens in options.sides.iter().copied() {
                for family in options.families.iter().copied() {
                    let run = |turn| Run { topology, scenario, with_nodens, family, turn };
                    runs.extend((0..options.repeat).map(run));
                }
            }
        }
    }
    runs
}

/// Builds one lab with nodens, and says how to enter it; it stays while what comes back lives.
///
/// # Errors
/// The first thing that the kernel refuses, or a daemon that does not come up.
pub fn keep(
    topology: Topology,
    scenario: Scenario,
    way: Way,
) -> Result<(impl Sized, String), LabError> {
    let lab = Lab::build(topology, scenario, Some(way))?;
    let mut text = String::new();
    for namespace in lab.net.namespaces() {
        text += &format!("{:8} nsenter --net={}\n", namespace.name, namespace.path());
    }
    text += &format!("pods ask {} and {}\n", CLUSTER_DNS.v4, CLUSTER_DNS.v6);
    Ok((lab, text))
}

/// A cluster that runs.
struct Lab {
    scenario: Scenario,
    net: Net,
    zone: Zone,
    /// The newest last; none in the runs without nodens.
    daemons: Mutex<Vec<Daemon>>,
    /// How queries reach nodens; none without it.
    way: Option<Way>,
    /// What the node had before nodens came.
    before: Leftovers,
    _servers: Vec<Authority>,
}

impl Lab {
    /// Wires the hosts and starts all servers.
    fn build(topology: Topology, scenario: Scenario, way: Option<Way>) -> Result<Self, LabError> {
        let net = topology.build(scenario.pods())?;
        let zone = services();
        fill(&zone);
        let start = |host: &net::Host| {
            Authority::start(&host.namespace, host.addresses.sockets(), zone.clone())
        };
        let servers = net.servers.iter().map(start).collect::<Result<_, _>>()?;
        rules::translate_cluster_dns(net.node(), first_servers(&net))?;
        let before = Leftovers::read(net.node())?;
        let daemon = way.map(|way| start_daemon(&net, 0, way)).transpose()?;
        let daemons = Mutex::new(daemon.into_iter().collect());
        Ok(Self { scenario, net, zone, daemons, way, before, _servers: servers })
    }

    /// Lets something happen to the cluster.
    fn act(&self, event: Event) -> Result<(), LabError> {
        let host = IpAddr::from(DRIVER);
        match event {
            Event::MakeDriver(job) => self.zone.put(&steady::driver(job), &[host]),
            Event::RemoveDriver(job) => self.zone.put(&steady::driver(job), &[]),
            Event::RemoveServer => {
                let Some(first) = self.net.servers.first() else { return Ok(()) };
                // Nothing comes back: packets to a dead pod's address end somewhere.
                first.namespace.wire(|links| links.take_down("eth0"))?;
            }
            Event::TranslateToOthers => {
                // The second, and the one that replaces the first.
                let others = self.net.servers.get(1..).unwrap_or_default();
                rules::translate_cluster_dns(self.net.node(), others)?;
            }
            Event::Kill => self.signal(Signal::Kill)?,
            Event::Stop => self.signal(Signal::Stop)?,
            Event::Continue => self.signal(Signal::Continue)?,
            Event::Upgrade => {
                let Some(way) = self.way else { return Ok(()) };
                let newer = start_daemon(&self.net, 1, way)?;
                self.signal(Signal::Terminate)?;
                self.daemons.lock().unwrap_or_else(PoisonError::into_inner).push(newer);
            }
        }
        Ok(())
    }

    /// Sends the newest daemon, where there is one, a signal.
    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.last().map_or(Ok(()), |daemon| daemon.signal(signal))
    }

    /// How the scenario runs.
    fn course(&self, run: &Run, options: &Options) -> Course {
        let rate = options.rate.unwrap_or(self.scenario.rate()).max(1);
        let rounds = options.rounds.unwrap_or(self.scenario.rounds(rate));
        Course {
            scenario: self.scenario,
            server: SocketAddr::new(CLUSTER_DNS.of(run.family), DNS),
            rounds,
            interval: Duration::from_secs(1) / rate,
            seed: options.seed.wrapping_add(rounds.wrapping_mul(u64::from(run.turn))),
            patience: Patience { timeout: options.timeout, tries: TRIES },
            start: clock::now() + LEAD,
        }
    }

    /// Runs the scenario in one family, and reads the counters before and after.
    fn measure(
        &self,
        run: &Run,
        options: &Options,
        mut progress: impl FnMut(u64, &str),
    ) -> Result<Row, LabError> {
        let course = self.course(run, options);
        warm_up(&self.net.pods, course.server)?;
        let course = Course { start: clock::now() + LEAD, ..course };
        let node = self.net.node();
        let before = (Counters::read(node)?, Overruns::read(&self.net)?);
        let mut sum = Sum::new(course.start);
        let events = Mutex::new(Vec::new());
        let act = |event| {
            events.lock().unwrap_or_else(PoisonError::into_inner).push((clock::now(), event));
            self.act(event)
        };
        let tcp = scenario::run(&course, &self.net.pods, &act, |outcome| {
            sum.add(self.scenario, outcome);
            if sum.queries.is_multiple_of(500) {
                // Some scenarios ask twice in a round.
                let part = sum.queries * STEPS / course.rounds.saturating_mul(2).max(1);
                progress(part, &format!("{run}: {} queries, {} lost", sum.queries, sum.lost));
            }
        })?;
        let after = (Counters::read(node)?, Overruns::read(&self.net)?);
        let pods: Vec<_> = self.net.pods.iter().map(|pod| pod.addresses.of(run.family)).collect();
        let events = events.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Row {
            conntrack: after.0.zip(before.0).map(|(after, before)| after.since(before)),
            overruns: after.1.since(before.1),
            entries: Entries::read(node, &pods)?,
            tcp,
            left_behind: self.left_behind()?,
            ..sum.into_row(run, &events)
        })
    }

    /// What nodens left on the node when it was killed.
    fn left_behind(&self) -> Result<Option<Leftovers>, LabError> {
        if self.scenario != Scenario::Kill || self.way.is_none() {
            return Ok(None);
        }
        Ok(Some(Leftovers::read(self.net.node())?.beyond(&self.before)))
    }
}

impl fmt::Display for Run {
    /// Says which run it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topology, scenario, family, with_nodens, turn } = self;
        let side = if *with_nodens { "with" } else { "without" };
        write!(f, "{topology:?} {scenario:?} {family:?} {side} nodens")?;
        if *turn > 0 { write!(f, ", {}", turn + 1) } else { Ok(()) }
    }
}

/// Asks from every pod until it is answered: neighbours are then known, and tentative addresses usable.
fn warm_up(pods: &[net::Host], server: SocketAddr) -> Result<(), LabError> {
    let qname = Name::from_text(&scenario::service(0)).expect("names of the lab are domain names");
    let query = Query::new(qname, Qtype::A);
    let (timeout, tries) = (Duration::from_millis(250), 40);
    let question = Ask { server, query, carrier: Carrier::Udp, timeout, tries };
    for pod in pods {
        pod.namespace.run(|| Ok(stub::ask(&question).map(drop)?))?;
    }
    // By chance one server may have answered all of them: a few more meet the other one too.
    let Some(first) = pods.first() else { return Ok(()) };
    first.namespace.run(|| Ok((0..8).try_for_each(|_| stub::ask(&question).map(drop))?))
}

/// The zone with the Services that pods ask for.
fn services() -> Zone {
    let zone = Zone::new();
    for number in 0..NAMES {
        let host = u8::try_from(number).unwrap_or_default();
        let v4 = Ipv4Addr::new(10, 96, 1, host);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 1, 0, 0, 0, u16::from(host));
        zone.put(&scenario::service(number), &[v4.into(), v6.into()]);
    }
    zone
}

/// Adds the data nodes of a Hadoop cluster, and names outside the cluster.
fn fill(zone: &Zone) {
    for number in 0..steady::DATA_NODES {
        let (name, address) = steady::data_node(number);
        zone.put(&name, &[address]);
        zone.point(address, &name);
        let host = u8::try_from(number).unwrap_or_default();
        zone.put(&steady::outside(number), &[Ipv4Addr::new(192, 0, 2, host).into()]);
    }
}

/// The cluster DNS at first; the others come to replace them.
fn first_servers(net: &Net) -> &[net::Host] {
    net.servers.get(..2).unwrap_or(&net.servers)
}

/// Starts nodens on the node, with the cluster DNS servers as its upstreams.
fn start_daemon(net: &Net, number: u16, way: Way) -> Result<Daemon, LabError> {
    let servers: Vec<_> = first_servers(net).iter().map(|host| host.addresses).collect();
    Daemon::start(net.node(), number, way, &servers)
}

/// The kernel's release.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or("?".to_owned(), |release| release.trim().to_owned())
}
