//! SIGTERM: what is owed is sent, nothing new is taken, exit code 0.

use std::collections::HashSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::wire::PATIENCE;
use crate::harness::{
    Action, Answer, Daemon, Knot, Setup, Sink, Tcp, Udp, ask, needs, qtype, rcode, sink, until,
};

/// An upstream that takes 800 ms, and a daemon in front of it.
fn slow() -> (Sink, Daemon) {
    let sink = Sink::start(|seen| sink::ordinary(seen).after(Duration::from_millis(800)));
    let daemon = Setup::towards(sink.address).start();
    (sink, daemon)
}

#[test]
fn what_is_in_flight_is_answered_before_the_exit() {
    let (sink, mut daemon) = slow();
    let question = ask("www.example.org", qtype::A);
    let stub = Udp::to(daemon.address());
    let mut stream = Tcp::to(daemon.address());
    stub.send(&question.to_wire());
    stream.send(&ask("other.example.org", qtype::A).to_wire());
    assert!(until(PATIENCE, || sink
        .seen()
        .iter()
        .filter(|s| s.qname.ends_with("example.org."))
        .count()
        >= 2));
    let start = Instant::now();
    daemon.process.signal(libc::SIGTERM);
    let answer = stub.answer_to(question.id, PATIENCE).expect("the UDP response owed");
    assert_eq!(answer.rcode(), rcode::NOERROR);
    assert!(stream.receive(PATIENCE).is_some(), "the TCP response owed");
    let status = daemon.process.wait(Duration::from_secs(6)).expect("an end");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(start.elapsed() < Duration::from_secs(4), "as soon as nothing is owed");
}

#[test]
fn the_deadline_ends_a_drain_that_would_never_end() {
    let sink = Sink::start(|seen| match seen.qname.starts_with("hang") {
        true => Action::Ignore,
        false => sink::ordinary(seen).now(),
    });
    let mut daemon = Setup::towards(sink.address)
        .forward("timeout = \"20s\"")
        .tables("[serve]\ndrain = \"1s\"")
        .start();
    let stub = Udp::to(daemon.address());
    stub.send(&ask("hang.example.org", qtype::A).to_wire());
    assert!(until(PATIENCE, || !sink.seen_for("hang.example.org.").is_empty()));
    let start = Instant::now();
    daemon.process.signal(libc::SIGTERM);
    let status = daemon.process.wait(Duration::from_secs(10)).expect("an end");
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!((Duration::from_millis(800)..Duration::from_secs(3)).contains(&took), "{took:?}");
}

#[test]
fn idle_connections_do_not_hold_the_exit_and_end_by_fin() {
    let (_sink, mut daemon) = slow();
    let mut idle: Vec<Tcp> = (0..5).map(|_| Tcp::to(daemon.address())).collect();
    idle[0].exchange(&ask("www.example.org", qtype::A));
    let start = Instant::now();
    daemon.process.signal(libc::SIGTERM);
    for stream in &mut idle {
        assert!(stream.ends_within(Duration::from_secs(3)), "an idle connection is closed");
    }
    let status = daemon.process.wait(Duration::from_secs(6)).expect("an end");
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn no_new_connection_is_taken_while_draining() {
    let (sink, mut daemon) = slow();
    let address = daemon.address();
    let stub = Udp::to(address);
    stub.send(&ask("www.example.org", qtype::A).to_wire());
    assert!(until(PATIENCE, || !sink.seen_for("www.example.org.").is_empty()));
    daemon.process.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    let refused = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err();
    let ended = daemon.process.ended().is_some();
    assert!(refused && !ended, "refused {refused}, ended {ended}");
    daemon.process.wait(Duration::from_secs(6)).expect("an end");
}

#[test]
fn an_idle_daemon_leaves_at_once() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut daemon = Setup::towards(sink.address).start();
        let start = Instant::now();
        daemon.process.signal(signal);
        let status = daemon.process.wait(Duration::from_secs(6)).expect("an end");
        assert_eq!(status.code(), Some(0), "signal {signal}: {}", daemon.log());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(!daemon.place.path("admin.sock").exists(), "the socket file is cleared away");
    }
}

#[test]
fn sigterm_under_load_loses_nothing_that_was_received() {
    needs!("knotd");
    let knot = Knot::start();
    let mut daemon = Setup::towards(knot.address).start();
    let stub = Udp::to(daemon.address());
    let mut owed = HashSet::new();
    // Misses and hits by turns, 20 in flight; SIGTERM falls in the middle.
    for number in 0..2000u16 {
        let name = if number % 4 == 0 { "www".to_owned() } else { format!("u{number}.wild") };
        let mut ask = ask(&format!("{name}.example.org"), qtype::A);
        ask.id = number;
        if number == 1000 {
            daemon.process.signal(libc::SIGTERM);
        }
        // Sent before the signal is handled or refused by ICMP afterwards: both are honest.
        if stub.0.send(&ask.to_wire()).is_err() {
            break;
        }
        if number < 1000 {
            owed.insert(number);
        }
        while owed.len() > 20 {
            let wire = stub.receive(PATIENCE).expect("a response");
            owed.remove(&Answer::read(&wire).id);
        }
    }
    while let Some(wire) = stub.receive(Duration::from_millis(500)) {
        owed.remove(&Answer::read(&wire).id);
    }
    assert!(owed.is_empty(), "sent before SIGTERM and never answered: {owed:?}");
    let status = daemon.process.wait(Duration::from_secs(8)).expect("an end");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let sink = Sink::start(|seen| match seen.qname.starts_with("hang") {
        true => Action::Ignore,
        false => sink::ordinary(seen).now(),
    });
    let mut daemon = Setup::towards(sink.address).start();
    Udp::to(daemon.address()).send(&ask("hang.example.org", qtype::A).to_wire());
    assert!(until(PATIENCE, || !sink.seen_for("hang.example.org.").is_empty()));
    daemon.process.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    daemon.process.signal(libc::SIGTERM);
    let status = daemon.process.wait(Duration::from_secs(6)).expect("an end");
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
