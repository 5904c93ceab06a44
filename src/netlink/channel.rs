//! One netlink socket: messages out, answers in, the kernel's own words about refusals.
//!
//! The kernel answers before `send` returns, so nothing here waits.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

use super::attr::{find, read_text};

/// Message types of netlink itself.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Flag of every message that asks for something.
pub(super) const REQUEST: u16 = 0x01;

/// Flag: success is told too.
pub(super) const ACK: u16 = 0x04;

/// Flag: all objects are asked for.
pub(super) const DUMP: u16 = 0x300;

/// The error message carries only the head of what was refused.
const CAPPED: u16 = 0x100;

/// The error message carries attributes.
const HAS_ATTRIBUTES: u16 = 0x200;

/// Bytes of netlink's head.
const HEAD: usize = 16;

/// Larger than any datagram that the kernel sends here.
const RECEIVE_BYTES: usize = 1 << 16;

/// What a netlink call may end in.
#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// The kernel refused one message, and with it the batch.
    #[error("cannot {what}: {source}{}", told(.text))]
    Refused { what: String, source: io::Error, text: Option<String> },
    /// The kernel neither acknowledged nor refused: what is there must be read back.
    #[error("the kernel did not say whether the batch was committed")]
    Unproven,
    #[error("netlink failed: {0}")]
    Io(#[from] io::Error),
}

/// The kernel's extended message, where it gave one.
fn told(text: &Option<String>) -> String {
    text.as_ref().map_or_else(String::new, |text| format!(" ({text})"))
}

impl NetlinkError {
    /// Tells whether a capability is missing (or somebody else owns the table).
    pub fn is_permission(&self) -> bool {
        self.number() == Some(libc::EPERM)
    }

    /// Tells whether access was denied: by a security module, or since IPv6 is disabled where an address of it
    /// was to be.
    pub fn is_denied(&self) -> bool {
        self.number() == Some(libc::EACCES)
    }

    /// Tells whether the kernel does not know what was asked for.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.code(), Some(io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported))
    }

    /// Tells whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        self.code() == Some(io::ErrorKind::NotFound)
    }

    /// Tells whether a link has not the address that was to be removed.
    pub fn is_absent_address(&self) -> bool {
        self.code() == Some(io::ErrorKind::AddrNotAvailable)
    }

    /// Tells whether the object exists already.
    pub fn is_there_already(&self) -> bool {
        self.code() == Some(io::ErrorKind::AlreadyExists)
    }

    /// The kind of the system's error behind it.
    fn code(&self) -> Option<io::ErrorKind> {
        self.source().map(io::Error::kind)
    }

    /// The number of the system's error behind it.
    fn number(&self) -> Option<i32> {
        self.source().and_then(io::Error::raw_os_error)
    }

    /// The system's error behind it.
    fn source(&self) -> Option<&io::Error> {
        match self {
            Self::Refused { source, .. } | Self::Io(source) | Self::Open(source) => Some(source),
            Self::Unproven => None,
        }
    }
}

/// One received message.
pub(super) struct Received {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: Vec<u8>,
}

/// A socket to one part of the kernel, of the calling thread's network namespace.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens a socket; it is not passed on to programs that we start.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetlinkError::Open)?, sequence: 0 })
    }

    /// The first of `count` sequence numbers that nobody has used.
    pub fn take_sequence(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    /// Sends messages; what the kernel answers stays in the socket.
    ///
    /// # Errors
    /// `Io`
    pub fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    /// Sends messages and takes everything that the kernel answers.
    ///
    /// # Errors
    /// `Io`, and `Unproven` when answers were lost.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Received>, NetlinkError> {
        self.send(bytes)?;
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => split(&buffer, &mut answers),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Unproven);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends one message; gives back its answers, or the refusal. `what` is for people.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] and whatever [`Channel::exchange`] says.
    pub fn ask(
        &mut self,
        (kind, flags): (u16, u16),
        body: &[u8],
        what: &str,
    ) -> Result<Vec<Received>, NetlinkError> {
        let sequence = self.take_sequence(1);
        let mut bytes = Vec::new();
        put_message(&mut bytes, (kind, REQUEST | flags, sequence), body);
        let mut answers = self.exchange(&bytes)?;
        answers.retain(|answer| answer.sequence == sequence && answer.kind != DONE);
        let refused = answers.iter().find_map(|answer| answer.refusal(what));
        refused.map_or(Ok(answers), Err)
    }
}

impl Received {
    /// The code of an error message: 0 acknowledges, else a negative error number.
    pub fn error_code(&self) -> Option<i32> {
        let code = self.payload.get(..4).filter(|_| self.kind == ERROR)?;
        Some(i32::from_ne_bytes(code.try_into().ok()?))
    }

    /// The error for people, where the kernel refused `what`.
    pub fn refusal(&self, what: &str) -> Option<NetlinkError> {
        let code = self.error_code().filter(|code| *code != 0)?;
        let (source, text) = (io::Error::from_raw_os_error(-code), self.extended_text());
        Some(NetlinkError::Refused { what: what.to_owned(), source, text })
    }

    /// The kernel's own words about an error.
    fn extended_text(&self) -> Option<String> {
        if self.flags & HAS_ATTRIBUTES == 0 {
            return None;
        }
        let refused = u32::from_ne_bytes(self.payload.get(4..8)?.try_into().ok()?);
        let refused = match self.flags & CAPPED {
            0 => usize::try_from(refused).ok()?.next_multiple_of(4),
            _ => HEAD,
        };
        find(self.payload.get(4 + refused..)?, 1).map(read_text)
    }
}

/// Appends one message: type, flags, sequence, then the body.
pub(super) fn put_message(
    bytes: &mut Vec<u8>,
    (kind, flags, sequence): (u16, u16, u32),
    body: &[u8],
) {
    let length = u32::try_from(HEAD + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]); // the kernel knows our port
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
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
