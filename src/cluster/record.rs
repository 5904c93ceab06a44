//! What a Service is for DNS: parsed once from its object and its EndpointSlices.
//!
//! What DNS cannot hold is left out here, part by part: the rest of the object is served.

use std::net::IpAddr;
use std::sync::Arc;

use super::name::{self, MAX_LABEL_LEN};
use super::object;
use crate::dns::name::Name;

/// A Service's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Addresses of its own.
    Fixed { addresses: Box<[IpAddr]>, ports: Box<[Port]> },
    /// Those of its endpoints; `all`: of those that are not ready too.
    Headless { parts: Box<[Arc<Part>]>, all: bool },
    /// Another name.
    Alias(Name),
}

/// What a Service's own object says; the endpoints come from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Fixed {
        addresses: Box<[IpAddr]>,
        ports: Box<[Port]>,
    },
    Headless {
        all: bool,
    },
    Alias(Name),
    /// An alias that is no name (an address, or nothing): the Service does not exist for DNS.
    Nothing,
}

/// A port with its name and protocol, folded, without underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: Box<str>,
    pub protocol: Box<str>,
    /// `None` where the object has no number that a record can hold.
    pub number: Option<u16>,
}

/// One EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub ready: Endpoints,
    pub unready: Endpoints,
    pub ports: Box<[Port]>,
}

/// Endpoints, each family and each list sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Those with a hostname, by it.
    named: Box<[(Box<str>, IpAddr)]>,
    /// Those that are named after their address.
    plain: Box<[IpAddr]>,
}

impl Plan {
    /// What the Service's object says.
    pub fn from_object(service: &object::Service) -> Self {
        let spec = &service.spec;
        if service.is_external() {
            return alias(&spec.external_name).map_or(Self::Nothing, Self::Alias);
        }
        if service.is_headless() {
            return Self::Headless { all: spec.publish_not_ready_addresses };
        }
        let single = std::slice::from_ref(&spec.cluster_ip);
        let written = if spec.cluster_ips.is_empty() { single } else { &spec.cluster_ips };
        let mut addresses: Vec<IpAddr> = written.iter().filter_map(|text| address(text)).collect();
        addresses.dedup();
        Self::Fixed { addresses: addresses.into(), ports: ports(&spec.ports) }
    }
}

/// The name that an ExternalName Service leads to; with a dot at its end or without.
fn alias(text: &str) -> Option<Name> {
    let is_name = !text.is_empty() && text != "." && text.parse::<IpAddr>().is_err();
    is_name.then(|| Name::from_text(text).ok()).flatten()
}

/// An address that a record can hold; IPv4 written as IPv6 is neither.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    (address.to_canonical() == address).then_some(address)
}

/// The ports of an object.
fn ports(ports: &[object::Port]) -> Box<[Port]> {
    let port = |port: &object::Port| Port {
        name: port.name.to_ascii_lowercase().into(),
        protocol: if port.protocol.is_empty() {
            "tcp".into()
        } else {
            port.protocol.to_ascii_lowercase().into()
        },
        number: port.port.and_then(|number| u16::try_from(number).ok()),
    };
    ports.iter().map(port).collect()
}

impl Port {
    /// Tells whether this is the port that a question names.
    pub fn is_named(&self, port: &[u8], protocol: &[u8]) -> bool {
        !port.is_empty() && self.name.as_bytes() == port && self.protocol.as_bytes() == protocol
    }
}

impl Part {
    /// The part of an EndpointSlice that DNS can hold.
    pub fn from_object(slice: &object::EndpointSlice) -> Self {
        let of = |is_ready: bool| {
            let endpoints = slice.endpoints.iter();
            Endpoints::new(endpoints.filter(|e| e.conditions.ready.unwrap_or(true) == is_ready))
        };
        Self { ready: of(true), unready: of(false), ports: ports(&slice.ports) }
    }

    /// The endpoints that count; with `all` those that are not ready too.
    pub fn endpoints(&self, all: bool) -> impl Iterator<Item = (Option<&str>, IpAddr)> {
        self.sets(all).flat_map(Endpoints::iter)
    }

    /// Appends the addresses of the endpoint with this label.
    fn push_labelled(&self, label: &[u8], all: bool, out: &mut Vec<IpAddr>) {
        let plain = name::undashed(label);
        for set in self.sets(all) {
            let from = set.named.partition_point(|(name, _)| name.as_bytes() < label);
            let named = set.named.iter().skip(from);
            out.extend(named.take_while(|(name, _)| name.as_bytes() == label).map(|(_, at)| *at));
            out.extend(plain.filter(|address| set.plain.binary_search(address).is_ok()));
        }
    }

    /// Appends the labels of the endpoints with this address.
    fn push_labels_of(&self, address: IpAddr, all: bool, out: &mut Vec<String>) {
        for set in self.sets(all) {
            let named = set.named.iter().filter(|(_, named)| *named == address);
            out.extend(named.map(|(label, _)| label.to_string()));
            if set.plain.binary_search(&address).is_ok() {
                out.push(name::dashed(address));
            }
        }
    }

    /// Tells whether an endpoint that counts has this address.
    fn has(&self, address: IpAddr, all: bool) -> bool {
        let has = |set: &Endpoints| {
            set.plain.binary_search(&address).is_ok()
                || set.named.iter().any(|(_, named)| *named == address)
        };
        self.sets(all).any(has)
    }

    /// The lists that count.
    fn sets(&self, all: bool) -> impl Iterator<Item = &Endpoints> {
        std::iter::once(&self.ready).chain(all.then_some(&self.unready))
    }
}

impl Endpoints {
    /// The endpoints of a slice that are in one state.
    fn new<'a>(endpoints: impl Iterator<Item = &'a object::Endpoint>) -> Self {
        let (mut named, mut plain) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            let is_label = name::label(&endpoint.hostname).is_some();
            let hostname = is_label.then(|| endpoint.hostname.to_ascii_lowercase());
            for address in endpoint.addresses.iter().filter_map(|text| address(text)) {
                match &hostname {
                    Some(hostname) => named.push((hostname.as_str().into(), address)),
                    None => plain.push(address),
                }
            }
        }
        named.sort_unstable();
        named.dedup();
        plain.sort_unstable();
        plain.dedup();
        Self { named: named.into(), plain: plain.into() }
    }

    /// Every endpoint: its hostname if it has one, its address.
    fn iter(&self) -> impl Iterator<Item = (Option<&str>, IpAddr)> {
        let named = self.named.iter().map(|(label, address)| (Some(&**label), *address));
        named.chain(self.plain.iter().map(|address| (None, *address)))
    }
}

impl Record {
    /// The record of a Service with these EndpointSlices.
    pub fn new(plan: &Plan, parts: impl Iterator<Item = Arc<Part>>) -> Option<Self> {
        Some(match plan {
            Plan::Fixed { addresses, ports } => {
                Self::Fixed { addresses: addresses.clone(), ports: ports.clone() }
            }
            Plan::Headless { all } => Self::Headless { parts: parts.collect(), all: *all },
            Plan::Alias(name) => Self::Alias(name.clone()),
            Plan::Nothing => return None,
        })
    }

    /// Every address whose reverse name leads here, with the label of its endpoint; those of the
    /// parts that `other` shares are left out, since both say the same of them.
    pub fn reversible<'a>(
        &'a self,
        other: Option<&'a Self>,
    ) -> impl Iterator<Item = (Option<&'a str>, IpAddr)> {
        let fixed: &[IpAddr] = match self {
            Self::Fixed { addresses, .. } => addresses,
            _ => &[],
        };
        let (parts, all) = self.parts();
        let (others, other_all) = other.map_or((&[][..], all), Self::parts);
        let is_shared = move |part: &Arc<Part>| {
            all == other_all && others.iter().any(|other| Arc::ptr_eq(part, other))
        };
        let changed = parts.iter().filter(move |part| !is_shared(part));
        let endpoints = changed.flat_map(move |part| part.endpoints(all));
        fixed.iter().map(|address| (None, *address)).chain(endpoints)
    }

    /// The EndpointSlices of a headless Service, and whether endpoints that are not ready count.
    pub fn parts(&self) -> (&[Arc<Part>], bool) {
        match self {
            Self::Headless { parts, all } => (parts, *all),
            _ => (&[], false),
        }
    }

    /// Tells whether the reverse name of `address` leads here.
    pub fn has(&self, address: IpAddr) -> bool {
        match self {
            Self::Fixed { addresses, .. } => addresses.contains(&address),
            Self::Headless { parts, all } => parts.iter().any(|part| part.has(address, *all)),
            Self::Alias(_) => false,
        }
    }

    /// The addresses of the endpoint with this label.
    pub fn labelled(&self, label: &[u8]) -> Vec<IpAddr> {
        let mut out = Vec::new();
        let (parts, all) = self.parts();
        parts.iter().for_each(|part| part.push_labelled(label, all, &mut out));
        out
    }

    /// The labels of the endpoints with this address.
    pub fn labels_of(&self, address: IpAddr) -> Vec<String> {
        let mut out = Vec::new();
        let (parts, all) = self.parts();
        parts.iter().for_each(|part| part.push_labels_of(address, all, &mut out));
        out
    }
}

// A hostname that is a label is found by its bytes.
const _: () = assert!(MAX_LABEL_LEN == 63);
