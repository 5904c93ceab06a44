//! Services of every kind with their endpoints, as people and controllers write them; the same each run.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

/// Namespaces of [`every_kind`]; `shop-9` has nothing in it.
pub const NAMESPACES: [&str; 10] = [
    "shop-0", "shop-1", "shop-2", "shop-3", "shop-4", "shop-5", "shop-6", "shop-7", "shop-8",
    "shop-9",
];

/// A name outside the cluster, which the upstream of both knows.
pub const OUTSIDE: &str = "www.example.org";

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A Service with this spec.
pub fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

/// A headless Service with two named ports; with a selector unless it is `by_hand`.
pub fn headless(namespace: &str, name: &str, by_hand: bool) -> Value {
    let ports = json!([{ "name": "http", "port": 80 },
        { "name": "dns", "port": 53, "protocol": "UDP" }]);
    let mut spec = json!({ "clusterIP": "None", "ports": ports });
    if !by_hand {
        spec["selector"] = json!({ "app": name });
    }
    service(namespace, name, spec)
}

/// An EndpointSlice of `service`; labelled as the controller does it unless it is `by_hand`.
pub fn slice(
    (namespace, service): (&str, &str),
    number: usize,
    (family, endpoints): (&str, Vec<Value>),
    by_hand: bool,
) -> Value {
    let mut labels = json!({ "kubernetes.io/service-name": service });
    if !by_hand {
        labels["service.kubernetes.io/headless"] = json!("");
        labels["endpointslice.kubernetes.io/managed-by"] = json!("endpointslice-controller.k8s.io");
    }
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": { "name": format!("{service}-{number}"), "namespace": namespace,
            "labels": labels },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" },
            { "name": "dns", "port": 5353, "protocol": "UDP" }],
        "endpoints": endpoints })
}

/// A ready endpoint.
pub fn endpoint(address: &str) -> Value {
    json!({ "addresses": [address], "conditions": { "ready": true } })
}

/// The address number `n` of 198.18.0.0/15.
pub fn v4(n: usize) -> String {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n as u32).to_string()
}

/// The address number `n` of 2001:db8::/32, sometimes with the long groups in the middle.
pub fn v6(n: usize) -> String {
    Ipv6Addr::new(0x2001, 0xdb8, 0, (n % 3) as u16, 0, 0, (n >> 16) as u16, n as u16).to_string()
}

/// 300 Services of every kind, and slices with 5,000 endpoints.
pub fn every_kind() -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.map(namespace).into();
    let mut next = 0;
    for number in 0..300 {
        let namespace = NAMESPACES[number % 9];
        let (service, slices) = one_of_every_kind(namespace, number, &mut next);
        objects.push(service);
        objects.extend(slices);
    }
    objects
}

/// The Service `number` with its slices; `next` counts addresses.
fn one_of_every_kind(namespace: &str, number: usize, next: &mut usize) -> (Value, Vec<Value>) {
    let name = format!("s{number}");
    let two =
        json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    let plain = |spec: Value| (service(namespace, &name, spec), Vec::new());
    match number % 15 {
        0 => {
            *next += 1;
            let of_it = slice((namespace, &name), 0, ("IPv4", vec![endpoint(&v4(*next))]), true);
            (
                service(namespace, &name, json!({ "selector": { "app": "a" }, "ports": two })),
                vec![of_it],
            )
        }
        1 => plain(json!({ "ports": [{ "port": 443 }] })),
        2 => plain(json!({ "ipFamilyPolicy": "RequireDualStack", "ports": two })),
        3 => plain(json!({ "ipFamilies": ["IPv6"], "ports": two })),
        4 => plain(
            json!({ "type": if number.is_multiple_of(2) { "NodePort" } else { "LoadBalancer" },
            "ports": [{ "name": "sctp", "port": 7, "protocol": "SCTP" }] }),
        ),
        5 => plain(json!({ "type": "ExternalName", "externalName": OUTSIDE })),
        6 => {
            let target =
                format!("s{}.{}.svc.cluster.local", number - 6, NAMESPACES[(number - 6) % 9]);
            plain(json!({ "type": "ExternalName", "externalName": target }))
        }
        7 => {
            let target =
                format!("s{}.{}.svc.cluster.local", number + 1, NAMESPACES[(number + 1) % 9]);
            plain(json!({ "type": "ExternalName", "externalName": target }))
        }
        // Headless from here on.
        8 => with_slices(namespace, &name, false, &[("IPv4", 40), ("IPv6", 20)], next),
        9 => with_slices(namespace, &name, true, &[("IPv4", 60)], next),
        10 => with_slices(namespace, &name, false, &[("IPv4", 30), ("IPv4", 30)], next),
        11 => {
            let (mut service, slices) = with_slices(namespace, &name, false, &[("IPv4", 20)], next);
            service["spec"]["publishNotReadyAddresses"] = json!(true);
            (service, slices)
        }
        12 => with_slices(namespace, &name, false, &[], next),
        13 => {
            let (mut service, slices) = with_slices(namespace, &name, true, &[("IPv4", 50)], next);
            service["spec"]["ports"] = json!([]);
            (service, slices)
        }
        _ => awkward(namespace, &name, number, next),
    }
}

/// A headless Service with slices of these families and sizes: every third endpoint has a hostname,
/// every fifth is not ready, of some nobody says.
fn with_slices(
    namespace: &str,
    name: &str,
    by_hand: bool,
    sizes: &[(&str, usize)],
    next: &mut usize,
) -> (Value, Vec<Value>) {
    let slices = sizes.iter().enumerate().map(|(number, (family, size))| {
        let endpoints = (0..*size).map(|_| {
            *next += 1;
            let n = *next;
            let mut endpoint = endpoint(&if *family == "IPv4" { v4(n) } else { v6(n) });
            match n % 15 {
                0 | 5 | 10 => endpoint["conditions"]["ready"] = json!(false),
                1 => endpoint["conditions"] = json!({}),
                _ => {}
            }
            if n.is_multiple_of(3) {
                endpoint["hostname"] = json!(format!("pod-{}", n % 50));
            }
            endpoint
        });
        slice((namespace, name), number, (family, endpoints.collect()), by_hand)
    });
    (headless(namespace, name, by_hand), slices.collect())
}

/// Tells whether the Service `number` of [`every_kind`] is an alias of itself.
pub fn is_loop(number: usize) -> bool {
    number % 15 == 14 && number / 15 % 9 == 6
}

/// What the API server accepts and nobody expects.
fn awkward(namespace: &str, name: &str, number: usize, next: &mut usize) -> (Value, Vec<Value>) {
    *next += 1;
    let address = v4(*next);
    if is_loop(number) {
        let itself = format!("{name}.{namespace}.svc.cluster.local");
        let spec = json!({ "type": "ExternalName", "externalName": itself });
        return (service(namespace, name, spec), vec![]);
    }
    match number / 15 % 9 {
        // The same address twice, in two slices.
        0 => {
            let slices = [0, 1].map(|slot| {
                slice((namespace, name), slot, ("IPv4", vec![endpoint(&address)]), false)
            });
            (headless(namespace, name, false), slices.into())
        }
        1 => {
            let mut slice = slice((namespace, name), 0, ("IPv4", vec![endpoint(&address)]), false);
            slice["ports"] = json!([{ "name": "http", "port": -1 }]);
            (headless(namespace, name, false), vec![slice])
        }
        2 => (
            service(
                namespace,
                name,
                json!({ "type": "ExternalName",
                "externalName": "192.0.2.77" }),
            ),
            vec![],
        ),
        3 => (
            service(
                namespace,
                name,
                json!({ "type": "ExternalName",
                "externalName": "www.example.org." }),
            ),
            vec![],
        ),
        4 => {
            let absent = format!("absent.{namespace}.svc.cluster.local");
            (
                service(namespace, name, json!({ "type": "ExternalName", "externalName": absent })),
                vec![],
            )
        }
        7 => twins(namespace, name, number, next),
        // An address that a Service with one of its own has among its endpoints too.
        8 => {
            let (other, its) = (format!("s{}", number - 14), NAMESPACES[(number - 14) % 9]);
            let of = || ("IPv4", vec![endpoint(&address)]);
            let slices =
                vec![slice((namespace, name), 0, of(), false), slice((its, &other), 8, of(), true)];
            (headless(namespace, name, false), slices)
        }
        // A slice without a Service, and a Service that begins with a digit.
        _ => {
            let orphan =
                slice((namespace, "nobody"), number, ("IPv4", vec![endpoint(&address)]), false);
            (headless(namespace, &format!("{number}x"), true), vec![orphan])
        }
    }
}

/// Two addresses of one endpoint, two endpoints of one name, an address that ends in colons.
fn twins(namespace: &str, name: &str, number: usize, next: &mut usize) -> (Value, Vec<Value>) {
    *next += 2;
    let two = json!({ "addresses": [v4(*next - 2), v4(*next - 1)], "hostname": "twin" });
    let other = json!({ "addresses": [v4(*next)], "hostname": "twin" });
    let short = endpoint(&format!("2001:db8:0:{number}::"));
    let slices = [("IPv4", vec![two, other]), ("IPv6", vec![short])].into_iter().enumerate();
    let slices = slices.map(|(slot, of)| slice((namespace, name), slot, of, false));
    (headless(namespace, name, false), slices.collect())
}
