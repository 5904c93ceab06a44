//! Upstreams that come and go.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::{EndpointSource, Endpoints};

/// The set that all tests name.
fn source() -> EndpointSource {
    EndpointSource::File(PathBuf::from("/run/endpoints"))
}

/// A zone whose upstreams are of that set.
fn zone(transport: Transport) -> Forward {
    let endpoints = vec![Endpoints { source: source(), port: None, transport }];
    Forward { endpoints, ..forward() }
}

/// Says who is there now.
fn set(upstreams: &Upstreams, now: &[&Scripted]) {
    let addresses: Vec<SocketAddr> = now.iter().map(|scripted| scripted.address).collect();
    upstreams.set_endpoints(&source(), &addresses);
}

#[tokio::test]
async fn queries_at_a_vanished_endpoint_go_elsewhere_at_once() {
    let (old, new) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    for ports in [PortPolicy::PerQuery, PortPolicy::Pooled] {
        let (upstreams, metrics) = upstreams();
        let patient = Duration::from_secs(10);
        let waits = Forward { ports, timeout: 2 * patient, ..zone(Transport::Udp) };
        let waits = Forward { retransmit_min: patient, retransmit_max: patient, ..waits };
        let group = upstreams.group(&waits, &[]);
        set(&upstreams, &[&old]);
        let before = old.count();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20 {
            let group = Arc::clone(&group);
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            tasks.spawn(async move { group.exchange(&query).await.expect("an answer") });
        }
        while old.count() < before + 20 {
            tokio::time::sleep(MS).await;
        }
        let began = Instant::now();
        set(&upstreams, &[&new]);
        for received in tasks.join_all().await {
            assert_eq!(received.upstream.as_ref(), new.address.to_string());
        }
        assert!(began.elapsed() < patient, "not by a retransmission");
        assert_eq!((old.count(), metrics.forward.endpoint_changes.get()), (before + 20, 2));
    }
}

#[tokio::test]
async fn queries_at_an_upstream_that_a_reload_has_removed_go_to_those_that_are_asked_instead() {
    for by_tcp in [false, true] {
        let (old, new) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
        let form = |scripted: &Scripted| {
            let transport = if by_tcp { Transport::Tcp } else { Transport::Udp };
            Upstream { address: scripted.address, transport }
        };
        let (upstreams, _) = upstreams();
        let zone = Forward { timeout: Duration::from_secs(20), ..forward() };
        let before = upstreams.group(&zone, &[form(&old)]);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20 {
            let group = Arc::clone(&before);
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            tasks.spawn(async move { group.exchange(&query).await.expect("an answer") });
        }
        while old.count() < 20 {
            tokio::time::sleep(MS).await;
        }
        let after = upstreams.group(&zone, &[form(&new)]);
        upstreams.succeed(&before, &after);
        let asked = old.count();
        for received in tasks.join_all().await {
            assert_eq!(received.upstream.as_ref(), form(&new).to_string());
        }
        // One may have been on its way.
        assert!(old.count() <= asked + 1, "{} after {asked}", old.count());
        let late = before.exchange(&query("late.example.org", Qtype::A)).await.expect("an answer");
        assert_eq!(late.upstream.as_ref(), form(&new).to_string());
    }
}

#[tokio::test]
async fn all_queries_at_a_removed_upstream_move_although_its_silence_has_used_up_the_budget() {
    let (old, new) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    let (upstreams, _) = upstreams();
    let before = upstreams.group(&forward(), &[udp(&old)]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..150 {
        let group = Arc::clone(&before);
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        tasks.spawn(async move { group.exchange(&query).await });
    }
    // Three for each exchange, or fewer where this takes so long that it counts as down: nothing more is sent for a while.
    let began = Instant::now();
    while old.count() < 450 && began.elapsed() < 700 * MS {
        tokio::time::sleep(MS).await;
    }
    let after = upstreams.group(&forward(), &[udp(&new)]);
    upstreams.succeed(&before, &after);
    for result in tasks.join_all().await {
        assert_eq!(result.expect("an answer").upstream.as_ref(), new.address.to_string());
    }
}

#[tokio::test]
async fn an_upstream_that_a_reload_keeps_keeps_its_queries() {
    let one =
        Scripted::start(|seen| [vec![Act::Wait(300 * MS)], well_behaved(seen)].concat()).await;
    let (upstreams, _) = upstreams();
    let patient = Duration::from_secs(10);
    let zone = Forward { retransmit_min: patient, retransmit_max: patient, ..forward() };
    let before = upstreams.group(&zone, &[udp(&one)]);
    let group = Arc::clone(&before);
    let asking = tokio::spawn(async move { group.exchange(&query("example.org", Qtype::A)).await });
    while one.count() < 1 {
        tokio::time::sleep(MS).await;
    }
    let after = upstreams.group(&zone, &[udp(&one)]);
    upstreams.succeed(&before, &after);
    asking.await.expect("no panic").expect("an answer");
    assert_eq!(one.count(), 1);
    assert!(!after.members.load()[0].peer.is_gone());
}

#[tokio::test]
async fn an_endpoint_is_replaced_a_hundred_times_under_load_and_no_query_is_lost() {
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&zone(Transport::Udp), &[]);
    let mut all = vec![Scripted::start(well_behaved).await];
    set(&upstreams, &[&all[0]]);
    let (mut asked, mut tasks, mut last_of) = (0u32, tokio::task::JoinSet::new(), Vec::new());
    for _ in 0..100 {
        for _ in 0..20 {
            let (group, n) = (Arc::clone(&group), asked);
            asked += 1;
            tasks.spawn(async move {
                let query = query(&format!("n{n}.example.org"), Qtype::A);
                group.exchange(&query).await.is_ok()
            });
            tokio::time::sleep(MS).await;
        }
        all.push(Scripted::start(well_behaved).await);
        set(&upstreams, &[&all[all.len() - 1]]);
        last_of.push(asked);
    }
    let answered = tasks.join_all().await.into_iter().filter(|answered| *answered).count();
    assert_eq!(answered, 2000);
    for (endpoint, last) in all.iter().zip(last_of) {
        for seen in endpoint.seen() {
            let view = crate::dns::query::QueryView::parse(&seen.wire).expect("a query");
            let label = view.to_query().qname.to_string().to_lowercase();
            let n = label.trim_start_matches('n').split('.').next().and_then(|n| n.parse().ok());
            // The root's name servers are what the health is probed with.
            assert!(n.is_none_or(|n: u32| n < last), "{label} came after the event");
        }
    }
}

#[tokio::test]
async fn connections_to_a_vanished_endpoint_are_closed_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&zone(Transport::Tcp), &[]);
    upstreams.set_endpoints(&source(), &[address]);
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("example.org", Qtype::A)).await })
    };
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let length = stream.read_u16().await.expect("a length");
    let mut wire = vec![0; usize::from(length)];
    stream.read_exact(&mut wire).await.expect("a query");
    let answer = message::answer_a(&wire, [192, 0, 2, 1], 60);
    let framed = u16::try_from(answer.len()).expect("short").to_be_bytes();
    stream.write_all(&[&framed[..], &answer].concat()).await.expect("written");
    asking.await.expect("no panic").expect("an answer");
    upstreams.set_endpoints(&source(), &[]);
    let ended = tokio::time::timeout(Duration::from_secs(3), stream.read_u8()).await;
    assert!(ended.expect("closed soon").is_err(), "the end of the stream");
}

#[tokio::test]
async fn a_zone_without_endpoints_waits_a_second_for_one() {
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&zone(Transport::Udp), &[]);
    assert!(group.is_down(), "stale answers are given at once");
    let error = group.exchange(&query("a.example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::NoUpstream)), "{error:?}");
    let one = Scripted::start(well_behaved).await;
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("b.example.org", Qtype::A)).await })
    };
    tokio::time::sleep(50 * MS).await;
    set(&upstreams, &[&one]);
    asking.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn an_endpoint_that_closed_before_the_event_costs_no_query() {
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&zone(Transport::Udp), &[]);
    let old = Scripted::start(silent).await;
    set(&upstreams, &[&old]);
    drop(old);
    tokio::time::sleep(20 * MS).await;
    let asking = {
        let group = Arc::clone(&group);
        tokio::spawn(async move { group.exchange(&query("a.example.org", Qtype::A)).await })
    };
    tokio::time::sleep(50 * MS).await;
    let new = Scripted::start(well_behaved).await;
    set(&upstreams, &[&new]);
    asking.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_asked_again_and_those_that_stay_keep_what_is_known() {
    let (one, two) = (Scripted::start(well_behaved).await, Scripted::start(well_behaved).await);
    let (upstreams, _) = upstreams();
    let group = upstreams.group(&zone(Transport::Tcp), &[]);
    set(&upstreams, &[&one]);
    group.exchange(&query("a.example.org", Qtype::A)).await.expect("an answer");
    set(&upstreams, &[&one, &two]);
    assert!(group.has_answered(), "the first is known");
    set(&upstreams, &[&two]);
    group.exchange(&query("b.example.org", Qtype::A)).await.expect("an answer");
    assert_eq!((one.count(), two.count()), (1, 1));
    set(&upstreams, &[&one]);
    group.exchange(&query("c.example.org", Qtype::A)).await.expect("an answer");
    assert_eq!((one.count(), two.count()), (2, 1));
}
