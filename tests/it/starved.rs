//! Firewalls that eat a part of what is intercepted, while the rest passes.

use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::harness::node::{ASKED, Node, nft, server};
use crate::harness::{Udp, ask, namespace, qtype, until};
use crate::takeover::{needs_node, start, upstream};

/// Starts under this firewall; what `eaten` sends must have the table withdrawn, whatever `passing` gets through.
fn withdraws(rule: &str, said: &str, eaten: impl Fn(&Node) + Sync, passing: impl Fn(&Node) + Sync) {
    namespace::inside(|| {
        let (node, upstream) = (Node::new(), upstream());
        nft(&format!("table inet wall {{\n{rule}\n}}\n"));
        let daemon = start(upstream.address);
        let is_withdrawn = || {
            eaten(&node);
            passing(&node);
            daemon.metric("nodens_intercept_withdrawals_total", "") == 1.0
        };
        assert!(until(Duration::from_secs(20), is_withdrawn), "{said}:\n{}", daemon.log());
        assert!(daemon.log().contains(said), "{said}:\n{}", daemon.log());
    });
}

/// Queries that nobody waits for, to `asked` from wherever this is called.
fn send(asked: &str) {
    let stub = Udp::to(server(asked));
    (0..5).for_each(|_| stub.send(&ask("starved.example.org", qtype::A).to_wire()));
}

/// SYNs that nobody waits for.
pub fn knock(asked: &str) {
    for _ in 0..5 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        // It is under way, which is an error of its own.
        let _ = socket.connect(&server(asked).into());
    }
}

/// A base chain of a firewall with these rules.
fn chain(hook: &str, rules: &str) -> String {
    format!("chain wall {{ type filter hook {hook} priority 0;\n{rules}\n}}")
}

#[test]
fn a_firewall_without_dns_by_tcp_is_found_out_though_udp_passes() {
    needs_node!();
    let pod = |node: &Node| node.in_pod(|| knock(ASKED[0]));
    let rule = chain("input", "tcp dport 53 drop");
    withdraws(&rule, "TCP queries of pods by IPv4", pod, |node| node.in_pod(|| send(ASKED[0])));
}

#[test]
fn a_firewall_without_dns_by_ipv6_is_found_out_though_ipv4_passes() {
    needs_node!();
    let rule = chain("input", "ip6 daddr fd6e:6f64:656e::/120 drop");
    let (eaten, passing) = (
        |node: &Node| node.in_pod(|| send(ASKED[1])),
        |node: &Node| node.in_pod(|| send(ASKED[0])),
    );
    withdraws(&rule, "UDP queries of pods by IPv6", eaten, passing);
}

#[test]
fn a_firewall_between_pods_and_host_is_found_out_though_the_hosts_queries_pass() {
    needs_node!();
    let rule = chain("input", "iifname cable ip daddr 169.254.20.16/28 drop");
    let pod = |node: &Node| node.in_pod(|| send(ASKED[0]));
    withdraws(&rule, "UDP queries of pods by IPv4", pod, |_| send(ASKED[0]));
}

#[test]
fn a_firewall_that_eats_responses_by_ipv6_is_found_out_though_those_by_ipv4_pass() {
    needs_node!();
    let rule = chain("output", "meta nfproto ipv6 udp sport 53 drop");
    let (eaten, passing) = (
        |node: &Node| node.in_pod(|| send(ASKED[1])),
        |node: &Node| node.in_pod(|| send(ASKED[0])),
    );
    withdraws(&rule, "UDP responses to pods by IPv6", eaten, passing);
}
