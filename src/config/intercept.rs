//! `[intercept]`: how queries to other addresses are brought to us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::endpoint::{self, DNS_PORT};
use super::error::{Fault, Place};
use super::host::Host;
use super::reader::{self, Reader};
use super::spec::Written;
use super::{Listen, Network, forms};

/// How queries are intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterceptMode {
    /// A table of our own rewrites the asked addresses, and dies with us.
    Takeover,
    /// The asked addresses are the host's own while we run.
    Bind,
    None,
}

/// What is intercepted, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    pub mode: InterceptMode,
    /// The mode was written: that it cannot be had is fatal. A defaulted one falls back to none.
    pub required: bool,
    /// What stub resolvers ask, port 53; each once. Empty only where nothing is intercepted.
    pub addresses: Vec<IpAddr>,
    /// The addresses were written: those of the cluster DNS are not added.
    pub are_written: bool,
    /// Where our private addresses are taken from.
    pub private: Vec<Network>,
    /// The cluster DNS endpoints behind [`NODE_ADDRESS`] while nobody intercepts it.
    pub fallback: Vec<SocketAddr>,
}

/// The address that kubelets hand out for a cache on the node; nobody else answers there.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);

/// Private addresses unless told otherwise: link-local ones next to [`NODE_ADDRESS`], and a ULA.
const PRIVATE: [Network; 2] = [
    Network { address: IpAddr::V4(Ipv4Addr::new(169, 254, 20, 16)), prefix: 28 },
    Network {
        address: IpAddr::V6(Ipv6Addr::new(0xfd6e, 0x6f64, 0x656e, 0, 0, 0, 0, 0)),
        prefix: 120,
    },
];

impl Intercept {
    /// Tells whether the cluster DNS's addresses are to be intercepted, once they are known.
    pub fn follows_cluster(&self) -> bool {
        let is_refused = self.required && self.mode == InterceptMode::None;
        !self.are_written && !is_refused
    }

    /// Intercepted addresses that no upstream can be, as addresses that we answer.
    ///
    /// What we bind is ours alone. Our own queries pass the table by their mark; without one they would come back to us. Behind
    /// [`NODE_ADDRESS`] nobody is but the net below.
    pub fn answered(&self, upstream_mark: u32) -> Vec<Listen> {
        let is_ours = |ip: &&IpAddr| {
            upstream_mark == 0
                || self.mode == InterceptMode::Bind
                || (**ip == NODE_ADDRESS && self.fallback.is_empty())
        };
        let taken = match self.mode {
            InterceptMode::Takeover | InterceptMode::Bind => &self.addresses[..],
            InterceptMode::None => &[],
        };
        let listen = |ip: &IpAddr| Listen {
            address: SocketAddr::new(*ip, DNS_PORT),
            device: None,
            required: true,
            is_intercepted: true,
            is_led_to: false,
        };
        taken.iter().filter(is_ours).map(listen).collect()
    }
}

/// Reads the table; `listen` must not hold what is intercepted.
pub fn read(reader: &mut Reader<'_, '_>, listen: &[Listen], host: &Host) -> Intercept {
    let written = reader.value("intercept.mode", |value| match reader::text(value)? {
        "none" => Ok(InterceptMode::None),
        "takeover" => Ok(InterceptMode::Takeover),
        "bind" => Ok(InterceptMode::Bind),
        other => Err(Fault::NotOneOf { text: other.to_owned(), choices: "takeover, bind, none" }),
    });
    let named = read_addresses(reader, listen, host);
    let mode = written.unwrap_or(match named {
        Some(_) => InterceptMode::Takeover,
        None => InterceptMode::None,
    });
    let unnamed = match mode {
        InterceptMode::Takeover | InterceptMode::Bind => vec![NODE_ADDRESS.into()],
        InterceptMode::None => Vec::new(),
    };
    Intercept {
        mode,
        required: written.is_some(),
        are_written: named.is_some(),
        addresses: named.unwrap_or(unnamed),
        private: read_private(reader),
        fallback: read_fallback(reader, host),
    }
}

/// The asked addresses; `None` where they are not written.
fn read_addresses(
    reader: &mut Reader<'_, '_>,
    listen: &[Listen],
    host: &Host,
) -> Option<Vec<IpAddr>> {
    let items = reader.some_list("intercept.addresses", "address")?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut places: Vec<&Place> = Vec::new();
    for item in items {
        let read = read_address(item, listen, host);
        let Some(new) = reader.accept(&item.place, read) else { continue };
        match addresses.iter().position(|known| *known == new) {
            Some(at) => {
                let (what, first) = (format!("the address {new}"), places[at].to_string());
                reader.fail(&item.place, Fault::Duplicate { what, first });
            }
            None => {
                addresses.push(new);
                places.push(&item.place);
            }
        }
    }
    Some(addresses)
}

/// One asked address: neither ours to listen on, nor one that only means this host.
fn read_address(item: &Written, listen: &[Listen], host: &Host) -> Result<IpAddr, Fault> {
    let text = reader::text(&item.value)?;
    let address = endpoint::parse_address(text, DNS_PORT, &host.interfaces)?;
    let ip = address.ip();
    let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let is_special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local;
    if address.port() != DNS_PORT || is_special {
        return Err(Fault::NotA {
            text: text.to_owned(),
            what: "an address that can be intercepted (its port is always 53)",
            example: "\"10.96.0.10\"",
        });
    }
    match listen.iter().find(|listen| listen.address == address) {
        Some(_) => Err(Fault::Listened { address: ip }),
        None => Ok(ip),
    }
}

/// The networks of private addresses.
fn read_private(reader: &mut Reader<'_, '_>) -> Vec<Network> {
    let Some(items) = reader.some_list("intercept.private", "network") else {
        return PRIVATE.to_vec();
    };
    let mut networks = Vec::new();
    for item in items {
        let read = reader::text(&item.value).and_then(|text| {
            forms::parse_network(text).filter(is_usable).ok_or_else(|| Fault::NotA {
                text: text.to_owned(),
                what: "a network for private addresses (not loopback, not fe80::/10)",
                example: "\"169.254.20.16/28\"",
            })
        });
        networks.extend(reader.accept(&item.place, read));
    }
    networks
}

/// Tells whether pods' packets can be rewritten to addresses of the network.
fn is_usable(network: &Network) -> bool {
    match network.address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

/// The endpoints of the net below.
fn read_fallback(reader: &mut Reader<'_, '_>, host: &Host) -> Vec<SocketAddr> {
    let mut endpoints = Vec::new();
    for item in reader.list("intercept.fallback").unwrap_or_default() {
        let read = reader::text(&item.value)
            .and_then(|text| endpoint::parse_address(text, DNS_PORT, &host.interfaces));
        endpoints.extend(reader.accept(&item.place, read));
    }
    endpoints
}
