//! Headers about limits and waits, however odd, give waits that can be waited and limits that can be kept.
//!
//! Each line is a header, `name: value`.

#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use millstream::engine::provider::{rate_headers, retry_after};

const LONGEST_RESET: Duration = Duration::from_secs(31 * 24 * 3600);

fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(64) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or_default();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    for now in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680)] {
        assert!(retry_after::parse(&headers, now).is_none_or(|wait| !wait.is_zero()));
        let readings = rate_headers::read(&headers, now);
        for (place, reading) in readings.iter().enumerate() {
            let usable = |number: Option<f64>| number.is_none_or(|number| number.is_finite() && number >= 0.0);
            assert!(usable(reading.limit) && usable(reading.remaining), "{reading:?}");
            assert!(reading.reset.is_none_or(|reset| reset <= LONGEST_RESET), "{reading:?}");
            assert!(reading.window.is_none_or(|window| !window.is_zero()), "{reading:?}");
            let is_same = |other: &&_| {
                let other: &millstream::engine::types::RateReading = other;
                other.unit == reading.unit && other.window == reading.window
            };
            assert!(readings.iter().skip(place + 1).find(is_same).is_none(), "{readings:?}");
        }
    }
});
