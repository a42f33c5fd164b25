//! Anthropic's Messages API, whole and streamed.
//!
//! Blocks in place of a content, each with a start, deltas and a stop; `ping` in place of a comment; the end is
//! `message_stop`. `max_tokens` is required, and roles are those of user and assistant alone.

use bytes::Bytes;
use serde_json::{Value, json};

use super::api::{Call, Refusal, Said, ToolCall, json};
use super::chat::ChatRequest;
use super::sse::{Events, Mark, PIECE, Pieces, Template};
use super::streaming::Streaming;

const SIGNATURE: &str = "bW9jaw==";

pub(super) fn read(body: &[u8]) -> Result<Call<'_>, Refusal> {
    let request = ChatRequest::parse(body)?;
    if !request.has_max_tokens() {
        return Err(Refusal::new("max_tokens: Field required"));
    }
    check_roles(&request)?;
    Ok(Call { include_usage: true, choices: 1, ..request.into_call() })
}

fn check_roles(request: &ChatRequest<'_>) -> Result<(), Refusal> {
    match request.roles().find(|role| !matches!(*role, "user" | "assistant")) {
        Some(role) => Err(Refusal::new(format!(
            "messages: Unexpected role \"{role}\". The Messages API accepts a top-level `system` parameter, not \
             \"system\" as an input message role."
        ))),
        None => Ok(()),
    }
}

/// Body of an answer to `POST /v1/messages/count_tokens`.
pub(super) fn count_tokens(body: &[u8]) -> Result<Bytes, Refusal> {
    let request = ChatRequest::parse(body)?;
    check_roles(&request)?;
    Ok(json(&json!({"input_tokens": request.prompt_tokens()})))
}

fn stop_reason(said: &Said) -> &str {
    match said.finish_reason() {
        "stop" => "end_turn",
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        "content_filter" => "refusal",
        own => own,
    }
}

fn usage(call: &Call<'_>, output_tokens: u64) -> Value {
    json!({
        "input_tokens": call.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    })
}

fn message(call: &Call<'_>, content: &[Value], stop_reason: Option<&str>, usage: &Value) -> Value {
    json!({
        "id": format!("msg_mock_{}", call.serial),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": usage,
    })
}

fn tool_use(call: &Call<'_>, place: usize, tool: &ToolCall, input: &Value) -> Value {
    json!({"type": "tool_use", "id": format!("toolu_mock_{}_{place}", call.serial), "name": tool.name, "input": input})
}

pub(super) fn whole(call: &Call<'_>, said: &Said) -> Bytes {
    let thinking = said.reasoning.iter();
    let thinking = thinking.map(|text| json!({"type": "thinking", "thinking": text, "signature": SIGNATURE}));
    let text = said.text.iter().map(|text| json!({"type": "text", "text": text}));
    let tools = said.tool_calls.iter().enumerate().map(|(place, tool)| {
        let input = serde_json::from_str(&tool.arguments).unwrap_or_else(|_| json!({}));
        tool_use(call, place, tool, &input)
    });
    let content: Vec<_> = thinking.chain(text).chain(tools).collect();
    json(&message(call, &content, Some(stop_reason(said)), &usage(call, said.tokens())))
}

/// An event is named by its type.
fn event(data: &Value) -> Template {
    Template::new(data.get("type").and_then(Value::as_str), data)
}

/// The blocks so far.
#[derive(Default)]
struct Blocks {
    events: Events,
    index: usize,
}

impl Blocks {
    /// A block with a delta for each piece, and one more at its end.
    fn push(&mut self, block: &Value, of_piece: &Value, pieces: Pieces, last: Option<&Value>) {
        let index = self.index;
        let delta = |delta: &Value| event(&json!({"type": "content_block_delta", "index": index, "delta": delta}));
        let start = json!({"type": "content_block_start", "index": index, "content_block": block});
        self.events.push(Mark::Plain, event(&start));
        if index == 0 {
            self.events.push(Mark::Plain, event(&json!({"type": "ping"})));
        }
        self.events.push_each(vec![delta(of_piece)], pieces);
        if let Some(last) = last {
            self.events.push(Mark::Plain, delta(last));
        }
        self.events.push(Mark::Plain, event(&json!({"type": "content_block_stop", "index": index})));
        self.index += 1;
    }
}

pub(super) fn events(call: &Call<'_>, said: &Said, plan: &Streaming) -> Events {
    let mut blocks = Blocks::default();
    let start = message(call, &[], None, &usage(call, 1));
    blocks.events.push(Mark::Plain, event(&json!({"type": "message_start", "message": start})));
    if let Some(reasoning) = &said.reasoning {
        blocks.push(
            &json!({"type": "thinking", "thinking": "", "signature": ""}),
            &json!({"type": "thinking_delta", "thinking": PIECE}),
            Pieces::new(reasoning, plan.chunks),
            Some(&json!({"type": "signature_delta", "signature": SIGNATURE})),
        );
    }
    let pieces = Pieces::new(said.text(), plan.chunks);
    let output_tokens = said.tokens_in(&pieces);
    if said.text.is_some() {
        let block = json!({"type": "text", "text": ""});
        blocks.push(&block, &json!({"type": "text_delta", "text": PIECE}), pieces, None);
    }
    for (place, tool) in said.tool_calls.iter().enumerate() {
        let block = tool_use(call, place, tool, &json!({}));
        let delta = json!({"type": "input_json_delta", "partial_json": PIECE});
        blocks.push(&block, &delta, Pieces::new(&tool.arguments, None), None);
    }
    let mut events = blocks.events;
    let delta = json!({"stop_reason": stop_reason(said), "stop_sequence": null});
    let last = json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}});
    events.push(Mark::Finish, event(&last));
    events.push(Mark::End, event(&json!({"type": "message_stop"})));
    events.set_ping(event(&json!({"type": "ping"})));
    let error = json!({"type": "overloaded_error", "message": "Overloaded"});
    events.set_error(event(&json!({"type": "error", "error": error})));
    events
}
