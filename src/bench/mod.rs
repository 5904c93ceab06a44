//! DNS latency in numbers: what stub resolvers waited for, how people see it, and whether it will do.
//!
//! It refuses to send anything: `stub` does that. [`run`] lets a [`names`] list loose on servers and
//! counts in [`record`]; a [`report`] is what came of it, and everything behind is made of reports alone:
//! [`gate`], [`baseline`], [`text`], [`html`], [`markdown`]. [`plot`], [`page`] and [`progress`] are building blocks.

pub mod baseline;
pub mod conntrack;
pub mod gate;
pub mod html;
pub mod markdown;
pub mod names;
pub mod page;
pub mod plot;
pub mod progress;
pub mod record;
pub mod report;
pub mod run;
pub mod text;

use std::time::Duration;

use hdrhistogram::Histogram;

/// The top of the scale in nanoseconds: 60 s.
const MOST_NS: u64 = 60_000_000_000;

/// Latencies, to three digits or two.
#[derive(Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    /// No latencies yet.
    fn default() -> Self {
        Self::with_digits(3)
    }
}

impl Latencies {
    /// No latencies yet; two digits take a tenth of the memory and time that three take.
    pub fn with_digits(digits: u8) -> Self {
        // From 128 ns on: what a network can do.
        let histogram = Histogram::new_with_bounds(128, MOST_NS, digits);
        Self {
            histogram: histogram
                .expect("the bounds are in order and one to five digits are allowed"),
        }
    }

    /// Takes one in; more than a minute counts as a minute.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(MOST_NS);
        self.histogram.saturating_record(nanos.min(MOST_NS));
    }

    /// The latency that `share` (0.0 to 1.0) of all do not exceed; zero when there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.histogram.value_at_quantile(share))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.histogram.max())
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The mean.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.histogram.mean().max(0.0) / 1e9)
    }

    /// Takes in all of another.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so nothing is out of range.
        let _ = self.histogram.add(&other.histogram);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|millis| latencies.record(Duration::from_millis(millis)));
        latencies.record(Duration::from_secs(100));
        let p50 = latencies.quantile(0.5).as_micros();
        assert!((499_000..=502_000).contains(&p50), "{p50}");
        assert!(latencies.max() >= Duration::from_secs(59));
        assert_eq!(Latencies::default().quantile(0.5), Duration::ZERO);
    }
}
