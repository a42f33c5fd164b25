//! Anthropic's Messages.
//!
//! Source: the vendor's reference and the types of its SDK. A request differs in its messages ([`messages`]) and fields
//! ([`settings`]), an answer in everything ([`answer`]), a stream in its events ([`stream`]).

mod answer;
mod messages;
mod settings;
mod stream;

use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;

pub(super) use self::answer::to_openai;
use self::settings::Settings;
pub(super) use self::stream::Reader;
use super::fields::Fields;
use super::openai::{push_quoted, quoted};
use crate::engine::error::Error;
use crate::engine::types::Prompt;

/// The vendor's name as texts have it.
const VENDOR: &str = "Anthropic's";

const BEFORE_MODEL: &str = "{\"model\":";
const AFTER_MODEL: &str = ",\"messages\":[";
const STREAM: &str = ",\"stream\":true";

/// The longest answer, in tokens, that is sent whole: the vendor's SDK reckons with 128,000 tokens an hour and refuses to wait
/// longer than ten minutes for one.
const LONGEST_WHOLE: u64 = 128_000 * 600 / 3600;

/// Everything of a request but its prompt.
#[derive(Debug, Clone)]
pub(super) struct Template {
    before_prompt: String,
    /// What stands above the messages; those of a prompt may add to it.
    system: Vec<Value>,
    quoted_system: String,
    fields: String,
    max_tokens: Option<u64>,
}

impl Template {
    pub(super) fn new(model: &str, system: Option<&str>, fields: &str) -> Result<Self, Error> {
        let Settings { mut system, fields, max_tokens } = settings::read(Fields::parse(VENDOR, fields)?, system)?;
        system.retain(|part| part != "");
        Ok(Self {
            before_prompt: [BEFORE_MODEL, &quoted(model), AFTER_MODEL].concat(),
            quoted_system: system_field(&system),
            system,
            fields,
            max_tokens,
        })
    }

    pub(super) fn model(&self) -> Range<usize> {
        BEFORE_MODEL.len()..self.before_prompt.len().saturating_sub(AFTER_MODEL.len())
    }

    pub(super) fn must_stream(&self) -> bool {
        self.max_tokens.is_some_and(|most| most > LONGEST_WHOLE)
    }

    pub(super) fn body(&self, prompt: &Prompt, stream: bool) -> Result<Bytes, Error> {
        let mut body = Vec::with_capacity(256 + self.fields.len() + self.quoted_system.len());
        body.extend_from_slice(self.before_prompt.as_bytes());
        let mut own_system = None;
        match prompt {
            Prompt::Text(text) => {
                body.extend_from_slice(b"{\"role\":\"user\",\"content\":");
                push_quoted(&mut body, text);
                body.push(b'}');
            }
            Prompt::Messages(array) => {
                let read = messages::read(array)?;
                for (place, message) in read.messages.iter().enumerate() {
                    if place > 0 {
                        body.push(b',');
                    }
                    // Writing to a vector cannot fail.
                    let _ = serde_json::to_writer(&mut body, message);
                }
                if !read.system.is_empty() {
                    own_system = Some(system_field(&[&self.system[..], &read.system].concat()));
                }
            }
        }
        body.push(b']');
        body.extend_from_slice(own_system.as_ref().unwrap_or(&self.quoted_system).as_bytes());
        body.extend_from_slice(self.fields.as_bytes());
        if stream {
            body.extend_from_slice(STREAM.as_bytes());
        }
        body.push(b'}');
        Ok(Bytes::from(body))
    }
}

/// `,"system":…` of strings and blocks: one string if all of them are, else blocks.
fn system_field(parts: &[Value]) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let texts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
    let system = match texts {
        Some(texts) => Value::from(texts.join("\n\n")),
        None => parts.iter().map(|part| messages::as_block(part.clone())).collect(),
    };
    format!(",\"system\":{system}")
}
