//! Off-path and broken responses: ignored and counted, and the exchange goes on waiting.

use std::time::Duration;

use crate::harness::message::flag;
use crate::harness::wire;
use crate::harness::{Action, Setup, Sink, ask, qtype, rcode, sink};

/// Sends `forged` first and the true response behind it.
fn forged_first(forge: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Sink {
    Sink::start(move |seen| {
        let forged = seen.reply().a(seen, 300, [203, 0, 113, 66]).into_wire();
        let honest = sink::ordinary(seen).into_wire();
        Action::SendAll(vec![forge(forged), honest])
    })
}

/// Asserts that the answer is the honest one and that the forged one was counted.
fn assert_ignored(what: &str, forge: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) {
    let sink = forged_first(forge);
    let daemon = Setup::towards(sink.address).start();
    let before = daemon.metric("nodens_upstream_mismatched_total", "");
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "{what}");
    assert!(daemon.metric("nodens_upstream_mismatched_total", "") > before, "{what}: counted");
    assert_eq!(sink.seen_for("www.example.org.").len(), 1, "{what}: no query more");
}

#[test]
fn a_response_with_another_id_is_ignored() {
    assert_ignored("the id", |mut wire| {
        wire[0] ^= 0x55;
        wire
    });
}

#[test]
fn a_response_to_another_question_is_ignored() {
    assert_ignored("the name", |mut wire| {
        wire[13] ^= 0x01;
        wire
    });
    assert_ignored("the type", |mut wire| {
        let at = 12 + "\x03www\x07example\x03org\0".len();
        wire[at + 1] = 28;
        wire
    });
}

#[test]
fn a_response_without_a_question_is_ignored() {
    assert_ignored("no question", |wire| {
        let mut bare = wire[..12].to_vec();
        bare[4..12].fill(0);
        bare
    });
}

#[test]
fn a_query_that_comes_back_is_ignored() {
    assert_ignored("QR clear", |mut wire| {
        wire[2] &= 0x7f;
        wire
    });
}

#[test]
fn a_malformed_response_is_ignored() {
    assert_ignored("cut off", |mut wire| {
        wire.truncate(wire.len() - 2);
        wire
    });
    assert_ignored("less than a header", |wire| wire[..7].to_vec());
    assert_ignored("a record counted that is not there", |mut wire| {
        wire[7] += 1;
        wire
    });
}

#[test]
fn a_response_from_another_address_never_arrives() {
    let liar = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let sink = Sink::start(move |seen| {
        let forged = seen.reply().a(seen, 300, [203, 0, 113, 66]).into_wire();
        liar.send_to(&forged, seen.from).expect("the kernel takes the datagram");
        sink::ordinary(seen).after(Duration::from_millis(50))
    });
    let daemon = Setup::towards(sink.address).start();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
}

#[test]
fn records_that_do_not_answer_the_question_are_not_handed_on() {
    let sink = Sink::start(|seen| {
        let reply = seen.reply().answer("victim.example.net", qtype::A, 300, &[203, 0, 113, 66]);
        reply.a(seen, 300, [192, 0, 2, 7]).now()
    });
    let daemon = Setup::towards(sink.address).start();
    for _ in 0..2 {
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        let owners: Vec<_> = answer.answers.iter().map(|record| &*record.owner).collect();
        assert_eq!(owners, ["www.example.org."], "neither handed on nor cached");
    }
    let victim = wire::udp(daemon.address(), &ask("victim.example.net", qtype::A));
    assert!(
        !sink.seen_for("victim.example.net.").is_empty(),
        "asked for, not taken from elsewhere"
    );
    assert_eq!(victim.rcode(), rcode::NOERROR);
}

#[test]
fn retries_leave_with_another_id_from_another_port() {
    let sink = Sink::start(|_| Action::Ignore);
    let daemon = Setup::towards(sink.address).start_unready();
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.rcode(), rcode::SERVFAIL);
    let seen = sink.seen_for("www.example.org.");
    assert!(seen.len() > 1, "{} queries", seen.len());
    for (index, one) in seen.iter().enumerate() {
        for other in &seen[..index] {
            assert_ne!(one.from.port(), other.from.port(), "a retry leaves from another port");
        }
    }
    let ids: std::collections::HashSet<_> =
        seen.iter().map(|seen| seen.wire[..2].to_vec()).collect();
    assert!(ids.len() > 1, "ids are drawn anew");
    assert!(seen.iter().all(|seen| seen.wire[2] & (flag::RD >> 8) as u8 != 0), "RD is set");
}

#[test]
fn an_upstream_that_loses_the_questions_case_is_still_used() {
    let sink = Sink::start(|seen| {
        let mut reply = sink::ordinary(seen).into_wire();
        reply[12..].iter_mut().take(18).for_each(u8::make_ascii_lowercase);
        Action::Send(reply, Duration::ZERO)
    });
    let daemon = Setup::towards(sink.address).start_unready();
    for number in 0..20 {
        let name = format!("n{:03}.example.org.", number);
        let answer = wire::udp(daemon.address(), &ask(&name, qtype::A));
        assert_eq!((answer.rcode(), answer.data(qtype::A)), (rcode::NOERROR, vec!["192.0.2.7"]));
    }
}

#[test]
fn the_case_of_upstream_questions_is_drawn_at_random() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    for number in 0..40 {
        wire::udp(daemon.address(), &ask(&format!("n{number:03}.example.org."), qtype::A));
    }
    let seen = sink.seen();
    let mixed = seen.iter().filter(|seen| {
        let name = &seen.wire[12..30];
        name.iter().any(u8::is_ascii_uppercase) && name.iter().any(u8::is_ascii_lowercase)
    });
    assert!(mixed.count() > 20, "0x20 towards an upstream that echoes it");
}
