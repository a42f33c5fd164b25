//! What goes in and what comes out: prompts, answers, usage.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use super::error::Error;
use super::secret::KeyId;

/// What is asked in one chat request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// One user message.
    Text(String),
    /// A JSON array of messages, as it goes on the wire.
    Messages(String),
}

/// Tokens of one answer, as the server counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

/// One tool call that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Where it stands in the message, which may hold others that cannot be read.
    pub position: usize,
    /// Names the call in the message that answers it.
    pub id: String,
    /// `function` or `custom`.
    pub kind: String,
    /// What to call, if that is a function.
    pub function: Option<FunctionCall>,
    /// What to call, if that is a custom tool.
    pub custom: Option<CustomCall>,
}

/// Name and arguments of a function call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments: a JSON text, which a model may get wrong.
    pub arguments: String,
}

/// Name and input of a call of a custom tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomCall {
    /// Name of the tool.
    pub name: String,
    /// Its input: any text.
    pub input: String,
}

/// What the model said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// `assistant`.
    pub role: String,
    /// The text; none if the model called tools or refused.
    pub content: Option<String>,
    /// Why it refused, if it did.
    pub refusal: Option<String>,
    /// The tools it wants called.
    pub tool_calls: Option<Vec<ToolCall>>,
}

/// One of the `n` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Where it stands in the body, which may hold others that say nothing.
    pub position: usize,
    /// Its place among the `n`.
    pub index: u64,
    /// `stop`, `length`, `tool_calls`, `content_filter`, …
    pub finish_reason: Option<String>,
    /// What the model said.
    pub message: Message,
}

/// A chat completion that was validated: it has at least one choice with a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatCompletion {
    /// The server's id of the answer.
    pub id: String,
    /// Unix time in seconds.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// At least one.
    pub choices: Vec<Choice>,
    /// Tokens, if the server counts them.
    pub usage: Option<Usage>,
}

/// What is left of a chat completion where only its text is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// The first choice's text, empty if it has none.
    pub content: String,
    /// Tokens, if the server counts them.
    pub usage: Option<Usage>,
}

impl From<ChatCompletion> for Text {
    fn from(completion: ChatCompletion) -> Self {
        let content = completion.choices.into_iter().next().and_then(|choice| choice.message.content);
        Self { content: content.unwrap_or_default(), usage: completion.usage }
    }
}

/// One model of `GET /models`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// The name to call it by.
    pub id: String,
    /// Unix time in seconds.
    pub created: i64,
    /// Who owns it.
    pub owned_by: String,
    /// Everything that the server says of it, these three included.
    pub fields: Map<String, Value>,
}

/// An answer of which nothing is read but what it used: whoever asked knows what else is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Tokens, if the server counts them.
    pub usage: Option<Usage>,
}

/// An answer that was written to a file and not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved;

/// Embeddings, in the order of the inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// One for each input.
    pub data: Vec<Embedding>,
    /// The model that made them.
    pub model: String,
    /// Tokens, if the server counts them.
    pub usage: Option<Usage>,
}

/// The embedding of one input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embedding {
    /// Where it stands in the body, which may have another order.
    pub position: usize,
    /// Its numbers.
    pub vector: Vec<f64>,
}

/// Embeddings as one block of numbers, for who has many of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// Row after row, in the order in which they came.
    pub numbers: Vec<f32>,
    /// How many numbers a row has; at least one, if there is a row.
    pub dimensions: usize,
    /// The input that each row belongs to: every one from 0 up to their count, once.
    pub inputs: Vec<u32>,
    /// Whether they came as base64.
    pub is_base64: bool,
    /// The model that made them.
    pub model: String,
    /// Tokens, if the server counts them.
    pub usage: Option<Usage>,
}

/// What came with an answer besides its body.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// Always 2xx.
    pub status: StatusCode,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The body, decompressed, in `OpenAI`'s format.
    pub body: Bytes,
    /// The body as it came, where the provider's format is another.
    pub raw: Option<Bytes>,
    /// Attempts made, the first included.
    pub attempts: u32,
    /// Names the key that it was sent with, if it was sent.
    pub key_id: Option<KeyId>,
    /// From the call to its admission: the wait for a place in the window and for the rate limit. In a batch all such waits,
    /// also between attempts.
    pub queue_time: Duration,
    /// From the admission to the end of the answer, all attempts and the other waits between them included.
    pub elapsed: Duration,
    /// Whether it was not asked for: it was kept, or another asked the same at the same time.
    pub cached: bool,
}

/// What a rate limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// HTTP requests, failed ones included.
    Requests,
    /// Tokens of prompt and answer together.
    Tokens,
    /// Tokens of the prompt.
    InputTokens,
    /// Tokens of the answer.
    OutputTokens,
}

/// What one answer's headers say of one rate limit. Evidence, not truth: answers arrive out of order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateReading {
    /// What is counted.
    pub unit: Unit,
    /// How many are allowed in a window. Zero: none, ever.
    pub limit: Option<f64>,
    /// How many were left when the server answered.
    pub remaining: Option<f64>,
    /// Until the allowance is whole again.
    pub reset: Option<Duration>,
    /// What the limit is counted over, where the dialect or the numbers tell; a minute is usual.
    pub window: Option<Duration>,
}

/// Who goes first among those who wait: a higher one before a lower, first come, first served within one. Default 0.
pub type Priority = i32;

/// The value of a header that names the request, for support.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    ["x-request-id", "request-id"].iter().find_map(|name| headers.get(*name)?.to_str().ok())
}

/// What became of one item.
pub type Outcome<T> = Result<T, Error>;
