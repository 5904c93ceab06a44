//! The lab's cluster: nodes, pods and cluster DNS servers, each a network namespace with addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::namespace::Namespace;

/// The port of DNS.
pub(super) const DNS: u16 = 53;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Family {
    #[serde(rename = "ipv4")]
    V4,
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Both versions of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dual {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Dual {
    /// The pair out of both texts' numbers.
    pub(super) const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let [a, b, c, d] = v4;
        let [s, t, u, v, w, x, y, z] = v6;
        Self { v4: Ipv4Addr::new(a, b, c, d), v6: Ipv6Addr::new(s, t, u, v, w, x, y, z) }
    }

    /// The address of one family.
    pub(super) fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both, IPv4 first.
    pub(super) fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Both with the port of DNS.
    pub(super) fn sockets(self) -> Vec<SocketAddr> {
        self.both().map(|ip| SocketAddr::new(ip, DNS)).into()
    }
}

/// The cluster DNS address, which pods' resolv.conf names: nobody has it, kube-proxy translates it.
pub(super) const CLUSTER_DNS: Dual =
    Dual::new([10, 96, 0, 10], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa]);
/// The node's address towards its pods.
pub(super) const GATEWAY: Dual = Dual::new([10, 244, 0, 1], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1]);
/// The first addresses of the pod network, /24 and /64.
pub(super) const POD_NETWORK: Dual =
    Dual::new([10, 244, 0, 0], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0]);

/// The address of the pod `index`, from 0.
pub(super) fn pod_address(index: u8) -> Dual {
    Dual::new([10, 244, 0, 10 + index], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x10 + u16_of(index)])
}

/// The cluster DNS server `index`, and the node's address towards it.
pub(super) fn server_addresses(index: u8) -> (Dual, Dual) {
    let end = |host: u8| {
        let v6 = [0xfd00, 0x10, 0x245, u16_of(index), 0, 0, 0, u16_of(host)];
        Dual::new([10, 245, index, host], v6)
    };
    (end(2), end(1))
}

/// A byte as a group of an IPv6 address.
const fn u16_of(byte: u8) -> u16 {
    byte as u16
}

/// A host of the lab.
#[derive(Clone)]
pub(super) struct Host {
    pub namespace: Arc<Namespace>,
    pub addresses: Dual,
}

/// Everything that is wired together.
pub(super) struct Net {
    /// The node of the pods, where nodens runs, first.
    pub nodes: Vec<Arc<Namespace>>,
    pub pods: Vec<Host>,
    pub servers: Vec<Host>,
}

impl Net {
    /// The node of the pods.
    pub(super) fn node(&self) -> &Arc<Namespace> {
        self.nodes.first().expect("every topology has a node")
    }

    /// All namespaces.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        let hosts = self.pods.iter().chain(&self.servers);
        self.nodes.iter().chain(hosts.map(|host| &host.namespace))
    }
}
