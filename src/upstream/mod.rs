//! Faces recursive resolvers: which one to ask, from which port, over what, and whether to believe it.
//!
//! One story: [`select`] orders the upstreams of a zone, [`ports`] gives the query a tuple that no
//! other query holds, [`transport`] carries it, [`verify`] compares what came back with what was asked.
//! It refuses to cache and to coalesce; that is `cache` and `resolve`.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::config::{Forward, PortRange, Upstream};
use crate::dns::Rcode;
use crate::dns::ede::Ede;
use crate::dns::query::Query;
use crate::dns::response::Encoded;

/// A response that was accepted.
#[derive(Debug)]
pub struct Received {
    /// Whole (fetched again by TCP when UDP cut it), AA cleared, AD only where the zone trusts it.
    pub encoded: Encoded,
    /// Who answered, in configuration form: `198.18.1.2:53`, `tls://192.0.2.9:853#dns.example`.
    pub upstream: Arc<str>,
    pub rtt: Duration,
}

/// Why no upstream gave a conclusive response (NOERROR or NXDOMAIN).
#[derive(Clone, Debug, Error)]
pub enum ExchangeError {
    /// The zone has no upstream at this moment.
    #[error("the zone has no upstream")]
    NoUpstream,
    /// Nobody answered in time.
    #[error("no response from {last} and others for {waited:?}")]
    Timeout { last: Arc<str>, waited: Duration },
    /// The last upstream tried cannot be reached (ICMP, refused connection, failed handshake).
    #[error("{upstream} cannot be reached: {reason}")]
    Unreachable { upstream: Arc<str>, reason: Arc<str> },
    /// Every upstream that answered gave a failure; this is the last one.
    #[error("{upstream} answered {rcode}")]
    Failed { upstream: Arc<str>, rcode: Rcode, ede: Option<Ede> },
    /// Every source port of the class is in flight, or the limit per upstream is reached.
    #[error("no source port is free towards {upstream}")]
    Overloaded { upstream: Arc<str> },
    /// The probe found that this zone's queries come back to us.
    #[error("{upstream} forwards back to us")]
    Loop { upstream: Arc<str> },
}

/// What all forward zones share: source ports, and each upstream's health, sockets and connections.
pub struct Upstreams {}

impl Upstreams {
    /// Shared state over the ports of `range`; sockets carry `mark` where that is permitted.
    pub fn new(range: PortRange, mark: u32, metrics: Arc<crate::metrics::Metrics>) -> Self {
        let _ = (range, mark, metrics);
        Self {}
    }

    /// The upstreams of one forward zone. An upstream that another group or an earlier configuration
    /// had too keeps its health, its resting ports and its connections.
    pub fn group(self: &Arc<Self>, forward: &Forward, upstreams: &[Upstream]) -> Arc<Group> {
        let _ = (forward, upstreams);
        Arc::new(Group {})
    }
}

/// The upstreams of one forward zone with its policy.
pub struct Group {}

impl Group {
    /// Asks until an upstream gives a conclusive response or the zone's timeout ends.
    ///
    /// # Errors
    /// Each [`ExchangeError`] as its variant says.
    /// # Cancel safety
    /// Dropping the future ends the exchange; its port rests as after any other.
    pub async fn exchange(&self, query: &Query) -> Result<Received, ExchangeError> {
        let _ = query;
        Err(ExchangeError::NoUpstream)
    }

    /// Tells whether every upstream of the group counts as down at this moment.
    pub fn is_down(&self) -> bool {
        false
    }

    /// Tells whether any upstream of the group ever answered anything (readiness).
    pub fn has_answered(&self) -> bool {
        false
    }
}
