//! The daemon as a whole: for now only the seam between the command line and what will run.

use thiserror::Error;

use crate::config::{ConfigErrors, Sources};

/// Why the daemon did not start or did not go on.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("this build has no daemon yet; the configuration is valid")]
    NoDaemon,
}

impl StartError {
    /// The process's exit code: 2 for configuration, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::NoDaemon => 1,
        }
    }
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// `Config` when the configuration is bad; `NoDaemon` otherwise.
pub fn run(sources: &Sources, take_over: bool) -> Result<(), StartError> {
    let _ = take_over;
    sources.load()?;
    Err(StartError::NoDaemon)
}
