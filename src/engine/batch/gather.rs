//! A list of prompts in, a list of answers out, in the same order.
//!
//! A prompt is given up as soon as it is answered and of an answer only what is asked for is kept ([`Batch::run`]: the text), so
//! memory stays at about what came in and what goes out.

use std::iter::Enumerate;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::vec;

use bytes::Bytes;
use http::HeaderMap;

use super::run::{Sink, Source, Work, run};
use crate::engine::error::Error;
use crate::engine::keys::{Lanes, Route};
use crate::engine::pipeline::{Answer, Call, Pipeline, stream_headers};
use crate::engine::provider::ChatTemplate;
use crate::engine::stream::{Feed, Piece, Wanted, Writer};
use crate::engine::types::{ChatCompletion, Outcome, Priority, Prompt, Receipt, Text};

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
            file: None,
            once: false,
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

/// Prompts in their order, each the call that asks it.
struct Prompts {
    calls: ChatCalls,
    /// Where the pieces go, if the answers are streamed.
    feed: Option<Arc<Feed>>,
    left: Mutex<Enumerate<vec::IntoIter<Prompt>>>,
}

impl Prompts {
    fn lock(&self) -> MutexGuard<'_, Enumerate<vec::IntoIter<Prompt>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Prompts {
    async fn next(&self) -> Option<Work> {
        let (index, prompt) = self.lock().next()?;
        let call = match &self.feed {
            None => self.calls.call(&prompt),
            Some(feed) => self.calls.stream(&prompt, Writer::new(Arc::clone(feed), index as u32, Wanted::Texts)),
        };
        Some(Work::new(index, call))
    }

    fn left(&self) -> usize {
        self.lock().len()
    }
}

/// What is kept of each answer, in its prompt's place.
struct Places<A, K> {
    on_error: OnError,
    keep: fn(A, Receipt) -> K,
    feed: Option<Arc<Feed>>,
    outcomes: Mutex<Vec<Option<Outcome<K>>>>,
}

impl<A: Answer + 'static, K: Send + 'static> Sink<A> for Places<A, K> {
    async fn room(&self) {
        if let Some(feed) = &self.feed {
            // What fails at once, too, waits for the consumer.
            feed.room().await;
        }
    }

    fn put(&self, index: usize, outcome: Outcome<(A, Receipt)>) -> Result<(), Error> {
        let outcome = match outcome {
            Err(error) if self.on_error == OnError::Stop => return Err(error),
            outcome => outcome.map(|(answer, receipt)| (self.keep)(answer, receipt)),
        };
        if let (Some(feed), Err(_)) = (&self.feed, &outcome) {
            feed.put(outcome.err().into_iter().map(|error| (index as u32, Piece::Failed(error))));
            return Ok(());
        }
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        Ok(())
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
        let prompts = Mutex::new(prompts.into_iter().enumerate());
        let source = Prompts { calls: self.calls, feed: feed.clone(), left: prompts };
        let places = Arc::new(Places { on_error, keep, feed, outcomes: Mutex::new(outcomes) });
        run(self.pipeline, Arc::new(source), Arc::clone(&places), Arc::default()).await?;
        let outcomes = std::mem::take(&mut *places.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        let lost = |index| Err(Error::internal("an item of the batch was not carried out").at(index));
        let outcomes = outcomes.into_iter().enumerate();
        Ok(outcomes.map(|(index, outcome)| outcome.unwrap_or_else(|| lost(index))).collect())
    }
}
