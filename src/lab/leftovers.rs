//! What a node has that a daemon may leave behind: packet tables and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use super::LabError;
use super::namespace::Namespace;
use crate::netlink::addresses::Addresses;
use crate::netlink::netfilter::Netfilter;

/// Tables by name, and addresses of all links.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    pub tables: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
}

impl Leftovers {
    /// Everything that a node has now.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel does not tell.
    pub(super) fn read(node: &Namespace) -> Result<Self, LabError> {
        node.run(|| {
            let tables = Netfilter::open()?.tables()?.into_iter().map(|state| state.table.name);
            let addresses = Addresses::open()?.list()?.into_iter().map(|address| address.ip);
            Ok(Self { tables: tables.collect(), addresses: addresses.collect() })
        })
    }

    /// What is not in `before`.
    pub(super) fn beyond(&self, before: &Self) -> Self {
        Self {
            tables: self.tables.difference(&before.tables).cloned().collect(),
            addresses: self.addresses.difference(&before.addresses).copied().collect(),
        }
    }
}
