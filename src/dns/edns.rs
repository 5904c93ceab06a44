//! EDNS: what a stub resolver's OPT record says, and the OPT record that goes back.
//!
//! Source: RFC 6891

use super::Qtype;
use super::ede::Ede;
use super::wire::{self, RecordAt};

/// The option code of an extended DNS error (RFC 8914 §2).
pub const OPTION_EDE: u16 = 15;

/// The UDP payload size that nodens advertises and, by default, never exceeds.
///
/// Source: DNS flag day 2020; RFC 9715 §3
pub const UDP_PAYLOAD: u16 = 1232;

/// Bytes of an OPT record without options: root name, type, class, TTL, length.
pub const OPT_LEN: usize = 11;

/// The DO bit in the flags half of OPT's TTL field.
///
/// Source: RFC 3225 §3
const DO: u16 = 0x8000;

/// What one OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The sender's UDP payload size in bytes, as written (values below 512 mean 512).
    pub payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
    /// The upper eight bits of the extended RCODE.
    pub rcode_high: u8,
}

impl Edns {
    /// Reads the OPT record at `record`; `None` when its owner is not the root or its options are cut off.
    pub fn from_record(message: &[u8], record: &RecordAt) -> Option<Self> {
        if record.fixed != record.start + 1 || message.get(record.start) != Some(&0) {
            return None;
        }
        if !options(message.get(record.rdata..record.end)?).all(|option| option.is_some()) {
            return None;
        }
        let ttl = wire::u32_at(message, record.ttl_at())?.to_be_bytes();
        Some(Self {
            payload: record.class,
            rcode_high: ttl[0],
            version: ttl[1],
            dnssec_ok: u16::from_be_bytes([ttl[2], ttl[3]]) & DO != 0,
        })
    }
}

/// Walks the options of an OPT record's data: `Some((code, data))` each, or one last `None` where it is cut off.
pub fn options(rdata: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut rest = Some(rdata);
    std::iter::from_fn(move || {
        let here = rest.filter(|rest| !rest.is_empty())?;
        let option = (|| {
            let code = wire::u16_at(here, 0)?;
            let len = usize::from(wire::u16_at(here, 2)?);
            Some((code, here.get(4..4 + len)?))
        })();
        rest = option.and_then(|(_, data)| here.get(4 + data.len()..));
        Some(option)
    })
}

/// Appends the option bytes of `ede` to `out`: code, length, info code, text.
pub fn push_ede(out: &mut Vec<u8>, ede: &Ede) {
    let text = ede.text.as_bytes();
    let len = u16::try_from(2 + text.len()).expect("an EDE text has at most 120 bytes");
    for number in [OPTION_EDE, len, ede.code.0] {
        out.extend(number.to_be_bytes());
    }
    out.extend(text);
}

/// Writes an OPT record of version 0 at `at` of `out`; gives back the offset behind it.
///
/// `options` are ready option bytes.
///
/// # Panics
/// When `out` has less room than `OPT_LEN + options.len()` behind `at`; callers reserve it.
pub fn write_opt(
    out: &mut [u8],
    at: usize,
    rcode_high: u8,
    dnssec_ok: bool,
    options: &[u8],
) -> usize {
    out[at] = 0;
    wire::put_u16(out, at + 1, Qtype::OPT.0);
    wire::put_u16(out, at + 3, UDP_PAYLOAD);
    out[at + 5] = rcode_high;
    out[at + 6] = 0;
    wire::put_u16(out, at + 7, if dnssec_ok { DO } else { 0 });
    wire::put_u16(out, at + 9, u16::try_from(options.len()).expect("options are short"));
    out[at + OPT_LEN..at + OPT_LEN + options.len()].copy_from_slice(options);
    at + OPT_LEN + options.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_cut_off_end_with_none() {
        assert_eq!(options(&[]).count(), 0);
        let whole = [0, 10, 0, 2, 1, 2, 0, 3, 0, 0];
        assert_eq!(
            options(&whole).collect::<Vec<_>>(),
            [Some((10, &[1u8, 2][..])), Some((3, &[][..]))]
        );
        assert_eq!(options(&whole[..5]).collect::<Vec<_>>(), [None]);
    }
}
