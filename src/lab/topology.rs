//! Four ways to wire pods to their node, each with the kernel's real devices, IPv4 and IPv6.
//!
//! Each gives pods a way to the cluster DNS address through the node, and the node a way to the
//! cluster DNS servers. No namespace has a route out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;
use super::net::{
    CLUSTER_DNS, Dual, GATEWAY, Host, Net, POD_NETWORK, pod_address, server_addresses,
};
use crate::netlink::links::{Kind, LinkError, Links, Route};

/// How many cluster DNS servers there are: two, and one to replace one of them.
const SERVERS: u8 = 3;

/// How pods reach their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// A bridge whose packets go through the node's packet rules, as with Docker and kubenet.
    Bridge,
    /// A bridge, and the cluster DNS on another node behind a tunnel, as with Flannel.
    Vxlan,
    /// A cable for each pod, host routes and proxied ARP, as with Calico.
    Routed,
    /// Links on top of the node's own, and one of the node's beside them.
    Macvlan,
}

impl Topology {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Vxlan, Self::Routed, Self::Macvlan];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Vxlan => "vxlan",
            Self::Routed => "routed",
            Self::Macvlan => "macvlan",
        }
    }

    /// What it is, for people.
    pub fn as_sentence(self) -> &'static str {
        match self {
            Self::Bridge => "A bridge, as with Docker and kubenet",
            Self::Vxlan => "A bridge, and the cluster DNS behind a tunnel, as with Flannel",
            Self::Routed => "Host routes and proxied ARP, as with Calico",
            Self::Macvlan => "Links on top of the node's network card",
        }
    }

    /// Builds nodes, `pods` pods and the cluster DNS's hosts, and wires them.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub(super) fn build(self, pods: u8) -> Result<Net, LabError> {
        let node = node("node")?;
        let mut nodes = vec![Arc::clone(&node)];
        let behind = match self {
            Self::Vxlan => {
                let other = self::node("node-b")?;
                tunnel(&node, &other)?;
                nodes.push(Arc::clone(&other));
                other
            }
            _ => Arc::clone(&node),
        };
        let servers = (1..=SERVERS).map(|index| server(&behind, index));
        let servers = servers.collect::<Result<_, _>>()?;
        let mut net = Net { nodes, pods: Vec::new(), servers };
        match self {
            Self::Bridge | Self::Vxlan => bridge(&node)?,
            Self::Routed => proxied_gateway(&node)?,
            Self::Macvlan => net.nodes.push(shim(&node)?),
        }
        for index in 0..pods {
            let addresses = pod_address(index);
            let namespace = Arc::new(Namespace::new(&format!("pod-{index}"))?);
            let host = Host { namespace, addresses };
            match self {
                Self::Bridge | Self::Vxlan => plug(&node, &host)?,
                Self::Routed => route(&node, &host)?,
                Self::Macvlan => stack(&node, &host)?,
            }
            net.pods.push(host);
        }
        Ok(net)
    }
}

/// A node: forwards packets.
fn node(name: &str) -> Result<Arc<Namespace>, LabError> {
    let node = Namespace::new(name)?;
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        node.set(key, "1")?;
    }
    // Where the kernel has it: packets between ports of a bridge go through the packet rules too.
    for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        node.set(key, "1")?;
    }
    Ok(Arc::new(node))
}

/// Gives a link both addresses, with prefixes of one host.
fn own(links: &mut Links, link: &str, addresses: Dual) -> Result<(), LinkError> {
    links.add_address(link, addresses.v4.into(), 32)?;
    links.add_address(link, addresses.v6.into(), 128)
}

/// Gives a link both addresses, on networks of /24 and /64.
fn join(links: &mut Links, link: &str, addresses: Dual) -> Result<(), LinkError> {
    links.add_address(link, addresses.v4.into(), 24)?;
    links.add_address(link, addresses.v6.into(), 64)
}

/// Sends everything of both families to a gateway on the link.
fn default_routes(links: &mut Links, link: &str, via: Dual) -> Result<(), LinkError> {
    via.both().into_iter().try_for_each(|via| {
        let to = unspecified(via);
        links.add_route(&Route { to, prefix: 0, via: Some(via), link, is_onlink: false })
    })
}

/// The address of all zeros in the family of `like`.
fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Sends packets for one host by a link, through `via` where it is given.
fn host_routes(
    links: &mut Links,
    link: &str,
    to: Dual,
    via: Option<Dual>,
) -> Result<(), LinkError> {
    let via = via.map(Dual::both);
    for (index, to) in to.both().into_iter().enumerate() {
        let via = via.and_then(|via| via.get(index).copied());
        let prefix = if to.is_ipv4() { 32 } else { 128 };
        links.add_route(&Route { to, prefix, via, link, is_onlink: false })?;
    }
    Ok(())
}

/// Lays a cable from a link of `node` to `eth0` of `to`, both ends up.
fn cable(node: &Namespace, link: &str, to: &Namespace) -> Result<(), LabError> {
    use std::os::fd::AsFd;
    node.wire(|links| {
        links.create(link, Kind::Veth { peer: "eth0", namespace: to.as_fd() })?;
        links.bring_up(link)
    })?;
    to.wire(|links| links.bring_up("eth0"))
}

/// A host for a cluster DNS server on a cable of its own.
fn server(node: &Namespace, index: u8) -> Result<Host, LabError> {
    let namespace = Arc::new(Namespace::new(&format!("dns-{index}"))?);
    let (addresses, gateway) = server_addresses(index);
    let link = format!("dns{index}");
    cable(node, &link, &namespace)?;
    node.wire(|links| join(links, &link, gateway))?;
    namespace.wire(|links| {
        join(links, "eth0", addresses)?;
        default_routes(links, "eth0", gateway)
    })?;
    Ok(Host { namespace, addresses })
}

/// A bridge with the gateway's addresses.
fn bridge(node: &Namespace) -> Result<(), LabError> {
    node.wire(|links| {
        links.create("br0", Kind::Bridge)?;
        links.bring_up("br0")?;
        join(links, "br0", GATEWAY)
    })
}

/// Plugs a pod into the bridge.
fn plug(node: &Namespace, pod: &Host) -> Result<(), LabError> {
    let link = &pod.namespace.name;
    cable(node, link, &pod.namespace)?;
    node.wire(|links| links.plug(link, "br0"))?;
    pod.namespace.wire(|links| {
        join(links, "eth0", pod.addresses)?;
        default_routes(links, "eth0", GATEWAY)
    })
}

/// Two nodes on one cable and a tunnel between them, with routes as Flannel sets them.
fn tunnel(node: &Namespace, other: &Namespace) -> Result<(), LabError> {
    const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let end = |host: u8| {
        let v6 = [0xfd00, 0x10, 0x246, 0, 0, 0, 0, u16::from(host)];
        Dual::new([10, 246, 0, host], v6)
    };
    let behind = Dual::new([10, 245, 0, 0], [0xfd00, 0x10, 0x245, 0, 0, 0, 0, 0]);
    cable(node, "lan0", other)?;
    let [near, far] = ENDS;
    let sides = [
        (node, "lan0", (near, far), (end(1), end(2)), (behind, 16, 48)),
        (other, "eth0", (far, near), (end(2), end(1)), (POD_NETWORK, 24, 64)),
    ];
    for (side, link, (local, remote), (own, gateway), (network, prefix4, prefix6)) in sides {
        side.wire(|links| {
            links.add_address(link, local.into(), 24)?;
            let kind = Kind::Vxlan { id: 1, local, remote, port: 8472 };
            links.create("flannel.1", kind)?;
            links.bring_up("flannel.1")?;
            join(links, "flannel.1", own)?;
            let ways = network.both().into_iter().zip(gateway.both()).zip([prefix4, prefix6]);
            for ((to, via), prefix) in ways {
                let (via, link) = (Some(via), "flannel.1");
                links.add_route(&Route { to, prefix, via, link, is_onlink: true })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The gateway that pods of routed topologies believe in; the node answers ARP for it.
const PROXIED: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same in IPv6: an address of each of the node's cable ends.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The node answers ARP only for what it would send elsewhere: a route for the believed gateway.
fn proxied_gateway(node: &Namespace) -> Result<(), LabError> {
    let to = PROXIED.into();
    let route = Route { to, prefix: 32, via: None, link: "dns1", is_onlink: false };
    node.wire(|links| links.add_route(&route))
}

/// Wires a pod by a cable and host routes.
fn route(node: &Namespace, pod: &Host) -> Result<(), LabError> {
    let link = &pod.namespace.name;
    cable(node, link, &pod.namespace)?;
    for (key, value) in
        [("conf", "proxy_arp=1"), ("conf", "rp_filter=1"), ("neigh", "proxy_delay=0")]
    {
        let (name, value) = value.split_once('=').expect("written so above");
        node.set(&format!("ipv4/{key}/{link}/{name}"), value)?;
    }
    node.wire(|links| {
        links.add_address(link, LINK_LOCAL.into(), 64)?;
        host_routes(links, link, pod.addresses, None)
    })?;
    pod.namespace.wire(|links| {
        own(links, "eth0", pod.addresses)?;
        let to_gateway =
            Route { to: PROXIED.into(), prefix: 32, via: None, link: "eth0", is_onlink: false };
        links.add_route(&to_gateway)?;
        default_routes(links, "eth0", Dual { v4: PROXIED, v6: LINK_LOCAL })
    })
}

/// A network card for the node, and the node's own link on top of it, through which it meets its pods.
///
/// The other end of the card's cable is in the namespace that comes back.
fn shim(node: &Namespace) -> Result<Arc<Namespace>, LabError> {
    let lan = Arc::new(Namespace::new("lan")?);
    cable(node, "uplink", &lan)?;
    node.wire(|links| {
        links.create("nd-shim", Kind::Macvlan { parent: "uplink", namespace: None })?;
        links.bring_up("nd-shim")?;
        own(links, "nd-shim", GATEWAY)
    })?;
    Ok(lan)
}

/// Stacks a pod's link on the node's network card; the cluster DNS is behind the node's shim.
fn stack(node: &Namespace, pod: &Host) -> Result<(), LabError> {
    use std::os::fd::AsFd;
    node.wire(|links| {
        let namespace = Some(pod.namespace.as_fd());
        links.create("eth0", Kind::Macvlan { parent: "uplink", namespace })?;
        host_routes(links, "nd-shim", pod.addresses, None)
    })?;
    pod.namespace.wire(|links| {
        links.bring_up("eth0")?;
        join(links, "eth0", pod.addresses)?;
        host_routes(links, "eth0", CLUSTER_DNS, Some(GATEWAY))
    })
}
