//! Exactly the planned steps, as `nft monitor` and `ip monitor` see them; nothing of others is touched.

use std::collections::BTreeMap;
use std::time::Duration;

use nodens::netlink::expr::{Expr, REG_1};
use nodens::netlink::netfilter::Netfilter;
use nodens::netlink::nft::{Batch, ChainKind, Hook, Place as Spot, Table};

use crate::harness::node::{Node, say};
use crate::harness::process::{Process, command};
use crate::harness::{Daemon, Place, namespace, until};
use crate::takeover::{needs_node, private, start, upstream};

/// What a program watches.
struct Monitor {
    process: Process,
    _place: Place,
}

impl Monitor {
    /// Starts `program monitor …`; it sees what happens from now on.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let place = Place::new();
        let mut monitor = command(program);
        monitor.args(arguments);
        let process = Process::start(monitor, &place.path("monitor"));
        std::thread::sleep(Duration::from_millis(500));
        Self { process, _place: place }
    }

    /// Waits until it has seen `text`, and a while longer; everything that it has seen.
    fn seen(&self, text: &str) -> String {
        let found = || self.process.log().contains(text);
        assert!(until(Duration::from_secs(5), found), "{text} is not in {}", self.process.log());
        std::thread::sleep(Duration::from_millis(500));
        self.process.log()
    }
}

/// Counts what was done: verb, object and its name (of rules their chain), the table's id left out.
fn counted(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())) {
        let words: Vec<_> = line.split_whitespace().collect();
        let table = words.get(3).copied().unwrap_or_default();
        assert!(table.starts_with("nodens-"), "not ours: {line}");
        let name = words.get(4).copied().unwrap_or_default();
        let step = [words[0], words[1], name].join(" ");
        *counts.entry(step.trim().to_owned()).or_default() += 1;
    }
    counts
}

/// The same from a list of steps, each with its number.
fn planned(steps: &[(&str, usize)]) -> BTreeMap<String, usize> {
    steps.iter().map(|(step, count)| ((*step).to_owned(), *count)).collect()
}

/// Everything that the table is made of; each object is deleted by itself in the monitor's eyes.
const MADE: [(&str, usize); 32] = [
    ("create table", 1),
    ("add set alive", 1),
    ("add set asked4", 1),
    ("add set asked6", 1),
    ("add map to4", 1),
    ("add map from4", 1),
    ("add map mine4", 1),
    ("add map to6", 1),
    ("add map from6", 1),
    ("add map mine6", 1),
    ("add element asked4", 1),
    ("add element asked6", 1),
    ("add element to4", 1),
    ("add element from4", 1),
    ("add element to6", 1),
    ("add element from6", 1),
    ("add chain queries", 1),
    ("add chain flows", 1),
    ("add chain redirect", 1),
    ("add chain local", 1),
    ("add chain answers", 1),
    ("add chain arriving", 1),
    ("add chain leaving", 1),
    ("add chain beat", 1),
    ("add chain pre", 1),
    ("add chain out", 1),
    ("add chain in", 1),
    ("add chain post", 1),
    ("add rule beat", 1),
    ("add rule queries", 6),
    ("add rule flows", 2),
    ("add rule redirect", 2),
];

/// The rules of the chains that differ by nothing but their place.
const HOOKED: [(&str, usize); 8] = [
    ("add rule pre", 1),
    ("add rule out", 3),
    ("add rule in", 1),
    ("add rule post", 1),
    ("add rule local", 7),
    ("add rule answers", 8),
    ("add rule arriving", 8),
    ("add rule leaving", 8),
];

/// The counters: each stage by protocol, family and place.
fn counters() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for stage in ["rewritten", "arrived", "answered", "left"] {
        for kind in ["udp4", "udp6", "tcp4", "tcp6"] {
            for place in ["", "-host"] {
                names.insert(format!("add counter {stage}-{kind}{place}"), 1);
            }
        }
    }
    names.extend(["tcp4", "tcp6"].map(|kind| (format!("add counter given-back-{kind}-host"), 1)));
    names
}

/// Ends the daemon by SIGTERM.
fn end(daemon: &mut Daemon) {
    daemon.process.signal(libc::SIGTERM);
    let status = daemon.process.wait(Duration::from_secs(8));
    assert!(status.is_some_and(|status| status.success()), "{}", daemon.log());
}

#[test]
fn the_rule_set_changes_by_our_table_alone_and_not_at_all_while_we_run() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let before = say("nft", &["list", "ruleset"]);
        for _ in 0..2 {
            let monitor = Monitor::start("nft", &["monitor"]);
            let mut daemon = start(upstream.address);
            let made = monitor.seen("create table inet nodens-");
            let mut whole = planned(&[&MADE[..], &HOOKED].concat());
            whole.extend(counters());
            assert_eq!(counted(&made), whole, "{made}");
            assert_eq!(made.matches("# new generation").count(), 1, "one batch: {made}");
            node.ask_all("with");
            std::thread::sleep(Duration::from_millis(1500));
            assert_eq!(monitor.process.log(), made, "heartbeats and looks change nothing");
            end(&mut daemon);
            let ended = monitor.seen("delete table inet nodens-");
            let ended = ended.strip_prefix(&made).expect("more of it");
            let steps = counted(ended);
            assert!(steps.keys().all(|step| step.starts_with("delete ")), "{steps:?}");
            assert_eq!(steps["delete rule queries"], 6);
            // The drain's, and the end's.
            assert_eq!(ended.matches("# new generation").count(), 2, "{ended}");
            assert_eq!(say("nft", &["list", "ruleset"]), before, "others' rules are as they were");
        }
    });
}

#[test]
fn links_addresses_and_routes_change_by_ours_alone_and_the_same_at_each_start() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        let state = || [say("ip", &["address"]), say("ip", &["route", "show", "table", "all"])];
        node.settle();
        let before = state();
        let mut rounds = Vec::new();
        for _ in 0..2 {
            let monitor = Monitor::start("ip", &["-o", "monitor", "link", "address", "route"]);
            let mut daemon = start(upstream.address);
            let ours: Vec<_> = private()
                .iter()
                .map(|ip| ip.split('/').next().unwrap_or_default().to_owned())
                .collect();
            let made = monitor.seen(&ours[0]);
            node.ask_all("with");
            std::thread::sleep(Duration::from_millis(1500));
            assert_eq!(monitor.process.log(), made, "looks change nothing");
            end(&mut daemon);
            let all = monitor.seen("Deleted");
            // Neighbours and caches are not watched; what is seen names an address or link of ours.
            let is_ours = |line: &&str| {
                ours.iter().any(|ip| line.contains(ip.as_str())) || line.contains(" nodens")
            };
            let foreign: Vec<_> = all.lines().filter(|line| !is_ours(line)).collect();
            assert_eq!(foreign, Vec::<&str>::new(), "{all}");
            let count = |word: &str| all.lines().filter(|line| line.contains(word)).count();
            rounds.push((count("Deleted"), all.lines().count()));
            assert_eq!(state(), before);
        }
        assert_eq!(rounds[0], rounds[1], "the second start does what the first did");
    });
}

#[test]
fn errors_carry_the_kernels_own_words() {
    needs_node!();
    namespace::inside(|| {
        use nodens::netlink::addresses::{Addresses, LinkAddress};
        let mut addresses = Addresses::open().expect("a socket");
        let link = addresses.link("lo").expect("asked").expect("there");
        let ip = "192.0.2.77".parse().expect("an address");
        let error = addresses.remove(LinkAddress { link, ip }).expect_err("it has it not");
        let text = error.to_string();
        assert!(text.starts_with("cannot remove the address 192.0.2.77: "), "{text}");
        assert!(text.ends_with("(ipv4: Address not found)"), "the kernel's words: {text}");
        // A batch names the object, too.
        let (table, mut batch) = (Table::inet("example"), Batch::default());
        batch.add_table(&table, 0);
        let spot = Spot { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300 };
        batch.add_chain(&table, "pre", Some(spot));
        let set = "unknown".to_owned();
        batch.add_rule(&table, "pre", &[Expr::Lookup { set, key: REG_1, into: None }]);
        let error = Netfilter::open().expect("a socket").apply(&batch).expect_err("no such set");
        assert!(
            error.to_string().contains("add rule to chain pre of table inet example"),
            "{error}"
        );
    });
}
