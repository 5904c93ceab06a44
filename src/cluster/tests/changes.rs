//! What a change touches, and who hears of it.

use super::*;

/// The names that changed, without those of the second domain, sorted.
fn names(changes: &Changes) -> Vec<String> {
    let names = changes.names.iter().map(ToString::to_string);
    let mut names: Vec<_> = names.filter(|name| !name.contains("other.example")).collect();
    names.sort();
    names
}

#[test]
fn a_change_names_exactly_what_it_touches() {
    let cluster = cluster(PodNames::Verified, objects());
    let web = |address: &str| {
        Event::Applied(Stream::Services, service("web", &format!(r#""clusterIP":"{address}""#)))
    };
    let db = |endpoints: &str| {
        Event::Applied(Stream::Services, slice("db-1", "db", endpoints, WEB_PORTS))
    };
    let (db0, db2) =
        (r#"{"addresses":["192.0.2.1"],"hostname":"db-0"}"#, r#"{"addresses":["192.0.2.2"]}"#);
    let v6 = Name::reverse_of("2001:db8::1".parse().expect("address")).to_string();
    let svc = |name: &str| format!("{name}.shop.svc.cluster.example.");
    let r = |last: &str| format!("{last}.in-addr.arpa.");
    for (event, mut expected) in [
        (web("198.18.0.7"), vec![svc("web"), r("1.0.18.198"), r("7.0.18.198"), v6]),
        (web("198.18.0.7"), vec![]),
        (db(&format!("{db0},{db2}")), vec![svc("db")]),
        (db(&format!("{db0},{db2}")), vec![]),
        (db(db0), vec![svc("db"), r("2.2.0.192")]),
        (db(r#"{"addresses":["192.0.2.1"],"hostname":"db-9"}"#), vec![svc("db"), r("1.2.0.192")]),
        (Event::Deleted(Stream::Services, service("all", "")), vec![svc("all"), r("4.2.0.192")]),
        (
            Event::Applied(Stream::Pods, pod("p", "192.0.2.90", "")),
            vec!["shop.pod.cluster.example.".to_owned()],
        ),
        (
            Event::Applied(Stream::Services, service("dns", r#""clusterIP":"198.18.0.54""#)),
            vec![
                svc("dns"),
                "cluster.example.".into(),
                "ns.dns.cluster.example.".into(),
                r("53.0.18.198"),
                r("54.0.18.198"),
            ],
        ),
    ] {
        expected.sort();
        assert_eq!(names(&cluster.apply(vec![event.clone()])), expected, "{event:?}");
    }
    let gone = names(&cluster.apply(vec![Event::Deleted(Stream::Services, namespace("shop"))]));
    for name in [
        svc("web"),
        svc("alias"),
        "shop.svc.cluster.example.".into(),
        "shop.pod.cluster.example.".into(),
    ] {
        assert!(gone.contains(&name), "{name} in {gone:?}");
    }
    assert_eq!(short(&cluster, "web.shop.svc.cluster.example", Qtype::A), "NXDOMAIN");
    let back = names(&cluster.apply(vec![Event::Applied(Stream::Namespaces, namespace("shop"))]));
    assert_eq!(back, gone);
    assert_eq!(short(&cluster, "web.shop.svc.cluster.example", Qtype::A), "198.18.0.7");
}

#[test]
fn a_fresh_list_drops_what_it_lacks_and_touches_nothing_else() {
    let cluster = cluster(PodNames::Disabled, objects());
    let replaced = |objects| vec![Event::Replaced(Stream::Services, objects)];
    assert_eq!(names(&cluster.apply(replaced(objects()))), [""; 0]);
    let mut fewer = objects();
    fewer.retain(|object| object.meta().name != "db-1");
    let changes = cluster.apply(replaced(fewer));
    assert_eq!(
        names(&changes),
        ["1.2.0.192.in-addr.arpa.", "2.2.0.192.in-addr.arpa.", "db.shop.svc.cluster.example."]
    );
    assert_eq!(short(&cluster, "db.shop.svc.cluster.example", Qtype::A), "NODATA");
    // Another stream that holds it keeps it.
    cluster.apply(vec![Event::Applied(Stream::Namespaces, namespace("shop"))]);
    cluster.apply(replaced(vec![]));
    assert_eq!(short(&cluster, "shop.svc.cluster.example", Qtype::A), "NODATA");
    assert_eq!(short(&cluster, "web.shop.svc.cluster.example", Qtype::A), "NXDOMAIN");
    cluster.apply(vec![Event::Deleted(Stream::Namespaces, namespace("shop"))]);
    assert_eq!(short(&cluster, "shop.svc.cluster.example", Qtype::A), "NXDOMAIN");
    assert_eq!(cluster.counts(), [0; 4]);
    assert_eq!(cluster.snapshot.load().counts(), (0, 0), "nothing is left behind");
}

#[test]
fn services_of_interest_tell_their_endpoints_when_those_change() {
    let cluster = Cluster::new(settings(PodNames::Disabled));
    let told = |events| cluster.apply(events).endpoints;
    let key = ServiceKey::new("shop", "dns");
    let of = |texts: &[&str]| {
        let addresses = texts.iter().map(|text| text.parse::<SocketAddr>().expect("address"));
        vec![(key.clone(), addresses.collect::<Vec<_>>())]
    };
    let stream = || Stream::Named;
    assert_eq!(told(vec![Event::Replaced(Stream::Services, objects())]), of(&["192.0.2.53:5353"]));
    let two = r#"{"addresses":["192.0.2.53"]},{"addresses":["192.0.2.54"]},{"addresses":["192.0.2.55"],"conditions":{"ready":false}}"#;
    let slice_of = |endpoints| slice("dns-1", "dns", endpoints, "");
    assert_eq!(
        told(vec![Event::Applied(stream(), slice_of(two))]),
        of(&["192.0.2.53:53", "192.0.2.54:53"])
    );
    assert_eq!(told(vec![Event::Applied(stream(), slice_of(two))]), of(&[])[..0]);
    let others = BTreeSet::from([ServiceKey::new("shop", "other")]);
    let followed = cluster.follow(others.clone());
    assert_eq!(followed, Followed { left: vec![key.clone()], joined: Vec::new() });
    assert_eq!(cluster.follow(others), Followed::default(), "said once");
    let joined = of(&["192.0.2.53:53", "192.0.2.54:53"]);
    let followed = cluster.follow(BTreeSet::from([key.clone()]));
    assert_eq!(followed, Followed { left: Vec::new(), joined });
    assert_eq!(told(vec![Event::Applied(Stream::Services, slice_of(""))]), of(&[]));
}

#[test]
fn only_live_events_tell_when_they_were_triggered() {
    let cluster = Cluster::new(settings(PodNames::Disabled));
    let at = |time: &str| {
        let meta = format!(
            r#"{{"name":"a","namespace":"shop","labels":{{"kubernetes.io/service-name":"db"}},
            "annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"{time}"}}}}"#
        );
        object("Slice", &format!(r#"{{"metadata":{meta}}}"#))
    };
    let triggered = |event| cluster.apply(vec![event]).triggered.len();
    assert_eq!(triggered(Event::Replaced(Stream::Headless, vec![at("2026-01-02T03:04:05Z")])), 0);
    assert_eq!(triggered(Event::Applied(Stream::Headless, at("2026-01-02T03:04:05Z"))), 0);
    assert_eq!(triggered(Event::Applied(Stream::Headless, at("2026-01-02T03:04:06Z"))), 1);
    assert_eq!(triggered(Event::Applied(Stream::Headless, at("nonsense"))), 0);
}
