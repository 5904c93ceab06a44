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
}
