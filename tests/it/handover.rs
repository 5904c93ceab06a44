//! The edges of a take-over: connections that are not yet whole when the drain begins, instances that start
//! at the same time or in vain, and what others remove meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::deadman::Held;
use crate::harness::node::{ASKED, Node, nft, say, server, sh, tables};
use crate::harness::{Action, Daemon, Setup, Sink, Tcp, ask, namespace, qtype, sink, until, wire};
use crate::takeover::{needs_node, private, rounds, start, upstream};

/// A daemon that intercepts and claims to come; `lines` are tables more.
fn launch(upstream: impl ToString, lines: &str) -> Daemon {
    let tables = format!("[intercept]\naddresses = {ASKED:?}\n{lines}\n");
    Setup::towards(upstream).tables(&tables).launch()
}

#[test]
fn a_connection_that_is_being_set_up_when_the_drain_begins_gets_its_response() {
    needs_node!();
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        let mut daemon = start(upstream.address);
        let (server, connections) = (server(ASKED[0]), 5_u16);
        // Each connection loses its handshake's last packet, its query, and the first copy of that.
        let lossy = "table inet lossy { chain lossy { type filter hook output priority 0;
            tcp dport 53 tcp flags & (syn | ack) == ack limit rate 1/hour burst 15 packets drop
        }
        }";
        node.in_pod(|| nft(lossy));
        let mut begun: Vec<Tcp> = node.in_pod(|| {
            let begin = |number| {
                let mut tcp = Tcp::to(server);
                tcp.send(&ask(&format!("begun-{number}.example.org"), qtype::A).to_wire());
                tcp
            };
            (0..connections).map(begin).collect()
        });
        daemon.process.signal(libc::SIGTERM);
        for tcp in &mut begun {
            let response = tcp.receive(Duration::from_secs(5));
            assert!(response.is_some(), "reset while it was being set up:\n{}", daemon.log());
        }
        drop(begun);
        let status = daemon.process.wait(Duration::from_secs(8));
        assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
        assert_eq!(tables(), Vec::<String>::new());
    });
}

#[test]
fn a_connection_that_nobody_has_looked_at_when_the_drain_begins_gets_its_response() {
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let setup = Setup::towards(sink.address).tables("[serve]\nresolver_threads = 1");
    let mut daemon = setup.start();
    let held = Held::take(&daemon, "resolver-0");
    let mut tcp = Tcp::to(daemon.address());
    tcp.send(&ask("waiting.example.org", qtype::A).to_wire());
    daemon.process.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(400));
    drop(held);
    assert!(tcp.receive(wire::PATIENCE).is_some(), "it was owed a response:\n{}", daemon.log());
    let status = daemon.process.wait(Duration::from_secs(8));
    assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
}

#[test]
fn an_instance_that_cannot_start_takes_nothing_from_the_one_that_serves() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        let absent = daemon.place.path("absent.kubeconfig");
        let kubeconfig = Path::new(&absent);
        for round in 0..rounds() {
            let lines = format!("[cluster]\nsource = \"watch\"\nkubeconfig = {kubeconfig:?}");
            let mut vain = launch(upstream.address, &lines);
            let mut asked = 0;
            let ended = until(Duration::from_secs(20), || {
                asked += 1;
                let name = format!("asked-{round}-{asked}.example.org");
                let answer = node.try_pod(ASKED[0], &name, Duration::from_secs(5));
                assert!(answer.is_some(), "{name} was lost:\n{}", vain.log());
                vain.process.ended().is_some()
            });
            assert!(ended, "{}", vain.log());
            assert_eq!(vain.process.ended().and_then(|status| status.code()), Some(2));
            let log = vain.log();
            assert!(!log.contains("intercepted"), "it has taken queries:\n{log}");
        }
        assert_eq!((node.ordinary(), tables().len()), (0, 1), "{}", daemon.log());
    });
}

#[test]
fn two_instances_that_start_at_once_after_a_kill_both_claim() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let mut all = vec![start(upstream.address), start(upstream.address)];
        for round in 0..rounds() {
            for daemon in &mut all {
                daemon.process.signal(libc::SIGKILL);
                daemon.process.wait(Duration::from_secs(2)).expect("it is dead");
            }
            all = (0..2).map(|_| launch(upstream.address, "")).collect();
            all.iter_mut().for_each(|daemon| daemon.wait_for("/readyz"));
            let claims = |daemon: &Daemon| crate::takeover::is_claiming(daemon);
            let both = until(Duration::from_secs(5), || all.iter().all(claims));
            assert!(both, "round {round}:\n{}\n{}", all[0].log(), all[1].log());
            let is_whole = || (tables().len(), private().len()) == (2, 4);
            assert!(until(Duration::from_secs(3), is_whole), "{:?} {:?}", tables(), private());
            node.ask_all(&format!("both-{round}"));
        }
        assert_eq!(node.ordinary(), 0);
    });
}

#[test]
fn what_others_remove_comes_back_while_a_reload_waits_for_an_upstream() {
    needs_node!();
    namespace::inside(|| {
        let is_dead = Arc::new(AtomicBool::new(false));
        let dead = Arc::clone(&is_dead);
        let upstream = Sink::start(move |seen| match dead.load(Ordering::Relaxed) {
            true => Action::Ignore,
            false => sink::ordinary(seen).now(),
        });
        let (_node, daemon) = (Node::new(), start(upstream.address));
        let link = if say("ip", &["link"]).contains("nodens") { "nodens" } else { "lo" };
        is_dead.store(true, Ordering::Relaxed);
        let (seen, ours) = (upstream.seen().len(), private());
        daemon.process.signal(libc::SIGHUP);
        // The reload asks every upstream whether it leads back to us, and waits.
        assert!(until(Duration::from_secs(5), || upstream.seen().len() > seen), "{}", daemon.log());
        sh(&format!("ip address del {} dev {link}", ours[0]));
        let is_back = || private().len() == ours.len();
        assert!(until(Duration::from_secs(5), is_back), "{}", daemon.log());
        let is_reloaded = daemon.log().contains("configuration reloaded");
        assert!(!is_reloaded, "only after the reload:\n{}", daemon.log());
        let is_reloaded = || daemon.log().contains("configuration reloaded");
        assert!(until(Duration::from_secs(10), is_reloaded), "{}", daemon.log());
    });
}
