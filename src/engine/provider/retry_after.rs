//! The wait a server asks for, in all its forms.
//!
//! `retry-after-ms` (milliseconds) wins over `Retry-After`, which is seconds, also with a fraction, or an HTTP date (RFC 9110,
//! section 10.2.3). A date is read against the answer's own `Date`, so a client whose clock is off waits as long as it was
//! told. Zero, negative, past, infinite and unreadable values are no wait at all: our own backoff applies.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// The wait in `headers`, if there is a usable one. `now` stands in where the answer has no `Date`.
pub fn parse(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    number(headers, "retry-after-ms", 1000.0).or_else(|| number(headers, "retry-after", 1.0)).or_else(|| {
        let until = httpdate::parse_http_date(text(headers, "retry-after")?).ok()?;
        let served = text(headers, "date").and_then(|date| httpdate::parse_http_date(date).ok());
        until.duration_since(served.unwrap_or(now)).ok().filter(|wait| !wait.is_zero())
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn number(headers: &HeaderMap, name: &str, per_second: f64) -> Option<Duration> {
    let seconds = text(headers, name)?.parse::<f64>().ok()? / per_second;
    // Negative ones are refused here; what is less than half a nanosecond becomes zero.
    Duration::try_from_secs_f64(seconds).ok().filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wait(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        parse(&headers, httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap())
    }

    #[test]
    fn milliseconds_win_over_seconds() {
        let both = [("retry-after", "5"), ("retry-after-ms", "250")];
        assert_eq!(wait(&both), Some(Duration::from_millis(250)));
        assert_eq!(wait(&[("retry-after", "5"), ("retry-after-ms", "soon")]), Some(Duration::from_secs(5)));
    }

    #[test]
    fn reads_seconds_with_a_fraction_and_dates() {
        assert_eq!(wait(&[("retry-after", " 1.5 ")]), Some(Duration::from_millis(1500)));
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")]), Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_date_is_read_against_the_servers_own_clock() {
        let pairs = [("retry-after", "Wed, 21 Oct 2026 09:00:05 GMT"), ("date", "Wed, 21 Oct 2026 09:00:00 GMT")];
        assert_eq!(wait(&pairs), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_no_wait_falls_back_to_our_own() {
        for value in ["0", "0.0000000000001", "-1", "inf", "1e400", "nan", "", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"]
        {
            assert_eq!(wait(&[("retry-after", value)]), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_any_header(value in "[ -~]{0,40}") {
            let _ = wait(&[("retry-after", &value), ("retry-after-ms", &value)]);
        }
    }
}
