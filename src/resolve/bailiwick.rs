//! What of a response belongs to its question: the rest is neither cached nor handed on. Pure.
//!
//! The answer is about the qname and where its aliases lead, the authority section says of zones above these what
//! they are and who serves them, and the additional section is about names that the others lead to. All are of the
//! question's class.
//!
//! Source: RFC 2181 §5.4.1, RFC 5452 §6

use hickory_proto::op::Message;
use smallvec::{SmallVec, smallvec};

use crate::dns::name::suffixes;
use crate::dns::response::{Encoded, Section};
use crate::dns::wire::{self, RecordAt};
use crate::dns::{HEADER_LEN, MAX_NAME_LEN, Qtype, Rcode};

/// Aliases that one answer may lead over; what comes behind is not looked at.
const MAX_CHAIN: usize = 32;

/// Names that the other records may lead to before what is said of them is let be: a thousand endpoints and their
/// addresses would be a million comparisons.
const MAX_TARGETS: usize = 64;

/// What a response is left with, and whether that is still a response.
#[derive(Debug)]
pub enum Scrubbed {
    /// It says something about its question.
    Sound(Encoded),
    /// It said things, but none about its question.
    Stray,
}

/// Takes out what does not belong to the question. A response that all belongs to it, which nearly every one
/// does, is looked at and given back as it is; no allocation then.
pub fn scrub(encoded: Encoded) -> Scrubbed {
    if Scope::of(&encoded, false).is_some() {
        return Scrubbed::Sound(encoded);
    }
    match without_strays(&encoded) {
        Some(rest) if !is_emptied(&encoded, &rest) => Scrubbed::Sound(rest),
        _ => Scrubbed::Stray,
    }
}

/// Tells whether an answer that held records holds none any more, and nothing says that there are none.
fn is_emptied(before: &Encoded, after: &Encoded) -> bool {
    before.answer_types().next().is_some()
        && after.answer_types().next().is_none()
        && after.rcode() == Rcode::NOERROR
        && after.negative_ttl().is_none()
}

/// The response without its strays, written anew, since names may point into them.
fn without_strays(encoded: &Encoded) -> Option<Encoded> {
    let scope = Scope::of(encoded, true)?;
    let mut message = Message::from_vec(encoded.as_wire()).ok()?;
    let mut kept = scope.kept.into_iter();
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        section.retain(|_| kept.next().unwrap_or_default());
    }
    let rest = Encoded::from_wire(&message.to_vec().ok()?).ok()?;
    Some(match encoded.ede() {
        Some(ede) => rest.with_ede(&ede),
        None => rest,
    })
}

/// Names that a response may speak of, as offsets in it.
struct Scope<'a> {
    wire: &'a [u8],
    /// The question's.
    class: Option<u16>,
    /// The qname and the targets of its aliases.
    chain: SmallVec<[usize; 8]>,
    /// Other names that records lead to.
    targets: SmallVec<[usize; 8]>,
    /// A record leads to names that are not read here.
    is_open: bool,
    /// Whether each record belongs to the question; empty where all do.
    kept: Vec<bool>,
}

impl<'a> Scope<'a> {
    /// The scope of a response; `None` at the first stray, unless `with_strays`, which takes aliases in any order
    /// and notes what to keep.
    fn of(encoded: &'a Encoded, with_strays: bool) -> Option<Self> {
        let (targets, kept) = (SmallVec::new(), Vec::new());
        let chain = smallvec![HEADER_LEN];
        let class = encoded.question().last_chunk().map(|class| u16::from_be_bytes(*class));
        let wire = encoded.as_wire();
        let mut scope = Self { wire, class, chain, targets, is_open: false, kept };
        if with_strays {
            scope.follow_all(encoded);
        }
        for (section, record) in encoded.records() {
            let belongs = scope.admits(section, &record);
            if belongs {
                scope.widen(section, &record);
            } else if !with_strays {
                return None;
            }
            if with_strays {
                scope.kept.push(belongs);
            }
        }
        Some(scope)
    }

    /// Follows the aliases of the answer, in whatever order they stand.
    fn follow_all(&mut self, encoded: &Encoded) {
        let aliases: Vec<RecordAt> = encoded
            .records()
            .filter(|(section, record)| {
                *section == Section::Answer && Qtype(record.rtype) == Qtype::CNAME
            })
            .map(|(_, record)| record)
            .filter(|record| Some(record.class) == self.class)
            .collect();
        let mut at = 0;
        while let Some(&name) = self.chain.get(at) {
            let leads = |alias: &&RecordAt| is_same(self.wire, alias.start, name);
            if let Some(alias) = aliases.iter().find(leads) {
                self.lead_to(alias.rdata);
            }
            at += 1;
        }
    }

    /// Adds where an alias leads.
    fn lead_to(&mut self, name: usize) {
        let is_known = self.chain.iter().any(|known| is_same(self.wire, *known, name));
        if !is_known && self.chain.len() < MAX_CHAIN {
            self.chain.push(name);
        }
    }

    /// Tells whether a record belongs to the question.
    fn admits(&self, section: Section, record: &RecordAt) -> bool {
        let is_on = |names: &[usize]| names.iter().any(|at| is_same(self.wire, *at, record.start));
        let is_above = || self.chain.iter().any(|at| is_within(self.wire, *at, record.start));
        let belongs = match (section, Qtype(record.rtype)) {
            (Section::Answer, Qtype::DNAME | Qtype::RRSIG) => is_above(),
            (Section::Answer, _) => is_on(&self.chain),
            // What is signed or proven may stand beside the name.
            (Section::Authority, Qtype::RRSIG | Qtype::NSEC | Qtype::NSEC3) => true,
            (Section::Authority, Qtype::SOA | Qtype::NS | Qtype::DS) => is_above(),
            (Section::Authority, _) => false,
            (Section::Additional, _) => self.is_open || is_on(&self.chain) || is_on(&self.targets),
        };
        belongs && Some(record.class) == self.class
    }

    /// Takes in the names that a record leads to.
    fn widen(&mut self, section: Section, record: &RecordAt) {
        let rtype = Qtype(record.rtype);
        self.is_open |= rtype == Qtype::NAPTR;
        match target_of(record) {
            Some(target) if section == Section::Answer && rtype == Qtype::CNAME => {
                self.lead_to(target);
            }
            Some(target) if self.targets.len() < MAX_TARGETS => self.targets.push(target),
            Some(_) => self.is_open = true,
            None => {}
        }
    }
}

/// Where the name stands that a record leads to, if its type leads to one.
pub(super) fn target_of(record: &RecordAt) -> Option<usize> {
    match Qtype(record.rtype) {
        Qtype::CNAME | Qtype::DNAME | Qtype::PTR | Qtype::NS => Some(record.rdata),
        Qtype::MX | Qtype::SVCB | Qtype::HTTPS => Some(record.rdata + 2),
        Qtype::SRV => Some(record.rdata + 6),
        _ => None,
    }
}

/// Tells whether two names of a message are the same.
fn is_same(message: &[u8], one: usize, other: usize) -> bool {
    let (one, other) = (pointed(message, one), pointed(message, other));
    one == other || with_both(message, one, other, |one, other| one == other)
}

/// Tells whether the name at `inner` is the one at `outer` or below it.
fn is_within(message: &[u8], inner: usize, outer: usize) -> bool {
    with_both(message, inner, outer, |inner, outer| suffixes(inner).any(|suffix| suffix == outer))
}

/// Where a name really begins that is nothing but a pointer.
fn pointed(message: &[u8], at: usize) -> usize {
    match wire::u16_at(message, at) {
        Some(pointer) if pointer >= 0xc000 => usize::from(pointer & 0x3fff),
        _ => at,
    }
}

/// What `tell` says of two names, folded; false where one cannot be read.
fn with_both(
    message: &[u8],
    one: usize,
    other: usize,
    tell: impl FnOnce(&[u8], &[u8]) -> bool,
) -> bool {
    let (mut first, mut second) = ([0; MAX_NAME_LEN], [0; MAX_NAME_LEN]);
    let lengths = wire::expand_name(message, one, &mut first).zip(wire::expand_name(
        message,
        other,
        &mut second,
    ));
    let Some((one, other)) = lengths else { return false };
    wire::fold(&mut first[..one]);
    wire::fold(&mut second[..other]);
    tell(&first[..one], &second[..other])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::testing::{Record, message};

    const A: &[u8] = &[192, 0, 2, 1];

    /// What is left of these records in a response about `www.example.org.`, as owners and types; `None` for a
    /// stray.
    fn left(qtype: Qtype, records: &[Record<'_>]) -> Option<String> {
        left_of(&message("www.example.org", qtype, Rcode::NOERROR, records))
    }

    /// The same of a whole message.
    fn left_of(wire: &[u8]) -> Option<String> {
        match scrub(Encoded::from_wire(wire).expect("well-formed")) {
            Scrubbed::Stray => None,
            Scrubbed::Sound(encoded) => {
                let text = |(_, record): (Section, RecordAt)| {
                    let owner = crate::dns::response::owner_of(encoded.as_wire(), &record);
                    format!("{} {}", owner.expect("a name"), Qtype(record.rtype))
                };
                Some(encoded.records().map(text).collect::<Vec<_>>().join(", "))
            }
        }
    }

    #[test]
    fn what_belongs_to_the_question_stays_and_nothing_else() {
        let a = |owner| Record::answer(owner, Qtype::A, 60, A);
        let alias = |owner, target| Record::answer(owner, Qtype::CNAME, 60, target);
        let ns = |owner, target| Record::authority(owner, Qtype::NS, 60, target);
        let glue = |owner| Record { section: Section::Additional, ..a(owner) };
        let (b, host) = (b"\x01b\x07example\x03net\0", b"\x02ns\x07example\x03org\0");
        let srv = [&[0, 0, 0, 0, 0, 80][..], host].concat();
        let srv = Record::answer("www.example.org", Qtype::SRV, 60, &srv);
        let dname = Record::answer("example.org", Qtype::DNAME, 60, b"\x07example\x03net\0");
        let www = "www.example.org. A";
        for (what, records, expected) in [
            ("an answer", vec![a("WWW.example.org")], Some(www)),
            ("and another", vec![a("www.example.org"), a("victim.example.net")], Some(www)),
            ("another alone", vec![a("victim.example.net")], None),
            ("nothing", vec![], Some("")),
            (
                "aliases in any order, and what they do not lead to",
                vec![a("b.example.net"), a("c.example.net"), alias("www.example.org", b)],
                Some("b.example.net. A, www.example.org. CNAME"),
            ),
            (
                "a ring",
                vec![
                    alias("www.example.org", b),
                    alias("b.example.net", b"\x03www\x07example\x03org\0"),
                ],
                Some("www.example.org. CNAME, b.example.net. CNAME"),
            ),
            (
                "a tree that is an alias",
                vec![
                    dname,
                    alias("www.example.org", b"\x03www\x07example\x03net\0"),
                    a("www.example.net"),
                ],
                Some("example.org. DNAME, www.example.org. CNAME, www.example.net. A"),
            ),
            (
                "zones above and their servers",
                vec![
                    a("www.example.org"),
                    ns("example.org", host),
                    ns("example.net", b),
                    glue("ns.example.org"),
                    glue("b.example.net"),
                ],
                Some("www.example.org. A, example.org. NS, ns.example.org. A"),
            ),
            (
                "where a service is",
                vec![srv, glue("ns.example.org"), glue("victim.example.net")],
                Some("www.example.org. SRV, ns.example.org. A"),
            ),
            ("an SOA above", vec![Record::soa("org", 9, 9)], Some("org. SOA")),
            ("another zone's", vec![Record::soa("example.net", 9, 9)], Some("")),
            ("one below", vec![Record::soa("a.www.example.org", 9, 9)], Some("")),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(left(Qtype::A, &records), expected, "{what}");
        }
    }

    #[test]
    fn a_record_of_another_class_than_the_questions_says_nothing() {
        let a = Record::answer("www.example.org", Qtype::A, 60, A);
        let alias = Record::answer("www.example.org", Qtype::CNAME, 60, b"\x01b\0");
        let soa = Record::soa("example.org", 9, 9);
        for (what, records, expected) in [
            ("the only answer", vec![a], None),
            ("one of two", vec![a, a], Some("www.example.org. A")),
            ("an alias", vec![a, alias], Some("www.example.org. A")),
            ("what proves that there is none", vec![soa], Some("")),
        ] {
            let mut wire = message("www.example.org", Qtype::A, Rcode::NOERROR, &records);
            // Of the last record, in front of its TTL, length and data.
            let behind = 4 + 2 + records.last().expect("one").rdata.len();
            let class = wire.len() - behind - 1;
            for other in [3, 255] {
                wire[class] = other;
                assert_eq!(left_of(&wire), expected.map(str::to_owned), "{what}, {other}");
            }
        }
    }

    #[test]
    fn the_authority_section_is_for_zones_and_proofs() {
        let a = Record::answer("www.example.org", Qtype::A, 60, A);
        let ns = Record::authority("example.org", Qtype::NS, 60, b"\x01b\0");
        let poison = Record::authority("example.org", Qtype::A, 60, A);
        let expected = "www.example.org. A, example.org. NS";
        assert_eq!(left(Qtype::A, &[a, poison, ns]).as_deref(), Some(expected));
    }

    #[test]
    fn a_crowd_of_services_is_not_compared_with_each_of_its_addresses() {
        let host = |n: usize| format!("h{n}.example.org");
        let srv = |n: usize| {
            let target = crate::dns::name::Name::from_text(&host(n)).expect("name");
            [&[0, 0, 0, 0, 0, 80], target.as_wire()].concat()
        };
        let (services, hosts): (Vec<_>, Vec<_>) = (0..100).map(|n| (srv(n), host(n))).unzip();
        let services =
            services.iter().map(|rdata| Record::answer("www.example.org", Qtype::SRV, 60, rdata));
        let glue = hosts.iter().map(|host| Record {
            section: Section::Additional,
            ..Record::answer(host, Qtype::A, 60, A)
        });
        let all: Vec<_> = services.chain(glue).collect();
        let left = left(Qtype::SRV, &all).expect("sound");
        assert_eq!(left.split(", ").count(), 200);
    }
}
