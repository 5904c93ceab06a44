//! Load at a rate, from many pods, while things happen to the cluster.
//!
//! A schedule says which query leaves when, and from which pod; a few threads go from namespace to
//! namespace and send.

use std::time::Duration;

use serde::Serialize;

use super::LabError;
use super::net::{Dual, Host};
use super::scenario::{Course, Scenario, in_zone, service};
use crate::clock;
use crate::dns::Qtype;
use crate::dns::text::reverse_name;
use crate::stub::load::{Basket, wait_until};

/// Threads that send.
const THREADS: u64 = 2;
/// Executors ask this often in the life of one Spark job, 100 ms apart.
const ASKS: u64 = 20;
/// Between two asks of an executor, and between two jobs.
const ASK: Duration = Duration::from_millis(100);
const JOB: Duration = Duration::from_secs(2);
/// Data nodes of the Hadoop cluster.
pub(super) const DATA_NODES: u64 = 100;
/// Between two restarts of a Hadoop job, when everybody asks for everything.
const RESTART: Duration = Duration::from_secs(1);

/// Lets something happen to the cluster.
pub(super) type Act<'a> = dyn Fn(Event) -> Result<(), LabError> + Sync + 'a;

/// Something that happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A cluster DNS server is gone: nothing comes back from its address any more.
    RemoveServer,
    /// kube-proxy has heard of it.
    TranslateToOthers,
    /// The daemon gets SIGKILL.
    Kill,
    /// The daemon gets SIGSTOP.
    Stop,
    /// The daemon gets SIGCONT.
    Continue,
    /// A second daemon starts; when it takes queries the first gets SIGTERM.
    Upgrade,
    /// A driver's headless Service is made.
    MakeDriver(u64),
    /// And deleted.
    RemoveDriver(u64),
}

impl Event {
    /// What was done, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::Continue => "SIGCONT",
            Self::Upgrade => "a second instance starts, then the first one gets SIGTERM",
            Self::RemoveServer => "a cluster DNS server goes",
            Self::TranslateToOthers => "kube-proxy has heard of it",
            Self::MakeDriver(_) => "a driver's Service is made",
            Self::RemoveDriver(_) => "a driver's Service is deleted",
        }
    }
}

/// One lookup: names in the order of the search list, the first that exists ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shot {
    after: Duration,
    pod: u64,
    qnames: Vec<String>,
    qtypes: &'static [Qtype],
}

/// The name of a Spark driver's Service.
pub(super) fn driver(job: u64) -> String {
    format!("driver-{job}")
}

/// The Spark job whose executors ask at this time since the start.
pub(super) fn job_at(after: Duration) -> u64 {
    u64::try_from(after.as_nanos() / JOB.as_nanos()).unwrap_or(u64::MAX)
}

/// The name and the address of a data node.
pub(super) fn data_node(number: u64) -> (String, Dual) {
    let host = u8::try_from(number % DATA_NODES).unwrap_or_default();
    let name = format!("dn-{host}.hdfs.default.svc.cluster.local");
    let v6 = [0xfd00, 0x10, 0x244, 9, 0, 0, 0, u16::from(host)];
    (name, Dual::new([10, 244, 9, host], v6))
}

/// Fires the whole schedule, and lets happen what shall happen; returns when the last has left.
///
/// # Errors
/// When a pod cannot send at all, and those of `act`.
pub(super) fn fire(
    course: &Course,
    pods: &[Host],
    basket: &Basket,
    act: &Act<'_>,
) -> Result<(), LabError> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| act_on_time(course, act));
        let share = |thread| scope.spawn(move || fire_share(course, pods, basket, thread));
        let mut threads: Vec<_> = (0..THREADS).map(share).collect();
        threads.push(acting);
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|done| done.unwrap_or(Err(LabError::Vanished("a thread of the load"))))
    })
}

/// Lets happen what shall happen, in time.
///
/// # Errors
/// Those of `act`.
pub(super) fn act_on_time(course: &Course, act: &Act<'_>) -> Result<(), LabError> {
    events(course).into_iter().try_for_each(|(after, event)| {
        std::thread::sleep((course.start + after).saturating_duration_since(clock::now()));
        act(event)
    })
}

/// Fires every `THREADS`-th shot.
fn fire_share(
    course: &Course,
    pods: &[Host],
    basket: &Basket,
    thread: u64,
) -> Result<(), LabError> {
    let count = u64::try_from(pods.len()).unwrap_or(u64::MAX).max(1);
    for number in (thread..shots(course)).step_by(THREADS as usize) {
        let shot = shot(course, number);
        let pod = pods.get(usize::try_from(shot.pod % count).unwrap_or_default());
        pod.ok_or(LabError::Vanished("a pod"))?.namespace.enter()?;
        let aim = |qname: &String| course.aim(qname, 0, shot.qtypes);
        let mut salvos = shot.qnames.iter().map(aim).collect::<Result<Vec<_>, _>>()?;
        let first = salvos.remove(0);
        let intended = course.start + shot.after;
        wait_until(intended);
        basket.put(first.fire(intended).then(salvos));
    }
    Ok(())
}

/// How many shots there are.
fn shots(course: &Course) -> u64 {
    match course.scenario {
        // Whole jobs only.
        Scenario::Spark => per_job().max(course.rounds - course.rounds % per_job()),
        Scenario::Hdfs => per_restart().max(course.rounds - course.rounds % per_restart()),
        _ => course.rounds,
    }
}

/// Lookups in the life of one Spark job.
fn per_job() -> u64 {
    u64::from(Scenario::Spark.pods()) * ASKS
}

/// Lookups when a Hadoop job starts: every pod asks for every data node's name and both addresses.
fn per_restart() -> u64 {
    u64::from(Scenario::Hdfs.pods()) * DATA_NODES * 3
}

/// A count as a factor of durations.
fn times(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// One shot of the schedule.
fn shot(course: &Course, number: u64) -> Shot {
    let turn = course.seed.wrapping_add(number);
    let both: &[Qtype] = &[Qtype::A, Qtype::AAAA];
    let pointer: &[Qtype] = &[Qtype::PTR];
    let even = course.interval * times(number);
    match course.scenario {
        Scenario::Spark => {
            let (job, ask) = (number / per_job(), number % per_job());
            let executors = u64::from(Scenario::Spark.pods());
            let after = JOB * times(job) + ASK * times(ask / executors);
            let qnames = vec![in_zone(&driver(job))];
            Shot { after, pod: ask % executors, qnames, qtypes: both }
        }
        Scenario::Hdfs => {
            let (restart, ask) = (number / per_restart(), number % per_restart());
            let (pod, what) = (ask / (DATA_NODES * 3), ask % (DATA_NODES * 3));
            let (name, addresses) = data_node(what / 3);
            let (qname, qtypes) = match what % 3 {
                0 => (name, both),
                1 => (reverse_name(addresses.v4.into()).to_string(), pointer),
                _ => (reverse_name(addresses.v6.into()).to_string(), pointer),
            };
            Shot { after: RESTART * times(restart), pod, qnames: vec![qname], qtypes }
        }
        Scenario::Mixed => Shot { after: even, pod: turn, qnames: search_list(turn), qtypes: both },
        _ => Shot { after: even, pod: turn, qnames: vec![service(turn)], qtypes: &[Qtype::A] },
    }
}

/// What a stub resolver with ndots:5 asks for: every second lookup is of a name outside the cluster.
fn search_list(turn: u64) -> Vec<String> {
    match turn % 2 {
        0 => vec![service(turn)],
        _ => ["default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""]
            .map(|suffix| format!("{}.{suffix}", outside(turn)))
            .into(),
    }
}

/// A name outside the cluster.
pub(super) fn outside(number: u64) -> String {
    format!("host-{}.example.org", number % 100)
}

/// What happens, in order.
fn events(course: &Course) -> Vec<(Duration, Event)> {
    let whole = course.interval * times(course.rounds);
    match course.scenario {
        // kube-proxy hears of it a second later, or at once when all is short.
        Scenario::Churn => vec![
            (whole / 3, Event::RemoveServer),
            (whole / 3 + Duration::from_secs(1).min(whole / 3), Event::TranslateToOthers),
        ],
        Scenario::Kill => vec![(whole / 3, Event::Kill)],
        Scenario::Stop => vec![(whole / 3, Event::Stop), (whole * 2 / 3, Event::Continue)],
        Scenario::Upgrade => vec![(whole / 3, Event::Upgrade)],
        Scenario::Spark => (0..shots(course) / per_job())
            .flat_map(|job| {
                let start = JOB * times(job);
                [
                    (start + JOB / 4 + ASK / 2, Event::MakeDriver(job)),
                    (start + JOB * 3 / 4 + ASK / 2, Event::RemoveDriver(job)),
                ]
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Tells whether a response to a shot that was sent `after` the start contradicts the cluster of that
/// time: a driver's Service denied while it exists, or answered after it is gone.
pub(super) fn is_stale(scenario: Scenario, after: Duration, exists: bool) -> bool {
    if scenario != Scenario::Spark {
        return false;
    }
    let phase = u64::try_from(after.as_millis()).unwrap_or_default() % 2000;
    // The Service is there from 550 ms to 1550 ms of each job; queries leave at multiples of 100 ms.
    exists != (550..1550).contains(&phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::net::CLUSTER_DNS;
    use crate::stub::pair::Patience;

    /// A course of 4,000 rounds, 1 ms apart.
    fn course(scenario: Scenario) -> Course {
        Course {
            scenario,
            server: (CLUSTER_DNS.v4, 53).into(),
            rounds: 4000,
            interval: Duration::from_millis(1),
            seed: 0,
            patience: Patience { timeout: Duration::from_secs(5), tries: 2 },
            start: clock::now(),
        }
    }

    #[test]
    fn executors_ask_for_a_driver_before_while_and_after_it_exists() {
        let course = course(Scenario::Spark);
        assert_eq!(shots(&course), 4000);
        let events = events(&course);
        assert_eq!(events.len(), 8);
        assert_eq!(events[0], (Duration::from_millis(550), Event::MakeDriver(0)));
        let last = shot(&course, 3999);
        assert_eq!(last.qnames, ["driver-3.default.svc.cluster.local"]);
        assert_eq!((last.after, last.pod), (Duration::from_millis(7900), 49));
        let stale =
            |millis, exists| is_stale(Scenario::Spark, Duration::from_millis(millis), exists);
        assert!(stale(600, false) && !stale(600, true) && stale(3600, true) && !stale(3600, false));
    }

    #[test]
    fn every_pod_asks_for_every_data_node_forward_and_back_at_once() {
        let course = course(Scenario::Hdfs);
        let all: Vec<_> = (0..shots(&course)).map(|number| shot(&course, number)).collect();
        assert_eq!(all.len(), 6000);
        assert!(all.iter().all(|shot| shot.after == Duration::ZERO));
        let of_pod: Vec<_> = all.iter().filter(|shot| shot.pod == 19).collect();
        assert_eq!(of_pod.len(), 300);
        assert_eq!(of_pod[0].qtypes, [Qtype::A, Qtype::AAAA]);
        assert_eq!(of_pod[1].qnames, ["0.9.244.10.in-addr.arpa."]);
        assert!(of_pod[2].qnames[0].ends_with(".4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa."));
    }

    #[test]
    fn a_name_with_few_dots_goes_through_the_search_list_first() {
        let list = search_list(1);
        assert_eq!(list[0], "host-1.example.org.default.svc.cluster.local.");
        assert_eq!((list.len(), list[3].as_str()), (4, "host-1.example.org."));
    }
}
