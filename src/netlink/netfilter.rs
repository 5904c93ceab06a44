//! nf_tables: commits batches with proof, reads counters and elements back.
//!
//! An owner table lives as long as the socket that made it, so whoever makes one keeps its
//! [`Netfilter`]. The socket is close-on-exec; a fork without exec would keep the table alive.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::attr::{Attributes, find, read_text, read_u32, read_u64, walk};
use super::channel::{ACK, Channel, DUMP, REQUEST, Received, put_message};
use super::nft::{Batch, COUNTER, Family, Table, message};

pub use super::channel::NetlinkError;

/// nf_tables among netfilter's parts.
const SUBSYSTEM: u16 = 10;

/// Message types that open and close a batch.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Bytes of netfilter's head: family, version, resource.
const HEAD: usize = 4;

/// What a named counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
    /// Rules that count in it.
    pub uses: u32,
}

/// A table that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    pub table: Table,
    pub flags: u32,
    /// The netlink port of the socket whose death ends it.
    pub owner: Option<u32>,
}

/// The key of a map's element, and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// A socket to nf_tables of the calling thread's network namespace.
pub struct Netfilter(Channel);

impl Netfilter {
    /// Opens a socket; it is not passed on to programs that we start.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open() -> Result<Self, NetlinkError> {
        Channel::open(NETLINK_NETFILTER).map(Self)
    }

    /// Commits the batch whole, or not at all.
    ///
    /// Proof is that the kernel acknowledges the batch's end; 6.1 never does, and a changed
    /// generation has to do.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] names the first object that the kernel refused.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let before = self.generation()?;
        let first = self.0.take_sequence(batch.messages.len() + 2);
        let mut is_proven = false;
        for answer in self.0.exchange(&encode(batch, first))? {
            let at = usize::try_from(answer.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            let message = at.checked_sub(1).and_then(|at| batch.messages.get(at));
            let what = message.map_or("commit the batch", |message| &message.what);
            if let Some(refusal) = answer.refusal(what) {
                return Err(refusal);
            }
            is_proven |= at > batch.messages.len() && answer.error_code() == Some(0);
        }
        if is_proven || self.generation()? != before {
            return Ok(());
        }
        Err(NetlinkError::Unproven)
    }

    /// The number of the rule set; every commit changes it.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel has no nf_tables or does not answer.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let kind = (message::GET_GENERATION, 0);
        let answers = self.ask(kind, Family::Inet, &Attributes::default(), "use nf_tables")?;
        let body = answers.first().and_then(|answer| answer.payload.get(HEAD..));
        body.and_then(|body| find(body, 1)).and_then(read_u32).ok_or(NetlinkError::Unproven)
    }

    /// A named counter; `None` where it does not exist.
    ///
    /// # Errors
    /// [`NetlinkError`] of any other kind.
    pub fn counter(&mut self, table: &Table, name: &str) -> Result<Option<Count>, NetlinkError> {
        let mut body = Attributes::default();
        body.put_text(1, &table.name).put_text(2, name).put_u32(3, COUNTER);
        let answers =
            match self.ask((message::GET_OBJECT, 0), table.family, &body, "read a counter") {
                Err(error) if error.is_missing() => return Ok(None),
                other => other?,
            };
        Ok(answers.first().and_then(read_count).map(|(_, count)| count))
    }

    /// Every named counter of the table; none where it does not exist.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn counters(&mut self, table: &Table) -> Result<Vec<(String, Count)>, NetlinkError> {
        let mut body = Attributes::default();
        body.put_text(1, &table.name).put_u32(3, COUNTER);
        let kind = (message::GET_OBJECT, DUMP);
        let answers = match self.ask(kind, table.family, &body, "read counters") {
            Err(error) if error.is_missing() => return Ok(Vec::new()),
            other => other?,
        };
        Ok(answers.iter().filter_map(read_count).collect())
    }

    /// The keys of a set's living elements, in no order; empty where the set does not exist.
    ///
    /// # Errors
    /// [`NetlinkError`] of any other kind.
    pub fn keys(&mut self, table: &Table, set: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let elements = self.elements(table, set)?;
        Ok(elements.into_iter().map(|(key, _)| key).collect())
    }

    /// A map's living elements as (key, value), in no order; of a set the values are empty.
    ///
    /// # Errors
    /// [`NetlinkError`]; a map that does not exist is none.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<KeyValue>, NetlinkError> {
        let mut body = Attributes::default();
        body.put_text(1, &table.name).put_text(2, set);
        let answers =
            match self.ask((message::GET_ELEMENTS, DUMP), table.family, &body, "read a set") {
                Err(error) if error.is_missing() => return Ok(Vec::new()),
                other => other?,
            };
        let lists = answers.iter().filter_map(|answer| find(answer.payload.get(HEAD..)?, 3));
        let value = |element, kind| find(find(element, kind)?, 1).map(<[u8]>::to_vec);
        let elements = lists.flat_map(walk).filter_map(|(_, element)| {
            Some((value(element, 1)?, value(element, 2).unwrap_or_default()))
        });
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
            let answers = self.ask((message::GET_TABLE, DUMP), family, &body, "list tables")?;
            tables.extend(answers.iter().filter_map(|answer| {
                let body = answer.payload.get(HEAD..)?;
                Some(TableState {
                    table: Table { family, name: read_text(find(body, 1)?) },
                    flags: find(body, 2).and_then(read_u32).unwrap_or(0),
                    owner: find(body, 7).and_then(read_u32),
                })
            }));
        }
        Ok(tables)
    }

    /// Sends one question and gives back its answers, or the refusal.
    fn ask(
        &mut self,
        (kind, flags): (u16, u16),
        family: Family,
        body: &Attributes,
        what: &str,
    ) -> Result<Vec<Received>, NetlinkError> {
        let body = with_head(family as u8, 0, body.as_bytes());
        self.0.ask((SUBSYSTEM << 8 | kind, flags), &body, what)
    }
}

/// A named counter with its name.
fn read_count(answer: &Received) -> Option<(String, Count)> {
    let body = answer.payload.get(HEAD..)?;
    let data = find(body, 4)?;
    let count = Count {
        bytes: find(data, 1).and_then(read_u64)?,
        packets: find(data, 2).and_then(read_u64)?,
        uses: find(body, 5).and_then(read_u32).unwrap_or_default(),
    };
    Some((read_text(find(body, 2)?), count))
}

/// Writes the batch with its begin and end; the begin has the sequence number `first`.
fn encode(batch: &Batch, first: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sequence = first;
    let frame = with_head(0, SUBSYSTEM, &[]);
    put_message(&mut bytes, (BATCH_BEGIN, REQUEST, sequence), &frame);
    for message in &batch.messages {
        sequence = sequence.wrapping_add(1);
        let body = with_head(message.family, 0, message.body.as_bytes());
        let head = (SUBSYSTEM << 8 | message.kind, REQUEST | message.flags, sequence);
        put_message(&mut bytes, head, &body);
    }
    sequence = sequence.wrapping_add(1);
    put_message(&mut bytes, (BATCH_END, REQUEST | ACK, sequence), &frame);
    bytes
}

/// A message's body behind netfilter's head.
fn with_head(family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    [&[family, 0, high, low], body].concat()
}
