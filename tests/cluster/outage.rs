//! An API server that goes away, and one that is not there yet.

use std::time::{Duration, Instant};

use crate::harness::wire::{self, Udp};
use crate::harness::{ask, flag, qtype, rcode, until};
use crate::is_long;
use crate::objects::{endpoint, headless, service, slice};
use crate::plane::{Plane, needs_kubernetes};

/// How long anything may take where no limit is part of what is proven.
const PATIENCE: Duration = Duration::from_secs(30);

/// A headless Service `name` with one endpoint.
fn make(plane: &Plane, name: &str) {
    plane.make(&headless("default", name, false));
    plane.make(&slice(("default", name), 0, ("IPv4", vec![endpoint("198.18.0.1")]), false));
}

#[test]
fn without_the_api_server_every_name_is_still_answered_and_afterwards_changes_are_seen() {
    let (_alone, programs) = needs_kubernetes!();
    let mut plane = Plane::start(&programs, &[]);
    make(&plane, "before");
    plane.make(&service("default", "plain", serde_json::json!({ "ports": [{ "port": 80 }] })));
    let world = plane.world();
    let nodens = plane.nodens(world.address, "");
    plane.stop();
    let away = Duration::from_secs(if is_long() { 600 } else { 8 });
    let (began, server) = (Instant::now(), Udp::to(nodens.address()));
    let mut asked = 0;
    while began.elapsed() < away {
        for name in ["before", "plain", "kubernetes"] {
            let answer =
                server.exchange(&ask(&format!("{name}.default.svc.cluster.local"), qtype::A));
            assert!(answer.has(flag::AA) && answer.answers.len() == 1, "{name}: {answer:?}");
            asked += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{asked} queries answered without an API server in {away:?}");
    plane.resume(&[]);
    make(&plane, "after");
    let began = Instant::now();
    let seen = until(PATIENCE, || {
        wire::udp(nodens.address(), &ask("after.default.svc.cluster.local", qtype::A)).rcode()
            == rcode::NOERROR
    });
    println!("a change was answered {:?} after it was made", began.elapsed());
    assert!(seen, "{}", nodens.log());
    // After long outages waits are longer, so that thousands of nodes come back one by one.
    assert!(is_long() || began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(nodens.metric("nodens_cluster_api_denied", ""), 0.0);
}

#[test]
fn before_the_first_sync_names_are_forwarded_and_then_taken_over() {
    let (_alone, programs) = needs_kubernetes!();
    let mut plane = Plane::start(&programs, &[]);
    make(&plane, "early");
    let cluster_dns = plane.coredns("ttl 5", "");
    plane.stop();
    let nodens = plane.nodens_unsynced(cluster_dns.address, "");
    let query = ask("early.default.svc.cluster.local", qtype::A);
    let answer = wire::udp(nodens.address(), &query);
    assert_eq!(answer.data(qtype::A), ["198.18.0.1"], "{}", nodens.log());
    assert!(!answer.has(flag::AA), "forwarded, not ours");
    plane.resume(&[]);
    let taken_over = until(PATIENCE, || wire::udp(nodens.address(), &query).has(flag::AA));
    assert!(taken_over, "{}", nodens.log());
    let answer = wire::udp(nodens.address(), &query);
    assert_eq!(answer.data(qtype::A), ["198.18.0.1"]);
}
