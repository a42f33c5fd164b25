//! `OpenAI`'s messages as Anthropic's.
//!
//! There are two roles, in turns: system and developer messages go above all, a tool's answer is part of the user's turn, and
//! messages of one role that follow each other become one. Content that is already Anthropic's (a block of a type that `OpenAI` does
//! not have, `cache_control`) stays as it is.

use serde_json::{Map, Value, json};

use crate::engine::error::Error;

/// A prompt's messages.
pub(super) struct Read {
    /// Roles `user` and `assistant`.
    pub(super) messages: Vec<Value>,
    /// Strings and blocks.
    pub(super) system: Vec<Value>,
}

/// What an answer's message has that the next request need not: said otherwise, or nothing.
const ANSWERS_OWN: [&str; 6] = ["reasoning_content", "reasoning", "annotations", "audio", "id", "refusal"];

/// Reads a JSON array of messages.
pub(super) fn read(array: &str) -> Result<Read, Error> {
    let messages: Vec<Value> = serde_json::from_str(array)
        .map_err(|error| Error::configuration(format!("messages are not a list: {error}")))?;
    let mut read = Read { messages: Vec::with_capacity(messages.len()), system: Vec::new() };
    for (place, message) in messages.into_iter().enumerate() {
        let Value::Object(message) = message else {
            return Err(Error::configuration(format!("messages[{place}] is not an object")));
        };
        Message { place, fields: message }.put(&mut read)?;
    }
    Ok(read)
}

struct Message {
    place: usize,
    fields: Map<String, Value>,
}

impl Message {
    fn refused(&self, why: &str) -> Error {
        Error::configuration(format!("messages[{}] {why}", self.place))
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.shift_remove(name).filter(|value| !value.is_null())
    }

    fn put(mut self, read: &mut Read) -> Result<(), Error> {
        let role = self.take("role");
        let content = self.take("content");
        let cache_control = self.take("cache_control");
        let (role, mut content) = match role.as_ref().and_then(Value::as_str) {
            Some("system" | "developer") => {
                match self.translated(content.unwrap_or_default(), cache_control.is_some())? {
                    Value::Array(mut blocks) => {
                        mark(&mut blocks, cache_control);
                        read.system.extend(blocks);
                    }
                    text => read.system.extend((text != "" && !text.is_null()).then_some(text)),
                }
                return self.check_rest();
            }
            Some("user") => ("user", self.translated(content.unwrap_or_default(), cache_control.is_some())?),
            Some("assistant") => ("assistant", self.assistant(content, cache_control.is_some())?),
            Some("tool") => ("user", self.tool_result(content)?),
            Some(other) => {
                return Err(self.refused(&format!("has the role {other:?}, which Anthropic's API does not have")));
            }
            None => return Err(self.refused("has no role")),
        };
        if let Value::Array(blocks) = &mut content {
            mark(blocks, cache_control);
        }
        self.check_rest()?;
        match read.messages.last_mut() {
            Some(last) if last.get("role") == Some(&role.into()) => {
                if let Some(before) = last.get_mut("content") {
                    let joined = blocks(before.take()).chain(blocks(content)).collect();
                    *before = joined;
                }
            }
            _ => read.messages.push(json!({"role": role, "content": content})),
        }
        Ok(())
    }

    fn check_rest(&self) -> Result<(), Error> {
        let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let mut rest =
            self.fields.iter().filter(|(name, value)| !is_empty(value) && !ANSWERS_OWN.contains(&name.as_str()));
        match rest.next() {
            Some((name, _)) => {
                Err(self.refused(&format!("has {name:?}, which Anthropic's API has no counterpart for")))
            }
            None => Ok(()),
        }
    }

    /// The content in Anthropic's parts; a text stays one unless it must be a block.
    fn translated(&self, content: Value, as_blocks: bool) -> Result<Value, Error> {
        match content {
            Value::Array(parts) => parts.into_iter().enumerate().map(|(place, part)| self.part(place, part)).collect(),
            Value::Null if as_blocks => Ok(Value::Array(Vec::new())),
            text if as_blocks => Ok(json!([as_block(text)])),
            Value::Null => Ok(Value::from("")),
            text => Ok(text),
        }
    }

    fn part(&self, place: usize, mut part: Value) -> Result<Value, Error> {
        let cannot =
            |what: &str| Err(self.refused(&format!("content[{place}]: {what} has no counterpart in Anthropic's API")));
        let mut made = match part.get("type").and_then(Value::as_str) {
            Some("image_url") => {
                let url = part.get("image_url").and_then(|image| image.get("url").unwrap_or(image).as_str());
                match url.map(image_source) {
                    Some(Some(source)) => json!({"type": "image", "source": source}),
                    Some(None) => return cannot("an image that is neither a base64 data: URL nor an http(s) URL"),
                    None => return Err(self.refused(&format!("content[{place}] has no URL"))),
                }
            }
            Some("file") if part.get("file").is_some() => {
                let file = part.get("file").cloned().unwrap_or_default();
                let data = file.get("file_data").and_then(Value::as_str).and_then(image_source);
                let Some(source) = data.filter(|source| source.get("data").is_some()) else {
                    return cannot("a file without file_data as a base64 data: URL");
                };
                let mut document = json!({"type": "document", "source": source});
                if let (Some(name), Some(document)) = (file.get("filename"), document.as_object_mut()) {
                    document.insert("title".into(), name.clone());
                }
                document
            }
            Some("refusal") => json!({"type": "text", "text": part.get("refusal")}),
            Some("input_audio") => return cannot("audio"),
            // Text is the same with both, and so is `cache_control`; anything else is Anthropic's own.
            _ => return Ok(part),
        };
        if let (Some(mark), Some(made)) = (part.get_mut("cache_control"), made.as_object_mut()) {
            made.insert("cache_control".into(), mark.take());
        }
        Ok(made)
    }

    fn assistant(&mut self, content: Option<Value>, as_blocks: bool) -> Result<Value, Error> {
        let content = content.or_else(|| self.take("refusal")).unwrap_or_default();
        let thinking = self.take("thinking_blocks");
        let calls = self.take("tool_calls");
        if thinking.is_none() && calls.is_none() {
            return self.translated(content, as_blocks);
        }
        let mut made: Vec<Value> = thinking.into_iter().flat_map(blocks).collect();
        made.extend(blocks(self.translated(content, false)?));
        for call in calls.as_ref().and_then(Value::as_array).into_iter().flatten() {
            made.push(self.tool_use(call)?);
        }
        Ok(Value::Array(made))
    }

    fn tool_use(&self, call: &Value) -> Result<Value, Error> {
        let Some(function) = call.get("function") else {
            return Err(self.refused("calls a tool that is no function, which Anthropic's API does not have"));
        };
        let input = match function.get("arguments") {
            None | Some(Value::Null) => Some(json!({})),
            Some(Value::String(text)) if text.trim().is_empty() => Some(json!({})),
            Some(Value::String(text)) => serde_json::from_str(text).ok().filter(Value::is_object),
            Some(input) => Some(input.clone()).filter(Value::is_object),
        };
        let Some(input) = input else {
            let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
            return Err(self.refused(&format!("calls {name:?} with arguments that are not a JSON object")));
        };
        Ok(json!({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": input}))
    }

    fn tool_result(&mut self, content: Option<Value>) -> Result<Value, Error> {
        let Some(id) = self.take("tool_call_id") else { return Err(self.refused("has no tool_call_id")) };
        let mut result = json!({"type": "tool_result", "tool_use_id": id});
        let content = self.translated(content.unwrap_or_default(), false)?;
        let is_error = self.take("is_error");
        // The tool's name; the id says it.
        self.take("name");
        if let Some(result) = result.as_object_mut() {
            result.insert("content".into(), content);
            result.extend(is_error.map(|is_error| ("is_error".into(), is_error)));
        }
        Ok(json!([result]))
    }
}

/// A text as a block; a block as it is.
pub(super) fn as_block(part: Value) -> Value {
    if part.is_string() { json!({"type": "text", "text": part}) } else { part }
}

/// Content as blocks. An empty text is none, which the API insists on.
fn blocks(content: Value) -> impl Iterator<Item = Value> {
    let parts = match content {
        Value::Array(parts) => parts,
        Value::Null => Vec::new(),
        Value::String(text) if text.is_empty() => Vec::new(),
        text => vec![text],
    };
    parts.into_iter().map(as_block)
}

/// Marks the last block for the cache.
fn mark(blocks: &mut [Value], cache_control: Option<Value>) {
    if let (Some(Value::Object(last)), Some(mark)) = (blocks.last_mut(), cache_control) {
        last.insert("cache_control".into(), mark);
    }
}

/// Where an image is: in the URL itself, or on the net.
fn image_source(url: &str) -> Option<Value> {
    if url.starts_with("https://") || url.starts_with("http://") {
        return Some(json!({"type": "url", "url": url}));
    }
    let (kind, data) = url.strip_prefix("data:")?.split_once(',')?;
    let (kind, encoding) = kind.split_once(';')?;
    // Parameters (`;name=…`) may stand between.
    (encoding == "base64" || encoding.ends_with(";base64"))
        .then(|| json!({"type": "base64", "media_type": kind, "data": data}))
}
