//! An upstream that is a name: its addresses are those of a zone that somebody else changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::place::free_port;
use crate::harness::wire::Udp;
use crate::harness::{Action, Knot, Setup, Sink, ask, needs, qtype, sink, until, wire};

/// How long the daemon may take to see a change: the TTL of 5 s, the look for names that are due, and a busy
/// machine.
const CHANGE: Duration = Duration::from_secs(30);

#[test]
fn a_name_that_leads_elsewhere_takes_all_queries_along_and_none_goes_to_the_old_address() {
    needs!("knotd");
    let port = free_port();
    let at = |last| SocketAddr::from((Ipv4Addr::new(127, 0, 77, last), port));
    let record = |address: SocketAddr| format!("dns 5 A {}\n", address.ip());
    let is_mute = Arc::new(AtomicBool::new(false));
    let mute = Arc::clone(&is_mute);
    let old = Sink::at(at(1), move |seen| match mute.load(Ordering::Relaxed) {
        true => Action::Ignore,
        false => sink::ordinary(seen).now(),
    });
    let new = Sink::at(at(2), |seen| seen.reply().a(seen, 300, [192, 0, 2, 2]).now());
    let knot = Knot::start();
    knot.rewrite("example.net.", 2, &record(old.address));
    let daemon = Setup::towards(knot.address)
        .tables(&format!(
            "[[forward]]\nzone = \"example.org\"\nupstreams = [\"name:dns.example.net:{port}\"]\n\
             timeout = \"25s\"\nretransmit_min = \"10s\"\nretransmit_max = \"10s\""
        ))
        .start();
    let says = |address: &str| daemon.admin("/upstreams").body.contains(address);
    assert!(until(CHANGE, || says(&old.address.to_string())), "{}", daemon.log());
    let first = wire::udp(daemon.address(), &ask("first.example.org", qtype::A));
    assert_eq!(first.data(qtype::A), ["192.0.2.7"]);
    // These hang at the old address when the name changes.
    is_mute.store(true, Ordering::Relaxed);
    let hanging = ["a", "b", "c"].map(|label| ask(&format!("{label}.example.org"), qtype::A));
    let stubs = hanging.each_ref().map(|_| Udp::to(daemon.address()));
    for (stub, ask) in stubs.iter().zip(&hanging) {
        stub.send(&ask.to_wire());
    }
    let arrived = || hanging.iter().all(|ask| old.seen_for(&format!("{}.", ask.qname)).len() == 1);
    assert!(until(CHANGE, arrived), "asked of the old address");
    knot.rewrite("example.net.", 3, &record(new.address));
    for (stub, ask) in stubs.iter().zip(&hanging) {
        let answer = stub.answer_to(ask.id, CHANGE).expect("a response from the new address");
        assert_eq!(answer.data(qtype::A), ["192.0.2.2"], "{}", ask.qname);
    }
    assert!(!says(&old.address.to_string()) && says(&new.address.to_string()));
    let before = old.seen().len();
    for n in 0..50 {
        let answer = wire::udp(daemon.address(), &ask(&format!("n{n}.example.org"), qtype::A));
        assert_eq!(answer.data(qtype::A), ["192.0.2.2"]);
    }
    assert_eq!(old.seen().len(), before, "no query to the old address");
}

#[test]
fn a_name_without_an_address_is_said_once_and_again_when_it_has_one() {
    let has_address = Arc::new(AtomicBool::new(false));
    let has = Arc::clone(&has_address);
    let sink = Sink::start(move |seen| {
        let is_there = has.load(Ordering::Relaxed) && seen.qtype == qtype::A;
        match is_there {
            true => seen.reply().a(seen, 1, [127, 0, 77, 3]).now(),
            false => seen.reply().soa(1, 1).now(),
        }
    });
    let daemon = Setup::towards(sink.address)
        .tables(
            "[[forward]]\nzone = \"example.org\"\nupstreams = [\"name:dns.example.net:5300\"]\n",
        )
        .start();
    let said = |what: &str| daemon.log().matches(what).count();
    // Every two seconds it is looked for again, for either family.
    let looked_for = || sink.seen_for("dns.example.net.").len();
    assert!(until(CHANGE, || looked_for() >= 6), "{}", daemon.log());
    assert_eq!(said("name has no address"), 1, "{}", daemon.log());
    has_address.store(true, Ordering::Relaxed);
    assert!(until(CHANGE, || said("name has addresses again") == 1), "{}", daemon.log());
    assert!(daemon.admin("/upstreams").body.contains("127.0.77.3:5300"));
}
