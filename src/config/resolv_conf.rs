//! The `nameserver` lines of a resolv.conf, and its search list.
//!
//! Source: resolv.conf(5)

use thiserror::Error;

use super::Upstream;
use super::endpoint::{self, Interfaces, Scheme};
use super::error::Fault;
use crate::dns::name::Name;

/// What a resolv.conf says that concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In the order of the file, each once; glibc's limit of three does not bind us.
    pub upstreams: Vec<Upstream>,
    /// Lines that were left out.
    pub warnings: Vec<BrokenLine>,
}

/// A `nameserver` line that names no address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line} is ignored: {fault}")]
pub struct BrokenLine {
    /// Counted from 1.
    pub line: usize,
    pub fault: Fault,
}

/// Reads the text of a resolv.conf; zone indices of link-local addresses may be names or numbers.
pub fn parse(text: &str, links: &Interfaces) -> ResolvConf {
    let mut out = ResolvConf::default();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        match nameserver(word, links) {
            Ok(upstream) if out.upstreams.contains(&upstream) => {}
            Ok(upstream) => out.upstreams.push(upstream),
            Err(fault) => out.warnings.push(BrokenLine { line: index + 1, fault }),
        }
    }
    out
}

/// The search list: that of the last `search` or `domain` line; names that are none are left out.
pub fn search(text: &str) -> Vec<Name> {
    let list = |line: &str| -> Option<Vec<Name>> {
        let mut words = line.split_whitespace();
        let count = match words.next()? {
            "search" => usize::MAX,
            "domain" => 1,
            _ => return None,
        };
        let names = words.take(count).filter_map(|word| Name::from_text(word).ok());
        Some(names.filter(|name| !name.is_root()).collect())
    };
    text.lines().filter_map(list).next_back().unwrap_or_default()
}

/// Reads one address; 0.0.0.0 means 127.0.0.1 and `::` means `::1`, as glibc's sockets have it.
fn nameserver(word: &str, links: &Interfaces) -> Result<Upstream, Fault> {
    let mut upstream = endpoint::parse_upstream(word, Scheme::Udp, links)?;
    match upstream.address.ip() {
        std::net::IpAddr::V4(v4) if v4.is_unspecified() => {
            upstream.address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        std::net::IpAddr::V6(v6) if v6.is_unspecified() => {
            upstream.address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        }
        _ => {}
    }
    Ok(upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_in_order_and_broken_lines_are_told() {
        let links = Interfaces::from_if_inet6("fe80000000000000 03 40 20 80 eth0\n");
        let text = "# nameserver 192.0.2.9\n\
                    search example.org\n\
                    nameserver 192.0.2.1\n\
                    nameserver\t2001:db8::1   # the second\n\
                    nameserver fe80::1%eth0\n\
                    nameserver fe80::1%7\n\
                    nameserver dns.example\n\
                    nameserver\n\
                    nameserver fe80::1\n\
                    nameserver 192.0.2.1\n\
                    nameserver 192.0.2.2\n\
                    nameserver 0.0.0.0\n\
                    options ndots:5\n";
        let read = parse(text, &links);
        let upstreams: Vec<String> = read.upstreams.iter().map(Upstream::to_string).collect();
        assert_eq!(
            upstreams,
            [
                "192.0.2.1:53",
                "[2001:db8::1]:53",
                "[fe80::1%3]:53",
                "[fe80::1%7]:53",
                "192.0.2.2:53",
                "127.0.0.1:53",
            ]
        );
        let lines: Vec<usize> = read.warnings.iter().map(|warning| warning.line).collect();
        assert_eq!(lines, [7, 8, 9]);
    }

    #[test]
    fn the_last_search_or_domain_line_counts() {
        for (text, expected) in [
            ("", ""),
            ("nameserver 192.0.2.1\nsearch a.example  b.example.\n", "a.example. b.example."),
            ("search a.example\ndomain c.example d.example\n", "c.example."),
            ("domain c.example\nsearch . b..example a.example", "a.example."),
            ("search a.example\nsearch\n", ""),
            ("# search a.example", ""),
        ] {
            let names: Vec<_> = search(text).iter().map(Name::to_string).collect();
            assert_eq!(names.join(" "), expected, "{text}");
        }
    }

    #[test]
    fn an_empty_file_names_nobody() {
        assert_eq!(parse("", &Interfaces::default()), ResolvConf::default());
    }
}
