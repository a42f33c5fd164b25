//! `OpenAI`'s chat format, which vLLM, llama.cpp, Together, Groq and most others speak too.
//!
//! A request's fixed parts are serialised once per batch (`Template`); an item only adds its prompt. An answer is read by a
//! strict and fast parser first and, where that refuses, by a lenient one that takes what is needed and ignores the rest:
//! an odd type in a field nobody asked for must not lose an answer that is paid for. A 2xx without a message is not an answer.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::refusal::{meaning, status_in_a_stream};
use super::{Step, lenient, retry_after};
use crate::engine::error::{Error, HttpContext, Kind, Verdict, printable, printable_name};
use crate::engine::types::{
    ChatCompletion, Choice, CustomCall, FunctionCall, Message, Model, Prompt, Text, ToolCall, Usage, request_id,
};

/// The longest error body that is kept.
const ERROR_BODY_LIMIT: usize = 64 * 1024;

/// A message without any of these says nothing: it is a broken answer, not an empty one.
const ANSWERING_FIELDS: [&str; 7] =
    ["content", "tool_calls", "refusal", "function_call", "audio", "reasoning_content", "reasoning"];

const BEFORE_MODEL: &str = "{\"model\":";
const AFTER_MODEL: &str = ",\"messages\":[";
const STREAM: &str = ",\"stream\":true";
const STREAM_WITH_USAGE: &str = ",\"stream\":true,\"stream_options\":{\"include_usage\":true}";

/// A stream's body without the request for its usage, which some servers refuse; none if it has none.
pub fn without_usage(body: &[u8]) -> Option<Bytes> {
    let start = memchr::memmem::find(body, STREAM_WITH_USAGE.as_bytes())?;
    let (before, rest) = body.split_at_checked(start)?;
    let after = rest.get(STREAM_WITH_USAGE.len()..)?;
    Some([before, STREAM.as_bytes(), after].concat().into())
}

/// Whether a server refused a request because of the usage that its stream was asked for.
pub fn refuses_usage(error: &Error) -> bool {
    let says = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains("stream_options"));
    matches!(error.kind(), Kind::Status(400 | 422))
        && error.http().is_some_and(|http| says(&http.message) || says(&http.param) || says(&http.body))
}

/// Everything of a chat request but its prompt, as JSON text around the gap where the prompt goes.
#[derive(Debug, Clone)]
pub(super) struct Template {
    before_prompt: String,
    system: Option<String>,
    after_prompt: String,
    /// What a stream's request has before the fields.
    stream: &'static str,
}

impl Template {
    /// A template for `model` with an optional system message and further fields.
    ///
    /// `fields` is a JSON object's inside without the braces (`"temperature":0.5,"n":2`), passed through untouched.
    /// With `asks_usage` a stream is asked for its usage, unless the fields have `stream_options` themselves.
    pub(super) fn new(model: &str, system: Option<&str>, fields: &str, asks_usage: bool) -> Self {
        let asks_usage = asks_usage && !fields.contains("\"stream_options\":");
        let separator = if fields.is_empty() { "" } else { "," };
        Self {
            before_prompt: [BEFORE_MODEL, &quoted(model), AFTER_MODEL].concat(),
            system: system.map(|system| format!("{{\"role\":\"system\",\"content\":{}}}", quoted(system))),
            after_prompt: format!("]{separator}{fields}}}"),
            stream: if asks_usage { STREAM_WITH_USAGE } else { STREAM },
        }
    }

    /// Where the model's name stands in every body, with its quotes.
    pub(super) fn model(&self) -> Range<usize> {
        BEFORE_MODEL.len()..self.before_prompt.len().saturating_sub(AFTER_MODEL.len())
    }

    /// The body of the request that asks `prompt`.
    pub(super) fn body(&self, prompt: &Prompt, stream: bool) -> Bytes {
        const USER: &str = "{\"role\":\"user\",\"content\":";
        let length = match prompt {
            Prompt::Text(text) | Prompt::Messages(text) => text.len(),
        };
        let fixed = self.before_prompt.len() + self.after_prompt.len() + self.system.as_ref().map_or(0, String::len);
        let mut body = Vec::with_capacity(fixed + length + length / 8 + USER.len() + STREAM_WITH_USAGE.len() + 8);
        body.extend_from_slice(self.before_prompt.as_bytes());
        if let Some(system) = &self.system {
            body.extend_from_slice(system.as_bytes());
        }
        match prompt {
            Prompt::Text(text) => {
                if self.system.is_some() {
                    body.push(b',');
                }
                body.extend_from_slice(USER.as_bytes());
                push_quoted(&mut body, text);
                body.push(b'}');
            }
            Prompt::Messages(array) => {
                let inside = array.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(array);
                if self.system.is_some() && !inside.is_empty() {
                    body.push(b',');
                }
                body.extend_from_slice(inside.as_bytes());
            }
        }
        let mut after_prompt = self.after_prompt.as_str();
        if stream {
            body.push(b']');
            body.extend_from_slice(self.stream.as_bytes());
            after_prompt = after_prompt.strip_prefix(']').unwrap_or_default();
        }
        body.extend_from_slice(after_prompt.as_bytes());
        Bytes::from(body)
    }
}

/// Writes `text` as a JSON string. Most prompts hold nothing to escape, and finding that out first is several times faster.
pub fn push_quoted(body: &mut Vec<u8>, text: &str) {
    let escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if text.bytes().fold(false, |found, byte| found | escaped(byte)) {
        // Writing to a vector cannot fail.
        let _ = serde_json::to_writer(body, text);
    } else {
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.push(b'"');
    }
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

// ---- answers ----

#[derive(Deserialize)]
struct StrictChat {
    #[serde(default)]
    id: String,
    #[serde(default)]
    created: i64,
    #[serde(default)]
    model: String,
    choices: Vec<StrictChoice>,
    usage: Option<StrictUsage>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct StrictChoice {
    #[serde(default)]
    index: u64,
    finish_reason: Option<String>,
    message: StrictMessage,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct StrictMessage {
    #[serde(default)]
    role: String,
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<StrictToolCall>>,
}

#[derive(Deserialize)]
struct StrictToolCall {
    #[serde(default)]
    id: String,
    #[serde(default, rename = "type")]
    kind: String,
    function: StrictFunction,
}

#[derive(Deserialize)]
struct StrictFunction {
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the wire's names")]
struct StrictUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

/// One look over the whole body for UTF-8 is cheaper than one at each of its strings.
pub(super) fn strictly<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(body).ok()?).ok()
}

/// Reads a chat completion.
///
/// # Errors
/// `InvalidResponse`, retryable, if it is not one: not JSON, an error with status 200, no choice, a choice without a message.
pub fn parse_chat(body: &[u8]) -> Result<ChatCompletion, Error> {
    match strictly::<StrictChat>(body) {
        Some(chat) if chat.is_plain() => Ok(chat.into()),
        _ => parse_chat_leniently(body),
    }
}

/// The least that a text needs; everything else is skipped unread.
#[derive(Deserialize)]
struct StrictText {
    choices: Vec<StrictTextChoice>,
    usage: Option<StrictUsage>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct StrictTextChoice {
    message: StrictTextMessage,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct StrictTextMessage {
    content: String,
}

/// Reads a chat completion's text alone.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_text(body: &[u8]) -> Result<Text, Error> {
    match strictly::<StrictText>(body) {
        Some(StrictText { mut choices, usage, error: None })
            if !choices.is_empty() && choices.iter().all(|choice| choice.error.is_none()) =>
        {
            Ok(Text { content: choices.swap_remove(0).message.content, usage: usage.map(Into::into) })
        }
        _ => parse_chat(body).map(Text::from),
    }
}

impl From<StrictUsage> for Usage {
    fn from(usage: StrictUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens,
        }
    }
}

impl StrictChat {
    /// Whether every choice says something, so that there is nothing to be lenient about.
    fn is_plain(&self) -> bool {
        let says = |message: &StrictMessage| message.content.is_some() || message.tool_calls.is_some();
        let is_plain = |choice: &StrictChoice| choice.error.is_none() && says(&choice.message);
        self.error.is_none() && !self.choices.is_empty() && self.choices.iter().all(is_plain)
    }
}

impl From<StrictChat> for ChatCompletion {
    fn from(chat: StrictChat) -> Self {
        let usage = chat.usage.map(Into::into);
        let choices = chat.choices.into_iter().enumerate().map(|(position, choice)| Choice {
            position,
            index: choice.index,
            finish_reason: choice.finish_reason,
            message: Message {
                role: choice.message.role,
                content: choice.message.content,
                refusal: choice.message.refusal,
                tool_calls: choice
                    .message
                    .tool_calls
                    .map(|calls| calls.into_iter().enumerate().map(tool_call).collect()),
            },
        });
        Self { id: chat.id, created: chat.created, model: chat.model, choices: choices.collect(), usage }
    }
}

fn tool_call((position, call): (usize, StrictToolCall)) -> ToolCall {
    let StrictFunction { name, arguments } = call.function;
    ToolCall { position, id: call.id, kind: call.kind, function: Some(FunctionCall { name, arguments }), custom: None }
}

fn parse_chat_leniently(body: &[u8]) -> Result<ChatCompletion, Error> {
    let chat = parse_object(body)?;
    let all = chat.get("choices").and_then(Value::as_array);
    // OpenRouter's way to say that the provider behind it failed in the middle of the answer.
    if let Some(error) = all.into_iter().flatten().filter_map(|choice| choice.get("error")).find(|error| says_so(error))
    {
        return Err(error_as_success(serde_json::json!({ "error": error }).to_string().as_bytes()));
    }
    let choices: Option<Vec<_>> = all.map(|choices| {
        let read = |(position, choice)| lenient_choice(position, choice);
        choices.iter().enumerate().filter_map(read).collect()
    });
    match choices {
        None => Err(not_an_answer("it has no \"choices\"", body)),
        Some(choices) if choices.is_empty() => Err(not_an_answer("it has no choice with a message", body)),
        Some(choices) => Ok(ChatCompletion {
            id: text(&chat, "id").unwrap_or_default(),
            created: chat.get("created").and_then(Value::as_f64).unwrap_or_default() as i64,
            model: text(&chat, "model").unwrap_or_default(),
            choices,
            usage: chat.get("usage").and_then(lenient_usage),
        }),
    }
}

fn lenient_choice(position: usize, choice: &Value) -> Option<Choice> {
    let message = choice.get("message")?;
    if !ANSWERING_FIELDS.iter().any(|field| message.get(field).is_some()) {
        return None;
    }
    let text_of = |name| message.get(name).filter(|value| !value.is_null());
    let text_is_odd = text_of("content").is_some_and(|value| content(value).is_none());
    if text_is_odd && !ANSWERING_FIELDS.iter().skip(1).any(|field| text_of(field).is_some()) {
        // No text can be made of it, and an empty one would be a lie.
        return None;
    }
    Some(Choice {
        position,
        index: choice.get("index").and_then(Value::as_u64).unwrap_or(position as u64),
        finish_reason: text(choice, "finish_reason"),
        message: Message {
            role: text(message, "role").unwrap_or_else(|| "assistant".to_owned()),
            content: message.get("content").and_then(content),
            refusal: text(message, "refusal"),
            tool_calls: message
                .get("tool_calls")
                .and_then(Value::as_array)
                .map(|calls| calls.iter().enumerate().filter_map(lenient_tool_call).collect()),
        },
    })
}

/// Text, or the text parts of a list of parts joined, or of a single part, as some servers send.
pub(super) fn content(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            Some(parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str())).collect())
        }
        Value::Object(part) => part.get("text")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// A call of a kind that is not known is one, too; a function without a name is none.
fn lenient_tool_call((position, call): (usize, &Value)) -> Option<ToolCall> {
    let named = |kind| call.get(kind).and_then(|called| Some((text(called, "name")?, called)));
    let function = named("function")
        .map(|(name, function)| FunctionCall { name, arguments: text_or_json(function.get("arguments")) });
    let custom = named("custom").map(|(name, custom)| CustomCall { name, input: text_or_json(custom.get("input")) });
    let kind = text(call, "type").unwrap_or_else(|| "function".to_owned());
    if kind == "function" && function.is_none() {
        return None;
    }
    Some(ToolCall { position, id: text(call, "id").unwrap_or_default(), kind, function, custom })
}

/// A text as it is, anything else as JSON, as some servers send arguments.
fn text_or_json(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Tokens of a `usage` object, whatever the types of its numbers.
pub fn lenient_usage(usage: &Value) -> Option<Usage> {
    usage_named(usage, "prompt_tokens", "completion_tokens")
}

/// The same by other names of the tokens of prompt and answer.
pub(super) fn usage_named(usage: &Value, prompt: &str, completion: &str) -> Option<Usage> {
    let count = |name| usage.get(name).and_then(Value::as_f64).map(|count| count.max(0.0) as u64);
    let (prompt, completion) = (count(prompt), count(completion));
    if prompt.is_none() && completion.is_none() {
        return None;
    }
    let (prompt_tokens, completion_tokens) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    let total_tokens = count("total_tokens").unwrap_or(prompt_tokens.saturating_add(completion_tokens));
    Some(Usage { prompt_tokens, completion_tokens, total_tokens })
}

/// Reads a list of models.
///
/// # Errors
/// `InvalidResponse` if it is not one.
pub fn parse_models(body: &[u8]) -> Result<Vec<Model>, Error> {
    let list = parse_object(body)?;
    let data = list.get("data").and_then(Value::as_array).ok_or_else(|| not_an_answer("it has no \"data\"", body))?;
    Ok(data
        .iter()
        .filter_map(|model| {
            Some(Model {
                id: text(model, "id")?,
                created: model.get("created").and_then(Value::as_f64).unwrap_or_default() as i64,
                owned_by: text(model, "owned_by").unwrap_or_default(),
                fields: model.as_object().cloned().unwrap_or_default(),
            })
        })
        .collect())
}

/// A JSON object that is not an error in the guise of a 200.
pub(super) fn parse_object(body: &[u8]) -> Result<Value, Error> {
    let value = lenient::parse(body).map_err(|error| not_an_answer("it is not JSON", body).with_source(error))?;
    if !value.is_object() {
        return Err(not_an_answer("it is not a JSON object", body));
    }
    match value.get("error") {
        Some(error) if says_so(error) => Err(error_as_success(body)),
        _ => Ok(value),
    }
}

/// Whether an `error` field says that there was one: some servers always send the field, with nothing in it.
fn says_so(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn error_as_success(body: &[u8]) -> Error {
    let http = error_context(body);
    let said = http.message.clone().unwrap_or_default();
    let meaning = meaning(200, &HeaderMap::new(), &http);
    let error = not_an_answer("it is an error in the guise of a success", body)
        .context(&printable(&said))
        .with_http(http)
        .with_pressure(meaning.pressure);
    if meaning.out_of_quota { error.out_of_quota().verdict_is(Verdict::Final) } else { error }
}

/// The JSON object of a chunk that is not an error.
pub(super) fn parse_chunk(body: &[u8]) -> Result<Value, Error> {
    let value = lenient::parse(body).map_err(|error| not_an_answer("a chunk is not JSON", body).with_source(error))?;
    // Some servers send an error without an envelope.
    let is_error = |name: &str| value.get(name).is_some_and(|said| said == "error");
    // An empty error is one where it is all that was sent.
    let says_so = |error: &Value| says_so(error) || !(error.is_null() || value.get("choices").is_some());
    match value.get("error") {
        _ if !value.is_object() => Err(not_an_answer("a chunk is not a JSON object", body)),
        error if !error.is_some_and(says_so) && !is_error("object") && !is_error("type") => Ok(value),
        _ => Err(parse_stream_error(body)),
    }
}

pub(super) fn not_an_answer(why: &str, body: &[u8]) -> Error {
    let start = String::from_utf8_lossy(body.get(..body.len().min(120)).unwrap_or_default()).into_owned();
    Error::new(
        Kind::InvalidResponse,
        format!("the server's 2xx is not an answer: {why}; it begins {:?}", printable(&start)),
    )
    .with_http(HttpContext { body: Some(kept_body(body)), ..HttpContext::default() })
    .advise("Check that base_url is an OpenAI-compatible API (it usually ends in /v1).")
}

pub(super) fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name)?.as_str().map(str::to_owned)
}

// ---- streams ----

/// One event of a stream, which is a chunk already.
pub(super) fn event(name: Option<&str>, data: &Bytes) -> Step {
    if data.starts_with(b"[DONE]") {
        Step::End
    } else if data.is_empty() {
        Step::Nothing
    } else if name == Some("error") && !data.starts_with(b"{\"error\"") {
        Step::Chunk(as_error(data))
    } else {
        Step::Chunk(data.clone())
    }
}

/// An error event whose data is the error itself.
fn as_error(data: &Bytes) -> Bytes {
    match lenient::parse(data) {
        Ok(value) if value.get("error").is_some() => data.clone(),
        Ok(value) if value.is_object() => Bytes::from(serde_json::json!({"error": value}).to_string()),
        _ => {
            let said = String::from_utf8_lossy(data);
            Bytes::from(serde_json::json!({"error": {"message": said}}).to_string())
        }
    }
}

// ---- errors ----

/// Reads an answer whose status is not 2xx. `host` is named in the text, never the whole URL.
pub fn parse_error(status: StatusCode, headers: &HeaderMap, body: &[u8], host: &str, now: SystemTime) -> Error {
    refusal(status, headers, error_context(body), &format!("from {host}"), now)
}

/// Reads an error that comes in a stream, where the status was 200 long before: `{"error": {…}}`, and the data of Anthropic's
/// `event: error`. It is of the kind that its type or code has elsewhere: an overload is a 529, a rate limit a 429. One that
/// says nothing known is an `InvalidResponse`.
pub fn parse_stream_error(body: &[u8]) -> Error {
    let http = error_context(body);
    match status_in_a_stream(&http) {
        Some(status) => refusal(status, &HeaderMap::new(), http, "in the stream", SystemTime::UNIX_EPOCH),
        None => error_as_success(body),
    }
}

fn refusal(status: StatusCode, headers: &HeaderMap, http: HttpContext, place: &str, now: SystemTime) -> Error {
    let meaning = meaning(status.as_u16(), headers, &http);
    let quota = meaning.out_of_quota;
    let retry_after = retry_after::parse(headers, now);
    let said = match (&http.message, status.is_redirection()) {
        (_, true) => redirect_text(headers),
        (Some(message), _) => printable(message),
        (None, _) => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    };
    let should_retry = should_retry(headers);
    let retryable = !quota && !status.is_redirection() && should_retry.unwrap_or_else(|| is_usually_retried(status));
    let error = Error::new(Kind::Status(status.as_u16()), format!("{} {place}: {said}", status.as_u16()))
        .verdict_is(if retryable { Verdict::Retryable } else { Verdict::Final })
        .with_retry_after(retry_after)
        .with_should_retry(should_retry)
        .with_pressure(meaning.pressure)
        .with_http(http)
        .with_request_id(request_id(headers));
    let error = match advice(status, quota) {
        Some(advice) => error.advise(advice),
        None => error,
    };
    if quota { error.out_of_quota() } else { error }
}

/// `x-should-retry`: the server's own word, which wins over the status.
fn should_retry(headers: &HeaderMap) -> Option<bool> {
    match headers.get("x-should-retry").map(http::HeaderValue::as_bytes) {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        _ => None,
    }
}

/// openai-python's rule, 408, 409, 429 and 5xx; and 425, where nothing was done yet.
fn is_usually_retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 425 | 429 | 500..)
}

fn redirect_text(headers: &HeaderMap) -> String {
    let target = headers.get("location").and_then(|location| location.to_str().ok());
    match target.map(Url::parse) {
        Some(Ok(url)) => {
            format!(
                "redirect to {} refused, since it would carry the key there",
                printable_name(url.host_str().unwrap_or("another host"))
            )
        }
        Some(Err(_)) => "redirect within the host refused".to_owned(),
        None => "redirect without a target".to_owned(),
    }
}

fn advice(status: StatusCode, quota: bool) -> Option<&'static str> {
    Some(match status.as_u16() {
        _ if quota => {
            "The quota or budget of this key is used up, or does not hold this model: waiting does not help, see the \
             provider's billing page."
        }
        300..=399 => "Set base_url to the address that answers itself.",
        401 => "Check api_key.",
        403 => "Check what this key may do.",
        404 => "Check base_url (it usually ends in /v1) and the model's name.",
        413 => "Make the request smaller.",
        429 => "Give the account's limits to rate_limiter=, lower max_concurrency, or raise max_retries.",
        500.. => "The server is in trouble: try later, or raise max_retries.",
        _ => return None,
    })
}

/// `{"error": {…}}`, `{"error": "…"}`, `{"errors": [{…}]}`, `{"message": …}` and `{"detail": …}`; Gemini puts it in a list.
fn error_context(body: &[u8]) -> HttpContext {
    let mut http = HttpContext { body: Some(kept_body(body)), ..HttpContext::default() };
    let Ok(whole) = lenient::parse(body) else { return http };
    let value = whole.get(0).unwrap_or(&whole);
    let first = value.get("errors").and_then(|errors| errors.get(0));
    let inner = value.get("error").or(first).filter(|error| error.is_object()).unwrap_or(value);
    // llama.cpp and others send a number where OpenAI has a word.
    let word = |name| match inner.get(name) {
        Some(Value::String(word)) => Some(word.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    http.message = word("message").or_else(|| text(value, "error")).or_else(|| match value.get("detail")? {
        Value::String(detail) => Some(detail.clone()),
        detail => Some(detail.to_string()),
    });
    // Anthropic's and TEI's names for what others have beside the message.
    http.code = word("code").or_else(|| text(inner.get("details")?, "error_code"));
    http.error_type = word("type").or_else(|| word("error_type"));
    http.param = word("param");
    // Where the headers have none, as behind a proxy.
    http.request_id = text(value, "request_id").map(|id| printable_name(&id));
    http
}

fn kept_body(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..body.len().min(ERROR_BODY_LIMIT)).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &Value) -> ChatCompletion {
        parse_chat(body.to_string().as_bytes()).unwrap()
    }

    fn refused(body: &str) -> Error {
        let error = parse_chat(body.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidResponse, "{body}");
        error
    }

    fn error(status: u16, headers: &[(&'static str, &'static str)], body: &Value) -> Error {
        let headers = headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        parse_error(status, &headers, body.to_string().as_bytes(), "api.test", SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_body_holds_the_prompt_and_nothing_the_user_did_not_set() {
        let template = Template::new("m", None, "", true);
        let body = template.body(&Prompt::Text("say \"hé\"\n".into()), false);
        assert_eq!(body, r#"{"model":"m","messages":[{"role":"user","content":"say \"hé\"\n"}]}"#);
    }

    #[test]
    fn a_system_message_comes_first_and_fields_last() {
        let template = Template::new("m", Some("be brief"), r#""top_k":5"#, true);
        let messages = Prompt::Messages(r#"[{"role":"user","content":"a"}]"#.into());
        let expected = r#"{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"a"}],"top_k":5}"#;
        assert_eq!(template.body(&messages, false), expected);
        assert_eq!(template.body(&Prompt::Text("a".into()), false), expected);
    }

    #[test]
    fn a_stream_is_asked_for_with_its_usage_unless_the_fields_say_otherwise() {
        let ask = |fields, asks_usage| {
            let template = Template::new("m", None, fields, asks_usage);
            serde_json::from_slice::<Value>(&template.body(&Prompt::Text("a".into()), true)).unwrap()
        };
        let plain = ask("", true);
        assert_eq!((&plain["stream"], &plain["stream_options"]["include_usage"]), (&true.into(), &true.into()));
        assert_eq!(ask(r#""top_k":5"#, true)["top_k"], 5);
        assert_eq!(ask(r#""stream_options":{"x":1}"#, true)["stream_options"], serde_json::json!({"x": 1}));
        assert_eq!(ask("", false).get("stream_options"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_prompt_comes_out_of_the_body_as_it_went_in(text in "(?s).{0,200}") {
            let body = Template::new("m", None, "", true).body(&Prompt::Text(text.clone()), false);
            let body: Value = serde_json::from_slice(&body).unwrap();
            proptest::prop_assert_eq!(&body["messages"][0]["content"], &text);
        }
    }

    #[test]
    fn odd_types_in_fields_nobody_asked_for_do_not_lose_an_answer() {
        let answer = chat(&serde_json::json!({
            "id": 7, "created": 1.5, "model": null, "usage": {"prompt_tokens": "three", "completion_tokens": 2.0},
            "choices": [{"index": "0", "finish_reason": 1, "message": {"role": null, "content": "yes", "tool_calls": "none"}}],
        }));
        assert_eq!(answer.usage, Some(Usage { prompt_tokens: 0, completion_tokens: 2, total_tokens: 2 }));
        assert_eq!(Text::from(answer).content, "yes");
    }

    #[test]
    fn a_lone_surrogate_does_not_lose_an_answer() {
        let body = br#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hi \ud83d"},"finish_reason":"length"}]}"#;
        assert_eq!(parse_text(body).unwrap().content, "hi \u{fffd}");
    }

    #[test]
    fn content_in_parts_is_joined_and_tool_arguments_may_be_an_object() {
        let answer = chat(&serde_json::json!({"choices": [{"message": {
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}],
        }}]}));
        let call = answer.choices[0].message.tool_calls.as_ref().unwrap()[0].function.as_ref().unwrap();
        assert_eq!((call.name.as_str(), call.arguments.as_str()), ("f", r#"{"x":1}"#));
        assert_eq!(Text::from(answer).content, "ab");
    }

    #[test]
    fn a_bad_200_is_not_an_answer() {
        for body in [
            "",
            "null",
            "{}",
            "[]",
            "<html>busy</html>",
            "{\"choices\":[]}",
            "{\"choices\":[{}]}",
            "{\"choices\":[{\"message\":{}}]}",
            "{\"choices\":[{\"message\":{\"content\":\"cut",
            "{\"choices\":[{\"message\":{\"content\":\"x\"}}],\"error\":{\"message\":\"boom\"}}",
        ] {
            assert_eq!(refused(body).verdict(), Verdict::Retryable);
        }
    }

    #[test]
    fn a_refusal_or_a_null_content_is_an_answer() {
        assert_eq!(Text::from(chat(&serde_json::json!({"choices": [{"message": {"refusal": "no"}}]}))).content, "");
        assert_eq!(Text::from(chat(&serde_json::json!({"choices": [{"message": {"content": null}}]}))).content, "");
    }

    #[test]
    fn retries_what_the_official_client_retries() {
        let retried: Vec<u16> = [301, 400, 401, 403, 404, 408, 409, 413, 422, 425, 429, 500, 503, 529]
            .into_iter()
            .filter(|status| error(*status, &[], &Value::Null).verdict() == Verdict::Retryable)
            .collect();
        assert_eq!(retried, [408, 409, 425, 429, 500, 503, 529]);
    }

    #[test]
    fn the_servers_own_word_on_retrying_wins_but_not_over_a_spent_quota() {
        let told = error(503, &[("x-should-retry", "false")], &Value::Null);
        assert_eq!((told.verdict(), told.should_retry()), (Verdict::Final, Some(false)));
        assert_eq!(error(400, &[("x-should-retry", "true")], &Value::Null).verdict(), Verdict::Retryable);
        let spent = serde_json::json!({"error": {"message": "m", "code": "insufficient_quota"}});
        let spent = error(429, &[("x-should-retry", "true")], &spent);
        assert!(spent.verdict() == Verdict::Final && spent.is_out_of_quota());
        let together = serde_json::json!({"error": {"message": "m", "type": "credit_limit"}});
        assert_eq!(error(429, &[], &together).verdict(), Verdict::Retryable);
    }

    #[test]
    fn reads_every_known_error_body() {
        let numbered = error(
            503,
            &[("x-request-id", "req_9")],
            &serde_json::json!({"error": {"message": "Loading model", "code": 503}}),
        );
        let http = numbered.http().unwrap();
        assert_eq!((http.message.as_deref(), http.code.as_deref()), (Some("Loading model"), Some("503")));
        assert_eq!(http.request_id.as_deref(), Some("req_9"));
        for (body, said) in [
            (serde_json::json!({"error": "plain"}), "plain"),
            (serde_json::json!({"message": "flat"}), "flat"),
            (serde_json::json!({"detail": [{"msg": "x"}]}), r#"[{"msg":"x"}]"#),
        ] {
            assert_eq!(error(400, &[], &body).http().unwrap().message.as_deref(), Some(said));
        }
    }

    #[test]
    fn a_redirect_names_the_host_but_not_the_path() {
        let text = error(307, &[("location", "https://evil.test/v1?key=1")], &Value::Null).to_string();
        assert!(text.contains("evil.test") && !text.contains("key=1"), "{text}");
    }
}
