//! Upstreams that come and go: a Kubernetes Service, a host name, or a file, instead of an address.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::endpoint::{DNS_PORT, Scheme};
use super::error::{Fault, Place};
use super::{Forward, Transport, Upstream, UpstreamSource};
use crate::dns::name::Name;

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceKey {
    /// Writes `kube-system/kube-dns`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Tells whether a text is a label as Kubernetes has them.
pub(super) fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl FromStr for ServiceKey {
    type Err = Fault;

    /// Reads `NAMESPACE/NAME`, both of them DNS labels.
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once('/') {
            Some((namespace, name)) if is_label(namespace) && is_label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(Fault::NotA {
                text: text.to_owned(),
                what: "a Service",
                example: "kube-system/kube-dns",
            }),
        }
    }
}

/// Who knows the addresses of the moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointSource {
    /// The ready endpoints of a Service, watched.
    Service(ServiceKey),
    /// The addresses of a host name, resolved again when their TTL ends.
    Name(Name),
    /// A file with one `ADDR[:PORT]` per line, read again when it changes.
    File(PathBuf),
}

impl fmt::Display for EndpointSource {
    /// Writes `service:kube-system/kube-dns`, `name:dns.example.org` or `file:/run/endpoints`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service:{key}"),
            Self::Name(name) => write!(f, "name:{}", name.to_string().trim_end_matches('.')),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// A set of upstreams whose addresses are known at run time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    pub source: EndpointSource,
    /// Asked in place of the port that the source says.
    pub port: Option<u16>,
    pub transport: Transport,
}

impl Endpoints {
    /// The upstream at one of the addresses.
    pub fn at(&self, address: SocketAddr) -> Upstream {
        let port = self.port.unwrap_or(address.port());
        let mut address = address;
        address.set_port(port);
        Upstream { address, transport: self.transport.clone() }
    }
}

impl fmt::Display for Endpoints {
    /// Writes the configuration form with its scheme where that is not UDP.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, server_name) = match &self.transport {
            Transport::Udp => ("", None),
            Transport::Tcp => ("tcp://", None),
            Transport::Tls { server_name } | Transport::Https { server_name, .. } => {
                ("tls://", Some(server_name))
            }
        };
        write!(f, "{scheme}{}", self.source)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        server_name.map_or(Ok(()), |name| write!(f, "#{name}"))
    }
}

/// Tells whether a text is meant as endpoints, not as an address.
pub fn is_endpoints(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    ["service:", "name:", "file:"].iter().any(|kind| rest.starts_with(kind))
}

/// Reads `[SCHEME://]service:NAMESPACE/NAME[:PORT]`, `name:HOST[:PORT]` or `file:PATH[:PORT]`, with
/// `#SERVER-NAME` for `tls`; `bare` is the transport without a scheme.
///
/// # Errors
/// `NotA` for any other form.
pub fn parse_endpoints(text: &str, bare: Scheme) -> Result<Endpoints, Fault> {
    let wrong = || Fault::NotA {
        text: text.to_owned(),
        what: "a set of upstreams",
        example: "service:kube-system/kube-dns, name:dns.example.org:53 or file:/run/endpoints",
    };
    let (scheme, rest) = match text.split_once("://") {
        Some((name, rest)) => (Scheme::from_name(name).ok_or_else(wrong)?, rest),
        None => (bare, text),
    };
    let (rest, server_name) = rest.split_once('#').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (kind, rest) = rest.split_once(':').ok_or_else(wrong)?;
    let (rest, port) = match rest.rsplit_once(':') {
        Some((rest, port)) => {
            (rest, Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?))
        }
        None => (rest, None),
    };
    let source = match kind {
        "service" => EndpointSource::Service(rest.parse().map_err(|_| wrong())?),
        "name" => EndpointSource::Name(read_host(rest).ok_or_else(wrong)?),
        "file" if rest.starts_with('/') => EndpointSource::File(PathBuf::from(rest)),
        _ => return Err(wrong()),
    };
    let of_name = match &source {
        EndpointSource::Name(_) => Some(rest.trim_end_matches('.')),
        _ => None,
    };
    let transport = match (scheme, server_name, server_name.or(of_name)) {
        (Scheme::Udp, None, _) => Transport::Udp,
        (Scheme::Tcp, None, _) => Transport::Tcp,
        (Scheme::Tls, _, Some(name)) if super::endpoint::is_server_name(name) => {
            Transport::Tls { server_name: name.to_owned() }
        }
        _ => return Err(wrong()),
    };
    // A name says no port, and what a cluster says is that of plain DNS.
    let is_tls = matches!(transport, Transport::Tls { .. });
    let implied = (of_name.is_some() || is_tls).then(|| scheme.port());
    Ok(Endpoints { source, port: port.or(implied), transport })
}

/// A host name; an address would be an upstream as it stands.
fn read_host(text: &str) -> Option<Name> {
    let is_host = super::endpoint::is_server_name(text.strip_suffix('.').unwrap_or(text));
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    Name::from_text(text).ok().filter(|name| is_host && !is_address && !name.is_root())
}

/// Reads the lines of an endpoints file: `ADDR[:PORT]` each, comments after `#`; gives the addresses,
/// each once, and the numbers of broken lines.
pub fn parse_file(text: &str) -> (Vec<SocketAddr>, Vec<usize>) {
    let (mut addresses, mut broken) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match super::endpoint::parse_address(line, DNS_PORT, &Default::default()) {
            _ if line.is_empty() => {}
            Ok(address) if address.port() == 0 => broken.push(index + 1),
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => broken.push(index + 1),
        }
    }
    (addresses, broken)
}

/// The first zone whose upstreams are names only that lead back to it, with where the name was written.
///
/// A zone has ground when any of its upstreams is known without a query, or by one for which another
/// zone that has ground is responsible.
pub fn without_ground<'a>(
    zones: &[(&Forward, &'a [(Endpoints, Place)])],
) -> Option<(Name, &'a Place)> {
    let is_known = |forward: &Forward| {
        matches!(&forward.upstreams, UpstreamSource::ResolvConf(_))
            || matches!(&forward.upstreams, UpstreamSource::Fixed(fixed) if !fixed.is_empty())
            || forward.endpoints.iter().any(|set| !matches!(set.source, EndpointSource::Name(_)))
    };
    let mut grounded: Vec<bool> = zones.iter().map(|(forward, _)| is_known(forward)).collect();
    for _ in 0..zones.len() {
        for (index, (forward, _)) in zones.iter().enumerate() {
            let leads_to_ground = forward.endpoints.iter().any(|set| match &set.source {
                EndpointSource::Name(name) => {
                    responsible(zones, name).is_some_and(|at| grounded[at])
                }
                _ => true,
            });
            grounded[index] |= leads_to_ground;
        }
    }
    let (index, _) = grounded.iter().enumerate().find(|(_, grounded)| !**grounded)?;
    let (forward, written) = &zones[index];
    written.first().map(|(_, place)| (forward.zone.clone(), place))
}

/// The place of the zone with the longest suffix of `name`.
fn responsible(zones: &[(&Forward, &[(Endpoints, Place)])], name: &Name) -> Option<usize> {
    let holding = zones.iter().enumerate().filter(|(_, (zone, _))| name.is_within(&zone.zone));
    holding.max_by_key(|(_, (zone, _))| zone.zone.as_wire().len()).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back_whole() {
        for (text, whole) in [
            ("service:kube-system/kube-dns", "service:kube-system/kube-dns"),
            ("service:kube-system/kube-dns:5353", "service:kube-system/kube-dns:5353"),
            ("tcp://service:a/b", "tcp://service:a/b"),
            ("tls://service:a/b#dns.example", "tls://service:a/b:853#dns.example"),
            ("name:dns.example.org", "name:dns.example.org:53"),
            ("name:dns.example.org.:5353", "name:dns.example.org:5353"),
            ("tls://name:dns.example.org", "tls://name:dns.example.org:853#dns.example.org"),
            ("file:/run/endpoints", "file:/run/endpoints"),
        ] {
            let read = parse_endpoints(text, Scheme::Udp).expect(text);
            assert_eq!(read.to_string(), whole);
            assert!(is_endpoints(text));
            assert_eq!(parse_endpoints(whole, Scheme::Udp), Ok(read));
        }
    }

    #[test]
    fn broken_forms_are_refused() {
        for text in [
            "service:kube-dns",
            "service:Kube/dns",
            "service:a/b:0",
            "service:a/b:x",
            "service:a/b#dns.example",
            "tls://service:a/b",
            "https://name:dns.example.org",
            "name:",
            "name:.",
            "name:192.0.2.1",
            "name:a b",
            "file:run/endpoints",
            "quic://name:dns.example.org",
        ] {
            let fault = parse_endpoints(text, Scheme::Udp).expect_err(text);
            assert!(matches!(fault, Fault::NotA { .. }), "{text}: {fault}");
        }
        assert!(!is_endpoints("192.0.2.1") && !is_endpoints("tls://192.0.2.9#dns.example"));
    }

    #[test]
    fn a_file_gives_each_address_once_and_the_lines_that_are_none() {
        let text = "192.0.2.1\n\n# gone: 192.0.2.9\n192.0.2.1:53 # again\n[2001:db8::1]:5353\nx\n192.0.2.1:0\n";
        let (addresses, broken) = parse_file(text);
        let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[2001:db8::1]:5353"]);
        assert_eq!(broken, [6, 7]);
    }
}
