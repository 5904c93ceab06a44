//! The owner table: stateless rewriting of asked addresses to private ones and back.
//!
//! Chains at raw priority, before conntrack: what they rewrite has no entry and no translation. A
//! packet that no map knows leaves each rule without a side effect. Queries are taken only while the
//! set `alive` holds their protocol, which the heartbeat's datagrams renew; of TCP only flows whose
//! SYN we saw are ours, so that neither another instance's flows nor those begun while we had fallen
//! open are torn.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::counts::{self, ANSWERS, ARRIVING, LEAVING, LOCAL, Stage};
use super::plan::Pair;
use crate::netlink::expr::{
    Checksum, Expr, Field, Meta, Op, REG_1, REG_2, REG_4, Register, Verdict, field_is, meta_is,
    register,
};
use crate::netlink::nft::{Batch, ChainKind, DataType, Element, Hook, OWNER, Place, Set, Table};

/// The chain that takes new queries; the drain empties it.
pub const QUERIES: &str = "queries";

/// The set of protocols that are taken: the dead-man switch.
pub const ALIVE: &str = "alive";

/// Maps from asked to private addresses: what is taken.
pub const TO: [&str; 2] = ["to4", "to6"];

/// Maps from private to asked addresses: whose responses are given back.
pub const FROM: [&str; 2] = ["from4", "from6"];

/// A counter that tells, read alone, whether the table is there.
pub const COUNTER: &str = "rewritten-udp4";

/// How long the switch stays on after a beat. A loop that hangs just behind its part of a round is taken for
/// a moving one for a beat more (250 ms); with that and the kernel's ticks (30 to 50 ms were seen) we fall
/// open within a second.
pub const ALIVE_FOR: Duration = Duration::from_millis(700);

/// The mark of beats. Shared by all instances; the port tells them apart.
pub const BEAT_MARK: u32 = 0x306f;

/// TCP flows that are remembered; more take the ordinary path.
const FLOWS: u32 = 1 << 16;

/// The heartbeat's place, before raw: nothing else may drop or count it.
const BEAT_PRIORITY: i32 = -301;

/// Before conntrack.
const RAW: i32 = -300;

/// Behind every firewall.
const LAST: i32 = 10_000;

/// The IP families in nftables' numbers, each with what differs.
pub(super) const FAMILIES: &[Version; 2] = &[
    Version {
        number: 2,
        label: "4",
        to: TO[0],
        from: FROM[0],
        asked: "asked4",
        mine: "mine4",
        source: Field::IP_SOURCE,
        destination: Field::IP_DESTINATION,
        checksum: Checksum::Ipv4,
        address: DataType::Ipv4,
        flow: DataType::Ipv4Flow,
        flow_registers: [REG_1, register(1), register(2)],
    },
    Version {
        number: 10,
        label: "6",
        to: TO[1],
        from: FROM[1],
        asked: "asked6",
        mine: "mine6",
        source: Field::IP6_SOURCE,
        destination: Field::IP6_DESTINATION,
        checksum: Checksum::Ipv6,
        address: DataType::Ipv6,
        flow: DataType::Ipv6Flow,
        flow_registers: [REG_1, REG_2, register(8)],
    },
];

/// The protocols of DNS: datagrams.
pub(super) const UDP: u8 = 17;

/// The protocols of DNS: streams.
pub(super) const TCP: u8 = 6;

/// What differs between IPv4 and IPv6.
pub struct Version {
    number: u8,
    pub(super) label: &'static str,
    pub(super) to: &'static str,
    pub(super) from: &'static str,
    /// All that was ever asked: what is released is still answered.
    pub(super) asked: &'static str,
    mine: &'static str,
    pub(super) source: Field,
    pub(super) destination: Field,
    checksum: Checksum,
    address: DataType,
    flow: DataType,
    /// Where a flow's source, destination and source port stand.
    flow_registers: [Register; 3],
}

/// What a table is made with.
#[derive(Clone, Debug)]
pub struct Shape {
    pub table: Table,
    /// The kernel ties tables to their owners (since 5.12).
    pub is_owned: bool,
    /// SO_MARK of upstream sockets, which pass first; 0 is none.
    pub upstream_mark: u32,
    /// The port of our own beats.
    pub beat_port: u16,
    /// How long a TCP flow is remembered after its last packet.
    pub flow_timeout: Duration,
}

/// Writes the whole table.
pub fn make(batch: &mut Batch, shape: &Shape, pairs: &BTreeSet<Pair>) {
    let table = &shape.table;
    batch.add_table(table, if shape.is_owned { OWNER } else { 0 });
    counts::add_counters(batch, table);
    batch.add_set(table, &Set::dynamic(ALIVE, DataType::Protocol, ALIVE_FOR, 16));
    for version in FAMILIES {
        batch.add_set(table, &Set::plain(version.asked, version.address));
        batch.add_set(table, &Set::map(version.to, version.address, version.address));
        batch.add_set(table, &Set::map(version.from, version.address, version.address));
        let mine = Set::dynamic(version.mine, version.flow, shape.flow_timeout, FLOWS);
        batch.add_set(table, &mine.with_data(version.address));
    }
    for pair in pairs {
        claim(batch, table, *pair);
    }
    for chain in [QUERIES, "flows", "redirect", LOCAL, ANSWERS, ARRIVING, LEAVING] {
        batch.add_chain(table, chain, None);
    }
    let kinds = (ChainKind::Filter, ChainKind::Route);
    for (chain, kind, hook, priority) in [
        ("beat", kinds.0, Hook::Output, BEAT_PRIORITY),
        ("pre", kinds.0, Hook::Prerouting, RAW),
        ("out", kinds.1, Hook::Output, RAW),
        ("in", kinds.0, Hook::Input, LAST),
        ("post", kinds.0, Hook::Postrouting, LAST),
    ] {
        batch.add_chain(table, chain, Some(Place { kind, hook, priority }));
    }
    add_rules(batch, shape);
}

/// Adds an asked address to the maps.
pub fn claim(batch: &mut Batch, table: &Table, pair: Pair) {
    let version = version_of(pair.asked);
    let (asked, private) = (octets(pair.asked), octets(pair.private));
    batch.add_elements(table, version.from, &[Element::pair(private.clone(), asked.clone())]);
    batch.add_elements(table, version.asked, &[Element::key(asked.clone())]);
    batch.add_elements(table, version.to, &[Element::pair(asked, private)]);
}

/// Takes an asked address out of the map of queries; responses are still rewritten.
pub fn release(batch: &mut Batch, table: &Table, asked: IpAddr) {
    batch.delete_elements(table, version_of(asked).to, &[Element::key(octets(asked))]);
}

/// Takes a private address out of the map of responses, so that it may serve another asked one.
pub fn forget(batch: &mut Batch, table: &Table, private: IpAddr) {
    batch.delete_elements(table, version_of(private).from, &[Element::key(octets(private))]);
}

/// Takes no new queries any more.
pub fn stop_taking(batch: &mut Batch, table: &Table) {
    batch.flush_chain(table, QUERIES);
}

/// What differs for the family of `ip`.
fn version_of(ip: IpAddr) -> &'static Version {
    let [v4, v6] = FAMILIES;
    if ip.is_ipv4() { v4 } else { v6 }
}

/// An address in network order.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Writes every rule.
fn add_rules(batch: &mut Batch, shape: &Shape) {
    let table = &shape.table;
    batch.add_rule(table, "beat", &beat(shape.beat_port));
    if shape.upstream_mark != 0 {
        let mark = meta_is(Meta::Mark, &shape.upstream_mark.to_ne_bytes());
        batch.add_rule(table, "out", &[&mark[..], &[Expr::Verdict(Verdict::Accept)]].concat());
    }
    let on_port =
        |port, chain| [&field_is(port, &53u16.to_be_bytes())[..], &[jump(chain)]].concat();
    batch.add_rule(table, "out", &on_port(Field::SOURCE_PORT, ANSWERS));
    batch.add_rule(table, "in", &on_port(Field::DESTINATION_PORT, ARRIVING));
    batch.add_rule(table, "post", &on_port(Field::SOURCE_PORT, LEAVING));
    counts::add_rules(batch, table);
    for version in FAMILIES {
        batch.add_rule(table, QUERIES, &version.take_udp());
        batch.add_rule(table, QUERIES, &version.take_syn());
        batch.add_rule(table, QUERIES, &version.give_back());
        batch.add_rule(table, "flows", &version.take_flow());
        batch.add_rule(table, ANSWERS, &version.answer(UDP));
        batch.add_rule(table, ANSWERS, &version.answer(TCP));
    }
    for chain in [QUERIES, "flows"] {
        batch.add_rule(table, "redirect", &[jump(chain)]);
    }
    batch.add_rule(table, LOCAL, &[jump("redirect")]);
    counts::add_rules_behind(batch, table);
    for (hook, chain) in [("pre", "redirect"), ("out", LOCAL)] {
        let is_alive = [
            Expr::Meta { key: Meta::Protocol, into: REG_1 },
            Expr::Lookup { set: ALIVE.to_owned(), key: REG_1, into: None },
            jump(chain),
        ];
        batch.add_rule(table, hook, &is_alive);
    }
}

/// Goes on in another chain.
fn jump(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.to_owned()))
}

/// Renews the switch for both protocols, and drops the datagram: the sender's EPERM is the proof.
fn beat(port: u16) -> Vec<Expr> {
    let renew = |protocol| {
        let set = ALIVE.to_owned();
        let value = vec![protocol];
        [Expr::Immediate { into: REG_1, value }, Expr::Update { set, key: REG_1, value: None }]
    };
    let to_us = field_is(Field::DESTINATION_PORT, &port.to_be_bytes());
    let mut rule = meta_is(Meta::Mark, &BEAT_MARK.to_ne_bytes()).to_vec();
    rule.extend(meta_is(Meta::Protocol, &[UDP]));
    rule.extend(to_us.into_iter().chain(renew(UDP)).chain(renew(TCP)));
    rule.extend([Expr::Counter, Expr::Verdict(Verdict::Drop)]);
    rule
}

impl Version {
    /// Packets of this family and protocol whose port is 53.
    pub(super) fn dns(&self, protocol: u8, port: Field) -> Vec<Expr> {
        let mut rule = meta_is(Meta::Family, &[self.number]).to_vec();
        rule.extend(meta_is(Meta::Protocol, &[protocol]));
        rule.extend(field_is(port, &53u16.to_be_bytes()));
        rule
    }

    /// The address in `field`, looked up in a map, into `into`; ends the rule where it is unknown.
    fn look_up(&self, field: Field, map: &str, into: Register) -> [Expr; 2] {
        let set = map.to_owned();
        [Expr::Load { field, into: REG_1 }, Expr::Lookup { set, key: REG_1, into: Some(into) }]
    }

    /// Writes a register over the address in `field`; conntrack never sees the packet.
    fn rewrite(&self, field: Field, from: Register) -> [Expr; 3] {
        let write = Expr::Write { field, from, checksum: self.checksum };
        [write, Expr::Notrack, Expr::Verdict(Verdict::Accept)]
    }

    /// The flow's key, both addresses and the source port, in the first registers.
    fn flow_key(&self) -> [Expr; 3] {
        let [source, destination, port] = self.flow_registers;
        [
            Expr::Load { field: self.source, into: source },
            Expr::Load { field: self.destination, into: destination },
            Expr::Load { field: Field::SOURCE_PORT, into: port },
        ]
    }

    /// Rewrites a packet of the flow whose key stands in the first registers to the private address in
    /// the last one, and remembers both, or remembers them anew.
    fn keep_flow(&self) -> [Expr; 5] {
        let [write, notrack, accept] = self.rewrite(self.destination, REG_4);
        // The program nft (1.0.6) aborts over a value that is the result of a lookup; one that is
        // loaded from the packet again it can show.
        let again = Expr::Load { field: self.destination, into: REG_4 };
        let set = self.mine.to_owned();
        let remember = Expr::Update { set, key: REG_1, value: Some(REG_4) };
        [write, again, remember, notrack, accept]
    }

    /// Queries by UDP.
    fn take_udp(&self) -> Vec<Expr> {
        let mut rule = self.dns(UDP, Field::DESTINATION_PORT);
        rule.extend(self.look_up(self.destination, self.to, REG_1));
        // Behind the lookup: a host process' query passes here twice, and is known only once.
        rule.push(self.counter(Stage::Rewritten, UDP));
        rule.extend(self.rewrite(self.destination, REG_1));
        rule
    }

    /// The first packets of TCP flows.
    pub(super) fn syn(&self) -> Vec<Expr> {
        let mut rule = self.dns(TCP, Field::DESTINATION_PORT);
        rule.extend([
            Expr::Load { field: Field::TCP_FLAGS, into: REG_1 },
            // FIN, SYN, RST and ACK: only the SYN may be set.
            Expr::Mask { from: REG_1, into: REG_1, mask: vec![0x17] },
            Expr::Compare { register: REG_1, op: Op::Equal, value: vec![0x02] },
        ]);
        rule
    }

    /// Gives a flow back to the ordinary path that was rewritten but not remembered: there are too many.
    fn give_back(&self) -> Vec<Expr> {
        let mut rule = self.syn();
        rule.extend(self.look_up(self.destination, self.from, REG_1));
        let Self { destination: field, checksum, .. } = *self;
        rule.push(Expr::Write { field, from: REG_1, checksum });
        rule
    }

    /// Takes a flow by its SYN, when it goes to an asked address.
    fn take_syn(&self) -> Vec<Expr> {
        let mut rule = self.syn();
        rule.extend(self.look_up(self.destination, self.to, REG_4));
        rule.extend(self.flow_key());
        let [write, again, remember, notrack, accept] = self.keep_flow();
        let counter = self.counter(Stage::Rewritten, TCP);
        rule.extend([write, again, remember, counter, notrack, accept]);
        rule
    }

    /// Packets of remembered flows. They keep their private address, also
    /// when the asked one was given another or is not taken any more.
    fn take_flow(&self) -> Vec<Expr> {
        let mut rule = self.dns(TCP, Field::DESTINATION_PORT);
        rule.extend(self.flow_key());
        rule.push(Expr::Lookup { set: self.mine.to_owned(), key: REG_1, into: Some(REG_4) });
        rule.extend(self.keep_flow());
        rule
    }

    /// Responses: from the private address, as if from the asked one. Also while we are fallen open.
    fn answer(&self, protocol: u8) -> Vec<Expr> {
        let mut rule = self.dns(protocol, Field::SOURCE_PORT);
        rule.extend(self.look_up(self.source, self.from, REG_1));
        rule.push(self.counter(Stage::Answered, protocol));
        rule.extend(self.rewrite(self.source, REG_1));
        rule
    }

    /// Counts in the counter of all that pass here.
    fn counter(&self, stage: Stage, protocol: u8) -> Expr {
        Expr::NamedCounter(counts::name(stage, protocol, self, false))
    }
}
