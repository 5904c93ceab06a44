//! `nodens check-config`

use std::fmt::Write;

use clap::Args;

use super::{ConfigFile, Failure, print};
use crate::config::keys::{KEYS, Kind};

/// Check the configuration and print it as it takes effect
#[derive(Args, Debug)]
#[command(
    long_about = "Check the configuration and print it as it takes effect.\n\n\
        File and environment are read as `nodens run` reads them. Everything that is wrong is told at once, \
        with file, line and the mend; the exit code is then 2. What is printed is a valid file that means \
        the same.",
    after_help = "Examples:\n  \
        nodens check-config --config ./nodens.toml\n  \
        NODENS_CACHE__SIZE=32MiB nodens check-config --quiet\n  \
        nodens check-config --keys"
)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    file: ConfigFile,
    /// Print nothing when all is well
    #[arg(long, short)]
    quiet: bool,
    /// List every key with its default and meaning instead
    #[arg(long, conflicts_with_all = ["quiet", "config"])]
    keys: bool,
}

impl CheckConfig {
    /// Prints the effective configuration, or the table of keys.
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.keys {
            return print(&key_table());
        }
        let config = self.file.load()?;
        if self.quiet { Ok(()) } else { print(&config.to_toml()) }
    }
}

/// Every key with its default and meaning, under the table that it stands in.
fn key_table() -> String {
    let mut out = String::new();
    let mut table = "";
    for key in KEYS.iter().filter(|key| key.kind != Kind::Tables) {
        let (head, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if head != table {
            let brackets = if head == "forward" { ("[[", "]]") } else { ("[", "]") };
            // Writing to a text does not fail.
            let _ = writeln!(out, "\n{}{head}{}", brackets.0, brackets.1);
            table = head;
        }
        let _ = writeln!(out, "{name}\n    {}\n    default: {}", key.doc, key.default);
    }
    out
}
