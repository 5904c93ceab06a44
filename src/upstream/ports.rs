//! Source ports: which one a query may leave from, and for how long a port rests. Pure.
//!
//! The rule that a capture shows is [`PortClass::of_port`]; [`Pools`] is the allocator, `now` passed
//! in. The sockets on the ports are `lease`'s.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::bits::Bits;
use crate::config::PortRange;
use crate::dns::Qtype;

/// How long the port of a single query rests: the kernel's unreplied UDP conntrack timeout.
pub const REST: Duration = Duration::from_secs(30);

/// How long the port of a kept socket rests: the conntrack timeout of a UDP flow seen both ways.
pub const POOLED_REST: Duration = Duration::from_secs(120);

/// The source ports that one qtype family may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortClass {
    A,
    Aaaa,
    /// Every other qtype.
    Other,
}

impl PortClass {
    /// All classes, in the order of their remainders.
    pub const ALL: [Self; 3] = [Self::A, Self::Aaaa, Self::Other];

    /// The class of a source port: port mod 3, where 0 is A, 1 is AAAA and 2 is everything else.
    pub fn of_port(port: u16) -> Self {
        Self::ALL[usize::from(port % 3)]
    }

    /// The class of a query.
    pub fn of_qtype(qtype: Qtype) -> Self {
        match qtype {
            Qtype::A => Self::A,
            Qtype::AAAA => Self::Aaaa,
            _ => Self::Other,
        }
    }
}

impl PortRange {
    /// The ports that may be used: the range without reserved ones and without port 0, ascending.
    pub fn usable(&self) -> impl Iterator<Item = u16> {
        (self.first.max(1)..=self.last).filter(|port| self.reserved.binary_search(port).is_err())
    }
}

/// What a draw gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// A port whose rest was over.
    Rested(u16),
    /// None had rested; this one is of the half that has for longest.
    Unrested(u16),
    /// Every port of the class is in flight.
    Exhausted,
}

/// The ports of one class towards one upstream.
#[derive(Debug, Default)]
struct Pool {
    /// Free and rested, in no order.
    rested: Vec<u16>,
    /// End of the rest in [`Pools::tenths`], then the port.
    resting: BinaryHeap<Reverse<(u32, u16)>>,
    /// Those that have rested longest, in no order: what is drawn from when none has rested. Were it always the
    /// very one that has rested longest, the order of the ports would repeat itself for ever.
    early: Vec<(u32, u16)>,
    /// When `early` was last looked through.
    looked: u32,
}

impl Pool {
    /// Moves what has rested until `now` to the rested ones.
    fn settle(&mut self, now: u32) {
        if std::mem::replace(&mut self.looked, now) != now {
            let rested = &mut self.rested;
            self.early.retain(|(due, port)| {
                *due > now || {
                    rested.push(*port);
                    false
                }
            });
        }
        while let Some(Reverse((due, port))) = self.resting.peek().copied() {
            if due > now {
                return;
            }
            self.resting.pop();
            self.rested.push(port);
        }
    }

    /// Takes a port uniformly at random among the rested ones that `busy` does not name.
    fn take_rested(&mut self, busy: &Bits, rng: &mut impl Rng) -> Option<u16> {
        draw_among(&mut self.rested, |port| !busy.holds(*port), rng)
    }

    /// Takes a port that `busy` does not name, at random among the half that has rested longest.
    fn take_resting(&mut self, busy: &Bits, rng: &mut impl Rng) -> Option<u16> {
        let half = (self.early.len() + self.resting.len()).div_ceil(2);
        // Two at a time: the half is reached soon enough, and no draw pays for all of it.
        for _ in 0..2 {
            if self.early.len() < half {
                self.early.extend(self.resting.pop().map(|Reverse(one)| one));
            }
        }
        let is_free = |one: &(u32, u16)| !busy.holds(one.1);
        if let Some((_, port)) = draw_among(&mut self.early, is_free, rng) {
            return Some(port);
        }
        self.early.extend(self.resting.drain().map(|Reverse(one)| one));
        draw_among(&mut self.early, is_free, rng).map(|(_, port)| port)
    }
}

/// Takes one out of `those` for which `is_free`, uniformly at random among them.
fn draw_among<T>(
    those: &mut Vec<T>,
    is_free: impl Fn(&T) -> bool,
    rng: &mut impl Rng,
) -> Option<T> {
    let mut candidates = those.len();
    while candidates > 0 {
        let index = rng.random_range(0..candidates);
        if is_free(&those[index]) {
            return Some(those.swap_remove(index));
        }
        // In flight towards another upstream: set aside, and draw among the others.
        candidates -= 1;
        those.swap(index, candidates);
    }
    None
}

/// One upstream's place in [`Pools`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolsOf(usize);

/// The allocator: ports in flight of the whole process, and who rests towards which upstream.
///
/// 56 kB per upstream over the usual range while idle, about 300 kB once all its ports have rested.
#[derive(Debug)]
pub struct Pools {
    range: PortRange,
    start: Instant,
    /// In flight, whatever the upstream.
    busy: Bits,
    /// Three pools per upstream; `None` where an upstream was forgotten.
    upstreams: Vec<Option<[Pool; 3]>>,
}

impl Pools {
    /// An allocator over `range` with nothing in flight.
    pub fn new(range: PortRange, now: Instant) -> Self {
        Self { range, start: now, busy: Bits::default(), upstreams: Vec::new() }
    }

    /// Adds an upstream, all of whose ports have rested.
    pub fn add(&mut self) -> PoolsOf {
        let mut pools = <[Pool; 3]>::default();
        let each = self.range.usable().count().div_ceil(3);
        pools.iter_mut().for_each(|pool| pool.rested.reserve_exact(each));
        for port in self.range.usable() {
            pools[PortClass::of_port(port) as usize].rested.push(port);
        }
        let free = self.upstreams.iter().position(Option::is_none);
        let place = free.unwrap_or(self.upstreams.len());
        if free.is_none() {
            self.upstreams.push(None);
        }
        self.upstreams[place] = Some(pools);
        PoolsOf(place)
    }

    /// Forgets an upstream; its leases must have ended.
    pub fn remove(&mut self, upstream: PoolsOf) {
        if let Some(place) = self.upstreams.get_mut(upstream.0) {
            *place = None;
        }
    }

    /// Draws a port and marks it as in flight.
    pub fn draw(
        &mut self,
        upstream: PoolsOf,
        class: PortClass,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Draw {
        let now = self.tenths(now);
        let Some(Some(pools)) = self.upstreams.get_mut(upstream.0) else { return Draw::Exhausted };
        let pool = &mut pools[class as usize];
        pool.settle(now);
        let draw = match pool.take_rested(&self.busy, rng) {
            Some(port) => Draw::Rested(port),
            None => pool.take_resting(&self.busy, rng).map_or(Draw::Exhausted, Draw::Unrested),
        };
        if let Draw::Rested(port) | Draw::Unrested(port) = draw {
            self.busy.set(port, true);
        }
        draw
    }

    /// Ends the flight of a drawn port, which then rests until `now + rest`.
    pub fn release(&mut self, upstream: PoolsOf, port: u16, now: Instant, rest: Duration) {
        // Rounded up: a rest is never shorter than said.
        let due = self.tenths(now + rest) + 1;
        self.busy.set(port, false);
        if let Some(Some(pools)) = self.upstreams.get_mut(upstream.0) {
            pools[PortClass::of_port(port) as usize].resting.push(Reverse((due, port)));
        }
    }

    /// Tenths of a second since the allocator's start, good for 13 years.
    fn tenths(&self, at: Instant) -> u32 {
        let tenths = at.saturating_duration_since(self.start).as_millis() / 100;
        u32::try_from(tenths).unwrap_or(u32::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    //! The law of source ports, on the pure allocator.

    use super::*;
    use crate::clock;
    use crate::dns::Qtype;
    use std::collections::{HashMap, HashSet};

    const SEC: Duration = Duration::from_secs(1);

    fn pools(first: u16, last: u16, reserved: &[u16]) -> (Pools, Instant) {
        let now = clock::now();
        (Pools::new(PortRange { first, last, reserved: reserved.to_vec() }, now), now)
    }

    /// Draws once and gives the port.
    fn port(pools: &mut Pools, towards: PoolsOf, class: PortClass, now: Instant) -> u16 {
        match pools.draw(towards, class, now, &mut rand::rng()) {
            Draw::Rested(port) | Draw::Unrested(port) => port,
            Draw::Exhausted => panic!("no port"),
        }
    }

    /// The sum of (observed - expected)² / expected over cells of equal expectation.
    fn chi_square(cells: &[u32]) -> f64 {
        let expected = f64::from(cells.iter().sum::<u32>()) / cells.len() as f64;
        cells.iter().map(|cell| (f64::from(*cell) - expected).powi(2) / expected).sum()
    }

    /// What chi-square stays below but once in 100,000 runs (Wilson and Hilferty's approximation).
    fn chi_square_limit(cells: usize) -> f64 {
        let freedom = (cells - 1) as f64;
        let z = 4.265; // the upper 1e-5 point of the normal distribution
        let spread = 2.0 / (9.0 * freedom);
        freedom * (1.0 - spread + z * spread.sqrt()).powi(3)
    }

    #[test]
    fn the_class_of_a_port_is_its_remainder_by_three() {
        for (port, class) in [
            (1, PortClass::Aaaa),
            (2, PortClass::Other),
            (3, PortClass::A),
            (32_768, PortClass::Other),
            (60_999, PortClass::A),
            (u16::MAX, PortClass::A),
        ] {
            assert_eq!(PortClass::of_port(port), class, "{port}");
        }
        for (qtype, class) in [
            (Qtype::A, PortClass::A),
            (Qtype::AAAA, PortClass::Aaaa),
            (Qtype::SRV, PortClass::Other),
            (Qtype::ANY, PortClass::Other),
            (Qtype(65_535), PortClass::Other),
        ] {
            assert_eq!(PortClass::of_qtype(qtype), class, "{qtype}");
        }
    }

    #[test]
    fn a_drawn_port_is_of_its_class_in_the_range_and_not_reserved() {
        let reserved = [40_000, 40_001, 40_002, 40_100];
        let (mut pools, now) = pools(40_000, 40_299, &reserved);
        let towards = pools.add();
        for class in PortClass::ALL {
            let mut drawn = HashSet::new();
            while let Draw::Rested(port) = pools.draw(towards, class, now, &mut rand::rng()) {
                assert_eq!(PortClass::of_port(port), class);
                assert!((40_000..=40_299).contains(&port) && !reserved.contains(&port));
                assert!(drawn.insert(port), "in flight twice");
            }
            // 100 of each class, less the reserved ones: 40,000 = 1 mod 3, and 40,100 = 2 mod 3.
            let expected = if class == PortClass::Other { 98 } else { 99 };
            assert_eq!(drawn.len(), expected, "{class:?}");
            assert_eq!(pools.draw(towards, class, now, &mut rand::rng()), Draw::Exhausted);
        }
    }

    #[test]
    fn a_port_carries_one_exchange_at_a_time_whatever_the_upstream() {
        let (mut pools, mut now) = pools(40_000, 40_299, &[]);
        let upstreams: Vec<_> = (0..3).map(|_| pools.add()).collect();
        let mut flying: Vec<(PoolsOf, u16)> = Vec::new();
        let mut rng = rand::rng();
        for _ in 0..20_000 {
            now += Duration::from_millis(5);
            let towards = upstreams[rng.random_range(0..3)];
            let class = PortClass::ALL[rng.random_range(0..3)];
            if flying.len() < 250 && rng.random_bool(0.6) {
                match pools.draw(towards, class, now, &mut rng) {
                    Draw::Rested(port) | Draw::Unrested(port) => {
                        assert!(flying.iter().all(|(_, other)| *other != port), "{port} twice");
                        assert_eq!(PortClass::of_port(port), class);
                        flying.push((towards, port));
                    }
                    Draw::Exhausted => {
                        let busy =
                            flying.iter().filter(|(_, port)| PortClass::of_port(*port) == class);
                        assert_eq!(busy.count(), 100, "exhausted only when all are in flight");
                    }
                }
            } else if !flying.is_empty() {
                let (towards, port) = flying.swap_remove(rng.random_range(0..flying.len()));
                pools.release(towards, port, now, REST);
            }
        }
    }

    #[test]
    fn a_port_rests_before_it_is_drawn_again_towards_the_same_upstream() {
        let (mut pools, start) = pools(40_000, 40_299, &[]);
        let towards = pools.add();
        let mut released: HashMap<u16, Instant> = HashMap::new();
        // 3 draws a second: 100 ports of the class last for 33 s, longer than their rest.
        for step in 0..3_000u32 {
            let now = start + SEC * step / 3;
            let draw = pools.draw(towards, PortClass::A, now, &mut rand::rng());
            let Draw::Rested(port) = draw else { panic!("{draw:?} at step {step}") };
            if let Some(before) = released.insert(port, now) {
                assert!(now - before >= REST, "{port} rested {:?}", now - before);
            }
            pools.release(towards, port, now, REST);
        }
    }

    #[test]
    fn when_none_has_rested_one_is_drawn_of_the_half_that_has_for_longest() {
        let (mut pools, start) = pools(40_000, 40_299, &[]);
        let (towards, mut now) = (pools.add(), start);
        let mut order: Vec<u16> = Vec::new();
        let mut rests = Vec::new();
        for step in 0..20_000 {
            now += Duration::from_millis(5);
            let draw = pools.draw(towards, PortClass::Aaaa, now, &mut rand::rng());
            let (Draw::Rested(drawn) | Draw::Unrested(drawn)) = draw else { panic!("{draw:?}") };
            assert_eq!(draw, if step < 100 { Draw::Rested(drawn) } else { Draw::Unrested(drawn) });
            rests.extend(order.iter().rev().position(|port| *port == drawn).filter(|_| step > 300));
            pools.release(towards, drawn, now, REST);
            order.push(drawn);
        }
        // Draws since the port was drawn before: 100 each time where the order repeats itself. Half of them at least,
        // less the 20 of a tenth of a second, within which rests are told apart by the port.
        assert!(rests.iter().all(|between| *between >= 29), "{:?} at least", rests.iter().min());
        let usual = rests.iter().filter(|between| (95..105).contains(*between)).count();
        assert!(usual < rests.len() / 5, "{usual} of {} in their old place", rests.len());
        // Once all have rested, they count as rested.
        let draw = pools.draw(towards, PortClass::Aaaa, now + 31 * SEC, &mut rand::rng());
        assert!(matches!(draw, Draw::Rested(_)), "{draw:?}");
    }

    #[test]
    fn beyond_what_rests_the_next_port_cannot_be_told_either() {
        let (mut pools, start) = pools(32_768, 60_999, &[]);
        let towards = pools.add();
        let mut before: HashMap<u16, u32> = HashMap::new();
        // Draws between two of one port, in cells of a thousand: the first lap is left out.
        let mut cells = [0u32; 64];
        for step in 0..100_000u32 {
            let drawn = port(&mut pools, towards, PortClass::A, start + SEC * step / 5000);
            if let Some(last) = before.insert(drawn, step).filter(|last| *last > 20_000) {
                cells[((step - last) as usize / 1000).min(63)] += 1;
            }
            pools.release(towards, drawn, start + SEC * step / 5000, REST);
        }
        let (most, all) = (*cells.iter().max().expect("cells"), cells.iter().sum::<u32>());
        assert!(cells[..4].iter().sum::<u32>() == 0, "rests that were cut short: {cells:?}");
        assert!(most * 4 < all, "the gaps are much alike: {cells:?}");
    }

    #[test]
    fn pooled_ports_rest_longer() {
        let (mut pools, now) = pools(3, 3, &[]);
        let towards = pools.add();
        let drawn = port(&mut pools, towards, PortClass::A, now);
        pools.release(towards, drawn, now, POOLED_REST);
        let early = pools.draw(towards, PortClass::A, now + 119 * SEC, &mut rand::rng());
        assert_eq!(early, Draw::Unrested(3));
        pools.release(towards, 3, now, POOLED_REST);
        let late = pools.draw(towards, PortClass::A, now + 121 * SEC, &mut rand::rng());
        assert_eq!(late, Draw::Rested(3));
    }

    #[test]
    fn another_upstream_may_use_a_port_that_rests_but_none_in_flight() {
        let (mut pools, now) = pools(3, 3, &[]);
        let (one, other) = (pools.add(), pools.add());
        assert_eq!(pools.draw(one, PortClass::A, now, &mut rand::rng()), Draw::Rested(3));
        assert_eq!(pools.draw(other, PortClass::A, now, &mut rand::rng()), Draw::Exhausted);
        pools.release(one, 3, now, REST);
        assert_eq!(pools.draw(other, PortClass::A, now, &mut rand::rng()), Draw::Rested(3));
    }

    #[test]
    fn an_upstream_that_was_forgotten_leaves_its_place_to_the_next() {
        let (mut pools, now) = pools(3, 5, &[]);
        let one = pools.add();
        pools.remove(one);
        assert_eq!(pools.draw(one, PortClass::A, now, &mut rand::rng()), Draw::Exhausted);
        assert_eq!(pools.add(), one);
        assert_eq!(pools.draw(one, PortClass::A, now, &mut rand::rng()), Draw::Rested(3));
    }

    #[test]
    fn draws_are_uniform() {
        let (mut pools, start) = pools(32_768, 60_999, &[]);
        let towards = pools.add();
        let mut cells = vec![0u32; 64];
        for step in 0..100_000u32 {
            let now = start + SEC * step / 100; // 30 % of the class rest at any time
            let drawn = port(&mut pools, towards, PortClass::A, now);
            cells[usize::from(drawn - 32_768) * 64 / 28_232] += 1;
            pools.release(towards, drawn, now, REST);
        }
        let (statistic, limit) = (chi_square(&cells), chi_square_limit(cells.len()));
        assert!(statistic < limit, "chi-square {statistic:.1}, limit {limit:.1}: {cells:?}");
    }

    #[test]
    fn the_next_port_cannot_be_told_from_the_last_one() {
        let (mut pools, start) = pools(32_768, 60_999, &[]);
        let towards = pools.add();
        // Cells of (this draw, next draw): a generator with a pattern fills some and empties others.
        let mut cells = vec![0u32; 16 * 16];
        let mut last = None;
        for step in 0..100_000u32 {
            let now = start + SEC * step / 100;
            let drawn = port(&mut pools, towards, PortClass::Other, now);
            let cell = usize::from(drawn - 32_768) * 16 / 28_232;
            if let Some(last) = last.replace(cell) {
                cells[last * 16 + cell] += 1;
            }
            pools.release(towards, drawn, now, REST);
        }
        let (statistic, limit) = (chi_square(&cells), chi_square_limit(cells.len()));
        assert!(statistic < limit, "chi-square {statistic:.1}, limit {limit:.1}");
    }

    #[test]
    fn the_chi_square_test_sees_a_bias_and_a_pattern() {
        let biased: Vec<u32> = (0..64).map(|cell| if cell < 32 { 1650 } else { 1475 }).collect();
        assert!(chi_square(&biased) > chi_square_limit(64));
        assert!((chi_square_limit(64) - 121.6).abs() < 2.0, "{}", chi_square_limit(64));
    }
}
