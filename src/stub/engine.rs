//! Lookups at any rate from one thread: fires what is due, takes what has come, asks again in time.
//!
//! Open loop: what is due leaves, whatever has become of those before, and latency counts from when it
//! should have left. Closed loop: a lookup leaves when one before it has ended. No allocation per query.
//!
//! The thread is on time because it sleeps only until shortly before something is due and spins the rest,
//! with the socket ready. It may read late: the kernel has stamped when the response came.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::MAX_BATCH;
use super::demand::{Course, Done, Load, Pace};
use super::flight::{Flight, messages, reason};
use super::habit::{Asking, Questions, Resolver, Step};
use super::rack::{Rack, Token};
use super::sockets::{self, Inbox, Outbox};
use super::vigil::Vigil;
use super::wanted;
use crate::clock;

/// Lookups that leave together are made ready so long before.
const AIM: Duration = Duration::from_micros(40);

/// One thread's state.
struct Engine<'a, F> {
    load: &'a Load,
    take: F,
    rack: Rack,
    vigil: Vigil,
    inbox: Inbox,
    outbox: Outbox,
    flights: Vec<Flight>,
    free: Vec<usize>,
    /// In the order of their deadlines: all patience is the same.
    deadlines: VecDeque<(Instant, usize, u32)>,
    rounds: usize,
    turn: u64,
    live: u64,
    course: Course,
    now: Instant,
}

/// Runs this thread's share of the load; every lookup that ends goes to `take`. `stop` ends it early.
///
/// # Errors
/// When there is no descriptor to begin with.
pub fn run(load: &Load, stop: &AtomicBool, take: impl FnMut(&Done)) -> io::Result<Course> {
    sockets::wake_on_time();
    let mut engine = Engine {
        load,
        take,
        rack: Rack::new(load)?,
        vigil: Vigil::new(clock::now(), sockets::preemptions()),
        inbox: Inbox::new()?,
        outbox: Outbox::default(),
        flights: Vec::new(),
        free: Vec::new(),
        deadlines: VecDeque::new(),
        rounds: 0,
        turn: load.thread.0,
        live: 0,
        course: Course::default(),
        now: clock::now(),
    };
    engine.fly(stop);
    Ok(engine.course)
}

impl<F: FnMut(&Done)> Engine<'_, F> {
    /// Goes round until nothing is due and nothing is on its way.
    fn fly(&mut self, stop: &AtomicBool) {
        let mut tokens = Vec::new();
        loop {
            self.now = clock::now();
            let is_over = stop.load(Ordering::Relaxed) || self.course.broke.is_some();
            let next = if is_over { None } else { self.fire_due() };
            self.rack.flush();
            if is_over || next.is_none() && self.live == 0 {
                self.course.unfinished = self.live;
                return;
            }
            let nearest = self.first_deadline().into_iter().chain(next).min();
            if next.is_some() {
                self.rack.make_ready(self.load, self.turn);
            }
            let patience = self.patience(nearest);
            self.rack.poll.wait(patience, &mut tokens);
            self.now = clock::now();
            for token in &tokens {
                match Token::of(*token) {
                    Token::Lane(at) => self.receive_kept(at),
                    Token::Flight(index, generation) => self.receive(index, generation),
                }
            }
            self.time_out();
        }
    }

    /// How long the thread may sleep.
    fn patience(&mut self, nearest: Option<Instant>) -> Duration {
        let now = clock::now();
        let left = nearest.map_or(Duration::MAX, |at| at.saturating_duration_since(now));
        let awake = self.vigil.length(now, sockets::preemptions);
        // Now and then it looks whether it shall stop.
        left.saturating_sub(awake).min(Duration::from_millis(50))
    }

    /// Fires what is due; gives back when the next one is, unless there is none.
    fn fire_due(&mut self) -> Option<Instant> {
        self.rounds += 1;
        self.turn = self.load.skip_warm_up(self.turn, self.now);
        for _ in 0..MAX_BATCH {
            let (due, server) = self.load.due(self.turn)?;
            if self.now >= self.load.end {
                self.count_what_never_left();
                return None;
            }
            let aim = if self.load.ports.is_some() { AIM } else { Duration::ZERO };
            if due > self.now + aim {
                return due.checked_sub(aim);
            }
            let intended = match self.load.pace {
                Pace::Open { .. } => due,
                Pace::Closed { in_flight } if self.is_enough(in_flight) => {
                    return Some(self.load.end);
                }
                Pace::Closed { .. } => self.now,
            };
            self.course.due += 1;
            self.fire(server, intended);
            self.turn += self.load.thread.1;
            if self.course.broke.is_some() {
                return None;
            }
        }
        Some(self.now)
    }

    /// Tells whether a closed loop has all its lookups on their way; `in_flight` is per server.
    fn is_enough(&self, in_flight: u32) -> bool {
        let all = u64::from(in_flight) * u64::try_from(self.load.servers.len()).unwrap_or(1);
        let (index, threads) = self.load.thread;
        // Each thread has its share, the first ones what does not divide.
        self.live >= all / threads + u64::from(index < all % threads)
    }

    /// Counts lookups that were due before the end and for which there was no time.
    fn count_what_never_left(&mut self) {
        if matches!(self.load.pace, Pace::Closed { .. }) {
            return;
        }
        while self.load.due(self.turn).is_some() {
            self.course.due += 1;
            self.turn += self.load.thread.1;
        }
    }

    /// Begins a lookup.
    fn fire(&mut self, server: usize, intended: Instant) {
        let wanted = self.load.wanted(self.turn);
        let index = self.free.pop().unwrap_or(self.flights.len());
        let mut flight = Flight::new(self.flights.get(index), server, wanted, intended);
        flight.turn = self.turn;
        match self.flights.get_mut(index) {
            Some(old) => *old = flight,
            None => self.flights.push(flight),
        }
        self.live += 1;
        self.course.fired += 1;
        self.ask_candidate(index);
    }

    /// Asks for the name that is next in the search list.
    fn ask_candidate(&mut self, index: usize) {
        let lane = self.pick_lane(index);
        let Some(flight) = self.flights.get_mut(index) else { return };
        let count = messages(self.load, flight).len();
        flight.asking = Asking::new(count);
        (flight.rcodes, flight.has_answers, flight.lane) = ([None; 2], false, lane);
        let owner = u32::try_from(index + 1).unwrap_or(u32::MAX);
        for question in 0..count.min(2) {
            let id = match self.rack.lanes.get_mut(lane) {
                Some(lane) => lane.claim(owner),
                None => rand::random(),
            };
            flight.ids[question] = id;
        }
        if self.rack.lanes.is_empty() && flight.ids[0] == flight.ids[1] {
            flight.ids[1] = flight.ids[1].wrapping_add(1);
        }
        let all = flight.asking.all();
        self.send(index, all, true, true);
    }

    /// The kept socket for a lookup: one for all that leaves in this round, so that it leaves together.
    fn pick_lane(&self, index: usize) -> usize {
        let kept = usize::try_from(self.load.kept.unwrap_or(0)).unwrap_or(0).max(1);
        let server = self.flights.get(index).map_or(0, |flight| flight.server);
        server * kept + self.rounds % kept
    }

    /// Sends some questions of a lookup.
    fn send(&mut self, index: usize, questions: Questions, is_anew: bool, is_retry: bool) {
        let Some(flight) = self.flights.get_mut(index) else { return };
        if is_anew
            && self.rack.lanes.is_empty()
            && let Err(error) = self.rack.renew(self.load, index, flight)
        {
            self.course.broke = Some(reason(&error, self.live));
        }
        let Some(wanted) = self.load.wanted.get(flight.wanted) else { return };
        let lane = self.rack.lanes.get_mut(flight.lane);
        let all = wanted.messages(flight.candidate).iter().zip(flight.ids).enumerate();
        let (outbox, socket) = match (lane, &flight.socket) {
            (Some(lane), _) => (&mut lane.outbox, &lane.socket),
            (None, Some(socket)) => (&mut self.outbox, socket),
            (None, None) => return,
        };
        while self.load.ports.is_some() && clock::now() < flight.intended {
            std::hint::spin_loop();
        }
        flight.left.get_or_insert_with(clock::now);
        for (_, (message, id)) in all.filter(|(at, _)| questions & 1 << at != 0) {
            outbox.push(message, id);
            flight.sent += 1;
            if outbox.is_full() {
                outbox.flush(socket);
            }
        }
        if flight.socket.is_some() {
            outbox.flush(socket);
        }
        if is_retry {
            flight.timer = flight.timer.wrapping_add(1);
            let deadline = self.now + self.load.habit.timeout;
            self.deadlines.push_back((deadline, index, flight.timer));
        }
    }

    /// Takes what has come to the socket of a lookup, if that still has the place.
    fn receive(&mut self, index: usize, generation: u32) {
        let Some(flight) = self.flights.get(index).filter(|flight| flight.is_live) else { return };
        let same = flight.generation & (u32::MAX >> 1) == generation;
        let Some(socket) = flight.socket.as_ref().filter(|_| same) else { return };
        match self.inbox.receive(socket, 4) {
            Ok(count) => (0..count).for_each(|at| self.take_datagram(index, at)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.refuse(index),
            Err(_) => {}
        }
    }

    /// Takes what has come to a kept socket.
    fn receive_kept(&mut self, at: usize) {
        let Some(lane) = self.rack.lanes.get(at) else { return };
        let Ok(count) = self.inbox.receive(&lane.socket, MAX_BATCH) else {
            // A closed port, told to nobody in particular: each waits its time.
            self.course.refused += 1;
            return;
        };
        for datagram in 0..count {
            let id = usize::from(wanted::id_of(self.inbox.datagram(datagram)));
            let Some(lane) = self.rack.lanes.get(at) else { return };
            let owner = lane.ids.get(id).copied().unwrap_or(0);
            let owner = usize::try_from(owner).unwrap_or(0).checked_sub(1);
            if let Some(index) = owner {
                self.take_datagram(index, datagram);
            }
        }
    }

    /// Gives a datagram to the lookup that it may belong to.
    fn take_datagram(&mut self, index: usize, at: usize) {
        let Some(flight) = self.flights.get_mut(index).filter(|flight| flight.is_live) else {
            return;
        };
        let read = flight.read(messages(self.load, flight), self.inbox.datagram(at));
        let Some((question, said)) = read else { return };
        flight.note(question, said, self.inbox.arrival(at));
        let step = flight.asking.take(question);
        self.step(index, step);
    }

    /// Does what comes next for a lookup.
    fn step(&mut self, index: usize, step: Step) {
        match step {
            Step::Wait => {}
            Step::Send { questions, is_anew, is_retry } => {
                if let Some(flight) = self.flights.get_mut(index).filter(|_| is_retry) {
                    flight.retries += questions.count_ones();
                }
                self.send(index, questions, is_anew, is_retry);
                self.rack.flush();
            }
            Step::Done if self.has_more(index) => {
                self.release(index);
                if let Some(flight) = self.flights.get_mut(index) {
                    flight.candidate += 1;
                }
                self.ask_candidate(index);
                self.rack.flush();
            }
            Step::Done => self.finish(index, false),
            Step::GiveUp => self.finish(index, true),
        }
    }

    /// Tells whether nothing of the name exists and another name is to be tried.
    fn has_more(&self, index: usize) -> bool {
        let Some(flight) = self.flights.get(index) else { return false };
        let Some(wanted) = self.load.wanted.get(flight.wanted) else { return false };
        let denied = flight.rcodes.iter().flatten().all(|rcode| rcode.is_conclusive());
        denied && !flight.has_answers && !wanted.messages(flight.candidate + 1).is_empty()
    }

    /// A closed port: glibc hears of it and goes on at once, musl does not.
    fn refuse(&mut self, index: usize) {
        self.course.refused += 1;
        if self.load.habit.resolver == Resolver::Glibc {
            self.expire(index);
        }
    }

    /// Lets the time of all that waited long enough be over.
    fn time_out(&mut self) {
        while self.first_deadline().is_some_and(|at| at <= self.now) {
            let Some((_, index, _)) = self.deadlines.pop_front() else { return };
            self.expire(index);
        }
    }

    /// When the patience of the first lookup that still waits ends; those that wait no more are forgotten.
    fn first_deadline(&mut self) -> Option<Instant> {
        while let Some((at, index, timer)) = self.deadlines.front().copied() {
            if self.flights.get(index).is_some_and(|one| one.is_live && one.timer == timer) {
                return Some(at);
            }
            self.deadlines.pop_front();
        }
        None
    }

    /// Goes on with a lookup whose time is over.
    fn expire(&mut self, index: usize) {
        let Some(flight) = self.flights.get_mut(index) else { return };
        let step = flight.asking.time_out(&self.load.habit);
        self.step(index, step);
    }

    /// Gives the ids of a lookup back.
    fn release(&mut self, index: usize) {
        let Some(flight) = self.flights.get_mut(index) else { return };
        let Some(lane) = self.rack.lanes.get_mut(flight.lane) else { return };
        lane.release(flight.ids, u32::try_from(index + 1).unwrap_or(u32::MAX));
    }

    /// Ends a lookup, and tells of it.
    fn finish(&mut self, index: usize, gave_up: bool) {
        self.release(index);
        let Some(flight) = self.flights.get_mut(index) else { return };
        flight.is_live = false;
        flight.socket = None;
        let done = flight.done(gave_up, self.now);
        self.live -= 1;
        self.free.push(index);
        (self.take)(&done);
    }
}
