//! What we hold of the asked addresses: a table that rewrites them, or the addresses themselves.
//!
//! First a [`Claim`], then sockets on what it says, then a [`Grip`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{self, Config, InterceptMode, Listen, Network};
use crate::intercept::bind::Bind;
use crate::intercept::claims::Claims;
use crate::intercept::{Intercept, InterceptError, Start};
use crate::metrics::{InterceptMetrics, Metrics};
use crate::pulse::Pulses;
use crate::serve::{self, FrontEnds};

/// Addresses that are ours, and that nobody serves yet.
pub enum Claim {
    /// Private ones behind the asked ones.
    Private(Claims),
    /// The asked ones.
    Own(Bind),
}

impl Claim {
    /// Claims what `mode` needs for the asked addresses.
    ///
    /// # Errors
    /// [`InterceptError`]
    pub fn take(
        mode: InterceptMode,
        asked: &[IpAddr],
        private: &[Network],
        metrics: &InterceptMetrics,
    ) -> Result<Self, InterceptError> {
        match mode {
            InterceptMode::Bind => Bind::take(asked, metrics.clone()).map(Self::Own),
            _ => Claims::take(asked, private).map(Self::Private),
        }
    }

    /// What the front ends must bind.
    pub fn listens(&self) -> Vec<Listen> {
        match self {
            Self::Private(claims) => claims.listens(),
            Self::Own(bind) => bind.listens(),
        }
    }
}

/// What a grip is begun and served with.
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

    /// Counters of the intercept.
    pub fn metrics(&self) -> &InterceptMetrics {
        &self.metrics.intercept
    }

    /// Serves what was claimed.
    ///
    /// # Errors
    /// `Socket` when a socket cannot be bound or read.
    pub fn serve(&mut self, listens: &[Listen]) -> Result<(), InterceptError> {
        // Nobody else can be there: the claim has seen to that.
        let bound = serve::bind(listens, &self.serve, true);
        let bound = bound.map_err(|error| InterceptError::Socket(error.source))?;
        self.front_ends.add(bound, &self.pulses).map_err(InterceptError::Socket)
    }
}

/// What brings queries to us.
pub enum Grip {
    Takeover(Box<Intercept>),
    Bind(Bind),
}

impl Grip {
    /// Begins to take what was claimed, which is served by now.
    ///
    /// # Errors
    /// [`InterceptError`]
    pub fn begin(claim: Claim, place: &Place) -> Result<Self, InterceptError> {
        let grip = match claim {
            Claim::Private(claims) => {
                let start = Start {
                    upstream_mark: place.upstream_mark,
                    tcp_idle: place.serve.tcp_idle,
                    pulses: Arc::clone(&place.pulses),
                    metrics: place.metrics().clone(),
                };
                Self::Takeover(Intercept::start(claims, start)?.into())
            }
            Claim::Own(mut bind) => {
                bind.note_served();
                Self::Bind(bind)
            }
        };
        grip.say();
        Ok(grip)
    }

    /// Takes exactly these asked addresses from now on: claims, serves, and only then takes.
    ///
    /// # Errors
    /// [`InterceptError`]; then all stays as it is.
    pub fn change(
        &mut self,
        asked: &[IpAddr],
        private: &[Network],
        place: &mut Place,
    ) -> Result<(), InterceptError> {
        match self {
            Self::Takeover(intercept) => {
                intercept.claim(asked, private)?;
                place.serve(&intercept.listens())?;
                intercept.take()?;
            }
            Self::Bind(bind) => {
                bind.change(asked)?;
                place.serve(&bind.listens())?;
                bind.note_served();
            }
        }
        self.say();
        Ok(())
    }

    /// Says what is taken.
    fn say(&self) {
        match self {
            Self::Takeover(intercept) if intercept.is_withdrawn() => {
                tracing::warn!(
                    "what is claimed is not taken: the table is withdrawn because of a firewall"
                );
            }
            Self::Takeover(intercept) => {
                for pair in intercept.pairs() {
                    tracing::info!(asked = %pair.asked, private = %pair.private, "intercepted");
                }
            }
            Self::Bind(bind) => {
                for asked in bind.asked() {
                    tracing::info!(%asked, "owned while we run, as node-cache does it");
                }
            }
        }
    }

    /// Puts right what others changed; call it every second or more often.
    pub fn look(&mut self, now: Instant) {
        match self {
            Self::Takeover(intercept) => intercept.look(now),
            Self::Bind(bind) => bind.look(),
        }
    }

    /// Takes no new queries, where that can be without losing responses that are owed.
    pub fn stop_taking(&mut self) {
        if let Self::Takeover(intercept) = self {
            intercept.stop_taking();
        }
    }

    /// Leaves nothing behind but the net below.
    pub fn leave(self) {
        match self {
            Self::Takeover(intercept) => intercept.leave(),
            Self::Bind(bind) => bind.leave(),
        }
    }
}
