//! What a response says, for people.

use std::fmt;

use hickory_proto::op;
use hickory_proto::rr::{RData, Record};
use thiserror::Error;

use crate::dns::Rcode;
use crate::dns::ede::Ede;
use crate::dns::edns;
use crate::dns::wire::{self, flag};

/// A response, taken apart.
#[derive(Clone, Debug)]
pub struct Reply {
    pub rcode: Rcode,
    /// The flags word as received.
    flags: u16,
    /// Answer, authority, additional; one record a line, without OPT.
    pub sections: [Vec<String>; 3],
    /// Every extended error that came with it.
    pub edes: Vec<Ede>,
}

/// Why a response cannot be shown.
#[derive(Debug, Error)]
#[error("the response is malformed: {0}")]
pub struct MalformedReply(String);

impl Reply {
    /// Takes a whole message apart.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_wire(message: &[u8]) -> Result<Self, MalformedReply> {
        let parsed =
            op::Message::from_vec(message).map_err(|error| MalformedReply(error.to_string()))?;
        let lines = |records: &[Record]| records.iter().map(line_of).collect();
        Ok(Self {
            rcode: Rcode(u16::from(parsed.metadata.response_code)),
            flags: wire::u16_at(message, 2).unwrap_or_default(),
            sections: [
                lines(&parsed.answers),
                lines(&parsed.authorities),
                lines(&parsed.additionals),
            ],
            edes: extended_errors(message),
        })
    }

    /// The names of the flags that are set, as other tools write them.
    pub fn flags(&self) -> Vec<&'static str> {
        let names = [
            (flag::AA, "aa"),
            (flag::TC, "tc"),
            (flag::RD, "rd"),
            (flag::RA, "ra"),
            (flag::AD, "ad"),
            (flag::CD, "cd"),
        ];
        names.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, name)| name).collect()
    }
}

/// A record on a line: what strangers wrote into it cannot move the reader's cursor.
fn line_of(record: &Record) -> String {
    let RData::TXT(txt) = &record.data else { return printable(&record.to_string()) };
    // hickory writes the strings without marks between them.
    let strings = txt.txt_data.iter().map(|string| format!(" \"{}\"", escape(string)));
    let head = format!("{} {} {} TXT", record.name, record.ttl, record.dns_class);
    printable(&head) + &strings.collect::<String>()
}

/// The bytes of a character string in presentation form.
///
/// Source: RFC 1035 §5.1
fn escape(string: &[u8]) -> String {
    let write = |byte: &u8| match byte {
        b'"' | b'\\' => format!("\\{}", char::from(*byte)),
        0x20..=0x7e => char::from(*byte).to_string(),
        other => format!("\\{other:03}"),
    };
    string.iter().map(write).collect()
}

/// The text with its control characters as `\u{1b}`.
fn printable(text: &str) -> String {
    let write = |char: char| match char.is_control() {
        true => char.escape_unicode().to_string(),
        false => char.to_string(),
    };
    text.chars().map(write).collect()
}

/// The extended errors in the options of the OPT record.
fn extended_errors(message: &[u8]) -> Vec<Ede> {
    let number = |at| usize::from(wire::u16_at(message, at).unwrap_or_default());
    let mut at = crate::dns::HEADER_LEN;
    for _ in 0..number(4) {
        let Some(end) = wire::skip_name(message, at) else { return Vec::new() };
        at = end + 4;
    }
    let mut edes = Vec::new();
    for _ in 0..number(6) + number(8) + number(10) {
        let Some(record) = wire::record_at(message, at) else { return edes };
        at = record.end;
        if record.rtype != crate::dns::Qtype::OPT.0 {
            continue;
        }
        let options = edns::options(message.get(record.rdata..record.end).unwrap_or_default());
        let ours = options.flatten().filter(|(code, _)| *code == edns::OPTION_EDE);
        edes.extend(ours.filter_map(|(_, data)| Ede::from_option(data)));
    }
    edes
}

impl fmt::Display for Reply {
    /// Writes each record on a line under its section's name, then the extended errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, lines) in ["answer", "authority", "additional"].iter().zip(&self.sections) {
            if lines.is_empty() {
                continue;
            }
            writeln!(f, "{name}:")?;
            for line in lines {
                writeln!(f, "  {line}")?;
            }
        }
        for ede in &self.edes {
            write!(f, "extended error {} ({})", ede.code.0, ede.code)?;
            if !ede.text.is_empty() {
                write!(f, ": {}", printable(&ede.text))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Qtype;
    use crate::dns::ede::EdeCode;
    use crate::dns::name::Name;
    use crate::dns::query::Query;

    /// A response to `example.org. A` with one address and an extended error.
    fn response() -> Vec<u8> {
        let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::A);
        let mut wire = query.to_wire(7, query.qname.as_wire(), false);
        wire::put_u16(&mut wire, 2, flag::QR | flag::RD | flag::RA | flag::AA);
        wire::put_u16(&mut wire, 6, 1);
        wire::put_u16(&mut wire, 10, 1);
        wire.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
        let mut options = Vec::new();
        edns::push_ede(&mut options, &Ede::new(EdeCode::STALE_ANSWER, "the upstream is down"));
        let at = wire.len();
        wire.resize(at + edns::OPT_LEN + options.len(), 0);
        edns::write_opt(&mut wire, at, 0, false, &options);
        wire
    }

    #[test]
    fn a_response_is_shown_with_records_flags_and_extended_errors() {
        let reply = Reply::from_wire(&response()).expect("well-formed");
        assert_eq!(reply.flags(), ["aa", "rd", "ra"]);
        assert_eq!(reply.rcode, Rcode::NOERROR);
        assert_eq!(
            reply.to_string(),
            "answer:\n  example.org. 300 IN A 192.0.2.1\n\
             extended error 3 (Stale Answer): the upstream is down\n"
        );
    }

    #[test]
    fn the_extended_half_of_the_rcode_counts() {
        let mut wire = response();
        let at = wire.len() - edns::OPT_LEN - (2 + 2 + 2 + 20); // option code, length, info code, text
        edns::write_opt(&mut wire, at, 1, false, &[]);
        wire.truncate(at + edns::OPT_LEN);
        assert_eq!(Reply::from_wire(&wire).expect("well-formed").rcode, Rcode::BADVERS);
    }

    #[test]
    fn texts_are_quoted_and_cannot_move_the_cursor() {
        let query = Query::new(Name::from_text("example.org").expect("a name"), Qtype::TXT);
        let mut wire = query.to_wire(7, query.qname.as_wire(), false);
        wire::put_u16(&mut wire, 2, flag::QR);
        wire::put_u16(&mut wire, 6, 1);
        wire.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 5, 0, 12]);
        wire.extend(b"\x03a b\x07\"\\\x1b[2J\xc3");
        let reply = Reply::from_wire(&wire).expect("well-formed");
        assert_eq!(
            reply.sections[0],
            [r#"example.org. 5 IN TXT "a b" "\"\\\027[2J\195""#.to_owned()]
        );
        assert_eq!(printable("a\u{1b}b"), "a\\u{1b}b");
    }

    #[test]
    fn a_message_that_is_cut_off_is_malformed() {
        let wire = response();
        assert!(Reply::from_wire(&wire[..wire.len() - 1]).is_err());
        assert!(Reply::from_wire(&[]).is_err());
    }
}
