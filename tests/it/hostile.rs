//! Hostile packets: whatever comes, the daemon lives and every response belongs to its asker.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::harness::message::{Answer, flag, u16_at};
use crate::harness::{Action, Knot, Setup, Sink, Tcp, Udp, ask, needs, qtype, rcode, sink, wire};

/// A generator that gives the same packets in every run (SplitMix64).
struct Chance(u64);

impl Chance {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// A valid query of a random kind.
fn valid(chance: &mut Chance) -> Vec<u8> {
    let names =
        ["www.example.org", "big.example.org", "nobody.example.org", "a.b.c.d.example.org", "."];
    let kinds = [qtype::A, qtype::AAAA, qtype::TXT, qtype::SRV, qtype::PTR, qtype::ANY];
    let ask = ask(names[chance.below(names.len())], kinds[chance.below(kinds.len())]);
    match chance.below(4) {
        0 => ask.plain(),
        1 => ask.dnssec_ok().option(10, &[7; 8]),
        2 => ask.option(8, &[0, 1, 24, 0, 192, 0, 2]),
        _ => ask,
    }
    .to_wire()
}

/// One to four random changes: flipped bits, other bytes, cuts, insertions, repeated parts.
fn mutate(wire: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        if wire.is_empty() {
            return;
        }
        let at = chance.below(wire.len());
        match chance.below(6) {
            0 => wire[at] ^= 1 << chance.below(8),
            1 => wire[at] = [0, 1, 63, 64, 0xc0, 0xff][chance.below(6)],
            2 => wire.truncate(at),
            3 => wire.insert(at, chance.below(256) as u8),
            4 => wire.extend_from_within(at..),
            _ => wire[at] = chance.below(256) as u8,
        }
    }
}

#[test]
fn ten_thousand_mutated_queries_leave_the_daemon_alive_and_its_answers_honest() {
    needs!("knotd");
    let knot = Knot::start();
    let mut daemon = Setup::towards(knot.address).start();
    let socket = Udp::to(daemon.address());
    let (mut chance, mut asked, mut answered) = (Chance(9), HashMap::new(), 0);
    let mut check = |reply: Vec<u8>, asked: &HashMap<u16, u32>| {
        let answer = Answer::read(&reply);
        assert!(answer.has(flag::QR), "{reply:02x?}");
        assert!(asked.contains_key(&answer.id), "an id that nobody sent: {reply:02x?}");
        answered += 1;
    };
    for number in 0..10_000 {
        let mut wire = valid(&mut chance);
        mutate(&mut wire, &mut chance);
        if let Some(id) = u16_at(&wire, 0) {
            *asked.entry(id).or_insert(0) += 1;
        }
        socket.send(&wire);
        // A window of 50 keeps the receive buffer from hiding what the daemon does.
        if number % 50 == 49 {
            while let Some(reply) = socket.receive(Duration::from_millis(20)) {
                check(reply, &asked);
            }
        }
    }
    while let Some(reply) = socket.receive(Duration::from_secs(5)) {
        check(reply, &asked);
    }
    eprintln!("{answered} of 10,000 mutated queries were answered");
    assert!(answered > 5000, "{answered}");
    assert!(daemon.process.ended().is_none(), "{}", daemon.log());
    assert_eq!(daemon.metric("coredns_panics_total", ""), 0.0, "{}", daemon.log());
    let after = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(after.data(qtype::A), ["192.0.2.1"]);
}

#[test]
fn a_thousand_mutated_queries_by_tcp_leave_the_daemon_alive() {
    needs!("knotd");
    let knot = Knot::start();
    let mut daemon = Setup::towards(knot.address).start();
    let mut chance = Chance(10);
    for _ in 0..1000 {
        let mut wire = valid(&mut chance);
        mutate(&mut wire, &mut chance);
        let mut stream = Tcp::to(daemon.address());
        let mut framed = wire::framed(&wire);
        if chance.below(10) == 0 {
            framed.truncate(chance.below(framed.len()) + 1);
        }
        let _ = std::io::Write::write_all(&mut stream.0, &framed);
        if chance.below(4) == 0 && wire.len() >= 12 && u16_at(&wire, 2).is_some_and(|f| f < 0x8000)
        {
            let reply = stream.receive(Duration::from_millis(300));
            let id = reply.as_deref().map(|reply| Answer::read(reply).id);
            assert!(id.is_none() || id == u16_at(&wire, 0));
        }
    }
    assert!(daemon.process.ended().is_none(), "{}", daemon.log());
    assert_eq!(daemon.metric("coredns_panics_total", ""), 0.0, "{}", daemon.log());
    let after = wire::tcp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(after.rcode(), rcode::NOERROR);
}

#[test]
fn three_thousand_mutated_upstream_responses_never_become_a_wrong_message() {
    let chance = Mutex::new(Chance(11));
    let sink = Sink::start(move |seen| {
        let honest = sink::ordinary(seen).into_wire();
        let mut forged = honest.clone();
        let chance = &mut chance.lock().expect("no panic");
        mutate(&mut forged, chance);
        // What is ignored must not end the exchange: the honest response comes behind.
        Action::SendAll(vec![forged, honest])
    });
    let mut daemon = Setup::towards(sink.address).start_unready();
    let socket = Udp::to(daemon.address());
    for number in 0..3000 {
        let kind = [qtype::A, qtype::AAAA, qtype::TXT][number % 3];
        let ask = ask(&format!("n{number}.example.org."), kind);
        let answer = socket.exchange(&ask);
        assert_eq!(answer.question, Some((ask.qname.clone(), kind, 1)));
        assert!(matches!(answer.rcode(), rcode::NOERROR | rcode::NXDOMAIN | rcode::SERVFAIL));
        for record in answer.answers.iter().chain(&answer.authority) {
            assert!(record.ttl <= 7 * 86_400, "{record:?}");
        }
        assert!(answer.wire.len() <= 1232);
    }
    assert!(daemon.process.ended().is_none(), "{}", daemon.log());
    assert_eq!(daemon.metric("coredns_panics_total", ""), 0.0, "{}", daemon.log());
}
