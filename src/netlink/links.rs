//! Links, addresses and routes of the network namespace that a thread is in.
//!
//! One request, one acknowledgement; the kernel's own words come with its refusals. Blocking.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

use super::receipt::Receipt;

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("a netlink socket cannot be opened: {0}")]
    Socket(io::Error),
    #[error("{action} {subject}: {reason}{told}")]
    Refused {
        action: &'static str,
        /// The link, address or route.
        subject: String,
        reason: io::Error,
        /// The kernel's extended message in parentheses, or nothing.
        told: String,
    },
}

/// What a new link is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    Dummy,
    Bridge,
    /// Two ends of a cable, the other one in `namespace`.
    Veth {
        peer: &'a str,
        namespace: BorrowedFd<'a>,
    },
    /// A tunnel to one other host.
    Vxlan {
        id: u32,
        local: Ipv4Addr,
        remote: Ipv4Addr,
        port: u16,
    },
    /// A link of its own on top of `parent`, in bridge mode; it is made in `namespace`.
    Macvlan {
        parent: &'a str,
        namespace: Option<BorrowedFd<'a>>,
    },
}

/// Where packets to a network go.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    pub to: IpAddr,
    pub prefix: u8,
    pub via: Option<IpAddr>,
    pub link: &'a str,
    /// `via` is believed to be on the link without an address that says so.
    pub is_onlink: bool,
}

/// A netlink socket of the namespace in which it was opened.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// `Socket` when the kernel gives none.
    pub fn open() -> Result<Self, LinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Refusals then carry the kernel's own words, and not the request again.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(LinkError::Socket)?, sequence: 0 })
    }

    /// Makes a link; it is down.
    ///
    /// # Errors
    /// What the kernel says; `EOPNOTSUPP` where it has no such links.
    pub fn create(&mut self, name: &str, kind: Kind<'_>) -> Result<(), LinkError> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let (kind, data) = match kind {
            Kind::Dummy => (InfoKind::Dummy, None),
            Kind::Bridge => (InfoKind::Bridge, None),
            Kind::Veth { peer, namespace } => (InfoKind::Veth, Some(veth_peer(peer, namespace))),
            Kind::Vxlan { id, local, remote, port } => {
                let data = vec![
                    InfoVxlan::Id(id),
                    InfoVxlan::Group(remote),
                    InfoVxlan::Local(local),
                    InfoVxlan::Port(port),
                ];
                (InfoKind::Vxlan, Some(InfoData::Vxlan(data)))
            }
            Kind::Macvlan { parent, namespace } => {
                link.attributes.push(LinkAttribute::Link(self.index(parent)?));
                let fd = namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd()));
                link.attributes.extend(fd);
                let mode = vec![InfoMacVlan::Mode(MacVlanMode::Bridge)];
                (InfoKind::MacVlan, Some(InfoData::MacVlan(mode)))
            }
        };
        let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data));
        link.attributes.push(LinkAttribute::LinkInfo(info.collect()));
        self.ask(RouteNetlinkMessage::NewLink(link), CREATE, ("making the link", name)).map(drop)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bring_up(&mut self, name: &str) -> Result<(), LinkError> {
        let mut link = self.existing(name)?;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0, ("bringing up", name)).map(drop)
    }

    /// Takes a link down; its routes go.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take_down(&mut self, name: &str) -> Result<(), LinkError> {
        let mut link = self.existing(name)?;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0, ("taking down", name)).map(drop)
    }

    /// Plugs a link into a bridge.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn plug(&mut self, name: &str, bridge: &str) -> Result<(), LinkError> {
        let bridge = self.index(bridge)?;
        let mut link = self.existing(name)?;
        link.attributes.push(LinkAttribute::Controller(bridge));
        self.ask(RouteNetlinkMessage::SetLink(link), 0, ("plugging in", name)).map(drop)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&mut self, name: &str) -> Result<(), LinkError> {
        let link = self.existing(name)?;
        self.ask(RouteNetlinkMessage::DelLink(link), 0, ("removing the link", name)).map(drop)
    }

    /// Gives a link an address, usable at once: nobody is asked whether he has it already.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when the link has it.
    pub fn add_address(&mut self, name: &str, ip: IpAddr, prefix: u8) -> Result<(), LinkError> {
        let mut address = AddressMessage::default();
        address.header.index = self.index(name)?;
        address.header.family = family(ip);
        address.header.prefix_len = prefix;
        address.header.flags = AddressHeaderFlags::Nodad;
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        let subject = format!("{ip}/{prefix} to {name}");
        let message = RouteNetlinkMessage::NewAddress(address);
        self.ask(message, CREATE, ("adding the address", &subject)).map(drop)
    }

    /// Adds a route to the main table.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when there is one.
    pub fn add_route(&mut self, route: &Route<'_>) -> Result<(), LinkError> {
        let link = self.index(route.link)?;
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.to);
        message.header.destination_prefix_length = route.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.via {
            Some(_) => RouteScope::Universe,
            None => RouteScope::Link,
        };
        if route.is_onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        message.attributes =
            vec![RouteAttribute::Destination(route_address(route.to)), RouteAttribute::Oif(link)];
        message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(route_address(via))));
        let subject = format!("{}/{} by {}", route.to, route.prefix, route.link);
        let message = RouteNetlinkMessage::NewRoute(message);
        self.ask(message, CREATE, ("adding the route", &subject)).map(drop)
    }

    /// The number of a link.
    ///
    /// # Errors
    /// What the kernel says; `ENODEV` when there is none of this name.
    pub fn index(&mut self, name: &str) -> Result<u32, LinkError> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let receipt =
            self.ask(RouteNetlinkMessage::GetLink(link), 0, ("looking for the link", name))?;
        Ok(receipt.link_index)
    }

    /// A message about a link that is there.
    fn existing(&mut self, name: &str) -> Result<LinkMessage, LinkError> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(name)?;
        Ok(link)
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        (action, subject): (&'static str, &str),
    ) -> Result<Receipt, LinkError> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        debug_assert!(matches!(request.payload, NetlinkPayload::InnerMessage(_)));
        request.finalize();
        let mut wire = vec![0; request.buffer_len()];
        request.serialize(&mut wire);
        let refused = |reason, told: Option<String>| LinkError::Refused {
            action,
            subject: subject.to_owned(),
            reason,
            told: told.map(|told| format!(" ({told})")).unwrap_or_default(),
        };
        let exchange = || {
            self.socket.send(&wire, 0)?;
            Receipt::read(&self.socket, self.sequence)
        };
        let receipt = exchange().map_err(|reason| refused(reason, None))?;
        match receipt.errno {
            0 => Ok(receipt),
            errno => Err(refused(io::Error::from_raw_os_error(errno), receipt.told)),
        }
    }
}

/// Flags of a request that makes something new.
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// The other end of a cable, in `namespace`.
fn veth_peer(name: &str, namespace: BorrowedFd<'_>) -> InfoData {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(name.to_owned()));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    InfoData::Veth(InfoVeth::Peer(peer))
}

/// The family of an address.
fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// An address as routes carry it.
fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}
