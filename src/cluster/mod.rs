//! The cluster zone: what Kubernetes objects say about names, answered without asking anybody.
//!
//! Events come in from a source ([`Cluster::apply`]), names that changed come out ([`Changes`]), and
//! queries are answered from an immutable snapshot that each change replaces.
//! It refuses to know where events come from, and what becomes of the names that changed: `app` wires
//! that (the cache drops them, upstreams and the intercept learn the endpoints).
//!
//! Read [`object`] first, what is known of an object; then `builder`, which makes a [`snapshot`] of events
//! with the help of `registry` (who holds an object), [`record`] (what a Service is for DNS) and `shards`
//! (maps that are cheap to copy); then [`name`], what a name asks for, and [`zone`], the answers. Where they
//! depend on the pod that asks: [`asker`], with [`search`] and [`tenancy`].

#[cfg(feature = "kubernetes")]
mod api;
pub mod asker;
#[cfg(feature = "kubernetes")]
mod backoff;
mod builder;
#[cfg(feature = "kubernetes")]
mod feed;
pub mod files;
mod listed;
pub mod name;
pub mod object;
pub mod record;
mod registry;
pub mod search;
#[cfg(feature = "kubernetes")]
pub mod services;
mod shards;
pub mod snapshot;
pub mod tenancy;
#[cfg(test)]
mod tests;
mod touched;
mod trigger;
#[cfg(feature = "kubernetes")]
mod trouble;
#[cfg(feature = "kubernetes")]
pub mod watch;
pub mod zone;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use self::builder::Builder;
use self::name::Asked;
use self::object::{Object, ServiceKey};
use self::search::Search;
use self::snapshot::Snapshot;
use self::tenancy::{Sight, Tenancy};
use self::zone::{Answer, Zone};
use crate::clock;
pub use crate::config::PodNames;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::ttl::Ttl;
use crate::metrics::ByNamespace;

/// What the operator wants of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cluster domains; each has every name.
    pub domains: Vec<Name>,
    pub ttl: Ttl,
    pub pods: PodNames,
    /// Services whose endpoints others want to know at first: the cluster DNS, and those named as upstreams.
    pub interest: BTreeSet<ServiceKey>,
    /// The cluster DNS: the zone's name server.
    pub name_server: Option<ServiceKey>,
    /// What a pod's search list finds further down is answered at once.
    pub search: Option<Search>,
    /// What pods see.
    pub tenancy: Option<Tenancy>,
}

impl Settings {
    /// What a folded wire name asks for, with the cluster domain that it lies in: the longest.
    fn within<'a>(&self, qname: &'a [u8]) -> Option<(&Name, Asked<'a>)> {
        let parse = |domain| Some((domain, name::parse(qname, domain)?));
        let domains = self.domains.iter().filter_map(parse);
        domains.max_by_key(|(domain, _)| domain.as_wire().len())
    }

    /// The label of the namespace that a folded wire name is of, if it lies in a cluster domain.
    fn namespace<'a>(&self, qname: &'a [u8]) -> Option<&'a [u8]> {
        let (domain, _) = self.within(qname)?;
        name::namespace(qname, domain)
    }
}

/// One list of objects that a source keeps current: what a fresh list of it lacks is gone.
///
/// An object that several streams hold (the cluster DNS' slices, say) is gone when none holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    Namespaces,
    Services,
    /// EndpointSlices with the label of headless Services.
    Headless,
    /// EndpointSlices asked for by the names of their Services.
    Named,
    Pods,
    /// One manifest, by a number that its source gives.
    File(u32),
}

/// What happened to the objects of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Made or changed.
    Applied(Stream, Object),
    /// Gone; of the object only kind, namespace and name are read.
    Deleted(Stream, Object),
    /// A fresh list: other objects of the stream are gone.
    Replaced(Stream, Vec<Object>),
    /// Every stream that answers depend on has been listed: the zone may answer from now on.
    Synced,
}

/// What another interest in Services' endpoints changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// Services that were told of and are not followed any more.
    pub left: Vec<ServiceKey>,
    /// What is known of those that are new, as [`Changes::endpoints`] has it.
    pub joined: Vec<(ServiceKey, Vec<SocketAddr>)>,
}

/// What a batch of events changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Names whose answers may have changed, each once, forward and reverse. What is below a
    /// Service's name (ports, endpoints) changes with it, and pods with `NAMESPACE.pod`: the cache
    /// keeps those under the epoch of that name, so they are not listed.
    ///
    /// Flush exactly these, before anything else is done.
    pub names: Vec<Name>,
    /// Services of interest whose endpoints changed, each with all ready ones now, sorted: their
    /// port is the one named `dns`, else the first UDP port.
    pub endpoints: Vec<(ServiceKey, Vec<SocketAddr>)>,
    /// Whether the zone answers; it never goes back.
    pub synced: bool,
    /// When the changes happened that the EndpointSlices applied here tell of: the programming
    /// latency ends when `names` are flushed.
    pub triggered: Vec<SystemTime>,
}

/// The cluster zone.
pub struct Cluster {
    settings: Settings,
    builder: Mutex<Builder>,
    snapshot: ArcSwap<Snapshot>,
    synced: AtomicBool,
    /// Where queries are counted by the asking pod's namespace.
    counts: Option<Arc<ByNamespace>>,
    /// The number in the SOA records: nobody transfers the zone, so it never changes.
    serial: u32,
}

impl Cluster {
    /// An empty zone, not synced.
    pub fn new(settings: Settings) -> Self {
        let began = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let builder = Builder::new(settings.interest.clone(), None);
        Self {
            settings,
            builder: builder.into(),
            snapshot: ArcSwap::default(),
            synced: AtomicBool::new(false),
            counts: None,
            serial: u32::try_from(began.as_secs()).unwrap_or_default(),
        }
    }

    /// The same zone, still empty, which counts queries by the asking pod's namespace.
    #[must_use]
    pub fn counting(self, counts: Option<Arc<ByNamespace>>) -> Self {
        let builder = Builder::new(self.settings.interest.clone(), counts.clone());
        Self { counts, builder: builder.into(), ..self }
    }

    /// What the operator wants.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes a batch of events in, in their order, and publishes the new snapshot.
    ///
    /// For one caller at a time: two batches of one stream would have no order.
    pub fn apply(&self, events: Vec<Event>) -> Changes {
        let synced = events.contains(&Event::Synced);
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, changes) = builder.apply(events, &self.settings);
        self.snapshot.store(snapshot.into());
        drop(builder);
        if synced {
            self.synced.store(true, Ordering::Release);
        }
        Changes { synced: self.is_synced(), ..changes }
    }

    /// Follows the endpoints of these Services from now on.
    pub fn follow(&self, interest: BTreeSet<ServiceKey>) -> Followed {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner).follow(interest)
    }

    /// Tells whether the zone answers.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// The answer to `query`; `None` when the name is none of ours.
    ///
    /// Read the name's epoch before the call: the snapshot is loaded here.
    pub fn answer(&self, query: &Query) -> Option<Answer> {
        self.answer_within(query, Sight::ALL)
    }

    /// The answer to who sees no more than this.
    fn answer_within(&self, query: &Query, sight: Sight<'_>) -> Option<Answer> {
        let snapshot = self.snapshot.load();
        let (settings, serial) = (&self.settings, self.serial);
        Zone { snapshot: &snapshot, settings, serial, sight }.answer(query)
    }

    /// Tells whether `qname` is the reverse name of an address of ours.
    pub fn owns_reverse(&self, qname: &Name) -> bool {
        name::reversed(qname).is_some_and(|address| self.snapshot.load().owns(address))
    }

    /// Tells whether the cluster has an IPv6 family: any Service or endpoint has such an address.
    ///
    /// The Service `kubernetes` alone would not tell: it has one address where the cluster has two families.
    pub fn has_ipv6(&self) -> bool {
        self.snapshot.load().has_ipv6()
    }

    /// How many objects are known: namespaces, Services, EndpointSlices, pods.
    pub fn counts(&self) -> [usize; 4] {
        self.builder.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }
}
