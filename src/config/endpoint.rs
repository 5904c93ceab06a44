//! How addresses to listen on and upstreams to ask are written, both ways.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use super::error::Fault;
use super::{Transport, Upstream};

/// The port of DNS (RFC 1035), of DNS over TLS (RFC 7858) and of DNS over HTTPS (RFC 8484).
pub const DNS_PORT: u16 = 53;
const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

/// The path that RFC 8484's examples use, and every public server.
const HTTPS_PATH: &str = "/dns-query";

/// Interface indices by name, for the zone indices of link-local addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(BTreeMap<String, u32>);

impl Interfaces {
    /// Reads the text of `/proc/net/if_inet6`: the interfaces with an IPv6 address. Other lines are ignored.
    pub fn from_if_inet6(text: &str) -> Self {
        let read = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, index, _, _, _, name] = fields[..] else { return None };
            Some((name.to_owned(), u32::from_str_radix(index, 16).ok()?))
        };
        Self(text.lines().filter_map(read).collect())
    }

    /// The index that `zone`, a name or a number, stands for.
    fn index(&self, zone: &str) -> Option<u32> {
        self.0.get(zone).copied().or_else(|| zone.parse().ok().filter(|index| *index > 0))
    }
}

/// What an address form is for, in error messages.
const ADDRESS: (&str, &str) = ("an address", "192.0.2.1:53 or [2001:db8::1]:53");
const UPSTREAM: (&str, &str) =
    ("an upstream", "192.0.2.1, tcp://192.0.2.1:53 or tls://192.0.2.1#dns.example");

/// The error for a text that has no such form.
fn not_a((what, example): (&'static str, &'static str), text: &str) -> Fault {
    Fault::NotA { text: text.to_owned(), what, example }
}

/// Reads `ADDR[:PORT]`, an IPv6 address with a port in brackets, with a zone index where it is link-local.
///
/// Port 0 is whichever the kernel gives.
///
/// # Errors
/// `NotA` for any other form, `NoInterface` and `NoZoneIndex` for link-local addresses.
pub fn parse_address(text: &str, port: u16, links: &Interfaces) -> Result<SocketAddr, Fault> {
    address_of(text, ADDRESS, port, links)
}

/// [`parse_address`], with the words of the error given.
fn address_of(
    text: &str,
    form: (&'static str, &'static str),
    port: u16,
    links: &Interfaces,
) -> Result<SocketAddr, Fault> {
    let (host, port) = split_port(text, port).ok_or_else(|| not_a(form, text))?;
    let (host, zone) = match host.split_once('%') {
        Some((host, zone)) => (host, Some(zone)),
        None => (host, None),
    };
    let address: IpAddr = host.parse().map_err(|_| not_a(form, text))?;
    match (address, zone) {
        (IpAddr::V6(v6), zone) if v6.is_unicast_link_local() => {
            scoped(v6, zone, port, links).map(SocketAddr::V6)
        }
        (_, None) => Ok(SocketAddr::new(address, port)),
        (_, Some(_)) => Err(not_a(form, text)),
    }
}

/// A link-local address on the link `zone`.
fn scoped(
    address: Ipv6Addr,
    zone: Option<&str>,
    port: u16,
    links: &Interfaces,
) -> Result<SocketAddrV6, Fault> {
    let zone = zone.ok_or_else(|| Fault::NoZoneIndex { text: address.to_string() })?;
    let index = links.index(zone).ok_or_else(|| Fault::NoInterface { name: zone.to_owned() })?;
    Ok(SocketAddrV6::new(address, port, 0, index))
}

/// Splits host and port: `1.2.3.4`, `1.2.3.4:53`, `::1`, `[::1]`, `[::1]:53`.
fn split_port(text: &str, default: u16) -> Option<(&str, u16)> {
    let port = |text: &str| text.parse().ok();
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        if !host.contains(':') {
            return None;
        }
        return match rest.strip_prefix(':') {
            Some(text) => Some((host, port(text)?)),
            None => rest.is_empty().then_some((host, default)),
        };
    }
    match text.split_once(':') {
        Some((host, rest)) if !rest.contains(':') => Some((host, port(rest)?)),
        _ => Some((text, default)),
    }
}

/// The transports by their names in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Udp,
    Tcp,
    Tls,
    Https,
}

impl Scheme {
    /// Reads `udp`, `tcp`, `tls` or `https`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "udp" => Some(Self::Udp),
            "tcp" => Some(Self::Tcp),
            "tls" => Some(Self::Tls),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    /// The port where none is written.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => DNS_PORT,
            Self::Tls => TLS_PORT,
            Self::Https => HTTPS_PORT,
        }
    }
}

/// Reads `[SCHEME://]ADDR[:PORT][/PATH][#SERVER-NAME]`; `bare` is the transport without a scheme.
///
/// A path is for `https` only, a server name for `tls` and `https`; without one the certificate
/// must hold the address.
///
/// # Errors
/// As [`parse_address`].
pub fn parse_upstream(text: &str, bare: Scheme, links: &Interfaces) -> Result<Upstream, Fault> {
    let wrong = || not_a(UPSTREAM, text);
    let (scheme, rest) = match text.split_once("://") {
        Some((name, rest)) => (Scheme::from_name(name).ok_or_else(wrong)?, rest),
        None => (bare, text),
    };
    let (rest, server_name) = match rest.split_once('#') {
        Some((rest, name)) if is_server_name(name) => (rest, Some(name)),
        Some(_) => return Err(wrong()),
        None => (rest, None),
    };
    if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong());
    }
    let (host, path) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(&rest[at..])),
        None => (rest, None),
    };
    let address = address_of(host, UPSTREAM, scheme.port(), links)?;
    if address.port() == 0 {
        return Err(wrong());
    }
    let server_name = server_name.map(str::to_owned);
    let name_or_address = |name: Option<String>| name.unwrap_or_else(|| address.ip().to_string());
    let transport = match (scheme, path, server_name) {
        (Scheme::Udp, None, None) => Transport::Udp,
        (Scheme::Tcp, None, None) => Transport::Tcp,
        (Scheme::Tls, None, name) => Transport::Tls { server_name: name_or_address(name) },
        (Scheme::Https, path, name) => Transport::Https {
            server_name: name_or_address(name),
            path: path.unwrap_or(HTTPS_PATH).to_owned(),
        },
        _ => return Err(wrong()),
    };
    Ok(Upstream { address, transport })
}

/// Tells whether `name` can stand in a certificate: letters, digits, hyphens, dots, or an address.
pub fn is_server_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(is_label))
}

impl FromStr for Upstream {
    type Err = Fault;

    /// Reads the configuration form; zone indices as numbers only, UDP where no scheme is written.
    fn from_str(text: &str) -> Result<Self, Fault> {
        parse_upstream(text, Scheme::Udp, &Interfaces::default())
    }
}

impl fmt::Display for Upstream {
    /// Writes the configuration form with its port: `192.0.2.1:53`, `tls://192.0.2.9:853#dns.example`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.transport {
            Transport::Udp => write!(f, "{address}"),
            Transport::Tcp => write!(f, "tcp://{address}"),
            Transport::Tls { server_name } => write!(f, "tls://{address}#{server_name}"),
            Transport::Https { server_name, path } => {
                write!(f, "https://{address}{path}#{server_name}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lo` is 1, `eth0` is 10.
    fn links() -> Interfaces {
        Interfaces::from_if_inet6(
            "00000000000000000000000000000001 01 80 10 80       lo\n\
             fe800000000000000000000000000001 0a 40 20 80     eth0\nrubbish\n",
        )
    }

    #[test]
    fn every_upstream_form_is_read_and_written_back_whole() {
        for (text, whole) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
            ("fe80::1%eth0", "[fe80::1%10]:53"),
            ("[fe80::1%10]:53", "[fe80::1%10]:53"),
            ("udp://192.0.2.1", "192.0.2.1:53"),
            ("tcp://192.0.2.1", "tcp://192.0.2.1:53"),
            ("tls://192.0.2.9#dns.example", "tls://192.0.2.9:853#dns.example"),
            ("tls://192.0.2.9", "tls://192.0.2.9:853#192.0.2.9"),
            ("tls://[2001:db8::9]:8853#dns.example", "tls://[2001:db8::9]:8853#dns.example"),
            ("https://192.0.2.9#dns.example", "https://192.0.2.9:443/dns-query#dns.example"),
            ("https://192.0.2.9/q#dns.example", "https://192.0.2.9:443/q#dns.example"),
        ] {
            let upstream = parse_upstream(text, Scheme::Udp, &links()).expect(text);
            assert_eq!(upstream.to_string(), whole);
            assert_eq!(whole.parse(), Ok(upstream));
        }
    }

    #[test]
    fn the_zones_transport_is_that_of_bare_addresses_only() {
        let read = |text| parse_upstream(text, Scheme::Tls, &links()).expect(text).to_string();
        assert_eq!(read("192.0.2.9#dns.example"), "tls://192.0.2.9:853#dns.example");
        assert_eq!(read("udp://192.0.2.9"), "192.0.2.9:53");
    }

    #[test]
    fn broken_upstreams_are_refused() {
        for text in [
            "",
            "dns.example",
            "192.0.2.1:0",
            "192.0.2.1:70000",
            "192.0.2.1:",
            "[192.0.2.1]:53",
            "[2001:db8::1",
            "2001:db8::1%eth0",
            "192.0.2.1%eth0",
            "quic://192.0.2.1",
            "tls://192.0.2.1#",
            "tls://192.0.2.1#a b",
            "192.0.2.1#dns.example",
            "tcp://192.0.2.1/x",
            "https://192.0.2.9/a b",
            "https://192.0.2.9/ü",
            "https://",
            "192.0.2.1 ",
            "tls://192.0.2.1/q#dns.example",
        ] {
            let fault = parse_upstream(text, Scheme::Udp, &links()).expect_err(text);
            assert!(matches!(fault, Fault::NotA { .. }), "{text}: {fault}");
        }
        let fault = |text| parse_upstream(text, Scheme::Udp, &links()).expect_err(text);
        assert_eq!(fault("fe80::1"), Fault::NoZoneIndex { text: "fe80::1".to_owned() });
        assert_eq!(fault("fe80::1%eth9"), Fault::NoInterface { name: "eth9".to_owned() });
    }
}
