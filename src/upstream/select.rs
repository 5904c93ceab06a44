//! Whom to ask first, and how often to ask again. Pure; `now` and the dice are passed in.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::health::Standing;

/// One choice in this many ignores the distances, so that those never chosen are measured again: not
/// those that were measured a moment ago, since who asks a far one has to wait for it.
const EXPLORE_ONE_IN: u32 = 32;

/// Distances are told apart in steps of it: what differs by less, differs by chance, and the queries are shared.
const STEP: Duration = Duration::from_millis(1);

/// What the order depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub standing: Standing,
    /// How long an answer is likely to take; `None`, before the first, counts as near, so that a new
    /// upstream is measured soon.
    pub distance: Option<Duration>,
    /// That was not measured for long.
    pub is_measure_old: bool,
    pub in_flight: usize,
}

impl View {
    /// What is compared: first the standing, then the steps until an answer under the present load.
    fn cost(&self) -> (Standing, u128) {
        let steps = self.distance.unwrap_or_default().as_micros() / STEP.as_micros() + 1;
        (self.standing, steps.saturating_mul(self.in_flight as u128 + 1))
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
        let explores = rng.random_ratio(1, EXPLORE_ONE_IN) && views[order[one]].is_measure_old;
        let are_equal = views[order[one]].cost() == views[order[two]].cost();
        let first = if explores || are_equal { one } else { one.min(two) };
        order[..=first].rotate_right(1);
    }
    order
}

/// What is told apart within the window.
const SLOT: Duration = Duration::from_millis(100);

/// Slots of the ten seconds over which exchanges count.
const WINDOW: usize = 100;

/// Slots over which sends count: one more, so that no ten seconds, wherever they begin, hold more sends than
/// three for each of their exchanges.
const SLOTS: usize = WINDOW + 1;

/// Sends per exchange, at most, over the window.
const SENDS_PER_EXCHANGE: u32 = 3;

/// The same towards an upstream that is down: the rest is kept for when it is back, so that each exchange that
/// waits for it then has a send.
const SENDS_WHILE_DOWN: u32 = 2;

/// Sends in a second that are always allowed, so that a lone query may be tried often.
const SENDS_FLOOR: u32 = 20;

/// Slots of that second: one more, as above.
const LATELY: u64 = 11;

/// Probes of a second that count among them, at most: where many upstreams are down most of it is left to exchanges.
const PROBES_LATELY: u32 = 5;

/// Counts exchanges and sends of the last ten seconds, so that retransmissions never flood.
#[derive(Clone, Debug)]
pub struct Budget {
    start: Instant,
    /// The number of the newest slot, since `start`.
    newest: u64,
    /// By their number modulo how many there are.
    slots: [Slot; SLOTS],
}

/// What happened in a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    exchanges: u32,
    /// Of exchanges.
    sends: u32,
    /// Sent in the background to upstreams that are not well.
    probes: u32,
}

impl Budget {
    /// Nothing sent yet.
    pub fn new(now: Instant) -> Self {
        Self { start: now, newest: 0, slots: [Slot::default(); SLOTS] }
    }

    /// Counts an exchange and its first send, which is always allowed.
    pub fn begin(&mut self, now: Instant) {
        let slot = self.slot(now);
        slot.exchanges += 1;
        slot.sends += 1;
    }

    /// Takes one further send, to an upstream of this standing; false when it is not allowed now.
    pub fn take(&mut self, to: Standing, now: Instant) -> bool {
        self.slot(now);
        let per_exchange = match to {
            Standing::Down => SENDS_WHILE_DOWN,
            Standing::Well | Standing::Suspect => SENDS_PER_EXCHANGE,
        };
        let allowed = self.lately() < SENDS_FLOOR
            || self.sends() < self.exchanges().saturating_mul(per_exchange);
        if allowed {
            self.spend(now);
        }
        allowed
    }

    /// Counts one further send that is made whatever the budget says.
    pub fn spend(&mut self, now: Instant) {
        self.slot(now).sends += 1;
    }

    /// Counts a probe: exchanges have the less, but for most of what is always allowed.
    pub fn probe(&mut self, now: Instant) {
        self.slot(now).probes += 1;
    }

    /// Sends of the second that ends with the newest slot, as far as they count for what is always allowed.
    fn lately(&self) -> u32 {
        let slots = (0..LATELY).filter_map(|back| self.newest.checked_sub(back));
        let (sends, probes) =
            slots.map(|slot| &self.slots[place(slot)]).fold((0, 0), |sum, slot| {
                (slot.sends.saturating_add(sum.0), slot.probes.saturating_add(sum.1))
            });
        sends.saturating_add(u32::min(probes, PROBES_LATELY))
    }

    /// Sends of all slots, probes among them.
    fn sends(&self) -> u32 {
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.sends + slot.probes))
    }

    /// Exchanges of all slots but the oldest.
    fn exchanges(&self) -> u32 {
        let all: u32 = self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.exchanges));
        // The place of the next is that of the oldest.
        all.saturating_sub(self.slots[place(self.newest + 1)].exchanges)
    }

    /// The slot of `now`, after those in between were emptied.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let since = now.saturating_duration_since(self.start).as_millis() / SLOT.as_millis();
        let now = u64::try_from(since).unwrap_or(u64::MAX);
        let passed = now.saturating_sub(self.newest).min(SLOTS as u64);
        for step in 1..=passed {
            self.slots[place(self.newest + step)] = Slot::default();
        }
        self.newest = self.newest.max(now);
        &mut self.slots[place(self.newest)]
    }
}

/// Where a slot is kept.
fn place(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn view(standing: Standing, srtt_ms: u32, in_flight: usize) -> View {
        View { standing, distance: Some(srtt_ms * MS), is_measure_old: true, in_flight }
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
    fn one_that_was_measured_a_moment_ago_is_not_explored() {
        let far = View { is_measure_old: false, ..view(Standing::Well, 300, 0) };
        assert_eq!(firsts(&[far, view(Standing::Well, 1, 0)]), [0, 10_000]);
    }

    #[test]
    fn a_new_one_is_asked_first_until_it_has_a_few_queries() {
        let new = |in_flight| View { distance: None, ..view(Standing::Well, 0, in_flight) };
        let known = view(Standing::Well, 1, 0);
        assert!(firsts(&[known, new(0)])[1] > 9_500);
        assert!(firsts(&[known, new(20)])[0] > 9_500);
    }

    #[test]
    fn those_that_are_about_as_near_share_the_queries() {
        let at = |micros| View {
            distance: Some(Duration::from_micros(micros)),
            is_measure_old: false,
            ..view(Standing::Well, 0, 0)
        };
        let counts = firsts(&[at(150), at(900)]);
        assert!(counts.iter().all(|count| *count > 4_500), "{counts:?}");
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
        let mut take = |to| (0..1000).filter(|_| budget.take(to, start)).count();
        assert_eq!(take(Standing::Down), 100, "200 sends for 100 exchanges");
        assert_eq!(take(Standing::Suspect), 100, "300 sends for 100 exchanges");
        let mut lone = Budget::new(start);
        lone.begin(start);
        let mut taken = 0;
        for second in 1..=5 {
            let now = start + 1100 * MS * second;
            taken += (0..100).filter(|_| lone.take(Standing::Down, now)).count();
        }
        assert_eq!(taken, 100, "20 in each second");
    }

    #[test]
    fn no_ten_seconds_hold_more_than_three_sends_per_exchange() {
        let (start, step) = (crate::clock::now(), 25 * MS);
        let mut budget = Budget::new(start);
        // By step: exchanges and sends. Quiet seconds save up, and the outages take all that they can get.
        let mut steps = Vec::new();
        for at in 0..2400u32 {
            let now = start + step * at;
            for _ in 0..25 {
                budget.begin(now);
            }
            let is_outage = !(400..900).contains(&at);
            let more = (0..if is_outage { 10_000 } else { 0 })
                .take_while(|_| budget.take(Standing::Well, now));
            steps.push((25, 25 + more.count()));
        }
        let in_ten_seconds = 400;
        for some in steps.windows(in_ten_seconds) {
            let (exchanges, sends) = some.iter().fold((0, 0), |sum, (e, s)| (sum.0 + e, sum.1 + s));
            assert!(sends <= 3 * exchanges, "{sends} sends for {exchanges} exchanges");
        }
        let all: usize = steps.iter().map(|(_, sends)| sends).sum();
        assert!(all > 2400 * 25 * 2, "most of it is used: {all}");
    }

    #[test]
    fn probes_count_among_the_sends_and_take_little_of_what_is_always_allowed() {
        let start = crate::clock::now();
        let mut budget = Budget::new(start);
        for _ in 0..100 {
            budget.begin(start);
            budget.probe(start);
        }
        assert_eq!((0..1000).filter(|_| budget.take(Standing::Well, start)).count(), 100);
        let mut lone = Budget::new(start);
        (0..1000).for_each(|_| lone.probe(start));
        assert_eq!((0..1000).filter(|_| lone.take(Standing::Well, start)).count(), 15);
    }

    #[test]
    fn no_second_has_more_than_twenty_sends_where_exchanges_are_few() {
        let start = crate::clock::now();
        let mut budget = Budget::new(start);
        let mut sends = Vec::new();
        for at in 0..1000u32 {
            let now = start + 10 * MS * at;
            let is_new = at % 100 == 0;
            if is_new {
                budget.begin(now);
            }
            let is_again = budget.take(Standing::Down, now);
            sends.push(u32::from(is_new) + u32::from(is_again));
        }
        for some in sends.windows(100) {
            // The first send of an exchange is always allowed.
            assert!(some.iter().sum::<u32>() <= 21, "{some:?}");
        }
        let all: u32 = sends.iter().sum();
        assert!((150..=200).contains(&all), "{all} in ten seconds");
    }

    #[test]
    fn what_happened_ten_seconds_ago_is_forgotten() {
        let start = crate::clock::now();
        let mut budget = Budget::new(start);
        for _ in 0..100 {
            budget.begin(start);
        }
        let later = start + Duration::from_millis(9900);
        assert_eq!((0..1000).filter(|_| budget.take(Standing::Well, later)).count(), 200);
        let later = start + Duration::from_secs(60);
        assert_eq!((0..1000).filter(|_| budget.take(Standing::Well, later)).count(), 20);
    }
}
