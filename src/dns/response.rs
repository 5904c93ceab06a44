//! A response as nodens keeps it: wire bytes with marks, fitted to each stub resolver when served.
//!
//! [`Encoded`] is made once, from an upstream's message or a local one, without OPT and with every
//! name and length checked. [`Encoded::fit`] writes it for one query: id, flags, the question's
//! case, aged TTLs, OPT, cut to size. It allocates nothing.

use thiserror::Error;

use super::ede::Ede;
use super::edns::{self, Edns, OPT_LEN, OPTION_EDE};
use super::name::Name;
use super::query::QueryView;
use super::ttl::Ttl;
use super::wire::{self, RecordAt, flag};
use super::{HEADER_LEN, MAX_NAME_LEN, Qclass, Qtype, Rcode};

/// A section of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where one record of an [`Encoded`] begins and where its TTL stands.
#[derive(Clone, Copy, Debug)]
struct Mark {
    start: u16,
    ttl: u16,
    section: Section,
}

/// One response in wire form, whole: never truncated, no OPT record, id 0.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Header, one question, records in section order.
    wire: Box<[u8]>,
    /// One per record, in wire order.
    marks: Box<[Mark]>,
    question_end: usize,
    rcode: Rcode,
    /// The extended error that came with it, as ready option bytes; empty when there is none.
    options: Box<[u8]>,
}

/// Why bytes are not a response that can be kept.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("shorter than a header, or not a response")]
    Header,
    #[error("not exactly one well-formed question")]
    Question,
    #[error("a record is malformed or cut off")]
    Record,
    #[error("more than one OPT record, or a broken one")]
    Opt,
    #[error("bytes behind the last record")]
    Trailing,
}

/// How TTLs are written when a response is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aging {
    /// As stored: just received, or made from a local source.
    Fresh,
    /// Less by this many seconds, never below 0.
    Elapsed(u32),
    /// Past its lifetime: 30 s everywhere, with the extended error "Stale Answer".
    Stale,
}

/// The extended errors "Stale Answer" and "Stale NXDOMAIN Answer" as option bytes.
const STALE_OPTIONS: [[u8; 6]; 2] = [[0, 15, 0, 2, 0, 3], [0, 15, 0, 2, 0, 19]];

impl Encoded {
    /// Reads a response message, as an upstream sent it or as hickory encoded it.
    ///
    /// OPT is taken out (an extended error in it is kept; client subnet and the rest are not), TTLs
    /// are capped, owner names that repeat the question lose their 0x20 case.
    ///
    /// # Errors
    /// [`Malformed`] when a name, a length or a count does not hold.
    pub fn from_wire(message: &[u8]) -> Result<Self, Malformed> {
        let walk = Walk::over(message)?;
        if walk.opt.is_none_or(|opt| opt.end == message.len()) {
            return Self::from_walk(message, walk);
        }
        let message = with_opt_last(message)?;
        let walk = Walk::over(&message)?;
        if walk.opt.is_some_and(|opt| opt.end != message.len()) {
            return Err(Malformed::Opt);
        }
        Self::from_walk(&message, walk)
    }

    /// Takes a walked message whose OPT record, if it has one, comes last.
    fn from_walk(message: &[u8], walk: Walk) -> Result<Self, Malformed> {
        let mut rcode = wire::u16_at(message, 2).ok_or(Malformed::Header)? & flag::RCODE;
        let mut options = Vec::new();
        if let Some(opt) = &walk.opt {
            let edns = Edns::from_record(message, opt).ok_or(Malformed::Opt)?;
            rcode |= u16::from(edns.rcode_high) << 4;
            if let Some(ede) = extended_error(message, opt) {
                edns::push_ede(&mut options, &ede);
            }
        }
        let end = walk.opt.map_or(message.len(), |opt| opt.start);
        let mut encoded = Self {
            wire: message[..end].into(),
            marks: walk.marks.into(),
            question_end: walk.question_end,
            rcode: Rcode(rcode),
            options: options.into(),
        };
        encoded.normalise();
        Ok(encoded)
    }

    /// Clears the id, caps the TTLs, folds owner names that repeat the question.
    fn normalise(&mut self) {
        wire::put_u16(&mut self.wire, 0, 0);
        write_counts(&self.marks, false, &mut self.wire);
        let (head, records) = self.wire.split_at_mut(self.question_end);
        let qname = &head[HEADER_LEN..self.question_end - 4];
        for mark in &self.marks {
            let start = usize::from(mark.start) - self.question_end;
            if let Some(owner) = records.get_mut(start..start + qname.len())
                && owner.eq_ignore_ascii_case(qname)
            {
                wire::fold(owner);
            }
        }
        self.map_ttls(|ttl| ttl);
    }

    /// Rewrites every TTL, capped to [`Ttl::MAX`] before and after.
    pub fn map_ttls(&mut self, map: impl Fn(Ttl) -> Ttl) {
        for mark in &self.marks {
            let at = usize::from(mark.ttl);
            let ttl = Ttl::from_wire(wire::u32_at(&self.wire, at).unwrap_or_default());
            wire::put_u32(&mut self.wire, at, map(ttl).as_secs());
        }
    }

    pub fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// The question's type.
    pub fn qtype(&self) -> Qtype {
        Qtype(wire::u16_at(&self.wire, self.question_end - 4).unwrap_or_default())
    }

    /// The question as it stands in the message: qname with the sender's case, qtype, qclass.
    pub fn question(&self) -> &[u8] {
        &self.wire[HEADER_LEN..self.question_end]
    }

    /// The stored flags word: AA and AD as the source set them, the others without meaning.
    fn flags(&self) -> u16 {
        wire::u16_at(&self.wire, 2).unwrap_or_default()
    }

    /// Sets or clears AA: local and cluster answers carry it, forwarded ones never.
    #[must_use]
    pub fn with_authority(self, authoritative: bool) -> Self {
        self.with_flag(flag::AA, authoritative)
    }

    /// Sets or clears AD, which a forwarder without validation only passes on when told to.
    #[must_use]
    pub fn with_authentic_data(self, authentic: bool) -> Self {
        let authentic = authentic && self.flags() & flag::AD != 0;
        self.with_flag(flag::AD, authentic)
    }

    fn with_flag(mut self, bit: u16, set: bool) -> Self {
        let flags = if set { self.flags() | bit } else { self.flags() & !bit };
        wire::put_u16(&mut self.wire, 2, flags);
        self
    }

    /// The extended error that came with the response.
    pub fn ede(&self) -> Option<Ede> {
        edns::options(&self.options).flatten().next().and_then(|(_, data)| Ede::from_option(data))
    }

    /// The records in wire order.
    pub fn records(&self) -> impl Iterator<Item = (Section, RecordAt)> {
        self.marks.iter().filter_map(|mark| {
            Some((mark.section, wire::record_at(&self.wire, usize::from(mark.start))?))
        })
    }

    /// The whole message's bytes; offsets of [`Encoded::records`] count in them.
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// The TTL of a record of this message.
    pub fn ttl_of(&self, record: &RecordAt) -> Ttl {
        Ttl::from_wire(wire::u32_at(&self.wire, record.ttl_at()).unwrap_or_default())
    }

    /// The smallest TTL of all records; `None` when there are none.
    pub fn min_ttl(&self) -> Option<Ttl> {
        self.records().map(|(_, record)| self.ttl_of(&record)).min()
    }

    /// Tells whether the answer section holds a record of the question's type (ANY matches all).
    pub fn has_answer(&self) -> bool {
        let qtype = self.qtype();
        self.answer_types().any(|rtype| rtype == qtype || qtype == Qtype::ANY)
    }

    /// The types of the answer section's records.
    pub fn answer_types(&self) -> impl Iterator<Item = Qtype> {
        self.records()
            .filter(|(section, _)| *section == Section::Answer)
            .map(|(_, record)| Qtype(record.rtype))
    }

    /// Tells whether this is a negative response: NXDOMAIN, or NODATA.
    ///
    /// Source: RFC 2308 §2
    pub fn is_negative(&self) -> bool {
        self.rcode == Rcode::NXDOMAIN || (self.rcode == Rcode::NOERROR && !self.has_answer())
    }

    /// How long the negative fact holds: the least of the SOA's TTL and its MINIMUM field.
    ///
    /// `None` without an SOA in the authority section.
    ///
    /// Source: RFC 2308 §5
    pub fn negative_ttl(&self) -> Option<Ttl> {
        let (_, soa) = self.records().find(|(section, record)| {
            *section == Section::Authority && Qtype(record.rtype) == Qtype::SOA
        })?;
        let minimum = wire::u32_at(&self.wire, soa.end.checked_sub(4)?)?;
        Some(self.ttl_of(&soa).min(Ttl::from_wire(minimum)))
    }

    /// Tells whether nothing but delegation came back: NOERROR, no answer, NS without SOA.
    pub fn is_referral(&self) -> bool {
        let mut authority = self.records().filter(|(section, _)| *section != Section::Additional);
        let mut has_ns = false;
        self.rcode == Rcode::NOERROR
            && authority.all(|(section, record)| {
                has_ns |= Qtype(record.rtype) == Qtype::NS;
                section == Section::Authority && Qtype(record.rtype) != Qtype::SOA
            })
            && has_ns
    }

    /// Bytes that this value owns on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.wire.len() + self.marks.len() * size_of::<Mark>() + self.options.len()
    }

    /// The most that [`Encoded::fit`] can write, whatever its limit.
    pub fn max_fitted_len(&self) -> usize {
        self.wire.len() + OPT_LEN + self.options.len().max(STALE_OPTIONS[0].len())
    }

    /// Writes the response to `query` into `out`, at most `limit` bytes; gives back its length.
    ///
    /// What does not fit is left out record by record from the end; TC is set when answer or
    /// authority records were left out (RFC 2181 §9).
    ///
    /// `query` must have the question that this response answers, but for case; `limit` is at least
    /// 512 and `out` at least as long as the lesser of `limit` and [`Encoded::max_fitted_len`].
    pub fn fit(&self, query: &QueryView<'_>, aging: Aging, limit: usize, out: &mut [u8]) -> usize {
        let limit = limit.min(out.len());
        let options = self.fitting_options(query, aging, limit);
        let opt_len = query.edns().map_or(0, |_| OPT_LEN + options.len());
        let (kept, end) = self.cut(limit.saturating_sub(opt_len));
        out[..end].copy_from_slice(&self.wire[..end]);
        let question = query.question();
        debug_assert_eq!(question.len(), self.question_end - HEADER_LEN);
        out[HEADER_LEN..self.question_end].copy_from_slice(question);
        let lost_required =
            self.marks.get(kept).is_some_and(|mark| mark.section != Section::Additional);
        wire::put_u16(out, 0, query.id());
        wire::put_u16(out, 2, self.fitted_flags(query, lost_required));
        self.age(aging, kept, out);
        let mut end = end;
        if query.edns().is_some() {
            let high = u8::try_from(self.rcode.0 >> 4).unwrap_or_default();
            end = edns::write_opt(out, end, high, query.dnssec_ok(), options);
        }
        write_counts(&self.marks[..kept], query.edns().is_some(), out);
        end
    }

    /// The options that go into the OPT record: none where they would take room that records need.
    fn fitting_options(&self, query: &QueryView<'_>, aging: Aging, limit: usize) -> &[u8] {
        let options: &[u8] = match aging {
            Aging::Stale => &STALE_OPTIONS[usize::from(self.rcode == Rcode::NXDOMAIN)],
            _ => &self.options,
        };
        let fits = self.wire.len() + OPT_LEN + options.len() <= limit;
        if query.edns().is_some() && fits { options } else { &[] }
    }

    /// How many records fit into `room` bytes, and where the last of them ends.
    fn cut(&self, room: usize) -> (usize, usize) {
        if self.wire.len() <= room {
            return (self.marks.len(), self.wire.len());
        }
        // Record k ends where record k + 1 starts; the last one does not fit, else all would.
        let fitting = self.marks.iter().skip(1).take_while(|next| usize::from(next.start) <= room);
        let kept = fitting.count();
        let end = if kept == 0 { self.question_end } else { usize::from(self.marks[kept].start) };
        (kept, end)
    }

    /// The flags word of the response to `query`.
    fn fitted_flags(&self, query: &QueryView<'_>, truncated: bool) -> u16 {
        let mut flags = flag::QR
            | flag::RA
            | (query.flags() & (flag::RD | flag::CD))
            | (self.flags() & flag::AA)
            | (self.rcode.0 & flag::RCODE);
        if truncated {
            flags |= flag::TC;
        }
        if query.wants_authentic_data() {
            flags |= self.flags() & flag::AD;
        }
        flags
    }

    /// Writes the TTLs of the first `kept` records.
    fn age(&self, aging: Aging, kept: usize, out: &mut [u8]) {
        let marks = self.marks.iter().take(kept).map(|mark| usize::from(mark.ttl));
        match aging {
            Aging::Fresh | Aging::Elapsed(0) => {}
            Aging::Elapsed(age) => {
                for at in marks {
                    let stored = wire::u32_at(out, at).unwrap_or_default();
                    wire::put_u32(out, at, stored.saturating_sub(age));
                }
            }
            Aging::Stale => marks.for_each(|at| wire::put_u32(out, at, Ttl::STALE.as_secs())),
        }
    }
}

/// Writes the section counts for the records of `marks` and, with `opt`, the OPT record.
fn write_counts(marks: &[Mark], opt: bool, out: &mut [u8]) {
    let mut counts = [0u16; 3];
    for mark in marks {
        counts[mark.section as usize] += 1;
    }
    counts[2] += u16::from(opt);
    for (index, count) in counts.into_iter().enumerate() {
        wire::put_u16(out, 6 + 2 * index, count);
    }
}

/// What one pass over a response finds.
struct Walk {
    question_end: usize,
    marks: Vec<Mark>,
    opt: Option<RecordAt>,
}

impl Walk {
    /// Checks header, question and every record of `message`.
    fn over(message: &[u8]) -> Result<Self, Malformed> {
        let flags = wire::u16_at(message, 2).ok_or(Malformed::Header)?;
        if message.len() < HEADER_LEN
            || message.len() > usize::from(u16::MAX)
            || flags & flag::QR == 0
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
        let mut walk = Self { question_end, marks: Vec::new(), opt: None };
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
        let mut owner = [0; MAX_NAME_LEN];
        wire::expand_name(message, record.start, &mut owner).ok_or(Malformed::Record)?;
        if !is_sound_rdata(message, &record) {
            return Err(Malformed::Record);
        }
        let offset = |at| u16::try_from(at).map_err(|_| Malformed::Record);
        let mark = Mark { start: offset(record.start)?, ttl: offset(record.ttl_at())?, section };
        self.marks.push(mark);
        Ok(())
    }
}

/// Tells whether the data of a record has the shape of its type: every type whose names may be
/// compressed, and addresses. Other types are opaque (RFC 3597 §4) and pass.
fn is_sound_rdata(message: &[u8], record: &RecordAt) -> bool {
    /// Bytes before the first name, number of names, bytes behind the last.
    const fn shape(rtype: u16) -> Option<(usize, usize, usize)> {
        match rtype {
            1 => Some((4, 0, 0)),                                   // A
            28 => Some((16, 0, 0)),                                 // AAAA
            2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => Some((0, 1, 0)), // NS MD MF CNAME MB MG MR PTR DNAME
            6 => Some((0, 2, 20)),                                  // SOA
            14 | 17 => Some((0, 2, 0)),                             // MINFO RP
            15 | 18 | 21 => Some((2, 1, 0)),                        // MX AFSDB RT
            33 => Some((6, 1, 0)),                                  // SRV
            _ => None,
        }
    }
    if record.class != Qclass::IN.0 {
        return true;
    }
    let Some((before, names, behind)) = shape(record.rtype) else { return true };
    let mut at = record.rdata + before;
    let mut name = [0; MAX_NAME_LEN];
    for _ in 0..names {
        let sound = wire::expand_name(message, at, &mut name).is_some();
        match wire::skip_name(message, at) {
            Some(next) if sound && next <= record.end => at = next,
            _ => return false,
        }
    }
    at + behind == record.end
}

/// The first extended error among the options of `opt`.
fn extended_error(message: &[u8], opt: &RecordAt) -> Option<Ede> {
    edns::options(message.get(opt.rdata..opt.end)?)
        .flatten()
        .find(|(code, _)| *code == OPTION_EDE)
        .and_then(|(_, data)| Ede::from_option(data))
}

/// Encodes `message` anew with its OPT record last.
///
/// Taking OPT out from between other records would move names that later records point at, so this
/// rare form goes through hickory's decoder and encoder.
fn with_opt_last(message: &[u8]) -> Result<Vec<u8>, Malformed> {
    let message = hickory_proto::op::Message::from_vec(message).map_err(|_| Malformed::Record)?;
    message.to_vec().map_err(|_| Malformed::Record)
}

/// The owner name of a record, folded.
pub fn owner_of(message: &[u8], record: &RecordAt) -> Option<Name> {
    Name::from_message(message, record.start)
}
