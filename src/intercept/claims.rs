//! Private addresses: one for each asked one, ours alone while we live.
//!
//! An address is claimed by a socket that nobody else can bind (a hold), then given to the link.
//! What a dead instance left has no holder, and is collected here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::InterceptError;
use super::plan::Pair;
use super::socket::Hold;
use crate::config::intercept::NODE_ADDRESS;
use crate::config::{Listen, Network};
use crate::netlink::addresses::{Addresses, LinkAddress};
use crate::netlink::netfilter::NetlinkError;

/// The link that carries private addresses, where the kernel has dummy links.
pub const LINK: &str = "nodens";

/// Addresses of one network that are tried at most.
const TRIES: u128 = 4096;

/// The private addresses of this instance.
pub struct Claims {
    addresses: Addresses,
    link: u32,
    /// What shall be taken.
    pairs: BTreeSet<Pair>,
    /// Held, but not asked for now, the oldest first. Flows and responses of theirs may go on; those that a
    /// failed change leaves nobody serves yet, and the next change takes them first.
    spares: Vec<Pair>,
    /// Private addresses that nobody serves yet.
    unserved: BTreeSet<IpAddr>,
    holds: Vec<Hold>,
}

impl Claims {
    /// Claims a private address for each asked one, and collects what dead instances left.
    ///
    /// # Errors
    /// `NotPermitted` without CAP_NET_ADMIN or CAP_NET_BIND_SERVICE, `NoPrivate` when all are taken, `NoIpv6`.
    pub fn take(asked: &[IpAddr], private: &[Network]) -> Result<Self, InterceptError> {
        let mut addresses = Addresses::open()?;
        let link = link_for(&mut addresses)?;
        let present = addresses.list()?;
        collect(&mut addresses, link, &present, private)?;
        let mut claims = Self {
            addresses,
            link,
            pairs: BTreeSet::new(),
            spares: Vec::new(),
            unserved: BTreeSet::new(),
            holds: Vec::new(),
        };
        claims.change(asked, private)?;
        Ok(claims)
    }

    /// Claims private addresses for other asked ones. What was claimed before and still fits is kept;
    /// what is not asked for any more stays served, so that nothing under way is torn.
    ///
    /// # Errors
    /// As [`Claims::take`]; then the old pairs stay.
    pub fn change(&mut self, asked: &[IpAddr], private: &[Network]) -> Result<(), InterceptError> {
        let present = self.addresses.list()?;
        let new = asked.iter().filter(|ip| !self.pairs.iter().any(|pair| pair.asked == **ip));
        warn_of_owners(&mut self.addresses, &present, new)?;
        let elsewhere = present.iter().filter(|address| address.link != self.link).map(|a| a.ip);
        let mut taken: BTreeSet<IpAddr> = elsewhere.chain(asked.iter().copied()).collect();
        taken.insert(NODE_ADDRESS.into());
        let mut pairs = BTreeSet::new();
        for asked in asked {
            let pair = self.pair_for(*asked, private, &taken)?;
            taken.insert(pair.private);
            pairs.insert(pair);
        }
        for pair in &pairs {
            let added = self.add(pair.private);
            added.map_err(|error| InterceptError::of_address(pair.private, error))?;
        }
        let released = self.pairs.difference(&pairs).copied();
        self.spares.extend(released.collect::<Vec<_>>());
        self.spares.retain(|spare| !pairs.iter().any(|pair| pair.private == spare.private));
        self.pairs = pairs;
        Ok(())
    }

    /// The private address for an asked one: the one that it had, a free one, or the oldest spare.
    fn pair_for(
        &mut self,
        asked: IpAddr,
        private: &[Network],
        taken: &BTreeSet<IpAddr>,
    ) -> Result<Pair, InterceptError> {
        let fits = |pair: &&Pair| {
            pair.private.is_ipv4() == asked.is_ipv4()
                && !taken.contains(&pair.private)
                && private.iter().any(|network| contains(network, pair.private))
        };
        let mut known = self.pairs.iter().chain(&self.spares).filter(fits);
        if let Some(pair) = known.find(|pair| pair.asked == asked) {
            return Ok(*pair);
        }
        let candidates = private.iter().flat_map(addresses_of);
        let same_family = candidates.filter(|ip| ip.is_ipv4() == asked.is_ipv4());
        match first_free(same_family, taken)? {
            Some((private, hold)) => {
                let pair = Pair { asked, private };
                self.holds.push(hold);
                self.unserved.insert(private);
                self.spares.push(pair);
                Ok(pair)
            }
            None => match self.spares.iter().find(fits) {
                Some(spare) => Ok(Pair { asked, private: spare.private }),
                None => Err(InterceptError::NoPrivate { asked }),
            },
        }
    }

    /// Asked and private addresses.
    pub fn pairs(&self) -> &BTreeSet<Pair> {
        &self.pairs
    }

    /// What the front ends must bind before the pairs are taken.
    pub fn listens(&self) -> Vec<Listen> {
        let listen = |pair: &Pair| Listen {
            address: SocketAddr::new(pair.private, 53),
            device: None,
            required: true,
            is_intercepted: true,
            is_led_to: true,
        };
        let unserved = self.pairs.iter().filter(|pair| self.unserved.contains(&pair.private));
        unserved.map(listen).collect()
    }

    /// Notes that the front ends have bound what [`Claims::listens`] said.
    pub fn note_served(&mut self) {
        for pair in &self.pairs {
            self.unserved.remove(&pair.private);
        }
    }

    /// Which of the pairs' private addresses lead to us.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn observe(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        let ours = self.addresses.list()?.into_iter().filter(|address| address.link == self.link);
        let mut found: BTreeSet<_> = ours.map(|address| address.ip).collect();
        for pair in &self.pairs {
            // Somebody may have removed the route, or taken the link down.
            if found.contains(&pair.private) && !self.addresses.is_local(pair.private)? {
                found.remove(&pair.private);
            }
        }
        Ok(found)
    }

    /// Gives the link an address; a link that somebody removed or took down is made again.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn add(&mut self, ip: IpAddr) -> Result<(), NetlinkError> {
        match self.try_add(ip) {
            // The last of others may have taken the link with it at this very moment.
            Err(error) if !error.is_permission() => self.try_add(ip),
            other => other,
        }
    }

    /// One try of [`Claims::add`].
    fn try_add(&mut self, ip: IpAddr) -> Result<(), NetlinkError> {
        if self.addresses.is_local(ip)? {
            return Ok(());
        }
        if let Some(link) = self.addresses.ensure_dummy(LINK).ok().flatten() {
            self.link = link;
            self.addresses.bring_up(link)?;
        }
        self.addresses.give(self.link, ip)
    }

    /// Removes our addresses, and the link when nobody else has one on it.
    pub fn leave(mut self) {
        for pair in self.pairs.iter().chain(&self.spares) {
            let address = LinkAddress { link: self.link, ip: pair.private };
            if let Err(error) = self.addresses.remove(address) {
                tracing::debug!(%error, "private address not removed");
            }
        }
        if let Err(error) = remove_idle_link(&mut self.addresses) {
            tracing::debug!(%error, "link not removed");
        }
    }
}

/// The link for private addresses: a dummy one, or `lo` where the kernel has none.
pub(super) fn link_for(addresses: &mut Addresses) -> Result<u32, InterceptError> {
    match addresses.ensure_dummy(LINK) {
        Ok(Some(link)) => return Ok(link),
        Err(error) if !error.is_unsupported() => return Err(error.into()),
        _ => {}
    }
    let lo = addresses.link("lo")?.ok_or(InterceptError::NoLink)?;
    tracing::info!("the kernel has no dummy links; private addresses are put on lo");
    Ok(lo)
}

/// Removes the link when it carries nothing but what the kernel gave it.
pub(super) fn remove_idle_link(addresses: &mut Addresses) -> Result<(), NetlinkError> {
    let Some(link) = addresses.link(LINK)? else { return Ok(()) };
    let is_given = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let present = addresses.list()?;
    if present.iter().any(|address| address.link == link && !is_given(address.ip)) {
        return Ok(());
    }
    addresses.remove_link(link)
}

/// Removes private addresses that nobody holds.
fn collect(
    addresses: &mut Addresses,
    link: u32,
    present: &[LinkAddress],
    private: &[Network],
) -> Result<(), InterceptError> {
    let on_link = present.iter().filter(|address| address.link == link);
    for address in on_link.filter(|address| private.iter().any(|net| contains(net, address.ip))) {
        match Hold::take(address.ip) {
            Ok(_hold) => match addresses.remove(*address) {
                Ok(()) => {
                    tracing::info!(address = %address.ip, "removed what a dead instance left");
                }
                Err(error) if error.is_permission() => return Err(error.into()),
                // Another instance that starts now was faster, with the address or the whole link.
                Err(error) => tracing::debug!(%error, "what a dead instance left"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(hold_error(error)),
        }
    }
    Ok(())
}

/// Removes every private address that nobody holds, and the link when it is idle.
///
/// # Errors
/// `NotPermitted` without CAP_NET_ADMIN.
pub fn clean_up(private: &[Network]) -> Result<(), InterceptError> {
    let mut addresses = Addresses::open()?;
    let present = addresses.list()?;
    for name in [LINK, "lo"] {
        if let Some(link) = addresses.link(name)? {
            collect(&mut addresses, link, &present, private)?;
        }
    }
    Ok(remove_idle_link(&mut addresses)?)
}

/// The link on which kube-proxy holds the addresses of all Services where it balances with IPVS: what asks the
/// cluster DNS while we are not here needs them there.
pub const IPVS: &str = "kube-ipvs0";

/// Says so when a link of this host has an asked address, as node-cache leaves it.
fn warn_of_owners<'a>(
    addresses: &mut Addresses,
    present: &[LinkAddress],
    asked: impl Iterator<Item = &'a IpAddr> + Clone,
) -> Result<(), InterceptError> {
    let is_asked = |ip: &IpAddr| asked.clone().any(|asked| asked == ip);
    for owner in present.iter().filter(|address| is_asked(&address.ip)) {
        let link = addresses.name(owner.link)?.unwrap_or_default();
        if link == IPVS {
            continue;
        }
        tracing::warn!(
            address = %owner.ip, link,
            "an intercepted address is on a link of this host, perhaps node-cache's: when nodens ends, \
             queries to it stay here; mend: stop its owner, then `ip address del {} dev {link}`",
            owner.ip
        );
    }
    Ok(())
}

/// The first candidate that nobody holds, with its hold.
fn first_free(
    candidates: impl Iterator<Item = IpAddr>,
    taken: &BTreeSet<IpAddr>,
) -> Result<Option<(IpAddr, Hold)>, InterceptError> {
    for ip in candidates.filter(|ip| !taken.contains(ip)) {
        match Hold::take(ip) {
            Ok(hold) => return Ok(Some((ip, hold))),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(hold_error(error)),
        }
    }
    Ok(None)
}

/// Why an address cannot be held.
pub(super) fn hold_error(error: std::io::Error) -> InterceptError {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            InterceptError::NotPermitted { capability: "CAP_NET_BIND_SERVICE" }
        }
        _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => InterceptError::NoIpv6,
        _ => InterceptError::Socket(error),
    }
}

/// The addresses of a network, in order; of IPv6 without the first, which belongs to all routers.
fn addresses_of(network: &Network) -> impl Iterator<Item = IpAddr> + use<> {
    let (base, bits) = match network.address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let count = 1u128.checked_shl(bits - u32::from(network.prefix)).unwrap_or(u128::MAX);
    let skip = u128::from(bits == 128 && count > 1);
    (skip..count.min(TRIES)).map(move |n| match bits {
        32 => Ipv4Addr::from_bits(u32::try_from(base + n).unwrap_or(u32::MAX)).into(),
        _ => Ipv6Addr::from_bits(base + n).into(),
    })
}

/// Tells whether the address lies in the network.
fn contains(network: &Network, ip: IpAddr) -> bool {
    let (bits, ip, base) = match (ip, network.address) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            (32, u128::from(ip.to_bits()), u128::from(net.to_bits()))
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => (128, ip.to_bits(), net.to_bits()),
        _ => return false,
    };
    let shift = bits - u32::from(network.prefix);
    ip.checked_shr(shift) == base.checked_shr(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of the form `ADDR/PREFIX`.
    fn network(text: &str) -> Network {
        let (address, prefix) = text.split_once('/').expect("a prefix");
        Network {
            address: address.parse().expect("an address"),
            prefix: prefix.parse().expect("a number"),
        }
    }

    #[test]
    fn a_networks_addresses_are_inside_and_all_there() {
        for (text, count, first) in [
            ("169.254.20.16/28", 16, "169.254.20.16"),
            ("192.0.2.1/32", 1, "192.0.2.1"),
            ("2001:db8::/120", 255, "2001:db8::1"),
            ("2001:db8::5/128", 1, "2001:db8::5"),
            ("2001:db8::/32", 4095, "2001:db8::1"),
            ("255.255.255.255/32", 1, "255.255.255.255"),
        ] {
            let network = network(text);
            let all: Vec<_> = addresses_of(&network).collect();
            assert_eq!((all.len(), all[0].to_string().as_str()), (count, first), "{text}");
            assert!(all.iter().all(|ip| contains(&network, *ip)), "{text}");
        }
        assert!(!contains(&network("169.254.20.16/28"), [169, 254, 20, 32].into()));
        assert!(!contains(&network("169.254.20.16/28"), [169, 254, 20, 15].into()));
        assert!(contains(&network("::/0"), Ipv6Addr::LOCALHOST.into()));
        assert!(!contains(&network("0.0.0.0/0"), Ipv6Addr::LOCALHOST.into()));
    }
}
