//! `OpenAI`'s old text completions, whole and streamed. Several prompts get as many answers, all the same.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Call, Refusal, Said, json, tokens_of};
use super::chat::{now, server_error};
use super::sse::{Events, Mark, PIECE, Pieces, Template};
use super::streaming::Streaming;

#[derive(Debug, Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    prompt: Prompt,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<super::chat::StreamOptions>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u64>),
    TokenLists(Vec<Vec<u64>>),
}

pub(super) fn read(body: &[u8]) -> Result<Call<'_>, Refusal> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let (text, prompts, tokens) = match request.prompt {
        Prompt::Text(text) => (text.clone(), 1, tokens_of(text.len())),
        Prompt::Texts(texts) => (texts.join("\n"), texts.len(), texts.iter().map(|text| tokens_of(text.len())).sum()),
        Prompt::Tokens(tokens) => (String::new(), 1, tokens.len() as u64),
        Prompt::TokenLists(lists) => (String::new(), lists.len(), lists.iter().map(|list| list.len() as u64).sum()),
    };
    Ok(Call {
        model: request.model.unwrap_or_default(),
        last_text: text.into(),
        prompt_tokens: tokens,
        stream: request.stream == Some(true),
        include_usage: request.stream_options.is_some_and(|options| options.include_usage),
        choices: request.n.unwrap_or(1).max(1).saturating_mul(prompts.max(1) as u32),
        serial: 0,
    })
}

fn body(call: &Call<'_>, choices: &[Value]) -> Value {
    json!({
        "id": format!("cmpl-mock-{}", call.serial),
        "object": "text_completion",
        "created": now(),
        "model": call.model,
        "choices": choices,
        "system_fingerprint": "fp_mock",
    })
}

fn choice(index: u32, text: &str, finish_reason: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish_reason})
}

fn with_usage(mut body: Value, call: &Call<'_>, tokens: Option<u64>) -> Value {
    let usage = tokens.map(|tokens| {
        let completion = tokens * u64::from(call.choices);
        let total = call.prompt_tokens + completion;
        json!({"prompt_tokens": call.prompt_tokens, "completion_tokens": completion, "total_tokens": total})
    });
    if let Some(body) = body.as_object_mut() {
        body.insert("usage".to_owned(), usage.into());
    }
    body
}

pub(super) fn whole(call: &Call<'_>, said: &Said) -> Bytes {
    let choices = (0..call.choices).map(|index| choice(index, said.text(), Some(said.finish_reason())));
    json(&with_usage(body(call, &choices.collect::<Vec<_>>()), call, Some(said.tokens())))
}

pub(super) fn events(call: &Call<'_>, said: &Said, plan: &Streaming) -> Events {
    let chunk = |index, text, finish_reason| {
        let chunk = body(call, &[choice(index, text, finish_reason)]);
        Template::new(None, &if call.include_usage { with_usage(chunk, call, None) } else { chunk })
    };
    let mut events = Events::default();
    let pieces = Pieces::new(said.text(), plan.chunks);
    let tokens = said.tokens_in(&pieces);
    events.push_each((0..call.choices).map(|index| chunk(index, PIECE, None)).collect(), pieces);
    for index in 0..call.choices {
        events.push(Mark::Finish, chunk(index, "", Some(said.finish_reason())));
    }
    if call.include_usage {
        events.push(Mark::Plain, Template::new(None, &with_usage(body(call, &[]), call, Some(tokens))));
    }
    events.push(Mark::End, Template::line("[DONE]"));
    events.set_error(Template::new(None, &server_error()));
    events
}
