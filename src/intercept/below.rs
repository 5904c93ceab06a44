//! The net below: an ordinary table that leads 169.254.20.10 to the cluster DNS while nobody intercepts it.
//!
//! It translates by conntrack, so it never sees what an owner table has rewritten (that is
//! untracked), and it stays when we die. Only IPv4: the address is.

use std::net::{IpAddr, SocketAddr};

use crate::config::intercept::NODE_ADDRESS;
use crate::netlink::expr::{Expr, Field, Meta, Nat, Op, REG_1, field_is, meta_is, register};
use crate::netlink::netfilter::{Netfilter, NetlinkError};
use crate::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, Place, Set, Table};

/// The table's name.
pub const NAME: &str = "nodens-below";

/// Counts the flows that were led; read alone, it tells whether the table is there and whole.
const COUNTER: &str = "led";

/// The protocols that are led, and the chains that do it: in each a rule for each, which counts.
const PROTOCOLS: [u8; 2] = [17, 6];
const LEADING: [&str; 2] = ["pre", "out"];

/// kube-proxy's own priorities: whoever is first, the address is only ours.
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// Tells whether the net is there with its rules, whoever made it.
///
/// # Errors
/// As the kernel says.
pub fn is_there(netfilter: &mut Netfilter) -> Result<bool, NetlinkError> {
    let count = netfilter.counter(&Table::inet(NAME), COUNTER)?;
    Ok(count.is_some_and(|count| count.uses as usize == PROTOCOLS.len() * LEADING.len()))
}

/// Leads from whatever is there to the table for these endpoints; without any it is gone.
pub fn replace(batch: &mut Batch, endpoints: &[SocketAddr]) {
    let table = Table::inet(NAME);
    // A table that is not there cannot be removed, so it is made first.
    batch.ensure_table(&table).delete_table(&table);
    let endpoints: Vec<Vec<u8>> = endpoints.iter().filter_map(endpoint).collect();
    let Ok(count @ 1..) = u32::try_from(endpoints.len()) else { return };
    batch.add_table(&table, 0).add_counter(&table, COUNTER);
    batch.add_set(&table, &Set::map("endpoints", DataType::Integer, DataType::Ipv4Port));
    let elements: Vec<_> = (0u32..)
        .zip(endpoints)
        .map(|(number, endpoint)| Element::pair(number.to_ne_bytes(), endpoint))
        .collect();
    batch.add_elements(&table, "endpoints", &elements);
    for (chain, hook, priority) in [
        ("pre", Hook::Prerouting, DSTNAT),
        ("out", Hook::Output, DSTNAT),
        ("post", Hook::Postrouting, SRCNAT),
    ] {
        batch.add_chain(&table, chain, Some(Place { kind: ChainKind::Nat, hook, priority }));
    }
    for protocol in PROTOCOLS {
        for chain in LEADING {
            batch.add_rule(&table, chain, &translate(protocol, count));
        }
    }
    batch.add_rule(&table, "post", &masquerade());
}

/// An endpoint as the map holds it: address, port, padded to 8 bytes.
fn endpoint(endpoint: &SocketAddr) -> Option<Vec<u8>> {
    let IpAddr::V4(ip) = endpoint.ip() else { return None };
    Some([&ip.octets()[..], &endpoint.port().to_be_bytes(), &[0, 0]].concat())
}

/// Leads new flows to one of `count` endpoints at random.
fn translate(protocol: u8, count: u32) -> Vec<Expr> {
    let mut rule = meta_is(Meta::Family, &[2]).to_vec();
    rule.extend(field_is(Field::IP_DESTINATION, &NODE_ADDRESS.octets()));
    rule.extend(meta_is(Meta::Protocol, &[protocol]));
    rule.extend(field_is(Field::DESTINATION_PORT, &53u16.to_be_bytes()));
    rule.extend([
        Expr::NamedCounter(COUNTER.to_owned()),
        Expr::Number { modulus: count, into: REG_1, is_random: true },
        Expr::Lookup { set: "endpoints".to_owned(), key: REG_1, into: Some(REG_1) },
        Expr::Nat {
            nat: Nat::Destination,
            is_ipv6: false,
            address: REG_1,
            port: Some(register(1)),
        },
    ]);
    rule
}

/// A process of this host may have chosen a source that endpoints cannot answer to.
fn masquerade() -> Vec<Expr> {
    /// RTN_LOCAL
    const LOCAL: u32 = 2;
    let equal =
        |value: &[u8]| Expr::Compare { register: REG_1, op: Op::Equal, value: value.to_vec() };
    let mut rule = meta_is(Meta::Family, &[2]).to_vec();
    rule.extend([
        Expr::OriginalDestination { into: REG_1 },
        equal(&NODE_ADDRESS.octets()),
        Expr::SourceKind { into: REG_1 },
        equal(&LOCAL.to_ne_bytes()),
        Expr::Masquerade,
    ]);
    rule
}
