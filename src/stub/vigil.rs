//! How long before something is due a thread stays awake: it spins, for the kernel wakes no sleeper on time.
//!
//! Where others want its core it does not: who spins has used its share up when it should send, who sleeps
//! comes first.

use std::time::{Duration, Instant};

/// The last of a wait, spent awake.
const SPIN: Duration = Duration::from_micros(60);
/// How often it is looked who else wants the core.
const LOOK: Duration = Duration::from_millis(50);
/// So many preemptions between two looks are the kernel's own doings.
const FEW: u64 = 2;
/// How long a thread whose core is wanted sleeps instead of spinning.
const REST: Duration = Duration::from_secs(1);

/// One thread's watch.
pub(super) struct Vigil {
    looked: Instant,
    /// How often the thread had been preempted by then.
    preempted: u64,
    rests_until: Instant,
}

impl Vigil {
    /// Begins at `now`, with so many preemptions behind it.
    pub(super) fn new(now: Instant, preempted: u64) -> Self {
        Self { looked: now, preempted, rests_until: now }
    }

    /// How long before something is due the thread shall be awake; `preempted` counts how often it has had
    /// to leave its core.
    pub(super) fn length(&mut self, now: Instant, preempted: impl FnOnce() -> u64) -> Duration {
        if now.saturating_duration_since(self.looked) >= LOOK {
            let before = std::mem::replace(&mut self.preempted, preempted());
            if self.preempted.saturating_sub(before) > FEW {
                self.rests_until = now + REST;
            }
            self.looked = now;
        }
        if now < self.rests_until { Duration::ZERO } else { SPIN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_thread_spins_unless_it_is_preempted_often_and_then_rests_for_a_second() {
        let start = clock::now();
        let mut vigil = Vigil::new(start, 10);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(vigil.length(at(20), || 99), SPIN, "it has not looked yet");
        assert_eq!(vigil.length(at(50), || 12), SPIN);
        assert_eq!(vigil.length(at(100), || 15), Duration::ZERO);
        assert_eq!(vigil.length(at(1099), || 15), Duration::ZERO);
        assert_eq!(vigil.length(at(1150), || 17), SPIN);
    }
}
