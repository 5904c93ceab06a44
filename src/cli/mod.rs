//! Arguments and exit codes; one file per command, no logic.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 usage or configuration.

mod admin;
mod bench;
mod bench_plan;
mod check_config;
mod cleanup;
mod lab;
mod lookup;
mod pages;
mod run;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use crate::admin::client::ClientError;
use crate::app::StartError;
use crate::bench::run::BenchError;
use crate::config::error::Fault;
use crate::config::{Config, ConfigErrors, Flags, Sources};
use crate::intercept::InterceptError;
use crate::lab::LabError;
use crate::lab::shelter::ShelterError;
use crate::stub::AskError;
use crate::stub::reply::MalformedReply;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "nodens",
    version,
    about = "A DNS cache daemon for every node of a cluster",
    after_help = "Examples:\n  \
        nodens run --listen 127.0.0.1:5300 --upstream 192.0.2.1\n  \
        nodens lookup example.org AAAA --server 127.0.0.1:5300\n  \
        nodens check-config --config ./nodens.toml\n\n\
        Exit codes: 0 done, 1 failed at run time, 2 usage or configuration.",
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    CheckConfig(check_config::CheckConfig),
    Bench(Box<bench::Bench>),
    Lab(lab::Lab),
    Lookup(lookup::Lookup),
    Probe(admin::Probe),
    Cache(admin::Cache),
    LogLevel(admin::LogLevel),
    Cleanup(cleanup::Cleanup),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// Which configuration a command reads.
#[derive(Args, Debug)]
struct ConfigFile {
    /// Configuration file [default: $NODENS_CONFIG, else /etc/nodens/nodens.toml where it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file and the environment, without flags.
    fn load(&self) -> Result<Config, ConfigErrors> {
        Sources::of_process(self.config.clone(), Flags::default()).load()
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{flag} {fault}")]
    Argument { flag: &'static str, fault: Box<Fault> },
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Reply(#[from] MalformedReply),
    #[error(transparent)]
    Admin(#[from] ClientError),
    #[error("the daemon said {status}: {body}")]
    Refused { status: u16, body: String },
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    #[error(
        "the key admin.socket is empty, so there is no socket to talk to; name one by --socket"
    )]
    NoSocket,
    #[error("the configuration has no fixed port to ask; name the server by --server")]
    NoServer,
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Shelter(#[from] ShelterError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("{0}")]
    Usage(String),
    #[error("{} cannot be written: {error}", path.display())]
    Unwritten { path: PathBuf, error: io::Error },
    #[error("it has said why")]
    Told(u8),
    #[error("{0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The process's exit code.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Start(error) => error.exit_code(),
            Self::Told(code) => *code,
            Self::Config(_)
            | Self::Argument { .. }
            | Self::Usage(_)
            | Self::NoSocket
            | Self::NoServer => 2,
            // Whoever read us has seen enough: `nodens check-config | head -1`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }
}

/// Parses the arguments, runs the command, says what went wrong.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(run) => run.run(),
        Command::CheckConfig(check) => check.run(),
        Command::Bench(bench) => bench.run(),
        Command::Lab(lab) => lab.run(),
        Command::Lookup(lookup) => lookup.run(),
        Command::Probe(probe) => probe.run(),
        Command::Cache(cache) => cache.run(),
        Command::LogLevel(level) => level.run(),
        Command::Cleanup(cleanup) => cleanup.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    let code = failure.exit_code();
    if code != 0 && !matches!(failure, Failure::Told(_)) {
        // Nobody is left to be told when stderr is closed too.
        let lines = failure.to_string().replace('\n', "\nnodens: ");
        let _ = writeln!(io::stderr(), "nodens: {lines}");
    }
    ExitCode::from(code)
}

/// Writes a command's result to stdout.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound_and_every_one_is_explained() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", sub.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn a_closed_stdout_is_no_failure() {
        let failure = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.exit_code(), 0);
        assert_eq!(Failure::Output(io::ErrorKind::StorageFull.into()).exit_code(), 1);
    }
}
