//! The API server as the cluster zone's source: what it tells is published, and the intercept learns
//! where the cluster DNS is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;

use super::cluster::Publisher;
use super::takeover::ClusterDns;
use crate::clock;
use crate::cluster::Event;
use crate::cluster::object::{Object, Service, ServiceKey};
use crate::cluster::watch::{Batch, Pods, Wanted, Watch, WatchError};
use crate::config::{ClusterSource, Config, PodNames};
use crate::dns::name::Name;
use crate::metrics::Metrics;

/// How much later than we a cluster DNS may learn of a change: what it said until then is dropped too.
const LAG: Duration = Duration::from_secs(1);

/// A watch and who learns of it.
pub struct Watching {
    watch: Watch,
    publisher: Publisher,
    /// Where the intercept learns of the cluster DNS.
    dns: watch::Sender<ClusterDns>,
    /// The Services whose endpoints are to be followed.
    interest: watch::Receiver<BTreeSet<ServiceKey>>,
    dns_service: ServiceKey,
    /// Whether a cluster DNS answers in our place, and events only drop what it said before.
    is_forwarded: bool,
}

impl Watching {
    /// Begins to watch; `None` where the configuration wants no watch.
    ///
    /// # Errors
    /// [`WatchError`]
    pub async fn begin(
        publisher: &Publisher,
        config: &Config,
        (dns, interest, metrics): (
            watch::Sender<ClusterDns>,
            watch::Receiver<BTreeSet<ServiceKey>>,
            &Metrics,
        ),
    ) -> Result<Option<Self>, WatchError> {
        let cluster = &config.cluster;
        let is_forwarded = match cluster.source {
            Some(ClusterSource::Watch) => false,
            Some(ClusterSource::Forward) => true,
            _ => return Ok(None),
        };
        let wanted = Wanted {
            kubeconfig: cluster.kubeconfig.clone(),
            interest: publisher.cluster.settings().interest.clone(),
            pods: match &cluster.node {
                _ if cluster.pods == PodNames::Verified => Pods::All,
                Some(node) if cluster.needs_pods() => Pods::Of(node.clone()),
                _ => Pods::None,
            },
        };
        let watch = Watch::connect(&wanted, metrics.watch.clone()).await?;
        let dns_service =
            ServiceKey::new(&cluster.dns_service.namespace, &cluster.dns_service.name);
        let publisher = publisher.clone();
        Ok(Some(Self { watch, publisher, dns, interest, dns_service, is_forwarded }))
    }

    /// Follows the API server for ever.
    pub async fn follow(mut self) {
        loop {
            let batch = tokio::select! {
                batch = self.watch.next() => batch,
                Ok(()) = self.interest.changed() => match self.join() {
                    Some(batch) => batch,
                    None => continue,
                },
            };
            let addresses = batch.events.iter().rev().find_map(|event| self.addresses(event));
            let changes = self.publisher.publish(batch.events, batch.read_at);
            let endpoints =
                changes.endpoints.iter().rev().find(|(key, _)| *key == self.dns_service);
            self.tell(addresses, endpoints.map(|(_, endpoints)| endpoints.clone()));
            if self.is_forwarded && !changes.names.is_empty() {
                tokio::spawn(forget_later(self.publisher.clone(), changes.names));
            }
        }
    }

    /// Follows the endpoints of the Services that a reload wants; perhaps with something to publish.
    fn join(&mut self) -> Option<Batch> {
        let interest = self.interest.borrow_and_update().clone();
        self.publisher.follow(interest.clone());
        let event = self.watch.follow(interest)?;
        Some(Batch { events: vec![event], read_at: clock::now() })
    }

    /// Tells the intercept what of the cluster DNS has changed.
    fn tell(&self, addresses: Option<Vec<IpAddr>>, endpoints: Option<Vec<std::net::SocketAddr>>) {
        self.dns.send_if_modified(|dns| {
            let before = dns.clone();
            dns.addresses = addresses.unwrap_or_else(|| before.addresses.clone());
            dns.endpoints = endpoints.unwrap_or_else(|| before.endpoints.clone());
            *dns != before
        });
    }

    /// The addresses of the cluster DNS, if the event says something about that Service.
    fn addresses(&self, event: &Event) -> Option<Vec<IpAddr>> {
        let of = |object: &Object| match object {
            Object::Service(service) if service.key() == self.dns_service => {
                Some(addresses(service))
            }
            _ => None,
        };
        match event {
            Event::Applied(_, object) => of(object),
            Event::Deleted(_, object) => of(object).map(|_| Vec::new()),
            Event::Replaced(_, objects) => objects.iter().find_map(of),
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

/// Makes the cache forget these names once the cluster DNS must know of the change.
async fn forget_later(publisher: Publisher, names: Vec<Name>) {
    tokio::time::sleep(LAG).await;
    names.iter().for_each(|name| publisher.cache.flush(name));
}
