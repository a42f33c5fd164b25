//! The bodies in `tests/data/wire`, read by the provider.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use millstream::engine::error::{Error, Pressure, Verdict};
use millstream::engine::provider::accumulate::Accumulator;
use millstream::engine::provider::chunk::ChatChunk;
use millstream::engine::provider::openai::{parse_chat, parse_error, parse_stream_error, parse_text};
use millstream::engine::sse::{Decoder, Event};
use serde_json::Value;

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

/// The events of a sample that comes in pieces of `read` bytes.
fn events(name: &str, read: usize) -> Vec<Event> {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for piece in sample(name).chunks(read) {
        decoder.push(piece.to_vec().into());
        events.extend(std::iter::from_fn(|| decoder.next_event().unwrap()));
    }
    events.extend(decoder.finish());
    events
}

/// What a stream adds up to, in the words of `streams.json`.
fn sum(events: Vec<Event>) -> Value {
    let mut accumulator = Accumulator::new();
    let (mut done, mut error) = (false, None);
    for event in events {
        assert!(!done && error.is_none(), "nothing follows the end");
        match &event.data[..] {
            b"[DONE]" => done = true,
            _ => match ChatChunk::read(event.data) {
                Ok(chunk) => accumulator.push(&chunk).unwrap(),
                Err(failed) => error = failed.status(),
            },
        }
    }
    let (text, complete) = (accumulator.text().to_owned(), accumulator.is_complete());
    let body = accumulator.finish();
    let raw: Value = serde_json::from_slice(&body).unwrap();
    let chat = parse_chat(&body).unwrap();
    let choice = &chat.choices[0];
    assert_eq!(choice.message.content.clone().unwrap_or_default(), text);
    let calls: Option<Value> = choice.message.tool_calls.as_ref().map(|calls| {
        let arguments = |text| serde_json::from_str::<Value>(text).unwrap();
        calls
            .iter()
            .map(|call| {
                let function = call.function.as_ref().unwrap();
                serde_json::json!({"id": call.id, "name": function.name, "arguments": arguments(&function.arguments)})
            })
            .collect()
    });
    let mut sum = serde_json::json!({
        "text": text, "complete": complete, "done": done, "error": error, "finish_reason": choice.finish_reason,
        "total_tokens": chat.usage.map(|usage| usage.total_tokens), "tool_calls": calls,
        "reasoning_content": raw["choices"][0]["message"]["reasoning_content"],
        "logprobs": raw["choices"][0]["logprobs"]["content"].as_array().map(Vec::len),
    });
    sum.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    sum
}

#[test]
fn streams_add_up_to_what_they_say_however_they_are_cut() {
    let expected: serde_json::Map<_, _> = serde_json::from_slice(&sample("streams.json")).unwrap();
    assert!(expected.len() > 5);
    for (name, expected) in expected {
        for read in [1, 7, 1000, usize::MAX] {
            assert_eq!(sum(events(&name, read)), expected, "{name} in pieces of {read}");
        }
    }
}

#[test]
fn an_accumulated_answer_is_the_one_that_comes_at_once() {
    let mut accumulator = Accumulator::new();
    for event in events("llamacpp_stream.sse", usize::MAX).into_iter().filter(|event| &event.data[..] != b"[DONE]") {
        accumulator.push(&ChatChunk::read(event.data).unwrap()).unwrap();
    }
    let streamed: Value = serde_json::from_slice(&accumulator.finish()).unwrap();
    let whole: Value = serde_json::from_slice(&sample("llamacpp_chat.json")).unwrap();
    let same = ["/object", "/model", "/usage", "/system_fingerprint", "/choices/0/finish_reason", "/choices/0/index"];
    for field in same.into_iter().chain(["/choices/0/message/role", "/choices/0/message/content"]) {
        assert!(whole.pointer(field).is_some(), "{field}");
        assert_eq!(streamed.pointer(field), whole.pointer(field), "{field}");
    }
    assert!(streamed["timings"].is_object());
}

#[test]
fn an_error_event_means_what_its_type_says() {
    let events = events("anthropic_stream_error.sse", 1000);
    let error = events.last().unwrap();
    assert_eq!(error.name(), Some("error"));
    let error = parse_stream_error(&error.data);
    assert_eq!((error.status(), error.pressure()), (Some(529), Pressure::Overload));
}
