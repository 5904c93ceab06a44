//! When a change happened, as an EndpointSlice's annotation says it.

use std::time::{Duration, SystemTime};

/// Days from 0000-03-01 to 1970-01-01 in the Gregorian calendar.
const EPOCH_DAYS: u64 = 719_468;

/// Reads a moment after 1970, as Go's time.RFC3339Nano writes it in UTC; `None` for anything else.
///
/// Source: RFC 3339 §5.6
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let is_moment = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !is_moment {
        return None;
    }
    // Years that begin in March, so that the leap day is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = days.checked_sub(EPOCH_DAYS)? * 86_400 + hour * 3600 + minute * 60 + second;
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_secs_f64(fraction))
}

/// Three whole numbers.
fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut parts = text.split(between).map(|part| part.parse().ok());
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_other_texts_are_none() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:30:15Z", 951_827_415.0),
            ("2026-01-02T03:04:05Z", 1_767_323_045.0),
            ("2026-01-02T03:04:05.25Z", 1_767_323_045.25),
            ("2024-03-01T00:00:00Z", 1_709_251_200.0),
        ] {
            let expected = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
            assert_eq!(time(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-01-02",
            "2026-13-02T03:04:05Z",
            "1969-01-01T00:00:00Z",
            "2026-01-02T03:04:05+01:00",
            "2026-01-02T03:04:05.xZ",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
