//! A list of prompts in, a list of answers out, in the same order.
//!
//! A fixed number of puller tasks take the next prompt as soon as they are free, so the window is always full and there is no
//! task per item. A prompt is given up as soon as it is answered and of an answer only the text is kept, so memory stays at
//! about what came in and what goes out.

use std::iter::Enumerate;
use std::sync::{Arc, Mutex, PoisonError};
use std::vec;

use http::{HeaderMap, Method};
use tokio::task::JoinSet;

use crate::engine::config::Endpoint;
use crate::engine::error::Error;
use crate::engine::pipeline::{Call, Pipeline};
use crate::engine::provider::openai::{ChatTemplate, chat_url};
use crate::engine::tokens;
use crate::engine::transport::{Request, Target};
use crate::engine::types::{Outcome, Prompt, Text};

/// What one failed item means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Nothing: its error stands in its place.
    Keep,
    /// The first error ends the batch; what is in flight is aborted.
    Stop,
}

/// Where the chat requests of `endpoint` go; `extra` headers join its own.
pub fn chat_target(endpoint: &Endpoint, extra: HeaderMap) -> Target {
    let mut headers = endpoint.headers.clone();
    headers.extend(extra);
    Target::new(Method::POST, &chat_url(&endpoint.base_url), headers)
}

/// Builds the calls of one kind of chat request.
#[derive(Debug, Clone)]
pub struct ChatCalls {
    template: ChatTemplate,
    target: Arc<Target>,
    max_tokens: Option<u64>,
}

impl ChatCalls {
    /// Calls to `target` with bodies from `template`. `max_tokens` is what the user set, for the rate limit's sake.
    pub fn new(template: ChatTemplate, target: Arc<Target>, max_tokens: Option<u64>) -> Self {
        Self { template, target, max_tokens }
    }

    /// The call that asks `prompt`.
    pub fn call(&self, prompt: &Prompt) -> Call {
        let body = self.template.body(prompt);
        Call {
            tokens: tokens::estimate(body.len(), self.max_tokens),
            request: Request { target: Arc::clone(&self.target), body },
        }
    }
}

/// Many prompts of one kind.
#[derive(Debug)]
pub struct Batch {
    /// What each goes through.
    pub pipeline: Pipeline,
    /// How each is asked.
    pub calls: ChatCalls,
    /// In flight at once, at most.
    pub concurrency: usize,
}

struct Shared {
    batch: Batch,
    on_error: OnError,
    source: Mutex<Enumerate<vec::IntoIter<Prompt>>>,
    outcomes: Mutex<Vec<Option<Outcome<String>>>>,
}

impl Shared {
    fn next(&self) -> Option<(usize, Prompt)> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    fn put(&self, index: usize, outcome: Outcome<String>) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = outcomes.get_mut(index) {
            *place = Some(outcome);
        }
    }

    async fn pull(self: Arc<Self>) -> Result<(), Error> {
        while let Some((index, prompt)) = self.next() {
            let call = self.batch.calls.call(&prompt);
            drop(prompt);
            let outcome = self.batch.pipeline.run::<Text>(&call).await;
            match outcome {
                Err(error) if self.on_error == OnError::Stop => return Err(error),
                outcome => self.put(index, outcome.map(|(text, _)| text.content)),
            }
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
        let mut outcomes = Vec::new();
        outcomes.resize_with(prompts.len(), || None);
        let pullers = self.concurrency.min(prompts.len());
        let shared = Arc::new(Shared {
            batch: self,
            on_error,
            source: Mutex::new(prompts.into_iter().enumerate()),
            outcomes: Mutex::new(outcomes),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..pullers {
            tasks.spawn(Arc::clone(&shared).pull());
        }
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(pulled) => pulled?,
                Err(fault) => return Err(Error::internal("a batch task ended before its work").with_source(fault)),
            }
        }
        let outcomes = std::mem::take(&mut *shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        let lost = || Err(Error::internal("an item of the batch was not carried out"));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect())
    }
}
