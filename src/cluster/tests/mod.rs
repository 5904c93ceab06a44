//! The zone as a whole: objects in, answers and changed names out. One file per subject, and here what they
//! share.

mod answers;
mod askers;
mod changes;

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
        search: None,
        tenancy: None,
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
