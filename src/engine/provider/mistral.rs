//! Mistral's chat format: `OpenAI`'s but for some names, some fields that it refuses, and content that may come in chunks.
//!
//! Source: the types of the vendor's SDK, and users' reports of what its server refuses. Most bodies are the same in both, which
//! a look for the few words that make a difference tells, so those are not taken apart.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Step, lenient, openai};
use crate::engine::error::Error;
use crate::engine::types::Prompt;

const VENDOR: &str = "Mistral's";

/// Without a counterpart, and the answer would be another.
const REFUSED: [&str; 8] =
    ["logit_bias", "logprobs", "top_logprobs", "store", "modalities", "audio", "web_search_options", "verbosity"];

/// Without a counterpart, and the answer is the same. (A stream always tells its usage.)
const FORGOTTEN: [&str; 6] = [
    "stream_options",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
];

/// What an answer's message may have and a request's may not.
const ANSWERS_OWN: [&str; 7] =
    ["refusal", "annotations", "audio", "function_call", "reasoning", "thinking_blocks", "reasoning_content"];

/// Everything of a request but its prompt.
#[derive(Debug, Clone)]
pub(super) struct Template(openai::Template);

impl Template {
    pub(super) fn new(model: &str, system: Option<&str>, fields: &str) -> Result<Self, Error> {
        if fields.is_empty() {
            return Ok(Self(openai::Template::new(model, system, "", false)));
        }
        let mut fields = Fields::parse(VENDOR, fields)?;
        fields.refuse_functions()?;
        fields.refuse(&REFUSED)?;
        fields.forget(&FORGOTTEN);
        if let Some(seed) = fields.take("seed") {
            fields.set("random_seed", seed);
        }
        if let Some(most) = fields.take_max_tokens() {
            fields.set("max_tokens", most);
        }
        let text = fields.to_text();
        Ok(Self(openai::Template::new(model, system, text.trim_start_matches(','), false)))
    }

    pub(super) fn model(&self) -> Range<usize> {
        self.0.model()
    }

    pub(super) fn body(&self, prompt: &Prompt, stream: bool) -> Result<Bytes, Error> {
        match prompt {
            Prompt::Messages(array) => match messages(array)? {
                Cow::Borrowed(_) => Ok(self.0.body(prompt, stream)),
                Cow::Owned(array) => Ok(self.0.body(&Prompt::Messages(array), stream)),
            },
            Prompt::Text(_) => Ok(self.0.body(prompt, stream)),
        }
    }
}

/// Messages without what Mistral's server refuses in them.
fn messages(array: &str) -> Result<Cow<'_, str>, Error> {
    let mentions = |name: &&str| array.contains(&format!("\"{name}\""));
    if !mentions(&"developer") && !ANSWERS_OWN.iter().any(mentions) {
        return Ok(Cow::Borrowed(array));
    }
    let mut messages: Vec<Value> = serde_json::from_str(array)
        .map_err(|error| Error::configuration(format!("messages are not a list: {error}")))?;
    for (place, message) in messages.iter_mut().enumerate() {
        let Some(message) = message.as_object_mut() else {
            return Err(Error::configuration(format!("messages[{place}] is not an object")));
        };
        if message.get("role") == Some(&"developer".into()) {
            message.insert("role".into(), "system".into());
        }
        if let Some(Value::String(thought)) = message.get("reasoning_content").filter(|thought| *thought != "") {
            let mut chunks = vec![json!({"type": "thinking", "thinking": [{"type": "text", "text": thought}]})];
            match message.get("content") {
                Some(Value::String(text)) if !text.is_empty() => chunks.push(json!({"type": "text", "text": text})),
                Some(Value::Array(parts)) => chunks.extend(parts.iter().cloned()),
                _ => {}
            }
            message.insert("content".into(), chunks.into());
        }
        for name in ANSWERS_OWN {
            message.shift_remove(name);
        }
    }
    Ok(Cow::Owned(Value::from(messages).to_string()))
}

/// A whole answer as a chat completion; `None` if it is one already.
pub(super) fn to_openai(body: &[u8]) -> Option<Bytes> {
    translate(body, "message")
}

/// One event of a stream.
pub(super) fn event(name: Option<&str>, data: &Bytes) -> Step {
    match openai::event(name, data) {
        Step::Chunk(chunk) => Step::Chunk(translate(&chunk, "delta").unwrap_or(chunk)),
        step => step,
    }
}

/// Words without which a body is the same in both formats. (A quote within a text stands behind a backslash, so that no text has
/// them.)
const TELLING: [&str; 3] = ["\"type\"", "\"function\"", "\"model_length\""];

fn translate(body: &[u8], message: &str) -> Option<Bytes> {
    if let Ok(text) = std::str::from_utf8(body)
        && !TELLING.iter().any(|word| text.contains(word))
    {
        return None;
    }
    let mut value = lenient::parse(body).ok()?;
    for choice in value.get_mut("choices")?.as_array_mut()? {
        let Some(choice) = choice.as_object_mut() else { continue };
        if choice.get("finish_reason") == Some(&"model_length".into()) {
            choice.insert("finish_reason".into(), "length".into());
        }
        if let Some(message) = choice.get_mut(message).and_then(Value::as_object_mut) {
            content(message);
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
            calls.filter_map(Value::as_object_mut).for_each(tool_call);
        }
    }
    Some(Bytes::from(value.to_string()))
}

/// Content in chunks as one text, with the thoughts beside it.
fn content(message: &mut Map<String, Value>) {
    let Some(Value::Array(chunks)) = message.get("content") else { return };
    let (mut text, mut thoughts) = (String::new(), String::new());
    for chunk in chunks {
        match chunk.get("thinking") {
            Some(Value::Array(parts)) => parts.iter().for_each(|part| thoughts.push_str(part_text(part))),
            Some(thought) => thoughts.push_str(part_text(thought)),
            None => text.push_str(part_text(chunk)),
        }
    }
    message.insert("content".into(), text.into());
    if !thoughts.is_empty() {
        message.insert("reasoning_content".into(), thoughts.into());
    }
}

fn part_text(part: &Value) -> &str {
    part.as_str().or_else(|| part.get("text")?.as_str()).unwrap_or_default()
}

fn tool_call(call: &mut Map<String, Value>) {
    call.entry("type").or_insert_with(|| "function".into());
    let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else { return };
    let arguments = match function.get("arguments") {
        Some(Value::String(_)) => return,
        None | Some(Value::Null) => String::new(),
        Some(arguments) => arguments.to_string(),
    };
    function.insert("arguments".into(), arguments.into());
}
