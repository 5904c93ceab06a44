//! `nodens probe`, `nodens cache` and `nodens log-level`: requests to the running daemon's admin socket.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConfigFile, Failure, print};
use crate::admin::client::{encode, request};

/// Where the daemon's admin socket is.
#[derive(Args, Debug)]
struct Door {
    /// Admin socket of the daemon [default: the key admin.socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

impl Door {
    /// The socket that was named, or that of the configuration.
    fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => self.file.load()?.admin.socket.ok_or(Failure::NoSocket),
        }
    }

    /// Sends one request and prints what comes back; a status other than 200 is a failure.
    fn request(&self, method: &str, path: &str) -> Result<(), Failure> {
        match request(&self.socket()?, method, path)? {
            (200, body) => print(&body),
            (status, body) => Err(Failure::Refused { status, body: body.trim_end().to_owned() }),
        }
    }
}

/// Ask the running daemon whether it lives or is ready
#[derive(Args, Debug)]
#[command(
    long_about = "Ask the running daemon whether it lives or is ready.\n\n\
        For exec probes in an image without any other program: exit code 0 for yes, 1 for no or no daemon.",
    after_help = "Examples:\n  nodens probe live\n  nodens probe ready --socket /run/nodens/admin.sock"
)]
pub(super) struct Probe {
    /// What to ask
    what: Probed,
    #[command(flatten)]
    door: Door,
}

/// What can be probed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Probed {
    /// Every loop of the daemon goes round
    Live,
    /// It answers queries
    Ready,
}

impl Probe {
    /// Asks and prints.
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = match self.what {
            Probed::Live => "/livez",
            Probed::Ready => "/readyz",
        };
        self.door.request("GET", path)
    }
}

/// Change the cache of the running daemon
#[derive(Args, Debug)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: CacheCommand,
}

/// What can be done to the cache.
#[derive(Debug, Subcommand)]
enum CacheCommand {
    Flush(Flush),
}

/// Forget what is cached for a name, or everything
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
        nodens cache flush db.example.org\n  \
        nodens cache flush example.org --below\n  \
        nodens cache flush --all")]
struct Flush {
    /// The name, all its types
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// All names below it too
    #[arg(long, requires = "name", conflicts_with = "all")]
    below: bool,
    /// Everything
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    door: Door,
}

impl Cache {
    /// Flushes and prints how much that was.
    pub(super) fn run(self) -> Result<(), Failure> {
        let CacheCommand::Flush(flush) = self.command;
        flush.door.request("POST", &flush.path())
    }
}

impl Flush {
    /// The request's path.
    fn path(&self) -> String {
        match &self.name {
            Some(name) if self.below => format!("/cache/flush?name={}&below=1", encode(name)),
            Some(name) => format!("/cache/flush?name={}", encode(name)),
            None => "/cache/flush?all=1".to_owned(),
        }
    }
}

/// Change the log level of the running daemon
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  nodens log-level debug\n  nodens log-level nodens::upstream=trace,info"
)]
pub(super) struct LogLevel {
    /// error, warn, info, debug, trace, off, or filters like nodens=debug
    level: String,
    #[command(flatten)]
    door: Door,
}

impl LogLevel {
    /// Sets the level and prints what the daemon says.
    pub(super) fn run(self) -> Result<(), Failure> {
        self.door.request("POST", &format!("/log-level?level={}", encode(&self.level)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The flush of a command line.
    fn flush(arguments: &[&str]) -> Result<String, clap::Error> {
        /// `Flush` as a program of its own.
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            flush: Flush,
        }
        Alone::try_parse_from([&["flush"], arguments].concat()).map(|alone| alone.flush.path())
    }

    #[test]
    fn a_flush_names_a_name_or_everything_and_not_both() {
        for (arguments, path) in [
            (&["example.org"][..], "/cache/flush?name=example.org"),
            (&["a b", "--below"], "/cache/flush?name=a%20b&below=1"),
            (&["--all"], "/cache/flush?all=1"),
        ] {
            assert_eq!(flush(arguments).expect("valid"), path);
        }
        for arguments in [&[][..], &["example.org", "--all"], &["--below"], &["--all", "--below"]] {
            assert!(flush(arguments).is_err(), "{arguments:?}");
        }
    }
}
