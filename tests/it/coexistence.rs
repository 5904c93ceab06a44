//! Rules of others beside ours: they are loaded, flushed and reloaded while pods ask.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::load::{Load, Report};
use crate::harness::node::{ASKED, Node, TRANSLATION, nft, server, sh};
use crate::harness::process::{cannot_run, command};
use crate::harness::{Daemon, namespace, needs, until};
use crate::takeover::{is_claiming, needs_node, start, upstream};

/// Services of a rule set as kube-proxy writes it; more do not fit one batch of an ordinary user.
const SERVICES: usize = 40;

/// Counts how often we fell open.
const LAPSES: &str = "nodens_intercept_lapses_total";

/// What kube-proxy gives to iptables-restore: chains per service, the cluster DNS among them.
fn kube_proxy() -> String {
    let mut nat = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    for number in 0..SERVICES {
        nat += &format!(":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]\n");
    }
    nat += "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n";
    nat += "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully\n";
    for number in 0..SERVICES {
        let (ip, port) = match number {
            0 => (ASKED[0].to_owned(), 5353),
            _ => (format!("10.97.{}.{}", number / 250, number % 250), 80),
        };
        let ports = if number == 0 { 53 } else { 80 };
        for protocol in ["udp", "tcp"] {
            nat += &format!(
                "-A KUBE-SERVICES -d {ip}/32 -p {protocol} --dport {ports} -j KUBE-SVC-{number}\n\
                 -A KUBE-SEP-{number} -p {protocol} -j DNAT --to-destination 10.244.0.1:{port}\n"
            );
        }
        nat += &format!("-A KUBE-SVC-{number} -j KUBE-SEP-{number}\n");
    }
    nat + "COMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
           -A INPUT -m conntrack --ctstate INVALID -j DROP\n\
           -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
           -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"
}

/// Gives a whole rule set to `program`, which replaces what it had.
fn restore(program: &str, rules: &str) {
    let mut restore = command(program);
    // Its usual lock is root's; nobody else changes the rules of this namespace.
    restore.env("XTABLES_LOCKFILE", std::env::temp_dir().join("nodens-it-xtables.lock"));
    let mut child = restore.arg("-w").stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{program}");
}

/// Load from the pod while `others` do again and again what they do; nothing may be lost, and
/// everything be answered by us.
fn holds_beside(what: &str, others: impl Fn() + Sync) {
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        others();
        let daemon = start(upstream.address);
        for _ in 0..3 {
            let (before, lapses) = (node.ordinary(), daemon.metric(LAPSES, ""));
            let report = load_beside(&node, what, &others);
            if daemon.metric(LAPSES, "") > lapses {
                // A starved daemon falls open, and then others' rules are in the way. Not what is asked here.
                println!("{what}: this machine is too busy; once more\n{}", daemon.log());
                assert!(
                    until(Duration::from_secs(20), || is_claiming(&daemon)),
                    "{}",
                    daemon.log()
                );
                continue;
            }
            assert_eq!((report.lost, node.ordinary()), (0, before), "{what}: {}", report.text);
            assert!(report.sent > 3000, "{}", report.text);
            return;
        }
        panic!("{what}: never without a lapse:\n{}", daemon.log());
    });
}

/// The load's report; meanwhile `others` do again and again what they do.
fn load_beside(node: &Node, what: &str, others: &(impl Fn() + Sync)) -> Report {
    let names = (0..50).map(|n| format!("beside-{n}.example.org A")).collect();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let load = Load::full_speed(3, names).rate(2000);
            let report = node.in_pod(|| load.run(server(ASKED[0])));
            ended.store(true, Ordering::Relaxed);
            report
        });
        let mut times = 0;
        while !ended.load(Ordering::Relaxed) {
            others();
            times += 1;
        }
        println!("{what}: {times} times");
        assert!(times >= 2, "{what}: {times} times");
        load.join().expect("the load ends")
    })
}

#[test]
fn kube_proxys_rules_reloaded_by_iptables_nft_change_nothing() {
    needs_node!();
    needs!("dnsperf", "iptables-nft-restore");
    let rules = kube_proxy();
    holds_beside("iptables-nft", || restore("iptables-nft-restore", &rules));
}

#[test]
fn kube_proxys_rules_reloaded_by_iptables_legacy_change_nothing() {
    needs_node!();
    needs!("dnsperf", "iptables-legacy-restore", "iptables-legacy");
    let listed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "iptables-legacy", "-t", "nat", "-L"])
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("XTABLES_LOCKFILE", std::env::temp_dir().join("nodens-it-xtables.lock"))
        .output();
    if !listed.is_ok_and(|output| output.status.success()) {
        return cannot_run("needs a kernel with iptables' own tables");
    }
    let rules = kube_proxy();
    holds_beside("iptables-legacy", || restore("iptables-legacy-restore", &rules));
}

#[test]
fn nftables_rules_of_others_flushed_and_loaded_change_nothing() {
    needs_node!();
    needs!("dnsperf");
    let firewall = "
table inet wall {
  chain input { type filter hook input priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname lo accept
    meta l4proto { icmp, ipv6-icmp } accept
    meta l4proto { udp, tcp } th dport { 53, 5353 } accept
  }
  chain raw { type filter hook prerouting priority raw;
    ip saddr 192.0.2.1 drop
  }
  chain output { type filter hook output priority 0;
    ct state invalid drop
  }
}
";
    let script = format!("flush ruleset\n{TRANSLATION}{firewall}");
    holds_beside("nft flush ruleset", || nft(&script));
}

#[test]
fn a_default_deny_input_without_port_53_is_found_out_and_the_table_withdrawn_with_the_mend() {
    needs_node!();
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        sh("iptables-nft -A INPUT -i lo -j ACCEPT
            iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
            iptables-nft -A INPUT -p udp --dport 5353 -j ACCEPT
            iptables-nft -P INPUT DROP");
        let daemon = start(upstream.address);
        let ask = |name: &str| node.try_pod(ASKED[0], name, Duration::from_millis(10));
        for number in 0..25 {
            assert!(ask(&format!("eaten-{number}.example.org")).is_none(), "it is dropped");
        }
        let is_withdrawn = |daemon: &Daemon| {
            ask("more.example.org");
            daemon.metric("nodens_intercept_withdrawals_total", "") == 1.0
        };
        assert!(until(Duration::from_secs(5), || is_withdrawn(&daemon)), "{}", daemon.log());
        assert!(node.takes_ordinary_path(true, "open", Duration::from_secs(2)));
        // The mend, as the log says it.
        let log = daemon.log();
        assert!(log.contains("iptables -I INPUT -m conntrack --ctstate UNTRACKED -d"), "{log}");
        drop(daemon);
        sh("iptables-nft -I INPUT -m conntrack --ctstate UNTRACKED -d 169.254.20.16/28 -j ACCEPT");
        let daemon = start(upstream.address);
        assert!(
            node.takes_ordinary_path(false, "mended", Duration::from_secs(2)),
            "{}",
            daemon.log()
        );
    });
}
