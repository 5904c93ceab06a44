//! Reloads beside an API server of the test's own: Services that become upstreams and are none any more, and
//! what waits for a restart.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Daemon, Setup, Sink, ask, qtype, rcode, until, wire};
use crate::scripted::Scripted;

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// An upstream that answers every A query with 192.0.2.`last`.
fn upstream(last: u8) -> Sink {
    Sink::start(move |seen| seen.reply().a(seen, 0, [192, 0, 2, last]).now())
}

/// The EndpointSlice of `shop/corp` with this endpoint.
fn slice(endpoint: &Sink, version: u32) -> Value {
    let labels = json!({ "kubernetes.io/service-name": "corp" });
    json!({ "addressType": "IPv4", "endpoints": [{ "addresses": ["127.0.0.1"] }],
        "metadata": { "name": "corp-1", "namespace": "shop", "labels": labels,
            "resourceVersion": version.to_string() },
        "ports": [{ "name": "dns", "protocol": "UDP", "port": endpoint.address.port() }] })
}

/// A daemon that watches `server` and forwards to `root`, with these lines of `[cluster]` besides.
fn start(server: &Scripted, root: &Sink, cluster: &str) -> Daemon {
    let config: PathBuf = server.kubeconfig(&json!({ "token": "one" }));
    let table = format!("[cluster]\nsource = \"watch\"\nkubeconfig = {config:?}\n{cluster}\n");
    let daemon = Setup::towards(root.address).tables(&table).start();
    assert!(until(PATIENCE, || daemon.metric("nodens_cluster_synced", "") == 1.0));
    daemon
}

/// The address that is answered now; a failure is none.
fn answered(daemon: &Daemon) -> String {
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(answer.rcode(), rcode::NOERROR, "{:?}\n{}", answer.ede(), daemon.log());
    answer.data(qtype::A).join(" ")
}

/// Loads `text` and waits until it is in force.
fn load(daemon: &Daemon, text: &str) {
    let before = daemon.metric("nodens_reloads_total", "");
    daemon.reload(text);
    let loaded = || daemon.metric("nodens_reloads_total", "") > before;
    assert!(until(PATIENCE, loaded), "{}", daemon.log());
}

/// What was asked last of the slices by name.
fn named(server: &Scripted) -> String {
    let asked = server.asked();
    let last = asked.iter().rev().find(|asked| asked.target.contains("%20in%20"));
    last.expect("slices are asked for by name").target.clone()
}

#[test]
fn a_service_that_a_reload_names_is_followed_at_once_and_no_more_when_it_is_dropped() {
    let server = Scripted::start();
    let (root, first, second) = (upstream(9), upstream(1), upstream(2));
    let daemon = start(&server, &root, "");
    assert_eq!(answered(&daemon), "192.0.2.9");
    assert!(!named(&server).contains("corp"));
    server.hold("named", &[slice(&first, 1)]);
    let zone = "[[forward]]\nzone = \"example.org\"\nupstreams = [\"service:shop/corp\"]\n";
    let text = daemon.text.clone() + zone;
    for _ in 0..2 {
        load(&daemon, &text);
        assert_eq!(answered(&daemon), "192.0.2.1", "the first query has an upstream");
    }
    assert!(named(&server).contains("corp"), "{}", named(&server));
    server.say("named", "MODIFIED", &slice(&second, 2));
    assert!(until(PATIENCE, || answered(&daemon) == "192.0.2.2"), "{}", daemon.log());
    server.hold("named", &[]);
    load(&daemon, &daemon.text);
    assert_eq!(answered(&daemon), "192.0.2.9");
    assert!(until(PATIENCE, || !named(&server).contains("corp")), "{}", named(&server));
    // Nothing of it is remembered when it comes again without an endpoint.
    let asked = second.seen().len();
    load(&daemon, &text);
    let answer = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!((answer.rcode(), second.seen().len()), (rcode::SERVFAIL, asked), "{}", daemon.log());
    assert!(daemon.log().contains("has no endpoints yet"), "{}", daemon.log());
    server.hold("named", &[slice(&first, 3)]);
    server.say("named", "ADDED", &slice(&first, 3));
    let again = || {
        let answer = wire::udp(daemon.address(), &ask("again.example.org", qtype::A));
        answer.data(qtype::A) == ["192.0.2.1"]
    };
    assert!(until(PATIENCE, again), "{}", daemon.log());
}

#[test]
fn what_waits_for_a_restart_is_said_and_what_is_shown_is_in_force() {
    let (server, root) = (Scripted::start(), upstream(9));
    let daemon = start(&server, &root, "ttl = \"7s\"");
    let shown = || daemon.admin("/config").body;
    assert!(shown().contains("ttl = \"7s\"") && !shown().contains("restart"), "{}", shown());
    load(&daemon, &daemon.text.replace("ttl = \"7s\"", "ttl = \"9s\"\ndomains = [\"a.example\"]"));
    let text = shown();
    assert!(
        text.contains("ttl = \"7s\"") && text.contains("domains = [\"cluster.local.\"]"),
        "{text}"
    );
    for key in ["cluster.ttl", "cluster.domains"] {
        assert!(text.contains(&format!("# {key} is written otherwise")), "{text}");
        let said = daemon.log().lines().any(|line| line.contains(key) && line.contains("restart"));
        assert!(said, "{key}: {}", daemon.log());
    }
    let soa = wire::udp(daemon.address(), &ask("cluster.local", qtype::SOA));
    assert_eq!(soa.ttl(), Some(7), "as it is shown");
    load(&daemon, &daemon.text);
    assert!(!shown().contains("restart"), "{}", shown());
}
