//! What is intercepted changes while we run: asked addresses, private ones, the net below.

use std::time::Duration;

use crate::harness::node::{ASKED, Node, nft, say, server, sh, tables};
use crate::harness::{Daemon, Setup, Tcp, ask, namespace, needs, qtype, until};
use crate::takeover::{is_claiming, load, needs_node, private, upstream};

/// A daemon with these lines in `[intercept]`, claiming by now.
fn start(upstream: impl ToString, lines: &str) -> Daemon {
    let tables = format!("[intercept]\n{lines}\n");
    let daemon = Setup::towards(upstream).tables(&tables).start();
    assert!(until(Duration::from_secs(3), || is_claiming(&daemon)), "{}", daemon.log());
    daemon
}

/// Puts other lines into `[intercept]` and waits until they are in force.
fn change(daemon: &Daemon, lines: &str, holds: impl FnMut() -> bool) {
    let (rest, _) = daemon.text.split_once("[intercept]").expect("the table stands last");
    daemon.reload(&format!("{rest}[intercept]\n{lines}\n"));
    assert!(until(Duration::from_secs(5), holds), "{lines}:\n{}", daemon.log());
}

/// How the asked addresses are written.
fn addresses(asked: &[&str]) -> String {
    format!("addresses = {asked:?}")
}

/// What the log has said about one asked address.
fn said(daemon: &Daemon, asked: &str) -> usize {
    daemon.log().matches(&format!("asked={asked} ")).count()
}

#[test]
fn asked_addresses_come_and_go_by_reload_and_no_query_is_lost() {
    needs_node!();
    needs!("dnsperf");
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address, &addresses(&ASKED[..1]));
        let report = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(&node, 6));
            let takes = |ordinary, label| {
                let query = ask(&format!("{label}.example.org"), qtype::A);
                node.in_pod(|| crate::harness::wire::udp(server(ASKED[1]), &query));
                let seen = !node.cluster[1].seen_for(&format!("{label}.example.org.")).is_empty();
                assert_eq!(seen, ordinary, "{label}:\n{}", daemon.log());
            };
            takes(true, "before");
            change(&daemon, &addresses(&ASKED), || said(&daemon, ASKED[1]) == 1);
            takes(false, "added");
            let mut kept = node.in_pod(|| Tcp::to(server(ASKED[1])));
            kept.exchange(&ask("kept-1.example.org", qtype::A));
            change(&daemon, &addresses(&ASKED[..1]), || said(&daemon, ASKED[0]) == 3);
            takes(true, "removed");
            kept.exchange(&ask("kept-2.example.org", qtype::A));
            assert_eq!(upstream.seen_for("kept-2.example.org.").len(), 1, "a connection goes on");
            change(&daemon, &addresses(&ASKED), || said(&daemon, ASKED[1]) == 2);
            takes(false, "again");
            load.join().expect("the load ends")
        });
        assert_eq!(report.lost, 0, "{}", report.text);
        assert!(report.sent > 10_000, "{}", report.text);
        assert_eq!(private().len(), 2, "the private address was kept: {:?}", private());
        assert_eq!(daemon.metric("nodens_intercept_repairs_total", ""), 0.0);
    });
}

#[test]
fn private_addresses_move_by_reload_and_neither_query_nor_connection_is_lost() {
    needs_node!();
    needs!("dnsperf");
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address, &addresses(&ASKED[..1]));
        let mut kept = node.in_pod(|| Tcp::to(server(ASKED[0])));
        kept.exchange(&ask("kept-1.example.org", qtype::A));
        let report = std::thread::scope(|scope| {
            let load = scope.spawn(|| load(&node, 4));
            std::thread::sleep(Duration::from_secs(1));
            let lines = addresses(&ASKED[..1]) + "\nprivate = [\"169.254.20.200/30\"]";
            change(&daemon, &lines, || said(&daemon, ASKED[0]) == 2);
            load.join().expect("the load ends")
        });
        assert_eq!((report.lost, node.ordinary()), (0, 0), "{}", report.text);
        let moved = daemon.log().contains("private=169.254.20.20");
        assert!(moved, "{}", daemon.log());
        kept.exchange(&ask("kept-2.example.org", qtype::A));
        assert_eq!(upstream.seen_for("kept-2.example.org.").len(), 1);
        node.in_pod(|| Tcp::to(server(ASKED[0])).exchange(&ask("new.example.org", qtype::A)));
        assert_eq!(upstream.seen_for("new.example.org.").len(), 1);
    });
}

#[test]
fn too_few_private_addresses_are_said_once_and_the_old_ones_stay() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address, &addresses(&ASKED[..1]));
        let both = addresses(&[ASKED[0], "10.96.0.11", "10.96.0.12"]);
        let lines = both + "\nprivate = [\"169.254.20.200/31\"]";
        let told = || daemon.log().matches("no private address is left").count();
        change(&daemon, &lines, || told() > 0);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(told(), 1, "{}", daemon.log());
        assert!(node.takes_ordinary_path(false, "still", Duration::from_secs(1)));
        let reloads = daemon.metric("nodens_reloads_total", "");
        change(&daemon, &addresses(&ASKED[..1]), || {
            daemon.metric("nodens_reloads_total", "") > reloads
        });
        assert!(node.takes_ordinary_path(false, "again", Duration::from_secs(1)));
    });
}

#[test]
fn the_net_below_follows_the_configuration_and_comes_back_when_it_is_flushed() {
    needs_node!();
    namespace::inside(|| {
        let (_node, upstream) = (Node::new(), upstream());
        let below = || say("nft", &["list", "table", "inet", "nodens-below"]);
        let lines = |fallback: &str| format!("mode = \"takeover\"\nfallback = [{fallback}]");
        let daemon = start(upstream.address, &lines("\"10.244.0.1:5353\""));
        assert!(below().contains("10.244.0.1 . 5353"), "{}", below());
        change(&daemon, &lines("\"10.244.0.5\", \"10.244.0.6:5353\""), || {
            below().contains("10.244.0.5 . 53") && below().contains("10.244.0.6 . 5353")
        });
        assert!(!below().contains("10.244.0.1"), "{}", below());
        nft("flush ruleset");
        assert!(
            until(Duration::from_secs(1), || below().contains("10.244.0.6")),
            "{}",
            daemon.log()
        );
        assert_eq!(daemon.metric("nodens_intercept_repairs_total", ""), 1.0);
        change(&daemon, &lines(""), || tables().len() == 1);
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(tables().len(), 1, "it does not come back");
    });
}

#[test]
fn an_intercept_begins_by_reload_and_ends_by_reload() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon =
            Setup::towards(upstream.address).tables("[intercept]\nmode = \"none\"").start();
        assert_eq!(tables(), Vec::<String>::new());
        change(&daemon, &addresses(&ASKED), || is_claiming(&daemon));
        node.ask_all("with");
        assert_eq!(node.ordinary(), 0, "{}", daemon.log());
        change(&daemon, "mode = \"none\"", || {
            node.takes_ordinary_path(true, "ended", Duration::from_millis(200))
        });
        node.ask_all("without");
    });
}

#[test]
fn a_removed_route_and_a_link_taken_down_are_mended() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address, &addresses(&ASKED[..1]));
        let has_dummy = say("ip", &["link"]).contains("nodens");
        let link = if has_dummy { "nodens" } else { "lo" };
        let ip = private()[0].split('/').next().expect("an address").to_owned();
        let routes = || say("ip", &["route", "show", "table", "local"]);
        sh(&format!("ip route del local {ip} dev {link} table local"));
        assert!(!routes().contains(&ip));
        assert!(until(Duration::from_secs(1), || routes().contains(&ip)), "{}", daemon.log());
        assert!(node.takes_ordinary_path(false, "route", Duration::from_secs(1)));
        assert_eq!(daemon.metric("nodens_intercept_repairs_total", ""), 1.0);
        if has_dummy {
            sh("ip link set nodens down");
            assert!(until(Duration::from_secs(1), || routes().contains(&ip)), "{}", daemon.log());
            assert!(node.takes_ordinary_path(false, "link", Duration::from_secs(1)));
        }
        assert_eq!(daemon.log().matches("putting right").count(), 1, "said once");
    });
}
