//! What the flags of `nodens bench` ask for: servers, names, rates, habits.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::bench::names::{BuiltIn, Form, NamesError};
use crate::bench::report;
use crate::bench::run::{Carrier, Plan, Target};
use crate::clock;
#[cfg(feature = "kubernetes")]
use crate::cluster::services;
use crate::config::endpoint::{self, Scheme};
use crate::config::forms;
use crate::config::host::Host;
use crate::config::{Transport, Upstream};
use crate::dns::name::Name;
use crate::stub::demand::{Load, Pace};
use crate::stub::habit::{Habit, Resolver};
use crate::stub::stream::Tls;
use crate::stub::wanted::Wanted;

/// The part of the arguments that says what is asked.
#[derive(Args, Debug)]
pub(super) struct BenchPlan {
    /// Servers: ADDR or ADDR:PORT, tcp://ADDR or tls://ADDR#NAME, with a label in front where wanted: new=192.0.2.1
    #[arg(value_name = "SERVER", required = true)]
    servers: Vec<String>,
    /// Ask for A and AAAA at once from one socket (default)
    #[arg(long, conflicts_with = "single")]
    pairs: bool,
    /// Ask one question for each lookup
    #[arg(long)]
    single: bool,
    /// Queries per second for each server, retries left out
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    qps: u32,
    /// Closed loop: always N lookups on their way to each server, as fast as they end
    #[arg(long, value_name = "N", conflicts_with = "qps", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    closed: Option<u32>,
    /// How long [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = super::lookup::read_timeout, conflicts_with = "count")]
    duration: Option<Duration>,
    /// So many lookups for each server, instead of a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How long before it is measured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = read_time)]
    warm_up: Duration,
    /// Names to ask for, in dnsperf's format: a name and a type on each line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "set"])]
    names: Option<PathBuf>,
    /// A name to ask for
    #[arg(long, value_name = "NAME", conflicts_with = "set")]
    name: Vec<String>,
    /// A set of names to ask for [default: internet]
    #[arg(long, value_name = "SET")]
    set: Option<SetName>,
    /// The way to the API server whose Services are asked for [default: the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Search list for names without a trailing dot
    #[arg(long, value_name = "DOMAIN,…", value_delimiter = ',')]
    search: Vec<String>,
    /// With so many dots a name is tried as it is before the search list: 5 is that of pods
    #[arg(long, value_name = "N", default_value_t = 1)]
    ndots: usize,
    /// Whose retries and patience
    #[arg(long, value_name = "LIBC", default_value = "glibc")]
    resolver: ResolverName,
    /// How long before a query is sent again [default: 5s for glibc, 2500ms for musl]
    #[arg(long, value_name = "TIME", value_parser = super::lookup::read_timeout)]
    timeout: Option<Duration>,
    /// How often a query is sent
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10))]
    tries: u32,
    /// Local addresses to ask from, in turns
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',')]
    sources: Vec<IpAddr>,
    /// Local ports, in turns; with several --sources all of them ask at the same instant from the same port, a
    /// thread for each, as two pods on a node may (UDP)
    #[arg(long, value_name = "FIRST-LAST", value_parser = read_ports, conflicts_with_all = ["sockets", "threads", "closed"])]
    ports: Option<RangeInclusive<u16>>,
    /// Keep so many sockets (TCP, TLS: connections) for each server and thread [default: a new one for each
    /// lookup; for TLS one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    sockets: Option<u32>,
    /// Threads that send and receive
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// PEM file of the only roots to trust for tls:// [default: Mozilla's]
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

/// Names of sets.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SetName {
    /// Services that every Kubernetes cluster has
    Cluster,
    /// Names that will stay on the internet
    Internet,
    /// 100,000 names below example.org that do not exist: a cache has none of them
    Unique,
    /// All Services that the API server has, below cluster.local
    Services,
}

/// Names of stub resolvers.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResolverName {
    Glibc,
    Musl,
}

/// Reads a duration, zero allowed.
fn read_time(text: &str) -> Result<Duration, String> {
    forms::parse_duration(text).ok_or_else(|| "write e.g. 0s, 500ms or 5s".to_owned())
}

/// Reads a range of ports.
fn read_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let ends = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)));
    let ends = ends.filter(|(first, last)| 0 < *first && first <= last);
    ends.map(|(first, last)| first..=last).ok_or_else(|| "write e.g. 10000-29999".to_owned())
}

impl BenchPlan {
    /// What the flags ask for.
    pub(super) fn plan(&self, is_quiet: bool) -> Result<Plan, Failure> {
        let (wanted, names) = self.wanted()?;
        let questions: usize = wanted.iter().map(Wanted::questions).sum();
        // With fixed ports each source has a thread, which asks for all that is asked at one instant.
        let together = if self.ports.is_some() { self.sources.len().max(1) } else { 1 };
        let each = (questions * together) as f64 / wanted.len().max(1) as f64;
        let interval = Duration::from_secs_f64(each / f64::from(self.qps));
        let pace = match self.closed {
            Some(in_flight) => Pace::Closed { in_flight },
            None => Pace::Open { interval },
        };
        let share = u64::try_from(together).unwrap_or(1);
        let count = self.count.map(|count| count.div_ceil(share));
        let ten = Duration::from_secs(10);
        let duration = match (count, self.closed) {
            // Some time is left for the last ones of a count.
            (Some(count), None) => interval.mul_f64(count as f64) + Duration::from_secs(2),
            (Some(_), Some(_)) => Duration::from_secs(3600),
            (None, _) => self.duration.unwrap_or(ten),
        };
        let habit = self.habit();
        let now = clock::now();
        let load = Load {
            servers: Vec::new(),
            wanted: Arc::from(wanted),
            pace,
            habit,
            sources: self.sources.clone(),
            ports: self.ports.clone(),
            kept: self.sockets,
            start: now,
            measured: now,
            end: now,
            count,
            thread: (0, 1),
        };
        let facts = self.facts(names, &habit, duration);
        let targets = self.targets()?;
        // A count is of what is measured, so nothing warms it up.
        let warm_up = if self.count.is_some() { Duration::ZERO } else { self.warm_up };
        let threads = if self.ports.is_some() { share } else { u64::from(self.threads) };
        let facts = report::Load { threads, ..facts };
        let is_udp = targets.iter().all(|target| matches!(target.carrier, Carrier::Udp));
        if self.ports.is_some() && !is_udp {
            return Err(Failure::Usage("--ports is for servers that are asked by UDP".to_owned()));
        }
        Ok(Plan { targets, load, warm_up, duration, threads, facts, is_quiet })
    }

    /// The resolver's habits, changed by the flags.
    fn habit(&self) -> Habit {
        let resolver = match self.resolver {
            ResolverName::Glibc => Resolver::Glibc,
            ResolverName::Musl => Resolver::Musl,
        };
        let habit = Habit::of(resolver);
        Habit { timeout: self.timeout.unwrap_or(habit.timeout), tries: self.tries, ..habit }
    }

    /// The load as the report tells it.
    fn facts(&self, names: String, habit: &Habit, duration: Duration) -> report::Load {
        report::Load {
            model: if self.single { "single" } else { "pairs" }.to_owned(),
            names,
            r#loop: if self.closed.is_some() { "closed" } else { "open" }.to_owned(),
            resolver: format!("{:?}", habit.resolver).to_lowercase(),
            timeout_ms: habit.timeout.as_secs_f64() * 1000.0,
            tries: habit.tries,
            search: self.search.clone(),
            ndots: self.ndots,
            wanted_qps: self.closed.is_none().then_some(f64::from(self.qps)),
            in_flight: self.closed,
            count: self.count,
            duration_s: duration.as_secs_f64(),
            warm_up_s: if self.count.is_some() { 0.0 } else { self.warm_up.as_secs_f64() },
            sockets: self.sockets,
            sources: self.sources.iter().map(ToString::to_string).collect(),
            ports: self.ports.as_ref().map(|ports| format!("{}-{}", ports.start(), ports.end())),
            tls_ca: self.tls_ca.as_ref().map(|path| path.display().to_string()),
            ..report::Load::default()
        }
    }

    /// What is asked for, and where that comes from.
    fn wanted(&self) -> Result<(Vec<Wanted>, String), Failure> {
        let domain = |text: &String| {
            let bad =
                |error| Failure::Usage(format!("--search: {text:?} is no domain name: {error}"));
            Name::from_text(text).map_err(bad)
        };
        let search = self.search.iter().map(domain).collect::<Result<_, _>>()?;
        let form = Form { is_pairs: !self.single, search, ndots: self.ndots };
        let told = |source: String| {
            move |error: NamesError| {
                let lines = error.to_string();
                let lines: Vec<_> = lines.lines().map(|line| format!("{source}: {line}")).collect();
                Failure::Usage(lines.join("\n"))
            }
        };
        if let Some(path) = &self.names {
            let source = path.display().to_string();
            let unread = |error: io::Error| Failure::Usage(format!("--names {source}: {error}"));
            let text = fs::read_to_string(path).map_err(unread)?;
            return Ok((form.read(&text).map_err(told(source.clone()))?, source));
        }
        if !self.name.is_empty() {
            let wanted = self.name.iter().map(|name| form.wanted(name, None));
            let wanted = wanted.collect::<Result<_, _>>().map_err(told("--name".to_owned()))?;
            return Ok((wanted, self.name.join(" ")));
        }
        let (set, name) = match self.set.unwrap_or(SetName::Internet) {
            SetName::Services => {
                let lines = self.services()?.join("\n");
                let wanted = form.read(&lines).map_err(told("--set services".to_owned()))?;
                return Ok((wanted, "the Services of the API server".to_owned()));
            }
            SetName::Cluster => (BuiltIn::Cluster, "the set cluster"),
            SetName::Internet => (BuiltIn::Internet, "the set internet"),
            SetName::Unique => (BuiltIn::Unique, "the set unique"),
        };
        Ok((form.set(set).map_err(told("--set".to_owned()))?, name.to_owned()))
    }

    /// The names of all Services, absolute.
    #[cfg(feature = "kubernetes")]
    fn services(&self) -> Result<Vec<String>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let names = runtime.block_on(services::names(self.kubeconfig.as_deref()));
        let names = names.map_err(|error| Failure::Usage(format!("--set services: {error}")))?;
        Ok(names.into_iter().map(|name| name + ".cluster.local.").collect())
    }

    /// The same where nobody can tell.
    #[cfg(not(feature = "kubernetes"))]
    fn services(&self) -> Result<Vec<String>, Failure> {
        let what = "--set services: this nodens is built without the feature kubernetes";
        Err(Failure::Usage(what.to_owned()))
    }

    /// The servers.
    fn targets(&self) -> Result<Vec<Target>, Failure> {
        let links = Host::read().interfaces;
        let roots = self.tls_ca.as_deref().map(fs::read).transpose();
        let roots = roots.map_err(|error| Failure::Usage(format!("--tls-ca: {error}")))?;
        let target = |text: &String| {
            let (label, server) = match text.split_once('=') {
                Some((label, server)) => (Some(label), server),
                None => (None, text.as_str()),
            };
            let bad = |fault: crate::config::error::Fault| Failure::Argument {
                flag: "SERVER:",
                fault: fault.into(),
            };
            let Upstream { address, transport } =
                endpoint::parse_upstream(server, Scheme::Udp, &links).map_err(bad)?;
            let carrier = match transport {
                Transport::Udp => Carrier::Udp,
                Transport::Tcp => Carrier::Tcp,
                Transport::Tls { server_name } => {
                    let tls = Tls::new(&server_name, roots.as_deref());
                    Carrier::Tls(tls.map_err(|error| Failure::Usage(format!("{server}: {error}")))?)
                }
                Transport::Https { .. } => {
                    let what = "is asked by UDP, tcp:// or tls:// only";
                    return Err(Failure::Usage(format!("{server} {what}")));
                }
            };
            let name = label.unwrap_or(server).to_owned();
            Ok(Target { name, written: server.to_owned(), address, carrier })
        };
        self.servers.iter().map(target).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// Where the report tells of each argument, below `load`; the servers have a place of their own.
    const TOLD: &[(&str, &str)] = &[
        ("servers", ""),
        ("pairs", "model"),
        ("single", "model"),
        ("qps", "wanted_qps"),
        ("closed", "in_flight"),
        ("duration", "duration_s"),
        ("count", "count"),
        ("warm_up", "warm_up_s"),
        ("names", "names"),
        ("name", "names"),
        ("set", "names"),
        ("kubeconfig", "names"),
        ("search", "search"),
        ("ndots", "ndots"),
        ("resolver", "resolver"),
        ("timeout", "timeout_ms"),
        ("tries", "tries"),
        ("sources", "sources"),
        ("ports", "ports"),
        ("sockets", "sockets"),
        ("threads", "threads"),
        ("tls_ca", "tls_ca"),
    ];

    #[test]
    fn every_argument_that_makes_the_load_is_in_the_report() {
        let facts = serde_json::to_value(report::Load::default()).expect("plain values");
        let command = BenchPlan::augment_args(Command::new("bench"));
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let told = TOLD.iter().find(|(known, _)| *known == id).map(|(_, field)| *field);
            let field = told.unwrap_or_else(|| panic!("the report does not tell of {id}"));
            assert!(field.is_empty() || facts.get(field).is_some(), "{id}: no field {field}");
        }
    }
}
