//! How long a feed waits before it asks the API server again.

use std::time::{Duration, Instant};

/// The first wait.
const FIRST: Duration = Duration::from_millis(50);

/// The longest wait while an outage may be a restart: changes must be seen within 2 s of its end.
const SHORT: Duration = Duration::from_millis(800);

/// How long an outage may be a restart.
const RESTART: Duration = Duration::from_secs(60);

/// The longest wait: thousands of nodes must not meet an API server that has just come back.
const LONG: Duration = Duration::from_secs(10);

/// Waits that grow with each failure in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    /// When the row began.
    since: Option<Instant>,
}

impl Backoff {
    /// How long to wait after a failure at `now`; `draw` is uniform in 0..1 and spreads the nodes.
    pub fn delay(&mut self, now: Instant, draw: f64) -> Duration {
        let since = *self.since.get_or_insert(now);
        let most = if now.saturating_duration_since(since) < RESTART { SHORT } else { LONG };
        let grown = FIRST.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures = self.failures.saturating_add(1);
        grown.mul_f64(0.5 + draw.clamp(0.0, 1.0))
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The row is over.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_short_for_a_restart_and_never_pass_their_limit() {
        let start = crate::clock::now();
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.delay(start, 0.5).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 800, 800, 800]);
        let late = start + RESTART;
        assert_eq!(backoff.delay(late, 0.5), Duration::from_secs(10));
        assert!(backoff.delay(late, 1.0) <= LONG.mul_f64(1.5));
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
        assert_eq!(backoff.delay(late, 0.0), FIRST / 2, "a new row begins");
    }
}
