//! Time to live.

use std::time::Duration;

/// Seconds a record may still be reused; never above 7 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(u32);

impl Ttl {
    /// The ceiling that no configuration lifts: 7 days.
    ///
    /// Source: RFC 8767 §4 ("on the order of days")
    pub const MAX: Self = Self(7 * 24 * 3600);

    /// What we say of names that exist nowhere: 3 hours, the most that RFC 2308 §5 finds sensible.
    pub const MAX_NEGATIVE: Self = Self(3 * 3600);

    /// What a stale record is served with.
    ///
    /// Source: RFC 8767 §4
    pub const STALE: Self = Self(30);

    /// Reads a TTL from the wire; a value with the top bit set is large, not negative, and is capped.
    ///
    /// Source: RFC 8767 §4, which amends RFC 2181 §8
    pub fn from_wire(secs: u32) -> Self {
        Self(secs.min(Self::MAX.0))
    }

    /// The TTL of `duration`, rounded down to seconds and capped.
    pub fn from_duration(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).min(Self::MAX.0))
    }

    /// Seconds, as they go on the wire.
    pub fn as_secs(self) -> u32 {
        self.0
    }

    /// The same span as a `Duration`.
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_with_the_top_bit_set_is_large_and_capped() {
        assert_eq!(Ttl::from_wire(0x8000_0000), Ttl::MAX);
        assert_eq!(Ttl::from_wire(u32::MAX), Ttl::MAX);
        assert_eq!(Ttl::from_wire(300).as_secs(), 300);
    }
}
