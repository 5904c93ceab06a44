//! A stub resolver's query: read once from the wire, refused early, or turned into a value.
//!
//! [`QueryView`] borrows from the datagram and allocates nothing; [`Query`] owns what `resolve` needs.

use super::edns::Edns;
use super::name::Name;
use super::wire::{self, flag};
use super::{HEADER_LEN, Qclass, Qtype, Rcode};

/// The least that a stub resolver takes by UDP, whatever it advertises.
///
/// Source: RFC 1035 §2.3.4, RFC 6891 §6.2.3
const MIN_UDP_SIZE: usize = 512;

/// A well-formed query of opcode QUERY with one question, as it lies in the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct QueryView<'a> {
    /// The whole message.
    wire: &'a [u8],
    /// The first byte behind the question.
    question_end: usize,
    edns: Option<Edns>,
}

/// Why a message is not a query that can be worked on, and so what goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing goes back: no whole header, or a response (QR set), which would start a loop.
    Silence,
    /// The header alone goes back with this RCODE: there is no question to echo.
    Header(Rcode),
}

impl<'a> QueryView<'a> {
    /// Reads `wire` as a query.
    ///
    /// All records must be well-formed and end where the message ends; one OPT at most, in the
    /// additional section. Opcodes other than QUERY are NOTIMP, everything else malformed FORMERR.
    ///
    /// # Errors
    /// [`Refusal`] says what to answer instead.
    ///
    /// Source: RFC 1035 §4.1, RFC 6891 §6.1.1, RFC 9619 (one question)
    pub fn parse(wire: &'a [u8]) -> Result<Self, Refusal> {
        if wire.len() < HEADER_LEN {
            return Err(Refusal::Silence);
        }
        let number = |at| wire::u16_at(wire, at).unwrap_or_default();
        let flags = number(2);
        if flags & flag::QR != 0 {
            return Err(Refusal::Silence);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Refusal::Header(Rcode::NOTIMP));
        }
        let malformed = Refusal::Header(Rcode::FORMERR);
        if number(4) != 1 {
            return Err(malformed);
        }
        let question_end = wire::skip_plain_name(wire, HEADER_LEN).ok_or(malformed)? + 4;
        if question_end > wire.len() {
            return Err(malformed);
        }
        let additional_from = usize::from(number(6)) + usize::from(number(8));
        let records = additional_from + usize::from(number(10));
        let edns = read_records(wire, question_end, records, additional_from).ok_or(malformed)?;
        Ok(Self { wire, question_end, edns })
    }

    /// The message's id.
    pub fn id(&self) -> u16 {
        wire::u16_at(self.wire, 0).unwrap_or_default()
    }

    /// The flags word.
    pub fn flags(&self) -> u16 {
        wire::u16_at(self.wire, 2).unwrap_or_default()
    }

    /// The qname in wire form, with the case that the stub resolver chose.
    pub fn qname(&self) -> &'a [u8] {
        self.wire.get(HEADER_LEN..self.question_end - 4).unwrap_or_default()
    }

    /// The question's bytes: qname, qtype, qclass.
    pub fn question(&self) -> &'a [u8] {
        self.wire.get(HEADER_LEN..self.question_end).unwrap_or_default()
    }

    /// The question's type.
    pub fn qtype(&self) -> Qtype {
        Qtype(wire::u16_at(self.wire, self.question_end - 4).unwrap_or_default())
    }

    /// The question's class.
    pub fn qclass(&self) -> Qclass {
        Qclass(wire::u16_at(self.wire, self.question_end - 2).unwrap_or_default())
    }

    /// What the OPT record says, where there is one.
    pub fn edns(&self) -> Option<Edns> {
        self.edns
    }

    /// Tells whether the stub resolver wants DNSSEC records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Tells whether the stub resolver asks us (or those behind us) not to validate.
    pub fn checking_disabled(&self) -> bool {
        self.flags() & flag::CD != 0
    }

    /// Tells whether the stub resolver wants the work done for it (RD).
    pub fn recursion_desired(&self) -> bool {
        self.flags() & flag::RD != 0
    }

    /// Tells whether the stub resolver understands the AD bit of a response.
    ///
    /// Source: RFC 6840 §5.7
    pub fn wants_authentic_data(&self) -> bool {
        self.dnssec_ok() || self.flags() & flag::AD != 0
    }

    /// The largest UDP response, in bytes, that this stub resolver takes, `ours` being our own limit.
    pub fn udp_limit(&self, ours: u16) -> usize {
        let theirs = self.edns.map_or(MIN_UDP_SIZE, |edns| usize::from(edns.payload));
        theirs.min(usize::from(ours)).max(MIN_UDP_SIZE)
    }

    /// The owned form.
    pub fn to_query(&self) -> Query {
        Query {
            qname: Name::from_wire(self.qname()).expect("parse has walked the qname"),
            qtype: self.qtype(),
            qclass: self.qclass(),
            recursion_desired: self.recursion_desired(),
            checking_disabled: self.checking_disabled(),
            dnssec_ok: self.dnssec_ok(),
        }
    }
}

/// Walks `count` records from `at` to the end of `wire`; the OPT record's content, if there is one.
///
/// `additional_from` is the index of the first record of the additional section.
/// `None` when anything is malformed.
fn read_records(
    wire: &[u8],
    mut at: usize,
    count: usize,
    additional_from: usize,
) -> Option<Option<Edns>> {
    let mut edns = None;
    for index in 0..count {
        let record = wire::record_at(wire, at)?;
        at = record.end;
        if record.rtype != Qtype::OPT.0 {
            continue;
        }
        if index < additional_from || edns.is_some() {
            return None;
        }
        edns = Some(Edns::from_record(wire, &record)?);
    }
    (at == wire.len()).then_some(edns)
}

/// A question with what shapes its answer; identical queries share one exchange and one cache entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Folded.
    pub qname: Name,
    pub qtype: Qtype,
    pub qclass: Qclass,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    pub dnssec_ok: bool,
}

impl Query {
    /// An ordinary query of class IN: RD set, CD and DO clear.
    pub fn new(qname: Name, qtype: Qtype) -> Self {
        Self {
            qname,
            qtype,
            qclass: Qclass::IN,
            recursion_desired: true,
            checking_disabled: false,
            dnssec_ok: false,
        }
    }

    /// Encodes the query for an upstream, with EDNS (without client subnet or any other option) if `edns`.
    ///
    /// `qname` is written as given, so that a caller may choose its case (0x20); it must be the
    /// query's own name but for case.
    pub fn to_wire(&self, id: u16, qname: &[u8], edns: bool) -> Vec<u8> {
        debug_assert!(qname.eq_ignore_ascii_case(self.qname.as_wire()));
        let question_end = HEADER_LEN + qname.len() + 4;
        let mut out = Vec::with_capacity(question_end + super::edns::OPT_LEN);
        out.resize(HEADER_LEN, 0);
        let mut flags = 0;
        for (set, bit) in [(self.recursion_desired, flag::RD), (self.checking_disabled, flag::CD)] {
            if set {
                flags |= bit;
            }
        }
        wire::put_u16(&mut out, 0, id);
        wire::put_u16(&mut out, 2, flags);
        wire::put_u16(&mut out, 4, 1);
        out.extend_from_slice(qname);
        out.extend_from_slice(&self.qtype.0.to_be_bytes());
        out.extend_from_slice(&self.qclass.0.to_be_bytes());
        if edns {
            wire::put_u16(&mut out, 10, 1);
            out.resize(question_end + super::edns::OPT_LEN, 0);
            super::edns::write_opt(&mut out, question_end, 0, self.dnssec_ok, &[]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `example.org. A IN`, RD, id 7, no EDNS.
    fn plain() -> Vec<u8> {
        let query = Query::new(Name::from_text("Example.org").expect("name"), Qtype::A);
        query.to_wire(7, b"\x07eXample\x03org\0", false)
    }

    fn with(mut wire: Vec<u8>, at: usize, value: u16) -> Vec<u8> {
        wire::put_u16(&mut wire, at, value);
        wire
    }

    fn opt(payload: u16, version: u8, options: &[u8]) -> Vec<u8> {
        let mut out = vec![0; OPT + options.len()];
        crate::dns::edns::write_opt(&mut out, 0, 0, true, options);
        wire::put_u16(&mut out, 3, payload);
        out[6] = version;
        out
    }
    const OPT: usize = crate::dns::edns::OPT_LEN;

    #[test]
    fn a_query_keeps_its_case_in_the_view_and_folds_it_in_the_value() {
        let wire = plain();
        let view = QueryView::parse(&wire).expect("well-formed");
        assert_eq!(view.id(), 7);
        assert_eq!(view.qname(), b"\x07eXample\x03org\0");
        assert!(view.recursion_desired() && !view.checking_disabled() && !view.dnssec_ok());
        assert_eq!(view.udp_limit(1232), 512);
        assert_eq!(view.to_query().qname.to_string(), "example.org.");
    }

    #[test]
    fn edns_sizes_are_fitted_between_512_and_our_own_limit() {
        for (payload, limit) in [(0, 512), (100, 512), (600, 600), (4096, 1232), (65535, 1232)] {
            let mut wire = with(plain(), 10, 1);
            wire.extend(opt(payload, 0, &[]));
            let view = QueryView::parse(&wire).expect("well-formed");
            assert_eq!(view.udp_limit(1232), limit, "{payload}");
            assert!(view.dnssec_ok());
        }
    }

    #[test]
    fn malformed_queries_are_refused_as_design_8_says() {
        let formerr = Refusal::Header(Rcode::FORMERR);
        let mut two_opts = with(plain(), 10, 2);
        two_opts.extend(opt(1232, 0, &[]));
        two_opts.extend(opt(1232, 0, &[]));
        let mut opt_in_answer = with(plain(), 6, 1);
        opt_in_answer.extend(opt(1232, 0, &[]));
        let mut cut_option = with(plain(), 10, 1);
        cut_option.extend(opt(1232, 0, &[0, 10, 0, 8, 1]));
        let mut named_opt = with(plain(), 10, 1);
        named_opt.extend(b"\x01a");
        named_opt.extend(opt(1232, 0, &[]));
        let mut trailing = plain();
        trailing.push(0);
        let compressed = [&plain()[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
        for (what, wire, refusal) in [
            ("too short for a header", plain()[..11].to_vec(), Refusal::Silence),
            ("a response", with(plain(), 2, 0x8100), Refusal::Silence),
            ("a NOTIFY", with(plain(), 2, 0x2000), Refusal::Header(Rcode::NOTIMP)),
            ("opcode 15", with(plain(), 2, 0x7800), Refusal::Header(Rcode::NOTIMP)),
            ("no question", plain()[..12].to_vec(), formerr),
            ("QDCOUNT 0", with(plain(), 4, 0), formerr),
            ("two questions", with(plain(), 4, 2), formerr),
            ("a question cut off", plain()[..20].to_vec(), formerr),
            ("a missing record", with(plain(), 10, 1), formerr),
            ("two OPT records", two_opts, formerr),
            ("OPT in the answer section", opt_in_answer, formerr),
            ("an option cut off", cut_option, formerr),
            ("an OPT record with a name", named_opt, formerr),
            ("bytes behind the end", trailing, formerr),
            ("a compressed qname", compressed, formerr),
        ] {
            assert_eq!(QueryView::parse(&wire).map(|_| ()), Err(refusal), "{what}");
        }
    }

    #[test]
    fn an_upstream_query_carries_no_option() {
        let mut query = Query::new(Name::from_text("example.org").expect("name"), Qtype::AAAA);
        query.dnssec_ok = true;
        let wire = query.to_wire(1, query.qname.as_wire(), true);
        let view = QueryView::parse(&wire).expect("well-formed");
        assert!(view.dnssec_ok());
        assert!(wire.ends_with(&[0, 0]), "no options");
    }
}
