//! The node's packet rules: what kube-proxy does for the cluster DNS address.

use std::net::IpAddr;

use super::LabError;
use super::namespace::Namespace;
use super::net::{CLUSTER_DNS, DNS, Family, Host, POD_NETWORK};
use crate::netlink::expr::{Expr, Field, Meta, Nat, REG_1, REG_2, Verdict, field_is, meta_is};
use crate::netlink::netfilter::Netfilter;
use crate::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, Place, Set, Table};

/// UDP and TCP.
const PROTOCOLS: [u8; 2] = [17, 6];

/// Where the fields of one family lie.
struct Fields {
    nfproto: u8,
    source: Field,
    destination: Field,
    kind: DataType,
    /// Bytes of the pod network's prefix.
    prefix: u32,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// What rules of this family match on.
    fn fields(self) -> Fields {
        match self {
            Self::V4 => Fields {
                nfproto: 2,
                source: Field::IP_SOURCE,
                destination: Field::IP_DESTINATION,
                kind: DataType::Ipv4,
                prefix: 3,
            },
            Self::V6 => Fields {
                nfproto: 10,
                source: Field::IP6_SOURCE,
                destination: Field::IP6_DESTINATION,
                kind: DataType::Ipv6,
                prefix: 8,
            },
        }
    }

    /// The map from a number to a server.
    fn servers(self) -> &'static str {
        match self {
            Self::V4 => "servers4",
            Self::V6 => "servers6",
        }
    }
}

/// The bytes of an address.
fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Translates the cluster DNS address to a server drawn at random, for pods and the node's own
/// processes, and hides the pods behind the node's address, as kube-proxy and a CNI do.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn translate_cluster_dns(node: &Namespace, servers: &[Host]) -> Result<(), LabError> {
    let table = Table::inet("lab-kube-proxy");
    let mut batch = Batch::default();
    // Again, when the servers change: all in one step.
    batch.ensure_table(&table).delete_table(&table).add_table(&table, 0);
    let nat = |hook, priority| Some(Place { kind: ChainKind::Nat, hook, priority });
    batch.add_chain(&table, "services", None);
    batch.add_chain(&table, "prerouting", nat(Hook::Prerouting, -100));
    batch.add_chain(&table, "output", nat(Hook::Output, -100));
    batch.add_chain(&table, "postrouting", nat(Hook::Postrouting, 100));
    for chain in ["prerouting", "output"] {
        batch.add_rule(&table, chain, &[Expr::Verdict(Verdict::Jump("services".to_owned()))]);
    }
    for family in Family::ALL {
        let addresses: Vec<_> = servers.iter().map(|host| host.addresses.of(family)).collect();
        put_servers(&mut batch, &table, family, &addresses);
        for protocol in PROTOCOLS {
            batch.add_rule(&table, "services", &translation(family, protocol, addresses.len()));
        }
        for server in &addresses {
            batch.add_rule(&table, "postrouting", &hiding(family, *server));
        }
    }
    node.run(|| Ok(Netfilter::open()?.apply(&batch)?))
}

/// Adds the map from numbers to servers.
fn put_servers(batch: &mut Batch, table: &Table, family: Family, addresses: &[IpAddr]) {
    let set = Set::map(family.servers(), DataType::Integer, family.fields().kind);
    let numbered = (0_u32..).zip(addresses);
    let elements: Vec<_> =
        numbered.map(|(number, ip)| Element::pair(number.to_ne_bytes(), octets(*ip))).collect();
    batch.add_set(table, &set).add_elements(table, &set.name, &elements);
}

/// `ip daddr CLUSTER_DNS udp dport 53 dnat to numgen random mod N map @servers`
fn translation(family: Family, protocol: u8, servers: usize) -> Vec<Expr> {
    let modulus = u32::try_from(servers).unwrap_or(u32::MAX);
    let map = Expr::Lookup { set: family.servers().to_owned(), key: REG_1, into: Some(REG_2) };
    let is_ipv6 = family == Family::V6;
    let mut rule = asked(family, protocol);
    rule.extend([
        Expr::Number { modulus, into: REG_1, is_random: true },
        map,
        Expr::Nat { nat: Nat::Destination, is_ipv6, address: REG_2, port: None },
    ]);
    rule
}

/// `ip saddr POD_NETWORK ip daddr SERVER masquerade`
fn hiding(family: Family, server: IpAddr) -> Vec<Expr> {
    let fields = family.fields();
    let source = Field { len: fields.prefix, ..fields.source };
    let network = octets(POD_NETWORK.of(family));
    let prefix: Vec<_> = network.into_iter().take(fields.prefix as usize).collect();
    let mut rule = meta_is(Meta::Family, &[fields.nfproto]).to_vec();
    rule.extend(field_is(source, &prefix));
    rule.extend(field_is(fields.destination, &octets(server)));
    rule.push(Expr::Masquerade);
    rule
}

/// Goes on for queries to the cluster DNS address.
fn asked(family: Family, protocol: u8) -> Vec<Expr> {
    let fields = family.fields();
    let mut rule = meta_is(Meta::Family, &[fields.nfproto]).to_vec();
    rule.extend(meta_is(Meta::Protocol, &[protocol]));
    rule.extend(field_is(fields.destination, &octets(CLUSTER_DNS.of(family))));
    rule.extend(field_is(Field::DESTINATION_PORT, &DNS.to_be_bytes()));
    rule
}
