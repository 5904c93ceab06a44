//! A file in the form of `/etc/hosts`, served forward and reverse.
//!
//! HDFS data nodes and Docker hosts live by it: a name must have its address and the address its name.

use std::net::IpAddr;

use crate::dns::Qtype;
use crate::dns::build::LocalRecord;
use crate::dns::name::Name;
use crate::dns::ttl::Ttl;

/// The lines of a hosts file that could be read.
#[derive(Debug, Default, PartialEq)]
pub struct Hosts {
    /// Address and name in file order; the first name of a line is the canonical one.
    lines: Vec<(IpAddr, Vec<Name>)>,
    /// Numbers of lines (from 1) that were no hosts lines.
    pub broken: Vec<usize>,
}

impl Hosts {
    /// Reads the text of a hosts file; broken lines are left out and listed.
    ///
    /// Zone indices of link-local addresses are cut off: DNS cannot carry them.
    ///
    /// Source: hosts(5)
    pub fn parse(text: &str) -> Self {
        let mut hosts = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next() else { continue };
            let address = address.split('%').next().unwrap_or_default().parse();
            let names: Result<Vec<_>, _> = words.map(Name::from_text).collect();
            match (address, names) {
                (Ok(address), Ok(names)) if !names.is_empty() => hosts.lines.push((address, names)),
                _ => hosts.broken.push(index + 1),
            }
        }
        hosts
    }

    /// All records: each name's addresses, and each address's canonical name.
    pub fn records(&self, ttl: Ttl) -> impl Iterator<Item = LocalRecord> {
        self.lines.iter().flat_map(move |(address, names)| {
            let (rtype, rdata) = match address {
                IpAddr::V4(v4) => (Qtype::A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (Qtype::AAAA, v6.octets().to_vec()),
            };
            let forward = names.iter().map(move |name| LocalRecord {
                owner: name.clone(),
                rtype,
                ttl,
                rdata: rdata.clone(),
            });
            let reverse = LocalRecord {
                owner: Name::reverse_of(*address),
                rtype: Qtype::PTR,
                ttl,
                rdata: names[0].as_wire().to_vec(),
            };
            forward.chain([reverse])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_addresses_and_addresses_their_canonical_name() {
        let text = "# data nodes\n\
                    198.18.0.7\tdn7.example.org dn7 # rack 2\n\
                    2001:db8::7 dn7.example.org\n\
                    fe80::1%eth0 gate.example.org\n\
                    \n\
                    not-an-address x\n\
                    198.18.0.8\n";
        let hosts = Hosts::parse(text);
        assert_eq!(hosts.broken, [6, 7]);
        let records: Vec<String> = hosts
            .records(Ttl::from_wire(60))
            .map(|record| format!("{} {} {}", record.owner, record.rtype, record.rdata.len()))
            .collect();
        assert_eq!(
            records[..3],
            ["dn7.example.org. A 4", "dn7. A 4", "7.0.18.198.in-addr.arpa. PTR 17",]
        );
        assert_eq!(records.len(), 7);
    }
}
