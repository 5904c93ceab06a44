//! Against an earlier run, or another server of the same run: is it slower, or is it noise?
//!
//! The run is cut into slices of time, and the median of their percentiles is compared. Blocks of
//! neighbouring slices are drawn again and again (moving-block bootstrap), because what disturbs a
//! machine lasts longer than a slice: the interval in which the ratio lies is as wide as that noise.
//! A regression is told only when the whole interval lies beyond the limit.

use super::report::{Comparison, Report, SCHEMA, Server, SliceReport};
use thiserror::Error;

/// How often slices are drawn.
const DRAWS: usize = 2000;
/// Neighbouring slices that are drawn together.
const BLOCK: usize = 5;
/// With fewer slices chance cannot be told.
const LEAST: usize = 10;
/// How much of the draws lies outside the interval, on each side.
const OUTSIDE: f64 = 0.01;

/// A percentile that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    P50,
    P90,
    P99,
}

/// Why a file is no baseline.
#[derive(Debug, Error)]
pub enum BaselineError {
    #[error(
        "it was written in another form, {found:?}; this nodens reads {SCHEMA:?}: measure the baseline anew"
    )]
    Schema { found: String },
    #[error("it is no report of nodens bench: {0}")]
    Json(serde_json::Error),
    #[error(
        "no server of it fits {server}: it has {known}; label servers alike, as in now=192.0.2.1"
    )]
    Server { server: String, known: String },
    #[error(
        "it was measured with another load ({what}: {old} then, {new} now): latencies do not compare"
    )]
    Load { what: &'static str, old: String, new: String },
}

impl Metric {
    /// Its name.
    fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
        }
    }

    /// Its value in a slice, in microseconds.
    fn of(self, slice: &SliceReport) -> f64 {
        match self {
            Self::P50 => slice.p50_us,
            Self::P90 => slice.p90_us,
            Self::P99 => slice.p99_us,
        }
    }
}

/// Reads a report that was written as JSON.
///
/// # Errors
/// `Schema` for one of another version, `Json` for anything else.
pub fn read(text: &str) -> Result<Report, BaselineError> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(BaselineError::Json)?;
    match value.get("schema").and_then(serde_json::Value::as_str) {
        Some(schema) if schema != SCHEMA => Err(BaselineError::Schema { found: schema.to_owned() }),
        _ => serde_json::from_value(value).map_err(BaselineError::Json),
    }
}

/// Compares each server with its like in `old`: by name, or by place where each has as many.
///
/// `max_regression` is the largest growth that is allowed, 0.1 for 10 %.
///
/// # Errors
/// When a server has no like, or the load was another one.
pub fn compare(
    new: &Report,
    old: &Report,
    metrics: &[Metric],
    max_regression: f64,
) -> Result<Vec<Comparison>, BaselineError> {
    check_load(new, old)?;
    let mut all = Vec::new();
    for (place, server) in new.servers.iter().enumerate() {
        let like = old.servers.iter().find(|one| one.name == server.name);
        let by_place = || old.servers.get(place).filter(|_| old.servers.len() == new.servers.len());
        let Some(like) = like.or_else(by_place) else {
            let names: Vec<_> = old.servers.iter().map(|one| one.name.as_str()).collect();
            let (server, known) = (server.name.clone(), names.join(", "));
            return Err(BaselineError::Server { server, known });
        };
        for metric in metrics {
            let mut one = ratio(server, like, *metric, "the baseline");
            let limit = 1.0 + max_regression;
            one.holds = one.interval.map_or(one.ratio <= limit, |(low, _)| low <= limit);
            one.limit = Some(limit);
            all.push(one);
        }
    }
    Ok(all)
}

/// Refuses to compare what was measured otherwise.
fn check_load(new: &Report, old: &Report) -> Result<(), BaselineError> {
    let rate =
        |report: &Report| report.load.wanted_qps.map_or(String::new(), |rate| format!("{rate}/s"));
    let sockets = |report: &Report| format!("{:?}", report.load.sockets);
    let in_flight = |report: &Report| format!("{:?}", report.load.in_flight);
    let search = |report: &Report| format!("{:?}, ndots {}", report.load.search, report.load.ndots);
    let facts = [
        ("model", old.load.model.clone(), new.load.model.clone()),
        ("loop", old.load.r#loop.clone(), new.load.r#loop.clone()),
        ("rate", rate(old), rate(new)),
        ("in flight", in_flight(old), in_flight(new)),
        ("resolver", old.load.resolver.clone(), new.load.resolver.clone()),
        ("search list", search(old), search(new)),
        ("kept sockets", sockets(old), sockets(new)),
    ];
    match facts.into_iter().find(|(_, old, new)| old != new) {
        Some((what, old, new)) => Err(BaselineError::Load { what, old, new }),
        None => Ok(()),
    }
}

/// Compares each server behind the first with the first.
pub fn differences(report: &Report) -> Vec<Comparison> {
    let Some((first, others)) = report.servers.split_first() else { return Vec::new() };
    let metrics = [Metric::P50, Metric::P99];
    let pairs = others.iter().flat_map(|other| metrics.map(|metric| (other, metric)));
    pairs.map(|(other, metric)| ratio(other, first, metric, &first.name)).collect()
}

/// The ratio of one percentile of two servers.
fn ratio(new: &Server, old: &Server, metric: Metric, against: &str) -> Comparison {
    let (new_slices, old_slices) = (values(new, metric), values(old, metric));
    let point = median(&mut new_slices.clone()) / median(&mut old_slices.clone()).max(0.001);
    Comparison {
        server: new.name.clone(),
        against: against.to_owned(),
        metric: metric.name().to_owned(),
        ratio: point,
        interval: interval(&new_slices, &old_slices),
        limit: None,
        holds: true,
    }
}

/// The percentile of all slices with lookups, in the order of time.
fn values(server: &Server, metric: Metric) -> Vec<f64> {
    let used = server.slices.iter().filter(|slice| slice.lookups > 0);
    used.map(|slice| metric.of(slice)).collect()
}

/// Where the ratio of the medians lies; `None` when there are too few slices to tell.
fn interval(new: &[f64], old: &[f64]) -> Option<(f64, f64)> {
    if new.len().min(old.len()) < LEAST {
        return None;
    }
    // The same draws each time: a report is judged alike whenever it is judged.
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut ratios: Vec<f64> = (0..DRAWS)
        .map(|_| median(&mut dice.draw(new)) / median(&mut dice.draw(old)).max(0.001))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (DRAWS - 1) as f64).round() as usize).copied();
    at(OUTSIDE).zip(at(1.0 - OUTSIDE))
}

/// The middle of the values; 0 when there are none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Numbers that look random enough to draw slices.
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    /// As many values as there are, in blocks of neighbours.
    fn draw(&mut self, values: &[f64]) -> Vec<f64> {
        let mut drawn = Vec::with_capacity(values.len() + BLOCK);
        while drawn.len() < values.len() {
            let start = self.below(values.len() - BLOCK + 1);
            drawn.extend(values.get(start..start + BLOCK).unwrap_or_default());
        }
        drawn.truncate(values.len());
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    /// The report with all its latencies times `factor`, noise added that lasts for some slices.
    fn noisy(factor: f64, seed: u64) -> Report {
        let mut report = report();
        let (mut dice, mut drift) = (Dice(seed * 2 + 1), 0.0);
        for slice in &mut report.servers[0].slices {
            drift = drift * 0.7 + (dice.below(100) as f64 - 50.0) / 1000.0;
            slice.p50_us *= factor * (1.0 + drift);
        }
        report
    }

    #[test]
    fn a_regression_of_a_fifth_is_told_and_noise_is_not() {
        let (mut caught, mut alarms) = (0, 0);
        for seed in 1..=200 {
            let old = noisy(1.0, seed * 7919);
            let judge =
                |new: &Report| compare(new, &old, &[Metric::P50], 0.1).expect("alike")[0].holds;
            caught += u32::from(!judge(&noisy(1.2, seed)));
            alarms += u32::from(!judge(&noisy(1.0, seed)));
        }
        assert!(caught >= 198, "{caught} of 200 caught");
        assert_eq!(alarms, 0);
    }

    #[test]
    fn servers_are_matched_by_name_or_by_place() {
        let (mut new, old) = (report(), report());
        new.servers[0].name = "other".to_owned();
        assert!(compare(&new, &old, &[Metric::P50], 0.1).is_ok());
        new.servers.push(new.servers[0].clone());
        let error = compare(&new, &old, &[Metric::P50], 0.1).expect_err("no like").to_string();
        assert!(error.contains("no server of it fits other: it has 198.18.0.1"), "{error}");
    }

    #[test]
    fn another_load_or_another_schema_is_refused() {
        let (new, mut old) = (report(), report());
        old.load.wanted_qps = Some(10.0);
        let error = compare(&new, &old, &[Metric::P50], 0.1).expect_err("another rate").to_string();
        assert!(error.contains("rate: 10/s then, 1000/s now"), "{error}");
        let (new, mut old) = (report(), report());
        old.load.search = vec!["svc.cluster.local".to_owned()];
        let error = compare(&new, &old, &[Metric::P50], 0.1).expect_err("other names").to_string();
        assert!(error.contains("search list"), "{error}");
        let text = serde_json::to_string(&report()).expect("JSON");
        assert_eq!(read(&text).expect("our own").servers.len(), 1);
        let other = text.replace(SCHEMA, "nodens-bench/99");
        let error = read(&other).expect_err("another version").to_string();
        assert!(error.contains("nodens-bench/99") && error.contains(SCHEMA), "{error}");
        assert!(matches!(read("{}"), Err(BaselineError::Json(_))));
        assert!(matches!(read("{"), Err(BaselineError::Json(_))));
    }

    #[test]
    fn a_run_too_short_to_tell_is_judged_by_its_number_and_says_so() {
        let (mut new, old) = (noisy(1.2, 1), report());
        new.servers[0].slices.truncate(LEAST - 1);
        let one = &compare(&new, &old, &[Metric::P50], 0.1).expect("alike")[0];
        assert!(!one.holds && one.interval.is_none(), "{one:?}");
        assert!(one.text().contains("too short"), "{}", one.text());
    }
}
