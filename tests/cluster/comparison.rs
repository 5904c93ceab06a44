//! The same objects, the same questions: nodens answers as CoreDNS does, but for a table of reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use serde_json::Value;

use crate::harness::{Answer, Record, Tcp, ask, qtype, rcode};
use crate::objects::{self, NAMESPACES};
use crate::plane::{Plane, needs_kubernetes};

/// Every type that the schema speaks of, and ANY.
const TYPES: [(u16, &str); 9] = [
    (qtype::A, "A"),
    (qtype::AAAA, "AAAA"),
    (qtype::SRV, "SRV"),
    (qtype::PTR, "PTR"),
    (qtype::TXT, "TXT"),
    (qtype::CNAME, "CNAME"),
    (qtype::SOA, "SOA"),
    (qtype::NS, "NS"),
    (qtype::ANY, "ANY"),
];

/// What is compared of a response: the order of records is free, a SOA's serial too.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    rcode: u16,
    is_authoritative: bool,
    answers: BTreeSet<Record>,
    authority: BTreeSet<Record>,
    additional: BTreeSet<Record>,
}

impl Said {
    /// What `answer` says.
    fn of(answer: &Answer) -> Self {
        let section = |records: &[Record]| records.iter().cloned().map(without_serial).collect();
        Self {
            rcode: answer.rcode(),
            is_authoritative: answer.has(crate::harness::flag::AA),
            answers: section(&answer.answers),
            authority: section(&answer.authority),
            additional: section(&answer.additional),
        }
    }
}

impl Said {
    /// The shape of it: the response code, AA, and how many records of which types.
    fn sort(&self) -> String {
        let types = |records: &BTreeSet<Record>| {
            records.iter().map(|record| record.rtype).collect::<BTreeSet<_>>()
        };
        format!(
            "rcode {} aa {} {:?} {:?} {:?}",
            self.rcode,
            self.is_authoritative,
            types(&self.answers),
            types(&self.authority),
            types(&self.additional)
        )
    }
}

/// The TTL of [`objects::OUTSIDE`] at its upstream.
const OUTSIDE_TTL: u32 = 5;

/// A record with names in lower case, and a SOA record's serial (what changes with each object) as 0.
fn without_serial(mut record: Record) -> Record {
    record.owner.make_ascii_lowercase();
    record.data.make_ascii_lowercase();
    // The TTL of what an alias leads to outside ages in our cache; CoreDNS asks each time.
    if record.owner == format!("{}.", objects::OUTSIDE) {
        record.ttl = record.ttl.max(OUTSIDE_TTL);
    }
    if record.rtype == qtype::SOA
        && let Some((names, numbers)) = record.data.rsplit_once(' ')
    {
        record.data = format!("{names} {}{}", "0".repeat(8), &numbers[8..]);
    }
    record
}

/// One question with both answers.
struct Case<'a> {
    /// In lower case.
    qname: &'a str,
    qtype: u16,
    ours: &'a Said,
    theirs: &'a Said,
}

impl Case<'_> {
    /// Whether it is about an address.
    fn is_reverse(&self) -> bool {
        self.qname.ends_with(".arpa")
    }

    /// Whether we say that the name exists and has no such record.
    fn is_nodata(&self) -> bool {
        self.ours.rcode == rcode::NOERROR && self.ours.answers.is_empty()
    }

    /// Whether CoreDNS gives no record.
    fn has_nothing_of_theirs(&self) -> bool {
        self.theirs.answers.is_empty()
    }

    /// Whether it is about an endpoint, named after its address, of a Service of this kind (see `objects`).
    fn is_endpoint_of(&self, kind: usize) -> bool {
        let mut labels = self.qname.split('.');
        let is_address = labels.next().is_some_and(|label| label.starts_with("198-"));
        is_address && labels.next().and_then(number) == Some(kind)
    }

    /// Whether it is about an alias that leads to itself (see `objects`).
    fn is_loop(&self) -> bool {
        let label = self.qname.split('.').next().and_then(|label| label.strip_prefix('s'));
        label.and_then(|number| number.parse().ok()).is_some_and(objects::is_loop)
    }

    /// Whether what we say is a part of what CoreDNS says.
    fn is_part_of_theirs(&self) -> bool {
        !self.ours.answers.is_empty() && self.ours.answers.is_subset(&self.theirs.answers)
    }

    /// Whether it is about a Service with publishNotReadyAddresses (see `objects`).
    fn is_published(&self) -> bool {
        let targets = self.ours.answers.iter().map(|record| record.data.as_str());
        let names = targets.chain([self.qname]);
        names.flat_map(|name| name.split('.')).any(|label| number(label) == Some(11))
    }
}

/// The kind of the Service that this label names (see `objects`).
fn number(label: &str) -> Option<usize> {
    label.strip_prefix('s')?.parse::<usize>().ok().map(|number| number % 15)
}

/// A difference that is meant: a row of the README's table.
struct Difference {
    on: &'static str,
    theirs: &'static str,
    ours: &'static str,
    because: &'static str,
    /// Whether this explains a case; none where the objects here have no such case.
    holds: Option<fn(&Case) -> bool>,
}

impl Difference {
    /// The row.
    fn row(&self) -> String {
        format!("| {} | {} | {} | {} |", self.on, self.theirs, self.ours, self.because)
    }
}

/// Every difference that is meant. A line that no answer needs any more fails the test.
const DIFFERENCES: &[Difference] = &[
    Difference {
        on: "an EndpointSlice of no Service",
        theirs: "reverse names are answered",
        ours: "left out",
        because: "endpoints have names as part of a Service",
        holds: Some(|case| {
            case.theirs.answers.iter().any(|record| record.data.contains(".nobody."))
        }),
    },
    Difference {
        on: "endpoint names and reverse names of endpoints of Services with an address",
        theirs: "answered",
        ours: "NXDOMAIN; reverse names are forwarded, or lead to those of headless Services alone",
        because: "their EndpointSlices are the bulk of all, and are not watched",
        holds: Some(|case| match case.is_reverse() {
            true => {
                case.qtype == qtype::PTR
                    && (!case.ours.is_authoritative || case.is_part_of_theirs())
            }
            false => case.ours.rcode == rcode::NXDOMAIN && case.is_endpoint_of(0),
        }),
    },
    Difference {
        on: "ANY",
        theirs: "NODATA",
        ours: "addresses; by TCP SOA and NS at the apex too",
        because: "RFC 8482",
        holds: Some(|case| {
            case.qtype == qtype::ANY && case.has_nothing_of_theirs() && !case.is_nodata()
        }),
    },
    Difference {
        on: "endpoints that are not ready, of a Service with `publishNotReadyAddresses`, in a hand-made EndpointSlice",
        theirs: "left out",
        ours: "answered",
        because: "the Service says so; CoreDNS relies on the controller to call them ready",
        holds: Some(|case| case.is_published()),
    },
    Difference {
        on: "other types of a reverse name that is the cluster's",
        theirs: "asked of the upstream",
        ours: "NODATA",
        because: "the name exists",
        holds: Some(|case| case.is_reverse() && case.is_nodata() && case.has_nothing_of_theirs()),
    },
    Difference {
        on: "SOA of a reverse name that is not the cluster's",
        theirs: "answered",
        ours: "forwarded, as every type of it",
        because: "the reverse tree is not ours",
        holds: Some(|case| {
            case.is_reverse() && case.qtype == qtype::SOA && case.ours.rcode == rcode::SERVFAIL
        }),
    },
    Difference {
        on: "`_tcp.SERVICE…`, `dns.DOMAIN` and other names above names; `dns-version.DOMAIN` of another type than TXT",
        theirs: "NXDOMAIN",
        ours: "NODATA",
        because: "names exist below, or it exists itself (RFC 8020); resolvers of musl take NXDOMAIN for all",
        holds: Some(|case| {
            let above = [
                "_tcp.",
                "_udp.",
                "_sctp.",
                "dns-version.",
                "shop-",
                "svc.",
                "pod.",
                "cluster.",
                "ns.dns.",
            ];
            case.is_nodata()
                && case.theirs.rcode == rcode::NXDOMAIN
                && above.iter().any(|start| case.qname.starts_with(start))
        }),
    },
    Difference {
        on: "`_._tcp.SERVICE…`",
        theirs: "as `_x._tcp.SERVICE…` for every port at once",
        ours: "NXDOMAIN",
        because: "a port without a name has none",
        holds: Some(|case| case.qname.starts_with("_._") && case.ours.rcode == rcode::NXDOMAIN),
    },
    Difference {
        on: "ExternalName that leads to itself",
        theirs: "NODATA",
        ours: "SERVFAIL",
        because: "there is no answer, as resolvers say of every loop",
        holds: Some(|case| {
            case.is_loop()
                && case.ours.rcode == rcode::SERVFAIL
                && case.theirs.rcode == rcode::NOERROR
                && case.has_nothing_of_theirs()
        }),
    },
    Difference {
        on: "ExternalName whose target in the cluster does not exist",
        theirs: "NOERROR",
        ours: "NXDOMAIN, with the CNAME",
        because: "RFC 6604",
        holds: Some(|case| {
            let is_alias = case.ours.answers.iter().any(|record| record.rtype == qtype::CNAME);
            is_alias && case.ours.rcode == rcode::NXDOMAIN
        }),
    },
    Difference {
        on: "ExternalName, types other than A, AAAA, CNAME, SRV",
        theirs: "NODATA",
        ours: "the CNAME and what the target has",
        because: "RFC 1034 §3.6.2",
        holds: Some(|case| {
            let is_alias = case.ours.answers.iter().any(|record| record.rtype == qtype::CNAME);
            let is_failed = case.qtype == qtype::PTR && case.ours.rcode == rcode::SERVFAIL;
            !case.is_reverse() && case.has_nothing_of_theirs() && (is_alias || is_failed)
        }),
    },
    Difference {
        on: "NS of the apex",
        theirs: "the Services in front of CoreDNS, if it runs in the cluster",
        ours: "`ns.dns.DOMAIN`, with the addresses of `cluster.dns_service`",
        because: "it is the same on every node",
        holds: Some(|case| case.qname == "cluster.local" && case.qtype == qtype::NS),
    },
    Difference {
        on: "SOA of a name that does not exist",
        theirs: "NODATA",
        ours: "NXDOMAIN",
        because: "it exists for no type (RFC 2308)",
        holds: Some(|case| {
            case.qtype == qtype::SOA
                && case.ours.rcode == rcode::NXDOMAIN
                && case.theirs.rcode == rcode::NOERROR
        }),
    },
    Difference {
        on: "SRV of a pod",
        theirs: "one with port 0",
        ours: "NODATA",
        because: "the schema knows none",
        holds: Some(|case| {
            case.qtype == qtype::SRV && case.qname.contains(".pod.") && case.is_nodata()
        }),
    },
    Difference {
        on: "`x.1-2-3-4.NAMESPACE.pod`",
        theirs: "the pod's address",
        ours: "NXDOMAIN",
        because: "nothing is below a pod",
        holds: Some(|case| {
            case.qname.ends_with(".pod.cluster.local")
                && case.ours.rcode == rcode::NXDOMAIN
                && case.theirs.rcode == rcode::NOERROR
        }),
    },
    Difference {
        on: "pods that have ended, with `pods = \"verified\"`",
        theirs: "answered",
        ours: "NXDOMAIN",
        because: "their address is another's soon",
        holds: None,
    },
    Difference {
        on: "EndpointSlices of type FQDN",
        theirs: "CNAME",
        ours: "left out",
        because: "deprecated, and no address",
        holds: None,
    },
];

/// Every name that the objects have, and some that every zone has.
fn existing(objects: &[Value]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["", "svc.", "pod.", "dns-version.", "ns.dns."]
        .map(|at| format!("{at}cluster.local"))
        .into();
    names.insert("kubernetes.default.svc.cluster.local".to_owned());
    for namespace in NAMESPACES {
        names.insert(format!("{namespace}.svc.cluster.local"));
        names.insert(format!("{namespace}.pod.cluster.local"));
        names.insert(format!("198-18-0-1.{namespace}.pod.cluster.local"));
    }
    for object in objects {
        match object["kind"].as_str() {
            Some("Service") => names.extend(names_of_service(object)),
            Some("EndpointSlice") => names.extend(names_of_slice(object)),
            _ => {}
        }
    }
    // In upper case too, some of each kind.
    let shouted = names.iter().filter(|name| name.ends_with("local")).step_by(23);
    let shouted: Vec<_> = shouted.map(|name| name.to_uppercase()).collect();
    names.extend(shouted);
    names
}

/// The text of a field, or nothing.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The items of a list, or none.
fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Names by which a Service is asked for: its own, its ports', its addresses'.
fn names_of_service(service: &Value) -> Vec<String> {
    let meta = &service["metadata"];
    let base = format!("{}.{}.svc.cluster.local", text(meta, "name"), text(meta, "namespace"));
    let ports = items(&service["spec"]["ports"]).iter().map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
        format!("_{}._{protocol}.{base}", text(port, "name"))
    });
    let addresses = items(&service["spec"]["clusterIPs"]).iter();
    let reverse = addresses.filter_map(|address| address.as_str()?.parse().ok()).map(reverse_name);
    let mut names: Vec<_> = ports.chain(reverse).collect();
    // Below a port's protocol, and with the port's name alone.
    names.extend([format!("_tcp.{base}"), format!("_udp.{base}"), base]);
    names
}

/// Names by which endpoints are asked for.
fn names_of_slice(slice: &Value) -> Vec<String> {
    let meta = &slice["metadata"];
    let service = text(&meta["labels"], "kubernetes.io/service-name");
    let base = format!("{service}.{}.svc.cluster.local", text(meta, "namespace"));
    let mut names = Vec::new();
    for endpoint in items(&slice["endpoints"]) {
        let addresses = items(&endpoint["addresses"]).iter();
        for address in addresses.map(|address| address.as_str().expect("an address")) {
            let dashed = address.replace(['.', ':'], "-");
            let end = if dashed.ends_with('-') { "0" } else { "" };
            names.push(format!("{dashed}{end}.{base}"));
            names.push(reverse_name(address.parse().expect("an address")));
        }
        if let Some(hostname) = endpoint["hostname"].as_str() {
            names.push(format!("{hostname}.{base}"));
        }
    }
    names
}

/// The name under which an address is looked up.
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles: Vec<String> = (0..32)
                .rev()
                .map(|at| format!("{:x}", u128::from(address) >> (124 - 4 * at) & 15))
                .collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        }
    }
}

/// 5,000 names that do not exist, each near one that does.
fn absent(existing: &BTreeSet<String>) -> BTreeSet<String> {
    let in_zone: Vec<_> = existing.iter().filter(|name| name.ends_with(".cluster.local")).collect();
    let mut names = BTreeSet::new();
    for number in 0.. {
        if names.len() == 5000 {
            break;
        }
        let near = in_zone[number * 7 % in_zone.len()];
        let (first, rest) = near.split_once('.').expect("two labels");
        let name = match number % 7 {
            0 => format!("{first}x.{rest}"),
            1 => format!("no{number}.{near}"),
            2 => format!("_http._tcp.no{number}.{rest}"),
            3 => format!("a.b{number}.{near}"),
            4 => near.replace(".svc.", &format!(".no{number}.svc.")),
            5 => near.replace("shop-", &format!("market-{number}-")),
            _ => format!("*.{near}"),
        };
        let fits = name.split('.').all(|label| label.len() < 64) && name.len() < 250;
        if fits && !existing.contains(&name) {
            names.insert(name);
        }
    }
    names
}

/// Asks `server` for every type of `qname` at once.
fn ask_all(server: &mut Tcp, qname: &str) -> BTreeMap<u16, Said> {
    let mut asks = BTreeMap::new();
    for (number, (qtype, _)) in TYPES.iter().enumerate() {
        let mut ask = ask(qname, *qtype);
        ask.id = number as u16;
        server.send(&ask.to_wire());
        asks.insert(ask.id, *qtype);
    }
    let mut said = BTreeMap::new();
    while !asks.is_empty() {
        let message = server.receive(crate::harness::wire::PATIENCE);
        let answer = Answer::read(&message.unwrap_or_else(|| panic!("no response for {qname}")));
        let qtype = asks.remove(&answer.id).expect("an id of ours, once");
        said.insert(qtype, Said::of(&answer));
    }
    said
}

/// What was found.
#[derive(Default)]
struct Findings {
    compared: usize,
    /// By the difference that is meant.
    meant: BTreeMap<&'static str, usize>,
    /// Those that are not: how many of each sort, and the first of it.
    wrong: BTreeMap<String, (usize, String)>,
}

/// Compares what both say to every type of `names`.
fn compare(names: &BTreeSet<String>, ours: SocketAddr, theirs: SocketAddr) -> Findings {
    let findings = Mutex::new(Findings::default());
    let names: Vec<_> = names.iter().collect();
    let share = |part: &[&String]| {
        let (mut ours, mut theirs) = (Tcp::to(ours), Tcp::to(theirs));
        for qname in part {
            let (ours, theirs) = (ask_all(&mut ours, qname), ask_all(&mut theirs, qname));
            let mut findings = findings.lock().expect("no panic elsewhere");
            for (qtype, word) in TYPES {
                let qname = &qname.to_lowercase();
                let case = Case { qname, qtype, ours: &ours[&qtype], theirs: &theirs[&qtype] };
                judge(&case, word, &mut findings);
            }
        }
    };
    std::thread::scope(|scope| {
        for part in names.chunks(names.len().div_ceil(3)) {
            let share = &share;
            scope.spawn(move || share(part));
        }
    });
    findings.into_inner().expect("no panic")
}

/// Notes whether both say the same, or differ as is meant.
fn judge(case: &Case, word: &str, findings: &mut Findings) {
    findings.compared += 1;
    if case.ours == case.theirs {
        return;
    }
    let holds = |difference: &&Difference| difference.holds.is_some_and(|holds| holds(case));
    match DIFFERENCES.iter().find(holds) {
        Some(difference) => *findings.meant.entry(difference.on).or_default() += 1,
        None => {
            let sort = format!("{word}: {} against {}", case.ours.sort(), case.theirs.sort());
            let (ours, theirs) = (case.ours, case.theirs);
            let first = format!("{}\n  ours   {ours:?}\n  theirs {theirs:?}", case.qname);
            findings.wrong.entry(sort).or_insert((0, first)).0 += 1;
        }
    }
}

#[test]
fn nodens_and_coredns_agree_on_every_name_and_type() {
    let (_alone, programs) = needs_kubernetes!();
    let plane = Plane::start(&programs, &[]);
    let (namespaces, others): (Vec<_>, Vec<_>) =
        objects::every_kind().into_iter().partition(|object| object["kind"] == "Namespace");
    plane.make_all(&namespaces);
    let made = plane.make_all(&others);
    let endpoints: usize = made.iter().map(|object| items(&object["endpoints"]).len()).sum();
    assert!(endpoints >= 5000, "{endpoints} endpoints");

    let world = plane.world();
    let forward = format!("forward . {}", world.address);
    let options = "pods insecure\n ttl 5\n fallthrough in-addr.arpa ip6.arpa";
    let reference = plane.coredns(options, &forward);
    let nodens = plane.nodens(world.address, "pods = \"insecure\"");

    let names = existing(&made);
    let mut meant = BTreeMap::new();
    for (kind, names) in [("that exist", &names), ("that do not", &absent(&names))] {
        let findings = compare(names, nodens.address(), reference.address);
        println!("{} names {kind}, {} questions", names.len(), findings.compared);
        let sorts = findings
            .wrong
            .iter()
            .map(|(sort, (count, first))| format!("{count} times {sort}\n {first}\n"));
        let text: String = sorts.collect();
        assert!(text.is_empty(), "differences that are not meant:\n{text}");
        for (what, count) in findings.meant {
            *meant.entry(what).or_insert(0) += count;
        }
    }
    for difference in DIFFERENCES.iter().filter(|difference| difference.holds.is_some()) {
        let count = meant.get(difference.on).copied().unwrap_or_default();
        assert!(count > 0, "needed by no answer: {}", difference.row());
        println!("{count:6} {}", difference.row());
    }
}

#[test]
fn the_readme_has_these_differences_and_no_other() {
    let readme = crate::harness::manifests::file("README.md");
    let (_, table) = readme
        .split_once("| where | CoreDNS | nodens | why |\n|---|---|---|---|\n")
        .expect("a table");
    let written: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).collect();
    let rows: Vec<_> = DIFFERENCES.iter().map(Difference::row).collect();
    assert_eq!(written, rows, "the README's table must be:\n{}", rows.join("\n"));
}
