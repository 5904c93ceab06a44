//! What came out: a row for each run, as a table for people and as values for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::conntrack::{Counters, Entries};
use super::net::Family;
use super::scenario::Scenario;
use super::sockets::Overruns;
use super::topology::Topology;
use crate::bench::Latencies;
use crate::dns::Rcode;
use crate::stub::pair::Outcome;

/// One run of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub topology: Topology,
    pub scenario: Scenario,
    pub family: Family,
    pub with_nodens: bool,
    pub queries: u64,
    /// Datagrams that got no response within a stub resolver's timeout.
    pub lost: u64,
    /// Queries without a response after the last try.
    pub given_up: u64,
    /// Responses other than NOERROR and NXDOMAIN.
    pub failed: u64,
    /// Responses that contradict the cluster of the time when they were asked for (`spark`).
    pub stale: u64,
    /// Queries that took at least 1 s, 2.5 s and 5 s.
    pub stalls: [u64; 3],
    /// Microseconds from the intended send time to the response: median, 90, 99, 99.9 of 100, longest.
    pub latency_us: [u64; 5],
    /// Of that, 99 of 100 queries owe no more than this to the load itself, which sent too late.
    pub late_p99_us: u64,
    /// What conntrack counted on the node meanwhile; `null` where the kernel does not show it.
    pub conntrack: Option<Counters>,
    /// Datagrams that full receive buffers dropped: losses too, but no races.
    pub overruns: Overruns,
    /// Conntrack's entries on the node at the end.
    pub entries: Option<Entries>,
}

/// Everything that was run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    /// How queries reached nodens in the runs with it.
    pub way: &'static str,
    /// How long a stub resolver waits before it asks again, in milliseconds.
    pub timeout_ms: u64,
    pub rows: Vec<Row>,
}

/// Outcomes added up.
#[derive(Default)]
pub(super) struct Sum {
    pub queries: u64,
    pub lost: u64,
    pub given_up: u64,
    pub failed: u64,
    pub stale: u64,
    pub stalls: [u64; 3],
    latencies: Latencies,
    late: Latencies,
}

/// From when on a wait is a stall.
const STALLS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_millis(2500), Duration::from_secs(5)];

impl Sum {
    /// Adds one outcome. Who gave up has stalled, whatever his patience was.
    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.queries += 1;
        self.lost += u64::from(outcome.lost);
        let is_failure = |rcode| rcode != Rcode::NOERROR && rcode != Rcode::NXDOMAIN;
        self.failed += u64::from(outcome.rcode.is_some_and(is_failure));
        match outcome.took {
            Some(took) => self.latencies.record(took),
            None => self.given_up += 1,
        }
        self.late.record(outcome.late);
        let waited = outcome.waited();
        for (stalls, least) in self.stalls.iter_mut().zip(STALLS) {
            *stalls += u64::from(waited.is_none_or(|waited| waited >= least));
        }
    }

    /// Percentiles in microseconds, the longest last.
    pub(super) fn latency_us(&self) -> [u64; 5] {
        let [p50, p90, p99, p999] =
            [0.5, 0.9, 0.99, 0.999].map(|share| micros(self.latencies.quantile(share)));
        [p50, p90, p99, p999, micros(self.latencies.max())]
    }

    /// How late the load itself was, in microseconds: the 99th of 100.
    pub(super) fn late_p99_us(&self) -> u64 {
        micros(self.late.quantile(0.99))
    }
}

/// A duration in microseconds.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The columns with their widths.
const COLUMNS: [(&str, usize); 20] = [
    ("topology", 8),
    ("scenario", 8),
    ("family", 6),
    ("nodens", 7),
    ("queries", 8),
    ("lost", 6),
    ("failed", 6),
    ("stale", 6),
    (">=1s", 6),
    (">=2.5s", 6),
    (">=5s", 6),
    ("p50 ms", 7),
    ("p99 ms", 8),
    ("p99.9 ms", 8),
    ("late ms", 8),
    ("overrun", 7),
    ("ins.fail", 8),
    ("drop", 6),
    ("clash", 7),
    ("pod ent.", 8),
];

/// What the columns mean.
const LEGEND: &str = "\
lost      datagrams without a response within the stub resolver's timeout; it then asks again
failed    responses that say that something failed: SERVFAIL, REFUSED
stale     responses that contradict the cluster of the moment (spark): denied though it exists, or the other way
>=1s ...  queries for which a stub resolver waited so long, retries included, or gave up
p50 ...   milliseconds from the intended send time to the response (open loop)
late      how much of p99 is the load's own: it sent so much later than intended
overrun   datagrams dropped because a receive buffer was full (pods, cluster DNS, nodens): no race, but lost too
ins.fail  conntrack insert_failed on the node: a packet lost the race for its tuple and was dropped
drop      conntrack drop on the node
clash     conntrack clash_resolve on the node: a race that the kernel repaired
pod ent.  conntrack entries on the node at the end of the run that a pod's packet made
";

impl Row {
    /// The cells, in the order of [`COLUMNS`].
    fn cells(&self) -> [String; 20] {
        let word = |value: &dyn fmt::Debug| format!("{value:?}").to_lowercase();
        let millis = |micros: u64| format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
        let [p50, _, p99, p999, _] = self.latency_us.map(millis);
        let [one, two, five] = self.stalls.map(|stalls| stalls.to_string());
        let counted = |read: fn(&Counters) -> u64| {
            self.conntrack.as_ref().map_or("?".to_owned(), |counters| read(counters).to_string())
        };
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let side = if self.with_nodens { "with" } else { "without" };
        [
            word(&self.topology),
            word(&self.scenario),
            family.to_owned(),
            side.to_owned(),
            self.queries.to_string(),
            self.lost.to_string(),
            self.failed.to_string(),
            self.stale.to_string(),
            one,
            two,
            five,
            p50,
            p99,
            p999,
            millis(self.late_p99_us),
            (self.overruns.lab + self.overruns.node).to_string(),
            counted(|counters| counters.insert_failed),
            counted(|counters| counters.drop),
            counted(|counters| counters.clash_resolve),
            self.entries.map_or("?".to_owned(), |entries| entries.of_pods.to_string()),
        ]
    }
}

impl fmt::Display for Report {
    /// Writes the table, then what its columns mean.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}; nodens is reached {}", self.kernel, self.way)?;
        let write = |f: &mut fmt::Formatter<'_>, cells: &[String]| {
            for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
                // Words to the left, numbers to the right.
                match index {
                    0..4 => write!(f, "{cell:<width$} ")?,
                    19 => write!(f, "{cell:>width$}")?,
                    _ => write!(f, "{cell:>width$} ")?,
                }
            }
            writeln!(f)
        };
        write(f, &COLUMNS.map(|(name, _)| name.to_owned()))?;
        for row in &self.rows {
            write(f, &row.cells())?;
        }
        write!(f, "\n{LEGEND}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_up_has_stalled_and_every_loss_counts() {
        let mut sum = Sum::default();
        let answered = |millis, lost| Outcome {
            took: Some(Duration::from_millis(millis)),
            intended: crate::clock::now(),
            late: Duration::ZERO,
            lost,
            rcode: Some(Rcode::NOERROR),
        };
        sum.add(&answered(1, 0));
        sum.add(&answered(2600, 1));
        sum.add(&Outcome { took: None, lost: 2, rcode: None, ..answered(0, 0) });
        sum.add(&Outcome { rcode: Some(Rcode::SERVFAIL), ..answered(2, 0) });
        assert_eq!((sum.queries, sum.lost, sum.given_up, sum.failed), (4, 3, 1, 1));
        assert_eq!(sum.stalls, [2, 2, 1]);
        assert_eq!(sum.latency_us()[4] / 10_000, 260);
    }
}
