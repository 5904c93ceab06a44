//! What is kept, for how long, who shares it, and what is dropped.

use super::*;
use crate::cache::key::Lookup;

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

#[tokio::test]
async fn what_was_forwarded_before_the_cluster_zone_answered_is_not_kept() {
    let stage = Stage::new("", well_behaved).await;
    let cluster = Arc::new(Cluster::new(cluster_settings()));
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

#[tokio::test]
async fn an_alias_whose_target_fails_replaces_no_whole_answer_and_is_kept_for_a_moment_only() {
    let alias = |seen: &Seen| message::answer(&seen.wire, &[(Qtype::CNAME, 60, b"\x01t\0")]);
    let stage = Stage::new("", move |seen| {
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b't' => message::answer_a(&seen.wire, [192, 0, 2, 1], 60),
            _ => alias(seen),
        })]
    })
    .await;
    let (_, whole) = stage.answer("a.example.org", Qtype::A).await;
    assert_eq!(whole.len(), 2, "{whole:?}");
    stage.upstream.behave(move |seen| {
        vec![Act::Send(match seen.wire[13].to_ascii_lowercase() {
            b't' => message::empty(&seen.wire, Rcode::SERVFAIL),
            _ => alias(seen),
        })]
    });
    skip(61 * SECOND).await;
    assert_eq!(stage.answer("a.example.org", Qtype::A).await.1, whole);
    let response = stage.ask("b.example.org", Qtype::A).await.expect("the alias");
    assert_eq!(ttls(&response), [1], "as long as a failure");
    assert!(!response.entry.encoded().has_answer());
}

#[tokio::test]
async fn a_stale_time_that_is_shortened_holds_for_what_is_stored_already() {
    let stage = Stage::new("", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    skip(61 * SECOND).await;
    let stale = stage.ask("example.org", Qtype::A).await.expect("stale");
    assert_eq!(stale.aging, Aging::Stale);
    let policy = config::Cache::clone(&stage.resolver.cache.policy());
    stage.resolver.cache.set_policy(config::Cache { stale: Duration::ZERO, ..policy });
    let response = stage.ask("example.org", Qtype::A).await;
    assert!(response.is_err(), "{response:?}");
}

#[tokio::test]
async fn what_the_cache_cannot_answer_is_a_miss_each_time() {
    let stage = Stage::new("", well_behaved).await;
    let misses = || stage.metrics.cache.misses.get();
    let asked = Query { recursion_desired: false, ..query("example.org", Qtype::A) };
    let refused = stage.resolver.resolve(&asked, Carrier::Datagram).await;
    assert!(refused.is_err() && misses() == 1, "nothing is there: {}", misses());
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(misses(), 2, "nothing is there, and an upstream is asked");
    stage.ask("example.org", Qtype::A).await.expect("answered");
    assert_eq!(misses(), 2, "a hit");
    skip(61 * SECOND).await;
    stage.ask("example.org", Qtype::A).await.expect("answered anew");
    assert_eq!(misses(), 3, "what is there is too old");
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    skip(61 * SECOND).await;
    stage.ask("example.org", Qtype::A).await.expect("stale");
    assert_eq!(misses(), 3, "a stale answer is a hit");
}

#[tokio::test]
async fn what_may_not_be_kept_ends_the_stale_time_of_what_was_before() {
    for newest in [
        |seen: &Seen| message::answer_a(&seen.wire, [192, 0, 2, 2], 0),
        |seen: &Seen| message::empty(&seen.wire, Rcode::NXDOMAIN),
        |seen: &Seen| message::empty(&seen.wire, Rcode::NOERROR),
    ] {
        let stage = Stage::new("", well_behaved).await;
        stage.ask("example.org", Qtype::A).await.expect("answered");
        stage.upstream.behave(move |seen| vec![Act::Send(newest(seen))]);
        skip(61 * SECOND).await;
        let response = stage.ask("example.org", Qtype::A).await.expect("answered");
        assert_eq!(response.aging, Aging::Fresh);
        stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
        let response = stage.ask("example.org", Qtype::A).await;
        assert!(response.is_err(), "{response:?}");
    }
}

#[tokio::test]
async fn a_name_is_renewed_with_recursion_desired_whoever_has_asked_for_it() {
    let stage = Stage::new("", well_behaved).await;
    let asked = Query { recursion_desired: false, ..query("example.org", Qtype::A) };
    stage.resolver.prefetch(asked);
    while stage.upstream.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(stage.upstream.seen().iter().all(|seen| seen.wire[2] & 1 == 1), "RD");
}

#[tokio::test]
async fn a_renewal_that_may_not_be_kept_ends_what_was_before() {
    let stage = Stage::new("", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    let newest = |seen: &Seen| vec![Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 2], 0))];
    stage.upstream.behave(newest);
    let asked = query("example.org", Qtype::A);
    let routes = stage.resolver.routes();
    let Route::Forward(zone) = routes.route(&asked.qname) else { panic!("it is forwarded") };
    stage.resolver.renew(&asked, zone).await;
    skip(61 * SECOND).await;
    stage.upstream.behave(|seen| vec![Act::Send(message::empty(&seen.wire, Rcode::SERVFAIL))]);
    let response = stage.ask("example.org", Qtype::A).await;
    assert!(response.is_err(), "{response:?}");
}

#[tokio::test]
async fn one_who_waits_is_enough_for_a_stale_name_whose_upstream_hangs() {
    let stage = Stage::of("", "timeout = \"4500ms\"", well_behaved).await;
    stage.ask("example.org", Qtype::A).await.expect("answered");
    stage.upstream.behave(|seen| match seen.wire[13].to_ascii_lowercase() {
        b'e' => Vec::new(),
        _ => well_behaved(seen),
    });
    skip(61 * SECOND).await;
    // Others are answered meanwhile, so that the upstream is not down.
    let others = async {
        for number in 0.. {
            let _ = stage.ask(&format!("n{number}.example.org"), Qtype::A).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asked = async {
        for _ in 0..3 {
            let stale = stage.ask("example.org", Qtype::A).await.expect("stale");
            assert_eq!(stale.aging, Aging::Stale);
        }
    };
    tokio::select! { () = asked => {}, () = others => {} }
    assert_eq!(stage.metrics.cache.coalesced.get(), 0, "nobody waits beside the first");
}
