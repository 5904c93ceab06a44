//! Full speed with a small cache: nothing received goes unanswered, memory stays within its budget.
//!
//! The run is 8 s long, and 60 s where `IT_LONG` is set, which the nightly CI run does.

use std::time::{Duration, Instant};

use crate::harness::load::Load;
use crate::harness::{Knot, Setup, ask, needs, qtype, wire};

/// Names of which two in a hundred are unique: `hot` ones come from the cache.
fn names(total: usize, hot: usize) -> Vec<String> {
    let kind = |number: usize| if number.is_multiple_of(2) { "A" } else { "AAAA" };
    let line = |number: usize| match number % 50 {
        0 => format!("u{number}.wild.example.org {}", kind(number / 50)),
        _ => format!("h{}.wild.example.org {}", number % hot, kind(number)),
    };
    (0..total).map(line).collect()
}

#[test]
fn at_full_speed_every_query_is_answered_or_counted_and_memory_stays_within_the_budget() {
    needs!("knotd", "dnsperf");
    let long = std::env::var_os("IT_LONG").is_some();
    let seconds = if long { 60 } else { 8 };
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).tables("[cache]\nsize = \"4MiB\"").start();
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    let idle = daemon.process.resident();
    let counted = |name| daemon.metric(name, "");
    let before = counted("coredns_dns_requests_total");
    let mut load = Load::full_speed(seconds, names(3_000_000, 900)).start(daemon.address());
    let (start, mut most) = (Instant::now(), idle);
    while load.is_running() {
        most = most.max(daemon.process.resident());
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = load.report();
    let (received, shed, drops) = (
        counted("coredns_dns_requests_total") - before,
        counted("nodens_queries_shed_total"),
        counted("nodens_receive_drops_total"),
    );
    let rate = report.completed as f64 / start.elapsed().as_secs_f64();
    eprintln!(
        "{rate:.0} q/s; {} sent, {received} received, {} lost, {shed} shed, {drops} dropped by the \
         kernel; RSS {} KiB idle, {} KiB most; {:?}",
        report.sent,
        report.lost,
        idle >> 10,
        most >> 10,
        report.rcodes
    );
    assert!(report.completed > 1000 * seconds, "{}", report.text);
    let lost = report.lost as f64;
    assert!(lost <= drops, "{lost} lost, but the kernel dropped only {drops}:\n{}", report.text);
    let unhappy: u64 =
        report.rcodes.iter().filter(|(code, _)| *code != "NOERROR").map(|one| one.1).sum();
    assert!(
        unhappy as f64 <= shed,
        "{unhappy} without an answer, {shed} shed: {:?}",
        report.rcodes
    );
    assert!(
        counted("coredns_cache_misses_total") > report.completed as f64 * 0.01,
        "misses happen"
    );
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
    let mut most = idle;
    while load.is_running() {
        most = most.max(daemon.process.resident());
        std::thread::sleep(Duration::from_millis(50));
    }
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
    needs!("knotd", "dnsperf");
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
