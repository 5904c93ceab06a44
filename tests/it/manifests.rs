//! The manifests of `deploy/kubernetes`: the daemon runs as they say, and two pods of one node get along.

use std::time::Duration;

use serde_json::Value;

use crate::harness::manifests::{object, objects, texts};
use crate::harness::node::{ASKED, Node, server};
use crate::harness::pod::{Account, Pod, START, host_with, may_start_pods};
use crate::harness::{Sink, ask, namespace, needs, qtype, sink, until, wire};

#[test]
fn a_pod_of_the_daemonset_answers_as_the_manifests_say_and_its_successor_takes_over() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "chroot");
    if !may_start_pods() {
        return;
    }
    namespace::inside(|| {
        let node = Node::new();
        let upstream = Sink::at(([198, 18, 9, 9], 53).into(), |seen| sink::ordinary(seen).now());
        let objects = objects();
        let host = host_with(&objects, "nameserver 198.18.9.9\n");
        // Without an API server: what the cluster zone would answer is forwarded.
        let account = Account::of_nobody();
        let mut first = Pod::start(&objects, host.as_path(), &account);
        first.wait();
        for key in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(first.status(key), "0000000000001400", "{key}");
        }
        assert_eq!(first.status("NoNewPrivs"), "1");
        let ask_pod = |name: &str| {
            let answer = node.try_pod(ASKED[0], name, Duration::from_secs(5));
            answer.unwrap_or_else(|| panic!("{name} was not answered"))
        };
        assert!(node.takes_ordinary_path(false, "first", START), "{}", first.process.log());
        assert_eq!(ask_pod("www.example.org").data(qtype::A), ["192.0.2.7"]);
        assert_eq!(upstream.seen_for("www.example.org.").len(), 1, "{}", first.process.log());
        ask_pod("kubernetes.default.svc.cluster.local");
        let cluster = node.cluster[0].seen_for("kubernetes.default.svc.cluster.local.");
        assert_eq!(cluster.len(), 1, "the cluster's names are asked of the cluster DNS");

        let mut second = Pod::start(&objects, host.as_path(), &account);
        second.wait();
        assert!(first.probe("livenessProbe").status.success(), "each has a socket of its own");
        assert!(node.takes_ordinary_path(false, "both", START));
        first.process.signal(libc::SIGTERM);
        let status = first.process.wait(START);
        assert!(status.is_some_and(|status| status.success()), "{}", first.process.log());
        assert!(second.probe("readinessProbe").status.success());
        assert!(node.takes_ordinary_path(false, "second", START), "{}", second.process.log());
        let metrics = || std::net::TcpStream::connect("127.0.0.1:9253").is_ok();
        assert!(until(START, metrics), "it gets the admin address when the first has left");
        let server = server(ASKED[0]);
        let host_process = wire::tcp(server, &ask("host.example.org", qtype::A));
        assert_eq!(host_process.data(qtype::A), ["192.0.2.7"]);
    });
}

#[test]
fn the_manifests_say_what_a_node_agent_must_say() {
    let objects = objects();
    let daemonset = &object(&objects, "DaemonSet")["spec"];
    let spec = &daemonset["template"]["spec"];
    let container = &spec["containers"][0];
    let rolling = &daemonset["updateStrategy"]["rollingUpdate"];
    for (what, found, must) in [
        ("maxSurge", &rolling["maxSurge"], Value::from(1)),
        ("maxUnavailable", &rolling["maxUnavailable"], Value::from(0)),
        ("hostNetwork", &spec["hostNetwork"], true.into()),
        ("dnsPolicy", &spec["dnsPolicy"], "Default".into()),
        ("priorityClassName", &spec["priorityClassName"], "system-node-critical".into()),
        ("seccomp", &spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault".into()),
        ("ports", &container["ports"], Value::Null),
        ("tolerations", &spec["tolerations"][0]["operator"], "Exists".into()),
        ("root", &container["securityContext"]["readOnlyRootFilesystem"], true.into()),
    ] {
        assert_eq!(found, &must, "{what}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string(), "a memory limit");
    for rule in object(&objects, "ClusterRole")["rules"].as_array().expect("rules") {
        assert_eq!(texts(&rule["verbs"]), ["list", "watch"], "nodens changes nothing: {rule}");
    }
}
