//! The cluster zone's life: events in from its source, what changed out to cache, upstreams and metrics.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::endpoints::Feed;
#[cfg(feature = "kubernetes")]
use super::{takeover::ClusterDns, watching::Watching};
use crate::admin::readiness::Gate;
use crate::cache::Cache;
use crate::clock;
use crate::cluster::files::{FileError, Files};
use crate::cluster::object::ServiceKey;
use crate::cluster::search::Search;
use crate::cluster::tenancy::{self, Shown, Tenancy};
#[cfg(feature = "kubernetes")]
use crate::cluster::watch::WatchError;
use crate::cluster::{Changes, Cluster, Event, Settings};
use crate::config::{
    self, ClusterSource, Config, EndpointSource, TenancyRule, Tenant, UpstreamSource, resolv_conf,
};
use crate::dns::ttl::Ttl;
use crate::metrics::{Metrics, ZoneMetrics};
use crate::resolve::route::ClusterZone;

/// How often the folder of manifests is looked at; a change counts when it has kept still for one look.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long readiness waits for the zone; until it is there it is forwarded.
const PATIENCE: Duration = Duration::from_secs(5);

/// The Services whose endpoints are followed; a reload changes it.
pub type Interest = watch::Sender<BTreeSet<ServiceKey>>;

/// Everybody who wants to know what changed.
#[derive(Clone)]
pub struct Publisher {
    pub cluster: Arc<Cluster>,
    pub cache: Arc<Cache>,
    pub feed: Arc<Feed>,
    pub metrics: ZoneMetrics,
}

/// The zone as the configuration wants it; `None` where it wants none.
pub fn make(config: &Config, metrics: &Metrics) -> Option<Arc<Cluster>> {
    config.cluster.source?;
    let cluster = &config.cluster;
    let settings = Settings {
        domains: cluster.domains.clone(),
        ttl: Ttl::from_duration(cluster.ttl),
        pods: cluster.pods,
        interest: interest(config),
        name_server: Some(key_of(&cluster.dns_service)),
        search: if cluster.search { search(config) } else { None },
        tenancy: tenancy(&cluster.tenancy),
    };
    let counts = cluster.by_namespace.then(|| Arc::clone(&metrics.zone.by_namespace));
    Some(Arc::new(Cluster::new(settings).counting(counts)))
}

/// The search list of the node's pods; `None` where it is not certain.
fn search(config: &Config) -> Option<Search> {
    if let Some(node) = &config.cluster.node_search {
        return Some(Search { node: node.clone() });
    }
    let of_zone = config.forward.iter().find_map(|zone| match &zone.upstreams {
        UpstreamSource::ResolvConf(path) => Some(path.clone()),
        UpstreamSource::Fixed(_) => None,
    });
    let path = of_zone.unwrap_or_else(|| config::RESOLV_CONF.into());
    match std::fs::read(&path) {
        Ok(text) => Some(Search { node: resolv_conf::search(&String::from_utf8_lossy(&text)) }),
        Err(error) => {
            let file = path.display();
            tracing::warn!(%file, %error, "cluster.search is off: write cluster.node_search");
            None
        }
    }
}

/// What pods see; `None` where nothing is written.
fn tenancy(rules: &[TenancyRule]) -> Option<Tenancy> {
    let shown = |rule: &TenancyRule| match &rule.sees {
        None => Shown::All,
        Some(labels) => Shown::only(labels.iter().map(String::as_str)),
    };
    let of = |tenant: &Tenant| rules.iter().find(|rule| rule.of == *tenant).map(shown);
    let by_namespace = rules.iter().filter_map(|rule| match &rule.of {
        Tenant::Namespace(name) => Some((tenancy::label(name), shown(rule))),
        _ => None,
    });
    (!rules.is_empty()).then(|| Tenancy {
        by_namespace: by_namespace.collect(),
        others: of(&Tenant::Others).unwrap_or_else(Shown::nothing),
        // Before a pod's address is known to the API server its first queries come.
        unknown: of(&Tenant::Unknown).unwrap_or(Shown::All),
    })
}

/// Services that are named as upstreams.
fn upstream_services(config: &Config) -> impl Iterator<Item = &config::ServiceKey> {
    let sets = config.forward.iter().flat_map(|zone| &zone.endpoints);
    sets.filter_map(|set| match &set.source {
        EndpointSource::Service(key) => Some(key),
        _ => None,
    })
}

/// Tells whether a Service is named as an upstream.
pub fn names_services(config: &Config) -> bool {
    upstream_services(config).next().is_some()
}

/// Services whose endpoints are to be followed: the cluster DNS, and those that are named as upstreams.
pub fn interest(config: &Config) -> BTreeSet<ServiceKey> {
    upstream_services(config).chain([&config.cluster.dns_service]).map(key_of).collect()
}

/// Begins to follow these Services too; tells whether any of them was not followed.
pub fn join(interest: &Interest, wanted: BTreeSet<ServiceKey>) -> bool {
    interest.send_if_modified(|followed| {
        let before = followed.len();
        followed.extend(wanted);
        followed.len() > before
    })
}

/// Follows these Services and no others.
pub fn keep_only(interest: &Interest, wanted: BTreeSet<ServiceKey>) {
    interest.send_if_modified(|followed| std::mem::replace(followed, wanted.clone()) != wanted);
}

/// The sources of upstreams that are Services.
pub fn upstream_sources(config: &Config) -> impl Iterator<Item = EndpointSource> {
    upstream_services(config).cloned().map(EndpointSource::Service)
}

/// A Service as the configuration has it, for the zone.
fn key_of(key: &config::ServiceKey) -> ServiceKey {
    ServiceKey::new(&key.namespace, &key.name)
}

/// A Service as a source of upstreams.
pub fn source_of(key: &ServiceKey) -> EndpointSource {
    let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
    EndpointSource::Service(config::ServiceKey { namespace, name })
}

/// The zone's place among the routes: none where the zone is forwarded.
pub fn route(config: &Config, cluster: &Arc<Cluster>, metrics: &Metrics) -> Option<ClusterZone> {
    let domain = config.cluster.domains.first()?;
    let answers = config.cluster.source? != ClusterSource::Forward;
    answers.then(|| ClusterZone { id: metrics.zone(domain), cluster: Arc::clone(cluster) })
}

impl Publisher {
    /// Takes events in that were read at `read_at`, and lets everybody know: afterwards every query sees
    /// their changes.
    pub fn publish(&self, events: Vec<Event>, read_at: Instant) -> Changes {
        let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
        let was_synced = self.cluster.is_synced();
        let changes = self.cluster.apply(events);
        changes.names.iter().for_each(|name| self.cache.flush(name));
        if changes.synced && !was_synced {
            // What was forwarded so far was another's answer.
            for domain in &self.cluster.settings().domains {
                self.cache.flush_within(domain);
            }
            tracing::info!(objects = ?self.cluster.counts(), "the cluster zone is complete");
        }
        self.tell(&changes.endpoints);
        self.count(count, &changes, read_at);
        changes
    }

    /// Follows the endpoints of these Services from now on; what is known of new ones is told at once, and what was
    /// told of others is forgotten.
    ///
    /// Here and not by who changes the interest: a Service that is left and joined again before anybody has looked
    /// was never left.
    pub fn follow(&self, interest: BTreeSet<ServiceKey>) {
        let followed = self.cluster.follow(interest);
        for left in &followed.left {
            self.feed.upstreams.forget_endpoints(&source_of(left));
        }
        self.tell(&followed.joined);
    }

    /// Lets the upstreams know of endpoints.
    fn tell(&self, endpoints: &[(ServiceKey, Vec<SocketAddr>)]) {
        for (key, addresses) in endpoints {
            tracing::debug!(service = %key, ?addresses, "endpoints");
            self.feed.set(&source_of(key), addresses.clone());
        }
    }

    /// Counts what was published.
    fn count(&self, events: u64, changes: &Changes, read_at: Instant) {
        let metrics = &self.metrics;
        metrics.events.inc_by(events);
        metrics.names_changed.inc_by(u64::try_from(changes.names.len()).unwrap_or(u64::MAX));
        metrics.synced.set(changes.synced.into());
        for (gauge, count) in metrics.objects.iter().zip(self.cluster.counts()) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        metrics.visible.observe(clock::now().saturating_duration_since(read_at));
        let now = clock::wall();
        for triggered in &changes.triggered {
            // A clock that runs ahead of ours makes it no time at all.
            metrics.programming.observe(now.duration_since(*triggered).unwrap_or_default());
        }
    }
}

/// The zone with its source.
pub struct Life {
    publisher: Publisher,
    interest: Interest,
    folder: Option<Folder>,
    #[cfg(feature = "kubernetes")]
    watching: Option<Watching>,
}

impl Life {
    /// Before anything is served. A folder is read at once: its zone answers from the first query on.
    pub fn begin(publisher: Publisher, config: &Config) -> Self {
        publisher.cache.set_cluster_domains(config.cluster.domains.clone());
        let (interest, followed) = watch::channel(publisher.cluster.settings().interest.clone());
        let is_files = config.cluster.source == Some(ClusterSource::Files);
        let folder = config.cluster.folder.clone().filter(|_| is_files).map(|folder| {
            let (publisher, files) = (publisher.clone(), Files::new(folder));
            let mut folder = Folder { publisher, files, interest: followed };
            folder.look(vec![Event::Synced]);
            folder
        });
        Self {
            publisher,
            interest,
            folder,
            #[cfg(feature = "kubernetes")]
            watching: None,
        }
    }

    /// Begins to watch the API server where the configuration wants it; `dns` learns of the cluster DNS.
    ///
    /// # Errors
    /// When the API server cannot be watched at all; that it is away is none.
    #[cfg(feature = "kubernetes")]
    pub async fn connect(
        &mut self,
        config: &Config,
        dns: watch::Sender<ClusterDns>,
        metrics: &Metrics,
    ) -> Result<(), WatchError> {
        let interest = self.interest.subscribe();
        self.watching = Watching::begin(&self.publisher, config, (dns, interest, metrics)).await?;
        Ok(())
    }

    /// Follows the source for ever, in tasks of the runtime around; `gate` passes when the zone is there, or
    /// is forwarded for a while already. What it gives back says which Services' endpoints are followed.
    pub fn run(self, gate: Gate) -> Interest {
        let cluster = Arc::clone(&self.publisher.cluster);
        tokio::spawn(gate.pass_once(move || cluster.is_synced(), PATIENCE));
        if let Some(folder) = self.folder {
            tokio::spawn(folder.follow());
        }
        #[cfg(feature = "kubernetes")]
        if let Some(watching) = self.watching {
            tokio::spawn(watching.follow());
        }
        self.interest
    }
}

/// A folder of manifests as the zone's source.
struct Folder {
    publisher: Publisher,
    files: Files,
    interest: watch::Receiver<BTreeSet<ServiceKey>>,
}

impl Folder {
    /// Follows the folder for ever.
    async fn follow(mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look(Vec::new()),
                Ok(()) = self.interest.changed() => {
                    let interest = self.interest.borrow_and_update().clone();
                    self.publisher.follow(interest);
                }
            }
        }
    }

    /// Looks once and publishes what is new, and `more`.
    fn look(&mut self, more: Vec<Event>) {
        let read_at = clock::now();
        let mut looked = self.files.look();
        for error in &looked.errors {
            // A folder that is away would be told of at every look.
            match error {
                FileError::Unreadable { .. } => tracing::debug!(%error, "not read"),
                FileError::Malformed { .. } => {
                    tracing::error!(%error, "manifest not read; its old objects stay")
                }
            }
        }
        let failed = u64::try_from(looked.errors.len()).unwrap_or(u64::MAX);
        self.publisher.metrics.files_failed.inc_by(failed);
        looked.events.extend(more);
        if !looked.events.is_empty() {
            drop(self.publisher.publish(looked.events, read_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::readiness::Readiness;
    use crate::config::PortRange;
    use crate::shutdown::Shutdown;
    use crate::upstream::Upstreams;

    /// A configuration whose zone comes from `folder`, with the Service `kube-system/dns` among the upstreams.
    fn config_of(folder: &std::path::Path) -> Config {
        let text = format!(
            "[[forward]]\nzone = \".\"\nupstreams = [\"service:kube-system/dns\"]\n\
             [cluster]\nsource = \"files\"\nfolder = {folder:?}\n"
        );
        let inputs = config::Inputs {
            file: Some((std::path::Path::new("test.toml"), &text)),
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        config::load(&inputs).expect("the test's configuration is right")
    }

    #[tokio::test]
    async fn a_service_that_is_dropped_and_restored_keeps_its_endpoints() {
        let folder = std::env::temp_dir().join(format!("nodens-interest-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {name: dns-1, namespace: kube-system, labels: \
                     {kubernetes.io/service-name: dns}}\naddressType: IPv4\n\
                     endpoints: [{addresses: [192.0.2.53]}]\n";
        std::fs::write(folder.join("slice.yaml"), slice).expect("written");
        let (config, metrics) = (config_of(&folder), Metrics::new());
        let range = PortRange { first: 30_000, last: 60_999, reserved: Vec::new() };
        let upstreams = Arc::new(Upstreams::new(range, 0, Arc::clone(&metrics)));
        let publisher = Publisher {
            cluster: make(&config, &metrics).expect("it is wanted"),
            cache: Arc::new(Cache::new(config.cache.clone(), metrics.cache.clone())),
            feed: Arc::new(Feed { upstreams: Arc::clone(&upstreams), listen: Vec::new() }),
            metrics: metrics.zone.clone(),
        };
        let life = Life::begin(publisher, &config);
        let source = upstream_sources(&config).next().expect("it is written");
        assert!(upstreams.knows(&source), "read before the first query");
        let interest = life.run(Readiness::new(Shutdown::default()).gate("cluster zone"));
        let (with, without) = (super::interest(&config), BTreeSet::new());
        // Two reloads before anybody has looked, and two with a look between.
        keep_only(&interest, without.clone());
        assert!(join(&interest, with.clone()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(upstreams.knows(&source), "never left");
        keep_only(&interest, without);
        while upstreams.knows(&source) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(join(&interest, with.clone()) && !join(&interest, with));
        while !upstreams.knows(&source) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
