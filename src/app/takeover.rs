//! The intercept's part in the daemon's life: claimed before sockets are bound, started behind them,
//! and changed while it runs.
//!
//! What is taken and where the net below leads comes from the configuration, and from whoever watches
//! the cluster DNS ([`Takeover::reporter`]). A change that cannot be made now is tried again.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock;
use crate::config::intercept::NODE_ADDRESS;
use crate::config::{self, Config, InterceptMode, Network};
use crate::intercept::claims::Claims;
use crate::intercept::{Intercept, InterceptError, Start};
use crate::metrics::Metrics;
use crate::pulse::Pulses;
use crate::serve::{self, FrontEnds};

/// How often what is intercepted is compared with what shall be.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the cluster says about its DNS; empty while nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    /// The Service's addresses: taken besides 169.254.20.10 unless `intercept.addresses` is written.
    pub addresses: Vec<IpAddr>,
    /// Its ready endpoints: the net below leads there unless `intercept.fallback` is written. While
    /// there are none, the last ones stay.
    pub endpoints: Vec<SocketAddr>,
}

/// What shall be taken, and where the net below leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wish {
    addresses: Vec<IpAddr>,
    private: Vec<Network>,
    fallback: Vec<SocketAddr>,
}

impl Wish {
    /// What the configuration and the cluster say together.
    fn new(written: &config::Intercept, found: &ClusterDns) -> Self {
        let addresses = match written.mode {
            _ if written.follows_cluster() && !found.addresses.is_empty() => {
                std::iter::once(NODE_ADDRESS.into()).chain(found.addresses.clone()).collect()
            }
            InterceptMode::Takeover => written.addresses.clone(),
            InterceptMode::None => Vec::new(),
        };
        let fallback = match written.fallback.as_slice() {
            _ if addresses.is_empty() => Vec::new(),
            [] => found.endpoints.clone(),
            fallback => fallback.to_vec(),
        };
        Self { addresses, private: written.private.clone(), fallback }
    }
}

/// Claims private addresses where the configuration wants them.
///
/// # Errors
/// When the mode was written; a defaulted one that is not permitted is a warning.
pub fn claim(config: &Config) -> Result<Option<Claims>, InterceptError> {
    let wish = Wish::new(&config.intercept, &ClusterDns::default());
    if wish.addresses.is_empty() {
        return Ok(None);
    }
    permitted(&config.intercept, Claims::take(&wish.addresses, &wish.private))
}

/// A result, or none with a warning where the mode was only defaulted and is not permitted.
fn permitted<T>(
    written: &config::Intercept,
    result: Result<T, InterceptError>,
) -> Result<Option<T>, InterceptError> {
    match result {
        Err(error @ InterceptError::NotPermitted { .. }) if !written.required => {
            tracing::warn!(%error, "nothing is intercepted");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// What an intercept is started and served with.
pub struct Place {
    front_ends: FrontEnds,
    serve: config::Serve,
    upstream_mark: u32,
    pulses: Arc<Pulses>,
    metrics: Arc<Metrics>,
}

impl Place {
    /// The place of this daemon.
    pub fn new(
        config: &Config,
        front_ends: FrontEnds,
        pulses: &Arc<Pulses>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            front_ends,
            serve: config.serve.clone(),
            upstream_mark: config.upstream_mark,
            pulses: Arc::clone(pulses),
            metrics: Arc::clone(metrics),
        }
    }

    /// Begins to take what `claims` holds, which is served by now.
    fn start(&self, claims: Claims) -> Result<Intercept, InterceptError> {
        let start = Start {
            upstream_mark: self.upstream_mark,
            tcp_idle: self.serve.tcp_idle,
            pulses: Arc::clone(&self.pulses),
            metrics: self.metrics.intercept.clone(),
        };
        let intercept = Intercept::start(claims, start)?;
        say(&intercept);
        Ok(intercept)
    }

    /// Serves what was claimed.
    fn serve(&mut self, listens: &[config::Listen]) -> Result<(), InterceptError> {
        // Nobody else can be there: the claim has seen to that.
        let bound = serve::bind(listens, &self.serve, true);
        let bound = bound.map_err(|error| InterceptError::Socket(error.source))?;
        self.front_ends.add(bound, &self.pulses).map_err(InterceptError::Socket)
    }
}

/// Says what is taken.
fn say(intercept: &Intercept) {
    for pair in intercept.pairs() {
        tracing::info!(asked = %pair.asked, private = %pair.private, "intercepted");
    }
}

/// The intercept, where there is one.
pub struct Takeover {
    intercept: Option<Intercept>,
    place: Place,
    written: config::Intercept,
    found: (watch::Sender<ClusterDns>, watch::Receiver<ClusterDns>),
    /// The last endpoints that the cluster had.
    endpoints: Vec<SocketAddr>,
    /// What has been done, as far as it could be.
    done: Wish,
    /// Why the last change failed; each reason is said once.
    failing: Option<String>,
}

impl Takeover {
    /// Begins to take queries; the private addresses of `claims` are served by now.
    ///
    /// # Errors
    /// As [`claim`].
    pub fn start(
        claims: Option<Claims>,
        config: &Config,
        place: Place,
    ) -> Result<Self, InterceptError> {
        let written = config.intercept.clone();
        let started = claims.map(|claims| permitted(&written, place.start(claims))).transpose()?;
        let mut takeover = Self {
            intercept: started.flatten(),
            place,
            done: Wish::new(&written, &ClusterDns::default()),
            written,
            found: watch::channel(ClusterDns::default()),
            endpoints: Vec::new(),
            failing: None,
        };
        if let Some(intercept) = &mut takeover.intercept
            && !takeover.done.fallback.is_empty()
        {
            intercept.lead(&takeover.done.fallback)?;
        }
        Ok(takeover)
    }

    /// Where to report what the cluster says about its DNS; the last report counts.
    pub fn reporter(&self) -> watch::Sender<ClusterDns> {
        self.found.0.clone()
    }

    /// Takes another configuration over.
    pub fn reconfigure(&mut self, written: &config::Intercept) {
        self.written = written.clone();
        self.change();
    }

    /// Looks after it for ever.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn look_after(&mut self) -> Infallible {
        loop {
            // The other half of the channel is ours too: it never closes.
            let _ = tokio::time::timeout(LOOK_EVERY, self.found.1.changed()).await;
            self.change();
            if let Some(intercept) = &mut self.intercept {
                intercept.look(clock::now());
            }
        }
    }

    /// Brings what is taken to what is wished for, where they differ.
    fn change(&mut self) {
        let mut found = self.found.1.borrow_and_update().clone();
        if !found.endpoints.is_empty() {
            self.endpoints.clone_from(&found.endpoints);
        }
        found.endpoints.clone_from(&self.endpoints);
        let wish = Wish::new(&self.written, &found);
        if wish == self.done {
            return;
        }
        match self.fulfil(&wish) {
            Ok(()) => self.failing = None,
            Err(error @ InterceptError::NotPermitted { .. }) => {
                tracing::warn!(%error, "nothing more is intercepted");
                self.done = wish;
            }
            Err(error) => {
                let why = error.to_string();
                if self.failing.as_ref() != Some(&why) {
                    tracing::error!(error = why, "what is intercepted cannot be changed for now");
                    self.failing = Some(why);
                }
            }
        }
    }

    /// Does what differs from what is done.
    fn fulfil(&mut self, wish: &Wish) -> Result<(), InterceptError> {
        if (&wish.addresses, &wish.private) != (&self.done.addresses, &self.done.private) {
            self.widen(wish)?;
            self.done.addresses.clone_from(&wish.addresses);
            self.done.private.clone_from(&wish.private);
        }
        if let Some(intercept) = &mut self.intercept
            && wish.fallback != self.done.fallback
        {
            intercept.lead(&wish.fallback)?;
            tracing::info!(endpoints = ?wish.fallback, "the net below was changed");
        }
        self.done.fallback.clone_from(&wish.fallback);
        Ok(())
    }

    /// Takes what is wished for: claims, serves, and only then takes.
    fn widen(&mut self, wish: &Wish) -> Result<(), InterceptError> {
        match &mut self.intercept {
            Some(intercept) => {
                intercept.claim(&wish.addresses, &wish.private)?;
                self.place.serve(&intercept.listens())?;
                intercept.take()?;
                say(intercept);
            }
            None if wish.addresses.is_empty() => {}
            None => {
                let claims = Claims::take(&wish.addresses, &wish.private)?;
                self.place.serve(&claims.listens())?;
                self.intercept = Some(self.place.start(claims)?);
            }
        }
        Ok(())
    }

    /// Takes no new queries: the drain is about to begin.
    pub fn stop_taking(&mut self) {
        if let Some(intercept) = &mut self.intercept {
            intercept.stop_taking();
        }
    }

    /// Leaves nothing behind but the net below.
    pub fn leave(self) {
        if let Some(intercept) = self.intercept {
            intercept.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with these lines in `[intercept]`.
    fn written(lines: &str) -> config::Intercept {
        let text = format!("[intercept]\n{lines}\n");
        let inputs = config::Inputs {
            file: Some((std::path::Path::new("test.toml"), &text)),
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        config::load(&inputs).expect("the test's configuration is right").intercept
    }

    #[test]
    fn what_is_written_counts_and_the_cluster_fills_in_what_is_not() {
        let cluster = ClusterDns {
            addresses: vec!["192.0.2.10".parse().expect("an address")],
            endpoints: vec!["192.0.2.53:53".parse().expect("an endpoint")],
        };
        let nobody = ClusterDns::default();
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (lines, found, addresses, fallback) in [
            ("", &nobody, "", ""),
            ("", &cluster, "169.254.20.10 192.0.2.10", "192.0.2.53:53"),
            ("mode = \"none\"", &cluster, "", ""),
            ("mode = \"none\"\naddresses = [\"192.0.2.1\"]", &cluster, "", ""),
            ("mode = \"takeover\"", &nobody, "169.254.20.10", ""),
            ("mode = \"takeover\"", &cluster, "169.254.20.10 192.0.2.10", "192.0.2.53:53"),
            ("addresses = [\"192.0.2.1\"]", &nobody, "192.0.2.1", ""),
            ("addresses = [\"192.0.2.1\"]", &cluster, "192.0.2.1", "192.0.2.53:53"),
            ("fallback = [\"192.0.2.7\"]", &nobody, "", ""),
            ("fallback = [\"192.0.2.7\"]", &cluster, "169.254.20.10 192.0.2.10", "192.0.2.7:53"),
        ] {
            let wish = Wish::new(&written(lines), found);
            let texts: Vec<_> = wish.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(texts, list(addresses), "{lines} {found:?}");
            let texts: Vec<_> = wish.fallback.iter().map(ToString::to_string).collect();
            assert_eq!(texts, list(fallback), "{lines} {found:?}");
        }
    }
}
