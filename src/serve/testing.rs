//! A front for tests of this folder.

use std::sync::Arc;

use super::allow::AllowList;
use super::front::{Front, Policy};
use super::quota::Shares;
use crate::cache::Cache;
use crate::config::{self, Config};
use crate::dns::name::Name;
use crate::metrics::Metrics;
use crate::resolve::Resolver;
use crate::resolve::local::Local;
use crate::resolve::rewrite::Rewrite;
use crate::resolve::route::{ForwardZone, Routes};
use crate::telemetry::QueryLog;
use crate::upstream::Upstreams;

/// A front that knows our own data only and answers datagrams of at most `udp_payload` bytes.
pub fn front(udp_payload: u16) -> (Arc<Front>, Config) {
    let inputs = config::Inputs {
        file: None,
        environment: &[],
        flags: &config::Flags::default(),
        host: &config::host::Host::sample(),
    };
    let config = config::load(&inputs).expect("the built-in configuration is right");
    let metrics = Metrics::new();
    let ports = config.upstream_ports.clone();
    let upstreams = Arc::new(Upstreams::new(ports, 0, Arc::clone(&metrics)));
    let root = Arc::new(ForwardZone {
        name: Name::root(),
        id: metrics.zone(&Name::root()),
        group: upstreams.group(&config.forward[0], &[]),
        rewrite: Rewrite::new(&config.forward[0], Arc::default()),
    });
    let routes = Routes::new(Local::new(&config.local, None), root.id, root, Vec::new());
    let cache = Arc::new(Cache::new(config.cache.clone(), metrics.cache.clone()));
    let probe = Arc::clone(upstreams.loop_probe());
    let resolver = Arc::new(Resolver::new(routes, cache, probe, Arc::clone(&metrics)));
    let policy =
        Policy { allow: AllowList::new(None, &[]), udp_payload, query_log: QueryLog::new(0.0) };
    (Arc::new(Front::new(resolver, policy, metrics, Shares::new(16, 16))), config)
}
