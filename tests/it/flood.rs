//! Full speed with a small cache: nothing received goes unanswered, memory stays within its budget.
//!
//! The run is 8 s long, and 60 s where `IT_LONG` is set, which the nightly CI run does.

use std::time::Duration;

use crate::harness::load::{Load, Running};
use crate::harness::{Action, Daemon, Knot, Setup, Sink, ask, namespace, needs, qtype, wire};

/// Names of which two in a hundred are unique: `hot` ones come from the cache.
fn names(total: usize, hot: usize) -> Vec<String> {
    let kind = |number: usize| if number.is_multiple_of(2) { "A" } else { "AAAA" };
    let line = |number: usize| match number % 50 {
        0 => format!("u{number}.wild.example.org {}", kind(number / 50)),
        _ => format!("h{}.wild.example.org {}", number % hot, kind(number)),
    };
    (0..total).map(line).collect()
}

/// Datagrams that the kernel dropped in the calling thread's namespace because some socket was full.
fn kernel_drops() -> f64 {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("statistics")
    };
    let (four, six) = (read("snmp"), read("snmp6"));
    let lines: Vec<Vec<&str>> = four
        .lines()
        .filter(|line| line.starts_with("Udp:"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let at = lines[0].iter().position(|name| *name == "RcvbufErrors").expect("a column");
    let six = six.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    let number = |text: &str| text.trim().parse::<f64>().expect("a number");
    number(lines[1][at]) + number(six.expect("a line"))
}

#[test]
fn at_full_speed_every_query_is_answered_or_counted_and_memory_stays_within_the_budget() {
    needs!("knotd", "dnsperf", "ip");
    namespace::inside(|| full_speed(false));
}

#[test]
fn an_upstream_that_stalls_for_a_second_costs_neither_answers_nor_the_memory_budget() {
    needs!("knotd", "dnsperf", "ip");
    namespace::inside(|| full_speed(true));
}

/// The most resident memory while the load runs; says every 5 s how much it is.
fn watch_memory(daemon: &Daemon, load: &mut Running, idle: u64) -> u64 {
    let (mut most, mut rounds) = (idle, 0);
    while load.is_running() {
        let now = daemon.process.resident();
        most = most.max(now);
        if rounds % 50 == 0 {
            eprintln!("{} KiB over idle", now.saturating_sub(idle) >> 10);
        }
        rounds += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    most
}

/// The run itself, in a namespace where every drop of the kernel is ours.
fn full_speed(stalls: bool) {
    let seconds = if std::env::var_os("IT_LONG").is_some() { 60 } else { 8 };
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).tables("[cache]\nsize = \"4MiB\"").start();
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    let idle = daemon.process.resident();
    let counted = |name| daemon.metric(name, "");
    let before = counted("coredns_dns_requests_total");
    let mut load = Load::full_speed(seconds, names(3_000_000, 900)).start(daemon.address());
    if stalls {
        std::thread::sleep(Duration::from_millis(1500));
        knot.process.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs(1));
        knot.process.signal(libc::SIGCONT);
    }
    let most = watch_memory(&daemon, &mut load, idle);
    let report = load.report();
    let answered = counted("coredns_dns_requests_total") - before;
    let shed = counted("nodens_queries_shed_total");
    let (ours, all) = (counted("nodens_receive_drops_total"), kernel_drops());
    eprintln!(
        "{} q/s; {} sent, {answered} answered, {shed} of them shed; the kernel dropped {ours} before \
         the daemon and {} elsewhere; {} lost; RSS {} KiB idle, {} KiB most",
        report.completed / seconds,
        report.sent,
        all - ours,
        report.lost,
        idle >> 10,
        most >> 10
    );
    assert!(report.completed > 1000 * seconds, "{}", report.text);
    assert_eq!(
        answered + ours,
        report.sent as f64,
        "every query received is answered:\n{}",
        report.text
    );
    assert!(report.lost as f64 <= all, "{} lost, {all} dropped:\n{}", report.lost, report.text);
    let good = report.rcodes.get("NOERROR").copied().unwrap_or_default();
    let unhappy = (report.completed - good) as f64;
    assert!(unhappy <= shed, "{unhappy} without an answer, {shed} shed: {:?}", report.rcodes);
    let misses = counted("coredns_cache_misses_total");
    assert!(misses > report.completed as f64 * 0.01, "{misses} misses");
    let budget = (4 << 20) + (16 << 20);
    assert!(most <= idle + budget, "{} KiB over idle", (most - idle) >> 10);
    assert!(counted("nodens_cache_bytes") <= f64::from(4 << 20), "the cache keeps its budget");
}

#[test]
fn unique_names_for_ever_stay_within_the_budget() {
    needs!("knotd", "dnsperf");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).tables("[cache]\nsize = \"4MiB\"").start();
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    let idle = daemon.process.resident();
    let names = (0..400_000).map(|number| format!("u{number}.wild.example.org A")).collect();
    let mut load = Load::full_speed(6, names).start(daemon.address());
    let most = watch_memory(&daemon, &mut load, idle);
    let report = load.report();
    eprintln!(
        "{} completed; RSS {} KiB idle, {} KiB most",
        report.completed,
        idle >> 10,
        most >> 10
    );
    assert!(most <= idle + (20 << 20), "{} KiB over idle", (most - idle) >> 10);
}

#[test]
fn a_flood_from_one_source_does_not_starve_another() {
    needs!("::1", "knotd", "dnsperf");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).tables("[serve]\nmax_in_flight = 64").start();
    let names = (0..400_000).map(|number| format!("u{number}.wild.example.org A")).collect();
    let mut load = Load::full_speed(5, names);
    load.outstanding = 2000;
    let mut flood = load.start(daemon.address());
    std::thread::sleep(Duration::from_millis(500));
    let (mut answered, mut asked) = (0, 0);
    while flood.is_running() {
        asked += 1;
        let quiet = ask(&format!("quiet{asked}.wild.example.org"), qtype::A);
        let answer = wire::udp(daemon.address6(), &quiet);
        answered += u32::from(answer.rcode() == 0);
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = flood.report();
    eprintln!("quiet: {answered} of {asked}; flood: {:?}", report.rcodes);
    assert!(asked > 20 && answered >= asked - asked / 20, "{answered} of {asked} quiet queries");
}

#[test]
fn queries_in_flight_towards_a_silent_upstream_are_bounded_and_so_is_their_memory() {
    needs!("dnsperf");
    let sink = Sink::start(|_| Action::Ignore);
    let daemon = Setup::towards(sink.address)
        .tables("[cache]\nsize = \"4MiB\"\n[serve]\nmax_in_flight = 512")
        .start_unready();
    let idle = daemon.process.resident();
    let names = (0..400_000).map(|number| format!("u{number}.wild.example.org A")).collect();
    let mut load = Load::full_speed(8, names).rate(2000);
    load.outstanding = 10_000;
    let mut load = load.start(daemon.address());
    let most = watch_memory(&daemon, &mut load, idle);
    let report = load.report();
    let shed = daemon.metric("nodens_queries_shed_total", "");
    eprintln!("{:?}, {shed} shed; {} KiB over idle at most", report.rcodes, (most - idle) >> 10);
    assert_eq!(report.lost, 0, "{}", report.text);
    assert_eq!(report.rcodes.keys().collect::<Vec<_>>(), ["SERVFAIL"], "{}", report.text);
    assert!(shed > 0.0 && shed < report.sent as f64, "{shed} of {} shed", report.sent);
    assert!(most <= idle + (20 << 20), "{} KiB over idle", (most - idle) >> 10);
}
