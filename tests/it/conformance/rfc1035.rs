//! Messages, and what a malformed one gets (DESIGN §8).

use crate::harness::message::{Answer, Ask, u16_at};
use crate::harness::wire::{self, PATIENCE, SILENCE};
use crate::harness::{Daemon, Setup, Sink, Tcp, Udp, ask, flag, qtype, rcode, sink};

/// A scripted upstream where every name exists, and a daemon in front of it.
fn parts() -> (Sink, Daemon) {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    (sink, daemon)
}

fn question() -> Ask {
    ask("www.example.org", qtype::A)
}

/// The ordinary query with two bytes at `at` changed.
fn with(at: usize, value: u16) -> Vec<u8> {
    let mut wire = question().plain().to_wire();
    wire[at..at + 2].copy_from_slice(&value.to_be_bytes());
    wire
}

/// The RCODE that comes back by UDP and by TCP, which must be the same; `None` is silence.
fn verdict(daemon: &Daemon, what: &str, bytes: &[u8]) -> Option<u16> {
    let by_udp = wire::raw_udp(daemon.address(), bytes).map(|reply| Answer::read(&reply));
    if let Some(answer) = &by_udp {
        assert_eq!(answer.id, u16_at(bytes, 0).expect("a header"), "{what}: the id");
        assert!(answer.has(flag::QR), "{what}: QR");
        let (sent, came) = (u16_at(bytes, 2).expect("flags") & 0x7800, answer.flags & 0x7800);
        assert_eq!(sent, came, "{what}: the opcode");
    }
    let by_udp = by_udp.map(|answer| answer.rcode());
    let mut stream = Tcp::to(daemon.address());
    stream.send(bytes);
    let wait = if by_udp.is_none() { SILENCE } else { PATIENCE };
    let by_tcp = stream.receive(wait).map(|reply| Answer::read(&reply).rcode());
    assert_eq!(by_udp, by_tcp, "{what}: by UDP and by TCP");
    by_udp
}

#[test]
fn malformed_queries_are_answered_formerr_where_a_header_can_be_read() {
    let (sink, daemon) = parts();
    let plain = question().plain().to_wire();
    let mut trailing = plain.clone();
    trailing.push(0);
    let long_label = [&plain[..12], &[64; 65], &[0, 0, 1, 0, 1]].concat();
    let label = [&[63][..], &[b'a'; 63]].concat();
    let long_name = [&plain[..12], &label.repeat(4), &[0, 0, 1, 0, 1]].concat();
    let forward_pointer = [&plain[..12], &[0xc0, 0x20, 0, 1, 0, 1]].concat();
    let own_pointer = [&plain[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    for (what, bytes) in [
        ("no question", with(4, 0)[..12].to_vec()),
        ("a question counted, none there", plain[..12].to_vec()),
        ("a name cut off", plain[..20].to_vec()),
        ("a type cut off", plain[..plain.len() - 3].to_vec()),
        ("an answer counted, none there", with(6, 1)),
        ("an additional record counted, none there", with(10, 1)),
        ("65,535 records counted", with(10, 0xffff)),
        ("bytes behind the end", trailing),
        ("a label of 64 bytes", long_label),
        ("a name of 257 bytes", long_name),
        ("a pointer forwards", forward_pointer),
        ("a pointer to itself", own_pointer),
    ] {
        assert_eq!(verdict(&daemon, what, &bytes), Some(rcode::FORMERR), "{what}");
    }
    assert!(sink.seen_for("www.example.org.").is_empty(), "nothing of it goes upstream");
}

#[test]
fn what_has_no_whole_header_is_met_with_silence() {
    let (_sink, daemon) = parts();
    for len in 0..12 {
        let bytes = &question().to_wire()[..len];
        assert_eq!(wire::raw_udp(daemon.address(), bytes), None, "{len} bytes");
    }
    assert_eq!(wire::udp(daemon.address(), &question()).rcode(), rcode::NOERROR);
}

#[test]
fn responses_are_met_with_silence() {
    let (sink, daemon) = parts();
    for flags in [0x8000, 0x8180, 0x8583, 0xf800, 0xffff] {
        assert_eq!(verdict(&daemon, "QR set", &with(2, flags)), None, "{flags:04x}");
    }
    let own = wire::udp(daemon.address(), &question());
    assert_eq!(wire::raw_udp(daemon.address(), &own.wire), None, "its own response sent back");
    assert_eq!(sink.seen_for("www.example.org.").len(), 1, "the one honest query");
}

#[test]
fn other_opcodes_are_not_implemented() {
    let (sink, daemon) = parts();
    for opcode in 1..16 {
        let bytes = with(2, opcode << 11 | flag::RD);
        assert_eq!(verdict(&daemon, "an opcode", &bytes), Some(rcode::NOTIMP), "opcode {opcode}");
    }
    assert!(sink.seen_for("www.example.org.").is_empty(), "nothing of it goes upstream");
}

#[test]
fn several_questions_are_a_format_error() {
    let (_sink, daemon) = parts();
    let mut bytes = with(4, 2);
    let second = bytes[12..].to_vec();
    bytes.extend(second);
    assert_eq!(verdict(&daemon, "two questions", &bytes), Some(rcode::FORMERR));
}

#[test]
fn zone_transfers_are_refused() {
    let (sink, daemon) = parts();
    for kind in [qtype::AXFR, qtype::IXFR] {
        let bytes = ask("example.org", kind).plain().to_wire();
        assert_eq!(verdict(&daemon, "a transfer", &bytes), Some(rcode::REFUSED), "type {kind}");
    }
    assert!(sink.seen_for("example.org.").is_empty(), "nothing of it goes upstream");
}

#[test]
fn a_response_carries_the_askers_id_question_and_case() {
    let (_sink, daemon) = parts();
    for name in ["www.example.org.", "WWW.EXAMPLE.ORG.", "wWw.ExAmPlE.oRg."] {
        for id in [0, 1, 0x7fff, 0xffff] {
            let mut ask = ask(name, qtype::A);
            ask.id = id;
            let answer = wire::udp(daemon.address(), &ask);
            assert_eq!(answer.id, id);
            assert_eq!(answer.question, Some((name.to_owned(), qtype::A, 1)));
            assert!(answer.has(flag::QR) && answer.has(flag::RD) && answer.has(flag::RA));
            assert!(answer.additional.is_empty(), "nothing that the upstream did not send");
            assert!(!answer.has(flag::AA) && !answer.has(flag::TC) && !answer.has(flag::Z));
        }
    }
}

#[test]
fn other_classes_than_internet_are_not_forwarded_as_if_they_were() {
    let (_sink, daemon) = parts();
    let (mut chaos, internet) = (question(), question());
    chaos.qclass = 3;
    let first = wire::udp(daemon.address(), &internet);
    assert_eq!(first.data(qtype::A), ["192.0.2.7"]);
    let other = wire::udp(daemon.address(), &chaos);
    assert_eq!(other.question.as_ref().map(|question| question.2), Some(3));
    assert!(other.answers.iter().all(|record| record.class == 3), "no IN record under class CH");
}

#[test]
fn a_datagram_of_any_length_leaves_the_daemon_alive() {
    let (_sink, daemon) = parts();
    let socket = Udp::to(daemon.address());
    for len in (0..2000).step_by(37).chain([4096, 9000, 30_000, 65_507]) {
        socket.send(&vec![0; len]);
        socket.send(&vec![0x01; len]);
    }
    assert_eq!(wire::udp(daemon.address(), &question()).rcode(), rcode::NOERROR);
}
