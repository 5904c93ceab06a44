//! The manifests of `deploy/kubernetes` on a real API server: it takes every field of them, what the
//! DaemonSet's account may do is what nodens needs, and no more, and a pod of it answers.

use std::time::Duration;

use serde_json::json;

use crate::harness::manifests::objects;
use crate::harness::node::{ASKED, Node, nft, server};
use crate::harness::pod::{Account, Pod, START, host_with, may_start_pods};
use crate::harness::{Sink, Udp, ask, flag, namespace, needs, qtype, rcode, sink, until};
use crate::objects::{endpoint, headless, service, slice};
use crate::plane::{Plane, needs_kubernetes};

/// The DaemonSet's account.
const ACCOUNT: &str = "/api/v1/namespaces/nodens/serviceaccounts/nodens";

/// A token of the DaemonSet's account, as the kubelet asks for one.
fn token(plane: &Plane) -> String {
    let spec =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let token = plane.must("POST", &format!("{ACCOUNT}/token"), Some(&spec));
    token["status"]["token"].as_str().expect("a token").to_owned()
}

/// What threads of the resolver runtime are called.
const RESOLVER: &str = "resolver";

/// Queries on the hot path.
const HOT: u64 = 1000;

#[test]
fn the_api_server_takes_every_field_and_the_account_may_list_and_watch_and_no_more() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    for object in objects() {
        plane.apply(&object);
    }
    let token = token(&plane);
    let slices = "/apis/discovery.k8s.io/v1/endpointslices";
    for (method, path, code) in [
        ("GET", "/api/v1/namespaces", 200),
        ("GET", "/api/v1/services", 200),
        ("GET", slices, 200),
        ("GET", "/api/v1/namespaces?watch=true&timeoutSeconds=1", 200),
        ("GET", "/api/v1/services?watch=true&timeoutSeconds=1", 200),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices?watch=true&timeoutSeconds=1", 200),
        ("GET", "/api/v1/pods", 403),
        ("GET", "/api/v1/secrets", 403),
        ("GET", "/api/v1/nodes", 403),
        ("GET", "/api/v1/namespaces/nodens/configmaps", 403),
        ("GET", "/api/v1/namespaces/default/services/kubernetes", 403),
        ("DELETE", "/api/v1/namespaces/default/services/kubernetes", 403),
        ("POST", "/api/v1/namespaces/default/services", 403),
    ] {
        let body = (method == "POST").then(|| json!({ "apiVersion": "v1", "kind": "Service" }));
        let (said, answer) = plane.ask_as(&token, method, path, body.as_ref());
        assert_eq!(said, code, "{method} {path}: {answer}");
    }
}

/// The whole path, with nothing of the manifests left out.
#[test]
fn a_pod_with_the_daemonsets_own_token_syncs_and_answers_the_cluster_on_the_hot_path() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "chroot");
    let (_alone, programs) = needs_kubernetes!();
    if !may_start_pods() {
        return;
    }
    namespace::inside(|| {
        let plane = Plane::start(&programs, &[]);
        let node = Node::new();
        let objects = objects();
        objects.iter().for_each(|object| plane.apply(object));
        plane.make(&headless("default", "db", false));
        plane.make(&slice(("default", "db"), 0, ("IPv4", vec![endpoint("198.18.0.1")]), false));
        // The Service that pods ask, and what stands behind it.
        let ports = json!([{ "name": "dns", "protocol": "UDP", "port": 53 }]);
        let dns = json!({ "clusterIP": ASKED[0], "ports": ports, "selector": { "app": "dns" } });
        plane.make(&service("kube-system", "kube-dns", dns));
        // As kube-proxy leads to the API server.
        let port = plane.address().port();
        nft(&format!(
            "table ip api {{ chain output {{ type nat hook output priority -100;\n\
             ip daddr 10.96.0.1 tcp dport 443 dnat to 127.0.0.1:{port}\n}}\n}}"
        ));
        let account = Account {
            server: ([10, 96, 0, 1], 443).into(),
            token: token(&plane),
            authority: std::fs::read_to_string(plane.place.path("apiserver.crt")).expect("PEM"),
        };
        let _upstream = Sink::at(([198, 18, 9, 9], 53).into(), |seen| sink::ordinary(seen).now());
        let host = host_with(&objects, "nameserver 198.18.9.9\n");
        let mut pod = Pod::start(&objects, host.as_path(), &account);
        pod.wait();
        let ask_pod = |name: &str| node.try_pod(ASKED[0], name, Duration::from_secs(5));
        let name = "db.default.svc.cluster.local";
        let is_ours = || ask_pod(name).is_some_and(|answer| answer.has(flag::AA));
        assert!(until(START, is_ours), "{}", pod.process.log());
        let before = switches_of_resolvers(&pod);
        let server = Udp::to(server(ASKED[0]));
        for _ in 0..HOT {
            assert_eq!(server.exchange(&ask(name, qtype::A)).data(qtype::A), ["198.18.0.1"]);
        }
        let woken = switches_of_resolvers(&pod) - before;
        assert!(woken < HOT / 2, "{HOT} queries woke the resolver's threads {woken} times");
        assert_eq!(ask_pod("www.example.org").expect("an answer").data(qtype::A), ["192.0.2.7"]);
        assert!(!pod.process.log().contains("forbids"), "{}", pod.process.log());

        // A change is in the next answer, and a Service that comes is known.
        plane.make(&headless("default", "late", false));
        assert_eq!(
            ask_pod("late.default.svc.cluster.local").map(|a| a.rcode()),
            Some(rcode::NXDOMAIN)
        );
        plane.make(&slice(("default", "late"), 0, ("IPv4", vec![endpoint("198.18.0.2")]), false));
        let is_there = || {
            let answer = ask_pod("late.default.svc.cluster.local");
            answer.is_some_and(|answer| answer.data(qtype::A) == ["198.18.0.2"])
        };
        assert!(until(START, is_there), "{}", pod.process.log());
        for path in ["/api/v1/secrets", "/api/v1/pods", "/api/v1/nodes"] {
            assert_eq!(plane.ask_as(&account.token, "GET", path, None).0, 403, "{path}");
        }
    });
}

/// How often threads of the resolver runtime of a pod went to sleep: what the serving threads answer from
/// the cache wakes none of them.
fn switches_of_resolvers(pod: &Pod) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pod.process.pid())).expect("it lives");
    let mut found = 0;
    let mut switches = 0;
    for task in tasks {
        let task = task.expect("a task").path();
        let text = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if text("comm").starts_with(RESOLVER) {
            let status = text("status");
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.expect("a counter").trim().parse::<u64>().expect("a number");
            found += 1;
        }
    }
    assert!(found > 0, "no thread is called {RESOLVER}");
    switches
}
