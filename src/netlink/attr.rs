//! Netlink attributes: length, type, value, padded to 4 bytes; written and walked.

/// Says that the value is a list of attributes.
const NESTED: u16 = 0x8000;

/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;

/// Bytes of an attribute's head.
const HEAD: usize = 4;

/// The largest value that an attribute's 16-bit length can say.
pub const MAX_VALUE: usize = u16::MAX as usize - HEAD;

/// A list of attributes under construction, in wire form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// The wire form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends one attribute.
    ///
    /// # Panics
    /// When the value is longer than [`MAX_VALUE`]: whoever builds lists divides them before.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length =
            u16::try_from(HEAD + value.len()).expect("lists are divided before they are put");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a number in network order, as nftables wants all of its own.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Appends a long number in network order.
    pub fn put_u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Appends a text with its final NUL.
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Appends a list of attributes.
    pub fn put_list(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0)
    }
}

/// Walks the attributes in `bytes` as (type, value); ends at the first that does not fit.
pub fn walk(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..HEAD)?.try_into().ok()?);
        let value = bytes.get(HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The value of the first attribute of this type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    walk(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number in network order.
pub fn read_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A long number in network order.
pub fn read_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// A text without its final NUL; what is not UTF-8 is mended.
pub fn read_text(value: &[u8]) -> String {
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_walked_and_broken_lengths_end_the_walk() {
        let mut list = Attributes::default();
        list.put_text(1, "ab").put_u32(2, 7).put_list(3, |inner| {
            inner.put_u64(4, 9);
        });
        assert_eq!(list.as_bytes().len(), 8 + 8 + 16);
        assert_eq!(find(list.as_bytes(), 1).map(read_text).as_deref(), Some("ab"));
        assert_eq!(find(list.as_bytes(), 2).and_then(read_u32), Some(7));
        let inner = find(list.as_bytes(), 3).expect("the list");
        assert_eq!(find(inner, 4).and_then(read_u64), Some(9));
        for broken in [&[0u8, 0, 1, 0][..], &[9, 0, 1, 0, 0], &[4], &[]] {
            assert_eq!(walk(broken).count(), 0, "{broken:?}");
        }
    }
}
