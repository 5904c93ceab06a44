//! Answers every miss, whatever the way in: our own UDP and TCP front ends, and hickory's servers.
//!
//! Our front ends ask [`handle`], in wire form both ways: hickory's own reading of a query, and what
//! its `RequestHandler` needs around each one, cost a miss 8,000 instructions of 55,000. hickory's
//! servers ask the `RequestHandler`, which answers with records.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use hickory_proto::op::{Header, Message};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use hickory_server::net::NetError;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::front::{Facts, Front, Look, vet};
use super::reply;
use crate::clock;
use crate::dns::query::{Query, QueryView};
use crate::metrics::{Arrival, Origin, Tally};
use crate::resolve::{Carrier, ResolveError, Response};

/// The largest message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Answers what the hot path could not.
pub struct Handler {
    front: Arc<Front>,
    tally: Arc<Tally>,
}

impl Handler {
    /// A handler over `front`, with counters of its own.
    pub fn new(front: Arc<Front>) -> Self {
        let tally = front.metrics.tally();
        Self { front, tally }
    }

    /// The response to one message in wire form, from a source that may or may not ask; `None` when
    /// nothing goes back.
    async fn respond(
        &self,
        wire: &[u8],
        (source, carrier): (SocketAddr, Carrier),
        allowed: bool,
    ) -> Answer {
        let look = vet(wire, allowed);
        let Look::Miss(view) = look else {
            let mut out = vec![0; reply::REFUSAL_LEN];
            let facts = self.front.answer(&look, wire, clock::now(), &mut out);
            return facts.map(|facts| finished(out, facts));
        };
        let limit = match carrier {
            Carrier::Datagram => view.udp_limit(self.front.policy.load().udp_payload),
            Carrier::Stream => MAX_MESSAGE,
        };
        let query = view.to_query();
        // Caught poll by poll, and pinned where it stays: its kilobytes would be moved for each query.
        let mut resolving = pin!(self.front.resolver.resolve_for(&query, carrier, source.ip()));
        let outcome = poll_fn(|context| {
            let polling = AssertUnwindSafe(|| resolving.as_mut().poll(context));
            catch_unwind(polling).unwrap_or_else(|_| Poll::Ready(Err(self.caught(&query))))
        });
        let outcome = outcome.await;
        let writing = || match &outcome {
            Ok(response) => fitted(&view, response, limit, wire.len()),
            Err(error) => self.failed(&view, wire.len(), &query, error),
        };
        Some(
            catch_unwind(AssertUnwindSafe(writing))
                .unwrap_or_else(|_| self.failed(&view, wire.len(), &query, &self.caught(&query))),
        )
    }

    /// Counts a panic over a query.
    fn caught(&self, query: &Query) -> ResolveError {
        self.front.metrics.serve.panics.inc();
        tracing::error!(qname = %query.qname, qtype = %query.qtype, "a panic was caught");
        ResolveError::Internal
    }

    /// The response that tells of a failure.
    fn failed(
        &self,
        view: &QueryView<'_>,
        query_len: usize,
        query: &Query,
        error: &ResolveError,
    ) -> (Vec<u8>, Facts) {
        let mut out = vec![0; reply::REFUSAL_LEN];
        let (rcode, ede) = (error.rcode(), error.ede());
        let response_len = reply::refusal(view, rcode, ede.as_ref(), &mut out);
        let facts = Facts {
            zone: self.front.resolver.zone_of(query),
            qtype: query.qtype,
            dnssec_ok: query.dnssec_ok,
            rcode,
            origin: Origin::Failure,
            query_len,
            response_len,
        };
        finished(out, facts)
    }
}

/// A response with its facts, or nothing.
type Answer = Option<(Vec<u8>, Facts)>;

/// Cuts the buffer to what was written.
fn finished(mut out: Vec<u8>, facts: Facts) -> (Vec<u8>, Facts) {
    out.truncate(facts.response_len);
    (out, facts)
}

/// The response fitted to the stub resolver.
fn fitted(
    view: &QueryView<'_>,
    response: &Response,
    limit: usize,
    query_len: usize,
) -> (Vec<u8>, Facts) {
    let encoded = response.entry.encoded();
    // The allocator passes its quick bins by for memory that is to be zero from the start.
    #[expect(clippy::slow_vector_initialization)]
    let mut out = Vec::with_capacity(encoded.max_fitted_len());
    out.resize(encoded.max_fitted_len(), 0);
    let response_len = encoded.fit(view, response.aging, limit, &mut out);
    let origin = match response.aging {
        crate::dns::response::Aging::Stale => Origin::Stale,
        _ => response.entry.origin(),
    };
    let facts = Facts {
        zone: response.entry.zone(),
        qtype: view.qtype(),
        dnssec_ok: view.dnssec_ok(),
        rcode: encoded.rcode(),
        origin,
        query_len,
        response_len,
    };
    finished(out, facts)
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        response_handle: R,
    ) -> ResponseInfo {
        let started = clock::now();
        let carrier = match request.protocol() {
            Protocol::Udp => Carrier::Datagram,
            _ => Carrier::Stream,
        };
        let allowed = self.front.policy.load().allow.contains(request.src().ip());
        let from = (request.src(), carrier);
        let answer = self.respond(request.as_slice(), from, allowed).await;
        let Some((wire, facts)) = answer else { return info_of(request.as_slice()) };
        let info = info_of(&wire);
        if let Err(error) = send_records(request, &wire, response_handle).await {
            tracing::debug!(%error, "response not sent");
            self.front.metrics.serve.send_failures.inc();
        }
        self.account(&facts, request.as_slice(), from, started);
        info
    }
}

impl Handler {
    /// Counts and logs what was answered to the message `wire`.
    fn account(&self, facts: &Facts, wire: &[u8], from: (SocketAddr, Carrier), started: Instant) {
        let (source, carrier) = from;
        let duration = clock::now().saturating_duration_since(started);
        let answered = facts.answered(arrival_of(source, carrier), duration);
        self.tally.record(&answered);
        let log = self.front.policy.load().query_log;
        if log.is_on()
            && let Ok(view) = QueryView::parse(wire)
        {
            log.log(source, view.qname(), &answered);
        }
    }
}

/// The metrics' word for how a query came in.
pub fn arrival_of(source: SocketAddr, carrier: Carrier) -> Arrival {
    match (carrier, source.ip().to_canonical().is_ipv4()) {
        (Carrier::Datagram, true) => Arrival::Udp4,
        (Carrier::Datagram, false) => Arrival::Udp6,
        (Carrier::Stream, true) => Arrival::Tcp4,
        (Carrier::Stream, false) => Arrival::Tcp6,
    }
}

/// Header facts of a message, as hickory wants them back.
fn info_of(wire: &[u8]) -> ResponseInfo {
    let header = Header::read(&mut BinDecoder::new(wire));
    ResponseInfo::from(header.expect("both queries and our responses have a whole header"))
}

/// Hands a response to a `ResponseHandler` that takes records.
async fn send_records<R: ResponseHandler>(
    request: &Request,
    wire: &[u8],
    mut handle: R,
) -> Result<ResponseInfo, NetError> {
    let message = Message::from_vec(wire).map_err(|error| NetError::from(error.to_string()))?;
    let builder = MessageResponseBuilder::new(&request.queries, message.edns.as_ref());
    let none: [Record; 0] = [];
    let response = builder.build(
        message.metadata,
        message.answers.iter(),
        message.authorities.iter(),
        none.iter(),
        message.additionals.iter(),
    );
    handle.send_response(response).await
}

/// Resolves one message that came in over a front end of our own, which has seen that its source may
/// ask; `None`: nothing goes back. It counts as answered where `is_owed` still holds by then.
pub async fn handle(
    handler: &Handler,
    wire: &[u8],
    from: (SocketAddr, Carrier),
    received: Instant,
    is_owed: impl Fn() -> bool,
) -> Option<Vec<u8>> {
    let (response, facts) = handler.respond(wire, from, true).await?;
    if is_owed() {
        handler.account(&facts, wire, from, received);
    }
    Some(response)
}

/// The response to a query by UDP that has waited in vain: a stale one if there is one. `None` when its
/// message cannot be read.
pub fn shed(
    handler: &Handler,
    wire: &[u8],
    source: SocketAddr,
    received: Instant,
) -> Option<Vec<u8>> {
    let view = QueryView::parse(wire).ok()?;
    let (response, facts) = match handler.front.resolver.stale(&view, source.ip()) {
        Some(stale) => {
            let limit = view.udp_limit(handler.front.policy.load().udp_payload);
            fitted(&view, &stale, limit, wire.len())
        }
        None => {
            let mut out = vec![0; reply::REFUSAL_LEN];
            let facts = handler.front.shed(&view, wire.len(), &mut out);
            finished(out, facts)
        }
    };
    handler.account(&facts, wire, (source, Carrier::Datagram), received);
    Some(response)
}

#[cfg(test)]
mod tests {
    use hickory_server::Server;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::dns::Qtype;
    use crate::dns::name::Name;
    use crate::serve::testing;

    #[tokio::test]
    async fn a_server_of_hickorys_answers_as_our_own_front_ends_do() {
        let (front, _) = testing::front(1232);
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let mut server = Server::new(Handler::new(Arc::clone(&front)));
        server.register_socket(socket);
        let stub = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        stub.connect(address).await.expect("a route");
        let own = Handler::new(front);
        for (qname, qtype) in [("localhost", Qtype::A), ("nothing.invalid", Qtype::AAAA)] {
            let query = Query::new(Name::from_text(qname).expect("name"), qtype);
            let wire = query.to_wire(7, query.qname.as_wire(), true);
            stub.send(&wire).await.expect("sent");
            let mut response = [0; 1232];
            let len = stub.recv(&mut response).await.expect("answered");
            let theirs = Message::from_vec(&response[..len]).expect("a response");
            let from = stub.local_addr().expect("bound");
            let ours = handle(&own, &wire, (from, Carrier::Datagram), clock::now(), || true).await;
            let ours = Message::from_vec(&ours.expect("answered")).expect("a response");
            assert_eq!(theirs.metadata, ours.metadata, "{qname}");
            assert_eq!(theirs.answers, ours.answers, "{qname}");
            assert_eq!(theirs.authorities, ours.authorities, "{qname}");
        }
        server.shutdown_gracefully().await.expect("ended");
    }
}
