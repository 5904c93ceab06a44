//! How soon executors learn of their Spark job's driver: from the making of its Service to the first answer.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::steady::{self, Event};
use crate::dns::Rcode;
use crate::stub::pair::Outcome;

/// The drivers of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Drivers {
    pub made: u64,
    /// Those that any executor found.
    pub found: u64,
    /// Microseconds from the making of a Service until the first executor had its address: median, longest.
    pub first_us: [u64; 2],
}

/// When each driver was found, by its job.
#[derive(Default)]
pub(super) struct Finds(BTreeMap<u64, Instant>);

impl Finds {
    /// Notes one outcome of a run that began at `start`.
    pub(super) fn note(&mut self, outcome: &Outcome, start: Instant) {
        let (Some(took), Some(Rcode::NOERROR)) = (outcome.took, outcome.rcode) else { return };
        let job = steady::job_at(outcome.intended.saturating_duration_since(start));
        let at = outcome.intended + took;
        self.0.entry(job).and_modify(|first| *first = at.min(*first)).or_insert(at);
    }

    /// What came of the drivers that were made.
    pub(super) fn into_drivers(self, events: &[(Instant, Event)]) -> Drivers {
        let made = events.iter().filter_map(|(at, event)| match event {
            Event::MakeDriver(job) => Some((*at, *job)),
            _ => None,
        });
        let made: Vec<_> = made.collect();
        let first = |(at, job): &(Instant, u64)| {
            let wait = self.0.get(job)?.saturating_duration_since(*at);
            Some(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX))
        };
        let mut waits: Vec<_> = made.iter().filter_map(first).collect();
        waits.sort_unstable();
        let count = |waits: usize| u64::try_from(waits).unwrap_or(u64::MAX);
        let at = |index: usize| waits.get(index).copied().unwrap_or_default();
        Drivers {
            made: count(made.len()),
            found: count(waits.len()),
            first_us: [at(waits.len() / 2), at(waits.len().saturating_sub(1))],
        }
    }
}

impl Drivers {
    /// For people.
    pub(super) fn told(&self) -> String {
        let Self { made, found, first_us } = self;
        let [median, longest] = first_us.map(|micros| micros / 1000);
        format!(
            "{found} of {made} drivers found: {median} ms (median) and {longest} ms (longest) after their \
             Services were made; executors ask 50 ms after that, then every 100 ms\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_driver_is_found_when_the_first_executor_has_its_address() {
        let start = crate::clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut finds = Finds::default();
        let answer = |millis, rcode| Outcome {
            took: Some(Duration::from_millis(2)),
            intended: at(millis),
            late: Duration::ZERO,
            lost: 0,
            rcode: Some(rcode),
            is_authoritative: false,
        };
        for (millis, rcode) in [
            (500, Rcode::NXDOMAIN),
            (700, Rcode::NOERROR),
            (600, Rcode::NOERROR),
            (2600, Rcode::NXDOMAIN),
            (4800, Rcode::NOERROR),
        ] {
            finds.note(&answer(millis, rcode), start);
        }
        let events = [0, 1, 2].map(|job| (at(550 + 2000 * job), Event::MakeDriver(job)));
        let drivers = finds.into_drivers(&events);
        assert_eq!(drivers, Drivers { made: 3, found: 2, first_us: [252_000, 252_000] });
        assert!(drivers.told().starts_with("2 of 3 drivers found: 252 ms"), "{}", drivers.told());
    }
}
