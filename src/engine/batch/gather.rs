//! A list of prompts in, a list of answers out, in the same order.
//!
//! Puller tasks take the next prompt as soon as they are free, so the window is always full and there is no task per item. There
//! are as many as the window has places, and one more for each item that waits between two attempts, so that a few failing items
//! do not slow the others down. A prompt is given up as soon as it is answered and of an answer only what is asked for is kept
//! ([`Batch::run`]: the text), so memory stays at about what came in and what goes out.

use std::iter::Enumerate;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::vec;

use bytes::Bytes;
use http::HeaderMap;
use tokio::task::JoinSet;

use crate::engine::error::Error;
use crate::engine::keys::{Lanes, Route};
use crate::engine::limit::Window;
use crate::engine::pipeline::{Answer, Call, Pipeline, stream_headers};
use crate::engine::provider::ChatTemplate;
use crate::engine::stream::{Feed, Piece, Wanted, Writer};
use crate::engine::types::{ChatCompletion, Outcome, Priority, Prompt, Receipt, Text};

/// The most pullers that stand in for waiting items, where the window is smaller than this.
const MOST_STAND_INS: usize = 1000;

/// What one failed item means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Nothing: its error stands in its place.
    Keep,
    /// The first error ends the batch; what is in flight is aborted.
    Stop,
}

/// Builds the calls of one kind of chat request.
#[derive(Debug, Clone)]
pub struct ChatCalls {
    /// Everything but the prompt.
    pub template: ChatTemplate,
    /// The model's lanes.
    pub lanes: Lanes,
    /// Those of the models that stand in.
    pub fallbacks: Arc<[Lanes]>,
    /// Headers besides the endpoint's.
    pub headers: Option<Arc<HeaderMap>>,
    /// Parts of the URL's query besides the endpoint's.
    pub query: Arc<[(String, String)]>,
    /// What the user set, for the rate limit's sake.
    pub max_tokens: Option<u64>,
    /// Who goes first.
    pub priority: Priority,
    /// `headers`, of a stream.
    stream_headers: OnceLock<Arc<HeaderMap>>,
}

impl ChatCalls {
    /// Calls with bodies from `template`, of the model that `lanes` are of.
    pub fn new(template: ChatTemplate, lanes: Lanes) -> Self {
        Self {
            template,
            lanes,
            fallbacks: Arc::new([]),
            headers: None,
            query: Arc::new([]),
            max_tokens: None,
            priority: 0,
            stream_headers: OnceLock::new(),
        }
    }

    /// The call that asks `prompt`.
    ///
    /// # Errors
    /// A configuration error for a message that the provider cannot be sent.
    pub fn call(&self, prompt: &Prompt) -> Result<Call, Error> {
        if self.template.must_stream() {
            return self.stream(prompt, Writer::unseen());
        }
        Ok(self.with_body(self.template.body(prompt, false)?))
    }

    /// The call that asks `prompt` for a stream.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stream(&self, prompt: &Prompt, writer: impl Into<Arc<Writer>>) -> Result<Call, Error> {
        let headers = self.stream_headers.get_or_init(|| Arc::new(stream_headers(self.headers.as_deref())));
        Ok(Call {
            headers: Some(Arc::clone(headers)),
            writer: Some(writer.into()),
            ..self.with_body(self.template.body(prompt, true)?)
        })
    }

    fn with_body(&self, body: Bytes) -> Call {
        Call {
            route: Route::Chat,
            query: Arc::clone(&self.query),
            lanes: self.lanes.clone(),
            fallbacks: Arc::clone(&self.fallbacks),
            headers: self.headers.clone(),
            body,
            model: self.template.model(),
            max_tokens: self.max_tokens,
            priority: self.priority,
            writer: None,
            inputs: None,
        }
    }
}

/// Many prompts of one kind.
#[derive(Debug)]
pub struct Batch {
    /// What each goes through; `bulk` is set.
    pub pipeline: Pipeline,
    /// How each is asked.
    pub calls: ChatCalls,
}

struct Shared<A, K> {
    batch: Batch,
    on_error: OnError,
    keep: fn(A, Receipt) -> K,
    /// Where the pieces go, if the answers are streamed.
    feed: Option<Arc<Feed>>,
    source: Mutex<Enumerate<vec::IntoIter<Prompt>>>,
    outcomes: Mutex<Vec<Option<Outcome<K>>>>,
    pullers: AtomicUsize,
}

impl<A: Answer + 'static, K: Send + 'static> Shared<A, K> {
    fn source(&self) -> MutexGuard<'_, Enumerate<vec::IntoIter<Prompt>>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, index: usize, prompt: &Prompt) -> Result<Call, Error> {
        let calls = &self.batch.calls;
        match &self.feed {
            None => calls.call(prompt),
            Some(feed) => calls.stream(prompt, Writer::new(Arc::clone(feed), index as u32, Wanted::Texts)),
        }
    }

    fn put(&self, index: usize, outcome: Outcome<K>) {
        if let (Some(feed), Err(_)) = (&self.feed, &outcome) {
            feed.put(outcome.err().into_iter().map(|error| (index as u32, Piece::Failed(error))));
            return;
        }
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = outcomes.get_mut(index) {
            *place = Some(outcome);
        }
    }

    /// How many pullers there should be now.
    fn wanted(&self) -> usize {
        let pipeline = &self.batch.pipeline;
        let of_batch = pipeline.bulk.as_ref().and_then(|bulk| bulk.window.as_ref());
        let places = [of_batch, pipeline.window.as_ref()].into_iter().flatten().map(Window::limit).min().unwrap_or(1);
        let parked = pipeline.bulk.as_ref().map_or(0, |bulk| bulk.parking.parked());
        places + parked.min(places.max(MOST_STAND_INS))
    }

    async fn pull(self: Arc<Self>) -> Result<(), Error> {
        loop {
            if let Some(feed) = &self.feed {
                // What fails at once, too, waits for the consumer.
                feed.room().await;
            }
            // Not in the condition of a `while let`: the lock would be held through the item's whole life.
            let next = self.source().next();
            let Some((index, prompt)) = next else { break };
            let call = self.call(index, &prompt);
            drop(prompt);
            let outcome = match call {
                Ok(call) => self.batch.pipeline.run::<A>(&call).await,
                Err(refused) => Err(refused),
            };
            let outcome = outcome.map_err(|error| error.at(index));
            match outcome {
                Err(error) if self.on_error == OnError::Stop => return Err(error),
                outcome => self.put(index, outcome.map(|(answer, receipt)| (self.keep)(answer, receipt))),
            }
            let (pullers, wanted) = (self.pullers.load(Relaxed), self.wanted());
            if pullers > wanted {
                break;
            }
            if pullers < wanted
                && let Some(bulk) = &self.batch.pipeline.bulk
            {
                bulk.parking.nudge();
            }
        }
        self.pullers.fetch_sub(1, Relaxed);
        Ok(())
    }

    fn fill(self: &Arc<Self>, tasks: &mut JoinSet<Result<(), Error>>) {
        let missing = self.wanted().saturating_sub(self.pullers.load(Relaxed)).min(self.source().len());
        for _ in 0..missing {
            self.pullers.fetch_add(1, Relaxed);
            tasks.spawn(Arc::clone(self).pull());
        }
    }
}

impl Batch {
    /// Asks every prompt; the texts and errors in the prompts' order.
    ///
    /// # Errors
    /// With [`OnError::Stop`] the first error, after the others were aborted. Dropping the future aborts all that is in flight.
    pub async fn run(self, prompts: Vec<Prompt>, on_error: OnError) -> Result<Vec<Outcome<String>>, Error> {
        self.run_keeping(prompts, on_error, |text: Text, _| text.content).await
    }

    /// Asks every prompt for a stream; the texts go into `feed` as they come, each with the number of its prompt.
    ///
    /// # Errors
    /// As in [`Batch::run`]; with [`OnError::Keep`] an error goes into the feed.
    pub async fn stream(self, prompts: Vec<Prompt>, on_error: OnError, feed: Arc<Feed>) -> Result<(), Error> {
        self.carry(prompts, on_error, |_: ChatCompletion, _| (), Some(feed)).await.map(drop)
    }

    /// Asks every prompt; of each answer what `keep` makes of it.
    ///
    /// # Errors
    /// As in [`Batch::run`].
    pub async fn run_keeping<A: Answer + 'static, K: Send + 'static>(
        self,
        prompts: Vec<Prompt>,
        on_error: OnError,
        keep: fn(A, Receipt) -> K,
    ) -> Result<Vec<Outcome<K>>, Error> {
        self.carry(prompts, on_error, keep, None).await
    }

    async fn carry<A: Answer + 'static, K: Send + 'static>(
        self,
        prompts: Vec<Prompt>,
        on_error: OnError,
        keep: fn(A, Receipt) -> K,
        feed: Option<Arc<Feed>>,
    ) -> Result<Vec<Outcome<K>>, Error> {
        let mut outcomes = Vec::new();
        outcomes.resize_with(prompts.len(), || None);
        let parking = self.pipeline.bulk.as_ref().map(|bulk| Arc::clone(&bulk.parking)).unwrap_or_default();
        let shared = Arc::new(Shared {
            batch: self,
            on_error,
            keep,
            feed,
            source: Mutex::new(prompts.into_iter().enumerate()),
            outcomes: Mutex::new(outcomes),
            pullers: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        loop {
            shared.fill(&mut tasks);
            tokio::select! {
                joined = tasks.join_next() => match joined {
                    None => break,
                    Some(Ok(pulled)) => pulled?,
                    Some(Err(fault)) => {
                        return Err(Error::internal("a batch task ended before its work").with_source(fault));
                    }
                },
                () = parking.changed() => {}
            }
        }
        let outcomes = std::mem::take(&mut *shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        let lost = |index| Err(Error::internal("an item of the batch was not carried out").at(index));
        let outcomes = outcomes.into_iter().enumerate();
        Ok(outcomes.map(|(index, outcome)| outcome.unwrap_or_else(|| lost(index))).collect())
    }
}
