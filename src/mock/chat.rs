//! Chat completions, whole and streamed, with what Mistral and Azure do differently, and the list of models.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Call, Format, Refusal, Said, ToolCall, json, tokens_of};
use super::limits::Charge;
use super::sse::{Events, Mark, PIECE, Pieces, Template};
use super::streaming::Streaming;

/// What the mock reads of a chat request; everything else is accepted unseen.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest<'a> {
    #[serde(borrow)]
    pub(super) model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    /// Anthropic's.
    #[serde(borrow, default)]
    system: Option<Content<'a>>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// The one field that even the fixed reply looks at.
#[derive(Debug, Deserialize)]
struct Asks {
    #[serde(default)]
    stream: Option<bool>,
}

/// Whether a request asks for a stream, with as little reading as possible.
pub(super) fn asks_for_a_stream(body: &[u8]) -> bool {
    serde_json::from_slice::<Asks>(body).is_ok_and(|asks| asks.stream == Some(true))
}

#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
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

impl<'a> Content<'a> {
    fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

impl<'a> ChatRequest<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    pub(super) fn into_call(self) -> Call<'a> {
        let prompt_tokens = self.prompt_tokens();
        Call {
            model: self.model.unwrap_or_default(),
            last_text: last_text(self.messages),
            prompt_tokens,
            stream: self.stream == Some(true),
            include_usage: self.stream_options.is_some_and(|options| options.include_usage),
            choices: self.n.unwrap_or(1).max(1),
            serial: 0,
        }
    }

    pub(super) fn has_max_tokens(&self) -> bool {
        self.max_tokens.is_some()
    }

    pub(super) fn roles(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().map(|message| message.role.as_deref().unwrap_or_default())
    }

    pub(super) fn prompt_tokens(&self) -> u64 {
        let system = self.system.as_ref().map_or(0, |system| system.text().len());
        tokens_of_messages(&self.messages) + tokens_of(system)
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

/// Mistral's schema is closed: a field that is not in it is refused, among them three that its users bring from `OpenAI`.
pub(super) fn read_mistral(body: &[u8]) -> Result<Call<'_>, Refusal> {
    let call = ChatRequest::parse(body)?.into_call();
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(body)?;
    let unknown = ["stream_options", "seed", "max_completion_tokens"].into_iter().filter_map(|name| {
        let input = fields.get(name)?;
        let message = "Extra inputs are not permitted";
        Some(json!({"type": "extra_forbidden", "loc": ["body", name], "msg": message, "input": input}))
    });
    let detail: Vec<_> = unknown.collect();
    if detail.is_empty() {
        // It tells the usage of a stream without being asked, in the last chunk.
        return Ok(Call { include_usage: false, ..call });
    }
    let body = json(&json!({"detail": detail}));
    Err(Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, message: String::new(), body: Some(body) })
}

/// What the user said last.
pub(super) fn last_text(messages: Vec<Message<'_>>) -> Cow<'_, str> {
    let from_user = messages.into_iter().rfind(|message| message.role.as_deref() == Some("user"));
    from_user.and_then(|message| message.content).map(Content::into_text).unwrap_or_default()
}

/// Four bytes of content to a token, rounded up.
pub(super) fn tokens_of_messages(messages: &[Message<'_>]) -> u64 {
    let contents = messages.iter().filter_map(|message| message.content.as_ref());
    tokens_of(contents.map(|content| content.text().len()).sum())
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    usage: Usage,
    service_tier: &'static str,
    system_fingerprint: &'static str,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Reply<'a>,
    logprobs: Option<()>,
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct Reply<'a> {
    role: &'static str,
    content: Option<Words<'a>>,
    refusal: Option<()>,
    annotations: [(); 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
}

/// A message's content.
#[derive(Serialize)]
#[serde(untagged)]
enum Words<'a> {
    Text(&'a str),
    Parts(Vec<Value>),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

impl Usage {
    fn new(prompt_tokens: u64, completion_tokens: u64, reasoning_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails::default(),
            completion_tokens_details: CompletionDetails { reasoning_tokens, ..CompletionDetails::default() },
        }
    }
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

fn thinking(text: &str) -> Value {
    json!({"type": "thinking", "thinking": [{"type": "text", "text": text}]})
}

fn text_part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn tool_call(call: &Call<'_>, place: usize, tool: &ToolCall) -> Value {
    let id = format!("call_mock_{}_{place}", call.serial);
    json!({"id": id, "type": "function", "function": {"name": tool.name, "arguments": tool.arguments}})
}

/// Body of a chat completion.
pub(super) fn completion(format: Format, call: &Call<'_>, said: &Said) -> Bytes {
    let reasons_in_parts = format == Format::Mistral && said.reasoning.is_some();
    let content = || {
        let text = said.text.as_deref()?;
        if !said.as_list && !reasons_in_parts {
            return Some(Words::Text(text));
        }
        let thoughts = said.reasoning.as_deref().filter(|_| reasons_in_parts).map(thinking);
        Some(Words::Parts(thoughts.into_iter().chain([text_part(text)]).collect()))
    };
    let message = || Reply {
        role: "assistant",
        content: content(),
        refusal: None,
        annotations: [],
        reasoning_content: said.reasoning.as_deref().filter(|_| !reasons_in_parts),
        tool_calls: said.tool_calls.iter().enumerate().map(|(place, tool)| tool_call(call, place, tool)).collect(),
    };
    let finish_reason = said.finish_reason();
    let choice = |index| Choice { index, message: message(), logprobs: None, finish_reason };
    let choices = u64::from(call.choices);
    json(&Completion {
        id: &format!("chatcmpl-mock-{}", call.serial),
        object: "chat.completion",
        created: now(),
        model: &call.model,
        choices: (0..call.choices).map(choice).collect(),
        usage: Usage::new(call.prompt_tokens, said.tokens() * choices, said.reasoning_tokens() * choices),
        service_tier: "default",
        system_fingerprint: "fp_mock",
    })
}

/// What every chunk of a stream has, and the choices that one has of its own.
struct Chunks<'a> {
    format: Format,
    call: &'a Call<'a>,
    created: u64,
}

impl Chunks<'_> {
    fn chunk(&self, choices: &Value) -> Value {
        let mut chunk = json!({
            "id": format!("chatcmpl-mock-{}", self.call.serial),
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.call.model,
            "service_tier": "default",
            "system_fingerprint": "fp_mock",
            "choices": choices,
        });
        if self.call.include_usage
            && let Some(chunk) = chunk.as_object_mut()
        {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        chunk
    }

    fn choice(&self, index: u32, delta: &Value, finish_reason: Option<&str>) -> Value {
        self.chunk(&json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]))
    }

    fn with_usage(mut chunk: Value, usage: &Usage) -> Value {
        if let Some(chunk) = chunk.as_object_mut() {
            chunk.insert("usage".to_owned(), json!(usage));
        }
        chunk
    }

    fn once(&self, events: &mut Events, delta: &Value) {
        for index in 0..self.call.choices {
            events.push(Mark::Plain, Template::new(None, &self.choice(index, delta, None)));
        }
    }

    fn each(&self, events: &mut Events, delta: &Value, pieces: Pieces) {
        let template = |index| Template::new(None, &self.choice(index, delta, None));
        events.push_each((0..self.call.choices).map(template).collect(), pieces);
    }

    /// The name first, then the arguments bit by bit. Mistral sends a call whole.
    fn tool_call(&self, events: &mut Events, place: usize, tool: &ToolCall) {
        let whole = |arguments: &str| {
            let id = format!("call_mock_{}_{place}", self.call.serial);
            let function = json!({"name": tool.name, "arguments": arguments});
            json!({"tool_calls": [{"index": place, "id": id, "type": "function", "function": function}]})
        };
        if self.format == Format::Mistral {
            return self.once(events, &whole(&tool.arguments));
        }
        self.once(events, &whole(""));
        let fragment = json!({"tool_calls": [{"index": place, "function": {"arguments": PIECE}}]});
        self.each(events, &fragment, Pieces::new(&tool.arguments, None));
    }
}

/// A chat completion as a stream.
pub(super) fn events(format: Format, call: &Call<'_>, said: &Said, plan: &Streaming) -> Events {
    let mut events = Events::default();
    let chunks = Chunks { format, call, created: now() };
    if format == Format::Azure {
        let filters = json!({"hate": {"filtered": false, "severity": "safe"}});
        events.push(
            Mark::Plain,
            Template::new(
                None,
                &json!({
                    "choices": [], "created": 0, "id": "", "model": "", "object": "",
                    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": filters}],
                }),
            ),
        );
    }
    let content = if said.text.is_some() { json!("") } else { Value::Null };
    chunks.once(&mut events, &json!({"role": "assistant", "content": content, "refusal": null}));
    if let Some(reasoning) = &said.reasoning {
        let delta = match format {
            Format::Mistral => json!({"content": [thinking(PIECE)]}),
            _ => json!({"reasoning_content": PIECE}),
        };
        chunks.each(&mut events, &delta, Pieces::new(reasoning, plan.chunks));
    }
    let delta = if said.as_list { json!({"content": [text_part(PIECE)]}) } else { json!({"content": PIECE}) };
    let pieces = Pieces::new(said.text(), plan.chunks);
    let choices = u64::from(call.choices);
    let usage = Usage::new(call.prompt_tokens, said.tokens_in(&pieces) * choices, said.reasoning_tokens() * choices);
    chunks.each(&mut events, &delta, pieces);
    for (place, tool) in said.tool_calls.iter().enumerate() {
        chunks.tool_call(&mut events, place, tool);
    }
    for index in 0..call.choices {
        let delta = if format == Format::Mistral { json!({"content": ""}) } else { json!({}) };
        let mut finish = chunks.choice(index, &delta, Some(said.finish_reason()));
        if format == Format::Mistral && index + 1 == call.choices {
            finish = Chunks::with_usage(finish, &usage);
        }
        events.push(Mark::Finish, Template::new(None, &finish));
    }
    if call.include_usage {
        let last = Chunks::with_usage(chunks.chunk(&json!([])), &usage);
        events.push(Mark::Plain, Template::new(None, &last));
    }
    events.push(Mark::End, Template::line("[DONE]"));
    events.set_error(Template::new(None, &server_error()));
    events
}

/// What a provider of this family says in the middle of a stream.
pub(super) fn server_error() -> Value {
    let message = "The server had an error while processing your request. Sorry about that!";
    json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}})
}

/// Text of the fixed reply.
pub(super) const FIXED: &str = "A mill stream is the channel that leads water from a river to a mill wheel and back. It is \
    dug so that the water arrives with as little fall as possible and spends its height at the wheel, where it does \
    the work; a gate at its head lets in only what the wheel can take, and a weir sends the rest of the river past \
    the mill. What matters is not how much the river carries but how evenly the wheel is fed.";

/// The one body of the fixed reply, about 970 bytes: the size of a short real answer.
pub(super) fn fixed_completion(model: &str) -> Bytes {
    let call = Call { model: model.into(), prompt_tokens: 12, choices: 1, ..Call::default() };
    completion(Format::Chat, &call, &Said::new(Some(FIXED.to_owned())))
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

pub(super) fn now() -> u64 {
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
        assert_eq!(request.prompt_tokens(), 3);
        assert_eq!(request.charge(), Charge { tokens: 3, input_tokens: 3, output_tokens: 3 });
        assert_eq!(request.into_call().last_text, "one two");
        let body = br#"{"messages":[{"role":"user","content":"caf\u00e9"}]}"#;
        assert_eq!(ChatRequest::parse(body).unwrap().into_call().last_text, "café");
    }

    #[test]
    fn the_fixed_body_has_the_size_of_a_short_real_answer() {
        let length = fixed_completion("mock-model").len();
        assert!((950..1000).contains(&length), "{length}");
    }
}
