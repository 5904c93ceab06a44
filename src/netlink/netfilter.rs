//! The socket to nf_tables: commits batches with proof, reads counters and elements back.
//!
//! An owner table lives as long as the socket that made it, so whoever makes one keeps its
//! [`Netfilter`]. The socket is close-on-exec; a fork without exec would keep the table alive.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

use super::attr::{Attributes, find, read_text, read_u32, read_u64, walk};
use super::nft::{Batch, COUNTER, Family, Table, message};

/// nf_tables among netfilter's parts.
const SUBSYSTEM: u16 = 10;

/// Message types of netlink itself.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Message types that open and close a batch.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Flags of a message.
const REQUEST: u16 = 0x01;
const ACK: u16 = 0x04;
const DUMP: u16 = 0x300;

/// The error message carries only the head of what was refused.
const CAPPED: u16 = 0x100;

/// The error message carries attributes.
const HAS_ATTRIBUTES: u16 = 0x200;

/// Bytes of netlink's head, and of netfilter's behind it.
const HEAD: usize = 16;
const NETFILTER_HEAD: usize = 4;

/// Larger than any datagram that the kernel sends here.
const RECEIVE_BYTES: usize = 1 << 16;

/// What a netlink call may end in.
#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket to netfilter: {0}")]
    Open(io::Error),
    /// The kernel refused one message, and with it the batch.
    #[error("cannot {what}: {source}{}", told(.text))]
    Refused { what: String, source: io::Error, text: Option<String> },
    /// The kernel neither acknowledged nor refused: what is there must be read back.
    #[error("the kernel did not say whether the batch was committed")]
    Unproven,
    #[error("netlink to netfilter failed: {0}")]
    Io(#[from] io::Error),
}

/// The kernel's extended message, where it gave one.
fn told(text: &Option<String>) -> String {
    text.as_ref().map_or_else(String::new, |text| format!(" ({text})"))
}

impl NetlinkError {
    /// Tells whether a capability is missing (or somebody else owns the table).
    pub fn is_permission(&self) -> bool {
        self.code() == Some(io::ErrorKind::PermissionDenied)
    }

    /// Tells whether the kernel does not know what was asked for.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.code(), Some(io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported))
    }

    /// Tells whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        self.code() == Some(io::ErrorKind::NotFound)
    }

    /// The system's error behind it.
    fn code(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Refused { source, .. } | Self::Io(source) | Self::Open(source) => {
                Some(source.kind())
            }
            Self::Unproven => None,
        }
    }
}

/// What a named counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// A table that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    pub table: Table,
    pub flags: u32,
    /// The netlink port of the socket whose death ends it.
    pub owner: Option<u32>,
}

/// One received message.
struct Received {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: Vec<u8>,
}

/// A socket to nf_tables of the calling thread's network namespace.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    /// Opens a socket; it is not passed on to programs that we start.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetlinkError::Open)?, sequence: 0 })
    }

    /// Commits the batch whole, or not at all.
    ///
    /// Proof is that the kernel acknowledges the batch's end; before Linux 6.10 or so it never does,
    /// and a changed generation has to do.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] names the first object that the kernel refused.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let before = self.generation()?;
        let first = self.sequence.wrapping_add(1);
        let end = first.wrapping_add(u32::try_from(batch.messages.len()).unwrap_or(u32::MAX) + 1);
        self.sequence = end;
        let bytes = encode(batch, first);
        self.socket.send(&bytes, 0)?;
        let mut is_proven = false;
        let mut refusal = None;
        for answer in self.receive()? {
            let Some(code) = error_code(&answer) else { continue };
            if answer.sequence == end && code == 0 {
                is_proven = true;
            } else if code != 0 && refusal.is_none() {
                let at = usize::try_from(answer.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let message = at.checked_sub(1).and_then(|at| batch.messages.get(at));
                let what = message.map_or("commit the batch", |message| &message.what).to_owned();
                let source = io::Error::from_raw_os_error(-code);
                refusal =
                    Some(NetlinkError::Refused { what, source, text: extended_text(&answer) });
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if is_proven || self.generation()? != before => Ok(()),
            None => Err(NetlinkError::Unproven),
        }
    }

    /// The number of the rule set; every commit changes it.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel has no nf_tables or does not answer.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let body = Attributes::default();
        let answers = self.ask(message::GET_GENERATION, Family::Inet, 0, ("read", &body))?;
        let payload = answers.first().and_then(|answer| answer.payload.get(NETFILTER_HEAD..));
        payload.and_then(|body| find(body, 1)).and_then(read_u32).ok_or(NetlinkError::Unproven)
    }

    /// A named counter; `None` where it does not exist.
    ///
    /// # Errors
    /// [`NetlinkError`] of any other kind.
    pub fn counter(&mut self, table: &Table, name: &str) -> Result<Option<Count>, NetlinkError> {
        let mut body = Attributes::default();
        body.put_text(1, &table.name).put_text(2, name).put_u32(3, COUNTER);
        let answers = match self.ask(message::GET_OBJECT, table.family, 0, ("read", &body)) {
            Err(error) if error.is_missing() => return Ok(None),
            other => other?,
        };
        let count = |answer: &Received| {
            let data = find(answer.payload.get(NETFILTER_HEAD..)?, 4)?;
            Some(Count {
                bytes: find(data, 1).and_then(read_u64)?,
                packets: find(data, 2).and_then(read_u64)?,
            })
        };
        Ok(answers.first().and_then(count))
    }

    /// The keys of a set's living elements, in no order; empty where the set does not exist.
    ///
    /// # Errors
    /// [`NetlinkError`] of any other kind.
    pub fn keys(&mut self, table: &Table, set: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut body = Attributes::default();
        body.put_text(1, &table.name).put_text(2, set);
        let answers = match self.ask(message::GET_ELEMENTS, table.family, DUMP, ("read", &body)) {
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            other => other?,
        };
        let lists =
            answers.iter().filter_map(|answer| find(answer.payload.get(NETFILTER_HEAD..)?, 3));
        let elements = lists
            .flat_map(walk)
            .filter_map(|(_, element)| Some(find(find(element, 1)?, 1)?.to_vec()));
        Ok(elements.collect())
    }

    /// All tables of both families and of each one.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel does not answer.
    pub fn tables(&mut self) -> Result<Vec<TableState>, NetlinkError> {
        let mut tables = Vec::new();
        for family in [Family::Inet, Family::Ipv4, Family::Ipv6] {
            let body = Attributes::default();
            let answers = self.ask(message::GET_TABLE, family, DUMP, ("list tables", &body))?;
            tables.extend(answers.iter().filter_map(|answer| {
                let body = answer.payload.get(NETFILTER_HEAD..)?;
                Some(TableState {
                    table: Table { family, name: read_text(find(body, 1)?) },
                    flags: find(body, 2).and_then(read_u32).unwrap_or(0),
                    owner: find(body, 7).and_then(read_u32),
                })
            }));
        }
        Ok(tables)
    }

    /// Sends one question and gives back its answers, errors taken out.
    fn ask(
        &mut self,
        kind: u16,
        family: Family,
        flags: u16,
        (what, body): (&str, &Attributes),
    ) -> Result<Vec<Received>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let head = (SUBSYSTEM << 8 | kind, REQUEST | flags, self.sequence);
        put_message(&mut bytes, head, (family as u8, 0), body.as_bytes());
        self.socket.send(&bytes, 0)?;
        let sequence = self.sequence;
        let mut answers = self.receive()?;
        answers.retain(|answer| answer.sequence == sequence && answer.kind != DONE);
        let refused = answers.iter().find_map(|answer| {
            let code = error_code(answer).filter(|code| *code != 0)?;
            let (source, text) = (io::Error::from_raw_os_error(-code), extended_text(answer));
            Some(NetlinkError::Refused { what: what.to_owned(), source, text })
        });
        refused.map_or(Ok(answers), Err)
    }

    /// Takes everything that the kernel has answered: it does so before `send` returns.
    fn receive(&self) -> Result<Vec<Received>, NetlinkError> {
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => split(&buffer, &mut answers),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Answers were lost: whether the batch was committed is not known.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Unproven);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Writes the batch with its begin and end; the begin has the sequence number `first`.
fn encode(batch: &Batch, first: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sequence = first;
    put_message(&mut bytes, (BATCH_BEGIN, REQUEST, sequence), (0, SUBSYSTEM), &[]);
    for message in &batch.messages {
        sequence = sequence.wrapping_add(1);
        let head = (SUBSYSTEM << 8 | message.kind, REQUEST | message.flags, sequence);
        put_message(&mut bytes, head, (message.family, 0), message.body.as_bytes());
    }
    sequence = sequence.wrapping_add(1);
    put_message(&mut bytes, (BATCH_END, REQUEST | ACK, sequence), (0, SUBSYSTEM), &[]);
    bytes
}

/// Appends one message: netlink's head (type, flags, sequence), netfilter's (family, resource), body.
fn put_message(
    bytes: &mut Vec<u8>,
    (kind, flags, sequence): (u16, u16, u32),
    (family, resource): (u8, u16),
    body: &[u8],
) {
    let length = u32::try_from(HEAD + NETFILTER_HEAD + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]); // the kernel knows our port
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
}

/// Divides a datagram into its messages; ends at the first that does not fit.
fn split(mut bytes: &[u8], out: &mut Vec<Received>) {
    let next = |bytes: &[u8]| {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let received = Received {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
            payload: bytes.get(HEAD..length)?.to_vec(),
        };
        Some((received, length.next_multiple_of(4)))
    };
    while let Some((received, length)) = next(bytes) {
        out.push(received);
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

/// The code of an error message: 0 acknowledges, else a negative error number.
fn error_code(answer: &Received) -> Option<i32> {
    let code = answer.payload.get(..4).filter(|_| answer.kind == ERROR)?;
    Some(i32::from_ne_bytes(code.try_into().ok()?))
}

/// The kernel's own words about an error.
fn extended_text(answer: &Received) -> Option<String> {
    if answer.flags & HAS_ATTRIBUTES == 0 {
        return None;
    }
    let refused = u32::from_ne_bytes(answer.payload.get(4..8)?.try_into().ok()?);
    let refused = match answer.flags & CAPPED {
        0 => usize::try_from(refused).ok()?.next_multiple_of(4),
        _ => HEAD,
    };
    find(answer.payload.get(4 + refused..)?, 1).map(read_text)
}
