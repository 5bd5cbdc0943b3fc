//! Moments in queries: RFC 3339, or unix time in seconds.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::ApiError;
use crate::wire::envelope::rfc3339;

/// The end of the year 9999, beyond which RFC 3339 has no words.
const LAST_MS: f64 = 253_402_300_799_999.0;

/// Reads a moment, as unix time in milliseconds.
pub(crate) fn parse_moment(text: &str) -> Result<u64, ApiError> {
    let by_number = text.parse::<f64>().ok().map(|seconds| seconds * 1000.0);
    let by_name =
        || OffsetDateTime::parse(text, &Rfc3339).ok().map(|moment| moment.unix_timestamp_nanos() as f64 / 1e6);
    match by_number.or_else(by_name) {
        Some(ms) if (0.0..=LAST_MS).contains(&ms) => Ok(ms as u64),
        _ => Err(ApiError::bad_request("since is RFC 3339, such as 2030-01-31T12:00:00Z, or unix time in seconds")),
    }
}

/// A moment in RFC 3339, in UTC.
pub(crate) fn moment_text(unix_ms: u64) -> String {
    String::from_utf8_lossy(&rfc3339(unix_ms)).into_owned()
}

/// Now, as unix time in milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_saying_it_are_understood() {
        let moment = |text: &str| parse_moment(text).ok();
        assert_eq!(moment("2001-09-09T01:46:40Z"), Some(1_000_000_000_000));
        assert_eq!(moment("2001-09-09T03:46:40.5+02:00"), Some(1_000_000_000_500));
        assert_eq!(moment("1000000000"), Some(1_000_000_000_000));
        assert_eq!(moment("1000000000.25"), Some(1_000_000_000_250));
        assert_eq!(moment("0"), Some(0));
        for wrong in ["", "-1", "yesterday", "NaN", "inf", "1e300", "2001-09-09", "1969-12-31T23:59:59Z"] {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
    }
}
