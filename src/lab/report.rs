//! What came out: a row for each run, as a table for people and as values for programs.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Run;
use super::conntrack::{Counters, Entries};
use super::drivers::{Drivers, Finds};
use super::leftovers::Leftovers;
use super::net::Family;
use super::scenario::Scenario;
use super::side::Side;
use super::sockets::Overruns;
use super::steady::{self, Event};
use super::stream::TcpSum;
use super::timeline::{Diary, Happening, Timeline};
use super::topology::Topology;
use crate::bench::Latencies;
use crate::bench::plot::curve;
use crate::dns::Rcode;
use crate::stub::pair::Outcome;

/// One run of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub topology: Topology,
    pub scenario: Scenario,
    pub family: Family,
    /// Whether nodens ran, and how.
    pub nodens: Side,
    /// Which repetition it is, from 0.
    pub turn: u32,
    pub queries: u64,
    /// Queries that the load really sent in a second.
    pub rate: f64,
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
    /// How often nodens fell open meanwhile; `null` where it is not asked, or dead.
    pub lapses: Option<u64>,
    /// Queries that nodens had no room for and answered SERVFAIL.
    pub shed: Option<u64>,
    /// Of the scenarios that keep connections.
    pub tcp: Option<TcpSum>,
    /// What happened when, where it matters.
    pub timeline: Option<Timeline>,
    /// How soon executors knew their drivers (`spark`).
    pub drivers: Option<Drivers>,
    /// What the killed daemon left on the node (`kill`).
    pub left_behind: Option<Leftovers>,
    /// The percentile curve of latencies, as plots draw it.
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

/// Everything that was run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    /// How long a stub resolver waits before it asks again, in milliseconds.
    pub timeout_ms: u64,
    pub rows: Vec<Row>,
}

/// Outcomes added up.
pub(super) struct Sum {
    start: Instant,
    diary: Diary,
    finds: Finds,
    /// When the last query left.
    last: Instant,
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
    /// Nothing yet; the first query leaves at `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            diary: Diary::new(start),
            finds: Finds::default(),
            last: start,
            queries: 0,
            lost: 0,
            given_up: 0,
            failed: 0,
            stale: 0,
            stalls: [0; 3],
            latencies: Latencies::default(),
            late: Latencies::default(),
        }
    }

    /// Adds one outcome. Who gave up has stalled, whatever his patience was.
    pub(super) fn add(&mut self, scenario: Scenario, outcome: &Outcome) {
        self.queries += 1;
        self.last = self.last.max(outcome.intended + outcome.late);
        if scenario.has_timeline() {
            self.diary.note(outcome);
        }
        if scenario == Scenario::Spark {
            self.finds.note(outcome, self.start);
        }
        let after = outcome.intended.saturating_duration_since(self.start);
        let exists = outcome.rcode.map(|rcode| rcode == Rcode::NOERROR);
        self.stale +=
            u64::from(exists.is_some_and(|exists| steady::is_stale(scenario, after, exists)));
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

    /// The row that comes of it; what was read from the kernel is for the caller to add.
    pub(super) fn into_row(self, run: &Run, events: &[(Instant, Event)]) -> Row {
        let [p50, p90, p99, p999] =
            [0.5, 0.9, 0.99, 0.999].map(|share| micros(self.latencies.quantile(share)));
        let took = self.last.saturating_duration_since(self.start).max(Duration::from_millis(1));
        #[expect(clippy::cast_precision_loss, reason = "nobody sends 2^52 queries")]
        let rate = self.queries as f64 / took.as_secs_f64();
        let timeline = run.scenario.has_timeline().then(|| self.diary.into_timeline(events));
        let drivers = (run.scenario == Scenario::Spark).then(|| self.finds.into_drivers(events));
        Row {
            topology: run.topology,
            scenario: run.scenario,
            family: run.family,
            nodens: run.side,
            turn: run.turn,
            queries: self.queries,
            rate,
            lost: self.lost,
            given_up: self.given_up,
            failed: self.failed,
            stale: self.stale,
            stalls: self.stalls,
            latency_us: [p50, p90, p99, p999, micros(self.latencies.max())],
            late_p99_us: micros(self.late.quantile(0.99)),
            conntrack: None,
            overruns: Overruns::default(),
            entries: None,
            lapses: None,
            shed: None,
            tcp: None,
            timeline,
            drivers,
            left_behind: None,
            curve: curve(&self.latencies),
        }
    }
}

/// A duration in microseconds.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The columns with their widths.
pub(super) const COLUMNS: [(&str, usize); 22] = [
    ("topology", 8),
    ("scenario", 8),
    ("family", 6),
    ("nodens", 7),
    ("queries", 8),
    ("q/s", 6),
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
    ("lapses", 6),
    ("ins.fail", 8),
    ("drop", 6),
    ("clash", 7),
    ("pod ent.", 8),
];

/// What the columns mean.
pub(super) const LEGEND: &str = "\
nodens    with: it takes over what is asked of the cluster DNS address, by rules that die with it; bind: it has that
          address itself, as node-cache does, for comparison
q/s       queries that really left in a second
lost      datagrams without a response within the stub resolver's timeout; it then asks again
failed    responses that say that something failed: SERVFAIL, REFUSED
stale     responses that contradict the cluster of the moment (spark): denied though it exists, or the other way
>=1s ...  queries for which a stub resolver waited so long, retries included, or gave up
p50 ...   milliseconds from the intended send time to the response (open loop)
late      how much of p99 is the load's own: it sent so much later than intended
overrun   datagrams dropped because a receive buffer was full (pods, cluster DNS, nodens): no race, but lost too
lapses    how often nodens fell open, because it was stopped or starved of CPU: queries then take the ordinary path
ins.fail  conntrack insert_failed on the node: a packet lost the race for its tuple and was dropped
drop      conntrack drop on the node
clash     conntrack clash_resolve on the node: a race that the kernel repaired
pod ent.  conntrack entries on the node at the end of the run that a pod's packet made
";

impl Row {
    /// The cells, in the order of [`COLUMNS`].
    pub(super) fn cells(&self) -> [String; 22] {
        let millis = |micros: u64| format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
        let [p50, _, p99, p999, _] = self.latency_us.map(millis);
        let [one, two, five] = self.stalls.map(|stalls| stalls.to_string());
        let counted = |read: fn(&Counters) -> u64| {
            self.conntrack.as_ref().map_or("?".to_owned(), |counters| read(counters).to_string())
        };
        [
            self.topology.as_str().to_owned(),
            self.scenario.as_str().to_owned(),
            self.family.as_str().to_owned(),
            self.nodens.as_str().to_owned(),
            self.queries.to_string(),
            format!("{:.0}", self.rate),
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
            self.lapses.map_or("-".to_owned(), |lapses| lapses.to_string()),
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
        writeln!(f, "Linux {}", self.kernel)?;
        let write = |f: &mut fmt::Formatter<'_>, cells: &[String]| {
            for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
                // Words to the left, numbers to the right.
                match index {
                    0..4 => write!(f, "{cell:<width$} ")?,
                    21 => write!(f, "{cell:>width$}")?,
                    _ => write!(f, "{cell:>width$} ")?,
                }
            }
            writeln!(f)
        };
        write(f, &COLUMNS.map(|(name, _)| name.to_owned()))?;
        for row in &self.rows {
            write(f, &row.cells())?;
        }
        for row in &self.rows {
            let Some(story) = row.story() else { continue };
            let [topology, scenario, family, ..] = row.cells();
            writeln!(f, "\n{topology} {scenario} {family} {}:", row.nodens.label())?;
            story.lines().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        write!(f, "\n{LEGEND}")
    }
}

impl Row {
    /// What happened in the course of it, a line for each event; `None` where nothing did.
    pub(super) fn story(&self) -> Option<String> {
        let mut text = self.drivers.as_ref().map(Drivers::told).unwrap_or_default();
        let timeline = self.timeline.as_ref().filter(|_| self.is_eventful());
        let events = timeline.map(|timeline| timeline.events.as_slice()).unwrap_or_default();
        let step_ms = timeline.map_or(0.0, |timeline| timeline.step_ms as f64);
        let end_ms = timeline.map_or(0.0, |timeline| timeline.lost.len() as f64 * step_ms);
        for Happening { event, at_ms, in_flight, lost, settled_ms } in events {
            let deed = event.as_str();
            // What is wrong in the last step is wrong for good.
            let is_for_good = *at_ms as f64 + settled_ms + step_ms > end_ms;
            let wellness = match is_for_good && *settled_ms > 0.0 {
                true => "not well again to the end".to_owned(),
                false => format!("all well {settled_ms:.0} ms later"),
            };
            text +=
                &format!("at {at_ms} ms {deed}: {in_flight} in flight, {lost} lost, {wellness}\n");
        }
        let tcp = self.tcp.filter(|_| self.is_eventful());
        if let Some(TcpSum { connections, queries, broken, closed, refused }) = tcp {
            text += &format!(
                "{connections} TCP connections: {queries} queries, {broken} cut off before the response, \
                 {closed} closed while idle, {refused} refused\n"
            );
        }
        if let Some(Leftovers { tables, addresses }) = &self.left_behind {
            let tables: Vec<_> = tables.iter().map(String::as_str).collect();
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let (tables, addresses) = (tables.join(", "), addresses.join(", "));
            text += &format!("left behind: tables: {tables}; addresses: {addresses}\n");
        }
        (!text.is_empty()).then_some(text)
    }

    /// Tells whether what happened concerned anybody: without nodens nobody is killed.
    pub(super) fn is_eventful(&self) -> bool {
        self.nodens != Side::Without || self.scenario == Scenario::Churn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_up_has_stalled_and_every_loss_counts() {
        let mut sum = Sum::new(crate::clock::now());
        let answered = |millis, lost| Outcome {
            took: Some(Duration::from_millis(millis)),
            intended: crate::clock::now(),
            late: Duration::ZERO,
            lost,
            rcode: Some(Rcode::NOERROR),
            is_authoritative: false,
        };
        sum.add(Scenario::Pair, &answered(1, 0));
        sum.add(Scenario::Pair, &answered(2600, 1));
        sum.add(Scenario::Pair, &Outcome { took: None, lost: 2, rcode: None, ..answered(0, 0) });
        sum.add(Scenario::Pair, &Outcome { rcode: Some(Rcode::SERVFAIL), ..answered(2, 0) });
        assert_eq!((sum.queries, sum.lost, sum.given_up, sum.failed), (4, 3, 1, 1));
        assert_eq!(sum.stalls, [2, 2, 1]);
        let run = Run {
            topology: Topology::Bridge,
            scenario: Scenario::Pair,
            side: Side::With,
            family: Family::V4,
            turn: 0,
        };
        assert_eq!(sum.into_row(&run, &[]).latency_us[4] / 10_000, 260);
    }
}
