//! Answers that depend on the pod that asks: what its search list finds further down, and what it may not
//! see. Nothing of it is stored: parts that are the same for everybody are, each under its own name.
//!
//! Source: CoreDNS, plugin autopath

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::alias::{MAX_ALIASES, joined};
use super::bailiwick::target_of;
use super::{Carrier, ResolveError, Resolver, Response, error};
use crate::cache::Source;
use crate::cache::entry::Entry;
use crate::cache::key::{KeyBuffer, Lookup};
use crate::clock;
use crate::cluster::Cluster;
use crate::cluster::asker::Asker;
use crate::cluster::zone::Answer;
use crate::dns::build::LocalRecord;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::{Qclass, Qtype, Rcode};
use crate::metrics::{Origin, ZoneId};

/// How long a walk down a search list may take: as long as one exchange, and less than a stub resolver waits.
const SEARCH_TIME: Duration = Duration::from_millis(4500);

/// One asker, and what decides about it.
#[derive(Clone, Copy)]
struct To<'a> {
    cluster: &'a Cluster,
    asker: &'a Asker,
}

impl To<'_> {
    /// Tells whether the asker may be told every name in a response: of owners, and those that records lead to.
    fn may_see(self, encoded: &Encoded) -> bool {
        let is_shown = |at| {
            let name = Name::from_message(encoded.as_wire(), at);
            name.is_some_and(|name| self.cluster.shows(&name, self.asker))
        };
        encoded
            .records()
            .all(|(_, record)| is_shown(record.start) && target_of(&record).is_none_or(is_shown))
    }
}

impl Resolver {
    /// The same resolver, which minds who asks where `cluster` does.
    #[must_use]
    pub fn with_askers(self, cluster: Option<Arc<Cluster>>) -> Self {
        let askers = cluster.filter(|cluster| cluster.minds_askers());
        Self { askers, ..self }
    }

    /// Tells whether who asks from `source` may be given this entry of the cache, and counts it where it may.
    /// Allocates nothing.
    pub fn may_share(&self, key: &KeyBuffer, source: IpAddr, entry: &Entry) -> bool {
        let Some(cluster) = &self.askers else { return true };
        let encoded = entry.encoded();
        let forwarded = (entry.origin() == Origin::Forward).then(|| encoded.as_wire());
        let may_share = cluster.may_share(key.qname(), source, encoded.rcode(), forwarded);
        if may_share {
            cluster.count(source);
        }
        may_share
    }

    /// The response to who asks from `source`.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_for(
        self: &Arc<Self>,
        query: &Query,
        carrier: Carrier,
        source: IpAddr,
    ) -> Result<Response, ResolveError> {
        match &self.askers {
            None => self.resolve(query, carrier).await,
            // Boxed: each miss would carry it along.
            Some(cluster) => Box::pin(self.resolve_to(query, carrier, (cluster, source))).await,
        }
    }

    /// The response to one asker: what it sees under the name, or what it would find by its search list.
    async fn resolve_to(
        self: &Arc<Self>,
        query: &Query,
        carrier: Carrier,
        (cluster, source): (&Cluster, IpAddr),
    ) -> Result<Response, ResolveError> {
        cluster.count(source);
        let asker = cluster.asker(source);
        let to = To { cluster, asker: &asker };
        let first = self.seen(query, carrier, to).await?;
        let is_searched = first.entry.encoded().rcode() == Rcode::NXDOMAIN
            && query.qclass == Qclass::IN
            && query.qtype != Qtype::ANY
            // An alias exists, whatever its target is.
            && first.entry.encoded().answer_types().next().is_none();
        let rest = is_searched.then(|| cluster.search_on(&query.qname, &asker)).flatten();
        let found = match rest {
            Some(rest) => {
                tokio::time::timeout(SEARCH_TIME, self.search(query, rest, to)).await.ok().flatten()
            }
            None => None,
        };
        Ok(found.unwrap_or(first))
    }

    /// What the first of these names that exists says, behind an alias that leads to it.
    ///
    /// When one of them cannot be resolved nothing is found: the pod walks on by itself.
    async fn search(
        self: &Arc<Self>,
        query: &Query,
        rest: Vec<Name>,
        to: To<'_>,
    ) -> Option<Response> {
        for qname in rest {
            let target = Query { qname, ..query.clone() };
            let response = self.seen(&target, Carrier::Stream, to).await.ok()?;
            match response.entry.encoded().rcode() {
                Rcode::NXDOMAIN => {}
                Rcode::NOERROR => {
                    if response.entry.claims_prefetch(clock::now()) {
                        self.prefetch(target.clone());
                    }
                    self.metrics.zone.search_answers.inc();
                    let alias = LocalRecord {
                        owner: query.qname.clone(),
                        rtype: Qtype::CNAME,
                        ttl: to.cluster.settings().ttl,
                        rdata: target.qname.as_wire().to_vec(),
                    };
                    return self.led(query, &[alias], (&target, &response));
                }
                _ => return None,
            }
        }
        None
    }

    /// The response to `query` as this asker sees it.
    async fn seen(
        self: &Arc<Self>,
        query: &Query,
        carrier: Carrier,
        to: To<'_>,
    ) -> Result<Response, ResolveError> {
        error::refuse(query)?;
        if query.qclass == Qclass::CH || !to.cluster.hides(to.asker) {
            return self.resolve(query, carrier).await;
        }
        if to.cluster.shows_all_of(&query.qname, to.asker) {
            // By UDP an ANY is answered with addresses, and would follow the alias for everybody.
            let of_addresses = Query { qtype: Qtype::A, ..query.clone() };
            let is_any = query.qtype == Qtype::ANY && self.own_alias(&of_addresses).is_some();
            let carrier = if is_any { Carrier::Stream } else { carrier };
            return match self.own_alias(query) {
                Some(alias) => self.seen_behind(query, alias, to).await,
                None => Ok(self.screened(query, self.resolve(query, carrier).await?, to)),
            };
        }
        match to.cluster.answer_to(query, to.asker) {
            Some(Answer::Whole(encoded)) => Ok(self.once(query, encoded)),
            Some(Answer::Alias(alias)) => self.seen_behind(query, alias, to).await,
            None => Ok(self.screened(query, self.resolve(query, carrier).await?, to)),
        }
    }

    /// The response, or one without data where it names what the asker does not see: the cluster zone minds
    /// that itself, others do not.
    ///
    /// An alias of a hidden name leads to no such name, and a reverse name is as if nobody had it. Any other
    /// name exists, whatever its records lead to: NXDOMAIN would deny those of its other types too.
    ///
    /// Source: RFC 6604 §3, RFC 8020 §2
    fn screened(&self, query: &Query, response: Response, to: To<'_>) -> Response {
        let encoded = response.entry.encoded();
        let origin = response.entry.origin();
        // What an alias of our own leads to is told to who asks for an address.
        let is_own_alias = origin == Origin::Local && query.qtype == Qtype::CNAME;
        if origin == Origin::Cluster || is_own_alias || to.may_see(encoded) {
            return response;
        }
        self.denied(query, to, exists_behind(encoded, 0) && !is_reverse(&query.qname))
    }

    /// That there is no such name, or where it `exists` nothing of the type.
    fn denied(&self, query: &Query, to: To<'_>, exists: bool) -> Response {
        self.metrics.zone.denials.inc();
        let rcode = if exists { Rcode::NOERROR } else { Rcode::NXDOMAIN };
        let encoded = to.cluster.denial(query, rcode);
        self.served(query, encoded, (self.zone_of(query), Origin::Cluster))
    }

    /// The response to `query`, whose name is this alias, as the asker sees its target.
    async fn seen_behind(
        self: &Arc<Self>,
        query: &Query,
        alias: LocalRecord,
        to: To<'_>,
    ) -> Result<Response, ResolveError> {
        let mut aliases = vec![alias];
        while aliases.len() <= MAX_ALIASES {
            let last = aliases.last().expect("one is pushed before the loop");
            let name = Name::from_wire(&last.rdata).ok_or(ResolveError::Internal)?;
            let target = Query { qname: name, ..query.clone() };
            let is_shown = to.cluster.shows_all_of(&target.qname, to.asker);
            match self.own_alias(&target).filter(|_| is_shown) {
                Some(alias) => aliases.push(alias),
                None if is_shown => {
                    let whole = self.resolve(query, Carrier::Stream).await?;
                    if to.may_see(whole.entry.encoded()) {
                        return Ok(whole);
                    }
                    let exists = exists_behind(whole.entry.encoded(), aliases.len());
                    let denied = self.denied(&target, to, exists && !is_reverse(&target.qname));
                    let led = self.led(query, &aliases, (&target, &denied));
                    return led.ok_or(ResolveError::Internal);
                }
                None => {
                    let response = Box::pin(self.seen(&target, Carrier::Stream, to)).await?;
                    let led = self.led(query, &aliases, (&target, &response));
                    return led.ok_or(ResolveError::Internal);
                }
            }
        }
        Err(ResolveError::AliasChain)
    }

    /// The target's response behind aliases that lead to it; authoritative where the target's is.
    fn led(
        &self,
        query: &Query,
        aliases: &[LocalRecord],
        (target, response): (&Query, &Response),
    ) -> Option<Response> {
        let encoded = joined(query, aliases, target, response)?;
        let origin = response.entry.origin();
        let encoded = encoded.with_authority(origin == Origin::Cluster);
        Some(self.served(query, encoded, (response.entry.zone(), origin)))
    }

    /// What the cluster zone says to this asker alone.
    fn once(&self, query: &Query, encoded: Encoded) -> Response {
        if encoded.rcode() == Rcode::NXDOMAIN {
            self.metrics.zone.denials.inc();
        }
        self.served(query, encoded, (self.zone_of(query), Origin::Cluster))
    }

    /// A response that is served once and not stored.
    fn served(
        &self,
        query: &Query,
        encoded: Encoded,
        (zone, origin): (ZoneId, Origin),
    ) -> Response {
        let epoch = self.cache.epoch(query.qname.as_wire());
        Response::once(encoded, Source { zone, origin, epoch })
    }
}

/// Tells whether the name that this many aliases lead to exists in a response, and is no alias itself.
fn exists_behind(encoded: &Encoded, aliases: usize) -> bool {
    let is_alias = |rtype: &Qtype| *rtype == Qtype::CNAME;
    encoded.rcode() == Rcode::NOERROR && encoded.answer_types().filter(is_alias).count() <= aliases
}

/// Tells whether a name stands for an address.
fn is_reverse(name: &Name) -> bool {
    name.as_wire().ends_with(b"\x04arpa\0")
}
