//! The bodies in `tests/data/wire`, read by the provider.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use millstream::engine::error::{Error, Verdict};
use millstream::engine::provider::openai::{parse_chat, parse_error, parse_text};

fn sample(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire").join(name)).unwrap()
}

fn refusal(status: u16, name: &str) -> Error {
    let status = StatusCode::from_u16(status).unwrap();
    parse_error(status, &HeaderMap::new(), &sample(name), "api.test", SystemTime::UNIX_EPOCH)
}

#[test]
fn reads_the_answers() {
    for (name, text, tokens, reason) in [
        ("openai_chat.json", "Hello! How can I assist you today?", 29, "stop"),
        ("llamacpp_chat.json", "Hello! I'm here to help with", 41, "length"),
    ] {
        let chat = parse_chat(&sample(name)).unwrap();
        assert_eq!(chat.choices[0].finish_reason.as_deref(), Some(reason), "{name}");
        assert_eq!(chat.usage.unwrap().total_tokens, tokens, "{name}");
        assert_eq!(parse_text(&sample(name)).unwrap().content, text, "{name}");
    }
}

#[test]
fn reads_the_errors() {
    let context = refusal(400, "llamacpp_context_exceeded.json");
    assert_eq!(context.http().unwrap().error_type.as_deref(), Some("exceed_context_size_error"));
    assert_eq!(context.http().unwrap().code.as_deref(), Some("400"));
    let quota = refusal(429, "openai_insufficient_quota.json");
    assert!(quota.is_out_of_quota() && quota.verdict() == Verdict::Final);
    let limited = refusal(429, "mistral_rate_limited.json");
    assert_eq!(limited.http().unwrap().message.as_deref(), Some("Rate limit exceeded"));
    assert_eq!(limited.verdict(), Verdict::Retryable);
}
