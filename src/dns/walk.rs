//! One pass over a response's bytes: header, question, each record, each name; nothing is kept that does not hold.
//!
//! It refuses to write: [`super::response`] makes an `Encoded` of what was walked.

use std::ops::Range;

use super::ede::Ede;
use super::edns::{self, Edns, OPTION_EDE};
use super::name::suffixes;
use super::response::{Malformed, Mark, Section};
use super::wire::{self, RecordAt, flag};
use super::{HEADER_LEN, MAX_NAME_LEN, Qclass, Qtype};

/// The shortest record there is: the root's, without data.
const RECORD_LEN: usize = 11;

/// What one pass over a response finds.
pub(super) struct Walk {
    /// The first byte behind the question.
    pub(super) question_end: usize,
    /// One per record but OPT, in wire order.
    pub(super) marks: Vec<Mark>,
    /// The OPT record, wherever it stands in the additional section.
    pub(super) opt: Option<RecordAt>,
}

impl Walk {
    /// Checks header, question and every record of `message`.
    pub(super) fn over(message: &[u8]) -> Result<Self, Malformed> {
        let flags = wire::u16_at(message, 2).ok_or(Malformed::Header)?;
        if message.len() < HEADER_LEN
            || message.len() > usize::from(u16::MAX)
            || flags & flag::QR == 0
            || flags & flag::OPCODE != 0
        {
            return Err(Malformed::Header);
        }
        let number = |at| usize::from(wire::u16_at(message, at).unwrap_or_default());
        if number(4) != 1 {
            return Err(Malformed::Question);
        }
        let question_end =
            wire::skip_plain_name(message, HEADER_LEN).ok_or(Malformed::Question)? + 4;
        if question_end > message.len() {
            return Err(Malformed::Question);
        }
        // Room for all but the OPT record that nearly every response ends with, so that it is never more than
        // is needed; a count that promises more than the message holds gets no room for it.
        let room = number(6) + number(8) + number(10).saturating_sub(1);
        let marks = Vec::with_capacity(room.min(message.len() / RECORD_LEN));
        let mut walk = Self { question_end, marks, opt: None };
        let mut at = question_end;
        for (section, count) in [
            (Section::Answer, number(6)),
            (Section::Authority, number(8)),
            (Section::Additional, number(10)),
        ] {
            for _ in 0..count {
                let record = wire::record_at(message, at).ok_or(Malformed::Record)?;
                at = record.end;
                walk.take(message, section, record)?;
            }
        }
        if at == message.len() { Ok(walk) } else { Err(Malformed::Trailing) }
    }

    /// Checks one record and marks it, or remembers it as the OPT record.
    fn take(
        &mut self,
        message: &[u8],
        section: Section,
        record: RecordAt,
    ) -> Result<(), Malformed> {
        if Qtype(record.rtype) == Qtype::OPT {
            if section != Section::Additional || self.opt.is_some() {
                return Err(Malformed::Opt);
            }
            Edns::from_record(message, &record).ok_or(Malformed::Opt)?;
            self.opt = Some(record);
            return Ok(());
        }
        let offset = |at| u16::try_from(at).map_err(|_| Malformed::Record);
        let mark = Mark { start: offset(record.start)?, ttl: offset(record.ttl_at())?, section };
        self.marks.push(mark);
        let sound =
            self.is_sound_name(message, record.start) && self.is_sound_rdata(message, &record);
        if sound { Ok(()) } else { Err(Malformed::Record) }
    }

    /// Tells whether a name can be read at `at`, none of it in the TTL or the address of a record
    /// marked so far: both may change when they are served, and names must not.
    fn is_sound_name(&self, message: &[u8], at: usize) -> bool {
        let mut name = [0; MAX_NAME_LEN];
        let is_clear = |stretch: Range<usize>| {
            let next =
                self.marks.partition_point(|mark| changing_end(message, mark) <= stretch.start);
            self.marks.get(next).is_none_or(|mark| usize::from(mark.ttl) >= stretch.end)
        };
        wire::expand_name_where(message, at, &mut name, is_clear).is_some()
    }

    /// Tells whether the data of a record has the shape of its type: every type whose names may be
    /// compressed, and addresses. Other types are opaque (RFC 3597 §4) and pass.
    fn is_sound_rdata(&self, message: &[u8], record: &RecordAt) -> bool {
        let Some((before, names, behind)) = shape(record) else { return true };
        let mut at = record.rdata + before;
        for _ in 0..names {
            match wire::skip_name(message, at) {
                Some(next) if next <= record.end && self.is_sound_name(message, at) => at = next,
                _ => return false,
            }
        }
        at + behind == record.end
    }
}

/// Where the bytes that may change begin with the TTL of a record, they end here: behind its TTL, or
/// behind its data where that is an address.
fn changing_end(message: &[u8], mark: &Mark) -> usize {
    let ttl = usize::from(mark.ttl);
    let word = |at: Option<usize>| at.and_then(|at| wire::u16_at(message, at)).unwrap_or_default();
    let is_address = word(ttl.checked_sub(2)) == Qclass::IN.0
        && matches!(Qtype(word(ttl.checked_sub(4))), Qtype::A | Qtype::AAAA);
    let length = if is_address { word(Some(ttl + 4)) } else { 0 };
    ttl + if is_address { 6 + usize::from(length) } else { 4 }
}

/// Bytes before the first name, number of names, bytes behind the last; `None` for opaque data.
fn shape(record: &RecordAt) -> Option<(usize, usize, usize)> {
    let internet = record.class == Qclass::IN.0;
    match record.rtype {
        1 => internet.then_some((4, 0, 0)),                     // A
        28 => internet.then_some((16, 0, 0)),                   // AAAA
        33 => internet.then_some((6, 1, 0)),                    // SRV
        2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => Some((0, 1, 0)), // NS MD MF CNAME MB MG MR PTR DNAME
        6 => Some((0, 2, 20)),                                  // SOA
        14 | 17 => Some((0, 2, 0)),                             // MINFO RP
        15 | 18 | 21 => Some((2, 1, 0)),                        // MX AFSDB RT
        _ => None,
    }
}

/// The first extended error among the options of `opt`.
pub(super) fn extended_error(message: &[u8], opt: &RecordAt) -> Option<Ede> {
    edns::options(message.get(opt.rdata..opt.end)?)
        .flatten()
        .find(|(code, _)| *code == OPTION_EDE)
        .and_then(|(_, data)| Ede::from_option(data))
}

/// Encodes `message`, which `walk` went over, anew with its OPT record last; and walks the result.
///
/// Taking OPT out from between other records would move names that later records point at, so this
/// rare form goes through hickory's decoder and encoder.
///
/// # Errors
/// [`Malformed::Record`] when hickory cannot read it or would leave a record out for want of room,
/// [`Malformed::Opt`] when OPT still is not last (TSIG comes behind it).
pub(super) fn with_opt_last(message: &[u8], walk: &Walk) -> Result<(Vec<u8>, Walk), Malformed> {
    let decoded = hickory_proto::op::Message::from_vec(message).map_err(|_| Malformed::Record)?;
    let moved = decoded.to_vec().map_err(|_| Malformed::Record)?;
    let again = Walk::over(&moved)?;
    if again.marks.len() != walk.marks.len() {
        return Err(Malformed::Record);
    }
    if again.opt.is_none_or(|opt| opt.end != moved.len()) {
        return Err(Malformed::Opt);
    }
    Ok((moved, again))
}

/// Tells whether the zone whose name stands at `zone` holds the qname, or a target of the answer's aliases.
pub(super) fn is_about(
    message: &[u8],
    records: impl Iterator<Item = (Section, RecordAt)>,
    zone: usize,
) -> bool {
    let (mut zone_buffer, mut name_buffer) = ([0; MAX_NAME_LEN], [0; MAX_NAME_LEN]);
    let length = wire::expand_name(message, zone, &mut zone_buffer).unwrap_or_default();
    let zone = &zone_buffer[..length];
    let is_alias = |section, rtype| section == Section::Answer && Qtype(rtype) == Qtype::CNAME;
    let aliases = records.filter(|(section, record)| is_alias(*section, record.rtype));
    aliases.map(|(_, alias)| alias.rdata).chain([HEADER_LEN]).any(|at| {
        let length = wire::expand_name(message, at, &mut name_buffer).unwrap_or_default();
        suffixes(&name_buffer[..length]).any(|suffix| suffix.eq_ignore_ascii_case(zone))
    })
}
