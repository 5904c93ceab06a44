//! Silence, loss, failures: who is asked next, and how soon.

use super::*;

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
async fn retries_and_hedges_are_counted_apart_for_each_upstream_and_zone() {
    let (dead, alive) = (Scripted::start(silent).await, Scripted::start(well_behaved).await);
    let (upstreams, metrics) = upstreams();
    let of = |scripted: &Scripted| metrics.upstream(&scripted.address.to_string());
    let corp = Forward { zone: Name::from_text("corp.example").expect("name"), ..eager() };
    let (both, lone) = (
        upstreams.group(&eager(), &[udp(&dead), udp(&alive)]),
        upstreams.group(&Forward { timeout: 500 * MS, ..corp }, &[udp(&dead)]),
    );
    // Whoever is drawn first: in the end the dead one was, or every one of 64 draws went the other way.
    for n in 0..64 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        both.exchange(&query).await.expect("an answer");
    }
    let hedges = of(&alive).hedges.get();
    assert!(hedges > 0, "asked while the silent one was waited for");
    assert_eq!(both.counters().hedges.get(), hedges + of(&dead).hedges.get());
    assert_eq!((lone.counters().retries.get(), lone.counters().hedges.get()), (0, 0));
    let (retries, before) = (of(&dead).retries.get(), both.counters().retries.get());
    lone.exchange(&query("example.org", Qtype::A)).await.expect_err("silence");
    let repeated = lone.counters().retries.get();
    assert!(repeated > 0, "nobody else to ask");
    assert_eq!(of(&dead).retries.get(), retries + repeated);
    assert_eq!((lone.counters().hedges.get(), both.counters().retries.get()), (0, before));
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
    // Where probes starve for half a second on a busy machine, it is right to take it for down: once in a few
    // times they do not. Without them it would be down each time.
    for _ in 0..12 {
        let (upstreams, metrics) = upstreams();
        let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
        let zone = Forward { timeout: Duration::from_secs(20), ..eager() };
        let group = upstreams.group(&zone, &[udp(&one)]);
        let mut asking = std::pin::pin!(async {
            group.exchange(&query("slow.example.org", Qtype::A)).await.expect("an answer");
        });
        let mut was_down = false;
        while tokio::time::timeout(5 * MS, &mut asking).await.is_err() {
            was_down |= group.is_down();
        }
        assert!(metrics.upstream(&one.address.to_string()).timeouts.get() > 5, "it was waited for");
        if !was_down {
            return;
        }
    }
    panic!("down each time");
}

#[tokio::test]
async fn a_closed_port_is_noticed_at_once() {
    for family in ["127.0.0.1:0", "[::1]:0"] {
        let holder = match std::net::UdpSocket::bind(family) {
            Ok(holder) => holder,
            Err(error) => {
                eprintln!("NOT RUN for {family}, which this machine does not have: {error}");
                assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {family}");
                continue;
            }
        };
        let address = holder.local_addr().expect("bound");
        // Connected, it takes nothing from us, so that the port is closed; held, no other test opens it meanwhile.
        holder.connect(address).expect("to itself");
        for ports in [PortPolicy::PerQuery, PortPolicy::Pooled] {
            let upstream = Upstream { address, transport: Transport::Udp };
            let (wait, (upstreams, metrics)) = (Duration::from_secs(30), upstreams());
            let timers = Forward { timeout: 2 * wait, retransmit_min: wait, ..forward() };
            let zone = Forward { ports, retransmit_max: wait, ..timers };
            let group = upstreams.group(&zone, &[upstream]);
            let error = group.exchange(&query("example.org", Qtype::A)).await;
            assert!(matches!(error, Err(ExchangeError::Unreachable { .. })), "{error:?}");
            let of = metrics.upstream(&address.to_string());
            assert_eq!((of.timeouts.get(), of.retries.get()), (0, 0), "no wait for a timer");
            assert!(group.is_down());
        }
    }
}

#[tokio::test]
async fn silence_ends_with_the_timeout_of_the_zone() {
    let one = Scripted::start(silent).await;
    let began = Instant::now();
    let zone = Forward { timeout: 1500 * MS, ..eager() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Timeout { .. })), "{error:?}");
    let waited = began.elapsed();
    assert!(waited >= 1500 * MS && waited < 4000 * MS, "{waited:?}");
    assert!((5..=30).contains(&one.count()), "{}", one.count());
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_noticed_within_two_seconds() {
    let (upstreams, metrics) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let gone = Scripted::start(silent).await;
    let address = gone.address;
    let is_down = || metrics.upstream(&address.to_string()).down.get() == 1;
    let group = upstreams.group(&forward(), &[udp(&gone)]);
    drop(gone);
    tokio::time::sleep(50 * MS).await;
    group.exchange(&query("example.org", Qtype::A)).await.expect_err("nobody listens");
    assert!(group.is_down() && !group.has_answered());
    tokio::time::sleep(600 * MS).await;
    assert!(group.is_down() && is_down(), "probes of a closed port bring nothing back");
    let back = Scripted::start_at(address, rcode(Rcode::REFUSED)).await;
    let began = Instant::now();
    while group.is_down() {
        assert!(began.elapsed() < Duration::from_secs(2), "still down");
        tokio::time::sleep(10 * MS).await;
    }
    assert!(group.has_answered() && back.count() > 0 && !is_down());
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
    let (upstreams, metrics) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let group = upstreams.group(&eager(), &[udp(&hung), udp(&alive)]);
    // A query that the other one gets second is one that the hung one got first. Counted, not timed: on a busy
    // machine any query may be slow.
    let felt = || metrics.upstream(&alive.address.to_string()).hedges.get();
    let (began, mut in_first_second) = (Instant::now(), 0);
    for n in 0.. {
        let elapsed = began.elapsed();
        if elapsed > Duration::from_secs(3) {
            break;
        }
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
        if elapsed < Duration::from_secs(1) {
            in_first_second = felt();
        }
        tokio::time::sleep(2 * MS).await;
    }
    assert!(in_first_second < 5, "{in_first_second} asked the hung one first");
    assert_eq!(felt(), in_first_second, "nobody after the first second");
    hung.behave(well_behaved);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let standing = group.status().upstreams.iter().map(|upstream| upstream.standing).max();
    assert_eq!(standing, Some(crate::upstream::health::Standing::Well));
}

#[tokio::test]
async fn an_upstream_that_hung_has_its_share_within_two_seconds_although_it_answers_what_lay_there()
{
    let (hung, alive) = (Scripted::start(well_behaved).await, Scripted::start(well_behaved).await);
    let (upstreams, _) = upstreams();
    let _rounds = tokio::task::JoinSet::from_iter([Arc::clone(&upstreams).maintain()]);
    let group = upstreams.group(&eager(), &[udp(&hung), udp(&alive)]);
    let mut number = 0;
    let mut ask_for = async |seconds| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(seconds) {
            number += 1;
            let query = query(&format!("n{number}.example.org"), Qtype::A);
            group.exchange(&query).await.expect("an answer");
            tokio::time::sleep(5 * MS).await;
        }
    };
    ask_for(1).await;
    let end = Instant::now() + Duration::from_secs(4);
    // What comes until then is answered then, as by a process that was stopped.
    hung.behave(move |seen| {
        let left = end.saturating_duration_since(Instant::now());
        [Act::Wait(left)].into_iter().chain(well_behaved(seen)).collect()
    });
    ask_for(4).await;
    hung.behave(well_behaved);
    ask_for(2).await;
    let before = (hung.count(), alive.count());
    ask_for(1).await;
    let since = (hung.count() - before.0, alive.count() - before.1);
    assert!(since.0 * 10 > since.1, "{since:?}");
}
