//! The expressions of nftables rules, typed, in the kernel's words.
//!
//! A rule is a list of expressions; one that does not match ends the rule. Values travel through
//! registers: `REG_1` to `REG_4` hold 16 bytes each, [`register`] names their quarters, which a
//! concatenated key needs.
//!
//! Source: linux/netfilter/nf_tables.h

use super::attr::Attributes;

/// A register of the rule machine.
pub type Register = u32;

/// The first register of 16 bytes.
pub const REG_1: Register = 1;

/// The second register of 16 bytes.
pub const REG_2: Register = 2;

/// The last register of 16 bytes.
pub const REG_4: Register = 4;

/// The quarter `index` (0 to 15) of the registers; quarters 0 to 3 are [`REG_1`].
pub const fn register(index: u32) -> Register {
    8 + index
}

/// What `meta` reads or sets, in the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    Mark = 3,
    InInterface = 4,
    OutInterface = 5,
    /// 16 bytes, padded with NUL.
    InName = 6,
    OutName = 7,
    /// One byte: [`Family`](super::nft::Family)'s number.
    Family = 15,
    /// One byte: 6 or 17.
    Protocol = 16,
}

/// Where an offset into the packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// A place in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub base: Base,
    pub offset: u32,
    /// In bytes.
    pub len: u32,
}

impl Field {
    pub const IP_SOURCE: Self = Self { base: Base::Network, offset: 12, len: 4 };
    pub const IP_DESTINATION: Self = Self { base: Base::Network, offset: 16, len: 4 };
    pub const IP6_SOURCE: Self = Self { base: Base::Network, offset: 8, len: 16 };
    pub const IP6_DESTINATION: Self = Self { base: Base::Network, offset: 24, len: 16 };
    pub const SOURCE_PORT: Self = Self { base: Base::Transport, offset: 0, len: 2 };
    pub const DESTINATION_PORT: Self = Self { base: Base::Transport, offset: 2, len: 2 };
    pub const TCP_FLAGS: Self = Self { base: Base::Transport, offset: 13, len: 1 };
}

/// Which checksum a write to the packet must mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The IPv4 header's, and through the pseudo header that of UDP or TCP.
    Ipv4,
    /// IPv6 has none of its own: through the pseudo header that of UDP or TCP.
    Ipv6,
}

/// How [`Expr::Compare`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    Equal = 0,
    NotEqual = 1,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Accept,
    Jump(String),
    Goto(String),
    Return,
}

impl Verdict {
    /// Writes the list of the verdict's attributes.
    pub(super) fn write(&self, list: &mut Attributes) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        list.put(1, &i32::to_be_bytes(code));
        if let Some(chain) = chain {
            list.put_text(2, chain);
        }
    }
}

/// How a flow's address is translated by conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Nat {
    Source = 0,
    Destination = 1,
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Reads a fact about the packet.
    Meta { key: Meta, into: Register },
    /// Sets a fact about the packet, say its mark.
    SetMeta { key: Meta, from: Register },
    /// Ends the rule unless the register compares.
    Compare { register: Register, op: Op, value: Vec<u8> },
    /// `into = from & mask`.
    Mask { from: Register, into: Register, mask: Vec<u8> },
    /// Reads from the packet.
    Load { field: Field, into: Register },
    /// Writes an address into the packet and mends its checksums.
    Write { field: Field, from: Register, checksum: Checksum },
    /// Ends the rule unless the key is in the set; of a map the value goes `into` a register.
    Lookup { set: String, key: Register, into: Option<Register> },
    /// A value into a register.
    Immediate { into: Register, value: Vec<u8> },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// A verdict out of a map of verdicts.
    VerdictMap { map: String, key: Register },
    /// Conntrack does not look at this packet.
    Notrack,
    /// Counts in the rule itself.
    Counter,
    /// Counts in a named object, which can be read alone.
    NamedCounter(String),
    /// Adds an element to a set, or renews its timeout; of a map with the value that a new one gets.
    Update { set: String, key: Register, value: Option<Register> },
    /// The next of 0 to `modulus` - 1, in host order.
    Number { modulus: u32, into: Register, is_random: bool },
    /// Translates to the address in a register; the port stays unless one is given.
    Nat { nat: Nat, is_ipv6: bool, address: Register, port: Option<Register> },
    /// Source translation to the outgoing link's address.
    Masquerade,
    /// Conntrack's state bits: 1 invalid, 2 established, 4 related, 8 new, 64 untracked (host order).
    ConntrackState { into: Register },
    /// The IPv4 address that the flow's first packet was sent to.
    OriginalDestination { into: Register },
    /// The kind of the packet's source address: 2 is one of this host (host order).
    SourceKind { into: Register },
    /// The mark of the socket that the packet belongs to; ends the rule where there is none.
    SocketMark { into: Register },
}

impl Expr {
    /// The kernel's name.
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Load { .. } | Self::Write { .. } => "payload",
            Self::Lookup { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Notrack => "notrack",
            Self::Counter => "counter",
            Self::NamedCounter(_) => "objref",
            Self::Update { .. } => "dynset",
            Self::Number { .. } => "numgen",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::ConntrackState { .. } | Self::OriginalDestination { .. } => "ct",
            Self::SourceKind { .. } => "fib",
            Self::SocketMark { .. } => "socket",
        }
    }

    /// Writes name and data, as an element of a rule's list.
    pub(super) fn write(&self, list: &mut Attributes) {
        list.put_text(1, self.name());
        list.put_list(2, |data| match self {
            Self::Load { .. } | Self::Write { .. } => self.write_payload(data),
            Self::Lookup { .. } | Self::VerdictMap { .. } | Self::Update { .. } => {
                self.write_set(data);
            }
            Self::Number { .. } | Self::Nat { .. } => self.write_nat(data),
            _ => self.write_plain(data),
        });
    }

    /// The data of expressions that neither touch packets nor sets.
    fn write_plain(&self, data: &mut Attributes) {
        match self {
            Self::Meta { key, into } => data.put_u32(1, *into).put_u32(2, *key as u32),
            Self::SetMeta { key, from } => data.put_u32(2, *key as u32).put_u32(3, *from),
            Self::Compare { register, op, value } => {
                data.put_u32(1, *register).put_u32(2, *op as u32).put_list(3, value_of(value))
            }
            Self::Mask { from, into, mask } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                let zero = vec![0; mask.len()];
                data.put_u32(1, *from).put_u32(2, *into).put_u32(3, len);
                data.put_list(4, value_of(mask)).put_list(5, value_of(&zero))
            }
            Self::Immediate { into, value } => data.put_u32(1, *into).put_list(2, value_of(value)),
            Self::Verdict(verdict) => data.put_u32(1, 0).put_list(2, |value| {
                value.put_list(2, |list| verdict.write(list));
            }),
            Self::Counter => data.put_u64(1, 0).put_u64(2, 0),
            Self::NamedCounter(name) => data.put_u32(1, 1).put_text(2, name),
            Self::ConntrackState { into } => data.put_u32(1, *into).put_u32(2, 0),
            Self::OriginalDestination { into } => {
                data.put_u32(1, *into).put_u32(2, 20).put(3, &[0])
            }
            Self::SourceKind { into } => data.put_u32(1, *into).put_u32(2, 3).put_u32(3, 1),
            Self::SocketMark { into } => data.put_u32(1, 1).put_u32(2, *into),
            _ => data,
        };
    }

    /// The data of expressions that read or write the packet.
    fn write_payload(&self, data: &mut Attributes) {
        let place = |data: &mut Attributes, field: &Field| {
            data.put_u32(2, field.base as u32).put_u32(3, field.offset).put_u32(4, field.len);
        };
        match self {
            Self::Load { field, into } => {
                data.put_u32(1, *into);
                place(data, field);
            }
            Self::Write { field, from, checksum } => {
                place(data, field);
                data.put_u32(5, *from);
                match checksum {
                    Checksum::Ipv4 => data.put_u32(6, 1).put_u32(7, 10).put_u32(8, 1),
                    Checksum::Ipv6 => data.put_u32(6, 0).put_u32(8, 1),
                };
            }
            _ => {}
        }
    }

    /// The data of expressions that ask or change sets.
    fn write_set(&self, data: &mut Attributes) {
        match self {
            Self::Lookup { set, key, into } => {
                data.put_text(1, set).put_u32(2, *key);
                if let Some(into) = into {
                    data.put_u32(3, *into);
                }
            }
            Self::VerdictMap { map, key } => {
                data.put_text(1, map).put_u32(2, *key).put_u32(3, 0);
            }
            Self::Update { set, key, value } => {
                data.put_text(1, set).put_u32(3, 1).put_u32(4, *key);
                if let Some(value) = value {
                    data.put_u32(5, *value);
                }
            }
            _ => {}
        }
    }

    /// The data of expressions that choose and translate.
    fn write_nat(&self, data: &mut Attributes) {
        match self {
            Self::Number { modulus, into, is_random } => {
                data.put_u32(1, *into).put_u32(2, *modulus).put_u32(3, u32::from(*is_random));
            }
            Self::Nat { nat, is_ipv6, address, port } => {
                data.put_u32(1, *nat as u32).put_u32(2, if *is_ipv6 { 10 } else { 2 });
                data.put_u32(3, *address);
                if let Some(port) = port {
                    data.put_u32(5, *port);
                }
            }
            _ => {}
        }
    }
}

/// Fills a data list with one plain value.
pub(super) fn value_of(value: &[u8]) -> impl FnOnce(&mut Attributes) + '_ {
    move |list| {
        list.put(1, value);
    }
}

/// Goes on only where the fact about the packet has this value.
pub fn meta_is(key: Meta, value: &[u8]) -> [Expr; 2] {
    let register = REG_1;
    let compare = Expr::Compare { register, op: Op::Equal, value: value.to_vec() };
    [Expr::Meta { key, into: register }, compare]
}

/// Goes on only where the packet's field has this value.
pub fn field_is(field: Field, value: &[u8]) -> [Expr; 2] {
    let register = REG_1;
    let compare = Expr::Compare { register, op: Op::Equal, value: value.to_vec() };
    [Expr::Load { field, into: register }, compare]
}
