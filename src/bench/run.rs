//! One run: warm-up, threads, progress, and what came of it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::conntrack::Counters;
use super::progress::Progress;
use super::record::Record;
use super::report::{self, Report, SCHEMA, Server};
use super::text;
use crate::clock;
use crate::stub::demand::{Course, Done, End, Load, Pace};
use crate::stub::stream::{self, Tls};
use crate::stub::{engine, pin, raise_descriptors};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// Between the start of the threads and the first lookup.
const LEAD: Duration = Duration::from_millis(50);
/// Patience for the first response of each server, for each of three tries.
const FIRST: Duration = Duration::from_secs(1);
/// Of what was due, this much must have left, else the load was the bottleneck.
const HELD: f64 = 0.99;
/// Lookups that leave late by more than this share of their latency are told, unless it is a little time.
const LATE: f64 = 0.1;
/// A little time, in microseconds: below it a scheduler cannot do much better.
const LITTLE_US: f64 = 100.0;
/// So many spare descriptors the process needs for itself.
const SPARE: u64 = 64;

/// How a server is reached.
#[derive(Clone)]
pub enum Carrier {
    Udp,
    Tcp,
    Tls(Tls),
}

/// A server to ask.
#[derive(Clone)]
pub struct Target {
    /// For people and for the baseline.
    pub name: String,
    /// As it was asked for.
    pub written: String,
    pub address: SocketAddr,
    pub carrier: Carrier,
}

/// What shall be run.
pub struct Plan {
    pub targets: Vec<Target>,
    /// Its servers, times and thread are filled in here.
    pub load: Load,
    pub warm_up: Duration,
    pub duration: Duration,
    pub threads: u64,
    pub facts: report::Load,
    /// Shows nothing while it goes on.
    pub is_quiet: bool,
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    #[error("{name} does not answer: {reason}")]
    Silent { name: String, reason: String },
    #[error("the load cannot start: {0}")]
    Start(io::Error),
    #[error(
        "too few descriptors: {wanted} sockets are to be kept, {limit} may be open (ulimit -n); name fewer \
         by --sockets"
    )]
    Descriptors { wanted: u64, limit: u64 },
    #[error("a thread of the load has vanished")]
    Vanished,
}

/// Targets that one kind of engine asks.
struct Group {
    /// Of each of its servers, the place in the plan.
    places: Vec<usize>,
    load: Load,
    tls: Option<Vec<Option<Tls>>>,
}

/// What the threads count into; a lock for each thread and nobody waits.
type Shared = Arc<Mutex<Vec<Record>>>;

/// Runs it; `stop` ends it early, and what was measured is reported.
///
/// # Errors
/// When a server does not answer at all, or the load cannot start.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, BenchError> {
    let limit = raise_descriptors();
    let kept = u64::from(plan.load.kept.unwrap_or(0)) * plan.threads;
    let wanted = kept * u64::try_from(plan.targets.len()).unwrap_or(1);
    if wanted + SPARE > limit {
        return Err(BenchError::Descriptors { wanted, limit });
    }
    meet(plan, stop)?;
    let before = Counters::read();
    let begin = clock::now() + LEAD;
    let (start, started) = (begin + plan.warm_up, clock::wall());
    let end = start + plan.duration;
    let times = Load { start: begin, measured: start, end, ..plan.load.clone() };
    let groups = groups(&plan.targets, &times);
    let (records, courses) = measure(plan, &groups, start, stop)?;
    let stopped = clock::now();
    let started = started.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let after = Counters::read();
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s: started.as_secs(),
        load: plan.facts.clone(),
        servers: Vec::new(),
        conntrack: after.zip(before).map(|(after, before)| after.since(before)),
        remarks: Vec::new(),
        is_complete: true,
        gates: Vec::new(),
        baseline: Vec::new(),
        differences: Vec::new(),
    };
    let lasted = stopped.saturating_duration_since(start).min(plan.duration);
    for (target, record) in plan.targets.iter().zip(&records) {
        let (address, carrier) = (target.address.to_string(), target.carrier.name());
        report
            .servers
            .push(Server::new([&target.name, &address, &target.written, carrier], record));
    }
    settle(&mut report, &courses, lasted, stop.load(Ordering::Relaxed));
    Ok(report)
}

impl Carrier {
    /// Its name in reports.
    fn name(&self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
        }
    }
}

/// Sorts the targets by the engine that asks them.
fn groups(targets: &[Target], load: &Load) -> Vec<Group> {
    let make = |is_stream: bool| {
        let is_ours = |target: &Target| matches!(target.carrier, Carrier::Udp) != is_stream;
        let ours: Vec<_> =
            targets.iter().enumerate().filter(|(_, target)| is_ours(target)).collect();
        let tls = |target: &Target| match &target.carrier {
            Carrier::Tls(tls) => Some(tls.clone()),
            _ => None,
        };
        let tls: Vec<_> = ours.iter().map(|(_, target)| tls(target)).collect();
        let mut load = load.clone();
        load.servers = ours.iter().map(|(_, target)| target.address).collect();
        if tls.iter().any(Option::is_some) {
            // Who speaks TLS keeps a connection: a handshake for each lookup is nobody's habit.
            load.kept.get_or_insert(1);
        }
        let places = ours.iter().map(|(place, _)| *place).collect();
        Group { places, load, tls: is_stream.then_some(tls) }
    };
    [make(false), make(true)].into_iter().filter(|group| !group.places.is_empty()).collect()
}

/// Asks each server once: one that is silent is told before anything is measured.
fn meet(plan: &Plan, stop: &AtomicBool) -> Result<(), BenchError> {
    for target in &plan.targets {
        let mut load = plan.load.clone();
        load.start = clock::now();
        load.measured = load.start;
        load.end = load.start + Duration::from_secs(60);
        load.pace = Pace::Closed { in_flight: 1 };
        (load.count, load.kept, load.ports) = (Some(1), None, None);
        (load.habit.timeout, load.habit.tries) = (FIRST, 3);
        for group in groups(std::slice::from_ref(target), &load) {
            let mut is_met = false;
            let course = fly(&group, (0, 1), stop, |done| is_met = done.end != End::GaveUp)
                .map_err(BenchError::Start)?;
            if !is_met && !stop.load(Ordering::Relaxed) {
                return Err(silent(target, &course));
            }
        }
    }
    Ok(())
}

/// Why a server is silent.
fn silent(target: &Target, course: &Course) -> BenchError {
    let reason = match (&course.broke, &course.last_failure) {
        (Some(reason), _) | (None, Some(reason)) => reason.clone(),
        (None, None) if course.refused > 0 => "nobody listens there".to_owned(),
        (None, None) => format!("no response to 3 tries of {FIRST:?}"),
    };
    BenchError::Silent { name: format!("{} ({})", target.name, target.address), reason }
}

/// Runs one thread's share of a group; with fixed ports that is all of it, from an address of its own.
fn fly(
    group: &Group,
    thread: (u64, u64),
    stop: &AtomicBool,
    take: impl FnMut(&Done),
) -> io::Result<Course> {
    let mut load = Load { thread, ..group.load.clone() };
    if load.ports.is_some() {
        // Two threads of one CPU would never ask at the same instant.
        pin(thread.0);
        let own = usize::try_from(thread.0).ok().and_then(|at| load.sources.get(at)).copied();
        (load.sources, load.thread) = (Vec::from_iter(own), (0, 1));
    }
    match &group.tls {
        None => engine::run(&load, stop, take),
        Some(tls) => stream::run(&load, tls, stop, take),
    }
}

/// Lets all threads run to their end; gives back what was counted for each target, and each thread's course.
fn measure(
    plan: &Plan,
    groups: &[Group],
    start: Instant,
    stop: &AtomicBool,
) -> Result<(Vec<Record>, Vec<Course>), BenchError> {
    let new = || vec![Record::new(start, plan.duration); plan.targets.len()];
    let shares: Vec<(&Group, u64, Shared)> = groups
        .iter()
        .flat_map(|group| (0..plan.threads).map(move |thread| (group, thread)))
        .map(|(group, thread)| (group, thread, Arc::new(Mutex::new(new()))))
        .collect();
    let courses = thread::scope(|scope| {
        let own =
            shares.iter().map(|(group, number, shared)| (*group, *number, Arc::clone(shared)));
        let threads: Vec<_> = own
            .map(|(group, number, shared)| {
                scope.spawn(move || {
                    fly(group, (number, plan.threads), stop, |done| count(group, &shared, done))
                })
            })
            .collect();
        watch(plan, start, &shares, &|| threads.iter().all(|thread| thread.is_finished()));
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(course) => course.map_err(BenchError::Start),
            Err(_) => Err(BenchError::Vanished),
        });
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let mut all = new();
    for (_, _, shared) in &shares {
        let counted = shared.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter_mut().zip(counted.iter()).for_each(|(sum, part)| sum.add(part));
    }
    Ok((all, courses))
}

/// Counts one lookup.
fn count(group: &Group, shared: &Shared, done: &Done) {
    let place = group.places.get(done.server).copied().unwrap_or(0);
    let mut records = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(record) = records.get_mut(place) {
        record.take(done);
    }
}

/// Shows progress until all is over.
fn watch(
    plan: &Plan,
    start: Instant,
    shares: &[(&Group, u64, Shared)],
    is_over: &dyn Fn() -> bool,
) {
    let whole = plan.warm_up + plan.duration;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut progress = Progress::start(millis(whole), plan.is_quiet);
    let (mut seen, mut looked) = (0, clock::now());
    while !is_over() {
        thread::sleep(TICK.min(whole / 10 + Duration::from_millis(5)));
        let now = clock::now();
        if now.saturating_duration_since(looked) < TICK {
            continue;
        }
        let mut sum = Record::new(start, plan.duration);
        for (_, _, shared) in shares {
            let records = shared.lock().unwrap_or_else(PoisonError::into_inner);
            records.iter().for_each(|record| sum.add_live(record));
        }
        let passed = now.saturating_duration_since(looked).as_secs_f64();
        let rate = sum.sent.saturating_sub(seen) as f64 / passed;
        (seen, looked) = (sum.sent, now);
        let gone = (now + plan.warm_up).saturating_duration_since(start).min(whole);
        let share = |share| text::time(sum.live.quantile(share).as_nanos() as f64 / 1000.0);
        let line = match sum.lookups {
            0 => "warming up".to_owned(),
            _ => format!(
                "{rate:.0} q/s  p50 {}  p99 {}  lost {}  timeouts {}",
                share(0.5),
                share(0.99),
                sum.sent.saturating_sub(sum.responses),
                sum.gave_up
            ),
        };
        progress.show(millis(gone), &line, now);
    }
    progress.finish();
}

/// Says how the load itself went.
fn settle(report: &mut Report, courses: &[Course], lasted: Duration, is_stopped: bool) {
    let sum = |read: fn(&Course) -> u64| courses.iter().map(read).sum::<u64>();
    let (due, fired, unfinished) =
        (sum(|course| course.due), sum(|course| course.fired), sum(|course| course.unfinished));
    let servers = report.servers.len().max(1) as f64;
    let left: u64 = report.servers.iter().map(|server| server.sent - server.retries).sum();
    let load = &mut report.load;
    load.held_qps = left as f64 / servers / lasted.as_secs_f64().max(0.001);
    (load.never_left, load.unfinished) = (due.saturating_sub(fired), unfinished);
    let fell_behind = !is_stopped && (fired as f64) < HELD * due as f64;
    if let Some(wanted) = load.wanted_qps.filter(|_| fell_behind) {
        report.remarks.push(format!(
            "the load was the bottleneck: it held {:.0} of {wanted:.0} queries/s for each server with {} \
             thread(s); {} of {due} lookups never left, and latencies hold its own delay",
            load.held_qps,
            load.threads,
            due.saturating_sub(fired)
        ));
    }
    report.remarks.extend(report.servers.iter().filter_map(lateness));
    let mut broke: Vec<_> = courses.iter().filter_map(|course| course.broke.clone()).collect();
    broke.dedup();
    report.is_complete = broke.is_empty() && !is_stopped;
    if is_stopped {
        report.remarks.push(format!(
            "interrupted after {:.1} s: this is what was measured until then; {unfinished} lookups were waiting",
            lasted.as_secs_f64()
        ));
    }
    report.remarks.extend(broke.into_iter().map(|why| format!("ended early: {why}")));
    let refused = sum(|course| course.refused);
    if refused > 0 {
        report.remarks.push(format!("{refused} times nobody listened at a server"));
    }
}

/// What is to be said of the load's own part in a server's latencies, when it is no small one.
fn lateness(server: &Server) -> Option<String> {
    let (late, latency) = (server.late_us, server.latency_us);
    let is_much = |late: f64, whole: f64| late > LITTLE_US && late > LATE * whole;
    (is_much(late.p99, latency.p99) || is_much(late.p50, latency.p50)).then(|| {
        format!(
            "{}: half of all lookups left {} late or more, one of a hundred {} or more: this machine had no time \
             for the load, and latencies hold that",
            server.name,
            text::time(late.p50),
            text::time(late.p99)
        )
    })
}
