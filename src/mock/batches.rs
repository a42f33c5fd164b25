//! Batches of requests, as `OpenAI`, Anthropic and Mistral take them: files, jobs and their results.
//!
//! Every request of a batch is answered when the batch is made, in the way of a request of its own (scripted answers, then the
//! default reply), and its answer is kept back for the batch's delay and its own latency. One that hangs is never answered, so
//! it expires. Nothing runs meanwhile: what a batch is at a moment follows from its times. Results come in another order than
//! the requests, and headers that would tell a repeated submission from a new one are ignored, as far as is known of the vendors.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::api::{Refusal, json};
use super::chat::now as unix_now;
use super::dialect::moment;

/// A day, within which the vendors promise an end.
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// Entries of a page, unless asked for more or fewer.
const PAGE: usize = 20;
/// What the vendors take in one batch.
const MOST_OF_OPENAI: usize = 50_000;
const MOST_OF_ANTHROPIC: usize = 100_000;

/// Whose batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vendor {
    OpenAi,
    Anthropic,
    Mistral,
}

/// How long batches take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// From a batch's creation to its first answer.
    pub(super) delay: Duration,
    /// From its creation to the end of its window.
    pub(super) expire_after: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { delay: Duration::ZERO, expire_after: WINDOW }
    }
}

/// The answer to one request of a batch.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    pub(super) request_id: String,
    /// After the batch's delay; never, if none.
    pub(super) after: Option<Duration>,
}

/// One request of a batch, before it is answered.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) custom_id: String,
    /// Of the API that answers it.
    pub(super) url: String,
    pub(super) body: Bytes,
}

#[derive(Debug)]
struct Item {
    custom_id: String,
    answered: Answered,
}

/// What became of an item.
enum Fate<'a> {
    Answered(&'a Answered),
    Cancelled,
    Expired,
    Pending,
}

#[derive(Debug)]
struct Batch {
    id: String,
    vendor: Vendor,
    /// As the request for it had them: endpoint, input, model, metadata.
    fields: Map<String, Value>,
    items: Vec<Item>,
    plan: Plan,
    made: Instant,
    made_at: SystemTime,
    cancelled: Option<Instant>,
    /// Why it could not begin, for each line.
    errors: Vec<Value>,
}

impl Batch {
    fn due(&self, item: &Item) -> Option<Instant> {
        Some(self.made + self.plan.delay + item.answered.after?)
    }

    /// When nothing of it is left to do.
    fn end(&self) -> Instant {
        let last = self.made + self.plan.expire_after;
        let due = self.items.iter().map(|item| self.due(item).unwrap_or(last)).max().unwrap_or(self.made);
        due.min(last).min(self.cancelled.unwrap_or(last))
    }

    fn fate<'a>(&self, item: &'a Item, now: Instant) -> Fate<'a> {
        let (last, due) = (self.made + self.plan.expire_after, self.due(item));
        let until = now.min(last).min(self.cancelled.unwrap_or(now));
        match due {
            Some(due) if due <= until => Fate::Answered(&item.answered),
            _ if self.cancelled.is_some_and(|cancelled| cancelled < last) => Fate::Cancelled,
            _ if now >= last => Fate::Expired,
            _ => Fate::Pending,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        !self.errors.is_empty() || now >= self.end()
    }

    /// Answered well, answered otherwise, cancelled, expired, pending.
    fn counts(&self, now: Instant) -> [usize; 5] {
        let mut counts = [0; 5];
        let [good, bad, cancelled, expired, pending] = &mut counts;
        for item in &self.items {
            *match self.fate(item, now) {
                Fate::Answered(answered) if answered.status.is_success() => &mut *good,
                Fate::Answered(_) => &mut *bad,
                Fate::Cancelled => &mut *cancelled,
                Fate::Expired => &mut *expired,
                Fate::Pending => &mut *pending,
            } += 1;
        }
        counts
    }

    /// In the vendor's words.
    fn show(&self, now: Instant) -> Value {
        match self.vendor {
            Vendor::OpenAi => self.show_openai(now),
            Vendor::Anthropic => self.show_anthropic(now),
            Vendor::Mistral => self.show_mistral(now),
        }
    }

    fn show_openai(&self, now: Instant) -> Value {
        let [good, bad, cancelled, expired, _] = self.counts(now);
        let over = self.is_over(now);
        let status = match () {
            () if !self.errors.is_empty() => "failed",
            () if !over => "in_progress",
            () if self.cancelled.is_some() => "cancelled",
            () if expired > 0 => "expired",
            () => "completed",
        };
        let file = |name: &str, lines: usize| (over && lines > 0).then(|| format!("{}-{name}", self.id));
        let errors = (!self.errors.is_empty()).then(|| json!({"object": "list", "data": self.errors}));
        json!({
            "id": self.id, "object": "batch", "endpoint": self.fields.get("endpoint"), "errors": errors,
            "input_file_id": self.fields.get("input_file_id"), "completion_window": "24h", "status": status,
            "output_file_id": file("output", good), "error_file_id": file("errors", bad + cancelled + expired),
            "created_at": seconds(self.made_at), "expires_at": seconds(self.made_at + self.plan.expire_after),
            "request_counts": {"total": self.items.len(), "completed": good, "failed": bad},
            "metadata": self.fields.get("metadata"),
        })
    }

    fn show_mistral(&self, now: Instant) -> Value {
        let [good, bad, cancelled, expired, _] = self.counts(now);
        let over = self.is_over(now);
        let status = match () {
            () if !self.errors.is_empty() => "FAILED",
            () if !over => "RUNNING",
            () if self.cancelled.is_some() => "CANCELLED",
            () if expired > 0 => "TIMEOUT_EXCEEDED",
            () => "SUCCESS",
        };
        let file = |name: &str, lines: usize| (over && lines > 0).then(|| format!("{}-{name}", self.id));
        json!({
            "id": self.id, "object": "batch", "endpoint": self.fields.get("endpoint"), "errors": self.errors,
            "input_files": self.fields.get("input_files"), "model": self.fields.get("model"), "status": status,
            "output_file": file("output", good), "error_file": file("errors", bad + cancelled + expired),
            "created_at": seconds(self.made_at), "metadata": self.fields.get("metadata"),
            "total_requests": self.items.len(), "completed_requests": good + bad, "succeeded_requests": good,
            "failed_requests": bad,
        })
    }

    fn show_anthropic(&self, now: Instant) -> Value {
        let [good, bad, cancelled, expired, pending] = self.counts(now);
        let over = self.is_over(now);
        let results = format!("https://api.anthropic.com/v1/messages/batches/{}/results", self.id);
        json!({
            "id": self.id, "type": "message_batch",
            "processing_status": if over { "ended" } else { "in_progress" },
            "request_counts": {
                "processing": pending, "succeeded": good, "errored": bad, "canceled": cancelled, "expired": expired,
            },
            "created_at": moment(self.made_at), "expires_at": moment(self.made_at + self.plan.expire_after),
            "ended_at": over.then(|| moment(self.made_at)), "archived_at": null,
            "cancel_initiated_at": self.cancelled.map(|_| moment(self.made_at)),
            "results_url": over.then_some(results),
        })
    }

    /// Lines of the results, those that went well or the others; Anthropic's are in one.
    fn lines(&self, now: Instant, wanted: Option<bool>) -> Bytes {
        let mut lines = Vec::new();
        for (place, item) in self.items.iter().enumerate().rev() {
            let fate = self.fate(item, now);
            let went_well = matches!(&fate, Fate::Answered(answered) if answered.status.is_success());
            if wanted.is_some_and(|wanted| wanted != went_well) {
                continue;
            }
            let line = match self.vendor {
                Vendor::Anthropic => json!({"custom_id": item.custom_id, "result": anthropic_result(&fate)}),
                Vendor::OpenAi | Vendor::Mistral => self.openai_line(place, item, &fate),
            };
            lines.extend_from_slice(line.to_string().as_bytes());
            lines.push(b'\n');
        }
        lines.into()
    }

    fn openai_line(&self, place: usize, item: &Item, fate: &Fate<'_>) -> Value {
        let (response, error) = match fate {
            Fate::Answered(answered) => {
                let body = serde_json::from_slice::<Value>(&answered.body).unwrap_or_default();
                let status = answered.status.as_u16();
                (json!({"status_code": status, "request_id": answered.request_id, "body": body}), Value::Null)
            }
            Fate::Cancelled => (Value::Null, not_done("batch_cancelled", "the batch was cancelled")),
            Fate::Expired | Fate::Pending => (Value::Null, not_done("batch_expired", "the completion window expired")),
        };
        let id = format!("batch_req_{}_{place}", self.id);
        json!({"id": id, "custom_id": item.custom_id, "response": response, "error": error})
    }
}

fn not_done(code: &str, when: &str) -> Value {
    json!({"code": code, "message": format!("This request could not be executed before {when}.")})
}

fn anthropic_result(fate: &Fate<'_>) -> Value {
    match fate {
        Fate::Answered(answered) => {
            let body = serde_json::from_slice::<Value>(&answered.body).unwrap_or_default();
            if answered.status.is_success() {
                json!({"type": "succeeded", "message": body})
            } else {
                json!({"type": "errored", "error": body})
            }
        }
        Fate::Cancelled => json!({"type": "canceled"}),
        Fate::Expired | Fate::Pending => json!({"type": "expired"}),
    }
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All files and batches of a server.
#[derive(Debug, Default)]
pub(super) struct Batches {
    pub(super) plan: Plan,
    /// Name and content of what was uploaded.
    files: Vec<(String, Bytes)>,
    made: Vec<Batch>,
}

/// What is needed to make a batch.
pub(super) struct Order {
    vendor: Vendor,
    fields: Map<String, Value>,
    pub(super) requests: Vec<Request>,
    errors: Vec<Value>,
}

fn not_found(what: &str) -> Refusal {
    Refusal { status: StatusCode::NOT_FOUND, ..Refusal::new(format!("No such {what}")) }
}

impl Batches {
    /// A file of a form, kept; the vendor's words for it.
    pub(super) fn upload(&mut self, form: &[u8]) -> Result<Bytes, Refusal> {
        let no_file = || Refusal::new("'file' is a required property");
        let (name, content) = file_of(form).ok_or_else(no_file)?;
        let id = format!("file-mock-{}", self.files.len());
        let shown = json!({
            "id": id, "object": "file", "bytes": content.len(), "created_at": unix_now(), "filename": name,
            "purpose": "batch", "status": "processed",
        });
        self.files.push((id, Bytes::copy_from_slice(content)));
        Ok(json(&shown))
    }

    /// The content of an uploaded file, or of one that a batch has made.
    pub(super) fn content(&self, id: &str, now: Instant) -> Result<Bytes, Refusal> {
        if let Some((_, content)) = self.files.iter().find(|(name, _)| name == id) {
            return Ok(content.clone());
        }
        let made = [("-output", true), ("-errors", false)].into_iter().find_map(|(end, wanted)| {
            let batch = self.find(id.strip_suffix(end)?).filter(|batch| batch.is_over(now))?;
            Some(batch.lines(now, Some(wanted)))
        });
        made.ok_or_else(|| not_found(&format!("File object: {id}")))
    }

    fn find(&self, id: &str) -> Option<&Batch> {
        self.made.iter().find(|batch| batch.id == id)
    }

    /// One batch.
    pub(super) fn show(&self, vendor: Vendor, id: &str, now: Instant) -> Result<Bytes, Refusal> {
        let batch = self.find(id).filter(|batch| batch.vendor == vendor);
        batch.map(|batch| json(&batch.show(now))).ok_or_else(|| not_found(&format!("batch: {id}")))
    }

    /// Anthropic's results.
    pub(super) fn results(&self, id: &str, now: Instant) -> Result<Bytes, Refusal> {
        let batch = self.find(id).filter(|batch| batch.vendor == Vendor::Anthropic && batch.is_over(now));
        batch.map(|batch| batch.lines(now, None)).ok_or_else(|| not_found(&format!("results of batch: {id}")))
    }

    /// Cancels what is not done.
    pub(super) fn cancel(&mut self, vendor: Vendor, id: &str, now: Instant) -> Result<Bytes, Refusal> {
        let batch = self.made.iter_mut().find(|batch| batch.id == id && batch.vendor == vendor);
        let batch = batch.ok_or_else(|| not_found(&format!("batch: {id}")))?;
        if batch.is_over(now) {
            let message = format!("Batch {id} has ended, so it cannot be cancelled");
            return Err(Refusal { status: StatusCode::CONFLICT, ..Refusal::new(message) });
        }
        batch.cancelled = Some(now);
        let mut shown = batch.show(now);
        let (name, word) = match vendor {
            Vendor::OpenAi => ("status", "cancelling"),
            Vendor::Mistral => ("status", "CANCELLATION_REQUESTED"),
            Vendor::Anthropic => ("processing_status", "canceling"),
        };
        if let Some(fields) = shown.as_object_mut() {
            fields.insert(name.to_owned(), word.into());
        }
        Ok(json(&shown))
    }

    /// The vendor's batches, the newest first, one page of them.
    pub(super) fn list(&self, vendor: Vendor, query: &str, now: Instant) -> Bytes {
        let asked = |name: &str| {
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        let size = |name| asked(name).and_then(|size| size.parse().ok()).unwrap_or(PAGE);
        let all: Vec<_> = self.made.iter().rev().filter(|batch| batch.vendor == vendor).collect();
        let (start, size) = match vendor {
            Vendor::Mistral => {
                let page = asked("page").and_then(|page| page.parse::<usize>().ok()).unwrap_or(0);
                (page * size("page_size"), size("page_size"))
            }
            Vendor::OpenAi | Vendor::Anthropic => {
                let last = asked(if vendor == Vendor::OpenAi { "after" } else { "after_id" });
                let place = last.and_then(|last| all.iter().position(|batch| batch.id == last));
                (place.map_or(0, |place| place + 1), size("limit"))
            }
        };
        let page: Vec<_> = all.iter().skip(start).take(size).map(|batch| batch.show(now)).collect();
        let ends = |entry: Option<&Value>| entry.and_then(|batch| batch.get("id")).cloned();
        json(&json!({
            "object": "list", "first_id": ends(page.first()), "last_id": ends(page.last()),
            "has_more": start + page.len() < all.len(), "total": all.len(), "data": page,
        }))
    }

    /// What a request for a batch asks for.
    pub(super) fn order(&self, vendor: Vendor, body: &[u8]) -> Result<Order, Refusal> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body)?;
        if vendor == Vendor::Anthropic {
            let requests = anthropic_requests(fields.remove("requests"))?;
            return Ok(Order { vendor, fields, requests, errors: Vec::new() });
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let endpoint = text(fields.get("endpoint")).ok_or_else(|| Refusal::new("'endpoint' is a required property"))?;
        let input = match vendor {
            Vendor::OpenAi => text(fields.get("input_file_id")),
            _ => text(fields.get("input_files").and_then(|files| files.get(0))),
        };
        let input = input.and_then(|id| self.files.iter().find(|(name, _)| *name == id));
        let (_, content) = input.ok_or_else(|| Refusal::new("The input file does not exist"))?;
        let model = text(fields.get("model"));
        if vendor == Vendor::Mistral && model.is_none() {
            return Err(Refusal::new("'model' is a required property"));
        }
        let (requests, errors) = lines_of(vendor, &endpoint, model.as_deref(), content);
        Ok(Order { vendor, fields, requests, errors })
    }

    /// Makes a batch whose requests are answered.
    pub(super) fn make(&mut self, order: Order, answers: Vec<Answered>, now: Instant) -> Bytes {
        let Order { vendor, fields, requests, errors } = order;
        let name = match vendor {
            Vendor::OpenAi => "batch",
            Vendor::Anthropic => "msgbatch",
            Vendor::Mistral => "job",
        };
        let items = requests.into_iter().zip(answers);
        let items = items.map(|(request, answered)| Item { custom_id: request.custom_id, answered }).collect();
        let id = format!("{name}_mock_{}", self.made.len());
        let (plan, made_at) = (self.plan, SystemTime::now());
        let batch = Batch { id, vendor, fields, items, plan, made: now, made_at, cancelled: None, errors };
        let shown = json(&batch.show(now));
        self.made.push(batch);
        shown
    }
}

fn anthropic_requests(requests: Option<Value>) -> Result<Vec<Request>, Refusal> {
    let Some(Value::Array(requests)) = requests.filter(|requests| requests.get(0).is_some()) else {
        return Err(Refusal::new("requests: Field required"));
    };
    if requests.len() > MOST_OF_ANTHROPIC {
        return Err(Refusal::new(format!("requests: at most {MOST_OF_ANTHROPIC}")));
    }
    let mut known = HashSet::new();
    let requests = requests.into_iter().enumerate().map(|(place, mut request)| {
        let custom_id = request.get("custom_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=64).contains(&custom_id.len()) || !custom_id.bytes().all(fits) {
            let wanted = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'";
            return Err(Refusal::new(format!("requests.{place}.custom_id: {wanted}")));
        }
        if !known.insert(custom_id.clone()) {
            return Err(Refusal::new(format!("requests.{place}.custom_id: not unique")));
        }
        let params = request.get_mut("params").map(Value::take).unwrap_or_default();
        Ok(Request { custom_id, url: "/v1/messages".to_owned(), body: json(&params) })
    });
    requests.collect()
}

/// The requests of an input file, or what is wrong with its lines.
fn lines_of(vendor: Vendor, endpoint: &str, model: Option<&str>, content: &[u8]) -> (Vec<Request>, Vec<Value>) {
    let (mut requests, mut errors) = (Vec::new(), Vec::new());
    let (mut known, mut models) = (HashSet::new(), HashSet::new());
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    for (place, line) in lines.enumerate() {
        let mut wrong = |code: &str, message: &str| {
            errors.push(json!({"code": code, "line": place + 1, "message": message, "param": null}));
        };
        let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(line) else {
            wrong("invalid_json_line", "This line is not parseable as valid JSON.");
            continue;
        };
        let Some(Value::Object(mut body)) = fields.remove("body") else {
            wrong("missing_required_parameter", "Missing required parameter: body.");
            continue;
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("custom_id").is_empty() || !known.insert(text("custom_id")) {
            wrong("duplicate_custom_id", "The custom_id for this request is a duplicate of another request.");
        }
        if vendor == Vendor::OpenAi && (text("url") != endpoint || text("method") != "POST") {
            wrong("mismatched_url", "The URL provided for this request does not match the batch endpoint.");
        }
        if vendor == Vendor::Mistral && fields.keys().any(|name| name != "custom_id") {
            wrong("extra_forbidden", "Extra inputs are not permitted");
        }
        if let Some(model) = model {
            body.insert("model".to_owned(), model.into());
        }
        models.insert(body.get("model").map(Value::to_string));
        if models.len() > 1 {
            wrong("mismatched_model", "The model provided for this request does not match the rest of the batch.");
        }
        requests.push(Request { custom_id: text("custom_id"), url: endpoint.to_owned(), body: json(&body) });
    }
    if vendor == Vendor::OpenAi && requests.len() > MOST_OF_OPENAI {
        let message = format!("The batch has more than {MOST_OF_OPENAI} requests.");
        errors.push(json!({"code": "too_many_tasks", "line": null, "message": message, "param": null}));
    }
    if requests.is_empty() && errors.is_empty() {
        errors.push(json!({"code": "empty_file", "line": null, "message": "The file is empty.", "param": null}));
    }
    if errors.is_empty() { (requests, errors) } else { (Vec::new(), errors) }
}

/// The name and the content of the file in a form.
fn file_of(form: &[u8]) -> Option<(String, &[u8])> {
    let find = |text: &[u8], wanted: &[u8]| text.windows(wanted.len()).position(|window| window == wanted);
    let boundary = form.get(..find(form, b"\r\n")?)?;
    let named = find(form, b"filename=\"")? + b"filename=\"".len();
    let rest = form.get(named..)?;
    let name = rest.get(..find(rest, b"\"")?)?;
    let start = find(rest, b"\r\n\r\n")? + 4;
    let content = rest.get(start..)?;
    let end = find(content, &[b"\r\n", boundary].concat())?;
    Some((String::from_utf8_lossy(name).into_owned(), content.get(..end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_form_is_its_bytes() {
        let form = b"--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\n\
            Content-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nContent-Type: t/p\r\n\r\n{\r\n}\r\n--b--\r\n";
        assert_eq!(file_of(form), Some(("x".to_owned(), &b"{\r\n}"[..])));
        assert_eq!(file_of(b"no form"), None);
    }

    #[test]
    fn a_batch_of_two_urls_two_models_or_one_id_twice_fails_by_its_lines() {
        let line = |id: &str, url: &str, model: &str| {
            json!({"custom_id": id, "method": "POST", "url": url, "body": {"model": model}}).to_string() + "\n"
        };
        for (lines, code) in [
            (line("a", "/v1/x", "m") + &line("b", "/v1/y", "m"), "mismatched_url"),
            (line("a", "/v1/x", "m") + &line("b", "/v1/x", "n"), "mismatched_model"),
            (line("a", "/v1/x", "m") + &line("a", "/v1/x", "m"), "duplicate_custom_id"),
            (line("a", "/v1/x", "m") + "{", "invalid_json_line"),
        ] {
            let (requests, errors) = lines_of(Vendor::OpenAi, "/v1/x", None, lines.as_bytes());
            assert!(requests.is_empty());
            assert_eq!(errors.iter().map(|error| error["code"].as_str().unwrap()).collect::<Vec<_>>(), [code]);
            assert_eq!(errors[0]["line"], 2);
        }
        let (requests, errors) = lines_of(Vendor::OpenAi, "/v1/x", None, line("a", "/v1/x", "m").as_bytes());
        assert_eq!((requests.len(), errors.len()), (1, 0));
    }
}
