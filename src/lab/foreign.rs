//! Somebody else's server as cluster DNS, for tests: a program that is started on each server's host.

use std::process::{Child, Command, Stdio};

use super::LabError;
use super::net::Host;

/// Names the program's addresses to it, separated by commas.
const ADDRESSES: &str = "LAB_ADDRESSES";

/// A running program; it is killed when this is dropped.
pub(super) struct Foreign(Child);

impl Foreign {
    /// Starts `program` in the namespace of `host`; whether it answers shows when pods ask.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(host: &Host, program: &str) -> Result<Self, LabError> {
        let addresses = host.addresses.both().map(|ip| ip.to_string()).join(",");
        let mut command = Command::new(program);
        command.env(ADDRESSES, addresses).stdin(Stdio::null()).stdout(Stdio::null());
        let refused = |reason| LabError::Foreign { program: program.to_owned(), reason };
        // A child begins in the namespace of the thread that starts it.
        host.namespace.run(|| command.spawn().map(Self).map_err(refused))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // One that is gone already cannot be killed again.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
