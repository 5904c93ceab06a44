//! Presentation form: types and records as people write and read them.
//!
//! Source: RFC 1035 §5.1, RFC 3597 §5

use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use thiserror::Error;

use super::Qtype;
use super::name::{Name, NameError};

/// Why a text is no type or no record.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TextError {
    #[error("`{0}` is not a record type")]
    Type(String),
    #[error("the owner name is broken: {0}")]
    Owner(#[from] NameError),
    #[error("write it as NAME [TTL] TYPE DATA")]
    Incomplete,
    #[error("records of type {0} cannot be written in a configuration")]
    Meta(Qtype),
    #[error("the data is not that of a {rtype} record: {why}")]
    Data { rtype: Qtype, why: String },
}

impl FromStr for Qtype {
    type Err = TextError;

    /// Reads a mnemonic in any case, or `TYPE123`.
    fn from_str(text: &str) -> Result<Self, TextError> {
        let upper = text.to_ascii_uppercase();
        if let Some(code) = upper.strip_prefix("TYPE").and_then(|code| code.parse().ok()) {
            return Ok(Self(code));
        }
        match RecordType::from_str(&upper) {
            Ok(RecordType::Unknown(_)) | Err(_) => Err(TextError::Type(text.to_owned())),
            Ok(known) => Ok(Self(known.into())),
        }
    }
}

/// One record of class IN in presentation form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: Name,
    /// Seconds, where written.
    pub ttl: Option<u32>,
    pub rtype: Qtype,
    /// Uncompressed wire form.
    pub rdata: Vec<u8>,
}

impl Record {
    /// Reads `NAME [TTL] [IN] TYPE DATA`; names are absolute, with or without a final dot.
    ///
    /// # Errors
    /// [`TextError`] says which part is wrong.
    pub fn from_text(line: &str) -> Result<Self, TextError> {
        let (name, mut rest) = next_word(line).ok_or(TextError::Incomplete)?;
        let name = Name::from_text(name)?;
        let mut ttl = None;
        let (rtype, data) = loop {
            let (word, behind) = next_word(rest).ok_or(TextError::Incomplete)?;
            match word.parse::<u32>() {
                Ok(secs) if ttl.is_none() => ttl = Some(secs),
                _ if word.eq_ignore_ascii_case("IN") => {}
                _ => break (word.parse::<Qtype>()?, behind),
            }
            rest = behind;
        };
        let rdata = rdata_from_text(rtype, data.trim())?;
        Ok(Self { name, ttl, rtype, rdata })
    }
}

/// The name whose PTR record names `address`.
///
/// Source: RFC 1035 §3.5, RFC 3596 §2.5
pub fn reverse_name(address: IpAddr) -> Name {
    let text = match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = format!("{:032x}", v6.to_bits());
            let labels = nibbles.chars().rev().map(|nibble| format!("{nibble}."));
            labels.collect::<String>() + "ip6.arpa"
        }
    };
    Name::from_text(&text).expect("digits and dots make a name")
}

/// Splits the first word off; `None` when there is none.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Reads record data into uncompressed wire form; generic data `\# LENGTH HEX` for any type.
fn rdata_from_text(rtype: Qtype, data: &str) -> Result<Vec<u8>, TextError> {
    if matches!(rtype, Qtype::OPT | Qtype::ANY | Qtype::SOA) || rtype.0 == 0 || is_meta(rtype) {
        return Err(TextError::Meta(rtype));
    }
    let wrong = |why: String| TextError::Data { rtype, why };
    if data.is_empty() {
        return Err(TextError::Incomplete);
    }
    if let Some(generic) = data.strip_prefix("\\#") {
        return generic_rdata(generic).ok_or_else(|| wrong("not \\# LENGTH HEX".to_owned()));
    }
    // hickory reads the words that it needs and passes over the rest.
    let words = data.split_whitespace().count();
    if fixed_words(rtype).is_some_and(|fixed| fixed != words) {
        return Err(wrong(format!("{words} words")));
    }
    let rdata = RData::try_from_str(RecordType::from(rtype.0), data)
        .map_err(|error| wrong(error.to_string()))?;
    let mut out = Vec::new();
    let mut encoder = BinEncoder::new(&mut out);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    encoder.set_canonical_form(true);
    rdata.emit(&mut encoder).map_err(|error| wrong(error.to_string()))?;
    Ok(out)
}

/// Tells whether the type is for queries only.
///
/// Source: RFC 6895 §3.1 (128 to 255)
fn is_meta(rtype: Qtype) -> bool {
    (128..=255).contains(&rtype.0)
}

/// How many words the data of a type has, where that is fixed.
fn fixed_words(rtype: Qtype) -> Option<usize> {
    match rtype {
        Qtype::A | Qtype::AAAA | Qtype::NS | Qtype::CNAME | Qtype::PTR => Some(1),
        Qtype::MX => Some(2),
        Qtype::SRV => Some(4),
        _ => None,
    }
}

/// Reads ` LENGTH HEX` of RFC 3597 §5; the hexadecimal digits may be split by blanks.
fn generic_rdata(text: &str) -> Option<Vec<u8>> {
    let (length, hex) = next_word(text)?;
    let digits: Option<Vec<u8>> = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits?;
    let (pairs, odd) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    (odd.is_empty() && length.parse() == Ok(bytes.len()) && bytes.len() <= usize::from(u16::MAX))
        .then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_into_uncompressed_wire_form() {
        let name = b"\x02ns\x07example\x03org\x00";
        for (line, ttl, rtype, rdata) in [
            ("db.example.org 300 A 192.0.2.1", Some(300), Qtype::A, vec![192, 0, 2, 1]),
            ("db.example.org A 192.0.2.1", None, Qtype::A, vec![192, 0, 2, 1]),
            ("db.example.org. 300 IN a 192.0.2.1", Some(300), Qtype::A, vec![192, 0, 2, 1]),
            ("x  IN\t0 CNAME ns.example.org", Some(0), Qtype::CNAME, name.to_vec()),
            ("x NS NS.example.org.", None, Qtype::NS, name.to_vec()),
            ("1.2.0.192.in-addr.arpa PTR ns.example.org", None, Qtype::PTR, name.to_vec()),
            ("x MX 10 ns.example.org", None, Qtype::MX, [&[0, 10], &name[..]].concat()),
            (
                "_x._tcp.y SRV 1 2 8080 ns.example.org",
                None,
                Qtype::SRV,
                [&[0, 1, 0, 2, 31, 144], &name[..]].concat(),
            ),
            ("x TXT \"a b\" c", None, Qtype::TXT, b"\x03a b\x01c".to_vec()),
            ("x TYPE65280 \\# 3 01 0aFF", None, Qtype(65280), vec![1, 10, 255]),
        ] {
            let record = Record::from_text(line).expect(line);
            assert_eq!((record.ttl, record.rtype, record.rdata), (ttl, rtype, rdata), "{line}");
        }
        let aaaa = Record::from_text("x AAAA 2001:db8::1").expect("a record");
        assert_eq!(aaaa.rdata.len(), 16);
    }

    #[test]
    fn broken_records_are_refused() {
        for line in [
            "",
            "x",
            "x 300",
            "x A",
            "x 300 300 A 192.0.2.1",
            "x A 192.0.2.1 192.0.2.2",
            "x A ::1",
            "x AAAA 192.0.2.1",
            "a..b A 192.0.2.1",
            "x WHAT 1",
            "x MX ns.example.org",
            "x SRV 1 2 99999 y",
            "x TXT \"a",
            "x ANY y",
            "x OPT y",
            "x AXFR y",
            "x A \\# 3 0102",
            "x TYPE1 \\# 1 0",
            "x SOA a b 1 2 3 4 5",
        ] {
            assert!(Record::from_text(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_address_has_its_reverse_name() {
        let reverse = |text: &str| reverse_name(text.parse().expect("an address")).to_string();
        assert_eq!(reverse("192.0.2.1"), "1.2.0.192.in-addr.arpa.");
        assert_eq!(
            reverse("2001:db8::567:89ab"),
            "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
        );
    }

    #[test]
    fn types_are_read_as_they_are_written() {
        for qtype in [Qtype::A, Qtype::AAAA, Qtype::SRV, Qtype::ANY, Qtype(65280), Qtype(64)] {
            assert_eq!(qtype.to_string().parse(), Ok(qtype));
        }
        assert_eq!("aaaa".parse(), Ok(Qtype::AAAA));
        assert!("nope".parse::<Qtype>().is_err());
        assert!("TYPE99999".parse::<Qtype>().is_err());
    }
}
