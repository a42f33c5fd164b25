//! Scripted answers: what to say or do instead of the default reply, and to whom.
//!
//! Two queues. Rules of `when` look for a text in the request's body and come first, in the order they were made; a rule
//! whose answers are used up is as if it had never been. Answers of `script` serve any request, in order of arrival.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::api::ToolCall;
use super::streaming::Streaming;

/// A way to misbehave, at the level of the socket. With HTTP/2 the connection's other streams suffer too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// TCP reset (RST) instead of an answer.
    ResetBefore,
    /// The connection is closed in good order (FIN) instead of an answer.
    CloseBefore,
    /// Head and half of the body, then a reset.
    ResetInBody,
    /// Head with the full `Content-Length` and half of the body, then the connection is closed.
    Truncate,
    /// No answer, until the client leaves or the server is stopped.
    HangBefore,
    /// Head and half of the body, then silence.
    HangInBody,
    /// The body byte by byte.
    Drip,
}

/// One scripted answer.
///
/// With neither `body` nor anything to say (`text`, `tool_calls` and the like), status 200 means the server's default reply and any other an error body in the
/// provider's form.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status. Default 200.
    pub status: StatusCode,
    /// Assistant's content, in the form of the API that is asked.
    pub text: Option<String>,
    /// What the model thought before it.
    pub reasoning: Option<String>,
    /// Calls of functions. Without `text` there is then no content.
    pub tool_calls: Vec<ToolCall>,
    /// Why the answer ends, in `OpenAI`'s words; other APIs say it in theirs. Default: `stop`, or `tool_calls`.
    pub finish_reason: Option<String>,
    /// The content as a list of text parts. Default: a string.
    pub content_list: bool,
    /// How it is streamed, if the request asks for that; a raw `body` is streamed without being asked. Default: the
    /// server's.
    pub stream: Option<Streaming>,
    /// Raw body, in place of `text`; `application/json` unless `headers` say otherwise.
    pub body: Option<Bytes>,
    /// Added to the answer's headers or put in place of them.
    pub headers: HeaderMap,
    /// Wait before the head. Default: the server's latency.
    pub latency: Option<Duration>,
    /// How to misbehave. Default: not at all.
    pub fault: Option<Fault>,
    /// Time between two bytes of [`Fault::Drip`]. Default 50 ms.
    pub drip_interval: Duration,
    /// How many requests this answer serves, 0 for any number. Default 1.
    pub times: u32,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: StatusCode::OK,
            text: None,
            reasoning: None,
            tool_calls: Vec::new(),
            finish_reason: None,
            content_list: false,
            stream: None,
            body: None,
            headers: HeaderMap::new(),
            latency: None,
            fault: None,
            drip_interval: Duration::from_millis(50),
            times: 1,
        }
    }
}

impl Answer {
    /// A chat completion with this content.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    /// This status, with an error body. A number that is no status becomes 500.
    pub fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, ..Self::default() }
    }

    /// The default reply, streamed like this.
    pub fn stream(stream: Streaming) -> Self {
        Self { stream: Some(stream), ..Self::default() }
    }

    /// Whether it says anything of its own in the provider's form.
    pub(super) fn speaks(&self) -> bool {
        let Self { text, reasoning, tool_calls, finish_reason, content_list, .. } = self;
        text.is_some() || reasoning.is_some() || !tool_calls.is_empty() || finish_reason.is_some() || *content_list
    }

    /// The default reply, spoilt.
    pub fn fault(fault: Fault) -> Self {
        Self { fault: Some(fault), ..Self::default() }
    }
}

/// Answers in order, each serving its number of requests.
#[derive(Debug, Default)]
struct Queue(VecDeque<Answer>);

impl Queue {
    fn next(&mut self) -> Option<Answer> {
        let first = self.0.front_mut()?;
        match first.times {
            0 => Some(first.clone()),
            1 => self.0.pop_front(),
            _ => {
                first.times -= 1;
                Some(first.clone())
            }
        }
    }
}

/// All scripted answers of a server.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: Vec<(String, Queue)>,
    anyone: Queue,
}

impl Script {
    pub(super) fn push(&mut self, answers: impl IntoIterator<Item = Answer>) {
        self.anyone.0.extend(answers);
    }

    pub(super) fn push_rule(&mut self, text: String, answers: impl IntoIterator<Item = Answer>) {
        self.rules.push((text, Queue(answers.into_iter().collect())));
    }

    /// The answer for a request with this body, if one is scripted.
    pub(super) fn next(&mut self, body: &[u8]) -> Option<Answer> {
        self.ruled(body).or_else(|| self.anyone.next())
    }

    /// The answer of a rule alone.
    pub(super) fn ruled(&mut self, body: &[u8]) -> Option<Answer> {
        let mut matching = self.rules.iter_mut().filter(|(text, _)| contains(body, text.as_bytes()));
        matching.find_map(|(_, answers)| answers.next())
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(script: &mut Script, body: &str) -> Option<String> {
        script.next(body.as_bytes()).and_then(|answer| answer.text)
    }

    #[test]
    fn a_rule_comes_before_the_script_and_is_gone_when_used_up() {
        let mut script = Script::default();
        script.push([Answer::text("first"), Answer::text("second")]);
        script.push_rule("item 7".to_owned(), [Answer { times: 2, ..Answer::text("seven") }]);
        assert_eq!(next(&mut script, "item 7").as_deref(), Some("seven"));
        assert_eq!(next(&mut script, "item 1").as_deref(), Some("first"));
        assert_eq!(next(&mut script, "item 7").as_deref(), Some("seven"));
        assert_eq!(next(&mut script, "item 7").as_deref(), Some("second"));
        assert_eq!(next(&mut script, "item 7"), None);
    }

    #[test]
    fn zero_times_serves_for_ever() {
        let mut script = Script::default();
        script.push_rule("x".to_owned(), [Answer { times: 0, ..Answer::text("always") }]);
        for _ in 0..5 {
            assert_eq!(next(&mut script, "axb").as_deref(), Some("always"));
        }
        assert_eq!(next(&mut script, "other"), None);
    }
}
