//! Who may ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Network;

/// Networks whose queries are answered by default, besides the links' own prefixes.
///
/// Source: RFC 1918, RFC 3927, RFC 4193, RFC 4291 §2.5.6, RFC 6598
const DEFAULT: [(IpAddr, u8); 9] = [
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

/// The allowed networks, ready to compare with.
#[derive(Debug, Default)]
pub struct AllowList {
    /// Network bits and mask.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    /// Nobody wrote who may ask.
    is_default: bool,
}

impl AllowList {
    /// `written` networks only; without them the default ones and the prefixes of `links`.
    pub fn new(written: Option<&[Network]>, links: &[Network]) -> Self {
        let mut list = Self { is_default: written.is_none(), ..Self::default() };
        match written {
            Some(networks) => networks.iter().for_each(|n| list.push(n.address, n.prefix)),
            None => {
                DEFAULT.iter().for_each(|(address, prefix)| list.push(*address, *prefix));
                links.iter().for_each(|n| list.push(n.address, n.prefix));
            }
        }
        list
    }

    /// Adds one network.
    fn push(&mut self, address: IpAddr, prefix: u8) {
        let (address, prefix) = match address.to_canonical() {
            v4 @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (v4, prefix - 96),
            _ => (address, prefix),
        };
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
                self.v4.push((v4.to_bits() & mask, mask));
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
                self.v6.push((v6.to_bits() & mask, mask));
            }
        }
    }

    /// Tells whether `source` may ask at a socket. By default nobody is sent away from an intercepted
    /// address: the ordinary path would have answered.
    pub fn admits(&self, source: IpAddr, is_intercepted: bool) -> bool {
        (self.is_default && is_intercepted) || self.contains(source)
    }

    /// Tells whether `source` lies in the networks; IPv4-mapped addresses count as IPv4.
    pub fn contains(&self, source: IpAddr) -> bool {
        match source.to_canonical() {
            IpAddr::V4(v4) => self.v4.iter().any(|(net, mask)| v4.to_bits() & mask == *net),
            IpAddr::V6(v6) => self.v6.iter().any(|(net, mask)| v6.to_bits() & mask == *net),
        }
    }
}

/// The prefixes of this host's own links.
pub fn on_link() -> Vec<Network> {
    super::system::interface_networks().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the links' prefixes; only the default networks may ask");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(list: &AllowList, address: &str) -> bool {
        list.contains(address.parse().expect("address"))
    }

    #[test]
    fn by_default_private_networks_and_links_may_ask() {
        let link = Network { address: "198.18.7.0".parse().expect("address"), prefix: 24 };
        let list = AllowList::new(None, &[link]);
        for (address, allowed) in [
            ("127.0.0.1", true),
            ("10.244.3.7", true),
            ("172.31.255.255", true),
            ("172.32.0.1", false),
            ("100.127.0.1", true),
            ("198.18.7.9", true),
            ("198.18.8.9", false),
            ("::1", true),
            ("fd00::9", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:192.0.2.1", false),
        ] {
            assert_eq!(contains(&list, address), allowed, "{address}");
        }
    }

    #[test]
    fn a_written_list_replaces_the_default() {
        let all = Network { address: "0.0.0.0".parse().expect("address"), prefix: 0 };
        let host = Network { address: "2001:db8::1".parse().expect("address"), prefix: 128 };
        let mapped = Network { address: "::ffff:10.0.0.0".parse().expect("address"), prefix: 104 };
        let stranger = "198.18.8.9".parse().expect("address");
        let default = AllowList::new(None, &[]);
        assert!(default.admits(stranger, true) && !default.admits(stranger, false));
        let tens = AllowList::new(Some(&[mapped]), &[]);
        assert!(!tens.admits(stranger, true), "it holds for intercepted addresses too");
        assert!(contains(&tens, "10.9.9.9") && !contains(&tens, "11.0.0.1"));
        let list = AllowList::new(Some(&[all, host]), &[]);
        assert!(contains(&list, "203.0.113.9") && contains(&list, "2001:db8::1"));
        assert!(!contains(&list, "::1") && !contains(&list, "2001:db8::2"));
    }
}
