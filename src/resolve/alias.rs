//! CNAMEs of our own data: the target is resolved in the same response.

use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Message;
use hickory_proto::rr::{self, RData};

use super::forward::{Told, about};
use super::{Carrier, ResolveError, Resolver, Response, Route};
use crate::cache::Source;
use crate::clock;
use crate::cluster::zone::Answer;
use crate::dns::build::{self, LocalRecord};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::{Qtype, Rcode, edns};
use crate::metrics::Origin;
use crate::upstream::ExchangeError;

/// Aliases of our own that one response follows; a forwarded chain has been followed upstream.
pub(super) const MAX_ALIASES: usize = 8;

impl Resolver {
    /// The response to `query`, whose name is an alias of our own data.
    ///
    /// RCODE and authority section are the target's (RFC 6604 §2). Not stored: the target's
    /// response is, and it ages.
    pub(super) async fn follow(
        self: &Arc<Self>,
        query: &Query,
        alias: LocalRecord,
        origin: Origin,
    ) -> Result<Response, ResolveError> {
        let mut aliases = vec![alias];
        let target = loop {
            let last = aliases.last().expect("one is pushed before the loop");
            let name = Name::from_wire(&last.rdata).ok_or(ResolveError::Internal)?;
            let next = Query { qname: name, ..query.clone() };
            match self.own_alias(&next) {
                Some(_) if aliases.len() == MAX_ALIASES => return Err(ResolveError::AliasChain),
                Some(alias) => aliases.push(alias),
                None => break next,
            }
        };
        let response = Box::pin(self.resolve(&target, Carrier::Stream)).await?;
        let encoded = joined(query, &aliases, &target, &response).ok_or(ResolveError::Internal)?;
        // As CoreDNS has it: the zone's own alias is authoritative (RFC 1035 §4.1.1).
        let encoded = encoded.with_authority(origin == Origin::Cluster);
        let source = Source {
            zone: response.entry.zone(),
            origin,
            epoch: self.cache.epoch(query.qname.as_wire()),
        };
        Ok(Response::once(encoded, source))
    }

    /// The response with the target of its alias, where an authoritative upstream left that out: the target
    /// is asked of the forward zone that it lies in.
    ///
    /// # Errors
    /// Why the target could not be resolved by `until`, where an answer to the same question is held that is
    /// whole. Where there is none, what is known of the alias is better than nothing.
    ///
    /// Source: RFC 1034 §4.3.2 step 3a, done by the server for its own zones only
    pub(super) async fn whole(
        self: &Arc<Self>,
        query: &Query,
        encoded: Encoded,
        until: Instant,
    ) -> Result<Told, ExchangeError> {
        if !is_dangling(&encoded) {
            return Ok(Told { encoded, is_whole: true });
        }
        // Boxed: it is rare, and each miss would carry it along.
        match Box::pin(self.targets(query, &encoded, until)).await {
            Ok(followed) => Ok(Told { encoded: followed.unwrap_or(encoded), is_whole: true }),
            Err(error) if self.holds(query, |_| true) => Err(error),
            Err(_) => Ok(Told { encoded, is_whole: false }),
        }
    }

    /// The message with the targets of its alias, of as many aliases as there are and allowed; `None` where
    /// they lead nowhere, round, or away from the forward zones.
    async fn targets(
        &self,
        query: &Query,
        encoded: &Encoded,
        until: Instant,
    ) -> Result<Option<Encoded>, ExchangeError> {
        let Ok(mut whole) = Message::from_vec(encoded.as_wire()) else { return Ok(None) };
        let routes = self.routes();
        for _ in 0..MAX_ALIASES {
            let Some(target) = last_target(&whole, query) else { return Ok(None) };
            let Some(qname) = wire_of(&target) else { return Ok(None) };
            let next = Query { qname, ..query.clone() };
            let Route::Forward(zone) = routes.route(&next.qname) else { return Ok(None) };
            let left = until.saturating_duration_since(clock::now());
            let received = zone.group.exchange_within(&next, left).await.and_then(about)?;
            let Ok(part) = Message::from_vec(received.as_wire()) else { return Ok(None) };
            append(&mut whole, part, (&next.qname, &target));
            if !is_dangling(&received) {
                let wire = whole.to_vec().ok();
                return Ok(wire.and_then(|wire| Encoded::from_wire(&wire).ok()));
            }
        }
        Ok(None)
    }

    /// The alias of our own data or of the cluster zone at the query's name, if its type leads there.
    pub(super) fn own_alias(&self, query: &Query) -> Option<LocalRecord> {
        let routes = self.routes.load();
        match routes.route(&query.qname) {
            Route::Local(answer) => match answer.encode(query) {
                super::LocalAnswer::Alias(alias) => Some(alias),
                super::LocalAnswer::Whole(_) => None,
            },
            Route::Cluster(zone) => match zone.cluster.answer(query)? {
                Answer::Alias(alias) => Some(alias),
                Answer::Whole(_) => None,
            },
            Route::Forward(_) => None,
        }
    }
}

/// Adds to an alias what was said of its target, by both of its forms.
fn append(whole: &mut Message, part: Message, (qname, target): (&Name, &rr::Name)) {
    whole.metadata.response_code = part.metadata.response_code;
    whole.metadata.authentic_data &= part.metadata.authentic_data;
    whole.answers.extend(part.answers.into_iter().map(|mut record| {
        // The owner came back in the case that our query was mixed to.
        if wire_of(&record.name).as_ref() == Some(qname) {
            record.name = target.clone();
        }
        record
    }));
    whole.authorities = part.authorities;
}

/// Tells whether a response says nothing but an alias: neither what stands at its target nor that nothing does.
fn is_dangling(encoded: &Encoded) -> bool {
    encoded.rcode() == Rcode::NOERROR
        && !encoded.has_answer()
        && encoded.answer_types().any(|rtype| rtype == Qtype::CNAME)
        && encoded.negative_ttl().is_none()
}

/// Where the chain of aliases in `message` that begins with the query's name leads; `None` where it leads
/// nowhere or round.
fn last_target(message: &Message, query: &Query) -> Option<rr::Name> {
    let (mut name, mut last) = (query.qname.clone(), None);
    for _ in 0..=message.answers.len() {
        let leads_on = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if wire_of(&record.name)? == name => Some(target.0.clone()),
            _ => None,
        });
        let Some(target) = leads_on else { return last };
        name = wire_of(&target)?;
        last = Some(target);
    }
    None
}

/// A name of hickory's as ours.
fn wire_of(name: &rr::Name) -> Option<Name> {
    let mut wire = Vec::new();
    for label in name.iter() {
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend(label);
    }
    wire.push(0);
    Name::from_wire(&wire)
}

/// The target's response under the alias' question, with the aliases in front.
pub(super) fn joined(
    query: &Query,
    aliases: &[LocalRecord],
    target: &Query,
    response: &Response,
) -> Option<Encoded> {
    let mut message = decode(response, target)?;
    let front = build::authoritative(query, Rcode::NOERROR, aliases, &[]);
    let mut whole = Message::from_vec(front.as_wire()).ok()?;
    whole.metadata.response_code = message.metadata.response_code;
    whole.add_answers(std::mem::take(&mut message.answers));
    whole.add_authorities(std::mem::take(&mut message.authorities));
    whole.edns = message.edns.take();
    let encoded = Encoded::from_wire(&whole.to_vec().ok()?).ok()?;
    // Load is spread over the target's addresses under every name that leads to them.
    Some(if response.entry.encoded().rotates() { encoded.with_rotation() } else { encoded })
}

/// The response as hickory's message, with its TTLs as they are now, and in its EDNS why it is what it is.
pub(super) fn decode(response: &Response, query: &Query) -> Option<Message> {
    let encoded = response.entry.encoded();
    let wire = query.to_wire(0, query.qname.as_wire(), true);
    let view = crate::dns::query::QueryView::parse(&wire).ok()?;
    let mut out = vec![0; encoded.max_fitted_len()];
    let len = encoded.fit(&view, response.aging, usize::from(u16::MAX) + edns::OPT_LEN, &mut out);
    Message::from_vec(&out[..len]).ok()
}
