//! The answers: what the snapshot says to a question. Pure.
//!
//! As CoreDNS's kubernetes plugin answers, but for what RFC 1034 says otherwise: a name below which
//! others exist does exist, and an alias is one for every type but SRV.
//!
//! Source: Kubernetes DNS-Based Service Discovery, schema 1.1.0

use std::collections::HashSet;
use std::net::IpAddr;

use super::name::{self, Asked, Key};
use super::record::{Port, Record};
use super::snapshot::Snapshot;
use super::tenancy::Sight;
use super::{PodNames, Settings};
use crate::dns::build::{self, LocalRecord};
use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::response::Encoded;
use crate::dns::ttl::Ttl;
use crate::dns::{Qtype, Rcode};

/// The schema that `dns-version` names, as a TXT record's data, and its TTL.
const VERSION: (&[u8], u32) = (b"\x051.1.0", 28_800);

/// The most that a SOA record may live, whatever the other records' TTL: so long nothing is believed absent.
const SOA_TTL: u32 = 300; // CoreDNS's

/// What the zone says to a question.
#[derive(Debug)]
pub enum Answer {
    /// The whole response.
    Whole(Encoded),
    /// An alias; its target is to be resolved.
    Alias(LocalRecord),
}

/// One question to one snapshot.
pub(super) struct Zone<'a> {
    pub snapshot: &'a Snapshot,
    pub settings: &'a Settings,
    /// The number in the SOA records.
    pub serial: u32,
    /// What the asker sees.
    pub sight: Sight<'a>,
}

/// What is found under a name, before it is encoded.
enum Found {
    /// Nothing of that name.
    NoName,
    /// The name, with these records of the question's type and additional ones.
    Records(Vec<LocalRecord>, Vec<LocalRecord>),
    Alias(LocalRecord),
}

/// An address behind a port, with the name that leads to it.
struct Target {
    name: Name,
    address: IpAddr,
    /// `None` where there is no number to tell.
    port: Option<u16>,
}

impl Zone<'_> {
    /// The answer; `None` when the name is none of ours.
    pub fn answer(&self, query: &Query) -> Option<Answer> {
        let (apex, found) = match self.settings.within(query.qname.as_wire()) {
            Some((domain, asked)) => (domain, View { zone: self, domain, query }.find(asked)),
            None => match self.reverse(query)? {
                Found::NoName => return Some(Answer::Whole(self.denial(query, Rcode::NXDOMAIN))),
                found => (&query.qname, found),
            },
        };
        let (answer, additional) = match found {
            Found::Alias(alias) => return Some(Answer::Alias(alias)),
            Found::Records(answer, additional) => (answer, additional),
            Found::NoName => return Some(Answer::Whole(self.denial(query, Rcode::NXDOMAIN))),
        };
        let authority = if answer.is_empty() { vec![self.soa(apex)] } else { Vec::new() };
        let encoded = build::sections(query, Rcode::NOERROR, [&answer, &authority, &additional]);
        Some(Answer::Whole(encoded.with_rotation()))
    }

    /// The response that there is no such name, as if nobody had it; or nothing of the type, as `rcode` says.
    pub fn denial(&self, query: &Query, rcode: Rcode) -> Encoded {
        let domain = self.settings.within(query.qname.as_wire()).map(|(domain, _)| domain.clone());
        let tree = || {
            let trees = [&b"\x07in-addr\x04arpa\0"[..], b"\x03ip6\x04arpa\0"];
            Name::from_wire(query.qname.suffixes().find(|suffix| trees.contains(suffix))?)
        };
        let apex = domain.or_else(tree).unwrap_or_else(Name::root);
        build::authoritative(query, rcode, &[], &[self.soa(&apex)])
    }

    /// What the reverse name of one of our addresses leads to.
    fn reverse(&self, query: &Query) -> Option<Found> {
        let address = name::reversed(&query.qname)?;
        let domain = self.settings.domains.first()?;
        let all = self.snapshot.owners(address);
        let (owners, hidden): (Vec<_>, Vec<_>) =
            all.partition(|(key, _)| self.sight.shows(Key(key).namespace()));
        let fixed = owners.iter().find(|(_, record)| matches!(***record, Record::Fixed { .. }));
        let names: Vec<Name> = match fixed {
            Some((key, _)) => below(&[], key, domain).into_iter().collect(),
            None => {
                let labels = owners.iter().flat_map(|(key, record)| {
                    record.labels_of(address).into_iter().map(move |label| (key, label))
                });
                labels.filter_map(|(key, label)| below(&[&label], key, domain)).collect()
            }
        };
        if names.is_empty() {
            // Another's answer would tell what is hidden.
            return (!hidden.is_empty()).then_some(Found::NoName);
        }
        let wanted = matches!(query.qtype, Qtype::PTR | Qtype::ANY);
        let names = names.into_iter().filter(|_| wanted).map(|name| name.as_wire().to_vec());
        Some(Found::only(names.map(|to| self.record(&query.qname, Qtype::PTR, to))))
    }

    /// A record of ours.
    fn record(&self, owner: &Name, rtype: Qtype, rdata: Vec<u8>) -> LocalRecord {
        LocalRecord { owner: owner.clone(), rtype, ttl: self.settings.ttl, rdata }
    }

    /// The SOA of a zone; its negative TTL is ours.
    fn soa(&self, apex: &Name) -> LocalRecord {
        let domain = self.settings.domains.first().filter(|_| !is_within_any(apex, self.settings));
        let domain = domain.unwrap_or(apex);
        let mut rdata = Vec::with_capacity(2 * domain.as_wire().len() + 40);
        for label in [&b"\x02ns\x03dns"[..], b"\x0ahostmaster"] {
            rdata.extend(label);
            rdata.extend(domain.as_wire());
        }
        for number in [self.serial, 7200, 1800, 86_400, self.settings.ttl.as_secs()] {
            rdata.extend(number.to_be_bytes());
        }
        let ttl = self.settings.ttl.min(Ttl::from_wire(SOA_TTL));
        LocalRecord { ttl, ..self.record(apex, Qtype::SOA, rdata) }
    }
}

/// Tells whether a name is within one of the cluster domains.
fn is_within_any(name: &Name, settings: &Settings) -> bool {
    settings.domains.iter().any(|domain| name.is_within(domain))
}

impl Found {
    /// Records without additional ones.
    fn only(records: impl IntoIterator<Item = LocalRecord>) -> Self {
        Self::Records(records.into_iter().collect(), Vec::new())
    }

    /// The name without records of the question's type, if it exists.
    fn nothing_if(exists: bool) -> Self {
        if exists { Self::only([]) } else { Self::NoName }
    }
}

/// One question within one cluster domain.
struct View<'a> {
    zone: &'a Zone<'a>,
    domain: &'a Name,
    query: &'a Query,
}

impl View<'_> {
    /// What is found under what is asked.
    fn find(&self, asked: Asked<'_>) -> Found {
        let snapshot = self.zone.snapshot;
        if asked.namespace().is_some_and(|namespace| !self.zone.sight.shows(namespace)) {
            return Found::NoName;
        }
        match asked {
            Asked::Apex => self.apex(),
            Asked::Inner => Found::only([]),
            Asked::Version => self.version(),
            Asked::NameServer => Found::only(self.own_addresses(self.name_server().1)),
            Asked::Namespace(label) => Found::nothing_if(snapshot.has_namespace(label)),
            Asked::PodNamespace(label) => Found::nothing_if(
                self.zone.settings.pods != PodNames::Disabled && snapshot.has_namespace(label),
            ),
            Asked::Pod { address, namespace } => self.pod(address, namespace),
            Asked::Service(key) => self.service(key, None),
            Asked::Port { port, protocol, service } => {
                self.service(service, Some((port, protocol)))
            }
            Asked::Endpoint { label, service } => self.endpoint(label, service),
            Asked::Nothing => Found::NoName,
        }
    }

    /// The domain itself: SOA and NS.
    fn apex(&self) -> Found {
        let (name, addresses) = self.name_server();
        let wants = |qtype| self.query.qtype == qtype || self.query.qtype == Qtype::ANY;
        let mut records = Vec::new();
        let mut additional = Vec::new();
        if wants(Qtype::SOA) {
            records.push(self.zone.soa(self.domain));
        }
        if wants(Qtype::NS) {
            records.push(self.zone.record(self.domain, Qtype::NS, name.as_wire().to_vec()));
            additional.extend(addresses.into_iter().map(|address| self.address(&name, address)));
        }
        Found::Records(records, additional)
    }

    /// The zone's name server: the cluster DNS Service where it is known, else a name alone.
    fn name_server(&self) -> (Name, Vec<IpAddr>) {
        let found = || {
            let service = self.zone.settings.name_server.as_ref()?;
            let key = name::service_key(&service.namespace, &service.name)?;
            if !self.zone.sight.shows(Key(&key).namespace()) {
                return None;
            }
            match &**self.zone.snapshot.service(Key(&key))? {
                Record::Fixed { addresses, .. } => {
                    Some((below(&[], &key, self.domain)?, addresses.to_vec()))
                }
                _ => None,
            }
        };
        let named = || joined(&[b"\x02ns\x03dns", self.domain.as_wire()]);
        found().unwrap_or_else(|| (named().unwrap_or_else(|| self.domain.clone()), Vec::new()))
    }

    /// The version of the schema.
    fn version(&self) -> Found {
        let wanted = matches!(self.query.qtype, Qtype::TXT | Qtype::ANY);
        let record = self.zone.record(&self.query.qname, Qtype::TXT, VERSION.0.to_vec());
        Found::only(wanted.then(|| LocalRecord { ttl: Ttl::from_wire(VERSION.1), ..record }))
    }

    /// A pod by its address.
    fn pod(&self, label: &[u8], namespace: &[u8]) -> Found {
        let snapshot = self.zone.snapshot;
        let exists = |address: &IpAddr| match self.zone.settings.pods {
            PodNames::Disabled => false,
            PodNames::Insecure => true,
            PodNames::Verified => {
                let mut pods = snapshot.pods(*address).iter();
                pods.any(|pod| pod.namespace.get(1..) == Some(namespace))
            }
        };
        let address = name::pod_address(label).filter(|_| snapshot.has_namespace(namespace));
        match address.filter(exists) {
            Some(address) => Found::only(self.own_addresses(vec![address])),
            None => Found::NoName,
        }
    }

    /// A Service, or one of its ports by name and protocol.
    fn service(&self, key: Key<'_>, port: Option<(&[u8], &[u8])>) -> Found {
        let Some(record) = self.zone.snapshot.service(key) else { return Found::NoName };
        if let Record::Alias(target) = &**record {
            return if port.is_some() { Found::NoName } else { self.alias(target) };
        }
        let matches = |at: &&Port| port.is_none_or(|(port, protocol)| at.is_named(port, protocol));
        let has_port = |ports: &[Port]| port.is_none() || ports.iter().any(|at| matches(&at));
        let addresses = match &**record {
            Record::Fixed { addresses, ports } => has_port(ports).then(|| addresses.to_vec()),
            _ => {
                let (parts, all) = record.parts();
                let parts = parts.iter().filter(|part| has_port(&part.ports));
                let endpoints = parts.flat_map(|part| part.endpoints(all));
                Some(endpoints.map(|(_, address)| address).collect())
                    .filter(|at: &Vec<_>| !at.is_empty())
            }
        };
        match addresses {
            None => Found::NoName,
            Some(_) if self.query.qtype == Qtype::SRV => {
                self.srv(&self.targets(key, record, &matches))
            }
            Some(addresses) => Found::only(self.own_addresses(addresses)),
        }
    }

    /// An endpoint of a headless Service; or the protocol of a port, below which names exist.
    fn endpoint(&self, label: &[u8], key: Key<'_>) -> Found {
        let Some(record) = self.zone.snapshot.service(key) else { return Found::NoName };
        let addresses = record.labelled(label);
        if !addresses.is_empty() {
            if self.query.qtype != Qtype::SRV {
                return Found::only(self.own_addresses(addresses));
            }
            let mut targets = self.targets(key, record, &|_: &&Port| true);
            targets.retain(|target| target.name == self.query.qname);
            return self.srv(&targets);
        }
        let is_protocol = |port: &Port| {
            label.strip_prefix(b"_") == Some(port.protocol.as_bytes()) && !port.name.is_empty()
        };
        let (parts, all) = record.parts();
        let of_parts = parts.iter().filter(|part| part.endpoints(all).next().is_some());
        let mut ports = of_parts.flat_map(|part| &*part.ports);
        Found::nothing_if(match &**record {
            Record::Fixed { ports, .. } => ports.iter().any(is_protocol),
            _ => ports.any(is_protocol),
        })
    }

    /// The alias of an ExternalName Service. It has no SRV records, whatever its target has.
    fn alias(&self, target: &Name) -> Found {
        let record = self.zone.record(&self.query.qname, Qtype::CNAME, target.as_wire().to_vec());
        match self.query.qtype {
            Qtype::SRV => Found::only([]),
            Qtype::CNAME | Qtype::ANY => Found::only([record]),
            _ => Found::Alias(record),
        }
    }

    /// Every address behind every port for which `matches`, or without ports behind none.
    fn targets(
        &self,
        key: Key<'_>,
        record: &Record,
        matches: &dyn Fn(&&Port) -> bool,
    ) -> Vec<Target> {
        let mut out = Vec::new();
        let mut push = |name: Option<Name>, address, ports: &[Port]| {
            let Some(name) = name else { return };
            let target = |port| Target { name: name.clone(), address, port };
            out.extend(ports.iter().filter(matches).map(|port| target(port.number)));
            if ports.is_empty() {
                out.push(target(None));
            }
        };
        if let Record::Fixed { addresses, ports } = record {
            addresses.iter().for_each(|at| push(below(&[], key.0, self.domain), *at, ports));
        }
        let (parts, all) = record.parts();
        for part in parts {
            for (label, address) in part.endpoints(all) {
                let label = label.map_or_else(|| name::dashed(address), str::to_owned);
                push(below(&[&label], key.0, self.domain), address, &part.ports);
            }
        }
        out
    }

    /// SRV records with the addresses that they lead to; each once, all of the same weight.
    fn srv(&self, targets: &[Target]) -> Found {
        // As CoreDNS has it: what one of them gets of 100, those without a number counted too.
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(100).max(1);
        let (mut records, mut additional) = (Vec::new(), Vec::new());
        let (mut ports, mut addresses) = (HashSet::new(), HashSet::new());
        for target in targets {
            let Some(port) = target.port else { continue };
            if ports.insert((&target.name, port)) {
                let mut rdata = Vec::with_capacity(6 + target.name.as_wire().len());
                [0, weight, port].iter().for_each(|number| rdata.extend(number.to_be_bytes()));
                rdata.extend(target.name.as_wire());
                records.push(self.zone.record(&self.query.qname, Qtype::SRV, rdata));
            }
            if addresses.insert((&target.name, target.address)) {
                additional.push(self.address(&target.name, target.address));
            }
        }
        Found::Records(records, additional)
    }

    /// The addresses of the question's family, each once, as records of its name.
    fn own_addresses(&self, mut addresses: Vec<IpAddr>) -> impl Iterator<Item = LocalRecord> {
        addresses.sort_unstable();
        addresses.dedup();
        let records = addresses.into_iter().map(|address| self.address(&self.query.qname, address));
        let qtype = self.query.qtype;
        records.filter(move |record| qtype == record.rtype || qtype == Qtype::ANY)
    }

    /// An address record.
    fn address(&self, owner: &Name, address: IpAddr) -> LocalRecord {
        match address {
            IpAddr::V4(v4) => self.zone.record(owner, Qtype::A, v4.octets().to_vec()),
            IpAddr::V6(v6) => self.zone.record(owner, Qtype::AAAA, v6.octets().to_vec()),
        }
    }
}

/// The name of a Service, or of something below it; `None` when it is too long for one.
pub(super) fn below(labels: &[&str], key: &[u8], domain: &Name) -> Option<Name> {
    let mut front = Vec::new();
    for text in labels {
        front.extend(name::label(text)?);
    }
    joined(&[&front, key, b"\x03svc", domain.as_wire()])
}

/// A name of wire parts, of which only the last ends in the root; `None` when it is too long for one.
pub(super) fn joined(parts: &[&[u8]]) -> Option<Name> {
    Name::from_wire(&parts.concat())
}
