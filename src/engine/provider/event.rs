//! Streams of other APIs than chat's: their events, and the answers that these add up to.
//!
//! Responses sends typed events, of which the last has the whole answer in it; text completions send chunks, whose texts are
//! joined. Events pass as they came: only what tells the end, and the text, is read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::accumulate::{LIMIT, Texts, merge};
use super::openai::{not_an_answer, parse_chunk, parse_stream_error, strictly, text};
use crate::engine::error::{Error, Kind, Verdict};

/// Whose stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Those of Responses.
    Responses,
    /// Those of text completions.
    Completions,
}

/// Events of Responses that come before anything of the answer.
const OPENING: [&str; 3] = ["response.created", "response.queued", "response.in_progress"];
/// Those that have the whole answer, and nothing after them.
const CLOSING: [&str; 2] = ["response.completed", "response.incomplete"];

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its `type`; of a text completion its `object`.
    pub kind: String,
    /// The text that it brings, of the first choice.
    pub text: Option<String>,
    /// As it came.
    pub body: Bytes,
    detail: Detail,
}

#[derive(Debug, Clone, PartialEq)]
enum Detail {
    Nothing,
    /// The whole answer: the stream is over.
    Answer(Value),
    /// A chunk to be added to the others.
    Chunk(Map<String, Value>),
}

#[derive(Deserialize)]
struct Strict<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
    error: Option<IgnoredAny>,
}

impl Event {
    /// Reads one.
    ///
    /// # Errors
    /// What an error event says; `InvalidResponse` for what is no event.
    pub fn read(kind: EventKind, body: Bytes) -> Result<Self, Error> {
        match kind {
            EventKind::Responses => Self::of_responses(body),
            EventKind::Completions => Self::of_completions(body),
        }
    }

    fn of_responses(body: Bytes) -> Result<Self, Error> {
        if let Some(Strict { kind, delta, error: None }) = strictly::<Strict<'_>>(&body)
            && kind != "error"
            && kind != "response.failed"
            && !CLOSING.contains(&&*kind)
        {
            let (kind, delta) = (kind.into_owned(), delta.map(Cow::into_owned));
            let text = delta.filter(|_| kind == "response.output_text.delta");
            return Ok(Self { kind, text, body, detail: Detail::Nothing });
        }
        let mut event = parse_chunk(&body)?;
        let kind = text(&event, "type").unwrap_or_default();
        let answer = event.get_mut("response").map(Value::take);
        if kind == "response.failed" {
            let error = answer.and_then(|answer| answer.get("error").cloned());
            return Err(parse_stream_error(json!({"error": error}).to_string().as_bytes()));
        }
        let detail = match answer {
            _ if !CLOSING.contains(&&*kind) => Detail::Nothing,
            Some(answer @ Value::Object(_)) => Detail::Answer(answer),
            _ => return Err(not_an_answer("its last event has no \"response\"", &body)),
        };
        let text = text(&event, "delta").filter(|_| kind == "response.output_text.delta");
        Ok(Self { kind, text, body, detail })
    }

    fn of_completions(body: Bytes) -> Result<Self, Error> {
        let chunk = parse_chunk(&body)?;
        let choices = chunk.get("choices").and_then(Value::as_array);
        let first = choices.into_iter().flatten().find(|choice| choice.get("index").is_none_or(|index| index == 0));
        let said = first.and_then(|choice| text(choice, "text"));
        let kind = text(&chunk, "object").unwrap_or_default();
        let Value::Object(chunk) = chunk else { return Err(not_an_answer("a chunk is not a JSON object", &body)) };
        Ok(Self { kind, text: said, body, detail: Detail::Chunk(chunk) })
    }

    /// The only event of a stream whose whole answer came at once.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_whole(kind: EventKind, answer: &Bytes) -> Result<Self, Error> {
        match kind {
            EventKind::Completions => Self::of_completions(answer.clone()),
            EventKind::Responses => {
                let answer = parse_chunk(answer)?;
                let event = json!({"type": "response.completed", "response": answer});
                Self::of_responses(event.to_string().into())
            }
        }
    }

    /// Whether it brings anything of an answer.
    pub fn says_something(&self) -> bool {
        !OPENING.contains(&&*self.kind)
    }

    /// Whether it brings a piece of what the model says.
    pub fn has_content(&self) -> bool {
        self.text.is_some() || self.kind.rsplit('.').next() == Some("delta")
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self.detail, Detail::Answer(_))
    }
}

/// What the events of a stream add up to.
#[derive(Debug, Default)]
pub struct EventSum {
    text: String,
    answer: Option<Value>,
    /// The chunks of a text completion, without their choices.
    whole: Map<String, Value>,
    choices: BTreeMap<u64, Map<String, Value>>,
}

impl EventSum {
    /// Adds an event.
    ///
    /// # Errors
    /// `InvalidResponse` for more choices than anybody asks for.
    pub fn push(&mut self, event: &mut Event) -> Result<(), Error> {
        self.text.push_str(event.text.as_deref().unwrap_or_default());
        match std::mem::replace(&mut event.detail, Detail::Nothing) {
            Detail::Nothing => {}
            Detail::Answer(answer) => self.answer = Some(answer),
            Detail::Chunk(mut chunk) => {
                let choices = chunk.remove("choices");
                merge(&mut self.whole, &chunk, Texts::LastWins);
                let choices = choices.as_ref().and_then(Value::as_array).into_iter().flatten();
                for choice in choices.filter_map(Value::as_object) {
                    self.add(choice)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, choice: &Map<String, Value>) -> Result<(), Error> {
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
        if self.choices.len() >= LIMIT && !self.choices.contains_key(&index) {
            let error = Error::new(Kind::InvalidResponse, format!("the stream has more than {LIMIT} choices"));
            return Err(error.verdict_is(Verdict::Final));
        }
        let kept = self.choices.entry(index).or_default();
        let mut text = match kept.get_mut("text") {
            Some(Value::String(text)) => std::mem::take(text),
            _ => String::new(),
        };
        merge(kept, choice, Texts::LastWins);
        text.push_str(choice.get("text").and_then(Value::as_str).unwrap_or_default());
        kept.insert("text".to_owned(), Value::String(text));
        Ok(())
    }

    /// The text so far, of the first choice.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether there is an answer, were the stream to be called complete now.
    pub fn has_answer(&self) -> bool {
        self.answer.is_some() || !self.choices.is_empty()
    }

    /// Whether it was told to be at its end.
    pub fn is_complete(&self) -> bool {
        let is_over = |choice: &Map<String, Value>| choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        self.answer.is_some() || (!self.choices.is_empty() && self.choices.values().all(is_over))
    }

    /// The body of the whole answer.
    pub fn finish(self) -> Bytes {
        let body = self.answer.unwrap_or_else(|| {
            let mut whole = self.whole;
            whole.insert("choices".to_owned(), self.choices.into_values().map(Value::Object).collect());
            Value::Object(whole)
        });
        body.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(kind: EventKind, events: &[Value]) -> Result<EventSum, Error> {
        let mut sum = EventSum::default();
        for event in events {
            sum.push(&mut Event::read(kind, event.to_string().into())?)?;
        }
        Ok(sum)
    }

    #[test]
    fn responses_end_with_the_event_that_has_the_answer() {
        let mut events = vec![
            json!({"type": "response.created", "response": {"id": "r", "error": null}}),
            json!({"type": "response.output_text.delta", "delta": "a"}),
            json!({"type": "response.function_call_arguments.delta", "delta": "{"}),
            json!({"type": "response.output_text.delta", "delta": "b"}),
        ];
        let open = sum(EventKind::Responses, &events).unwrap();
        assert!(!open.is_complete() && !open.has_answer());
        events.push(json!({"type": "response.incomplete", "response": {"id": "r"}}));
        let whole = sum(EventKind::Responses, &events).unwrap();
        assert!(whole.is_complete());
        assert_eq!(whole.text(), "ab");
        assert_eq!(whole.finish(), r#"{"id":"r"}"#);
    }

    #[test]
    fn a_failed_response_is_the_error_that_it_names() {
        let failure = |event: Value| sum(EventKind::Responses, &[event]).unwrap_err();
        let error = json!({"code": "server_error", "message": "boom"});
        for event in [
            json!({"type": "response.failed", "response": {"error": error}}),
            json!({"type": "error", "code": "server_error", "message": "boom", "sequence_number": 3}),
            json!({"error": error}),
        ] {
            let error = failure(event);
            assert_eq!(error.kind(), Kind::Status(500));
            assert!(error.to_string().contains("boom"));
        }
        assert_eq!(failure(json!({"type": "response.failed"})).kind(), Kind::InvalidResponse);
        assert_eq!(failure(json!({"type": "response.completed"})).kind(), Kind::InvalidResponse);
    }

    #[test]
    fn text_completions_are_joined_by_index() {
        let chunk = |index: u64, text: &str, reason: Value| {
            json!({"id": "c", "object": "text_completion", "choices": [
                {"text": text, "index": index, "finish_reason": reason, "logprobs": {"tokens": [text]}}]})
        };
        let mut events = vec![chunk(1, "x", Value::Null), chunk(0, "a", Value::Null), chunk(0, "b", "stop".into())];
        assert!(!sum(EventKind::Completions, &events).unwrap().is_complete());
        events.extend([chunk(1, "", "length".into()), json!({"id": "c", "choices": [], "usage": {"total_tokens": 3}})]);
        let whole = sum(EventKind::Completions, &events).unwrap();
        assert!(whole.is_complete() && whole.text() == "ab");
        let body: Value = serde_json::from_slice(&whole.finish()).unwrap();
        assert_eq!(
            body["choices"][0],
            json!({"text": "ab", "index": 0, "finish_reason": "stop", "logprobs": {"tokens": ["a", "b"]}})
        );
        assert_eq!(
            (&body["choices"][1]["finish_reason"], &body["usage"]["total_tokens"]),
            (&"length".into(), &3.into())
        );
    }
}
