//! Feeds upstreams that come and go: host names are resolved again when their TTL ends, files read again
//! when they change. Services are fed by the cluster watch.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use crate::clock;
use crate::config::endpoint::DNS_PORT;
use crate::config::endpoints::parse_file;
use crate::config::loops::loops;
use crate::config::{EndpointSource, Listen, Transport, Upstream};
use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::{Aging, Section};
use crate::dns::ttl::Ttl;
use crate::resolve::{Carrier, Resolver, Response};
use crate::upstream::Upstreams;

/// How often files are looked at: a stat each, and a deleted endpoint shall be gone within 100 ms.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often is looked for names that are due.
const NAMES_EVERY: Duration = Duration::from_millis(500);

/// A name is not resolved more often than this, whatever its TTL.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// A name is resolved at least so often, whatever its TTL.
const MOST_TTL: Duration = Duration::from_secs(3600);

/// How soon a name that could not be resolved is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What the feed works with.
pub struct Feed {
    pub upstreams: Arc<Upstreams>,
    /// Every address that is ours: none of them is asked.
    pub listen: Vec<Listen>,
}

/// A file that was changed so lately is read again at the next look: the kernel tells apart no two changes
/// within its tick, and who writes may be in the middle of it.
const UNSETTLED: Duration = Duration::from_millis(100);

/// What is known of a name.
#[derive(Clone, Copy, Debug)]
struct Named {
    /// When it is to be resolved.
    due: Instant,
    /// It had no address the last time.
    is_bare: bool,
}

impl Named {
    /// The same, not due before a lookup under way has ended.
    fn put_off(self, now: Instant) -> Self {
        Self { due: now + MOST_TTL, ..self }
    }

    /// Says, once, that a name has no address any more, or has some again.
    fn say(self, name: &Name, before: bool) {
        match (before, self.is_bare) {
            (false, true) => {
                tracing::warn!(%name, "upstream's name has no address; those that it had are kept");
            }
            (true, false) => tracing::info!(%name, "upstream's name has addresses again"),
            _ => {}
        }
    }
}

/// What tells one state of a file from another: when it was changed, its size, and which file it is.
type Stamp = (SystemTime, u64, u64);

impl Feed {
    /// Takes over who belongs to `source` now, ourselves left out.
    pub fn set(&self, source: &EndpointSource, mut addresses: Vec<SocketAddr>) {
        addresses.retain(|address| {
            let upstream = Upstream { address: *address, transport: Transport::Udp };
            loops(&self.listen, &[upstream]).is_none()
        });
        self.upstreams.set_endpoints(source, &addresses);
    }

    /// Reads an endpoints file; one that is missing keeps what was read from it before. Gives back which state was
    /// read.
    pub fn read(&self, path: &Path) -> Option<Stamp> {
        let stamp = stamp(path)?;
        let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
        let (addresses, broken) = parse_file(&text);
        if !broken.is_empty() {
            tracing::warn!(file = %path.display(), lines = ?broken, "broken lines left out");
        }
        self.set(&EndpointSource::File(path.to_owned()), addresses);
        Some(stamp)
    }

    /// Feeds for ever what the routes in force name.
    ///
    /// # Cancel safety
    /// What was said last stays in force.
    pub async fn run(self: Arc<Self>, resolver: Arc<Resolver>) {
        let mut files: HashMap<PathBuf, Option<Stamp>> = HashMap::new();
        let mut names: HashMap<Name, Named> = HashMap::new();
        let mut lookups: JoinSet<(Name, Named)> = JoinSet::new();
        loop {
            let sources = sources(&resolver);
            self.look_at_files(&sources, &mut files);
            names.retain(|name, _| sources.contains(&EndpointSource::Name(name.clone())));
            while let Some(Ok((name, next))) = lookups.try_join_next() {
                let before = names.insert(name.clone(), next);
                next.say(&name, before.is_some_and(|before| before.is_bare));
            }
            let now = clock::now();
            for source in &sources {
                let EndpointSource::Name(name) = source else { continue };
                let known = names.entry(name.clone()).or_insert(Named { due: now, is_bare: false });
                if known.due <= now {
                    *known = known.put_off(now);
                    lookups.spawn(Arc::clone(&self).look_up(name.clone(), Arc::clone(&resolver)));
                }
            }
            tokio::time::sleep(if files.is_empty() { NAMES_EVERY } else { LOOK_EVERY }).await;
        }
    }

    /// Reads the files that have changed since they were read last.
    fn look_at_files(
        &self,
        sources: &HashSet<EndpointSource>,
        files: &mut HashMap<PathBuf, Option<Stamp>>,
    ) {
        files.retain(|path, _| sources.contains(&EndpointSource::File(path.clone())));
        for source in sources {
            let EndpointSource::File(path) = source else { continue };
            let known = files.entry(path.clone()).or_default();
            let found = stamp(path);
            if found.is_some() && found != *known {
                *known = self.read(path).filter(is_settled);
            }
        }
    }

    /// Resolves a name and gives back when it is due again. One that cannot be resolved keeps the addresses
    /// that it had.
    async fn look_up(self: Arc<Self>, name: Name, resolver: Arc<Resolver>) -> (Name, Named) {
        let source = EndpointSource::Name(name.clone());
        let (mut addresses, mut ttl) = (Vec::new(), MOST_TTL);
        for qtype in [Qtype::A, Qtype::AAAA] {
            let query = Query::new(name.clone(), qtype);
            match resolver.resolve(&query, Carrier::Stream).await {
                Ok(response) => ttl = ttl.min(take_addresses(&response, &mut addresses)),
                Err(error) => {
                    tracing::debug!(%name, %qtype, %error, "upstream's name not resolved");
                    // Half an answer takes nothing of the other family away.
                    let known = self.upstreams.endpoints(&source).into_vec().into_iter();
                    addresses.extend(known.filter(|at| at.is_ipv4() == (qtype == Qtype::A)));
                    ttl = ttl.min(RETRY);
                }
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        let is_bare = addresses.is_empty();
        if is_bare {
            ttl = RETRY;
        } else {
            self.set(&source, addresses);
        }
        (name, Named { due: clock::now() + ttl, is_bare })
    }
}

/// The sets of endpoints that the routes in force name.
fn sources(resolver: &Resolver) -> HashSet<EndpointSource> {
    let routes = resolver.routes();
    routes.zones().flat_map(|zone| zone.group.sources().cloned().collect::<Vec<_>>()).collect()
}

/// Adds the addresses of a response; gives back for how long they hold, within our bounds.
fn take_addresses(response: &Response, out: &mut Vec<SocketAddr>) -> Duration {
    let encoded = response.entry.encoded();
    let wire = encoded.as_wire();
    let in_answer = encoded.records().filter(|(section, _)| *section == Section::Answer);
    for (_, record) in in_answer {
        let rdata = wire.get(record.rdata..record.end).unwrap_or_default();
        let ip: Option<IpAddr> = match Qtype(record.rtype) {
            Qtype::A => <[u8; 4]>::try_from(rdata).ok().map(|raw| Ipv4Addr::from(raw).into()),
            Qtype::AAAA => <[u8; 16]>::try_from(rdata).ok().map(|raw| Ipv6Addr::from(raw).into()),
            _ => None,
        };
        out.extend(ip.map(|ip| SocketAddr::new(ip, DNS_PORT)));
    }
    let ttl = encoded.min_ttl().map_or(LEAST_TTL, Ttl::as_duration);
    let left = match response.aging {
        Aging::Fresh => ttl,
        Aging::Elapsed(secs) => ttl.saturating_sub(Duration::from_secs(secs.into())),
        Aging::Stale => Duration::ZERO,
    };
    left.clamp(LEAST_TTL, MOST_TTL)
}

/// The state of a file at this moment; `None` where it is missing.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Tells whether a change after this one would give another stamp.
fn is_settled((changed, ..): &Stamp) -> bool {
    clock::wall().duration_since(*changed).is_ok_and(|age| age >= UNSETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::routes::Maker;
    use crate::cache::Cache;
    use crate::config::{self, Config};
    use crate::dns::Rcode;
    use crate::metrics::Metrics;
    use crate::testing::message;
    use crate::testing::scripted::{Act, Scripted, Seen};

    /// The zone `corp.example` asks whoever `dns.example.org` names, and all else the upstream at `root`.
    fn config_of(root: SocketAddr) -> Config {
        let text = format!(
            "[[forward]]\nzone = \".\"\nupstreams = [\"{root}\"]\ntimeout = \"300ms\"\n\
             [[forward]]\nzone = \"corp.example\"\nupstreams = [\"name:dns.example.org\"]\n\
             [cache]\nstale = \"0s\"\n"
        );
        let inputs = config::Inputs {
            file: Some((Path::new("test.toml"), &text)),
            environment: &[],
            flags: &config::Flags::default(),
            host: &config::host::Host::sample(),
        };
        config::load(&inputs).expect("the test's configuration is right")
    }

    /// Answers A queries with these addresses for a minute, and says that there are no others.
    fn says(addresses: &'static [[u8; 4]]) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync {
        move |seen| {
            let records: Vec<_> = addresses.iter().map(|ip| (Qtype::A, 60, &ip[..])).collect();
            vec![Act::Send(match seen.qtype() {
                Qtype::A => message::answer(&seen.wire, &records),
                _ => message::negative(&seen.wire, Rcode::NOERROR, 60),
            })]
        }
    }

    /// Lets `span` pass at once.
    async fn skip(span: Duration) {
        tokio::time::pause();
        tokio::time::advance(span).await;
        tokio::time::resume();
    }

    /// A feed at work, for a resolver in front of `upstream`; ended with the set.
    fn start(upstream: &Scripted, work: &mut JoinSet<()>) -> Arc<Resolver> {
        let (config, metrics) = (config_of(upstream.address), Metrics::new());
        let ports = config.upstream_ports.clone();
        let upstreams = Arc::new(Upstreams::new(ports, 0, Arc::clone(&metrics)));
        let ours = SocketAddr::from(([192, 0, 2, 9], DNS_PORT));
        let listen = vec![Listen {
            address: ours,
            device: None,
            required: true,
            is_intercepted: false,
            is_led_to: false,
        }];
        let probe = Arc::clone(upstreams.loop_probe());
        let feed = Arc::new(Feed { upstreams, listen });
        let maker = Maker {
            feed: Arc::clone(&feed),
            cluster: None,
            metrics: Arc::clone(&metrics),
            reach: Arc::default(),
        };
        let routes = maker.routes(&config).expect("routes");
        let cache = Arc::new(Cache::new(config.cache, metrics.cache.clone()));
        let resolver = Arc::new(Resolver::new(routes, cache, probe, metrics));
        work.spawn(feed.run(Arc::clone(&resolver)));
        resolver
    }

    /// Whom the zone `corp.example` would ask now.
    fn asked(resolver: &Resolver) -> Vec<String> {
        let routes = resolver.routes();
        let corp = routes.zones().find(|zone| !zone.name.is_root()).expect("it is written");
        corp.group.status().upstreams.iter().map(|upstream| upstream.form.to_string()).collect()
    }

    /// Waits until the zone asks exactly these.
    async fn asks(resolver: &Resolver, wanted: &[&str]) {
        let until = async {
            while asked(resolver) != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let patience = tokio::time::timeout(Duration::from_secs(20), until);
        assert!(patience.await.is_ok(), "{:?}, not {wanted:?}", asked(resolver));
    }

    /// Waits until the name has been asked for more often than `count` times.
    async fn is_asked_again(upstream: &Scripted, count: usize) {
        while upstream.count() <= count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved_again_when_its_ttl_ends_and_what_fails_changes_nothing() {
        let upstream = Scripted::start(says(&[[192, 0, 2, 1]])).await;
        let mut work = JoinSet::new();
        let resolver = start(&upstream, &mut work);
        asks(&resolver, &["192.0.2.1:53"]).await;
        upstream.behave(says(&[[192, 0, 2, 2], [192, 0, 2, 3]]));
        let count = upstream.count();
        skip(Duration::from_secs(50)).await;
        tokio::time::sleep(2 * NAMES_EVERY).await;
        assert_eq!((upstream.count(), asked(&resolver).len()), (count, 1), "within the TTL");
        skip(Duration::from_secs(10)).await;
        asks(&resolver, &["192.0.2.2:53", "192.0.2.3:53"]).await;
        // Silence, a failure, and an answer without addresses.
        let silent = |_: &Seen| Vec::new();
        let failing = |seen: &Seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))];
        for round in 0..3 {
            match round {
                0 => upstream.behave(silent),
                1 => upstream.behave(failing),
                _ => upstream.behave(says(&[])),
            }
            let count = upstream.count();
            skip(Duration::from_secs(61)).await;
            is_asked_again(&upstream, count).await;
            tokio::time::sleep(2 * NAMES_EVERY).await;
            let kept = ["192.0.2.2:53", "192.0.2.3:53"];
            assert_eq!(asked(&resolver), kept, "round {round}");
        }
        upstream.behave(says(&[[192, 0, 2, 4]]));
        skip(Duration::from_secs(61)).await;
        asks(&resolver, &["192.0.2.4:53"]).await;
    }

    #[tokio::test]
    async fn a_family_that_always_fails_keeps_nobody_from_following_the_other() {
        let upstream = Scripted::start(says(&[[192, 0, 2, 1]])).await;
        let mut work = JoinSet::new();
        let resolver = start(&upstream, &mut work);
        asks(&resolver, &["192.0.2.1:53"]).await;
        let new = says(&[[192, 0, 2, 2]]);
        upstream.behave(move |seen| match seen.qtype() {
            Qtype::AAAA => vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))],
            _ => new(seen),
        });
        skip(Duration::from_secs(61)).await;
        asks(&resolver, &["192.0.2.2:53"]).await;
    }

    #[tokio::test]
    async fn of_two_changes_within_one_tick_of_the_kernel_the_later_one_counts() {
        let path = std::env::temp_dir().join(format!("nodens-endpoints-{}", std::process::id()));
        let (metrics, source) = (Metrics::new(), EndpointSource::File(path.clone()));
        let ports = config::PortRange { first: 30_000, last: 60_999, reserved: vec![] };
        let upstreams = Arc::new(Upstreams::new(ports, 0, metrics));
        let feed = Feed { upstreams: Arc::clone(&upstreams), listen: Vec::new() };
        let (sources, mut files) = (HashSet::from([source.clone()]), HashMap::new());
        let write = |last: u8| {
            std::fs::write(&path, format!("192.0.2.{last}\n")).expect("written");
            let file = std::fs::File::options().write(true).open(&path).expect("ours");
            let lately = clock::wall() - UNSETTLED / 10;
            file.set_modified(lately).expect("ours");
            lately
        };
        let first = write(1);
        feed.look_at_files(&sources, &mut files);
        write(2);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(first))
            .expect("ours");
        feed.look_at_files(&sources, &mut files);
        std::fs::remove_file(&path).expect("ours");
        let now = upstreams.endpoints(&source);
        assert_eq!(now.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.2:53"]);
    }

    #[tokio::test]
    async fn a_name_that_leads_to_ourselves_is_not_asked_there() {
        let upstream = Scripted::start(says(&[[192, 0, 2, 9], [192, 0, 2, 1]])).await;
        let mut work = JoinSet::new();
        let resolver = start(&upstream, &mut work);
        asks(&resolver, &["192.0.2.1:53"]).await;
    }
}
