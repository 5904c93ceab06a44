//! The story of a query, told to a scripted upstream.

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
    load(&format!(
        "{extra}\n[[forward]]\nzone = \".\"\nupstreams = [\"{}\"]\ntimeout = \"300ms\"\n{keys}\n",
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

#[tokio::test]
async fn a_second_query_within_the_ttl_sends_nothing_upstream() {
    let stage = Stage::new("", well_behaved).await;
    for qtype in [Qtype::A, Qtype::AAAA] {
        stage.ask("example.org", qtype).await.expect("answered");
        stage.ask("EXAMPLE.org", qtype).await.expect("answered");
    }
    assert_eq!(stage.upstream.count(), 2);
    skip(59 * SECOND).await;
    let late = stage.ask("example.org", Qtype::A).await.expect("answered");
    assert!(matches!(late.aging, Aging::Elapsed(59..=60)), "{:?}", late.aging);
    skip(2 * SECOND).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(stage.upstream.count(), 3);
}

#[tokio::test]
async fn identical_queries_share_one_exchange() {
    let slow =
        |seen: &Seen| [vec![Act::Wait(Duration::from_millis(50))], well_behaved(seen)].concat();
    let stage = Stage::new("", slow).await;
    let asked = query("example.org", Qtype::A);
    let all = (0..100).map(|_| stage.resolver.resolve(&asked, Carrier::Datagram));
    let answered = futures_util::future::join_all(all).await;
    assert!(answered.iter().all(Result::is_ok));
    assert_eq!(stage.metrics.cache.coalesced.get(), 99);
    // Retransmissions of the one exchange may have been sent; another exchange was not.
    let retries = stage.metrics.upstream(&stage.upstream.address.to_string()).retries.get();
    assert_eq!(stage.upstream.count() as u64, 1 + retries);
}

#[tokio::test]
async fn do_and_cd_are_other_questions() {
    let stage = Stage::new("", well_behaved).await;
    let plain = query("example.org", Qtype::A);
    let others = [
        Query { dnssec_ok: true, ..plain.clone() },
        Query { checking_disabled: true, ..plain.clone() },
        plain,
    ];
    for asked in others.iter().chain(&others) {
        stage.resolver.resolve(asked, Carrier::Datagram).await.expect("answered");
    }
    assert_eq!(stage.upstream.count(), 3);
}

#[tokio::test]
async fn without_recursion_desired_only_what_is_cached_is_answered() {
    let stage = Stage::new("", well_behaved).await;
    let asked = Query { recursion_desired: false, ..query("example.org", Qtype::A) };
    let refused = stage.resolver.resolve(&asked, Carrier::Datagram).await;
    assert!(matches!(refused, Err(ResolveError::NotRecursive)));
    assert_eq!(stage.upstream.count(), 0);
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("cached by now");
}

#[tokio::test]
async fn a_dead_upstream_leaves_stale_answers_and_a_failure_that_lasts_a_second() {
    let stage = Stage::new("", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|_| Vec::new());
    skip(61 * SECOND).await;
    let stale = stage.ask("example.org", Qtype::A).await.expect("stale");
    assert_eq!(stale.aging, Aging::Stale);
    assert!(stage.ask("other.example.org", Qtype::A).await.is_err());
    let sent = stage.upstream.count();
    let remembered = stage.ask("other.example.org", Qtype::A).await;
    assert!(matches!(remembered, Err(ResolveError::Remembered { .. })), "{remembered:?}");
    assert_eq!(stage.upstream.count(), sent, "a remembered failure asks nobody");
    stage.upstream.behave(well_behaved);
    skip(2 * SECOND).await;
    let back = stage.ask("other.example.org", Qtype::A).await;
    assert!(back.is_ok(), "{back:?}");
}

#[tokio::test]
async fn stale_answers_end_after_the_stale_time() {
    let stage = Stage::new("[cache]\nstale = \"1h\"", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    skip(3659 * SECOND).await;
    assert!(stage.ask("example.org", Qtype::A).await.is_ok());
    skip(2 * SECOND).await;
    assert!(stage.ask("example.org", Qtype::A).await.is_err());
}

#[tokio::test]
async fn a_flushed_name_is_asked_again_and_an_exchange_in_flight_brings_nothing_back() {
    let stage = Stage::new("", well_behaved).await;
    let name = Name::from_text("example.org").expect("name");
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.resolver.cache().flush(&name);
    stage
        .upstream
        .behave(|seen| [vec![Act::Wait(Duration::from_millis(50))], well_behaved(seen)].concat());
    let (answered, ()) = tokio::join!(stage.ask("example.org", Qtype::A), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stage.resolver.cache().flush(&name);
    });
    answered.expect("who waited is answered");
    let before = stage.upstream.count();
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert!(stage.upstream.count() > before, "the answer from before the flush is not kept");
}

#[tokio::test]
async fn a_popular_name_is_renewed_before_it_ends() {
    let stage = Stage::new("", well_behaved).await;
    let entry = stage.ask("example.org", Qtype::A).await.expect("answered").entry;
    skip(57 * SECOND).await;
    let claims = (0..9).filter(|_| entry.claims_prefetch(clock::now())).count();
    assert_eq!(claims, 1, "one hit of many begins the renewal");
    stage.resolver.prefetch(query("example.org", Qtype::A));
    while stage.upstream.count() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    skip(30 * SECOND).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(stage.upstream.count(), 2, "the renewed entry answers");
}

#[tokio::test]
async fn our_own_data_is_answered_without_asking_anybody() {
    let text = "[local]\nttl = \"60s\"\nprivate_reverse = true\nrecords = [\
        \"db.example.org 300 A 192.0.2.5\", \"www.example.org CNAME db.example.org\"]";
    let stage = Stage::new(text, well_behaved).await;
    let (ok, nx) = (Rcode::NOERROR, Rcode::NXDOMAIN);
    for (name, qtype, rcode, answer) in [
        ("db.example.org", Qtype::A, ok, &["db.example.org. A 192.0.2.5"][..]),
        ("db.example.org", Qtype::AAAA, ok, &[]),
        (
            "www.example.org",
            Qtype::A,
            ok,
            &["www.example.org. CNAME db.example.org.", "db.example.org. A 192.0.2.5"],
        ),
        ("www.example.org", Qtype::AAAA, ok, &["www.example.org. CNAME db.example.org."]),
        ("dn7.example.org", Qtype::A, ok, &["dn7.example.org. A 198.18.0.7"]),
        ("dn7", Qtype::A, ok, &["dn7. A 198.18.0.7"]),
        (
            "7.0.18.198.in-addr.arpa",
            Qtype::PTR,
            ok,
            &["7.0.18.198.in-addr.arpa. PTR dn7.example.org."],
        ),
        ("localhost", Qtype::A, ok, &["localhost. A 127.0.0.1"]),
        ("x.localhost", Qtype::AAAA, ok, &["x.localhost. AAAA ::1"]),
        ("localhost", Qtype::MX, ok, &[]),
        ("1.0.0.127.in-addr.arpa", Qtype::PTR, ok, &["1.0.0.127.in-addr.arpa. PTR localhost."]),
        ("9.0.0.127.in-addr.arpa", Qtype::PTR, nx, &[]),
        ("a.invalid", Qtype::A, nx, &[]),
        ("home.arpa", Qtype::A, ok, &[]),
        ("1.0.168.192.in-addr.arpa", Qtype::PTR, nx, &[]),
    ] {
        let expected = (rcode, answer.iter().map(ToString::to_string).collect());
        assert_eq!(stage.answer(name, qtype).await, expected, "{name} {qtype}");
        let again = stage.answer(name, qtype).await;
        assert_eq!(again, expected, "{name} {qtype} from the cache");
    }
    assert_eq!(stage.upstream.count(), 0);
}

#[tokio::test]
async fn aliases_lead_to_upstreams_and_loops_of_them_end() {
    let text = "[local]\nrecords = [\"a.example.org CNAME far.example.net\", \
        \"x.example.org CNAME y.example.org\", \"y.example.org CNAME x.example.org\"]";
    let stage = Stage::new(text, well_behaved).await;
    let (rcode, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert_eq!(rcode, Rcode::NOERROR);
    assert_eq!(answer, ["a.example.org. CNAME far.example.net.", "far.example.net. A 192.0.2.1"]);
    assert!(matches!(stage.ask("x.example.org", Qtype::A).await, Err(ResolveError::AliasChain)));
    assert!(stage.ask("x.example.org", Qtype::CNAME).await.is_ok());
}

#[tokio::test]
async fn any_by_udp_gets_the_addresses_or_a_word_that_there_are_none() {
    let stage = Stage::new("", well_behaved).await;
    let (_, answer) = stage.answer("example.org", Qtype::ANY).await;
    assert_eq!(answer, ["example.org. A 192.0.2.1"]);
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NOERROR, 60))]);
    let (_, answer) = stage.answer("text.example.org", Qtype::ANY).await;
    assert_eq!(answer.len(), 1);
    assert!(answer[0].contains("RFC8482"), "{answer:?}");
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NXDOMAIN, 60))]);
    assert_eq!(stage.answer("no.example.org", Qtype::ANY).await, (Rcode::NXDOMAIN, vec![]));
}

#[tokio::test]
async fn what_no_cache_answers_is_refused_by_its_kind() {
    let stage = Stage::new("", well_behaved).await;
    for (qtype, rcode) in [
        (Qtype::AXFR, Rcode::REFUSED),
        (Qtype::IXFR, Rcode::REFUSED),
        (Qtype::TKEY, Rcode::NOTIMP),
        (Qtype::OPT, Rcode::NOTIMP),
    ] {
        let error = stage.ask("example.org", qtype).await.expect_err("refused");
        assert_eq!(error.rcode(), rcode, "{qtype}");
    }
    let chaos = Query { qclass: Qclass::CH, ..query("version.bind", Qtype::TXT) };
    let error = stage.resolver.resolve(&chaos, Carrier::Datagram).await.expect_err("hidden");
    assert_eq!(error.rcode(), Rcode::REFUSED);
    let open = Stage::new("[local]\nversion = \"ours\"", well_behaved).await;
    let told = open.resolver.resolve(&chaos, Carrier::Datagram).await.expect("told");
    assert!(told.entry.encoded().as_wire().ends_with(b"\x04ours"));
}

#[tokio::test]
async fn the_longest_suffix_decides_and_a_written_zone_beats_a_special_name() {
    let other =
        Scripted::start(|seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 9], 60))])
            .await;
    let zones: String = ["corp.example.org", "test"]
        .map(|zone| {
            format!("[[forward]]\nzone = \"{zone}\"\nupstreams = [\"{}\"]\n", other.address)
        })
        .concat();
    let stage = Stage::new(&zones, well_behaved).await;
    for (name, address) in [
        ("example.org", "192.0.2.1"),
        ("xcorp.example.org", "192.0.2.1"),
        ("corp.example.org", "192.0.2.9"),
        ("a.b.corp.example.org", "192.0.2.9"),
        ("a.test", "192.0.2.9"),
    ] {
        let (_, answer) = stage.answer(name, Qtype::A).await;
        assert_eq!(answer, [format!("{name}. A {address}")]);
    }
}

#[tokio::test]
async fn the_byte_budget_holds_under_a_flood_of_unique_names() {
    let budget: u64 = 1 << 20;
    let stage = Stage::new("[cache]\nsize = \"1MiB\"", well_behaved).await;
    let cache = stage.resolver.cache();
    for index in 0..20_000u32 {
        let asked = query(&format!("n{index}.example.org"), Qtype::A);
        let record = crate::dns::build::LocalRecord {
            owner: asked.qname.clone(),
            rtype: Qtype::A,
            ttl: Ttl::from_wire(300),
            rdata: index.to_be_bytes().to_vec(),
        };
        let encoded = crate::dns::build::authoritative(&asked, Rcode::NOERROR, &[record], &[]);
        let key = KeyBuffer::from_query(&asked);
        let epoch = cache.epoch(key.qname());
        let source = Source { zone: ZoneId::NONE, origin: Origin::Forward, epoch };
        cache.store(&key, encoded, source, clock::now());
        let (_, bytes) = cache.fill();
        assert!(bytes <= budget, "{bytes} after {index}");
    }
    cache.maintain(clock::now());
    let (entries, bytes) = cache.fill();
    assert!(bytes <= budget && entries > 100, "{entries} entries, {bytes} bytes");
}

/// Answers as a well-behaved upstream does, 100 ms late.
fn late(seen: &Seen) -> Vec<Act> {
    [vec![Act::Wait(Duration::from_millis(100))], well_behaved(seen)].concat()
}

/// Completes when the upstream has been asked.
async fn asked(stage: &Stage) {
    while stage.upstream.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn who_asks_after_a_flush_does_not_get_what_was_asked_before_it() {
    let stage = Stage::new("", late).await;
    let name = Name::from_text("example.org").expect("name");
    let (first, second) = tokio::join!(stage.ask("example.org", Qtype::A), async {
        asked(&stage).await;
        stage.resolver.cache().flush(&name);
        stage.ask("example.org", Qtype::A).await
    });
    first.expect("answered");
    let second = second.expect("answered");
    assert_eq!(second.entry.epoch(), stage.resolver.cache().epoch(name.as_wire()));
}

#[tokio::test]
async fn a_flushed_tree_gets_nothing_back_from_exchanges_in_flight() {
    let stage = Stage::new("", late).await;
    let (answered, ()) = tokio::join!(stage.ask("example.org", Qtype::A), async {
        asked(&stage).await;
        stage.resolver.cache().flush_within(&Name::root());
    });
    answered.expect("answered");
    assert!(stage.resolver.cached(&query("example.org", Qtype::A)).is_none());
}

#[tokio::test]
async fn a_new_zone_has_its_names_although_the_old_one_is_still_being_asked() {
    let stage = Stage::new("", late).await;
    let other =
        Scripted::start(|seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 2], 60))])
            .await;
    let zone =
        |name, address| format!("[[forward]]\nzone = {name:?}\nupstreams = [\"{address}\"]\n");
    let config =
        load(&[zone(".", stage.upstream.address), zone("example.org", other.address)].concat());
    let upstreams = Arc::new(Upstreams::new(
        config.upstream_ports.clone(),
        config.upstream_mark,
        Arc::clone(&stage.metrics),
    ));
    let wanted = (Rcode::NOERROR, vec!["example.org. A 192.0.2.2".to_owned()]);
    let (old, new) = tokio::join!(stage.ask("example.org", Qtype::A), async {
        asked(&stage).await;
        stage.resolver.set_routes(routes(&config, &upstreams, &stage.reach));
        stage.resolver.cache().flush_within(&Name::from_text("example.org").expect("name"));
        stage.answer("example.org", Qtype::A).await
    });
    old.expect("answered");
    assert_eq!(new, wanted);
    assert_eq!(stage.answer("example.org", Qtype::A).await, wanted, "from the cache");
}

#[tokio::test]
async fn a_stale_name_costs_one_task_however_many_ask_while_upstreams_hang() {
    let stage = Stage::new("", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|_| Vec::new());
    let routes = stage.resolver.routes();
    for number in 0..20 {
        if routes.zones().all(|zone| zone.group.is_down()) {
            break;
        }
        let _ = stage.ask(&format!("n{number}.example.org"), Qtype::A).await;
    }
    skip(61 * SECOND).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    for _ in 0..300 {
        let stale = stage.ask("example.org", Qtype::A).await.expect("stale");
        assert_eq!(stale.aging, Aging::Stale);
    }
    assert!(alive() < before + 20, "{} tasks more", alive() - before);
}

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

const DNS64: &str = "dns64 = \"64:ff9b::/96\"";

#[tokio::test]
async fn aaaa_gets_nodata_without_asking_and_a_is_forwarded() {
    let stage = Stage::of("", "aaaa = \"nodata\"", well_behaved).await;
    for _ in 0..2 {
        assert_eq!(stage.answer("example.org", Qtype::AAAA).await, (Rcode::NOERROR, vec![]));
    }
    assert_eq!(stage.upstream.count(), 0);
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    let encoded = response.entry.encoded();
    assert_eq!(encoded.negative_ttl(), Some(Ttl::from_wire(60)));
    assert!(stage.resolver.cached(&query("example.org", Qtype::AAAA)).is_some());
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(stage.upstream.count(), 1);
}

#[tokio::test]
async fn aaaa_auto_follows_the_routes_of_the_node_within_seconds() {
    let v6: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let script = move |seen: &Seen| by_type(seen, &[(Qtype::AAAA, &[(Qtype::AAAA, 60, v6)])]);
    let stage = Stage::of("", "aaaa = \"auto\"", script).await;
    assert_eq!(stage.answer("example.org", Qtype::AAAA).await, (Rcode::NOERROR, vec![]));
    assert_eq!(stage.upstream.count(), 0);
    assert!(stage.reach.set_node(true));
    skip(10 * SECOND).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 2001:db8::1"]);
}

#[tokio::test]
async fn addresses_are_synthesised_where_there_are_none_and_the_a_answer_is_shared() {
    let stage = Stage::of("", DNS64, well_behaved).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 64:ff9b::c000:201"]);
    assert_eq!(stage.upstream.count(), 2);
    stage.ask("example.org", Qtype::A).await.expect("answered");
    let again = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(stage.upstream.count(), 2, "both are cached by now");
    assert_eq!(ttls(&again), [60]);
    assert!(!again.entry.encoded().is_negative());
}

#[tokio::test]
async fn a_synthesised_answer_lives_no_longer_than_the_a_record_or_the_nodata() {
    for (a_ttl, age, expected) in [(30, 0, 30), (300, 0, 90), (100, 40, 60)] {
        let script =
            move |seen: &Seen| by_type(seen, &[(Qtype::A, &[(Qtype::A, a_ttl, &[192, 0, 2, 1])])]);
        let stage = Stage::of("", DNS64, script).await;
        if age > 0 {
            stage.ask("example.org", Qtype::A).await.expect("answered");
            skip(age * SECOND).await;
        }
        let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
        assert_eq!(ttls(&response), [expected], "{a_ttl} {age}");
    }
    let bare = |seen: &Seen| match seen.qtype() {
        Qtype::A => vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], 3600))],
        _ => vec![Act::Send(message::empty(&seen.wire, Rcode::NOERROR))],
    };
    let stage = Stage::of("", DNS64, bare).await;
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(ttls(&response), [600], "without an SOA");
}

#[tokio::test]
async fn aliases_stay_in_a_synthesised_answer() {
    let script = |seen: &Seen| {
        let alias: &[u8] = b"\x03www\x07example\x03net\0";
        let mut records = vec![message::record(&[0xc0, 12], Qtype::CNAME, 50, alias)];
        if seen.qtype() == Qtype::A {
            records.push(message::record(alias, Qtype::A, 40, &[192, 0, 2, 1]));
        }
        vec![Act::Send(message::with_records(&seen.wire, Rcode::NOERROR, [&records, &[]]))]
    };
    let stage = Stage::of("", DNS64, script).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    let expected =
        ["example.org. CNAME www.example.net.", "www.example.net. AAAA 64:ff9b::c000:201"];
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn real_addresses_win_over_synthesised_ones_and_mapped_ones_are_none() {
    let real: &[u8] = &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mapped: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 9];
    let aaaa = |data| (Qtype::AAAA, 60, data);
    for (records, expected, asked) in [
        (vec![aaaa(real)], "2001:db8::1", 1),
        (vec![aaaa(mapped), aaaa(real)], "2001:db8::1", 1),
        (vec![aaaa(mapped)], "64:ff9b::c000:201", 2),
    ] {
        let script = move |seen: &Seen| {
            let a: &[_] = &[(Qtype::A, 60, &[192u8, 0, 2, 1][..])];
            by_type(seen, &[(Qtype::AAAA, &records), (Qtype::A, a)])
        };
        let stage = Stage::of("", DNS64, script).await;
        let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
        assert_eq!(answer, [format!("example.org. AAAA {expected}")]);
        assert_eq!(stage.upstream.count(), asked);
    }
}

#[tokio::test]
async fn without_an_a_record_the_answer_is_upstreams_own() {
    let nothing = |seen: &Seen| by_type(seen, &[]);
    let stage = Stage::of("", DNS64, nothing).await;
    let response = stage.ask("example.org", Qtype::AAAA).await.expect("answered");
    assert_eq!(response.entry.encoded().negative_ttl(), Some(Ttl::from_wire(90)));
    stage
        .upstream
        .behave(|seen| vec![Act::Send(message::negative(&seen.wire, Rcode::NXDOMAIN, 60))]);
    let before = stage.upstream.count();
    assert_eq!(stage.answer("no.example.org", Qtype::AAAA).await, (Rcode::NXDOMAIN, vec![]));
    assert_eq!(stage.upstream.count(), before + 1, "nobody asks for A of a name that is none");
}

#[tokio::test]
async fn an_upstream_that_fails_for_aaaa_alone_is_no_obstacle() {
    let script = |seen: &Seen| match seen.qtype() {
        Qtype::A => well_behaved(seen),
        _ => vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))],
    };
    let stage = Stage::of("", DNS64, script).await;
    let (_, answer) = stage.answer("example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["example.org. AAAA 64:ff9b::c000:201"]);
    stage.upstream.behave(|seen| match seen.qtype() {
        Qtype::A => well_behaved(seen),
        _ => Vec::new(),
    });
    let (_, answer) = stage.answer("b.example.org", Qtype::AAAA).await;
    assert_eq!(answer, ["b.example.org. AAAA 64:ff9b::c000:201"], "silence leaves time for A");
}

#[tokio::test]
async fn who_sets_do_and_cd_gets_what_upstream_says() {
    let stage = Stage::of("", DNS64, well_behaved).await;
    let asked =
        Query { dnssec_ok: true, checking_disabled: true, ..query("example.org", Qtype::AAAA) };
    let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
    assert!(response.entry.encoded().is_negative());
    assert_eq!(stage.upstream.count(), 1);
}

#[tokio::test]
async fn a_synthesised_answer_is_not_signed() {
    let script = |seen: &Seen| {
        let signature: &[u8] = &[&[0, 1, 8, 2][..], &[0; 14], b"\0", &[7; 16]].concat();
        let alias: &[u8] = &[&[0, 5, 8, 2][..], &[0; 14], b"\0", &[7; 16]].concat();
        let rrsig = |data| (Qtype::RRSIG, 60, data);
        let a = [(Qtype::A, 60, &[192, 0, 2, 1][..]), rrsig(signature), rrsig(alias)];
        let mut acts = by_type(seen, &[(Qtype::A, &a)]);
        if let Act::Send(bytes) = &mut acts[0] {
            bytes[3] |= 0x20; // AD
        }
        acts
    };
    let stage = Stage::of("", &format!("{DNS64}\ntrust_ad = true"), script).await;
    let asked = Query { dnssec_ok: true, ..query("example.org", Qtype::AAAA) };
    let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
    let encoded = response.entry.encoded();
    let types: Vec<Qtype> = encoded.answer_types().collect();
    assert_eq!(types, [Qtype::AAAA, Qtype::RRSIG], "the alias' signature may stay");
    assert_eq!(encoded.as_wire()[3] & 0x20, 0, "AD");
}

#[tokio::test]
async fn reverse_names_of_synthesised_addresses_lead_to_those_of_the_real_ones() {
    let script = |seen: &Seen| {
        let target: &[u8] = b"\x04host\x07example\x03org\0";
        by_type(seen, &[(Qtype::PTR, &[(Qtype::PTR, 60, target)])])
    };
    let stage = Stage::of("", DNS64, script).await;
    let address: std::net::IpAddr = "64:ff9b::192.0.2.1".parse().expect("address");
    let name = Name::reverse_of(address).to_string();
    let (_, answer) = stage.answer(&name, Qtype::PTR).await;
    let expected = [
        format!("{name} CNAME 1.2.0.192.in-addr.arpa."),
        "1.2.0.192.in-addr.arpa. PTR host.example.org.".to_owned(),
    ];
    assert_eq!(answer, expected);
    let (_, answer) = stage.answer("ipv4only.arpa", Qtype::AAAA).await;
    assert_eq!(answer.len(), 2);
    assert_eq!(stage.upstream.count(), 1, "the well-known name is our own");
}

#[tokio::test]
async fn a_zones_own_ttl_bounds_replace_the_caches() {
    let text = "[cache]\nmin_ttl = \"100s\"\nmax_ttl = \"1000s\"";
    for (keys, ttl, expected) in [
        ("", 7, 100),
        ("min_ttl = \"0s\"", 7, 7),
        ("min_ttl = \"200s\"", 7, 200),
        ("max_ttl = \"500s\"", 5000, 500),
        ("max_ttl = \"2h\"", 5000, 5000),
    ] {
        let script =
            move |seen: &Seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], ttl))];
        let stage = Stage::of(text, keys, script).await;
        let response = stage.ask("example.org", Qtype::A).await.expect("answered");
        assert_eq!(ttls(&response), [expected], "{keys}");
        skip(u64::from(expected - 1) as u32 * SECOND).await;
        // More than one where a busy machine answered later than the first retransmission.
        let sent = stage.upstream.count();
        stage.ask("example.org", Qtype::A).await.expect("answered");
        assert_eq!(stage.upstream.count(), sent, "{keys}: the lifetime follows");
        skip(2 * SECOND).await;
        stage.ask("example.org", Qtype::A).await.expect("answered");
        assert!(stage.upstream.count() > sent, "{keys}");
    }
}

#[tokio::test]
async fn shuffled_addresses_come_from_the_cache_in_another_order() {
    let script = |seen: &Seen| {
        let a = |n: &'static [u8]| (Qtype::A, 60, n);
        by_type(seen, &[(Qtype::A, &[a(&[192, 0, 2, 1]), a(&[192, 0, 2, 2]), a(&[192, 0, 2, 3])])])
    };
    for (keys, distinct) in [("", 1), ("shuffle = true", 3)] {
        let stage = Stage::of("", keys, script).await;
        let asked = query("example.org", Qtype::A);
        let response = stage.resolver.resolve(&asked, Carrier::Datagram).await.expect("answered");
        let firsts: std::collections::BTreeSet<[u8; 4]> = (0..9)
            .map(|id| {
                let wire = asked.to_wire(id, asked.qname.as_wire(), true);
                let view = crate::dns::query::QueryView::parse(&wire).expect("well-formed");
                let mut out = [0; 512];
                let encoded = response.entry.encoded();
                let (_, first) = encoded.records().next().expect("three");
                encoded.fit(&view, response.aging, 512, &mut out);
                *out[first.rdata..].first_chunk().expect("an address")
            })
            .collect();
        assert_eq!(firsts.len(), distinct, "{keys}");
    }
}

#[tokio::test]
async fn addresses_that_rebind_are_withheld_counted_and_cached_as_nodata() {
    let script = |seen: &Seen| {
        let a: &[_] = &[(Qtype::A, 60, &[10u8, 0, 0, 1][..])];
        by_type(seen, &[(Qtype::A, a)])
    };
    let keys = "rebind_protection = true\nrebind_allow = [\"in.example.org\"]";
    let stage = Stage::of("", keys, script).await;
    let response = stage.ask("evil.example.org", Qtype::A).await.expect("answered");
    let encoded = response.entry.encoded();
    assert!(encoded.is_negative() && encoded.rcode() == Rcode::NOERROR);
    assert_eq!(encoded.ede().map(|ede| ede.code), Some(crate::dns::ede::EdeCode::BLOCKED));
    stage.ask("evil.example.org", Qtype::A).await.expect("cached");
    assert_eq!(stage.upstream.count(), 1);
    assert_eq!(stage.metrics.forward.rebind_blocked.get(), 1);
    let (_, answer) = stage.answer("db.in.example.org", Qtype::A).await;
    assert_eq!(answer, ["db.in.example.org. A 10.0.0.1"]);
    assert_eq!(stage.metrics.forward.rebind_blocked.get(), 1);
}

#[tokio::test]
async fn an_alias_whose_target_the_upstream_left_out_is_followed() {
    // Authoritative: says the alias, and of its target only when that is asked for.
    let stage = Stage::new("", |seen| {
        let alias = |target: &[u8]| message::answer(&seen.wire, &[(Qtype::CNAME, 60, target)]);
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b'a' => alias(b"\x01b\x07example\x03org\0"),
            b'b' => alias(b"\x01c\x07example\x03org\0"),
            b'c' => message::answer_a(&seen.wire, [192, 0, 2, 7], 60),
            b'r' => alias(b"\x01s\x07example\x03org\0"),
            b's' => alias(b"\x01r\x07example\x03org\0"),
            _ => message::negative(&seen.wire, Rcode::NXDOMAIN, 60),
        })]
    })
    .await;
    let (rcode, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert_eq!((rcode, answer.len()), (Rcode::NOERROR, 3), "{answer:?}");
    assert_eq!(answer[2], "c.example.org. A 192.0.2.7");
    let asked = stage.upstream.count();
    stage.answer("a.example.org", Qtype::A).await;
    assert_eq!(stage.upstream.count(), asked, "kept whole");
    let (rcode, answer) = stage.answer("r.example.org", Qtype::A).await;
    assert_eq!((rcode, answer.len()), (Rcode::NOERROR, 1), "a ring stays as it came: {answer:?}");
    let (_, answer) = stage.answer("a.example.org", Qtype::CNAME).await;
    assert_eq!(answer.len(), 1, "who asks for the alias gets it");
}

#[tokio::test]
async fn the_target_of_an_alias_is_screened_by_the_zones_own_rules() {
    let stage = Stage::of("", "rebind_protection = true", |seen| {
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b'a' => {
                message::answer(&seen.wire, &[(Qtype::CNAME, 60, b"\x01b\x07example\x03org\0")])
            }
            _ => message::answer_a(&seen.wire, [10, 0, 0, 1], 60),
        })]
    })
    .await;
    let (_, answer) = stage.answer("a.example.org", Qtype::A).await;
    assert!(!answer.iter().any(|record| record.contains("10.0.0.1")), "{answer:?}");
}

#[tokio::test]
async fn what_was_forwarded_before_the_cluster_zone_answered_is_not_kept() {
    let stage = Stage::new("", well_behaved).await;
    let settings = crate::cluster::Settings {
        domains: vec![Name::from_text("cluster.example").expect("name")],
        ttl: Ttl::from_wire(5),
        pods: config::PodNames::Disabled,
        interest: std::collections::BTreeSet::new(),
        name_server: None,
        search: None,
        tenancy: None,
    };
    let cluster = Arc::new(Cluster::new(settings));
    let zone = ClusterZone { id: ZoneId::NONE, cluster: Arc::clone(&cluster) };
    let config = config_of("", "", &stage.upstream);
    let upstreams = Upstreams::new(config.upstream_ports.clone(), 0, Arc::clone(&stage.metrics));
    let routes = routes(&config, &Arc::new(upstreams), &stage.reach);
    stage.resolver.set_routes(routes.with_cluster(Some(zone)));
    let asked = query("a.n.svc.cluster.example", Qtype::A);
    let routes = stage.resolver.routes();
    let Route::Forward(root) = routes.route(&asked.qname) else { panic!("not synced") };
    // The zone begins to answer, and all that was forwarded is dropped, before the exchange begins.
    drop(cluster.apply(vec![crate::cluster::Event::Synced]));
    stage.resolver.cache.flush_within(&Name::from_text("cluster.example").expect("name"));
    stage.resolver.forward(&asked, root).await.expect("answered once");
    assert!(stage.resolver.cached(&asked).is_none(), "another's answer stays");
    let other = query("example.org", Qtype::A);
    stage.resolver.forward(&other, root).await.expect("answered");
    assert!(stage.resolver.cached(&other).is_some(), "other names are kept");
}

#[tokio::test]
async fn a_stale_answer_waits_for_nothing_while_all_upstreams_are_down() {
    let stage = Stage::new("", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|_| Vec::new());
    let is_down = || stage.resolver.routes().zones().all(|zone| zone.group.is_down());
    for number in 0..50 {
        if is_down() {
            break;
        }
        let name = format!("n{number}.example.org");
        stage.ask(&name, Qtype::A).await.expect_err("nobody answers");
    }
    assert!(is_down());
    skip(61 * SECOND).await;
    // While it stands still, the clock moves on only for who waits for it.
    tokio::time::pause();
    let began = clock::now();
    let response = stage.ask("example.org", Qtype::A).await.expect("stale");
    assert_eq!((response.aging, clock::now() - began), (Aging::Stale, Duration::ZERO));
}
