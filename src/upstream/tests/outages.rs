//! Upstreams that are away for a while: who waits is answered when they are back, and nobody floods them.

use super::*;
use crate::config::{EndpointSource, Endpoints};
use crate::dns::query::QueryView;
use crate::upstream::health::Standing;

/// How often a query for `text` came.
fn asked(one: &Scripted, text: &str) -> usize {
    let name = Name::from_text(text).expect("name");
    let qname = |seen: &Seen| QueryView::parse(&seen.wire).expect("a query").to_query().qname;
    one.seen().iter().filter(|seen| qname(seen) == name).count()
}

/// The state of the group's only upstream.
fn standing(group: &Group) -> Standing {
    group.status().upstreams[0].standing
}

/// Waits until something holds, for ten seconds at most.
async fn until(holds: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !holds() && began.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(10 * MS).await;
    }
    holds()
}

/// Rounds that end with the set.
fn rounds(upstreams: &Arc<Upstreams>) -> tokio::task::JoinSet<()> {
    tokio::task::JoinSet::from_iter([Arc::clone(upstreams).maintain()])
}

#[tokio::test]
async fn a_query_that_waits_is_asked_again_after_seconds_of_silence() {
    let one = Scripted::start(well_behaved).await;
    let zone = Forward { timeout: 4500 * MS, ..eager() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    for n in 0..10 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
    let silence = Instant::now();
    one.behave(move |seen| match silence.elapsed() > Duration::from_secs(2) {
        true => well_behaved(seen),
        false => Vec::new(),
    });
    group.exchange(&query("late.example.org", Qtype::A)).await.expect("it is back");
    assert!(asked(&one, "late.example.org") <= 50, "20 in a second at most");
}

#[tokio::test]
async fn all_who_wait_for_a_silent_upstream_are_answered_when_it_returns() {
    let silence = Instant::now();
    let one = Scripted::start(move |seen| match silence.elapsed() > Duration::from_secs(4) {
        true => well_behaved(seen),
        false => Vec::new(),
    })
    .await;
    let (upstreams, _) = upstreams();
    let zone = Forward { timeout: Duration::from_secs(20), ..eager() };
    let group = upstreams.group(&zone, &[udp(&one)]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..400 {
        let group = Arc::clone(&group);
        tasks.spawn(async move {
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            group.exchange(&query).await.expect("an answer");
            silence.elapsed()
        });
        tokio::time::sleep(5 * MS).await;
    }
    let ends = tasks.join_all().await;
    let last = ends.into_iter().max().expect("some");
    // Each within its next wait, and not as the floor allows, in 20 s.
    assert!(last < Duration::from_secs(10), "{last:?}");
    assert!(one.count() <= 3 * 400 + 20 * 5, "{} sends for 400 exchanges", one.count());
}

#[tokio::test]
async fn an_upstream_that_restarts_costs_no_query() {
    let one = Scripted::start(well_behaved).await;
    let (address, zone) = (one.address, Forward { timeout: 4500 * MS, ..eager() });
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&zone, &[udp(&one)]);
    group.exchange(&query("a.example.org", Qtype::A)).await.expect("an answer");
    drop(one);
    tokio::time::sleep(50 * MS).await;
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("b.example.org", Qtype::A)).await })
    };
    assert!(until(|| group.is_down()).await, "its refusal counts at once");
    let _back = Scripted::start_at(address, well_behaved).await;
    asking.await.expect("no panic").expect("an answer");
    assert!(metrics.upstream(&address.to_string()).unreachable.get() > 0 && !group.is_down());
}

#[tokio::test]
async fn an_upstream_that_stays_away_is_not_waited_for() {
    let one = Scripted::start(well_behaved).await;
    let (address, zone) = (one.address, Forward { timeout: Duration::from_secs(60), ..eager() });
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&zone, &[udp(&one)]);
    group.exchange(&query("a.example.org", Qtype::A)).await.expect("an answer");
    drop(one);
    tokio::time::sleep(50 * MS).await;
    let began = Instant::now();
    let error = group.exchange(&query("b.example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "a second, not the whole time");
    let before = metrics.upstream(&address.to_string()).unreachable.get();
    let error = group.exchange(&query("c.example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    let refused = metrics.upstream(&address.to_string()).unreachable.get() - before;
    assert_eq!(refused, 1, "it is known by then");
}

#[tokio::test]
async fn four_upstreams_that_all_fail_get_three_queries_per_exchange_at_most() {
    for code in [Rcode::SERVFAIL, Rcode::FORMERR] {
        let all = || Scripted::start(rcode(code));
        let all = [all().await, all().await, all().await, all().await];
        let group = group(&[&all[0], &all[1], &all[2], &all[3]]);
        for n in 0..200 {
            let error = group.exchange(&query(&format!("n{n}.example.org"), Qtype::A)).await;
            assert!(matches!(error, Err(ExchangeError::Failed { .. })), "{error:?}");
        }
        let sends: usize = all.iter().map(Scripted::count).sum();
        // The floor allows twenty in each second.
        assert!(sends <= 3 * 200 + 40, "{sends} queries for 200 exchanges, {code}");
        assert!(sends > 2 * 200, "but others are asked: {sends}");
    }
}

#[tokio::test]
async fn an_upstream_that_knows_a_few_names_only_is_back_when_it_knows_them_again() {
    let is_root = |seen: &Seen| seen.wire.get(12) == Some(&0);
    let one = Scripted::start(move |seen| match is_root(seen) {
        // What comes last must not be what is remembered.
        true => [vec![Act::Wait(50 * MS)], rcode(Rcode::REFUSED)(seen)].concat(),
        false => rcode(Rcode::SERVFAIL)(seen),
    })
    .await;
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&forward(), &[udp(&one)]);
    for _ in 0..10 {
        group.exchange(&query("a.example.org", Qtype::A)).await.expect_err("it fails");
    }
    let _rounds = rounds(&upstreams);
    assert_eq!(standing(&group), Standing::Suspect);
    let before = one.count();
    assert!(until(|| one.count() >= before + 4).await, "it is probed");
    assert_eq!(standing(&group), Standing::Suspect);
    one.behave(move |seen| match is_root(seen) {
        true => rcode(Rcode::REFUSED)(seen),
        false => well_behaved(seen),
    });
    assert!(until(|| standing(&group) == Standing::Well).await, "it knows the name again");
}

#[tokio::test]
async fn probes_that_an_outage_has_swallowed_do_not_count_as_load_when_it_is_over() {
    let one = Scripted::start(silent).await;
    let (upstreams, metrics) = upstreams();
    let _rounds = rounds(&upstreams);
    let group = upstreams.group(&Forward { timeout: 500 * MS, ..eager() }, &[udp(&one)]);
    group.exchange(&query("example.org", Qtype::A)).await.expect_err("silence");
    let in_flight = || group.status().upstreams[0].in_flight;
    assert!(until(|| group.is_down() && in_flight() >= 4).await, "{} probes", in_flight());
    let failures = || metrics.upstream(&one.address.to_string()).probe_failures.get();
    let before = failures();
    one.behave(well_behaved);
    assert!(until(|| !group.is_down() && in_flight() == 0).await);
    // Those that were given up only when their time was over count as failed.
    assert!(failures() - before <= 2, "{} of {before}", failures());
}

#[tokio::test]
async fn an_upstream_that_nobody_asks_any_more_is_neither_down_nor_probed() {
    let (upstreams, metrics) = upstreams();
    let _rounds = rounds(&upstreams);
    let source = EndpointSource::File("/run/endpoints".into());
    let endpoints =
        vec![Endpoints { source: source.clone(), port: None, transport: Transport::Udp }];
    let moving = Forward { endpoints, ..eager() };
    for by_reload in [true, false] {
        let one = Scripted::start(silent).await;
        let down = || metrics.upstream(&one.address.to_string()).down.get();
        let group = match by_reload {
            true => upstreams.group(&eager(), &[udp(&one)]),
            false => upstreams.group(&moving, &[]),
        };
        upstreams.set_endpoints(&source, &[one.address]);
        group.exchange(&query("example.org", Qtype::A)).await.expect_err("silence");
        assert!(until(|| down() == 1).await);
        match by_reload {
            true => drop(group),
            false => upstreams.set_endpoints(&source, &[]),
        }
        assert!(until(|| down() == 0).await, "by reload: {by_reload}");
        // Those under way.
        tokio::time::sleep(300 * MS).await;
        let count = one.count();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(one.count(), count, "by reload: {by_reload}");
        let again = upstreams.group(&eager(), &[udp(&one)]);
        assert!(until(|| down() == 1).await, "it still is, and asked again");
        drop(again);
    }
}

#[tokio::test]
async fn a_retransmission_does_not_go_to_an_upstream_that_is_down() {
    let dead = Scripted::start(silent).await;
    let lossy = Scripted::start(well_behaved).await;
    let (upstreams, _) = upstreams();
    let lone = upstreams.group(&eager(), &[udp(&dead)]);
    lone.exchange(&query("example.org", Qtype::A)).await.expect_err("silence");
    assert!(until(|| lone.is_down()).await);
    lossy.behave(move |seen| if seen.index < 3 { Vec::new() } else { well_behaved(seen) });
    let both = upstreams.group(&eager(), &[udp(&dead), udp(&lossy)]);
    both.exchange(&query("lost.example.org", Qtype::A)).await.expect("an answer");
    assert_eq!((asked(&lossy, "lost.example.org"), asked(&dead, "lost.example.org")), (4, 0));
}

#[tokio::test]
async fn a_query_that_is_a_second_old_still_waits_for_the_next_endpoint() {
    let (upstreams, _) = upstreams();
    let source = EndpointSource::File("/run/endpoints".into());
    let endpoints =
        vec![Endpoints { source: source.clone(), port: None, transport: Transport::Udp }];
    let zone = Forward { endpoints, timeout: Duration::from_secs(20), ..eager() };
    let group = upstreams.group(&zone, &[]);
    let (old, new) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    upstreams.set_endpoints(&source, &[old.address]);
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("example.org", Qtype::A)).await })
    };
    tokio::time::sleep(1200 * MS).await;
    upstreams.set_endpoints(&source, &[]);
    tokio::time::sleep(200 * MS).await;
    upstreams.set_endpoints(&source, &[new.address]);
    asking.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn one_that_hangs_is_down_although_all_queries_go_elsewhere() {
    let (hung, alive) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    let (upstreams, metrics) = upstreams();
    let _rounds = rounds(&upstreams);
    let group = upstreams.group(&eager(), &[udp(&hung), udp(&alive)]);
    let down = |one: &Scripted| metrics.upstream(&one.address.to_string()).down.get();
    let began = Instant::now();
    for n in 0.. {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
        if down(&hung) == 1 || began.elapsed() > Duration::from_secs(20) {
            break;
        }
        tokio::time::sleep(200 * MS).await;
    }
    assert_eq!((down(&hung), down(&alive)), (1, 0));
}

#[tokio::test]
async fn an_upstream_that_restarts_is_asked_again_although_the_other_hangs() {
    let (hung, one) = (Scripted::start(well_behaved).await, Scripted::start(well_behaved).await);
    let (upstreams, _) = upstreams();
    let zone = Forward { timeout: Duration::from_secs(10), ..eager() };
    let group = upstreams.group(&zone, &[udp(&hung), udp(&one)]);
    // Each has answered once at least: the new one is nearest.
    for n in 0..10 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
    assert!(hung.count() > 0 && one.count() > 0);
    hung.behave(silent);
    let address = one.address;
    drop(one);
    tokio::time::sleep(50 * MS).await;
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("example.org", Qtype::A)).await })
    };
    tokio::time::sleep(500 * MS).await;
    let _back = Scripted::start_at(address, well_behaved).await;
    asking.await.expect("no panic").expect("an answer");
}
