//! The manifests of `deploy/kubernetes` on a real API server: it takes every field of them, and what the
//! DaemonSet's account may do is what nodens needs, and no more.

use serde_json::json;

use crate::harness::manifests::objects;
use crate::plane::{Plane, needs_kubernetes};

/// The DaemonSet's account.
const ACCOUNT: &str = "/api/v1/namespaces/nodens/serviceaccounts/nodens";

#[test]
fn the_api_server_takes_every_field_and_the_account_may_list_and_watch_and_no_more() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    for object in objects() {
        plane.apply(&object);
    }
    let status =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let token = plane.must("POST", &format!("{ACCOUNT}/token"), Some(&status));
    let token = token["status"]["token"].as_str().expect("a token");
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
        let (said, answer) = plane.ask_as(token, method, path, body.as_ref());
        assert_eq!(said, code, "{method} {path}: {answer}");
    }
}
