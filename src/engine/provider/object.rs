//! Answers of any path: a JSON object that is not an error, kept as it came.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::openai::{lenient_usage, parse_object, strictly, usage_named};
use crate::engine::error::Error;
use crate::engine::types::{Object, Usage};

/// The least that has to be read; everything else is skipped.
#[derive(Deserialize)]
struct Strict {
    usage: Option<Value>,
    error: Option<IgnoredAny>,
}

/// Reads any answer.
///
/// # Errors
/// `InvalidResponse`, retryable, if it is not a JSON object, or an error with status 200.
pub fn parse_object_answer(body: &[u8]) -> Result<Object, Error> {
    // A derived struct would take a list for itself, too.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let usage = match strictly::<Strict>(body) {
        Some(Strict { usage, error: None }) if is_object => usage,
        _ => parse_object(body)?.get("usage").cloned(),
    };
    Ok(Object { usage: usage.as_ref().and_then(any_usage) })
}

/// Tokens by the names of chat completions, or by those of Responses.
pub(super) fn any_usage(usage: &Value) -> Option<Usage> {
    lenient_usage(usage).or_else(|| usage_named(usage, "input_tokens", "output_tokens"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::error::Kind;

    #[test]
    fn any_object_is_an_answer_and_tokens_go_by_two_names() {
        let usage = |body: &str| parse_object_answer(body.as_bytes()).unwrap().usage;
        let counted = Some(Usage { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 });
        assert_eq!(usage("{}"), None);
        assert_eq!(usage(r#"{"error":null,"usage":{"prompt_tokens":3,"completion_tokens":2}}"#), counted);
        assert_eq!(usage(r#"{"usage":{"input_tokens":3,"output_tokens":2,"total_tokens":5}}"#), counted);
        assert_eq!(usage(r#"{"usage":"none"}"#), None);
        assert_eq!(usage(r#"{"text":"lone \ud83d","usage":{"input_tokens":3,"output_tokens":2}}"#), counted);
    }

    #[test]
    fn what_is_no_object_or_an_error_is_no_answer() {
        for body in ["", "<html>", "[]", "[null,null]", "7", r#"{"a":"#, r#"{"error":{"message":"m"}}"#] {
            assert_eq!(parse_object_answer(body.as_bytes()).unwrap_err().kind(), Kind::InvalidResponse, "{body}");
        }
    }
}
