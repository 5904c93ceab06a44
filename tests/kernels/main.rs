//! What must hold on every kernel. An ordinary `cargo test` runs it on this one; `tests/kernels/run` boots
//! others under software emulation and runs it there, where everything is slow: counters are judged,
//! no times.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use nodens::netlink::netfilter::Netfilter;

use harness::node::sh;
use harness::{Daemon, Setup, Sink, ask, namespace, needs, qtype, sink, until, wire};

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "made for all tests of the daemon")]
mod harness;

/// What is asked, and who answers there when nobody intercepts.
const ASKED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Patience with an emulated machine.
const LONG: Duration = Duration::from_secs(30);

/// Runs of the lab until one of them shows what is looked for: a starved daemon falls open meanwhile.
const ATTEMPTS: u64 = 20;

/// Whether this kernel ties tables to their owners: since 5.12.
fn has_owner_tables() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(12))
}

/// Runs one scenario of the lab; its rows without and with nodens.
fn lab(scenario: &str, rounds: u64, seed: u64) -> [serde_json::Value; 2] {
    let output = Command::new(env!("CARGO_BIN_EXE_nodens"))
        .args(["lab", "--scenario", scenario, "--topology", "bridge", "--family", "ipv4", "--json"])
        .args(["--nodens", "without", "--nodens", "with"])
        .args(["--rounds", &rounds.to_string(), "--rate", "100", "--seed", &seed.to_string()])
        .output()
        .expect("the executable starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{scenario}: {report}");
    [0, 1].map(|row| report["rows"][row].clone())
}

/// A number of a row.
fn number(row: &serde_json::Value, pointer: &str) -> u64 {
    row.pointer(pointer)
        .and_then(serde_json::Value::as_u64)
        .unwrap_or_else(|| panic!("{pointer}: {row}"))
}

#[test]
fn conntrack_drops_queries_of_one_tuple_without_nodens_and_sees_none_with_it() {
    let (mut dropped, mut is_clean) = (0, false);
    for attempt in 0..ATTEMPTS {
        let [without, with] = lab("snat", 200, attempt * 200);
        dropped += number(&without, "/conntrack/insert_failed");
        // A daemon that never fell open has seen every query.
        if number(&with, "/entries/of_pods") == 0 {
            is_clean = true;
            for counter in ["insert_failed", "drop", "clash_resolve"] {
                assert_eq!(number(&with, &format!("/conntrack/{counter}")), 0, "{with}");
            }
        }
        if dropped > 0 && is_clean {
            return;
        }
    }
    panic!("dropped without nodens: {dropped}; a run that never fell open: {is_clean}");
}

#[test]
fn a_killed_or_stopped_daemon_leaves_the_ordinary_path() {
    for scenario in ["kill", "stop"] {
        let [_, with] = lab(scenario, 600, 0);
        let (queries, ordinary) = (number(&with, "/queries"), number(&with, "/entries/of_pods"));
        assert!(ordinary > 0, "{scenario}: some took the ordinary path: {with}");
        assert!(ordinary < queries, "{scenario}: some were answered by nodens: {with}");
    }
}

/// The names of our tables in the calling thread's namespace.
fn tables() -> Vec<String> {
    let tables = Netfilter::open().and_then(|mut netfilter| netfilter.tables()).expect("readable");
    let names = tables.into_iter().map(|seen| seen.table.name);
    names.filter(|name| name.starts_with("nodens-")).collect()
}

/// Whether the switch of a table is on: it takes queries.
fn takes(name: &str) -> bool {
    let table = nodens::netlink::nft::Table::inet(name.to_owned());
    let keys = Netfilter::open().and_then(|mut netfilter| netfilter.keys(&table, "alive"));
    !keys.expect("readable").is_empty()
}

/// A daemon that takes what is asked of [`ASKED`].
fn start(upstream: &Sink) -> Daemon {
    let tables = format!("[intercept]\nmode = \"takeover\"\naddresses = [\"{ASKED}\"]\n");
    let daemon = Setup::towards(upstream.address).tables(&tables).start();
    let is_claiming = || daemon.metric("nodens_intercept_claiming", "") == 1.0;
    assert!(until(LONG, is_claiming), "{}", daemon.log());
    daemon
}

/// Asks [`ASKED`] until `sink` is the one that gets it.
fn reaches(sink: &Sink, label: &str) -> bool {
    let mut number = 0;
    until(LONG, || {
        number += 1;
        let name = format!("{label}-{number}.example.org");
        let server = SocketAddr::new(IpAddr::V4(ASKED), 53);
        let question = ask(&name, qtype::A);
        let socket = wire::Udp::to(server);
        socket.send(&question.to_wire());
        let answer = socket.answer_to(question.id, Duration::from_secs(1));
        answer.is_some() && !sink.seen_for(&format!("{name}.")).is_empty()
    })
}

#[test]
fn a_dead_daemons_table_goes_with_it_or_takes_nothing_and_goes_at_the_next_start() {
    needs!("ip", "unshare");
    namespace::inside(|| {
        sh(&format!("ip address add {ASKED}/32 dev lo"));
        let ordinary =
            Sink::at(SocketAddr::new(IpAddr::V4(ASKED), 53), |seen| sink::ordinary(seen).now());
        let upstream = Sink::start(|seen| sink::ordinary(seen).now());
        assert!(reaches(&ordinary, "before"));
        let mut daemon = start(&upstream);
        assert!(reaches(&upstream, "with"), "{}", daemon.log());
        let (owned, log) = (has_owner_tables(), daemon.log());
        assert_eq!(daemon.metric("nodens_intercept_owned", ""), f64::from(u8::from(owned)));
        assert_eq!(log.matches("this kernel has no owner tables").count(), usize::from(!owned));
        let table = tables().pop().expect("made");

        daemon.process.signal(libc::SIGKILL);
        daemon.process.wait(LONG).expect("it is dead");
        if owned {
            assert!(until(LONG, || tables().is_empty()), "{:?}", tables());
        } else {
            assert!(until(LONG, || !takes(&table)), "the switch goes off by itself");
            assert_eq!(tables(), [table.as_str()], "nobody removes it");
        }
        assert!(reaches(&ordinary, "dead"));

        let mut next = start(&upstream);
        let now = tables();
        assert!(now.len() == 1 && now[0] != table, "{now:?} after {table}:\n{}", next.log());
        let told = next.log().contains("removed what a dead instance left");
        assert!(owned || told, "{}", next.log());
        assert!(reaches(&upstream, "again"), "{}", next.log());
        next.process.signal(libc::SIGTERM);
        next.process.wait(LONG).expect("it ends");
        assert_eq!(tables(), Vec::<String>::new(), "{}", next.log());
        assert!(reaches(&ordinary, "after"));
    });
}
