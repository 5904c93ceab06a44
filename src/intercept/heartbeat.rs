//! The heartbeat: keeps the dead-man switch on while every loop of the process goes round.
//!
//! One plain thread, so that nothing else can delay it. [`Rhythm`] decides, `now` passed in; the
//! thread only waits and sends. A beat goes through the packet path, not through netlink: it waits
//! for no lock, and its EPERM proves that the rule ran.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::socket::{Beat, Drum};
use super::table::ALIVE_FOR;
use crate::clock;
use crate::metrics::InterceptMetrics;
use crate::pulse::{Pulses, Rounds};

/// How often the thread looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// How soon it looks again where a round was not complete: who is only slow gets the beat at once.
const AGAIN: Duration = Duration::from_millis(50);

/// How long after a beat the switch may be off already: the kernel counts in ticks of up to 10 ms, and from the
/// tick before.
const OFF_AFTER: Duration = ALIVE_FOR.saturating_sub(Duration::from_millis(20));

/// How long all must have gone well before we claim again after a lapse.
const HEALTH: Duration = Duration::from_secs(2);

/// What a turn of the thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Beat,
    /// The first beat after a lapse.
    Return,
    /// The switch has gone off by itself; said once per lapse.
    Lapse,
    Wait,
}

/// Decides when to beat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rhythm {
    last_beat: Option<Instant>,
    /// Since when all goes well again; only during a lapse.
    healthy: Option<(Instant, Instant)>,
    is_lapsed: bool,
}

impl Rhythm {
    /// One turn: `is_round` tells whether every loop has moved since the last round.
    pub fn turn(&mut self, is_round: bool, now: Instant) -> Turn {
        let since = |then: Instant| now.saturating_duration_since(then);
        if !self.is_lapsed && self.last_beat.is_some_and(|beat| since(beat) >= OFF_AFTER) {
            (self.is_lapsed, self.healthy) = (true, None);
            return Turn::Lapse;
        }
        if !is_round {
            return Turn::Wait;
        }
        if self.is_lapsed {
            let begun = match self.healthy {
                Some((begun, last)) if since(last) < ALIVE_FOR => begun,
                _ => now,
            };
            self.healthy = Some((begun, now));
            if since(begun) < HEALTH {
                return Turn::Wait;
            }
        }
        self.last_beat = Some(now);
        if std::mem::take(&mut self.is_lapsed) { Turn::Return } else { Turn::Beat }
    }
}

/// The running thread; dropping it ends the beats, and with them the claim.
#[derive(Debug)]
pub struct Heartbeat {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts the thread; it beats at once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(drum: Drum, pulses: Arc<Pulses>, metrics: InterceptMetrics) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let beater = Beater {
            drum,
            pulses,
            metrics,
            stop: Arc::clone(&stop),
            rounds: Rounds::default(),
            rhythm: Rhythm::default(),
        };
        let run = move || beater.run();
        let thread = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Beats no more: the switch goes off by itself.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has ended the beats too.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Beater {
    drum: Drum,
    pulses: Arc<Pulses>,
    metrics: InterceptMetrics,
    stop: Arc<AtomicBool>,
    rounds: Rounds,
    rhythm: Rhythm,
}

impl Beater {
    /// Goes round until told to stop.
    fn run(mut self) {
        let mut next = clock::now();
        while !self.stop.load(Ordering::Relaxed) {
            let waiting = self.rounds.waiting();
            let is_round = self.rounds.complete(&self.pulses);
            match self.rhythm.turn(is_round, clock::now()) {
                Turn::Beat => self.beat(),
                Turn::Return => {
                    self.beat();
                    tracing::info!("queries are taken again");
                }
                Turn::Lapse => {
                    self.metrics.lapses.inc();
                    self.metrics.claiming.set(0);
                    tracing::warn!(?waiting, "fallen open: queries take the ordinary path");
                }
                Turn::Wait => {}
            }
            let pause = if is_round { INTERVAL } else { AGAIN };
            next = (next + pause).max(clock::now());
            std::thread::park_timeout(next.saturating_duration_since(clock::now()));
        }
        self.metrics.claiming.set(0);
    }

    /// Sends one beat and notes what became of it.
    fn beat(&self) {
        let is_heard = match self.drum.beat() {
            Ok(beat) => beat == Beat::Proven,
            Err(error) => {
                tracing::debug!(%error, "beat not sent");
                return;
            }
        };
        self.metrics.claiming.set(i64::from(is_heard));
        if is_heard {
            self.metrics.beats.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns every 250 ms from `start` on, with a round where the text has `x`; what they did.
    fn turns(rhythm: &mut Rhythm, start: Instant, rounds: &str) -> String {
        let steps = (0..).zip(rounds.chars());
        steps
            .map(|(n, round)| match rhythm.turn(round == 'x', start + n * INTERVAL) {
                Turn::Beat => 'b',
                Turn::Return => 'R',
                Turn::Lapse => 'L',
                Turn::Wait => '.',
            })
            .collect()
    }

    #[test]
    fn it_beats_only_when_all_go_round_and_claims_again_after_two_seconds_of_health() {
        for (rounds, did) in [
            ("xxxxx", "bbbbb"),
            ("x.x.x", "b.b.b"),
            ("x....", "b..L."),
            ("....x", "....b"),
            ("x...xxxxxxxxxx", "b..L........Rb"),
            ("x...xxx...xxxxxxxxx", "b..L..............R"),
            ("x...x.x.x.x.x.x.x", "b..L........R.b.b"),
        ] {
            let mut rhythm = Rhythm::default();
            assert_eq!(turns(&mut rhythm, clock::now(), rounds), did, "{rounds}");
        }
    }

    #[test]
    fn a_process_that_was_stopped_finds_its_lapse_when_it_goes_on() {
        let mut rhythm = Rhythm::default();
        let start = clock::now();
        assert_eq!(rhythm.turn(true, start), Turn::Beat);
        let later = start + Duration::from_secs(60);
        assert_eq!(rhythm.turn(true, later), Turn::Lapse);
        assert_eq!(turns(&mut rhythm, later + INTERVAL, "xxxxxxxxx"), "........R");
        // As soon as the kernel may have opened, and not before.
        let mut early = Rhythm::default();
        early.turn(true, start);
        assert_eq!(early.turn(true, start + Duration::from_millis(679)), Turn::Beat);
        let opened = start + Duration::from_millis(679 + 695);
        assert_eq!(early.turn(true, opened), Turn::Lapse);
    }
}
