//! Whatever a server refuses with, in an answer or in a stream, becomes an error whose text is short and printable.
//!
//! Two bytes are the status, a line the headers that are looked at, the rest is the body.

#![no_main]

use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use millstream::engine::error::Error;
use millstream::engine::provider::openai::{parse_error, parse_stream_error};

/// A message has at most 4 KiB, what is around it far less.
const LONGEST: usize = 8 * 1024;

fn check(error: &Error) {
    let text = error.to_string();
    assert!(text.len() <= LONGEST, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(error.retry_after().is_none_or(|wait| !wait.is_zero()));
}

fuzz_target!(|input: &[u8]| {
    let Some((status, rest)) = input.split_first_chunk() else { return };
    let Ok(status) = StatusCode::from_u16(u16::from_be_bytes(*status) % 500 + 100) else { return };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (line, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(line) {
        for name in ["location", "retry-after", "x-should-retry", "x-request-id", "retry-after-ms"] {
            headers.insert(name, value.clone());
        }
    }
    check(&parse_error(status, &headers, body, "api.example.com", SystemTime::UNIX_EPOCH));
    check(&parse_stream_error(body));
});
