//! Who may be asked in one exchange, and who of them comes next.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use smallvec::SmallVec;

use super::Member;
use super::health::Standing;
use super::peer::Peer;
use super::ports::PortClass;
use super::select;
use crate::config::Transport;
use crate::metrics::ForwardZoneMetrics;

/// A retransmission goes to an upstream that is down only when the others were asked so much more often than it.
const DOWN_COUNTS: u32 = 3;

/// One upstream that may be asked in an exchange.
pub struct Candidate {
    pub peer: Arc<Peer>,
    /// It has failed or vanished for good; what it may still say is not waited for.
    pub is_out: bool,
    /// It is out because nobody listened there.
    has_refused: bool,
    pub asked: u32,
}

/// Candidates, by place, that are asked by TCP for what UDP has cut: they have answered. Those of the 65th on
/// share the places before.
#[derive(Debug, Default)]
pub struct Cut(AtomicU64);

impl Cut {
    /// Puts one in.
    pub fn note(&self, candidate: usize) {
        self.0.fetch_or(1 << (candidate & 63), Ordering::Relaxed);
    }

    /// Tells whether one is in.
    pub fn has(&self, candidate: usize) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << (candidate & 63) != 0
    }
}

/// The upstreams of an exchange; one is the usual case, which needs no allocation.
pub struct Candidates(SmallVec<[Candidate; 1]>);

impl Candidates {
    /// Those of `members` that do not loop, in the order in which to ask them at `now`.
    pub fn order(members: &[Arc<Member>], now: Instant) -> Self {
        let usable = members.iter().filter(|member| !member.is_looping());
        let mut all: SmallVec<[_; 1]> = usable.map(|member| Candidate::new(&member.peer)).collect();
        if all.len() > 1 {
            let views: Vec<_> = all.iter().map(|known| known.peer.view(now)).collect();
            let order = select::order(&views, &mut rand::rng()).into_iter();
            let at = |index: usize| Some(Candidate::new(&all.get(index)?.peer));
            all = order.filter_map(at).collect();
        }
        Self(all)
    }

    /// Lets go of those that have vanished, and takes in those of `members` that came.
    pub fn follow(&mut self, members: &[Arc<Member>]) {
        for gone in self.0.iter_mut().filter(|known| known.peer.is_gone()) {
            gone.is_out = true;
        }
        for member in members.iter().filter(|member| !member.is_looping()) {
            let is_it = |known: &Candidate| Arc::ptr_eq(&known.peer, &member.peer);
            if !self.0.iter().any(|known| is_it(known) && !known.is_out) {
                self.0.push(Candidate::new(&member.peer));
            }
        }
    }

    /// Notes that an attempt at one has failed; `is_out`: no other is under way there.
    pub fn fail(&mut self, index: usize, is_out: bool) {
        let known = &mut self.0[index];
        known.is_out = is_out;
        known.has_refused = known.peer.standing() == Standing::Down;
    }

    /// Takes those in again that have refused and are back, or may be about to restart; tells whether there are any.
    pub fn readmit(&mut self, now: Instant) -> bool {
        let returns = |known: &&mut Candidate| {
            let Candidate { peer, has_refused, .. } = &**known;
            *has_refused && (peer.is_restarting(now) || peer.standing() != Standing::Down)
        };
        self.0.iter_mut().filter(returns).fold(false, |_, known| {
            known.is_out = known.peer.is_gone();
            true
        })
    }

    /// The first that was not asked yet.
    pub fn untried(&self) -> Option<usize> {
        self.0.iter().position(|known| known.asked == 0 && !known.is_out)
    }

    /// Who gets a retransmission of `class`: who was asked least, of those with room, and hardly those that are
    /// down. `has_query` tells whether one is waited for, `cut` whether it is by TCP for what UDP has cut.
    pub fn next(
        &self,
        class: PortClass,
        has_query: impl Fn(usize) -> bool,
        cut: &Cut,
    ) -> Option<usize> {
        // A stream that has the query already loses nothing.
        let may_ask = |index: &usize| {
            let known = &self.0[*index];
            let is_stream = known.peer.upstream.transport != Transport::Udp;
            !(known.is_out || (is_stream || cut.has(*index)) && has_query(*index))
        };
        (0..self.0.len()).filter(may_ask).min_by_key(|&index| {
            let Candidate { peer, asked, .. } = &self.0[index];
            let is_down = peer.standing() == Standing::Down;
            let asked = asked.saturating_add(if is_down { DOWN_COUNTS } else { 0 });
            (Reverse(peer.has_room_to_repeat(class)), asked)
        })
    }

    /// Counts one more message, there and in the `zone`: to an upstream that was asked already, or to another
    /// beside it.
    pub fn count_further(&self, index: usize, zone: &ForwardZoneMetrics) {
        let Candidate { peer, asked, .. } = &self.0[index];
        let (of_upstream, of_zone) = match asked {
            0 => (&peer.metrics.hedges, &zone.hedges),
            _ => (&peer.metrics.retries, &zone.retries),
        };
        of_upstream.inc();
        of_zone.inc();
    }

    /// Tells whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the one at a place is called, if there is one.
    pub fn form(&self, index: usize) -> Option<Arc<str>> {
        self.0.get(index).map(|known| Arc::clone(&known.peer.form))
    }

    /// The one at a place that was given out here.
    pub fn at(&self, index: usize) -> &Candidate {
        &self.0[index]
    }

    /// The same, to be changed.
    pub fn at_mut(&mut self, index: usize) -> &mut Candidate {
        &mut self.0[index]
    }
}

impl Candidate {
    /// One that was not asked yet.
    fn new(peer: &Arc<Peer>) -> Self {
        Self { peer: Arc::clone(peer), is_out: false, has_refused: false, asked: 0 }
    }
}
