//! A response as nodens keeps it: wire bytes with marks, fitted to each stub resolver when served.
//!
//! How bytes are checked before they become one is `walk`'s business.
//! [`Encoded`] is made once, from an upstream's message or a local one, without OPT and with every
//! name and length checked. [`Encoded::fit`] writes it for one query: id, flags, the question's
//! case, aged TTLs, OPT, cut to size. It allocates nothing.

use thiserror::Error;

use super::ede::Ede;
use super::edns::{self, Edns, OPT_LEN};
use super::name::Name;
use super::query::QueryView;
use super::rotation::Rotation;
use super::ttl::Ttl;
use super::walk::{self, Walk};
use super::wire::{self, RecordAt, flag};
use super::{HEADER_LEN, Qtype, Rcode};

/// A section of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where one record of an [`Encoded`] begins and where its TTL stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) start: u16,
    pub(super) ttl: u16,
    pub(super) section: Section,
}

/// One response in wire form, whole: never truncated, no OPT record, id 0.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Header, one question, records in section order.
    pub(super) wire: Box<[u8]>,
    /// One per record, in wire order.
    pub(super) marks: Box<[Mark]>,
    question_end: usize,
    rcode: Rcode,
    /// The extended error that came with it, as ready option bytes; empty when there is none.
    pub(super) options: Box<[u8]>,
    pub(super) rotation: Rotation,
}

/// Why bytes are not a response that can be kept.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("shorter than a header, or not a response to a query")]
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
        let (message, walk) = walk::with_opt_last(message, &walk)?;
        Self::from_walk(&message, walk)
    }

    /// Takes a walked message whose OPT record, if it has one, comes last.
    fn from_walk(message: &[u8], walk: Walk) -> Result<Self, Malformed> {
        let mut rcode = wire::u16_at(message, 2).ok_or(Malformed::Header)? & flag::RCODE;
        let mut options = Vec::new();
        if let Some(opt) = &walk.opt {
            let edns = Edns::from_record(message, opt).ok_or(Malformed::Opt)?;
            rcode |= u16::from(edns.rcode_high) << 4;
            if let Some(ede) = walk::extended_error(message, opt) {
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
            rotation: Rotation::default(),
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

    /// The response code, its extended bits included.
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

    /// Sets or clears one bit of the flags word.
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
    /// `None` without an SOA in the authority section, of a zone that holds the question's name or one that its
    /// aliases lead to: another zone's SOA proves nothing.
    ///
    /// Source: RFC 2308 §5
    pub fn negative_ttl(&self) -> Option<Ttl> {
        let (_, soa) = self.records().find(|(section, record)| {
            *section == Section::Authority
                && Qtype(record.rtype) == Qtype::SOA
                && walk::is_about(&self.wire, self.records(), record.start)
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
        self.rotate(query.id(), kept, out);
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
    ///
    /// An RRset of the additional section is kept whole or left out whole: nothing but TC would
    /// tell that a part is missing, and TC is not set for additional records (RFC 2181 §9).
    fn cut(&self, room: usize) -> (usize, usize) {
        if self.wire.len() <= room {
            return (self.marks.len(), self.wire.len());
        }
        // Record k ends where record k + 1 starts; the last one does not fit, else all would.
        let fitting = self.marks.iter().skip(1).take_while(|next| usize::from(next.start) <= room);
        let mut kept = fitting.count();
        while kept > 0 && self.is_inside_additional_rrset(kept) {
            kept -= 1;
        }
        let end = if kept == 0 { self.question_end } else { usize::from(self.marks[kept].start) };
        (kept, end)
    }

    /// Tells whether record `index` and the one before it are additional and of one RRset.
    fn is_inside_additional_rrset(&self, index: usize) -> bool {
        match index.checked_sub(1).and_then(|from| self.marks.get(from..=index)) {
            Some([before, here]) if before.section == Section::Additional => {
                wire::is_one_rrset(&self.wire, before.start.into(), here.start.into())
            }
            _ => false,
        }
    }

    /// The flags word of the response to `query`.
    ///
    /// An RCODE above 15 has its upper bits in OPT; without OPT it would read as another one, so it
    /// becomes SERVFAIL.
    fn fitted_flags(&self, query: &QueryView<'_>, truncated: bool) -> u16 {
        let is_extended = self.rcode.0 > flag::RCODE;
        let rcode =
            if is_extended && query.edns().is_none() { Rcode::SERVFAIL } else { self.rcode };
        let mut flags = flag::QR
            | flag::RA
            | (query.flags() & (flag::RD | flag::CD))
            | (self.flags() & flag::AA)
            | (rcode.0 & flag::RCODE);
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

/// The owner name of a record, folded.
pub fn owner_of(message: &[u8], record: &RecordAt) -> Option<Name> {
    Name::from_message(message, record.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::query::Query;
    use hickory_proto::op::Message;

    /// `example.org.` as an owner that points at the question.
    const POINTER: &[u8] = &[0xc0, 12];
    /// `example.org.` spelled out.
    const PLAIN: &[u8] = b"\x07example\x03org\0";
    /// Extended error 22, "down", as an option.
    const EDE: &[u8] = b"\x00\x0f\x00\x06\x00\x16down";
    /// Client subnet 192.0.2.0/24, as an option.
    const SUBNET: &[u8] = b"\x00\x08\x00\x07\x00\x01\x18\x00\xc0\x00\x02";

    /// A message under construction, field by field, so that anything wrong can be written too.
    struct Draft(Vec<u8>);

    impl Draft {
        /// A NOERROR response to `example.org. qtype IN`.
        fn new(qtype: Qtype) -> Self {
            Self::of(PLAIN, qtype)
        }

        /// A NOERROR response to `qname qtype IN`.
        fn of(qname: &[u8], qtype: Qtype) -> Self {
            let mut wire = vec![0xbe, 0xef, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
            wire.extend(qname);
            wire.extend(qtype.0.to_be_bytes());
            wire.extend([0, 1]);
            Self(wire)
        }

        /// Sets the 16-bit word at `at`.
        fn word(mut self, at: usize, value: u16) -> Self {
            wire::put_u16(&mut self.0, at, value);
            self
        }

        /// Appends bytes without counting a record.
        fn bytes(mut self, bytes: &[u8]) -> Self {
            self.0.extend(bytes);
            self
        }

        /// Appends a record of class IN and counts it.
        fn record(self, section: Section, owner: &[u8], rtype: u16, rest: (u32, &[u8])) -> Self {
            self.class_record(section, owner, (rtype, 1), rest)
        }

        fn class_record(
            self,
            section: Section,
            owner: &[u8],
            (rtype, class): (u16, u16),
            (ttl, rdata): (u32, &[u8]),
        ) -> Self {
            let at = 6 + 2 * section as usize;
            let count = wire::u16_at(&self.0, at).expect("header") + 1;
            let len = u16::try_from(rdata.len()).expect("short");
            self.word(at, count)
                .bytes(owner)
                .bytes(&rtype.to_be_bytes())
                .bytes(&class.to_be_bytes())
                .bytes(&ttl.to_be_bytes())
                .bytes(&len.to_be_bytes())
                .bytes(rdata)
        }

        /// Appends an OPT record with these options.
        fn opt(self, rcode_high: u8, options: &[u8]) -> Self {
            let ttl = u32::from(rcode_high) << 24;
            self.class_record(Section::Additional, &[0], (41, 4096), (ttl, options))
        }

        fn encoded(&self) -> Encoded {
            Encoded::from_wire(&self.0).expect("well-formed")
        }

        fn malformed(&self) -> Option<Malformed> {
            Encoded::from_wire(&self.0).err()
        }
    }

    /// SOA data with names that are plain roots, and this MINIMUM.
    fn soa(minimum: u32) -> Vec<u8> {
        [&[0, 0][..], &[0; 16], &minimum.to_be_bytes()].concat()
    }

    /// A query for `qname qtype`, with these header flags, perhaps with EDNS and DO.
    fn asked(qname: &[u8], qtype: Qtype, flags: u16, dnssec_ok: Option<bool>) -> Vec<u8> {
        let name = Name::from_wire(qname).expect("qname");
        let mut query = Query::new(name, qtype);
        query.dnssec_ok = dnssec_ok.unwrap_or_default();
        let mut wire = query.to_wire(0x1234, qname, dnssec_ok.is_some());
        wire::put_u16(&mut wire, 2, flags);
        wire
    }

    /// `encoded` fitted for `query`; checked to parse with hickory, to fit, and to count right.
    fn fitted(encoded: &Encoded, query: &[u8], aging: Aging, limit: usize) -> Vec<u8> {
        let view = QueryView::parse(query).expect("well-formed query");
        let mut out = vec![0xaa; limit.min(encoded.max_fitted_len())];
        let len = encoded.fit(&view, aging, limit, &mut out);
        assert!(len <= limit, "{len} > {limit}");
        out.truncate(len);
        let message = Message::from_vec(&out).expect("hickory reads what we send");
        assert_eq!(message.edns.is_some(), view.edns().is_some());
        Walk::over(&out).expect("we read what we send: counts and end hold");
        out
    }

    fn flags_of(wire: &[u8]) -> u16 {
        wire::u16_at(wire, 2).expect("header")
    }

    /// The TTLs of all records but OPT.
    fn ttls(wire: &[u8]) -> Vec<u32> {
        let walk = Walk::over(wire).expect("well-formed");
        walk.marks.iter().map(|mark| wire::u32_at(wire, mark.ttl.into()).expect("inside")).collect()
    }

    /// Twelve answers, four authority records, six additional ones (two RRsets of three), OPT with EDE.
    fn big() -> Encoded {
        let mut draft = Draft::new(Qtype::TXT);
        for n in 0..12 {
            let text = [&[60][..], &[b'a' + n; 60]].concat();
            draft = draft.record(Section::Answer, POINTER, 16, (300, &text));
        }
        for n in 0..4 {
            draft = draft.record(Section::Authority, POINTER, 2, (300, &[1, b'a' + n, 0xc0, 12]));
        }
        for (owner, rtype, rdata) in [(b'a', 1, &[192, 0, 2, 1][..]), (b'b', 28, &[0x20; 16])] {
            for _ in 0..3 {
                let owner = [1, owner, 0xc0, 12];
                draft = draft.record(Section::Additional, &owner, rtype, (300, rdata));
            }
        }
        draft.opt(0, EDE).encoded()
    }

    #[test]
    fn a_fitted_message_parses_fits_and_says_tc_only_when_a_required_record_is_left_out() {
        let encoded = big();
        for dnssec_ok in [None, Some(false), Some(true)] {
            let query = asked(b"\x07eXaMpLe\x03oRg\0", Qtype::TXT, flag::RD, dnssec_ok);
            for limit in 512..=encoded.max_fitted_len() + 20 {
                let out = fitted(&encoded, &query, Aging::Elapsed(1), limit);
                let walk = Walk::over(&out).expect("well-formed");
                let required = walk.marks.iter().filter(|m| m.section != Section::Additional);
                assert_eq!(flags_of(&out) & flag::TC != 0, required.count() < 16, "limit {limit}");
                let additional = walk.marks.len().saturating_sub(16);
                assert_eq!(additional % 3, 0, "half an additional RRset at limit {limit}");
                assert_eq!(&out[12..28], &query[12..28], "the question's case");
            }
        }
    }

    #[test]
    fn a_limit_that_holds_everything_leaves_nothing_out_and_one_byte_less_does() {
        let encoded = big();
        let plain = asked(PLAIN, Qtype::TXT, flag::RD, None);
        let whole = encoded.as_wire().len();
        assert_eq!(fitted(&encoded, &plain, Aging::Fresh, whole).len(), whole);
        let less = fitted(&encoded, &plain, Aging::Fresh, whole - 1);
        assert_eq!(Walk::over(&less).expect("well-formed").marks.len(), 19);
        assert_eq!(flags_of(&less) & flag::TC, 0, "additional records are no loss");
    }

    #[test]
    fn the_extended_error_is_kept_and_gives_way_to_records() {
        let encoded = big();
        assert_eq!(encoded.ede().expect("kept").text, "down");
        let query = asked(PLAIN, Qtype::TXT, flag::RD, Some(false));
        let limit = encoded.max_fitted_len();
        for (limit, kept) in [(limit, true), (limit - 1, false)] {
            let out = fitted(&encoded, &query, Aging::Fresh, limit);
            assert_eq!(out.windows(4).any(|four| four == b"down"), kept);
            assert_eq!(Walk::over(&out).expect("well-formed").marks.len(), 22);
        }
        let plain = asked(PLAIN, Qtype::TXT, flag::RD, None);
        let out = fitted(&encoded, &plain, Aging::Fresh, 65535);
        assert!(!out.windows(4).any(|four| four == b"down"), "no OPT asked, none given");
    }

    #[test]
    fn options_other_than_the_extended_error_are_dropped() {
        for options in [&[SUBNET, EDE].concat(), &[EDE, SUBNET].concat()] {
            let encoded = Draft::new(Qtype::A)
                .record(Section::Answer, POINTER, 1, (60, &[192, 0, 2, 1]))
                .opt(0, options)
                .encoded();
            let query = asked(PLAIN, Qtype::A, flag::RD, Some(false));
            let out = fitted(&encoded, &query, Aging::Fresh, 65535);
            assert!(out.ends_with(EDE));
            assert!(!out.windows(SUBNET.len()).any(|part| part == SUBNET));
        }
        let only_subnet = Draft::new(Qtype::A).opt(0, SUBNET).encoded();
        assert_eq!(only_subnet.ede(), None);
    }

    #[test]
    fn an_opt_record_between_others_is_taken_out_and_names_behind_it_still_hold() {
        let address = [192, 0, 2, 1];
        let encoded = Draft::new(Qtype::NS)
            .record(Section::Answer, POINTER, 2, (0x8000_0001, b"\x02ns\xc0\x0c"))
            .opt(0, EDE)
            .record(Section::Additional, &[0xc0, 41], 1, (60, &address))
            .record(Section::Additional, b"\x05other\xc0\x0c", 1, (60, &address))
            .record(Section::Additional, &[0xc0, 83], 28, (60, &[0x20; 16]))
            .encoded();
        assert_eq!(encoded.ede().expect("kept").code.0, 22);
        let owners: Vec<_> = encoded
            .records()
            .map(|(_, record)| owner_of(encoded.as_wire(), &record).expect("owner").to_string())
            .collect();
        let (ns, other) = ("ns.example.org.", "other.example.org.");
        assert_eq!(owners, ["example.org.", ns, other, other]);
        assert_eq!(encoded.min_ttl().map(Ttl::as_secs), Some(60));
        assert_eq!(ttls(encoded.as_wire())[0], Ttl::MAX.as_secs());
        let query = asked(PLAIN, Qtype::NS, flag::RD, Some(false));
        let out = fitted(&encoded, &query, Aging::Fresh, 65535);
        assert!(out.ends_with(EDE));
    }

    #[test]
    fn ttls_are_capped_aged_down_to_zero_and_thirty_when_stale() {
        let address = &[192, 0, 2, 1][..];
        let encoded = Draft::new(Qtype::A)
            .record(Section::Answer, POINTER, 1, (u32::MAX, address))
            .record(Section::Answer, POINTER, 1, (0x8000_0000, address))
            .record(Section::Answer, POINTER, 1, (100, address))
            .record(Section::Answer, POINTER, 1, (0, address))
            .encoded();
        let max = Ttl::MAX.as_secs();
        let query = asked(PLAIN, Qtype::A, flag::RD, Some(false));
        for (aging, expected) in [
            (Aging::Fresh, [max, max, 100, 0]),
            (Aging::Elapsed(0), [max, max, 100, 0]),
            (Aging::Elapsed(99), [max - 99, max - 99, 1, 0]),
            (Aging::Elapsed(u32::MAX), [0; 4]),
            (Aging::Stale, [30; 4]),
        ] {
            let out = fitted(&encoded, &query, aging, 1232);
            assert_eq!(ttls(&out), expected, "{aging:?}");
            assert_eq!(out.ends_with(&STALE_OPTIONS[0]), aging == Aging::Stale);
        }
    }

    #[test]
    fn a_stale_nxdomain_says_so() {
        let encoded = Draft::new(Qtype::A)
            .word(2, 0x8183)
            .record(Section::Authority, POINTER, 6, (60, &soa(60)))
            .encoded();
        let query = asked(PLAIN, Qtype::A, flag::RD, Some(false));
        assert!(fitted(&encoded, &query, Aging::Stale, 512).ends_with(&[0, 15, 0, 2, 0, 19]));
    }

    #[test]
    fn flags_come_from_the_query_and_the_policy_never_from_upstream() {
        let (aa, ad) = (flag::AA, flag::AD);
        for query_flags in 0..=u16::MAX {
            let allowed = flag::RD | flag::CD | flag::AD | 0x0040 | flag::AA | flag::TC | flag::RA;
            if query_flags & !allowed != 0 {
                continue;
            }
            let query = asked(PLAIN, Qtype::A, query_flags, None);
            for (encoded, own) in [
                (Draft::new(Qtype::A).word(2, 0x87f0).encoded(), aa | ad),
                (Draft::new(Qtype::A).word(2, 0x87f0).encoded().with_authority(false), ad),
                (Draft::new(Qtype::A).word(2, 0x87f0).encoded().with_authentic_data(false), aa),
                (Draft::new(Qtype::A).word(2, 0x8000).encoded().with_authentic_data(true), 0),
            ] {
                let own = if query_flags & ad == 0 { own & !ad } else { own };
                let echoed = query_flags & (flag::RD | flag::CD);
                let out = fitted(&encoded, &query, Aging::Fresh, 512);
                assert_eq!(flags_of(&out), flag::QR | flag::RA | echoed | own, "{query_flags:04x}");
                assert_eq!(wire::u16_at(&out, 0), Some(0x1234));
            }
        }
    }

    #[test]
    fn the_do_bit_is_echoed_and_asks_for_ad() {
        let encoded = Draft::new(Qtype::A).word(2, 0x81a0).encoded();
        for (dnssec_ok, ad) in [(true, flag::AD), (false, 0)] {
            let query = asked(PLAIN, Qtype::A, flag::RD, Some(dnssec_ok));
            let out = fitted(&encoded, &query, Aging::Fresh, 512);
            assert_eq!(flags_of(&out) & flag::AD, ad);
            assert_eq!(out[out.len() - 4] & 0x80 != 0, dnssec_ok);
        }
    }

    #[test]
    fn an_extended_rcode_needs_edns_and_is_servfail_without() {
        let encoded = Draft::new(Qtype::A).opt(1, &[]).encoded();
        assert_eq!(encoded.rcode(), Rcode::BADVERS);
        let with = fitted(&encoded, &asked(PLAIN, Qtype::A, 0, Some(false)), Aging::Fresh, 512);
        assert_eq!((flags_of(&with) & flag::RCODE, with[with.len() - 6]), (0, 1));
        let without = fitted(&encoded, &asked(PLAIN, Qtype::A, 0, None), Aging::Fresh, 512);
        assert_eq!(flags_of(&without) & flag::RCODE, Rcode::SERVFAIL.0, "not NOERROR");
        let mixed = Draft::new(Qtype::A).word(2, 0x8183).opt(1, &[]).encoded();
        assert_eq!(mixed.rcode(), Rcode(19));
        assert!(!mixed.is_negative(), "19 is not NXDOMAIN");
    }

    #[test]
    fn a_response_is_negative_by_rcode_or_by_the_absence_of_the_qtype() {
        let (cname, address) = ((60, &b"\x01a\xc0\x0c"[..]), (60, &[192, 0, 2, 1][..]));
        let a = || Draft::new(Qtype::A);
        for (what, draft, negative) in [
            ("NODATA", a(), true),
            ("an address", a().record(Section::Answer, POINTER, 1, address), false),
            ("a chain without end", a().record(Section::Answer, POINTER, 5, cname), true),
            (
                "a chain with its end",
                a().record(Section::Answer, POINTER, 5, cname).record(
                    Section::Answer,
                    b"\x01a\xc0\x0c",
                    1,
                    address,
                ),
                false,
            ),
            (
                "a chain that ends in NXDOMAIN",
                a().word(2, 0x8183).record(Section::Answer, POINTER, 5, cname),
                true,
            ),
            ("glue only", a().record(Section::Additional, POINTER, 1, address), true),
            (
                "the CNAME itself",
                Draft::new(Qtype::CNAME).record(Section::Answer, POINTER, 5, cname),
                false,
            ),
            ("ANY", Draft::new(Qtype::ANY).record(Section::Answer, POINTER, 5, cname), false),
            ("SERVFAIL", a().word(2, 0x8182), false),
        ] {
            assert_eq!(draft.encoded().is_negative(), negative, "{what}");
        }
    }

    #[test]
    fn a_negative_ttl_is_the_least_of_the_soas_ttl_and_its_minimum() {
        for (ttl, minimum, expected) in
            [(60, 30, 30), (30, 60, 30), (u32::MAX, u32::MAX, Ttl::MAX.as_secs()), (5, 0, 0)]
        {
            let draft =
                Draft::new(Qtype::A).record(Section::Authority, POINTER, 6, (ttl, &soa(minimum)));
            assert_eq!(draft.encoded().negative_ttl().map(Ttl::as_secs), Some(expected));
        }
        for section in [Section::Answer, Section::Additional] {
            let draft = Draft::new(Qtype::A).record(section, POINTER, 6, (60, &soa(60)));
            assert_eq!(draft.encoded().negative_ttl(), None, "{section:?}");
        }
        assert_eq!(Draft::new(Qtype::A).encoded().negative_ttl(), None);
    }

    #[test]
    fn the_soa_of_a_zone_that_holds_none_of_the_names_is_worth_nothing() {
        let soa = soa(60);
        let draft = |zone| Draft::new(Qtype::A).record(Section::Authority, zone, 6, (60, &soa));
        for (zone, is_about) in [
            (&b"\0"[..], true),
            (b"\x03oRg\0", true),
            (b"\x03net\0", false),
            (b"\x05other\x03org\0", false),
            (b"\x02rg\0", false),
        ] {
            assert_eq!(draft(zone).encoded().negative_ttl().is_some(), is_about, "{zone:?}");
        }
        let target = b"\x01a\x03net\0";
        let alias = Draft::new(Qtype::A).record(Section::Answer, POINTER, 5, (60, target));
        let alias = alias.record(Section::Authority, b"\x03net\0", 6, (60, &soa));
        assert!(alias.encoded().negative_ttl().is_some(), "it is about the alias's target");
    }

    #[test]
    fn only_a_response_to_a_query_is_kept() {
        for (flags, refused) in
            [(0x8180, None), (0x0180, Some(Malformed::Header)), (0xa980, Some(Malformed::Header))]
        {
            assert_eq!(Draft::new(Qtype::A).word(2, flags).malformed(), refused, "{flags:04x}");
        }
    }

    #[test]
    fn an_soa_has_its_shape_in_every_class() {
        for class in [1, 3, 255] {
            let draft = Draft::new(Qtype::A).class_record(
                Section::Authority,
                POINTER,
                (6, class),
                (60, &[]),
            );
            assert_eq!(draft.malformed(), Some(Malformed::Record), "class {class}");
        }
        let chaos_address = b"\x01a\0\x00\x01"; // RFC 1035 §3.3: in class CH it is a name and a number
        let draft = Draft::new(Qtype::A).class_record(
            Section::Answer,
            POINTER,
            (1, 3),
            (60, chaos_address),
        );
        assert_eq!(draft.malformed(), None);
    }

    #[test]
    fn owner_names_lose_the_0x20_case_and_data_keeps_its_own() {
        let odd = b"\x07eXaMpLe\x03oRg\0";
        let encoded = Draft::of(odd, Qtype::TXT)
            .record(Section::Answer, odd, 16, (60, b"\x02Hi"))
            .record(Section::Answer, POINTER, 16, (60, b"\x10\x07eXaMpLe\x03oRg\0..."))
            .encoded();
        assert_eq!(encoded.question(), [&odd[..], &[0, 16, 0, 1]].concat());
        let query = asked(b"\x07EXAMPLE\x03ORG\0", Qtype::TXT, 0, None);
        let out = fitted(&encoded, &query, Aging::Fresh, 512);
        assert_eq!(&out[12..25], b"\x07EXAMPLE\x03ORG\0");
        assert_eq!(&out[29..42], PLAIN);
        assert!(out.ends_with(b"\x10\x07eXaMpLe\x03oRg\0..."));
    }

    /// Checks that each draft is refused for its reason.
    fn refused<const N: usize>(cases: [(&str, Draft, Malformed); N]) {
        for (what, draft, why) in cases {
            assert_eq!(draft.malformed(), Some(why), "{what}");
        }
    }

    #[test]
    fn messages_without_one_whole_header_and_question_are_refused() {
        let a = || Draft::new(Qtype::A);
        let at = a().0.len();
        let tail = vec![0; 65536 - at];
        refused([
            ("empty", Draft(vec![]), Malformed::Header),
            ("eleven bytes", Draft(a().0[..11].to_vec()), Malformed::Header),
            ("a query", a().word(2, 0x0100), Malformed::Header),
            ("65,536 bytes", a().bytes(&tail), Malformed::Header),
            ("no question", a().word(4, 0), Malformed::Question),
            ("two questions", a().word(4, 2), Malformed::Question),
            ("a question cut off", Draft(a().0[..at - 1].to_vec()), Malformed::Question),
            ("a compressed qname", Draft::of(POINTER, Qtype::A), Malformed::Question),
            ("a tail", a().bytes(&[0]), Malformed::Trailing),
        ]);
    }

    #[test]
    fn messages_with_a_broken_record_are_refused() {
        let address = (60, &[192, 0, 2, 1][..]);
        let here = u8::try_from(Draft::new(Qtype::A).0.len()).expect("small");
        let owner = |owner: &[u8]| Draft::new(Qtype::A).record(Section::Answer, owner, 1, address);
        let data = |rtype, data: &[u8]| {
            Draft::new(Qtype::A).record(Section::Answer, POINTER, rtype, (60, data))
        };
        let cut = Draft::new(Qtype::A).word(6, 1).bytes(b"\0\0\x01\0\x01\0\0\0\0\xff\xff");
        let why = Malformed::Record;
        refused([
            ("a record too few", Draft::new(Qtype::A).word(6, 1), why),
            ("65,535 records", Draft::new(Qtype::A).word(6, u16::MAX), why),
            ("data beyond the end", cut, why),
            ("an owner that points at itself", owner(&[0xc0, here]), why),
            ("an owner that points forward", owner(&[0xc0, here + 4]), why),
            ("an owner that points into the header", owner(&[0xc0, 2]), why),
            ("a label of a type that does not exist", owner(&[0x41, 0]), why),
            ("an address of three bytes", data(1, &[1, 2, 3]), why),
            ("an IPv6 address of four", data(28, &[1, 2, 3, 4]), why),
            ("a CNAME with a tail", data(5, &[0, 0]), why),
            ("a CNAME that ends outside", data(5, &[3, b'a']), why),
            ("an empty SRV", data(33, &[]), why),
            ("an SOA without numbers", data(6, &[0, 0]), why),
        ]);
    }

    #[test]
    fn messages_with_a_broken_opt_record_are_refused() {
        let a = || Draft::new(Qtype::A);
        let elsewhere = a().class_record(Section::Answer, &[0], (41, 512), (0, &[]));
        let named = a().record(Section::Additional, POINTER, 41, (0, &[]));
        refused([
            ("two OPT records", a().opt(0, &[]).opt(0, &[]), Malformed::Opt),
            ("OPT in the answer", elsewhere, Malformed::Opt),
            ("OPT with a name", named, Malformed::Opt),
            ("an option cut off", a().opt(0, &[0, 15, 0, 9, 0]), Malformed::Opt),
        ]);
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_is_refused_or_served_whole() {
        let draft = Draft::new(Qtype::MX)
            .record(Section::Answer, POINTER, 15, (300, b"\0\x0a\x04mail\xc0\x0c"))
            .record(Section::Authority, PLAIN, 6, (300, &soa(60)))
            .opt(0, EDE)
            .record(Section::Additional, b"\x04mail\xc0\x0c", 1, (300, &[192, 0, 2, 1]));
        let query = asked(PLAIN, Qtype::MX, flag::RD, Some(true));
        let view = QueryView::parse(&query).expect("well-formed");
        for end in 0..draft.0.len() {
            assert!(Encoded::from_wire(&draft.0[..end]).is_err(), "prefix of {end}");
        }
        for at in 0..draft.0.len() {
            for value in 0..=255 {
                let mut wire = draft.0.clone();
                wire[at] = value;
                let Ok(encoded) = Encoded::from_wire(&wire) else { continue };
                if encoded.question().len() != view.question().len() {
                    continue;
                }
                let mut out = [0; 1232];
                let len = encoded.fit(&view, Aging::Elapsed(7), 1232, &mut out);
                Walk::over(&out[..len]).expect("served whole");
            }
        }
    }

    #[test]
    fn a_name_that_reads_a_ttl_is_refused_for_ttls_change() {
        // The TTL of the first record spells the label "abc" behind its length; the second one's owner points at it.
        let ttl = u32::from_be_bytes(*b"\x03abc");
        let wire = Draft::new(Qtype::A).record(Section::Answer, POINTER, 1, (ttl, &[0, 1, 1, 1]));
        let at = u8::try_from(wire.0.len() - 10).expect("small");
        let draft = wire.record(Section::Answer, &[0xc0, at], 1, (60, &[192, 0, 2, 1]));
        assert_eq!(draft.malformed(), Some(Malformed::Record));
    }

    #[test]
    fn a_long_chain_of_pointers_is_refused_for_its_cost() {
        // 4,000 pointers in opaque data, each to the one before it.
        let mut draft = Draft::new(Qtype::TXT);
        let first = draft.0.len() + 12;
        let mut chain = vec![0xc0, 12];
        for n in 1..4000 {
            let target = u16::try_from(first + 2 * (n - 1)).expect("below 16 KiB");
            chain.extend((0xc000 | target).to_be_bytes());
        }
        draft = draft.record(Section::Answer, POINTER, 999, (60, &chain));
        let last = u16::try_from(first + chain.len() - 2).expect("below 16 KiB") | 0xc000;
        let draft = draft.record(Section::Answer, &last.to_be_bytes(), 999, (60, &[]));
        assert_eq!(draft.malformed(), Some(Malformed::Record));
    }

    #[test]
    fn names_of_255_bytes_pass_and_of_256_do_not() {
        let long = |last: usize| {
            let labels = [63, 63, 63, last];
            let mut name: Vec<u8> = labels
                .iter()
                .flat_map(|len| {
                    [vec![u8::try_from(*len).expect("short")], vec![b'x'; *len]].concat()
                })
                .collect();
            name.push(0);
            name
        };
        let address = (60, &[192, 0, 2, 1][..]);
        let fits = Draft::of(&long(61), Qtype::A).record(Section::Answer, POINTER, 1, address);
        let query = asked(&long(61), Qtype::A, 0, Some(true));
        assert_eq!(fitted(&fits.encoded(), &query, Aging::Fresh, 512).len(), 12 + 259 + 16 + 11);
        assert_eq!(Draft::of(&long(62), Qtype::A).malformed(), Some(Malformed::Question));
        let owner = Draft::new(Qtype::A).record(Section::Answer, &long(62), 1, address);
        assert_eq!(owner.malformed(), Some(Malformed::Record));
        let by_pointer = [&[1, b'a'][..], POINTER].concat();
        let grown = Draft::of(&long(61), Qtype::A).record(Section::Answer, &by_pointer, 1, address);
        assert_eq!(grown.malformed(), Some(Malformed::Record));
    }

    #[test]
    fn pointers_reach_16_kib_and_records_reach_the_end_of_64() {
        let mut draft = Draft::new(Qtype::TXT);
        while draft.0.len() < 64_000 {
            draft = draft.record(Section::Answer, POINTER, 16, (60, &[0; 1000]));
        }
        let left = 65_535 - draft.0.len() - 12;
        draft = draft.record(Section::Answer, POINTER, 16, (60, &vec![0; left]));
        let encoded = draft.encoded();
        assert_eq!(encoded.as_wire().len(), 65_535);
        for dnssec_ok in [None, Some(true)] {
            let query = asked(PLAIN, Qtype::TXT, 0, dnssec_ok);
            let out = fitted(&encoded, &query, Aging::Stale, 65_535);
            assert_eq!(flags_of(&out) & flag::TC != 0, dnssec_ok.is_some(), "OPT needs room");
        }
    }

    #[test]
    fn a_referral_is_ns_without_soa_or_answer() {
        let ns = (60, &[0][..]);
        let referral = Draft::new(Qtype::A).record(Section::Authority, POINTER, 2, ns);
        assert!(referral.encoded().is_referral());
        let with_soa = referral.record(Section::Authority, POINTER, 6, (60, &soa(60)));
        assert!(!with_soa.encoded().is_referral());
        let answered = Draft::new(Qtype::NS).record(Section::Answer, POINTER, 2, ns);
        assert!(!answered.encoded().is_referral());
        assert!(!Draft::new(Qtype::A).encoded().is_referral());
    }
}
