//! `nodens cleanup`

use clap::Args;

use super::{ConfigFile, Failure};

/// Remove everything that nodens ever leaves on a host
#[derive(Args, Debug)]
#[command(
    long_about = "Remove everything that nodens ever leaves on a host: tables without a living owner, \
    the net below for 169.254.20.10, private addresses that nobody holds, and their link.\n\n\
    A running nodens keeps what it uses, but for the net below. Needs CAP_NET_ADMIN."
)]
pub(super) struct Cleanup {
    #[command(flatten)]
    config: ConfigFile,
}

impl Cleanup {
    /// Removes them; nothing to remove is no failure.
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.config.load()?;
        Ok(crate::intercept::clean_up(&config.intercept.private)?)
    }
}
