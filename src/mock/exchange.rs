//! One request from its head to its answer: outage, key, limits, script or default reply, slot, latency, in this order.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::{Call, Format, Refusal, Said, json, tokens_of};
use super::batches::{Answered, Batches, Request as BatchRequest, Vendor};
use super::body::{AnswerBody, Spoiling};
use super::chat::{self, ChatRequest};
use super::config::{Dialect, MockConfig, Reply};
use super::connection::{Connection, Doom};
use super::limits::{Charge, Limits};
use super::record::{Head, Ledger, Reply as RecordedReply, Ticket, lock};
use super::route::{Destination, Route};
use super::script::{Answer, Fault, Script};
use super::slots::Slots;
use super::sse::Events;
use super::stream_body::StreamBody;
use super::streaming::{StreamFault, Streaming, Write};
use super::{anthropic, embeddings};
use crate::traffic::Arrival;

const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// All that the connections of one server share.
#[derive(Debug)]
pub(super) struct Mock {
    config: MockConfig,
    pub(super) ledger: Arc<Ledger>,
    pub(super) script: Mutex<Script>,
    pub(super) limits: Mutex<Limits>,
    pub(super) batches: Mutex<Batches>,
    pub(super) slots: Slots,
    pub(super) outage: Mutex<Option<Outage>>,
    /// `u64::MAX`: any number.
    max_concurrent: AtomicU64,
    random: Mutex<fastrand::Rng>,
    fixed: Bytes,
    fixed_embeddings: Mutex<embeddings::Fixed>,
    serial: AtomicU64,
    /// When it was first launched.
    started: OnceLock<Instant>,
}

/// All requests fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) status: StatusCode,
    /// Until it is told to recover, if none.
    pub(super) until: Option<Instant>,
}

impl Mock {
    pub(super) fn new(config: MockConfig) -> io::Result<Self> {
        config.check()?;
        let limits = Limits::new(&config, Instant::now());
        Ok(Self {
            ledger: Arc::new(Ledger::new(config.keys.len())),
            slots: Slots::new(config.slots),
            outage: Mutex::default(),
            max_concurrent: AtomicU64::new(config.max_concurrent.map_or(u64::MAX, u64::from)),
            script: Mutex::default(),
            batches: Mutex::default(),
            limits: Mutex::new(limits),
            random: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            fixed: chat::fixed_completion(config.models.first().map_or("", String::as_str)),
            fixed_embeddings: Mutex::default(),
            serial: AtomicU64::new(0),
            started: OnceLock::new(),
            config,
        })
    }

    /// Begins to count time, on the clock of the runtime that it is launched on. Does nothing the second time.
    pub(super) fn begin(&self) {
        self.started.get_or_init(|| {
            let now = Instant::now();
            *lock(&self.limits) = Limits::new(&self.config, now);
            now
        });
    }

    fn started(&self) -> Instant {
        *self.started.get_or_init(Instant::now)
    }

    pub(super) fn config(&self) -> &MockConfig {
        &self.config
    }

    pub(super) fn set_max_concurrent(&self, most: Option<u32>) {
        self.max_concurrent.store(most.map_or(u64::MAX, u64::from), Relaxed);
    }

    /// As new: no script, no records, no outage, counters at 0, limits as configured and full.
    pub(super) fn clear(&self) {
        *lock(&self.outage) = None;
        self.slots.set(self.config.slots);
        self.set_max_concurrent(self.config.max_concurrent);
        *lock(&self.script) = Script::default();
        *lock(&self.batches) = Batches::default();
        *lock(&self.limits) = Limits::new(&self.config, Instant::now());
        self.ledger.clear();
    }

    /// The key that a request carries, or why it may not come in. `None` where the server has no keys.
    fn key(&self, headers: &HeaderMap) -> Key {
        let MockConfig { api_key, keys, .. } = &self.config;
        if api_key.is_none() && keys.is_empty() {
            return Key::Anyone;
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let others = ["x-api-key", "api-key"].iter().filter_map(|name| headers.get(*name).map(HeaderValue::as_bytes));
        for shown in bearer.into_iter().chain(others) {
            if let Some(index) = keys.iter().position(|(key, _)| key.as_bytes() == shown) {
                return Key::Of(index);
            }
            if api_key.as_ref().is_some_and(|key| key.as_bytes() == shown) {
                return Key::Anyone;
            }
        }
        Key::Wrong
    }

    /// The `key`th of the keys.
    fn key_name(&self, key: Option<usize>) -> Option<String> {
        self.config.keys.get(key?).map(|(name, _)| name.clone())
    }

    fn outage(&self) -> Option<StatusCode> {
        let mut outage = lock(&self.outage);
        if outage.is_some_and(|outage| outage.until.is_some_and(|until| until <= Instant::now())) {
            *outage = None;
        }
        outage.map(|outage| outage.status)
    }

    fn draw_latency(&self) -> Duration {
        self.config.latency.draw(&mut lock(&self.random))
    }

    fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }

    /// What to answer to a request that has arrived whole.
    fn decide(&self, asked: &Asked, body: &[u8], ticket: &mut Ticket) -> Draft {
        let dialect = asked.to.dialect;
        if let Some(status) = self.outage() {
            ticket.failed_in_outage();
            return Draft::new(status, dialect.error_for(status, &asked.id));
        }
        if asked.key == Key::Wrong {
            let message = "Incorrect API key provided. The mock server knows other keys.";
            return asked.error(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"));
        }
        if let Some((status, message, code)) = asked.to.lacks {
            return asked.error(status, message, Some(code));
        }
        let mut limits = HeaderMap::new();
        if asked.method == Method::POST {
            match self.admit(asked, body, ticket) {
                Ok(headers) => limits = headers,
                Err(refusal) => return *refusal,
            }
        }
        let scripted = if asked.to.route.is_of_batches() {
            // The texts of a batch's requests are theirs; it is asked for by its path.
            lock(&self.script).ruled(format!("{} {}", asked.method, asked.path).as_bytes())
        } else {
            lock(&self.script).next(body)
        };
        let mut draft = match scripted {
            Some(answer) => self.scripted(answer, asked, body),
            None => Draft { latency: self.draw_latency(), ..self.default_reply(asked, body, None) },
        };
        draft.works = true;
        limits.extend(std::mem::take(&mut draft.headers));
        draft.headers = limits;
        draft
    }

    /// Headers for the answer, or the refusal.
    fn admit(&self, asked: &Asked, body: &[u8], ticket: &mut Ticket) -> Result<HeaderMap, Box<Draft>> {
        let dialect = asked.to.dialect;
        if !ticket.admit(self.max_concurrent.load(Relaxed)) {
            ticket.refused();
            return Err(Box::new(Draft::new(StatusCode::TOO_MANY_REQUESTS, dialect.crowded(&asked.id))));
        }
        let mut headers = HeaderMap::new();
        let mut limits = lock(&self.limits);
        let counts = limits.count_tokens() && !asked.to.route.is_of_batches();
        let charge = if counts { charge(body) } else { Charge::default() };
        let buckets = limits.of(asked.key.index());
        let verdict = buckets.admit(charge, Instant::now());
        dialect.write_limits(buckets.all(), charge, &mut headers);
        let Err(refusal) = verdict else { return Ok(headers) };
        if let Some(wait) = refusal.retry_after {
            dialect.write_wait(wait, &mut headers);
        }
        ticket.refused();
        let body = dialect.refusal(&refusal, &asked.id);
        Err(Box::new(Draft { headers, ..Draft::new(StatusCode::TOO_MANY_REQUESTS, body) }))
    }

    fn scripted(&self, answer: Answer, asked: &Asked, body: &[u8]) -> Draft {
        let latency = answer.latency.unwrap_or_else(|| self.draw_latency());
        let draft = match (&answer.body, &answer.stream) {
            (Some(raw), Some(plan)) => Draft::stream(answer.status, Events::raw(raw.clone()), plan),
            (Some(raw), None) => Draft::new(answer.status, raw.clone()),
            (None, _) if answer.speaks() => self.converse(asked, body, Some(&answer)),
            (None, _) if answer.status == StatusCode::OK => self.default_reply(asked, body, Some(&answer)),
            (None, _) => Draft::new(answer.status, asked.to.dialect.error_for(answer.status, &asked.id)),
        };
        let (fault, drip_interval) = (answer.fault, answer.drip_interval);
        let mut headers = draft.headers;
        headers.extend(answer.headers);
        Draft { headers, latency, fault, drip_interval, ..draft }
    }

    fn default_reply(&self, asked: &Asked, body: &[u8], answer: Option<&Answer>) -> Draft {
        if let Some(allowed) = asked.to.route.method().filter(|allowed| *allowed != asked.method) {
            let message = format!("Method {} is not allowed here, only {allowed}", asked.method);
            let mut draft = asked.error(StatusCode::METHOD_NOT_ALLOWED, &message, Some("method_not_allowed"));
            draft.headers.extend(HeaderValue::from_str(allowed.as_str()).map(|value| (ALLOW, value)));
            return draft;
        }
        let answered = match asked.to.route {
            Route::Talk(_) => return self.converse(asked, body, answer),
            Route::Models => Ok(chat::models(&self.config.models)),
            Route::CountTokens => anthropic::count_tokens(body),
            Route::Embeddings => self.embeddings(asked, body),
            Route::Files => self.file(asked, body),
            Route::Batches(vendor) => self.batch(vendor, asked, body),
            Route::Mirror => Ok(asked.mirror(body)),
            Route::Unknown => Err(asked.nothing_there()),
        };
        answered.map_or_else(|refusal| asked.refuse(refusal), |body| Draft::new(StatusCode::OK, body))
    }

    fn embeddings(&self, asked: &Asked, body: &[u8]) -> Result<Bytes, Refusal> {
        let model = asked.to.deployment.as_deref().or(self.config.models.first().map(String::as_str));
        let model = model.unwrap_or_default();
        if self.config.reply == Reply::Fixed {
            return lock(&self.fixed_embeddings).answer(body, model, self.config.embeddings);
        }
        // Not under the lock: large answers take milliseconds.
        let mut random = lock(&self.random).fork();
        embeddings::answer(body, model, self.config.embeddings, &mut random)
    }

    /// `POST files`, `GET files/ID/content`.
    fn file(&self, asked: &Asked, body: &[u8]) -> Result<Bytes, Refusal> {
        let mut batches = lock(&self.batches);
        match asked.below("files").as_slice() {
            [] if asked.method == Method::POST => batches.upload(body),
            [id, "content"] if asked.method == Method::GET => batches.content(id, Instant::now()),
            _ => Err(asked.nothing_there()),
        }
    }

    /// A list, a new one, one, its results, or its end, as the vendor's paths have it.
    fn batch(&self, vendor: Vendor, asked: &Asked, body: &[u8]) -> Result<Bytes, Refusal> {
        let (now, is_post) = (Instant::now(), asked.method == Method::POST);
        let folder = match vendor {
            Vendor::OpenAi => "batches",
            Vendor::Anthropic => "messages/batches",
            Vendor::Mistral => "batch/jobs",
        };
        match asked.below(folder).as_slice() {
            [] if is_post => {
                let order = lock(&self.batches).order(vendor, body)?;
                let answers = order.requests.iter().map(|request| self.item(vendor, request)).collect();
                Ok(lock(&self.batches).make(order, answers, now))
            }
            [] => Ok(lock(&self.batches).list(vendor, asked.query(), now)),
            [id] if !is_post => lock(&self.batches).show(vendor, id, now),
            [id, "results"] if !is_post && vendor == Vendor::Anthropic => lock(&self.batches).results(id, now),
            [id, "cancel"] if is_post => lock(&self.batches).cancel(vendor, id, now),
            _ => Err(asked.nothing_there()),
        }
    }

    /// The answer to one request of a batch: a scripted one, or the default reply.
    fn item(&self, vendor: Vendor, request: &BatchRequest) -> Answered {
        let dialect = match vendor {
            Vendor::OpenAi => self.config.dialect,
            Vendor::Anthropic => Dialect::Anthropic,
            Vendor::Mistral => Dialect::Mistral,
        };
        let to = Destination { route: Route::of_item(&request.url, vendor), dialect, deployment: None, lacks: None };
        let id = format!("req_mock_{}", self.serial());
        let asked = Asked { id, method: Method::POST, path: request.url.clone(), to, key: Key::Anyone };
        let scripted = lock(&self.script).next(&request.body);
        let draft = match scripted {
            Some(answer) => self.scripted(answer, &asked, &request.body),
            None => self.default_reply(&asked, &request.body, None),
        };
        let after = (draft.fault != Some(Fault::HangBefore)).then_some(draft.latency);
        match draft.payload {
            Payload::Whole(body) => Answered { status: draft.status, body, request_id: asked.id, after },
            Payload::Stream(..) => {
                let status = StatusCode::BAD_REQUEST;
                let message = "Streaming is not supported in the Batch API.";
                let body = dialect.error(status, message, "invalid_request_error", None, &asked.id);
                Answered { status, body, request_id: asked.id, after }
            }
        }
    }

    /// An answer in the form of the API that is asked, or of chat completions where it is none.
    fn converse(&self, asked: &Asked, body: &[u8], answer: Option<&Answer>) -> Draft {
        let fixed = self.config.reply == Reply::Fixed && answer.is_none_or(|answer| !answer.speaks());
        if fixed && asked.to.route == Route::Talk(Format::Chat) && !chat::asks_for_a_stream(body) {
            return Draft::new(StatusCode::OK, self.fixed.clone());
        }
        let (format, mut call) = match asked.to.route {
            Route::Talk(format) => match format.read(body) {
                Ok(call) => (format, call),
                Err(refusal) => return asked.refuse(refusal),
            },
            _ => (Format::Chat, Call { choices: 1, ..Call::default() }),
        };
        if call.model.is_empty() {
            let usual = asked.to.deployment.as_ref().or(self.config.models.first());
            call.model = usual.map_or("", String::as_str).into();
        }
        call.serial = self.serial();
        let said = self.said(&call, answer);
        let status = answer.map_or(StatusCode::OK, |answer| answer.status);
        let plan = answer.and_then(|answer| answer.stream.as_ref()).unwrap_or(&self.config.stream);
        if call.stream && status == StatusCode::OK && plan.fault != Some(StreamFault::Json) {
            return Draft::stream(status, format.events(&call, &said, plan), plan);
        }
        Draft::new(status, format.whole(&call, &said))
    }

    /// What the answer tells, and otherwise the server's reply.
    fn said(&self, call: &Call<'_>, answer: Option<&Answer>) -> Said {
        let usual = || match &self.config.reply {
            Reply::Text(text) => text.clone(),
            Reply::Fixed => chat::FIXED.to_owned(),
            Reply::Echo => format!("echo: {}", call.last_text),
        };
        let Some(answer) = answer else {
            return Said::new(Some(usual()));
        };
        let text = answer.text.clone().or_else(|| answer.tool_calls.is_empty().then(usual));
        Said {
            text,
            reasoning: answer.reasoning.clone(),
            tool_calls: answer.tool_calls.clone(),
            finish_reason: answer.finish_reason.clone(),
            as_list: answer.content_list,
        }
    }
}

/// Tokens of a request; of one that is no chat, a quarter of its bytes.
fn charge(body: &[u8]) -> Charge {
    let tokens = tokens_of(body.len());
    let unread = Charge { tokens, input_tokens: tokens, output_tokens: tokens };
    ChatRequest::parse(body).map_or(unread, |request| request.charge())
}

/// The key that a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// One of [`MockConfig::keys`].
    Of(usize),
    /// [`MockConfig::api_key`], or none where none is asked for.
    Anyone,
    Wrong,
}

impl Key {
    fn index(self) -> Option<usize> {
        match self {
            Self::Of(index) => Some(index),
            Self::Anyone | Self::Wrong => None,
        }
    }
}

/// What is to be known of a request's head once it is filed.
struct Asked {
    /// The answer's name for the request.
    id: String,
    method: Method,
    /// For messages, the mirror and batches: path and query.
    path: String,
    to: Destination,
    key: Key,
}

impl Asked {
    /// An error of the client's.
    fn error(&self, status: StatusCode, message: &str, code: Option<&str>) -> Draft {
        Draft::new(status, self.to.dialect.error(status, message, "invalid_request_error", code, &self.id))
    }

    /// The parts of the path below `folder`.
    fn below(&self, folder: &str) -> Vec<&str> {
        let path = self.path.split('?').next().unwrap_or_default();
        let below = path.split_once(folder).map_or("", |(_, below)| below);
        below.split('/').filter(|part| !part.is_empty()).collect()
    }

    fn query(&self) -> &str {
        self.path.split_once('?').map_or("", |(_, query)| query)
    }

    fn nothing_there(&self) -> Refusal {
        let path = self.path.split('?').next().unwrap_or_default();
        let message = format!("Invalid URL ({} {path})", self.method);
        Refusal { status: StatusCode::NOT_FOUND, ..Refusal::new(message) }
    }

    /// What was sent, for paths that the mock knows nothing of.
    fn mirror(&self, body: &[u8]) -> Bytes {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let query: serde_json::Map<_, _> = url::form_urlencoded::parse(query.as_bytes())
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect();
        let sent = serde_json::from_slice::<Value>(body).unwrap_or_default();
        json(&json!({"method": self.method.as_str(), "path": path, "query": query, "json": sent}))
    }

    /// The request makes no sense.
    fn refuse(&self, refusal: Refusal) -> Draft {
        match refusal.body {
            Some(body) => Draft::new(refusal.status, body),
            None => self.error(refusal.status, &refusal.message, None),
        }
    }
}

enum Payload {
    Whole(Bytes),
    Stream(Box<Events>, Box<Streaming>),
}

/// An answer before it is sent.
struct Draft {
    status: StatusCode,
    headers: HeaderMap,
    payload: Payload,
    latency: Duration,
    /// It is work, which a slot is needed for.
    works: bool,
    fault: Option<Fault>,
    drip_interval: Duration,
}

impl Draft {
    fn new(status: StatusCode, body: Bytes) -> Self {
        let headers = HeaderMap::new();
        let (latency, drip_interval) = (Duration::ZERO, Duration::ZERO);
        let payload = Payload::Whole(body);
        Self { status, headers, payload, latency, works: false, fault: None, drip_interval }
    }

    fn stream(status: StatusCode, events: Events, plan: &Streaming) -> Self {
        let payload = Payload::Stream(Box::new(events), Box::new(plan.clone()));
        let headers = [(CONTENT_TYPE, EVENT_STREAM), (CACHE_CONTROL, NO_CACHE)].into_iter().collect();
        Self { headers, payload, ..Self::new(status, Bytes::new()) }
    }

    fn spoiling(&self) -> Spoiling {
        match self.fault {
            Some(Fault::ResetInBody) => Spoiling::Cut(Some(Doom::Reset)),
            Some(Fault::Truncate) => Spoiling::Cut(Some(Doom::Close)),
            Some(Fault::HangInBody) => Spoiling::Cut(None),
            Some(Fault::Drip) => Spoiling::Drip(self.drip_interval),
            Some(Fault::ResetBefore | Fault::CloseBefore | Fault::HangBefore) | None => Spoiling::None,
        }
    }
}

/// What a fault of whole bodies means for a stream, whose half is half of its events; the time between two writes.
fn spoil_stream(fault: Option<Fault>, drip_interval: Duration, plan: &mut Streaming, events: u64) -> Duration {
    let fault = match fault {
        Some(Fault::ResetInBody) => StreamFault::Reset,
        Some(Fault::Truncate) => StreamFault::Close,
        Some(Fault::HangInBody) => StreamFault::Stall,
        Some(Fault::Drip) => {
            if !matches!(plan.write, Write::Bytes(_)) {
                plan.write = Write::Bytes(1);
            }
            return drip_interval;
        }
        Some(Fault::ResetBefore | Fault::CloseBefore | Fault::HangBefore) | None => return Duration::ZERO,
    };
    (plan.fault, plan.after) = (Some(fault), events / 2);
    Duration::ZERO
}

type ResponseBody = Either<AnswerBody, StreamBody>;

/// Answer one request. Dropped by hyper when the client leaves.
///
/// # Errors
/// The body broke off or made no sense: hyper then ends the connection.
pub(super) async fn answer(
    mock: Arc<Mock>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, hyper::Error> {
    let arrived = Instant::now();
    let (mut parts, incoming) = request.into_parts();
    let arrival = Arrival::of(&mut parts.headers);
    let asked = ask(&mock, &parts);
    let key = asked.key.index();
    let deployment = asked.to.deployment.clone();
    let head = mock.config.record.then(|| file(parts, arrived - mock.started(), mock.key_name(key), deployment));
    let mut ticket = mock.ledger.open(connection, head, key, arrival);
    let body = read(incoming).await?;
    ticket.set_body(&body);
    let draft = mock.decide(&asked, &body, &mut ticket);
    let slot = if draft.works && asked.method == Method::POST {
        let _waiting = ticket.wait();
        Some(mock.slots.take().await)
    } else {
        None
    };
    if !draft.latency.is_zero() {
        let _waiting = ticket.wait();
        sleep(draft.latency).await;
    }
    fail_before(draft.fault, &mut ticket).await;
    drop(slot);
    Ok(respond(draft, &asked, &mock, arrived, ticket))
}

fn ask(mock: &Mock, parts: &Parts) -> Asked {
    let to = Destination::of(parts, mock.config.dialect);
    let told = matches!(to.route, Route::Unknown | Route::Mirror) || to.route.is_of_batches();
    let path = parts.uri.path_and_query().filter(|_| told).map_or_else(String::new, ToString::to_string);
    let id = format!("req_mock_{}", mock.serial());
    Asked { id, method: parts.method.clone(), path, to, key: mock.key(&parts.headers) }
}

fn file(parts: Parts, arrived: Duration, key: Option<String>, deployment: Option<String>) -> Head {
    // HTTP/2 always sends scheme and host apart from the path; only HTTP/1's absolute form means a proxy.
    let path = match parts.uri.path_and_query() {
        Some(path) if parts.version == Version::HTTP_2 => path.to_string(),
        _ => parts.uri.to_string(),
    };
    Head { method: parts.method, path, headers: parts.headers, arrived, key, deployment }
}

/// Read a body to its end.
async fn read(mut incoming: Incoming) -> Result<Bytes, hyper::Error> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if first.is_empty() {
            first = data;
            continue;
        }
        if more.is_empty() {
            more.extend_from_slice(&first);
        }
        more.extend_from_slice(&data);
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// The faults that leave no answer: never returns from one of those.
async fn fail_before(fault: Option<Fault>, ticket: &mut Ticket) {
    match fault {
        Some(Fault::ResetBefore) => ticket.doom(Doom::Reset),
        Some(Fault::CloseBefore) => ticket.doom(Doom::Close),
        Some(Fault::HangBefore) => (),
        _ => return,
    }
    let _waiting = if fault == Some(Fault::HangBefore) { ticket.wait() } else { None };
    std::future::pending::<()>().await;
}

fn respond(draft: Draft, asked: &Asked, mock: &Mock, arrived: Instant, ticket: Ticket) -> Response<ResponseBody> {
    let (status, spoiling) = (draft.status, draft.spoiling());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, JSON);
    if let Ok(id) = HeaderValue::try_from(asked.id.as_str()) {
        headers.insert(asked.to.dialect.request_id(), id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(arrived.elapsed().as_millis() as u64));
    headers.extend(draft.headers);
    ticket.set_reply(|| RecordedReply {
        status: status.as_u16(),
        at: mock.started().elapsed(),
        retry_after: wait(&headers),
    });
    let bodiless = asked.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = match draft.payload {
        Payload::Stream(events, mut plan) if !bodiless => {
            let drip = spoil_stream(draft.fault, draft.drip_interval, &mut plan, events.count());
            Either::Right(StreamBody::new(*events, *plan, drip, ticket))
        }
        Payload::Whole(body) if !bodiless => Either::Left(AnswerBody::new(body, spoiling, ticket)),
        _ => Either::Left(AnswerBody::new(Bytes::new(), spoiling, ticket)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The wait that an answer asks for, if it is a number.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name| headers.get(name).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    let seconds = number("retry-after-ms").map(|wait| wait / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}
