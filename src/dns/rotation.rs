//! The order of addresses: each response begins at another one, so that load spreads.
//!
//! Only the addresses change places, never the records around them. So offsets, compression and
//! size stay, and aliases stay in front of what they lead to.

use super::ede::Ede;
use super::response::{Encoded, Mark, Section};
use super::{Qtype, edns, wire};

/// The address records of an answer that may change places; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotation {
    /// The index of the first record.
    first: u16,
    /// How many there are, one after the other; with fewer than two nothing changes.
    count: u16,
    /// Bytes of one address.
    len: u16,
}

impl Encoded {
    /// Lets every response begin with another address of the answer's A or AAAA RRset.
    ///
    /// Stays as it is without two of them, or where they do not stand together. TTLs within the
    /// RRset become the least of them (RFC 2181 §5.2), since an address takes its neighbour's.
    #[must_use]
    pub fn with_rotation(mut self) -> Self {
        if let Some(rotation) = self.rotatable() {
            let (from, to) = (rotation.first.into(), rotation.first + rotation.count);
            let marks = &self.marks[from..to.into()];
            let ttl = |mark: &Mark| wire::u32_at(&self.wire, mark.ttl.into());
            let least = marks.iter().filter_map(ttl).min().unwrap_or_default();
            for mark in marks {
                wire::put_u32(&mut self.wire, mark.ttl.into(), least);
            }
            self.rotation = rotation;
        }
        self
    }

    /// Gives the records of each RRset that stand together the least of their TTLs.
    ///
    /// Source: RFC 2181 §5.2
    pub fn level_ttls(&mut self) {
        let ttl =
            |wire: &[u8], mark: &Mark| wire::u32_at(wire, mark.ttl.into()).unwrap_or_default();
        let least = self.marks.iter().map(|mark| ttl(&self.wire, mark)).min();
        if self.marks.iter().all(|mark| Some(ttl(&self.wire, mark)) == least) {
            return;
        }
        let mut rest = &self.marks[..];
        while !rest.is_empty() {
            let pairs = rest.windows(2);
            let more = pairs.take_while(|pair| is_one_set(&self.wire, &pair[0], &pair[1])).count();
            let (run, behind) = rest.split_at(1 + more);
            let least = run.iter().map(|mark| ttl(&self.wire, mark)).min().unwrap_or_default();
            for mark in run {
                wire::put_u32(&mut self.wire, mark.ttl.into(), least);
            }
            rest = behind;
        }
    }

    /// Tells whether responses begin with another address each.
    pub fn rotates(&self) -> bool {
        self.rotation.count > 1
    }

    /// Gives the response this extended error instead of its own.
    #[must_use]
    pub fn with_ede(mut self, ede: &Ede) -> Self {
        let mut options = Vec::new();
        edns::push_ede(&mut options, ede);
        self.options = options.into();
        self
    }

    /// The answer's address records, if they are one RRset of two or more that stand together.
    fn rotatable(&self) -> Option<Rotation> {
        let (qtype, len) = match self.qtype() {
            Qtype::A => (Qtype::A, 4),
            Qtype::AAAA => (Qtype::AAAA, 16),
            _ => return None,
        };
        let is_address = |(section, record): &(Section, wire::RecordAt)| {
            *section == Section::Answer && Qtype(record.rtype) == qtype
        };
        let first = self.records().position(|record| is_address(&record))?;
        let starts: Vec<usize> = self
            .records()
            .skip(first)
            .take_while(is_address)
            .map(|(_, record)| record.start)
            .collect();
        let is_whole = self.records().filter(is_address).count() == starts.len();
        let is_one_rrset = starts.iter().all(|at| wire::is_one_rrset(&self.wire, starts[0], *at));
        let count = u16::try_from(starts.len()).ok()?;
        (count > 1 && is_whole && is_one_rrset).then_some(Rotation {
            first: u16::try_from(first).ok()?,
            count,
            len,
        })
    }

    /// Writes the addresses into the first `kept` records of `out`, from the one that `turn` says.
    ///
    /// `turn` is the query's id: stub resolvers draw it at random (RFC 5452 §9.2), while a counter
    /// of ours would give those that ask A and AAAA in turns always the same half. Allocates nothing.
    pub(super) fn rotate(&self, turn: u16, kept: usize, out: &mut [u8]) {
        let Rotation { first, count, len } = self.rotation;
        let (first, count, len) = (usize::from(first), usize::from(count), usize::from(len));
        let by = usize::from(turn).checked_rem(count).unwrap_or_default();
        if by == 0 {
            return;
        }
        let Some(marks) = self.marks.get(first..first + count) else { return };
        let data = |mark: &Mark| usize::from(mark.ttl) + 6; // behind TTL and length
        let from = marks[by..].iter().chain(&marks[..by]);
        for (to, from) in marks.iter().zip(from).take(kept.saturating_sub(first)) {
            let (to, from) = (data(to), data(from));
            out[to..to + len].copy_from_slice(&self.wire[from..from + len]);
        }
    }
}

/// Tells whether two records are of one RRset; signatures of one name may be of several.
fn is_one_set(message: &[u8], one: &Mark, other: &Mark) -> bool {
    let rtype = |mark: &Mark| wire::u16_at(message, usize::from(mark.ttl).saturating_sub(4));
    rtype(one) == rtype(other)
        && rtype(one) != Some(Qtype::RRSIG.0)
        && wire::is_one_rrset(message, one.start.into(), other.start.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Rcode;
    use crate::dns::name::Name;
    use crate::dns::query::{Query, QueryView};
    use crate::dns::response::Aging;
    use crate::dns::testing::{Record, message};
    use hickory_proto::op::Message;

    /// `count` A records of `www.example.org.`, 192.0.2.1 and up, behind an alias, with a signature behind.
    fn addresses(count: u8) -> Vec<u8> {
        let alias = b"\x03www\x07example\x03org\0";
        let mut records = vec![Record::answer("example.org", Qtype::CNAME, 60, alias)];
        let datas: Vec<[u8; 4]> = (1..=count).map(|n| [192, 0, 2, n]).collect();
        records.extend(datas.iter().map(|data| {
            let ttl = 300 - u32::from(data[3]);
            Record::answer("www.example.org", Qtype::A, ttl, data)
        }));
        records.push(Record::answer("www.example.org", Qtype::RRSIG, 60, &[0, 1, 8, 3]));
        message("example.org", Qtype::A, Rcode::NOERROR, &records)
    }

    /// The data of all answer records as they are served to a query with this id.
    fn served(encoded: &Encoded, id: u16, limit: usize) -> (Vec<String>, bool) {
        let query = Query::new(Name::from_text("example.org").expect("name"), encoded.qtype());
        let wire = query.to_wire(id, query.qname.as_wire(), false);
        let view = QueryView::parse(&wire).expect("well-formed");
        let mut out = vec![0; encoded.max_fitted_len().max(512)];
        let len = encoded.fit(&view, Aging::Elapsed(1), limit, &mut out);
        let decoded = Message::from_vec(&out[..len]).expect("well-formed");
        let text = |record: &hickory_proto::rr::Record| format!("{}", record.data);
        (decoded.answers.iter().map(text).collect(), decoded.metadata.truncation)
    }

    #[test]
    fn each_response_begins_with_another_address_and_none_is_lost() {
        let encoded = Encoded::from_wire(&addresses(3)).expect("well-formed").with_rotation();
        let order = |id| served(&encoded, id, 512).0[1..4].join(" ");
        assert_eq!(order(0), "192.0.2.1 192.0.2.2 192.0.2.3");
        assert_eq!(order(1), "192.0.2.2 192.0.2.3 192.0.2.1");
        assert_eq!(order(2), "192.0.2.3 192.0.2.1 192.0.2.2");
        assert_eq!(order(65_535), order(0));
        for id in 0..3 {
            let (all, _) = served(&encoded, id, 512);
            assert_eq!((all.len(), all[0].as_str()), (5, "www.example.org."), "the alias is first");
        }
        assert_eq!(encoded.min_ttl().map(super::super::ttl::Ttl::as_secs), Some(60));
        let ttls = encoded.records().filter(|(_, record)| record.rtype == 1);
        assert!(ttls.into_iter().all(|(_, record)| encoded.ttl_of(&record).as_secs() == 297));
    }

    #[test]
    fn records_of_one_rrset_get_the_least_of_their_ttls_and_others_keep_theirs() {
        let mut encoded = Encoded::from_wire(&addresses(3)).expect("well-formed");
        encoded.level_ttls();
        let ttls: Vec<u32> =
            encoded.records().map(|(_, record)| encoded.ttl_of(&record).as_secs()).collect();
        assert_eq!(ttls, [60, 297, 297, 297, 60]);
    }

    #[test]
    fn without_rotation_the_order_stays() {
        let encoded = Encoded::from_wire(&addresses(3)).expect("well-formed");
        assert_eq!(served(&encoded, 0, 512), served(&encoded, 1, 512));
    }

    #[test]
    fn what_is_cut_off_rotates_through_the_room_there_is() {
        let encoded = Encoded::from_wire(&addresses(60)).expect("well-formed").with_rotation();
        let (first, truncated) = served(&encoded, 0, 512);
        let (other, _) = served(&encoded, 50, 512);
        assert!(truncated && first.len() == other.len() && first.len() < 40);
        assert_eq!((first[1].as_str(), other[1].as_str()), ("192.0.2.1", "192.0.2.51"));
        assert_eq!(other[11], "192.0.2.1");
    }

    #[test]
    fn only_one_rrset_of_addresses_that_stand_together_rotates() {
        let a = |owner, n: &'static [u8]| Record::answer(owner, Qtype::A, 60, n);
        let (one, two) = (&[192, 0, 2, 1], &[192, 0, 2, 2]);
        let between = Record::answer("example.org", Qtype::TXT, 60, b"\x01x");
        for records in [
            vec![],
            vec![a("example.org", one)],
            vec![a("example.org", one), a("example.net", two)],
            vec![a("example.org", one), between, a("example.org", two)],
            vec![between, between],
        ] {
            let wire = message("example.org", Qtype::A, Rcode::NOERROR, &records);
            let encoded = Encoded::from_wire(&wire).expect("well-formed").with_rotation();
            assert_eq!(encoded.rotation, Rotation::default(), "{records:?}");
        }
        let both = [a("example.org", one), a("EXAMPLE.org", two)];
        let wire = message("example.org", Qtype::A, Rcode::NOERROR, &both);
        let encoded = Encoded::from_wire(&wire).expect("well-formed").with_rotation();
        assert_eq!(encoded.rotation, Rotation { first: 0, count: 2, len: 4 });
    }

    #[test]
    fn a_name_that_lies_in_an_address_is_malformed() {
        let at = u16::try_from(12 + 13 + 4 + 13 + 10).expect("small");
        let pointer = (0xc000 | at).to_be_bytes();
        let name_in_address = [
            Record::answer("example.org", Qtype::A, 60, &[1, b'x', 0, 0]),
            Record::answer("example.org", Qtype::NS, 60, &pointer),
        ];
        let wire = message("example.org", Qtype::A, Rcode::NOERROR, &name_in_address);
        assert!(Encoded::from_wire(&wire).is_err());
    }
}
