//! What a stub resolver does while responses stay away: glibc's way and musl's, without clock or socket.
//!
//! glibc asks both at once; when only one response comes in time it asks again one after the other, and
//! when that fails too, from a new socket. musl asks again for what is missing. Each lookup is that of a
//! fresh process: glibc would remember within a thread that one after the other is better.

use std::time::Duration;

/// Whose habits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    Glibc,
    Musl,
}

/// A stub resolver's patience.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    pub resolver: Resolver,
    /// Between two tries.
    pub timeout: Duration,
    pub tries: u32,
}

impl Habit {
    /// What the resolver does when resolv.conf says nothing.
    pub const fn of(resolver: Resolver) -> Self {
        let timeout = match resolver {
            Resolver::Glibc => Duration::from_secs(5),
            // Its timeout of 5 s is for both attempts together.
            Resolver::Musl => Duration::from_millis(2500),
        };
        Self { resolver, timeout, tries: 2 }
    }

    /// The longest that a lookup of one name can take.
    pub fn longest(&self) -> Duration {
        // glibc may begin twice anew, besides its tries.
        self.timeout * (self.tries + 2)
    }
}

/// Questions of one lookup, one bit each.
pub type Questions = u8;

/// How questions leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    AtOnce,
    InTurn,
    /// In turn, each from a new socket.
    InTurnAnew,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    Send {
        questions: Questions,
        /// From a new socket.
        is_anew: bool,
        /// The timeout begins again.
        is_retry: bool,
    },
    /// All that will come has come.
    Done,
    /// Nothing came.
    GiveUp,
}

/// The questions for one name, and how far they are.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    all: Questions,
    answered: Questions,
    /// Which are on their way.
    asked: Questions,
    tries: u32,
    manner: Manner,
}

impl Asking {
    /// Begins with `count` questions, at least one; all of them leave at once.
    pub fn new(count: usize) -> Self {
        let all = if count > 1 { 0b11 } else { 0b1 };
        Self { all, answered: 0, asked: all, tries: 1, manner: Manner::AtOnce }
    }

    /// All questions.
    pub fn all(&self) -> Questions {
        self.all
    }

    /// Questions that have no response yet, though they were asked.
    pub fn owed(&self) -> Questions {
        self.asked & !self.answered
    }

    /// Tells whether some have a response and some do not.
    pub fn is_partial(&self) -> bool {
        self.answered != self.all && self.answered != 0
    }

    /// Takes the response to the question `index`.
    pub fn take(&mut self, index: usize) -> Step {
        self.answered |= 1 << index;
        let next = self.all & !self.asked;
        match () {
            () if self.answered == self.all => Step::Done,
            () if self.owed() == 0 && next != 0 => {
                self.asked |= next;
                let is_anew = self.manner == Manner::InTurnAnew;
                Step::Send { questions: next, is_anew, is_retry: false }
            }
            () => Step::Wait,
        }
    }

    /// Goes on when the time is over, or the server's port is found closed.
    pub fn time_out(&mut self, habit: &Habit) -> Step {
        match habit.resolver {
            Resolver::Musl => self.ask_for_the_rest(habit),
            Resolver::Glibc if self.answered == 0 => self.ask_again(habit),
            Resolver::Glibc => self.ask_in_turn(),
        }
    }

    /// musl: what is missing, once more.
    fn ask_for_the_rest(&mut self, habit: &Habit) -> Step {
        if self.tries >= habit.tries {
            return Step::GiveUp;
        }
        self.tries += 1;
        Step::Send { questions: self.owed(), is_anew: false, is_retry: true }
    }

    /// glibc without any response: the next try.
    fn ask_again(&mut self, habit: &Habit) -> Step {
        if self.tries >= habit.tries {
            return Step::GiveUp;
        }
        self.tries += 1;
        self.begin(false)
    }

    /// glibc with one response of two: begins again, more carefully; in the end it takes the one.
    fn ask_in_turn(&mut self) -> Step {
        self.manner = match self.manner {
            Manner::AtOnce => Manner::InTurn,
            Manner::InTurn => Manner::InTurnAnew,
            Manner::InTurnAnew => return Step::Done,
        };
        self.answered = 0;
        self.begin(self.manner == Manner::InTurnAnew)
    }

    /// Asks from the first question on.
    fn begin(&mut self, is_anew: bool) -> Step {
        self.asked = if self.manner == Manner::AtOnce { self.all } else { 1 };
        Step::Send { questions: self.asked, is_anew, is_retry: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A retry with these questions.
    fn retry(questions: Questions, is_anew: bool) -> Step {
        Step::Send { questions, is_anew, is_retry: true }
    }

    #[test]
    fn glibc_asks_in_turn_when_one_of_two_responses_stays_away_and_at_last_takes_the_one() {
        let habit = Habit::of(Resolver::Glibc);
        let mut asking = Asking::new(2);
        assert_eq!(asking.take(1), Step::Wait);
        assert_eq!(asking.time_out(&habit), retry(0b01, false));
        let second = Step::Send { questions: 0b10, is_anew: false, is_retry: false };
        assert_eq!(asking.take(0), second);
        assert_eq!(asking.time_out(&habit), retry(0b01, true));
        let second = Step::Send { questions: 0b10, is_anew: true, is_retry: false };
        assert_eq!(asking.take(0), second);
        assert_eq!(asking.time_out(&habit), Step::Done);
        assert!(asking.is_partial());
    }

    #[test]
    fn glibc_gives_up_after_two_tries_without_any_response() {
        let habit = Habit::of(Resolver::Glibc);
        let mut asking = Asking::new(2);
        assert_eq!(asking.time_out(&habit), retry(0b11, false));
        assert_eq!(asking.time_out(&habit), Step::GiveUp);
    }

    #[test]
    fn glibc_keeps_the_manner_that_it_has_come_to() {
        let habit = Habit::of(Resolver::Glibc);
        let mut asking = Asking::new(2);
        asking.take(0);
        asking.time_out(&habit);
        assert_eq!(asking.time_out(&habit), retry(0b01, false), "a try without any response");
        asking.take(0);
        assert_eq!(asking.take(1), Step::Done);
    }

    #[test]
    fn musl_asks_again_for_what_is_missing_and_then_gives_up() {
        let habit = Habit::of(Resolver::Musl);
        let mut asking = Asking::new(2);
        assert_eq!(asking.take(0), Step::Wait);
        assert_eq!(asking.time_out(&habit), retry(0b10, false));
        assert_eq!(asking.time_out(&habit), Step::GiveUp);
        assert_eq!(asking.take(1), Step::Done);
    }
}
