//! `nodens lab`

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::{Failure, print};
use crate::lab::scenario::Scenario;
use crate::lab::topology::Topology;
use crate::lab::{self, Family, Options, Side, shelter};

/// Build a cluster of network namespaces and show lost queries, without nodens and with it
#[derive(Args, Debug)]
#[command(
    long_about = "Build a cluster of network namespaces and show lost queries, without nodens and with it.\n\n\
        Pods, a node with kube-proxy's rules and two cluster DNS servers, on this machine's own kernel: nothing \
        outside the namespaces is touched, and nothing is left behind. Needs root, or unprivileged user \
        namespaces.",
    after_help = "Examples:\n  \
        nodens lab\n  \
        nodens lab --scenario snat --topology bridge --rounds 20000\n  \
        nodens lab --html report.html\n  \
        nodens lab --json > report.json\n  \
        nodens lab --keep --topology routed\n  \
        nodens lab --nodens without -- nodens bench 10.96.0.10 --name web-1.default.svc.cluster.local"
)]
pub(super) struct Lab {
    /// What pods do [default: all]
    #[arg(long, value_name = "SCENARIO", value_parser = scenarios())]
    scenario: Vec<Scenario>,
    /// How pods are wired to their node [default: bridge]
    #[arg(long, value_name = "TOPOLOGY", value_parser = topologies())]
    topology: Vec<Topologies>,
    /// IP versions [default: both]
    #[arg(long, value_name = "FAMILY", value_parser = families())]
    family: Vec<Family>,
    /// Whether nodens runs, and how [default: without and with; kill, stop and upgrade bind too]
    #[arg(long, value_name = "SIDE", value_parser = sides())]
    nodens: Vec<Side>,
    /// Rounds of each run [default: 10000; kill, stop and upgrade take 3, 12 and 9 seconds]
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Rounds that begin in a second [default: 1000; kill, stop and upgrade 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// How often each run is repeated
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// Where names and source ports begin
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How long a stub resolver waits before it asks again: 5s is glibc's, 2500ms musl's
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::lookup::read_timeout)]
    timeout: Duration,
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Write a page with plots, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Build the first topology (with nodens, unless --nodens says otherwise), say how to enter each namespace, and
    /// wait for Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Build it, run a command in the first pod, and end with its exit code
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["keep", "json", "html"])]
    command: Vec<OsString>,
    /// A program that is the cluster DNS in place of our own, for tests; LAB_ADDRESSES says where it listens
    #[arg(long, hide = true, value_name = "PROGRAM")]
    cluster_dns: Option<String>,
    /// Set by the command itself when it runs inside its namespaces
    #[arg(long, hide = true)]
    inside: bool,
}

/// Topologies by one name.
#[derive(Clone, Debug)]
struct Topologies(Vec<Topology>);

/// How a thing is chosen: its name, and what it is.
type Choice = (&'static str, &'static str);

/// A flag's value out of these.
fn one_of<T: Clone + Send + Sync + 'static>(
    all: impl IntoIterator<Item = (Choice, T)>,
) -> impl TypedValueParser<Value = T> {
    let all: Vec<_> = all.into_iter().collect();
    let shown = all.iter().map(|((name, help), _)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(shown.collect::<Vec<_>>()).try_map(move |word| {
        let chosen = all.iter().find(|((name, _), _)| *name == word);
        chosen.map(|(_, value)| value.clone()).ok_or("is not known")
    })
}

/// Names of scenarios.
fn scenarios() -> impl TypedValueParser<Value = Scenario> {
    one_of(Scenario::ALL.map(|one| ((one.as_str(), one.as_sentence()), one)))
}

/// Names of topologies.
fn topologies() -> impl TypedValueParser<Value = Topologies> {
    let one = |one: Topology| ((one.as_str(), one.as_sentence()), Topologies(vec![one]));
    let all = (("all", "One after the other"), Topologies(Topology::ALL.to_vec()));
    one_of(Topology::ALL.map(one).into_iter().chain([all]))
}

/// Names of sides.
fn sides() -> impl TypedValueParser<Value = Side> {
    one_of(Side::ALL.map(|one| ((one.as_str(), one.as_sentence()), one)))
}

/// Names of IP versions.
fn families() -> impl TypedValueParser<Value = Family> {
    one_of([(("ipv4", "IPv4"), Family::V4), (("ipv6", "IPv6"), Family::V6)])
}

impl Lab {
    /// Goes inside; there it runs the lab.
    pub(super) fn run(self) -> Result<(), Failure> {
        if !self.inside {
            return self.go_inside();
        }
        shelter::settle()?;
        if self.keep {
            return self.keep();
        }
        if let Some((program, arguments)) = self.command.split_first() {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null());
            return ended(lab::run_in_pod(&self.options(), &mut command)?);
        }
        // Before the work: a place that cannot be written is told at once.
        let page = self.html.as_ref().map(std::fs::File::create).transpose()?;
        let report = lab::run(&self.options())?;
        if let Some(mut page) = page {
            page.write_all(lab::page::html(&report).as_bytes())?;
        }
        print(&match self.json {
            true => serde_json::to_string_pretty(&report).map_err(io::Error::from)? + "\n",
            false => report.to_string(),
        })
    }

    /// Starts the same command inside namespaces of its own.
    fn go_inside(&self) -> Result<(), Failure> {
        let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        // Behind the name of this command: what follows "--" is another's.
        arguments.insert(1.min(arguments.len()), "--inside".into());
        // The reason of a failure is told inside.
        ended(shelter::run_inside(arguments)?)
    }

    /// Builds a lab and stays.
    fn keep(&self) -> Result<(), Failure> {
        let (lab, text) = lab::keep(&self.options())?;
        print(&(text + "Ctrl-C takes the lab down\n"))?;
        let _lab = lab;
        loop {
            // It returns for no reason at times.
            std::thread::park();
        }
    }

    /// What the flags ask for.
    fn options(&self) -> Options {
        fn or<T: Clone>(wished: &[T], default: &[T]) -> Vec<T> {
            if wished.is_empty() { default.to_vec() } else { wished.to_vec() }
        }
        let topologies: Vec<_> = self.topology.iter().flat_map(|one| one.0.clone()).collect();
        Options {
            topologies: or(&topologies, &[Topology::Bridge]),
            scenarios: or(&self.scenario, &Scenario::ALL),
            families: or(&self.family, &Family::ALL),
            sides: self.nodens.clone(),
            repeat: self.repeat,
            cluster_dns: self.cluster_dns.clone(),
            rounds: self.rounds,
            rate: self.rate,
            seed: self.seed,
            timeout: self.timeout,
        }
    }
}

/// The exit code of a command that has had its say.
fn ended(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Failure::Told(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}
