//! Lines of the output: `OpenAI`'s Batch output lines, which is also how a run remembers what is done.
//!
//! `id` names the item, by its `custom_id` and its request, so a later run can tell whether a line answers what its input asks.
//! The extra key `millstream` is for people; readers of the format ignore it, and [`Layout::bare`] leaves it out.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::hash::RequestHash;
use crate::engine::error::{Error, Kind};
use crate::engine::provider::lenient;
use crate::engine::provider::openai::{push_quoted, quoted};
use crate::engine::types::{Receipt, request_id};

/// What every `id` begins with.
const ID_PREFIX: &str = "batch_req_";
/// What every line begins with.
const LINE_PREFIX: &[u8] = b"{\"id\":\"batch_req_";

/// The `error.code` of a line that is no request.
pub(super) const INVALID_LINE: &str = "invalid_request_line";

/// The item that a line of the output is about.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its line of the input, from 1.
    pub(super) line: u64,
    /// What it is called.
    pub(super) custom_id: String,
    /// Which request it is.
    pub(super) hash: RequestHash,
    /// What is echoed, as a JSON object.
    pub(super) metadata: Option<String>,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layout {
    /// Without the key `millstream`.
    pub bare: bool,
}

/// What is said under `millstream`.
struct Spent<'a> {
    attempts: u32,
    queue_ms: u128,
    latency_ms: u128,
    key_id: Option<Cow<'a, str>>,
    cached: bool,
}

impl Layout {
    /// Writes the line of an answer.
    pub(super) fn answer(self, out: &mut Vec<u8>, item: &Item, receipt: &Receipt) {
        open(out, item);
        out.extend_from_slice(b"{\"status_code\":");
        out.extend_from_slice(receipt.status.as_str().as_bytes());
        push_request_id(out, request_id(&receipt.headers));
        out.extend_from_slice(b",\"body\":");
        out.extend_from_slice(&one_line(&receipt.body));
        out.extend_from_slice(b"},\"error\":null");
        let spent = Spent {
            attempts: receipt.attempts,
            queue_ms: receipt.queue_time.as_millis(),
            latency_ms: receipt.elapsed.as_millis(),
            key_id: receipt.key_id.map(|id| Cow::Owned(id.to_string())),
            cached: receipt.cached,
        };
        self.close(out, item, Some(&spent));
    }

    /// Writes the line of an item that failed.
    pub(super) fn failure(self, out: &mut Vec<u8>, item: &Item, error: &Error) {
        open(out, item);
        if let Some(status) = error.status() {
            let http = error.http();
            out.extend_from_slice(b"{\"status_code\":");
            out.extend_from_slice(status.to_string().as_bytes());
            push_request_id(out, http.and_then(|http| http.request_id.as_deref()));
            out.extend_from_slice(b",\"body\":");
            match http.and_then(|http| http.body.as_deref()).filter(|body| body.trim_start().starts_with('{')) {
                Some(body) if serde_json::from_str::<IgnoredAny>(body).is_ok() => {
                    out.extend_from_slice(&one_line(body.as_bytes()));
                }
                _ => {
                    out.extend_from_slice(b"{\"error\":{\"message\":");
                    push_quoted(out, &error.to_string());
                    out.extend_from_slice(b"}}");
                }
            }
            out.extend_from_slice(b"},\"error\":null");
        } else {
            out.extend_from_slice(b"null");
            push_error(out, code(error), &error.to_string());
        }
        let spent = Spent {
            attempts: error.attempts(),
            queue_ms: 0,
            latency_ms: error.elapsed().as_millis(),
            key_id: error.key_id().map(Cow::Borrowed),
            cached: false,
        };
        self.close(out, item, Some(&spent));
    }

    /// Writes the line of a line that is no request.
    pub(super) fn bad_line(self, out: &mut Vec<u8>, item: &Item, reason: &str) {
        open(out, item);
        out.extend_from_slice(b"null");
        push_error(out, INVALID_LINE, &format!("line {}: {reason}", item.line));
        self.close(out, item, None);
    }

    fn close(self, out: &mut Vec<u8>, item: &Item, spent: Option<&Spent<'_>>) {
        if let Some(metadata) = &item.metadata {
            out.extend_from_slice(b",\"metadata\":");
            out.extend_from_slice(&one_line(metadata.as_bytes()));
        }
        if !self.bare {
            out.extend_from_slice(b",\"millstream\":{\"line\":");
            out.extend_from_slice(item.line.to_string().as_bytes());
            if let Some(Spent { attempts, queue_ms, latency_ms, key_id, cached }) = spent {
                let key_id = key_id.as_deref().map_or_else(|| "null".to_owned(), quoted);
                let text = format!(
                    ",\"attempts\":{attempts},\"queue_ms\":{queue_ms},\"latency_ms\":{latency_ms},\"cached\":{cached},\
                     \"key_id\":{key_id}"
                );
                out.extend_from_slice(text.as_bytes());
            }
            out.extend_from_slice(format!(",\"request_hash\":\"{}\"}}", item.hash).as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }
}

fn open(out: &mut Vec<u8>, item: &Item) {
    out.extend_from_slice(LINE_PREFIX);
    out.extend_from_slice(item.hash.identity(&item.custom_id).to_string().as_bytes());
    out.extend_from_slice(b"\",\"custom_id\":");
    push_quoted(out, &item.custom_id);
    out.extend_from_slice(b",\"response\":");
}

fn push_request_id(out: &mut Vec<u8>, id: Option<&str>) {
    out.extend_from_slice(b",\"request_id\":");
    match id {
        Some(id) => push_quoted(out, id),
        None => out.extend_from_slice(b"null"),
    }
}

fn push_error(out: &mut Vec<u8>, code: &str, message: &str) {
    out.extend_from_slice(b",\"error\":{\"code\":");
    push_quoted(out, code);
    out.extend_from_slice(b",\"message\":");
    push_quoted(out, message);
    out.push(b'}');
}

/// `error.code` of a failure that is no status of a server.
fn code(error: &Error) -> &'static str {
    match error.kind() {
        Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout | Kind::QueueTimeout | Kind::Deadline => {
            "timeout"
        }
        Kind::Connection => "connection_error",
        Kind::StreamInterrupted => "stream_interrupted",
        Kind::InvalidResponse => "invalid_response",
        Kind::InputTooLarge => "input_too_large",
        Kind::Configuration => INVALID_LINE,
        Kind::Closed | Kind::Stopped => "cancelled",
        Kind::Status(_) | Kind::Journal | Kind::Internal => "internal_error",
    }
}

/// JSON without line breaks; what is no JSON becomes a string.
fn one_line(json: &[u8]) -> Cow<'_, [u8]> {
    let has_break = memchr::memchr2(b'\n', b'\r', json).is_some();
    if serde_json::from_slice::<&RawValue>(json).is_ok() {
        if !has_break {
            return Cow::Borrowed(json);
        }
        // Outside of its strings JSON has no meaning in a line break, and inside of them it has none unescaped.
        return Cow::Owned(json.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect());
    }
    Cow::Owned(match lenient::parse(json) {
        Ok(value) => value.to_string().into_bytes(),
        Err(_) => quoted(&String::from_utf8_lossy(json)).into_bytes(),
    })
}

// ---- reading them ----

/// What a line of an output says of its item.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done<'a> {
    /// What it is called.
    pub(super) custom_id: Cow<'a, str>,
    /// Which item it is, if the line is one of ours.
    pub(super) identity: Option<RequestHash>,
    /// Whether it was answered.
    pub(super) is_ok: bool,
    /// Whether it was no request at all.
    pub(super) is_bad_line: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    response: Option<Response>,
    #[serde(borrow)]
    error: Option<Failure<'a>>,
}

#[derive(Deserialize)]
struct Response {
    status_code: u16,
}

#[derive(Deserialize)]
struct Failure<'a> {
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
}

impl<'a> Done<'a> {
    /// Reads a line without its newline; `None` if it is no line of an output.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let Line { id, custom_id, response, error } = serde_json::from_str(std::str::from_utf8(line).ok()?).ok()?;
        if response.is_none() && error.is_none() {
            return None;
        }
        let identity = id.and_then(|id| RequestHash::parse(id.strip_prefix(ID_PREFIX)?));
        let is_ok = error.is_none() && response.is_some_and(|response| (200..300).contains(&response.status_code));
        let is_bad_line = error.and_then(|error| error.code).is_some_and(|code| code == INVALID_LINE);
        Some(Self { custom_id, identity, is_ok, is_bad_line })
    }
}

/// Whether `text` may be the beginning of a line of ours.
pub(super) fn may_begin(text: &[u8]) -> bool {
    let length = text.len().min(LINE_PREFIX.len());
    text.get(..length) == LINE_PREFIX.get(..length)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, StatusCode};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::error::HttpContext;

    fn item(custom_id: &str) -> Item {
        let hash = RequestHash::of("chat/completions", "{}", "");
        Item { line: 7, custom_id: custom_id.to_owned(), hash, metadata: Some("{\"row\":\n1}".to_owned()) }
    }

    fn receipt(body: &[u8]) -> Receipt {
        Receipt {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(
                http::HeaderName::from_static("x-request-id"),
                HeaderValue::from_static("r1"),
            )]),
            body: body.to_vec().into(),
            raw: None,
            attempts: 2,
            key_id: None,
            queue_time: Duration::from_millis(3),
            elapsed: Duration::from_millis(40),
            cached: false,
        }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        write(&mut out);
        assert_eq!(memchr::memchr(b'\n', &out), Some(out.len() - 1));
        assert!(out.starts_with(LINE_PREFIX) && may_begin(&out) && may_begin(&out[..3]));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn an_answers_line_is_openais_with_what_it_took() {
        let line = written(|out| Layout::default().answer(out, &item("a"), &receipt(b"{\n \"x\": 1\r\n}")));
        assert_eq!(line["custom_id"], "a");
        assert_eq!(line["response"], json!({"status_code": 200, "request_id": "r1", "body": {"x": 1}}));
        assert_eq!((&line["error"], &line["metadata"]), (&Value::Null, &json!({"row": 1})));
        let known = &line["millstream"];
        assert_eq!((&known["line"], &known["attempts"], &known["cached"]), (&json!(7), &json!(2), &json!(false)));
        assert_eq!((&known["queue_ms"], &known["latency_ms"]), (&json!(3), &json!(40)));
        let bare = written(|out| Layout { bare: true }.answer(out, &item("a"), &receipt(b"{}")));
        assert_eq!(bare.get("millstream"), None);
        assert_eq!(bare["id"], line["id"]);
    }

    #[test]
    fn a_failure_is_the_servers_words_or_a_code() {
        let failed = |error: Error| written(|out| Layout::default().failure(out, &item("a"), &error));
        let http =
            HttpContext { body: Some("{\"error\":\n{\"message\":\"no\"}}".to_owned()), ..HttpContext::default() };
        let line = failed(Error::new(Kind::Status(400), "400").with_http(http).spent(1, Duration::from_secs(1)));
        assert_eq!(line["response"]["body"], json!({"error": {"message": "no"}}));
        assert_eq!((&line["response"]["status_code"], &line["error"]), (&json!(400), &Value::Null));
        assert_eq!(line["millstream"]["latency_ms"], 1000);
        let page = HttpContext { body: Some("<html>".to_owned()), ..HttpContext::default() };
        let line = failed(Error::new(Kind::Status(502), "502 from x").with_http(page));
        assert_eq!(line["response"]["body"]["error"]["message"], "502 from x");
        for (kind, code) in [
            (Kind::Deadline, "timeout"),
            (Kind::Connection, "connection_error"),
            (Kind::StreamInterrupted, "stream_interrupted"),
        ] {
            let line = failed(Error::new(kind, "it failed"));
            assert_eq!((&line["response"], &line["error"]["code"]), (&Value::Null, &json!(code)));
            assert_eq!(line["error"]["message"], "it failed");
        }
        let line = written(|out| Layout::default().bad_line(out, &item("a"), "it is empty"));
        assert_eq!(line["error"], json!({"code": "invalid_request_line", "message": "line 7: it is empty"}));
    }

    #[test]
    fn a_body_that_is_odd_stays_one_line_of_json() {
        for (body, read) in [
            (&b"{\"x\":\"\\ud83d\"}"[..], None),
            (b"{\"x\":\"\xff\"}", Some(json!({"x": "\u{fffd}"}))),
            (b"not\njson", Some(json!("not\njson"))),
        ] {
            let line = one_line(body);
            assert!(memchr::memchr(b'\n', &line).is_none());
            if let Some(read) = read {
                assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), read);
            }
        }
    }

    #[test]
    fn what_is_no_line_of_an_output_is_not_taken_for_one() {
        for line in ["", "{}", "[]", "{\"custom_id\":\"a\"}", "{\"custom_id\":\"a\",\"response\":null,\"error\":null}"]
        {
            assert_eq!(Done::read(line.as_bytes()), None, "{line}");
        }
        let others = br#"{"id":"batch_req_abc","custom_id":"a","response":{"status_code":200,"body":{}},"error":null}"#;
        let done = Done::read(others).unwrap();
        assert_eq!((done.identity, done.is_ok), (None, true));
    }

    proptest! {
        #[test]
        fn every_line_is_read_as_it_was_written(id in any::<String>(), body in any::<String>(), says in any::<String>()) {
            let item = item(&id);
            let body = json!({"text": body}).to_string();
            let (mut answer, mut failure) = (Vec::new(), Vec::new());
            Layout::default().answer(&mut answer, &item, &receipt(body.as_bytes()));
            Layout::default().failure(&mut failure, &item, &Error::new(Kind::Connection, says));
            let identity = Some(item.hash.identity(&id));
            for (line, is_ok) in [(answer, true), (failure, false)] {
                let line = line.strip_suffix(b"\n").unwrap();
                let done = Done::read(line).unwrap();
                let read = (done.identity, &*done.custom_id, done.is_ok, done.is_bad_line);
                prop_assert_eq!(read, (identity, &*id, is_ok, false));
                for cut in 0..line.len() {
                    prop_assert_eq!(Done::read(&line[..cut]), None);
                    prop_assert!(may_begin(&line[..cut]));
                }
            }
        }
    }
}
