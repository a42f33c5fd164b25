//! A run of any length: items come in as they are read, outcomes go out as they come, and memory is bounded by neither's number.
//!
//! Every item that was taken in comes out exactly once: answered, failed, or given up because the run was stopped before its turn.
//! On the way identical ones may be sent once (`dedupe`), and those that begin alike one after another (`prefix`).

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::control::Control;
use super::dedupe::{Dedupe, Fingerprint, Met};
use super::inlet::Inlet;
pub use super::inlet::{Item, Manner};
use super::outlet::Outlet;
pub use super::outlet::{Ended, Page};
use super::prefix::{Beginnings, Prefix, WINDOW};
use super::run::{Sink, Source, Work, run};
use crate::engine::error::{Error, Kind};
use crate::engine::pipeline::{Answer, Call, Pipeline};
use crate::engine::types::{Outcome, Receipt};

/// Bytes of the bodies of items that are neither in the inlet nor under way, from which on no more of them are taken in.
const MOST_HELD_BYTES: usize = 64 * 1024 * 1024;

/// What an answer takes besides its body, its parts and its headers: about.
const ANSWER_BYTES: usize = 2048;

/// In which order items are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they come.
    Arrival,
    /// Those that begin alike one after another, one of them first.
    Prefix,
}

/// One run: both ends of it, and what is between.
pub struct Bulk<A, K> {
    control: Arc<Control>,
    keep: fn(A, Receipt) -> K,
    inlet: Inlet,
    outlet: Outlet<K>,
    arrived: Notify,
    desk: Mutex<Desk<K>>,
}

/// An item whose request is written.
#[derive(Debug)]
struct Asked {
    work: Work,
    request: Option<Fingerprint>,
    _weight: Weight,
}

/// Bytes among those that are held, for as long as this lives.
#[derive(Debug)]
struct Weight {
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Weight {
    fn new(bytes: usize, held: &Arc<AtomicUsize>) -> Self {
        held.fetch_add(bytes, Relaxed);
        Self { bytes, held: Arc::clone(held) }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// What others wait for of an item under way.
#[derive(Debug, Default)]
struct Lead {
    request: Option<Fingerprint>,
    beginnings: Beginnings,
}

struct Desk<K> {
    /// Items whose turn has been and that have to be asked themselves after all.
    again: VecDeque<Asked>,
    prefix: Option<Prefix<Asked>>,
    dedupe: Dedupe<K, Asked>,
    under_way: HashMap<usize, Lead>,
    /// Bytes of the bodies of all [`Asked`].
    bytes: Arc<AtomicUsize>,
}

impl<K: Clone> Desk<K> {
    /// Items that are neither in the inlet nor under way; no fewer than there may be, if they are as large as they may be.
    fn held(&self) -> usize {
        let count = self.waiting() + self.dedupe.waiting();
        if self.bytes.load(Relaxed) < MOST_HELD_BYTES { count } else { count.max(WINDOW) }
    }

    /// Those of them that are nobody's followers.
    fn waiting(&self) -> usize {
        self.again.len() + self.prefix.as_ref().map_or(0, Prefix::waiting)
    }

    /// The next to be looked at.
    fn next(&mut self, inlet: &Inlet) -> Option<(Asked, Beginnings)> {
        if let Some(asked) = self.again.pop_front() {
            return Some((asked, Beginnings::default()));
        }
        let Some(prefix) = &mut self.prefix else {
            return inlet.take().map(|item| (Asked::of(item, &self.bytes), Beginnings::default()));
        };
        // One in any case: what is held may be others' followers.
        while (prefix.waiting() == 0 || self.bytes.load(Relaxed) < MOST_HELD_BYTES)
            && prefix.waiting() < WINDOW
            && let Some(item) = inlet.take()
        {
            let asked = Asked::of(item, &self.bytes);
            let body = asked.work.call.as_ref().map(|call| call.body.clone()).unwrap_or_default();
            prefix.push(&body, asked);
        }
        prefix.pop()
    }
}

impl Asked {
    fn of(item: Item, held: &Arc<AtomicUsize>) -> Self {
        let Item { index, prompt, manner } = item;
        let call = prompt.and_then(|prompt| manner.calls.call(&prompt));
        let request = call.as_ref().ok().filter(|_| manner.dedupe).map(|call: &Call| Fingerprint::of(&call.body));
        let bytes = call.as_ref().map_or(0, |call| call.body.len());
        let work = Work { index, call, timeouts: manner.timeouts, rates: manner.rates.clone() };
        Self { work, request, _weight: Weight::new(bytes, held) }
    }
}

impl<A, K: Clone> Bulk<A, K> {
    /// A run of which `keep` says what is kept of an answer.
    pub fn new(control: Arc<Control>, order: Order, keep: fn(A, Receipt) -> K) -> Self {
        let desk = Desk {
            again: VecDeque::new(),
            prefix: (order == Order::Prefix).then(Prefix::default),
            dedupe: Dedupe::default(),
            under_way: HashMap::new(),
            bytes: Arc::default(),
        };
        Self {
            control,
            keep,
            inlet: Inlet::default(),
            outlet: Outlet::default(),
            arrived: Notify::new(),
            desk: Mutex::new(desk),
        }
    }

    /// Takes in as many of `items` as there is room for; the number. None once the run is over.
    pub fn submit(&self, items: impl Iterator<Item = Item>) -> usize {
        let taken = self.inlet.put(items);
        (0..taken).for_each(|_| self.arrived.notify_one());
        taken
    }

    /// Takes in one that has to be asked again, before all others; `false` once the run is over.
    pub fn submit_first(&self, item: Item) -> bool {
        let is_taken = self.inlet.put_first(item);
        if is_taken {
            self.arrived.notify_one();
        }
        is_taken
    }

    /// How many items there is room for.
    pub fn room(&self) -> usize {
        self.inlet.room()
    }

    /// Calls `waiter` as soon as there is room for items, or the run is over.
    pub fn when_room(&self, waiter: impl FnOnce() + Send + 'static) {
        self.inlet.when_room(Box::new(waiter));
    }

    /// Whether nothing is taken in any more.
    pub fn is_over(&self) -> bool {
        self.inlet.is_over()
    }

    /// No more items will come; the run ends once all have ended.
    pub fn close(&self) {
        self.inlet.close();
        self.arrived.notify_waiters();
    }

    /// Outcomes that have come, at most so many.
    pub fn take(&self, most: usize) -> Page<K> {
        self.outlet.take(most)
    }

    /// Calls `waiter` as soon as there is something to take, or the run is over.
    pub fn when_ready(&self, waiter: impl FnOnce() + Send + 'static) {
        self.outlet.when_ready(Box::new(waiter));
    }

    /// The run's switch and counters.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The next item that is to be sent; those that need not be are done with on the way.
    fn pick(&self) -> Option<Work> {
        let mut desk = self.lock();
        let mut answered = Vec::new();
        let mut picked = None;
        while let Some((asked, beginnings)) = desk.next(&self.inlet) {
            let request = asked.request;
            let met = match request {
                Some(request) => desk.dedupe.meet(request, asked),
                None => Met::First(asked),
            };
            let released = match met {
                Met::First(Asked { work, .. }) => {
                    desk.under_way.insert(work.index, Lead { request, beginnings });
                    picked = Some(work);
                    break;
                }
                Met::Answered(asked, kept) => Some(Ended { index: asked.work.index, outcome: Ok(kept), cached: true }),
                Met::Follows => None,
            };
            // It leads nobody, since it is not sent.
            if let Some(prefix) = &mut desk.prefix {
                prefix.ended(beginnings);
            }
            answered.extend(released);
        }
        self.inlet.hold(desk.held());
        drop(desk);
        self.share(answered);
        picked
    }

    /// Hands on outcomes of items that were not sent themselves.
    fn share(&self, ended: Vec<Ended<K>>) {
        for each in &ended {
            self.control.share(each.outcome.as_ref().map(|_| ()));
        }
        if !ended.is_empty() {
            // They share the answer of the one that was sent.
            self.outlet.put(ended, 0);
        }
    }

    /// Whether no item will be picked any more.
    fn is_drained(&self) -> bool {
        let desk = self.lock();
        self.inlet.left() == 0 && desk.waiting() == 0
    }

    /// What becomes of those who followed an item that has ended so.
    fn follow(desk: &mut Desk<K>, request: Fingerprint, outcome: &Outcome<K>, size: usize) -> Vec<Ended<K>> {
        let error = match outcome {
            Ok(kept) => {
                let followers = desk.dedupe.answered(request, kept.clone(), size);
                let ended = |asked: Asked| Ended { index: asked.work.index, outcome: Ok(kept.clone()), cached: true };
                return followers.into_iter().map(ended).collect();
            }
            Err(error) => error,
        };
        let followers = desk.dedupe.left(request);
        if matches!(error.kind(), Kind::Deadline | Kind::QueueTimeout) {
            // Its own time was over, not theirs.
            desk.again.extend(followers);
            return Vec::new();
        }
        let ended =
            |Asked { work, .. }| Ended { index: work.index, outcome: Err(error.twin(work.index)), cached: true };
        followers.into_iter().map(ended).collect()
    }

    /// Gives up whatever has not ended.
    fn give_up(&self) {
        let mut desk = self.lock();
        let under_way: Vec<_> = desk.under_way.drain().map(|(index, _)| index).collect();
        let waiting = self.inlet.end().into_iter().map(|item| item.index);
        let mut left: Vec<usize> = under_way.iter().copied().chain(waiting).collect();
        left.extend(desk.again.drain(..).map(|asked| asked.work.index));
        left.extend(desk.dedupe.abandoned().into_iter().map(|asked| asked.work.index));
        left.extend(desk.prefix.iter_mut().flat_map(Prefix::drain).map(|asked| asked.work.index));
        drop(desk);
        for _ in under_way {
            self.control.end(Err(&Error::stopped()), None);
        }
        left.sort_unstable();
        let ended = |index| Ended { index, outcome: Err(Error::stopped().at(index)), cached: false };
        self.outlet.put(left.into_iter().map(ended), 0);
        self.outlet.end();
    }

    fn lock(&self) -> MutexGuard<'_, Desk<K>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives up the rest however a run ends, so that nobody waits for it for ever.
struct Ends<A, K: Clone>(Arc<Bulk<A, K>>);

impl<A, K: Clone> Drop for Ends<A, K> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl<A: Answer + 'static, K: Clone + Send + 'static> Bulk<A, K> {
    /// Carries what comes in through `pipeline`, until it is closed and all have ended, or it is stopped. Dropping the future, even
    /// one that was never polled, gives up the rest.
    ///
    /// # Errors
    /// A fault of the engine's own.
    pub fn run(self: Arc<Self>, pipeline: Pipeline) -> impl Future<Output = Result<(), Error>> + Send {
        let ends = Ends(Arc::clone(&self));
        async move {
            let _ends = ends;
            run::<A, _, _>(pipeline, Arc::clone(&self), Arc::clone(&self), Arc::clone(&self.control)).await
        }
    }
}

impl<A: Send + 'static, K: Clone + Send + 'static> Source for Bulk<A, K> {
    async fn next(&self) -> Option<Work> {
        loop {
            if let Some(work) = self.pick() {
                return Some(work);
            }
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            // What came between the two is not told again.
            if let Some(work) = self.pick() {
                return Some(work);
            }
            if self.is_drained() {
                self.arrived.notify_waiters();
                return None;
            }
            arrived.await;
        }
    }

    fn left(&self) -> usize {
        self.inlet.left().saturating_add(self.lock().waiting())
    }
}

impl<A: Answer + 'static, K: Clone + Send + 'static> Sink<A> for Bulk<A, K> {
    async fn room(&self) {
        self.outlet.room().await;
    }

    fn put(&self, index: usize, outcome: Outcome<(A, Receipt)>) -> Result<(), Error> {
        let size = ANSWER_BYTES + outcome.as_ref().map_or(0, |(_, receipt)| 2 * receipt.body.len());
        let outcome = outcome.map(|(answer, receipt)| (self.keep)(answer, receipt));
        let mut desk = self.lock();
        let Lead { request, beginnings } = desk.under_way.remove(&index).unwrap_or_default();
        let followers = request.map(|request| Self::follow(&mut desk, request, &outcome, size)).unwrap_or_default();
        if let Some(prefix) = &mut desk.prefix {
            prefix.ended(beginnings);
        }
        let (waiting, held) = (desk.waiting(), desk.held());
        drop(desk);
        self.inlet.hold(held);
        self.outlet.put([Ended { index, outcome, cached: false }], size);
        self.share(followers);
        if waiting > 0 {
            // Those that waited for this one.
            self.arrived.notify_waiters();
        }
        Ok(())
    }
}
