//! CNAMEs of our own data: the target is resolved in the same response.

use std::sync::Arc;

use hickory_proto::op::Message;

use super::{Carrier, ResolveError, Resolver, Response};
use crate::cache::Source;
use crate::dns::build::{self, LocalRecord};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::{Rcode, edns};
use crate::metrics::Origin;

/// Aliases of our own that one response follows; a forwarded chain has been followed upstream.
const MAX_ALIASES: usize = 8;

impl Resolver {
    /// The response to `query`, whose name is an alias of our own data.
    ///
    /// RCODE and authority section are the target's (RFC 6604 §2). Not stored: the target's
    /// response is, and it ages.
    pub(super) async fn follow(
        self: &Arc<Self>,
        query: &Query,
        alias: LocalRecord,
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
        let source = Source {
            zone: response.entry.zone(),
            origin: Origin::Local,
            epoch: self.cache.epoch(query.qname.as_wire()),
        };
        Ok(Response::once(encoded, source))
    }

    /// The alias of our own data at the query's name, if its type leads there.
    fn own_alias(&self, query: &Query) -> Option<LocalRecord> {
        let routes = self.routes.load();
        match routes.local().exact(&query.qname)?.encode(query) {
            super::LocalAnswer::Alias(alias) => Some(alias),
            super::LocalAnswer::Whole(_) => None,
        }
    }
}

/// The target's response under the alias' question, with the aliases in front.
fn joined(
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
    Encoded::from_wire(&whole.to_vec().ok()?).ok().map(|encoded| encoded.with_authority(false))
}

/// The response as hickory's message, with its TTLs as they are now.
pub(super) fn decode(response: &Response, query: &Query) -> Option<Message> {
    let encoded = response.entry.encoded();
    let wire = query.to_wire(0, query.qname.as_wire(), true);
    let view = crate::dns::query::QueryView::parse(&wire).ok()?;
    let mut out = vec![0; encoded.max_fitted_len()];
    let len = encoded.fit(&view, response.aging, usize::from(u16::MAX) + edns::OPT_LEN, &mut out);
    let mut message = Message::from_vec(&out[..len]).ok()?;
    message.edns = None;
    Some(message)
}
