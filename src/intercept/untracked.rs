//! Our own upstream traffic without conntrack, by the mark of its sockets.
//!
//! For whoever probes: name upstreams only while responses of theirs still arrive untracked. A
//! stateful default-deny INPUT chain drops them, and a Service address needs conntrack to be
//! translated at all. The table ends with its owner; a kernel that cannot tie it to us gets none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::InterceptError;
use super::table::octets;
use crate::netlink::expr::{Expr, Field, Meta, Op, REG_1, meta_is};
use crate::netlink::netfilter::Netfilter;
use crate::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, OWNER, Place, Set, Table};

/// Before conntrack.
const RAW: i32 = -300;

/// What differs between the families: number, set, type, the upstream's address out and in.
const FAMILIES: [(u8, &str, DataType, [Field; 2]); 2] = [
    (2, "upstreams4", DataType::Ipv4, [Field::IP_DESTINATION, Field::IP_SOURCE]),
    (10, "upstreams6", DataType::Ipv6, [Field::IP6_DESTINATION, Field::IP6_SOURCE]),
];

/// The table that keeps conntrack away from marked sockets' traffic with named upstreams.
pub struct Untracked {
    netfilter: Netfilter,
    table: Table,
    mark: u32,
    /// Whose traffic is not tracked; the table exists while there are any.
    upstreams: BTreeSet<IpAddr>,
}

impl Untracked {
    /// Everything is tracked so far. `mark` is the SO_MARK of upstream sockets, not 0.
    ///
    /// # Errors
    /// When there is no socket to nf_tables.
    pub fn new(mark: u32) -> Result<Self, InterceptError> {
        let table = Table::inet(format!("nodens-untracked-{:08x}", rand::random::<u32>()));
        Ok(Self { netfilter: Netfilter::open()?, table, mark, upstreams: BTreeSet::new() })
    }

    /// Leaves the traffic with exactly these upstreams untracked from now on, in one batch; with
    /// none the table is removed.
    ///
    /// # Errors
    /// `NotPermitted` without CAP_NET_ADMIN, `Netlink` where the kernel has no owner tables (before
    /// 5.12); then all stays as it is.
    pub fn set(&mut self, upstreams: &BTreeSet<IpAddr>) -> Result<(), InterceptError> {
        let (table, mut batch) = (&self.table, Batch::default());
        match (self.upstreams.is_empty(), upstreams.is_empty()) {
            (true, true) => {}
            (true, false) => {
                make(&mut batch, table, self.mark);
                put(&mut batch, table, upstreams.iter());
            }
            (false, true) => {
                batch.delete_table(table);
            }
            (false, false) => {
                for ip in self.upstreams.difference(upstreams) {
                    batch.delete_elements(table, set_of(*ip), &[Element::key(octets(*ip))]);
                }
                put(&mut batch, table, upstreams.difference(&self.upstreams));
            }
        }
        self.netfilter.apply(&batch)?;
        self.upstreams.clone_from(upstreams);
        Ok(())
    }
}

/// Adds upstreams to their sets.
fn put<'a>(batch: &mut Batch, table: &Table, upstreams: impl Iterator<Item = &'a IpAddr>) {
    for ip in upstreams {
        batch.add_elements(table, set_of(*ip), &[Element::key(octets(*ip))]);
    }
}

/// The set of the address' family.
fn set_of(ip: IpAddr) -> &'static str {
    let [(_, set4, ..), (_, set6, ..)] = FAMILIES;
    if ip.is_ipv4() { set4 } else { set6 }
}

/// Writes the table: outbound by the packet's mark, inbound by that of the socket it is for.
fn make(batch: &mut Batch, table: &Table, mark: u32) {
    batch.add_table(table, OWNER);
    for (chain, hook) in [("out", Hook::Output), ("pre", Hook::Prerouting)] {
        let place = Place { kind: ChainKind::Filter, hook, priority: RAW };
        batch.add_chain(table, chain, Some(place));
    }
    for (number, set, data, [out, back]) in FAMILIES {
        batch.add_set(table, &Set::plain(set, data));
        let value = mark.to_ne_bytes().to_vec();
        let marked = meta_is(Meta::Mark, &value);
        let of_marked = [
            Expr::SocketMark { into: REG_1 },
            Expr::Compare { register: REG_1, op: Op::Equal, value },
        ];
        for (chain, field, is_ours) in [("out", out, marked), ("pre", back, of_marked)] {
            let mut rule = meta_is(Meta::Family, &[number]).to_vec();
            rule.push(Expr::Load { field, into: REG_1 });
            rule.push(Expr::Lookup { set: set.to_owned(), key: REG_1, into: None });
            rule.extend(is_ours);
            rule.extend([Expr::Counter, Expr::Notrack]);
            batch.add_rule(table, chain, &rule);
        }
    }
}
