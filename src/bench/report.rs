//! What came of a run, as values: the JSON schema `nodens-bench/2`.
//!
//! Everything that people and machines are shown is made of this alone, so a report can be shown anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Latencies;
use super::conntrack::Counters;
use super::plot;
use super::record::{Record, Slice};
use crate::dns::Rcode;

/// The name of the schema; another number means that older readers would misread it.
pub const SCHEMA: &str = "nodens-bench/2";

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: String,
    /// Of nodens.
    pub version: String,
    pub started_unix_s: u64,
    pub load: Load,
    pub servers: Vec<Server>,
    /// What conntrack counted here meanwhile; `null` where the kernel does not show it.
    pub conntrack: Option<Counters>,
    /// What a reader must know: that it was interrupted, that the load was the bottleneck.
    pub remarks: Vec<String>,
    /// False when it ended before its time.
    pub is_complete: bool,
    /// What each `--fail-if` came to.
    pub gates: Vec<Verdict>,
    /// Against the baseline; empty without one.
    pub baseline: Vec<Comparison>,
    /// Each server against the first, in this run.
    pub differences: Vec<Comparison>,
}

/// What was asked, and how the load itself went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    /// `pairs` or `single`.
    pub model: String,
    /// Where the names come from.
    pub names: String,
    /// `open` or `closed`.
    pub r#loop: String,
    /// Whose retries and patience: `glibc` or `musl`.
    pub resolver: String,
    pub timeout_ms: f64,
    pub tries: u32,
    /// The search list, and how many dots make a name be tried before it.
    pub search: Vec<String>,
    pub ndots: usize,
    /// Queries wanted per second and server; `null` in a closed loop.
    pub wanted_qps: Option<f64>,
    /// Lookups on their way to each server at any time; `null` in an open loop.
    pub in_flight: Option<u32>,
    /// Queries that left per second and server, retries left out.
    pub held_qps: f64,
    pub duration_s: f64,
    /// Lookups for each server; `null`: as many as the time allows.
    pub count: Option<u64>,
    pub warm_up_s: f64,
    pub threads: u64,
    /// Sockets kept per server and thread; `null`: a new one for each lookup.
    pub sockets: Option<u32>,
    pub sources: Vec<String>,
    /// Local ports, used in turns; `null`: the kernel's choice.
    pub ports: Option<String>,
    /// The file of the only roots that were trusted; `null`: Mozilla's.
    pub tls_ca: Option<String>,
    /// Lookups for which there was no time.
    pub never_left: u64,
    /// Lookups that were waiting when it was interrupted.
    pub unfinished: u64,
}

/// One server's part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Server {
    /// Its label, else its address.
    pub name: String,
    pub address: String,
    /// As the command line named it, without a label.
    pub written: String,
    /// `udp`, `tcp` or `tls`.
    pub carrier: String,
    /// What applications waited for.
    pub lookups: u64,
    /// Lookups that ended in an error for the application, without a response.
    pub timeouts: u64,
    /// Pairs of which glibc got one response only.
    pub partial: u64,
    /// Queries sent, retries included.
    pub sent: u64,
    /// Responses within the patience.
    pub answered: u64,
    /// Queries without a response within the patience.
    pub lost: u64,
    pub retries: u64,
    /// Responses cut off; a stub resolver would ask again by TCP, which is not in the latencies.
    pub truncated: u64,
    pub rcodes: BTreeMap<String, u64>,
    /// Microseconds per lookup, from when it should have left until its last response was at this host, or
    /// its application gave up.
    pub latency_us: Percentiles,
    /// Of that, how late lookups left: the load's own part.
    pub late_us: Own,
    /// How long last responses lay at this host until the load read them, which is in no latency; `null`
    /// where the kernel does not tell, and `latency_us` ends with the reading.
    pub unread_us: Option<Own>,
    pub stalls: Stalls,
    /// Share of lookups, and the microseconds that they did not exceed.
    pub distribution: Vec<(f64, f64)>,
    pub slices: Vec<SliceReport>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    #[serde(rename = "p99.99")]
    pub p9999: f64,
    pub max: f64,
}

/// Microseconds that the load itself took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Own {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// Lookups that took at least so long, or whose application gave up after so long.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stalls {
    #[serde(rename = "1s")]
    pub one: u64,
    #[serde(rename = "2.5s")]
    pub two: u64,
    #[serde(rename = "5s")]
    pub five: u64,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SliceReport {
    /// Its begin.
    pub at_s: f64,
    pub lookups: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub lost: u64,
    pub timeouts: u64,
}

/// What a gate came to, for one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub gate: String,
    pub server: String,
    /// The value that was compared, for people.
    pub value: String,
    pub holds: bool,
}

/// One percentile of a server against that of another one or of another run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub server: String,
    /// Whom or what it is compared with.
    pub against: String,
    /// `p50`, `p90` or `p99`.
    pub metric: String,
    /// New divided by old.
    pub ratio: f64,
    /// Where the ratio lies but for one time in a hundred on each side; `null` when the run was too
    /// short to tell.
    pub interval: Option<(f64, f64)>,
    /// The largest ratio that is allowed; `null` where nothing is demanded.
    pub limit: Option<f64>,
    pub holds: bool,
}

impl Server {
    /// What was counted for one server: its name, its address, as written, its carrier.
    pub fn new(target: [&str; 4], record: &Record) -> Self {
        let [name, address, written, carrier] = target.map(str::to_owned);
        let micros = |share| micros(record.latencies.quantile(share));
        let [one, two, five] = record.stalls;
        let rcodes = record.rcodes.iter().map(|(rcode, count)| (Rcode(*rcode).to_string(), *count));
        let shares = plot::shares(record.latencies.count());
        let slices = record.slices.iter().enumerate();
        let slice_s = record.slice().as_secs_f64();
        Self {
            name,
            address,
            written,
            carrier,
            lookups: record.lookups,
            timeouts: record.gave_up,
            partial: record.partial,
            sent: record.sent,
            answered: record.responses,
            lost: record.sent.saturating_sub(record.responses),
            retries: record.retries,
            truncated: record.truncated,
            rcodes: rcodes.collect(),
            latency_us: Percentiles {
                mean: self::micros(record.latencies.mean()),
                p50: micros(0.5),
                p90: micros(0.9),
                p99: micros(0.99),
                p999: micros(0.999),
                p9999: micros(0.9999),
                max: self::micros(record.latencies.max()),
            },
            late_us: Own::of(&record.late),
            unread_us: (record.unread.count() > 0).then(|| Own::of(&record.unread)),
            stalls: Stalls { one, two, five },
            distribution: shares.into_iter().map(|share| (share, micros(share))).collect(),
            slices: slices.map(|(at, slice)| SliceReport::new(at, slice_s, slice)).collect(),
        }
    }

    /// Responses that say that something failed: neither NOERROR nor NXDOMAIN.
    pub fn failed(&self) -> u64 {
        let is_failure = |name: &&String| !["NOERROR", "NXDOMAIN"].contains(&name.as_str());
        self.rcodes.iter().filter(|(name, _)| is_failure(name)).map(|(_, count)| count).sum()
    }
}

impl Own {
    /// What was counted.
    fn of(latencies: &Latencies) -> Self {
        let share = |share| micros(latencies.quantile(share));
        let (mean, max) = (micros(latencies.mean()), micros(latencies.max()));
        Self { mean, p50: share(0.5), p99: share(0.99), max }
    }
}

impl SliceReport {
    /// The slice `index`, each being `slice_s` long.
    fn new(index: usize, slice_s: f64, slice: &Slice) -> Self {
        let micros = |share| micros(slice.latencies.quantile(share));
        Self {
            at_s: index as f64 * slice_s,
            lookups: slice.latencies.count(),
            p50_us: micros(0.5),
            p90_us: micros(0.9),
            p99_us: micros(0.99),
            max_us: self::micros(slice.latencies.max()),
            lost: slice.lost,
            timeouts: slice.gave_up,
        }
    }
}

/// A duration in microseconds, to the nanosecond.
fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A report on one server: p50 1 ms, p99 3 ms, 5 of 1,000 lost, 60 slices.
    pub fn report() -> Report {
        let slice = |at: u32| SliceReport {
            at_s: f64::from(at),
            lookups: 8,
            p50_us: 1000.0 + f64::from(at % 7),
            p90_us: 2000.0,
            p99_us: 3000.0,
            max_us: 3500.0,
            ..SliceReport::default()
        };
        let server = Server {
            name: "198.18.0.1".to_owned(),
            address: "198.18.0.1:53".to_owned(),
            carrier: "udp".to_owned(),
            lookups: 500,
            sent: 1000,
            answered: 995,
            lost: 5,
            rcodes: BTreeMap::from([("NOERROR".to_owned(), 995)]),
            latency_us: Percentiles {
                mean: 1100.0,
                p50: 1000.0,
                p90: 2000.0,
                p99: 3000.0,
                p999: 3400.0,
                p9999: 3500.0,
                max: 3500.0,
            },
            distribution: vec![(0.0, 900.0), (0.5, 1000.0), (0.99, 3000.0)],
            slices: (0..60).map(slice).collect(),
            ..Server::default()
        };
        Report {
            schema: SCHEMA.to_owned(),
            version: "0.1.0".to_owned(),
            started_unix_s: 1,
            load: Load { wanted_qps: Some(1000.0), held_qps: 1000.0, ..Load::default() },
            servers: vec![server],
            conntrack: None,
            remarks: Vec::new(),
            is_complete: true,
            gates: Vec::new(),
            baseline: Vec::new(),
            differences: Vec::new(),
        }
    }
}
