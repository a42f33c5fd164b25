//! What all the APIs have in common: a request asks for something, an answer says something.
//!
//! A [`Format`] is one provider's form of a conversation: it reads a [`Call`] from a request's body and writes what is said
//! ([`Said`]) as a whole body or as events.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::sse::{Events, Pieces};
use super::streaming::Streaming;
use super::{anthropic, chat, completions, responses};

/// One call of a function that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The function's name.
    pub name: String,
    /// Its arguments as JSON.
    pub arguments: String,
}

/// What a request asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Call<'a> {
    pub(super) model: Cow<'a, str>,
    /// What an echo repeats.
    pub(super) last_text: Cow<'a, str>,
    pub(super) prompt_tokens: u64,
    pub(super) stream: bool,
    /// The stream ends with its usage.
    pub(super) include_usage: bool,
    /// Answers wanted, at least 1.
    pub(super) choices: u32,
    /// Number of the answer, for its ids.
    pub(super) serial: u64,
}

/// What an answer says.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// Nothing, where there are only calls of tools.
    pub(super) text: Option<String>,
    pub(super) reasoning: Option<String>,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) finish_reason: Option<String>,
    /// The text as a list of parts.
    pub(super) as_list: bool,
}

impl Said {
    pub(super) fn new(text: Option<String>) -> Self {
        Self { text, ..Self::default() }
    }

    pub(super) fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// In `OpenAI`'s words.
    pub(super) fn finish_reason(&self) -> &str {
        let usual = if self.tool_calls.is_empty() { "stop" } else { "tool_calls" };
        self.finish_reason.as_deref().unwrap_or(usual)
    }

    /// Tokens of everything but the text.
    fn other_tokens(&self) -> u64 {
        let calls = self.tool_calls.iter().map(|call| tokens_of(call.name.len() + call.arguments.len()));
        self.reasoning_tokens() + calls.sum::<u64>()
    }

    pub(super) fn reasoning_tokens(&self) -> u64 {
        tokens_of(self.reasoning.as_deref().unwrap_or_default().len())
    }

    /// Tokens of one answer.
    pub(super) fn tokens(&self) -> u64 {
        tokens_of(self.text().len()) + self.other_tokens()
    }

    /// Tokens of one answer whose text is streamed in these pieces.
    pub(super) fn tokens_in(&self, pieces: &Pieces) -> u64 {
        pieces.length().div_ceil(4) + self.other_tokens()
    }
}

/// Four bytes to a token, rounded up.
pub(super) fn tokens_of(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

pub(super) fn json(value: &impl Serialize) -> Bytes {
    // These types hold only strings and numbers, which always serialize.
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

/// Why a request makes no sense to the provider.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// In place of an error in the dialect's form.
    pub(super) body: Option<Bytes>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), body: None }
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Self::new(format!("We could not parse the JSON body of your request: {error}"))
    }
}

/// A provider's form of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Chat,
    /// Chat completions as Mistral has them.
    Mistral,
    /// Chat completions as Azure streams them.
    Azure,
    /// Text completions.
    Completions,
    /// Anthropic's.
    Messages,
    Responses,
}

impl Format {
    pub(super) fn read(self, body: &[u8]) -> Result<Call<'_>, Refusal> {
        match self {
            Self::Chat | Self::Azure => Ok(chat::ChatRequest::parse(body)?.into_call()),
            Self::Mistral => chat::read_mistral(body),
            Self::Completions => completions::read(body),
            Self::Messages => anthropic::read(body),
            Self::Responses => responses::read(body),
        }
    }

    pub(super) fn whole(self, call: &Call<'_>, said: &Said) -> Bytes {
        match self {
            Self::Chat | Self::Azure | Self::Mistral => chat::completion(self, call, said),
            Self::Completions => completions::whole(call, said),
            Self::Messages => anthropic::whole(call, said),
            Self::Responses => responses::whole(call, said),
        }
    }

    pub(super) fn events(self, call: &Call<'_>, said: &Said, plan: &Streaming) -> Events {
        match self {
            Self::Chat | Self::Azure | Self::Mistral => chat::events(self, call, said, plan),
            Self::Completions => completions::events(call, said, plan),
            Self::Messages => anthropic::events(call, said, plan),
            Self::Responses => responses::events(call, said, plan),
        }
    }
}
