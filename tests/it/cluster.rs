//! The cluster zone from a folder of manifests: what it answers, and that changes are seen.

use std::fmt::Write;
use std::time::Duration;

use crate::harness::message::flag;
use crate::harness::{Daemon, Place, Setup, Sink, ask, qtype, rcode, until, wire};

/// A namespace, a Service with an address, a headless one, an alias that leads out.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 198.18.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop}
spec: {type: ExternalName, externalName: www.example.org}
"#;

/// The EndpointSlice of `db` with `count` endpoints.
fn slice(count: usize) -> String {
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                    metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\n\
                    addressType: IPv4\nendpoints:\n"
        .to_owned();
    for number in 0..count {
        let (high, low) = (number / 250, number % 250 + 1);
        writeln!(text, "- {{addresses: [198.19.{high}.{low}], hostname: db-{number}}}")
            .expect("text");
    }
    text
}

/// A daemon over the folder; what is not of the cluster gets 192.0.2.9.
fn start(place: &Place) -> (Daemon, Sink) {
    let sink = Sink::start(|seen| seen.reply().a(seen, 60, [192, 0, 2, 9]).now());
    let folder = place.path("manifests");
    let keys = format!(
        "[cluster]\nsource = \"files\"\nfolder = {folder:?}\n[local]\nprivate_reverse = true"
    );
    let daemon = Setup::towards(sink.address).tables(&keys).start();
    (daemon, sink)
}

/// A folder with the manifest and `slice`.
fn folder(slice: &str) -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("manifests")).expect("a folder");
    place.write("manifests/shop.yaml", MANIFEST);
    place.write("manifests/slice.yaml", slice);
    place
}

#[test]
fn names_of_the_cluster_are_answered_from_the_first_query_on_and_kept_in_the_cache() {
    let place = folder(&slice(3));
    let (daemon, _sink) = start(&place);
    for (name, kind, code, data) in [
        ("web.shop.svc.cluster.local", qtype::A, rcode::NOERROR, vec!["198.18.0.1"]),
        ("web.shop.svc.cluster.local", qtype::AAAA, rcode::NOERROR, vec![]),
        ("db-2.db.shop.svc.cluster.local", qtype::A, rcode::NOERROR, vec!["198.19.0.3"]),
        ("absent.shop.svc.cluster.local", qtype::A, rcode::NXDOMAIN, vec![]),
        (
            "1.0.18.198.in-addr.arpa",
            qtype::PTR,
            rcode::NOERROR,
            vec!["web.shop.svc.cluster.local."],
        ),
    ] {
        // What is kept says the same.
        for round in 0..2 {
            let answer = wire::udp(daemon.address(), &ask(name, kind));
            assert_eq!((answer.rcode(), answer.data(kind)), (code, data.clone()), "{name} {round}");
            assert!(answer.has(flag::AA), "{name}");
            assert!(answer.ttl().is_none_or(|ttl| ttl == 5), "{name}: the TTL does not age");
        }
    }
    let is_kept = || daemon.metric("coredns_cache_entries", "") >= 5.0;
    assert!(until(Duration::from_secs(5), is_kept), "the cache holds them");
    let alias = wire::udp(daemon.address(), &ask("out.shop.svc.cluster.local", qtype::A));
    assert_eq!(alias.data(qtype::CNAME), ["www.example.org."]);
    assert_eq!(alias.data(qtype::A), ["192.0.2.9"], "the target is in the same response");
}

#[test]
fn a_name_that_was_asked_for_before_it_exists_is_answered_when_it_does() {
    let place = folder(&slice(1));
    let (daemon, sink) = start(&place);
    let data = |name: &str| {
        let answer = wire::udp(daemon.address(), &ask(name, qtype::A));
        answer.data(qtype::A).join(" ")
    };
    let driver = "driver.shop.svc.cluster.local";
    let reverse = ask("7.0.18.198.in-addr.arpa", qtype::PTR);
    assert_eq!(
        (data(driver), data("db.shop.svc.cluster.local")),
        (String::new(), "198.19.0.1".into())
    );
    wire::udp(daemon.address(), &reverse);
    let asked = sink.seen().len();
    place.write(
        "manifests/driver.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: driver, namespace: shop}\nspec: {clusterIP: 198.18.0.7}",
    );
    place.write("manifests/slice.yaml", &slice(2));
    assert!(until(Duration::from_secs(10), || data(driver) == "198.18.0.7"), "{}", daemon.log());
    assert!(until(Duration::from_secs(10), || data("db.shop.svc.cluster.local").contains(' ')));
    let name = wire::udp(daemon.address(), &reverse);
    assert_eq!(name.data(qtype::PTR), ["driver.shop.svc.cluster.local."]);
    place.write("manifests/driver.yaml", "kind: [");
    assert!(until(Duration::from_secs(10), || daemon.log().contains("driver.yaml:1")));
    assert_eq!(data(driver), "198.18.0.7", "a broken manifest keeps its old objects");
    std::fs::remove_file(place.path("manifests/driver.yaml")).expect("removed");
    assert!(until(Duration::from_secs(10), || data(driver).is_empty()), "{}", daemon.log());
    assert_eq!(sink.seen().len(), asked, "nobody was asked");
}

#[test]
fn a_large_headless_set_is_cut_by_udp_and_comes_whole_by_tcp() {
    let place = folder(&slice(1000));
    let (daemon, _sink) = start(&place);
    let question = ask("db.shop.svc.cluster.local", qtype::A);
    let part = wire::udp(daemon.address(), &question);
    assert!(part.has(flag::TC) && part.answers.len() > 20, "{} answers", part.answers.len());
    let whole = wire::tcp(daemon.address(), &question);
    assert_eq!((whole.has(flag::TC), whole.answers.len()), (false, 1000));
}
