//! The intercept's part in the daemon's life: claimed before sockets are bound, started behind them,
//! and changed while it runs.
//!
//! What is taken and where the net below leads comes from the configuration, and from whoever watches
//! the cluster DNS ([`Reports`]). A change that cannot be made now is tried again.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;

use super::grip::{Claim, Grip, Place};
use crate::clock;
use crate::config::intercept::NODE_ADDRESS;
use crate::config::{self, Config, InterceptMode, Network};
use crate::intercept::InterceptError;
use crate::metrics::Metrics;

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

/// Where to report what the cluster says about its DNS (the last report counts), and what was reported.
pub type Reports = (watch::Sender<ClusterDns>, watch::Receiver<ClusterDns>);

/// A place for reports; nothing was reported yet.
pub fn reports() -> Reports {
    watch::channel(ClusterDns::default())
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
            InterceptMode::Takeover | InterceptMode::Bind => written.addresses.clone(),
            InterceptMode::None => Vec::new(),
        };
        let fallback = match written.fallback.as_slice() {
            // The net hangs below a table, not below an address that stays.
            _ if addresses.is_empty() || written.mode == InterceptMode::Bind => Vec::new(),
            [] => found.endpoints.clone(),
            fallback => fallback.to_vec(),
        };
        Self { addresses, private: written.private.clone(), fallback }
    }
}

/// Claims addresses where the configuration wants them.
///
/// # Errors
/// When the mode was written; a defaulted one that is not permitted is a warning.
pub fn claim(config: &Config, metrics: &Metrics) -> Result<Option<Claim>, InterceptError> {
    let wish = Wish::new(&config.intercept, &ClusterDns::default());
    if wish.addresses.is_empty() {
        return Ok(None);
    }
    let mode = config.intercept.mode;
    let claim = Claim::take(mode, &wish.addresses, &wish.private, &metrics.intercept);
    permitted(&config.intercept, claim)
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

/// The intercept, where there is one.
pub struct Takeover {
    grip: Option<Grip>,
    place: Place,
    written: config::Intercept,
    found: Reports,
    /// The last endpoints that the cluster had.
    endpoints: Vec<SocketAddr>,
    /// What has been done, as far as it could be.
    done: Wish,
    /// Why the last change failed; each reason is said once.
    failing: Option<String>,
}

impl Takeover {
    /// Begins to take queries; the addresses of `claim` are served by now.
    ///
    /// # Errors
    /// As [`claim`].
    pub fn start(
        claim: Option<Claim>,
        config: &Config,
        place: Place,
        found: Reports,
    ) -> Result<Self, InterceptError> {
        let written = config.intercept.clone();
        let begun =
            claim.map(|claim| permitted(&written, Grip::begin(claim, &place))).transpose()?;
        // Where the net below leads is not done yet: it is not worth failing for.
        let done = Wish { fallback: Vec::new(), ..Wish::new(&written, &ClusterDns::default()) };
        let mut takeover = Self {
            grip: begun.flatten(),
            place,
            done,
            written,
            found,
            endpoints: Vec::new(),
            failing: None,
        };
        takeover.change();
        Ok(takeover)
    }

    /// Takes another configuration over; to and from the mode `bind` only a restart leads.
    pub fn reconfigure(&mut self, written: &config::Intercept) {
        let is_bind = |mode| mode == InterceptMode::Bind;
        if is_bind(self.written.mode) != is_bind(written.mode) {
            return;
        }
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
            if let Some(grip) = &mut self.grip {
                grip.look(clock::now());
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
        if let Some(Grip::Takeover(intercept)) = &mut self.grip
            && wish.fallback != self.done.fallback
        {
            intercept.lead(&wish.fallback)?;
            tracing::info!(endpoints = ?wish.fallback, "the net below was changed");
        }
        self.done.fallback.clone_from(&wish.fallback);
        Ok(())
    }

    /// Takes what is wished for; of what only the cluster says, what this host can have.
    fn widen(&mut self, wish: &Wish) -> Result<(), InterceptError> {
        match self.hold(&wish.addresses, &wish.private) {
            Err(error @ InterceptError::NoIpv6) if self.written.follows_cluster() => {
                tracing::warn!(%error, "the cluster DNS's IPv6 addresses are not intercepted");
                let v4 = wish.addresses.iter().copied().filter(IpAddr::is_ipv4);
                self.hold(&v4.collect::<Vec<_>>(), &wish.private)
            }
            other => other,
        }
    }

    /// Takes exactly these addresses.
    fn hold(&mut self, asked: &[IpAddr], private: &[Network]) -> Result<(), InterceptError> {
        match &mut self.grip {
            Some(grip) => grip.change(asked, private, &mut self.place)?,
            None if asked.is_empty() => {}
            None => {
                let (mode, metrics) = (self.written.mode, self.place.metrics());
                let claim = Claim::take(mode, asked, private, metrics)?;
                self.place.serve(&claim.listens())?;
                self.grip = Some(Grip::begin(claim, &self.place)?);
            }
        }
        Ok(())
    }

    /// Takes no new queries: the drain is about to begin.
    pub fn stop_taking(&mut self) {
        if let Some(grip) = &mut self.grip {
            grip.stop_taking();
        }
    }

    /// Leaves nothing behind but the net below.
    pub fn leave(self) {
        if let Some(grip) = self.grip {
            grip.leave();
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
