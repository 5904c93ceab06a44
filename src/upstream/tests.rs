//! Exchanges against scripted upstreams on loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Forward, PortPolicy, PortRange, Rewrite, Transport, Upstream, UpstreamSource};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::{Qtype, Rcode};
use crate::metrics::Metrics;
use crate::testing::message;
use crate::testing::scripted::{Act, Scripted, Seen, well_behaved};
use crate::upstream::ports::PortClass;
use crate::upstream::{ExchangeError, Group, Upstreams};

const MS: Duration = Duration::from_millis(1);

/// Shared state with counters of its own.
fn upstreams() -> (Arc<Upstreams>, Arc<Metrics>) {
    let metrics = Metrics::new();
    // Below it, tests with a range of their own find their ports free.
    let range = PortRange { first: 30_000, last: 60_999, reserved: vec![30_001] };
    (Arc::new(Upstreams::new(range, 0, Arc::clone(&metrics))), metrics)
}

fn udp(scripted: &Scripted) -> Upstream {
    Upstream { address: scripted.address, transport: Transport::Udp }
}

/// A zone so patient that a busy machine's delays are not taken for loss.
fn forward() -> Forward {
    Forward {
        zone: Name::root(),
        upstreams: UpstreamSource::Fixed(Vec::new()),
        endpoints: Vec::new(),
        ports: PortPolicy::PerQuery,
        timeout: 1500 * MS,
        retransmit_min: 400 * MS,
        retransmit_max: 400 * MS,
        trust_ad: false,
        tls_ca: None,
        rewrite: Rewrite::default(),
    }
}

/// A zone with the defaults, where speed is what a test is about.
fn eager() -> Forward {
    Forward { retransmit_min: 20 * MS, ..forward() }
}

fn group(list: &[&Scripted]) -> Arc<Group> {
    let list: Vec<_> = list.iter().map(|scripted| udp(scripted)).collect();
    upstreams().0.group(&forward(), &list)
}

fn query(text: &str, qtype: Qtype) -> Query {
    Query::new(Name::from_text(text).expect("name"), qtype)
}

/// Sends one message made from the query.
fn send(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync {
    move |seen| vec![Act::Send(make(&seen.wire))]
}

fn silent(_: &Seen) -> Vec<Act> {
    Vec::new()
}

fn rcode(rcode: Rcode) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync {
    send(move |wire| message::empty(wire, rcode))
}

#[tokio::test]
async fn a_query_is_answered_with_aa_and_ad_cleared() {
    let one = Scripted::start(send(|wire| {
        let mut response = message::answer_a(wire, [192, 0, 2, 1], 60);
        response[2] |= 4;
        response[3] |= 0x20;
        response
    }))
    .await;
    let received =
        group(&[&one]).exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    assert_eq!(received.upstream.as_ref(), one.address.to_string());
    assert_eq!(received.encoded.rcode(), Rcode::NOERROR);
    assert!(received.encoded.has_answer());
    assert_eq!(received.encoded.as_wire()[2] & 4, 0);
    assert_eq!(received.encoded.as_wire()[3] & 0x20, 0);
}

#[tokio::test]
async fn a_truncated_response_is_fetched_again_by_tcp() {
    let one = Scripted::start(|seen| {
        if seen.by_tcp { well_behaved(seen) } else { send(message::truncated)(seen) }
    })
    .await;
    let group = group(&[&one]);
    let received = group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    assert!(received.encoded.has_answer());
    let by_tcp: Vec<_> = one.seen().iter().map(|seen| seen.by_tcp).collect();
    assert_eq!(by_tcp, [false, true]);
}

#[tokio::test]
async fn a_silent_upstream_is_overtaken_by_another_one_on_another_port() {
    let (dead, alive) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    let group = upstreams().0.group(&eager(), &[udp(&dead), udp(&alive)]);
    let began = Instant::now();
    for n in 0..20 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(dead.count() <= 6, "a suspect is asked last: {}", dead.count());
}

#[tokio::test]
async fn a_lost_query_is_sent_again_from_another_port() {
    let one =
        Scripted::start(|seen| if seen.index < 3 { Vec::new() } else { well_behaved(seen) }).await;
    let group = upstreams().0.group(&eager(), &[udp(&one)]);
    group.exchange(&query("example.org", Qtype::AAAA)).await.expect("an answer");
    let ports: std::collections::HashSet<_> =
        one.seen().iter().map(|seen| seen.from.port()).collect();
    assert_eq!(ports.len(), one.count(), "each from a port of its own");
    assert!(ports.iter().all(|port| PortClass::of_port(*port) == PortClass::Aaaa));
}

#[tokio::test]
async fn a_failure_is_taken_to_another_upstream_and_else_reported() {
    for code in [Rcode::SERVFAIL, Rcode::REFUSED, Rcode::FORMERR, Rcode::NOTIMP] {
        let failing = Scripted::start(rcode(code)).await;
        let good = Scripted::start(well_behaved).await;
        for _ in 0..10 {
            let both = group(&[&failing, &good]);
            both.exchange(&query("example.org", Qtype::A)).await.expect("the other one answers");
        }
        let error = group(&[&failing]).exchange(&query("example.org", Qtype::A)).await;
        assert!(
            matches!(&error, Err(ExchangeError::Failed { rcode, .. }) if *rcode == code),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_although_the_other_upstream_failed() {
    for other in [Rcode::SERVFAIL, Rcode::REFUSED] {
        let slow = Scripted::start(|seen| [vec![Act::Wait(900 * MS)], well_behaved(seen)].concat());
        let (slow, failing) = (slow.await, Scripted::start(rcode(other)).await);
        let group = upstreams().0.group(&eager(), &[udp(&slow), udp(&failing)]);
        group.exchange(&query("example.org", Qtype::A)).await.expect("the slow one answers");
    }
}

#[tokio::test]
async fn a_slow_name_does_not_bring_its_upstream_down() {
    let one = Scripted::start(|seen| match seen.qtype() {
        Qtype::A => [vec![Act::Wait(1400 * MS)], well_behaved(seen)].concat(),
        _ => well_behaved(seen),
    })
    .await;
    let (upstreams, _) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let group = upstreams.group(&Forward { timeout: 2000 * MS, ..eager() }, &[udp(&one)]);
    let asking = tokio::spawn({
        let group = Arc::clone(&group);
        async move { group.exchange(&query("slow.example.org", Qtype::A)).await }
    });
    while !asking.is_finished() {
        assert!(!group.is_down());
        tokio::time::sleep(5 * MS).await;
    }
    asking.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_negative_response_is_no_failure() {
    for code in [Rcode::NXDOMAIN, Rcode::NOERROR] {
        let one = Scripted::start(send(move |wire| message::negative(wire, code, 60))).await;
        let received = group(&[&one]).exchange(&query("example.org", Qtype::A)).await;
        assert!(received.expect("an answer").encoded.is_negative());
        assert_eq!(one.count(), 1);
    }
}

#[tokio::test]
async fn a_closed_port_is_noticed_at_once() {
    let gone = Scripted::start(silent).await;
    let address = gone.address;
    drop(gone);
    tokio::time::sleep(50 * MS).await;
    let upstream = Upstream { address, transport: Transport::Udp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    let began = Instant::now();
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    assert!(began.elapsed() < 100 * MS, "{:?}", began.elapsed());
    assert!(group.is_down());
}

#[tokio::test]
async fn silence_ends_with_the_timeout_of_the_zone() {
    let one = Scripted::start(silent).await;
    let began = Instant::now();
    let group = upstreams().0.group(&eager(), &[udp(&one)]);
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Timeout { .. })), "{error:?}");
    let waited = began.elapsed();
    assert!(waited >= 1500 * MS && waited < 1700 * MS, "{waited:?}");
    assert!((5..=30).contains(&one.count()), "{}", one.count());
}

#[tokio::test]
async fn forged_messages_are_ignored_counted_and_waited_out() {
    let one = Scripted::start(|seen| {
        let good = message::answer_a(&seen.wire, [192, 0, 2, 1], 60);
        let forge = |at: usize, bit: u8| {
            let mut forged = message::answer_a(&seen.wire, [192, 0, 2, 66], 60);
            forged[at] ^= bit;
            Act::Send(forged)
        };
        vec![
            forge(0, 1),
            forge(14, 1),
            forge(2, 0x80),
            Act::Send(b"garbage".to_vec()),
            Act::Send(good),
        ]
    })
    .await;
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&forward(), &[udp(&one)]);
    let received = group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    assert!(received.encoded.as_wire().ends_with(&[192, 0, 2, 1]));
    assert_eq!(metrics.upstream(&one.address.to_string()).mismatched.get(), 4);
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without_it_from_then_on() {
    for refusal in [message::empty, message::header] {
        let one = Scripted::start(move |seen| {
            if !message::has_edns(&seen.wire) {
                return well_behaved(seen);
            }
            // Such servers know no OPT: it is neither read nor sent.
            let mut response = refusal(&seen.wire, Rcode::FORMERR);
            if response.len() > 12 {
                response.truncate(response.len() - 11);
                response[11] = 0;
            }
            vec![Act::Send(response)]
        })
        .await;
        let group = group(&[&one]);
        for _ in 0..3 {
            group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
        }
        let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
        assert_eq!(edns, [true, false, false, false]);
    }
}

#[tokio::test]
async fn a_zone_that_trusts_ad_asks_for_it_and_keeps_it() {
    let one = Scripted::start(send(|wire| {
        let mut response = message::answer_a(wire, [192, 0, 2, 1], 60);
        response[3] |= wire[3] & 0x20;
        response
    }))
    .await;
    let zone = Forward { trust_ad: true, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    let received = group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    assert_eq!(received.encoded.as_wire()[3] & 0x20, 0x20);
}

#[tokio::test]
async fn many_queries_share_one_tcp_connection_and_come_back_in_any_order() {
    let one = Scripted::start(|seen| {
        let wait = Act::Wait(MS * u32::from(seen.id() % 32));
        [vec![wait], well_behaved(seen)].concat()
    })
    .await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let group = Arc::clone(&group);
        tasks.spawn(async move {
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            let received = group.exchange(&query).await.expect("an answer");
            assert!(received.encoded.question().starts_with(query.qname.as_wire()));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    assert_eq!((one.count(), from.len()), (50, 1));
    let ids: std::collections::HashSet<_> = one.seen().iter().map(Seen::id).collect();
    assert!(ids.len() > 40, "ids are drawn at random");
}

#[tokio::test]
async fn a_connection_that_closed_costs_a_reconnect_and_no_query() {
    let one = Scripted::start(|seen| [well_behaved(seen), vec![Act::Close]].concat()).await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    for n in 0..10 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_restarted_upstream_closes_its_connections_and_no_query_is_lost() {
    let one = Scripted::start(|seen| match seen.index {
        0..20 => vec![Act::Wait(20 * MS), Act::Close],
        _ => well_behaved(seen),
    })
    .await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let group = Arc::clone(&group);
        tasks.spawn(async move {
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            group.exchange(&query).await.expect("an answer");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    assert_eq!(one.count(), 40);
}

#[tokio::test]
async fn a_query_that_finds_neither_port_nor_connection_fails_at_once() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("bound");
    let first = 15_000 + 3 * (address.port() % 1_000);
    let range = PortRange { first, last: first + 2, reserved: Vec::new() };
    let upstreams = Arc::new(Upstreams::new(range, 0, Metrics::new()));
    let upstream = Upstream { address, transport: Transport::Udp };
    let group = upstreams.group(&forward(), &[upstream]);
    let holder = Arc::clone(&group);
    let holding = tokio::spawn(async move { holder.exchange(&query("a.example", Qtype::A)).await });
    tokio::time::sleep(50 * MS).await;
    let began = Instant::now();
    let error = group.exchange(&query("b.example", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Overloaded { .. })), "{error:?}");
    assert!(began.elapsed() < 200 * MS, "{:?}", began.elapsed());
    holding.abort();
}

#[tokio::test]
async fn a_tcp_peer_that_answers_another_question_is_not_believed() {
    let one = Scripted::start(|seen| {
        let mut wrong = message::answer_a(&seen.wire, [192, 0, 2, 66], 60);
        wrong[13] = b'z';
        vec![Act::Send(wrong)]
    })
    .await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
}

#[tokio::test]
async fn pooled_sockets_are_used_again_and_never_by_two_exchanges_at_once() {
    let one = Scripted::start(|seen| [vec![Act::Wait(5 * MS)], well_behaved(seen)].concat()).await;
    let zone = Forward { ports: PortPolicy::Pooled, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    for round in 0..10 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let group = Arc::clone(&group);
            tasks.spawn(async move {
                let query = query(&format!("n{n}.r{round}.example.org"), Qtype::A);
                group.exchange(&query).await.expect("an answer");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
        let seen = one.seen();
        let last: std::collections::HashSet<_> =
            seen[seen.len() - 8..].iter().map(|seen| seen.from.port()).collect();
        assert_eq!(last.len(), 8, "eight at once leave from eight ports");
    }
    let ports: std::collections::HashSet<_> =
        one.seen().iter().map(|seen| seen.from.port()).collect();
    assert!(ports.len() <= 12, "{}", ports.len());
    assert!(ports.iter().all(|port| PortClass::of_port(*port) == PortClass::A));
}

#[tokio::test]
async fn a_group_without_upstreams_says_so() {
    let error = group(&[]).exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::NoUpstream)), "{error:?}");
}

#[tokio::test]
async fn a_class_without_a_free_port_goes_by_tcp_and_is_counted() {
    let one =
        Scripted::start(|seen| [vec![Act::Wait(100 * MS)], well_behaved(seen)].concat()).await;
    let metrics = Metrics::new();
    let first = 10_002 + 3 * (one.address.port() % 1_000);
    let range = PortRange { first, last: first + 2, reserved: Vec::new() };
    let upstreams = Arc::new(Upstreams::new(range, 0, Arc::clone(&metrics)));
    let group = upstreams.group(&forward(), &[udp(&one)]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..5 {
        let group = Arc::clone(&group);
        tasks.spawn(async move {
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            group.exchange(&query).await.expect("an answer");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let by_udp = one.seen().iter().filter(|seen| !seen.by_tcp).count();
    assert_eq!((by_udp, one.count()), (1, 5));
    assert_eq!(metrics.ports.exhausted.get(), 4);
}

#[tokio::test]
async fn an_upstream_that_forwards_back_to_us_is_not_asked_until_the_loop_is_gone() {
    let (upstreams, metrics) = upstreams();
    let front_end = Arc::clone(upstreams.loop_probe());
    let one = Scripted::start(well_behaved).await;
    let group = upstreams.group(&forward(), &[udp(&one)]);
    assert!(group.find_loops().await.is_empty());
    one.behave(move |seen| {
        let view = crate::dns::query::QueryView::parse(&seen.wire).expect("a query");
        front_end.matches(&view.to_query().qname);
        rcode(Rcode::REFUSED)(seen)
    });
    assert_eq!(group.find_loops().await, [one.address.to_string().into()]);
    let count = one.count();
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Loop { .. })), "{error:?}");
    assert_eq!((one.count(), metrics.life.loops_found.get()), (count, 1));
    assert!(group.status().upstreams[0].is_looping);
    one.behave(well_behaved);
    assert!(group.find_loops().await.is_empty());
    group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_noticed_within_two_seconds() {
    let (upstreams, _) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let gone = Scripted::start(silent).await;
    let address = gone.address;
    let group = upstreams.group(&forward(), &[udp(&gone)]);
    drop(gone);
    tokio::time::sleep(50 * MS).await;
    group.exchange(&query("example.org", Qtype::A)).await.expect_err("nobody listens");
    assert!(group.is_down() && !group.has_answered());
    tokio::time::sleep(600 * MS).await;
    assert!(group.is_down(), "probes of a closed port bring nothing back");
    let back = Scripted::start_at(address, rcode(Rcode::REFUSED)).await;
    let began = Instant::now();
    while group.is_down() {
        assert!(began.elapsed() < Duration::from_secs(2), "still down");
        tokio::time::sleep(10 * MS).await;
    }
    assert!(group.has_answered() && back.count() > 0);
}

#[tokio::test]
async fn an_upstream_keeps_what_is_known_of_it_over_a_reload() {
    let (upstreams, _) = upstreams();
    let one = Scripted::start(well_behaved).await;
    let old = upstreams.group(&forward(), &[udp(&one)]);
    old.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    drop(old);
    let new = upstreams.group(&Forward { timeout: 9 * MS, ..forward() }, &[udp(&one)]);
    assert!(new.has_answered());
    let status = new.status();
    assert!(status.upstreams[0].rtt.is_some());
    assert_eq!((status.upstreams[0].queries, status.upstreams[0].responses), (1, 1));
}

/// Asks for two names, one after the other.
async fn ask_twice(group: &Group, n: u32) {
    for m in 0..2 {
        let query = query(&format!("m{m}.n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
}

#[tokio::test]
async fn kept_sockets_stay_on_the_thread_that_made_them() {
    let one = Scripted::start(well_behaved).await;
    let zone = Forward { ports: PortPolicy::Pooled, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    for n in 0..3 {
        let group = Arc::clone(&group);
        // Each thread has a runtime of its own, which is gone when the next one asks.
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(ask_twice(&group, n));
        });
        while !asking.is_finished() {
            tokio::time::sleep(MS).await;
        }
        asking.join().expect("no panic");
    }
    let ports: std::collections::HashSet<_> =
        one.seen().iter().map(|seen| seen.from.port()).collect();
    assert_eq!((one.count(), ports.len()), (6, 3));
}

#[tokio::test]
async fn queries_are_answered_soon_although_half_of_them_are_lost() {
    // 30 % each way: 51 % of the queries stay without a response.
    let one =
        Scripted::start(
            |seen| {
                if rand::random_bool(0.51) { Vec::new() } else { well_behaved(seen) }
            },
        )
        .await;
    let group = upstreams().0.group(&eager(), &[udp(&one)]);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..500 {
        let group = Arc::clone(&group);
        tokio::time::sleep(MS).await;
        tasks.spawn(async move {
            let began = Instant::now();
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            group.exchange(&query).await.expect("an answer");
            began.elapsed()
        });
    }
    let mut waits: Vec<_> = tasks.join_all().await;
    waits.sort_unstable();
    assert!(waits[449] <= 150 * MS, "p90 {:?}", waits[449]);
    assert!(waits[499] <= Duration::from_secs(1), "longest {:?}", waits[499]);
    assert!(one.count() <= 3 * 500 + 20, "{} sends for 500 exchanges", one.count());
}

#[tokio::test]
async fn an_upstream_that_hangs_is_felt_by_nobody_after_the_first_second() {
    let (hung, alive) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    let (upstreams, _) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let group = upstreams.group(&eager(), &[udp(&hung), udp(&alive)]);
    let began = Instant::now();
    let mut slow = Vec::new();
    for n in 0.. {
        let asked = Instant::now();
        if asked - began > Duration::from_secs(3) {
            break;
        }
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
        if asked.elapsed() > 20 * MS {
            slow.push((asked - began, asked.elapsed()));
        }
        tokio::time::sleep(2 * MS).await;
    }
    assert!(slow.iter().all(|(at, _)| *at < Duration::from_secs(1)), "{slow:?}");
    assert!(slow.len() < 5, "{slow:?}");
    hung.behave(well_behaved);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let standing = group.status().upstreams.iter().map(|upstream| upstream.standing).max();
    assert_eq!(standing, Some(crate::upstream::health::Standing::Well));
}

#[tokio::test]
async fn a_truncated_response_whose_tcp_fails_is_taken_to_another_upstream() {
    let cut = Scripted::start(|seen| {
        if seen.by_tcp { vec![Act::Close] } else { send(message::truncated)(seen) }
    })
    .await;
    let good = Scripted::start(well_behaved).await;
    for _ in 0..8 {
        let both = group(&[&cut, &good]);
        let received = both.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
        assert_eq!(received.upstream.as_ref(), good.address.to_string());
    }
    let alone = group(&[&cut]);
    let error = alone.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    assert!(!alone.is_down(), "that TCP fails says nothing about UDP");
}

#[tokio::test]
async fn half_a_response_by_tcp_is_no_response_and_a_dripping_one_is() {
    let one = Scripted::start(|seen| {
        let message = message::answer_a(&seen.wire, [192, 0, 2, 1], 60);
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        let framed = [&length, &message[..]].concat();
        if seen.index < 4 {
            return vec![Act::Raw(framed[..20].to_vec()), Act::Close];
        }
        framed.chunks(7).flat_map(|part| [Act::Raw(part.to_vec()), Act::Wait(5 * MS)]).collect()
    })
    .await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let group = upstreams().0.group(&forward(), &[upstream]);
    for _ in 0..2 {
        let error = group.exchange(&query("example.org", Qtype::A)).await;
        assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    }
    group.exchange(&query("example.org", Qtype::A)).await.expect("the whole, in the end");
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced() {
    let one = Scripted::start(|seen| match seen.index {
        1 => Vec::new(),
        _ => well_behaved(seen),
    })
    .await;
    let upstream = Upstream { address: one.address, transport: Transport::Tcp };
    let zone = Forward { timeout: Duration::from_secs(4), ..forward() };
    let group = upstreams().0.group(&zone, &[upstream]);
    group.exchange(&query("n0.example.org", Qtype::A)).await.expect("an answer");
    let began = Instant::now();
    group.exchange(&query("n1.example.org", Qtype::A)).await.expect("by a second connection");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    assert_eq!((one.count(), from.len()), (3, 2));
}

#[tokio::test]
async fn responses_in_another_case_are_ignored_once_the_case_was_always_echoed() {
    let one = Scripted::start(well_behaved).await;
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&forward(), &[udp(&one)]);
    for n in 0..10 {
        let query = query(&format!("n{n}.long-enough-a-name.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
    assert!(group.status().upstreams[0].has_case);
    one.behave(|seen| {
        // A forger knows the name but not its case.
        let mut forged = message::answer_a(&seen.wire, [192, 0, 2, 66], 60);
        forged[12..40].make_ascii_lowercase();
        vec![Act::Send(forged), Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], 60))]
    });
    let name = query("a-rather-long-name.example.org", Qtype::A);
    let received = group.exchange(&name).await.expect("an answer");
    assert!(received.encoded.as_wire().ends_with(&[192, 0, 2, 1]));
    let mixed: std::collections::HashSet<_> =
        one.seen().iter().map(|seen| seen.wire[15..30].to_vec()).collect();
    assert!(mixed.len() > 8, "each query has a case of its own");
    assert_eq!(metrics.upstream(&one.address.to_string()).mismatched.get(), 1);
}

#[tokio::test]
async fn ids_and_ports_of_queries_are_spread() {
    let one = Scripted::start(well_behaved).await;
    let group = group(&[&one]);
    for n in 0..200 {
        let query = query(&format!("n{n}.example.org"), Qtype::SRV);
        group.exchange(&query).await.expect("an answer");
    }
    let seen = one.seen();
    let ids: std::collections::HashSet<_> = seen.iter().map(Seen::id).collect();
    let ports: std::collections::HashSet<_> = seen.iter().map(|seen| seen.from.port()).collect();
    assert!(ids.len() >= 195, "200 of 65,536: {}", ids.len());
    assert_eq!(ports.len(), 200, "none twice within its rest");
    assert!(ports.iter().all(|port| PortClass::of_port(*port) == PortClass::Other));
}

#[tokio::test]
async fn an_upstream_by_ipv6_is_asked_from_ipv6() {
    let one = Scripted::start_at("[::1]:0".parse().expect("an address"), well_behaved).await;
    group(&[&one]).exchange(&query("example.org", Qtype::AAAA)).await.expect("an answer");
    assert!(one.seen()[0].from.is_ipv6());
}

#[tokio::test]
async fn an_extended_error_of_a_failure_is_kept() {
    let one = Scripted::start(send(|wire| {
        let mut failure = message::empty(wire, Rcode::SERVFAIL);
        let length = failure.len();
        failure[length - 1] = 6; // OPT's data: code 15, length 2, info code 6
        failure.extend([0, 15, 0, 2, 0, 6]);
        failure
    }))
    .await;
    let error = group(&[&one]).exchange(&query("example.org", Qtype::A)).await;
    let Err(ExchangeError::Failed { ede: Some(ede), .. }) = error else { panic!("{error:?}") };
    assert_eq!(ede.code.0, 6);
}

#[tokio::test]
async fn with_300_ports_nothing_is_lost_and_the_classes_stay_apart() {
    let one = Scripted::start(well_behaved).await;
    let metrics = Metrics::new();
    let range = PortRange { first: 19_000, last: 19_299, reserved: Vec::new() };
    let upstreams = Arc::new(Upstreams::new(range, 0, Arc::clone(&metrics)));
    let group = upstreams.group(&forward(), &[udp(&one)]);
    for round in 0..40 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..50 {
            let group = Arc::clone(&group);
            let qtype = if n % 2 == 0 { Qtype::A } else { Qtype::AAAA };
            let query = query(&format!("n{n}.r{round}.example.org"), qtype);
            tasks.spawn(async move { group.exchange(&query).await.expect("an answer") });
        }
        tasks.join_all().await;
    }
    let seen = one.seen();
    assert!(seen.iter().filter(|seen| !seen.by_tcp).all(|seen| {
        let port = seen.from.port();
        (19_000..=19_299).contains(&port)
            && PortClass::of_port(port) == PortClass::of_qtype(seen.qtype())
    }));
    // 200 ports are fresh once; a busy machine may send more than the 2,000 queries.
    assert!(metrics.ports.unrested.get() >= 1800, "{}", metrics.ports.unrested.get());
}

#[tokio::test]
async fn a_kept_socket_outlives_an_upstream_that_was_away() {
    let one = Scripted::start(well_behaved).await;
    let address = one.address;
    let zone = Forward { ports: PortPolicy::Pooled, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    group.exchange(&query("a.example.org", Qtype::A)).await.expect("an answer");
    drop(one);
    tokio::time::sleep(50 * MS).await;
    let error = group.exchange(&query("b.example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
    let _back = Scripted::start_at(address, well_behaved).await;
    group.exchange(&query("c.example.org", Qtype::A)).await.expect("an answer");
    assert!(!group.is_down());
}

#[tokio::test]
async fn ten_thousand_forged_responses_are_worth_nothing() {
    let one = Scripted::start(|seen| {
        let good = Act::Send(message::answer_a(&seen.wire, [192, 0, 2, 1], 60));
        let forged = |id: u16| {
            let mut forged = message::answer_a(&seen.wire, [192, 0, 2, 66], 60);
            forged[..2].copy_from_slice(&id.to_be_bytes());
            Act::Send(forged)
        };
        let own = seen.id();
        let guesses = (1..=100u16).map(|step| forged(own.wrapping_add(step * 331)));
        guesses.chain([good]).collect()
    })
    .await;
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&forward(), &[udp(&one)]);
    for n in 0..100 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        let received = group.exchange(&query).await.expect("an answer");
        assert!(received.encoded.as_wire().ends_with(&[192, 0, 2, 1]));
    }
    let ignored = metrics.upstream(&one.address.to_string()).mismatched.get();
    assert_eq!(ignored, 6_400, "after 64 on one tuple the query goes by TCP");
    assert_eq!(one.seen().iter().filter(|seen| seen.by_tcp).count(), 100);
}
