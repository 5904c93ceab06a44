//! What a lookup asks for, as messages that only lack their id: names in the order of a search list,
//! and for each of them one question, or A and AAAA.

use crate::dns::name::Name;
use crate::dns::query::Query;
use crate::dns::wire::{self, flag};
use crate::dns::{HEADER_LEN, Qtype, Rcode};

/// One lookup: the first name that exists ends it.
#[derive(Clone, Debug)]
pub struct Wanted {
    candidates: Vec<Vec<Box<[u8]>>>,
}

/// What a response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub rcode: Rcode,
    pub is_truncated: bool,
    pub has_answers: bool,
}

impl Wanted {
    /// A lookup of the first of `names` that exists, with a question, or two, for each.
    pub fn new(names: &[Name], qtypes: &[Qtype]) -> Self {
        // As glibc and musl ask when nothing is configured: without EDNS.
        let message = |name: &Name, qtype: &Qtype| {
            let query = Query::new(name.clone(), *qtype);
            query.to_wire(0, name.as_wire(), false).into_boxed_slice()
        };
        let asked = |name| qtypes.iter().take(2).map(|qtype| message(name, qtype)).collect();
        Self { candidates: names.iter().map(asked).collect() }
    }

    /// The messages for the name at `index` of the search list.
    pub fn messages(&self, index: usize) -> &[Box<[u8]>] {
        self.candidates.get(index).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many datagrams leave for the first name.
    pub fn questions(&self) -> usize {
        self.messages(0).len()
    }
}

/// The id of a message; 0 where there is none.
pub fn id_of(message: &[u8]) -> u16 {
    wire::u16_at(message, 0).unwrap_or_default()
}

/// Reads `response` as one to `message`, whose id has been compared.
///
/// A server that could not read the question leaves it out and says so by its RCODE.
pub fn read(message: &[u8], response: &[u8]) -> Option<Said> {
    let flags = wire::u16_at(response, 2).filter(|flags| flags & flag::QR != 0)?;
    let rcode = Rcode(flags & flag::RCODE);
    let question = message.get(HEADER_LEN..)?;
    let fits = match wire::u16_at(response, 4)? {
        0 => rcode != Rcode::NOERROR,
        1 => response
            .get(HEADER_LEN..message.len())
            .is_some_and(|theirs| theirs.eq_ignore_ascii_case(question)),
        _ => false,
    };
    let has_answers = wire::u16_at(response, 6).is_some_and(|count| count > 0);
    fits.then_some(Said { rcode, is_truncated: flags & flag::TC != 0, has_answers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_must_have_the_question_of_its_query() {
        let name = Name::from_text("example.org").expect("a name");
        let wanted = Wanted::new(&[name], &[Qtype::A, Qtype::AAAA]);
        let [a, aaaa] = wanted.messages(0) else { panic!("two questions") };
        let mut response = a.to_vec();
        assert_eq!(read(a, &response), None, "a query is no response");
        response[2] |= 0x80;
        response[13] = b'E';
        let said = Said { rcode: Rcode::NOERROR, is_truncated: false, has_answers: false };
        assert_eq!(read(a, &response), Some(said));
        assert_eq!(read(aaaa, &response), None);
        response[3] |= 1;
        response[5] = 0;
        assert_eq!(read(aaaa, &response[..12]).map(|said| said.rcode), Some(Rcode::FORMERR));
        assert_eq!(read(a, &response[..5]), None);
    }
}
