//! Stale data: served when the upstream is away, and marked as such; TTLs with the top bit set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::harness::wire;
use crate::harness::{Action, Daemon, Setup, Sink, ask, qtype, rcode, sink, until};

/// An upstream with a switch: 0 answers with TTL 1, 1 is silent, 2 says SERVFAIL, 3 answers anew.
fn switched(setup: impl FnOnce(Setup) -> Setup) -> (Arc<AtomicU8>, Sink, Daemon) {
    let state = Arc::new(AtomicU8::new(0));
    let inner = Arc::clone(&state);
    let sink = Sink::start(move |seen| match inner.load(Ordering::Relaxed) {
        0 => seen.reply().a(seen, 1, [192, 0, 2, 7]).now(),
        1 => Action::Ignore,
        2 => seen.reply().rcode(rcode::SERVFAIL).now(),
        _ => seen.reply().a(seen, 300, [192, 0, 2, 8]).now(),
    });
    let daemon = setup(Setup::towards(sink.address)).start();
    (state, sink, daemon)
}

#[test]
fn a_dead_upstreams_answers_are_served_stale_with_ttl_30_and_a_mark() {
    let (state, _sink, daemon) = switched(|setup| setup);
    let question = ask("www.example.org", qtype::A);
    assert_eq!(wire::udp(daemon.address(), &question).ttl(), Some(1));
    state.store(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1200));
    let start = Instant::now();
    let stale = wire::udp(daemon.address(), &question);
    let waited = start.elapsed();
    assert_eq!((stale.data(qtype::A), stale.ttl()), (vec!["192.0.2.7"], Some(30)));
    assert_eq!(stale.ede(), [3], "Stale Answer (RFC 8914 §4.4)");
    assert!(waited < Duration::from_millis(2600), "after 1.8 s, not {waited:?}");
    state.store(3, Ordering::Relaxed);
    let fresh = until(Duration::from_secs(40), || {
        std::thread::sleep(Duration::from_millis(200));
        wire::udp(daemon.address(), &question).data(qtype::A) == ["192.0.2.8"]
    });
    assert!(fresh, "refreshed when the upstream is back");
}

#[test]
fn a_failing_upstream_makes_old_answers_stale_not_servfail() {
    let (state, _sink, daemon) = switched(|setup| setup);
    let question = ask("www.example.org", qtype::A);
    wire::udp(daemon.address(), &question);
    state.store(2, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1200));
    for _ in 0..3 {
        let answer = wire::udp(daemon.address(), &question);
        assert_eq!((answer.rcode(), answer.data(qtype::A)), (rcode::NOERROR, vec!["192.0.2.7"]));
    }
    let other = wire::udp(daemon.address(), &ask("other.example.org", qtype::A));
    assert_eq!(other.rcode(), rcode::SERVFAIL, "nothing old to serve");
}

#[test]
fn with_stale_turned_off_the_failure_shows() {
    let (state, _sink, daemon) = switched(|setup| setup.tables("[cache]\nstale = \"0s\""));
    let question = ask("www.example.org", qtype::A);
    wire::udp(daemon.address(), &question);
    state.store(2, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(wire::udp(daemon.address(), &question).rcode(), rcode::SERVFAIL);
}

#[test]
fn a_ttl_with_the_top_bit_set_is_large_and_capped_at_seven_days() {
    let sink = Sink::start(|seen| match seen.qname.as_str() {
        "top.example.org." => seen.reply().a(seen, 0x8000_0001, [192, 0, 2, 7]).now(),
        "large.example.org." => seen.reply().a(seen, 0x7fff_ffff, [192, 0, 2, 7]).now(),
        _ => sink::ordinary(seen).now(),
    });
    let daemon = Setup::towards(sink.address).start();
    for name in ["top.example.org", "large.example.org"] {
        for _ in 0..2 {
            let ttl = wire::udp(daemon.address(), &ask(name, qtype::A)).ttl().expect("an answer");
            assert!((604_790..=604_800).contains(&ttl), "{name}: {ttl}");
        }
        assert_eq!(sink.seen_for(&format!("{name}.")).len(), 1);
    }
}

#[test]
fn a_stale_answer_needs_no_share_of_what_a_crowd_of_hopeless_queries_has_used_up() {
    let (state, _sink, daemon) = switched(|setup| setup.tables("[serve]\nmax_in_flight = 16"));
    let question = ask("www.example.org", qtype::A);
    assert_eq!(wire::udp(daemon.address(), &question).ttl(), Some(1));
    state.store(1, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1200));
    // As many as find a share, and others that wait for one; none will be answered in time.
    let crowd = wire::Udp::to(daemon.address());
    for number in 0..200 {
        crowd.send(&ask(&format!("n{number}.example.org"), qtype::A).to_wire());
    }
    // Another serve thread may take what is asked now before it.
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..3 {
        let stale = wire::udp(daemon.address(), &question);
        assert_eq!((stale.rcode(), stale.data(qtype::A)), (rcode::NOERROR, vec!["192.0.2.7"]));
        assert_eq!(stale.ede(), [3]);
    }
    let by_tcp = wire::tcp(daemon.address(), &question);
    assert_eq!(by_tcp.data(qtype::A), ["192.0.2.7"]);
}
