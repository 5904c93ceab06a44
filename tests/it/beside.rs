//! `nodens bench` beside dnsperf: the same rate at the same server, in turns, and on loopback with the
//! wire's own times as the referee.
//!
//! `BENCH_BESIDE=4 cargo test --release --test it -- --test-threads 1 --nocapture beside::` takes each
//! run 4 seconds and judges loopback, on a machine that has nothing else to do; `BENCH_RATES=2000,10000`
//! judges these rates only.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{dnsperf, number, quantile, report, turn};
use crate::harness::namespace;
use crate::harness::process::{Process, command};
use crate::harness::unbound::Unbound;
use crate::harness::{Knot, Place, Setup, needs, until};

/// How far two medians of the same thing may be apart.
const ALIKE: f64 = 0.1;
/// The way of a query from the application through the kernel to the wire, at the most, in µs.
const WAY_OUT: f64 = 10.0;
/// How far two rates may be.
const RATES_ALIKE: f64 = 0.05;

/// The middle one.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Tells whether `one` is as much as `other`, but for a share.
fn is_near(one: f64, other: f64, share: f64) -> bool {
    (one / other - 1.0).abs() <= share
}

/// A server that sends each query back as an empty response `delay` behind, however many wait.
fn delay_line(delay: Duration) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (address, answering) =
        (socket.local_addr().expect("bound"), socket.try_clone().expect("a second descriptor"));
    let (sender, waiting) = mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut response = buffer[..len].to_vec();
            response[2] |= 0x80;
            let _ = sender.send((Instant::now() + delay, response, from));
        }
    });
    std::thread::spawn(move || {
        for (due, response, from) in waiting {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = answering.send_to(&response, from);
        }
    });
    address
}

/// Queries a second, and the mean and the median of the latency in seconds.
fn by_dnsperf(server: SocketAddr, qps: &str, seconds: u32) -> [f64; 3] {
    let sorted = dnsperf(server, seconds, &["-q1000", "-Q", qps]);
    let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
    [sorted.len() as f64 / f64::from(seconds), mean, quantile(&sorted, 0.5)]
}

/// The same by the bench, with a socket that is kept, as dnsperf has it.
fn by_bench(server: SocketAddr, qps: &str, seconds: u32) -> [f64; 3] {
    let duration = format!("{seconds}s");
    let flags = ["--single", "--sockets", "1", "--qps", qps, "--duration", &duration];
    let report = report(server, &flags);
    let rate = report["load"]["held_qps"].as_f64().expect("a number");
    [rate, number(&report, "/latency_us/mean") / 1e6, number(&report, "/latency_us/p50") / 1e6]
}

#[test]
fn rates_and_latencies_are_those_of_dnsperf_where_the_server_takes_two_milliseconds() {
    let _turn = turn();
    needs!("dnsperf");
    let server = delay_line(Duration::from_millis(2));
    let is_alike = || {
        // In turns: what the machine does meanwhile hits both.
        let both: Vec<_> =
            (0..3).map(|_| (by_bench(server, "500", 1), by_dnsperf(server, "500", 1))).collect();
        let [rate, mean, p50] = [0, 1, 2].map(|of| {
            (median(both.iter().map(|one| one.0[of])), median(both.iter().map(|one| one.1[of])))
        });
        eprintln!("bench and dnsperf: rates {rate:.1?}, means {mean:.6?} s, medians {p50:.6?} s");
        // A starved load sends late: in an open loop that is in the mean, dnsperf leaves it out.
        is_near(rate.0, rate.1, RATES_ALIKE) && is_near(p50.0, p50.1, ALIKE)
    };
    assert!((0..4).any(|_| is_alike()));
}

/// tcpdump on loopback, as little in the way as it can be.
struct Referee {
    process: Process,
    place: Place,
    port: u16,
}

/// The mean, the median and p99 of some latencies, in µs, and how many a second there were.
#[derive(Clone, Copy, Debug)]
struct Figures {
    qps: f64,
    mean: f64,
    p50: f64,
    p99: f64,
}

impl Referee {
    /// Begins to look at what goes to and from `server`.
    fn start(server: SocketAddr) -> Self {
        let (place, port) = (Place::new(), server.port());
        let mut tcpdump = command("nice");
        tcpdump.args(["-n", "19", "tcpdump", "-i", "lo", "-n", "-s", "64", "-B", "262144"]);
        tcpdump.args(["--time-stamp-precision", "nano", "-Z", "root", "-w"]);
        tcpdump.arg(place.path("pcap")).arg(format!("udp port {port}"));
        let process = Process::start(tcpdump, &place.path("log"));
        let is_listening = || process.log().contains("listening on");
        assert!(until(Duration::from_secs(10), is_listening), "tcpdump: {}", process.log());
        Self { process, place, port }
    }

    /// What the wire saw, from each query to its response.
    fn judge(mut self) -> Figures {
        // The kernel hands a block over when it is full or a second old.
        std::thread::sleep(Duration::from_millis(1500));
        self.process.signal(libc::SIGINT);
        self.process.wait(Duration::from_secs(20)).expect("tcpdump ends");
        let log = self.process.log();
        assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        let bytes = std::fs::read(self.place.path("pcap")).expect("a capture file");
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(word(0), 0xa1b2_3c4d, "a pcap file with nanoseconds");
        let (mut at, mut asked, mut took) = (24, HashMap::new(), Vec::new());
        let (mut first, mut last) = (f64::INFINITY, 0.0_f64);
        while at + 16 <= bytes.len() {
            // Seconds since the first packet: those since 1970 leave no digits for nanoseconds.
            let when = f64::from(word(at) - word(24)) * 1e6 + f64::from(word(at + 4)) / 1e3;
            let frame = &bytes[at + 16..at + 16 + word(at + 8) as usize];
            at += 16 + frame.len();
            // Ethernet, IPv4 and UDP headers without options, then the id.
            let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let (from, to, id) = (number(34), number(36), number(42));
            if to == self.port {
                (first, last) = (first.min(when), last.max(when));
                asked.insert((from, id), when);
            } else if let Some(sent) = asked.remove(&(to, id)) {
                took.push(when - sent);
            }
        }
        figures(took, (last - first) / 1e6)
    }
}

/// The figures of latencies in µs that were begun within so many seconds.
fn figures(mut took: Vec<f64>, seconds: f64) -> Figures {
    took.sort_by(f64::total_cmp);
    Figures {
        qps: took.len() as f64 / seconds,
        mean: took.iter().sum::<f64>() / took.len() as f64,
        p50: quantile(&took, 0.5),
        p99: quantile(&took, 0.99),
    }
}

/// What the bench says at this rate, from the CPU that the server has not.
fn loopback_by_bench(server: SocketAddr, qps: u32, seconds: u32) -> Figures {
    let mut taskset = command("taskset");
    taskset.args(["-c", "1", env!("CARGO_BIN_EXE_nodens"), "bench", "-q", &server.to_string()]);
    taskset.args(["--single", "--sockets", "1", "--name", "www.example.org", "--warm-up", "0s"]);
    taskset.args(["--qps", &qps.to_string(), "--duration", &format!("{seconds}s")]);
    let output = taskset.args(["--json", "-"]).stdin(Stdio::null()).output().expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |path: &str| number(&report, path);
    Figures {
        qps: report["load"]["held_qps"].as_f64().expect("a number"),
        mean: of("/latency_us/mean"),
        p50: of("/latency_us/p50"),
        p99: of("/latency_us/p99"),
    }
}

/// What dnsperf says: it tells of no percentiles without a line for each query, which would be in its way.
fn loopback_by_dnsperf(server: SocketAddr, qps: u32, seconds: u32) -> Figures {
    let place = Place::new();
    let names = place.write("names", "www.example.org A\n");
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut taskset = command("taskset");
    taskset.args(["-c", "1", "dnsperf", "-c1", "-q1000", "-s", &ip, "-p", &port]);
    taskset.args(["-Q", &qps.to_string(), "-l", &seconds.to_string(), "-d"]).arg(names);
    let output = taskset.output().expect("dnsperf runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of = |label: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(label));
        let word = line.and_then(|line| line.split(':').nth(1)?.split_whitespace().next());
        word.and_then(|word| word.parse::<f64>().ok()).unwrap_or_else(|| panic!("{label}: {text}"))
    };
    let mean = of("Average Latency") * 1e6;
    Figures { qps: of("Queries per second"), mean, p50: f64::NAN, p99: f64::NAN }
}

/// Runs one of both under the referee's eyes: what it says, and what the wire says.
fn watched(server: SocketAddr, run: impl FnOnce() -> Figures) -> [Figures; 2] {
    let referee = Referee::start(server);
    let said = run();
    [said, referee.judge()]
}

/// Medians of several runs, figure by figure.
fn medians(all: &[Figures]) -> Figures {
    let of = |read: fn(&Figures) -> f64| median(all.iter().map(read));
    Figures {
        qps: of(|one| one.qps),
        mean: of(|one| one.mean),
        p50: of(|one| one.p50),
        p99: of(|one| one.p99),
    }
}

/// Lets all threads of a process run on the first CPU only.
fn pin(process: &Process) {
    let pid = process.pid().to_string();
    let done = command("taskset").args(["-acp", "0", &pid]).stdout(Stdio::null()).status();
    assert!(done.expect("taskset runs").success());
}

/// Compares both at one server and rate, prints it, and tells whether the bench says what the wire says.
fn compare(name: &str, server: SocketAddr, qps: u32, (rounds, seconds): (u32, u32)) -> bool {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(watched(server, || loopback_by_bench(server, qps, seconds)));
        theirs.push(watched(server, || loopback_by_dnsperf(server, qps, seconds)));
    }
    let of = |runs: &[[Figures; 2]], at: usize| {
        medians(&runs.iter().map(|run| run[at]).collect::<Vec<_>>())
    };
    let [bench, wire, dnsperf, their_wire] =
        [of(&ours, 0), of(&ours, 1), of(&theirs, 0), of(&theirs, 1)];
    eprintln!(
        "{name:8} {qps:6}/s  bench {:7.0}/s mean {:6.1} p50 {:6.1} p99 {:7.1} µs  wire mean {:6.1} p50 {:6.1} p99 \
         {:7.1}  dnsperf {:7.0}/s mean {:6.1}  wire mean {:6.1} p50 {:6.1} p99 {:7.1}",
        bench.qps,
        bench.mean,
        bench.p50,
        bench.p99,
        wire.mean,
        wire.p50,
        wire.p99,
        dnsperf.qps,
        dnsperf.mean,
        their_wire.mean,
        their_wire.p50,
        their_wire.p99
    );
    // Means and tails hold what else the machine did, and late sends, which the wire does not know of.
    let way_out = bench.p50 - wire.p50;
    is_near(bench.qps, dnsperf.qps, RATES_ALIKE)
        && (is_near(bench.p50, wire.p50, ALIKE) || (0.0..=WAY_OUT).contains(&way_out))
}

#[test]
fn on_loopback_the_bench_says_what_the_wire_says_at_the_rate_that_dnsperf_keeps() {
    let _turn = turn();
    needs!("dnsperf", "knotd", "unbound", "tcpdump", "taskset", "nice");
    // Where nobody else is on the wire.
    namespace::inside(loopback);
}

/// Compares at each server and rate.
fn loopback() {
    let knot = Knot::start();
    let unbound = Unbound::before(knot.address);
    let nodens = Setup::towards(knot.address).start();
    for process in [&knot.process, &unbound.process, &nodens.process] {
        pin(process);
    }
    let servers =
        [("knot", knot.address), ("unbound", unbound.address), ("nodens", nodens.address())];
    let seconds = std::env::var("BENCH_BESIDE").ok().and_then(|text| text.parse::<u32>().ok());
    let Some(seconds) = seconds else {
        // In the company of other tests no wire is quiet: what is told must only be there.
        compare("knot", knot.address, 500, (1, 1));
        return;
    };
    let mut all_near = true;
    let rates = std::env::var("BENCH_RATES").unwrap_or("2000,10000,20000,50000".to_owned());
    for qps in rates.split(',').map(|rate| rate.parse().expect("BENCH_RATES has rates")) {
        for (name, server) in servers {
            all_near &= compare(name, server, qps, (5, seconds));
        }
    }
    assert!(all_near, "see the lines above");
}
