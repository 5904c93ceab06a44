//! What goes on in the background: upstreams that are not well are probed, loops are looked for,
//! and what idles is closed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::attempt::{Attempt, Outcome, Terms};
use super::health::Standing;
use super::peer::Peer;
use super::probe::Probe;
use super::{Group, LoopsProbed, Member, Upstreams};
use crate::clock;
use crate::config::PortPolicy;
use crate::dns::query::Query;

/// How often the round is made; probes of one upstream are at least twice as far apart.
const ROUND: Duration = Duration::from_millis(250);

/// How often idle sockets and connections are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// How often loops are looked for.
const LOOPS_EVERY: Duration = Duration::from_secs(60);

/// The same while one is known, so that its end is noticed soon.
const LOOPS_EVERY_WHILE_LOOPING: Duration = Duration::from_secs(5);

/// How long a probe may take; a query that comes back does so in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often is looked whether an upstream has vanished that a probe waits for, or is back.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How probes are sent.
const TERMS: Terms = Terms { ports: PortPolicy::PerQuery, trust_ad: false };

/// An upstream that no group names is forgotten after this; its ports rested long before.
const FORGET_AFTER: Duration = Duration::from_secs(600);

impl Upstreams {
    /// Makes the rounds for ever; to be spawned once, on the runtime that asks upstreams.
    ///
    /// # Cancel safety
    /// Dropping it ends the probes under way; it may be started again.
    pub async fn maintain(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(ROUND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probes = JoinSet::new();
        let mut swept = clock::now();
        loop {
            ticks.tick().await;
            while probes.try_join_next().is_some() {}
            let now = clock::now();
            self.probe(now, &mut probes);
            if self.ports.take_shortage() {
                self.all_peers().iter().for_each(|peer| peer.pool.clear());
            }
            if now.saturating_duration_since(swept) >= SWEEP_EVERY {
                swept = now;
                self.sweep(now);
            }
        }
    }

    /// Sends the probes that are due.
    fn probe(&self, now: Instant, probes: &mut JoinSet<()>) {
        let asked = self.asked_peers();
        let is_left = |peer: &&Arc<Peer>| !asked.contains_key(&Arc::as_ptr(peer));
        self.all_peers().iter().filter(is_left).for_each(|peer| peer.leave());
        let groups = self.all_groups();
        for peer in asked.into_values() {
            for query in peer.due_probes(now) {
                groups.iter().filter(|of| of.asks(&peer)).for_each(|of| of.budget().probe(now));
                let peer = Arc::clone(&peer);
                probes.spawn(async move { probe_health(&peer, &query).await });
            }
        }
        for group in groups.into_iter().filter(|group| group.is_loop_probe_due(now)) {
            probes.spawn(async move {
                group.find_loops().await;
            });
        }
    }

    /// Closes what idles, and forgets upstreams that nobody has named for long.
    fn sweep(&self, now: Instant) {
        self.ports.tracks.look();
        for peer in self.all_peers() {
            peer.pool.sweep(now);
            peer.connections.sweep(now);
        }
        let mut peers = self.peers();
        let before = peers.len();
        peers.retain(|_, known| {
            // One is the registry's own.
            if Arc::strong_count(&known.peer) > 1 {
                known.named = now;
            }
            now.saturating_duration_since(known.named) < FORGET_AFTER
        });
        if peers.len() < before {
            let forms: HashSet<_> = peers.values().map(|known| &*known.peer.form).collect();
            self.metrics.keep_upstreams(|form| forms.contains(form));
        }
    }
}

/// Asks an upstream that is not well; whatever it says is taken in by the attempt, and its silence here: those
/// who ask may all have gone elsewhere.
async fn probe_health(peer: &Arc<Peer>, query: &Query) {
    let attempt = Attempt::new(Arc::clone(peer), query, TERMS);
    let (style, started, mut left) = (attempt.style, attempt.started, PATIENCE);
    let mut attempt = std::pin::pin!(attempt.run());
    let outcome = loop {
        // One that has vanished gets nothing more. One that is well again needs no probe, which would count among what
        // it has in flight, for as long as it is patient: it would be asked last.
        if peer.is_gone() || peer.standing() == Standing::Well {
            return;
        }
        match tokio::time::timeout(LOOK_EVERY, attempt.as_mut()).await {
            Err(_) if left.is_zero() => break None,
            Err(_) => left = left.saturating_sub(LOOK_EVERY),
            Ok(outcome) => break Some(outcome),
        }
    };
    // It may have spoken since.
    if outcome.is_none() && peer.is_silent_since(started) {
        peer.on_unanswered(style, query, clock::now());
    }
    if !matches!(outcome, Some(Outcome::Answered(_) | Outcome::Failed { .. })) {
        peer.metrics.probe_failures.inc();
    }
}

impl Group {
    /// Tells whether loops are to be looked for now, and if so takes it as done.
    fn is_loop_probe_due(&self, now: Instant) -> bool {
        let looping = self.asked().iter().any(|member| member.is_looping());
        let every = if looping { LOOPS_EVERY_WHILE_LOOPING } else { LOOPS_EVERY };
        let mut probed = self.loops_probed();
        let returns = self.returns();
        let due = probed.is_none_or(|last| {
            now.saturating_duration_since(last.at) >= every || last.returns != returns
        });
        if due {
            *probed = Some(LoopsProbed { at: now, returns });
        }
        due
    }

    /// How often upstreams of the group have come back after they had been down.
    fn returns(&self) -> u32 {
        self.asked().iter().fold(0, |sum, member| sum.wrapping_add(member.peer.returns()))
    }

    /// Asks each upstream whether it forwards back to us; gives back those that do.
    ///
    /// Exchanges pass those by until a later probe finds otherwise. The front end must be answering,
    /// and show its misses to [`super::probe::LoopProbe::matches`].
    ///
    /// # Cancel safety
    /// What was found before is kept.
    pub async fn find_loops(self: &Arc<Self>) -> Vec<Arc<str>> {
        *self.loops_probed() = Some(LoopsProbed { at: clock::now(), returns: self.returns() });
        let mut probes = JoinSet::new();
        let members = Guard::into_inner(self.asked());
        for (index, member) in members.iter().enumerate() {
            if let Some(probe) = self.loop_probe.probe(&self.zone) {
                let peer = Arc::clone(&member.peer);
                probes.spawn(async move { (index, comes_back(peer, probe).await) });
            }
        }
        while let Some(Ok((index, looping))) = probes.join_next().await {
            self.note_loop(&members[index], looping);
        }
        let looping = members.iter().filter(|member| member.is_looping());
        looping.map(|member| Arc::clone(&member.peer.form)).collect()
    }

    /// Remembers whether an upstream loops; says so when that changes.
    fn note_loop(&self, member: &Member, looping: bool) {
        let (zone, upstream) = (&self.zone, &member.peer.form);
        match (member.set_looping(looping), looping) {
            (false, true) => {
                self.metrics.life.loops_found.inc();
                tracing::error!(%zone, %upstream, "upstream forwards back to us and is not asked");
            }
            (true, false) => tracing::info!(%zone, %upstream, "upstream no longer loops"),
            _ => {}
        }
    }
}

/// Sends a probe, twice where nothing happens, and tells whether it arrived at our own front end.
async fn comes_back(peer: Arc<Peer>, probe: Probe) -> bool {
    for _ in 0..2 {
        if peer.is_gone() {
            return false;
        }
        let attempt = Attempt::new(Arc::clone(&peer), &probe.query, TERMS).run();
        tokio::select! {
            () = probe.seen() => break,
            _ = attempt => break,
            () = tokio::time::sleep(PATIENCE / 2) => {}
        }
    }
    probe.was_seen()
}
