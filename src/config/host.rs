//! What the host itself says: the parts of the configuration that nobody wrote.

use std::net::IpAddr;

use super::endpoint::Interfaces;
use super::forms;

/// First and last port of `net.ipv4.ip_local_port_range` where the kernel does not tell.
const KERNEL_PORTS: (u16, u16) = (32768, 60999);

/// The files of the kernel that a configuration depends on.
pub const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
pub const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const INTERFACES: &str = "/proc/net/if_inet6";

/// Facts about the host, read once per load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kernel's source ports, both ends included.
    pub ports: (u16, u16),
    /// Sorted, each once.
    pub reserved: Vec<u16>,
    /// At least 1.
    pub cores: usize,
    pub interfaces: Interfaces,
}

impl Host {
    /// Reads the host's files; one that cannot be read counts as empty.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            ports: parse_range(&text(PORT_RANGE)).unwrap_or(KERNEL_PORTS),
            reserved: parse_reserved(&text(RESERVED_PORTS)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            interfaces: Interfaces::from_if_inet6(&text(INTERFACES)),
        }
    }
}

/// Reads `"32768\t60999\n"`.
fn parse_range(text: &str) -> Option<(u16, u16)> {
    forms::parse_ports(&text.split_whitespace().collect::<Vec<_>>().join("-"))
}

/// Reads `"8080,9148-9150\n"`; sorted, each port once. Broken parts are left out.
fn parse_reserved(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    let mut ports: Vec<u16> = text.trim().split(',').filter_map(range).flatten().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The built-in addresses to listen on.
pub const LOOPBACK: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];

#[cfg(test)]
mod tests {
    use super::*;

    impl Host {
        /// A host of four cores with the kernel's usual ports, two of them reserved, and `eth0` as link 3.
        pub fn sample() -> Self {
            Self {
                ports: KERNEL_PORTS,
                reserved: vec![40000, 40001],
                cores: 4,
                interfaces: Interfaces::from_if_inet6("fe800000 03 40 20 80 eth0\n"),
            }
        }
    }

    #[test]
    fn the_kernels_files_are_read_as_it_writes_them() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(parse_range(""), None);
        assert!(parse_reserved("\n").is_empty());
        assert_eq!(parse_reserved("8080,9148-9150,9149\n"), [8080, 9148, 9149, 9150]);
        assert_eq!(parse_reserved("x,5-4,7"), [7]);
    }
}
