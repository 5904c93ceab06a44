//! The cluster's part in the daemon's life: what its source tells changes the zone, the cache, the
//! upstreams and the intercept, in this order.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::endpoints::Feed;
use super::takeover::ClusterDns;
use crate::cache::Cache;
use crate::cluster::object::{Object, Service, ServiceKey};
#[cfg(feature = "kubernetes")]
use crate::cluster::watch::Watch;
use crate::cluster::{Changes, Cluster, Event};
use crate::config::EndpointSource;
use crate::dns::name::Name;

/// How much later than we a cluster DNS may learn of a change: what it said until then is dropped too.
const LAG: Duration = Duration::from_secs(1);

/// Where events come from.
pub enum Source {
    #[cfg(feature = "kubernetes")]
    Watch(Box<Watch>),
}

impl Source {
    /// What happened next.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self) -> Vec<Event> {
        match self {
            #[cfg(feature = "kubernetes")]
            Self::Watch(watch) => watch.next().await.events,
        }
    }
}

/// Who learns of changes.
pub struct Follower {
    pub cluster: Arc<Cluster>,
    pub cache: Arc<Cache>,
    pub feed: Arc<Feed>,
    /// Where the intercept learns of the cluster DNS.
    pub dns: watch::Sender<ClusterDns>,
    /// Which Service that is.
    pub dns_service: ServiceKey,
    /// Whether a cluster DNS answers in our place, and events only drop what it said before.
    pub is_forwarded: bool,
}

impl Follower {
    /// Follows `source` for ever.
    pub async fn follow(self, mut source: Source) -> Infallible {
        loop {
            let events = source.next().await;
            self.take(events);
        }
    }

    /// Takes a batch of events in.
    fn take(&self, events: Vec<Event>) {
        let addresses = events.iter().rev().find_map(|event| self.dns_addresses(event));
        let changes = self.cluster.apply(events);
        // Names first: until then the cache may say what was.
        forget(&self.cache, &changes.names);
        self.tell(&changes);
        if let Some(addresses) = addresses {
            self.dns.send_if_modified(|dns| {
                std::mem::replace(&mut dns.addresses, addresses.clone()) != addresses
            });
        }
        if self.is_forwarded && !changes.names.is_empty() {
            let cache = Arc::clone(&self.cache);
            tokio::spawn(async move {
                tokio::time::sleep(LAG).await;
                forget(&cache, &changes.names);
            });
        }
    }

    /// Tells upstreams and intercept which endpoints Services have now.
    fn tell(&self, changes: &Changes) {
        for (service, endpoints) in &changes.endpoints {
            let (namespace, name) = (service.namespace.to_string(), service.name.to_string());
            let key = crate::config::ServiceKey { namespace, name };
            self.feed.set(&EndpointSource::Service(key), endpoints.clone());
            if *service == self.dns_service {
                self.dns.send_modify(|dns| dns.endpoints.clone_from(endpoints));
            }
        }
    }

    /// The addresses of the cluster DNS, if the event is about that Service.
    fn dns_addresses(&self, event: &Event) -> Option<Vec<IpAddr>> {
        let is_it = |object: &&Object| match object {
            Object::Service(service) => service.key() == self.dns_service,
            _ => false,
        };
        let addresses = |object: &Object| match object {
            Object::Service(service) => addresses(service),
            _ => Vec::new(),
        };
        match event {
            Event::Applied(_, object) => Some(object).filter(is_it).map(addresses),
            Event::Deleted(_, object) => Some(object).filter(is_it).map(|_| Vec::new()),
            Event::Replaced(_, objects) => objects.iter().find(is_it).map(addresses),
            Event::Synced => None,
        }
    }
}

/// A Service's own addresses.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    // Very old API servers know one address only.
    let all = if spec.cluster_ips.is_empty() {
        std::slice::from_ref(&spec.cluster_ip)
    } else {
        &spec.cluster_ips
    };
    all.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Makes the cache forget what it holds of these names.
fn forget(cache: &Cache, names: &[Name]) {
    names.iter().for_each(|name| cache.flush(name));
}
