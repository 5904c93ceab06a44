//! What must not be: `p99 > 2ms`, `stalls > 0`, `lost > 0.1%`.

use std::str::FromStr;

use thiserror::Error;

use super::report::{Report, Server, Verdict};
use super::text::{share, time};

/// A condition under which the run fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    metric: Metric,
    relation: Relation,
    limit: Limit,
}

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Mean,
    P50,
    P90,
    P99,
    P999,
    P9999,
    Max,
    Stalls,
    Stalls2500,
    Stalls5000,
    Timeouts,
    Partial,
    Lost,
    Retries,
    Failed,
    Lookups,
    Rate,
}

/// How two numbers stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// What is compared with, in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    Micros(f64),
    Count(f64),
    Percent(f64),
}

/// All metrics by name.
const METRICS: [(&str, Metric); 17] = [
    ("mean", Metric::Mean),
    ("p50", Metric::P50),
    ("p90", Metric::P90),
    ("p99", Metric::P99),
    ("p99.9", Metric::P999),
    ("p99.99", Metric::P9999),
    ("max", Metric::Max),
    ("stalls", Metric::Stalls),
    ("stalls_2.5s", Metric::Stalls2500),
    ("stalls_5s", Metric::Stalls5000),
    ("timeouts", Metric::Timeouts),
    ("partial", Metric::Partial),
    ("lost", Metric::Lost),
    ("retries", Metric::Retries),
    ("failed", Metric::Failed),
    ("lookups", Metric::Lookups),
    ("rate", Metric::Rate),
];

/// Relations by sign; longer signs first.
const RELATIONS: [(&str, Relation); 4] = [
    (">=", Relation::AtLeast),
    ("<=", Relation::AtMost),
    (">", Relation::Above),
    ("<", Relation::Below),
];

/// Why a text is no gate.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GateError {
    #[error("write e.g. \"p99 > 2ms\": a metric, one of > >= < <=, and a limit")]
    Form,
    #[error("{0:?} is no metric; there are {list}", list = METRICS.map(|(name, _)| name).join(", "))]
    Metric(String),
    #[error("{0:?} is no time as 250us, 2ms or 1.5s")]
    Time(String),
    #[error("{0:?} is no count as 0 and no share as 0.1%")]
    Count(String),
}

impl FromStr for Gate {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let parts = RELATIONS.iter().find_map(|(sign, relation)| {
            let (metric, limit) = text.split_once(sign)?;
            Some((metric.trim(), *relation, limit.trim()))
        });
        let (name, relation, limit) = parts.ok_or(GateError::Form)?;
        let known = METRICS.iter().find(|(known, _)| *known == name);
        let (_, metric) = known.ok_or_else(|| GateError::Metric(name.to_owned()))?;
        let limit = match metric.is_time() {
            true => time_of(limit).ok_or_else(|| GateError::Time(limit.to_owned()))?,
            false => count_of(limit).ok_or_else(|| GateError::Count(limit.to_owned()))?,
        };
        Ok(Self { text: text.trim().to_owned(), metric: *metric, relation, limit })
    }
}

/// Reads a time.
fn time_of(text: &str) -> Option<Limit> {
    let units = [("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number_of(number).map(|number| Limit::Micros(number * factor))
}

/// Reads a count or a share.
fn count_of(text: &str) -> Option<Limit> {
    match text.strip_suffix('%') {
        Some(number) => number_of(number).map(Limit::Percent),
        None => number_of(text).map(Limit::Count),
    }
}

/// Reads a number that is not below zero.
fn number_of(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

impl Metric {
    /// Tells whether it is measured in time.
    fn is_time(self) -> bool {
        use Metric::{Max, Mean, P50, P90, P99, P999, P9999};
        matches!(self, Mean | P50 | P90 | P99 | P999 | P9999 | Max)
    }

    /// Its value, and the whole that a share of it refers to.
    fn of(self, server: &Server, report: &Report) -> (f64, f64) {
        let latency = &server.latency_us;
        let lookups = server.lookups as f64;
        match self {
            Self::Mean => (latency.mean, 1.0),
            Self::P50 => (latency.p50, 1.0),
            Self::P90 => (latency.p90, 1.0),
            Self::P99 => (latency.p99, 1.0),
            Self::P999 => (latency.p999, 1.0),
            Self::P9999 => (latency.p9999, 1.0),
            Self::Max => (latency.max, 1.0),
            Self::Stalls => (server.stalls.one as f64, lookups),
            Self::Stalls2500 => (server.stalls.two as f64, lookups),
            Self::Stalls5000 => (server.stalls.five as f64, lookups),
            Self::Timeouts => (server.timeouts as f64, lookups),
            Self::Partial => (server.partial as f64, lookups),
            Self::Lost => (server.lost as f64, server.sent as f64),
            Self::Retries => (server.retries as f64, server.sent as f64),
            Self::Failed => (server.failed() as f64, server.answered as f64),
            Self::Lookups => (lookups, lookups),
            Self::Rate => (report.load.held_qps, report.load.wanted_qps.unwrap_or(1.0)),
        }
    }
}

impl Gate {
    /// What it comes to for each server.
    pub fn judge(&self, report: &Report) -> Vec<Verdict> {
        report.servers.iter().map(|server| self.judge_one(server, report)).collect()
    }

    /// What it comes to for one server.
    fn judge_one(&self, server: &Server, report: &Report) -> Verdict {
        let (value, whole) = self.metric.of(server, report);
        let (compared, limit) = match self.limit {
            Limit::Micros(limit) | Limit::Count(limit) => (value, limit),
            Limit::Percent(limit) => (value / whole.max(1.0) * 100.0, limit),
        };
        let is_so = match self.relation {
            Relation::Above => compared > limit,
            Relation::AtLeast => compared >= limit,
            Relation::Below => compared < limit,
            Relation::AtMost => compared <= limit,
        };
        let text = match (self.metric.is_time(), self.metric) {
            (true, _) => time(value),
            (false, Metric::Rate | Metric::Lookups) => format!("{value:.0}"),
            (false, _) => share(value as u64, whole as u64),
        };
        // Of no lookup at all nothing holds.
        let holds = !is_so && server.lookups > 0;
        Verdict { gate: self.text.clone(), server: server.name.clone(), value: text, holds }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_gate_is_a_metric_a_relation_and_a_limit() {
        for good in ["p99 > 2ms", "stalls>0", "lost >= 0.1%", "p99.99<1.5s", "rate < 99%"] {
            assert!(good.parse::<Gate>().is_ok(), "{good}");
        }
        let fault = |text: &str| text.parse::<Gate>().expect_err(text);
        assert_eq!(fault("p99"), GateError::Form);
        assert_eq!(fault("p98 > 2ms"), GateError::Metric("p98".to_owned()));
        assert_eq!(fault("p99 > 2"), GateError::Time("2".to_owned()));
        assert_eq!(fault("lost > -1%"), GateError::Count("-1%".to_owned()));
        assert_eq!(fault("lost > 2ms"), GateError::Count("2ms".to_owned()));
    }

    #[test]
    fn a_gate_fails_when_its_condition_is_met_by_any_server() {
        let report = report(); // p50 1 ms, p99 3 ms, 5 of 1,000 lost, no stall
        for (text, holds) in [
            ("p50 > 900us", false),
            ("p50 > 1.1ms", true),
            ("p99 >= 3ms", false),
            ("lost > 0.4%", false),
            ("lost > 0.5%", true),
            ("lost > 5", true),
            ("stalls > 0", true),
            ("rate < 99%", true),
            ("rate < 101%", false),
        ] {
            let verdicts = text.parse::<Gate>().expect(text).judge(&report);
            assert_eq!(verdicts.len(), 1);
            assert_eq!(verdicts[0].holds, holds, "{text}: {}", verdicts[0].value);
        }
    }

    #[test]
    fn without_a_lookup_no_gate_holds() {
        let mut report = report();
        report.servers[0].lookups = 0;
        assert!(!"stalls > 0".parse::<Gate>().expect("a gate").judge(&report)[0].holds);
    }
}
