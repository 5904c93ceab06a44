//! What comes back for one request: the number of a link perhaps, an error number, the kernel's words.

use std::io;

use netlink_sys::Socket;

/// Type of a message that carries an error number, or 0 as an acknowledgement.
const NLMSG_ERROR: u16 = 2;
/// Type of a message that describes a link.
const RTM_NEWLINK: u16 = 16;
/// Set when attributes follow the error number.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The attribute with the kernel's words.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Bytes of a message's header.
const HEADER: usize = 16;

/// The answer to one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Receipt {
    /// 0 for done.
    pub errno: i32,
    pub told: Option<String>,
    /// Of the link that was described on the way; 0 when none was.
    pub link_index: u32,
}

impl Receipt {
    /// Receives until the acknowledgement of the request `sequence` has come.
    ///
    /// # Errors
    /// What the socket says.
    pub(super) fn read(socket: &Socket, sequence: u32) -> io::Result<Self> {
        let mut receipt = Self::default();
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some((message, behind)) = split_message(rest) {
                rest = behind;
                if u32_at(message, 8) == Some(sequence) && receipt.take(message) {
                    return Ok(receipt);
                }
            }
        }
    }

    /// Takes a message in; true when it was the acknowledgement.
    fn take(&mut self, message: &[u8]) -> bool {
        match u16_at(message, 4) {
            Some(NLMSG_ERROR) => {
                let code = u32_at(message, HEADER).unwrap_or_default();
                self.errno = code.cast_signed().wrapping_neg();
                let has_words = u16_at(message, 6).unwrap_or_default() & NLM_F_ACK_TLVS != 0;
                // Behind the number stands the header of the request, then the attributes.
                let words = message.get(HEADER + 4 + HEADER..).filter(|_| has_words);
                self.told = words.and_then(words_of);
                true
            }
            Some(RTM_NEWLINK) => {
                self.link_index = u32_at(message, HEADER + 4).unwrap_or_default();
                false
            }
            _ => false,
        }
    }
}

/// The first message of a datagram, and what is behind it.
fn split_message(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(u32_at(datagram, 0)?).ok().filter(|len| *len >= HEADER)?;
    let message = datagram.get(..len)?;
    Some((message, datagram.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The kernel's words among the attributes.
fn words_of(mut attributes: &[u8]) -> Option<String> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        if u16_at(attributes, 2)? == NLMSGERR_ATTR_MSG {
            let words = attributes.get(4..len)?.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(words).into_owned());
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
}

/// Two bytes as this machine writes them.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Four bytes as this machine writes them.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with its length in front.
    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER + body.len()).expect("short");
        let mut out = len.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(7_u32.to_ne_bytes());
        out.extend(0_u32.to_ne_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn a_refusal_carries_the_number_and_the_words_of_the_kernel() {
        let mut body = (-22_i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        body.extend([8, 0, 9, 0, 1, 2, 3, 4]);
        body.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
        let mut receipt = Receipt::default();
        assert!(receipt.take(&message(NLMSG_ERROR, NLM_F_ACK_TLVS, &body)));
        assert_eq!((receipt.errno, receipt.told.as_deref()), (22, Some("no!")));
    }

    #[test]
    fn a_cut_message_is_no_panic() {
        let whole = message(NLMSG_ERROR, NLM_F_ACK_TLVS, &[0xff; 24]);
        for len in 0..whole.len() {
            Receipt::default().take(&whole[..len]);
            assert!(split_message(&whole[..len]).is_none());
        }
        assert_eq!(split_message(&whole), Some((&whole[..], &[][..])));
    }
}
