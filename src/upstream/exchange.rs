//! The story of one exchange: ask, grow impatient, ask another, believe the first good response.
//!
//! Earlier attempts are listened to until the end. Each retransmission leaves from another port
//! and, where there is one, goes to another upstream.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::time::Sleep;

use super::attempt::{Attempt, Outcome, Running};
use super::candidate::{Candidate, Candidates, Cut};
use super::endpoints::Moved;
use super::health::Standing;
use super::ports::PortClass;
use super::{ExchangeError, Group, Received};
use crate::clock;
use crate::dns::query::Query;

/// How long retransmissions come at a steady pace; then each wait doubles.
const STEADY: Duration = Duration::from_secs(1);

/// The longest wait between two retransmissions: an upstream that is back is asked within it.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// The shortest wait, whatever the configuration says.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// Attempts of one exchange that are listened to at one time: the first, and the latest.
const MAX_ATTEMPTS: usize = 24;

/// How long an exchange waits for an upstream to appear where they come and go and none is there.
const EMPTY_PATIENCE: Duration = Duration::from_secs(1);

/// The wait before an upstream is asked again that may be restarting, or that the budget spares.
const SHORT_WAIT: Duration = Duration::from_millis(50);

/// What happens next.
enum Event {
    Outcome(usize, Outcome),
    /// The wait before the next retransmission is over.
    Impatient,
    /// Upstreams have come or gone.
    Moved,
    /// The time for the whole is over.
    Over,
}

/// An exchange under way.
struct Exchange<'a> {
    group: &'a Group,
    query: &'a Query,
    started: Instant,
    /// For all attempts together.
    limit: Duration,
    deadline: Instant,
    again_at: Instant,
    wait: Duration,
    candidates: Candidates,
    // One is the usual case, which needs no allocation.
    running: SmallVec<[Running<'a>; 1]>,
    failure: Option<ExchangeError>,
    cut: &'a Cut,
}

/// Runs one exchange of `group` for at most `limit`.
pub async fn run(group: &Group, query: &Query, limit: Duration) -> Result<Received, ExchangeError> {
    // Before the members are read, so that no change falls between.
    let mut moved = group.moved();
    let cut = Cut::default();
    let mut exchange = Exchange::new(group, query, limit, &cut)?;
    let mut first = std::pin::pin!(exchange.begin().map(Attempt::run));
    let mut timer = std::pin::pin!(tokio::time::sleep_until(exchange.next_timer().into()));
    loop {
        match exchange.next_event(first.as_mut(), timer.as_mut(), &mut moved).await {
            Event::Outcome(index, outcome) => {
                if let Some(result) = exchange.settle(index, outcome) {
                    return result;
                }
            }
            Event::Impatient => exchange.ask_again(),
            Event::Moved => {
                moved = group.moved();
                exchange.follow_members();
            }
            Event::Over => return Err(exchange.give_up()),
        }
        if exchange.running.iter().all(|running| running.outcome.is_some()) {
            // Its socket is closed now, as those of the others are.
            first.set(None);
        }
        timer.as_mut().reset(exchange.next_timer().into());
    }
}

impl<'a> Exchange<'a> {
    /// An exchange with the group's upstreams in the order of this moment.
    fn new(
        group: &'a Group,
        query: &'a Query,
        limit: Duration,
        cut: &'a Cut,
    ) -> Result<Self, ExchangeError> {
        let members = group.asked();
        let started = clock::now();
        let candidates = Candidates::order(&members, started);
        match members.first() {
            None if !group.is_moving() => return Err(ExchangeError::NoUpstream),
            Some(first) if candidates.is_empty() => {
                return Err(ExchangeError::Loop { upstream: Arc::clone(&first.peer.form) });
            }
            _ => {}
        }
        group.budget().begin(started);
        if members.iter().all(|member| member.peer.standing() == Standing::Down) {
            group.metrics.forward.all_down.inc();
        }
        Ok(Self {
            group,
            query,
            started,
            limit,
            deadline: started + limit,
            again_at: started,
            wait: Duration::ZERO,
            candidates,
            running: SmallVec::new(),
            failure: None,
            cut,
        })
    }

    /// The first attempt; `None` where there is nobody to ask yet.
    fn begin(&mut self) -> Option<Attempt<'a>> {
        if self.candidates.is_empty() {
            self.wait_for_upstreams();
            return None;
        }
        Some(self.attempt(0))
    }

    /// An attempt at a candidate, noted as running.
    fn attempt(&mut self, index: usize) -> Attempt<'a> {
        let candidate = self.candidates.at_mut(index);
        candidate.asked += 1;
        let attempt = Attempt::new(Arc::clone(&candidate.peer), self.query, self.group.terms);
        let attempt = attempt.noting(self.cut, index);
        let attempt = if candidate.asked > 1 { attempt.again() } else { attempt };
        let (floor, ceiling) = self.group.retransmit;
        self.wait = candidate.peer.patience(floor.max(MIN_WAIT), ceiling);
        self.again_at = attempt.started + self.wait;
        let (style, reported) = (attempt.style, false);
        self.running.push(Running { candidate: index, style, reported, outcome: None });
        attempt
    }

    /// Starts an attempt after the first.
    fn ask(&mut self, index: usize) {
        let attempt = self.attempt(index);
        if let Some(running) = self.running.last_mut() {
            running.outcome = Some(Box::pin(attempt.run()));
        }
    }

    /// When the timer rings next.
    fn next_timer(&self) -> Instant {
        self.again_at.min(self.deadline)
    }

    /// Waits for whatever comes first.
    async fn next_event(
        &mut self,
        mut first: Pin<&mut Option<impl Future<Output = Outcome>>>,
        mut timer: Pin<&mut Sleep>,
        moved: &mut Moved<'_>,
    ) -> Event {
        poll_fn(|context| {
            if let Poll::Ready((index, outcome)) = self.poll_attempts(first.as_mut(), context) {
                return Poll::Ready(Event::Outcome(index, outcome));
            }
            if moved.poll(context).is_ready() {
                return Poll::Ready(Event::Moved);
            }
            std::task::ready!(timer.as_mut().poll(context));
            let over = clock::now() >= self.deadline;
            Poll::Ready(if over { Event::Over } else { Event::Impatient })
        })
        .await
    }

    /// Whichever attempt has ended, taken out.
    fn poll_attempts(
        &mut self,
        mut first: Pin<&mut Option<impl Future<Output = Outcome>>>,
        context: &mut Context<'_>,
    ) -> Poll<(usize, Outcome)> {
        for index in 0..self.running.len() {
            let polled = match (&mut self.running[index].outcome, first.as_mut().as_pin_mut()) {
                (Some(outcome), _) => outcome.as_mut().poll(context),
                (None, Some(first)) => first.poll(context),
                (None, None) => Poll::Pending,
            };
            if let Poll::Ready(outcome) = polled {
                let candidate = self.running.swap_remove(index).candidate;
                return Poll::Ready((candidate, outcome));
            }
        }
        Poll::Pending
    }

    /// Takes the end of an attempt in; gives back the exchange's result where that is it.
    fn settle(
        &mut self,
        index: usize,
        outcome: Outcome,
    ) -> Option<Result<Received, ExchangeError>> {
        let upstream = Arc::clone(&self.candidates.at(index).peer.form);
        let failure = match outcome {
            Outcome::Answered(received) => return Some(Ok(received)),
            Outcome::Failed { rcode, ede } => ExchangeError::Failed { upstream, rcode, ede },
            Outcome::Unreachable(reason) => ExchangeError::Unreachable { upstream, reason },
            Outcome::Overloaded => ExchangeError::Overloaded { upstream },
        };
        let is_shed = matches!(failure, ExchangeError::Overloaded { .. });
        self.note(failure);
        // Where there was no room for one more message, those that are out are still waited for.
        if !is_shed {
            self.running.retain(|other| other.candidate != index);
        }
        let is_out = self.running.iter().all(|other| other.candidate != index);
        self.candidates.fail(index, is_out);
        self.follow_successor();
        if let Some(next) = self.candidates.untried()
            && self.is_allowed(next)
        {
            self.ask(next);
            return None;
        }
        let has_spoken = matches!(self.failure, Some(ExchangeError::Failed { .. }));
        if self.running.is_empty() {
            let waits =
                !has_spoken && (self.wait_for_budget() || !is_shed && self.wait_for_anybody());
            return (!waits).then(|| Err(self.give_up()));
        }
        if has_spoken && self.hopes_on_nobody() {
            // One has said no and the others hang: they get one more long wait, not the whole time.
            self.deadline = self.deadline.min(clock::now() + self.group.retransmit.1);
        }
        None
    }

    /// Waits until the budget allows to ask the next upstream, if there is one that may answer.
    fn wait_for_budget(&mut self) -> bool {
        let untried = self.candidates.untried();
        let waits =
            untried.is_some_and(|next| self.candidates.at(next).peer.standing() != Standing::Down);
        if waits {
            self.again_at = clock::now() + SHORT_WAIT;
        }
        waits
    }

    /// Waits where nobody is left who was asked, and nobody has said anything, if that is worth it: an upstream
    /// may be restarting, or the next endpoint on its way.
    fn wait_for_anybody(&mut self) -> bool {
        let now = clock::now();
        let restarts = self.candidates.readmit(now);
        if restarts || self.group.is_moving() {
            self.wait_for_upstreams();
        }
        if restarts {
            self.again_at = now + SHORT_WAIT;
        }
        restarts || self.group.is_moving()
    }

    /// Waits a while for an upstream to appear.
    fn wait_for_upstreams(&mut self) {
        let (end, now) = (self.started + self.limit, clock::now());
        self.deadline = end.min(now + EMPTY_PATIENCE);
        self.again_at = self.deadline;
    }

    /// Lets go of upstreams that have vanished and takes in those that came; asks at once where nobody
    /// is left who was asked.
    fn follow_members(&mut self) {
        self.candidates.follow(&self.group.asked());
        let candidates = &self.candidates;
        self.running.retain(|running| !candidates.at(running.candidate).is_out);
        if !self.running.is_empty() {
            return;
        }
        match self.candidates.untried() {
            Some(next) => {
                // Whatever the budget says: who asked is owed an endpoint that is there.
                self.group.budget().spend(clock::now());
                self.deadline = self.started + self.limit;
                self.ask(next);
            }
            None => self.wait_for_upstreams(),
        }
    }

    /// Lets go of upstreams that a reload has removed, and takes in those that are asked instead.
    ///
    /// Looked for before each further message: to be woken would cost every exchange, and reloads are rare.
    fn follow_successor(&mut self) {
        if self.group.successor.get().is_some() {
            self.candidates.follow(&self.group.asked());
        }
    }

    /// Tells whether all that is waited for comes from upstreams that are not well.
    fn hopes_on_nobody(&self) -> bool {
        let peer = |running: &Running<'_>| &self.candidates.at(running.candidate).peer;
        self.running.iter().all(|running| peer(running).standing() != Standing::Well)
    }

    /// Keeps the failure that tells most: what an upstream said before what kept us from asking.
    fn note(&mut self, failure: ExchangeError) {
        let said = matches!(self.failure, Some(ExchangeError::Failed { .. }));
        if !said || matches!(failure, ExchangeError::Failed { .. }) {
            self.failure = Some(failure);
        }
    }

    /// Sends once more, to the upstream that was asked least, if the budget allows it.
    fn ask_again(&mut self) {
        self.report_silence();
        let (now, class) = (clock::now(), PortClass::of_qtype(self.query.qtype));
        let is_late = now.saturating_duration_since(self.started) >= STEADY;
        let wait = if is_late { (self.wait * 2).min(MAX_WAIT) } else { self.wait };
        self.candidates.readmit(now);
        self.follow_successor();
        let running = &self.running;
        let has_query = |index| running.iter().any(|running| running.candidate == index);
        let Some(next) = self.candidates.next(class, has_query, self.cut) else {
            self.again_at = self.deadline;
            return;
        };
        // Without room a retransmission would go by TCP, and many of them at once where an upstream
        // is silent: the first message is still waited for.
        let has_room = self.candidates.at(next).peer.has_room_to_repeat(class);
        if !has_room || !self.is_allowed(next) {
            (self.wait, self.again_at) = (wait, now + wait.max(SHORT_WAIT));
            return;
        }
        if self.running.len() >= MAX_ATTEMPTS {
            // Not the first: what takes an upstream long is answered in the order of arrival.
            self.running.remove(1);
        }
        if self.running.is_empty() {
            self.deadline = self.started + self.limit;
        }
        self.candidates.count_further(next, &self.group.counters);
        self.ask(next);
        if is_late {
            (self.wait, self.again_at) = (wait, now + wait);
        }
    }

    /// Takes one more message to a candidate out of the budget, if there is one.
    fn is_allowed(&self, index: usize) -> bool {
        let (now, Candidate { peer, asked, .. }) = (clock::now(), self.candidates.at(index));
        if *asked == 0 && self.group.successor.get().is_some() {
            // Whatever the budget says, which the old upstreams may have used up: see `follow_members`.
            self.group.budget().spend(now);
            return true;
        }
        self.group.budget().take(peer.standing(), now)
    }

    /// Tells the upstreams' health which attempts have waited long enough, once each.
    fn report_silence(&mut self) {
        let now = clock::now();
        let is_silent = |of: &&mut Running<'_>| !of.reported && !self.cut.has(of.candidate);
        for running in self.running.iter_mut().filter(is_silent) {
            running.reported = true;
            let peer = &self.candidates.at(running.candidate).peer;
            peer.on_unanswered(running.style, self.query, now);
        }
    }

    /// Ends without a conclusive response.
    fn give_up(&mut self) -> ExchangeError {
        self.report_silence();
        let waited = clock::now().saturating_duration_since(self.started);
        let last = self.running.last().map_or(0, |running| running.candidate);
        let last = self.candidates.form(last);
        let silence =
            last.map_or(ExchangeError::NoUpstream, |last| ExchangeError::Timeout { last, waited });
        self.failure.take().unwrap_or(silence)
    }
}
