//! The whole answer that a stream's chunks add up to.
//!
//! Texts are appended to as they come and no chunk is kept, so the cost is that of the bytes, whatever their number. Nothing is
//! allocated by an index that a server sends: choices and calls are found by it, and their number is limited. Fields that nobody
//! knows are kept, too: in a delta, texts are joined (`reasoning_content`, `reasoning`), lists extended and objects merged; beside
//! it the last one wins, but for the lists of a choice (`logprobs`), which are extended.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chunk::{ChatChunk, ChunkChoice, Mould, ToolCallDelta, Word};
use crate::engine::error::{Error, Kind, Verdict};

/// The most choices, and the most tool calls in all of them. No request asks for as many.
pub(super) const LIMIT: usize = 10_000;

/// Texts within a delta that name something and are repeated rather than continued.
const NAMES: [&str; 6] = ["id", "type", "role", "name", "format", "status"];

/// Adds up chunks.
#[derive(Debug, Default)]
pub struct Accumulator {
    id: String,
    created: i64,
    model: String,
    system_fingerprint: Option<String>,
    service_tier: Option<String>,
    usage: Option<Value>,
    choices: BTreeMap<u64, Answer>,
    calls: usize,
    extra: Map<String, Value>,
    /// Of the last chunk, if that was a word and nothing new besides.
    mould: Mould,
}

/// What came of one of the `n` answers.
#[derive(Debug, Default)]
struct Answer {
    role: String,
    content: Option<String>,
    refusal: Option<String>,
    /// As they began.
    calls: Vec<Call>,
    /// The place in `calls` of the last one with an index.
    latest: BTreeMap<u64, usize>,
    finish_reason: Option<String>,
    logprobs: Option<Value>,
    /// Further fields of the message.
    said: Map<String, Value>,
    /// Further fields of the choice.
    extra: Map<String, Value>,
}

#[derive(Debug, Default)]
struct Call {
    index: u64,
    id: String,
    kind: String,
    name: String,
    arguments: String,
    is_custom: bool,
}

/// What becomes of two texts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    Join,
    LastWins,
}

impl Accumulator {
    /// An answer of which nothing came yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// `InvalidResponse`, final, if the server began more than 10,000 choices or tool calls.
    pub fn push(&mut self, chunk: &ChatChunk) -> Result<(), Error> {
        self.mould.clear();
        keep_first(&mut self.id, &chunk.id);
        keep_first(&mut self.model, &chunk.model);
        if self.created == 0 {
            self.created = chunk.created;
        }
        keep_last(&mut self.system_fingerprint, chunk.system_fingerprint.as_ref());
        keep_last(&mut self.service_tier, chunk.service_tier.as_ref());
        keep_last(&mut self.usage, chunk.whole_usage.as_ref());
        for (name, value) in chunk.extra.iter().filter(|(_, value)| !value.is_null()) {
            self.extra.insert(name.clone(), value.clone());
        }
        for choice in &chunk.choices {
            let answer = self.choices.entry(choice.index).or_default();
            self.calls += answer.add(choice);
            if self.calls > LIMIT || self.choices.len() > LIMIT {
                let summary = format!("the stream cannot be read: it has more than {LIMIT} choices or tool calls");
                return Err(Error::new(Kind::InvalidResponse, summary).verdict_is(Verdict::Final));
            }
        }
        Ok(())
    }

    /// Adds a chunk that is only a word of the first choice, and returns that, UTF-8. None if the chunk says anything that is not
    /// known of the answer yet; it must then be read whole.
    pub fn push_word(&mut self, body: &Bytes) -> Option<Bytes> {
        if let Some(word) = self.mould.word(body) {
            append(&mut self.choices.get_mut(&0)?.content, Some(word));
            return Some(body.slice_ref(word.as_bytes()));
        }
        let word = Word::read(body)?;
        let is_known = |known: &Option<String>, said: Option<&str>| said.is_none() || known.as_deref() == said;
        let same = is_known(&self.system_fingerprint, word.system_fingerprint())
            && is_known(&self.service_tier, word.service_tier())
            && !(self.id.is_empty() || self.model.is_empty() || self.created == 0);
        let answer = self.choices.get_mut(&0).filter(|_| same)?;
        let text = word.into_text();
        append(&mut answer.content, Some(&text));
        Some(match text {
            Cow::Borrowed(text) => {
                self.mould.take(body, text);
                body.slice_ref(text.as_bytes())
            }
            // One with escapes in it says nothing of the others, so that the mould stays.
            Cow::Owned(text) => text.into(),
        })
    }

    /// The text of the first choice up to here.
    pub fn text(&self) -> &str {
        self.choices.values().next().and_then(|answer| answer.content.as_deref()).unwrap_or_default()
    }

    /// Whether every choice that began has told why it ended; not if none began.
    pub fn is_complete(&self) -> bool {
        !self.choices.is_empty() && self.choices.values().all(|answer| answer.finish_reason.is_some())
    }

    /// The body of a chat completion, as the server would have sent it at once.
    pub fn finish(self) -> Bytes {
        const BESIDE_TEXTS: usize = 1024;
        let texts: usize = self.choices.values().map(|answer| answer.content.as_ref().map_or(0, String::len)).sum();
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("id", self.id.into());
        set("object", "chat.completion".into());
        set("created", self.created.into());
        set("model", self.model.into());
        set("choices", self.choices.into_iter().map(|(index, answer)| answer.finish(index)).collect());
        for (name, value) in [
            ("usage", self.usage),
            ("service_tier", self.service_tier.map(Value::from)),
            ("system_fingerprint", self.system_fingerprint.map(Value::from)),
        ] {
            value.map(|value| set(name, value));
        }
        body.extend(self.extra);
        // A long text is in memory twice here, and not in pieces of a vector that grows besides.
        let mut written = Vec::with_capacity(texts + BESIDE_TEXTS);
        // Writing a value to a vector cannot fail.
        let _ = serde_json::to_writer(&mut written, &Value::Object(body));
        written.into()
    }
}

/// The text of the first choice in a body that [`Accumulator::finish`] made.
pub fn text_in(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Chat {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Message,
    }
    #[derive(Deserialize)]
    struct Message {
        content: Option<String>,
    }
    let first = serde_json::from_slice::<Chat>(body).ok().and_then(|chat| chat.choices.into_iter().next());
    first.and_then(|choice| choice.message.content).unwrap_or_default()
}

impl Answer {
    /// Adds a piece and returns how many tool calls began in it.
    fn add(&mut self, choice: &ChunkChoice) -> usize {
        let delta = &choice.delta;
        keep_first(&mut self.role, delta.role.as_deref().unwrap_or_default());
        append(&mut self.content, delta.content.as_deref());
        append(&mut self.refusal, delta.refusal.as_deref());
        merge(&mut self.said, &delta.extra, Texts::Join);
        keep_last(&mut self.finish_reason, choice.finish_reason.as_ref());
        if let Some(more) = &choice.logprobs {
            match &mut self.logprobs {
                Some(kept) => merge_value(kept, more, Texts::LastWins),
                none => *none = Some(more.clone()),
            }
        }
        merge(&mut self.extra, &choice.extra, Texts::LastWins);
        let known = self.calls.len();
        for call in &delta.tool_calls {
            self.add_call(call);
        }
        self.calls.len() - known
    }

    fn add_call(&mut self, piece: &ToolCallDelta) {
        let latest = self.latest.get(&piece.index).copied();
        if let Some(call) = latest.and_then(|place| self.calls.get_mut(place))
            && !call.is_another(piece)
        {
            call.add(piece);
            return;
        }
        let mut call = Call { index: piece.index, ..Call::default() };
        call.add(piece);
        self.latest.insert(piece.index, self.calls.len());
        self.calls.push(call);
    }

    fn finish(mut self, index: u64) -> Value {
        let mut message = Map::new();
        let role = if self.role.is_empty() { "assistant".to_owned() } else { self.role };
        message.insert("role".to_owned(), role.into());
        message.insert("content".to_owned(), self.content.into());
        message.insert("refusal".to_owned(), self.refusal.into());
        if !self.calls.is_empty() {
            self.calls.sort_by_key(|call| call.index);
            message.insert("tool_calls".to_owned(), self.calls.into_iter().map(Call::finish).collect());
        }
        message.extend(self.said);
        let mut choice = Map::new();
        choice.insert("index".to_owned(), index.into());
        choice.insert("message".to_owned(), message.into());
        choice.insert("logprobs".to_owned(), self.logprobs.into());
        choice.extend(self.extra);
        choice.insert("finish_reason".to_owned(), self.finish_reason.into());
        choice.into()
    }
}

impl Call {
    /// Whether `piece` begins a call of its own under the same index, as where a server numbers none of several calls.
    fn is_another(&self, piece: &ToolCallDelta) -> bool {
        let told = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
        !self.id.is_empty() && told(&piece.id) && piece.id.as_ref() != Some(&self.id) && told(&piece.name)
    }

    fn add(&mut self, piece: &ToolCallDelta) {
        keep_first(&mut self.id, piece.id.as_deref().unwrap_or_default());
        keep_first(&mut self.kind, piece.kind.as_deref().unwrap_or_default());
        // Some repeat the whole name with every piece.
        if let Some(name) = piece.name.as_ref().filter(|name| **name != self.name) {
            self.name.push_str(name);
        }
        self.arguments.push_str(piece.arguments.as_deref().unwrap_or_default());
        self.is_custom |= piece.is_custom;
    }

    fn finish(self) -> Value {
        let (called, arguments) = if self.is_custom { ("custom", "input") } else { ("function", "arguments") };
        let kind = if self.kind.is_empty() { called.to_owned() } else { self.kind };
        json!({"id": self.id, "type": kind, called: {"name": self.name, arguments: self.arguments}})
    }
}

fn keep_first(kept: &mut String, said: &str) {
    if kept.is_empty() {
        kept.push_str(said);
    }
}

fn keep_last<T: Clone + PartialEq>(kept: &mut Option<T>, said: Option<&T>) {
    if said.is_some() && kept.as_ref() != said {
        *kept = said.cloned();
    }
}

fn append(kept: &mut Option<String>, more: Option<&str>) {
    if let Some(more) = more {
        kept.get_or_insert_default().push_str(more);
    }
}

/// Adds the fields of `more` to those that are `kept`.
pub(super) fn merge(kept: &mut Map<String, Value>, more: &Map<String, Value>, texts: Texts) {
    for (name, value) in more {
        match kept.get_mut(name) {
            Some(kept) => merge_value(kept, value, if NAMES.contains(&&**name) { Texts::LastWins } else { texts }),
            None => drop(kept.insert(name.clone(), value.clone())),
        }
    }
}

fn merge_value(kept: &mut Value, more: &Value, texts: Texts) {
    match (kept, more) {
        (_, Value::Null) => {}
        (Value::String(kept), Value::String(more)) if texts == Texts::Join => kept.push_str(more),
        (Value::Array(kept), Value::Array(more)) => kept.extend_from_slice(more),
        (Value::Object(kept), Value::Object(more)) => merge(kept, more, texts),
        (kept, more) => kept.clone_from(more),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::provider::openai::parse_chat;
    use crate::engine::types::{FunctionCall, ToolCall};

    fn accumulate(chunks: &[Value]) -> Accumulator {
        let mut accumulator = Accumulator::new();
        for chunk in chunks {
            accumulator.push(&ChatChunk::read(chunk.to_string().into()).unwrap()).unwrap();
        }
        accumulator
    }

    fn body(chunks: &[Value]) -> Value {
        serde_json::from_slice(&accumulate(chunks).finish()).unwrap()
    }

    fn delta(delta: &Value) -> Value {
        json!({"id": "c", "choices": [{"index": 0, "delta": delta}]})
    }

    fn calls(pieces: &[Value]) -> Vec<ToolCall> {
        let chunks: Vec<_> = pieces.iter().map(|piece| delta(&json!({"tool_calls": [piece]}))).collect();
        parse_chat(&accumulate(&chunks).finish()).unwrap().choices.swap_remove(0).message.tool_calls.unwrap()
    }

    #[test]
    fn gives_the_body_that_would_have_come_at_once() {
        let chunk = |choices: Value, usage: Value| {
            json!({"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m", "service_tier": "default",
                   "system_fingerprint": "fp", "usage": usage, "choices": choices})
        };
        let usage = json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3,
                           "prompt_tokens_details": {"cached_tokens": 1}});
        let chunks = [
            chunk(json!([{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": null}}]), Value::Null),
            chunk(json!([{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]), Value::Null),
            chunk(json!([{"index": 0, "delta": {"content": "é"}, "finish_reason": null}]), Value::Null),
            chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), Value::Null),
            chunk(json!([]), usage.clone()),
        ];
        assert_eq!(
            body(&chunks),
            json!({
                "id": "c", "object": "chat.completion", "created": 7, "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "aé", "refusal": null},
                             "logprobs": null, "finish_reason": "stop"}],
                "usage": usage, "service_tier": "default", "system_fingerprint": "fp",
            })
        );
        let accumulator = accumulate(&chunks);
        assert_eq!((accumulator.text(), accumulator.is_complete()), ("aé", true));
        assert_eq!(parse_chat(&accumulator.finish()).unwrap().usage.unwrap().total_tokens, 3);
    }

    #[test]
    fn is_complete_when_every_choice_has_ended() {
        let end = |index: u64| json!({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]});
        let begin =
            json!({"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]});
        assert!(!accumulate(&[]).is_complete());
        assert!(!accumulate(&[json!({"choices": [], "usage": {"total_tokens": 1}})]).is_complete());
        assert!(!accumulate(&[begin.clone(), end(1)]).is_complete());
        let whole = accumulate(&[begin, end(1), end(0)]);
        assert!(whole.is_complete());
        assert_eq!(whole.text(), "a");
        let choices = parse_chat(&whole.finish()).unwrap().choices;
        assert_eq!(choices.iter().map(|choice| choice.index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn joins_the_pieces_of_tool_calls_by_their_index() {
        let begin = |index: u64, id: &str, name: &str| json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}});
        let more = |index: u64, arguments: &str| json!({"index": index, "function": {"arguments": arguments}});
        let call = |position: usize, id: &str, name: &str, arguments: &str| ToolCall {
            position,
            id: id.into(),
            kind: "function".into(),
            function: Some(FunctionCall { name: name.into(), arguments: arguments.into() }),
            custom: None,
        };
        let pieces =
            [begin(5, "b", "g"), begin(0, "a", "f"), more(0, "{\"x\""), more(5, "[1"), more(0, ":1}"), more(5, "]")];
        assert_eq!(calls(&pieces), [call(0, "a", "f", "{\"x\":1}"), call(1, "b", "g", "[1]")]);
        // The same index for all of them.
        let pieces = [begin(0, "a", "f"), more(0, "{}"), begin(0, "b", "f"), more(0, "[]")];
        assert_eq!(calls(&pieces), [call(0, "a", "f", "{}"), call(1, "b", "f", "[]")]);
        // Id and name repeated with every piece.
        let pieces = [begin(0, "a", "f"), begin(0, "a", "f"), more(0, "{}")];
        assert_eq!(calls(&pieces), [call(0, "a", "f", "{}")]);
    }

    #[test]
    fn joins_the_input_of_custom_tools() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": ""}}),
            json!({"index": 1, "id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}}),
            json!({"index": 0, "custom": {"input": "SELECT "}}),
            json!({"index": 0, "type": "custom", "custom": {"input": "1;"}}),
        ];
        let chunks: Vec<_> = pieces.iter().map(|piece| delta(&json!({"tool_calls": [piece]}))).collect();
        assert_eq!(
            body(&chunks)["choices"][0]["message"]["tool_calls"],
            json!([
                {"id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1;"}},
                {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ])
        );
        let [custom, function] = calls(&pieces).try_into().unwrap();
        assert_eq!(custom.custom.unwrap().input, "SELECT 1;");
        assert_eq!((custom.function, function.custom), (None, None));
    }

    #[test]
    fn a_word_is_taken_only_where_nothing_else_is_new() {
        let chunk = |word: &str, fingerprint: &str| {
            let choices = json!([{"index": 0, "delta": {"content": word}}]);
            json!({"id": "c", "model": "m", "created": 7, "system_fingerprint": fingerprint, "choices": choices})
        };
        let body = |word: &str, fingerprint: &str| Bytes::from(chunk(word, fingerprint).to_string());
        let mut sum = Accumulator::new();
        assert_eq!(sum.push_word(&body("a", "x")), None);
        sum.push(&ChatChunk::read(body("a", "x")).unwrap()).unwrap();
        for word in ["b", "c", "\"\n", "d"] {
            assert_eq!(sum.push_word(&body(word, "x")).unwrap(), word);
        }
        assert_eq!(sum.push_word(&body("e", "y")), None);
        sum.push(&ChatChunk::read(body("e", "y")).unwrap()).unwrap();
        // As it was before, but no longer.
        assert_eq!(sum.push_word(&body("f", "x")), None);
        assert_eq!(sum.push_word(&body("f", "y")).unwrap(), "f");
        assert_eq!(sum.text(), "abc\"\ndef");
    }

    #[test]
    fn keeps_fields_that_nobody_knows() {
        let chunks = [
            json!({"provider": "p", "citations": ["x"], "choices": [{"index": 0, "delta": {
                "reasoning_content": "a", "audio": {"id": "i", "data": "AB"}, "parts": [1], "flag": 1},
                "logprobs": {"content": [{"token": "a"}]}, "stop_reason": null, "filter": "safe"}]}),
            json!({"provider": "p", "citations": ["x", "y"], "choices": [{"index": 0, "delta": {
                "reasoning_content": "b", "audio": {"id": "i", "data": "CD"}, "parts": [2], "flag": 2},
                "logprobs": {"content": [{"token": "b"}]}, "stop_reason": 7, "filter": "safe"}]}),
            json!({"provider": null, "choices": [{"index": 0, "delta": {"reasoning_content": null}, "logprobs": null}]}),
        ];
        let body = body(&chunks);
        assert_eq!((&body["provider"], &body["citations"]), (&json!("p"), &json!(["x", "y"])));
        let choice = &body["choices"][0];
        assert_eq!(choice["logprobs"], json!({"content": [{"token": "a"}, {"token": "b"}]}));
        assert_eq!((&choice["stop_reason"], &choice["filter"]), (&json!(7), &json!("safe")));
        let message = &choice["message"];
        assert_eq!(message["reasoning_content"], "ab");
        assert_eq!(message["audio"], json!({"id": "i", "data": "ABCD"}));
        assert_eq!((&message["parts"], &message["flag"]), (&json!([1, 2]), &json!(2)));
    }

    #[test]
    fn an_index_costs_nothing_and_their_number_is_limited() {
        let far = u64::MAX;
        let chunk = json!({"choices": [{"index": far, "delta": {"content": "a", "tool_calls": [{"index": far}]}}]});
        assert_eq!(parse_chat(&accumulate(&[chunk]).finish()).unwrap().choices[0].index, far);
        for begin in [(|index| json!({"choices": [{"index": index, "delta": {}}]})) as fn(usize) -> Value, |index| {
            delta(&json!({"tool_calls": [{"index": index}]}))
        }] {
            let chunks: Vec<_> = (0..LIMIT).map(begin).collect();
            let mut accumulator = accumulate(&chunks);
            let refused = accumulator.push(&ChatChunk::read(begin(LIMIT).to_string().into()).unwrap()).unwrap_err();
            assert_eq!((refused.kind(), refused.verdict()), (Kind::InvalidResponse, Verdict::Final));
        }
    }

    proptest! {
        #[test]
        fn a_text_in_any_pieces_is_the_same_text(pieces in prop::collection::vec("\\PC{0,6}", 1..20)) {
            let chunks: Vec<_> = pieces.iter().map(|piece| delta(&json!({"content": piece, "reasoning": piece}))).collect();
            let accumulator = accumulate(&chunks);
            let whole = pieces.concat();
            prop_assert_eq!(accumulator.text(), &whole);
            let body = accumulator.finish();
            prop_assert_eq!(text_in(&body), &*whole);
            let body: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&body["choices"][0]["message"]["reasoning"], &whole);
        }

        #[test]
        fn words_add_up_to_what_whole_chunks_do(words in prop::collection::vec("(\\PC|[\\x00-\\x1f\"\\\\]){0,4}", 1..20)) {
            let (mut whole, mut quick) = (Accumulator::new(), Accumulator::new());
            for word in &words {
                let choices = json!([{"index": 0, "delta": {"content": word}}]);
                let chunk = json!({"id": "c", "model": "m", "created": 7, "choices": choices}).to_string();
                let chunk = ChatChunk::read(chunk.into()).unwrap();
                match quick.push_word(&chunk.body) {
                    Some(text) => prop_assert_eq!(&text, word),
                    None => quick.push(&chunk).unwrap(),
                }
                whole.push(&chunk).unwrap();
            }
            prop_assert_eq!(quick.finish(), whole.finish());
        }
    }
}
