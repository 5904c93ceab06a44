//! Notices a firewall of this host that eats what our table rewrites. Pure.

use std::time::{Duration, Instant};

/// So many rewritten packets without one that arrived are no accident.
const ENOUGH: u64 = 20;

/// So many are none where they were eaten before, and nothing has passed since.
const ENOUGH_AGAIN: u64 = 3;

/// How long what was rewritten may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Within what time that many must be lost: a pod that may not ask loses a few now and then.
const WINDOW: Duration = Duration::from_secs(10);

/// Compares two counters: what was rewritten, and what of it passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// The counters when something last passed or a window began, and when that was.
    base: Option<(u64, u64, Instant)>,
    /// It was eaten, and nothing has passed since.
    is_suspect: bool,
}

impl Watch {
    /// Takes a reading; tells whether nothing passed for 2 s, and at least 20 were eaten within 10 s: 3 where
    /// it was eaten before.
    pub fn is_eaten(&mut self, rewritten: u64, passed: u64, now: Instant) -> bool {
        self.is_suspect &= self.base.is_none_or(|(_, seen, _)| passed <= seen);
        let enough = if self.is_suspect { ENOUGH_AGAIN } else { ENOUGH };
        let lost = self.base.and_then(|(begun, seen, since)| {
            let age = now.saturating_duration_since(since);
            let is_quiet = passed == seen && rewritten > begun && age <= WINDOW;
            is_quiet.then(|| rewritten - begun >= enough && age >= PATIENCE)
        });
        if lost.is_none() {
            self.base = Some((rewritten, passed, now));
        }
        self.is_suspect |= lost == Some(true);
        lost == Some(true)
    }

    /// Begins anew with other counters; what was eaten before is suspected further on.
    pub fn restart(&mut self) {
        self.base = None;
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
            // One every half second is enough, one a second is not.
            &[(0, 0, 0, false), (5, 10, 0, false), (10, 20, 0, true)],
            &[(0, 0, 0, false), (10, 10, 0, false), (11, 11, 0, false), (20, 20, 0, false)],
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
    fn a_few_lost_over_hours_are_no_firewall() {
        let (start, mut watch) = (crate::clock::now(), Watch::default());
        for half in 0..2 * 3600 {
            // One SYN a minute, and nobody else asks that way.
            let now = start + Duration::from_millis(500 * half);
            assert!(!watch.is_eaten(half / 120, 0, now), "{} lost", half / 120);
        }
    }

    #[test]
    fn what_was_eaten_before_is_found_out_by_three_until_something_passes() {
        let start = crate::clock::now();
        let eaten = |watch: &mut Watch, second, rewritten, passed| {
            watch.is_eaten(rewritten, passed, start + Duration::from_secs(second))
        };
        let mut watch = Watch::default();
        assert!(!eaten(&mut watch, 0, 0, 0) && eaten(&mut watch, 2, 20, 0));
        for second in [100, 200] {
            watch.restart();
            assert!(!eaten(&mut watch, second, 0, 0) && !eaten(&mut watch, second + 2, 2, 0));
            assert!(eaten(&mut watch, second + 3, 3, 0), "at {second} s");
        }
        watch.restart();
        assert!(!eaten(&mut watch, 300, 0, 0) && !eaten(&mut watch, 301, 1, 1));
        assert!(!eaten(&mut watch, 304, 20, 1), "one has passed");
        assert!(eaten(&mut watch, 305, 21, 1));
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
