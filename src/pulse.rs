//! Who goes round: every loop that must not stop beats here, and liveness asks who has not.
//!
//! `/livez` and (later) the dead-man switch of the intercept read it; neither knows the loops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// One loop's beat counter.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    beats: AtomicU64,
}

impl Pulse {
    /// Says that the loop has gone round once more.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// All loops of the process. A loop that ends drops its pulse and is no longer asked for.
#[derive(Debug, Default)]
pub struct Pulses(Mutex<Vec<Weak<Pulse>>>);

impl Pulses {
    /// A new loop, `name` for people: `serve-0`, `resolver`, `tcp-accept`.
    pub fn register(&self, name: impl Into<String>) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse { name: name.into(), beats: AtomicU64::new(0) });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::downgrade(&pulse));
        pulse
    }

    /// The living loops.
    fn living(&self) -> Vec<Arc<Pulse>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|pulse| pulse.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

/// One observer's memory of when each loop was last seen to move.
///
/// Weak, as all observers are: who only looks must not keep a loop among the living.
#[derive(Debug, Default)]
pub struct Watcher {
    seen: Vec<(Weak<Pulse>, u64, Instant)>,
}

impl Watcher {
    /// Looks at all loops; gives back the names of those that have not moved for `patience`.
    ///
    /// A loop counts as moving when it is first seen. Call it more often than `patience`.
    pub fn stuck(&mut self, pulses: &Pulses, patience: Duration, now: Instant) -> Vec<String> {
        self.seen.retain(|(pulse, _, _)| pulse.strong_count() > 0);
        for pulse in pulses.living() {
            let beats = pulse.beats.load(Ordering::Relaxed);
            let same = |other: &Weak<Pulse>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(&pulse));
            match self.seen.iter_mut().find(|(other, _, _)| same(other)) {
                Some((_, last, when)) if *last != beats => (*last, *when) = (beats, now),
                Some(_) => {}
                None => self.seen.push((Arc::downgrade(&pulse), beats, now)),
            }
        }
        let stuck = self.seen.iter().filter(|(_, _, when)| now.duration_since(*when) >= patience);
        stuck.filter_map(|(pulse, _, _)| Some(pulse.upgrade()?.name.clone())).collect()
    }
}

/// One observer's count of full rounds: those in which every loop has moved.
#[derive(Debug, Default)]
pub struct Rounds(Vec<(Weak<Pulse>, u64)>);

impl Rounds {
    /// Tells whether every living loop has moved since the last time that this was so.
    ///
    /// A loop is asked for from the second look on; one that ended is no longer asked for.
    pub fn complete(&mut self, pulses: &Pulses) -> bool {
        if self.still().next().is_some() {
            return false;
        }
        let seen =
            |pulse: Arc<Pulse>| (Arc::downgrade(&pulse), pulse.beats.load(Ordering::Relaxed));
        self.0 = pulses.living().into_iter().map(seen).collect();
        true
    }

    /// The names of the loops that the round still waits for.
    pub fn waiting(&self) -> Vec<String> {
        self.still().map(|pulse| pulse.name.clone()).collect()
    }

    /// The living loops that have not moved in this round.
    fn still(&self) -> impl Iterator<Item = Arc<Pulse>> {
        let living = self.0.iter().filter_map(|(pulse, seen)| Some((pulse.upgrade()?, *seen)));
        living
            .filter(|(pulse, seen)| pulse.beats.load(Ordering::Relaxed) == *seen)
            .map(|(pulse, _)| pulse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stops_is_named_and_one_that_ended_is_forgotten() {
        let (pulses, mut watcher) = (Pulses::default(), Watcher::default());
        let (moving, stopped) = (pulses.register("moving"), pulses.register("stopped"));
        let start = crate::clock::now();
        let patience = Duration::from_secs(1);
        assert!(watcher.stuck(&pulses, patience, start).is_empty());
        moving.beat();
        assert_eq!(watcher.stuck(&pulses, patience, start + patience), ["stopped"]);
        drop(stopped);
        moving.beat();
        assert!(watcher.stuck(&pulses, patience, start + 2 * patience).is_empty());
    }

    #[test]
    fn a_round_is_complete_when_every_living_loop_has_moved() {
        let (pulses, mut rounds) = (Pulses::default(), Rounds::default());
        let (one, other) = (pulses.register("one"), pulses.register("other"));
        assert!(rounds.complete(&pulses), "the first look knows none");
        one.beat();
        assert!(!rounds.complete(&pulses));
        assert_eq!(rounds.waiting(), ["other"]);
        other.beat();
        assert!(rounds.complete(&pulses));
        assert!(!rounds.complete(&pulses), "a round counts once");
        one.beat();
        drop(other);
        assert!(rounds.complete(&pulses), "one that ended is not waited for");
    }
}
