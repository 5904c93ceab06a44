//! What is known of an upstream's health and distance. Pure; `now` is passed in.
//!
//! The round-trip time learns from responses of any kind, never from what they say; beside it stands what
//! silence has cost lately. An upstream that leaves queries unanswered or only fails is suspect and asked last; one that is silent for
//! a while, or says by ICMP that nobody listens, is down and probed until anything comes back.

use std::time::{Duration, Instant};

/// Queries in a row without a response that make an upstream suspect.
const SUSPECT_AFTER: u32 = 2;

/// Failures in a row (SERVFAIL and the like) that make an upstream suspect.
const FAILING_AFTER: u32 = 5;

/// Queries in a row without a response that make an upstream down, once `SILENCE` has passed too.
const DOWN_AFTER: u32 = 5;

/// How long an upstream that is down has been silent at least.
const SILENCE: Duration = Duration::from_millis(500);

/// The time between two probes of an upstream that is not well; it is back within two seconds.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// The first wait for an upstream whose distance is unknown.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// What a query without a response counts for in the order of upstreams: about the wait that it cost.
const LOSS: Duration = Duration::from_millis(100);

/// In this time what silence has cost counts for half: an upstream is not passed by for a passing loss.
const LOSS_HALVES: Duration = Duration::from_secs(1);

/// How long an upstream that refuses and did answer before may be about to restart.
const RESTART: Duration = Duration::from_secs(1);

/// After an outage's end, whoever is silent again and then answers in this time is slow: what it took counts.
const OUTAGE_APART: Duration = Duration::from_secs(10);

/// The age at which a measure of the distance is old.
const MEASURE_AGE: Duration = Duration::from_secs(1);

/// How far an upstream may be relied on; the lesser is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Well,
    Suspect,
    Down,
}

/// A change that is worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    WentDown,
    CameBack,
}

/// One upstream's health.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Smoothed round-trip time and its mean deviation.
    rtt: Option<(Duration, Duration)>,
    /// When that was measured last.
    measured: Option<Instant>,
    /// What silence has cost, smoothed, as of the moment beside it.
    loss: Option<(Duration, Instant)>,
    /// Queries without a response since the last response.
    unanswered: u32,
    /// When the first of them was given up.
    silent_since: Option<Instant>,
    /// When it said for the first time since its last response that nobody listens.
    refused_since: Option<Instant>,
    /// Failures since the last conclusive response.
    failing: u32,
    is_down: bool,
    /// When an outage ended whose length was kept out of the distance.
    back: Option<Instant>,
    probed: Option<Instant>,
}

impl Health {
    /// Records a response of any kind; `rtt` where its time tells the distance.
    pub fn on_response(
        &mut self,
        rtt: Option<Duration>,
        conclusive: bool,
        now: Instant,
    ) -> Option<Change> {
        // What ends an outage is no lucky packet among lost ones: it is as near as it was.
        let ends_outage = self.is_away(now);
        self.loss = self.loss.filter(|_| !ends_outage).map(|(loss, at)| (loss / 8 * 7, at));
        if let Some(rtt) = rtt.filter(|rtt| !self.spans_outage(*rtt, ends_outage, now)) {
            (self.rtt, self.measured) = (Some(self.smoothed(rtt, now)), Some(now));
        }
        self.refused_since = None;
        self.failing = if conclusive { 0 } else { self.failing.saturating_add(1) };
        self.unanswered = 0;
        self.silent_since = None;
        std::mem::take(&mut self.is_down).then_some(Change::CameBack)
    }

    /// Tells whether a response now would be the first after a silence that is no chance.
    fn is_away(&self, now: Instant) -> bool {
        self.is_down || self.unanswered >= SUSPECT_AFTER && self.has_been_silent(now)
    }

    /// Tells whether a response's time is that of an outage: who hung answers what has lain there meanwhile, too.
    fn spans_outage(&mut self, rtt: Duration, ends_outage: bool, now: Instant) -> bool {
        let since = |back| now.saturating_duration_since(back);
        if let Some(since) = self.back.map(since).filter(|since| *since < OUTAGE_APART) {
            return rtt > since;
        }
        self.back = ends_outage.then_some(now);
        ends_outage
    }

    /// The round-trip time and its deviation with one measure more.
    ///
    /// Who is nearer than an old measure said is believed at once: those that seem far are seldom measured.
    /// Source: RFC 6298 §2
    fn smoothed(&self, rtt: Duration, now: Instant) -> (Duration, Duration) {
        self.rtt.map_or((rtt, rtt / 2), |(smoothed, deviation)| {
            let off = smoothed.abs_diff(rtt);
            let is_nearer = rtt < smoothed && self.is_measure_old(now);
            let mean = if is_nearer { rtt } else { (smoothed * 7 + rtt) / 8 };
            (mean, (deviation * 3 + off) / 4)
        })
    }

    /// Records that a query has waited long enough without a response.
    pub fn on_unanswered(&mut self, now: Instant) -> Option<Change> {
        self.unanswered = self.unanswered.saturating_add(1);
        self.silent_since.get_or_insert(now);
        self.loss = Some(((self.loss(now) * 7 + LOSS) / 8, now));
        self.look(now)
    }

    /// What a query's loss has cost lately on average.
    fn loss(&self, now: Instant) -> Duration {
        self.loss.map_or(Duration::ZERO, |(loss, at)| {
            let halves = now.saturating_duration_since(at).as_millis() / LOSS_HALVES.as_millis();
            u32::try_from(halves)
                .ok()
                .and_then(|halves| loss.checked_div(1 << halves.min(31)))
                .unwrap_or_default()
        })
    }

    /// How long an answer is likely to take, losses weighed in; `None` before the first response.
    pub fn distance(&self, now: Instant) -> Option<Duration> {
        self.srtt().map(|srtt| srtt + self.loss(now))
    }

    /// Tells whether the distance was not measured for long, or never.
    pub fn is_measure_old(&self, now: Instant) -> bool {
        self.measured.is_none_or(|at| now.saturating_duration_since(at) >= MEASURE_AGE)
    }

    /// Tells whether the present silence began by then.
    pub fn is_silent_since(&self, at: Instant) -> bool {
        self.silent_since.is_some_and(|since| since <= at)
    }

    /// Tells whether it has only just begun to say that nobody listens.
    pub fn is_restarting(&self, now: Instant) -> bool {
        self.refused_since.is_some_and(|since| now.saturating_duration_since(since) < RESTART)
    }

    /// Tells whether silence has lasted until the upstream counts as down; to be called now and then, since
    /// it may be that nobody asks any more whose wait could end.
    pub fn look(&mut self, now: Instant) -> Option<Change> {
        let is_silent = self.unanswered >= DOWN_AFTER && self.has_been_silent(now);
        is_silent.then(|| self.go_down()).flatten()
    }

    /// Tells whether the present silence has lasted for a while.
    fn has_been_silent(&self, now: Instant) -> bool {
        self.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE)
    }

    /// Records that nobody listens there: an ICMP error, or a connection that was refused.
    pub fn on_unreachable(&mut self, now: Instant) -> Option<Change> {
        self.unanswered = self.unanswered.saturating_add(1);
        self.silent_since.get_or_insert(now);
        self.refused_since.get_or_insert(now);
        self.go_down()
    }

    /// Marks it as down; says so when it was not.
    fn go_down(&mut self) -> Option<Change> {
        (!std::mem::replace(&mut self.is_down, true)).then_some(Change::WentDown)
    }

    /// How far the upstream may be relied on now.
    pub fn standing(&self) -> Standing {
        if self.is_down {
            Standing::Down
        } else if self.unanswered >= SUSPECT_AFTER || self.failing >= FAILING_AFTER {
            Standing::Suspect
        } else {
            Standing::Well
        }
    }

    /// The smoothed round-trip time; `None` before the first response.
    pub fn srtt(&self) -> Option<Duration> {
        self.rtt.map(|(smoothed, _)| smoothed)
    }

    /// How long to wait before asking again elsewhere, between `floor` and `ceiling`.
    ///
    /// The time of a far upstream that never varies is no bound: a moment more is no loss.
    pub fn patience(&self, floor: Duration, ceiling: Duration) -> Duration {
        let wait = self.rtt.map_or(UNKNOWN_RTT, |(smoothed, deviation)| {
            smoothed + (deviation * 4).max(smoothed / 4)
        });
        wait.clamp(floor, ceiling.max(floor))
    }

    /// Tells whether a probe is due, and if so takes it as sent.
    pub fn is_probe_due(&mut self, now: Instant) -> bool {
        let rested =
            self.probed.is_none_or(|last| now.saturating_duration_since(last) >= PROBE_EVERY);
        let due = self.standing() != Standing::Well && rested;
        if due {
            self.probed = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn start() -> Instant {
        crate::clock::now()
    }

    #[test]
    fn silence_makes_an_upstream_suspect_and_then_down_and_any_response_brings_it_back() {
        let (mut health, start) = (Health::default(), start());
        let standings: Vec<_> = (0..8)
            .map(|n| {
                let change = health.on_unanswered(start + 250 * MS * n);
                (health.standing(), change)
            })
            .collect();
        let (well, suspect, down) = (Standing::Well, Standing::Suspect, Standing::Down);
        assert_eq!(
            standings,
            [
                (well, None),
                (suspect, None),
                (suspect, None),
                (suspect, None),
                (down, Some(Change::WentDown)),
                (down, None),
                (down, None),
                (down, None),
            ]
        );
        assert_eq!(health.look(start + 9000 * MS), None, "said once");
        assert_eq!(health.on_response(Some(MS), false, start), Some(Change::CameBack));
        assert_eq!(health.standing(), Standing::Well);
    }

    #[test]
    fn silence_makes_an_upstream_down_although_nobody_asks_any_more() {
        let (mut health, start) = (Health::default(), start());
        for _ in 0..1000 {
            assert_eq!(health.on_unanswered(start), None);
        }
        assert_eq!(health.look(start + SILENCE - MS), None);
        assert_eq!(health.look(start + SILENCE), Some(Change::WentDown));
        let mut few = Health::default();
        few.on_unanswered(start);
        assert_eq!(few.look(start + 10 * SILENCE), None, "one lost query is no silence");
    }

    #[test]
    fn lost_packets_among_responses_never_bring_an_upstream_down() {
        let (mut health, start) = (Health::default(), start());
        for n in 0..1000 {
            assert_eq!(health.on_unanswered(start + 10 * MS * n), None);
            if n % 4 == 3 {
                health.on_response(Some(MS), true, start);
            }
        }
    }

    #[test]
    fn an_icmp_error_counts_at_once() {
        let mut health = Health::default();
        assert_eq!(health.on_unreachable(start()), Some(Change::WentDown));
        assert_eq!(health.standing(), Standing::Down);
    }

    #[test]
    fn failures_in_a_row_make_an_upstream_suspect_until_it_knows_something() {
        let mut health = Health::default();
        for _ in 0..FAILING_AFTER {
            assert_eq!(health.standing(), Standing::Well);
            health.on_response(Some(MS), false, start());
        }
        assert_eq!(health.standing(), Standing::Suspect);
        health.on_response(Some(MS), true, start());
        assert_eq!(health.standing(), Standing::Well);
    }

    #[test]
    fn patience_follows_the_round_trip_time_between_floor_and_ceiling() {
        for (rtt, patience) in [(1, 20), (8, 24), (50, 150), (1000, 400)] {
            let mut health = Health::default();
            health.on_response(Some(rtt * MS), true, start());
            assert_eq!(health.patience(20 * MS, 400 * MS), patience * MS, "{rtt} ms");
        }
        let mut steady = Health::default();
        for _ in 0..100 {
            steady.on_response(Some(80 * MS), true, start());
        }
        assert_eq!(steady.patience(20 * MS, 400 * MS), 100 * MS, "although it never varied");
        assert_eq!(Health::default().patience(20 * MS, 400 * MS), UNKNOWN_RTT);
        assert_eq!(Health::default().patience(20 * MS, 50 * MS), 50 * MS);
    }

    #[test]
    fn silence_counts_as_distance_for_some_seconds_and_never_makes_patience_longer() {
        let (mut health, start) = (Health::default(), start());
        health.on_response(Some(MS), true, start);
        let patience = health.patience(20 * MS, 400 * MS);
        assert_eq!(health.distance(start), Some(MS));
        for _ in 0..4 {
            health.on_unanswered(start);
        }
        let lossy = health.distance(start).expect("known");
        assert!(lossy > 30 * MS && lossy < 60 * MS, "{lossy:?}");
        assert_eq!((health.srtt(), health.patience(20 * MS, 400 * MS)), (Some(MS), patience));
        assert!(health.distance(start + LOSS_HALVES).is_some_and(|less| less < lossy));
        assert!(health.distance(start + 10 * LOSS_HALVES).is_some_and(|less| less < 2 * MS));
        for _ in 0..40 {
            health.on_response(Some(MS), true, start);
        }
        assert!(health.distance(start).is_some_and(|less| less < 2 * MS));
    }

    #[test]
    fn who_comes_back_from_an_outage_is_as_near_as_before() {
        let (mut health, start) = (Health::default(), start());
        health.on_response(Some(MS), true, start);
        for n in 0..40 {
            health.on_unanswered(start + 250 * MS * n);
        }
        let end = start + 10_000 * MS;
        assert!(health.standing() == Standing::Down && health.distance(end) > Some(30 * MS));
        assert_eq!(health.on_response(Some(MS), true, end), Some(Change::CameBack));
        assert_eq!(health.distance(end), Some(MS));
    }

    #[test]
    fn the_length_of_an_outage_is_no_distance() {
        let (mut health, start) = (Health::default(), start());
        health.on_response(Some(MS), true, start);
        for n in 0..4 {
            health.on_unanswered(start + 500 * MS * n);
        }
        assert_eq!(health.standing(), Standing::Suspect, "asked too seldom to be down");
        let end = start + 6000 * MS;
        for age in [2000, 1500, 500] {
            health.on_response(Some(age * MS), true, end);
            assert_eq!(health.distance(end), Some(MS), "it answers what was asked {age} ms ago");
        }
        health.on_response(Some(9 * MS), true, end + 9 * MS);
        assert_eq!(health.srtt(), Some(2 * MS), "what is asked afterwards counts");
    }

    #[test]
    fn whoever_answers_after_seconds_again_and_again_is_far() {
        let (mut health, mut now) = (Health::default(), start());
        health.on_response(Some(MS), true, now);
        for _ in 0..3 {
            now += 400 * MS;
            health.on_unanswered(now);
            health.on_unanswered(now);
            now += 1600 * MS;
            health.on_response(Some(2000 * MS), true, now);
        }
        assert!(health.srtt().is_some_and(|srtt| srtt > 400 * MS), "{:?}", health.srtt());
    }

    #[test]
    fn who_is_nearer_than_an_old_measure_said_is_believed_at_once() {
        let (mut health, start) = (Health::default(), start());
        health.on_response(Some(300 * MS), true, start);
        health.on_response(Some(20 * MS), true, start + MS);
        assert_eq!(health.srtt(), Some(265 * MS), "the measure is fresh");
        health.on_response(Some(20 * MS), true, start + MEASURE_AGE + MS);
        assert_eq!(health.srtt(), Some(20 * MS));
        let patience = health.patience(20 * MS, 400 * MS);
        assert_eq!(patience, 400 * MS, "its time may vary as before");
    }

    #[test]
    fn an_upstream_may_be_restarting_for_a_second_after_it_first_refused() {
        let (mut health, start) = (Health::default(), start());
        assert!(!health.is_restarting(start));
        health.on_unreachable(start);
        health.on_unreachable(start + RESTART / 2);
        assert!(health.is_restarting(start + RESTART / 2));
        assert!(!health.is_restarting(start + RESTART));
        health.on_response(None, false, start + RESTART);
        health.on_unreachable(start + 2 * RESTART);
        assert!(health.is_restarting(start + 2 * RESTART), "it was back meanwhile");
    }

    #[test]
    fn probes_are_spaced_and_only_for_those_that_are_not_well() {
        let (mut health, start) = (Health::default(), start());
        assert!(!health.is_probe_due(start));
        health.on_unreachable(start);
        assert!(health.is_probe_due(start));
        assert!(!health.is_probe_due(start + PROBE_EVERY / 2));
        assert!(health.is_probe_due(start + PROBE_EVERY));
    }
}
