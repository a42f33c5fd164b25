//! `OpenAI`'s Responses API, whole and streamed.
//!
//! An answer is a list of items (reasoning, message, calls of functions), a stream is typed and numbered events. There is no
//! end marker: `response.completed`, or `response.incomplete`, is the last event.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Call, Refusal, Said, json, tokens_of};
use super::chat::{Message, last_text, now, tokens_of_messages};
use super::sse::{Events, Mark, NUMBER, PIECE, Pieces, Template};
use super::streaming::Streaming;

#[derive(Debug, Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    input: Input<'a>,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    #[serde(borrow)]
    Items(Vec<Message<'a>>),
}

pub(super) fn read(body: &[u8]) -> Result<Call<'_>, Refusal> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let (text, tokens) = match request.input {
        Input::Text(text) => (text.clone(), tokens_of(text.len())),
        Input::Items(items) => {
            let tokens = tokens_of_messages(&items);
            (last_text(items), tokens)
        }
    };
    Ok(Call {
        model: request.model.unwrap_or_default(),
        last_text: text,
        prompt_tokens: tokens + tokens_of(request.instructions.unwrap_or_default().len()),
        stream: request.stream == Some(true),
        include_usage: true,
        choices: 1,
        serial: 0,
    })
}

/// The answer's state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    InProgress,
    Completed,
    /// With the reason.
    Incomplete(&'static str),
}

impl Status {
    /// At the end.
    fn of(said: &Said) -> Self {
        match said.finish_reason() {
            "length" => Self::Incomplete("max_output_tokens"),
            "content_filter" => Self::Incomplete("content_filter"),
            _ => Self::Completed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
        }
    }
}

fn response(call: &Call<'_>, status: Status, output: &[Value], usage: &Value) -> Value {
    let incomplete = match status {
        Status::Incomplete(reason) => json!({"reason": reason}),
        Status::InProgress | Status::Completed => Value::Null,
    };
    json!({
        "id": format!("resp_mock_{}", call.serial),
        "object": "response",
        "created_at": now(),
        "status": status.name(),
        "error": null,
        "incomplete_details": incomplete,
        "instructions": null,
        "max_output_tokens": null,
        "model": call.model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "store": true,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "metadata": {},
    })
}

fn usage(call: &Call<'_>, said: &Said, output_tokens: u64) -> Value {
    json!({
        "input_tokens": call.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": said.reasoning_tokens()},
        "total_tokens": call.prompt_tokens + output_tokens,
    })
}

/// One item of the output, as it begins and as it is at its end.
struct Item {
    empty: Value,
    full: Value,
    kind: Kind,
    pieces: Pieces,
    /// What the pieces are together.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    FunctionCall,
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn summary_part(text: &str) -> Value {
    json!({"type": "summary_text", "text": text})
}

/// The items, their texts in `chunks` pieces.
fn items(call: &Call<'_>, said: &Said, chunks: Option<u64>) -> Vec<Item> {
    let serial = call.serial;
    let mut items = Vec::new();
    if let Some(reasoning) = &said.reasoning {
        let pieces = Pieces::new(reasoning, chunks);
        let text = pieces.text();
        let item = |summary: Value| json!({"id": format!("rs_mock_{serial}"), "type": "reasoning", "summary": summary});
        let (empty, full) = (item(json!([])), item(json!([summary_part(&text)])));
        items.push(Item { empty, full, kind: Kind::Reasoning, pieces, text });
    }
    if let Some(text) = &said.text {
        let pieces = Pieces::new(text, chunks);
        let text = pieces.text();
        let item = |status: Status, content: Value| {
            let (id, status) = (format!("msg_mock_{serial}"), status.name());
            json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
        };
        let empty = item(Status::InProgress, json!([]));
        let full = item(Status::of(said), json!([text_part(&text)]));
        items.push(Item { empty, full, kind: Kind::Message, pieces, text });
    }
    for (place, tool) in said.tool_calls.iter().enumerate() {
        let item = |status: Status, arguments: &str| {
            let (id, call_id) = (format!("fc_mock_{serial}_{place}"), format!("call_mock_{serial}_{place}"));
            let status = status.name();
            json!({"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": tool.name,
                "arguments": arguments})
        };
        let (empty, full) = (item(Status::InProgress, ""), item(Status::Completed, &tool.arguments));
        let (pieces, text) = (Pieces::new(&tool.arguments, None), tool.arguments.clone());
        items.push(Item { empty, full, kind: Kind::FunctionCall, pieces, text });
    }
    items
}

pub(super) fn whole(call: &Call<'_>, said: &Said) -> Bytes {
    let output: Vec<_> = items(call, said, None).into_iter().map(|item| item.full).collect();
    json(&response(call, Status::of(said), &output, &usage(call, said, said.tokens())))
}

/// A typed and numbered event with these fields.
fn event(name: &str, fields: &Value) -> Template {
    let mut data = json!({"type": name, "sequence_number": NUMBER});
    if let (Some(data), Some(fields)) = (data.as_object_mut(), fields.as_object()) {
        data.extend(fields.clone());
    }
    Template::new(Some(name), &data)
}

fn push_item(events: &mut Events, index: usize, item: Item) {
    let Item { empty, full, kind, pieces, text } = item;
    let id = full.get("id").cloned().unwrap_or_default();
    // Where in the output an event belongs, and what else it says.
    let at = |place: &str, name: &str, value: Value| {
        let mut fields = json!({"item_id": id, "output_index": index});
        if let Some(fields) = fields.as_object_mut() {
            if !place.is_empty() {
                fields.insert(place.to_owned(), 0.into());
            }
            fields.insert(name.to_owned(), value);
        }
        fields
    };
    let mut say = |name: &str, fields: &Value| events.push(Mark::Plain, event(name, fields));
    say("response.output_item.added", &json!({"output_index": index, "item": empty}));
    match kind {
        Kind::Reasoning => {
            const PLACE: &str = "summary_index";
            say("response.reasoning_summary_part.added", &at(PLACE, "part", summary_part("")));
            let delta = event("response.reasoning_summary_text.delta", &at(PLACE, "delta", PIECE.into()));
            events.push_each(vec![delta], pieces);
            let mut say = |name: &str, fields: &Value| events.push(Mark::Plain, event(name, fields));
            say("response.reasoning_summary_text.done", &at(PLACE, "text", text.as_str().into()));
            say("response.reasoning_summary_part.done", &at(PLACE, "part", summary_part(&text)));
        }
        Kind::Message => {
            const PLACE: &str = "content_index";
            say("response.content_part.added", &at(PLACE, "part", text_part("")));
            events.push_each(vec![event("response.output_text.delta", &at(PLACE, "delta", PIECE.into()))], pieces);
            let mut say = |name: &str, fields: &Value| events.push(Mark::Plain, event(name, fields));
            say("response.output_text.done", &at(PLACE, "text", text.as_str().into()));
            say("response.content_part.done", &at(PLACE, "part", text_part(&text)));
        }
        Kind::FunctionCall => {
            let delta = event("response.function_call_arguments.delta", &at("", "delta", PIECE.into()));
            events.push_each(vec![delta], pieces);
            let done = event("response.function_call_arguments.done", &at("", "arguments", text.into()));
            events.push(Mark::Plain, done);
        }
    }
    events.push(Mark::Plain, event("response.output_item.done", &json!({"output_index": index, "item": full})));
}

pub(super) fn events(call: &Call<'_>, said: &Said, plan: &Streaming) -> Events {
    let mut events = Events::default();
    let begun = json!({"response": response(call, Status::InProgress, &[], &Value::Null)});
    events.push(Mark::Plain, event("response.created", &begun));
    events.push(Mark::Plain, event("response.in_progress", &begun));
    let items = items(call, said, plan.chunks);
    let output: Vec<_> = items.iter().map(|item| item.full.clone()).collect();
    for (index, item) in items.into_iter().enumerate() {
        push_item(&mut events, index, item);
    }
    let status = Status::of(said);
    let tokens = said.tokens_in(&Pieces::new(said.text(), plan.chunks));
    let done = json!({"response": response(call, status, &output, &usage(call, said, tokens))});
    let name = if status == Status::Completed { "response.completed" } else { "response.incomplete" };
    events.push(Mark::Finish, event(name, &done));
    let message = "The server had an error while processing your request. Sorry about that!";
    events.set_error(event("error", &json!({"code": "server_error", "message": message, "param": null})));
    events
}
