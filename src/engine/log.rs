//! What becomes of requests, told to whoever listens: structured records without a word of any prompt, answer or key.
//!
//! Nobody listens by default, and then a record that is not made costs one atomic load. Where they go is the [`Sink`]'s to say:
//! the engine does no I/O for them and waits for nobody.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How much a record matters; the numbers are those of Python's `logging`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Every step.
    Trace = 5,
    /// Every attempt.
    Debug = 10,
    /// What went wrong and what was done about it.
    Info = 20,
    /// What concerns more than one request.
    Warning = 30,
}

/// What one field of a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// A name: of a host, a cause, a request.
    Name(String),
    /// How many, or which.
    Number(u64),
    /// How long.
    Seconds(f64),
}

impl From<&str> for Field {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<u64> for Field {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Field {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Field {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<Duration> for Field {
    fn from(time: Duration) -> Self {
        Self::Seconds(time.as_secs_f64())
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How much it matters.
    pub level: Level,
    /// What happened, in a word.
    pub event: &'static str,
    /// What is known of it.
    pub fields: Vec<(&'static str, Field)>,
}

impl Record {
    /// Of something that happened.
    pub fn new(level: Level, event: &'static str) -> Self {
        Self { level, event, fields: Vec::new() }
    }

    /// With a field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Field>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// With a field, if there is something to say.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Field>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

/// Where records go.
pub trait Sink: Send + Sync {
    /// Takes one, without waiting.
    fn put(&self, record: Record);
}

/// More than any level.
const OFF: u8 = u8::MAX;

static LEAST: AtomicU8 = AtomicU8::new(OFF);
static SINK: OnceLock<Box<dyn Sink>> = OnceLock::new();
static CALLS: AtomicU64 = AtomicU64::new(1);

/// Whether somebody wants to hear of what matters so much.
pub fn is_on(level: Level) -> bool {
    level as u8 >= LEAST.load(Relaxed)
}

/// Tells `sink` from now on whatever matters at least so much; `None`: nothing. The first sink stays.
pub fn listen(least: Option<u8>, sink: impl FnOnce() -> Box<dyn Sink>) {
    if least.is_some() {
        SINK.get_or_init(sink);
    }
    LEAST.store(least.unwrap_or(OFF), Relaxed);
}

/// Tells what `record` makes, if somebody wants to hear it.
pub fn tell(level: Level, event: &'static str, fill: impl FnOnce(Record) -> Record) {
    if is_on(level)
        && let Some(sink) = SINK.get()
    {
        sink.put(fill(Record::new(level, event)));
    }
}

/// A number by which the records of one call are known; 0 while nobody listens.
pub fn call_number() -> u64 {
    if is_on(Level::Warning) { CALLS.fetch_add(1, Relaxed) } else { 0 }
}
