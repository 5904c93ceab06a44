//! The `bind` mode: the asked addresses are the host's own, as node-cache does it.

use std::process::Command;
use std::time::Duration;

use crate::harness::node::{ASKED, Node, POD, entries_of, nft, say, sh, tables};
use crate::harness::process::Process;
use crate::harness::{Daemon, Place, Setup, namespace, until};
use crate::takeover::{needs_node, upstream};

/// A daemon that owns the cluster DNS addresses.
fn start(upstream: impl ToString) -> Daemon {
    let tables = format!("[intercept]\nmode = \"bind\"\naddresses = {ASKED:?}\n");
    Setup::towards(upstream).tables(&tables).start()
}

/// How many of the asked addresses links of this host have.
fn owned() -> usize {
    let text = say("ip", &["-brief", "address"]);
    text.split_whitespace().filter(|word| ASKED.iter().any(|ip| word.starts_with(ip))).count()
}

#[test]
fn pods_and_host_processes_are_answered_without_conntrack_and_a_clean_exit_leaves_nothing() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        node.settle();
        let before = (say("ip", &["address"]), say("nft", &["list", "ruleset"]));
        let mut daemon = start(upstream.address);
        say("conntrack", &["-F"]);
        node.ask_all("with");
        assert_eq!(node.ordinary(), 0, "{}", daemon.log());
        for pod in POD {
            assert_eq!(entries_of(pod), 0, "{}", say("conntrack", &["-L"]));
        }
        assert_eq!((owned(), tables()), (2, vec!["nodens-bind".to_owned()]));
        daemon.process.signal(libc::SIGTERM);
        let status = daemon.process.wait(Duration::from_secs(8));
        assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
        assert_eq!((say("ip", &["address"]), say("nft", &["list", "ruleset"])), before);
        node.ask_all("without");
        assert_eq!(node.ordinary(), 8);
    });
}

#[test]
fn what_a_killed_one_leaves_is_removed_by_the_next_start_and_by_cleanup() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let kill = |mut daemon: Daemon| {
            daemon.process.signal(libc::SIGKILL);
            daemon.process.wait(Duration::from_secs(2)).expect("it is dead");
            assert_eq!((owned(), tables().len()), (2, 1), "address and rules stay");
        };
        kill(start(upstream.address));
        let again = start(upstream.address);
        node.ask_all("again");
        assert_eq!((node.ordinary(), owned(), tables().len()), (0, 2, 1));
        kill(again);
        let lines = format!("[intercept]\naddresses = {ASKED:?}\n");
        let mut takeover = Setup::towards(upstream.address).tables(&lines).start();
        assert_eq!((owned(), tables().len()), (0, 1), "{}", takeover.log());
        takeover.process.signal(libc::SIGTERM);
        takeover.process.wait(Duration::from_secs(8)).expect("it ends");
        kill(start(upstream.address));
        let cleaned = Command::new(env!("CARGO_BIN_EXE_nodens")).arg("cleanup").status();
        assert!(cleaned.expect("it runs").success());
        assert_eq!((owned(), tables().len()), (0, 0));
        node.ask_all("without");
        assert_eq!(node.ordinary(), 8);
    });
}

#[test]
fn two_instances_share_the_addresses_and_the_last_one_removes_them() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let (mut old, mut new) = (start(upstream.address), start(upstream.address));
        for daemon in [&mut old, &mut new] {
            assert_eq!((owned(), tables().len()), (2, 1));
            node.ask_all("shared");
            daemon.process.signal(libc::SIGTERM);
            let status = daemon.process.wait(Duration::from_secs(8));
            assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
        }
        assert_eq!((owned(), tables().len(), node.ordinary()), (0, 0, 0));
    });
}

#[test]
fn what_others_remove_comes_back_within_a_second_and_is_said_once() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        let link = if say("ip", &["link"]).contains("nodens") { "nodens" } else { "lo" };
        nft("flush ruleset");
        for ip in ASKED {
            sh(&format!("ip address del {ip} dev {link}"));
        }
        let is_whole = || (owned(), tables().len()) == (2, 1);
        assert!(until(Duration::from_secs(1), is_whole), "{}", daemon.log());
        node.ask_all("mended");
        assert_eq!(node.ordinary(), 0);
        assert_eq!(daemon.log().matches("putting right").count(), 1, "{}", daemon.log());
    });
}

#[test]
fn an_address_on_the_link_of_another_is_refused_with_the_mend() {
    needs_node!();
    refused_because_of("nodelocaldns", "ip link del nodelocaldns");
    refused_because_of("kube-ipvs0", "leave it there");
}

/// The daemon in bind mode does not start while `link` has the address, and tells what to do.
fn refused_because_of(link: &'static str, mend: &'static str) {
    namespace::inside(move || {
        let (_node, upstream) = (Node::new(), upstream());
        // A cable stands for a dummy link, which not every kernel has.
        sh(&format!("ip link add {link} type veth peer name other"));
        sh(&format!("ip address add {}/32 dev {link}", ASKED[0]));
        let place = Place::new();
        let text = format!(
            "listen = [\"127.0.0.1:5399\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\nsocket = \"\"\n\
             [intercept]\nmode = \"bind\"\naddresses = {ASKED:?}\n",
            upstream.address
        );
        let config = place.write("nodens.toml", &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.args(["run", "--config"]).arg(config);
        let mut process = Process::start(command, &place.path("log"));
        let status = process.wait(Duration::from_secs(5));
        assert_eq!(status.and_then(|status| status.code()), Some(1), "{}", process.log());
        let log = process.log().replace('\\', "");
        assert!(log.contains(&format!("the link {link} has it")), "{log}");
        assert!(log.contains(mend), "{log}");
        assert!(log.contains("intercept.mode = \"takeover\""), "{log}");
        assert_eq!(tables(), Vec::<String>::new());
    });
}
