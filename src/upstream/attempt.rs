//! One attempt at one upstream: a query sent, until a response ends it.
//!
//! An attempt never times out by itself; whoever waits drops it. Truncated responses are fetched
//! again by TCP and a refusal of EDNS is met without it, both inside the same attempt.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Received;
use super::candidate::Cut;
use super::lease::NoSocket;
use super::peer::{Heard, Peer};
use super::pool::Kept;
use super::ports::{POOLED_REST, PortClass, REST};
use super::transport::Broken;
use super::udp::Tuple;
use super::verify::{Asked, Style, Verdict};
use crate::clock;
use crate::config::{PortPolicy, Transport};
use crate::dns::Rcode;
use crate::dns::ede::{Ede, EdeCode};
use crate::dns::query::Query;
use crate::dns::response::Encoded;

/// Messages that do not answer the query, after which its tuple counts as found by a forger, who
/// would hit the id too in the end; what is asked by TCP cannot be guessed.
///
/// Source: RFC 5452 §9.3
const MAX_FORGERIES: usize = 64;

/// How long a query that found no port may take by TCP.
const OVERFLOW_PATIENCE: Duration = Duration::from_secs(1);

/// What an HTTP error is reported as; its text is the upstream's own business.
const NO_MESSAGE: Ede = Ede::new(EdeCode::NETWORK_ERROR, "an HTTP response without a DNS message");

/// How an attempt ends.
#[derive(Debug)]
pub enum Outcome {
    Answered(Received),
    /// A response that ends nothing.
    Failed {
        rcode: Rcode,
        ede: Option<Ede>,
    },
    Unreachable(Arc<str>),
    /// No port, no connection with room, no descriptor.
    Overloaded,
}

/// What a zone says about every attempt.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub ports: PortPolicy,
    pub trust_ad: bool,
}

/// One attempt's fixed parts.
#[derive(Debug)]
pub struct Attempt<'a> {
    pub peer: Arc<Peer>,
    pub query: &'a Query,
    pub terms: Terms,
    pub started: Instant,
    /// How the first message is written.
    pub style: Style,
    /// Where to note that UDP has cut the response, and for which candidate.
    cut: Option<(&'a Cut, usize)>,
}

/// An attempt under way.
pub struct Running<'a> {
    /// Whom it asks.
    pub candidate: usize,
    pub style: Style,
    /// Its silence was reported to the upstream's health.
    pub reported: bool,
    /// `None` for the first attempt, mostly the only one: it needs no allocation, the exchange holds it.
    pub outcome: Option<Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>>,
}

/// What one UDP message led to.
enum Step {
    Done(Outcome),
    /// Ask again without EDNS.
    WithoutEdns,
    /// Ask again with EDNS.
    WithEdns,
    /// Fetch the whole by TCP.
    ByTcp,
    /// The tuple was found by a forger.
    Forged,
    /// No port of the class is free.
    NoPort,
}

impl<'a> Attempt<'a> {
    /// An attempt that begins now.
    pub fn new(peer: Arc<Peer>, query: &'a Query, terms: Terms) -> Self {
        let started = clock::now();
        let style = peer.style(query.dnssec_ok, terms.trust_ad, started);
        Self { peer, query, terms, started, style, cut: None }
    }

    /// The same, which notes in `cut` when it asks `candidate` by TCP for what UDP has cut.
    pub fn noting(self, cut: &'a Cut, candidate: usize) -> Self {
        Self { cut: Some((cut, candidate)), ..self }
    }

    /// The same for a query that the upstream was asked in vain so far.
    pub fn again(self) -> Self {
        let style = self.peer.style_again(self.style, &self.query.qname, self.started);
        Self { style, ..self }
    }

    /// Asks.
    ///
    /// # Cancel safety
    /// Dropping ends the attempt; its port rests.
    pub async fn run(self) -> Outcome {
        // The rare ways are boxed: their futures are many times as large as the usual one's, which
        // each attempt in flight would otherwise carry along.
        let class = PortClass::of_qtype(self.query.qtype);
        let in_flight = self.peer.enter(class);
        if self.peer.upstream.transport != Transport::Udp {
            return Box::pin(self.by_stream()).await;
        }
        let Some(_in_flight) = in_flight else {
            return Box::pin(self.overflow()).await;
        };
        match self.by_udp(class, self.style).await {
            Step::Done(outcome) => outcome,
            Step::NoPort => Box::pin(self.overflow()).await,
            Step::ByTcp => Box::pin(self.instead()).await,
            Step::Forged => Box::pin(self.past_forgers()).await,
            Step::WithEdns => Box::pin(self.with_edns(class)).await,
            Step::WithoutEdns => Box::pin(self.without_edns(class)).await,
        }
    }

    /// Asks again without EDNS; an answer to that is remembered.
    async fn without_edns(&self, class: PortClass) -> Outcome {
        let style = Style { edns: false, ..self.style };
        let outcome = match self.by_udp(class, style).await {
            Step::Done(outcome) => outcome,
            Step::ByTcp | Step::WithEdns | Step::WithoutEdns => Box::pin(self.instead()).await,
            Step::Forged => Box::pin(self.past_forgers()).await,
            Step::NoPort => Box::pin(self.overflow()).await,
        };
        match outcome {
            Outcome::Answered(_) => self.peer.on_edns_refused(clock::now()),
            Outcome::Failed { .. } => self.peer.on_edns_futile(clock::now()),
            _ => {}
        }
        outcome
    }

    /// Asks again with EDNS what was cut without it: the whole may fit then.
    async fn with_edns(&self, class: PortClass) -> Outcome {
        match self.by_udp(class, Style { edns: true, ..self.style }).await {
            Step::Done(outcome) => outcome,
            Step::NoPort => Box::pin(self.overflow()).await,
            Step::Forged => Box::pin(self.past_forgers()).await,
            Step::ByTcp | Step::WithEdns | Step::WithoutEdns => Box::pin(self.instead()).await,
        }
    }

    /// Asks by TCP, where nobody can guess. Where TCP leads nowhere the message counts as lost: what it was
    /// asked for is asked again from another port, as after silence.
    async fn past_forgers(&self) -> Outcome {
        self.peer.metrics.tcp_fallbacks.inc();
        match self.by_stream().await {
            Outcome::Unreachable(_) | Outcome::Overloaded => std::future::pending().await,
            outcome => outcome,
        }
    }

    /// Fetches by TCP what UDP does not give.
    async fn instead(&self) -> Outcome {
        self.peer.metrics.tcp_fallbacks.inc();
        if let Some((cut, candidate)) = self.cut {
            cut.note(candidate);
        }
        self.by_stream().await
    }

    /// Sends one query from a port of `class` and waits for what answers it.
    async fn by_udp(&self, class: PortClass, style: Style) -> Step {
        let mut kept = match self.socket(class) {
            Ok(kept) => kept,
            Err(NoSocket::Exhausted) => return Step::NoPort,
            Err(NoSocket::Shortage) => return Step::Done(Outcome::Overloaded),
            Err(NoSocket::Refused(error)) => return Step::Done(self.unreachable(&error)),
        };
        let asked = Asked::new(self.query, style);
        if let Err(error) = kept.tuple.send(&asked) {
            return Step::Done(self.unreachable(&error));
        }
        let sent = if style == self.style { self.started } else { clock::now() };
        self.peer.metrics.queries.inc();
        for _ in 0..MAX_FORGERIES {
            let verdict = match kept.tuple.receive(&asked).await {
                Ok(verdict) => verdict,
                Err(error) => return Step::Done(self.unreachable(&error)),
            };
            match verdict {
                Verdict::Ignored => {
                    self.peer.metrics.mismatched.inc();
                }
                Verdict::WrongCase => {
                    self.peer.metrics.mismatched.inc();
                    self.peer.on_wrong_case(&self.query.qname, clock::now());
                }
                verdict => {
                    let now = clock::now();
                    self.put_back(kept, class, now);
                    return self.settle(verdict, style, Some(sent), now);
                }
            }
        }
        tracing::debug!(upstream = %self.peer.form, "forged responses: asking by TCP instead");
        Step::Forged
    }

    /// A socket as the policy says.
    fn socket(&self, class: PortClass) -> Result<Kept, NoSocket> {
        let Peer { towards, pool, metrics, .. } = &*self.peer;
        let towards = towards.as_ref().ok_or(NoSocket::Exhausted)?;
        let rest = match self.terms.ports {
            PortPolicy::PerQuery => REST,
            PortPolicy::Pooled => {
                if let Some(kept) = pool.take(class, self.started) {
                    metrics.reused.inc();
                    return Ok(kept);
                }
                metrics.opened.inc();
                POOLED_REST
            }
        };
        if let Some(spare) = pool.take_spare() {
            match spare.renew(towards, class, rest) {
                Ok(tuple) => return Ok(Kept::new(tuple, self.started)),
                Err(NoSocket::Exhausted) => return Err(NoSocket::Exhausted),
                Err(_) => {}
            }
        }
        let socket = match towards.socket(class, rest) {
            Err(NoSocket::Shortage) => {
                // What idles is given up before anybody goes without an answer.
                pool.clear();
                towards.socket(class, rest)?
            }
            socket => socket?,
        };
        Ok(Kept::new(Tuple::new(socket)?, self.started))
    }

    /// Keeps a socket that has had its response, as the policy says.
    fn put_back(&self, kept: Kept, class: PortClass, now: Instant) {
        let Peer { towards, pool, .. } = &*self.peer;
        let worn = match self.terms.ports {
            PortPolicy::Pooled => {
                let tracked = towards.as_ref().is_some_and(|towards| towards.leaves_no_tracks());
                pool.put(class, kept, now, tracked)
            }
            PortPolicy::PerQuery => Some(kept),
        };
        if let Some(spare) = worn.and_then(|kept| kept.tuple.release()) {
            pool.put_spare(spare, now);
        }
    }

    /// Learns from a verdict that came at `at`; `sent`: when it was asked for, where that tells the distance.
    fn settle(&self, verdict: Verdict, style: Style, sent: Option<Instant>, at: Instant) -> Step {
        let rtt = at.saturating_duration_since(sent.unwrap_or(self.started));
        let heard = |rcode| Heard { style, rcode, rtt, is_measure: sent.is_some(), at };
        match verdict {
            Verdict::Conclusive { encoded, echoed, knows_edns } => {
                self.peer.on_answer(&heard(encoded.rcode()), echoed, knows_edns);
                Step::Done(Outcome::Answered(self.received(encoded, rtt)))
            }
            Verdict::Failure { edns_refused: true, .. } if self.peer.asks_without_edns(at) => {
                Step::WithoutEdns
            }
            Verdict::Failure { rcode, ede, .. } => {
                self.peer.on_failure(&heard(rcode), self.query);
                Step::Done(Outcome::Failed { rcode, ede })
            }
            Verdict::Truncated => match self.peer.on_truncated(&heard(Rcode::NOERROR)) {
                true => Step::WithEdns,
                false => Step::ByTcp,
            },
            Verdict::Ignored | Verdict::WrongCase => Step::ByTcp,
        }
    }

    /// Asks by TCP what no port is free for, if that can be done soon.
    async fn overflow(&self) -> Outcome {
        match tokio::time::timeout(OVERFLOW_PATIENCE, self.by_stream()).await {
            Ok(Outcome::Unreachable(_)) | Err(_) => Outcome::Overloaded,
            Ok(outcome) => outcome,
        }
    }

    /// Asks over a kept connection: TCP, TLS or HTTPS.
    async fn by_stream(&self) -> Outcome {
        // What UDP has cut says nothing of UDP's distance when it comes by TCP.
        let is_stream = self.peer.upstream.transport != Transport::Udp;
        let mut style = self.stream_style(self.peer.has_edns(self.query.dnssec_ok, self.started));
        let mut is_refused = false;
        loop {
            let asked = Asked::new(self.query, style);
            let judge = |message: &[u8]| asked.judge_stream(message);
            let heard = match self.peer.connections.exchange(asked.wire(), judge).await {
                Ok(heard) => heard,
                Err(broken) => return self.broken(broken, style),
            };
            let sent = is_stream.then_some(heard.sent);
            match self.settle(heard.verdict, style, sent, clock::now()) {
                Step::Done(outcome) => {
                    if is_refused && matches!(outcome, Outcome::Answered(_)) {
                        self.peer.on_edns_refused(clock::now());
                    }
                    return outcome;
                }
                Step::WithoutEdns => (is_refused, style) = (true, self.stream_style(false)),
                // A stream's judge gives none of these.
                Step::ByTcp | Step::Forged | Step::WithEdns | Step::NoPort => {
                    return Outcome::Overloaded;
                }
            }
        }
    }

    /// Learns why nothing came by a stream.
    fn broken(&self, broken: Broken, style: Style) -> Outcome {
        let is_stream = self.peer.upstream.transport != Transport::Udp;
        match broken {
            Broken::Full => Outcome::Overloaded,
            Broken::Gone => Outcome::Unreachable("the endpoint is gone".into()),
            Broken::Unreachable(reason) => {
                // That TCP is closed says nothing about UDP.
                if is_stream {
                    self.peer.on_unreachable(self.query, clock::now());
                }
                Outcome::Unreachable(reason)
            }
            Broken::Refused(reason) => {
                tracing::debug!(upstream = %self.peer.form, %reason, "no DNS message");
                let failure = Verdict::Failure {
                    rcode: Rcode::SERVFAIL,
                    ede: Some(NO_MESSAGE),
                    edns_refused: false,
                };
                match self.settle(failure, style, None, clock::now()) {
                    Step::Done(outcome) => outcome,
                    _ => Outcome::Unreachable(reason),
                }
            }
        }
    }

    /// How a query is written on a stream, where nobody can guess.
    fn stream_style(&self, edns: bool) -> Style {
        Style { edns, mix_case: false, exact_case: false, want_ad: self.terms.trust_ad }
    }

    /// The response as the zone takes it.
    fn received(&self, encoded: Encoded, rtt: Duration) -> Received {
        let encoded = encoded.with_authority(false).with_authentic_data(self.terms.trust_ad);
        Received { encoded, upstream: Arc::clone(&self.peer.form), rtt }
    }

    /// Learns that the kernel knows no way to the upstream.
    fn unreachable(&self, error: &io::Error) -> Outcome {
        self.peer.on_unreachable(self.query, clock::now());
        Outcome::Unreachable(error.to_string().into())
    }
}
