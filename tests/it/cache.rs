//! The law of the cache, seen from outside: what is asked upstream, and what is not.

use std::collections::HashSet;
use std::time::Duration;

use crate::harness::message::Answer;
use crate::harness::wire::PATIENCE;
use crate::harness::{
    Action, Daemon, Setup, Sink, Udp, ask, flag, name_to_wire, qtype, rcode, sink, wire,
};

fn parts() -> (Sink, Daemon) {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).start();
    (sink, daemon)
}

#[test]
fn a_second_query_within_the_ttl_sends_nothing_upstream() {
    let (sink, daemon) = parts();
    for _ in 0..50 {
        wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        wire::tcp(daemon.address(), &ask("WWW.example.ORG", qtype::A));
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 1);
    let hits = daemon.metric("coredns_cache_hits_total", "");
    assert!(hits >= 99.0, "{hits} hits");
}

#[test]
fn ttls_count_down_and_never_grow() {
    let (_sink, daemon) = parts();
    let ttl = || wire::udp(daemon.address(), &ask("www.example.org", qtype::A)).ttl().expect("one");
    let first = ttl();
    assert!((299..=300).contains(&first), "{first}");
    std::thread::sleep(Duration::from_millis(2100));
    let later = ttl();
    assert!(first - later == 2 || first - later == 3, "{first}, 2.1 s later {later}");
}

#[test]
fn an_entry_ends_with_its_ttl() {
    let sink = Sink::start(|seen| seen.reply().a(seen, 1, [192, 0, 2, 7]).now());
    let daemon = Setup::towards(sink.address).tables("[cache]\nprefetch = false").start();
    for _ in 0..3 {
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        assert!(answer.ttl().is_some_and(|ttl| ttl <= 1));
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 3);
}

#[test]
fn a_ttl_of_zero_is_handed_on_and_not_kept() {
    let sink = Sink::start(|seen| seen.reply().a(seen, 0, [192, 0, 2, 7]).now());
    let daemon = Setup::towards(sink.address).start();
    for _ in 0..3 {
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        assert_eq!(answer.ttl(), Some(0));
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 3);
}

#[test]
fn the_smallest_ttl_of_a_chain_ends_the_whole_entry() {
    let sink = Sink::start(|seen| {
        let reply =
            seen.reply().answer(&seen.qname, qtype::CNAME, 300, &name_to_wire("b.example.org"));
        reply.answer("b.example.org", qtype::A, 1, &[192, 0, 2, 7]).now()
    });
    let daemon = Setup::towards(sink.address).tables("[cache]\nprefetch = false").start();
    wire::udp(daemon.address(), &ask("a.example.org", qtype::A));
    std::thread::sleep(Duration::from_millis(1200));
    wire::udp(daemon.address(), &ask("a.example.org", qtype::A));
    assert_eq!(sink.seen_for("a.example.org.").len(), 2);
}

#[test]
fn a_hundred_identical_misses_at_once_send_one_query_upstream() {
    let sink = Sink::start(|seen| sink::ordinary(seen).after(Duration::from_millis(300)));
    let daemon = Setup::towards(sink.address).forward("retransmit_min = \"400ms\"").start();
    let stubs: Vec<(Udp, _)> = (0..100)
        .map(|number| {
            let mut ask = ask("WwW.example.org", qtype::A);
            ask.id = number;
            (Udp::to(daemon.address()), ask)
        })
        .collect();
    for (stub, ask) in &stubs {
        stub.send(&ask.to_wire());
    }
    for (stub, ask) in &stubs {
        let answer = stub.answer_to(ask.id, PATIENCE).expect("a response for each");
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 1);
    assert!(daemon.metric("nodens_cache_coalesced_total", "") >= 90.0);
}

#[test]
fn each_waiter_gets_its_own_id_case_and_size() {
    let sink = Sink::start(|seen| {
        let text = [&[200u8][..], &[b'x'; 200]].concat();
        let reply =
            (0..6).fold(seen.reply(), |reply, _| reply.answer(&seen.qname, qtype::TXT, 300, &text));
        reply.after(Duration::from_millis(300))
    });
    let daemon = Setup::towards(sink.address).forward("retransmit_min = \"400ms\"").start();
    let small = ask("big.example.org.", qtype::TXT).plain();
    let medium = ask("BIG.example.org.", qtype::TXT).payload(700);
    let large = ask("big.EXAMPLE.org.", qtype::TXT).payload(1232);
    let stub = Udp::to(daemon.address());
    for ask in [&small, &medium, &large] {
        stub.send(&ask.to_wire());
    }
    for _ in 0..3 {
        let answer = Answer::read(&stub.receive(PATIENCE).expect("a response"));
        let (asked, limit) = [(&small, 512), (&medium, 700), (&large, 1232)]
            .into_iter()
            .find(|(ask, _)| ask.id == answer.id)
            .expect("an id that was asked");
        assert_eq!(answer.question.as_ref().map(|question| &question.0), Some(&asked.qname));
        assert!(answer.wire.len() <= limit, "{} of {limit}", answer.wire.len());
        assert!(answer.has(flag::TC));
    }
    let mut stream = wire::Tcp::to(daemon.address());
    assert_eq!(stream.exchange(&large).answers.len(), 6, "whole by TCP");
    let udp = sink.seen_for("big.example.org.").iter().filter(|seen| !seen.by_tcp).count();
    assert_eq!(udp, 1);
}

#[test]
fn a_truncated_upstream_response_is_fetched_by_tcp_and_cached_whole() {
    let sink = Sink::start(|seen| match seen.by_tcp {
        false => seen.reply().flags(flag::TC).now(),
        true => {
            let text = [&[250u8][..], &[b'x'; 250]].concat();
            let reply = (0..20)
                .fold(seen.reply(), |reply, _| reply.answer(&seen.qname, qtype::TXT, 300, &text));
            reply.now()
        }
    });
    let daemon = Setup::towards(sink.address).start();
    for _ in 0..3 {
        let cut = wire::udp(daemon.address(), &ask("big.example.org", qtype::TXT));
        assert!(cut.has(flag::TC) && !cut.answers.is_empty(), "what fits is sent");
        let whole = wire::tcp(daemon.address(), &ask("big.example.org", qtype::TXT));
        assert_eq!((whole.answers.len(), whole.has(flag::TC)), (20, false));
    }
    let by_tcp: Vec<_> = sink.seen_for("big.example.org.").iter().map(|seen| seen.by_tcp).collect();
    assert_eq!(by_tcp, [false, true], "one exchange of each kind");
    assert!(daemon.metric("nodens_upstream_tcp_fallbacks_total", "") >= 1.0);
}

#[test]
fn a_flushed_name_is_asked_for_again() {
    let (sink, daemon) = parts();
    for name in ["www.example.org", "other.example.org"] {
        wire::udp(daemon.address(), &ask(name, qtype::A));
    }
    let output = daemon.command(&["cache", "flush", "WWW.example.org"]);
    assert!(output.status.success(), "{output:?}");
    for name in ["www.example.org", "other.example.org"] {
        wire::udp(daemon.address(), &ask(name, qtype::A));
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 2);
    assert_eq!(sink.seen_for("other.example.org.").len(), 1, "other names stay");
    assert!(daemon.metric("nodens_cache_flushes_total", "") >= 1.0);
}

#[test]
fn a_flush_reaches_an_exchange_in_flight() {
    let sink = Sink::start(|seen| sink::ordinary(seen).after(Duration::from_millis(400)));
    let daemon = Setup::towards(sink.address).forward("retransmit_min = \"400ms\"").start();
    let stub = Udp::to(daemon.address());
    let question = ask("www.example.org", qtype::A);
    stub.send(&question.to_wire());
    std::thread::sleep(Duration::from_millis(150));
    assert!(daemon.command(&["cache", "flush", "www.example.org"]).status.success());
    assert!(stub.answer_to(question.id, PATIENCE).is_some());
    let before = sink.seen_for("www.example.org.").len();
    wire::udp(daemon.address(), &question);
    assert!(sink.seen_for("www.example.org.").len() > before, "the old response was not kept");
}

#[test]
fn an_impatient_stub_resolver_does_not_end_the_exchange_of_others() {
    let sink = Sink::start(|seen| sink::ordinary(seen).after(Duration::from_millis(500)));
    let daemon = Setup::towards(sink.address).forward("retransmit_min = \"400ms\"").start();
    let question = ask("www.example.org", qtype::A);
    let mut impatient = wire::Tcp::to(daemon.address());
    impatient.send(&question.to_wire());
    std::thread::sleep(Duration::from_millis(100));
    let patient = Udp::to(daemon.address());
    patient.send(&question.to_wire());
    drop(impatient);
    assert_eq!(
        patient.answer_to(question.id, PATIENCE).map(|answer| answer.rcode()),
        Some(rcode::NOERROR)
    );
    let first: HashSet<_> = sink.seen_for("www.example.org.").iter().map(|seen| seen.at).collect();
    assert!(first.len() <= 2, "at most a retransmission: {}", first.len());
}

#[test]
fn a_cache_of_size_zero_keeps_nothing() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let daemon = Setup::towards(sink.address).tables("[cache]\nsize = \"0\"").start();
    for _ in 0..3 {
        let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 3);
}

#[test]
fn a_second_upstream_answers_when_the_first_fails_or_is_silent() {
    for first in [Action::Ignore, Action::Send(Vec::new(), Duration::ZERO)] {
        let fails = matches!(first, Action::Send(..));
        let bad = Sink::start(move |seen| match fails {
            true => seen.reply().rcode(rcode::SERVFAIL).now(),
            false => Action::Ignore,
        });
        let good = Sink::start(|seen| sink::ordinary(seen).now());
        let daemon = Setup::towards(bad.address).and(good.address).start();
        for number in 0..20 {
            let question = ask(&format!("n{number}.example.org"), qtype::A);
            let answer = wire::udp(daemon.address(), &question);
            assert_eq!(answer.data(qtype::A), ["192.0.2.7"], "first upstream fails: {fails}");
        }
    }
}

#[test]
fn longest_suffix_wins_among_forward_zones() {
    let sinks: Vec<Sink> = (0..3u8)
        .map(|number| Sink::start(move |seen| seen.reply().a(seen, 300, [192, 0, 2, number]).now()))
        .collect();
    let zone = |name: &str, sink: &Sink| {
        format!("[[forward]]\nzone = {name:?}\nupstreams = [\"{}\"]\n", sink.address)
    };
    let daemon = Setup::towards(sinks[0].address)
        .tables(&zone("example.org", &sinks[1]))
        .tables(&zone("Deep.Example.org.", &sinks[2]))
        .start();
    for (name, number) in [
        ("example.net", 0),
        ("notexample.org", 0),
        ("example.org", 1),
        ("www.example.org", 1),
        ("deep.example.org", 2),
        ("a.deep.EXAMPLE.org", 2),
        ("xdeep.example.org", 1),
    ] {
        let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
        assert_eq!(answer.data(qtype::A), [format!("192.0.2.{number}")], "{name}");
    }
}

#[test]
fn static_records_and_a_hosts_file_are_served_forward_and_reverse() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let place = crate::harness::Place::new();
    let hosts = place.write(
        "hosts",
        "192.0.2.31 node1.example.org node1\n2001:db8::31 node1.example.org\n# a comment\n",
    );
    let daemon = Setup::towards(sink.address)
        .tables(&format!(
            "[local]\nhosts = {hosts:?}\nrecords = [\"db.example.org 120 A 192.0.2.40\", \
             \"db.example.org TXT \\\"hello\\\"\"]"
        ))
        .start();
    for (name, kind, data) in [
        ("db.example.org", qtype::A, "192.0.2.40"),
        ("node1.example.org", qtype::A, "192.0.2.31"),
        ("NODE1.example.org", qtype::AAAA, "2001:db8::31"),
        ("node1", qtype::A, "192.0.2.31"),
        ("31.2.0.192.in-addr.arpa", qtype::PTR, "node1.example.org."),
        (
            "1.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            qtype::PTR,
            "node1.example.org.",
        ),
    ] {
        let answer = wire::udp(daemon.address(), &ask(name, kind));
        assert_eq!(answer.data(kind), [data], "{name}");
        assert!(sink.seen_for(&format!("{}.", name.to_lowercase())).is_empty(), "{name}");
    }
    let none = wire::udp(daemon.address(), &ask("db.example.org", qtype::AAAA));
    assert_eq!((none.rcode(), none.answers.len()), (rcode::NOERROR, 0), "NODATA, not NXDOMAIN");
    place.write("hosts", "192.0.2.32 node2.example.org\n");
    let seen = crate::harness::until(Duration::from_secs(10), || {
        wire::udp(daemon.address(), &ask("node2.example.org", qtype::A)).data(qtype::A)
            == ["192.0.2.32"]
    });
    assert!(seen, "the hosts file is read again when it changes");
}

#[test]
fn the_version_is_hidden_unless_written() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let mut question = ask("version.bind", qtype::TXT);
    question.qclass = 3;
    let hidden = Setup::towards(sink.address).start();
    assert_eq!(wire::udp(hidden.address(), &question).rcode(), rcode::REFUSED);
    let shown = Setup::towards(sink.address).tables("[local]\nversion = \"9 lives\"").start();
    let answer = wire::udp(shown.address(), &question);
    assert_eq!((answer.rcode(), answer.answers.len()), (rcode::NOERROR, 1));
    assert_eq!(answer.answers[0].class, 3);
    assert!(sink.seen_for("version.bind.").is_empty(), "never forwarded");
}

#[test]
fn a_popular_name_is_renewed_before_its_end_and_an_unpopular_one_is_not() {
    let sink = Sink::start(|seen| seen.reply().a(seen, 5, [192, 0, 2, 7]).now());
    let daemon = Setup::towards(sink.address).start();
    let question = ask("popular.example.org", qtype::A);
    wire::udp(daemon.address(), &question);
    wire::udp(daemon.address(), &ask("unpopular.example.org", qtype::A));
    std::thread::sleep(Duration::from_millis(4600));
    let until_renewed = crate::harness::until(Duration::from_millis(350), || {
        wire::udp(daemon.address(), &question);
        sink.seen_for("popular.example.org.").len() == 2
    });
    assert!(until_renewed, "asked again in the last tenth of its life");
    std::thread::sleep(Duration::from_millis(700));
    wire::udp(daemon.address(), &question);
    assert_eq!(sink.seen_for("popular.example.org.").len(), 2, "the renewed one answers");
    assert_eq!(sink.seen_for("unpopular.example.org.").len(), 1);
}
