//! Domain names in the form that keys, routes and rules compare: uncompressed wire bytes, case folded.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use thiserror::Error;

use super::{MAX_NAME_LEN, wire};

/// A domain name: uncompressed wire form, ASCII lower case, at most 255 bytes, the root label last.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Hashes names quickly and without a secret: for tables that the configuration alone fills, where
/// nobody can crowd names together by asking.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameHasher(u64);

/// Makes a table of configured names use [`NameHasher`].
pub type ByConfig = BuildHasherDefault<NameHasher>;

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let last = rest.iter().fold(1, |word, byte| word << 8 | u64::from(*byte));
        for word in words.iter().map(|word| u64::from_le_bytes(*word)).chain([last]) {
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        // The upper half is well mixed; tables choose a place by the lower one.
        self.0 ^ self.0 >> 32
    }
}

/// Why a text is no domain name.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    #[error("a label is empty")]
    EmptyLabel,
    #[error("a label is longer than 63 bytes")]
    LongLabel,
    #[error("the name is longer than 255 bytes")]
    LongName,
    #[error("a backslash is followed by neither a character nor three digits up to 255")]
    BadEscape,
}

impl Name {
    /// The root: one empty label.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Takes an uncompressed wire name and folds its case; `None` when it is malformed or has a tail.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        (wire::skip_plain_name(wire, 0)? == wire.len()).then(|| Self::from_valid(wire))
    }

    /// Expands the possibly compressed name at `at` of `message`, folded.
    pub fn from_message(message: &[u8], at: usize) -> Option<Self> {
        let mut buffer = [0; MAX_NAME_LEN];
        let len = wire::expand_name(message, at, &mut buffer)?;
        Some(Self::from_valid(&buffer[..len]))
    }

    /// Folds and owns bytes that are known to be one uncompressed name.
    fn from_valid(wire: &[u8]) -> Self {
        let mut bytes: Box<[u8]> = wire.into();
        wire::fold(&mut bytes);
        Self(bytes)
    }

    /// Reads presentation form, always as an absolute name; `""` and `"."` are the root.
    ///
    /// # Errors
    /// [`NameError`] says which rule of RFC 1035 §2.3.4 or §5.1 is broken.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let text = if text == "." { &[] } else { text.as_bytes() };
        let mut out = Vec::with_capacity(text.len() + 2);
        let mut length_at = 0;
        out.push(0);
        let mut at = 0;
        while at < text.len() {
            let byte = match text[at] {
                b'.' => {
                    at += 1;
                    if out.len() - length_at == 1 {
                        return Err(NameError::EmptyLabel);
                    }
                    length_at = out.len();
                    out.push(0);
                    continue;
                }
                b'\\' => {
                    let (byte, used) = unescape(&text[at + 1..]).ok_or(NameError::BadEscape)?;
                    at += 1 + used;
                    byte
                }
                plain => {
                    at += 1;
                    plain
                }
            };
            out.push(byte.to_ascii_lowercase());
            let len = out.len() - length_at - 1;
            out[length_at] =
                u8::try_from(len).ok().filter(|n| *n <= 63).ok_or(NameError::LongLabel)?;
        }
        if out.len() - length_at > 1 {
            out.push(0);
        }
        if out.len() > MAX_NAME_LEN {
            return Err(NameError::LongName);
        }
        Ok(Self(out.into()))
    }

    /// The reverse name of an address: below `in-addr.arpa.` or `ip6.arpa.`.
    ///
    /// Source: RFC 1035 §3.5, RFC 3596 §2.5
    pub fn reverse_of(address: IpAddr) -> Self {
        let text = match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
            }
            IpAddr::V6(v6) => {
                let mut text = String::with_capacity(73);
                for byte in v6.octets().iter().rev() {
                    text.push_str(&format!("{:x}.{:x}.", byte & 0xf, byte >> 4));
                }
                text + "ip6.arpa."
            }
        };
        Self::from_text(&text).expect("labels of one to three digits")
    }

    /// The folded wire bytes, root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Tells whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The labels from left to right, without the root's.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.suffixes().take_while(|rest| rest[0] != 0).map(|rest| &rest[1..=usize::from(rest[0])])
    }

    /// The name itself, then each ancestor, the root last; as wire bytes that borrow from it.
    pub fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        suffixes(&self.0)
    }

    /// Tells whether the name is `ancestor` or below it.
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.suffixes().any(|suffix| suffix == ancestor.as_wire())
    }
}

/// A valid wire name, then each of its ancestors, the root last.
pub fn suffixes(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(wire);
    std::iter::from_fn(move || {
        let here = rest?;
        let head = *here.first()?;
        rest = if head == 0 { None } else { here.get(1 + usize::from(head)..) };
        Some(here)
    })
}

/// The top-level domain of a valid wire name, as a wire name; the root's is the root.
pub fn top(wire: &[u8]) -> &[u8] {
    let mut last = wire;
    for suffix in suffixes(wire).take_while(|suffix| suffix.len() > 1) {
        last = suffix;
    }
    last
}

/// Reads what follows a backslash: `DDD` or one character; gives the byte and how much was used.
fn unescape(rest: &[u8]) -> Option<(u8, usize)> {
    match *rest {
        [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            let value =
                [a, b, c].iter().fold(0u16, |sum, digit| sum * 10 + u16::from(digit - b'0'));
            u8::try_from(value).ok().map(|byte| (byte, 3))
        }
        [b'0'..=b'9', ..] | [] => None,
        [byte, ..] => Some((byte, 1)),
    }
}

/// Writes a wire name (any case, uncompressed, valid) in presentation form with a final dot.
///
/// Source: RFC 1035 §5.1, RFC 4343 §2.1
pub fn write_text(wire: &[u8], f: &mut impl fmt::Write) -> fmt::Result {
    if wire.len() <= 1 {
        return f.write_char('.');
    }
    for label in suffixes(wire).take_while(|rest| rest[0] != 0) {
        for &byte in &label[1..=usize::from(label[0])] {
            match byte {
                b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                    write!(f, "\\{}", char::from(byte))?;
                }
                0x21..=0x7e => f.write_char(char::from(byte))?,
                _ => write!(f, "\\{byte:03}")?,
            }
        }
        f.write_char('.')?;
    }
    Ok(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(&self.0, f)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::from_text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_name_is_its_last_label() {
        for (name, expected) in [("a.b.example.org", "org"), ("org", "org"), (".", ".")] {
            let (name, expected) = (Name::from_text(name), Name::from_text(expected));
            let (name, expected) = (name.expect("a name"), expected.expect("a name"));
            assert_eq!(top(name.as_wire()), expected.as_wire());
        }
    }

    #[test]
    fn text_becomes_folded_wire_and_back() {
        for (text, back) in [
            (".", "."),
            ("", "."),
            ("Example.ORG", "example.org."),
            ("example.org.", "example.org."),
            (r"a\.b.c", r"a\.b.c."),
            (r"\065.x", "a.x."),
            (r"\000\255.x", r"\000\255.x."),
            ("_http._tcp.x", "_http._tcp.x."),
        ] {
            let name = Name::from_text(text).expect(text);
            assert_eq!(name.to_string(), back);
            assert_eq!(Name::from_wire(name.as_wire()), Some(name));
        }
    }

    #[test]
    fn broken_texts_say_what_is_broken() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        for (text, error) in [
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("..", NameError::EmptyLabel),
            (long_label.as_str(), NameError::LongLabel),
            (long_name.as_str(), NameError::LongName),
            (r"a\", NameError::BadEscape),
            (r"a\25", NameError::BadEscape),
            (r"a\256", NameError::BadEscape),
        ] {
            assert_eq!(Name::from_text(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_longest_name_has_255_bytes() {
        let text = [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)]
            .map(String::as_str)
            .join(".");
        assert_eq!(Name::from_text(&text).expect("fits").as_wire().len(), 255);
    }

    #[test]
    fn addresses_have_reverse_names() {
        for (address, name) in [
            ("192.0.2.5", "5.2.0.192.in-addr.arpa."),
            ("::1", &format!("1.{}ip6.arpa.", "0.".repeat(31))),
            ("2001:db8::", &format!("{}8.b.d.0.1.0.0.2.ip6.arpa.", "0.".repeat(24))),
        ] {
            assert_eq!(Name::reverse_of(address.parse().expect("address")).to_string(), name);
        }
    }

    #[test]
    fn a_name_is_within_its_ancestors_only() {
        let name = Name::from_text("a.b.example.org").expect("name");
        for (ancestor, within) in [
            (".", true),
            ("org", true),
            ("example.org", true),
            ("a.b.example.org", true),
            ("xample.org", false),
            ("z.a.b.example.org", false),
        ] {
            assert_eq!(
                name.is_within(&Name::from_text(ancestor).expect("name")),
                within,
                "{ancestor}"
            );
        }
        assert_eq!(name.labels().count(), 4);
    }
}
