//! Exchanges against scripted upstreams on loopback: one file per subject, and here what they share.

mod endpoints;
mod exchange;
mod failover;
mod forgeries;
mod odd;
mod outages;
mod sockets;
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Forward, PortPolicy, PortRange, Rewrite, Transport, Upstream, UpstreamSource};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::{Qtype, Rcode};
use crate::metrics::Metrics;
use crate::testing::message;
use crate::testing::scripted::{Act, Scripted, Seen, well_behaved};
use crate::upstream::ports::PortClass;
use crate::upstream::{ExchangeError, Group, Upstreams};

const MS: Duration = Duration::from_millis(1);

/// Shared state with counters of its own.
fn upstreams() -> (Arc<Upstreams>, Arc<Metrics>) {
    let metrics = Metrics::new();
    // Below it, tests with a range of their own find their ports free.
    let range = PortRange { first: 30_000, last: 60_999, reserved: vec![30_001] };
    (Arc::new(Upstreams::new(range, 0, Arc::clone(&metrics))), metrics)
}

fn udp(scripted: &Scripted) -> Upstream {
    Upstream { address: scripted.address, transport: Transport::Udp }
}

fn tcp(scripted: &Scripted) -> Upstream {
    Upstream { address: scripted.address, transport: Transport::Tcp }
}

/// A zone so patient that a busy machine's delays are not taken for loss.
fn forward() -> Forward {
    Forward {
        zone: Name::root(),
        upstreams: UpstreamSource::Fixed(Vec::new()),
        endpoints: Vec::new(),
        ports: PortPolicy::PerQuery,
        timeout: 4500 * MS,
        retransmit_min: 400 * MS,
        retransmit_max: 400 * MS,
        trust_ad: false,
        tls_ca: None,
        rewrite: Rewrite::default(),
    }
}

/// A zone with the defaults, where speed is what a test is about.
fn eager() -> Forward {
    Forward { retransmit_min: 20 * MS, ..forward() }
}

fn group(list: &[&Scripted]) -> Arc<Group> {
    let list: Vec<_> = list.iter().map(|scripted| udp(scripted)).collect();
    upstreams().0.group(&forward(), &list)
}

fn query(text: &str, qtype: Qtype) -> Query {
    Query::new(Name::from_text(text).expect("name"), qtype)
}

/// Sends one message made from the query.
fn send(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync {
    move |seen| vec![Act::Send(make(&seen.wire))]
}

fn silent(_: &Seen) -> Vec<Act> {
    Vec::new()
}

fn rcode(rcode: Rcode) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync {
    send(move |wire| message::empty(wire, rcode))
}
