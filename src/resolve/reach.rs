//! Whether IPv6 leads anywhere from this node; read from the kernel's routes by whoever owns files.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::Cluster;

/// Flags of a route in `/proc/net/ipv6_route`.
///
/// Source: linux/route.h, linux/ipv6_route.h
const RTF_UP: u32 = 0x0001;
const RTF_REJECT: u32 = 0x0200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// The prefix of the addresses that nodens itself puts on links: they lead nowhere else.
const OUR_OWN: [u8; 6] = [0xfd, 0x6e, 0x6f, 0x64, 0x65, 0x6e];

/// What is known about IPv6; shared by all zones, written by one task.
#[derive(Default)]
pub struct Reach {
    node: AtomicBool,
    cluster: Option<Arc<Cluster>>,
}

impl Reach {
    /// The same with the cluster that the node is one of, if any.
    pub fn within(cluster: Option<Arc<Cluster>>) -> Self {
        Self { node: AtomicBool::new(false), cluster }
    }

    /// Tells whether an AAAA record can be of use to anybody here: the node has an IPv6 route, or the
    /// cluster an IPv6 family, whose pods may reach what the node does not.
    pub fn has_ipv6(&self) -> bool {
        self.node.load(Ordering::Relaxed)
            || self.cluster.as_ref().is_some_and(|cluster| cluster.has_ipv6())
    }

    /// Notes whether the node has an IPv6 route; tells whether that is news.
    pub fn set_node(&self, has_ipv6: bool) -> bool {
        self.node.swap(has_ipv6, Ordering::Relaxed) != has_ipv6
    }
}

/// Tells whether a line of `/proc/net/ipv6_route` is a route to other nodes.
///
/// Loopback, link-local, multicast, the node's own addresses, those of nodens, and routes that only
/// refuse are none. Neither is a line that cannot be read.
///
/// Source: linux net/ipv6/route.c (`rt6_info_route`): destination, prefix length, source and its
/// length, next hop, metric, references, uses, flags, all in hexadecimal; then the interface
pub fn is_route(line: &str) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let destination = fields.next().and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let flags = fields.nth(7).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let (Some(destination), Some(flags), Some(interface)) = (destination, flags, fields.next())
    else {
        return false;
    };
    let destination = Ipv6Addr::from_bits(destination);
    let is_useless = interface == "lo"
        || destination.is_unicast_link_local()
        || destination.is_multicast()
        || destination.octets().starts_with(&OUR_OWN);
    flags & RTF_UP != 0 && flags & (RTF_REJECT | RTF_ANYCAST | RTF_LOCAL) == 0 && !is_useless
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line as the kernel writes it.
    fn line(destination: &str, prefix: u8, flags: u32, interface: &str) -> String {
        let address: Ipv6Addr = destination.parse().expect("a test's address");
        let (zero, address) = ("0".repeat(32), address.to_bits());
        format!(
            "{address:032x} {prefix:02x} {zero} 00 {zero} 00000100 00000001 00000000 {flags:08x} {interface:>8}"
        )
    }

    #[test]
    fn only_a_route_to_other_nodes_is_one() {
        for (what, text, is_one) in [
            ("a default route", line("::", 0, 0x0003, "eth0"), true),
            ("a prefix on a link", line("2001:db8::", 64, 0x0001, "eth0"), true),
            ("a unique local prefix", line("fd00:1::", 64, 0x0001, "eth0"), true),
            ("the refusing default", line("::", 0, 0x0020_0200, "lo"), false),
            ("a route that refuses", line("2001:db8::", 32, 0x0201, "eth0"), false),
            ("loopback", line("::1", 128, 0x8020_0001, "lo"), false),
            ("a link-local prefix", line("fe80::", 64, 0x0001, "eth0"), false),
            ("multicast", line("ff00::", 8, 0x0001, "eth0"), false),
            ("an address of the node", line("2001:db8::5", 128, 0x8020_0001, "eth0"), false),
            ("an anycast address", line("2001:db8::", 128, 0x8030_0001, "eth0"), false),
            ("a route that is down", line("2001:db8::", 64, 0, "eth0"), false),
            ("an address of ours", line("fd6e:6f64:656e::1", 128, 0x0001, "nodens0"), false),
            ("nothing", String::new(), false),
            ("half a line", "fe80".to_owned(), false),
        ] {
            assert_eq!(is_route(&text), is_one, "{what}: {text}");
        }
    }

    #[test]
    fn a_change_is_news_once() {
        let reach = Reach::default();
        assert_eq!(
            [true, true, false, false].map(|now| reach.set_node(now)),
            [true, false, true, false]
        );
    }
}
