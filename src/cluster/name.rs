//! What a name within the cluster zone asks for: labels in, meaning out.
//!
//! Source: Kubernetes DNS-Based Service Discovery, schema 1.1.0

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dns::name::{Name, suffixes};

/// The longest label in bytes.
///
/// Source: RFC 1035 §2.3.4
pub const MAX_LABEL_LEN: usize = 63;

/// What is asked for. Labels are folded and without their length; keys are wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The cluster domain itself.
    Apex,
    /// A name that exists because others below it do: `svc`, `pod`, `dns`.
    Inner,
    /// `dns-version`: which schema this is.
    Version,
    /// `ns.dns`: the zone's name server.
    NameServer,
    /// `NAMESPACE.svc`
    Namespace(&'a [u8]),
    /// `NAMESPACE.pod`
    PodNamespace(&'a [u8]),
    /// `ADDRESS.NAMESPACE.pod`
    Pod { address: &'a [u8], namespace: &'a [u8] },
    /// `SERVICE.NAMESPACE.svc`
    Service(Key<'a>),
    /// `ENDPOINT.SERVICE.NAMESPACE.svc`, or the protocol of a port.
    Endpoint { label: &'a [u8], service: Key<'a> },
    /// `_PORT._PROTOCOL.SERVICE.NAMESPACE.svc`, without the underscores.
    Port { port: &'a [u8], protocol: &'a [u8], service: Key<'a> },
    /// Nothing that can exist.
    Nothing,
}

impl<'a> Asked<'a> {
    /// The label of the namespace that the name is of, if it may exist.
    pub fn namespace(self) -> Option<&'a [u8]> {
        match self {
            Self::Namespace(namespace)
            | Self::PodNamespace(namespace)
            | Self::Pod { namespace, .. } => Some(namespace),
            Self::Service(key)
            | Self::Endpoint { service: key, .. }
            | Self::Port { service: key, .. } => Some(key.namespace()),
            Self::Apex | Self::Inner | Self::Version | Self::NameServer | Self::Nothing => None,
        }
    }
}

/// A Service as a name has it: its label and its namespace's, both with their lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a>(pub &'a [u8]);

impl<'a> Key<'a> {
    /// The namespace's label.
    pub fn namespace(self) -> &'a [u8] {
        labels(self.0).nth(1).unwrap_or_default()
    }
}

/// Reads what a folded wire name asks for within the cluster domain `domain`; `None` when it is not within.
pub fn parse<'a>(wire: &'a [u8], domain: &Name) -> Option<Asked<'a>> {
    front(wire, domain).map(within)
}

/// The label of the namespace that a folded wire name within `domain` is of, however far below it.
pub fn namespace<'a>(wire: &'a [u8], domain: &Name) -> Option<&'a [u8]> {
    let (mut before, mut last) = (None, None);
    for label in labels(front(wire, domain)?) {
        (before, last) = (last, Some(label));
    }
    before.filter(|_| matches!(last, Some(b"svc" | b"pod")))
}

/// The labels of a folded wire name in front of `domain`; `None` when it is not within.
fn front<'a>(wire: &'a [u8], domain: &Name) -> Option<&'a [u8]> {
    let start = wire.len().checked_sub(domain.as_wire().len())?;
    // Bytes that end alike may differ in where labels begin, so whole suffixes are compared.
    if !suffixes(wire).any(|suffix| suffix.len() == domain.as_wire().len())
        || wire.get(start..)? != domain.as_wire()
    {
        return None;
    }
    wire.get(..start)
}

/// Reads the labels in front of the domain.
fn within(front: &[u8]) -> Asked<'_> {
    let mut all = [&[][..]; 6];
    let mut count = 0;
    for label in labels(front) {
        match all.get_mut(count) {
            Some(place) => *place = label,
            None => return Asked::Nothing,
        }
        count += 1;
    }
    // The Service's and the namespace's labels stand before `svc`, four bytes long.
    let key = |before: &[&[u8]]| {
        let skipped: usize = before.iter().map(|label| label.len() + 1).sum();
        Key(front.get(skipped..front.len().saturating_sub(4)).unwrap_or_default())
    };
    match all.get(..count).unwrap_or_default() {
        [] => Asked::Apex,
        [b"svc" | b"pod" | b"dns"] => Asked::Inner,
        [b"dns-version"] => Asked::Version,
        [b"ns", b"dns"] => Asked::NameServer,
        [namespace, b"svc"] => Asked::Namespace(namespace),
        [namespace, b"pod"] => Asked::PodNamespace(namespace),
        [address, namespace, b"pod"] => Asked::Pod { address, namespace },
        [_, _, b"svc"] => Asked::Service(key(&[])),
        [label, _, _, b"svc"] => Asked::Endpoint { label, service: key(&[label]) },
        [port, protocol, _, _, b"svc"] => Asked::Port {
            port: without_underscore(port),
            protocol: without_underscore(protocol),
            service: key(&[port, protocol]),
        },
        _ => Asked::Nothing,
    }
}

/// The labels of wire bytes without the root's, which may lack.
fn labels(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, tail) = rest.split_first()?;
        let (label, after) = tail.split_at_checked(usize::from(*len))?;
        rest = after;
        (!label.is_empty()).then_some(label)
    })
}

/// The label without the underscore that marks ports and protocols; CoreDNS asks for none either.
fn without_underscore(label: &[u8]) -> &[u8] {
    label.strip_prefix(b"_").unwrap_or(label)
}

/// The key under which a Service is known, in wire form and folded; `None` when the names are no labels.
pub fn service_key(namespace: &str, name: &str) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(namespace.len() + name.len() + 2);
    for text in [name, namespace] {
        key.extend(label(text)?);
    }
    Some(key)
}

/// A label with its length, folded; `None` when the text is none.
pub fn label(text: &str) -> Option<Vec<u8>> {
    let len = u8::try_from(text.len()).ok().filter(|len| usize::from(*len) <= MAX_LABEL_LEN)?;
    let is_label = len > 0 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.');
    is_label
        .then(|| std::iter::once(len).chain(text.bytes().map(|b| b.to_ascii_lowercase())).collect())
}

/// The label of an endpoint without a hostname: its address with dashes.
///
/// Source: as CoreDNS does; a label does not end in a dash, so `fd00::` becomes `fd00--0`
pub fn dashed(address: IpAddr) -> String {
    let text = address.to_string().replace(['.', ':'], "-");
    if text.ends_with('-') { text + "0" } else { text }
}

/// The address whose [`dashed`] form `label` is.
pub fn undashed(label: &[u8]) -> Option<IpAddr> {
    let address = pod_address(label)?;
    (dashed(address).as_bytes() == label).then_some(address)
}

/// The address that a pod's label stands for, in any way to write it.
pub fn pod_address(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let v4 = || text.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    let v6 = || text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from);
    v4().or_else(v6)
}

/// The address of a whole reverse name.
///
/// Source: RFC 1035 §3.5, RFC 3596 §2.5
pub fn reversed(qname: &Name) -> Option<IpAddr> {
    let wire = qname.as_wire();
    if let Some(front) = wire.strip_suffix(b"\x07in-addr\x04arpa\0") {
        let mut octets = labels(front).map(|label| std::str::from_utf8(label).ok()?.parse().ok());
        let [d, c, b, a] = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
        let address = IpAddr::from([a, b, c, d]);
        // So nothing is left in front, and no octet was written with leading zeros.
        return (Name::reverse_of(address) == *qname).then_some(address);
    }
    let front = wire.strip_suffix(b"\x03ip6\x04arpa\0")?;
    let mut bits: u128 = 0;
    let mut count: u32 = 0;
    for label in labels(front) {
        let nibble = std::str::from_utf8(label).ok().filter(|text| text.len() == 1)?;
        bits |= u128::from_str_radix(nibble, 16).ok()?.checked_shl(4 * count)?;
        count += 1;
    }
    let address = IpAddr::from(Ipv6Addr::from(bits));
    // A label with bytes that look like labels is none.
    (count == 32 && Name::reverse_of(address) == *qname).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> Option<String> {
        let (name, domain) = (Name::from_text(name), Name::from_text("cluster.example"));
        let (name, domain) = (name.expect("name"), domain.expect("domain"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match parse(name.as_wire(), &domain)? {
            Asked::Namespace(label) => format!("namespace {}", text(label)),
            Asked::PodNamespace(label) => format!("pods {}", text(label)),
            Asked::Pod { address, namespace } => {
                format!("pod {} {}", text(address), text(namespace))
            }
            Asked::Service(key) => format!("service {:?} {}", text(key.0), text(key.namespace())),
            Asked::Endpoint { label, service } => {
                format!("endpoint {} {:?}", text(label), text(service.0))
            }
            Asked::Port { port, protocol, service } => {
                format!("port {} {} {:?}", text(port), text(protocol), text(service.0))
            }
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn labels_say_what_is_asked() {
        for (name, meaning) in [
            ("cluster.example", "Apex"),
            ("svc.cluster.example", "Inner"),
            ("pod.cluster.example", "Inner"),
            ("dns.cluster.example", "Inner"),
            ("ns.dns.cluster.example", "NameServer"),
            ("dns-version.cluster.example", "Version"),
            ("a.svc.cluster.example", "namespace a"),
            ("a.pod.cluster.example", "pods a"),
            ("1-2-3-4.a.pod.cluster.example", "pod 1-2-3-4 a"),
            ("S.A.SVC.cluster.example", r#"service "\u{1}s\u{1}a" a"#),
            ("svc.svc.svc.cluster.example", r#"service "\u{3}svc\u{3}svc" svc"#),
            ("e.s.a.svc.cluster.example", r#"endpoint e "\u{1}s\u{1}a""#),
            ("_p._tcp.s.a.svc.cluster.example", r#"port p tcp "\u{1}s\u{1}a""#),
            ("x._p._tcp.s.a.svc.cluster.example", "Nothing"),
            ("x.1-2-3-4.a.pod.cluster.example", "Nothing"),
            ("a.b.c.d.e.f.g.cluster.example", "Nothing"),
            ("other.cluster.example", "Nothing"),
        ] {
            assert_eq!(asked(name).as_deref(), Some(meaning), "{name}");
        }
        for outside in ["example", "example.org", "xcluster.example", "."] {
            assert_eq!(asked(outside), None, "{outside}");
        }
    }

    #[test]
    fn a_name_is_of_a_namespace_however_deep_it_is() {
        let domain = Name::from_text("cluster.example").expect("domain");
        for (name, expected) in [
            ("shop.svc.cluster.example", Some("shop")),
            ("web.SHOP.svc.cluster.example", Some("shop")),
            ("a.b.c.d.e.f.web.shop.svc.cluster.example", Some("shop")),
            ("1-2-3-4.shop.pod.cluster.example", Some("shop")),
            ("svc.cluster.example", None),
            ("cluster.example", None),
            ("corp.cluster.example", None),
            ("web.shop.corp.cluster.example", None),
            ("shop.svc.example.org", None),
        ] {
            let wire = Name::from_text(name).expect(name);
            let found = namespace(wire.as_wire(), &domain).map(|label| label.to_vec());
            assert_eq!(found, expected.map(|label| label.as_bytes().to_vec()), "{name}");
        }
    }

    #[test]
    fn bytes_that_look_like_the_domain_within_a_label_are_not_it() {
        let name = Name::from_text(r"x\007cluster\007example.").expect("name");
        let domain = Name::from_text("cluster.example").expect("domain");
        assert_eq!(parse(name.as_wire(), &domain), None);
    }

    #[test]
    fn addresses_become_labels_and_back() {
        for (address, label) in [
            ("192.0.2.7", "192-0-2-7"),
            ("2001:db8::1", "2001-db8--1"),
            ("2001:db8::", "2001-db8--0"),
            ("::1", "--1"),
        ] {
            let address: IpAddr = address.parse().expect("address");
            assert_eq!(dashed(address), label);
            assert_eq!(undashed(label.as_bytes()), Some(address), "{label}");
        }
        for label in ["192-0-2-07", "2001-DB8--1", "a", "", "192-0-2", "2001-db8-0--1"] {
            assert_eq!(undashed(label.as_bytes()), None, "{label}");
        }
    }

    #[test]
    fn whole_reverse_names_have_an_address_and_others_have_none() {
        for address in ["192.0.2.7", "0.0.0.0", "2001:db8::1", "::"] {
            let address: IpAddr = address.parse().expect("address");
            assert_eq!(reversed(&Name::reverse_of(address)), Some(address));
        }
        for name in [
            "2.0.192.in-addr.arpa",
            "1.7.2.0.192.in-addr.arpa",
            "07.2.0.192.in-addr.arpa",
            "256.2.0.192.in-addr.arpa",
            "8.b.d.0.1.0.0.2.ip6.arpa",
            "example.org",
        ] {
            assert_eq!(reversed(&Name::from_text(name).expect("name")), None, "{name}");
        }
        for end in ["1.ip6.arpa", r"x\003ip6\004arpa"] {
            let text = format!("{}{end}", "1.".repeat(32));
            assert_eq!(reversed(&Name::from_text(&text).expect("name")), None, "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_labels_have_no_key() {
        assert_eq!(service_key("a", "1-S").as_deref(), Some(&b"\x031-s\x01a"[..]));
        let long = "a".repeat(64);
        for (namespace, name) in [("", "s"), ("a", ""), ("a", "b.c"), ("a", &long), ("a b", "s")] {
            assert_eq!(service_key(namespace, name), None, "{namespace}/{name}");
        }
    }
}
