//! Anthropic's answers as `OpenAI`'s.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::super::lenient;

/// A whole answer as a chat completion; `None` if it is not one of Anthropic's.
///
/// The time of its making is not told, so `created` is 0. Blocks that a chat completion has no place for (citations, a server
/// tool's) are only in the provider's own body.
pub(in super::super) fn to_openai(body: &[u8]) -> Option<Bytes> {
    let message = match serde_json::from_slice(body) {
        Ok(message) => message,
        Err(_) => lenient::parse(body).ok()?,
    };
    let blocks = match message.get("content")? {
        Value::Array(blocks) => blocks.clone(),
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        _ => return None,
    };
    let mut content = Content::default();
    for block in &blocks {
        content.add(block);
    }
    let mut completion = json!({
        "id": message.get("id"),
        "object": "chat.completion",
        "created": 0,
        "model": message.get("model"),
        "choices": [{
            "index": 0,
            "message": content.message(),
            "logprobs": null,
            "finish_reason": message.get("stop_reason").and_then(Value::as_str).map(finish_reason),
        }],
    });
    let completion_fields = completion.as_object_mut()?;
    if let Some(usage) = message.get("usage").and_then(Value::as_object) {
        completion_fields.insert("usage".into(), self::usage(usage));
        completion_fields.extend(usage.get("service_tier").map(|tier| ("service_tier".to_owned(), tier.clone())));
    }
    Some(Bytes::from(completion.to_string()))
}

#[derive(Default)]
struct Content {
    text: Option<String>,
    reasoning: String,
    thinking: Vec<Value>,
    calls: Vec<Value>,
}

impl Content {
    fn add(&mut self, block: &Value) {
        let text = |name| block.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "text" => self.text.get_or_insert_default().push_str(text("text")),
            "thinking" => {
                self.reasoning.push_str(text("thinking"));
                self.thinking.push(block.clone());
            }
            "redacted_thinking" => self.thinking.push(block.clone()),
            "tool_use" => {
                let input = block.get("input").map_or_else(|| "{}".to_owned(), Value::to_string);
                self.calls.push(json!({
                    "id": block.get("id"),
                    "type": "function",
                    "function": {"name": block.get("name"), "arguments": input},
                }));
            }
            _ => {}
        }
    }

    fn message(self) -> Value {
        // Only a call of tools says nothing else.
        let text = if self.calls.is_empty() { Some(self.text.unwrap_or_default()) } else { self.text };
        let mut message =
            Map::from_iter([("role".to_owned(), "assistant".into()), ("content".to_owned(), text.into())]);
        if !self.reasoning.is_empty() {
            message.insert("reasoning_content".into(), self.reasoning.into());
        }
        if !self.thinking.is_empty() {
            // With their signatures, which the next request must carry.
            message.insert("thinking_blocks".into(), self.thinking.into());
        }
        if !self.calls.is_empty() {
            message.insert("tool_calls".into(), self.calls.into());
        }
        message.into()
    }
}

/// Why an answer ended, in `OpenAI`'s words where it has one.
pub(super) fn finish_reason(stop_reason: &str) -> &str {
    match stop_reason {
        "end_turn" | "stop_sequence" => "stop",
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        other => other,
    }
}

/// The tokens: Anthropic counts what it read from its cache, or wrote to it, apart from the rest of the prompt.
pub(super) fn usage(usage: &Map<String, Value>) -> Value {
    let count = |name| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (written, cached) = (count("cache_creation_input_tokens"), count("cache_read_input_tokens"));
    let prompt = count("input_tokens").saturating_add(written).saturating_add(cached);
    let completion = count("output_tokens");
    let mut made = json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt.saturating_add(completion),
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    });
    let thinking = usage.get("output_tokens_details").and_then(|details| details.get("thinking_tokens"));
    if let (Some(thinking), Some(made)) = (thinking, made.as_object_mut()) {
        made.insert("completion_tokens_details".into(), json!({"reasoning_tokens": thinking}));
    }
    made
}
