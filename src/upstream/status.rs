//! What operators may know of each upstream at this moment: values for the page `/upstreams`.

use std::sync::Arc;
use std::time::Duration;

use super::Group;
pub use super::health::Standing;
use crate::config::PortPolicy;
use crate::dns::name::Name;
use crate::metrics::ForwardZoneMetrics;

/// One forward zone with its upstreams.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    pub zone: Name,
    pub ports: PortPolicy,
    pub upstreams: Vec<UpstreamStatus>,
    /// The zone's own, of all upstreams together.
    pub counters: ForwardZoneMetrics,
}

/// One upstream of a zone.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    /// As the configuration writes it.
    pub form: Arc<str>,
    pub standing: Standing,
    /// It forwards this zone's queries back to us and is not asked.
    pub is_looping: bool,
    pub has_answered: bool,
    /// Smoothed; `None` before the first response.
    pub rtt: Option<Duration>,
    /// Exchanges by UDP, of all zones together; likewise the counters.
    pub in_flight: usize,
    pub queries: u64,
    pub responses: u64,
    pub failures: u64,
    pub timeouts: u64,
    pub retries: u64,
    pub hedges: u64,
    pub tcp_fallbacks: u64,
    pub mismatched: u64,
    pub unreachable: u64,
    /// The conntrack entries of queries are deleted behind them.
    pub leaves_no_tracks: bool,
    /// Queries are written with EDNS.
    pub has_edns: bool,
    /// The qname's case is echoed, so that responses in another case are ignored.
    pub has_case: bool,
}

impl Group {
    /// The state of this moment.
    pub fn status(&self) -> GroupStatus {
        let now = crate::clock::now();
        let upstream = |member: &Arc<super::Member>| {
            let (peer, view) = (&member.peer, member.peer.view(now));
            let (metrics, style) = (&peer.metrics, peer.style(false, false, now));
            UpstreamStatus {
                form: Arc::clone(&peer.form),
                standing: view.standing,
                is_looping: member.is_looping(),
                has_answered: peer.has_answered(),
                rtt: peer.srtt(),
                in_flight: view.in_flight,
                queries: metrics.queries.get(),
                responses: metrics.responses.get(),
                failures: metrics.failures.get(),
                timeouts: metrics.timeouts.get(),
                retries: metrics.retries.get(),
                hedges: metrics.hedges.get(),
                tcp_fallbacks: metrics.tcp_fallbacks.get(),
                mismatched: metrics.mismatched.get(),
                unreachable: metrics.unreachable.get(),
                leaves_no_tracks: peer.towards.as_ref().is_some_and(|t| t.leaves_no_tracks()),
                has_edns: style.edns,
                has_case: style.exact_case,
            }
        };
        GroupStatus {
            zone: self.zone.clone(),
            ports: self.terms.ports,
            upstreams: self.asked().iter().map(upstream).collect(),
            counters: self.counters.clone(),
        }
    }
}
