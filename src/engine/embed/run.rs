//! One call: texts through the pipeline in packs, their vectors into the block.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use tokio::sync::Notify;

use super::block::{Block, Shape};
use super::kept::Kept;
use super::learnt::{Form, Learnt};
use super::pack::PackLimits;
use super::piece::{Pieces, Texts, TooLong};
use super::queue::{Next, Queue, Rules};
use crate::engine::batch::{Control, Sink, Source, Work, run};
use crate::engine::cache::Cache;
use crate::engine::disk::off_the_engine;
use crate::engine::error::Error;
use crate::engine::keys::Lanes;
use crate::engine::pipeline::{Call, Pipeline};
use crate::engine::provider::openai::push_quoted;
use crate::engine::types::{Outcome, Priority, Receipt, Usage, Vectors};

/// More texts than that are looked through on a thread of their own, since that takes milliseconds.
const MANY: usize = 10_000;

/// What a text that has no vector means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The first error ends the call; what is in flight is aborted.
    Raise,
    /// A text's own fault leaves its row without numbers; any other fault ends the call.
    Blank,
    /// Every error is kept beside the rows.
    Return,
}

/// Builds the calls that ask for vectors.
#[derive(Debug, Clone)]
pub struct EmbedCalls {
    /// The model's name.
    pub model: String,
    /// Further fields: a JSON object's inside without the braces.
    pub fields: String,
    /// The model's lanes.
    pub lanes: Lanes,
    /// Headers besides the endpoint's.
    pub headers: Option<Arc<HeaderMap>>,
    /// Parts of the URL's query besides the endpoint's.
    pub query: Arc<[(String, String)]>,
    /// Who goes first.
    pub priority: Priority,
}

impl EmbedCalls {
    pub(super) fn call(&self, texts: &[&str], form: Form, once: bool) -> Call {
        let length: usize = texts.iter().map(|text| text.len() + text.len() / 16 + 4).sum();
        let fields = |body: &mut Vec<u8>| {
            body.extend_from_slice(b"\"input\":[");
            for (place, text) in texts.iter().enumerate() {
                if place > 0 {
                    body.push(b',');
                }
                push_quoted(body, text);
            }
            body.push(b']');
            if !self.fields.is_empty() {
                body.push(b',');
                body.extend_from_slice(self.fields.as_bytes());
            }
            body.extend_from_slice(b",\"encoding_format\":\"");
            body.extend_from_slice(form.name().as_bytes());
            body.push(b'"');
        };
        let length = length + self.fields.len() + 64;
        Call {
            query: Arc::clone(&self.query),
            headers: self.headers.clone(),
            // There is no answer but numbers.
            max_tokens: Some(0),
            priority: self.priority,
            inputs: Some(texts.len()),
            once,
            ..Call::post_with("embeddings", Some(&self.model), length, self.lanes.clone(), fields)
        }
    }
}

/// One call that embeds texts.
#[derive(Debug)]
pub struct Embed {
    /// What each pack goes through; `bulk` is set. Its cache is asked for each text by itself.
    pub pipeline: Pipeline,
    /// How each is asked.
    pub calls: EmbedCalls,
    /// What a pack may hold.
    pub limits: PackLimits,
    /// Whether the user said how many texts go into one.
    pub is_sized: bool,
    /// The form that vectors are asked for in, if the user said so.
    pub form: Option<Form>,
    /// What the server is known to take.
    pub learnt: Arc<Learnt>,
    /// What becomes of a text that is too long.
    pub too_long: TooLong,
    /// What becomes of an error.
    pub on_error: OnError,
    /// What is done with each vector.
    pub shape: Shape,
    /// Whether equal texts are sent once.
    pub dedupe: bool,
    /// The number of the first text, where there were others before.
    pub first: usize,
}

/// Texts embedded.
#[derive(Debug, Default)]
pub struct Embedded {
    /// Row after row; those of texts that failed are NaN.
    pub numbers: Vec<f32>,
    /// As many as texts.
    pub rows: usize,
    /// Numbers of a row; 0 if no answer told.
    pub dimensions: usize,
    /// The model that answered.
    pub model: String,
    /// Tokens of all that was asked, if the server counts them.
    pub usage: Option<Usage>,
    /// Packs that were sent, those that were refused among them.
    pub requests: usize,
    /// Rows that the cache had.
    pub cached: usize,
    /// The texts that have no vector, and why, in their order.
    pub errors: Vec<(usize, Error)>,
}

/// Both ends of the run: a pack that is refused comes back as smaller ones.
struct Desk {
    calls: EmbedCalls,
    /// Where vectors are kept.
    cache: Option<Arc<Cache>>,
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_per_token(&self) -> f64 {
        bytes_per_token(&self.calls.lanes)
    }

    /// The call of the next pack, with its number.
    fn take(&self) -> (Next, Option<Work>) {
        let mut queue = self.lock();
        let next = queue.take(self.bytes_per_token());
        let Next::Pack(number) = next else { return (next, None) };
        let (texts, form, once) = queue.texts(number);
        (next, Some(Work::new(number, Ok(self.calls.call(&texts, form, once)))))
    }
}

fn bytes_per_token(lanes: &Lanes) -> f64 {
    lanes.first().map_or(1.0, |lane| lane.tokens.bytes_per_token())
}

impl Source for Desk {
    async fn next(&self) -> Option<Work> {
        loop {
            let changed = self.changed.notified();
            match self.take() {
                (Next::Wait, _) => changed.await,
                (Next::Pack(_) | Next::End, work) => return work,
            }
        }
    }

    fn left(&self) -> usize {
        self.lock().left()
    }
}

impl Sink<Vectors> for Desk {
    async fn room(&self) {
        if let Some(cache) = &self.cache {
            cache.room().await;
        }
    }

    fn put(&self, index: usize, outcome: Outcome<(Vectors, Receipt)>) -> Result<(), Error> {
        let taken = self.lock().put(index, outcome.map(|(vectors, _)| vectors), self.bytes_per_token());
        self.changed.notify_waiters();
        taken
    }
}

impl Embed {
    /// Embeds `texts`, in as few requests as the server takes.
    ///
    /// # Errors
    /// What [`OnError`] says, after the other packs were aborted. Dropping the future aborts all that is in flight.
    pub async fn run(self, texts: Texts) -> Result<Embedded, Error> {
        self.run_until(texts, Arc::default()).await
    }

    /// The same, until `control` says otherwise: then packs that wait are given up at once, and those on the wire have its grace.
    ///
    /// # Errors
    /// As [`Embed::run`], and that it was stopped, unless nothing was left to send and all of it came in time.
    pub async fn run_until(mut self, texts: Texts, control: Arc<Control>) -> Result<Embedded, Error> {
        if u32::try_from(texts.texts.len()).is_err() {
            return Err(Error::configuration("texts must be at most 4,294,967,295"));
        }
        let (dedupe, too_long, longest) = (self.dedupe, self.too_long, self.limits.tokens_per_input);
        let bytes_per_token = bytes_per_token(&self.calls.lanes);
        let is_many = texts.texts.len() > MANY;
        let cut = move || Pieces::of(texts, dedupe, too_long, longest, bytes_per_token);
        let pieces = if is_many { off_the_engine(cut).await? } else { cut() };
        let rules = Rules {
            limits: self.limits,
            is_sized: self.is_sized,
            form: self.form,
            learnt: self.learnt,
            too_long,
            on_error: self.on_error,
            first: self.first,
        };
        let block = Block::new(pieces.rows, self.shape);
        let mut queue = Queue::new(rules, pieces, block);
        queue.refuse_known()?;
        let caching = self.pipeline.caching.take();
        let kept = caching.as_ref().and_then(|caching| Kept::of(caching, &self.calls, &self.pipeline.metrics));
        if let Some(kept) = kept {
            queue.recall(kept).await;
        }
        let cache = caching.map(|caching| caching.cache);
        let queue = Mutex::new(queue);
        let desk = Arc::new(Desk { calls: self.calls, cache, queue, changed: Notify::new() });
        run::<Vectors, _, _>(self.pipeline, Arc::clone(&desk), Arc::clone(&desk), control).await?;
        if desk.left() > 0 {
            return Err(Error::stopped());
        }
        let embedded = desk.lock().finish();
        Ok(embedded)
    }
}
