//! DNS latency in numbers: percentiles of what stub resolvers waited.
//!
//! It refuses to send anything: `stub` does that.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Microseconds that can be told apart at the top of the scale: 60 s.
const MOST_US: u64 = 60_000_000;

/// Latencies, to three digits.
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    /// No latencies yet.
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, MOST_US, 3);
        Self { histogram: histogram.expect("the bounds are in order and three digits are allowed") }
    }
}

impl Latencies {
    /// Takes one in; more than a minute counts as a minute.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(MOST_US);
        self.histogram.saturating_record(micros.clamp(1, MOST_US));
    }

    /// The latency that `share` (0.0 to 1.0) of all do not exceed; zero when there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.histogram.value_at_quantile(share))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.histogram.max())
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
