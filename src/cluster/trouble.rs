//! What ends a watch before its time.

use std::time::Duration;

use thiserror::Error;

/// Why a feed must begin anew.
#[derive(Debug, Error)]
pub enum Trouble {
    /// The server has forgotten where we were.
    #[error("the version is too old")]
    Gone,
    #[error("the API server sends no streaming lists")]
    Unstreamed,
    #[error("HTTP {code}: {message}")]
    Said { code: u16, message: String, again_after: Duration },
    #[error("{0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    /// Nobody reads our events any more.
    #[error("nobody listens")]
    Unread,
}

impl Trouble {
    /// What a status of the API server means.
    pub fn said(code: u16, message: String, again_after: Option<u32>) -> Self {
        let again_after = Duration::from_secs(again_after.unwrap_or(0).min(60).into());
        match code {
            410 => Self::Gone,
            _ => Self::Said { code, message, again_after },
        }
    }

    /// How long the server wants us to wait at least.
    pub fn again_after(&self) -> Duration {
        match self {
            Self::Said { again_after, .. } => *again_after,
            _ => Duration::ZERO,
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let after = status.details.as_ref().map(|details| details.retry_after_seconds);
                Self::said(status.code, status.message, after)
            }
            error => Self::Broken(error.into()),
        }
    }
}
