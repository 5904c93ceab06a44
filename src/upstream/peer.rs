//! One upstream while the daemon runs: its health, manners, source ports, sockets and connections.
//!
//! A [`Peer`] is shared by every group that names the upstream, and outlives a reload.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::health::{Change, Health, Standing};
use super::lease::Towards;
use super::manners::Manners;
use super::pool::Pool;
use super::ports::PortClass;
use super::select::View;
use super::transport::Connections;
use super::verify::Style;
use crate::config::Upstream;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::{Qtype, Rcode};
use crate::metrics::UpstreamMetrics;

/// Exchanges in flight by UDP, per upstream and class; each holds a descriptor and a port.
const MAX_IN_FLIGHT: usize = 2048;

/// The run-time state of one upstream.
#[derive(Debug)]
pub struct Peer {
    /// As the configuration writes it.
    pub form: Arc<str>,
    pub upstream: Upstream,
    /// Source ports; `None` where the transport is no datagram.
    pub towards: Option<Arc<Towards>>,
    pub pool: Pool,
    pub connections: Connections,
    pub metrics: UpstreamMetrics,
    learned: Mutex<Learned>,
    in_flight: [AtomicUsize; 3],
    has_answered: AtomicBool,
    /// It belonged to a set of endpoints and no longer does: nobody asks it.
    is_gone: AtomicBool,
    /// It counts in the gauge of those that are down. Written with `learned` locked.
    shows_down: AtomicBool,
    /// How often it came back after it had been down.
    returns: AtomicU32,
}

/// One response that was heard.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// How its query was written.
    pub style: Style,
    pub rcode: Rcode,
    pub rtt: Duration,
    /// That time tells how far the upstream is.
    pub is_measure: bool,
    pub at: Instant,
}

impl Heard {
    /// The time that tells how far the upstream is, if it does.
    fn measure(&self) -> Option<Duration> {
        self.is_measure.then_some(self.rtt)
    }
}

/// What changes with each response.
#[derive(Debug, Default)]
struct Learned {
    health: Health,
    manners: Manners,
    /// The last query that went wrong, to probe with.
    probe: Option<Query>,
}

impl Learned {
    /// Remembers a query that went wrong, but not a probe of the root: few upstreams serve it, and what has
    /// gone wrong before would be forgotten.
    fn remember(&mut self, query: &Query) {
        if !query.qname.is_root() {
            self.probe = Some(query.clone());
        }
    }
}

impl Peer {
    /// An upstream that nothing is known of.
    pub fn new(
        upstream: Upstream,
        towards: Option<Arc<Towards>>,
        connections: Connections,
        metrics: UpstreamMetrics,
    ) -> Self {
        Self {
            form: upstream.to_string().into(),
            upstream,
            pool: Pool::default(),
            towards,
            connections,
            metrics,
            learned: Mutex::default(),
            in_flight: Default::default(),
            has_answered: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            shows_down: AtomicBool::new(false),
            returns: AtomicU32::new(0),
        }
    }

    /// Locks what was learned.
    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the choice of upstreams depends on.
    pub fn view(&self, now: Instant) -> View {
        let learned = self.learned();
        View {
            standing: learned.health.standing(),
            distance: learned.health.distance(now),
            is_measure_old: learned.health.is_measure_old(now),
            in_flight: self.in_flight(),
        }
    }

    /// How far it may be relied on now.
    pub fn standing(&self) -> Standing {
        self.learned().health.standing()
    }

    /// The smoothed round-trip time; `None` before the first response.
    pub fn srtt(&self) -> Option<Duration> {
        self.learned().health.srtt()
    }

    /// Tells whether it did answer and has only just begun to say that nobody listens.
    pub fn is_restarting(&self, now: Instant) -> bool {
        self.has_answered() && !self.is_gone() && self.learned().health.is_restarting(now)
    }

    /// Tells whether it was silent at that moment and has been ever since.
    pub fn is_silent_since(&self, at: Instant) -> bool {
        self.learned().health.is_silent_since(at)
    }

    /// Exchanges in flight, all classes together.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How often it came back after it had been down.
    pub fn returns(&self) -> u32 {
        self.returns.load(Ordering::Relaxed)
    }

    /// Tells whether the upstream has vanished.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Notes that the upstream has vanished; closes its kept sockets and connections.
    pub fn vanish(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.pool.clear();
        self.connections.set_shut(true);
        self.leave();
    }

    /// Notes that nobody asks it any more: it does not count as down.
    pub fn leave(&self) {
        let learned = self.learned();
        self.show_down(false);
        drop(learned);
    }

    /// Notes that the upstream is there, perhaps again.
    pub fn appear(&self) {
        if self.is_gone.swap(false, Ordering::AcqRel) {
            self.connections.set_shut(false);
        }
    }

    /// Tells whether anything ever came back.
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// How long to wait before asking again elsewhere.
    pub fn patience(&self, floor: Duration, ceiling: Duration) -> Duration {
        self.learned().health.patience(floor, ceiling)
    }

    /// How to write the next query by UDP.
    pub fn style(&self, dnssec_ok: bool, want_ad: bool, now: Instant) -> Style {
        self.learned().manners.style(dnssec_ok, want_ad, now)
    }

    /// How to write a query by UDP again.
    pub fn style_again(&self, style: Style, qname: &Name, now: Instant) -> Style {
        self.learned().manners.again(style, qname, now)
    }

    /// Tells whether queries carry EDNS, with DO or without.
    pub fn has_edns(&self, dnssec_ok: bool, now: Instant) -> bool {
        self.learned().manners.has_edns(dnssec_ok, now)
    }

    /// Tells whether a retransmission of `class` may be in flight: first messages keep half the room.
    pub fn has_room_to_repeat(&self, class: PortClass) -> bool {
        self.in_flight[class as usize].load(Ordering::Relaxed) < MAX_IN_FLIGHT / 2
    }

    /// Counts an exchange as in flight until the guard is dropped; `None` at the limit.
    pub fn enter(self: &Arc<Self>, class: PortClass) -> Option<InFlight> {
        let count = &self.in_flight[class as usize];
        let entered = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < MAX_IN_FLIGHT).then_some(count + 1)
        });
        entered.ok()?;
        self.metrics.in_flight.inc();
        Some(InFlight { peer: Arc::clone(self), class })
    }

    /// Learns from a conclusive response; `echoed`: the qname's case came back as sent; `knows_edns`: it
    /// shows that OPT was read.
    pub fn on_answer(&self, heard: &Heard, echoed: bool, knows_edns: bool) {
        let mut learned = self.learned();
        learned.manners.on_answer(heard.style, echoed, heard.at);
        if heard.style.edns {
            learned.manners.on_opt(knows_edns, heard.at);
        }
        let change = learned.health.on_response(heard.measure(), true, heard.at);
        self.show(change);
        drop(learned);
        self.count_response(heard, change);
    }

    /// Learns from a response that says nothing but failure.
    pub fn on_failure(&self, heard: &Heard, query: &Query) {
        let mut learned = self.learned();
        learned.manners.on_reply(heard.style, heard.at);
        let change = learned.health.on_response(heard.measure(), false, heard.at);
        learned.remember(query);
        self.show(change);
        drop(learned);
        self.metrics.failures.inc();
        self.count_response(heard, change);
    }

    /// Learns from a response that was cut: the upstream lives, and its answer comes by TCP, or by UDP
    /// where it says that the query is to be asked with EDNS again.
    pub fn on_truncated(&self, heard: &Heard) -> bool {
        let mut learned = self.learned();
        learned.manners.on_reply(heard.style, heard.at);
        let with_edns = learned.manners.on_cut(heard.style, heard.at);
        let change = learned.health.on_response(heard.measure(), true, heard.at);
        self.show(change);
        drop(learned);
        self.has_answered.store(true, Ordering::Relaxed);
        self.log(change);
        with_edns
    }

    /// Counts a response and says what it changed.
    fn count_response(&self, heard: &Heard, change: Option<Change>) {
        self.has_answered.store(true, Ordering::Relaxed);
        self.metrics.responses.inc();
        self.metrics.observe_rtt(heard.rtt, heard.rcode);
        self.log(change);
    }

    /// Learns that a query has waited long enough.
    pub fn on_unanswered(&self, style: Style, query: &Query, now: Instant) {
        let mut learned = self.learned();
        learned.manners.on_unanswered(style);
        let change = learned.health.on_unanswered(now);
        learned.remember(query);
        self.show(change);
        drop(learned);
        self.metrics.timeouts.inc();
        self.log(change);
    }

    /// Learns that nobody listens there.
    pub fn on_unreachable(&self, query: &Query, now: Instant) {
        let mut learned = self.learned();
        let change = learned.health.on_unreachable(now);
        learned.remember(query);
        self.show(change);
        drop(learned);
        self.metrics.unreachable.inc();
        self.log(change);
    }

    /// Learns that EDNS was refused.
    pub fn on_edns_refused(&self, now: Instant) {
        self.learned().manners.on_edns_refused(now);
    }

    /// Learns that what was refused with EDNS failed without it too.
    pub fn on_edns_futile(&self, now: Instant) {
        self.learned().manners.on_edns_futile(now);
    }

    /// Tells whether a query that is refused with EDNS is to be asked again without it.
    pub fn asks_without_edns(&self, now: Instant) -> bool {
        self.learned().manners.asks_without_edns(now)
    }

    /// Learns from a response for `qname` in a wrong case.
    pub fn on_wrong_case(&self, qname: &Name, now: Instant) {
        self.learned().manners.on_wrong_case(qname, now);
    }

    /// What to probe with, where that is due; it counts as sent. Somebody asks the upstream.
    ///
    /// One query that every resolver answers at once, so that a slow name never brings its upstream
    /// down, and the one that went wrong, for upstreams that serve few zones and drop all else.
    pub fn due_probes(&self, now: Instant) -> Vec<Query> {
        let mut learned = self.learned();
        let change = learned.health.look(now);
        let is_due = !self.is_gone() && learned.health.is_probe_due(now);
        let last = learned.probe.clone().filter(|_| is_due);
        // It may have come back to those who ask it.
        self.show_down(!self.is_gone() && learned.health.standing() == Standing::Down);
        drop(learned);
        self.log(change);
        let root = is_due.then(|| Query::new(Name::root(), Qtype::NS));
        root.into_iter().chain(last).collect()
    }

    /// Shows a change of state; what was learned is locked meanwhile, so that of two changes the later one stays.
    fn show(&self, change: Option<Change>) {
        if let Some(change) = change {
            self.show_down(change == Change::WentDown && !self.is_gone());
        }
    }

    /// Counts as down, or not; several upstreams may share the gauge.
    fn show_down(&self, is_down: bool) {
        if self.shows_down.swap(is_down, Ordering::Relaxed) != is_down {
            self.metrics.down.inc_by(if is_down { 1 } else { -1 });
        }
    }

    /// Says a change of state, once.
    fn log(&self, change: Option<Change>) {
        match change {
            Some(Change::WentDown) => tracing::warn!(upstream = %self.form, "upstream is down"),
            Some(Change::CameBack) => {
                self.returns.fetch_add(1, Ordering::Relaxed);
                tracing::info!(upstream = %self.form, "upstream is back");
            }
            None => {}
        }
    }
}

/// One exchange in flight.
#[derive(Debug)]
pub struct InFlight {
    peer: Arc<Peer>,
    class: PortClass,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.peer.in_flight[self.class as usize].fetch_sub(1, Ordering::Relaxed);
        self.peer.metrics.in_flight.dec();
    }
}
