//! Anthropic's stream as `OpenAI`'s chunks.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::openai::{push_quoted, quoted};
use super::super::{Step, lenient};
use super::answer;

/// Reads one stream.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    /// What every chunk begins with, up to its choices.
    head: String,
    /// Which tool call a block is.
    calls: HashMap<u64, usize>,
    /// Blocks of thinking as they grow, and those that are whole.
    thinking: HashMap<u64, Map<String, Value>>,
    thoughts: Vec<Value>,
    /// Counts are cumulative: a later one replaces an earlier.
    usage: Map<String, Value>,
}

/// The event that most of a stream is made of.
#[derive(Deserialize)]
struct Delta {
    #[serde(rename = "type")]
    kind: DeltaKind,
    delta: TextDelta,
}

#[derive(Deserialize)]
enum DeltaKind {
    #[serde(rename = "content_block_delta")]
    ContentBlockDelta,
}

#[derive(Deserialize)]
struct TextDelta {
    #[serde(rename = "type")]
    kind: TextDeltaKind,
    text: String,
}

#[derive(Deserialize)]
enum TextDeltaKind {
    #[serde(rename = "text_delta")]
    TextDelta,
}

impl Reader {
    pub(in super::super) fn event(&mut self, data: &Bytes) -> Step {
        if let Ok(Delta { kind: DeltaKind::ContentBlockDelta, delta }) = serde_json::from_slice(data) {
            let TextDelta { kind: TextDeltaKind::TextDelta, text } = delta;
            return self.text("content", &text);
        }
        let Ok(event) = lenient::parse(data) else { return broken(data) };
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        match event.get("type").and_then(Value::as_str) {
            Some("message_start") => self.start(&event),
            Some("content_block_start") => self.block(index, event.get("content_block").unwrap_or(&Value::Null)),
            Some("content_block_delta") => self.delta(index, event.get("delta").unwrap_or(&Value::Null)),
            Some("content_block_stop") => self.block_ends(index),
            Some("message_delta") => self.message_delta(&event),
            Some("message_stop") => Step::End,
            // With its type, which tells what it is.
            Some("error") => Step::Chunk(data.clone()),
            None if event.get("error").is_some() => Step::Chunk(data.clone()),
            // `ping`, and whatever comes to be.
            _ => Step::Nothing,
        }
    }

    fn start(&mut self, event: &Value) -> Step {
        let message = event.get("message").unwrap_or(&Value::Null);
        let text = |name| quoted(message.get(name).and_then(Value::as_str).unwrap_or_default());
        self.head = format!(
            "{{\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":{},\"choices\":[",
            text("id"),
            text("model")
        );
        self.count(message);
        self.chunk(&json!({"role": "assistant", "content": ""}), None)
    }

    fn count(&mut self, holder: &Value) {
        let counts = holder.get("usage").and_then(Value::as_object).into_iter().flatten();
        let known = counts.filter(|(_, count)| !count.is_null());
        self.usage.extend(known.map(|(name, count)| (name.clone(), count.clone())));
    }

    /// A block begins, which may say something already.
    fn block(&mut self, index: u64, block: &Value) -> Step {
        let text = |name| block.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "text" if !text("text").is_empty() => self.text("content", text("text")),
            "thinking" | "redacted_thinking" => {
                self.thinking.insert(index, block.as_object().cloned().unwrap_or_default());
                if text("thinking").is_empty() {
                    Step::Nothing
                } else {
                    self.text("reasoning_content", text("thinking"))
                }
            }
            "tool_use" => {
                let call = self.calls.len();
                self.calls.insert(index, call);
                let input = block.get("input").filter(|input| input.as_object().is_some_and(|input| !input.is_empty()));
                let arguments = input.map_or_else(String::new, Value::to_string);
                let function = json!({"name": block.get("name"), "arguments": arguments});
                let call = json!({"index": call, "id": block.get("id"), "type": "function", "function": function});
                self.chunk(&json!({"tool_calls": [call]}), None)
            }
            _ => Step::Nothing,
        }
    }

    fn delta(&mut self, index: u64, delta: &Value) -> Step {
        let text = |name| delta.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "text_delta" => self.text("content", text("text")),
            "thinking_delta" => {
                self.grow(index, "thinking", text("thinking"));
                self.text("reasoning_content", text("thinking"))
            }
            "signature_delta" => {
                self.grow(index, "signature", text("signature"));
                Step::Nothing
            }
            "input_json_delta" if !text("partial_json").is_empty() => {
                let Some(call) = self.calls.get(&index) else { return Step::Nothing };
                let call = json!({"index": call, "function": {"arguments": text("partial_json")}});
                self.chunk(&json!({"tool_calls": [call]}), None)
            }
            _ => Step::Nothing,
        }
    }

    fn grow(&mut self, index: u64, name: &str, piece: &str) {
        if let Some(block) = self.thinking.get_mut(&index) {
            let whole = block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned() + piece;
            block.insert(name.to_owned(), whole.into());
        }
    }

    /// All blocks of thinking so far, whenever one is whole: the last such delta has them all.
    fn block_ends(&mut self, index: u64) -> Step {
        let Some(block) = self.thinking.remove(&index) else { return Step::Nothing };
        self.thoughts.push(block.into());
        self.chunk(&json!({"thinking_blocks": self.thoughts}), None)
    }

    fn message_delta(&mut self, event: &Value) -> Step {
        self.count(event);
        let reason = event.get("delta").and_then(|delta| delta.get("stop_reason")?.as_str()).map(answer::finish_reason);
        self.chunk(&json!({}), reason)
    }

    /// The hot one: no tree is built of it.
    fn text(&self, name: &str, text: &str) -> Step {
        let mut chunk = Vec::with_capacity(self.head.len() + text.len() + text.len() / 8 + 80);
        chunk.extend_from_slice(self.head().as_bytes());
        chunk.extend_from_slice(b"{\"index\":0,\"delta\":{\"");
        chunk.extend_from_slice(name.as_bytes());
        chunk.extend_from_slice(b"\":");
        push_quoted(&mut chunk, text);
        chunk.extend_from_slice(b"},\"finish_reason\":null}]}");
        Step::Chunk(Bytes::from(chunk))
    }

    fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Step {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
        let usage = match finish_reason {
            Some(_) if !self.usage.is_empty() => format!(",\"usage\":{}", answer::usage(&self.usage)),
            _ => String::new(),
        };
        Step::Chunk(Bytes::from(format!("{}{choice}]{usage}}}", self.head())))
    }

    fn head(&self) -> &str {
        if self.head.is_empty() { "{\"object\":\"chat.completion.chunk\",\"choices\":[" } else { &self.head }
    }
}

/// What is not JSON goes on, for its reader to say so; not `OpenAI`'s mark of the end, which some gateways add.
fn broken(data: &Bytes) -> Step {
    if data.is_empty() || data.starts_with(b"[DONE]") { Step::Nothing } else { Step::Chunk(data.clone()) }
}
