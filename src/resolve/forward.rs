//! The forward side: cache, then the exchange that identical queries share, then the cache again.

use std::sync::Arc;
use std::time::Duration;

use super::inflight::{Outcome, Role};
use super::route::ForwardZone;
use super::{ResolveError, Resolver, Response};
use crate::cache::entry::Entry;
use crate::cache::key::KeyBuffer;
use crate::cache::{Found, Source};
use crate::clock;
use crate::dns::build;
use crate::dns::query::Query;
use crate::dns::response::Aging;
use crate::metrics::Origin;

/// How long a stub resolver waits for upstreams before it gets a stale answer.
///
/// Source: RFC 8767 §5 (client response timer)
const STALE_AFTER: Duration = Duration::from_millis(1800);

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
            _ if !query.recursion_desired => return Err(ResolveError::NotRecursive),
            Found::Stale(entry) => return Ok(self.renew_or_stale(query, &key, zone, entry).await),
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
        if self.cache.failure(key, clock::now()).is_none() {
            // In a task of its own: it goes on when the stale answer has been given.
            let renewal = tokio::spawn({
                let (this, query, zone) = (Arc::clone(self), query.clone(), Arc::clone(zone));
                let key = key.clone();
                async move { this.ask(&query, &key, &zone).await }
            });
            let patience = if zone.group.is_down() { Duration::ZERO } else { STALE_AFTER };
            if let Ok(Ok(Ok(entry))) = tokio::time::timeout(patience, renewal).await {
                return Response { entry, aging: Aging::Fresh };
            }
        }
        Response { entry: stale, aging: Aging::Stale }
    }

    /// Asks the zone's upstreams, or waits for an identical query that does.
    pub(super) async fn ask(&self, query: &Query, key: &KeyBuffer, zone: &ForwardZone) -> Outcome {
        loop {
            match self.in_flight.join(key) {
                Role::Lead(lead) => {
                    // An exchange may have ended between our lookup and now.
                    let outcome = match self.cache.fresh(key, clock::now()) {
                        Some(entry) => Ok(entry),
                        None => self.exchange(query, key, zone).await,
                    };
                    lead.finish(&outcome);
                    return outcome;
                }
                Role::Follow(follow) => {
                    self.cache.metrics().coalesced.inc();
                    if let Some(outcome) = follow.outcome().await {
                        return outcome;
                    }
                }
            }
        }
    }

    /// Asks the zone's upstreams although a fresh answer is there, unless somebody already does.
    pub(super) async fn renew(&self, query: &Query, zone: &ForwardZone) {
        let key = KeyBuffer::from_query(query);
        if let Role::Lead(lead) = self.in_flight.join(&key) {
            lead.finish(&self.exchange(query, &key, zone).await);
        }
    }

    /// One exchange, remembered: an answer as the law says, a failure for a moment.
    async fn exchange(&self, query: &Query, key: &KeyBuffer, zone: &ForwardZone) -> Outcome {
        let epoch = self.cache.epoch(key.qname());
        let source = Source { zone: zone.id, origin: Origin::Forward, epoch };
        match zone.group.exchange(query).await {
            Ok(received) => Ok(self.cache.store(key, received.encoded, source, clock::now())),
            Err(error) => {
                let error = ResolveError::Exchange(Arc::new(error));
                tracing::debug!(qname = %query.qname, qtype = %query.qtype, %error, "resolution failed");
                if error.is_resolution_failure() {
                    let failure = build::failure(query, error.rcode(), error.ede().as_ref());
                    self.cache.store_failure(key, failure, source, clock::now());
                }
                Err(error)
            }
        }
    }
}
