//! The story of a query, from question to response. Read [`Resolver::resolve`] first.
//!
//! [`route`] picks who answers, [`local`] knows our own data, [`cluster`] asks the cluster zone, [`forward`] asks upstreams through the
//! cache and keeps what `bailiwick` leaves, [`inflight`] lets identical queries share one exchange, [`alias`] follows our own CNAMEs,
//! `stale` is what is served when nobody can be asked, [`asker`] where who asks matters, [`any`] answers ANY over UDP with little, [`rewrite`] is what a zone changes about answers (by
//! [`dns64`], and by [`reach`] where IPv6 leads nowhere).
//! It refuses to know sockets and wire forms: `serve` faces stub resolvers, `upstream` the others.

pub mod alias;
pub mod any;
pub mod asker;
mod bailiwick;
pub mod cluster;
pub mod dns64;
pub mod error;
pub mod forward;
pub mod hosts;
pub mod inflight;
pub mod local;
pub mod reach;
pub mod rewrite;
pub mod route;
mod stale;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use self::error::ResolveError;
use self::inflight::InFlight;
use self::local::LocalAnswer;
#[cfg(test)]
use self::route::ForwardZone;
use self::route::{Route, Routes};
use crate::cache::entry::Entry;
use crate::cache::key::{KeyBuffer, Lookup};
use crate::cache::{Cache, Found, Source};
use crate::clock;
use crate::cluster::Cluster;
use crate::config::Aaaa;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::{Aging, Encoded};
use crate::dns::{Qclass, Qtype};
use crate::metrics::{Metrics, Origin, ZoneId};
use crate::upstream::probe::LoopProbe;

/// How the query came, as far as the answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// By UDP: the source address may be forged, so ANY gets little (RFC 8482).
    Datagram,
    /// By TCP, TLS or HTTPS.
    Stream,
}

/// A response and how its TTLs are to be written.
#[derive(Clone, Debug)]
pub struct Response {
    pub entry: Arc<Entry>,
    pub aging: Aging,
}

/// Answers queries from our own data, the cache, or upstreams.
pub struct Resolver {
    routes: ArcSwap<Routes>,
    cache: Arc<Cache>,
    in_flight: InFlight,
    loop_probe: Arc<LoopProbe>,
    metrics: Arc<Metrics>,
    /// Set where answers may depend on who asks.
    askers: Option<Arc<Cluster>>,
}

impl Resolver {
    /// A resolver over `routes`, which may be swapped later; `loop_probe` knows our own probes.
    pub fn new(
        routes: Routes,
        cache: Arc<Cache>,
        loop_probe: Arc<LoopProbe>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let routes = ArcSwap::from_pointee(routes);
        Self { routes, cache, in_flight: InFlight::default(), loop_probe, metrics, askers: None }
    }

    /// The response to `query`. NXDOMAIN and NODATA are responses.
    ///
    /// # Errors
    /// [`ResolveError`] knows the RCODE and extended error that the stub resolver gets.
    /// # Cancel safety
    /// Identical queries that waited for this one start over.
    pub async fn resolve(
        self: &Arc<Self>,
        query: &Query,
        carrier: Carrier,
    ) -> Result<Response, ResolveError> {
        error::refuse(query)?;
        if self.loop_probe.matches(&query.qname) {
            return Err(ResolveError::OwnProbe);
        }
        if query.qclass == Qclass::CH {
            return self.chaos(query);
        }
        if query.qtype == Qtype::ANY && carrier == Carrier::Datagram {
            return Box::pin(self.any(query)).await;
        }
        let routes = self.routes.load_full();
        match routes.route(&query.qname) {
            Route::Cluster(zone) => match self.cluster(query, &routes, zone).await {
                Some(outcome) => outcome,
                None => self.beside(query, &routes, routes.beside_cluster(&query.qname)).await,
            },
            route => self.beside(query, &routes, route).await,
        }
    }

    /// The response of our own data or of a forward zone.
    async fn beside(
        self: &Arc<Self>,
        query: &Query,
        routes: &Routes,
        route: Route<'_>,
    ) -> Result<Response, ResolveError> {
        match route {
            Route::Local(answer) => {
                self.own(query, answer.encode(query), (routes, routes.local_zone())).await
            }
            Route::Forward(zone) => match zone.rewrite.own_answer(query) {
                Some(answer) => self.own(query, answer, (routes, zone.id)).await,
                None => self.forward(query, zone).await,
            },
            Route::Cluster(_) => Err(ResolveError::Internal),
        }
    }

    /// What our own data says, an alias followed; `from` are the routes and the zone that it is of.
    async fn own(
        self: &Arc<Self>,
        query: &Query,
        answer: LocalAnswer,
        from: (&Routes, ZoneId),
    ) -> Result<Response, ResolveError> {
        match answer {
            LocalAnswer::Whole(encoded) => Ok(self.local(query, encoded, from)),
            LocalAnswer::Alias(alias) => Box::pin(self.follow(query, alias, Origin::Local)).await,
        }
    }

    /// Stores a response from our own data, so that the hot path serves it next time.
    fn local(&self, query: &Query, encoded: Encoded, from: (&Routes, ZoneId)) -> Response {
        let (routes, zone) = from;
        let epoch = self.cache.epoch(query.qname.as_wire());
        self.keep(query, encoded, routes, Source { zone, origin: Origin::Local, epoch })
    }

    /// Stores a response of ours, unless the routes that it came by are in force no more.
    fn keep(&self, query: &Query, encoded: Encoded, routes: &Routes, source: Source) -> Response {
        // A reload that swaps the routes bumps the epochs afterwards, so routes that are still the
        // current ones after the epoch was read make an entry that the reload will drop.
        if !std::ptr::eq(&**self.routes.load(), routes) {
            return Response::once(encoded, source);
        }
        let key = KeyBuffer::from_query(query);
        Response {
            entry: self.cache.store(&key, encoded, source, clock::now()),
            aging: Aging::Fresh,
        }
    }

    /// Answers a question of class CH: our version, if the operator lets us tell it.
    fn chaos(&self, query: &Query) -> Result<Response, ResolveError> {
        let routes = self.routes.load();
        let encoded = routes.local().version(query).ok_or(ResolveError::Class)?;
        let epoch = self.cache.epoch(query.qname.as_wire());
        Ok(Response::once(
            encoded,
            Source { zone: routes.local_zone(), origin: Origin::Local, epoch },
        ))
    }

    /// Swaps the routes; queries that run keep the ones that they began with.
    pub fn set_routes(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
        // Who asks from now on must not wait for upstreams that may be gone.
        self.in_flight.forget_all();
    }

    /// The routes in force.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The zone under which refusals and failures for `query` are counted.
    pub fn zone_of(&self, query: &Query) -> ZoneId {
        let routes = self.routes.load();
        match routes.route(&query.qname) {
            Route::Local(_) => routes.local_zone(),
            Route::Cluster(zone) => zone.id,
            Route::Forward(zone) => zone.id,
        }
    }

    /// Asks again for a popular name whose entry is about to end; nobody waits for it.
    ///
    /// Must be called inside the resolver runtime.
    pub fn prefetch(self: &Arc<Self>, query: Query) {
        if !self.cache.policy().prefetch {
            return;
        }
        let routes = self.routes.load_full();
        if let Route::Forward(zone) = routes.route(&query.qname)
            && zone.rewrite.own_answer(&query).is_none()
        {
            self.metrics.cache.prefetches.inc();
            zone.group.counters().prefetches.inc();
            let (this, zone) = (Arc::clone(self), Arc::clone(zone));
            // Whoever's hit it was: an upstream that is asked without refuses.
            let query = Query { recursion_desired: true, ..query };
            tokio::spawn(async move { this.renew(&query, &zone).await });
        }
    }

    /// Drops the IPv6 addresses of zones that give none out while IPv6 leads nowhere: it does not any more.
    pub fn forget_ipv6(&self) {
        let routes = self.routes();
        self.cache.forget(|key| {
            let zone_is_auto = || match routes.route(&Name::from_wire(key.qname())?) {
                Route::Forward(zone) => Some(zone.rewrite.settings().aaaa == Aaaa::Auto),
                _ => None,
            };
            key.qtype() == Qtype::AAAA && zone_is_auto().unwrap_or_default()
        });
    }

    /// What the cache holds for `query`, fresh, without asking anybody.
    pub fn cached(&self, query: &Query) -> Option<Response> {
        let now = clock::now();
        match self.cache.lookup(&KeyBuffer::from_query(query), now) {
            Found::Fresh(entry) => Some(Response { aging: entry.aging(now), entry }),
            _ => None,
        }
    }
}

impl Response {
    /// A response that is served once and not stored.
    fn once(encoded: Encoded, source: Source) -> Self {
        Self { entry: Cache::once(encoded, source, clock::now()), aging: Aging::Fresh }
    }
}
