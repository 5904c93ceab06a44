//! Faces recursive resolvers: which one to ask, from which port, over what, and whether to believe it.
//!
//! One story, told by `exchange`: `select` orders the upstreams of a zone by `health`, an
//! `attempt` asks one `candidate`: [`ports`] gives the query a tuple that no other query holds (`lease`
//! is its socket, `pool` keeps some, `spare` moves one to another port, `tracks` leaves no conntrack
//! entry behind), `udp` or `transport` (by a `connection` that `dial` makes) carries it, [`verify`] compares what came back with what was
//! asked. `peer` is what is known of one upstream, `manners` how it wants to be asked. In the
//! background `maintain` probes those that are not well, and by [`probe`] those that may loop;
//! [`endpoints`] are upstreams that come and go.
//! It refuses to cache and to coalesce; that is `cache` and `resolve`.

mod attempt;
mod bits;
mod candidate;
mod connection;
mod dial;
pub mod endpoints;
mod exchange;
mod health;
mod lease;
mod maintain;
mod manners;
mod peer;
mod pool;
pub mod ports;
pub mod probe;
mod select;
mod spare;
pub mod status;
mod tls;
mod tracks;
mod transport;
mod udp;
pub mod verify;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use thiserror::Error;
use tokio::sync::Notify;

use self::attempt::Terms;
use self::dial::{Dial, Runtime};
use self::endpoints::Sources;
use self::health::Standing;
use self::lease::Ports;
use self::peer::Peer;
use self::probe::LoopProbe;
use self::select::Budget;
use self::tls::Trust;
use self::transport::Connections;
use crate::clock;
use crate::config::{Endpoints, Forward, PortRange, Transport, Upstream};
use crate::dns::Rcode;
use crate::dns::ede::Ede;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::metrics::{ForwardZoneMetrics, Metrics};

/// A response that was accepted.
#[derive(Debug)]
pub struct Received {
    /// Whole (fetched again by TCP when UDP cut it), AA cleared, AD only where the zone trusts it.
    pub encoded: Encoded,
    /// Who answered, in configuration form: `198.18.1.2:53`, `tls://192.0.2.9:853#dns.example`.
    pub upstream: Arc<str>,
    pub rtt: Duration,
}

/// Why no upstream gave a conclusive response (NOERROR or NXDOMAIN).
#[derive(Clone, Debug, Error)]
pub enum ExchangeError {
    /// The zone has no upstream at this moment.
    #[error("the zone has no upstream")]
    NoUpstream,
    /// Nobody answered in time.
    #[error("no response for {waited:.1?}, the last asked was {last}")]
    Timeout { last: Arc<str>, waited: Duration },
    /// The last upstream tried cannot be reached (ICMP, refused connection, failed handshake).
    #[error("{upstream} cannot be reached: {reason}")]
    Unreachable { upstream: Arc<str>, reason: Arc<str> },
    /// Every upstream that answered gave a failure; this is the last one.
    #[error("{upstream} answered {rcode}")]
    Failed { upstream: Arc<str>, rcode: Rcode, ede: Option<Ede> },
    /// Every source port of the class is in flight, every connection is full, or the limit per upstream is reached.
    #[error("too many queries are in flight towards {upstream}")]
    Overloaded { upstream: Arc<str> },
    /// The probe found that this zone's queries come back to us.
    #[error("{upstream} forwards back to us")]
    Loop { upstream: Arc<str> },
}

/// What tells two upstreams apart: address, transport, and whom TLS trusts.
type PeerKey = (Upstream, Option<PathBuf>);

/// What all forward zones share: source ports, and each upstream's health, sockets and connections.
pub struct Upstreams {
    ports: Arc<Ports>,
    runtime: Runtime,
    metrics: Arc<Metrics>,
    loop_probe: Arc<LoopProbe>,
    peers: Mutex<HashMap<PeerKey, Known>>,
    groups: Mutex<Vec<Weak<Group>>>,
    sources: Mutex<Sources>,
}

/// An upstream in the registry.
struct Known {
    peer: Arc<Peer>,
    /// When a group last had it.
    named: Instant,
}

impl Upstreams {
    /// Shared state over the ports of `range`; sockets carry `mark` where that is permitted (0: none).
    pub fn new(range: PortRange, mark: u32, metrics: Arc<Metrics>) -> Self {
        let ports = Ports::new(range, mark, metrics.ports.clone());
        let runtime = Runtime::new(Arc::clone(&ports));
        Self {
            ports,
            runtime,
            metrics,
            loop_probe: Arc::default(),
            peers: Mutex::default(),
            groups: Mutex::default(),
            sources: Mutex::default(),
        }
    }

    /// Deletes the conntrack entry of each query by UDP behind it from now on, where we may.
    pub fn forget_tracks(&self) {
        self.ports.tracks.want();
    }

    /// The upstreams of one forward zone. An upstream that another group or an earlier configuration
    /// had too keeps its health, its resting ports and its connections.
    pub fn group(self: &Arc<Self>, forward: &Forward, upstreams: &[Upstream]) -> Arc<Group> {
        let group = Arc::new(Group {
            zone: forward.zone.clone(),
            fixed: upstreams.into(),
            endpoints: forward.endpoints.clone(),
            tls_ca: forward.tls_ca.clone(),
            members: ArcSwap::default(),
            successor: OnceLock::new(),
            moved: Notify::new(),
            terms: Terms { ports: forward.ports, trust_ad: forward.trust_ad },
            timeout: forward.timeout,
            retransmit: (forward.retransmit_min, forward.retransmit_max),
            budget: Mutex::new(Budget::new(clock::now())),
            loop_probe: Arc::clone(&self.loop_probe),
            loops_probed: Mutex::default(),
            counters: self.metrics.forward.zone(&forward.zone),
            metrics: Arc::clone(&self.metrics),
        });
        let sources = locked(&self.sources);
        locked(&self.groups).push(Arc::downgrade(&group));
        self.refresh(&group, &sources);
        drop(sources);
        group
    }

    /// What the front end shows the names of its misses to, before anything else.
    pub fn loop_probe(&self) -> &Arc<LoopProbe> {
        &self.loop_probe
    }

    /// The state of one upstream, made when it is first named.
    fn peer(&self, upstream: &Upstream, tls_ca: Option<PathBuf>) -> Arc<Peer> {
        let is_encrypted =
            matches!(upstream.transport, Transport::Tls { .. } | Transport::Https { .. });
        let key = (upstream.clone(), tls_ca.filter(|_| is_encrypted));
        let mut peers = self.peers();
        let known = peers.entry(key).or_insert_with_key(|(upstream, tls_ca)| {
            let dial = Dial {
                runtime: self.runtime.clone(),
                address: upstream.address,
                transport: upstream.transport.clone(),
                trust: Arc::new(Trust::new(tls_ca.clone())),
            };
            let is_udp = upstream.transport == Transport::Udp;
            let towards = is_udp.then(|| self.ports.towards(upstream.address));
            let metrics = self.metrics.upstream(&upstream.to_string());
            let connections = Connections::new(dial, metrics.clone());
            let peer = Peer::new(upstream.clone(), towards, connections, metrics);
            Known { peer: Arc::new(peer), named: clock::now() }
        });
        Arc::clone(&known.peer)
    }

    /// Locks the registry.
    fn peers(&self) -> MutexGuard<'_, HashMap<PeerKey, Known>> {
        locked(&self.peers)
    }

    /// Every upstream in the registry.
    fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.peers().values().map(|known| Arc::clone(&known.peer)).collect()
    }

    /// The upstreams that some group asks, by their place in memory.
    fn asked_peers(&self) -> HashMap<*const Peer, Arc<Peer>> {
        let groups = self.all_groups();
        let members = groups.iter().flat_map(|group| group.asked().to_vec());
        members.map(|member| (Arc::as_ptr(&member.peer), Arc::clone(&member.peer))).collect()
    }

    /// Every group that is still in use.
    fn all_groups(&self) -> Vec<Arc<Group>> {
        let mut groups = locked(&self.groups);
        groups.retain(|group| group.strong_count() > 0);
        groups.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Locks; what a panicking holder left is whole, since nobody panics between two writes.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One upstream of a group.
struct Member {
    peer: Arc<Peer>,
    /// The probe found that it forwards this zone's queries back to us.
    looping: AtomicBool,
}

impl Member {
    /// Tells whether the last probe came back to us.
    fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// Sets it and gives back what it was.
    fn set_looping(&self, looping: bool) -> bool {
        self.looping.swap(looping, Ordering::Relaxed)
    }
}

/// When loops were last looked for.
#[derive(Clone, Copy, Debug)]
struct LoopsProbed {
    at: Instant,
    /// How often the upstreams had come back by then: one that does is looked at anew.
    returns: u32,
}

/// The upstreams of one forward zone with its policy.
pub struct Group {
    zone: Name,
    /// The upstreams that are written down.
    fixed: Box<[Upstream]>,
    /// The sets of others that come and go.
    endpoints: Vec<Endpoints>,
    tls_ca: Option<PathBuf>,
    /// Who is asked at this moment.
    members: ArcSwap<Vec<Arc<Member>>>,
    /// Whose upstreams are asked instead since no route leads here any more.
    successor: OnceLock<Arc<Self>>,
    /// Wakes exchanges in flight when `members` has changed.
    moved: Notify,
    terms: Terms,
    timeout: Duration,
    /// Floor and ceiling of the wait before the first retransmission.
    retransmit: (Duration, Duration),
    budget: Mutex<Budget>,
    loop_probe: Arc<LoopProbe>,
    /// When loops were last looked for.
    loops_probed: Mutex<Option<LoopsProbed>>,
    /// The zone's own.
    counters: ForwardZoneMetrics,
    metrics: Arc<Metrics>,
}

impl Group {
    /// Asks until an upstream gives a conclusive response or the zone's timeout ends.
    ///
    /// # Errors
    /// Each [`ExchangeError`] as its variant says.
    /// # Cancel safety
    /// Dropping the future ends the exchange; its port rests as after any other.
    pub async fn exchange(&self, query: &Query) -> Result<Received, ExchangeError> {
        exchange::run(self, query, self.timeout).await
    }

    /// As [`Group::exchange`], within `limit` where that is shorter than the zone's timeout.
    ///
    /// # Errors
    /// Each [`ExchangeError`] as its variant says.
    /// # Cancel safety
    /// As that of [`Group::exchange`].
    pub async fn exchange_within(
        &self,
        query: &Query,
        limit: Duration,
    ) -> Result<Received, ExchangeError> {
        exchange::run(self, query, limit.min(self.timeout)).await
    }

    /// The total time for one query, all attempts together.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The zone's counters.
    pub fn counters(&self) -> &ForwardZoneMetrics {
        &self.counters
    }

    /// Who is asked at this moment.
    fn asked(&self) -> Guard<Arc<Vec<Arc<Member>>>> {
        self.successor.get().map_or_else(|| self.members.load(), |next| next.asked())
    }

    /// Tells whether an upstream is among those that are asked.
    fn asks(&self, peer: &Arc<Peer>) -> bool {
        self.asked().iter().any(|member| Arc::ptr_eq(&member.peer, peer))
    }

    /// Tells whether every upstream that the group asks counts as down at this moment.
    pub fn is_down(&self) -> bool {
        let is_down = |member: &Member| member.peer.standing() == Standing::Down;
        self.asked().iter().all(|member| member.is_looping() || is_down(member))
    }

    /// Tells whether any upstream of the group ever answered anything (readiness).
    pub fn has_answered(&self) -> bool {
        self.asked().iter().any(|member| member.peer.has_answered())
    }

    /// Locks the budget.
    fn budget(&self) -> MutexGuard<'_, Budget> {
        locked(&self.budget)
    }

    /// Locks the time of the last look for loops.
    fn loops_probed(&self) -> MutexGuard<'_, Option<LoopsProbed>> {
        locked(&self.loops_probed)
    }
}

#[cfg(test)]
mod tests;
