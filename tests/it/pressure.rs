//! Stub resolvers that want too much: answers nobody reads, queries without end, every descriptor.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::harness::wire::{PATIENCE, framed};
use crate::harness::{
    Action, Answer, Daemon, Place, Seen, Setup, Sink, Tcp, Udp, ask, flag, qtype, rcode, sink,
    until,
};

/// A script that answers TXT by TCP with a message of about `size` bytes.
fn large(size: usize) -> impl Fn(&Seen) -> Action {
    move |seen| {
        if seen.qtype != qtype::TXT {
            return sink::ordinary(seen).now();
        }
        if !seen.by_tcp {
            let mut cut = seen.reply().into_wire();
            cut[2] |= 2;
            return Action::Send(cut, Duration::ZERO);
        }
        let text = [&[200][..], &[b'x'; 200]].concat();
        let record = seen.qname.len() + 1 + 10 + text.len();
        let fitting = (size - seen.wire.len()) / record;
        let reply = (0..fitting)
            .fold(seen.reply(), |reply, _| reply.answer(&seen.qname, qtype::TXT, 300, &text));
        let wire = reply.into_wire();
        // The last record grows until the size is reached; its string lengths stay right.
        Action::Send(stretched(wire, size, text.len()), Duration::ZERO)
    }
}

/// `wire` with strings added to its last record, whose data has `last` bytes, up to `size` bytes.
fn stretched(mut wire: Vec<u8>, size: usize, last: usize) -> Vec<u8> {
    let length_at = wire.len() - last - 2;
    let mut data = last;
    while wire.len() < size {
        let string = (size - wire.len() - 1).min(255);
        wire.push(string as u8);
        wire.extend(std::iter::repeat_n(b'y', string));
        data += 1 + string;
    }
    wire[length_at..length_at + 2].copy_from_slice(&(data as u16).to_be_bytes());
    wire
}

#[test]
fn the_largest_message_is_answered_from_the_cache_too() {
    let upstream = Sink::start(large(65_535));
    let daemon = Setup::towards(upstream.address).start();
    for round in 0..3 {
        let answer = Tcp::to(daemon.address()).exchange(&ask("big.example.org", qtype::TXT));
        // With an OPT record of ours it is longer than a message can be: the last record stays out.
        assert_eq!(answer.rcode(), rcode::NOERROR, "round {round}");
        assert!(answer.has(flag::TC) && answer.answers.len() > 100, "round {round}");
    }
}

#[test]
fn stub_resolvers_that_do_not_read_hold_little_memory_and_not_for_long() {
    let upstream = Sink::start(large(60_000));
    let daemon = Setup::towards(upstream.address).start();
    let question = ask("big.example.org", qtype::TXT);
    Tcp::to(daemon.address()).exchange(&question);
    let before = daemon.process.resident();
    let many = framed(&question.to_wire()).repeat(300);
    let mut stubs = Vec::new();
    for _ in 0..60 {
        let mut stub = Tcp::to(daemon.address());
        stub.0.set_nonblocking(true).expect("a socket");
        // What the kernel does not take is as good as unsent.
        let _ = stub.0.write(&many);
        stubs.push(stub);
    }
    std::thread::sleep(Duration::from_secs(3));
    let more = daemon.process.resident().saturating_sub(before) >> 20;
    // Unbounded they hold 64 responses of 60 KB each, which is 220 MiB.
    assert!(more < 40, "{more} MiB more");
    assert!(daemon.metric("nodens_tcp_connections", "") > 0.0);
    let all_gone = || daemon.metric("nodens_tcp_connections", "") == 0.0;
    assert!(until(Duration::from_secs(30), all_gone), "given up in the end");
}

#[test]
fn a_query_longer_than_any_is_malformed_and_the_next_one_is_read() {
    let upstream = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(upstream.address).start();
    let mut stream = Tcp::to(daemon.address());
    let question = ask("www.example.org", qtype::A);
    let long = [&question.to_wire()[..12], &[1; 60_000]].concat();
    stream.send(&long);
    let refused = stream.receive(PATIENCE).expect("an answer");
    assert_eq!((refused.len(), u16::from(refused[3] & 0xf)), (12, rcode::FORMERR));
    assert_eq!(stream.exchange(&question).rcode(), rcode::NOERROR);
}

#[test]
fn connections_leave_descriptors_for_upstreams() {
    let upstream = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(upstream.address)
        .tables("[serve]\ntcp_connections_per_source = 4096")
        .files_limit(256)
        .start();
    let stubs: Vec<_> = (0..400).map(|_| std::net::TcpStream::connect(daemon.address())).collect();
    std::thread::sleep(Duration::from_millis(500));
    for number in 0..20 {
        let question = ask(&format!("n{number}.example.org"), qtype::A);
        assert_eq!(Udp::to(daemon.address()).exchange(&question).rcode(), rcode::NOERROR);
    }
    drop(stubs);
}

/// A second instance on the port of `first`, before `upstream`.
fn successor(first: &Daemon, upstream: SocketAddr) -> Daemon {
    let place = Place::new();
    let text = format!(
        "listen = [\"127.0.0.1:{}\"]\n[admin]\nlisten = []\nsocket = {:?}\n\
         [[forward]]\nzone = \".\"\nupstreams = [\"{upstream}\"]\n",
        first.port,
        place.path("admin.sock")
    );
    let file = place.write("nodens.toml", &text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.arg("run").arg("--take-over").arg("--config").arg(file);
    let mut daemon = Daemon::run(command, place, first.port, text);
    daemon.wait_for("/readyz");
    daemon
}

#[test]
fn an_instance_that_still_owes_responses_takes_no_query_from_its_successor() {
    let upstream = Sink::start(|seen| match seen.qname.starts_with("slow") {
        true => sink::ordinary(seen).after(Duration::from_secs(2)),
        false => sink::ordinary(seen).now(),
    });
    let mut old = Setup::towards(upstream.address).listen("127.0.0.1").start();
    // It owes responses on each of its sockets: they stay open.
    let slow: Vec<_> = (0..12)
        .map(|number| {
            let (stub, question) =
                (Udp::to(old.address()), ask(&format!("slow{number}.example.org"), qtype::A));
            stub.send(&question.to_wire());
            (stub, question)
        })
        .collect();
    assert!(until(PATIENCE, || {
        slow.iter().all(|(_, asked)| !upstream.seen_for(&format!("{}.", asked.qname)).is_empty())
    }));
    let new = successor(&old, upstream.address);
    old.process.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..40 {
        let (stub, question) = (Udp::to(new.address()), ask("localhost", qtype::A));
        stub.send(&question.to_wire());
        assert!(stub.answer_to(question.id, Duration::from_secs(5)).is_some(), "swallowed");
    }
    for (stub, question) in &slow {
        let owed = stub.receive(PATIENCE).expect("the response owed");
        assert_eq!(Answer::read(&owed).id, question.id);
    }
    assert_eq!(old.process.wait(PATIENCE).expect("an end").code(), Some(0), "{}", old.log());
}

#[test]
fn more_queries_than_may_be_resolved_at_one_time_wait_and_are_answered() {
    let upstream = Sink::start(|seen| sink::ordinary(seen).after(Duration::from_millis(200)));
    let daemon =
        Setup::towards(upstream.address).tables("[serve]\nmax_in_flight = 100").start_unready();
    let stubs: Vec<_> = (0..300)
        .map(|number| {
            let stub = Udp::to(daemon.address());
            let question = ask(&format!("n{number}.example.org"), qtype::A);
            stub.send(&question.to_wire());
            (stub, question)
        })
        .collect();
    for (stub, question) in &stubs {
        let answer = stub.answer_to(question.id, PATIENCE).expect("answered");
        assert_eq!(answer.rcode(), rcode::NOERROR, "{}", question.qname);
    }
    assert_eq!(daemon.metric("nodens_queries_shed_total", ""), 0.0);
}

#[test]
fn a_query_that_waits_in_vain_is_answered_once_and_counted_once() {
    let upstream = Sink::start(|_| Action::Ignore);
    let zone = format!(
        "[[forward]]\nzone = \"slow.example\"\nupstreams = [\"{}\"]\ntimeout = \"3s\"\n\
         [serve]\nmax_in_flight = 100",
        upstream.address
    );
    let daemon = Setup::towards(upstream.address).tables(&zone).start_unready();
    let stub = Udp::to(daemon.address());
    let asked = 150;
    for number in 0..asked {
        stub.send(&ask(&format!("n{number}.slow.example"), qtype::A).to_wire());
    }
    for number in 0..asked {
        assert!(stub.receive(PATIENCE).is_some(), "{number} were answered");
    }
    // Who had its turn after three seconds got SERVFAIL at 4.5 s, and its exchange ends at six.
    let ended = until(PATIENCE, || daemon.metric("nodens_queries_in_flight", "") == 0.0);
    assert!(ended, "{}", daemon.log());
    assert!(daemon.metric("nodens_queries_shed_total", "") > 0.0, "some waited in vain");
    let counted = daemon.metric("coredns_dns_responses_total", "");
    assert_eq!(counted, f64::from(asked), "{}", daemon.log());
}
