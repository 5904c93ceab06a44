//! The story of a query, told to a scripted upstream. One file per subject, and here what they share.

mod caching;
mod rewriting;
mod routing;

use std::time::Duration;

use super::*;
use crate::config::{self, Config};
use crate::dns::Rcode;
use crate::dns::name::Name;
use crate::dns::ttl::Ttl;
use crate::resolve::hosts::Hosts;
use crate::resolve::local::Local;
use crate::resolve::reach::Reach;
use crate::resolve::rewrite::Rewrite;
use crate::resolve::route::ClusterZone;
use crate::testing::message;
use crate::testing::scripted::{Act, Scripted, Seen, well_behaved};
use crate::upstream::Upstreams;

/// A resolver in front of one scripted upstream.
struct Stage {
    resolver: Arc<Resolver>,
    upstream: Scripted,
    metrics: Arc<Metrics>,
    reach: Arc<Reach>,
}

impl Stage {
    /// The configuration `extra` (TOML without `[[forward]]`) in front of an upstream with `script`.
    async fn new(extra: &str, script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::of(extra, "", script).await
    }

    /// The same with the zone `.` that has these keys too.
    async fn of(
        extra: &str,
        keys: &str,
        script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let upstream = Scripted::start(script).await;
        let config = config_of(extra, keys, &upstream);
        let metrics = Metrics::new();
        let upstreams = Arc::new(Upstreams::new(
            config.upstream_ports.clone(),
            config.upstream_mark,
            Arc::clone(&metrics),
        ));
        let cache = Arc::new(Cache::new(config.cache.clone(), metrics.cache.clone()));
        let reach = Arc::default();
        let routes = routes(&config, &upstreams, &reach);
        let probe = Arc::clone(upstreams.loop_probe());
        let resolver = Arc::new(Resolver::new(routes, cache, probe, Arc::clone(&metrics)));
        Self { resolver, upstream, metrics, reach }
    }

    async fn ask(&self, name: &str, qtype: Qtype) -> Result<Response, ResolveError> {
        self.resolver.resolve(&query(name, qtype), Carrier::Datagram).await
    }

    /// RCODE and the answer section as text without TTLs.
    async fn answer(&self, name: &str, qtype: Qtype) -> (Rcode, Vec<String>) {
        let asked = query(name, qtype);
        let response = self.resolver.resolve(&asked, Carrier::Datagram).await.expect(name);
        let message = alias::decode(&response, &asked).expect("it is well-formed");
        let text =
            |r: &hickory_proto::rr::Record| format!("{} {} {}", r.name, r.record_type(), r.data);
        (response.entry.encoded().rcode(), message.answers.iter().map(text).collect())
    }
}

/// The configuration `extra` and a zone `.` with `keys`.
fn config_of(extra: &str, keys: &str, upstream: &Scripted) -> Config {
    let timeout = if keys.contains("timeout") { "" } else { "timeout = \"300ms\"" };
    load(&format!(
        "{extra}\n[[forward]]\nzone = \".\"\nupstreams = [\"{}\"]\n{timeout}\n{keys}\n",
        upstream.address
    ))
}

fn load(text: &str) -> Config {
    let inputs = config::Inputs {
        file: Some((std::path::Path::new("test.toml"), text)),
        environment: &[],
        flags: &config::Flags::default(),
        host: &config::host::Host::sample(),
    };
    config::load(&inputs).expect("the test's configuration is right")
}

fn routes(config: &Config, upstreams: &Arc<Upstreams>, reach: &Arc<Reach>) -> Routes {
    let hosts = "198.18.0.7 dn7.example.org dn7\n2001:db8::7 dn7.example.org\n";
    let zones: Vec<_> = config
        .forward
        .iter()
        .map(|forward| {
            let config::UpstreamSource::Fixed(fixed) = &forward.upstreams else {
                panic!("tests write their upstreams")
            };
            Arc::new(ForwardZone {
                name: forward.zone.clone(),
                id: ZoneId::NONE,
                group: upstreams.group(forward, fixed),
                rewrite: Rewrite::new(forward, Arc::clone(reach)),
            })
        })
        .collect();
    let root = Arc::clone(zones.iter().find(|zone| zone.name.is_root()).expect("there is one"));
    Routes::new(Local::new(&config.local, Some(&Hosts::parse(hosts))), ZoneId::NONE, root, zones)
}

/// What an operator wants of the cluster domain `cluster.example`.
fn cluster_settings() -> crate::cluster::Settings {
    crate::cluster::Settings {
        domains: vec![Name::from_text("cluster.example").expect("name")],
        ttl: Ttl::from_wire(5),
        pods: config::PodNames::Disabled,
        interest: std::collections::BTreeSet::new(),
        name_server: None,
        search: None,
        tenancy: None,
    }
}

fn query(name: &str, qtype: Qtype) -> Query {
    Query::new(Name::from_text(name).expect("a test's name"), qtype)
}

/// Lets `span` pass at once.
async fn skip(span: Duration) {
    tokio::time::pause();
    tokio::time::advance(span).await;
    tokio::time::resume();
}

const SECOND: Duration = Duration::from_secs(1);

/// Type, TTL and data of one record.
type Rr<'a> = (Qtype, u32, &'a [u8]);

/// Answers each qtype with these records, the others with NODATA.
fn by_type(seen: &Seen, answers: &[(Qtype, &[Rr<'_>])]) -> Vec<Act> {
    let answer = answers.iter().find(|(qtype, _)| *qtype == seen.qtype());
    vec![Act::Send(match answer {
        Some((_, records)) => message::answer(&seen.wire, records),
        None => message::negative(&seen.wire, Rcode::NOERROR, 90),
    })]
}

/// The TTL of each record of a response, as it stands at this moment.
fn ttls(response: &Response) -> Vec<u32> {
    let encoded = response.entry.encoded();
    let elapsed = match response.aging {
        Aging::Elapsed(elapsed) => elapsed,
        _ => 0,
    };
    encoded.records().map(|(_, record)| encoded.ttl_of(&record).as_secs() - elapsed).collect()
}
