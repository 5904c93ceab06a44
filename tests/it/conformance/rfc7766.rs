//! DNS over TCP: framing, pipelining, idle connections, limits, slow readers.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::harness::knot::HUGE;
use crate::harness::message::Answer;
use crate::harness::wire::{self, PATIENCE, framed};
use crate::harness::{Daemon, Knot, Setup, Sink, Tcp, ask, needs, qtype, rcode, sink, until};

/// An upstream that takes 400 ms for names that begin with `slow`.
fn uneven() -> Sink {
    Sink::start(|seen| match seen.qname.starts_with("slow") {
        true => sink::ordinary(seen).after(Duration::from_millis(400)),
        false => sink::ordinary(seen).now(),
    })
}

fn parts(tables: &str) -> (Sink, Daemon) {
    let sink = uneven();
    let daemon = Setup::towards(sink.address).tables(tables).start();
    (sink, daemon)
}

#[test]
fn pipelined_queries_are_answered_as_they_finish() {
    let (_sink, daemon) = parts("");
    let mut stream = Tcp::to(daemon.address());
    let (slow, fast) = (ask("slow.example.org", qtype::A), ask("fast.example.org", qtype::A));
    stream.send(&slow.to_wire());
    stream.send(&fast.to_wire());
    let ids: Vec<u16> =
        (0..2).map(|_| Answer::read(&stream.receive(PATIENCE).expect("a response")).id).collect();
    assert_eq!(ids, [fast.id, slow.id]);
}

#[test]
fn a_hundred_pipelined_queries_each_get_their_response() {
    let (_sink, daemon) = parts("");
    let mut stream = Tcp::to(daemon.address());
    let mut owed: Vec<_> = (0..100)
        .map(|number| {
            let mut ask = ask(&format!("n{number}.example.org."), qtype::A);
            ask.id = number;
            ask
        })
        .collect();
    let bytes: Vec<u8> = owed.iter().flat_map(|ask| framed(&ask.to_wire())).collect();
    stream.0.write_all(&bytes).expect("all in one write");
    while !owed.is_empty() {
        let answer = Answer::read(&stream.receive(PATIENCE).expect("a response"));
        let at = owed.iter().position(|ask| ask.id == answer.id).expect("an id that was asked");
        let ask = owed.swap_remove(at);
        assert_eq!(answer.question.map(|question| question.0), Some(ask.qname));
        assert_eq!(answer.answers.len(), 1);
    }
}

#[test]
fn a_message_may_come_in_pieces() {
    let (_sink, daemon) = parts("");
    let mut stream = Tcp::to(daemon.address());
    let ask = ask("www.example.org", qtype::A);
    for byte in framed(&ask.to_wire()) {
        stream.0.write_all(&[byte]).expect("one byte");
        std::thread::sleep(Duration::from_millis(3));
    }
    let answer = Answer::read(&stream.receive(PATIENCE).expect("a response"));
    assert_eq!((answer.id, answer.rcode()), (ask.id, rcode::NOERROR));
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let (_sink, daemon) = parts("[serve]\ntcp_idle = \"1s\"");
    let (mut idle, mut busy) = (Tcp::to(daemon.address()), Tcp::to(daemon.address()));
    idle.exchange(&ask("www.example.org", qtype::A));
    let start = Instant::now();
    for _ in 0..5 {
        busy.exchange(&ask("www.example.org", qtype::A));
        std::thread::sleep(Duration::from_millis(400));
    }
    assert!(idle.ends_within(Duration::from_secs(3)), "idle for {:?}", start.elapsed());
    busy.exchange(&ask("www.example.org", qtype::A));
}

#[test]
fn a_connection_that_never_sends_a_whole_message_is_closed() {
    let (_sink, daemon) = parts("[serve]\ntcp_idle = \"1s\"");
    let mut silent = Tcp::to(daemon.address());
    let mut partial = Tcp::to(daemon.address());
    partial.0.write_all(&[0, 40, 1, 2]).expect("a piece");
    assert!(silent.ends_within(Duration::from_secs(4)), "nothing sent");
    assert!(partial.ends_within(Duration::from_secs(4)), "a piece sent");
}

#[test]
fn after_a_half_close_what_is_owed_still_comes() {
    let (_sink, daemon) = parts("");
    let mut stream = Tcp::to(daemon.address());
    let slow = ask("slow.example.org", qtype::A);
    stream.send(&slow.to_wire());
    stream.0.shutdown(Shutdown::Write).expect("a FIN");
    let answer = Answer::read(&stream.receive(PATIENCE).expect("the response owed"));
    assert_eq!(answer.id, slow.id);
    assert!(stream.ends_within(PATIENCE), "and then the end");
}

#[test]
fn connections_of_one_source_are_capped_and_others_still_served() {
    needs!("::1");
    let limits = "[serve]\ntcp_connections = 20\ntcp_connections_per_source = 5";
    let (_sink, daemon) = parts(limits);
    let mut held: Vec<Tcp> = (0..12).map(|_| Tcp::to(daemon.address())).collect();
    let question = ask("www.example.org", qtype::A);
    let mut served = 0;
    for stream in &mut held {
        if stream.0.write_all(&framed(&question.to_wire())).is_ok()
            && stream.receive(Duration::from_secs(2)).is_some()
        {
            served += 1;
        }
    }
    assert_eq!(served, 5, "of one source's 12 connections");
    assert!(daemon.metric("nodens_tcp_connections_refused_total", "") >= 7.0);
    let other = Tcp::to(daemon.address6()).exchange(&question);
    assert_eq!(other.rcode(), rcode::NOERROR, "another source");
    std::thread::sleep(Duration::from_millis(700));
    let newcomer = Tcp::to(daemon.address()).exchange(&question);
    assert_eq!(newcomer.rcode(), rcode::NOERROR, "the seat of one that idles");
    drop(held);
    let again = until(Duration::from_secs(5), || {
        let mut stream = Tcp::to(daemon.address());
        stream.0.write_all(&framed(&question.to_wire())).is_ok()
            && stream.receive(Duration::from_secs(2)).is_some()
    });
    assert!(again, "room again after the others left");
}

#[test]
fn when_descriptors_run_out_the_daemon_neither_spins_nor_stops() {
    let sink = uneven();
    let daemon = Setup::towards(sink.address)
        .files_limit(64)
        .tables("[serve]\ntcp_connections = 1000\ntcp_connections_per_source = 1000")
        .start();
    let question = ask("www.example.org", qtype::A);
    wire::udp(daemon.address(), &question);
    let held: Vec<Tcp> = (0..120).map(|_| Tcp::to(daemon.address())).collect();
    let before = daemon.process.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let spent = daemon.process.cpu() - before;
    assert!(spent < Duration::from_millis(500), "{spent:?} of CPU in 2 s");
    assert_eq!(wire::udp(daemon.address(), &question).rcode(), rcode::NOERROR, "hits go on");
    drop(held);
    let again = until(Duration::from_secs(10), || {
        let mut stream = Tcp::to(daemon.address());
        stream.send(&question.to_wire());
        stream.receive(Duration::from_secs(1)).is_some()
    });
    assert!(again, "connections are taken again:\n{}", daemon.log());
}

#[test]
fn a_slow_reader_does_not_hold_memory() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let question = ask("huge.example.org", qtype::TXT);
    assert_eq!(wire::tcp(daemon.address(), &question).answers.len(), HUGE);
    let before = daemon.process.resident();
    let mut streams: Vec<Tcp> = (0..10).map(|_| Tcp::to(daemon.address())).collect();
    for stream in &mut streams {
        stream.0.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        for _ in 0..2000 {
            if stream.0.write_all(&framed(&question.to_wire())).is_err() {
                break;
            }
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    // 20,000 unread responses of 60 kB would be 1.2 GB.
    let grown = daemon.process.resident().saturating_sub(before) >> 20;
    assert!(grown < 48, "{grown} MiB more for readers that do not read");
    assert_eq!(wire::tcp(daemon.address(), &ask("www.example.org", qtype::A)).answers.len(), 1);
}

#[test]
fn a_message_of_zero_length_ends_nothing_but_its_own_connection() {
    let (_sink, daemon) = parts("");
    let mut stream = Tcp::to(daemon.address());
    stream.0.write_all(&[0, 0, 0, 0]).expect("two empty messages");
    let question = ask("www.example.org", qtype::A);
    assert_eq!(wire::tcp(daemon.address(), &question).rcode(), rcode::NOERROR);
}

#[test]
fn a_connection_that_never_reads_is_closed() {
    needs!("knotd");
    let knot = Knot::start();
    let daemon = Setup::towards(knot.address).start();
    let question = ask("huge.example.org", qtype::TXT);
    assert_eq!(wire::tcp(daemon.address(), &question).answers.len(), HUGE);
    let mut stream = Tcp::to(daemon.address());
    let all: Vec<u8> = (0..200).flat_map(|_| framed(&question.to_wire())).collect();
    stream.0.write_all(&all).expect("room for 12 kB");
    let open = || daemon.metric("nodens_tcp_connections", "");
    assert!(until(PATIENCE, || open() == 1.0), "{} open", open());
    assert!(until(Duration::from_secs(20), || open() == 0.0), "{} open", open());
}

#[test]
fn one_source_cannot_take_all_connections() {
    needs!("::1");
    let (_sink, daemon) = parts("[serve]\ntcp_connections = 16");
    let question = ask("www.example.org", qtype::A);
    let served = |stream: &mut Tcp| {
        stream.0.write_all(&framed(&question.to_wire())).is_ok()
            && stream.receive(Duration::from_secs(2)).is_some()
    };
    let mut greedy: Vec<Tcp> = (0..40).map(|_| Tcp::to(daemon.address())).collect();
    let held = greedy.iter_mut().map(served).filter(|is| *is).count();
    assert!((4..16).contains(&held), "{held} of 16 for one source");
    assert!(served(&mut Tcp::to(daemon.address6())), "room is left for another");
}
