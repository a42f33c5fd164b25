//! The bodies in `tests/data/wire`, read by the provider.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use millstream::engine::error::{Error, Pressure, Verdict};
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
    let overloaded = refusal(529, "anthropic_overloaded.json");
    assert_eq!(overloaded.http().unwrap().request_id.as_deref(), Some("req_011COverloaded"));
    let limited = refusal(429, "mistral_rate_limited.json");
    assert_eq!(limited.http().unwrap().message.as_deref(), Some("Rate limit exceeded"));
    assert_eq!(limited.verdict(), Verdict::Retryable);
}

#[test]
fn tells_what_each_refusal_asks_for() {
    let (waits, spent, ramp, overload) = (
        (Verdict::Retryable, false, Pressure::RateLimit),
        (Verdict::Final, true, Pressure::None),
        (Verdict::Retryable, false, Pressure::Ramp),
        (Verdict::Retryable, false, Pressure::Overload),
    );
    for (status, name, expected) in [
        (429, "mistral_rate_limited.json", waits),
        (429, "together_rate_limited.json", waits),
        (429, "openai_insufficient_quota.json", spent),
        (429, "anthropic_spend_limit.json", spent),
        (402, "deepseek_insufficient_balance.json", spent),
        (429, "openai_slow_down.json", ramp),
        (503, "openai_slow_down.json", ramp),
        (429, "dashscope_burst_rate.json", ramp),
        (503, "openai_overloaded.json", overload),
        (529, "anthropic_overloaded.json", overload),
        (429, "anthropic_concurrent_connections.json", overload),
        (429, "tei_overloaded.json", overload),
    ] {
        let error = refusal(status, name);
        assert_eq!((error.verdict(), error.is_out_of_quota(), error.pressure()), expected, "{status} {name}");
    }
}

#[test]
fn an_error_in_the_guise_of_a_success_means_what_it_says() {
    let read = |name| parse_chat(&sample(name)).unwrap_err();
    assert_eq!(read("anthropic_overloaded.json").pressure(), Pressure::Overload);
    assert_eq!(read("mistral_rate_limited.json").pressure(), Pressure::None); // without an "error" it is no error
    let spent = read("openai_insufficient_quota.json");
    assert_eq!((spent.verdict(), spent.is_out_of_quota()), (Verdict::Final, true));
}
