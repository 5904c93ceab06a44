//! What `admin` shows of the daemon.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::control::Control;
use crate::admin::{CacheStatus, Flush, Inspect, UpstreamStatus, ZoneStatus};
use crate::config::Config;
use crate::dns::name::Name;
use crate::upstream::status::{self, Standing};

/// A window on the running daemon.
pub struct View {
    control: Arc<Control>,
    config: ArcSwap<Config>,
    /// Keys that are written otherwise than they are in force.
    waiting: ArcSwap<Vec<&'static str>>,
}

impl View {
    /// A window on `control`, with the configuration in force.
    pub fn new(control: Arc<Control>, config: Config) -> Self {
        let (config, waiting) = (ArcSwap::from_pointee(config), ArcSwap::default());
        let view = Self { control, config, waiting };
        view.configured();
        view
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Another configuration is in force; these keys of what is written wait for a restart.
    pub fn set_config(&self, config: Config, waiting: Vec<&'static str>) {
        self.config.store(Arc::new(config));
        self.waiting.store(Arc::new(waiting));
        self.configured();
    }

    /// Tells the metrics which configuration is in force.
    fn configured(&self) {
        self.control.front.metrics.life.configured(&self.config().to_toml());
    }
}

impl Inspect for View {
    fn metrics(&self) -> String {
        let front = &self.control.front;
        let serve = &front.metrics.serve;
        let drops = front.receive_drops();
        serve.receive_drops.inc_by(drops.saturating_sub(serve.receive_drops.get()));
        serve.in_flight.set(i64::try_from(front.in_flight.taken()).unwrap_or(i64::MAX));
        front.metrics.encode()
    }

    fn config(&self) -> String {
        let waiting = self.waiting.load();
        let lines = waiting
            .iter()
            .map(|key| format!("# {key} is written otherwise: it takes effect after a restart\n"));
        lines.collect::<String>() + &View::config(self).to_toml()
    }

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        let routes = self.control.front.resolver.routes();
        let groups = routes.zones().map(|zone| zone.group.status());
        groups
            .flat_map(|group| group.upstreams.into_iter().map(move |u| shown(&group.zone, &u)))
            .collect()
    }

    fn zones(&self) -> Vec<ZoneStatus> {
        let front = &self.control.front;
        let stale = front.metrics.stale_by_zone();
        let stale_of = |zone: &str| stale.iter().find(|(name, _)| name == zone).map(|(_, n)| *n);
        let shown = |group: status::GroupStatus| {
            let (zone, counters) = (group.zone.to_string(), group.counters);
            ZoneStatus {
                retries: counters.retries.get(),
                hedges: counters.hedges.get(),
                stale: stale_of(&zone).unwrap_or_default(),
                prefetches: counters.prefetches.get(),
                coalesced: counters.coalesced.get(),
                zone,
            }
        };
        front.resolver.routes().zones().map(|zone| shown(zone.group.status())).collect()
    }

    fn cache(&self) -> CacheStatus {
        let front = &self.control.front;
        let cache = front.resolver.cache();
        let (entries, bytes) = cache.fill();
        let counters = cache.metrics();
        CacheStatus {
            entries,
            bytes,
            budget_bytes: cache.policy().size,
            hits: front.metrics.hits(),
            misses: counters.misses.get(),
            stale: front.metrics.stale(),
            prefetches: counters.prefetches.get(),
            coalesced: counters.coalesced.get(),
            evictions: counters.evictions.get(),
        }
    }

    fn flush(&self, what: Flush) -> Option<u64> {
        let cache = self.control.front.resolver.cache();
        let count = |flushed| u64::try_from(flushed).ok();
        match what {
            Flush::All => count(cache.flush_within(&Name::root())),
            Flush::Below(name) => count(cache.flush_within(&name)),
            Flush::Name(name) => {
                cache.flush(&name);
                None
            }
        }
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.control.telemetry.set_level(level).map_err(|error| error.to_string())
    }
}

/// One upstream's state in admin's words.
fn shown(zone: &Name, upstream: &status::UpstreamStatus) -> UpstreamStatus {
    let state = match upstream.standing {
        _ if upstream.is_looping => "loop",
        Standing::Down => "down",
        _ if !upstream.has_answered => "unknown",
        Standing::Suspect => "suspect",
        _ => "up",
    };
    UpstreamStatus {
        zone: zone.to_string(),
        upstream: upstream.form.to_string(),
        state: state.to_owned(),
        srtt_ms: upstream.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        in_flight: upstream.in_flight as u64,
        queries: upstream.queries,
        responses: upstream.responses,
        timeouts: upstream.timeouts,
        failures: upstream.failures,
        retries: upstream.retries,
        hedges: upstream.hedges,
        tcp_fallbacks: upstream.tcp_fallbacks,
        mismatched: upstream.mismatched,
        unreachable: upstream.unreachable,
        leaves_no_tracks: upstream.leaves_no_tracks,
    }
}
