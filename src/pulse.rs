//! Who goes round: every loop that must not stop beats here, and liveness asks who has not.
//!
//! `/livez` and (later) the dead-man switch of the intercept read it; neither knows the loops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
pub struct Pulses(Mutex<Vec<std::sync::Weak<Pulse>>>);

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
        all.iter().filter_map(std::sync::Weak::upgrade).collect()
    }
}

/// One observer's memory of when each loop was last seen to move.
#[derive(Debug, Default)]
pub struct Watcher {
    seen: Vec<(Arc<Pulse>, u64, Instant)>,
}

impl Watcher {
    /// Looks at all loops; gives back the names of those that have not moved for `patience`.
    ///
    /// A loop counts as moving when it is first seen. Call it more often than `patience`.
    pub fn stuck(&mut self, pulses: &Pulses, patience: Duration, now: Instant) -> Vec<String> {
        let living = pulses.living();
        self.seen.retain(|(pulse, _, _)| living.iter().any(|other| Arc::ptr_eq(other, pulse)));
        for pulse in living {
            let beats = pulse.beats.load(Ordering::Relaxed);
            match self.seen.iter_mut().find(|(other, _, _)| Arc::ptr_eq(other, &pulse)) {
                Some((_, last, when)) if *last != beats => (*last, *when) = (beats, now),
                Some(_) => {}
                None => self.seen.push((pulse, beats, now)),
            }
        }
        self.seen
            .iter()
            .filter(|(_, _, when)| now.duration_since(*when) >= patience)
            .map(|(pulse, _, _)| pulse.name.clone())
            .collect()
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
        drop(watcher.seen.pop());
        drop(stopped);
        moving.beat();
        assert!(watcher.stuck(&pulses, patience, start + 2 * patience).is_empty());
    }
}
