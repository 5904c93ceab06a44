//! `nodens lab`

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Failure, print};
use crate::lab::scenario::Scenario;
use crate::lab::topology::Topology;
use crate::lab::{self, Family, Options, Way, shelter};

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
    #[arg(long, value_name = "SCENARIO")]
    scenario: Vec<ScenarioName>,
    /// How pods are wired to their node [default: bridge]
    #[arg(long, value_name = "TOPOLOGY")]
    topology: Vec<TopologyName>,
    /// IP versions [default: both]
    #[arg(long, value_name = "FAMILY")]
    family: Vec<FamilyName>,
    /// Only the runs with nodens, or only those without it [default: both]
    #[arg(long, value_name = "SIDE")]
    nodens: Option<SideName>,
    /// How queries reach nodens
    #[arg(long, value_name = "MODE", default_value = "takeover")]
    intercept: WayName,
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
    /// Build the first topology (with nodens, unless --nodens without), say how to enter each namespace, and
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

/// Names of scenarios.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScenarioName {
    /// A and AAAA at the same instant from one socket
    Pair,
    /// Two pods, same source port, same destination, same instant
    Snat,
    /// A cluster DNS server goes while pods keep asking
    Churn,
    /// 50 executors ask at once for a driver's Service before, while and after it exists
    Spark,
    /// Forward and reverse names of 100 data nodes, from all pods at once
    Hdfs,
    /// Search lists with ndots:5, from 200 pods
    Mixed,
    /// nodens gets SIGKILL under load
    Kill,
    /// nodens gets SIGSTOP under load, and SIGCONT later
    Stop,
    /// A second nodens starts under load, and the first one gets SIGTERM
    Upgrade,
}

/// Names of topologies.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TopologyName {
    /// A bridge, as with Docker and kubenet
    Bridge,
    /// A bridge, and the cluster DNS behind a tunnel, as with Flannel
    Vxlan,
    /// Host routes and proxied ARP, as with Calico
    Routed,
    /// Links on top of the node's network card
    Macvlan,
    /// One after the other
    All,
}

/// Names of the two kinds of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SideName {
    With,
    Without,
}

/// Names of the ways to nodens.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WayName {
    /// A table that dies with nodens brings it what is asked of the cluster DNS address
    Takeover,
    /// nodens owns the cluster DNS address, as node-cache does
    Bind,
}

impl From<WayName> for Way {
    fn from(name: WayName) -> Self {
        match name {
            WayName::Takeover => Self::Takeover,
            WayName::Bind => Self::Bind,
        }
    }
}

/// Names of IP versions.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
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
        let scenario = |name: &ScenarioName| match name {
            ScenarioName::Pair => Scenario::Pair,
            ScenarioName::Snat => Scenario::Snat,
            ScenarioName::Churn => Scenario::Churn,
            ScenarioName::Spark => Scenario::Spark,
            ScenarioName::Hdfs => Scenario::Hdfs,
            ScenarioName::Mixed => Scenario::Mixed,
            ScenarioName::Kill => Scenario::Kill,
            ScenarioName::Stop => Scenario::Stop,
            ScenarioName::Upgrade => Scenario::Upgrade,
        };
        let family = |name: &FamilyName| match name {
            FamilyName::Ipv4 => Family::V4,
            FamilyName::Ipv6 => Family::V6,
        };
        let topology = |name: &TopologyName| match name {
            TopologyName::Bridge => vec![Topology::Bridge],
            TopologyName::Vxlan => vec![Topology::Vxlan],
            TopologyName::Routed => vec![Topology::Routed],
            TopologyName::Macvlan => vec![Topology::Macvlan],
            TopologyName::All => Topology::ALL.to_vec(),
        };
        Options {
            topologies: match self.topology.is_empty() {
                true => vec![Topology::Bridge],
                false => self.topology.iter().flat_map(topology).collect(),
            },
            scenarios: match self.scenario.is_empty() {
                true => Scenario::ALL.to_vec(),
                false => self.scenario.iter().map(scenario).collect(),
            },
            families: match self.family.is_empty() {
                true => Family::ALL.to_vec(),
                false => self.family.iter().map(family).collect(),
            },
            sides: match self.nodens {
                None => vec![false, true],
                Some(side) => vec![side == SideName::With],
            },
            way: self.intercept.into(),
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
