//! Queries by TCP: truncation, pipelining, connections that break.

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};

use super::*;
use crate::upstream::connection::Connection;
use crate::upstream::dial::{Dial, Runtime};
use crate::upstream::lease::Ports;
use crate::upstream::tls::Trust;
use crate::upstream::verify::Verdict;

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
async fn an_upstream_that_has_cut_its_response_is_not_asked_again_while_tcp_takes_its_time() {
    let one = Scripted::start(|seen| match seen.by_tcp {
        true => [vec![Act::Wait(600 * MS)], well_behaved(seen)].concat(),
        false => send(message::truncated)(seen),
    })
    .await;
    let (upstreams, metrics) = upstreams();
    let zone = Forward { timeout: Duration::from_secs(8), ..eager() };
    let group = upstreams.group(&zone, &[udp(&one)]);
    let mut sent = 0;
    let metrics = metrics.upstream(&one.address.to_string());
    // On a busy machine the cut response may be later than a retransmission, not every time.
    for n in 0..10 {
        let (before, timeouts) = (one.count(), metrics.timeouts.get());
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
        sent = one.count() - before;
        if sent == 2 {
            assert_eq!(metrics.timeouts.get(), timeouts, "it has answered");
            break;
        }
    }
    assert_eq!(sent, 2, "once by UDP, once by TCP");
}

#[tokio::test]
async fn many_queries_share_one_tcp_connection_and_come_back_in_any_order() {
    let one = Scripted::start(|seen| {
        let wait = Act::Wait(MS * u32::from(seen.id() % 32));
        [vec![wait], well_behaved(seen)].concat()
    })
    .await;
    let group = upstreams().0.group(&forward(), &[tcp(&one)]);
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
    let group = upstreams().0.group(&forward(), &[tcp(&one)]);
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
    let group = upstreams().0.group(&forward(), &[tcp(&one)]);
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
async fn a_tcp_peer_that_answers_another_question_is_counted_and_waited_past() {
    let wrong = |seen: &Seen| {
        let mut wrong = message::answer_a(&seen.wire, [192, 0, 2, 66], 60);
        wrong[13] = b'z';
        Act::Send(wrong)
    };
    let one = Scripted::start(move |seen| [vec![wrong(seen)], well_behaved(seen)].concat()).await;
    let (upstreams, metrics) = upstreams();
    let group = upstreams.group(&forward(), &[tcp(&one)]);
    let metrics = metrics.upstream(&format!("tcp://{}", one.address));
    for _ in 0..3 {
        let received = group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
        assert!(received.encoded.as_wire().ends_with(&[192, 0, 2, 1]));
    }
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    assert_eq!((from.len(), metrics.mismatched.get(), metrics.queries.get()), (1, 3, 3));
    one.behave(move |seen| vec![wrong(seen)]);
    let error = group.exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::Timeout { .. })), "{error:?}");
    assert!(metrics.mismatched.get() > 3 && metrics.timeouts.get() > 0);
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_holds_up_nobody_who_could_be_answered_by_another() {
    // Its backlog holds one: the second connection's handshake never ends.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let one =
        Scripted::start(|seen| [vec![Act::Wait(300 * MS)], well_behaved(seen)].concat()).await;
    let onward = one.address;
    let relay = tokio::spawn(async move {
        let (mut from, _) = listener.accept().await.expect("one connection");
        // Fills the backlog, so that the kernel drops what comes next.
        let _fill = tokio::net::TcpStream::connect(address).await;
        let mut to = tokio::net::TcpStream::connect(onward).await.expect("it listens");
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        drop(listener);
    });
    let zone = Forward { timeout: Duration::from_secs(8), ..forward() };
    let group = upstreams().0.group(&zone, &[Upstream { address, transport: Transport::Tcp }]);
    group.exchange(&query("first.example.org", Qtype::A)).await.expect("an answer");
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let group = Arc::clone(&group);
        tasks.spawn(async move {
            let query = query(&format!("n{n}.example.org"), Qtype::A);
            group.exchange(&query).await.map(|_| began.elapsed())
        });
    }
    for outcome in tasks.join_all().await {
        let took = outcome.expect("an answer by the first connection");
        assert!(took < Duration::from_millis(2900), "{took:?}: it waited for a handshake");
    }
    relay.abort();
}

#[tokio::test]
async fn a_burst_of_queries_and_of_responses_is_read_to_its_end() {
    const MANY: usize = 240;
    let held = std::sync::Mutex::new(Vec::new());
    let one = Scripted::start(move |seen| {
        let mut held = held.lock().expect("no panic");
        let message = message::answer_a(&seen.wire, [192, 0, 2, 1], 60);
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        held.extend([&length, &message[..]].concat());
        if seen.index + 1 < MANY { Vec::new() } else { vec![Act::Raw(std::mem::take(&mut *held))] }
    })
    .await;
    let metrics = Metrics::new();
    let range = PortRange { first: 30_000, last: 60_999, reserved: Vec::new() };
    let dial = Dial {
        runtime: Runtime::new(Ports::new(range, 0, metrics.ports.clone())),
        address: one.address,
        transport: Transport::Tcp,
        trust: Arc::new(Trust::new(None)),
    };
    let place = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().expect("free");
    let connection = Arc::new(Connection::open(&dial, place));
    let metrics = metrics.upstream("one");
    let ask = |n: usize| {
        let (connection, metrics) = (Arc::clone(&connection), metrics.clone());
        async move {
            let asked = query(&format!("n{n}.example.org"), Qtype::A);
            let wire = asked.to_wire(0, asked.qname.as_wire(), true);
            let request = Message::from_vec(&wire).expect("a query");
            let request = DnsRequest::new(request, DnsRequestOptions::default());
            connection.ask(request, |_| Verdict::Truncated, &metrics).await.map(|_| ())
        }
    };
    let tasks: tokio::task::JoinSet<_> = (0..MANY).map(ask).collect();
    for outcome in tasks.join_all().await {
        outcome.expect("within the ten seconds after which hickory gives a query up");
    }
}

#[tokio::test]
async fn what_hickory_cannot_decode_is_an_answer_by_tcp_as_by_udp() {
    // Parameters out of order, which RFC 9460 has recipients reject; stub resolvers decide that.
    let odd = b"\x00\x01\x00\x00\x03\x00\x02\x01\xbb\x00\x01\x00\x03\x02h2";
    let one =
        Scripted::start(send(move |wire| message::answer(wire, &[(Qtype::HTTPS, 60, odd)]))).await;
    for upstream in [udp(&one), tcp(&one)] {
        let group = upstreams().0.group(&forward(), &[upstream]);
        let received =
            group.exchange(&query("example.org", Qtype::HTTPS)).await.expect("an answer");
        assert!(received.encoded.has_answer());
    }
}

#[tokio::test]
async fn edns_refused_by_tcp_is_remembered() {
    let one = Scripted::start(|seen| match message::has_edns(&seen.wire) {
        true => rcode(Rcode::FORMERR)(seen),
        false => well_behaved(seen),
    })
    .await;
    let group = upstreams().0.group(&forward(), &[tcp(&one)]);
    for _ in 0..3 {
        group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    }
    let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
    assert_eq!(edns, [true, false, false, false]);
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
    let group = upstreams().0.group(&forward(), &[tcp(&one)]);
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
    let zone = Forward { timeout: Duration::from_secs(4), ..forward() };
    let group = upstreams().0.group(&zone, &[tcp(&one)]);
    group.exchange(&query("n0.example.org", Qtype::A)).await.expect("an answer");
    let began = Instant::now();
    group.exchange(&query("n1.example.org", Qtype::A)).await.expect("by a second connection");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    assert_eq!((one.count(), from.len()), (3, 2));
}

#[tokio::test]
async fn a_response_that_drips_for_longer_than_a_connection_may_be_silent_is_taken() {
    let one = Scripted::start(|seen| {
        let message = message::answer_a(&seen.wire, [192, 0, 2, 1], 60);
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        let framed = [&length, &message[..]].concat();
        framed.chunks(5).flat_map(|part| [Act::Raw(part.to_vec()), Act::Wait(200 * MS)]).collect()
    })
    .await;
    let zone = Forward { timeout: Duration::from_secs(20), ..forward() };
    let group = upstreams().0.group(&zone, &[tcp(&one)]);
    let began = Instant::now();
    group.exchange(&query("example.org", Qtype::A)).await.expect("the whole, in the end");
    assert!(began.elapsed() > Duration::from_secs(2), "it dripped");
    assert!(one.count() <= 2, "{}", one.count());
}

#[tokio::test]
async fn an_upstream_that_is_silent_by_tcp_has_a_bounded_number_of_connections_and_comes_back() {
    let one = Scripted::start(silent).await;
    let zone = Forward { timeout: Duration::from_secs(3), ..forward() };
    let group = upstreams().0.group(&zone, &[tcp(&one)]);
    let ask = |n: usize| {
        let group = Arc::clone(&group);
        async move {
            tokio::time::sleep(2 * MS * u32::try_from(n).expect("few")).await;
            group.exchange(&query(&format!("n{n}.example.org"), Qtype::A)).await
        }
    };
    let began = Instant::now();
    let tasks: tokio::task::JoinSet<_> = (0..1500).map(ask).collect();
    assert!(tasks.join_all().await.iter().all(Result::is_err));
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    // At one time eight at most, each for 750 ms at least.
    let most = 8 * (began.elapsed().as_millis() / 750 + 1);
    assert!(from.len() as u128 <= most, "{} connections in {:?}", from.len(), began.elapsed());
    one.behave(well_behaved);
    ask(0).await.expect("an answer");
}

#[tokio::test]
async fn connections_to_an_endpoint_that_has_vanished_are_closed_at_once_with_what_is_on_them() {
    let one = Scripted::start(silent).await;
    let (upstreams, _) = upstreams();
    let peer = upstreams.peer(&tcp(&one), None);
    let asked = query("example.org", Qtype::A);
    let terms = crate::upstream::Terms { ports: PortPolicy::PerQuery, trust_ad: false };
    let attempt = crate::upstream::attempt::Attempt::new(Arc::clone(&peer), &asked, terms).run();
    let vanish = async {
        while one.count() == 0 {
            tokio::time::sleep(MS).await;
        }
        peer.vanish();
    };
    let (outcome, ()) = tokio::join!(tokio::time::timeout(500 * MS, attempt), vanish);
    outcome.expect("nobody listens to it any more");
    assert_eq!(peer.standing(), crate::upstream::Standing::Well, "that it is gone is no failure");
}

#[tokio::test]
async fn an_upstream_without_udp_that_fell_silent_comes_back_by_probes_alone() {
    let one = Scripted::start(well_behaved).await;
    let upstreams = upstreams().0;
    let group = upstreams.group(&forward(), &[tcp(&one)]);
    let maintenance = tokio::spawn(Arc::clone(&upstreams).maintain());
    let asked = query("example.org", Qtype::A);
    group.exchange(&asked).await.expect("an answer");
    one.behave(silent);
    while !group.is_down() {
        let many = std::iter::repeat_with(|| group.exchange(&asked)).take(5);
        assert!(futures_util::future::join_all(many).await.iter().all(Result::is_err));
    }
    one.behave(well_behaved);
    let back = async {
        while group.is_down() {
            tokio::time::sleep(10 * MS).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("it is back");
    maintenance.abort();
}

#[tokio::test]
async fn names_that_take_long_cost_one_more_connection_and_not_one_each() {
    let one = Scripted::start(|seen| [vec![Act::Wait(1000 * MS)], well_behaved(seen)].concat());
    let one = one.await;
    let zone = Forward { timeout: Duration::from_secs(20), ..forward() };
    let group = upstreams().0.group(&zone, &[tcp(&one)]);
    for n in 0..4 {
        let query = query(&format!("n{n}.example.org"), Qtype::A);
        group.exchange(&query).await.expect("an answer");
    }
    let from: std::collections::HashSet<_> = one.seen().iter().map(|seen| seen.from).collect();
    assert_eq!(from.len(), 2);
}
