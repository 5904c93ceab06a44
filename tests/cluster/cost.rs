//! What one node costs the API server when little happens, beside what kube-proxy asks of it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::meter::Meter;
use crate::objects::{endpoint, headless, service, slice, v4};
use crate::plane::{Plane, needs_kubernetes};
use crate::watching::Watching;

/// Endpoints per slice: what the controller makes of a Service with 100 pods is one slice of that size.
const ENDPOINTS: usize = 100;

/// kube-proxy's EndpointSlices: all but the headless ones.
const PROXY_SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name";

/// How long quiet is measured: a few bookmarks, or an hour's sixth in nightly runs.
fn quiet() -> Duration {
    Duration::from_secs(if crate::is_long() { 600 } else { 70 })
}

/// A slice with [`ENDPOINTS`] endpoints, `ready` of them ready.
fn big_slice(service: &str, ready: usize, is_headless: bool) -> serde_json::Value {
    let endpoints = (0..ENDPOINTS).map(|n| {
        let mut endpoint = endpoint(&v4(n));
        endpoint["conditions"]["ready"] = json!(n < ready);
        endpoint["nodeName"] = json!(format!("node-{n}"));
        endpoint["targetRef"] =
            json!({ "kind": "Pod", "namespace": "default", "name": format!("{service}-{n}") });
        endpoint
    });
    slice(("default", service), 0, ("IPv4", endpoints.collect()), !is_headless)
}

#[test]
fn a_quiet_cluster_costs_the_api_server_no_list_and_little_else() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    plane.make(&headless("default", "headless", false));
    plane.make(&service("default", "plain", json!({ "ports": [{ "port": 80 }], "selector": {} })));
    plane.make(&big_slice("headless", 1, true));
    plane.make(&big_slice("plain", 1, false));

    let (ours, theirs) = (Meter::before(plane.address()), Meter::before(plane.address()));
    let mut watching = Watching::by(&plane.kubeconfig_by("metered", ours.port)).expect("a way");
    watching.synced();
    let proxy = plane.watch_by(
        &plane.kubeconfig_by("proxy", theirs.port),
        &[
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
            PROXY_SLICES,
            "/api/v1/nodes?fieldSelector=metadata.name%3Dhere",
        ],
    );
    // Late bytes of the first lists.
    std::thread::sleep(Duration::from_secs(2));
    let first = (ours.bytes(), theirs.bytes());

    let (lists, requests) = (watching.lists(), watching.metrics.requests.total());
    let began = Instant::now();
    while began.elapsed() < quiet() {
        watching.idle(Duration::from_secs(1));
    }
    let hours = began.elapsed().as_secs_f64() / 3600.0;
    let idle = (ours.bytes() - first.0, theirs.bytes() - first.1);
    let per_hour = |bytes: u64| bytes as f64 / hours / 1024.0;
    println!(
        "first lists: {} KiB by {} connection, kube-proxy's {} KiB; quiet: {:.0} KiB/h, {} requests; \
         kube-proxy's watches {:.0} KiB/h",
        first.0 / 1024,
        ours.connections(),
        first.1 / 1024,
        per_hour(idle.0),
        watching.metrics.requests.total() - requests,
        per_hour(idle.1),
    );
    assert_eq!(watching.lists(), lists, "a list in a quiet cluster");
    // A watch lasts 30 minutes at least: nothing was asked, whatever the machine's load.
    assert_eq!(watching.metrics.requests.total(), requests, "a request in a quiet cluster");
    assert_eq!(ours.connections(), 1, "all watches share one connection");

    // A pod of an ordinary Service becomes ready: kube-proxy is told, we are not.
    let before = (ours.bytes(), theirs.bytes());
    for ready in 2..12 {
        plane.replace(&big_slice("plain", ready, false));
    }
    std::thread::sleep(Duration::from_secs(2));
    let (told, proxy_told) = (ours.bytes() - before.0, theirs.bytes() - before.1);
    println!(
        "10 changes of a slice with {ENDPOINTS} endpoints: {told} B, kube-proxy's watches {proxy_told} B"
    );
    assert!(told * 20 < proxy_told, "{told} B against {proxy_told} B");
    drop(proxy);
}
