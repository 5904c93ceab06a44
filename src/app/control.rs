//! The control loop: signals, changed files, readiness, maintenance. One task on the control runtime.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::cluster::{self, Interest, Life};
use super::inspect::View;
use super::routes::{self, Maker};
use super::takeover::Takeover;
use super::{policy, reach, restart};
use crate::admin::readiness::Readiness;
use crate::admin::{self, Deps, Doors};
use crate::clock;
use crate::config::load::Sources;
use crate::config::watch::{Watch, files_of};
use crate::config::{Config, Network};
use crate::dns::name::Name;
use crate::pulse::Pulses;
use crate::resolve::route::{ForwardZone, Routes};
use crate::serve::allow;
use crate::serve::front::Front;
use crate::shutdown::Shutdown;
use crate::telemetry::Telemetry;

/// How often the cache applies pending inserts and evictions.
const MAINTAIN_EVERY: Duration = Duration::from_millis(100);

/// Signals within this time are one wish to leave: `timeout` signals the process and its group.
const ONE_WISH: Duration = Duration::from_millis(100);

/// How often the links' own networks are read.
const LINKS_EVERY: Duration = Duration::from_secs(5);

/// How long a reload waits for the endpoints of Services that are new among the upstreams, and how often it
/// looks for them.
const JOIN_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long readiness waits for any response of an upstream.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(5);

/// What is needed to reload and to look after things.
pub struct Control {
    pub sources: Sources,
    pub maker: Maker,
    pub front: Arc<Front>,
    pub telemetry: Telemetry,
    pub pulses: Arc<Pulses>,
    pub shutdown: Shutdown,
    /// The cluster zone's source, until it runs.
    pub cluster: Option<Life>,
    /// The Services whose endpoints it follows, once it runs.
    pub interest: Option<Interest>,
}

/// What a reload takes over.
struct Prepared {
    config: Config,
    routes: Routes,
    /// Keys that are written otherwise, and wait for a restart.
    waiting: Vec<&'static str>,
}

/// What wakes the control loop.
enum Event {
    Leave(&'static str),
    Reload(String),
    LookAtLinks,
}

impl Control {
    /// Runs until SIGTERM or SIGINT; then the drain has begun. A second signal ends the process.
    pub async fn run(
        mut self,
        config: Config,
        doors: Doors,
        workers: &[Handle],
        (mut signals, takeover): (Signals, &mut Takeover),
    ) {
        let readiness = Readiness::new(self.shutdown.clone());
        let (bound, answered) =
            (readiness.gate("sockets bound"), readiness.gate("upstream answered"));
        if let Some(cluster) = self.cluster.take() {
            self.interest = Some(cluster.run(readiness.gate("cluster zone")));
        }
        bound.pass();
        let resolver = Arc::clone(&self.front.resolver);
        let holds = move || resolver.routes().zones().any(|zone| zone.group.has_answered());
        tokio::spawn(answered.pass_once(holds, UPSTREAM_PATIENCE));
        self.make_rounds(&workers[0]);
        let resolver = Arc::clone(&self.front.resolver);
        tokio::spawn(reach::watch(resolver, Arc::clone(&self.maker.reach)));

        let file = self.sources.file().to_owned();
        let mut watch = Watch::new(files_of(&config, Some(&file)));
        let this = Arc::new(self);
        let view = Arc::new(View::new(Arc::clone(&this), config));
        let deps = Deps {
            inspect: Arc::clone(&view) as Arc<dyn admin::Inspect>,
            pulses: Arc::clone(&this.pulses),
            readiness,
        };
        let admin = tokio::spawn(admin::serve(doors, deps, this.shutdown.clone()));
        let mut links = allow::on_link();
        let mut link_ticks = tokio::time::interval(LINKS_EVERY);
        link_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let signal = loop {
            let event = tokio::select! {
                event = signals.next() => event,
                files = watch.changed() => Event::Reload(format!("{files:?} changed")),
                never = takeover.look_after() => match never {},
                _ = link_ticks.tick() => Event::LookAtLinks,
            };
            match event {
                Event::Leave(signal) => break signal,
                // Its probes take a while; nothing is half done when they are given up.
                Event::Reload(why) => tokio::select! {
                    () = this.reload(&view, &why) => {
                        watch.follow(files_of(&view.config(), Some(&file)));
                        takeover.reconfigure(&view.config().intercept);
                    }
                    signal = signals.leave() => break signal,
                    never = takeover.look_after() => match never {},
                },
                Event::LookAtLinks => this.look_at_links(&view, &mut links),
            }
        };
        tracing::info!(signal, "draining");
        takeover.stop_taking();
        this.shutdown.begin();
        tokio::spawn(signals.leave_at_the_second());
        drop(admin);
    }

    /// Begins what goes on in the background beside queries.
    fn make_rounds(&self, worker: &Handle) {
        let (feed, resolver) = (&self.maker.feed, Arc::clone(&self.front.resolver));
        worker.spawn(maintain_cache(Arc::clone(&self.front)));
        worker.spawn(Arc::clone(&feed.upstreams).maintain());
        worker.spawn(Arc::clone(feed).run(resolver));
    }

    /// Lets the stub resolvers of links ask that came up after us, where nobody wrote who may ask.
    fn look_at_links(&self, view: &View, known: &mut Vec<Network>) {
        let links = allow::on_link();
        if links != *known {
            *known = links;
            self.front.policy.store(Arc::new(policy(&view.config())));
        }
    }

    /// Reads the configuration anew; when anything is wrong the one in force stays whole.
    async fn reload(&self, view: &View, why: &str) {
        let life = &self.front.metrics.life;
        match self.prepare(&view.config()).await {
            Ok(prepared) => {
                self.apply(view, prepared);
                life.reloads.inc();
                tracing::info!(why, "configuration reloaded");
            }
            Err(error) => {
                life.reloads_failed.inc();
                tracing::error!(why, error, "configuration not reloaded; the old one stays");
            }
        }
    }

    /// Makes everything of the new configuration that may fail.
    async fn prepare(&self, old: &Config) -> Result<Prepared, String> {
        let written = self.sources.load().map_err(|errors| errors.to_string())?;
        let (config, waiting) = restart::split(old, written);
        let routes = self.maker.routes(&config).map_err(|error| error.to_string())?;
        self.join(&config).await;
        let probes = routes.zones().map(|zone| only_loops(zone));
        match futures_util::future::join_all(probes).await.into_iter().flatten().next() {
            Some(zone) => Err(format!("every upstream of zone {zone} forwards back to us")),
            None => Ok(Prepared { config, routes, waiting }),
        }
    }

    /// Begins to follow the Services that `config` names as upstreams, besides those that are followed, and
    /// waits a moment for their endpoints.
    async fn join(&self, config: &Config) {
        let Some(interest) = &self.interest else { return };
        let (wanted, upstreams) = (cluster::interest(config), &self.maker.feed.upstreams);
        if !cluster::join(interest, wanted) {
            return;
        }
        let all_known = async {
            while !cluster::upstream_sources(config).all(|source| upstreams.knows(&source)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(JOIN_PATIENCE, all_known).await.is_err() {
            tracing::warn!("a Service that is a new upstream has no endpoints yet");
        }
    }

    /// Follows no Services but those that `config` names.
    fn leave(&self, config: &Config) {
        if let Some(interest) = &self.interest {
            cluster::keep_only(interest, cluster::interest(config));
        }
    }

    /// Takes the new configuration over. Nothing here fails or waits.
    fn apply(&self, view: &View, Prepared { config, routes, waiting }: Prepared) {
        let old = view.config();
        for key in &waiting {
            tracing::warn!(key, "this key takes effect after a restart");
        }
        if old.log.level != config.log.level
            && let Err(error) = self.telemetry.set_level(&config.log.level)
        {
            tracing::warn!(%error, "log level not changed");
        }
        let resolver = &self.front.resolver;
        let old_routes = resolver.routes();
        resolver.set_routes(routes);
        routes::lead_on(&self.maker.feed.upstreams, &old_routes, &resolver.routes());
        resolver.cache().set_policy(config.cache.clone());
        routes::forget_changed(resolver.cache(), &old_routes, &resolver.routes());
        self.front.policy.store(Arc::new(policy(&config)));
        self.leave(&config);
        view.set_config(config, waiting);
    }
}

/// The zone's name when every one of its upstreams forwards back to us.
async fn only_loops(zone: &ForwardZone) -> Option<&Name> {
    let looping = zone.group.find_loops().await;
    let is_each = looping.len() == zone.group.status().upstreams.len();
    (is_each && !looping.is_empty()).then_some(&zone.name)
}

/// Applies the cache's pending work for ever, so that no hit pays for it.
async fn maintain_cache(front: Arc<Front>) {
    let mut ticks = tokio::time::interval(MAINTAIN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        front.resolver.cache().maintain(clock::now());
    }
}

/// The signals that we heed.
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Heeds them from now on. Needs a runtime around it.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal's meaning.
    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.hangup.recv() => Event::Reload("SIGHUP".into()),
            signal = Self::either(&mut self.terminate, &mut self.interrupt) => Event::Leave(signal),
        }
    }

    /// The next signal that tells us to leave.
    async fn leave(&mut self) -> &'static str {
        Self::either(&mut self.terminate, &mut self.interrupt).await
    }

    /// Ends the process at the next signal to leave that is a wish of its own.
    async fn leave_at_the_second(mut self) {
        let first = clock::now();
        loop {
            self.leave().await;
            if clock::now().saturating_duration_since(first) >= ONE_WISH {
                break;
            }
        }
        tracing::warn!("second signal: leaving at once");
        std::process::exit(1);
    }

    /// The name of the one that comes first.
    async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}
