//! Whom to ask first, and how often to ask again. Pure; `now` and the dice are passed in.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::health::Standing;

/// One choice in this many ignores the distances, so that those never chosen are measured again.
const EXPLORE_ONE_IN: u32 = 32;

/// What the order depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub standing: Standing,
    /// `None` counts as nearest, so that a new upstream is measured soon.
    pub srtt: Option<Duration>,
    pub in_flight: usize,
}

impl View {
    /// What is compared: first the standing, then the time until an answer under the present load.
    fn cost(&self) -> (Standing, Duration) {
        let load = u32::try_from(self.in_flight).unwrap_or(u32::MAX).saturating_add(1);
        (self.standing, self.srtt.unwrap_or_default().saturating_mul(load))
    }
}

/// The order in which to ask, as indices of `views`: the better of two drawn at random, then the
/// others by cost.
pub fn order(views: &[View], rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..views.len()).collect();
    order.sort_by_key(|&index| views[index].cost());
    let best = order.first().map(|&index| views[index].standing);
    let equals = order.iter().take_while(|&&index| Some(views[index].standing) == best).count();
    if equals > 1 {
        // Sorted, so that the lesser position is the better of two.
        let one = rng.random_range(0..equals);
        let two = (one + rng.random_range(1..equals)) % equals;
        let first = if rng.random_ratio(1, EXPLORE_ONE_IN) { one } else { one.min(two) };
        order[..=first].rotate_right(1);
    }
    order
}

/// The seconds over which sends are weighed against exchanges.
const WINDOW_SECS: usize = 10;

/// Sends per exchange, at most, over the window.
const SENDS_PER_EXCHANGE: u32 = 3;

/// Sends in a second that are always allowed, so that a lone query may be tried often.
const SENDS_FLOOR: u32 = 20;

/// Counts exchanges and sends of the last ten seconds, so that retransmissions never flood.
#[derive(Clone, Debug)]
pub struct Budget {
    start: Instant,
    /// The second of the newest slot, since `start`.
    second: u64,
    /// Exchanges and sends, by second modulo the window.
    slots: [(u32, u32); WINDOW_SECS],
}

impl Budget {
    /// Nothing sent yet.
    pub fn new(now: Instant) -> Self {
        Self { start: now, second: 0, slots: [(0, 0); WINDOW_SECS] }
    }

    /// Counts an exchange and its first send, which is always allowed.
    pub fn begin(&mut self, now: Instant) {
        let slot = self.slot(now);
        slot.0 += 1;
        slot.1 += 1;
    }

    /// Takes one further send; false when it is not allowed now.
    pub fn take(&mut self, now: Instant) -> bool {
        let this_second = self.slot(now).1;
        let (exchanges, sends) =
            self.slots.iter().fold((0u32, 0u32), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1));
        let allowed =
            this_second < SENDS_FLOOR || sends < exchanges.saturating_mul(SENDS_PER_EXCHANGE);
        if allowed {
            self.slot(now).1 += 1;
        }
        allowed
    }

    /// The slot of `now`, after those in between were emptied.
    fn slot(&mut self, now: Instant) -> &mut (u32, u32) {
        let second = now.saturating_duration_since(self.start).as_secs();
        let passed = second.saturating_sub(self.second).min(WINDOW_SECS as u64);
        for step in 1..=passed {
            self.slots[((self.second + step) % WINDOW_SECS as u64) as usize] = (0, 0);
        }
        if passed == WINDOW_SECS as u64 {
            self.slots = [(0, 0); WINDOW_SECS];
        }
        self.second = self.second.max(second);
        &mut self.slots[(self.second % WINDOW_SECS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn view(standing: Standing, srtt_ms: u32, in_flight: usize) -> View {
        View { standing, srtt: Some(srtt_ms * MS), in_flight }
    }

    /// How often each index came first in 10,000 orders.
    fn firsts(views: &[View]) -> Vec<usize> {
        let mut counts = vec![0; views.len()];
        for _ in 0..10_000 {
            let order = order(views, &mut rand::rng());
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..views.len()).collect::<Vec<_>>(), "each once");
            counts[order[0]] += 1;
        }
        counts
    }

    #[test]
    fn those_that_are_well_come_first_and_the_down_last() {
        let views = [
            view(Standing::Down, 1, 0),
            view(Standing::Suspect, 2, 0),
            view(Standing::Well, 300, 0),
        ];
        for _ in 0..100 {
            assert_eq!(order(&views, &mut rand::rng()), [2, 1, 0]);
        }
    }

    #[test]
    fn the_nearer_of_two_is_asked_first_and_the_other_now_and_then() {
        let counts = firsts(&[view(Standing::Well, 50, 0), view(Standing::Well, 5, 0)]);
        // Exploring draws the farther one half of the time: 10,000 / 64 = 156 expected.
        assert!((80..250).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn load_counts_as_distance() {
        let counts = firsts(&[view(Standing::Well, 5, 100), view(Standing::Well, 50, 0)]);
        assert!(counts[1] > 9_000, "{counts:?}");
    }

    #[test]
    fn the_farthest_of_three_is_hardly_ever_first() {
        let views = [10, 20, 30].map(|ms| view(Standing::Well, ms, 0));
        let counts = firsts(&views);
        assert!(counts[0] > 6_000 && counts[1] > 2_500 && counts[2] < 300, "{counts:?}");
    }

    #[test]
    fn sends_stay_below_three_per_exchange_but_for_the_floor() {
        let start = crate::clock::now();
        let mut budget = Budget::new(start);
        for _ in 0..100 {
            budget.begin(start);
        }
        let taken = (0..1000).filter(|_| budget.take(start)).count();
        assert_eq!(taken, 200, "300 sends for 100 exchanges");
        let mut lone = Budget::new(start);
        lone.begin(start);
        let mut taken = 0;
        for second in 1..=5 {
            let now = start + Duration::from_secs(second);
            taken += (0..100).filter(|_| lone.take(now)).count();
        }
        assert_eq!(taken, 100, "20 in each second");
    }

    #[test]
    fn what_happened_ten_seconds_ago_is_forgotten() {
        let start = crate::clock::now();
        let mut budget = Budget::new(start);
        for _ in 0..100 {
            budget.begin(start);
        }
        let later = start + Duration::from_secs(9);
        assert_eq!((0..1000).filter(|_| budget.take(later)).count(), 200);
        let later = start + Duration::from_secs(60);
        assert_eq!((0..1000).filter(|_| budget.take(later)).count(), 20);
    }
}
