//! Items from a source through one pipeline to a sink, as many at once as the window has places.
//!
//! Puller tasks take the next item as soon as they are free, so the window is always full and there is no task per item. There
//! are as many as the window has places, and one more for each item that waits between two attempts, so that a few failing items
//! do not slow the others down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use tokio::task::JoinSet;

use super::control::{Control, Price};
use super::rates::Rates;
use crate::engine::config::Timeouts;
use crate::engine::error::Error;
use crate::engine::limit::Window;
use crate::engine::pipeline::{Answer, Call, Pipeline};
use crate::engine::types::{Outcome, Receipt, Usage};

/// The most pullers that stand in for waiting items, where the window is smaller than this.
const MOST_STAND_INS: usize = 1000;

/// One item, with the number by which its outcome is known.
#[derive(Debug)]
pub struct Work {
    /// Its number.
    pub index: usize,
    /// What to ask, or why it cannot be asked.
    pub call: Result<Call, Error>,
    /// In place of the pipeline's own.
    pub timeouts: Option<Timeouts>,
    /// What its tokens cost, as far as that is known.
    pub rates: Rates,
}

impl Work {
    /// An item like the others.
    pub fn new(index: usize, call: Result<Call, Error>) -> Self {
        Self { index, call, timeouts: None, rates: Rates::default() }
    }
}

/// Where items come from.
pub trait Source: Send + Sync + 'static {
    /// The next item; `None` once there are no more.
    fn next(&self) -> impl Future<Output = Option<Work>> + Send;

    /// How many there are still, or may be: more pullers than that would find nothing.
    fn left(&self) -> usize {
        usize::MAX
    }
}

/// Where their outcomes go.
pub trait Sink<A>: Send + Sync + 'static {
    /// Waits until another outcome is welcome: whoever reads slowly holds the source back.
    fn room(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Takes the outcome of an item; every item that was taken has one, unless the run is aborted.
    ///
    /// # Errors
    /// What ends the run; what is in flight is aborted.
    fn put(&self, index: usize, outcome: Outcome<(A, Receipt)>) -> Result<(), Error>;
}

struct Shared<S, K> {
    pipeline: Pipeline,
    source: Arc<S>,
    sink: Arc<K>,
    control: Arc<Control>,
    pullers: AtomicUsize,
    /// The source has no more: nobody need look again.
    is_drained: AtomicBool,
}

impl<S: Source, K> Shared<S, K> {
    /// How many pullers there should be now.
    fn wanted(&self) -> usize {
        let bulk = self.pipeline.bulk.as_ref();
        let of_batch = bulk.and_then(|bulk| bulk.window.as_ref());
        let places =
            [of_batch, self.pipeline.window.as_ref()].into_iter().flatten().map(Window::limit).min().unwrap_or(1);
        let parked = bulk.map_or(0, |bulk| bulk.parking.parked());
        places + parked.min(places.max(MOST_STAND_INS))
    }

    async fn carry<A: Answer>(&self, call: Result<Call, Error>, timeouts: Option<Timeouts>) -> Outcome<(A, Receipt)> {
        let call = call?;
        match timeouts {
            None => self.pipeline.run::<A>(&call).await,
            Some(timeouts) => {
                let pipeline = Pipeline { timeouts, ..self.pipeline.clone() };
                // In a box of its own, since it is rare.
                Box::pin(pipeline.run::<A>(&call)).await
            }
        }
    }

    async fn pull<A: Answer + 'static>(self: Arc<Self>) -> Result<(), Error>
    where
        K: Sink<A>,
    {
        let stopped = self.control.stopped();
        loop {
            self.sink.room().await;
            if stopped.is_cancelled() {
                break;
            }
            let Some(next) = stopped.run_until_cancelled(self.source.next()).await else { break };
            let Some(Work { index, call, timeouts, rates }) = next else {
                self.is_drained.store(true, Relaxed);
                break;
            };
            self.control.begin();
            let outcome = self.carry::<A>(call, timeouts).await.map_err(|error| error.at(index));
            // Nothing is paid for what the cache has.
            let is_free = outcome.as_ref().is_ok_and(|(_, receipt)| receipt.cached);
            let used =
                outcome.as_ref().map(|(answer, _)| if is_free { Some(Usage::default()) } else { answer.usage() });
            let price = outcome.as_ref().ok().and_then(|(_, receipt)| rates.price(&receipt.body));
            let price = if is_free { Some(Price { input: 0.0, output: 0.0 }) } else { price };
            self.control.end(used, price);
            self.sink.put(index, outcome)?;
            let (pullers, wanted) = (self.pullers.load(Relaxed), self.wanted());
            if pullers > wanted {
                break;
            }
            if pullers < wanted
                && let Some(bulk) = &self.pipeline.bulk
            {
                bulk.parking.nudge();
            }
        }
        self.pullers.fetch_sub(1, Relaxed);
        Ok(())
    }

    fn fill<A: Answer + 'static>(self: &Arc<Self>, tasks: &mut JoinSet<Result<(), Error>>)
    where
        K: Sink<A>,
    {
        if self.is_drained.load(Relaxed) {
            return;
        }
        let missing = self.wanted().saturating_sub(self.pullers.load(Relaxed)).min(self.source.left());
        for _ in 0..missing {
            self.pullers.fetch_add(1, Relaxed);
            tasks.spawn(Arc::clone(self).pull::<A>());
        }
    }
}

/// Carries every item of `source` through `pipeline`, until there are no more or `control` says so. Items that were taken and
/// never put are those of an aborted run. Dropping the future aborts all that is in flight.
///
/// # Errors
/// What the sink ended the run with.
pub async fn run<A: Answer + 'static, S: Source, K: Sink<A>>(
    mut pipeline: Pipeline,
    source: Arc<S>,
    sink: Arc<K>,
    control: Arc<Control>,
) -> Result<(), Error> {
    let parking = pipeline.bulk.as_ref().map(|bulk| Arc::clone(&bulk.parking)).unwrap_or_default();
    if let Some(bulk) = &mut pipeline.bulk {
        bulk.stopped = control.stopped().clone();
    }
    let shared = Arc::new(Shared {
        pipeline,
        source,
        sink,
        control: Arc::clone(&control),
        pullers: AtomicUsize::new(0),
        is_drained: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    let mut over = std::pin::pin!(control.over());
    loop {
        if !control.stopped().is_cancelled() {
            shared.fill::<A>(&mut tasks);
        }
        tokio::select! {
            joined = tasks.join_next() => match joined {
                None => return Ok(()),
                Some(Ok(pulled)) => pulled?,
                Some(Err(fault)) => {
                    return Err(Error::internal("a batch task ended before its work").with_source(fault));
                }
            },
            () = parking.changed() => {}
            () = &mut over => return Ok(()),
        }
    }
}
