//! A dummy link and the addresses of links, for whoever needs an address of its own on this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::attr::{Attributes, find, read_text};
use super::channel::{ACK, Channel, DUMP, NetlinkError};

/// Message types of rtnetlink.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

/// Makes the object, and refuses where it exists.
const CREATE: u16 = 0x600;

/// Bytes of a link message's own head, and of an address message's.
const LINK_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;

/// Bytes of a route message's own head, where its type stands, and the type of what is ours (RTN_LOCAL).
const ROUTE_HEAD: usize = 12;
const ROUTE_TYPE: usize = 7;
const LOCAL: u8 = 2;

/// How often, and how far apart, is looked for the route of a new address.
const ROUTE_TRIES: usize = 20;
const ROUTE_PAUSE: Duration = Duration::from_millis(5);

/// Up (IFF_UP).
const UP: u32 = 1;

/// Nobody is asked whether he has the address already (IFA_F_NODAD).
const NO_DETECTION: u8 = 2;

/// Scope of an address that concerns this host only (RT_SCOPE_HOST), and of the others.
const HOST_SCOPE: u8 = 254;
const UNIVERSE: u8 = 0;

/// An address with the link that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The link's number.
    pub link: u32,
    pub ip: IpAddr,
}

/// A socket to rtnetlink of the calling thread's network namespace.
pub struct Addresses(Channel);

impl Addresses {
    /// Opens a socket.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open() -> Result<Self, NetlinkError> {
        Channel::open(NETLINK_ROUTE).map(Self)
    }

    /// The number of a link; `None` where there is none of this name.
    ///
    /// # Errors
    /// [`NetlinkError`] of any other kind.
    pub fn link(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        let what = format!("look for the link {name}");
        let body = link_body((0, 0), |list| {
            list.put_text(3, name);
        });
        match self.0.ask((GET_LINK, 0), &body, &what) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| {
                let index = answer.payload.get(4..8).filter(|_| answer.kind == NEW_LINK)?;
                Some(u32::from_ne_bytes(index.try_into().ok()?))
            })),
            Err(NetlinkError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The number of the dummy link `name`, made and brought up where it is not there.
    ///
    /// # Errors
    /// `is_unsupported` where the kernel has no dummy links.
    pub fn ensure_dummy(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        if let Some(link) = self.link(name)? {
            return Ok(Some(link));
        }
        let body = link_body((UP, UP), |list| {
            list.put_text(3, name);
            list.put_list(18, |info| {
                info.put_text(1, "dummy");
            });
        });
        match self.0.ask((NEW_LINK, CREATE | ACK), &body, &format!("add the link {name}")) {
            Err(error) if !error.is_there_already() => Err(error),
            _ => self.link(name),
        }
    }

    /// Brings a link up; one that is up stays so.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn bring_up(&mut self, link: u32) -> Result<(), NetlinkError> {
        let mut body = link_body((UP, UP), |_| {});
        body[4..8].copy_from_slice(&link.to_ne_bytes());
        self.0.ask((NEW_LINK, ACK), &body, &format!("bring the link {link} up")).map(drop)
    }

    /// Tells whether what is sent to `ip` is delivered on this host.
    ///
    /// # Errors
    /// As the kernel says; an address without a route is none.
    pub fn is_local(&mut self, ip: IpAddr) -> Result<bool, NetlinkError> {
        let (family, bits, bytes) = family_of(ip);
        let mut list = Attributes::default();
        list.put(1, &bytes);
        let mut body = vec![0; ROUTE_HEAD];
        body[..2].copy_from_slice(&[family, bits]);
        body.extend(list.as_bytes());
        match self.0.ask((GET_ROUTE, 0), &body, &format!("look for the route to {ip}")) {
            Ok(answers) => Ok(answers.iter().any(|answer| {
                answer.kind == NEW_ROUTE && answer.payload.get(ROUTE_TYPE) == Some(&LOCAL)
            })),
            Err(NetlinkError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a link.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_link(&mut self, link: u32) -> Result<(), NetlinkError> {
        let mut body = vec![0; LINK_HEAD];
        body[4..8].copy_from_slice(&link.to_ne_bytes());
        self.0.ask((DEL_LINK, ACK), &body, &format!("remove the link {link}")).map(drop)
    }

    /// Gives a link an address for this host alone (/32 or /128), usable at once.
    ///
    /// # Errors
    /// `is_there_already` when the link has it.
    pub fn add(&mut self, address: LinkAddress) -> Result<(), NetlinkError> {
        let what = format!("add the address {}", address.ip);
        self.0.ask((NEW_ADDRESS, CREATE | ACK), &address_body(address), &what).map(drop)
    }

    /// Gives a link an address that leads to us, also where only its route was removed.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn give(&mut self, link: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let address = LinkAddress { link, ip };
        match self.add(address) {
            Err(error) if error.is_there_already() => {
                // The route comes back with it.
                self.remove(address)?;
                self.add(address)?;
            }
            other => other?,
        }
        // The kernel makes the route of an IPv6 address a little later, on a thread of its own.
        for _ in 0..ROUTE_TRIES {
            if self.is_local(ip)? {
                break;
            }
            std::thread::sleep(ROUTE_PAUSE);
        }
        Ok(())
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// As the kernel says; `EADDRNOTAVAIL` when the link has it not.
    pub fn remove(&mut self, address: LinkAddress) -> Result<(), NetlinkError> {
        let what = format!("remove the address {}", address.ip);
        self.0.ask((DEL_ADDRESS, ACK), &address_body(address), &what).map(drop)
    }

    /// Every address of every link, in the kernel's order.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn list(&mut self) -> Result<Vec<LinkAddress>, NetlinkError> {
        let answers = self.0.ask((GET_ADDRESS, DUMP), &[0; ADDRESS_HEAD], "list addresses")?;
        let read = |payload: &[u8]| {
            let link = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
            let list = payload.get(ADDRESS_HEAD..)?;
            let ip = find(list, 2).or_else(|| find(list, 1))?;
            Some(LinkAddress { link, ip: read_ip(ip)? })
        };
        let addresses = answers.iter().filter(|answer| answer.kind == NEW_ADDRESS);
        Ok(addresses.filter_map(|answer| read(&answer.payload)).collect())
    }

    /// The name of a link; `None` where there is none of this number.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn name(&mut self, link: u32) -> Result<Option<String>, NetlinkError> {
        let mut body = vec![0; LINK_HEAD];
        body[4..8].copy_from_slice(&link.to_ne_bytes());
        let answers = self.0.ask((GET_LINK, 0), &body, "name a link")?;
        let name = |payload: &[u8]| find(payload.get(LINK_HEAD..)?, 3).map(read_text);
        Ok(answers.iter().find_map(|answer| name(&answer.payload)))
    }
}

/// A link message: flags with the mask of those that change, then attributes.
fn link_body((flags, change): (u32, u32), fill: impl FnOnce(&mut Attributes)) -> Vec<u8> {
    let mut list = Attributes::default();
    fill(&mut list);
    let head = [[0; 4], [0; 4], flags.to_ne_bytes(), change.to_ne_bytes()];
    [&head.concat(), list.as_bytes()].concat()
}

/// An address message.
fn address_body(address: LinkAddress) -> Vec<u8> {
    let (family, prefix, bytes) = family_of(address.ip);
    let scope = if address.ip.is_ipv4() { HOST_SCOPE } else { UNIVERSE };
    let mut list = Attributes::default();
    list.put(2, &bytes).put(1, &bytes);
    let head = [[family, prefix, NO_DETECTION, scope], address.link.to_ne_bytes()];
    [&head.concat(), list.as_bytes()].concat()
}

/// An address' family in the kernel's number, its bits and its bytes.
fn family_of(ip: IpAddr) -> (u8, u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (2, 32, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, 128, ip.octets().to_vec()),
    }
}

/// An address of 4 or 16 bytes.
fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
}
