//! The intercept's part in the daemon's life: claimed before sockets are bound, started behind them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::config::{Config, InterceptMode};
use crate::intercept::claims::Claims;
use crate::intercept::{Intercept, InterceptError, Start};
use crate::metrics::Metrics;
use crate::pulse::Pulses;

/// How often what is intercepted is compared with what shall be.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Claims private addresses where the configuration wants them.
///
/// # Errors
/// When the mode was written; a defaulted one that is not permitted is a warning.
pub fn claim(config: &Config) -> Result<Option<Claims>, InterceptError> {
    match config.intercept.mode {
        InterceptMode::None => Ok(None),
        InterceptMode::Takeover => permitted(config, Claims::take(&config.intercept)),
    }
}

/// A result, or none with a warning where the mode was only defaulted and is not permitted.
fn permitted<T>(
    config: &Config,
    result: Result<T, InterceptError>,
) -> Result<Option<T>, InterceptError> {
    match result {
        Err(error @ InterceptError::NotPermitted { .. }) if !config.intercept.required => {
            tracing::warn!(%error, "nothing is intercepted");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The intercept, where there is one.
pub struct Takeover(Option<Intercept>);

impl Takeover {
    /// Begins to take queries; the private addresses of `claims` are served by now.
    ///
    /// # Errors
    /// As [`claim`].
    pub fn start(
        claims: Option<Claims>,
        config: &Config,
        pulses: &Arc<Pulses>,
        metrics: &Metrics,
    ) -> Result<Self, InterceptError> {
        let Some(claims) = claims else { return Ok(Self(None)) };
        let pairs = claims.pairs().clone();
        let start = Start {
            upstream_mark: config.upstream_mark,
            tcp_idle: config.serve.tcp_idle,
            pulses: Arc::clone(pulses),
            metrics: metrics.intercept.clone(),
        };
        let started = permitted(config, Intercept::start(claims, &config.intercept, start))?;
        if started.is_some() {
            for pair in pairs {
                tracing::info!(asked = %pair.asked, private = %pair.private, "intercepted");
            }
        }
        Ok(Self(started))
    }

    /// Looks after it for ever.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn look_after(&mut self) -> Infallible {
        let Some(intercept) = &mut self.0 else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            intercept.look(clock::now());
        }
    }

    /// Takes no new queries: the drain is about to begin.
    pub fn stop_taking(&mut self) {
        if let Some(intercept) = &mut self.0 {
            intercept.stop_taking();
        }
    }

    /// Leaves nothing behind but the net below.
    pub fn leave(self) {
        if let Some(intercept) = self.0 {
            intercept.leave();
        }
    }
}
