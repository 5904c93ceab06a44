//! The daemon: puts the parts together, and keeps them together until it is told to leave.
//!
//! [`run`] is the life of the process. [`routes`] makes routes of a configuration, [`workers`] are
//! the resolver's threads, [`control`] reloads (all but what waits for a [`restart`]) and maintains, [`takeover`] intercepts, with [`grip`], [`reach`] looks at
//! IPv6 routes, [`endpoints`] at upstreams that come and go, [`inspect`] shows all of it to `admin`,
//! [`privileges`] gives up what is not needed.

pub mod cluster;
pub mod control;
pub mod endpoints;
pub mod grip;
pub mod inspect;
pub mod privileges;
pub mod reach;
pub mod restart;
pub mod routes;
pub mod takeover;
#[cfg(feature = "kubernetes")]
pub mod watching;
pub mod workers;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use self::cluster::{Life, Publisher};
use self::control::{Control, Signals};
use self::endpoints::Feed;
use self::grip::{Claim, Place};
use self::privileges::PrivilegeError;
use self::routes::{Maker, RoutesError};
use self::takeover::Takeover;
use self::workers::Workers;
use crate::admin::{self, DoorsError};
use crate::cache::Cache;
#[cfg(not(feature = "kubernetes"))]
use crate::config::ClusterSource;
use crate::config::Config;
use crate::config::error::ConfigErrors;
use crate::config::load::Sources;
use crate::intercept::InterceptError;
use crate::metrics::Metrics;
use crate::pulse::Pulses;
use crate::resolve::Resolver;
use crate::resolve::reach::Reach;
use crate::serve::allow::{self, AllowList};
use crate::serve::front::{Front, Policy};
use crate::serve::quota::Shares;
use crate::serve::{self, BindError, Runners, system};
use crate::shutdown::Shutdown;
use crate::telemetry::{self, Telemetry, TelemetryError};
use crate::upstream::Upstreams;

/// Why the daemon does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Routes(#[from] RoutesError),
    #[error(transparent)]
    Bind(#[from] Box<BindError>),
    #[error("nothing to listen on: no address of `listen` is on this host")]
    Nothing,
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Watch(#[from] crate::cluster::watch::WatchError),
    #[cfg(not(feature = "kubernetes"))]
    #[error("this nodens was built without Kubernetes: cluster.source can only be \"files\"")]
    NoWatch,
    #[error(transparent)]
    Admin(#[from] DoorsError),
    #[error("cannot start a thread or runtime: {0}")]
    Runtime(#[from] io::Error),
}

impl StartError {
    /// The process's exit code: 2 for configuration, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Telemetry(_) | Self::Routes(_) => 2,
            #[cfg(feature = "kubernetes")]
            Self::Watch(_) => 2,
            #[cfg(not(feature = "kubernetes"))]
            Self::NoWatch => 2,
            Self::Privileges(_)
            | Self::Bind(_)
            | Self::Nothing
            | Self::Intercept(_)
            | Self::Admin(_)
            | Self::Runtime(_) => 1,
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`StartError`] when it cannot begin; afterwards it returns only after a drain.
pub fn run(sources: &Sources, take_over: bool) -> Result<(), StartError> {
    // Before the files are read: one that cannot be read later, on reload, cannot be read now either.
    let kept = privileges::keep_needed()?;
    let config = sources.load()?;
    let telemetry = telemetry::init(&config.log)?;
    tracing::info!(capabilities = ?kept, "all others are dropped");
    if let Err(error) = system::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anything is bound: a signal that comes during the start is heeded after it.
    let signals = runtime.block_on(async { Signals::new() })?;
    let parts = Parts::make(config, telemetry, take_over)?;
    runtime.block_on(parts.live(sources.clone(), signals))
}

/// Everything that was made at start.
struct Parts {
    config: Config,
    telemetry: Telemetry,
    maker: Maker,
    front: Arc<Front>,
    workers: Workers,
    pulses: Arc<Pulses>,
    shutdown: Shutdown,
    bound: serve::Bound,
    claims: Option<Claim>,
    cluster: Option<Life>,
}

impl Parts {
    /// Binds, reads and builds; nothing is served yet.
    fn make(config: Config, telemetry: Telemetry, take_over: bool) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let ports = (config.upstream_ports.clone(), config.upstream_mark);
        let upstreams = Arc::new(Upstreams::new(ports.0, ports.1, Arc::clone(&metrics)));
        if config.deletes_tracks {
            upstreams.forget_tracks();
        }
        let claims = takeover::claim(&config, &metrics)?;
        let private = claims.as_ref().map(Claim::listens).unwrap_or_default();
        let asked = config.intercept.answered(config.upstream_mark);
        let listen = [&config.listen[..], &private, &asked].concat();
        let loop_probe = Arc::clone(upstreams.loop_probe());
        let feed = Arc::new(Feed { upstreams, listen });
        let cluster = cluster::make(&config, &metrics);
        let askers = cluster.clone();
        let route = cluster.as_ref().and_then(|cluster| cluster::route(&config, cluster, &metrics));
        let metrics_of = Arc::clone(&metrics);
        let reach = Arc::new(Reach::within(cluster.clone()));
        let maker = Maker { feed, cluster: route, metrics: metrics_of, reach };
        let routes = maker.routes(&config)?;
        let mut bound = serve::bind(&config.listen, &config.serve, take_over)?;
        // Nobody else can be there: the claim has seen to that, where a probe would see our own
        // wildcard sockets.
        bound.extend(serve::bind(&private, &config.serve, true)?);
        if bound.addresses.is_empty() {
            return Err(StartError::Nothing);
        }
        let pulses = Arc::new(Pulses::default());
        let workers = Workers::start(config.serve.resolver_threads, &pulses)?;
        let cache = Arc::new(Cache::new(config.cache.clone(), metrics.cache.clone()));
        let cluster = cluster.map(|cluster| {
            let (cache, feed) = (Arc::clone(&cache), Arc::clone(&maker.feed));
            let metrics = metrics.zone.clone();
            Life::begin(Publisher { cluster, cache, feed, metrics }, &config)
        });
        let resolver = Resolver::new(routes, cache, loop_probe, Arc::clone(&metrics));
        let resolver = Arc::new(resolver.with_askers(askers));
        let in_flight = Shares::new(config.serve.max_in_flight, config.serve.max_in_flight);
        let front = Arc::new(Front::new(resolver, policy(&config), metrics, in_flight));
        let shutdown = Shutdown::default();
        Ok(Self {
            config,
            telemetry,
            maker,
            front,
            workers,
            pulses,
            shutdown,
            bound,
            claims,
            cluster,
        })
    }

    /// Serves, and waits for the signal to leave.
    async fn live(self, sources: Sources, signals: Signals) -> Result<(), StartError> {
        let doors = admin::Doors::open(&self.config.admin)?;
        let drain = self.config.serve.drain;
        let runners = Runners {
            front: &self.front,
            workers: self.workers.handles(),
            pulses: &self.pulses,
            shutdown: &self.shutdown,
        };
        let addresses: Vec<_> = self.bound.addresses.iter().map(|l| l.address).collect();
        let front_ends = self.bound.start(&self.config.serve, &runners)?;
        tracing::info!(?addresses, version = env!("CARGO_PKG_VERSION"), "nodens answers");
        let place = Place::new(&self.config, front_ends, &self.pulses, &self.front.metrics);
        let found = takeover::reports();
        // All that may fail comes first: whoever cannot start takes nothing from who serves already.
        #[cfg_attr(not(feature = "kubernetes"), allow(unused_mut))]
        let mut cluster = self.cluster;
        #[cfg(feature = "kubernetes")]
        if let Some(cluster) = &mut cluster {
            cluster.connect(&self.config, found.0.clone(), &self.front.metrics).await?;
        }
        #[cfg(not(feature = "kubernetes"))]
        if !matches!(self.config.cluster.source, None | Some(ClusterSource::Files)) {
            return Err(StartError::NoWatch);
        }
        let mut takeover = Takeover::start(self.claims, &self.config, place, found)?;
        let shutdown = self.shutdown.clone();
        let control = Control {
            sources,
            maker: self.maker,
            front: self.front,
            telemetry: self.telemetry,
            pulses: self.pulses,
            shutdown: self.shutdown,
            cluster,
            interest: None,
        };
        let live = (signals, &mut takeover);
        control.run(self.config, doors, self.workers.handles(), live).await;
        if !shutdown.drained(drain).await {
            tracing::warn!(owed = shutdown.owed(), "deadline reached; leaving with responses owed");
        }
        takeover.leave();
        tracing::info!("drained");
        self.workers.stop();
        Ok(())
    }
}

/// The part of the configuration that the front ends take over while they run.
fn policy(config: &Config) -> Policy {
    let links = if config.allow.is_none() { allow::on_link() } else { Vec::new() };
    Policy {
        allow: AllowList::new(config.allow.as_deref(), &links),
        udp_payload: config.serve.udp_payload,
        query_log: telemetry::QueryLog::new(config.log.queries),
    }
}
