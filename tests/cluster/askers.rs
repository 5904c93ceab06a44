//! Search lists completed on the node: told by the pods that the API server has, and as CoreDNS's autopath
//! completes them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::message::Answer;
use crate::harness::{Sink, Udp, ask, name_to_wire, qtype, rcode, until};
use crate::objects::{OUTSIDE, namespace, service};
use crate::plane::{Plane, needs_kubernetes, path};

/// A pod of namespace `shop-0` on the first node, one on another node, and one of nobody.
const HERE: &str = "127.0.0.11";
const ELSEWHERE: &str = "127.0.0.12";
const NOBODY: &str = "127.0.0.13";

/// Makes a running pod with this address.
fn run_pod(plane: &Plane, name: &str, node: &str, address: &str) {
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop-0" },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "none" }] } });
    plane.make(&pod);
    pod["status"] = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
    plane.must("PUT", &format!("{}/status", path(&pod)), Some(&pod));
}

/// A Service with an address.
fn plain(namespace: &str, name: &str) -> Value {
    service(namespace, name, json!({ "ports": [{ "name": "http", "port": 80 }] }))
}

/// What is outside: one name with one address.
fn world() -> Sink {
    let outside = format!("{OUTSIDE}.");
    Sink::start(move |seen| match (seen.qname == outside, seen.qtype) {
        (true, qtype::A) => seen.reply().a(seen, 300, [192, 0, 2, 80]).now(),
        (true, _) => seen.reply().soa(300, 300).now(),
        _ => seen.reply().rcode(rcode::NXDOMAIN).soa(300, 300).now(),
    })
}

/// The answer to who asks from `source`.
fn from(source: &str, server: SocketAddr, name: &str, kind: u16) -> Answer {
    Udp::from(source.parse().expect("an address"), server).exchange(&ask(name, kind))
}

/// What is compared: the code and the records of the answer section without their TTLs; of NODATA no alias, which
/// CoreDNS leaves out there.
fn said(answer: &Answer) -> (u16, BTreeSet<(String, u16, String)>) {
    let has_data = answer.answers.iter().any(|record| record.rtype != qtype::CNAME);
    let records = answer.answers.iter().filter(|_| has_data);
    let records = records.map(|r| (r.owner.to_lowercase(), r.rtype, r.data.clone())).collect();
    (answer.rcode(), records)
}

#[test]
fn search_lists_are_completed_as_corednss_autopath_does_for_the_pods_of_this_node() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    ["shop-0", "shop-1"].iter().for_each(|name| drop(plane.make(&namespace(name))));
    plane.make(&plain("shop-0", "own"));
    plane.make(&plain("shop-1", "web"));
    run_pod(&plane, "a", "node-1", HERE);
    run_pod(&plane, "b", "node-2", ELSEWHERE);
    let world = world();
    let forward = format!("autopath cluster.local @kubernetes\nforward . {}", world.address);
    let reference = plane.coredns("pods verified\n ttl 5", &forward);
    let nodens = plane.nodens(world.address, "search = true\nnode = \"node-1\"");
    let first = format!("{OUTSIDE}.shop-0.svc.cluster.local");
    let is_found = || from(HERE, nodens.address(), &first, qtype::A).rcode() == rcode::NOERROR;
    assert!(until(Duration::from_secs(30), is_found), "{}", nodens.log());

    let mut found = 0;
    for base in [
        OUTSIDE,
        "nothing.example.org",
        "own",
        "absent",
        "web.shop-1",
        "web.shop-1.svc",
        "web.shop-1.svc.cluster.local",
        "_http._tcp.web.shop-1",
        "kubernetes.default",
    ] {
        for end in
            [".shop-0.svc.cluster.local", ".shop-1.svc.cluster.local", ".svc.cluster.local", ""]
        {
            let name = format!("{base}{end}");
            for kind in [qtype::A, qtype::AAAA, qtype::SRV, qtype::TXT] {
                let ours = from(HERE, nodens.address(), &name, kind);
                let theirs = from(HERE, reference.address, &name, kind);
                assert_eq!(said(&ours), said(&theirs), "{name} {kind}");
                let leads = ours.answers.first().filter(|record| record.rtype == qtype::CNAME);
                found += usize::from(leads.is_some_and(|record| record.ttl == 5));
            }
        }
    }
    assert!(found >= 15, "{found} answers were found further down");
    // Who is no pod of this node gets the ordinary answer.
    for source in [ELSEWHERE, NOBODY] {
        let answer = from(source, nodens.address(), &first, qtype::A);
        assert_eq!((answer.rcode(), answer.answers.len()), (rcode::NXDOMAIN, 0), "{source}");
    }
    plane.must("DELETE", "/api/v1/namespaces/shop-0/pods/a?gracePeriodSeconds=0", None);
    let is_gone = || from(HERE, nodens.address(), &first, qtype::A).rcode() == rcode::NXDOMAIN;
    assert!(until(Duration::from_secs(30), is_gone), "{}", nodens.log());
}

/// What the cluster DNS knows where the zone is only forwarded.
type Known = std::sync::Arc<std::sync::Mutex<Vec<(&'static str, u16, Vec<u8>)>>>;

#[test]
fn a_zone_that_is_only_forwarded_forgets_exactly_what_the_api_server_tells_of() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    plane.make(&namespace("shop-0"));
    let known = Known::default();
    let dns = Sink::start({
        let known = known.clone();
        move |seen| {
            let known = known.lock().expect("no panic elsewhere");
            let is_it = |(name, kind, _): &&(&str, u16, Vec<u8>)| {
                seen.qname == *name && seen.qtype == *kind
            };
            match known.iter().find(is_it) {
                Some((_, kind, data)) => seen.reply().answer(&seen.qname, *kind, 3600, data).now(),
                None => seen.reply().rcode(rcode::NXDOMAIN).soa_of(".", 3600, 3600).now(),
            }
        }
    });
    let config = plane.kubeconfig("nodens", crate::plane::NODENS);
    let table = format!("[cluster]\nsource = \"forward\"\nkubeconfig = {config:?}");
    let nodens = crate::harness::Setup::towards(dns.address).tables(&table).start();
    let listed = || nodens.metric("nodens_cluster_synced", "") == 1.0;
    assert!(until(Duration::from_secs(30), listed), "{}", nodens.log());

    let (late, other) = ("late.shop-0.svc.cluster.local", "other.shop-0.svc.cluster.local");
    let reverse = "77.0.96.10.in-addr.arpa";
    let answer = |name: &str, kind| from("127.0.0.1", nodens.address(), name, kind);
    let asked = |name: &str| dns.seen_for(&format!("{name}.")).len();
    for _ in 0..2 {
        for (name, kind) in [(late, qtype::A), (other, qtype::A), (reverse, qtype::PTR)] {
            assert_eq!(answer(name, kind).rcode(), rcode::NXDOMAIN, "{name}");
        }
    }
    assert_eq!([late, other, reverse].map(asked), [1, 1, 1], "negative answers are kept");
    // A Service comes: the cluster DNS knows it, and so do we, though all that was kept had an hour to go.
    known.lock().expect("no panic").extend([
        ("late.shop-0.svc.cluster.local.", qtype::A, vec![10, 96, 0, 77]),
        ("77.0.96.10.in-addr.arpa.", qtype::PTR, name_to_wire(late)),
    ]);
    let spec = json!({ "clusterIP": "10.96.0.77", "ports": [{ "port": 80 }] });
    plane.make(&service("shop-0", "late", spec));
    let has_come = || {
        answer(late, qtype::A).data(qtype::A) == ["10.96.0.77"]
            && answer(reverse, qtype::PTR).data(qtype::PTR) == [format!("{late}.")]
    };
    assert!(until(Duration::from_secs(30), has_come), "{}", nodens.log());
    // It goes, and its answers too.
    known.lock().expect("no panic").clear();
    plane.must("DELETE", "/api/v1/namespaces/shop-0/services/late", None);
    let has_gone = || {
        [(late, qtype::A), (reverse, qtype::PTR)]
            .iter()
            .all(|(name, kind)| answer(name, *kind).rcode() == rcode::NXDOMAIN)
    };
    assert!(until(Duration::from_secs(30), has_gone), "{}", nodens.log());
    answer(other, qtype::A);
    assert_eq!(asked(other), 1, "what nobody touched was kept all along");
}
