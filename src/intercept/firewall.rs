//! Notices a firewall of this host that eats what our table rewrites. Pure.

use std::time::{Duration, Instant};

/// So many rewritten packets without one that arrived are no accident.
const ENOUGH: u64 = 20;

/// How long what was rewritten may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Compares two counters: what was rewritten, and what of it passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// The counters when something last passed, and when that was.
    base: Option<(u64, u64, Instant)>,
}

impl Watch {
    /// Takes a reading; tells whether at least 20 were eaten, and nothing passed for 2 s.
    pub fn is_eaten(&mut self, rewritten: u64, passed: u64, now: Instant) -> bool {
        match self.base {
            Some((begun, seen, since)) if passed == seen && rewritten > begun => {
                rewritten - begun >= ENOUGH && now.saturating_duration_since(since) >= PATIENCE
            }
            _ => {
                self.base = Some((rewritten, passed, now));
                false
            }
        }
    }
}

/// How long the table stays withdrawn at first, and at most.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// When a withdrawn table is tried again: whatever ate our packets may be gone, or was no firewall.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    wait: Duration,
    again: Option<Instant>,
    tried: Option<Instant>,
}

impl Backoff {
    /// The table is withdrawn: for how long, twice as long each time until it has held for an hour.
    pub fn begin(&mut self, now: Instant) -> Duration {
        let held = self.tried.map(|tried| now.saturating_duration_since(tried));
        self.wait = match held {
            Some(held) if held < LONGEST => (self.wait * 2).clamp(FIRST, LONGEST),
            _ => FIRST,
        };
        self.again = Some(now + self.wait);
        self.wait
    }

    /// Tells, once, whether it is time to try again.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let is_over = self.again.is_some_and(|again| again <= now);
        if is_over {
            (self.again, self.tried) = (None, Some(now));
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_rewritten_and_none_passed_within_two_seconds_means_a_firewall() {
        let start = crate::clock::now();
        // Seconds, rewritten, passed, eaten.
        for readings in [
            &[(0, 0, 0, false), (1, 30, 0, false), (2, 40, 0, true)][..],
            &[(0, 0, 0, false), (1, 30, 0, false), (3, 40, 1, false), (6, 60, 1, true)],
            &[(0, 100, 0, false), (1, 110, 0, false), (9, 119, 0, false), (10, 120, 0, true)],
            &[(0, 0, 0, false), (9, 0, 0, false), (10, 30, 0, false), (11, 30, 0, true)],
        ] {
            let mut watch = Watch::default();
            for (second, rewritten, passed, eaten) in readings {
                let now = start + Duration::from_secs(*second);
                let found = watch.is_eaten(*rewritten, *passed, now);
                assert_eq!(found, *eaten, "at {second} s of {readings:?}");
            }
        }
    }

    #[test]
    fn a_withdrawn_table_is_tried_again_after_a_minute_then_later_and_later() {
        let (mut now, mut backoff) = (crate::clock::now(), Backoff::default());
        let minutes = |count: u64| Duration::from_secs(60 * count);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(backoff.begin(now), minutes(wait));
            assert!(!backoff.is_over(now + minutes(wait) - Duration::from_secs(1)));
            now += minutes(wait);
            assert!(backoff.is_over(now) && !backoff.is_over(now), "once");
            now += Duration::from_secs(3);
        }
        assert_eq!(backoff.begin(now + minutes(61)), minutes(1), "it has held for an hour");
    }
}
