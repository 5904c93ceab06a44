//! `bind` mode: the asked addresses are this host's own while we run, as node-cache does it.
//!
//! For comparison, and for kernels without what takeover needs. Exempt from its promises: what asks
//! while we are dead or stopped waits in vain, because address and rules stay; the next start or
//! `nodens cleanup` removes them. The set in the table is the record of which addresses are ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::InterceptError;
use super::claims::{IPVS, hold_error, link_for, remove_idle_link};
use super::plan::{BindObserved, BindStep, plan_bind};
use super::socket::Hold;
use super::table::octets;
use crate::config::Listen;
use crate::metrics::InterceptMetrics;
use crate::netlink::addresses::{Addresses, LinkAddress};
use crate::netlink::expr::{Expr, Field, Meta, REG_1, field_is, meta_is};
use crate::netlink::netfilter::{Netfilter, NetlinkError};
use crate::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, Place, Set, Table};

/// The table's name, the same for all instances of a host.
pub const NAME: &str = "nodens-bind";

/// The link that node-cache makes.
const NODE_CACHE: &str = "nodelocaldns";

/// Before conntrack.
const RAW: i32 = -300;

/// A counter that tells, read alone, whether the table is there.
const COUNTER: &str = "untracked";

/// What differs between the families: number, set, type, where packets go and come from.
const FAMILIES: [(u8, &str, DataType, [Field; 2]); 2] = [
    (2, "bound4", DataType::Ipv4, [Field::IP_DESTINATION, Field::IP_SOURCE]),
    (10, "bound6", DataType::Ipv6, [Field::IP6_DESTINATION, Field::IP6_SOURCE]),
];

/// Addresses that we own.
pub struct Bind {
    addresses: Addresses,
    netfilter: Netfilter,
    link: u32,
    asked: BTreeSet<IpAddr>,
    unserved: BTreeSet<IpAddr>,
    holds: Vec<(IpAddr, Hold)>,
    metrics: InterceptMetrics,
    /// The last mend failed or was made; said once.
    is_said: bool,
}

impl Bind {
    /// Takes the addresses: the rules first, then the link's.
    ///
    /// # Errors
    /// `Owned` where another link has one of them, `NotPermitted` without CAP_NET_ADMIN.
    pub fn take(asked: &[IpAddr], metrics: InterceptMetrics) -> Result<Self, InterceptError> {
        let (mut addresses, mut netfilter) = (Addresses::open()?, Netfilter::open()?);
        collect(&mut addresses, &mut netfilter)?;
        let link = link_for(&mut addresses)?;
        let mut bind = Self {
            addresses,
            netfilter,
            link,
            asked: BTreeSet::new(),
            unserved: BTreeSet::new(),
            holds: Vec::new(),
            metrics,
            is_said: false,
        };
        bind.change(asked)?;
        Ok(bind)
    }

    /// Takes exactly these addresses from now on.
    ///
    /// # Errors
    /// As [`Bind::take`]; then the old ones stay.
    pub fn change(&mut self, asked: &[IpAddr]) -> Result<(), InterceptError> {
        let asked: BTreeSet<IpAddr> = asked.iter().copied().collect();
        self.refuse_owned(&asked)?;
        let mut holds = Vec::new();
        for ip in asked.difference(&self.asked) {
            holds.push((*ip, Hold::share(*ip).map_err(hold_error)?));
        }
        let gone: BTreeSet<IpAddr> = self.asked.difference(&asked).copied().collect();
        self.unserved.extend(asked.difference(&self.asked));
        self.holds.extend(holds);
        self.asked = asked;
        self.mend()?;
        self.let_go(&gone)?;
        self.metrics.claiming.set(i64::from(!self.asked.is_empty()));
        Ok(())
    }

    /// Fails where a link of somebody else has one of the addresses.
    fn refuse_owned(&mut self, asked: &BTreeSet<IpAddr>) -> Result<(), InterceptError> {
        let ours = recorded(&mut self.netfilter)?;
        for owner in self.addresses.list()? {
            if !asked.contains(&owner.ip) || (owner.link == self.link && ours.contains(&owner.ip)) {
                continue;
            }
            let link = self.addresses.name(owner.link)?.unwrap_or_default();
            let mend = match link.as_str() {
                NODE_CACHE => {
                    "node-cache made it: stop that first, `kubectl -n kube-system delete daemonset \
                     node-local-dns`, then `ip link del nodelocaldns`"
                        .to_owned()
                }
                IPVS => {
                    "leave it there, since kube-proxy balances Services with it (IPVS)".to_owned()
                }
                _ => format!("stop its owner, then `ip address del {} dev {link}`", owner.ip),
            };
            return Err(InterceptError::Owned { address: owner.ip, link, mend });
        }
        Ok(())
    }

    /// What the front ends must bind.
    pub fn listens(&self) -> Vec<Listen> {
        let listen = |ip: &IpAddr| Listen {
            address: SocketAddr::new(*ip, 53),
            device: None,
            required: true,
            is_intercepted: true,
            is_led_to: false,
        };
        self.unserved.iter().map(listen).collect()
    }

    /// Notes that the front ends have bound what [`Bind::listens`] said; they keep it.
    pub fn note_served(&mut self) {
        self.unserved.clear();
    }

    /// The addresses.
    pub fn asked(&self) -> &BTreeSet<IpAddr> {
        &self.asked
    }

    /// Puts right what others changed; call it every second or more often.
    pub fn look(&mut self) {
        match self.mend() {
            Ok(0) => self.is_said = false,
            Ok(steps) => {
                self.metrics.repairs.inc_by(steps as u64);
                if !std::mem::replace(&mut self.is_said, true) {
                    tracing::warn!(steps, "putting right what somebody changed");
                }
            }
            Err(error) if !std::mem::replace(&mut self.is_said, true) => {
                tracing::error!(%error, "addresses or rules cannot be mended for now");
            }
            Err(_) => {}
        }
    }

    /// Brings what is to what shall be; how many steps that took.
    fn mend(&mut self) -> Result<usize, InterceptError> {
        let observed = self.observe()?;
        let steps = plan_bind(&self.asked, &observed);
        let table = Table::inet(NAME);
        let mut batch = Batch::default();
        for step in &steps {
            match step {
                BindStep::MakeTable => make(&mut batch, &table),
                BindStep::Record(ip) => {
                    batch.add_elements(&table, set_of(*ip), &[Element::key(octets(*ip))]);
                }
                BindStep::AddAddress(_) => {}
            }
        }
        self.netfilter.apply(&batch)?;
        for step in &steps {
            if let BindStep::AddAddress(ip) = step {
                let given = self.addresses.give(self.link, *ip);
                given.map_err(|error| InterceptError::of_address(*ip, error))?;
            }
        }
        Ok(steps.len())
    }

    /// What is there.
    fn observe(&mut self) -> Result<BindObserved, NetlinkError> {
        let has_table = self.netfilter.counter(&Table::inet(NAME), COUNTER)?.is_some();
        let mut addresses = BTreeSet::new();
        for ip in &self.asked {
            if self.addresses.is_local(*ip)? {
                addresses.insert(*ip);
            }
        }
        let recorded = has_table.then_some(recorded(&mut self.netfilter)?);
        Ok(BindObserved { recorded, addresses })
    }

    /// Removes addresses that no other instance holds.
    fn let_go(&mut self, gone: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
        self.holds.retain(|(ip, _)| !gone.contains(ip));
        let free = gone.iter().filter(|ip| Hold::take(**ip).is_ok());
        remove(&mut self.addresses, &mut self.netfilter, self.link, &free.copied().collect())
    }

    /// Leaves: addresses and rules, where no other instance needs them.
    pub fn leave(mut self) {
        self.metrics.claiming.set(0);
        let asked = std::mem::take(&mut self.asked);
        let left = self.let_go(&asked).and_then(|()| remove_idle_link(&mut self.addresses));
        if let Err(error) = left {
            tracing::warn!(%error, "something is left behind; `nodens cleanup` removes it");
        }
    }
}

/// Removes what a dead instance left: recorded addresses that nobody holds.
///
/// # Errors
/// As the kernel says.
pub fn collect(addresses: &mut Addresses, netfilter: &mut Netfilter) -> Result<(), InterceptError> {
    let recorded = recorded(netfilter)?;
    let dead: BTreeSet<_> = recorded.into_iter().filter(|ip| Hold::take(*ip).is_ok()).collect();
    if dead.is_empty() {
        return Ok(());
    }
    for address in addresses.list()?.into_iter().filter(|address| dead.contains(&address.ip)) {
        remove(addresses, netfilter, address.link, &dead)?;
        tracing::info!(address = %address.ip, "removed what a dead instance left");
    }
    // Addresses that somebody else removed are still recorded.
    Ok(forget(netfilter, &dead)?)
}

/// Removes addresses from a link and from the record; with the last one the table.
fn remove(
    addresses: &mut Addresses,
    netfilter: &mut Netfilter,
    link: u32,
    gone: &BTreeSet<IpAddr>,
) -> Result<(), NetlinkError> {
    for ip in gone {
        match addresses.remove(LinkAddress { link, ip: *ip }) {
            Err(error) if !error.is_absent_address() => return Err(error),
            _ => {}
        }
    }
    forget(netfilter, gone)
}

/// Takes addresses out of the record; with the last one the table goes.
fn forget(netfilter: &mut Netfilter, gone: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
    let (table, recorded) = (Table::inet(NAME), recorded(netfilter)?);
    let mut batch = Batch::default();
    if recorded.is_subset(gone) {
        if netfilter.counter(&table, COUNTER)?.is_some() {
            batch.delete_table(&table);
        }
    } else {
        for ip in recorded.intersection(gone) {
            batch.delete_elements(&table, set_of(*ip), &[Element::key(octets(*ip))]);
        }
    }
    match netfilter.apply(&batch) {
        // Another instance was faster.
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// The addresses that the table's sets name.
fn recorded(netfilter: &mut Netfilter) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut found = BTreeSet::new();
    for (_, set, ..) in FAMILIES {
        let keys = netfilter.keys(&Table::inet(NAME), set)?;
        found.extend(keys.iter().filter_map(|key| super::apply::ip_of(key)));
    }
    Ok(found)
}

/// The set of the address' family.
fn set_of(ip: IpAddr) -> &'static str {
    let [(_, set4, ..), (_, set6, ..)] = FAMILIES;
    if ip.is_ipv4() { set4 } else { set6 }
}

/// Writes the table: DNS to and from the addresses is not tracked.
fn make(batch: &mut Batch, table: &Table) {
    batch.add_table(table, 0).add_counter(table, COUNTER);
    for (chain, hook) in [("pre", Hook::Prerouting), ("out", Hook::Output)] {
        let place = Place { kind: ChainKind::Filter, hook, priority: RAW };
        batch.add_chain(table, chain, Some(place));
    }
    for (number, set, data, [to, from]) in FAMILIES {
        batch.add_set(table, &Set::plain(set, data));
        for protocol in [17, 6] {
            let (there, back) = (Field::DESTINATION_PORT, Field::SOURCE_PORT);
            for (chain, field, port) in
                [("pre", to, there), ("out", to, there), ("out", from, back)]
            {
                let mut rule = meta_is(Meta::Family, &[number]).to_vec();
                rule.extend(meta_is(Meta::Protocol, &[protocol]));
                rule.extend(field_is(port, &53u16.to_be_bytes()));
                rule.push(Expr::Load { field, into: REG_1 });
                rule.push(Expr::Lookup { set: set.to_owned(), key: REG_1, into: None });
                rule.extend([Expr::NamedCounter(COUNTER.to_owned()), Expr::Notrack]);
                batch.add_rule(table, chain, &rule);
            }
        }
    }
}
