//! The time until an allowance is whole again, in all its forms.
//!
//! Tried in this order: a duration as Go writes it (`6m0s`, `2m59.56s`, `12ms`, also `1d` and `µs`), a number (below 10⁹ it is
//! seconds from now, with 10 digits Unix seconds, with 13 Unix milliseconds), RFC 3339, an HTTP date. A moment is read against
//! the answer's own clock where that is known. Negative, past, infinite, absurd and unreadable values are nothing at all.
//!
//! RFC 3339 is read here rather than by a crate: it is one line of the civil calendar, and the date libraries bring time zones
//! and formatting along.

use std::time::{Duration, SystemTime};

/// No limit is counted over more than a month; a longer reset is a mistake that must not stop a key for years.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);

/// From here on a number is a moment, not a duration (the heuristic of promptfoo and others).
const FIRST_UNIX_SECONDS: f64 = 1e9;
const FIRST_UNIX_MILLISECONDS: f64 = 1e12;

/// The time from `now` until what `text` says.
pub(super) fn parse(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = go_duration(text).or_else(|| match text.parse::<f64>() {
        Ok(number) => from_number(number, now),
        Err(_) => until(rfc3339(text).or_else(|| httpdate::parse_http_date(text).ok())?, now),
    })?;
    (wait <= LONGEST).then_some(wait)
}

fn from_number(number: f64, now: SystemTime) -> Option<Duration> {
    let seconds = if number < FIRST_UNIX_MILLISECONDS { number } else { number / 1000.0 };
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    if number < FIRST_UNIX_SECONDS { Some(duration) } else { until(SystemTime::UNIX_EPOCH.checked_add(duration)?, now) }
}

fn until(moment: SystemTime, now: SystemTime) -> Option<Duration> {
    moment.duration_since(now).ok()
}

/// `1h2m3.5s`: numbers with a unit each, at least one.
fn go_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let unit_at = rest.find(|character: char| !matches!(character, '0'..='9' | '.'))?;
        let (number, with_unit) = rest.split_at_checked(unit_at)?;
        let next_at = with_unit.find(|character: char| character.is_ascii_digit()).unwrap_or(with_unit.len());
        let (unit, after) = with_unit.split_at_checked(next_at)?;
        seconds += number.parse::<f64>().ok()? * seconds_of(unit)?;
        rest = after;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

fn seconds_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "d" => 86_400.0,
        "h" => 3600.0,
        "m" => 60.0,
        "s" => 1.0,
        "ms" => 1e-3,
        // The micro sign, the Greek letter, and what ASCII makes of them.
        "\u{b5}s" | "\u{3bc}s" | "us" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    })
}

/// `2025-08-21T12:40:59Z`, with a fraction and an offset if there are any.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let offset_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, offset) = time.split_at_checked(offset_at)?;
    let [year, month, day] = numbers(date, '-')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60; // a leap second
    if !valid {
        return None;
    }
    let fraction =
        fraction.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("0.{fraction}").parse().ok())??;
    let local = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = u64::try_from(local - offset_seconds(offset)?).ok()?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))?
        .checked_add(Duration::try_from_secs_f64(fraction).ok()?)
}

fn offset_seconds(offset: &str) -> Option<i64> {
    let sign = match offset {
        "Z" | "z" => return Some(0),
        _ if offset.starts_with('-') => -1,
        _ => 1,
    };
    let [hours, minutes] = numbers(offset.get(1..)?, ':')?;
    (hours < 24 && minutes < 60).then(|| sign * (hours * 3600 + minutes * 60))
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for number in &mut numbers {
        let part = parts.next()?;
        // Without this a sign would pass for a number.
        *number = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days since 1970-01-01 ("chrono-Compatible Low-Level Date Algorithms", Howard Hinnant), for years after 0.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let year_of_era = year % 400;
    year / 400 * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noon() -> SystemTime {
        httpdate::parse_http_date("Thu, 21 Aug 2025 12:00:00 GMT").unwrap()
    }

    fn seconds(text: &str) -> Option<f64> {
        parse(text, noon()).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn reads_durations_as_go_writes_them() {
        for (text, expected) in [
            ("0s", 0.0),
            ("12ms", 0.012),
            ("7.66s", 7.66),
            ("6m0s", 360.0),
            ("2m59.56s", 179.56),
            ("1h2m3s", 3723.0),
            ("1d", 86_400.0),
            ("1d1h", 90_000.0),
            ("250µs", 0.000_25),
            ("250μs", 0.000_25),
            ("250us", 0.000_25),
            (" 1s ", 1.0),
        ] {
            let read = seconds(text).unwrap();
            assert!((read - expected).abs() < 1e-9, "{text}: {read}");
        }
    }

    #[test]
    fn reads_moments_in_every_form() {
        for text in [
            "30",
            "30.0",
            "1755777630",
            "1755777630000",
            "2025-08-21T12:00:30Z",
            "2025-08-21T12:00:30.000Z",
            "2025-08-21 12:00:30+00:00",
            "2025-08-21T14:00:30+02:00",
            "2025-08-21T06:30:30-05:30",
            "Thu, 21 Aug 2025 12:00:30 GMT",
        ] {
            assert_eq!(seconds(text), Some(30.0), "{text}");
        }
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        for text in [
            "",
            "soon",
            "-1",
            "-1s",
            "nan",
            "inf",
            "1e400",
            "1e5s",
            "s",
            "1.2.3s",
            "5x",
            "1755777600000000",
            "2025-08-21T11:59:30Z",
            "2025-13-01T00:00:00Z",
            "2025-08-21T12:00:30",
            "2025-08-21T+2:00:00Z",
            "400d",
            "31536000",
            "9000000000000000000-01-01T00:00:00Z",
            "2025-08-21T12:00:30+9000000000000000000:00",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_waits_longer_than_a_month(text in "\\PC{0,40}") {
            prop_assert!(parse(&text, noon()).is_none_or(|wait| wait <= LONGEST));
        }

        #[test]
        fn never_panics_on_what_looks_like_a_time(text in "[0-9T:Z.+hmsduµ -]{0,40}") {
            prop_assert!(parse(&text, noon()).is_none_or(|wait| wait <= LONGEST));
        }

        #[test]
        fn reads_every_day_as_httpdate_does(days in 0_u64..(30 * 365)) {
            let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + 45_296);
            let date = httpdate::fmt_http_date(moment); // "Thu, 21 Aug 2025 12:34:56 GMT"
            let month = "JanFebMarAprMayJunJulAugSepOctNovDec".find(&date[8..11]).unwrap() / 3 + 1;
            let text = format!("{}-{month:02}-{}T{}Z", &date[12..16], &date[5..7], &date[17..25]);
            prop_assert_eq!(rfc3339(&text), Some(moment));
        }
    }
}
