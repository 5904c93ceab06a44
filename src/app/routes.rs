//! From configuration to routes: files are read, upstreams found, loops refused.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::endpoints::Feed;
use super::reach;
use crate::config::endpoint::Interfaces;
use crate::config::loops::{Loop, loops};
use crate::config::{
    Config, EndpointSource, Forward, Listen, Upstream, UpstreamSource, resolv_conf,
};
use crate::dns::name::Name;
use crate::metrics::Metrics;
use crate::resolve::hosts::Hosts;
use crate::resolve::local::Local;
use crate::resolve::reach::Reach;
use crate::resolve::rewrite::Rewrite;
use crate::resolve::route::{ClusterZone, ForwardZone, Route, Routes};
use crate::upstream::Upstreams;

/// Why a configuration gives no routes.
#[derive(Debug, Error)]
pub enum RoutesError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "{} names no nameserver to ask; write `upstreams` in a [[forward]] zone \".\", or start \
         with --upstream ADDR", .path.display()
    )]
    NoUpstream { path: PathBuf },
    #[error("{}: {found}", .path.display())]
    Loop { path: PathBuf, found: Box<Loop> },
}

/// What makes routes.
pub struct Maker {
    /// The upstreams, and who feeds those that come and go.
    pub feed: Arc<Feed>,
    /// The cluster zone, where it answers.
    pub cluster: Option<ClusterZone>,
    pub metrics: Arc<Metrics>,
    /// Whether IPv6 leads anywhere.
    pub reach: Arc<Reach>,
}

impl Maker {
    /// The routes that `config` and the files that it names say.
    ///
    /// # Errors
    /// [`RoutesError`] names the file and the mend; at start it is fatal, later the old routes stay.
    pub fn routes(&self, config: &Config) -> Result<Routes, RoutesError> {
        reach::look(config, &self.reach);
        let hosts = config.local.hosts.as_ref().map(read_hosts).transpose()?;
        let local = Local::new(&config.local, hosts.as_ref());
        // What is intercepted may have changed since the start.
        let asked = config.intercept.answered(config.upstream_mark);
        let ours = [&self.feed.listen[..], &asked].concat();
        let zones = config.forward.iter().map(|forward| self.zone(forward, &ours));
        let zones: Vec<_> = zones.collect::<Result<_, _>>()?;
        let root = zones.iter().find(|zone| zone.name.is_root());
        let root = Arc::clone(root.expect("the configuration always holds the zone `.`"));
        let routes = Routes::new(local, self.metrics.zone(&Name::root()), root, zones);
        Ok(routes.with_cluster(self.cluster.clone()))
    }

    /// One forward zone with its upstreams.
    fn zone(&self, forward: &Forward, ours: &[Listen]) -> Result<Arc<ForwardZone>, RoutesError> {
        let upstreams = match &forward.upstreams {
            UpstreamSource::Fixed(upstreams) => upstreams.clone(),
            UpstreamSource::ResolvConf(path) => nameservers(path, ours)?,
        };
        // Read before the first query; `Feed::run` follows its changes.
        for set in &forward.endpoints {
            if let EndpointSource::File(path) = &set.source
                && self.feed.read(path).is_none()
            {
                tracing::warn!(file = %path.display(), "endpoints file cannot be read yet");
            }
        }
        Ok(Arc::new(ForwardZone {
            name: forward.zone.clone(),
            id: self.metrics.zone(&forward.zone),
            group: self.feed.upstreams.group(forward, &upstreams),
            rewrite: Rewrite::new(forward, Arc::clone(&self.reach)),
        }))
    }
}

/// The nameservers of a resolv.conf that are not ourselves.
///
/// A host that names us first and others as a net below is no loop: ours are left out.
fn nameservers(path: &PathBuf, ours: &[Listen]) -> Result<Vec<Upstream>, RoutesError> {
    let text = read(path)?;
    let inet6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let parsed = resolv_conf::parse(&text, &Interfaces::from_if_inet6(&inet6));
    for warning in &parsed.warnings {
        tracing::warn!(file = %path.display(), %warning, "nameserver left out");
    }
    let mut looped = None;
    let mut others = Vec::new();
    for upstream in parsed.upstreams {
        match loops(ours, std::slice::from_ref(&upstream)) {
            Some(found) => looped = looped.or(Some(found)),
            None => others.push(upstream),
        }
    }
    match (others.is_empty(), looped) {
        (true, Some(found)) => Err(RoutesError::Loop { path: path.clone(), found: found.into() }),
        (true, None) => Err(RoutesError::NoUpstream { path: path.clone() }),
        (false, Some(found)) => {
            tracing::warn!(file = %path.display(), %found, "nameserver left out");
            Ok(others)
        }
        (false, None) => Ok(others),
    }
}

/// The hosts file, with a word about lines that are none.
fn read_hosts(path: &PathBuf) -> Result<Hosts, RoutesError> {
    let hosts = Hosts::parse(&read(path)?);
    if !hosts.broken.is_empty() {
        tracing::warn!(file = %path.display(), lines = ?hosts.broken, "broken lines left out");
    }
    Ok(hosts)
}

/// The text of a file; what is not UTF-8 is mended.
fn read(path: &PathBuf) -> Result<String, RoutesError> {
    let unreadable = |source| RoutesError::Unreadable { path: path.clone(), source };
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(unreadable)
}

/// Makes exchanges in flight go on with the upstreams that the new routes lead their zone to.
pub fn lead_on(upstreams: &Upstreams, old: &Routes, new: &Routes) {
    for zone in old.zones() {
        if let Route::Forward(next) = new.beside_cluster(&zone.name) {
            upstreams.succeed(&zone.group, &next.group);
        }
    }
}

/// Makes the cache forget what the new routes may answer otherwise than the old ones.
///
/// Names of our own data that changed, special-use trees that came or went, and forward zones that
/// came or went or that change answers otherwise.
/// A zone whose upstreams changed keeps its entries: they are other servers of the same data.
pub fn forget_changed(cache: &crate::cache::Cache, old: &Routes, new: &Routes) {
    // Not all of our own names: a change drops one in 16,384 of the others too, and a hosts file
    // may hold thousands.
    for name in old.local().changed_names(new.local()) {
        cache.flush(name);
    }
    cache.forget_failures();
    let apexes = |routes: &Routes| -> BTreeSet<Vec<u8>> {
        let zones = routes.zones().map(|zone| zone.name.as_wire());
        routes.local().tree_apexes().chain(zones).map(<[u8]>::to_vec).collect()
    };
    let mut doomed = &apexes(old) ^ &apexes(new);
    let changed = old.zones().filter(|zone| !new.holds(zone));
    doomed.extend(changed.map(|zone| zone.name.as_wire().to_vec()));
    for name in doomed.iter().filter_map(|apex| Name::from_wire(apex)) {
        cache.flush_within(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::key::{KeyBuffer, Lookup};
    use crate::cache::{Cache, Source};
    use crate::dns::build::{self, LocalRecord};
    use crate::dns::query::Query;
    use crate::dns::ttl::Ttl;
    use crate::dns::{Qtype, Rcode};
    use crate::metrics::Origin;
    use crate::{clock, config};

    /// A configuration whose zone `example.org.` has these keys.
    fn config_of(keys: &str) -> Config {
        let zones = [".", "example.org"]
            .map(|zone| format!("[[forward]]\nzone = \"{zone}\"\nupstreams = [\"192.0.2.53\"]\n"));
        let inputs = config::Inputs {
            file: Some((std::path::Path::new("test.toml"), &(zones.concat() + keys))),
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        config::load(&inputs).expect("the test's configuration is right")
    }

    #[tokio::test]
    async fn a_nameserver_that_a_reload_has_made_ours_is_left_out() {
        let path = std::env::temp_dir().join(format!("nodens-routes-{}", std::process::id()));
        std::fs::write(&path, "nameserver 169.254.20.10\n").expect("written");
        let metrics = Metrics::new();
        let ports = config_of("").upstream_ports;
        let upstreams = Arc::new(Upstreams::new(ports, 0, Arc::clone(&metrics)));
        let feed = Arc::new(Feed { upstreams, listen: Vec::new() });
        let maker = Maker { feed, cluster: None, metrics, reach: Arc::default() };
        let found = ["none", "takeover"].map(|mode| {
            let text = format!(
                "resolv_conf = {path:?}\n[intercept]\nmode = \"{mode}\"\n\
                 addresses = [\"169.254.20.10\"]\n"
            );
            let inputs = config::Inputs {
                file: Some((std::path::Path::new("test.toml"), &text)),
                environment: &[],
                flags: &config::Flags::default(),
                host: &config::host::Host::sample(),
            };
            maker.routes(&config::load(&inputs).expect("the test's configuration is right")).err()
        });
        std::fs::remove_file(&path).expect("ours");
        assert!(matches!(found, [None, Some(RoutesError::Loop { .. })]), "{found:?}");
    }

    #[tokio::test]
    async fn a_zone_that_answers_otherwise_is_forgotten_and_no_other() {
        let metrics = Metrics::new();
        let ports = config_of("").upstream_ports;
        let upstreams = Arc::new(Upstreams::new(ports, 0, Arc::clone(&metrics)));
        let maker = Maker {
            feed: Arc::new(Feed { upstreams, listen: Vec::new() }),
            cluster: None,
            metrics: Arc::clone(&metrics),
            reach: Arc::default(),
        };
        let routes = |keys| maker.routes(&config_of(keys)).expect("routes");
        for (old, new, is_kept) in [
            ("", "", true),
            ("", "timeout = \"1s\"", true),
            ("", "aaaa = \"nodata\"", false),
            ("aaaa = \"nodata\"", "", false),
            ("", "dns64 = \"64:ff9b::/96\"", false),
            ("dns64 = \"64:ff9b::/96\"", "dns64 = \"2001:db8::/96\"", false),
            ("", "max_ttl = \"1m\"", false),
            ("", "shuffle = true", false),
            ("", "rebind_protection = true", false),
            ("rebind_allow = [\"a\"]", "rebind_allow = [\"b\"]", false),
        ] {
            let cache = Cache::new(config_of("").cache, metrics.cache.clone());
            let keys = ["a.example.org", "example.net"].map(|name| {
                let asked = Query::new(Name::from_text(name).expect("name"), Qtype::A);
                let (owner, rdata) = (asked.qname.clone(), vec![192, 0, 2, 1]);
                let record = LocalRecord { owner, rtype: Qtype::A, ttl: Ttl::MAX, rdata };
                let encoded = build::authoritative(&asked, Rcode::NOERROR, &[record], &[]);
                let key = KeyBuffer::from_query(&asked);
                let epoch = cache.epoch(key.qname());
                let zone = metrics.zone(&Name::root());
                let source = Source { zone, origin: Origin::Forward, epoch };
                cache.store(&key, encoded, source, clock::now());
                key
            });
            forget_changed(&cache, &routes(old), &routes(new));
            let kept = keys.map(|key| cache.fresh(&key, clock::now()).is_some());
            assert_eq!(kept, [is_kept, true], "{old} -> {new}");
        }
    }
}
