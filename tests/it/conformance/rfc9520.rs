//! Resolution failures: remembered for a short time, never over an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::wire;
use crate::harness::{Daemon, Setup, Sink, ask, qtype, rcode, sink};

/// An upstream that fails while the switch is on.
fn failing() -> (Arc<AtomicBool>, Sink, Daemon) {
    let fails = Arc::new(AtomicBool::new(true));
    let inner = Arc::clone(&fails);
    let sink = Sink::start(move |seen| match inner.load(Ordering::Relaxed) {
        true => seen.reply().rcode(rcode::SERVFAIL).now(),
        false => sink::ordinary(seen).now(),
    });
    let daemon = Setup::towards(sink.address).start();
    (fails, sink, daemon)
}

#[test]
fn a_failure_is_remembered_for_a_second() {
    let (fails, sink, daemon) = failing();
    let question = ask("www.example.org", qtype::A);
    assert_eq!(wire::udp(daemon.address(), &question).rcode(), rcode::SERVFAIL);
    let first = sink.seen_for("www.example.org.").len();
    for _ in 0..20 {
        assert_eq!(wire::udp(daemon.address(), &question).rcode(), rcode::SERVFAIL);
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), first, "nobody is asked again at once");
    fails.store(false, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(wire::udp(daemon.address(), &question).rcode(), rcode::NOERROR);
}

#[test]
fn a_failure_of_one_name_or_type_is_not_anothers() {
    let (fails, _sink, daemon) = failing();
    wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    fails.store(false, Ordering::Relaxed);
    for (name, kind) in [("www.example.org", qtype::AAAA), ("other.example.org", qtype::A)] {
        assert_eq!(wire::udp(daemon.address(), &ask(name, kind)).rcode(), rcode::NOERROR);
    }
}

#[test]
fn a_failure_never_overwrites_an_answer() {
    let (fails, _sink, daemon) = failing();
    fails.store(false, Ordering::Relaxed);
    let question = ask("www.example.org", qtype::A);
    assert_eq!(wire::udp(daemon.address(), &question).ttl(), Some(300));
    fails.store(true, Ordering::Relaxed);
    wire::udp(daemon.address(), &ask("other.example.org", qtype::A));
    for _ in 0..5 {
        assert_eq!(wire::udp(daemon.address(), &question).data(qtype::A), ["192.0.2.7"]);
    }
}
