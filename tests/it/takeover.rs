//! The intercept in takeover mode: a pod and the host ask the cluster DNS address, and nodens answers
//! while it lives.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::load::{Load, Report};
use crate::harness::node::{ASKED, Node, POD, entries_of, nft, say, server, sh, tables};
use crate::harness::process::Process;
use crate::harness::{
    Daemon, Place, Setup, Sink, Tcp, ask, namespace, needs, qtype, sink, until, wire,
};

/// The programs that every test here needs.
macro_rules! needs_node {
    () => {
        crate::harness::needs!("ip", "nft", "conntrack", "unshare", "nsenter");
    };
}
pub(crate) use needs_node;

/// An upstream of nodens that the cluster does not have.
pub fn upstream() -> Sink {
    Sink::start(|seen| sink::ordinary(seen).now())
}

/// A daemon that intercepts the cluster DNS addresses, claiming by now.
pub fn start(upstream: impl ToString) -> Daemon {
    start_with(upstream, "")
}

/// The same with more lines in `[intercept]`.
pub fn start_with(upstream: impl ToString, lines: &str) -> Daemon {
    let tables = format!("[intercept]\naddresses = {ASKED:?}\n{lines}\n");
    let daemon = Setup::towards(upstream).tables(&tables).start();
    assert!(until(Duration::from_secs(3), || is_claiming(&daemon)), "{}", daemon.log());
    daemon
}

/// Tells whether the heartbeat is proven.
pub fn is_claiming(daemon: &Daemon) -> bool {
    daemon.metric("nodens_intercept_claiming", "") == 1.0
}

/// The private addresses on any link; dummy links are not to be had on every kernel.
pub fn private() -> Vec<String> {
    let text = say("ip", &["-brief", "address"]);
    let words = text.split_whitespace();
    let ours = |word: &&str| word.starts_with("169.254.20.") || word.starts_with("fd6e:");
    words.filter(ours).map(str::to_owned).collect()
}

#[test]
fn pods_and_host_processes_are_answered_by_us_without_conntrack() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        node.ask_all("before");
        assert_eq!(node.ordinary(), 8, "everything takes the ordinary path");
        say("conntrack", &["-F"]);
        let daemon = start(upstream.address);
        node.ask_all("with");
        assert_eq!(node.ordinary(), 8, "nothing takes the ordinary path:\n{}", daemon.log());
        assert_eq!(upstream.seen().iter().filter(|q| q.qname.starts_with("with-")).count(), 8);
        for pod in POD {
            assert_eq!(entries_of(pod), 0, "{}", say("conntrack", &["-L"]));
        }
        assert_eq!(daemon.metric("nodens_intercept_owned", ""), 1.0);
        assert_eq!(tables().len(), 1);
        assert_eq!(private().len(), 2, "{:?}", private());
    });
}

#[test]
fn a_killed_daemon_leaves_the_ordinary_path_and_the_next_collects_what_it_left() {
    needs_node!();
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        for round in 0..3 {
            let mut daemon = start(upstream.address);
            assert_eq!(private().len(), 2, "round {round}: {:?}", private());
            node.ask_all(&format!("with{round}"));
            assert_eq!(node.ordinary(), 8 * round);
            daemon.process.signal(libc::SIGKILL);
            daemon.process.wait(Duration::from_secs(2)).expect("it is dead");
            assert!(until(Duration::from_millis(500), || tables().is_empty()), "{:?}", tables());
            node.ask_all(&format!("without{round}"));
            assert_eq!(node.ordinary(), 8 * (round + 1));
        }
    });
}

#[test]
fn a_stopped_daemon_falls_open_within_a_second_and_comes_back_when_it_goes_on() {
    needs_node!();
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        for round in 1..=rounds() {
            let label = |word: &str| format!("{word}-{round}");
            assert!(node.takes_ordinary_path(false, &label("before"), Duration::from_secs(2)));
            daemon.process.signal(libc::SIGSTOP);
            let stopped = Instant::now();
            assert!(node.takes_ordinary_path(true, &label("stopped"), Duration::from_secs(2)));
            let open = stopped.elapsed();
            // The switch goes off within 1 s; a query in the black hole waits 100 ms.
            assert!(open <= Duration::from_millis(1100), "open after {open:?}");
            daemon.process.signal(libc::SIGCONT);
            let went_on = Instant::now();
            assert!(
                node.takes_ordinary_path(false, &label("again"), Duration::from_secs(3)),
                "{}",
                daemon.log()
            );
            let back = went_on.elapsed();
            assert!(
                back >= Duration::from_millis(1900),
                "back after {back:?}, before it was healthy"
            );
            assert_eq!(daemon.metric("nodens_intercept_lapses_total", ""), round as f64);
            println!("round {round}: open after {open:?}, back after {back:?}");
        }
    });
}

#[test]
fn a_second_instance_takes_over_and_the_first_drains() {
    needs_node!();
    namespace::inside_fairly(|| {
        let (node, old_upstream, new_upstream) = (Node::new(), upstream(), upstream());
        let mut old = start(old_upstream.address);
        let server = server(ASKED[0]);
        let (mut kept, answer) = node.in_pod(|| {
            let mut tcp = Tcp::to(server);
            let answer = tcp.exchange(&ask("kept-1.example.org", qtype::A));
            (tcp, answer)
        });
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        let new = start(new_upstream.address);
        assert_eq!((tables().len(), private().len()), (2, 4));
        node.ask_all("overlap");
        let asked = |sink: &Sink, prefix: &str| {
            sink.seen().iter().filter(|query| query.qname.starts_with(prefix)).count()
        };
        assert_eq!((asked(&old_upstream, "overlap"), asked(&new_upstream, "overlap")), (0, 8));
        kept.exchange(&ask("kept-2.example.org", qtype::A));
        assert_eq!(asked(&old_upstream, "kept-2"), 1, "an old connection stays with the old one");
        old.process.signal(libc::SIGTERM);
        assert!(kept.ends_within(Duration::from_secs(6)), "an idle connection is closed");
        let status = old.process.wait(Duration::from_secs(6));
        assert!(status.is_some_and(|status| status.success()), "{}", old.log());
        assert_eq!((tables().len(), private().len()), (1, 2), "only the new one's are left");
        node.ask_all("after");
        assert_eq!((asked(&new_upstream, "after"), node.ordinary()), (8, 0), "{}", new.log());
    });
}

#[test]
fn a_drained_daemon_leaves_nothing_behind() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let links = say("ip", &["-brief", "link"]);
        let mut daemon = start(upstream.address);
        node.ask_all("with");
        daemon.process.signal(libc::SIGTERM);
        let status = daemon.process.wait(Duration::from_secs(6));
        assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
        assert_eq!(tables(), Vec::<String>::new());
        assert_eq!(private(), Vec::<String>::new());
        assert_eq!(say("ip", &["-brief", "link"]), links);
        node.ask_all("without");
        assert_eq!(node.ordinary(), 8);
    });
}

#[test]
fn our_own_upstream_queries_pass_even_to_an_intercepted_address() {
    needs_node!();
    namespace::inside(|| {
        let node = Node::new();
        let daemon = start(ASKED[0]);
        let answer = node.try_pod(ASKED[0], "own.example.org", Duration::from_secs(5));
        let answer = answer.unwrap_or_else(|| panic!("no response:\n{}", daemon.log()));
        assert_eq!(answer.data(qtype::A), ["192.0.2.7"]);
        assert_eq!(node.cluster[0].seen_for("own.example.org.").len(), 1);
    });
}

#[test]
fn a_firewall_that_eats_our_packets_is_named_and_the_table_withdrawn() {
    needs_node!();
    for (hook, rule, told) in [
        ("input", "ip daddr 169.254.20.16/28 drop", "drops queries"),
        ("output", "meta l4proto udp udp sport 53 ip saddr 10.96.0.10 drop", "drops our responses"),
    ] {
        namespace::inside(|| {
            let (node, upstream) = (Node::new(), upstream());
            nft(&format!(
                "table inet wall {{\n chain wall {{ type filter hook {hook} priority 0; {rule}\n }}\n}}"
            ));
            let daemon = start(upstream.address);
            for number in 0..25 {
                let name = format!("eaten-{number}.example.org");
                let answer = node.try_pod(ASKED[0], &name, Duration::from_millis(10));
                assert!(answer.is_none(), "the firewall eats it");
            }
            let withdrawn = || daemon.metric("nodens_intercept_withdrawals_total", "") == 1.0;
            let more = || {
                node.try_pod(ASKED[0], "more.example.org", Duration::from_millis(10));
                withdrawn()
            };
            assert!(until(Duration::from_secs(5), more), "{}", daemon.log());
            assert!(daemon.log().contains(told), "{}", daemon.log());
            assert_eq!(tables(), Vec::<String>::new());
            assert!(until(Duration::from_secs(1), || !is_claiming(&daemon)));
        });
    }
}

#[test]
fn the_net_below_answers_for_the_node_address_while_nobody_else_does() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let lines = "fallback = [\"10.244.0.1:5353\"]";
        let tables_of = format!("[intercept]\nmode = \"takeover\"\n{lines}\n");
        let mut daemon = Setup::towards(upstream.address).tables(&tables_of).start();
        assert!(until(Duration::from_secs(3), || is_claiming(&daemon)), "{}", daemon.log());
        let asked = server("169.254.20.10");
        let both = |label: &str| {
            let name = |place: &str| ask(&format!("{label}-{place}.example.org"), qtype::A);
            node.in_pod(|| wire::udp(asked, &name("pod")));
            wire::udp(asked, &name("host"));
            node.in_pod(|| wire::tcp(asked, &name("pod-tcp")));
        };
        both("with");
        assert_eq!(node.ordinary(), 0);
        daemon.process.signal(libc::SIGKILL);
        daemon.process.wait(Duration::from_secs(2)).expect("it is dead");
        assert!(
            until(Duration::from_millis(500), || tables() == ["nodens-below"]),
            "{:?}",
            tables()
        );
        both("without");
        assert_eq!(node.ordinary(), 3);
        let cleaned = Command::new(env!("CARGO_BIN_EXE_nodens")).arg("cleanup").status();
        assert!(cleaned.expect("it runs").success());
        assert_eq!(tables(), Vec::<String>::new());
        assert_eq!(private(), Vec::<String>::new());
        assert!(!say("ip", &["-brief", "link"]).contains("nodens"));
    });
}

#[test]
fn what_others_remove_comes_back_within_a_second() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let daemon = start(upstream.address);
        let before = private();
        let has_dummy = say("ip", &["link"]).contains("nodens");
        let link = if has_dummy { "nodens" } else { "lo" };
        sh(&format!("ip address del {} dev {link}", before[0]));
        assert!(until(Duration::from_secs(1), || private().len() == 2), "{}", daemon.log());
        if has_dummy {
            sh("ip link del nodens");
        } else {
            before.iter().for_each(|ip| sh(&format!("ip address del {ip} dev lo")));
        }
        assert!(until(Duration::from_secs(1), || private().len() == 2), "{}", daemon.log());
        nft("flush ruleset");
        node.ask_all("mended");
        assert_eq!(node.ordinary(), 0, "{}", daemon.log());
        assert!(daemon.metric("nodens_intercept_repairs_total", "") >= 3.0);
    });
}

#[test]
fn without_the_capability_the_error_names_it_and_a_defaulted_mode_goes_without() {
    needs_node!();
    namespace::inside(|| {
        let upstream = upstream();
        for (mode, is_fatal) in [("mode = \"takeover\"", true), ("", false)] {
            let place = Place::new();
            let config = place.write(
                "nodens.toml",
                &format!(
                    "listen = [\"127.0.0.1:5399\"]\nupstreams = [\"{}\"]\n[admin]\nlisten = []\n\
                     socket = {:?}\n[intercept]\naddresses = [\"10.96.0.10\"]\n{mode}\n",
                    upstream.address,
                    place.path("admin.sock")
                ),
            );
            // In a user namespace of its own it has no power over this network namespace.
            let mut command = crate::harness::process::command("unshare");
            command.args(["--user", "--", env!("CARGO_BIN_EXE_nodens"), "run", "--config"]);
            command.arg(&config);
            let mut process = Process::start(command, &place.path("log"));
            if is_fatal {
                let status = process.wait(Duration::from_secs(5));
                assert_eq!(status.and_then(|s| s.code()), Some(1), "{}", process.log());
            } else {
                let answers = || process.log().contains("nodens answers");
                assert!(until(Duration::from_secs(5), answers), "{}", process.log());
            }
            for words in ["CAP_NET_ADMIN", "intercept.mode = \"none\""] {
                let said = || process.log().replace('\\', "").contains(words);
                assert!(until(Duration::from_secs(1), said), "{}", process.log());
            }
        }
    });
}

/// A number from the environment.
fn wished(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How often a fault is repeated; the nightly run asks for more.
pub fn rounds() -> usize {
    wished("IT_ROUNDS").and_then(|rounds| usize::try_from(rounds).ok()).unwrap_or(3)
}

/// A steady load on the asked address from the pod, 5,000 queries per second of 100 names; 20,000 in the
/// nightly run.
pub fn load(node: &Node, seconds: u64) -> Report {
    let names = (0..100).map(|n| format!("load-{n}.example.org A")).collect();
    let load = Load::full_speed(seconds, names).rate(wished("IT_RATE").unwrap_or(5000));
    node.in_pod(|| load.run(server(ASKED[0])))
}

#[test]
fn an_upgrade_under_load_loses_nothing_and_owes_no_connection_a_response() {
    needs_node!();
    needs!("dnsperf");
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        let mut old = start(upstream.address);
        for round in 0..rounds() {
            let mut connections: Vec<Tcp> =
                node.in_pod(|| (0..50).map(|_| Tcp::to(server(ASKED[0]))).collect());
            for tcp in &mut connections {
                tcp.exchange(&ask("kept.example.org", qtype::A));
            }
            let (report, new) = std::thread::scope(|scope| {
                let load = scope.spawn(|| load(&node, 4));
                std::thread::sleep(Duration::from_millis(800));
                let new = start(upstream.address);
                std::thread::sleep(Duration::from_millis(300));
                let owed = ask(&format!("owed-{round}.example.org"), qtype::A);
                connections.iter_mut().for_each(|tcp| tcp.send(&owed.to_wire()));
                old.process.signal(libc::SIGTERM);
                for tcp in &mut connections {
                    let response = tcp.receive(Duration::from_secs(5));
                    assert!(response.is_some(), "a response is owed:\n{}", old.log());
                    assert!(tcp.ends_within(Duration::from_secs(6)), "and then the end");
                }
                let status = old.process.wait(Duration::from_secs(6));
                assert!(status.is_some_and(|status| status.success()), "{}", old.log());
                (load.join().expect("the load ends"), new)
            });
            assert_eq!((report.lost, node.ordinary()), (0, 0), "round {round}:\n{}", report.text);
            assert!(report.sent > 10_000, "{}", report.text);
            old = new;
        }
    });
}

#[test]
fn a_kill_under_load_loses_only_what_was_in_flight() {
    needs_node!();
    needs!("dnsperf");
    namespace::inside_fairly(|| {
        let (node, upstream) = (Node::new(), upstream());
        for round in 0..rounds() {
            let daemon = start(upstream.address);
            let before = node.ordinary();
            let report = std::thread::scope(|scope| {
                let load = scope.spawn(|| load(&node, 2));
                std::thread::sleep(Duration::from_millis(1000));
                daemon.process.signal(libc::SIGKILL);
                load.join().expect("the load ends")
            });
            println!("round {round}: {} of {} lost", report.lost, report.sent);
            // dnsperf keeps at most 200 in flight.
            assert!(report.lost <= 200, "{}", report.text);
            assert!(node.ordinary() > before, "the rest took the ordinary path: {}", report.text);
            assert_eq!(tables(), Vec::<String>::new());
        }
    });
}

#[test]
fn an_asked_address_that_a_link_has_is_named_and_taken_all_the_same() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        sh(&format!("ip address add {}/32 dev up0", ASKED[0]));
        let daemon = start(upstream.address);
        node.ask_all("with");
        assert_eq!(node.ordinary(), 0);
        let log = daemon.log();
        assert!(log.contains("`ip address del 10.96.0.10 dev up0`"), "{log}");
    });
}
