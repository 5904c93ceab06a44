//! Source ports and kept sockets.

use super::*;

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
async fn a_message_that_finds_no_port_leaves_those_that_are_out_waited_for() {
    let one = Scripted::start(|seen| match seen.by_tcp {
        true => vec![Act::Close],
        false => [vec![Act::Wait(600 * MS)], well_behaved(seen)].concat(),
    })
    .await;
    let first = 15_000 + 3 * (one.address.port() % 1_000);
    let range = PortRange { first, last: first + 2, reserved: Vec::new() };
    let upstreams = Arc::new(Upstreams::new(range, 0, Metrics::new()));
    let zone = Forward { timeout: Duration::from_secs(20), ..eager() };
    let group = upstreams.group(&zone, &[udp(&one)]);
    group.exchange(&query("example.org", Qtype::A)).await.expect("the first is answered");
    let by_udp = one.seen().iter().filter(|seen| !seen.by_tcp).count();
    assert!(by_udp < one.count(), "{by_udp} by UDP, the others had no port");
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
async fn a_pooled_socket_is_closed_after_128_exchanges() {
    let one = Scripted::start(well_behaved).await;
    let zone = Forward { ports: PortPolicy::Pooled, ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    for n in 0..129 {
        group.exchange(&query(&format!("n{n}.example.org"), Qtype::A)).await.expect("an answer");
    }
    let ports: Vec<_> = one.seen().iter().map(|seen| seen.from.port()).collect();
    assert!(ports[..128].iter().all(|port| *port == ports[0]), "one at a time needs one socket");
    assert_ne!(ports[128], ports[0]);
}

#[tokio::test]
async fn per_query_a_socket_is_used_again_but_never_its_port() {
    let one = Scripted::start(well_behaved).await;
    // The kernel's own range, where it lets sockets move.
    let range = PortRange { first: 32_768, last: 60_999, reserved: Vec::new() };
    let upstreams = Arc::new(Upstreams::new(range, 0, Metrics::new()));
    let group = upstreams.group(&forward(), &[udp(&one)]);
    for n in 0..30 {
        let qtype = if n % 2 == 0 { Qtype::A } else { Qtype::AAAA };
        let query = query(&format!("n{n}.example.org"), qtype);
        group.exchange(&query).await.expect("an answer");
    }
    let seen = one.seen();
    let class_of = |seen: &Seen| PortClass::of_qtype(seen.qtype());
    assert!(seen.iter().all(|seen| PortClass::of_port(seen.from.port()) == class_of(seen)));
    let ports: std::collections::HashSet<_> = seen.iter().map(|seen| seen.from.port()).collect();
    assert_eq!(ports.len(), seen.len(), "each query has a port of its own");
    let pool = &group.members.load()[0].peer.pool;
    match pool.take_spare() {
        Some(_) => assert!(pool.take_spare().is_none(), "one socket is enough for one at a time"),
        None => eprintln!("skipped: this kernel lets no socket give its port back"),
    }
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
async fn beyond_2048_in_flight_a_class_goes_by_tcp_and_the_others_do_not() {
    let one = Scripted::start(well_behaved).await;
    let group = group(&[&one]);
    let peer = Arc::clone(&group.members.load()[0].peer);
    let mut others: Vec<_> = (0..2048).map(|_| peer.enter(PortClass::A)).collect();
    assert!(others.iter().all(Option::is_some));
    assert!(peer.enter(PortClass::A).is_none());
    for (name, qtype, by_tcp) in [("a", Qtype::A, true), ("b", Qtype::AAAA, false)] {
        let query = query(&format!("{name}.example.org"), qtype);
        group.exchange(&query).await.expect("an answer");
        assert_eq!(one.seen().last().map(|seen| seen.by_tcp), Some(by_tcp), "{name}");
    }
    others.pop();
    group.exchange(&query("c.example.org", Qtype::A)).await.expect("an answer");
    assert_eq!(one.seen().last().map(|seen| seen.by_tcp), Some(false));
}
