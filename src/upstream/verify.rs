//! Whether to believe what came back: everything that is compared with what was asked.
//!
//! Pure. A message that does not answer the query is no answer at all: it is ignored and the
//! exchange goes on waiting. What answers it is either conclusive or a resolution failure.
//!
//! Source: RFC 5452 §9.1

use rand::RngExt;

use crate::dns::ede::{Ede, EdeCode};
use crate::dns::edns::Edns;
use crate::dns::query::Query;
use crate::dns::response::{Encoded, Section};
use crate::dns::wire::{self, RecordAt, flag};
use crate::dns::{HEADER_LEN, MAX_NAME_LEN, Qtype, Rcode};

/// A query as it went out, and how strictly its response is compared.
#[derive(Debug)]
pub struct Asked {
    wire: Vec<u8>,
    question_end: usize,
    exact_case: bool,
    edns: bool,
}

/// How a query is written and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub edns: bool,
    /// Letters of the qname get a random case (0x20).
    pub mix_case: bool,
    /// The response must echo that case.
    pub exact_case: bool,
    /// Ask with AD set, so that the upstream says whether it validated (RFC 6840 §5.7).
    pub want_ad: bool,
}

/// What one message from an upstream is worth.
#[derive(Debug)]
pub enum Verdict {
    /// Not the response to this query: another id, opcode or question, or malformed.
    Ignored,
    /// The response but for the qname's case: a guess, or an upstream that does not echo case.
    WrongCase,
    /// The response, cut to fit a datagram.
    Truncated,
    /// NOERROR or NXDOMAIN. `echoed`: the qname's case came back as sent. `knows_edns`: the query's OPT was
    /// read, if it had one.
    Conclusive { encoded: Encoded, echoed: bool, knows_edns: bool },
    /// A response that ends nothing: another RCODE, a referral, or an answer about other names.
    Failure { rcode: Rcode, ede: Option<Ede>, edns_refused: bool },
}

/// The longest datagram to who sent no OPT (RFC 1035 §4.2.1).
const PLAIN_LEN: usize = 512;

/// A name that is nothing but a pointer to the question's.
const TO_QUESTION: u16 = 0xc000 | HEADER_LEN as u16;

/// What a referral from a recursive resolver is reported as.
const REFERRAL: Ede = Ede::new(EdeCode::INVALID_DATA, "the upstream sent a referral");

/// What a response that is about other names is reported as.
pub const STRAY: Ede = Ede::new(EdeCode::INVALID_DATA, "the upstream answered about other names");

/// What a response that is cut even on a stream is reported as.
const CUT_STREAM: Ede = Ede::new(EdeCode::INVALID_DATA, "truncated although sent by TCP");

impl Asked {
    /// Writes `query` with a random id.
    pub fn new(query: &Query, style: Style) -> Self {
        let mut rng = rand::rng();
        let id = rng.random();
        let mut wire = query.to_wire(id, query.qname.as_wire(), style.edns);
        let question_end = HEADER_LEN + query.qname.as_wire().len() + 4;
        if style.mix_case {
            mix_case(&mut wire[HEADER_LEN..question_end - 4], &mut rng);
        }
        if style.want_ad {
            let flags = wire::u16_at(&wire, 2).unwrap_or_default();
            wire::put_u16(&mut wire, 2, flags | flag::AD);
        }
        Self { wire, question_end, exact_case: style.exact_case, edns: style.edns }
    }

    /// The message as it goes out.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Judges a datagram that came back on the tuple that the query left on.
    pub fn judge_datagram(&self, message: &[u8]) -> Verdict {
        if wire::u16_at(message, 0) != wire::u16_at(&self.wire, 0) {
            return Verdict::Ignored;
        }
        match self.judge(message) {
            // Without OPT a datagram is no longer than this.
            Verdict::Conclusive { encoded, echoed, .. } if message.len() > PLAIN_LEN => {
                Verdict::Conclusive { encoded, echoed, knows_edns: true }
            }
            other => other,
        }
    }

    /// Judges a message whose id the transport has compared already; a stream never cuts.
    pub fn judge_stream(&self, message: &[u8]) -> Verdict {
        match self.judge(message) {
            Verdict::Truncated => Verdict::Failure {
                rcode: Rcode::SERVFAIL,
                ede: Some(CUT_STREAM),
                edns_refused: false,
            },
            other => other,
        }
    }

    /// Judges a message but for its id.
    fn judge(&self, message: &[u8]) -> Verdict {
        let Some(flags) = wire::u16_at(message, 2) else { return Verdict::Ignored };
        if message.len() < HEADER_LEN || flags & flag::QR == 0 || flags & flag::OPCODE != 0 {
            return Verdict::Ignored;
        }
        match wire::u16_at(message, 4) {
            Some(0) => return self.judge_header(message, flags),
            // Whatever it counts: some send back no more than the header.
            Some(_) if message.len() == HEADER_LEN => return self.judge_header(message, flags),
            Some(1) => {}
            _ => return Verdict::Ignored,
        }
        let asked = &self.wire[HEADER_LEN..self.question_end];
        let Some(answered) = message.get(HEADER_LEN..self.question_end) else {
            return Verdict::Ignored;
        };
        let echoed = asked == answered;
        if !echoed && !self.is_same_question(asked, answered) {
            return Verdict::Ignored;
        }
        if !echoed && self.exact_case {
            return Verdict::WrongCase;
        }
        if flags & flag::TC != 0 {
            return Verdict::Truncated;
        }
        match Encoded::from_wire(message) {
            Ok(encoded) => self.conclude(encoded, echoed, has_opt(message, self.question_end)),
            Err(_) => Verdict::Ignored,
        }
    }

    /// Compares two questions of equal length: the name without case, type and class as they are.
    fn is_same_question(&self, asked: &[u8], answered: &[u8]) -> bool {
        let name = asked.len() - 4;
        asked[name..] == answered[name..] && asked[..name].eq_ignore_ascii_case(&answered[..name])
    }

    /// Judges a response without a question: a failure, from servers that echo nothing, or cut to nothing.
    fn judge_header(&self, message: &[u8], flags: u16) -> Verdict {
        let edns = wire::record_at(message, HEADER_LEN)
            .filter(|record| record.end == message.len() && Qtype(record.rtype) == Qtype::OPT)
            .and_then(|record| Edns::from_record(message, &record));
        let high = edns.map_or(0, |edns| u16::from(edns.rcode_high));
        let rcode = Rcode(high << 4 | flags & flag::RCODE);
        if message.len() != HEADER_LEN && edns.is_none() {
            return Verdict::Ignored;
        }
        if rcode.is_conclusive() {
            // All that a forger gains by a cut response is that the query goes by TCP.
            let is_cut = flags & flag::TC != 0;
            return if is_cut { Verdict::Truncated } else { Verdict::Ignored };
        }
        let edns_refused = self.is_edns_refused(rcode, edns.is_some());
        Verdict::Failure { rcode, ede: None, edns_refused }
    }

    /// Tells knowledge from failure.
    fn conclude(&self, encoded: Encoded, echoed: bool, opt: bool) -> Verdict {
        let rcode = encoded.rcode();
        if encoded.is_referral() {
            let ede = Some(encoded.ede().unwrap_or(REFERRAL));
            return Verdict::Failure { rcode: Rcode::SERVFAIL, ede, edns_refused: false };
        }
        if is_stray(&encoded) {
            return Verdict::Failure {
                rcode: Rcode::SERVFAIL,
                ede: Some(STRAY),
                edns_refused: false,
            };
        }
        if rcode.is_conclusive() {
            // Without OPT nobody sends signatures.
            let knows_edns = opt || encoded.answer_types().any(|rtype| rtype == Qtype::RRSIG);
            return Verdict::Conclusive { encoded, echoed, knows_edns };
        }
        let edns_refused = self.is_edns_refused(rcode, opt);
        Verdict::Failure { rcode, ede: encoded.ede(), edns_refused }
    }

    /// Tells whether a failure says that the server does not know EDNS. FORMERR does so even with OPT: some
    /// servers send back what they could not read, whole.
    ///
    /// Source: RFC 6891 §7
    fn is_edns_refused(&self, rcode: Rcode, opt: bool) -> bool {
        let refused = match rcode {
            Rcode::NOTIMP => !opt,
            Rcode::FORMERR | Rcode::BADVERS => true,
            _ => false,
        };
        self.edns && refused
    }
}

/// Tells whether an answer holds records, but none that anything of it can be about: of the question's class, at
/// the qname, or above it where a whole tree is an alias. What leads on from there is not looked at.
fn is_stray(encoded: &Encoded) -> bool {
    let (message, question) = (encoded.as_wire(), encoded.question());
    let Some((qname, class)) = question
        .split_last_chunk()
        .map(|(rest, class)| (&rest[..rest.len() - 2], u16::from_be_bytes(*class)))
    else {
        return false;
    };
    let is_about = |record: &RecordAt| {
        // Nearly every owner is nothing but a pointer to the question.
        record.class == class
            && (wire::u16_at(message, record.start) == Some(TO_QUESTION)
                || Qtype(record.rtype) == Qtype::DNAME
                || is_name(message, record.start, qname))
    };
    let mut answer = encoded
        .records()
        .take_while(|(section, _)| *section == Section::Answer)
        .map(|(_, record)| record)
        .peekable();
    encoded.rcode() == Rcode::NOERROR
        && answer.peek().is_some()
        && !answer.any(|record| is_about(&record))
        && encoded.negative_ttl().is_none()
}

/// Tells whether the name at `at` is `name`, whatever their case.
fn is_name(message: &[u8], at: usize, name: &[u8]) -> bool {
    let mut owner = [0; MAX_NAME_LEN];
    let length = wire::expand_name(message, at, &mut owner).unwrap_or_default();
    owner[..length].eq_ignore_ascii_case(name)
}

/// Gives each letter of a wire name a random case.
///
/// Source: draft-vixie-dnsext-dns0x20
fn mix_case(name: &mut [u8], rng: &mut impl rand::Rng) {
    for chunk in name.chunks_mut(64) {
        let mut bits: u64 = rng.random();
        for byte in chunk {
            // Length bytes are at most 63, below every letter.
            if byte.is_ascii_alphabetic() && bits & 1 == 1 {
                *byte ^= 0x20;
            }
            bits >>= 1;
        }
    }
}

/// Tells whether a well-formed message holds an OPT record.
fn has_opt(message: &[u8], question_end: usize) -> bool {
    let mut at = question_end;
    std::iter::from_fn(|| {
        let record = wire::record_at(message, at)?;
        at = record.end;
        Some(record)
    })
    .any(|record| Qtype(record.rtype) == Qtype::OPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::name::Name;
    use crate::testing::message;

    const STYLE: Style = Style { edns: true, mix_case: true, exact_case: true, want_ad: false };

    fn asked(style: Style) -> Asked {
        let qname = Name::from_text("a-rather-long-name.example.org").expect("name");
        Asked::new(&Query::new(qname, Qtype::A), style)
    }

    fn with(mut message: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        change(&mut message);
        message
    }

    /// One letter of a verdict.
    fn letter(verdict: &Verdict) -> char {
        match verdict {
            Verdict::Ignored => 'i',
            Verdict::WrongCase => 'w',
            Verdict::Truncated => 't',
            Verdict::Conclusive { .. } => 'c',
            Verdict::Failure { .. } => 'f',
        }
    }

    #[test]
    fn nothing_is_accepted_that_does_not_answer_the_question() {
        let asked = asked(STYLE);
        let good = message::answer_a(asked.wire(), [192, 0, 2, 1], 60);
        let table: &[(&str, Vec<u8>, char)] = &[
            ("the response", good.clone(), 'c'),
            ("another id", with(good.clone(), |m| m[0] ^= 1), 'i'),
            ("a query", with(good.clone(), |m| m[2] &= 0x7f), 'i'),
            ("another opcode", with(good.clone(), |m| m[2] |= 0x28), 'i'),
            ("another qname", with(good.clone(), |m| m[14] = b'0'), 'i'),
            ("another case", with(good.clone(), |m| m[13] ^= 0x20), 'w'),
            ("another qtype", with(good.clone(), |m| m[asked.question_end - 3] = 28), 'i'),
            ("another qclass", with(good.clone(), |m| m[asked.question_end - 1] = 3), 'i'),
            ("two questions", with(good.clone(), |m| m[5] = 2), 'i'),
            ("truncated", with(good.clone(), |m| m[2] |= 2), 't'),
            ("a record cut off", with(good.clone(), |m| m.truncate(m.len() - 1)), 'i'),
            ("bytes behind the end", with(good.clone(), |m| m.push(0)), 'i'),
            ("SERVFAIL", with(good.clone(), |m| m[3] |= 2), 'f'),
            ("a header that says NOERROR", with(good[..12].to_vec(), |m| m[4..12].fill(0)), 'i'),
            ("half a header", good[..7].to_vec(), 'i'),
            ("nothing", Vec::new(), 'i'),
        ];
        for (what, message, verdict) in table {
            assert_eq!(letter(&asked.judge_datagram(message)), *verdict, "{what}");
        }
    }

    #[test]
    fn a_header_alone_is_a_failure_when_its_id_is_right() {
        let asked = asked(STYLE);
        let mut header = asked.wire()[..12].to_vec();
        header[2..12].copy_from_slice(&[0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0]);
        let verdict = asked.judge_datagram(&header);
        assert!(
            matches!(verdict, Verdict::Failure { rcode: Rcode::FORMERR, edns_refused: true, .. }),
            "{verdict:?}"
        );
        // NOERROR in the header, BADVERS with what OPT adds; then nothing but TC, and a count of what is not there.
        let mut badvers = header.clone();
        (badvers[3], badvers[11]) = (0, 1);
        badvers.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
        let verdict = asked.judge_datagram(&badvers);
        let refused =
            matches!(verdict, Verdict::Failure { rcode: Rcode::BADVERS, edns_refused: true, .. });
        assert!(refused, "{verdict:?}");
        for counts in [0, 1] {
            let mut cut = header.clone();
            (cut[2], cut[3], cut[5]) = (0x82, 0, counts);
            assert_eq!(letter(&asked.judge_datagram(&cut)), 't');
            cut[2] = 0x80;
            assert_eq!(letter(&asked.judge_datagram(&cut)), 'i');
            cut[3] = 2;
            assert_eq!(letter(&asked.judge_datagram(&cut)), 'f');
        }
        header[0] ^= 1;
        assert!(matches!(asked.judge_datagram(&header), Verdict::Ignored));
    }

    #[test]
    fn the_case_matters_only_where_it_is_echoed() {
        let asked = asked(Style { exact_case: false, ..STYLE });
        let mut response = message::answer_a(asked.wire(), [192, 0, 2, 1], 60);
        assert!(matches!(
            asked.judge_datagram(&response),
            Verdict::Conclusive { echoed: true, .. }
        ));
        response[HEADER_LEN..asked.question_end].make_ascii_lowercase();
        response[13] = response[13].to_ascii_uppercase();
        response[15] = response[15].to_ascii_uppercase();
        let verdict = asked.judge_datagram(&response);
        assert!(matches!(verdict, Verdict::Conclusive { .. }), "{verdict:?}");
    }

    #[test]
    fn a_referral_is_a_failure() {
        let asked = asked(STYLE);
        let verdict = asked.judge_datagram(&message::referral(asked.wire()));
        assert!(matches!(verdict, Verdict::Failure { rcode: Rcode::SERVFAIL, .. }), "{verdict:?}");
    }

    #[test]
    fn an_answer_about_other_names_or_of_another_class_is_a_failure() {
        let asked = asked(STYLE);
        let alias = b"\x01b\x07example\x03net\0";
        let a = |owner: &[u8]| message::record(owner, Qtype::A, 60, &[192, 0, 2, 1]);
        let cname = message::record(&[0xc0, 12], Qtype::CNAME, 60, alias);
        let dname = message::record(b"\x03org\0", Qtype::DNAME, 60, b"\x03net\0");
        let whole = b"\x12A-RATHER-LONG-NAME\x07example\x03org\0";
        let classed = with(a(&[0xc0, 12]), |record| record[5] = 3);
        for (what, records, verdict) in [
            ("the qname", vec![a(&[0xc0, 12])], 'c'),
            ("written out", vec![a(whole)], 'c'),
            ("at the end of aliases in any order", vec![a(alias), cname], 'c'),
            ("below an alias of a whole tree", vec![dname, a(alias)], 'c'),
            ("another name", vec![a(alias)], 'f'),
            ("another class", vec![classed], 'f'),
            ("nothing", vec![], 'c'),
        ] {
            let wire = message::with_records(asked.wire(), Rcode::NOERROR, [&records, &[]]);
            assert_eq!(letter(&asked.judge_datagram(&wire)), verdict, "{what}");
        }
    }

    #[test]
    fn a_mixed_name_is_the_same_name_with_other_letters() {
        let plain = b"\x3fabcdefghijklmnopqrstuvwxyz-0123456789\0";
        let mixes: std::collections::HashSet<_> = (0..100)
            .map(|_| {
                let mut name = plain.to_vec();
                mix_case(&mut name, &mut rand::rng());
                assert!(name.eq_ignore_ascii_case(plain));
                name
            })
            .collect();
        assert!(mixes.len() > 95, "26 letters give 67 million mixes");
    }
}
