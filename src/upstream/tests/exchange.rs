//! What an exchange gives back, and what it remembers of an upstream.

use super::*;

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
async fn a_negative_response_is_no_failure() {
    for code in [Rcode::NXDOMAIN, Rcode::NOERROR] {
        let one = Scripted::start(send(move |wire| message::negative(wire, code, 60))).await;
        let received = group(&[&one]).exchange(&query("example.org", Qtype::A)).await;
        assert!(received.expect("an answer").encoded.is_negative());
        assert_eq!(one.count(), 1);
    }
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
async fn a_group_without_upstreams_says_so() {
    let error = group(&[]).exchange(&query("example.org", Qtype::A)).await;
    assert!(matches!(error, Err(ExchangeError::NoUpstream)), "{error:?}");
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
