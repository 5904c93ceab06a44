//! How sizes, durations, networks and port ranges are written, both ways.

use std::net::IpAddr;
use std::time::Duration;

use super::Network;

/// Units of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Units of durations in milliseconds, largest first; `ms` stands before what it ends with.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Splits `"64MiB"` into its number and its unit.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Reads a number with one of `units`; `0` needs none.
fn parse_with(units: &[(&str, u64)], text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    if number == 0 && unit.is_empty() {
        return Some(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// Writes a number with the largest of `units` that divides it; the last is the unit of 0.
fn write_with(units: &[(&str, u64)], zero: &str, value: u64) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor);
    let (unit, factor) = units.iter().find(fits).expect("the smallest unit divides everything");
    format!("{}{unit}", value / factor)
}

/// Reads `64MiB`, `512KiB`, `100B`, `0`: bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    parse_with(&SIZE_UNITS, text)
}

/// Writes bytes so that [`parse_size`] reads the same.
pub fn write_size(bytes: u64) -> String {
    write_with(&SIZE_UNITS, "0", bytes)
}

/// Reads `4500ms`, `30s`, `5m`, `1h`, `1d`, `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse_with(&DURATION_UNITS, text).map(Duration::from_millis)
}

/// Writes whole milliseconds so that [`parse_duration`] reads the same.
pub fn write_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    write_with(&DURATION_UNITS, "0s", millis)
}

/// Reads `10.0.0.0/8`, or an address alone; `None` also when bits are set behind the prefix.
pub fn parse_network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let prefix: u8 = match prefix {
        Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= width)?,
        None => width,
    };
    let behind = bits.checked_shl(u32::from(prefix)).unwrap_or(0);
    (behind == 0).then_some(Network { address, prefix })
}

/// Writes a network so that [`parse_network`] reads the same.
pub fn write_network(network: &Network) -> String {
    format!("{}/{}", network.address, network.prefix)
}

/// Reads `32768-60999`: first and last port, neither 0, in order.
pub fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_with_their_unit() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1KiB", 1024), ("100B", 100), ("0", 0)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(write_size(bytes), text);
        }
        assert_eq!(parse_size("1 GiB"), Some(1 << 30));
        for text in ["", "64", "64Mb", "64MB", "MiB", "-1B", "1.5MiB", "99999999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_written_with_their_unit() {
        for (text, millis) in
            [("4500ms", 4500), ("30s", 30_000), ("7d", 604_800_000), ("1m", 60_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(write_duration(Duration::from_millis(millis)), text);
        }
        for text in ["", "5", "s", "-5s", "5 seconds", "1.5s", "5µs", "99999999999999999999d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn networks_have_no_bits_behind_their_prefix() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "fd00::/8", "::/0", "::1/128"] {
            assert_eq!(write_network(&parse_network(text).expect(text)), text);
        }
        assert_eq!(parse_network("192.0.2.1").map(|network| network.prefix), Some(32));
        for text in ["10.0.0.1/8", "10.0.0.0/33", "fd00::1/64", "::/129", "example.org", "/8", ""] {
            assert_eq!(parse_network(text), None, "{text}");
        }
    }

    #[test]
    fn port_ranges_run_upwards_and_leave_zero_out() {
        assert_eq!(parse_ports("32768-60999"), Some((32768, 60999)));
        for text in ["", "1", "0-10", "10-9", "1-65536", "a-b", "1-2-3"] {
            assert_eq!(parse_ports(text), None, "{text}");
        }
    }
}
