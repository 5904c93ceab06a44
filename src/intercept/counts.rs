//! What the table counts before and behind the firewalls of this host, and whom they starve.
//!
//! By family, protocol and place, each apart: who passes must not hide who does not.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use super::firewall::Watch;
use super::table::{FAMILIES, TCP, UDP, Version};
use crate::netlink::expr::{Expr, Field, Meta, Op, REG_1};
use crate::netlink::nft::{Batch, Table};

/// The chains that count: queries of this host's processes, responses, and both behind every firewall.
pub const LOCAL: &str = "local";
pub const ANSWERS: &str = "answers";
pub const ARRIVING: &str = "arriving";
pub const LEAVING: &str = "leaving";

/// The number of the link `lo`, on every host.
const LO: u32 = 1;

/// Where packets are counted. Before the firewalls of all, of this host's processes once more; behind them of
/// pods and of this host's processes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Queries: datagrams and SYNs.
    Rewritten,
    /// SYNs of this host's processes that take the ordinary path after all, since no more flows are remembered.
    GivenBack,
    /// Those of them that passed every firewall on their way in.
    Arrived,
    /// Packets of responses.
    Answered,
    /// Those of them that passed every firewall on their way out.
    Left,
}

impl Stage {
    /// All of them, in a packet's order.
    const ALL: [Self; 5] =
        [Self::Rewritten, Self::GivenBack, Self::Arrived, Self::Answered, Self::Left];

    /// The first word of its counters' names.
    fn word(self) -> &'static str {
        match self {
            Self::Rewritten => "rewritten",
            Self::GivenBack => "given-back",
            Self::Arrived => "arrived",
            Self::Answered => "answered",
            Self::Left => "left",
        }
    }

    /// Tells whether such packets are counted here. Of pods, only those are rewritten that are not given back.
    fn counts(self, protocol: u8, is_host: bool) -> bool {
        self != Self::GivenBack || (protocol == TCP && is_host)
    }
}

/// The name of a counter.
pub fn name(stage: Stage, protocol: u8, version: &Version, is_host: bool) -> String {
    let protocol = if protocol == UDP { "udp" } else { "tcp" };
    let whose = if is_host { "-host" } else { "" };
    format!("{}-{protocol}{}{whose}", stage.word(), version.label)
}

/// Every kind of packets: protocol, family, and whether they are of this host's processes.
fn kinds() -> impl Iterator<Item = (u8, &'static Version, bool)> {
    let of = |version| {
        [(UDP, version, false), (UDP, version, true), (TCP, version, false), (TCP, version, true)]
    };
    FAMILIES.iter().flat_map(of)
}

/// Makes the counters.
pub fn add_counters(batch: &mut Batch, table: &Table) {
    for stage in Stage::ALL {
        for (protocol, version, is_host) in kinds().filter(|kind| stage.counts(kind.0, kind.2)) {
            batch.add_counter(table, &name(stage, protocol, version, is_host));
        }
    }
}

/// Writes the rules that only count.
pub fn add_rules(batch: &mut Batch, table: &Table) {
    for (protocol, version, is_host) in kinds() {
        let rule = |stage| rule(stage, protocol, version, is_host);
        if is_host {
            batch.add_rule(table, LOCAL, &rule(Stage::Rewritten));
            batch.add_rule(table, ANSWERS, &rule(Stage::Answered));
        }
        batch.add_rule(table, ARRIVING, &rule(Stage::Arrived));
        batch.add_rule(table, LEAVING, &rule(Stage::Left));
    }
}

/// Writes the rules that count what comes back from the rewriting, behind it in `LOCAL`.
pub fn add_rules_behind(batch: &mut Batch, table: &Table) {
    for version in FAMILIES {
        batch.add_rule(table, LOCAL, &rule(Stage::GivenBack, TCP, version, true));
    }
}

/// Counts one kind of packets. In `LOCAL` nobody else's pass.
fn rule(stage: Stage, protocol: u8, version: &Version, is_host: bool) -> Vec<Expr> {
    let (field, set, into) = match stage {
        Stage::Rewritten | Stage::GivenBack => (version.destination, version.to, Some(REG_1)),
        Stage::Arrived => (version.destination, version.from, Some(REG_1)),
        Stage::Answered => (version.source, version.from, Some(REG_1)),
        Stage::Left => (version.source, version.asked, None),
    };
    let link = match stage {
        Stage::Rewritten | Stage::GivenBack => None,
        Stage::Arrived => Some(Meta::InInterface),
        Stage::Answered | Stage::Left => Some(Meta::OutInterface),
    };
    let mut rule = Vec::new();
    if let Some(key) = link {
        let (op, value) =
            (if is_host { Op::Equal } else { Op::NotEqual }, LO.to_ne_bytes().to_vec());
        rule.extend([
            Expr::Meta { key, into: REG_1 },
            Expr::Compare { register: REG_1, op, value },
        ]);
    }
    rule.extend(match (stage, protocol) {
        (Stage::Rewritten | Stage::GivenBack | Stage::Arrived, TCP) => version.syn(),
        (Stage::Rewritten | Stage::Arrived, _) => version.dns(protocol, Field::DESTINATION_PORT),
        _ => version.dns(protocol, Field::SOURCE_PORT),
    });
    rule.push(Expr::Load { field, into: REG_1 });
    rule.push(Expr::Lookup { set: set.to_owned(), key: REG_1, into });
    rule.push(Expr::NamedCounter(name(stage, protocol, version, is_host)));
    rule
}

/// What the table has counted: packets by the counter's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<String, u64>);

impl Counts {
    /// One counter; 0 where there is none.
    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// UDP queries that were rewritten, and those of them that arrived.
    pub fn udp_queries(&self) -> [u64; 2] {
        let of = |stage, is_host| {
            FAMILIES.iter().map(|version| self.of(&name(stage, UDP, version, is_host))).sum::<u64>()
        };
        [of(Stage::Rewritten, false), of(Stage::Arrived, false) + of(Stage::Arrived, true)]
    }
}

/// Packets of one kind in one direction, which must pass together.
#[derive(Clone, Copy)]
pub struct Way {
    pub are_queries: bool,
    protocol: u8,
    version: &'static Version,
    is_host: bool,
}

impl Way {
    /// How many there were before the firewalls, and behind them.
    fn reading(&self, counts: &Counts) -> [u64; 2] {
        let stages = match self.are_queries {
            true => [Stage::Rewritten, Stage::Arrived],
            false => [Stage::Answered, Stage::Left],
        };
        let of = |stage, is_host| counts.of(&name(stage, self.protocol, self.version, is_host));
        let given_back = if self.are_queries { of(Stage::GivenBack, true) } else { 0 };
        let host = of(stages[0], true).saturating_sub(given_back);
        let before = if self.is_host { host } else { of(stages[0], false).saturating_sub(host) };
        [before, of(stages[1], self.is_host)]
    }

    /// The program that mends its firewall.
    pub fn mender(&self) -> &'static str {
        if self.version.label == "4" { "iptables" } else { "ip6tables" }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == UDP { "UDP" } else { "TCP" };
        let what = if self.are_queries { "queries of" } else { "responses to" };
        let whose = if self.is_host { "this host's processes" } else { "pods" };
        write!(f, "{protocol} {what} {whose} by IPv{}", self.version.label)
    }
}

/// A watch on every way.
pub struct Watches(Vec<(Way, Watch)>);

impl Default for Watches {
    /// Nothing was read yet.
    fn default() -> Self {
        let ways = [true, false].into_iter().flat_map(|are_queries| {
            kinds().map(move |(protocol, version, is_host)| Way {
                are_queries,
                protocol,
                version,
                is_host,
            })
        });
        Self(ways.map(|way| (way, Watch::default())).collect())
    }
}

impl Watches {
    /// Takes a reading; the first way on which a firewall eats everything.
    pub fn eaten(&mut self, counts: &Counts, now: Instant) -> Option<Way> {
        let mut eaten = None;
        for (way, watch) in &mut self.0 {
            let [before, behind] = way.reading(counts);
            if watch.is_eaten(before, behind, now) {
                eaten = eaten.or(Some(*way));
            }
        }
        eaten
    }

    /// Begins anew with another table; the ways on which everything was eaten are suspected further on.
    pub fn restart(&mut self) {
        for (_, watch) in &mut self.0 {
            watch.restart();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syns_that_were_given_back_starve_nobody_and_hide_nobody() {
        let start = crate::clock::now();
        let look = |watches: &mut Watches, second, counted: [u64; 3]| {
            let names = ["rewritten-tcp4-host", "given-back-tcp4-host", "rewritten-tcp4"];
            let names = names.into_iter().map(str::to_owned);
            let way = watches.eaten(
                &Counts(names.zip(counted).collect()),
                start + std::time::Duration::from_secs(second),
            );
            way.map(|way| way.to_string())
        };
        let mut watches = Watches::default();
        assert_eq!(look(&mut watches, 0, [0; 3]), None);
        assert_eq!(look(&mut watches, 3, [90, 90, 0]), None, "all took the ordinary path");
        let pods = Some("TCP queries of pods by IPv4".to_owned());
        assert_eq!(look(&mut watches, 6, [90, 90, 20]), pods);
        let host = Some("TCP queries of this host's processes by IPv4".to_owned());
        let mut watches = Watches::default();
        assert_eq!(look(&mut watches, 0, [90, 90, 0]), None);
        assert_eq!(look(&mut watches, 3, [110, 90, 20]), host);
    }
}
