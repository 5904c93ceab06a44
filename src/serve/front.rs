//! What a message gets at once: silence, a refusal, a cached response. Or it is a miss.
//!
//! Shared by every way in. [`Front::look`] allocates nothing and awaits nothing.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::allow::AllowList;
use super::quota::Shares;
use super::reply;
use super::socket::UdpSocket;
use crate::cache::entry::Entry;
use crate::cache::key::KeyBuffer;
use crate::dns::ede::{Ede, EdeCode};
use crate::dns::query::{QueryView, Refusal};
use crate::dns::{Qtype, Rcode};
use crate::metrics::{Answered, Arrival, Metrics, Origin, ZoneId};
use crate::resolve::{Resolver, Response};
use crate::telemetry::QueryLog;

/// What may change while we run.
pub struct Policy {
    pub allow: AllowList,
    /// The largest UDP response, in bytes; at most [`super::batch::DATAGRAM`].
    pub udp_payload: u16,
    /// Which queries are logged.
    pub query_log: QueryLog,
}

/// The common part of all front ends.
pub struct Front {
    pub resolver: Arc<Resolver>,
    pub policy: ArcSwap<Policy>,
    pub metrics: Arc<Metrics>,
    /// Queries that are being resolved.
    pub in_flight: Arc<Shares>,
    sockets: Mutex<Vec<Weak<UdpSocket>>>,
}

/// What a message gets.
pub enum Look<'a> {
    /// Nothing: it is no query, or its sender may not even know that we are here.
    Silence,
    /// A header with this RCODE: the message cannot be read as a query.
    Malformed(Rcode),
    /// The question back, with this RCODE and reason.
    Refused(QueryView<'a>, Rcode, Option<Ede>),
    /// A cached response.
    Hit(QueryView<'a>, Arc<Entry>),
    /// To be resolved.
    Miss(QueryView<'a>),
}

/// What was answered, for counters and the query log.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub zone: ZoneId,
    pub qtype: Qtype,
    pub dnssec_ok: bool,
    pub rcode: Rcode,
    pub origin: Origin,
    pub query_len: usize,
    pub response_len: usize,
}

/// What a stub resolver outside the allowed networks is told.
const NOT_ALLOWED: Ede = Ede::new(EdeCode::PROHIBITED, "source not allowed");

/// What a stub resolver is told when too many queries are in flight.
pub const SHED: Ede = Ede::new(EdeCode::OTHER, "too many queries in flight");

impl Front {
    /// A front over `resolver`; `in_flight` bounds the queries that are resolved at one time.
    pub fn new(
        resolver: Arc<Resolver>,
        policy: Policy,
        metrics: Arc<Metrics>,
        in_flight: Arc<Shares>,
    ) -> Self {
        let (policy, sockets) = (ArcSwap::from_pointee(policy), Mutex::default());
        Self { resolver, policy, metrics, in_flight, sockets }
    }

    /// Looks at one message from `source`, which is `allowed` to ask, with the cache.
    pub fn look<'a>(
        &self,
        wire: &'a [u8],
        source: IpAddr,
        now: Instant,
        allowed: bool,
    ) -> Look<'a> {
        let look = vet(wire, allowed);
        let Look::Miss(view) = look else { return look };
        let key = KeyBuffer::from_view(&view);
        match self.resolver.cache().fresh(&key, now) {
            Some(entry) if self.resolver.may_share(&key, source, &entry) => Look::Hit(view, entry),
            _ => look,
        }
    }

    /// Writes what `look` says into `out`, whose length (at least 512) is the limit of the response;
    /// its facts, or `None` when nothing is to be sent now.
    ///
    /// Allocates nothing.
    pub fn answer(
        &self,
        look: &Look<'_>,
        wire: &[u8],
        now: Instant,
        out: &mut [u8],
    ) -> Option<Facts> {
        let (view, rcode, origin, zone, response_len) = match look {
            Look::Silence => {
                self.metrics.serve.malformed.inc();
                return None;
            }
            Look::Miss(_) => return None,
            Look::Malformed(rcode) => {
                self.metrics.serve.malformed.inc();
                let response_len = reply::header(wire, *rcode, out);
                return Some(Facts::of_malformed(*rcode, wire.len(), response_len));
            }
            Look::Refused(view, rcode, ede) => {
                self.count_refusal(*rcode);
                let len = reply::refusal(view, *rcode, ede.as_ref(), out);
                (view, *rcode, Origin::Failure, ZoneId::NONE, len)
            }
            Look::Hit(view, entry) => {
                let len = entry.encoded().fit(view, entry.aging(now), out.len(), out);
                (view, entry.encoded().rcode(), hit_origin(entry), entry.zone(), len)
            }
        };
        Some(Facts {
            zone,
            qtype: view.qtype(),
            dnssec_ok: view.dnssec_ok(),
            rcode,
            origin,
            query_len: wire.len(),
            response_len,
        })
    }

    /// Writes a stale response into `out`, whose length (at least 512) is its limit.
    pub fn answer_stale(
        &self,
        (view, stale): (&QueryView<'_>, &Response),
        query_len: usize,
        out: &mut [u8],
    ) -> Facts {
        let encoded = stale.entry.encoded();
        let response_len = encoded.fit(view, stale.aging, out.len(), out);
        Facts {
            zone: stale.entry.zone(),
            qtype: view.qtype(),
            dnssec_ok: view.dnssec_ok(),
            rcode: encoded.rcode(),
            origin: Origin::Stale,
            query_len,
            response_len,
        }
    }

    /// Counts a refusal under its kind.
    fn count_refusal(&self, rcode: Rcode) {
        let serve = &self.metrics.serve;
        if rcode == Rcode::BADVERS {
            serve.malformed.inc()
        } else {
            serve.refused.inc()
        };
    }

    /// Remembers more UDP sockets whose drops are to be counted.
    pub fn watch_drops(&self, sockets: impl IntoIterator<Item = Weak<UdpSocket>>) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).extend(sockets);
    }

    /// Datagrams that the kernel dropped at our sockets since they were bound.
    pub fn receive_drops(&self) -> u64 {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().filter_map(Weak::upgrade).map(|socket| socket.drops()).sum()
    }
}

/// Looks at one message without the cache: all that may be asked is a [`Look::Miss`].
///
/// Who is not `allowed` to ask gets REFUSED for a query and silence for the rest.
pub fn vet(wire: &[u8], allowed: bool) -> Look<'_> {
    let view = match QueryView::parse(wire) {
        Ok(view) => view,
        Err(Refusal::Header(rcode)) if allowed => return Look::Malformed(rcode),
        Err(_) => return Look::Silence,
    };
    if !allowed {
        return Look::Refused(view, Rcode::REFUSED, Some(NOT_ALLOWED));
    }
    if view.edns().is_some_and(|edns| edns.version != 0) {
        return Look::Refused(view, Rcode::BADVERS, None);
    }
    Look::Miss(view)
}

impl<'a> Look<'a> {
    /// The qname in wire form; the root where the message is no query.
    pub fn qname(&self) -> &'a [u8] {
        match self {
            Self::Silence | Self::Malformed(_) => &[0],
            Self::Refused(view, ..) | Self::Hit(view, _) | Self::Miss(view) => view.qname(),
        }
    }
}

/// Entries of our own data count as what they are, all others as hits.
fn hit_origin(entry: &Entry) -> Origin {
    match entry.origin() {
        origin @ (Origin::Local | Origin::Cluster) => origin,
        _ => Origin::Hit,
    }
}

impl Facts {
    /// The facts of a message without a usable question.
    pub(super) fn of_malformed(rcode: Rcode, query_len: usize, response_len: usize) -> Self {
        Self {
            zone: ZoneId::NONE,
            qtype: Qtype(0),
            dnssec_ok: false,
            rcode,
            origin: Origin::Failure,
            query_len,
            response_len,
        }
    }

    /// The same as the metrics take it.
    pub fn answered(&self, arrival: Arrival, duration: std::time::Duration) -> Answered {
        Answered {
            arrival,
            zone: self.zone,
            qtype: self.qtype,
            dnssec_ok: self.dnssec_ok,
            rcode: self.rcode,
            origin: self.origin,
            query_len: self.query_len,
            response_len: self.response_len,
            duration,
        }
    }
}

const _: () = assert!(reply::REFUSAL_LEN <= 512);
