//! The zone as a whole: objects in, answers and changed names out.

use std::net::SocketAddr;

use super::object::{EndpointSlice, Namespace, Pod, Service};
use super::*;
use crate::dns::query::QueryView;
use crate::dns::response::Aging;
use crate::dns::{Qtype, Rcode};
use hickory_proto::op::Message;
use hickory_proto::rr::Record;

/// An object from its JSON; the kind is told by what it has.
fn object(kind: &str, text: &str) -> Object {
    fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).expect(text)
    }
    match kind {
        "Namespace" => Object::Namespace(read::<Namespace>(text)),
        "Service" => Object::Service(read::<Service>(text)),
        "Slice" => Object::EndpointSlice(read::<EndpointSlice>(text)),
        "Pod" => Object::Pod(read::<Pod>(text)),
        other => panic!("{other}"),
    }
}

fn namespace(name: &str) -> Object {
    object("Namespace", &format!(r#"{{"metadata":{{"name":"{name}"}}}}"#))
}

fn service(name: &str, spec: &str) -> Object {
    let meta = format!(r#"{{"name":"{name}","namespace":"shop"}}"#);
    object("Service", &format!(r#"{{"metadata":{meta},"spec":{{{spec}}}}}"#))
}

/// An EndpointSlice `slice` of the Service `of`.
fn slice(slice: &str, of: &str, endpoints: &str, ports: &str) -> Object {
    let labels = format!(r#"{{"kubernetes.io/service-name":"{of}"}}"#);
    let meta = format!(r#"{{"name":"{slice}","namespace":"shop","labels":{labels}}}"#);
    let text = format!(
        r#"{{"metadata":{meta},"addressType":"IPv4","endpoints":[{endpoints}],"ports":[{ports}]}}"#
    );
    object("Slice", &text)
}

fn pod(name: &str, address: &str, rest: &str) -> Object {
    let meta = format!(r#"{{"name":"{name}","namespace":"shop"}}"#);
    let status = format!(r#"{{"podIP":"{address}","podIPs":[{{"ip":"{address}"}}]{rest}}}"#);
    object("Pod", &format!(r#"{{"metadata":{meta},"status":{status}}}"#))
}

fn settings(pods: PodNames) -> Settings {
    let kube_dns = ServiceKey::new("shop", "dns");
    Settings {
        domains: ["cluster.example", "other.example"].map(|d| d.parse().expect("name")).into(),
        ttl: Ttl::from_wire(5),
        pods,
        interest: BTreeSet::from([kube_dns.clone()]),
        name_server: Some(kube_dns),
    }
}

const WEB_PORTS: &str = r#"{"name":"http","protocol":"TCP","port":80}"#;

/// A cluster with one Service of each kind.
fn objects() -> Vec<Object> {
    let ports = r#"{"name":"http","port":80},{"name":"dns","protocol":"UDP","port":53}"#;
    let both = r#""clusterIP":"198.18.0.1","clusterIPs":["198.18.0.1","2001:db8::1"]"#;
    vec![
        namespace("shop"),
        namespace("empty"),
        service("web", &format!(r#"{both},"ports":[{ports}]"#)),
        service("portless", r#""clusterIP":"198.18.0.2""#),
        service("pending", r#""clusterIP":"""#),
        service("1-digit", r#""clusterIP":"198.18.0.3""#),
        service("dns", &format!(r#""clusterIP":"198.18.0.53","ports":[{ports}]"#)),
        slice(
            "dns-1",
            "dns",
            r#"{"addresses":["192.0.2.53"]}"#,
            r#"{"name":"dns-tcp","protocol":"TCP","port":54},{"name":"dns","protocol":"UDP","port":5353}"#,
        ),
        service("db", r#""clusterIP":"None""#),
        slice(
            "db-1",
            "db",
            r#"{"addresses":["192.0.2.1"],"hostname":"db-0"},
               {"addresses":["192.0.2.2"],"conditions":{"ready":true}},
               {"addresses":["192.0.2.3"],"conditions":{"ready":false}}"#,
            WEB_PORTS,
        ),
        slice("db-2", "db", r#"{"addresses":["2001:db8::"]}"#, r#"{"name":"http","port":-1}"#),
        service("all", r#""clusterIP":"None","publishNotReadyAddresses":true"#),
        slice("all-1", "all", r#"{"addresses":["192.0.2.4"],"conditions":{"ready":false}}"#, ""),
        service("none", r#""clusterIP":"None""#),
        slice("none-1", "none", r#"{"addresses":["192.0.2.5"],"conditions":{"ready":false}}"#, ""),
        service("alias", r#""type":"ExternalName","externalName":"example.org""#),
        service("dotted", r#""type":"ExternalName","externalName":"Example.org.""#),
        service("numbered", r#""type":"ExternalName","externalName":"192.0.2.9""#),
        pod("p", "192.0.2.80", ""),
    ]
}

fn cluster(pods: PodNames, objects: Vec<Object>) -> Cluster {
    let cluster = Cluster::new(settings(pods));
    let changes = cluster.apply(vec![Event::Replaced(Stream::Services, objects), Event::Synced]);
    assert!(changes.synced && !changes.names.is_empty());
    cluster
}

/// The response as a stub resolver reads it; `None` when the name is none of ours.
fn ask(cluster: &Cluster, name: &str, qtype: Qtype) -> Option<Message> {
    let query = Query::new(Name::from_text(name).expect("name"), qtype);
    let encoded = match cluster.answer(&query)? {
        Answer::Whole(encoded) => encoded,
        Answer::Alias(alias) => {
            crate::dns::build::authoritative(&query, Rcode::NOERROR, &[alias], &[])
        }
    };
    let wire = query.to_wire(0, query.qname.as_wire(), true);
    let view = QueryView::parse(&wire).expect("well-formed");
    let mut out = vec![0; encoded.max_fitted_len().max(512)];
    let len = encoded.fit(&view, Aging::Fresh, usize::from(u16::MAX), &mut out);
    Some(Message::from_vec(&out[..len]).expect("well-formed"))
}

/// The response in short: the rcode of a negative one, else the records' data, sorted; behind `+` the
/// additional ones.
fn short(cluster: &Cluster, name: &str, qtype: Qtype) -> String {
    let Some(message) = ask(cluster, name, qtype) else { return "elsewhere".to_owned() };
    assert!(message.metadata.authoritative, "{name}");
    let records = |records: &[Record]| {
        let mut texts: Vec<_> = records.iter().map(|record| record.data.to_string()).collect();
        texts.sort();
        texts.join(" | ")
    };
    let is_negative = message.answers.is_empty();
    assert_eq!(message.authorities.len(), usize::from(is_negative), "{name}: SOA where negative");
    for record in message.answers.iter().chain(&message.authorities).chain(&message.additionals) {
        assert!(record.ttl == 5 || record.ttl == 28_800, "{name}: {record}");
    }
    match u16::from(message.metadata.response_code) {
        0 if is_negative => "NODATA".to_owned(),
        0 if message.additionals.is_empty() => records(&message.answers),
        0 => format!("{} + {}", records(&message.answers), records(&message.additionals)),
        3 if is_negative => "NXDOMAIN".to_owned(),
        other => format!("rcode {other}"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_kind_of_service_is_answered_as_the_schema_says() {
    let cluster = cluster(PodNames::Disabled, objects());
    let (a, aaaa, srv, txt) = (Qtype::A, Qtype::AAAA, Qtype::SRV, Qtype::TXT);
    for (name, qtype, expected) in [
        ("web.shop.svc", a, "198.18.0.1"),
        ("WEB.Shop.SVC", a, "198.18.0.1"),
        ("web.shop.svc", aaaa, "2001:db8::1"),
        ("web.shop.svc", txt, "NODATA"),
        ("web.shop.svc", Qtype::MX, "NODATA"),
        ("web.shop.svc", Qtype::CNAME, "NODATA"),
        ("web.shop.svc", Qtype::NS, "NODATA"),
        ("web.shop.svc", Qtype::SOA, "NODATA"),
        ("web.shop.svc", Qtype::PTR, "NODATA"),
        ("web.shop.svc", Qtype::ANY, "198.18.0.1 | 2001:db8::1"),
        ("x.web.shop.svc", a, "NXDOMAIN"),
        ("*.shop.svc", a, "NXDOMAIN"),
        ("web.empty.svc", a, "NXDOMAIN"),
        ("web.absent.svc", a, "NXDOMAIN"),
        ("absent.shop.svc", a, "NXDOMAIN"),
        ("portless.shop.svc", a, "198.18.0.2"),
        ("portless.shop.svc", aaaa, "NODATA"),
        ("portless.shop.svc", srv, "NODATA"),
        ("pending.shop.svc", a, "NODATA"),
        ("1-digit.shop.svc", a, "198.18.0.3"),
        // Ports.
        (
            "_http._tcp.web.shop.svc",
            srv,
            "0 50 80 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        (
            "_dns._udp.web.shop.svc",
            srv,
            "0 50 53 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        ("_dns._tcp.web.shop.svc", srv, "NXDOMAIN"),
        ("_http._tcp.web.shop.svc", a, "198.18.0.1"),
        ("_http._tcp.web.shop.svc", txt, "NODATA"),
        ("_tcp.web.shop.svc", srv, "NODATA"),
        ("_sctp.web.shop.svc", srv, "NXDOMAIN"),
        (
            "web.shop.svc",
            srv,
            "0 25 53 web.shop.svc.cluster.example. | 0 25 80 web.shop.svc.cluster.example. + 198.18.0.1 | 2001:db8::1",
        ),
        // Headless.
        ("db.shop.svc", a, "192.0.2.1 | 192.0.2.2"),
        ("db.shop.svc", aaaa, "2001:db8::"),
        ("db-0.db.shop.svc", a, "192.0.2.1"),
        ("db-0.db.shop.svc", aaaa, "NODATA"),
        ("db-0.db.shop.svc", srv, "0 100 80 db-0.db.shop.svc.cluster.example. + 192.0.2.1"),
        ("192-0-2-1.db.shop.svc", a, "NXDOMAIN"),
        ("192-0-2-2.db.shop.svc", a, "192.0.2.2"),
        ("192-0-2-3.db.shop.svc", a, "NXDOMAIN"),
        ("2001-db8--0.db.shop.svc", aaaa, "2001:db8::"),
        (
            "_http._tcp.db.shop.svc",
            srv,
            "0 33 80 192-0-2-2.db.shop.svc.cluster.example. | 0 33 80 db-0.db.shop.svc.cluster.example. + 192.0.2.1 | 192.0.2.2",
        ),
        ("_tcp.db.shop.svc", a, "NODATA"),
        ("_udp.db.shop.svc", a, "NXDOMAIN"),
        ("_x._tcp.db.shop.svc", srv, "NXDOMAIN"),
        ("_x._tcp.db.shop.svc", a, "NXDOMAIN"),
        ("all.shop.svc", a, "192.0.2.4"),
        ("all.shop.svc", srv, "NODATA"),
        ("none.shop.svc", a, "NXDOMAIN"),
        ("none.shop.svc", srv, "NXDOMAIN"),
        // Aliases.
        ("alias.shop.svc", a, "example.org."),
        ("alias.shop.svc", Qtype::CNAME, "example.org."),
        ("alias.shop.svc", srv, "NODATA"),
        ("dotted.shop.svc", a, "example.org."),
        ("numbered.shop.svc", a, "NXDOMAIN"),
        ("x.alias.shop.svc", a, "NXDOMAIN"),
        ("_http._tcp.alias.shop.svc", srv, "NXDOMAIN"),
        // The tree above.
        ("svc", a, "NODATA"),
        ("pod", a, "NODATA"),
        ("dns", a, "NODATA"),
        ("shop.svc", a, "NODATA"),
        ("empty.svc", a, "NODATA"),
        ("absent.svc", a, "NXDOMAIN"),
        ("shop.pod", a, "NXDOMAIN"),
        ("192-0-2-80.shop.pod", a, "NXDOMAIN"),
        ("else", a, "NXDOMAIN"),
        ("dns-version", txt, "1.1.0"),
        ("dns-version", a, "NODATA"),
        ("ns.dns", a, "198.18.0.53"),
    ] {
        for domain in ["cluster.example", "other.example"] {
            let expected = expected.replace("cluster.example", domain);
            let name = format!("{name}.{domain}");
            assert_eq!(short(&cluster, &name, qtype), expected, "{name} {qtype}");
        }
    }
    assert_eq!(short(&cluster, "web.shop.svc.example.org", a), "elsewhere");
}

#[test]
fn the_apex_has_soa_and_ns() {
    let cluster = cluster(PodNames::Disabled, objects());
    let soa = short(&cluster, "cluster.example", Qtype::SOA);
    let fields: Vec<_> = soa.split(' ').collect();
    assert_eq!(fields[..2], ["ns.dns.cluster.example.", "hostmaster.cluster.example."]);
    assert_eq!(fields[3..], ["7200", "1800", "86400", "5"]);
    let ns = short(&cluster, "cluster.example", Qtype::NS);
    assert_eq!(ns, "dns.shop.svc.cluster.example. + 198.18.0.53");
    assert_eq!(short(&cluster, "cluster.example", Qtype::A), "NODATA");
    let negative = ask(&cluster, "x.cluster.example", Qtype::A).expect("ours");
    assert_eq!(negative.authorities[0].name.to_string(), "cluster.example.");
}

#[test]
fn reverse_names_lead_to_services_and_to_every_endpoint_name() {
    let more = [
        service("db2", r#""clusterIP":"None""#),
        slice("db2-1", "db2", r#"{"addresses":["192.0.2.1"]}"#, ""),
    ];
    let cluster = cluster(PodNames::Disabled, [objects(), more.into()].concat());
    for (address, expected) in [
        ("198.18.0.1", "web.shop.svc.cluster.example."),
        ("2001:db8::1", "web.shop.svc.cluster.example."),
        (
            "192.0.2.1",
            "192-0-2-1.db2.shop.svc.cluster.example. | db-0.db.shop.svc.cluster.example.",
        ),
        ("2001:db8::", "2001-db8--0.db.shop.svc.cluster.example."),
        ("192.0.2.4", "192-0-2-4.all.shop.svc.cluster.example."),
        ("192.0.2.3", "elsewhere"),
        ("192.0.2.53", "elsewhere"),
        ("192.0.2.200", "elsewhere"),
    ] {
        let name = Name::reverse_of(address.parse().expect("address"));
        assert_eq!(short(&cluster, &name.to_string(), Qtype::PTR), expected, "{address}");
        assert_eq!(cluster.owns_reverse(&name), expected != "elsewhere", "{address}");
    }
    let name = Name::reverse_of("198.18.0.1".parse().expect("address")).to_string();
    assert_eq!(short(&cluster, &name, Qtype::A), "NODATA");
    assert_eq!(short(&cluster, &format!("x.{name}"), Qtype::PTR), "elsewhere");
}

#[test]
fn pods_have_names_as_far_as_the_operator_wants() {
    let mut objects = objects();
    objects.push(pod("ended", "192.0.2.81", r#","phase":"Succeeded""#));
    let insecure = cluster(PodNames::Insecure, objects.clone());
    let verified = cluster(PodNames::Verified, objects);
    for (name, qtype, of_insecure, of_verified) in [
        ("192-0-2-80.shop.pod", Qtype::A, "192.0.2.80", "192.0.2.80"),
        ("192-0-2-80.shop.pod", Qtype::AAAA, "NODATA", "NODATA"),
        ("192-0-2-80.empty.pod", Qtype::A, "192.0.2.80", "NXDOMAIN"),
        ("192-0-2-81.shop.pod", Qtype::A, "192.0.2.81", "NXDOMAIN"),
        ("2001-db8--7.shop.pod", Qtype::AAAA, "2001:db8::7", "NXDOMAIN"),
        ("192-0-2-80.absent.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("name.shop.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("shop.pod", Qtype::A, "NODATA", "NODATA"),
        ("absent.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
        ("x.192-0-2-80.shop.pod", Qtype::A, "NXDOMAIN", "NXDOMAIN"),
    ] {
        let name = format!("{name}.cluster.example");
        assert_eq!(short(&insecure, &name, qtype), of_insecure, "{name}");
        assert_eq!(short(&verified, &name, qtype), of_verified, "{name}");
    }
}

#[test]
fn objects_that_dns_cannot_hold_are_left_out_part_by_part() {
    let long = "a".repeat(63);
    let bad = [
        namespace(&"n".repeat(64)),
        service(&"s".repeat(64), r#""clusterIP":"198.18.0.8""#),
        service("", r#""clusterIP":"198.18.0.8""#),
        service("wrong", r#""clusterIP":"not an address","clusterIPs":["300.1.1.1","198.18.0.9"]"#),
        service("nameless", r#""type":"ExternalName","externalName":"a..b""#),
        service("void", r#""type":"ExternalName""#),
        service(&long, r#""clusterIP":"None""#),
        slice(
            "mixed-1",
            &long,
            &format!(
                r#"{{"addresses":["","x","::ffff:192.0.2.1","192.0.2.6","192.0.2.6"],"hostname":"a.b"}},
                   {{"addresses":["192.0.2.7"],"hostname":"{long}"}},{{}}"#
            ),
            r#"{"name":"huge","port":99999},{"port":null},{"name":"ok","port":7}"#,
        ),
        slice("orphan", "absent", r#"{"addresses":["192.0.2.66"]}"#, WEB_PORTS),
        object(
            "Slice",
            r#"{"metadata":{"name":"unlabelled","namespace":"shop"},"endpoints":[{"addresses":["192.0.2.67"]}]}"#,
        ),
    ];
    let cluster = cluster(PodNames::Disabled, [objects(), bad.into()].concat());
    for (name, expected) in [
        ("web.shop.svc", "198.18.0.1"),
        ("wrong.shop.svc", "198.18.0.9"),
        ("nameless.shop.svc", "NXDOMAIN"),
        ("void.shop.svc", "NXDOMAIN"),
        (&format!("{long}.shop.svc"), "192.0.2.6 | 192.0.2.7"),
        (&format!("192-0-2-6.{long}.shop.svc"), "192.0.2.6"),
    ] {
        assert_eq!(short(&cluster, &format!("{name}.cluster.example"), Qtype::A), expected);
    }
    let srv = short(&cluster, &format!("_huge._tcp.{long}.shop.svc.cluster.example"), Qtype::SRV);
    assert_eq!(srv, "NODATA", "a port that is no number has no record, but the name exists");
    assert!(!cluster.owns_reverse(&Name::reverse_of("192.0.2.66".parse().expect("address"))));
}

#[test]
fn a_domain_so_long_that_names_below_do_not_fit_serves_what_fits() {
    let long = ["d".repeat(63), "e".repeat(63), "f".repeat(63)].join(".");
    let settings =
        Settings { domains: vec![long.parse().expect("name")], ..settings(PodNames::Disabled) };
    let cluster = Cluster::new(settings);
    let host = "h".repeat(60);
    let endpoint = format!(r#"{{"addresses":["192.0.2.1"],"hostname":"{host}"}}"#);
    let objects = [
        namespace("shop"),
        service("s", r#""clusterIP":"None""#),
        slice("s-1", "s", &endpoint, WEB_PORTS),
    ];
    cluster.apply(vec![Event::Replaced(Stream::Services, objects.into()), Event::Synced]);
    assert_eq!(short(&cluster, &format!("s.shop.svc.{long}"), Qtype::A), "192.0.2.1");
    assert_eq!(short(&cluster, &format!("s.shop.svc.{long}"), Qtype::SRV), "NODATA");
    let name = Name::reverse_of("192.0.2.1".parse().expect("address")).to_string();
    assert_eq!(short(&cluster, &name, Qtype::PTR), "elsewhere");
}

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

#[test]
fn thousands_of_endpoints_fill_a_message_and_each_is_found() {
    let objects = (0..50).map(|part| {
        let endpoints: Vec<_> = (0..100)
            .map(|n| format!(r#"{{"addresses":["198.18.{part}.{n}"],"hostname":"e-{part}-{n}"}}"#))
            .collect();
        slice(&format!("big-{part}"), "big", &endpoints.join(","), WEB_PORTS)
    });
    let base = [namespace("shop"), service("big", r#""clusterIP":"None""#)];
    let cluster = cluster(PodNames::Disabled, base.into_iter().chain(objects).collect());
    let name = "big.shop.svc.cluster.example";
    let whole = ask(&cluster, name, Qtype::A).expect("ours");
    assert_eq!(whole.answers.len(), (65_535 - 12 - 34 - 11) / 16, "as many as a message holds");
    assert_eq!(short(&cluster, &format!("e-49-99.{name}"), Qtype::A), "198.18.49.99");
    assert!(ask(&cluster, name, Qtype::SRV).expect("ours").answers.len() > 500);
}
