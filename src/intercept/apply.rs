//! Does the planned steps through netlink, and reads back what is.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::claims::Claims;
use super::counts::Counts;
use super::plan::{Observed, Pair, Step, TableSeen};
use super::table::{self, Shape};
use super::{below, bind, table::ALIVE};
use crate::netlink::netfilter::{Netfilter, NetlinkError};
use crate::netlink::nft::{Batch, Family, Table};

/// Every table of ours begins so.
const PREFIX: &str = "nodens-";

/// Rules over our table: the socket that owns it, and what it is made with.
pub struct Ruler {
    netfilter: Netfilter,
    shape: Shape,
    /// The drain has emptied the chain of queries.
    has_stopped: bool,
}

impl Ruler {
    /// A ruler whose table, named by a random id, is not made yet.
    pub fn new(
        netfilter: Netfilter,
        (upstream_mark, beat_port): (u32, u16),
        flow_timeout: Duration,
    ) -> Self {
        let id = rand::random::<u32>();
        let table = Table::inet(format!("{PREFIX}{id:08x}"));
        let shape = Shape { table, is_owned: true, upstream_mark, beat_port, flow_timeout };
        Self { netfilter, shape, has_stopped: false }
    }

    /// Tells whether the kernel ties the table to us.
    pub fn is_owned(&self) -> bool {
        self.shape.is_owned
    }

    /// What is: the table's maps and the link's addresses.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn observe(&mut self, claims: &mut Claims) -> Result<Observed, NetlinkError> {
        let table = &self.shape.table;
        let is_there = self.netfilter.counter(table, table::COUNTER)?.is_some();
        let (mut taken, mut answered) = (BTreeSet::new(), BTreeSet::new());
        for map in table::TO {
            let elements = self.netfilter.elements(table, map)?;
            taken.extend(elements.iter().filter_map(|(asked, private)| pair(asked, private)));
        }
        for map in table::FROM {
            let elements = self.netfilter.elements(table, map)?;
            answered.extend(elements.iter().filter_map(|(private, asked)| pair(asked, private)));
        }
        let takes_queries = !self.has_stopped;
        Ok(Observed {
            table: is_there.then_some(TableSeen { taken, answered, takes_queries }),
            addresses: claims.observe()?,
            has_below: below::is_there(&mut self.netfilter)?,
        })
    }

    /// Puts the net below in place for these endpoints, or takes it away where there are none.
    ///
    /// # Errors
    /// As the kernel says; then the old one stays.
    pub fn lead(&mut self, endpoints: &[SocketAddr]) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        below::replace(&mut batch, endpoints);
        self.netfilter.apply(&batch)
    }

    /// Does the steps: addresses first, then the table's in one batch.
    ///
    /// # Errors
    /// As the kernel says; the batch is done whole or not at all.
    pub fn apply(&mut self, steps: &[Step], claims: &mut Claims) -> Result<(), NetlinkError> {
        for step in steps {
            if let Step::AddAddress(ip) = step {
                claims.add(*ip)?;
            }
        }
        match self.netfilter.apply(&self.batch(steps)) {
            Err(error) if error.is_unsupported() && self.shape.is_owned => {
                self.shape.is_owned = false;
                self.netfilter.apply(&self.batch(steps))?;
                tracing::warn!(
                    "this kernel has no owner tables (before 5.12): when nodens dies its table stays, but takes \
                     nothing after {:?}; the next start removes it",
                    table::ALIVE_FOR
                );
            }
            other => other?,
        }
        for step in steps {
            match step {
                Step::StopTaking => self.has_stopped = true,
                Step::MakeTable(_) => self.has_stopped = false,
                _ => {}
            }
        }
        Ok(())
    }

    /// The steps about the table as one batch.
    fn batch(&self, steps: &[Step]) -> Batch {
        let (mut batch, shape) = (Batch::default(), &self.shape);
        for step in steps {
            match step {
                Step::AddAddress(_) => {}
                Step::MakeTable(pairs) => table::make(&mut batch, shape, pairs),
                Step::Claim(pair) => table::claim(&mut batch, &shape.table, *pair),
                Step::Release(asked) => table::release(&mut batch, &shape.table, *asked),
                Step::Forget(private) => table::forget(&mut batch, &shape.table, *private),
                Step::StopTaking => table::stop_taking(&mut batch, &shape.table),
                Step::RemoveTable => {
                    batch.delete_table(&shape.table);
                }
                Step::MakeBelow(endpoints) => below::replace(&mut batch, endpoints),
            }
        }
        batch
    }

    /// The table's counters.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn counts(&mut self) -> Result<Counts, NetlinkError> {
        let counters = self.netfilter.counters(&self.shape.table)?;
        Ok(Counts(counters.into_iter().map(|(name, count)| (name, count.packets)).collect()))
    }
}

/// Removes tables of ours that neither an owner nor a heartbeat keeps: kernels without owner tables
/// leave them behind.
///
/// # Errors
/// As the kernel says.
pub fn remove_leftovers(netfilter: &mut Netfilter) -> Result<(), NetlinkError> {
    for seen in netfilter.tables()? {
        let name = &seen.table.name;
        let is_ours = seen.table.family == Family::Inet && name.starts_with(PREFIX);
        let has_own_law = [below::NAME, bind::NAME].contains(&name.as_str());
        if !is_ours || has_own_law || seen.owner.is_some() {
            continue;
        }
        let alive: BTreeSet<_> = netfilter.keys(&seen.table, ALIVE)?.into_iter().collect();
        if alive.is_empty() {
            let mut batch = Batch::default();
            batch.delete_table(&seen.table);
            match netfilter.apply(&batch) {
                // Another instance that starts now was faster.
                Err(error) if error.is_missing() => continue,
                other => other?,
            }
            tracing::info!(table = %seen.table, "removed what a dead instance left");
        }
    }
    Ok(())
}

/// A pair of addresses in network order.
fn pair(asked: &[u8], private: &[u8]) -> Option<Pair> {
    Some(Pair { asked: ip_of(asked)?, private: ip_of(private)? })
}

/// An address of 4 or 16 bytes in network order.
pub(super) fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
