//! ANY over UDP gets a subset: the addresses, or an HINFO that says why there is no more.
//!
//! A whole ANY response is what amplification attacks are made of. Addresses are what programs that
//! ask ANY are after (Java's JNDI does when it wants A and AAAA); by TCP they get everything.
//!
//! Source: RFC 8482 §4.1, §4.2

use std::sync::Arc;

use hickory_proto::op::Message;

use super::alias::decode;
use super::{Carrier, ResolveError, Resolver, Response};
use crate::cache::Source;
use crate::dns::build::{self, LocalRecord};
use crate::dns::ede::{Ede, EdeCode};
use crate::dns::query::Query;
use crate::dns::response::{Aging, Encoded};
use crate::dns::ttl::Ttl;
use crate::dns::{Qtype, Rcode};
use crate::metrics::Origin;

/// How long the HINFO may be kept; RFC 8482 §4.2 leaves it to the operator.
const HINFO_TTL: u32 = 3600;

impl Resolver {
    /// The response to a query of type ANY that came by UDP.
    pub(super) async fn any(self: &Arc<Self>, query: &Query) -> Result<Response, ResolveError> {
        let part = |qtype| Query { qtype, ..query.clone() };
        let (v4, v6) = (part(Qtype::A), part(Qtype::AAAA));
        let (a, aaaa) = tokio::join!(
            Box::pin(self.resolve(&v4, Carrier::Datagram)),
            Box::pin(self.resolve(&v6, Carrier::Datagram))
        );
        let said = [&a, &aaaa].into_iter().flatten().find_map(ede_of);
        let failed = || [&a, &aaaa].into_iter().find_map(|part| part.as_ref().err()?.ede());
        let ede = said.or_else(failed);
        let (a, aaaa) = match (a, aaaa) {
            (Err(error), Err(_)) => return Err(error),
            (a, aaaa) => (a.ok(), aaaa.ok()),
        };
        let some = a.as_ref().or(aaaa.as_ref()).ok_or(ResolveError::Internal)?;
        let source = Source {
            zone: some.entry.zone(),
            origin: some.entry.origin(),
            epoch: self.cache.epoch(query.qname.as_wire()),
        };
        let authoritative = matches!(source.origin, Origin::Local | Origin::Cluster);
        let encoded = merged(query, [(a.as_ref(), &v4), (aaaa.as_ref(), &v6)])
            .ok_or(ResolveError::Internal)?
            .with_authority(authoritative);
        let encoded = match &ede {
            Some(ede) => encoded.with_ede(ede),
            None => encoded,
        };
        Ok(Response::once(encoded, source))
    }
}

/// The extended error that a response is served with.
fn ede_of(response: &Response) -> Option<Ede> {
    let encoded = response.entry.encoded();
    match response.aging {
        Aging::Stale if encoded.rcode() == Rcode::NXDOMAIN => {
            Some(Ede::new(EdeCode::STALE_NXDOMAIN, ""))
        }
        Aging::Stale => Some(Ede::new(EdeCode::STALE_ANSWER, "")),
        Aging::Fresh | Aging::Elapsed(_) => encoded.ede(),
    }
}

/// Both answer sections in one response; HINFO where a name exists without addresses.
fn merged(query: &Query, parts: [(Option<&Response>, &Query); 2]) -> Option<Encoded> {
    let messages: Vec<Message> =
        parts.into_iter().filter_map(|(response, asked)| decode(response?, asked)).collect();
    let rcode = messages.first()?.metadata.response_code;
    let mut answers = Vec::new();
    for record in messages.iter().flat_map(|message| &message.answers) {
        if !answers.contains(record) {
            answers.push(record.clone());
        }
    }
    if answers.is_empty() && u16::from(rcode) == Rcode::NOERROR.0 {
        let hinfo = LocalRecord {
            owner: query.qname.clone(),
            rtype: Qtype::HINFO,
            ttl: Ttl::from_wire(HINFO_TTL),
            rdata: b"\x07RFC8482\0".to_vec(),
        };
        return Some(build::authoritative(query, Rcode::NOERROR, &[hinfo], &[]));
    }
    let empty = build::authoritative(query, Rcode::NOERROR, &[], &[]);
    let mut whole = Message::from_vec(empty.as_wire()).ok()?;
    whole.metadata.response_code = rcode;
    if answers.is_empty() {
        whole.add_authorities(messages.into_iter().next()?.authorities);
    }
    whole.add_answers(answers);
    Encoded::from_wire(&whole.to_vec().ok()?).ok()
}
