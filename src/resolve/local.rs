//! Our own data: special-use names, static records, the hosts file, and our version.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::hosts::Hosts;
use crate::config;
use crate::dns::build::{self, LocalRecord};
use crate::dns::name::{ByConfig, Name, top};
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::ttl::Ttl;
use crate::dns::{Qclass, Qtype, Rcode};

/// How long the fact that a special-use name does not exist may be reused.
const SPECIAL_TTL: Ttl = Ttl::MAX_NEGATIVE;

/// Names under which nothing exists, whoever is asked, each with its source.
const NXDOMAIN_TREES: [(&str, &str); 7] = [
    ("invalid.", "RFC 6761 §6.4"),
    ("test.", "RFC 6761 §6.2"),
    ("onion.", "RFC 7686 §2"),
    ("alt.", "RFC 9476 §2"),
    ("home.arpa.", "RFC 8375 §4"),
    ("service.arpa.", "RFC 9665 §10.1"),
    ("resolver.arpa.", "RFC 9462 §6.4"),
];

/// Reverse trees of address ranges that are nobody's on the public internet.
///
/// Source: RFC 6303 §4, RFC 6598 (100.64/10)
const PRIVATE_REVERSE: [&str; 13] = [
    "10.in-addr.arpa.",
    "168.192.in-addr.arpa.",
    "254.169.in-addr.arpa.",
    "0.in-addr.arpa.",
    "2.0.192.in-addr.arpa.",
    "100.51.198.in-addr.arpa.",
    "113.0.203.in-addr.arpa.",
    "255.255.255.255.in-addr.arpa.",
    "d.f.ip6.arpa.",
    "8.e.f.ip6.arpa.",
    "9.e.f.ip6.arpa.",
    "a.e.f.ip6.arpa.",
    "b.e.f.ip6.arpa.",
];

/// What a special-use tree holds below its apex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Nothing: NXDOMAIN.
    Empty,
    /// `localhost.`: the loopback addresses at every name.
    Loopback,
}

/// Our own data, as configuration and hosts file say.
pub struct Local {
    /// Every name with its records; the names of one key share an owner.
    names: HashMap<Name, Vec<LocalRecord>, ByConfig>,
    /// Special-use trees by apex in wire form.
    trees: HashMap<Box<[u8]>, Tree, ByConfig>,
    /// The top-level domains of all these, in wire form.
    tops: HashSet<Box<[u8]>, ByConfig>,
    version: Option<String>,
    ttl: Ttl,
}

/// A match of a qname with our own data, ready to be encoded.
pub enum LocalMatch<'a> {
    /// A name of ours with its records.
    Exact { records: &'a [LocalRecord], ttl: Ttl },
    /// A name within the special-use tree of this apex.
    Special { apex: Name, tree: Tree, at_apex: bool },
}

/// What our own data says to a question.
#[derive(Debug)]
pub enum LocalAnswer {
    /// The whole response.
    Whole(Encoded),
    /// An alias of ours; its target is to be resolved.
    Alias(LocalRecord),
}

impl Local {
    /// Our own data; `hosts` is the parsed hosts file, if one is configured.
    pub fn new(config: &config::Local, hosts: Option<&Hosts>) -> Self {
        let ttl = Ttl::from_duration(config.ttl);
        let mut names: HashMap<Name, Vec<LocalRecord>, ByConfig> = HashMap::default();
        let written = config.records.iter().map(|record| LocalRecord {
            owner: record.name.clone(),
            rtype: record.rtype,
            ttl: record.ttl.map_or(ttl, Ttl::from_duration),
            rdata: record.rdata.clone(),
        });
        let loopback = if config.localhost { loopback_reverse() } else { Vec::new() };
        let from_hosts = hosts.into_iter().flat_map(|hosts| hosts.records(ttl));
        for record in written.chain(from_hosts).chain(loopback) {
            let records = names.entry(record.owner.clone()).or_default();
            if !records.contains(&record) {
                records.push(record);
            }
        }
        let trees = trees(config);
        let all = names.keys().map(Name::as_wire).chain(trees.keys().map(|apex| &**apex));
        let tops = all.map(|name| top(name).into()).collect();
        Self { names, trees, tops, version: config.version.clone(), ttl }
    }

    /// The records of `qname`, if it is a name of ours.
    pub fn exact(&self, qname: &Name) -> Option<LocalMatch<'_>> {
        self.names.get(qname).map(|records| LocalMatch::Exact { records, ttl: self.ttl })
    }

    /// Tells whether anything of ours lies below the top-level domain of `qname`.
    pub fn may_hold(&self, qname: &Name) -> bool {
        self.tops.contains(top(qname.as_wire()))
    }

    /// The special-use tree whose apex is `suffix` (wire form), if there is one.
    pub fn special(&self, suffix: &[u8], qname: &Name) -> Option<LocalMatch<'_>> {
        let tree = *self.trees.get(suffix)?;
        let apex = Name::from_wire(suffix)?;
        let at_apex = apex == *qname;
        Some(LocalMatch::Special { apex, tree, at_apex })
    }

    /// The response to `version.bind. CH TXT` and its like, if we may tell.
    pub fn version(&self, query: &Query) -> Option<Encoded> {
        let text = self.version.as_deref()?;
        let asked = query.qname.to_string();
        if !matches!(asked.as_str(), "version.bind." | "version.server.")
            || query.qtype != Qtype::TXT
        {
            return None;
        }
        let text = &text.as_bytes()[..text.len().min(255)];
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        let rdata = [&[length][..], text].concat();
        let record = LocalRecord {
            owner: query.qname.clone(),
            rtype: Qtype::TXT,
            ttl: Ttl::from_wire(0),
            rdata,
        };
        debug_assert_eq!(query.qclass, Qclass::CH);
        Some(build::authoritative(query, Rcode::NOERROR, &[record], &[]))
    }

    /// Every name about which the two say different things.
    pub fn changed_names<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Name> {
        let differs =
            |name: &Name| self.ttl != other.ttl || self.names.get(name) != other.names.get(name);
        self.names.keys().chain(other.names.keys()).filter(move |name| differs(name))
    }

    /// The apex of every special-use tree, wire form.
    pub fn tree_apexes(&self) -> impl Iterator<Item = &[u8]> {
        self.trees.keys().map(AsRef::as_ref)
    }
}

impl LocalMatch<'_> {
    /// What our data says to `query`: records, an alias, NODATA with an SOA, or NXDOMAIN with one.
    pub fn encode(&self, query: &Query) -> LocalAnswer {
        let (apex, ttl, rcode, answer) = match self {
            Self::Exact { records, ttl } => {
                let of_type = |rtype| records.iter().filter(move |r| r.rtype == rtype).cloned();
                let mut answer: Vec<_> = of_type(query.qtype).collect();
                if query.qtype == Qtype::ANY {
                    answer = records.to_vec();
                }
                if let (true, Some(alias)) = (answer.is_empty(), of_type(Qtype::CNAME).next()) {
                    return LocalAnswer::Alias(alias);
                }
                (query.qname.clone(), *ttl, Rcode::NOERROR, answer)
            }
            Self::Special { apex, tree: Tree::Loopback, .. } => {
                (apex.clone(), SPECIAL_TTL, Rcode::NOERROR, loopback(query))
            }
            Self::Special { apex, tree: Tree::Empty, at_apex } => {
                let rcode = if *at_apex { Rcode::NOERROR } else { Rcode::NXDOMAIN };
                (apex.clone(), SPECIAL_TTL, rcode, apex_records(query, apex, *at_apex))
            }
        };
        let authority = if answer.is_empty() { vec![build::soa(&apex, ttl)] } else { Vec::new() };
        LocalAnswer::Whole(build::authoritative(query, rcode, &answer, &authority))
    }
}

/// The records at the apex of an empty tree: it is a zone, so it has an SOA.
fn apex_records(query: &Query, apex: &Name, at_apex: bool) -> Vec<LocalRecord> {
    let wanted = at_apex && matches!(query.qtype, Qtype::SOA | Qtype::ANY);
    if wanted { vec![build::soa(apex, SPECIAL_TTL)] } else { Vec::new() }
}

/// The loopback addresses at a name within `localhost.`.
///
/// Source: RFC 6761 §6.3
fn loopback(query: &Query) -> Vec<LocalRecord> {
    let record = |rtype, rdata: &[u8]| LocalRecord {
        owner: query.qname.clone(),
        rtype,
        ttl: SPECIAL_TTL,
        rdata: rdata.to_vec(),
    };
    let v4 = record(Qtype::A, &Ipv4Addr::LOCALHOST.octets());
    let v6 = record(Qtype::AAAA, &Ipv6Addr::LOCALHOST.octets());
    [v4, v6].into_iter().filter(|r| r.rtype == query.qtype || query.qtype == Qtype::ANY).collect()
}

/// The reverse records of the two loopback addresses.
fn loopback_reverse() -> Vec<LocalRecord> {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        .map(|address| LocalRecord {
            owner: Name::reverse_of(address),
            rtype: Qtype::PTR,
            ttl: SPECIAL_TTL,
            rdata: b"\x09localhost\0".to_vec(),
        })
        .into()
}

/// The special-use trees that the configuration turns on.
fn trees(config: &config::Local) -> HashMap<Box<[u8]>, Tree, ByConfig> {
    let mut trees = HashMap::default();
    let mut plant = |apex: &str, tree| {
        let apex = Name::from_text(apex).expect("the tables hold valid names");
        trees.insert(apex.as_wire().into(), tree);
    };
    if config.localhost {
        plant("localhost.", Tree::Loopback);
        plant("127.in-addr.arpa.", Tree::Empty);
        plant(&Name::reverse_of(Ipv6Addr::LOCALHOST.into()).to_string(), Tree::Empty);
    }
    if config.special_use {
        NXDOMAIN_TREES.iter().for_each(|(apex, _)| plant(apex, Tree::Empty));
    }
    if config.private_reverse {
        PRIVATE_REVERSE.iter().for_each(|apex| plant(apex, Tree::Empty));
        (16..=31).for_each(|octet| plant(&format!("{octet}.172.in-addr.arpa."), Tree::Empty));
        (64..=127).for_each(|octet| plant(&format!("{octet}.100.in-addr.arpa."), Tree::Empty));
    }
    trees
}
