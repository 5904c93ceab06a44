//! From configuration to routes: files are read, upstreams found, loops refused.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::config::endpoint::Interfaces;
use crate::config::loops::{Loop, loops};
use crate::config::{Config, Forward, Listen, Upstream, UpstreamSource, resolv_conf};
use crate::dns::name::Name;
use crate::metrics::Metrics;
use crate::resolve::hosts::Hosts;
use crate::resolve::local::Local;
use crate::resolve::route::{ForwardZone, Routes};
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
    pub upstreams: Arc<Upstreams>,
    pub metrics: Arc<Metrics>,
    /// Every address that is ours.
    pub listen: Vec<Listen>,
}

impl Maker {
    /// The routes that `config` and the files that it names say.
    ///
    /// # Errors
    /// [`RoutesError`] names the file and the mend; at start it is fatal, later the old routes stay.
    pub fn routes(&self, config: &Config) -> Result<Routes, RoutesError> {
        let hosts = config.local.hosts.as_ref().map(read_hosts).transpose()?;
        let local = Local::new(&config.local, hosts.as_ref());
        let zones = config.forward.iter().map(|forward| self.zone(forward));
        let zones: Vec<_> = zones.collect::<Result<_, _>>()?;
        let root = zones.iter().find(|zone| zone.name.is_root());
        let root = Arc::clone(root.expect("the configuration always holds the zone `.`"));
        Ok(Routes::new(local, self.metrics.zone(&Name::root()), root, zones))
    }

    /// One forward zone with its upstreams.
    fn zone(&self, forward: &Forward) -> Result<Arc<ForwardZone>, RoutesError> {
        let upstreams = match &forward.upstreams {
            UpstreamSource::Fixed(upstreams) => upstreams.clone(),
            UpstreamSource::ResolvConf(path) => self.nameservers(path)?,
        };
        Ok(Arc::new(ForwardZone {
            name: forward.zone.clone(),
            id: self.metrics.zone(&forward.zone),
            group: self.upstreams.group(forward, &upstreams),
        }))
    }

    /// The nameservers of a resolv.conf that are not ourselves.
    ///
    /// A host that names us first and others as a net below is no loop: ours are left out.
    fn nameservers(&self, path: &PathBuf) -> Result<Vec<Upstream>, RoutesError> {
        let text = read(path)?;
        let inet6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        let parsed = resolv_conf::parse(&text, &Interfaces::from_if_inet6(&inet6));
        for warning in &parsed.warnings {
            tracing::warn!(file = %path.display(), %warning, "nameserver left out");
        }
        let mut looped = None;
        let mut others = Vec::new();
        for upstream in parsed.upstreams {
            match loops(&self.listen, std::slice::from_ref(&upstream)) {
                Some(found) => looped = looped.or(Some(found)),
                None => others.push(upstream),
            }
        }
        match (others.is_empty(), looped) {
            (true, Some(found)) => {
                Err(RoutesError::Loop { path: path.clone(), found: found.into() })
            }
            (true, None) => Err(RoutesError::NoUpstream { path: path.clone() }),
            (false, Some(found)) => {
                tracing::warn!(file = %path.display(), %found, "nameserver left out");
                Ok(others)
            }
            (false, None) => Ok(others),
        }
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

/// Makes the cache forget what the new routes may answer otherwise than the old ones.
///
/// Names of our own data that changed, special-use trees that came or went, and forward zones that came or went.
/// A zone whose upstreams changed keeps its entries: they are other servers of the same data.
pub fn forget_changed(cache: &crate::cache::Cache, old: &Routes, new: &Routes) {
    // Not all of our own names: a change drops one in 16,384 of the others too, and a hosts file
    // may hold thousands.
    for name in old.local().changed_names(new.local()) {
        cache.flush(name);
    }
    cache.forget_failures();
    let apexes = |routes: &Routes| -> std::collections::BTreeSet<Vec<u8>> {
        let zones = routes.zones().map(|zone| zone.name.as_wire());
        routes.local().tree_apexes().chain(zones).map(<[u8]>::to_vec).collect()
    };
    for apex in apexes(old).symmetric_difference(&apexes(new)) {
        if let Some(name) = Name::from_wire(apex) {
            cache.flush_within(&name);
        }
    }
}
