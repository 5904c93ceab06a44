//! What depends on who asks: the pod that an address certainly is of, its search list, and what it sees.

use std::net::IpAddr;

use super::*;
use crate::cluster::asker::Asker;
use crate::cluster::tenancy::{Shown, label};

/// A pod in a namespace with its address, what else its metadata and its status say, and its spec.
fn pod_in(namespace: &str, name: &str, address: &str, [meta, status, spec]: [&str; 3]) -> Object {
    let meta = format!(r#"{{"name":"{name}","namespace":"{namespace}"{meta}}}"#);
    let status = format!(r#"{{"podIP":"{address}"{status}}}"#);
    object("Pod", &format!(r#"{{"metadata":{meta},"status":{status},"spec":{{{spec}}}}}"#))
}

/// A cluster whose pods search, and see what is written here.
fn minding(tenancy: Option<Tenancy>, objects: Vec<Object>) -> Cluster {
    let search = Some(Search { node: Vec::new() });
    let cluster = Cluster::new(Settings { search, tenancy, ..settings(PodNames::Verified) });
    cluster.apply(vec![Event::Replaced(Stream::Pods, objects), Event::Synced]);
    cluster
}

fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn name_of(text: &str) -> Name {
    Name::from_text(text).expect(text)
}

/// Pods of `shop` and `pay`, and of no certain address.
fn pods() -> Vec<Object> {
    let (plain, host) = (["", "", ""], ["", "", r#""hostNetwork":true"#]);
    let leaving = [r#","deletionTimestamp":"2026-01-02T03:04:05Z""#, "", ""];
    vec![
        pod_in("shop", "a", "192.0.2.1", plain),
        pod_in("pay", "a", "192.0.2.2", plain),
        pod_in("shop", "b", "2001:db8::1", plain),
        pod_in("shop", "twin-1", "192.0.2.3", plain),
        pod_in("shop", "twin-2", "192.0.2.3", plain),
        pod_in("shop", "host", "192.0.2.4", host),
        pod_in("shop", "ended", "192.0.2.5", ["", r#","phase":"Succeeded""#, ""]),
        pod_in("shop", "leaving", "192.0.2.6", leaving),
        pod_in(
            "shop",
            "own-list",
            "192.0.2.7",
            ["", "", r#""dnsConfig":{"searches":["a.example"]}"#],
        ),
        pod_in("shop", "no-list", "192.0.2.8", ["", "", r#""dnsPolicy":"None""#]),
        pod_in("shop", "first", "192.0.2.9", ["", "", r#""dnsPolicy":"ClusterFirst""#]),
    ]
}

/// Whether who asks from `source` for `first` may be given the shared NXDOMAIN, and what is found by the
/// search list instead.
fn search(cluster: &Cluster, first: &str, source: &str) -> Option<usize> {
    let qname = name_of(first);
    let rest = cluster.search_on(&qname, &cluster.asker(at(source)));
    let shared = cluster.may_share(qname.as_wire(), at(source), Rcode::NXDOMAIN, None);
    assert_eq!(shared, rest.is_none(), "{source}: the hot path and the search disagree");
    assert!(
        cluster.may_share(qname.as_wire(), at(source), Rcode::NOERROR, None),
        "{source}: it exists"
    );
    rest.map(|rest| rest.len())
}

#[test]
fn a_search_list_is_followed_for_pods_of_certain_address_with_a_plain_list_only() {
    let cluster = minding(None, pods());
    let first = "www.example.org.shop.svc.cluster.example";
    for (source, found) in [
        ("192.0.2.1", Some(3)),
        ("::ffff:192.0.2.1", Some(3)),
        ("2001:db8::1", Some(3)),
        ("192.0.2.9", Some(3)),
        ("192.0.2.2", None), // another namespace
        ("192.0.2.3", None), // two pods
        ("192.0.2.4", None), // the node's
        ("192.0.2.5", None), // ended
        ("192.0.2.6", None), // may be another's soon
        ("192.0.2.7", None), // a list of its own
        ("192.0.2.8", None), // none
        ("192.0.2.99", None),
    ] {
        assert_eq!(search(&cluster, first, source), found, "{source}");
    }
    // A pod goes, and its twin is certain again.
    let gone = Event::Deleted(Stream::Pods, pod_in("shop", "twin-2", "", ["", "", ""]));
    cluster.apply(vec![gone]);
    assert_eq!(search(&cluster, first, "192.0.2.3"), Some(3));
    let second = "www.example.org.svc.cluster.example";
    assert_eq!(search(&cluster, second, "192.0.2.1"), None, "not the first of the list");
}

#[test]
fn below_a_service_that_exists_nothing_is_searched_for() {
    let cluster = minding(None, tenants());
    for (first, found) in [
        ("db-7.db.shop.svc.cluster.example", None),
        ("_http._tcp.portless.shop.svc.cluster.example", None),
        ("db-7.absent.shop.svc.cluster.example", Some(3)),
        ("example.org.shop.svc.cluster.example", Some(3)),
    ] {
        assert_eq!(search(&cluster, first, "192.0.2.1"), found, "{first}");
    }
}

#[test]
fn nobody_is_known_before_the_pods_have_been_listed() {
    let search = Some(Search { node: Vec::new() });
    let cluster = Cluster::new(Settings { search, ..settings(PodNames::Disabled) });
    cluster.apply(vec![Event::Replaced(Stream::Pods, pods())]);
    assert_eq!(cluster.asker(at("192.0.2.1")), Asker::default());
    cluster.apply(vec![Event::Synced]);
    assert_ne!(cluster.asker(at("192.0.2.1")), Asker::default());
}

/// Objects of `shop` and of `pay`, and the pods that ask.
fn tenants() -> Vec<Object> {
    let mut all = objects();
    let pay = |mut object: Object| {
        match &mut object {
            Object::Service(service) => "pay".clone_into(&mut service.metadata.namespace),
            Object::EndpointSlice(slice) => "pay".clone_into(&mut slice.metadata.namespace),
            _ => {}
        }
        object
    };
    all.extend([
        namespace("pay"),
        pay(service("card", r#""clusterIP":"198.18.0.77","ports":[{"name":"http","port":80}]"#)),
        pay(service("alias", r#""type":"ExternalName","externalName":"example.org""#)),
        pay(service("both", r#""clusterIP":"None""#)),
        pay(slice("both-1", "both", r#"{"addresses":["192.0.2.1"],"hostname":"x"}"#, WEB_PORTS)),
    ]);
    all.extend(pods());
    all
}

/// What `asker` is told, in short.
fn told(cluster: &Cluster, name: &str, qtype: Qtype, source: &str) -> String {
    let query = Query::new(name_of(name), qtype);
    match cluster.answer_to(&query, &cluster.asker(at(source))) {
        None => "elsewhere".to_owned(),
        Some(Answer::Alias(_)) => "alias".to_owned(),
        Some(Answer::Whole(encoded)) => {
            let message = Message::from_vec(encoded.as_wire()).expect("well-formed");
            let data: Vec<_> = message.answers.iter().map(|r| r.data.to_string()).collect();
            let is_negative = message.answers.is_empty();
            assert_eq!(message.authorities.len(), usize::from(is_negative), "{name}: SOA");
            match u16::from(message.metadata.response_code) {
                0 if is_negative => "NODATA".to_owned(),
                0 => data.join(" | "),
                3 => "NXDOMAIN".to_owned(),
                other => format!("rcode {other}"),
            }
        }
    }
}

#[test]
fn names_of_namespaces_that_are_not_shown_do_not_exist_whatever_the_type() {
    let tenancy = Tenancy {
        by_namespace: [(label("pay"), Shown::All)].into(),
        others: Shown::only(["empty"]),
        unknown: Shown::nothing(),
    };
    let cluster = minding(Some(tenancy), tenants());
    let (shop, pay, nobody) = ("192.0.2.1", "192.0.2.2", "192.0.2.99");
    let (a, srv, ptr, txt) = (Qtype::A, Qtype::SRV, Qtype::PTR, Qtype::TXT);
    for (name, qtype, source, expected) in [
        ("card.pay.svc", a, pay, "198.18.0.77"),
        ("card.pay.svc", a, shop, "NXDOMAIN"),
        ("card.pay.svc", Qtype::AAAA, shop, "NXDOMAIN"),
        ("card.pay.svc", Qtype::ANY, shop, "NXDOMAIN"),
        ("_http._tcp.card.pay.svc", srv, shop, "NXDOMAIN"),
        ("_tcp.card.pay.svc", txt, shop, "NXDOMAIN"),
        ("x.both.pay.svc", a, shop, "NXDOMAIN"),
        ("alias.pay.svc", a, shop, "NXDOMAIN"),
        ("alias.pay.svc", Qtype::CNAME, shop, "NXDOMAIN"),
        ("alias.pay.svc", a, pay, "alias"),
        ("pay.svc", a, shop, "NXDOMAIN"),
        ("pay.pod", a, shop, "NXDOMAIN"),
        ("192-0-2-2.pay.pod", a, shop, "NXDOMAIN"),
        ("192-0-2-2.pay.pod", a, pay, "192.0.2.2"),
        ("web.shop.svc", a, shop, "198.18.0.1"),
        ("web.shop.svc", a, pay, "198.18.0.1"),
        ("web.shop.svc", a, nobody, "NXDOMAIN"),
        ("web.shop.svc", a, "192.0.2.6", "198.18.0.1"), // a pod that is leaving still is one
        ("empty.svc", a, shop, "NODATA"),
        ("empty.svc", a, nobody, "NXDOMAIN"),
        ("svc", a, nobody, "NODATA"),
        ("ns.dns", a, shop, "198.18.0.53"),
        ("ns.dns", a, nobody, "NODATA"),
        ("77.0.18.198.in-addr.arpa", ptr, pay, "card.pay.svc.cluster.example."),
        ("77.0.18.198.in-addr.arpa", ptr, shop, "NXDOMAIN"),
        ("77.0.18.198.in-addr.arpa", txt, shop, "NXDOMAIN"),
        ("99.0.18.198.in-addr.arpa", ptr, shop, "elsewhere"),
    ] {
        let end = if name.ends_with("arpa") { "" } else { ".cluster.example" };
        let full = format!("{name}{end}");
        assert_eq!(told(&cluster, &full, qtype, source), expected, "{name} to {source}");
        // What is shared is what everybody is told: the hot path gives it to nobody else.
        let everybody = match cluster.answer(&Query::new(name_of(&full), qtype)) {
            None => "elsewhere".to_owned(),
            Some(Answer::Alias(_)) => "alias".to_owned(),
            Some(Answer::Whole(_)) => told(&cluster, &full, qtype, pay),
        };
        if everybody != expected {
            let shared =
                cluster.may_share(name_of(&full).as_wire(), at(source), Rcode::NOERROR, None);
            assert!(!shared, "{name} to {source}");
        }
    }
}

#[test]
fn of_an_address_of_two_tenants_each_is_told_its_own_name() {
    let tenancy =
        Tenancy { by_namespace: [].into(), others: Shown::nothing(), unknown: Shown::All };
    let cluster = minding(Some(tenancy), tenants());
    let reverse = "1.2.0.192.in-addr.arpa";
    let (shop, pay) = ("db-0.db.shop.svc.cluster.example.", "x.both.pay.svc.cluster.example.");
    assert_eq!(told(&cluster, reverse, Qtype::PTR, "192.0.2.1"), shop);
    assert_eq!(told(&cluster, reverse, Qtype::PTR, "192.0.2.2"), pay);
    let all = told(&cluster, reverse, Qtype::PTR, "192.0.2.99");
    assert!(all.contains(shop) && all.contains(pay), "{all}");
    for source in ["192.0.2.1", "192.0.2.2"] {
        assert!(!cluster.may_share(name_of(reverse).as_wire(), at(source), Rcode::NOERROR, None));
    }
}
