//! Queries by TCP: truncation, pipelining, connections that break.

use super::*;

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
async fn what_comes_by_tcp_where_udp_cut_says_nothing_of_the_distance_by_udp() {
    let one = Scripted::start(|seen| match seen.by_tcp {
        true => [vec![Act::Wait(700 * MS)], well_behaved(seen)].concat(),
        false => send(message::truncated)(seen),
    })
    .await;
    // So patient that each is asked once by UDP.
    let wait = Duration::from_secs(30);
    let zone = Forward { timeout: wait, retransmit_min: wait, retransmit_max: wait, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        let began = Instant::now();
        group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
        longest = longest.max(began.elapsed());
    }
    let rtt = group.status().upstreams[0].rtt.expect("measured by the cut responses");
    assert!(rtt <= longest - 700 * MS, "{rtt:?} of {longest:?}, the wait by TCP among it");
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
        if seen.index < 6 {
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
