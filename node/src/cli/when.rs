//! Times as people write them on the command line.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// Examples for an error.
const FORMS: &str = "2026-03-03T14:05:00Z, 2026-03-03 (UTC), or \"3h ago\"";

/// A time or a whole day, in milliseconds since 1970: from its first up to before its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When {
    pub(super) from_ms: u64,
    pub(super) until_ms: u64,
}

/// Reads a time: RFC 3339, a date or a date with a time (UTC), `now`, or so long `ago`.
///
/// # Errors
/// It is none of these, or before 1970.
pub(super) fn when(text: &str) -> Result<When, String> {
    at(text.trim(), Timestamp::now())
}

fn at(text: &str, now: Timestamp) -> Result<When, String> {
    let no = || format!("{text:?} is not a time; for example {FORMS}");
    if let Some(long) = text.strip_suffix("ago") {
        let span: Span = long.trim().parse().map_err(|_| no())?;
        let long: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| no())?;
        return moment(now.checked_sub(long.abs()).map_err(|_| no())?).ok_or_else(no);
    }
    if text == "now" {
        return moment(now).ok_or_else(no);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return moment(time).ok_or_else(no);
    }
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().and_then(|time| moment(time.timestamp()));
    // A date alone is also a date and a time to the library.
    if !text.contains([':', 'T']) {
        let day: Date = text.parse().map_err(|_| no())?;
        let next = day.tomorrow().map_err(|_| no())?;
        let (from, until) = (utc(day.into()), utc(next.into()));
        return from.zip(until).map(|(from, until)| When { until_ms: until.from_ms, ..from }).ok_or_else(no);
    }
    text.parse().ok().and_then(utc).ok_or_else(no)
}

fn moment(time: Timestamp) -> Option<When> {
    let from_ms = u64::try_from(time.as_millisecond()).ok()?;
    Some(When { from_ms, until_ms: from_ms + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_772_539_200_000;

    fn read(text: &str) -> Result<When, String> {
        at(text, Timestamp::from_millisecond(NOON as i64).expect("a time"))
    }

    #[test]
    fn moments_and_days_are_read() {
        let moment = |from_ms| Ok(When { from_ms, until_ms: from_ms + 1 });
        assert_eq!(read("now"), moment(NOON));
        assert_eq!(read("2026-03-03T12:00:00Z"), moment(NOON));
        assert_eq!(read("2026-03-03T13:00:00+01:00"), moment(NOON));
        assert_eq!(read("2026-03-03T12:00"), moment(NOON));
        assert_eq!(read("2026-03-03 12:00:00.250"), moment(NOON + 250));
        assert_eq!(read("3h ago"), moment(NOON - 3 * 3_600_000));
        assert_eq!(read("2 days 1 minute ago"), moment(NOON - 2 * 86_400_000 - 60_000));
        let midnight = NOON - 43_200_000;
        assert_eq!(read("2026-03-03"), Ok(When { from_ms: midnight, until_ms: midnight + 86_400_000 }));
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in [
            "",
            "ago",
            "yesterday",
            "2026-13-01",
            "3 parsecs ago",
            "1969-12-31",
            "2026-03-03T25:00",
            "2 months ago",
        ] {
            assert!(read(text).is_err_and(|e| e.contains("is not a time")), "{text:?}");
        }
    }
}
