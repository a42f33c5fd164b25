//! One request from its head to its answer: key, limits, script, default reply, in this order.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::body::{AnswerBody, Spoiling};
use super::chat::{self, ChatRequest};
use super::config::{MockConfig, Reply};
use super::connection::{Connection, Doom};
use super::limits::Limits;
use super::record::{Head, Ledger, Ticket, lock};
use super::script::{Answer, Fault, Script};
use crate::traffic::Arrival;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// All that the connections of one server share.
#[derive(Debug)]
pub(super) struct Mock {
    config: MockConfig,
    pub(super) ledger: Arc<Ledger>,
    pub(super) script: Mutex<Script>,
    limits: Mutex<Limits>,
    random: Mutex<fastrand::Rng>,
    fixed: Bytes,
    serial: AtomicU64,
    /// When it was first launched.
    started: OnceLock<Instant>,
}

impl Mock {
    pub(super) fn new(config: MockConfig) -> io::Result<Self> {
        config.check()?;
        let limits = Limits::new(&config, Instant::now());
        Ok(Self {
            ledger: Arc::default(),
            script: Mutex::default(),
            limits: Mutex::new(limits),
            random: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            fixed: chat::fixed_completion(config.models.first().map_or("", String::as_str)),
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

    /// As new: no script, no records, counters at 0, full buckets.
    pub(super) fn clear(&self) {
        *lock(&self.script) = Script::default();
        *lock(&self.limits) = Limits::new(&self.config, Instant::now());
        self.ledger.clear();
    }

    /// Whether anything will look at a request's body.
    fn needs_body(&self) -> bool {
        self.config.record
            || self.config.reply != Reply::Fixed
            || self.config.tokens_per_minute.is_some()
            || !lock(&self.script).is_empty()
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.config.api_key else {
            return true;
        };
        let is_key = |value: &HeaderValue| value.as_bytes() == key.as_bytes();
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        bearer == Some(key) || ["api-key", "x-api-key"].iter().any(|name| headers.get(*name).is_some_and(is_key))
    }

    fn draw_latency(&self) -> Duration {
        self.config.latency.draw(&mut lock(&self.random))
    }

    fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }

    /// What to answer to a request that has arrived whole.
    fn decide(&self, asked: &Asked, body: &[u8], ticket: &mut Ticket) -> Draft {
        if !asked.has_key {
            let message = "Incorrect API key provided. The mock server knows one key only.";
            let body = chat::error(message, "invalid_request_error", Some("invalid_api_key"));
            return Draft::new(StatusCode::UNAUTHORIZED, body);
        }
        let mut limits = HeaderMap::new();
        if asked.method == Method::POST {
            match self.admit(body, ticket) {
                Ok(headers) => limits = headers,
                Err(refusal) => return *refusal,
            }
        }
        let scripted = lock(&self.script).next(body);
        let mut draft = match scripted {
            Some(answer) => self.scripted(answer, asked, body),
            None => Draft { latency: self.draw_latency(), ..self.default_reply(asked, body) },
        };
        limits.extend(std::mem::take(&mut draft.headers));
        draft.headers = limits;
        draft
    }

    /// Headers for the answer, or the refusal.
    fn admit(&self, body: &[u8], ticket: &mut Ticket) -> Result<HeaderMap, Box<Draft>> {
        if !ticket.admit(self.config.max_concurrent) {
            ticket.refused();
            let body = chat::error("Too many concurrent requests.", "requests", Some("rate_limit_exceeded"));
            return Err(Box::new(Draft::new(StatusCode::TOO_MANY_REQUESTS, body)));
        }
        let tokens = self.charge(body);
        let (verdict, headers) = lock(&self.limits).admit(tokens, Instant::now());
        let Err(refusal) = verdict else { return Ok(headers) };
        ticket.refused();
        let body = chat::error(&refusal.message, refusal.dimension.name(), Some("rate_limit_exceeded"));
        Err(Box::new(Draft { headers, ..Draft::new(StatusCode::TOO_MANY_REQUESTS, body) }))
    }

    /// Tokens of a request; of one that is no chat, a quarter of its bytes.
    fn charge(&self, body: &[u8]) -> u64 {
        if self.config.tokens_per_minute.is_none() {
            return 0;
        }
        ChatRequest::parse(body).map_or_else(|_| chat::tokens_of(body.len()), |request| request.charge())
    }

    fn scripted(&self, answer: Answer, asked: &Asked, body: &[u8]) -> Draft {
        let latency = answer.latency.unwrap_or_else(|| self.draw_latency());
        let draft = match (answer.body, answer.text) {
            (Some(raw), _) => Draft::new(answer.status, raw),
            (None, Some(text)) => {
                Draft::new(answer.status, self.completion(&text, ChatRequest::parse(body).ok().as_ref()))
            }
            (None, None) if answer.status == StatusCode::OK => self.default_reply(asked, body),
            (None, None) => Draft::new(answer.status, chat::error_for(answer.status)),
        };
        let (fault, drip_interval) = (answer.fault, answer.drip_interval);
        let mut headers = draft.headers;
        headers.extend(answer.headers);
        Draft { headers, latency, fault, drip_interval, ..draft }
    }

    fn default_reply(&self, asked: &Asked, body: &[u8]) -> Draft {
        let allowed = match asked.route {
            Route::Chat => Method::POST,
            Route::Models => Method::GET,
            Route::Unknown => {
                let message = format!("Invalid URL ({} {})", asked.method, asked.path);
                return Draft::new(StatusCode::NOT_FOUND, chat::error(&message, "invalid_request_error", None));
            }
        };
        if asked.method != allowed {
            let message = format!("Method {} is not allowed here, only {allowed}", asked.method);
            let body = chat::error(&message, "invalid_request_error", Some("method_not_allowed"));
            let mut draft = Draft::new(StatusCode::METHOD_NOT_ALLOWED, body);
            draft.headers.extend(HeaderValue::from_str(allowed.as_str()).map(|value| (ALLOW, value)));
            return draft;
        }
        if asked.route == Route::Models {
            return Draft::new(StatusCode::OK, chat::models(&self.config.models));
        }
        self.chat_reply(body)
    }

    fn chat_reply(&self, body: &[u8]) -> Draft {
        if self.config.reply == Reply::Fixed {
            return Draft::new(StatusCode::OK, self.fixed.clone());
        }
        let request = match ChatRequest::parse(body) {
            Ok(request) => request,
            Err(error) => {
                let message = format!("We could not parse the JSON body of your request: {error}");
                return Draft::new(StatusCode::BAD_REQUEST, chat::error(&message, "invalid_request_error", None));
            }
        };
        let text = match &self.config.reply {
            Reply::Text(text) => text.clone(),
            Reply::Echo | Reply::Fixed => format!("echo: {}", request.last_user_text()),
        };
        Draft::new(StatusCode::OK, self.completion(&text, Some(&request)))
    }

    fn completion(&self, text: &str, request: Option<&ChatRequest<'_>>) -> Bytes {
        let asked_model = request.and_then(|request| request.model.as_deref());
        let model = asked_model.or(self.config.models.first().map(String::as_str)).unwrap_or_default();
        let prompt_tokens = request.map_or(0, ChatRequest::prompt_tokens);
        chat::completion(&format!("chatcmpl-mock-{}", self.serial()), model, text, prompt_tokens)
    }
}

/// What is to be known of a request's head once it is filed.
struct Asked {
    method: Method,
    /// For the message of a 404.
    path: String,
    route: Route,
    has_key: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Chat,
    Models,
    Unknown,
}

impl Route {
    fn of(path: &str) -> Self {
        match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/models" => Self::Models,
            _ => Self::Unknown,
        }
    }
}

/// An answer before it is sent.
struct Draft {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    latency: Duration,
    fault: Option<Fault>,
    drip_interval: Duration,
}

impl Draft {
    fn new(status: StatusCode, body: Bytes) -> Self {
        let headers = HeaderMap::new();
        Self { status, headers, body, latency: Duration::ZERO, fault: None, drip_interval: Duration::ZERO }
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

    /// Whether HTTP forbids this answer a body.
    fn is_bodiless(&self, method: &Method) -> bool {
        method == Method::HEAD || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }
}

/// Answer one request. Dropped by hyper when the client leaves.
///
/// # Errors
/// The body broke off or made no sense: hyper then ends the connection.
pub(super) async fn answer(
    mock: Arc<Mock>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, hyper::Error> {
    let arrived = Instant::now();
    let (mut parts, incoming) = request.into_parts();
    let arrival = Arrival::of(&mut parts.headers);
    let asked = ask(&mock, &parts);
    let head = mock.config.record.then(|| file(parts, arrived - mock.started()));
    let mut ticket = mock.ledger.open(connection, head, arrival);
    let body = read(incoming, mock.needs_body()).await?;
    ticket.set_body(&body);
    let draft = mock.decide(&asked, &body, &mut ticket);
    if !draft.latency.is_zero() {
        let _waiting = ticket.wait();
        sleep(draft.latency).await;
    }
    fail_before(draft.fault, &mut ticket).await;
    Ok(respond(draft, &asked.method, &mock, arrived, ticket))
}

fn ask(mock: &Mock, parts: &Parts) -> Asked {
    let route = Route::of(parts.uri.path());
    let path = if route == Route::Unknown { parts.uri.path().to_owned() } else { String::new() };
    Asked { method: parts.method.clone(), path, route, has_key: mock.has_key(&parts.headers) }
}

fn file(parts: Parts, arrived: Duration) -> Head {
    // HTTP/2 always sends scheme and host apart from the path; only HTTP/1's absolute form means a proxy.
    let path = match parts.uri.path_and_query() {
        Some(path) if parts.version == Version::HTTP_2 => path.to_string(),
        _ => parts.uri.to_string(),
    };
    Head { method: parts.method, path, headers: parts.headers, arrived }
}

/// Read a body to its end, which HTTP/1 needs before it can notice that a client leaves; keep it if wanted.
async fn read(mut incoming: Incoming, keep: bool) -> Result<Bytes, hyper::Error> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if !keep {
            continue;
        }
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

fn respond(draft: Draft, method: &Method, mock: &Mock, arrived: Instant, ticket: Ticket) -> Response<AnswerBody> {
    let spoiling = draft.spoiling();
    let body = if draft.is_bodiless(method) { Bytes::new() } else { draft.body };
    ticket.set_status(draft.status.as_u16());
    let mut response = Response::new(AnswerBody::new(body, spoiling, ticket));
    *response.status_mut() = draft.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    if let Ok(id) = HeaderValue::try_from(format!("req_mock_{}", mock.serial())) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(arrived.elapsed().as_millis() as u64));
    headers.extend(draft.headers);
    response
}
