//! Extended DNS errors: why a response is what it is, for people who read `dig` at night.
//!
//! Source: RFC 8914

use std::borrow::Cow;
use std::fmt;

/// The longest extra text that nodens sends or keeps, in bytes.
const MAX_TEXT: usize = 120;

/// An extended error's info code.
///
/// Source: RFC 8914 §4, IANA "Extended DNS Error Codes"
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EdeCode(pub u16);

impl EdeCode {
    pub const OTHER: Self = Self(0);
    pub const STALE_ANSWER: Self = Self(3);
    pub const CACHED_ERROR: Self = Self(13);
    pub const NOT_READY: Self = Self(14);
    pub const BLOCKED: Self = Self(15);
    pub const PROHIBITED: Self = Self(18);
    pub const STALE_NXDOMAIN: Self = Self(19);
    pub const NOT_AUTHORITATIVE: Self = Self(20);
    pub const NOT_SUPPORTED: Self = Self(21);
    pub const NO_REACHABLE_AUTHORITY: Self = Self(22);
    pub const NETWORK_ERROR: Self = Self(23);
    pub const INVALID_DATA: Self = Self(24);
    pub const INVALID_QTYPE: Self = Self(30);
}

/// One extended error: a code and a text for people (UTF-8, at most 120 bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ede {
    pub code: EdeCode,
    pub text: Cow<'static, str>,
}

impl Ede {
    /// An extended error with a text known at compile time.
    pub const fn new(code: EdeCode, text: &'static str) -> Self {
        Self { code, text: Cow::Borrowed(text) }
    }

    /// An extended error with a text made at run time, cut to 120 bytes at a character's end.
    pub fn with_text(code: EdeCode, mut text: String) -> Self {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Self { code, text: Cow::Owned(text) }
    }

    /// Reads the data of an EDE option; `None` when it is shorter than a code. Broken UTF-8 is mended.
    pub fn from_option(data: &[u8]) -> Option<Self> {
        let code = EdeCode(super::wire::u16_at(data, 0)?);
        let text = String::from_utf8_lossy(data.get(2..)?);
        Some(Self::with_text(code, text.trim_end_matches('\0').to_owned()))
    }
}

impl fmt::Display for EdeCode {
    /// Writes the code's registered name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "Other",
            1 => "Unsupported DNSKEY Algorithm",
            2 => "Unsupported DS Digest Type",
            3 => "Stale Answer",
            4 => "Forged Answer",
            5 => "DNSSEC Indeterminate",
            6 => "DNSSEC Bogus",
            7 => "Signature Expired",
            8 => "Signature Not Yet Valid",
            9 => "DNSKEY Missing",
            10 => "RRSIGs Missing",
            11 => "No Zone Key Bit Set",
            12 => "NSEC Missing",
            13 => "Cached Error",
            14 => "Not Ready",
            15 => "Blocked",
            16 => "Censored",
            17 => "Filtered",
            18 => "Prohibited",
            19 => "Stale NXDOMAIN Answer",
            20 => "Not Authoritative",
            21 => "Not Supported",
            22 => "No Reachable Authority",
            23 => "Network Error",
            24 => "Invalid Data",
            30 => "Invalid Query Type",
            code => return write!(f, "EDE{code}"),
        };
        f.write_str(name)
    }
}

impl fmt::Display for Ede {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ": {}", self.text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let ede = Ede::with_text(EdeCode::OTHER, "ü".repeat(100));
        assert_eq!(ede.text.len(), 120);
        assert_eq!(ede.text.chars().count(), 60);
    }

    #[test]
    fn an_option_shorter_than_a_code_is_none() {
        assert_eq!(Ede::from_option(&[0]), None);
        assert_eq!(
            Ede::from_option(b"\x00\x16down\0"),
            Some(Ede::new(EdeCode::NO_REACHABLE_AUTHORITY, "down"))
        );
    }
}
