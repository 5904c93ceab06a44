//! The forward side: cache, then the exchange that identical queries share, then the cache again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::bailiwick::{self, Scrubbed};
use super::dns64::Dns64;
use super::inflight::{Lead, Outcome, Role};
use super::route::ForwardZone;
use super::{ResolveError, Resolver, Response, dns64, rewrite};
use crate::cache::entry::Entry;
use crate::cache::key::{Key, KeyBuffer};
use crate::cache::{Cache, Found, Source};
use crate::clock;
use crate::config::TtlBounds;
use crate::dns::build;
use crate::dns::query::Query;
use crate::dns::response::{Aging, Encoded};
use crate::dns::{Qtype, Rcode};
use crate::metrics::Origin;
use crate::upstream::verify::STRAY;
use crate::upstream::{ExchangeError, Received};

/// How long a stub resolver waits for upstreams before it gets a stale answer.
///
/// Source: RFC 8767 §5 (client response timer)
const STALE_AFTER: Duration = Duration::from_millis(1800);

/// How often who waits for a fresh answer looks whether the upstreams went down meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often who waits begins anew because the one who asked has vanished.
const MAX_VANISHED: usize = 3;

/// What upstreams have said.
pub(super) struct Told {
    pub(super) encoded: Encoded,
    /// False where an alias came without its target, which could not be resolved.
    pub(super) is_whole: bool,
}

impl Resolver {
    /// The response of a forward zone: fresh from the cache, from an upstream, or stale.
    pub(super) async fn forward(
        self: &Arc<Self>,
        query: &Query,
        zone: &Arc<ForwardZone>,
    ) -> Result<Response, ResolveError> {
        let key = KeyBuffer::from_query(query);
        let now = clock::now();
        match self.cache.lookup(&key, now) {
            Found::Fresh(entry) => return Ok(Response { aging: entry.aging(now), entry }),
            _ if !query.recursion_desired => {
                self.cache.metrics().misses.inc();
                return Err(ResolveError::NotRecursive);
            }
            Found::Stale(entry) => {
                // Boxed, as all that is rare: each miss would carry it along.
                return Ok(Box::pin(self.renew_or_stale(query, &key, zone, entry)).await);
            }
            Found::Absent => self.cache.metrics().misses.inc(),
        };
        if let Some(failure) = self.cache.failure(&key, now) {
            let encoded = failure.encoded();
            return Err(ResolveError::Remembered { rcode: encoded.rcode(), ede: encoded.ede() });
        }
        let entry = self.ask(query, &key, zone).await?;
        Ok(Response { entry, aging: Aging::Fresh })
    }

    /// A fresh response if an upstream gives one soon, else the stale one.
    ///
    /// Source: RFC 8767 §5
    async fn renew_or_stale(
        self: &Arc<Self>,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
        stale: Arc<Entry>,
    ) -> Response {
        // One who waits is enough for a name whose upstream hangs.
        let is_failing =
            self.in_flight.is_outlasted(key) || self.cache.failure(key, clock::now()).is_some();
        if !is_failing && zone.group.is_down() {
            // Begun, and left to itself: even a wait of no time at all would end with the timer's next tick.
            drop(self.renewal(query, key, zone).now_or_never());
        } else if !is_failing {
            let until = clock::now() + STALE_AFTER;
            let mut renewal = std::pin::pin!(self.renewal(query, key, zone));
            loop {
                let left = until.saturating_duration_since(clock::now());
                match tokio::time::timeout(left.min(LOOK_EVERY), &mut renewal).await {
                    Ok(Some(Ok(entry))) => {
                        self.cache.metrics().misses.inc();
                        return Response { entry, aging: Aging::Fresh };
                    }
                    Ok(_) => break,
                    Err(_) if left <= LOOK_EVERY || zone.group.is_down() => {
                        self.in_flight.outlast(key);
                        break;
                    }
                    Err(_) => {}
                }
            }
        }
        Response { entry: stale, aging: Aging::Stale }
    }

    /// The outcome of asking again; what is asked goes on when nobody waits for it any more.
    ///
    /// One task per exchange, not per query: many may ask for a stale name while upstreams hang.
    async fn renewal(
        self: &Arc<Self>,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> Option<Outcome> {
        match self.in_flight.join(key) {
            Role::Lead(lead) => self.detached(lead, query, key, zone).await.ok(),
            Role::Follow(follow) => {
                self.count_coalesced(zone);
                follow.outcome().await
            }
        }
    }

    /// Does what the others wait for in a task of its own.
    fn detached(
        self: &Arc<Self>,
        lead: Lead,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> JoinHandle<Outcome> {
        let (this, query, zone) = (Arc::clone(self), query.clone(), Arc::clone(zone));
        let key = key.clone();
        tokio::spawn(async move { this.lead(lead, &query, &key, &zone).await })
    }

    /// Asks the zone's upstreams, or waits for an identical query that does.
    pub(super) async fn ask(
        self: &Arc<Self>,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> Outcome {
        loop {
            let epoch = self.cache.epoch_of(key);
            match self.in_flight.join(key) {
                Role::Lead(lead) => return self.lead(lead, query, key, zone).await,
                Role::Follow(follow) => {
                    self.count_coalesced(zone);
                    match follow.outcome().await {
                        // It began before the name changed, and this query came afterwards.
                        Some(Ok(entry)) if entry.epoch() != epoch => {}
                        Some(outcome) => return outcome,
                        None => {}
                    }
                }
            }
        }
    }

    /// Counts a query that waits for an identical one.
    fn count_coalesced(&self, zone: &ForwardZone) {
        self.cache.metrics().coalesced.inc();
        zone.group.counters().coalesced.inc();
    }

    /// Does what the others wait for.
    async fn lead(
        self: &Arc<Self>,
        lead: Lead,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> Outcome {
        // An exchange may have ended between our lookup and now.
        let outcome = match self.cache.fresh(key, clock::now()) {
            Some(entry) => Ok(entry),
            None => self.exchange(query, (key, lead.key()), zone).await,
        };
        lead.finish(&outcome);
        outcome
    }

    /// Asks the zone's upstreams although a fresh answer is there, unless somebody already does.
    pub(super) async fn renew(self: &Arc<Self>, query: &Query, zone: &Arc<ForwardZone>) {
        let key = KeyBuffer::from_query(query);
        if let Role::Lead(lead) = self.in_flight.join(&key) {
            let outcome = self.exchange(query, (&key, lead.key()), zone).await;
            lead.finish(&outcome);
        }
    }

    /// One exchange, remembered: an answer as the law says, a failure for a moment. The key comes in both forms:
    /// one to look up with, one to keep.
    async fn exchange(
        self: &Arc<Self>,
        query: &Query,
        (key, kept): (&KeyBuffer, &Key),
        zone: &Arc<ForwardZone>,
    ) -> Outcome {
        let epoch = self.cache.epoch_of(key);
        let source = Source { zone: zone.id, origin: Origin::Forward, epoch };
        // A reload swaps the routes first and flushes afterwards, as the cluster zone does when it begins
        // to answer for a name: what is asked by routes that were in force after the epoch was read is
        // caught by the flush, anything else is not stored.
        let may_store = self.routes.load().lead_to(zone, &query.qname);
        match self.receive(query, key, zone).await {
            Ok(told) if may_store => {
                let mut offer = zone.rewrite.offer(told.encoded);
                if !told.is_whole {
                    offer.ttl = self.for_a_moment();
                }
                Ok(self.cache.store(kept, offer, source, clock::now()))
            }
            Ok(told) => Ok(Cache::once(told.encoded, source, clock::now())),
            Err(error) => {
                let error = ResolveError::Exchange(Arc::new(error));
                tracing::debug!(qname = %query.qname, qtype = %query.qtype, %error, "resolution failed");
                if error.is_resolution_failure() && may_store {
                    let failure = build::failure(query, error.rcode(), error.ede().as_ref());
                    self.cache.store_failure(key, failure, source, clock::now());
                }
                Err(error)
            }
        }
    }

    /// TTL bounds of what is worth no more than a failure.
    fn for_a_moment(&self) -> TtlBounds {
        TtlBounds { min: Some(Duration::ZERO), max: Some(self.cache.policy().failure_ttl) }
    }

    /// What upstreams say, as the zone wants it: screened, and with addresses synthesised.
    async fn receive(
        self: &Arc<Self>,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> Result<Told, ExchangeError> {
        let began = clock::now();
        let dns64 = zone.rewrite.dns64(query);
        // A server that drops AAAA alone must leave time for A (RFC 6147 §5.1.2).
        let patience = zone.group.timeout() / if dns64.is_some() { 2 } else { 1 };
        let received = match zone.group.exchange_within(query, patience).await.and_then(about) {
            Ok(encoded) => self.whole(query, encoded, began + patience).await,
            Err(error) => Err(error),
        };
        let received = received.map(|told| Told {
            encoded: self.screen(query, key, zone, told.encoded),
            is_whole: told.is_whole,
        });
        match dns64 {
            None => received,
            // Boxed: few zones have it, and each miss would carry it along.
            Some(dns64) => {
                Box::pin(self.with_addresses(query, zone, (dns64, received), began)).await
            }
        }
    }

    /// The response to a query for AAAA, or what is made of A where it has no address.
    ///
    /// A failure counts as NODATA: many a server fails for AAAA alone (RFC 6147 §5.1.2, §5.1.3).
    async fn with_addresses(
        self: &Arc<Self>,
        query: &Query,
        zone: &Arc<ForwardZone>,
        (dns64, received): (&Dns64, Result<Told, ExchangeError>),
        began: Instant,
    ) -> Result<Told, ExchangeError> {
        let received = received.map(|told| Told {
            encoded: zone.rewrite.without_mapped(query, told.encoded),
            is_whole: told.is_whole,
        });
        let is_final = match &received {
            Ok(Told { encoded, .. }) => encoded.has_answer() || encoded.rcode() == Rcode::NXDOMAIN,
            // Real addresses that are known are stale, not gone.
            Err(_) => self.holds(query, |entry| !dns64.has_made(entry.encoded())),
        };
        if is_final {
            return received;
        }
        let asked = Query { qtype: Qtype::A, ..query.clone() };
        let left = zone.group.timeout().saturating_sub(clock::now() - began);
        let response = match self.addresses(&asked, zone, left).await {
            Ok(response) => response,
            // Whether the name has addresses is not known: NODATA would hide it for as long as its SOA says.
            Err(error) => return received.and(Err(error)),
        };
        let least = dns64::least_ttl(received.as_ref().ok().map(|told| &told.encoded));
        match dns64.synthesise(&response, &asked, least) {
            Some(encoded) => Ok(Told { encoded, is_whole: true }),
            None => received,
        }
    }

    /// Tells whether the cache holds an answer to `query`, fresh or stale, for which `is_such`.
    pub(super) fn holds(&self, query: &Query, is_such: impl Fn(&Entry) -> bool) -> bool {
        match self.cache.lookup(&KeyBuffer::from_query(query), clock::now()) {
            Found::Fresh(entry) | Found::Stale(entry) => {
                entry.encoded().has_answer() && is_such(&entry)
            }
            Found::Absent => false,
        }
    }

    /// The response to a query for A, from the cache or within the time that is `left`.
    async fn addresses(
        self: &Arc<Self>,
        asked: &Query,
        zone: &Arc<ForwardZone>,
        left: Duration,
    ) -> Result<Response, ExchangeError> {
        let (key, now) = (KeyBuffer::from_query(asked), clock::now());
        if let Some(entry) = self.cache.fresh(&key, now) {
            return Ok(Response { aging: entry.aging(now), entry });
        }
        let last: Arc<str> = "the upstream".into();
        if let Some(failure) = self.cache.failure(&key, now) {
            let failure = failure.encoded();
            let (rcode, ede) = (failure.rcode(), failure.ede());
            return Err(ExchangeError::Failed { upstream: last, rcode, ede });
        }
        // Others may wait for it, so it goes on when the time is over.
        match tokio::time::timeout(left, self.renewed(asked, &key, zone)).await {
            Ok(Ok(entry)) => Ok(Response { entry, aging: Aging::Fresh }),
            Ok(Err(ResolveError::Exchange(error))) => Err((*error).clone()),
            Ok(Err(_)) | Err(_) => Err(ExchangeError::Timeout { last, waited: left }),
        }
    }

    /// As [`Resolver::ask`]; what is asked goes on when nobody waits for it any more.
    async fn renewed(
        self: &Arc<Self>,
        query: &Query,
        key: &KeyBuffer,
        zone: &Arc<ForwardZone>,
    ) -> Outcome {
        let mut vanished = 0;
        loop {
            let epoch = self.cache.epoch_of(key);
            match self.renewal(query, key, zone).await {
                // It began before the name changed.
                Some(Ok(entry)) if entry.epoch() != epoch => {}
                Some(outcome) => return outcome,
                // Who asked was dropped, or it panicked, which it may do each time.
                None if vanished < MAX_VANISHED => vanished += 1,
                None => return Err(ResolveError::Internal),
            }
        }
    }

    /// Takes out what rebinding protection withholds, counts it, and logs it where it is news.
    fn screen(
        &self,
        query: &Query,
        key: &KeyBuffer,
        zone: &ForwardZone,
        encoded: Encoded,
    ) -> Encoded {
        let (encoded, is_blocked) = zone.rewrite.screen(query, encoded);
        if is_blocked {
            self.metrics.forward.rebind_blocked.inc();
            let before = match self.cache.lookup(key, clock::now()) {
                Found::Fresh(entry) | Found::Stale(entry) => rewrite::is_blocked(entry.encoded()),
                Found::Absent => false,
            };
            if !before {
                tracing::debug!(qname = %query.qname, qtype = %query.qtype, zone = %zone.name,
                    "addresses withheld: rebinding protection");
            }
        }
        encoded
    }
}

/// What of a response is about its question.
pub(super) fn about(received: Received) -> Result<Encoded, ExchangeError> {
    match bailiwick::scrub(received.encoded) {
        Scrubbed::Sound(encoded) => Ok(encoded),
        Scrubbed::Stray => Err(ExchangeError::Failed {
            upstream: received.upstream,
            rcode: Rcode::SERVFAIL,
            ede: Some(STRAY),
        }),
    }
}
