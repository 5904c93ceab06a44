//! The manifests of `deploy/kubernetes` on a real API server: it takes every field of them, what the
//! DaemonSet's account may do is what nodens needs, and no more, and a pod of it answers.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::manifests::{file, objects, objects_in};
use crate::harness::node::{ASKED, Node, nft, server};
use crate::harness::pod::{Account, Pod, START, host_with, may_start_pods};
use crate::harness::{
    Answer, Place, Sink, Udp, ask, flag, namespace, needs, qtype, rcode, sink, until,
};
use crate::objects::{endpoint, headless, service, slice};
use crate::plane::{Plane, needs_kubernetes};

/// A name of the cluster zone.
const DB: &str = "db.default.svc.cluster.local";

/// What kubelets hand out for a cache on the node.
const HERE: &str = "169.254.20.10";

/// What threads of the resolver runtime are called.
const RESOLVER: &str = "resolver";

/// Queries on the hot path.
const HOT: u64 = 1000;

/// `nodens bench --set services` asks for the names of the Services that are there, more than a page of them.
fn services_are_asked_for(plane: &Plane, token: &str) {
    let spec = || json!({ "clusterIP": "None" });
    let many: Vec<_> = (0..600).map(|n| service("default", &format!("s{n}"), spec())).collect();
    plane.make_all(&many);
    let sink = Sink::start(|seen| sink::ordinary(seen).now());
    let config = plane.kubeconfig("bench", token);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.args(["bench", "-q", &sink.address.to_string(), "--set", "services", "--kubeconfig"]);
    command.arg(config).args(["--single", "--qps", "200", "--count", "700"]);
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked = sink.seen_for("s599.default.svc.cluster.local.").len();
    assert!(asked >= 1, "{asked}");
}

#[test]
fn the_api_server_takes_every_field_and_the_account_may_list_and_watch_and_no_more() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    for object in objects() {
        plane.apply(&object);
    }
    for name in ["job", "cronjob"] {
        let mut object: Value = serde_saphyr::from_str(&file(&format!("deploy/ci/{name}.yaml")))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        object["metadata"]["namespace"] = "default".into();
        plane.apply(&object);
    }
    let token = plane.token("nodens", "nodens");
    services_are_asked_for(&plane, &token);
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
    // With what is optional, Pods too, and no more.
    let optional = objects_in("deploy/kubernetes/optional");
    assert!(!optional.is_empty());
    optional.iter().for_each(|object| plane.apply(object));
    let may = |target| plane.ask_as(&token, "GET", target, None).0;
    assert!(until(START, || may("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1") == 200));
    assert_eq!(may("/api/v1/pods?watch=true&timeoutSeconds=1"), 200);
    for target in ["/api/v1/secrets", "/api/v1/namespaces/default/pods/x"] {
        assert_eq!(may(target), 403, "{target}");
    }
}

/// A node with a pod of the DaemonSet, and a control plane where kube-proxy would lead to it.
pub struct Stage {
    pub pod: Pod,
    pub node: Node,
    pub plane: Plane,
    /// The DaemonSet's.
    pub token: String,
    _host: Place,
    _upstream: Sink,
}

impl Stage {
    /// In the calling thread's own namespace; the manifests as `edit` leaves them.
    pub fn new(programs: &Path, edit: impl Fn(&mut Value)) -> Self {
        // Pods reach it by the node's address.
        let plane = Plane::start(programs, &["--bind-address=0.0.0.0"]);
        let node = Node::new();
        let mut objects = objects();
        objects.iter_mut().for_each(edit);
        objects.iter().for_each(|object| plane.apply(object));
        plane.make(&headless("default", "db", false));
        plane.make(&slice(("default", "db"), 0, ("IPv4", vec![endpoint("198.18.0.1")]), false));
        // The Service that pods ask, and what stands behind it.
        let ports = json!([{ "name": "dns", "protocol": "UDP", "port": 53 }]);
        let dns = json!({ "clusterIP": ASKED[0], "ports": ports, "selector": { "app": "dns" } });
        plane.make(&service("kube-system", "kube-dns", dns));
        let behind = ("IPv4", vec![endpoint("10.244.0.1")]);
        plane.make(&slice(("kube-system", "kube-dns"), 0, behind, true));
        // As kube-proxy leads to the API server.
        let port = plane.address().port();
        nft(&format!(
            "table ip api {{\nchain output {{ type nat hook output priority -100;\n\
             ip daddr 10.96.0.1 tcp dport 443 dnat to 127.0.0.1:{port}\n}}\n\
             chain pods {{ type nat hook prerouting priority -100;\n\
             ip daddr 10.96.0.1 tcp dport 443 redirect to :{port}\n}}\n}}"
        ));
        let account = Account {
            server: ([10, 96, 0, 1], 443).into(),
            token: plane.token("nodens", "nodens"),
            authority: std::fs::read_to_string(plane.place.path("apiserver.crt")).expect("PEM"),
        };
        let upstream = Sink::at(([198, 18, 9, 9], 53).into(), |seen| sink::ordinary(seen).now());
        let host = host_with(&objects, "nameserver 198.18.9.9\n");
        let mut pod = Pod::start(&objects, host.as_path(), &account);
        pod.wait();
        Self { pod, node, plane, token: account.token, _host: host, _upstream: upstream }
    }

    /// Asks from the pod behind the cable.
    fn ask(&self, asked: &str, name: &str) -> Option<Answer> {
        self.node.try_pod(asked, name, Duration::from_secs(5))
    }

    /// Waits until what is asked of `asked` is answered from the cluster zone.
    pub fn wait_for_zone(&self, asked: &str) {
        let is_ours = || self.ask(asked, DB).is_some_and(|answer| answer.has(flag::AA));
        assert!(until(START, is_ours), "{}", self.pod.process.log());
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
        let stage = Stage::new(&programs, |_| {});
        let log = || stage.pod.process.log();
        stage.wait_for_zone(ASKED[0]);
        let before = switches_of_resolvers(&stage.pod);
        let server = Udp::to(server(ASKED[0]));
        for _ in 0..HOT {
            assert_eq!(server.exchange(&ask(DB, qtype::A)).data(qtype::A), ["198.18.0.1"]);
        }
        let woken = switches_of_resolvers(&stage.pod) - before;
        assert!(woken < HOT / 2, "{HOT} queries woke the resolver's threads {woken} times");
        let outside = stage.ask(ASKED[0], "www.example.org").expect("an answer");
        assert_eq!(outside.data(qtype::A), ["192.0.2.7"]);
        assert!(!log().contains("forbids"), "{}", log());

        // What did not exist is answered when it does.
        let late = || stage.ask(ASKED[0], "late.default.svc.cluster.local");
        assert_eq!(late().map(|answer| answer.rcode()), Some(rcode::NXDOMAIN));
        stage.plane.make(&headless("default", "late", false));
        let of_it = ("IPv4", vec![endpoint("198.18.0.2")]);
        stage.plane.make(&slice(("default", "late"), 0, of_it, false));
        let is_there = || late().is_some_and(|answer| answer.data(qtype::A) == ["198.18.0.2"]);
        assert!(until(START, is_there), "{}", log());
        for path in ["/api/v1/secrets", "/api/v1/pods", "/api/v1/nodes"] {
            assert_eq!(stage.plane.ask_as(&stage.token, "GET", path, None).0, 403, "{path}");
        }
    });
}

/// The page about kubelets with `--cluster-dns=169.254.20.10`.
#[test]
fn pods_that_ask_the_nodes_address_are_answered_and_by_the_cluster_dns_after_a_kill() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "chroot");
    let (_alone, programs) = needs_kubernetes!();
    if !may_start_pods() {
        return;
    }
    let page = file("deploy/kubernetes/README.md");
    let line = page.lines().find(|line| line.starts_with("addresses = [") && line.contains(HERE));
    let line = line.expect("the page says what to write");
    let edit = |object: &mut Value| {
        if object["kind"] == "ConfigMap" {
            let text = object["data"]["nodens.toml"].as_str().expect("a text");
            let edited = text.replace("addresses = [\"10.96.0.10\"]", line);
            assert_ne!(text, edited);
            object["data"]["nodens.toml"] = edited.into();
        }
    };
    namespace::inside(|| {
        let stage = Stage::new(&programs, edit);
        stage.wait_for_zone(HERE);
        stage.wait_for_zone(ASKED[0]);
        let asked = || stage.node.cluster[0].seen_for(&format!("{DB}.")).len();
        // Before the first list some may have been forwarded.
        let forwarded = asked();
        assert!(stage.ask(HERE, DB).is_some());
        assert_eq!(asked(), forwarded, "nodens answers");
        let told = || stage.pod.process.log().contains("10.244.0.1:5353");
        assert!(until(START, told), "{}", stage.pod.process.log());
        stage.pod.process.signal(libc::SIGKILL);
        let is_by_cluster = || stage.ask(HERE, DB).is_some() && asked() > forwarded;
        assert!(until(START, is_by_cluster), "nobody answers behind {HERE}");
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
