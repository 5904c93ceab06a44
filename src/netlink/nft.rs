//! Tables, chains, sets and rules of nftables, put into one batch.
//!
//! A [`Batch`] is a list of messages that the kernel commits whole or not at all; it remembers in
//! words what each message makes, so that a refusal names the object.

use std::fmt;
use std::time::Duration;

use super::attr::Attributes;
use super::expr::{Expr, Verdict, value_of};

/// The messages of nf_tables.
pub(super) mod message {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DEL_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const DEL_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const DEL_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GET_ELEMENTS: u16 = 13;
    pub const DEL_ELEMENTS: u16 = 14;
    pub const GET_GENERATION: u16 = 16;
    pub const NEW_OBJECT: u16 = 18;
    pub const GET_OBJECT: u16 = 19;
}

/// Makes the object where it does not exist.
const CREATE: u16 = 0x400;

/// Refuses where it exists.
const EXCLUSIVE: u16 = 0x200;

/// Puts a rule behind those that are there.
const APPEND: u16 = 0x800;

/// The kernel's number of a counter among named objects.
pub(super) const COUNTER: u32 = 1;

/// So many elements go into one message: the largest with both values still fits 64 kB.
const CHUNK: usize = 400;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Ipv4 = 2,
    Ipv6 = 10,
}

/// A table's name with its family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

impl Table {
    /// A table for both IP versions.
    pub fn inet(name: impl Into<String>) -> Self {
        Self { family: Family::Inet, name: name.into() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Inet => "inet",
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        write!(f, "table {family} {}", self.name)
    }
}

/// The flag of a table that ends with the socket that made it.
pub const OWNER: u32 = 2;

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    /// Routes locally made packets again when they were changed.
    Route,
    Nat,
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A base chain's place; the lower priority runs first (raw is -300, mangle -150, dstnat -100, srcnat 100).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

/// What keys and values of sets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// UDP or TCP, one byte.
    Protocol,
    Ipv4,
    Ipv6,
    /// 4 bytes in host order.
    Integer,
    /// An address and a port, 8 bytes.
    Ipv4Port,
    /// Two addresses and a port, 12 bytes.
    Ipv4Flow,
    /// Two addresses and a port, 36 bytes.
    Ipv6Flow,
    /// The values of a map of verdicts.
    Verdict,
}

impl DataType {
    /// The number that programs show the type by, and its length in bytes.
    fn encode(self) -> (u32, u32) {
        match self {
            Self::Protocol => (12, 1),
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Integer => (4, 4),
            Self::Ipv4Port => (7 << 6 | 13, 8),
            Self::Ipv4Flow => (7 << 12 | 7 << 6 | 13, 12),
            Self::Ipv6Flow => (8 << 12 | 8 << 6 | 13, 36),
            Self::Verdict => (0xffff_ff00, 16),
        }
    }
}

/// A set, or a map where it has `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: DataType,
    pub data: Option<DataType>,
    /// Elements end after this long unless they are renewed.
    pub timeout: Option<Duration>,
    /// Rules add elements, at most so many.
    pub dynamic: Option<u32>,
}

impl Set {
    /// A plain map.
    pub fn map(name: impl Into<String>, key: DataType, data: DataType) -> Self {
        Self { name: name.into(), key, data: Some(data), timeout: None, dynamic: None }
    }

    /// A plain set.
    pub fn plain(name: impl Into<String>, key: DataType) -> Self {
        Self { name: name.into(), key, data: None, timeout: None, dynamic: None }
    }

    /// A set to which rules add elements for a time.
    pub fn dynamic(name: impl Into<String>, key: DataType, timeout: Duration, size: u32) -> Self {
        let (timeout, dynamic) = (Some(timeout), Some(size));
        Self { name: name.into(), key, data: None, timeout, dynamic }
    }

    /// The same as a map.
    pub fn with_data(self, data: DataType) -> Self {
        Self { data: Some(data), ..self }
    }
}

/// What a map's element holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Value(Vec<u8>),
    Verdict(Verdict),
}

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub data: Option<Data>,
}

impl Element {
    /// An element of a set.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), data: None }
    }

    /// An element of a map of values.
    pub fn pair(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), data: Some(Data::Value(value.into())) }
    }

    /// Writes key and data.
    fn write(&self, list: &mut Attributes) {
        list.put_list(1, value_of(&self.key));
        match &self.data {
            Some(Data::Value(value)) => {
                list.put_list(2, value_of(value));
            }
            Some(Data::Verdict(verdict)) => {
                list.put_list(2, |data| {
                    data.put_list(2, |list| verdict.write(list));
                });
            }
            None => {}
        }
    }
}

/// Writes a list of elements.
fn write_all(elements: &[Element], list: &mut Attributes) {
    for element in elements {
        list.put_list(1, |attributes| element.write(attributes));
    }
}

/// One message of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u16,
    pub flags: u16,
    pub family: u8,
    pub body: Attributes,
    /// What it makes or removes, for people.
    pub what: String,
}

/// Messages that are committed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) messages: Vec<Message>,
}

impl Batch {
    /// Tells whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Appends a message about something in `table`.
    fn push(
        &mut self,
        table: &Table,
        (kind, flags): (u16, u16),
        what: String,
        fill: impl FnOnce(&mut Attributes),
    ) -> &mut Self {
        let mut body = Attributes::default();
        fill(&mut body);
        self.messages.push(Message { kind, flags, family: table.family as u8, body, what });
        self
    }

    /// Makes a table; `flags` is 0 or [`OWNER`]. One that exists is refused.
    pub fn add_table(&mut self, table: &Table, flags: u32) -> &mut Self {
        let kind = (message::NEW_TABLE, CREATE | EXCLUSIVE);
        self.push(table, kind, format!("add {table}"), |body| {
            body.put_text(1, &table.name).put_u32(2, flags);
        })
    }

    /// Makes a table where it does not exist.
    pub fn ensure_table(&mut self, table: &Table) -> &mut Self {
        self.push(table, (message::NEW_TABLE, CREATE), format!("ensure {table}"), |body| {
            body.put_text(1, &table.name).put_u32(2, 0);
        })
    }

    /// Removes a table with everything in it; one that does not exist is refused.
    pub fn delete_table(&mut self, table: &Table) -> &mut Self {
        self.push(table, (message::DEL_TABLE, 0), format!("delete {table}"), |body| {
            body.put_text(1, &table.name);
        })
    }

    /// Makes a chain; with a place the kernel's packets go through it.
    pub fn add_chain(&mut self, table: &Table, name: &str, place: Option<Place>) -> &mut Self {
        let what = format!("add chain {name} of {table}");
        self.push(table, (message::NEW_CHAIN, CREATE), what, |body| {
            body.put_text(1, &table.name).put_text(3, name);
            let Some(place) = place else { return };
            body.put_list(4, |hook| {
                hook.put_u32(1, place.hook as u32).put(2, &place.priority.to_be_bytes());
            });
            let kind = match place.kind {
                ChainKind::Filter => "filter",
                ChainKind::Route => "route",
                ChainKind::Nat => "nat",
            };
            body.put_u32(5, 1).put_text(7, kind);
        })
    }

    /// Removes a chain that no rule jumps to.
    pub fn delete_chain(&mut self, table: &Table, name: &str) -> &mut Self {
        let what = format!("delete chain {name} of {table}");
        self.push(table, (message::DEL_CHAIN, 0), what, |body| {
            body.put_text(1, &table.name).put_text(3, name);
        })
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, name: &str) -> &mut Self {
        let what = format!("flush chain {name} of {table}");
        self.push(table, (message::DEL_RULE, 0), what, |body| {
            body.put_text(1, &table.name).put_text(2, name);
        })
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &[Expr]) -> &mut Self {
        let what = format!("add rule to chain {chain} of {table}");
        self.push(table, (message::NEW_RULE, CREATE | APPEND), what, |body| {
            body.put_text(1, &table.name).put_text(2, chain).put_list(4, |list| {
                for expr in rule {
                    list.put_list(1, |element| expr.write(element));
                }
            });
        })
    }

    /// Makes a set or a map.
    pub fn add_set(&mut self, table: &Table, set: &Set) -> &mut Self {
        let what = format!("add set {} of {table}", set.name);
        // The kernel wants an id that is unique in the batch, though names are looked up.
        let id = u32::try_from(self.messages.len()).unwrap_or_default() + 1;
        self.push(table, (message::NEW_SET, CREATE), what, |body| {
            let is_map = if set.data.is_some() { 0x08 } else { 0 };
            let ends = if set.timeout.is_some() { 0x10 } else { 0 };
            let is_dynamic = if set.dynamic.is_some() { 0x20 } else { 0 };
            let (kind, len) = set.key.encode();
            body.put_text(1, &table.name).put_text(2, &set.name);
            body.put_u32(3, is_map | ends | is_dynamic).put_u32(4, kind).put_u32(5, len);
            if let Some((kind, len)) = set.data.map(DataType::encode) {
                body.put_u32(6, kind).put_u32(7, len);
            }
            if let Some(size) = set.dynamic {
                body.put_list(9, |description| {
                    description.put_u32(1, size);
                });
            }
            body.put_u32(10, id);
            if let Some(timeout) = set.timeout {
                body.put_u64(11, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            }
        })
    }

    /// Adds elements to a set, in as many messages as they need.
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(table, set, elements, (message::NEW_ELEMENTS, CREATE, "add"))
    }

    /// Removes elements from a set; one that is not there is refused.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(table, set, elements, (message::DEL_ELEMENTS, 0, "delete"))
    }

    /// Messages about elements.
    fn elements(
        &mut self,
        table: &Table,
        set: &str,
        elements: &[Element],
        (kind, flags, verb): (u16, u16, &str),
    ) -> &mut Self {
        for chunk in elements.chunks(CHUNK) {
            let what = format!("{verb} {} elements of set {set} of {table}", chunk.len());
            self.push(table, (kind, flags), what, |body| {
                body.put_text(1, &table.name).put_text(2, set);
                body.put_list(3, |list| write_all(chunk, list));
            });
        }
        self
    }

    /// Makes a named counter.
    pub fn add_counter(&mut self, table: &Table, name: &str) -> &mut Self {
        let what = format!("add counter {name} of {table}");
        self.push(table, (message::NEW_OBJECT, CREATE), what, |body| {
            body.put_text(1, &table.name).put_text(2, name).put_u32(3, COUNTER);
            body.put_list(4, |data| {
                data.put_u64(1, 0).put_u64(2, 0);
            });
        })
    }
}
