//! When what happened: the fate of each query by the time when it should have left, and what was done to
//! the cluster meanwhile.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::steady::Event;
use crate::stub::pair::Outcome;

/// Width of a step of the timeline.
const STEP: Duration = Duration::from_millis(50);
/// Whoever waits longer has noticed.
const PROMPT: Duration = Duration::from_millis(500);
/// Queries that left so shortly before an event may still have been in flight.
const FLIGHT: Duration = Duration::from_millis(100);

/// Queries by what became of them, in steps of equal width.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    pub step_ms: u64,
    /// Answered promptly by a cache: nodens.
    pub nodens: Vec<u32>,
    /// Answered promptly with AA: the cluster DNS itself.
    pub cluster: Vec<u32>,
    /// Answered, but late.
    pub slow: Vec<u32>,
    /// At least one datagram got no response.
    pub lost: Vec<u32>,
    pub events: Vec<Happening>,
}

/// What was done to the cluster, and how pods felt it.
#[derive(Clone, Debug, Serialize)]
pub struct Happening {
    pub event: Event,
    /// Since the first query.
    pub at_ms: u64,
    /// Queries that had left and were not answered when it happened.
    pub in_flight: u64,
    /// Queries that lost a datagram and left after it (or up to 100 ms before) and before the next event.
    pub lost: u64,
    /// The last query that was lost, answered by the wrong side, or late by nodens, left so long after it.
    pub settled_ms: f64,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Nodens,
    Cluster,
    Slow,
    /// Late, but by the cluster DNS: the ordinary way was open.
    SlowCluster,
    Lost,
}

/// Outcomes and events as they come.
pub(super) struct Diary {
    start: Instant,
    fates: Vec<Told>,
}

/// One query.
struct Told {
    /// When it left.
    left: Duration,
    /// How long its stub resolver waited.
    waited: Duration,
    fate: Fate,
}

impl Diary {
    /// An empty one.
    pub(super) fn new(start: Instant) -> Self {
        Self { start, fates: Vec::new() }
    }

    /// Notes one outcome.
    pub(super) fn note(&mut self, outcome: &Outcome) {
        let fate = match outcome.waited() {
            None => Fate::Lost,
            Some(_) if outcome.lost > 0 => Fate::Lost,
            Some(waited) if waited > PROMPT && outcome.is_authoritative => Fate::SlowCluster,
            Some(waited) if waited > PROMPT => Fate::Slow,
            Some(_) if outcome.is_authoritative => Fate::Cluster,
            Some(_) => Fate::Nodens,
        };
        // When it really left: a load that is late must not move its losses before an event.
        let left = outcome.intended + outcome.late;
        let left = left.saturating_duration_since(self.start);
        let waited = outcome.waited().unwrap_or(Duration::MAX);
        self.fates.push(Told { left, waited, fate });
    }

    /// Puts everything in order.
    pub(super) fn into_timeline(self, events: &[(Instant, Event)]) -> Timeline {
        let mut timeline = Timeline { step_ms: millis(STEP), ..Timeline::default() };
        for Told { left, fate, .. } in &self.fates {
            let fate = if *fate == Fate::SlowCluster { Fate::Slow } else { *fate };
            let step = usize::try_from(left.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX);
            let steps = [
                (Fate::Nodens, &mut timeline.nodens),
                (Fate::Cluster, &mut timeline.cluster),
                (Fate::Slow, &mut timeline.slow),
                (Fate::Lost, &mut timeline.lost),
            ];
            for (kind, counts) in steps {
                counts.resize(counts.len().max(step + 1), 0);
                if let Some(count) = counts.get_mut(step).filter(|_| kind == fate) {
                    *count += 1;
                }
            }
        }
        let at = |index: usize| {
            let (at, _) = events.get(index)?;
            Some(at.saturating_duration_since(self.start))
        };
        let happenings = events.iter().enumerate().filter_map(|(index, (_, event))| {
            let until = at(index + 1).unwrap_or(Duration::MAX);
            Some(self.happening(*event, at(index)?, until))
        });
        timeline.events = happenings.collect();
        timeline
    }

    /// What an event did to the queries until the next one.
    fn happening(&self, event: Event, at: Duration, until: Duration) -> Happening {
        let early = at.saturating_sub(FLIGHT);
        let ends = until.saturating_sub(FLIGHT);
        let is_lost = |told: &&Told| told.fate == Fate::Lost && (early..ends).contains(&told.left);
        let is_in_flight =
            |told: &&Told| told.left < at && told.left.saturating_add(told.waited) > at;
        let count = |claim: &dyn Fn(&&Told) -> bool| {
            u64::try_from(self.fates.iter().filter(claim).count()).unwrap_or(u64::MAX)
        };
        let expected = match event {
            Event::Kill | Event::Stop => Some(Fate::Cluster),
            Event::Continue | Event::Upgrade => Some(Fate::Nodens),
            _ => None,
        };
        let is_wrong = |fate: Fate| match expected {
            Some(Fate::Cluster) => !matches!(fate, Fate::Cluster | Fate::SlowCluster),
            Some(expected) => fate != expected,
            None => !matches!(fate, Fate::Nodens | Fate::Cluster),
        };
        let wrong = self.fates.iter().filter(|told| is_wrong(told.fate));
        let last = wrong.map(|told| told.left).filter(|left| (at..until).contains(left)).max();
        let settled = last.map_or(Duration::ZERO, |last| last - at);
        Happening {
            event,
            at_ms: millis(at),
            in_flight: count(&is_in_flight),
            lost: count(&is_lost),
            settled_ms: settled.as_secs_f64() * 1000.0,
        }
    }
}

/// Whole milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::dns::Rcode;

    #[test]
    fn an_event_has_settled_when_the_last_query_was_lost_or_answered_by_the_wrong_side() {
        let start = clock::now();
        let mut diary = Diary::new(start);
        for number in 0..500_u64 {
            let lost = (200..203).contains(&number);
            diary.note(&Outcome {
                took: (!lost).then_some(Duration::from_millis(1)),
                intended: start + Duration::from_millis(number),
                late: Duration::ZERO,
                lost: u32::from(lost),
                rcode: Some(Rcode::NOERROR),
                is_authoritative: (203..400).contains(&number),
            });
        }
        let at = |millis| start + Duration::from_millis(millis);
        let timeline = diary.into_timeline(&[(at(200), Event::Stop), (at(390), Event::Continue)]);
        let [stop, go_on] = &timeline.events[..] else { panic!("two events") };
        assert_eq!((stop.at_ms, stop.lost, go_on.lost), (200, 3, 0));
        // The lost are waited for; what left 1 ms before is answered.
        assert_eq!((stop.in_flight, go_on.in_flight), (0, 3));
        assert!((go_on.settled_ms - 9.0).abs() < 0.1, "{go_on:?}");
        assert_eq!(timeline.lost, [0, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!(timeline.cluster, [0, 0, 0, 0, 47, 50, 50, 50, 0, 0]);
        assert_eq!(timeline.nodens[8..], [50, 50]);
    }
}
