//! Services and endpoints that come, change and go under load: what is answered follows the events.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nodens::cluster::Event;
use nodens::cluster::object::{EndpointSlice, Object};
use serde_json::Value;

use crate::harness::load::Load;
use crate::harness::needs;
use crate::harness::wire::Udp;
use crate::harness::{ask, qtype, rcode};
use crate::is_long;
use crate::objects::{endpoint, headless, slice, v4};
use crate::plane::{CoreDns, Plane, needs_kubernetes};
use crate::watching::Watching;

/// Names that come and go in turn: each changes every third of a second, so that no two of its changes meet.
const NAMES: usize = 33;

/// Changes per second.
const RATE: u32 = 100;

/// How long a change may take to be seen before the test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon after its event a change is to be seen.
const LIMIT: Duration = Duration::from_millis(10);

/// One change of the name `number % NAMES`.
struct Step {
    service: Value,
    slice: Value,
    /// Whether it is made, changed, or deleted.
    phase: usize,
}

impl Step {
    /// The change `number` of the run.
    fn new(number: usize) -> Self {
        let name = format!("churn-{}", number % NAMES);
        let addresses = ("IPv4", vec![endpoint(&v4(number))]);
        Self {
            service: headless("default", &name, false),
            slice: slice(("default", &name), 0, addresses, false),
            phase: number / NAMES % 3,
        }
    }

    /// Makes the change.
    fn act(&self, plane: &Plane) {
        match self.phase {
            0 => {
                plane.make(&self.service);
                plane.make(&self.slice);
            }
            1 => drop(plane.replace(&self.slice)),
            _ => {
                plane.delete(&self.slice);
                plane.delete(&self.service);
            }
        }
    }
}

/// The number of the change that gave this address.
fn number_of(address: &str) -> u32 {
    let address: std::net::Ipv4Addr = address.parse().expect("an address of ours");
    u32::from(address) - u32::from(std::net::Ipv4Addr::new(198, 18, 0, 0))
}

/// Tells whether the answer is what the slice says, or that there is nothing when it is gone; or what a
/// later change says, where we read the event so late.
fn is_seen(server: &Udp, slice: &EndpointSlice, is_gone: bool) -> bool {
    let name = format!("{}.default.svc.cluster.local", slice.metadata.labels.service_name);
    let answer = server.exchange(&ask(&name, qtype::A));
    let told = number_of(&slice.endpoints[0].addresses[0]);
    match answer.data(qtype::A).first().map(|address| number_of(address)) {
        Some(said) => said > told || (said == told && !is_gone),
        None => is_gone && answer.rcode() == rcode::NXDOMAIN,
    }
}

/// An event, and when we read it.
type Read = (Instant, Event);

/// Waits until what the event tells is answered; how long after it was read that was.
fn follow(server: &Udp, (read, event): &Read) -> Option<Duration> {
    let (slice, is_gone) = match event {
        Event::Applied(_, Object::EndpointSlice(slice)) => (slice, false),
        Event::Deleted(_, Object::EndpointSlice(slice)) => (slice, true),
        _ => return None,
    };
    while !is_seen(server, slice, is_gone) {
        assert!(read.elapsed() < PATIENCE, "{slice:?} gone {is_gone}: never answered so");
    }
    Some(read.elapsed())
}

/// Hands on what is watched with the time of its reading, whatever is done with the events before it.
fn read_on(watching: &mut Watching, out: &mpsc::Sender<Read>, goes_on: impl Fn() -> bool) {
    while goes_on() {
        let events = watching.more(Duration::from_millis(100));
        let read = Instant::now();
        // That nobody wants them any more is the end of the run.
        events.into_iter().for_each(|event| drop(out.send((read, event))));
    }
}

/// What the events said of each name, and when they were read.
type History = Vec<Vec<(Instant, Option<String>)>>;

/// One answer to somebody who asks all the time.
struct Heard {
    name: usize,
    asked: Instant,
    said: Option<String>,
}

/// Asks `server` for all names in turn while `goes_on`.
fn listen(server: SocketAddr, goes_on: impl Fn() -> bool) -> Vec<Heard> {
    let server = Udp::to(server);
    let mut heard = Vec::new();
    while goes_on() {
        for name in 0..NAMES {
            let asked = Instant::now();
            let question = ask(&format!("churn-{name}.default.svc.cluster.local"), qtype::A);
            let said = server.exchange(&question).data(qtype::A).first().map(ToString::to_string);
            heard.push(Heard { name, asked, said });
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    heard
}

/// How far nodens may be ahead of us: what we read of an event a moment later is answered already.
const AHEAD: Duration = Duration::from_millis(200);

/// How long an answer had been out of date when it was asked for: since the event after the one that it tells
/// of. Nothing when it was not, or when nodens read the event before us.
fn age(heard: &Heard, history: &History) -> Duration {
    let events = &history[heard.name];
    let known = events.partition_point(|(read, _)| *read <= heard.asked);
    // That there is nothing was true before too: it is the next deletion when that was read soon.
    let is_ahead = events
        .get(known)
        .is_some_and(|(read, said)| *said == heard.said && *read < heard.asked + AHEAD);
    if is_ahead {
        return Duration::ZERO;
    }
    let told = events[..known].iter().rposition(|(_, said)| *said == heard.said);
    let superseded = match told {
        Some(told) => events.get(told + 1),
        // Before the first event there is nothing.
        None if heard.said.is_none() => events.first(),
        // Newer than what we had read.
        None => None,
    };
    superseded.map_or(Duration::ZERO, |(read, _)| heard.asked.saturating_duration_since(*read))
}

/// The ages of all answers, sorted.
fn ages(heard: &[Heard], history: &History) -> Vec<Duration> {
    let mut ages: Vec<_> = heard.iter().map(|heard| age(heard, history)).collect();
    ages.sort();
    ages
}

/// The first answer that tells of something older than an answer before it did, or of what never was. It needs
/// no clock: what [`age`] excuses as ahead of us is found here when it was not.
fn back_in_time<'a>(heard: &'a [Heard], history: &History) -> Option<&'a Heard> {
    // By name: how many of its events the answers so far must have known.
    let mut known = vec![0; history.len()];
    heard.iter().find(|heard| {
        let (events, known) = (&history[heard.name], &mut known[heard.name]);
        // Before the first event there was nothing.
        let said = |count: usize| count.checked_sub(1).and_then(|last| events[last].1.as_deref());
        let next = (*known..=events.len()).find(|count| said(*count) == heard.said.as_deref());
        next.map(|count| *known = count).is_none()
    })
}

/// Makes all changes, each when it is due.
fn make_changes(plane: &Plane, changes: usize) {
    let began = Instant::now();
    for number in 0..changes {
        Step::new(number).act(plane);
        let due = Duration::from_secs(1) / RATE * number as u32;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// Says that the run is over when it is gone, also by a panic.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The value at this share of a sorted list.
fn at(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Says how it went: how soon changes were seen, and how old other answers were.
fn say(waits: &[Duration], ages: &[Duration]) {
    println!(
        "visible after p50 {:?}, p99 {:?}, most {:?}; {} other answers: out of date for p99 {:?}, p99.9 {:?}, \
         most {:?}, {} of them for more than {LIMIT:?}",
        at(waits, 0.5),
        at(waits, 0.99),
        at(waits, 1.0),
        ages.len(),
        at(ages, 0.99),
        at(ages, 0.999),
        at(ages, 1.0),
        ages.iter().filter(|age| **age > LIMIT).count()
    );
}

#[test]
fn every_change_is_answered_as_soon_as_its_event_is_there() {
    needs!("dnsperf");
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    let world = plane.world();
    let nodens = plane.nodens(world.address, "");
    let mut watching = Watching::on(&plane);
    watching.synced();
    let (seconds, rate) = if is_long() { (300, 10_000) } else { (10, 500) };
    let changes = seconds as usize * RATE as usize;
    // Names are asked for before they exist, while they do and afterwards: nothing old may stay cached.
    let names = (0..NAMES).map(|n| format!("churn-{n}.default.svc.cluster.local A")).collect();
    let load = Load::full_speed(seconds + 5, names).rate(rate).start(nodens.address());

    // A cache that knows nothing of events: who listens to it must hear old answers.
    let (nodens_at, is_long) = (nodens.address(), is_long());
    let stale = format!("cache 5\nforward . {nodens_at}");
    let stale = (!is_long).then(|| CoreDns::start(&programs, &stale));
    let stale_at = stale.as_ref().map(|cache| cache.address);

    let (server, is_over) = (Udp::to(nodens_at), AtomicBool::new(false));
    let goes_on = || !is_over.load(Ordering::Relaxed);
    let mut history: History = vec![Vec::new(); NAMES];
    let (mut waits, heard, of_cache) = std::thread::scope(|scope| {
        let (out, news) = mpsc::channel();
        let over = Over(&is_over);
        scope.spawn(|| make_changes(&plane, changes));
        scope.spawn(move || read_on(&mut watching, &out, goes_on));
        let listener = scope.spawn(move || listen(nodens_at, goes_on));
        let of_cache = scope.spawn(move || stale_at.map(|address| listen(address, goes_on)));
        let mut waits = Vec::new();
        while waits.len() < changes {
            let read = news.recv_timeout(PATIENCE);
            let read = read.unwrap_or_else(|_| panic!("no event after {}", waits.len()));
            note(&read, &mut history);
            waits.extend(follow(&server, &read));
        }
        drop(over);
        (waits, listener.join().expect("no panic"), of_cache.join().expect("no panic"))
    });
    let report = load.report();
    waits.sort();
    let ages = ages(&heard, &history);
    println!("{changes} changes, {} queries", report.sent);
    say(&waits, &ages);
    assert_eq!(report.rcodes.get("SERVFAIL"), None, "{}", report.text);
    let back = back_in_time(&heard, &history);
    assert!(back.is_none(), "an old answer came back: {:?}", back.map(|heard| &heard.said));
    // Two cores that also run the API server and the load: the limit of 10 ms is judged where time is kept.
    assert!(at(&waits, 0.5) < LIMIT, "{:?}", at(&waits, 0.5));
    // What comes back from an older snapshot stays for the TTL, 5 s.
    assert!(at(&ages, 1.0) < Duration::from_secs(2), "{:?}", at(&ages, 1.0));
    match of_cache.map(|heard| self::ages(&heard, &history)) {
        // Who does not hear old answers hears none at all; how many there are depends on who has how much of the cores.
        Some(ages) => assert!(at(&ages, 0.9) > 10 * LIMIT, "deaf: {:?}", at(&ages, 0.9)),
        None => {
            assert!(at(&waits, 0.99) <= LIMIT, "{:?}", at(&waits, 0.99));
            assert!(at(&ages, 0.99) <= LIMIT, "{:?}", at(&ages, 0.99));
        }
    }
}

/// Notes what an event says of its name.
fn note((read, event): &Read, history: &mut History) {
    let (slice, said) = match event {
        Event::Applied(_, Object::EndpointSlice(slice)) => {
            (slice, Some(slice.endpoints[0].addresses[0].to_string()))
        }
        Event::Deleted(_, Object::EndpointSlice(slice)) => (slice, None),
        _ => return,
    };
    let number = slice.metadata.labels.service_name.strip_prefix("churn-");
    let number: usize = number.and_then(|number| number.parse().ok()).expect("a name of ours");
    history[number].push((*read, said));
}

/// Spark: the driver makes its headless Service while executors ask for it already.
#[test]
fn a_name_that_was_asked_for_too_early_is_answered_as_soon_as_it_exists() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    let world = plane.world();
    let nodens = plane.nodens(world.address, "");
    let server = Udp::to(nodens.address());
    let drivers = if is_long() { 300 } else { 20 };
    let mut waits: Vec<_> = (0..drivers)
        .map(|number| {
            let name = format!("driver-{number}");
            let question = ask(&format!("{name}.default.svc.cluster.local"), qtype::A);
            assert_eq!(server.exchange(&question).rcode(), rcode::NXDOMAIN);
            plane.make(&headless("default", &name, false));
            // Still without a pod: the answer is the same, and must not stay.
            server.exchange(&question);
            let address = v4(number);
            plane.make(&slice(("default", &name), 0, ("IPv4", vec![endpoint(&address)]), false));
            let made = Instant::now();
            let is_there = || server.exchange(&question).data(qtype::A) == [address.as_str()];
            while !is_there() {
                assert!(made.elapsed() < PATIENCE, "{name} is never answered");
            }
            made.elapsed()
        })
        .collect();
    waits.sort();
    println!(
        "{drivers} drivers: answered p50 {:?}, p99 {:?}, most {:?} after the API server had them",
        at(&waits, 0.5),
        at(&waits, 0.99),
        at(&waits, 1.0)
    );
    // A negative answer would stay for 5 s.
    assert!(at(&waits, 0.5) < Duration::from_millis(500), "{:?}", at(&waits, 0.5));
    if is_long() {
        assert!(at(&waits, 0.99) <= Duration::from_millis(50), "{:?}", at(&waits, 0.99));
    }
}

#[test]
fn an_answer_is_as_old_as_the_event_that_it_does_not_know() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let address = |last: u8| Some(format!("198.18.0.{last}"));
    let history = vec![vec![
        (at(0), address(1)),
        (at(330), address(2)),
        (at(660), None),
        (at(990), address(3)),
    ]];
    for (asked, said, old) in [
        (10, address(1), 0),
        (10, None, 10),
        (325, address(2), 0), // read by nodens first
        (400, address(1), 70),
        (400, None, 400),
        (600, None, 0), // the deletion, 60 ms before we read of it
        (700, address(2), 40),
        (700, None, 0),
        (1000, None, 10),
        (1000, address(1), 670),
    ] {
        let heard = Heard { name: 0, asked: at(asked), said };
        assert_eq!(age(&heard, &history).as_millis(), old, "{:?} at {asked} ms", heard.said);
    }
}

#[test]
fn an_answer_that_tells_of_less_than_one_before_it_has_come_back() {
    let now = Instant::now();
    let address = |last: u8| Some(format!("198.18.0.{last}"));
    let history = vec![[address(1), address(2), None, address(3)].map(|said| (now, said)).into()];
    for (said, is_back) in [
        (vec![None, address(1), address(1), address(2), None, None, address(3)], false),
        (vec![None, address(2), address(3)], false), // some were never asked for
        (vec![address(2), address(1)], true),
        (vec![address(1), None, address(2)], true), // gone must have been the deletion
        (vec![address(3), None], true),
        (vec![None, address(9)], true), // nobody's
    ] {
        let heard = |said: &Option<String>| Heard { name: 0, asked: now, said: said.clone() };
        let heard: Vec<_> = said.iter().map(heard).collect();
        assert_eq!(back_in_time(&heard, &history).is_some(), is_back, "{said:?}");
    }
}
