//! What an upstream did not say is not believed.

use super::*;

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

#[tokio::test]
async fn a_flood_of_forgeries_is_no_failure_of_an_upstream_without_tcp() {
    // Its TCP accepts and closes.
    let one = Scripted::start(|seen| match (seen.by_tcp, seen.index) {
        (true, _) => vec![Act::Close],
        (false, 0) => vec![Act::Send(b"garbage".to_vec()); 100],
        (false, _) => well_behaved(seen),
    })
    .await;
    let group = group(&[&one]);
    group.exchange(&query("example.org", Qtype::A)).await.expect("by another port");
    assert!(!group.is_down());
}
