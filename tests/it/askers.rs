//! Answers that depend on the pod that asks, told by its address: search lists and tenancy.

use std::time::Duration;

use crate::harness::message::Answer;
use crate::harness::sink::Reply;
use crate::harness::wire::{PATIENCE, Udp, framed};
use crate::harness::{
    Action, Daemon, Place, Seen, Setup, Sink, ask, name_to_wire, qtype, rcode, until, wire,
};

/// Two tenants with a Service and a pod each; and a pod on the host network.
const MANIFEST: &str = r#"
kind: NamespaceList
apiVersion: v1
items: [{metadata: {name: shop}}, {metadata: {name: pay}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 198.18.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: card, namespace: pay}
spec: {clusterIP: 198.18.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: through, namespace: shop}
spec: {type: ExternalName, externalName: card.pay.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: pay}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: pay, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.31]}, {addresses: [192.0.2.32]}, {addresses: [192.0.2.33]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {hostNetwork: true}
status: {phase: Running, podIP: 127.0.0.13}
"#;

/// The pods of `shop` and `pay`.
const SHOP: &str = "127.0.0.11";
const PAY: &str = "127.0.0.12";
const HOST: &str = "127.0.0.13";

/// A manifest of one running pod.
fn pod(namespace: &str, name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         status: {{phase: Running, podIP: {address}}}\n---\n"
    )
}

/// A daemon over the tenants with more keys of `[cluster]`. `www.example.org` has an A record, TTL 60, and
/// nothing else has any.
fn start(keys: &str) -> (Place, Daemon, Sink) {
    start_beside(keys, "")
}

/// The same; the last forward zone of `keys` and those of `zones` ask the same upstream.
fn start_beside(keys: &str, zones: &str) -> (Place, Daemon, Sink) {
    let place = Place::new();
    std::fs::create_dir(place.path("manifests")).expect("a folder");
    place.write("manifests/all.yaml", MANIFEST);
    place.write("manifests/pods.yaml", &(pod("shop", "a", SHOP) + &pod("pay", "a", PAY)));
    let sink = Sink::start(|seen| {
        let reply = seen.reply();
        match (seen.qname.as_str(), seen.qtype) {
            ("www.example.org.", qtype::A) => reply.a(seen, 60, [192, 0, 2, 9]).now(),
            ("www.example.org.", _) => reply.soa(60, 60).now(),
            // The cluster DNS knows of an endpoint that we do not watch.
            ("3.0.18.198.in-addr.arpa.", qtype::PTR) => {
                let name = name_to_wire("x.card.pay.svc.cluster.local");
                reply.answer(&seen.qname, qtype::PTR, 60, &name).now()
            }
            _ => leading(seen)
                .unwrap_or_else(|| reply.rcode(rcode::NXDOMAIN).soa_of(&seen.qname, 60, 60).now()),
        }
    });
    let folder = place.path("manifests");
    let zones = [keys, zones].map(|zone| match zone.contains("[[forward]]") {
        true => format!("{zone}upstreams = [\"{}\"]\n", sink.address),
        false => zone.to_owned(),
    });
    let keys = format!("[cluster]\nsource = \"files\"\nfolder = {folder:?}\n{}", zones.concat());
    let daemon = Setup::towards(sink.address).tables(&keys).start();
    (place, daemon, sink)
}

/// What others say that leads to a tenant's Service, its address included.
fn leading(seen: &Seen) -> Option<Action> {
    let (reply, card) = (seen.reply(), "card.pay.svc.cluster.local");
    let to = name_to_wire(card);
    let srv = || [&[0, 1, 0, 1, 0, 80][..], &to].concat();
    let address = |reply: Reply| reply.answer(&format!("{card}."), qtype::A, 60, &[198, 18, 0, 2]);
    Some(match (seen.qname.as_str(), seen.qtype) {
        (
            "alias.example.org." | "in.corp.cluster.local." | "web.shop.svc.cluster.local.",
            qtype::A,
        ) => address(reply.answer(&seen.qname, qtype::CNAME, 60, &to)).now(),
        ("port.example.org.", qtype::SRV) => {
            address(reply.answer(&seen.qname, qtype::SRV, 60, &srv())).now()
        }
        ("corp.cluster.local.", qtype::NS) => {
            address(reply.answer(&seen.qname, qtype::NS, 60, &to)).now()
        }
        ("mail.example.org.", qtype::MX) => {
            let mx = [&[0, 1][..], &to].concat();
            reply.answer(&seen.qname, qtype::MX, 60, &mx).now()
        }
        (name, qtype::A) if name == format!("{card}.") => address(reply).now(),
        _ => return None,
    })
}

/// The answer to a pod's query.
fn from(daemon: &Daemon, source: &str, name: &str, kind: u16) -> Answer {
    let socket = Udp::from(source.parse().expect("an address"), daemon.address());
    socket.exchange(&ask(name, kind))
}

/// The response code and the addresses of the answer to a pod's query.
fn short(daemon: &Daemon, source: &str, name: &str) -> (u16, String) {
    let answer = from(daemon, source, name, qtype::A);
    (answer.rcode(), answer.data(qtype::A).join(" "))
}

const FIRST: &str = "www.example.org.shop.svc.cluster.local";

#[test]
fn a_name_that_only_the_end_of_the_search_list_has_is_answered_to_the_first_query() {
    let (_place, daemon, sink) =
        start("search = true\nnode_search = [\"corp.example\"]\nby_namespace = true");
    for round in 0..3 {
        let answer = from(&daemon, SHOP, FIRST, qtype::A);
        assert_eq!(answer.rcode(), rcode::NOERROR, "{round}");
        assert_eq!(answer.data(qtype::CNAME), ["www.example.org."], "{round}");
        assert_eq!(answer.data(qtype::A), ["192.0.2.9"], "{round}");
        assert_eq!(answer.answers[0].owner, format!("{FIRST}."));
        assert_eq!(answer.answers[0].ttl, 5, "cluster.ttl: the name may come to exist");
    }
    assert_eq!(sink.seen_for("www.example.org.").len(), 1, "kept in the cache");
    assert_eq!(sink.seen_for("www.example.org.corp.example.").len(), 1, "the node's domain first");
    let of_cluster = |seen: &Seen| seen.qname.ends_with("cluster.local.");
    assert!(!sink.seen().iter().any(of_cluster), "nothing of the cluster is asked of others");
    // What is found without addresses is NODATA: musl gives a name up for an NXDOMAIN to either query.
    let other = from(&daemon, SHOP, FIRST, qtype::AAAA);
    assert_eq!(
        (other.rcode(), other.data(qtype::CNAME)),
        (rcode::NOERROR, vec!["www.example.org."])
    );
    assert!(other.data(qtype::AAAA).is_empty() && !other.authority.is_empty());
    // Names of the cluster that stand further down.
    let web = from(&daemon, SHOP, "web.shop.shop.svc.cluster.local", qtype::A);
    assert_eq!(web.data(qtype::CNAME), ["web.shop.svc.cluster.local."]);
    assert_eq!(web.data(qtype::A), ["198.18.0.1"]);
    // Load is spread as under the Service's own name.
    let first = |_| {
        let answer =
            from(&daemon, SHOP, "db.pay.svc.cluster.local.shop.svc.cluster.local", qtype::A);
        answer.data(qtype::A).first().map(ToString::to_string)
    };
    let firsts: std::collections::BTreeSet<_> = (0..40).map(first).collect();
    assert_eq!(firsts.len(), 3, "{firsts:?}");
    let by_tcp = tcp_from(&daemon, SHOP, FIRST);
    assert_eq!(by_tcp.data(qtype::A), ["192.0.2.9"]);
    assert_eq!(daemon.metric("nodens_cluster_search_answers_total", ""), 46.0);
    // A hit and a miss each count.
    for _ in 0..4 {
        from(&daemon, PAY, "www.example.org", qtype::A);
    }
    from(&daemon, HOST, "www.example.org", qtype::A);
    let count = |label: &str| daemon.metric("nodens_cluster_queries_total", label);
    assert_eq!(count("namespace=\"shop\""), 46.0);
    assert_eq!(count("namespace=\"pay\""), 4.0);
    assert!(count("namespace=\"\"") >= 1.0, "the pod on the host network, and the start's probe");
}

/// The answer to a pod's query by TCP.
fn tcp_from(daemon: &Daemon, source: &str, name: &str) -> Answer {
    use std::io::{Read, Write};
    let address = format!("{source}:0").parse::<std::net::SocketAddr>().expect("an address");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&address.into()).expect("a free port");
    socket.connect(&daemon.address().into()).expect("a connection");
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&framed(&ask(name, qtype::A).to_wire())).expect("sent");
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a response");
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).expect("a whole response");
    Answer::read(&message)
}

#[test]
fn what_one_pod_finds_is_given_to_no_other_and_a_name_that_comes_to_exist_is_seen_at_once() {
    let (place, daemon, _sink) = start("search = true\nnode_search = []");
    let nothing = (rcode::NXDOMAIN, String::new());
    let found = (rcode::NOERROR, "192.0.2.9".to_owned());
    // In any order: neither answer may stay for the other pod.
    for source in [SHOP, PAY, HOST, "127.0.0.1", SHOP, PAY] {
        let expected = if source == SHOP { &found } else { &nothing };
        assert_eq!(short(&daemon, source, FIRST), *expected, "{source}");
    }
    for absent in ["nothing.shop.svc.cluster.local", "no.example.shop.svc.cluster.local"] {
        assert_eq!(short(&daemon, SHOP, absent), nothing, "{absent}");
    }
    // Two pods with one address: neither is certain.
    let twins = pod("shop", "a", SHOP) + &pod("pay", "b", SHOP);
    place.write("manifests/pods.yaml", &twins);
    let is_plain = || short(&daemon, SHOP, FIRST) == nothing;
    assert!(until(Duration::from_secs(10), is_plain), "{}", daemon.log());
    place.write("manifests/pods.yaml", &pod("shop", "alone", SHOP));
    assert!(until(Duration::from_secs(10), || short(&daemon, SHOP, FIRST) == found));
    // The Service `example.org` cannot be, but one by the name of a search list's first can.
    let name = "late.svc.shop.svc.cluster.local";
    assert_eq!(short(&daemon, SHOP, name), nothing);
    place.write(
        "manifests/late.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: svc}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {name: late, namespace: svc}\nspec: {clusterIP: 198.18.0.9}",
    );
    let has_come = || short(&daemon, SHOP, name) == (rcode::NOERROR, "198.18.0.9".to_owned());
    assert!(until(Duration::from_secs(10), has_come), "{}", daemon.log());
}

#[test]
fn without_the_option_nothing_depends_on_who_asks() {
    let (_place, daemon, sink) = start("");
    for source in [SHOP, PAY] {
        assert_eq!(short(&daemon, source, FIRST), (rcode::NXDOMAIN, String::new()));
    }
    assert!(sink.seen_for("www.example.org.").is_empty());
}

#[test]
fn a_pod_sees_the_names_that_it_may_and_a_cached_answer_of_another_is_not_served_to_it() {
    let (_place, daemon, sink) =
        start("tenancy = [\"pay: *\", \"*: kube-system\", \"?: shop\"]\nsearch = true");
    let absent = (rcode::NXDOMAIN, String::new());
    let card = (rcode::NOERROR, "198.18.0.2".to_owned());
    // Those who may see it go first, again and again: the cache holds the answer.
    for round in 0..4 {
        assert_eq!(short(&daemon, PAY, "card.pay.svc.cluster.local"), card, "{round}");
        for source in [SHOP, HOST, "127.0.0.1"] {
            assert_eq!(short(&daemon, source, "card.pay.svc.cluster.local"), absent, "{source}");
        }
        // The other tenant's own names, which `pay` sees too.
        for source in [SHOP, PAY, HOST] {
            let (code, data) = short(&daemon, source, "web.shop.svc.cluster.local");
            assert_eq!((code, data.as_str()), (rcode::NOERROR, "198.18.0.1"), "{source}");
        }
    }
    let denied = from(&daemon, SHOP, "card.pay.svc.cluster.local", qtype::AAAA);
    assert_eq!(denied.rcode(), rcode::NXDOMAIN, "no NODATA tells that it exists");
    let unknown = from(&daemon, SHOP, "card.nowhere.svc.cluster.local", qtype::AAAA);
    assert_eq!(
        denied.authority[0].data, unknown.authority[0].data,
        "as if there were no such name"
    );
    let srv = from(&daemon, SHOP, "_http._tcp.card.pay.svc.cluster.local", qtype::SRV);
    assert_eq!(srv.rcode(), rcode::NXDOMAIN);
    let reverse = "2.0.18.198.in-addr.arpa";
    let seen = from(&daemon, PAY, reverse, qtype::PTR);
    assert_eq!(seen.data(qtype::PTR), ["card.pay.svc.cluster.local."]);
    let hidden = from(&daemon, SHOP, reverse, qtype::PTR);
    assert_eq!((hidden.rcode(), hidden.authority.len()), (rcode::NXDOMAIN, 1));
    for _ in 0..2 {
        let elsewhere = "3.0.18.198.in-addr.arpa";
        let seen = from(&daemon, PAY, elsewhere, qtype::PTR);
        assert_eq!(seen.data(qtype::PTR), ["x.card.pay.svc.cluster.local."]);
        let hidden = from(&daemon, SHOP, elsewhere, qtype::PTR);
        assert_eq!((hidden.rcode(), hidden.authority.len()), (rcode::NXDOMAIN, 1));
    }
    let through = from(&daemon, SHOP, "through.shop.svc.cluster.local", qtype::A);
    assert_eq!(through.rcode(), rcode::NXDOMAIN, "behind an alias too");
    assert_eq!(through.data(qtype::CNAME), ["card.pay.svc.cluster.local."]);
    assert!(through.data(qtype::A).is_empty());
    let any = from(&daemon, SHOP, "through.shop.svc.cluster.local", qtype::ANY);
    assert_eq!(any.data(qtype::CNAME), ["card.pay.svc.cluster.local."]);
    assert!(any.data(qtype::A).is_empty(), "ANY by UDP asks for addresses");
    let through = from(&daemon, PAY, "through.shop.svc.cluster.local", qtype::A);
    assert_eq!(through.data(qtype::A), ["198.18.0.2"]);
    // A search list finds nothing that is hidden.
    assert_eq!(short(&daemon, SHOP, "card.pay.shop.svc.cluster.local"), absent);
    assert!(sink.seen_for("card.pay.svc.cluster.local.").is_empty());
    assert!(daemon.metric("nodens_cluster_denials_total", "") >= 12.0);
    let udp = wire::udp(daemon.address(), &ask("www.example.org", qtype::A));
    assert_eq!(udp.data(qtype::A), ["192.0.2.9"], "other names are everybody's");
}

#[test]
fn what_others_say_is_told_only_to_those_who_may_see_every_name_in_it() {
    let zone =
        "tenancy = [\"pay: *\", \"*: kube-system\"]\n[[forward]]\nzone = \"corp.cluster.local\"\n";
    let deep = "[[forward]]\nzone = \"deep.pay.svc.cluster.local\"\n";
    let (_place, daemon, sink) = start_beside(zone, deep);
    for round in 0..3 {
        // An alias leads to no such name; of what else leads there the name itself exists.
        let (nx, ok) = (rcode::NXDOMAIN, rcode::NOERROR);
        for (name, kind, seen, code) in [
            ("alias.example.org", qtype::A, "198.18.0.2", nx),
            ("in.corp.cluster.local", qtype::A, "198.18.0.2", nx),
            ("port.example.org", qtype::SRV, "", ok),
            ("mail.example.org", qtype::MX, "", ok),
            ("corp.cluster.local", qtype::NS, "", ok),
        ] {
            // Who may see it goes first: the cache holds the answer.
            let answer = from(&daemon, PAY, name, kind);
            assert!(answer.data(qtype::A).join(" ").contains(seen), "{name} {round}");
            assert!(!answer.answers.is_empty(), "{name} {round}");
            let answer = from(&daemon, SHOP, name, kind);
            assert_eq!((answer.rcode(), answer.answers.len()), (code, 0), "{name} {round}");
            assert_eq!(answer.authority.len(), 1, "{name} {round}: it is to be cached");
            let records = answer.answers.iter().chain(&answer.authority).chain(&answer.additional);
            for record in records {
                let text = format!("{} {}", record.owner, record.data);
                assert!(!text.contains("pay") && !text.contains("198.18"), "{name}: {text}");
            }
        }
        // ANY by UDP asks for addresses; by TCP others are asked for ANY.
        assert_eq!(from(&daemon, SHOP, "alias.example.org", qtype::ANY).rcode(), rcode::NXDOMAIN);
        assert_eq!(tcp_from(&daemon, SHOP, "alias.example.org").rcode(), rcode::NXDOMAIN);
        let plain = from(&daemon, SHOP, "www.example.org", qtype::A);
        assert_eq!(plain.data(qtype::A), ["192.0.2.9"], "{round}");
    }
    // A name of a namespace that is hidden leads nowhere, however deep it is and whoever knows it.
    let deep = "a.b.c.d.deep.pay.svc.cluster.local";
    assert_eq!(from(&daemon, SHOP, deep, qtype::A).rcode(), rcode::NXDOMAIN);
    assert_eq!(sink.seen_for(&format!("{deep}.")).len(), 0);
    from(&daemon, PAY, deep, qtype::A);
    assert_eq!(sink.seen_for(&format!("{deep}.")).len(), 1);
}

#[test]
fn before_the_first_sync_what_the_cluster_dns_says_is_screened_too() {
    let place = Place::new();
    let sink = Sink::start(|seen| leading(seen).unwrap_or_else(|| seen.reply().soa(60, 60).now()));
    let nobody = crate::harness::place::free_port();
    let kubeconfig = place.write(
        "kubeconfig",
        &format!(
            "{{apiVersion: v1, kind: Config, current-context: c, users: [{{name: u, user: {{}}}}], clusters: \
             [{{name: c, cluster: {{server: 'http://127.0.0.1:{nobody}'}}}}], contexts: [{{name: c, context: \
             {{cluster: c, user: u}}}}]}}"
        ),
    );
    let keys = format!(
        "[cluster]\nsource = \"watch\"\nkubeconfig = {kubeconfig:?}\nnode = \"n\"\n\
         tenancy = [\"*: kube-system\", \"?: shop\"]"
    );
    let daemon = Setup::towards(sink.address).tables(&keys).start();
    for round in 0..2 {
        // Hidden itself; and a name that may be seen, which the cluster DNS knows as an alias of a hidden one.
        for name in ["card.pay.svc.cluster.local", "web.shop.svc.cluster.local"] {
            let answer = from(&daemon, SHOP, name, qtype::A);
            assert_eq!(
                (answer.rcode(), answer.answers.len()),
                (rcode::NXDOMAIN, 0),
                "{name} {round}"
            );
        }
        let other = from(&daemon, SHOP, "other.shop.svc.cluster.local", qtype::A);
        assert_eq!(other.rcode(), rcode::NOERROR, "{round}");
    }
    assert_eq!(sink.seen_for("card.pay.svc.cluster.local.").len(), 0, "nobody is asked");
}

#[test]
fn a_stale_answer_that_a_search_list_leads_to_says_that_it_is_stale() {
    let is_silent = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sink = Sink::start({
        let is_silent = std::sync::Arc::clone(&is_silent);
        move |seen| match seen.qname.as_str() {
            _ if is_silent.load(std::sync::atomic::Ordering::Relaxed) => Action::Ignore,
            "www.example.org." => seen.reply().a(seen, 1, [192, 0, 2, 9]).now(),
            _ => seen.reply().rcode(rcode::NXDOMAIN).soa_of(&seen.qname, 60, 60).now(),
        }
    });
    let place = Place::new();
    std::fs::create_dir(place.path("manifests")).expect("a folder");
    place.write("manifests/all.yaml", MANIFEST);
    place.write("manifests/pods.yaml", &pod("shop", "a", SHOP));
    let folder = place.path("manifests");
    let keys = format!(
        "[cluster]\nsource = \"files\"\nfolder = {folder:?}\nsearch = true\nnode_search = []\n\
         [local]\nrecords = [\"own.example.net CNAME www.example.org.\"]"
    );
    let daemon = Setup::towards(sink.address).tables(&keys).start();
    let fresh = from(&daemon, SHOP, FIRST, qtype::A);
    assert_eq!((fresh.data(qtype::A), fresh.ede().len()), (vec!["192.0.2.9"], 0));
    is_silent.store(true, std::sync::atomic::Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1200));
    for name in [FIRST, "own.example.net"] {
        let stale = from(&daemon, SHOP, name, qtype::A);
        assert_eq!(stale.data(qtype::A), ["192.0.2.9"], "{name}");
        assert_eq!(stale.answers[1].ttl, 30, "{name}: {stale:?}");
        assert_eq!(stale.ede(), [3], "{name}: Stale Answer");
    }
}
