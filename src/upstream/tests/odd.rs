//! Upstreams with odd manners: OPT left out, messages sent back whole, TC with nothing behind it, few queries
//! per connection.

use super::*;

/// How long a lack is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The message without its OPT record, which comes last and has no options.
fn stripped(mut message: Vec<u8>) -> Vec<u8> {
    if message[10..12] != [0, 0] {
        message.truncate(message.len() - 11);
        message[11] = 0;
    }
    message
}

/// Lets `span` pass at once.
async fn skip(span: Duration) {
    tokio::time::pause();
    tokio::time::advance(span).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_upstream_that_leaves_opt_out_is_asked_without_it_for_a_while_but_for_do() {
    let one =
        Scripted::start(send(|wire| stripped(message::answer_a(wire, [192, 0, 2, 1], 60)))).await;
    let group = group(&[&one]);
    let plain = query("example.org", Qtype::A);
    let signed = Query { dnssec_ok: true, ..plain.clone() };
    for asked in [&plain, &plain, &plain, &plain, &signed, &plain] {
        group.exchange(asked).await.expect("an answer");
    }
    skip(REMEMBERED).await;
    group.exchange(&plain).await.expect("an answer");
    let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
    assert_eq!(edns, [true, true, true, false, true, false, true]);
    assert!(group.status().upstreams[0].has_edns, "tried again");
}

#[tokio::test]
async fn opt_that_is_left_out_of_some_answers_only_is_sent_on() {
    let one = Scripted::start(|seen| {
        let answer = message::answer_a(&seen.wire, [192, 0, 2, 1], 60);
        vec![Act::Send(if seen.index == 1 { answer } else { stripped(answer) })]
    })
    .await;
    // So long that whoever sent it has read the size that we take.
    let long = Scripted::start(send(|wire| {
        let text: &[u8] = &[&[200], &[b'x'; 200][..]].concat();
        stripped(message::answer(wire, &[(Qtype::TXT, 60, text); 4]))
    }))
    .await;
    for (upstream, qtype) in [(&one, Qtype::A), (&long, Qtype::TXT)] {
        let group = group(&[upstream]);
        for _ in 0..8 {
            group.exchange(&query("example.org", qtype)).await.expect("an answer");
        }
        assert!(upstream.seen().iter().all(|seen| message::has_edns(&seen.wire)), "{qtype}");
    }
}

#[tokio::test]
async fn a_long_answer_is_asked_for_with_opt_although_short_ones_lack_it() {
    let one = Scripted::start(|seen| {
        let text: &[u8] = &[&[200], &[b'x'; 200][..]].concat();
        vec![match (seen.qtype(), message::has_edns(&seen.wire)) {
            _ if seen.by_tcp => Act::Close,
            (Qtype::A, _) => Act::Send(stripped(message::answer_a(&seen.wire, [192, 0, 2, 1], 60))),
            (_, false) => Act::Send(message::truncated(&seen.wire)),
            (_, true) => {
                Act::Send(stripped(message::answer(&seen.wire, &[(Qtype::TXT, 60, text); 4])))
            }
        }]
    })
    .await;
    let group = group(&[&one]);
    for qtype in [Qtype::A, Qtype::A, Qtype::A, Qtype::A, Qtype::TXT, Qtype::TXT, Qtype::A] {
        let received = group.exchange(&query("example.org", qtype)).await.expect("an answer");
        assert!(received.encoded.has_answer());
    }
    let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
    assert_eq!(edns, [true, true, true, false, false, true, true, true]);
    assert!(one.seen().iter().all(|seen| !seen.by_tcp));
}

#[tokio::test]
async fn edns_is_not_given_up_for_a_query_that_is_not_answered_without_it_either() {
    let one = Scripted::start(send(|wire| match message::has_edns(wire) {
        true => message::empty(wire, Rcode::FORMERR),
        false => message::empty(wire, Rcode::SERVFAIL),
    }))
    .await;
    let group = group(&[&one]);
    group.exchange(&query("example.org", Qtype::A)).await.expect_err("SERVFAIL");
    let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
    assert_eq!(edns, [true, false]);
    assert!(group.status().upstreams[0].has_edns, "it may be the query that is odd");
}

#[tokio::test]
async fn who_sends_a_query_with_edns_back_whole_is_asked_without() {
    let one = Scripted::start(|seen| match message::has_edns(&seen.wire) {
        false => well_behaved(seen),
        true => {
            let mut echo = seen.wire.clone();
            (echo[2], echo[3]) = (echo[2] | 0x80, 1); // QR and FORMERR
            vec![Act::Send(echo)]
        }
    })
    .await;
    let group = group(&[&one]);
    for _ in 0..3 {
        group.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    }
    let edns: Vec<_> = one.seen().iter().map(|seen| message::has_edns(&seen.wire)).collect();
    assert_eq!(edns, [true, false, false, false]);
}

#[tokio::test]
async fn a_name_whose_case_is_not_echoed_is_answered_although_that_of_others_always_is() {
    let one = Scripted::start(send(|wire| {
        let mut answer = message::answer_a(wire, [192, 0, 2, 1], 60);
        if answer[13].eq_ignore_ascii_case(&b'o') {
            answer[12..40].make_ascii_lowercase();
        }
        answer
    }))
    .await;
    let zone = Forward { timeout: Duration::from_secs(8), ..forward() };
    let group = upstreams().0.group(&zone, &[udp(&one)]);
    let ask = |name: String| {
        let group = Arc::clone(&group);
        async move { group.exchange(&query(&name, Qtype::A)).await.expect("an answer") }
    };
    for n in 0..10 {
        ask(format!("n{n}.long-enough-a-name.example.org")).await;
    }
    assert!(group.status().upstreams[0].has_case);
    // Others go on being echoed meanwhile, so that the upstream never looks changed.
    let others = async {
        for n in 10.. {
            ask(format!("n{n}.long-enough-a-name.example.org")).await;
            tokio::time::sleep(5 * MS).await;
        }
    };
    tokio::select! {
        _ = ask("odd.long-enough-a-name.example.org".to_owned()) => {}
        () = others => {}
    }
    assert!(group.status().upstreams[0].has_case, "it is still held to the case");
}

#[tokio::test]
async fn tc_with_nothing_in_it_by_udp_and_tcp_is_a_failure_and_taken_elsewhere() {
    let empty = Scripted::start(send(message::truncated)).await;
    let good = Scripted::start(well_behaved).await;
    let error = group(&[&empty]).exchange(&query("example.org", Qtype::A)).await;
    assert!(
        matches!(&error, Err(ExchangeError::Failed { rcode: Rcode::SERVFAIL, .. })),
        "{error:?}"
    );
    for _ in 0..8 {
        let both = group(&[&empty, &good]);
        let received = both.exchange(&query("example.org", Qtype::A)).await.expect("an answer");
        assert_eq!(received.upstream.as_ref(), good.address.to_string());
    }
}

#[tokio::test]
async fn tc_in_a_header_alone_is_followed_by_tcp() {
    let one = Scripted::start(|seen| match seen.by_tcp {
        true => well_behaved(seen),
        false => {
            let mut cut = message::header(&seen.wire, Rcode::NOERROR);
            cut[2] |= 2;
            vec![Act::Send(cut)]
        }
    })
    .await;
    group(&[&one]).exchange(&query("example.org", Qtype::A)).await.expect("an answer");
    assert_eq!(one.seen().iter().map(|seen| seen.by_tcp).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn an_upstream_that_closes_after_a_few_answers_gets_the_rest_of_the_queries_again() {
    for few in [1, 3] {
        let one = Scripted::start(move |seen| {
            let mut acts = well_behaved(seen);
            if (seen.index + 1) % few == 0 {
                acts.push(Act::Close);
            }
            acts
        })
        .await;
        let upstream = Upstream { address: one.address, transport: Transport::Tcp };
        let zone = Forward { timeout: Duration::from_secs(20), ..forward() };
        let group = upstreams().0.group(&zone, &[upstream]);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..30 {
            let group = Arc::clone(&group);
            tasks.spawn(async move {
                let query = query(&format!("n{n}.example.org"), Qtype::A);
                group.exchange(&query).await.map(|_| ())
            });
        }
        for outcome in tasks.join_all().await {
            outcome.unwrap_or_else(|error| panic!("{few} per connection: {error}"));
        }
    }
}

#[tokio::test]
async fn who_answers_about_other_names_is_passed_over() {
    let record = message::record(b"\x06victim\x07example\x03net\0", Qtype::A, 60, &[192, 0, 2, 66]);
    let liar = Scripted::start(send(move |wire| {
        message::with_records(wire, Rcode::NOERROR, [std::slice::from_ref(&record), &[]])
    }))
    .await;
    let honest = Scripted::start(well_behaved).await;
    let both = group(&[&liar, &honest]);
    for number in 0..20 {
        let asked = query(&format!("{number}.example.org"), Qtype::A);
        assert!(both.exchange(&asked).await.expect("an answer").encoded.has_answer());
    }
    assert!(liar.count() > 0, "it was asked too");
    let failed = group(&[&liar]).exchange(&query("example.org", Qtype::A)).await;
    assert!(
        matches!(failed, Err(ExchangeError::Failed { rcode: Rcode::SERVFAIL, .. })),
        "{failed:?}"
    );
}
