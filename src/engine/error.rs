//! The one error of the engine.
//!
//! [`Kind`] says what happened, [`Verdict`] whether another attempt could help, the rest what is known: status, request id,
//! the server's own words, attempts and time spent. The text says what happened, what was tried and what the user can do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Longest part of a server's message that is shown. A hostile or chatty server must not flood logs.
const MESSAGE_LIMIT: usize = 2048;

/// Longest name (a request id, a host) that is kept of what a server sent.
const NAME_LIMIT: usize = 256;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bad argument, found before anything was sent.
    Configuration,
    /// One request needs more than a limiter's whole capacity: waiting would never help.
    InputTooLarge,
    /// No complete HTTP response: refused, reset, cut, TLS, DNS, or not HTTP.
    Connection,
    /// The connection could not be made in time.
    ConnectTimeout,
    /// The head of an answer did not come in time.
    FirstByteTimeout,
    /// An answer that had begun fell silent.
    IdleTimeout,
    /// The call was not admitted in time; nothing was sent.
    QueueTimeout,
    /// The call's own deadline over all attempts and waits has passed.
    Deadline,
    /// The server answered with a status other than 2xx.
    Status(u16),
    /// A 2xx whose body is not an answer.
    InvalidResponse,
    /// A stream that ended before it was told to be complete.
    StreamInterrupted,
    /// The client was closed.
    Closed,
    /// The run that it belongs to was stopped before it had an answer.
    Stopped,
    /// A file of results cannot be written, read or had alone.
    Journal,
    /// A fault of ours.
    Internal,
}

/// Whether another attempt could help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt may succeed.
    Retryable,
    /// Another attempt cannot help.
    Final,
    /// It could have helped, but attempts or time are used up.
    Exhausted,
}

/// What a failure says of the server's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pressure {
    /// Nothing.
    #[default]
    None,
    /// A rate limit of this key was passed (429).
    RateLimit,
    /// The traffic grew too fast (`slow_down`, burst-rate limits): the ramp was too steep, the rate may be right.
    Ramp,
    /// The server has more to do than it can (503, 529, a full queue), whoever asks.
    Overload,
}

/// What is known of the HTTP response behind an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpContext {
    /// `x-request-id` or `request-id`.
    pub request_id: Option<String>,
    /// The body as text, scrubbed of keys and at most 64 KiB.
    pub body: Option<String>,
    /// `error.message`.
    pub message: Option<String>,
    /// `error.code`, as text.
    pub code: Option<String>,
    /// `error.type`.
    pub error_type: Option<String>,
    /// `error.param`.
    pub param: Option<String>,
}

/// An error of the engine. One pointer wide, since it travels in every `Result`.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    verdict: Verdict,
    summary: String,
    advice: Option<&'static str>,
    http: Option<HttpContext>,
    last_status: Option<u16>,
    retry_after: Option<Duration>,
    attempts: u32,
    elapsed: Duration,
    stale_connection: bool,
    of_this_process: bool,
    should_retry: Option<bool>,
    quota: bool,
    pressure: Pressure,
    key_id: Option<String>,
    partial: Option<String>,
    index: Option<usize>,
    /// What is counted by `index`.
    items: &'static str,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error with the kind's usual verdict.
    pub fn new(kind: Kind, summary: impl Into<String>) -> Self {
        let verdict = match kind {
            Kind::Connection
            | Kind::ConnectTimeout
            | Kind::FirstByteTimeout
            | Kind::IdleTimeout
            | Kind::InvalidResponse
            | Kind::StreamInterrupted => Verdict::Retryable,
            Kind::QueueTimeout | Kind::Deadline | Kind::Stopped => Verdict::Exhausted,
            _ => Verdict::Final,
        };
        Self(Box::new(Inner {
            kind,
            verdict,
            summary: summary.into(),
            advice: None,
            http: None,
            last_status: None,
            retry_after: None,
            attempts: 0,
            elapsed: Duration::ZERO,
            stale_connection: false,
            of_this_process: false,
            should_retry: None,
            quota: false,
            pressure: match kind {
                Kind::Status(429) => Pressure::RateLimit,
                Kind::Status(503 | 529) => Pressure::Overload,
                _ => Pressure::None,
            },
            key_id: None,
            partial: None,
            index: None,
            items: "prompts",
            source: None,
        }))
    }

    /// A bad argument.
    pub fn configuration(summary: impl Into<String>) -> Self {
        Self::new(Kind::Configuration, summary)
    }

    /// A fault of ours.
    pub fn internal(summary: impl Into<String>) -> Self {
        Self::new(Kind::Internal, summary)
    }

    /// The client was closed.
    pub fn closed() -> Self {
        Self::new(Kind::Closed, "the client is closed; make a new one, or keep it open while calls are made")
    }

    /// The run was stopped.
    pub fn stopped() -> Self {
        Self::new(Kind::Stopped, "the run was stopped before this item had an answer")
            .advise("Run it again, or loosen the rule that stopped it.")
    }

    /// With another verdict.
    #[must_use]
    pub fn verdict_is(mut self, verdict: Verdict) -> Self {
        self.0.verdict = verdict;
        self
    }

    /// With what the user can do.
    #[must_use]
    pub fn advise(mut self, advice: &'static str) -> Self {
        self.0.advice = Some(advice);
        self
    }

    /// With the HTTP response behind it.
    #[must_use]
    pub fn with_http(mut self, http: HttpContext) -> Self {
        self.0.http = Some(http);
        self
    }

    /// With the server's name for the request.
    #[must_use]
    pub fn with_request_id(mut self, id: Option<&str>) -> Self {
        if let Some(id) = id {
            self.0.http.get_or_insert_default().request_id = Some(printable_name(id));
        }
        self
    }

    /// With the wait the server asked for.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    /// With the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// With what the `last` attempt failed with: its words and what is known of its answer.
    #[must_use]
    pub fn after(mut self, last: Self) -> Self {
        self = self.context(&format!("the last attempt said: {}", last.0.summary));
        (self.0.last_status, self.0.retry_after) = (last.status(), last.retry_after());
        self.0.http.clone_from(&last.0.http);
        self.with_source(last)
    }

    /// With what was spent on it.
    #[must_use]
    pub fn spent(mut self, attempts: u32, elapsed: Duration) -> Self {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    /// Marks a connection that closed before the first byte of an answer.
    #[must_use]
    pub fn on_stale_connection(mut self) -> Self {
        self.0.stale_connection = true;
        self
    }

    /// Marks what this process lacked to send it: nothing left, and it says nothing of the server.
    #[must_use]
    pub fn of_this_process(mut self) -> Self {
        self.0.of_this_process = true;
        self
    }

    /// With the server's own word on retrying, if it gave one.
    #[must_use]
    pub fn with_should_retry(mut self, word: Option<bool>) -> Self {
        self.0.should_retry = word;
        self
    }

    /// Marks a quota or a budget that waiting does not refill.
    #[must_use]
    pub fn out_of_quota(mut self) -> Self {
        self.0.quota = true;
        self
    }

    /// With what it says of the server's load, where the status alone does not tell.
    #[must_use]
    pub fn with_pressure(mut self, pressure: Pressure) -> Self {
        self.0.pressure = pressure;
        self
    }

    /// With the fingerprint of the key that was used.
    #[must_use]
    pub fn with_key_id(mut self, id: impl Into<String>) -> Self {
        self.0.key_id = Some(id.into());
        self
    }

    /// With the text of a stream that had begun.
    #[must_use]
    pub fn with_partial(mut self, text: String) -> Self {
        self.0.partial = Some(text);
        self
    }

    /// With the place of its item in the batch.
    #[must_use]
    pub fn at(mut self, index: usize) -> Self {
        self.0.index = Some(index);
        self
    }

    /// With its place among `items` that are no prompts.
    #[must_use]
    pub fn among(mut self, items: &'static str, index: usize) -> Self {
        (self.0.items, self.0.index) = (items, Some(index));
        self
    }

    /// Without the place of its item in a batch, for one that is known by another name.
    #[must_use]
    pub fn by_itself(mut self) -> Self {
        self.0.index = None;
        self
    }

    /// The same for another item of the batch, which asked the same; what caused it stays with the first.
    #[must_use]
    pub fn twin(&self, index: usize) -> Self {
        self.copy().at(index)
    }

    /// The same once more; what caused it stays with the first.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = &*self.0;
        Self(Box::new(Inner {
            source: None,
            summary: inner.summary.clone(),
            http: inner.http.clone(),
            key_id: inner.key_id.clone(),
            partial: inner.partial.clone(),
            ..*inner
        }))
    }

    /// With more said in its text.
    #[must_use]
    pub fn context(mut self, text: &str) -> Self {
        self.0.summary.push_str("; ");
        self.0.summary.push_str(text);
        self
    }

    /// With every text that is shown or kept passed through `change`.
    #[must_use]
    pub fn map_texts(mut self, change: impl Fn(&mut String)) -> Self {
        change(&mut self.0.summary);
        if let Some(http) = &mut self.0.http {
            let HttpContext { request_id, body, message, code, error_type, param } = http;
            [request_id, body, message, code, error_type, param].into_iter().flatten().for_each(change);
        }
        self
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether another attempt could help.
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }

    /// The HTTP response behind it, if there was one.
    pub fn http(&self) -> Option<&HttpContext> {
        self.0.http.as_ref()
    }

    /// The status, if a server answered with one that is not 2xx: to the last attempt, where time ended the item after it.
    pub fn status(&self) -> Option<u16> {
        match self.0.kind {
            Kind::Status(status) => Some(status),
            _ => self.0.last_status,
        }
    }

    /// The wait the server asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Attempts made, the first included.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Time from the item's admission to the error.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// Whether a connection closed before the first byte of an answer.
    pub fn is_stale_connection(&self) -> bool {
        self.0.stale_connection
    }

    /// Whether this process lacked something to send it.
    pub fn is_of_this_process(&self) -> bool {
        self.0.of_this_process
    }

    /// The server's own word on retrying, if it gave one.
    pub fn should_retry(&self) -> Option<bool> {
        self.0.should_retry
    }

    /// What it says of the server's load.
    pub fn pressure(&self) -> Pressure {
        self.0.pressure
    }

    /// The fingerprint of the key that was used.
    pub fn key_id(&self) -> Option<&str> {
        self.0.key_id.as_deref()
    }

    /// The text of a stream that had begun: some of it was delivered, so it cannot be begun again.
    pub fn partial(&self) -> Option<&str> {
        self.0.partial.as_deref()
    }

    /// The place of its item in the batch, if it was one of a batch.
    pub fn index(&self) -> Option<usize> {
        self.0.index
    }

    /// Whether a quota or a budget is used up that waiting does not refill.
    pub fn is_out_of_quota(&self) -> bool {
        self.0.quota
    }

    /// Whether the account may not go on: the key is refused, or money or quota is used up. A 403 may be about one request.
    pub fn is_of_account(&self) -> bool {
        matches!(self.kind(), Kind::Status(401 | 402)) || self.is_out_of_quota()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(index) = inner.index {
            write!(formatter, "{}[{index}]: ", inner.items)?;
        }
        formatter.write_str(&inner.summary)?;
        if let Some(id) = inner.http.as_ref().and_then(|http| http.request_id.as_deref()) {
            write!(formatter, " (request {id})")?;
        }
        match inner.attempts {
            0 => {}
            1 => write!(formatter, ", after 1 attempt in {:.2} s", inner.elapsed.as_secs_f64())?,
            attempts => write!(formatter, ", after {attempts} attempts in {:.2} s", inner.elapsed.as_secs_f64())?,
        }
        if let Some(advice) = inner.advice {
            write!(formatter, ". {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Error({:?}, {:?}, {self})", self.0.kind, self.0.verdict)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// A server's text made fit for an error message: control characters escaped, at most 2 KiB.
pub fn printable(text: &str) -> String {
    printable_within(text, MESSAGE_LIMIT)
}

/// A server's name for something made fit for an error message: control characters escaped, at most 256 bytes.
pub fn printable_name(name: &str) -> String {
    printable_within(name, NAME_LIMIT)
}

fn printable_within(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    for character in text.chars() {
        if clean.len() >= limit {
            clean.push('…');
            break;
        }
        if character.is_control() { clean.extend(character.escape_default()) } else { clean.push(character) }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_happened_what_was_tried_and_what_to_do() {
        let error = Error::new(Kind::Status(429), "429 from api.openai.com: slow down")
            .with_http(HttpContext { request_id: Some("req_1".into()), ..HttpContext::default() })
            .advise("Lower the rate.")
            .spent(3, Duration::from_millis(1500));
        assert_eq!(
            error.to_string(),
            "429 from api.openai.com: slow down (request req_1), after 3 attempts in 1.50 s. Lower the rate."
        );
    }

    #[test]
    fn names_its_item_of_a_batch_first() {
        assert_eq!(Error::internal("lost").at(17).to_string(), "prompts[17]: lost");
        assert_eq!(Error::internal("lost").among("texts", 3).twin(4).to_string(), "texts[4]: lost");
    }

    #[test]
    fn escapes_control_characters_and_cuts_long_texts() {
        assert_eq!(printable("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert!(printable(&"é".repeat(10_000)).len() <= MESSAGE_LIMIT + 4);
        assert!(printable_name(&"r".repeat(10_000)).len() <= NAME_LIMIT + 4);
    }
}
