//! The provider's JSON: chat completions and the list of models.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits::Charge;

/// What the mock reads of a chat request; everything else is accepted unseen.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest<'a> {
    #[serde(borrow)]
    pub(super) model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

impl Content<'_> {
    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

impl ChatRequest<'_> {
    pub(super) fn parse(body: &[u8]) -> Result<ChatRequest<'_>, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// What the echo repeats.
    pub(super) fn last_user_text(&self) -> Cow<'_, str> {
        let mut from_user = self.messages.iter().rev().filter(|message| message.role.as_deref() == Some("user"));
        from_user.next().and_then(|message| message.content.as_ref()).map_or(Cow::Borrowed(""), Content::text)
    }

    /// Four bytes of content to a token, rounded up.
    pub(super) fn prompt_tokens(&self) -> u64 {
        let contents = self.messages.iter().filter_map(|message| message.content.as_ref());
        tokens_of(contents.map(|content| content.text().len()).sum())
    }

    /// What the request costs: of a limit of all tokens, the larger of what it may produce and what it says.
    pub(super) fn charge(&self) -> Charge {
        let (input_tokens, most) = (self.prompt_tokens(), self.max_completion_tokens.or(self.max_tokens));
        Charge {
            tokens: most.unwrap_or(0).max(input_tokens),
            input_tokens,
            output_tokens: most.unwrap_or(input_tokens),
        }
    }
}

pub(super) fn tokens_of(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
    service_tier: &'static str,
    system_fingerprint: &'static str,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Reply<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Reply<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
    annotations: [(); 0],
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Serialize, Default)]
struct PromptDetails {
    cached_tokens: u64,
    audio_tokens: u64,
}

#[derive(Serialize, Default)]
#[expect(clippy::struct_field_names, reason = "the provider's names")]
struct CompletionDetails {
    reasoning_tokens: u64,
    audio_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

/// Body of a chat completion.
pub(super) fn completion(id: &str, model: &str, content: &str, prompt_tokens: u64) -> Bytes {
    let completion_tokens = tokens_of(content.len());
    let usage = Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        prompt_tokens_details: PromptDetails::default(),
        completion_tokens_details: CompletionDetails::default(),
    };
    let message = Reply { role: "assistant", content, refusal: None, annotations: [] };
    json(&Completion {
        id,
        object: "chat.completion",
        created: now(),
        model,
        choices: [Choice { index: 0, message, logprobs: None, finish_reason: "stop" }],
        usage,
        service_tier: "default",
        system_fingerprint: "fp_mock",
    })
}

/// The one body of the fixed reply, about 970 bytes: the size of a short real answer.
pub(super) fn fixed_completion(model: &str) -> Bytes {
    const CONTENT: &str = "A mill stream is the channel that leads water from a river to a mill wheel and back. It is \
        dug so that the water arrives with as little fall as possible and spends its height at the wheel, where it does \
        the work; a gate at its head lets in only what the wheel can take, and a weir sends the rest of the river past \
        the mill. What matters is not how much the river carries but how evenly the wheel is fed.";
    completion("chatcmpl-mock-fixed-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", model, CONTENT, 12)
}

#[derive(Serialize)]
struct Models<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// Body of `GET /v1/models`.
pub(super) fn models(ids: &[String]) -> Bytes {
    let model = |id| Model { id, object: "model", created: 1_700_000_000, owned_by: "millstream" };
    json(&Models { object: "list", data: ids.iter().map(|id| model(id)).collect() })
}

fn json(value: &impl Serialize) -> Bytes {
    // These types hold only strings and numbers, which always serialize.
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_last_user_message_in_both_forms() {
        let body = br#"{"model":"m","max_tokens":3,"messages":[{"role":"system","content":"s\n"},
            {"role":"user","content":[{"type":"text","text":"one "},{"type":"image_url"},{"type":"text","text":"two"}]},
            {"role":"assistant","content":null}],"temperature":0}"#;
        let request = ChatRequest::parse(body).unwrap();
        assert_eq!(request.last_user_text(), "one two");
        assert_eq!(request.prompt_tokens(), 3);
        assert_eq!(request.charge(), Charge { tokens: 3, input_tokens: 3, output_tokens: 3 });
        let body = br#"{"messages":[{"role":"user","content":"caf\u00e9"}]}"#;
        assert_eq!(ChatRequest::parse(body).unwrap().last_user_text(), "café");
    }

    #[test]
    fn the_fixed_body_has_the_size_of_a_short_real_answer() {
        let length = fixed_completion("mock-model").len();
        assert!((950..1000).contains(&length), "{length}");
    }
}
