//! A lab that stands: the wired cluster, its servers, nodens on the node, and what happens to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::apiserver::ApiServer;
use super::authority::{Authority, Zone};
use super::conntrack::{self, Entries};
use super::daemon::{Counts, Daemon, Knowledge, Signal};
use super::endpoints::Endpoints;
use super::foreign::Foreign;
use super::leftovers::Leftovers;
use super::net::{self, CLUSTER_DNS, DNS, Dual, Family, Net};
use super::report::{Row, Sum};
use super::scenario::{self, Course, NAMES, Scenario};
use super::side::Side;
use super::sockets::Overruns;
use super::steady::{self, Event};
use super::{LabError, Options, Run, STEPS, rules};
use crate::clock;
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::stub::pair::Patience;
use crate::stub::{self, Ask, AskError, Carrier};

/// The address of every Spark driver.
const DRIVER: Dual = Dual::new([10, 244, 0, 250], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x250]);
/// Between the start of the threads and the first query.
const LEAD: Duration = Duration::from_millis(200);
/// How often a stub resolver asks.
const TRIES: u32 = 2;

/// A cluster that runs.
pub(super) struct Lab {
    scenario: Scenario,
    pub net: Net,
    zone: Zone,
    /// The newest last; none in the runs without nodens.
    daemons: Mutex<Vec<Daemon>>,
    side: Side,
    /// What the node had before nodens came.
    before: Leftovers,
    /// What nodens knows of the cluster DNS.
    endpoints: Endpoints,
    /// Where nodens has the cluster zone itself.
    api: Option<ApiServer>,
    _servers: Vec<Server>,
}

/// A running cluster DNS server.
#[expect(dead_code, reason = "they are held for what ends with them")]
enum Server {
    Own(Authority),
    Foreign(Foreign),
}

impl Lab {
    /// Wires the hosts and starts all servers.
    ///
    /// # Errors
    /// The first thing that the kernel refuses, or a daemon that does not come up.
    pub(super) fn build(run: &Run, options: &Options) -> Result<Self, LabError> {
        let scenario = run.scenario;
        let net = run.topology.build(scenario.pods())?;
        let zone = services();
        fill(&zone);
        let start = |host: &net::Host| match &options.cluster_dns {
            None => {
                let sockets = host.addresses.sockets();
                Authority::start(&host.namespace, sockets, zone.clone()).map(Server::Own)
            }
            Some(program) => Foreign::start(host, program).map(Server::Foreign),
        };
        let servers = net.servers.iter().map(start).collect::<Result<_, _>>()?;
        rules::translate_cluster_dns(net.node(), first_servers(&net))?;
        let before = Leftovers::read(net.node())?;
        let endpoints = Endpoints::new(first_servers(&net))?;
        let (side, daemons) = (run.side, Mutex::default());
        let knows_zone = side != Side::Without && scenario.needs_zone();
        let api = knows_zone.then(|| api_server(&net)).transpose()?;
        let lab =
            Self { scenario, net, zone, daemons, side, before, endpoints, api, _servers: servers };
        lab.start_daemon(0)?;
        Ok(lab)
    }

    /// Lets something happen to the cluster.
    fn act(&self, event: Event) -> Result<(), LabError> {
        match event {
            Event::MakeDriver(job) => {
                self.zone.put(&scenario::in_zone(&steady::driver(job)), &DRIVER.both());
                self.api.iter().for_each(|api| api.make_headless(&steady::driver(job), DRIVER));
            }
            Event::RemoveDriver(job) => {
                self.zone.put(&scenario::in_zone(&steady::driver(job)), &[]);
                self.api.iter().for_each(|api| api.delete_headless(&steady::driver(job), DRIVER));
            }
            Event::RemoveServer => {
                let Some(first) = self.net.servers.first() else { return Ok(()) };
                // Nothing comes back: packets to a dead pod's address end somewhere.
                first.namespace.wire(|links| links.take_down("eth0"))?;
            }
            Event::TranslateToOthers => {
                // The second, and the one that replaces the first.
                let others = self.net.servers.get(1..).unwrap_or_default();
                rules::translate_cluster_dns(self.net.node(), others)?;
                let gone = self.net.servers.iter().take(1).flat_map(|host| host.addresses.both());
                conntrack::forget_translated_to(&gone.collect::<Vec<_>>(), self.net.node())?;
                self.endpoints.put(others)?;
            }
            Event::Kill => self.signal(Signal::Kill)?,
            Event::Stop => self.signal(Signal::Stop)?,
            Event::Continue => self.signal(Signal::Continue)?,
            Event::Upgrade => {
                self.start_daemon(1)?;
                self.signal(Signal::Terminate)?;
            }
        }
        Ok(())
    }

    /// Starts nodens on the node, where there shall be one, with the cluster DNS servers as its upstreams.
    fn start_daemon(&self, number: u16) -> Result<(), LabError> {
        if self.side == Side::Without {
            return Ok(());
        }
        let below: Vec<_> = first_servers(&self.net).iter().map(|host| host.addresses).collect();
        let kubeconfig = self.api.as_ref().map(ApiServer::kubeconfig);
        let knowledge = Knowledge {
            endpoints: &self.endpoints,
            below: &below,
            kubeconfig: kubeconfig.as_deref(),
        };
        let daemon = Daemon::start(self.net.node(), number, self.side, knowledge)?;
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner).push(daemon);
        Ok(())
    }

    /// Sends the first daemon, where there is one, a signal.
    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.first().map_or(Ok(()), |daemon| daemon.signal(signal))
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
    ///
    /// # Errors
    /// When a pod cannot send at all, or the kernel does not tell.
    pub(super) fn measure(
        &self,
        run: &Run,
        options: &Options,
        mut progress: impl FnMut(u64, &str),
    ) -> Result<Row, LabError> {
        let course = self.course(run, options);
        self.warm_up(run.family)?;
        let course = Course { start: clock::now() + LEAD, ..course };
        let node = self.net.node();
        let before = (conntrack::counters(node)?, Overruns::read(&self.net)?);
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
        let after = (conntrack::counters(node)?, Overruns::read(&self.net)?);
        let pods: Vec<_> = self.net.pods.iter().map(|pod| pod.addresses.of(run.family)).collect();
        let counts = self.counts()?;
        let events = events.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Row {
            conntrack: after.0.zip(before.0).map(|(after, before)| after.since(before)),
            overruns: after.1.since(before.1),
            entries: Entries::read(node, &pods)?,
            tcp,
            left_behind: self.left_behind()?,
            lapses: counts.map(|counts| counts.lapses),
            shed: counts.map(|counts| counts.shed),
            ..sum.into_row(run, &events)
        })
    }

    /// Waits until every pod is answered.
    ///
    /// # Errors
    /// When one is not.
    pub(super) fn warm_up(&self, family: Family) -> Result<(), LabError> {
        warm_up(&self.net.pods, SocketAddr::new(CLUSTER_DNS.of(family), DNS))
    }

    /// What the newest daemon has counted.
    fn counts(&self) -> Result<Option<Counts>, LabError> {
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.last().map_or(Ok(None), |daemon| daemon.counts(self.net.node()))
    }

    /// What nodens left on the node when it was killed.
    fn left_behind(&self) -> Result<Option<Leftovers>, LabError> {
        if self.scenario != Scenario::Kill || self.side == Side::Without {
            return Ok(None);
        }
        Ok(Some(Leftovers::read(self.net.node())?.beyond(&self.before)))
    }
}

/// Asks from every pod until it is answered: neighbours are then known, and tentative addresses usable.
fn warm_up(pods: &[net::Host], server: SocketAddr) -> Result<(), LabError> {
    let qname = Name::from_text(&scenario::service(0)).expect("names of the lab are domain names");
    let query = Query::new(qname, Qtype::A);
    let (timeout, tries) = (Duration::from_millis(250), 40);
    let question = Ask { server, query, carrier: Carrier::Udp, timeout, tries };
    for pod in pods {
        pod.namespace.run(|| Ok(ask_until_heard(&question)?))?;
    }
    // By chance one server may have answered all of them: a few more meet the other one too.
    let Some(first) = pods.first() else { return Ok(()) };
    first.namespace.run(|| Ok((0..8).try_for_each(|_| ask_until_heard(&question))?))
}

/// Asks until somebody answers: a server that has just been started may not listen yet.
fn ask_until_heard(question: &Ask) -> Result<(), AskError> {
    for _ in 0..question.tries {
        match stub::ask(question) {
            Err(AskError::Refused { .. }) => std::thread::sleep(question.timeout),
            asked => return asked.map(drop),
        }
    }
    Err(AskError::Refused { server: question.server })
}

/// The zone with the Services that pods ask for.
fn services() -> Zone {
    let zone = Zone::new();
    for number in 0..NAMES {
        zone.put(&scenario::service(number), &service_address(number).both());
    }
    zone
}

/// The address of a Service.
fn service_address(number: u64) -> Dual {
    let host = u8::try_from(number).unwrap_or_default();
    Dual::new([10, 96, 1, host], [0xfd00, 0x10, 0x96, 1, 0, 0, 0, u16::from(host)])
}

/// An API server on the node that knows the same Services.
fn api_server(net: &Net) -> Result<ApiServer, LabError> {
    let api = ApiServer::start(net.node())?;
    for number in 0..NAMES {
        api.make_service(&scenario::service_label(number), service_address(number));
    }
    Ok(api)
}

/// Adds the data nodes of a Hadoop cluster, and names outside the cluster.
fn fill(zone: &Zone) {
    for number in 0..steady::DATA_NODES {
        let (name, addresses) = steady::data_node(number);
        zone.put(&name, &addresses.both());
        addresses.both().into_iter().for_each(|address| zone.point(address, &name));
        let host = u8::try_from(number).unwrap_or_default();
        zone.put(&steady::outside(number), &[Ipv4Addr::new(192, 0, 2, host).into()]);
    }
}

/// The cluster DNS at first; the others come to replace them.
fn first_servers(net: &Net) -> &[net::Host] {
    net.servers.get(..2).unwrap_or(&net.servers)
}
