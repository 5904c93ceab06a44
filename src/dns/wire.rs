//! Reading and writing DNS wire form by offset, without panics and without allocation.

use std::ops::Range;

use super::{HEADER_LEN, MAX_NAME_LEN};

/// How many compression pointers one name may take: as many as it can have labels.
///
/// A chain of pointers to pointers would make 64 KiB of message cost tens of millions of steps.
const MAX_POINTERS: usize = 127;

/// Header bits that nodens reads or writes, as they stand in the 16-bit flags word.
///
/// Source: RFC 1035 §4.1.1, RFC 4035 §3.1.6 and §3.2
pub mod flag {
    pub const QR: u16 = 0x8000;
    pub const OPCODE: u16 = 0x7800;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
    pub const RCODE: u16 = 0x000f;
}

/// Reads a big-endian 16-bit number at `at`; `None` past the end.
pub fn u16_at(wire: &[u8], at: usize) -> Option<u16> {
    let bytes = wire.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Reads a big-endian 32-bit number at `at`; `None` past the end.
pub fn u32_at(wire: &[u8], at: usize) -> Option<u32> {
    let bytes = wire.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Writes a big-endian 16-bit number at `at`.
///
/// # Panics
/// Never on offsets that came from a walk over a buffer of at least this length.
pub fn put_u16(wire: &mut [u8], at: usize, value: u16) {
    wire[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes a big-endian 32-bit number at `at`.
///
/// # Panics
/// Never on offsets that came from a walk over a buffer of at least this length.
pub fn put_u32(wire: &mut [u8], at: usize, value: u32) {
    wire[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Gives back the offset behind the name at `at`, without following compression pointers.
///
/// `None` when the name runs past the end or has a label type that does not exist.
pub fn skip_name(wire: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *wire.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(len),
            0xc0..=0xff => return wire.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        // Another byte at least must follow: the root label.
        if at - start >= MAX_NAME_LEN {
            return None;
        }
    }
}

/// Gives back the offset behind an *uncompressed* name at `at`, at most 255 bytes long.
pub fn skip_plain_name(wire: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *wire.get(at)?;
        if len > 63 {
            return None;
        }
        at += 1 + usize::from(len);
        if at - start > MAX_NAME_LEN {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}

/// Expands the name at `at` into `out`, case kept; gives back its length in wire form.
///
/// A pointer must name what is whole before the name that holds it, as RFC 1035 §4.1.4 has it ("a prior
/// occurrence"): a loop ends, and no name runs on into bytes that come later and may change.
/// `None` when the name is malformed, longer than 255 bytes, or takes more than 127 pointers.
pub fn expand_name(wire: &[u8], at: usize, out: &mut [u8; MAX_NAME_LEN]) -> Option<usize> {
    expand_name_where(wire, at, out, |_| true)
}

/// As [`expand_name`], and `None` too when `admits` refuses one of the stretches of bytes that the name lies in.
pub fn expand_name_where(
    wire: &[u8],
    mut at: usize,
    out: &mut [u8; MAX_NAME_LEN],
    admits: impl Fn(Range<usize>) -> bool,
) -> Option<usize> {
    let mut stretch = at;
    let mut wire = wire;
    let mut len = 0;
    let mut pointers = 0;
    loop {
        let head = *wire.get(at)?;
        match head {
            0..=63 => {
                let label = wire.get(at..at + 1 + usize::from(head))?;
                out.get_mut(len..len + label.len())?.copy_from_slice(label);
                len += label.len();
                at += label.len();
                if head == 0 {
                    return admits(stretch..at).then_some(len);
                }
            }
            0xc0..=0xff => {
                let target = usize::from(u16_at(wire, at)? & 0x3fff);
                pointers += 1;
                let backwards = (HEADER_LEN..stretch).contains(&target);
                if !backwards || pointers > MAX_POINTERS || !admits(stretch..at + 2) {
                    return None;
                }
                wire = &wire[..stretch];
                (at, stretch) = (target, target);
            }
            _ => return None,
        }
    }
}

/// One resource record's place in a message. All offsets count from the message's first byte.
#[derive(Clone, Copy, Debug)]
pub struct RecordAt {
    /// Where the owner name begins.
    pub start: usize,
    /// Where the type field stands; class, TTL and length follow at +2, +4 and +8.
    pub fixed: usize,
    /// Where the record data begins.
    pub rdata: usize,
    /// The first byte behind the record.
    pub end: usize,
    pub rtype: u16,
    pub class: u16,
}

impl RecordAt {
    /// Where the 32-bit TTL stands.
    pub fn ttl_at(&self) -> usize {
        self.fixed + 4
    }
}

/// Reads the record that begins at `at`; `None` when it is malformed or cut off.
pub fn record_at(wire: &[u8], at: usize) -> Option<RecordAt> {
    let fixed = skip_name(wire, at)?;
    let rtype = u16_at(wire, fixed)?;
    let class = u16_at(wire, fixed + 2)?;
    let rdata = fixed + 10;
    let end = rdata + usize::from(u16_at(wire, fixed + 8)?);
    (end <= wire.len()).then_some(RecordAt { start: at, fixed, rdata, end, rtype, class })
}

/// Tells whether the records at `one` and `other` have the same owner name, type and class.
pub fn is_one_rrset(wire: &[u8], one: usize, other: usize) -> bool {
    let key = |at| {
        let record = record_at(wire, at)?;
        let mut owner = [0; MAX_NAME_LEN];
        let len = expand_name(wire, at, &mut owner)?;
        fold(&mut owner[..len]);
        Some((owner, record.rtype, record.class))
    };
    key(one).is_some_and(|one| key(other) == Some(one))
}

/// Folds ASCII upper case to lower case, the only case DNS knows (RFC 4343).
///
/// Length bytes of labels are at most 63 and so never touched.
pub fn fold(bytes: &mut [u8]) {
    bytes.make_ascii_lowercase();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_loop_is_malformed() {
        let mut wire = vec![0; HEADER_LEN];
        wire.extend([0xc0, 12]);
        let mut out = [0; MAX_NAME_LEN];
        assert_eq!(expand_name(&wire, 12, &mut out), None);
        wire.extend([1, b'a', 0xc0, 14]);
        assert_eq!(expand_name(&wire, 14, &mut out), None);
    }

    #[test]
    fn a_pointer_to_labels_that_run_on_into_the_name_itself_is_malformed() {
        let mut wire = vec![0; HEADER_LEN];
        // A label of two bytes, the pointer, that a root label follows: readable, but no prior occurrence.
        wire.extend([2, 0xc0, 12, 0]);
        assert_eq!(expand_name(&wire, 13, &mut [0; MAX_NAME_LEN]), None);
        wire.splice(12..12, [0]);
        assert_eq!(expand_name(&wire, 14, &mut [0; MAX_NAME_LEN]), Some(1));
    }

    #[test]
    fn a_name_has_255_bytes_with_its_root_label_or_is_malformed() {
        for (last, fits) in [(61, true), (62, false)] {
            let mut wire = [&[63u8][..], &[b'a'; 63]].concat().repeat(3);
            wire.push(last);
            wire.extend(vec![b'b'; last.into()]);
            wire.push(0);
            assert_eq!(skip_name(&wire, 0).is_some(), fits, "{}", wire.len());
            assert_eq!(skip_plain_name(&wire, 0).is_some(), fits, "{}", wire.len());
            assert_eq!(expand_name(&wire, 0, &mut [0; MAX_NAME_LEN]).is_some(), fits);
        }
    }

    #[test]
    fn numbers_at_the_end_of_the_address_space_are_absent() {
        for at in [usize::MAX, usize::MAX - 1, usize::MAX - 3, 2] {
            assert_eq!((u16_at(&[0; 3], at), u32_at(&[0; 3], at)), (None, None));
        }
    }

    #[test]
    fn a_compressed_name_is_expanded_with_its_case() {
        let mut wire = vec![0; HEADER_LEN];
        wire.extend(b"\x07eXample\x03org\x00");
        let at = wire.len();
        wire.extend(b"\x01a\xc0\x0c");
        let mut out = [0; MAX_NAME_LEN];
        let len = expand_name(&wire, at, &mut out).expect("well-formed");
        assert_eq!(&out[..len], b"\x01a\x07eXample\x03org\x00");
        assert_eq!(skip_name(&wire, at), Some(wire.len()));
    }

    #[test]
    fn names_that_run_past_the_end_are_malformed() {
        for wire in [&b"\x03ab"[..], b"\x40abc", b"\xc0", b""] {
            assert_eq!(skip_name(wire, 0), None, "{wire:?}");
        }
        let long: Vec<u8> = [&[63u8][..], &[b'a'; 63]].concat().repeat(5);
        assert_eq!(skip_name(&long, 0), None);
        assert_eq!(skip_plain_name(&long, 0), None);
    }
}
