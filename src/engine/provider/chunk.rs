//! One piece of a streamed answer: `OpenAI`'s `chat.completion.chunk`, into which every provider's stream is translated.
//!
//! Read as an answer is: by a strict and fast parser first, and by a lenient one where that refuses. A chunk says little (a word
//! of the text, a piece of a tool call's arguments), and may say nothing at all: a first one with a role alone, a last one with
//! `choices: []` and the usage. What is not known here is kept as JSON beside what is, so that a field of one server
//! (`reasoning_content`) is neither lost nor read twice.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::openai::{self, lenient_usage, strictly};
use crate::engine::error::Error;
use crate::engine::types::Usage;

/// One chunk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatChunk {
    /// The answer's id, the same in all of its chunks.
    pub id: String,
    /// Unix time in seconds.
    pub created: i64,
    /// The model that answers.
    pub model: String,
    /// What is new of each of the `n` answers; none in a chunk that brings the usage.
    pub choices: Vec<ChunkChoice>,
    /// Tokens, usually in the last chunk alone.
    pub usage: Option<Usage>,
    /// The server's name for its setting.
    pub system_fingerprint: Option<String>,
    /// The tier that serves the request.
    pub service_tier: Option<String>,
    /// Every other field.
    pub extra: Map<String, Value>,
    /// The chunk as it came.
    pub body: Bytes,
    /// The usage with its details.
    pub(super) whole_usage: Option<Value>,
    error: Option<IgnoredAny>,
}

/// What is new of one of the `n` answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkChoice {
    /// Its place among the `n`.
    pub index: u64,
    /// What is new. `message` where a server that cannot stream sends all at once.
    pub delta: Delta,
    /// `stop`, `length`, `tool_calls`, `content_filter`, …: this answer is complete.
    pub finish_reason: Option<String>,
    /// How likely each of the new tokens was, as the server says it.
    pub logprobs: Option<Value>,
    /// Every other field.
    pub extra: Map<String, Value>,
}

/// What the model said since the last chunk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// `assistant`, in the first.
    pub role: Option<String>,
    /// A piece of the text.
    pub content: Option<String>,
    /// A piece of why it refuses.
    pub refusal: Option<String>,
    /// Pieces of the functions it wants called.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Every other field, `reasoning_content` among them.
    pub extra: Map<String, Value>,
}

/// A piece of one call of a function or of a custom tool. The first brings id and name, the others more of the arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// The call it belongs to. Its place in the chunk where the server does not say.
    pub index: u64,
    /// Names the call in the message that answers it.
    pub id: Option<String>,
    /// `function` or `custom`.
    pub kind: Option<String>,
    /// Name of the function or the custom tool.
    pub name: Option<String>,
    /// A piece of the JSON text of its arguments; of a custom tool's input, which is any text.
    pub arguments: Option<String>,
    /// Whether name and arguments are a custom tool's.
    pub is_custom: bool,
}

/// The name of a field, which is nearly always a slice of the chunk.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads an object of which some fields are known and all others go to its `extra`. What serde's `flatten` does, without its
/// buffer: a usual chunk has no other fields.
macro_rules! deserialize_fields {
    ($type:ident, $object:ident, $fields:ident, { $($name:pat => $read:expr,)* }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> Visitor<'de> for Fields {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut $fields: A) -> Result<$type, A::Error> {
                        let mut $object = $type::default();
                        while let Some(Name(name)) = $fields.next_key()? {
                            match &*name {
                                $($name => $read,)*
                                _ => drop($object.extra.insert(name.into_owned(), $fields.next_value()?)),
                            }
                        }
                        Ok($object)
                    }
                }

                deserializer.deserialize_map(Fields)
            }
        }
    };
}

deserialize_fields!(ChatChunk, chunk, fields, {
    "id" => chunk.id = or_default(&mut fields)?,
    "created" => chunk.created = or_default(&mut fields)?,
    "model" => chunk.model = or_default(&mut fields)?,
    "choices" => chunk.choices = or_default(&mut fields)?,
    "usage" => chunk.whole_usage = fields.next_value()?,
    "system_fingerprint" => chunk.system_fingerprint = fields.next_value()?,
    "service_tier" => chunk.service_tier = fields.next_value()?,
    "error" => chunk.error = fields.next_value()?,
    // Known, and of no use: a constant, and padding against those who measure packets.
    "object" | "obfuscation" => drop(fields.next_value::<IgnoredAny>()?),
});

deserialize_fields!(ChunkChoice, choice, fields, {
    "index" => choice.index = fields.next_value()?,
    "delta" => choice.delta = or_default(&mut fields)?,
    "message" => {
        let message = or_default(&mut fields)?;
        if choice.delta == Delta::default() {
            choice.delta = message;
        }
    },
    "finish_reason" => choice.finish_reason = fields.next_value()?,
    "logprobs" => choice.logprobs = fields.next_value()?,
});

deserialize_fields!(Delta, delta, fields, {
    "role" => delta.role = fields.next_value()?,
    "content" => delta.content = fields.next_value()?,
    "refusal" => delta.refusal = fields.next_value()?,
    "tool_calls" => delta.tool_calls = numbered(or_default(&mut fields)?),
});

/// `null` for what is usually there.
fn or_default<'de, A: MapAccess<'de>, T: Default + Deserialize<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_value().map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct WireToolCall {
    index: Option<u64>,
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<WireFunction>,
    custom: Option<WireCustom>,
}

#[derive(Default, Deserialize)]
struct WireFunction {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct WireCustom {
    name: Option<String>,
    input: Option<String>,
}

/// A chunk that says a word of the first choice's text, and besides only what every chunk of a stream repeats. It is read at a
/// third of the cost of a [`ChatChunk`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word<'a> {
    choices: [WordChoice<'a>; 1],
    #[serde(borrow)]
    system_fingerprint: Option<Cow<'a, str>>,
    #[serde(borrow)]
    service_tier: Option<Cow<'a, str>>,
    #[serde(default, rename = "usage")]
    _usage: (),
    #[serde(default, rename = "error")]
    _error: (),
    #[serde(default, rename = "id")]
    _id: IgnoredAny,
    #[serde(default, rename = "object")]
    _object: IgnoredAny,
    #[serde(default, rename = "created")]
    _created: IgnoredAny,
    #[serde(default, rename = "model")]
    _model: IgnoredAny,
    #[serde(default, rename = "obfuscation")]
    _obfuscation: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordChoice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    delta: WordDelta<'a>,
    // What may be there is null.
    #[serde(default, rename = "finish_reason")]
    _finish_reason: (),
    #[serde(default, rename = "logprobs")]
    _logprobs: (),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordDelta<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(default, rename = "refusal")]
    _refusal: (),
    #[serde(default, rename = "tool_calls")]
    _tool_calls: (),
}

impl<'a> Word<'a> {
    /// None if it is any other chunk.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let word = strictly::<Self>(body)?;
        let [WordChoice { index, delta, .. }] = &word.choices;
        let is_plain = *index == 0 && delta.role.as_deref().is_none_or(|role| role == "assistant");
        (is_plain && !delta.content.is_empty()).then_some(word)
    }

    /// The word: a slice of the chunk, unless it is written with escapes there.
    pub fn into_text(self) -> Cow<'a, str> {
        let [choice] = self.choices;
        choice.delta.content
    }

    /// As in [`ChatChunk`].
    pub fn system_fingerprint(&self) -> Option<&str> {
        self.system_fingerprint.as_deref()
    }

    /// As in [`ChatChunk`].
    pub fn service_tier(&self) -> Option<&str> {
        self.service_tier.as_deref()
    }
}

/// What is around the word in a chunk that is one. The next chunk of the stream is nearly always the same but for the word, and
/// seeing that costs next to nothing: between the same bytes there is another string, and so it is the same JSON.
#[derive(Debug, Default)]
pub struct Mould {
    /// Up to the opening quote; empty if there is none yet.
    before: Vec<u8>,
    /// From the closing quote on.
    after: Vec<u8>,
}

impl Mould {
    /// The word of `body`, if that differs in nothing else.
    pub fn word<'a>(&self, body: &'a [u8]) -> Option<&'a str> {
        if self.before.is_empty() {
            return None;
        }
        let word = body.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        let is_plain = !word.is_empty() && word.iter().all(|byte| *byte >= b' ' && !matches!(byte, b'"' | b'\\'));
        if is_plain { std::str::from_utf8(word).ok() } else { None }
    }

    /// Takes the form of `body`, of which `word` is the slice that says it.
    pub fn take(&mut self, body: &[u8], word: &str) {
        self.clear();
        let start = word.as_ptr().addr().wrapping_sub(body.as_ptr().addr());
        if let Some((before, rest)) = body.split_at_checked(start)
            && let Some(after) = rest.strip_prefix(word.as_bytes())
        {
            self.before.extend_from_slice(before);
            self.after.extend_from_slice(after);
        }
    }

    /// Knows no form any more.
    pub fn clear(&mut self) {
        self.before.clear();
        self.after.clear();
    }
}

impl ChatChunk {
    /// Reads a chunk.
    ///
    /// # Errors
    /// What the server reports, if the chunk is an error (see [`openai::parse_stream_error`]); `InvalidResponse` if it is no JSON
    /// object.
    pub fn read(body: Bytes) -> Result<Self, Error> {
        let chunk = match strictly::<Self>(&body) {
            Some(chunk) if chunk.is_plain() => chunk,
            _ => Self::read_leniently(&body)?,
        };
        Ok(Self { usage: chunk.whole_usage.as_ref().and_then(lenient_usage), body, ..chunk })
    }

    /// Whether it brings anything of an answer: not only a role, an id or tokens.
    pub fn says_something(&self) -> bool {
        self.choices.iter().any(|choice| {
            let Delta { role: _, content, refusal, tool_calls, extra } = &choice.delta;
            let is_text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
            is_text(content)
                || is_text(refusal)
                || !tool_calls.is_empty()
                || extra.values().any(|value| !value.is_null() && value != "")
                || choice.finish_reason.is_some()
        })
    }

    /// The new text of the first of the `n` answers.
    pub fn into_text(self) -> Option<String> {
        self.choices.into_iter().find(|choice| choice.index == 0)?.delta.content
    }

    /// Whether it says something that is no error, so that there is nothing to be lenient about.
    fn is_plain(&self) -> bool {
        self.error.is_none() && !(self.choices.is_empty() && self.whole_usage.is_none())
    }

    fn read_leniently(body: &[u8]) -> Result<Self, Error> {
        let Value::Object(mut chunk) = openai::parse_chunk(body)? else { return Ok(Self::default()) };
        chunk.remove("object");
        chunk.remove("obfuscation");
        chunk.remove("error"); // null
        let choices = match chunk.remove("choices") {
            Some(Value::Array(choices)) => choices,
            _ => Vec::new(),
        };
        Ok(Self {
            id: take_text(&mut chunk, "id").unwrap_or_default(),
            created: chunk.remove("created").and_then(|created| created.as_f64()).unwrap_or_default() as i64,
            model: take_text(&mut chunk, "model").unwrap_or_default(),
            choices: choices.into_iter().enumerate().filter_map(lenient_choice).collect(),
            system_fingerprint: take_text(&mut chunk, "system_fingerprint"),
            service_tier: take_text(&mut chunk, "service_tier"),
            whole_usage: chunk.remove("usage").filter(Value::is_object),
            extra: chunk,
            ..Self::default()
        })
    }
}

fn lenient_choice((position, choice): (usize, Value)) -> Option<ChunkChoice> {
    let Value::Object(mut choice) = choice else { return None };
    let delta = match (choice.remove("delta"), choice.remove("message")) {
        (Some(Value::Object(delta)), _) | (_, Some(Value::Object(delta))) => lenient_delta(delta),
        _ => Delta::default(),
    };
    Some(ChunkChoice {
        index: choice.remove("index").and_then(|index| index.as_u64()).unwrap_or(position as u64),
        delta,
        finish_reason: take_text(&mut choice, "finish_reason"),
        logprobs: choice.remove("logprobs").filter(|logprobs| !logprobs.is_null()),
        extra: choice,
    })
}

fn lenient_delta(mut delta: Map<String, Value>) -> Delta {
    let calls = match delta.remove("tool_calls") {
        Some(Value::Array(calls)) => calls.into_iter().enumerate().filter_map(lenient_tool_call).collect(),
        _ => Vec::new(),
    };
    Delta {
        role: take_text(&mut delta, "role"),
        content: delta.remove("content").as_ref().and_then(openai::content),
        refusal: take_text(&mut delta, "refusal"),
        tool_calls: calls,
        extra: delta,
    }
}

fn lenient_tool_call((position, call): (usize, Value)) -> Option<ToolCallDelta> {
    let Value::Object(mut call) = call else { return None };
    let (mut called, arguments, is_custom) = match (call.remove("function"), call.remove("custom")) {
        (_, Some(Value::Object(custom))) => (custom, "input", true),
        (Some(Value::Object(function)), _) => (function, "arguments", false),
        _ => (Map::new(), "arguments", false),
    };
    Some(ToolCallDelta {
        index: call.get("index").and_then(Value::as_u64).unwrap_or(position as u64),
        id: take_text(&mut call, "id"),
        kind: take_text(&mut call, "type"),
        name: take_text(&mut called, "name"),
        is_custom,
        arguments: match called.remove(arguments) {
            None | Some(Value::Null) => None,
            Some(Value::String(arguments)) => Some(arguments),
            Some(other) => Some(other.to_string()),
        },
    })
}

/// Takes a field out; what is not text is dropped.
fn take_text(object: &mut Map<String, Value>, name: &str) -> Option<String> {
    match object.remove(name)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn numbered(calls: Vec<WireToolCall>) -> Vec<ToolCallDelta> {
    let numbered = calls.into_iter().enumerate().map(|(position, call)| {
        let is_custom = call.custom.is_some();
        let (name, arguments) = match (call.custom, call.function.unwrap_or_default()) {
            (Some(custom), _) => (custom.name, custom.input),
            (None, function) => (function.name, function.arguments),
        };
        let index = call.index.unwrap_or(position as u64);
        ToolCallDelta { index, id: call.id, kind: call.kind, name, arguments, is_custom }
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::engine::error::{Kind, Pressure, Verdict};

    fn read(body: &Value) -> ChatChunk {
        ChatChunk::read(body.to_string().into()).unwrap()
    }

    fn delta(delta: &Value) -> Delta {
        read(&json!({"choices": [{"index": 0, "delta": delta}]})).choices.swap_remove(0).delta
    }

    fn refused(body: &Value) -> Error {
        ChatChunk::read(body.to_string().into()).unwrap_err()
    }

    #[test]
    fn reads_a_chunk_and_keeps_what_it_does_not_know() {
        let body = json!({
            "id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "m", "service_tier": "default",
            "system_fingerprint": "fp", "provider": "p", "obfuscation": "xyz", "usage": null,
            "choices": [{"index": 1, "delta": {"content": "a", "reasoning_content": "b"}, "logprobs": null,
                         "finish_reason": null}],
        });
        let chunk = read(&body);
        assert_eq!((&*chunk.id, chunk.created, &*chunk.model), ("c-1", 5, "m"));
        assert_eq!((chunk.service_tier.as_deref(), chunk.system_fingerprint.as_deref()), (Some("default"), Some("fp")));
        assert_eq!(Value::Object(chunk.extra), json!({"provider": "p"}));
        let choice = &chunk.choices[0];
        assert_eq!((choice.index, choice.finish_reason.as_deref()), (1, None));
        assert_eq!(choice.delta.content.as_deref(), Some("a"));
        assert_eq!(choice.delta.extra["reasoning_content"], "b");
        assert_eq!((&choice.logprobs, choice.extra.len()), (&None, 0));
        assert_eq!((chunk.usage, chunk.body), (None, Bytes::from(body.to_string())));
    }

    #[test]
    fn a_word_is_read_only_of_a_chunk_that_says_nothing_else() {
        let word = |change: &dyn Fn(&mut Value)| {
            let mut body = json!({
                "id": "c", "object": "o", "created": 5, "model": "m", "service_tier": "t", "system_fingerprint": null,
                "usage": null, "obfuscation": "x",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a\"", "refusal": null}, "logprobs": null,
                             "finish_reason": null}],
            });
            change(&mut body);
            Word::read(body.to_string().as_bytes()).map(|word| word.into_text().into_owned())
        };
        assert_eq!(word(&|_| {}).as_deref(), Some("a\""));
        let change = |pointer: &'static str, value: Value| {
            word(&move |body| *body.pointer_mut(pointer).unwrap() = value.clone())
        };
        for (pointer, value) in [
            ("/usage", json!({"total_tokens": 1})),
            ("/choices", json!([])),
            ("/choices/0/index", json!(1)),
            ("/choices/0/finish_reason", json!("stop")),
            ("/choices/0/logprobs", json!({"content": []})),
            ("/choices/0/delta", json!({"content": ""})),
            ("/choices/0/delta", json!({"content": null})),
            ("/choices/0/delta", json!({"content": "a", "reasoning_content": "b"})),
            ("/choices/0/delta", json!({"content": "a", "tool_calls": []})),
            ("/choices/0/delta/role", json!("tool")),
            ("/choices/0/delta/refusal", json!("no")),
        ] {
            assert_eq!(change(pointer, value.clone()), None, "{pointer} {value}");
        }
        assert_eq!(word(&|body| body["error"] = json!({"message": "m"})), None);
        assert_eq!(word(&|body| body["provider"] = json!("p")), None);
    }

    #[test]
    fn a_mould_knows_the_same_chunk_with_another_word() {
        let body = |word: &str, id: &str| format!(r#"{{"id":"{id}","choices":[{{"delta":{{"content":"{word}"}}}}]}}"#);
        let first = body(" one", "c");
        let mut mould = Mould::default();
        assert_eq!(mould.word(first.as_bytes()), None);
        let Cow::Borrowed(word) = Word::read(first.as_bytes()).unwrap().into_text() else {
            panic!("it has no escapes")
        };
        mould.take(first.as_bytes(), word);
        for word in [" one", "two", "é", "{\u{7f}}", ","] {
            assert_eq!(mould.word(body(word, "c").as_bytes()), Some(word));
        }
        // Nothing, what is written with escapes or would need them, and what only looks like a string.
        for word in ["", r"\n", r#"\""#, "\n", r#"a","role":"tool"#, r#"a"}}],"choices":[{"delta":{"content":"b"#] {
            assert_eq!(mould.word(body(word, "c").as_bytes()), None, "{word}");
        }
        assert_eq!(mould.word(body("a", "d").as_bytes()), None);
        assert_eq!(mould.word(first.trim_end_matches('}').as_bytes()), None);
        mould.clear();
        assert_eq!(mould.word(first.as_bytes()), None);
    }

    #[test]
    fn reads_what_says_little() {
        assert_eq!(delta(&json!({})), Delta::default());
        assert_eq!(delta(&Value::Null), Delta::default());
        assert_eq!(delta(&json!({"content": null, "tool_calls": null, "role": null})), Delta::default());
        for nothing in [json!({}), json!({"choices": null}), json!({"choices": []}), json!({"error": null, "id": null})]
        {
            let chunk = read(&nothing);
            assert_eq!(ChatChunk { body: Bytes::new(), ..chunk }, ChatChunk::default(), "{nothing}");
        }
        let last = read(&json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}));
        assert_eq!(last.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 }));
    }

    #[test]
    fn reads_what_servers_write_in_other_ways() {
        assert_eq!(delta(&json!({"content": [{"type": "text", "text": "a"}, "b"]})).content.as_deref(), Some("ab"));
        let whole = read(&json!({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]}));
        assert_eq!(whole.choices[0].delta.content.as_deref(), Some("all"));
        let odd = read(&json!({"created": 1.5, "id": 7, "choices": [null, {"index": "x", "delta": 3}]}));
        assert_eq!((odd.created, &*odd.id, odd.choices.len(), odd.choices[0].index), (1, "", 1, 1));
        let halved = ChatChunk::read(Bytes::from_static(br#"{"choices":[{"delta":{"content":"\ud83d"}}]}"#)).unwrap();
        assert_eq!(halved.choices[0].delta.content.as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn reads_the_pieces_of_tool_calls() {
        let call = |index, id: &str, name: &str, arguments: &str| ToolCallDelta {
            index,
            id: Some(id.into()),
            kind: Some("function".into()),
            name: Some(name.into()),
            arguments: Some(arguments.into()),
            is_custom: false,
        };
        let first = json!({"index": 3, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}});
        let more = json!({"index": 3, "function": {"arguments": "{\""}});
        assert_eq!(
            delta(&json!({"tool_calls": [first, more]})).tool_calls,
            [
                call(3, "a", "f", ""),
                ToolCallDelta { index: 3, arguments: Some("{\"".into()), ..ToolCallDelta::default() }
            ]
        );
        // Without an index, and with the arguments as an object.
        let whole = |id: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(
            delta(&json!({"tool_calls": [whole("a", json!("{}")), whole("b", json!({"x": 1})), null]})).tool_calls,
            [call(0, "a", "f", "{}"), call(1, "b", "f", "{\"x\":1}")]
        );
        assert_eq!(delta(&json!({"tool_calls": [{"function": null}]})).tool_calls, [ToolCallDelta::default()]);
        // Of a custom tool, strictly and leniently read.
        for index in [json!(1), json!("x")] {
            let custom_call =
                json!({"index": index, "id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}});
            let read = delta(&json!({"tool_calls": [{"function": {"name": "f"}}, custom_call]})).tool_calls;
            let function = ToolCallDelta { name: Some("f".into()), ..ToolCallDelta::default() };
            let custom = call(1, "a", "sql", "SELECT");
            assert_eq!(read, [function, ToolCallDelta { kind: Some("custom".into()), is_custom: true, ..custom }]);
        }
    }

    #[test]
    fn an_error_means_what_its_type_says() {
        use Verdict::{Final, Retryable};
        for (error, status, verdict, pressure) in [
            (json!({"type": "overloaded_error", "message": "Overloaded"}), 529, Retryable, Pressure::Overload),
            (json!({"type": "rate_limit_error"}), 429, Retryable, Pressure::RateLimit),
            (json!({"type": "tokens", "code": "rate_limit_exceeded"}), 429, Retryable, Pressure::RateLimit),
            (json!({"type": "insufficient_quota", "code": "insufficient_quota"}), 429, Final, Pressure::None),
            (json!({"type": "invalid_request_error"}), 400, Final, Pressure::None),
            (json!({"type": "invalid_request_error", "code": "invalid_api_key"}), 401, Final, Pressure::None),
            (json!({"type": "authentication_error"}), 401, Final, Pressure::None),
            (json!({"type": "api_error"}), 500, Retryable, Pressure::None),
            (json!({"type": "server_error", "code": null}), 500, Retryable, Pressure::None),
            (json!({"code": 502, "message": "the provider went away"}), 502, Retryable, Pressure::None),
            (json!({"code": 503, "type": "unavailable_error"}), 503, Retryable, Pressure::Overload),
            (json!({"code": "400", "type": "BadRequestError"}), 400, Final, Pressure::None),
        ] {
            let refused = refused(&json!({"error": error}));
            assert_eq!(refused.kind(), Kind::Status(status), "{error}");
            assert_eq!((refused.verdict(), refused.pressure()), (verdict, pressure), "{error}");
            assert_eq!(refused.is_out_of_quota(), error["code"] == "insufficient_quota");
        }
    }

    #[test]
    fn an_error_comes_in_any_guise() {
        let spoken = refused(&json!({"error": {"type": "overloaded_error", "message": "too many"}}));
        assert!(spoken.to_string().starts_with("529 in the stream: too many"), "{spoken}");
        let bare = refused(&json!({"object": "error", "message": "no", "type": "BadRequestError", "code": 400}));
        assert_eq!(bare.kind(), Kind::Status(400));
        let anthropic = refused(&json!({"type": "error", "error": {"type": "overloaded_error"}}));
        assert_eq!(anthropic.kind(), Kind::Status(529));
        let beside = json!({"error": {"type": "api_error"}, "choices": [{"delta": {}, "finish_reason": "error"}]});
        assert_eq!(refused(&beside).kind(), Kind::Status(500));
        for unknown in [json!({"error": "what now"}), json!({"error": {}}), json!({"error": {"code": 7}})] {
            let error = refused(&unknown);
            assert_eq!((error.kind(), error.verdict()), (Kind::InvalidResponse, Verdict::Retryable), "{unknown}");
        }
        // One that says nothing is none beside choices, with which some servers send it.
        let beside = json!({"error": {}, "choices": [{"delta": {"content": "a"}}]}).to_string();
        assert!(ChatChunk::read(beside.into()).unwrap().says_something());
    }

    #[test]
    fn what_is_no_json_object_is_no_chunk() {
        for body in ["", "null", "[]", "\"a\"", "{\"choices\":[{\"de", "<html>"] {
            let error = ChatChunk::read(Bytes::from_static(body.as_bytes())).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidResponse, "{body}");
        }
    }

    proptest! {
        #[test]
        fn strict_and_lenient_reading_agree(
            content in proptest::option::of("\\PC{0,20}"),
            arguments in proptest::option::of("[a-z{}\"]{0,8}"),
            extra in "[a-z]{0,8}",
            index in 0..4_u64,
            usage in proptest::option::of(0..1000_u64),
        ) {
            let body = json!({
                "id": extra, "created": 3, "model": "m", "other": extra, "object": "chat.completion.chunk",
                "usage": usage.map(|count| json!({"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1})),
                "choices": [{
                    "index": index, "finish_reason": content, "logprobs": null,
                    "delta": {"content": content, "reasoning": extra, "tool_calls": [
                        {"index": index, "id": content, "function": {"name": extra, "arguments": arguments}}
                    ]},
                }],
            }).to_string();
            let strict = strictly::<ChatChunk>(body.as_bytes()).unwrap();
            let lenient = ChatChunk::read_leniently(body.as_bytes()).unwrap();
            prop_assert_eq!(strict, lenient);
        }

        #[test]
        fn never_panics_on_any_bytes(body: Vec<u8>) {
            let _ = ChatChunk::read(body.into());
        }
    }
}
