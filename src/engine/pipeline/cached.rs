//! The cache before everything else: what is kept takes no place, no token of a limit and no time.
//!
//! A question is looked up before its admission, and its answer is kept once it is validated. Those who ask the same at once
//! share one answer, and each leaves when it likes: the request belongs to all who wait for it. A stream is replayed from what is
//! kept; one that has to be asked shares nothing, since its pieces go to its own reader at that reader's pace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use tokio::time::{Instant, timeout};

use super::Pipeline;
use super::call::{Answer, Call};
use crate::engine::cache::{Asked, Cache, Claimed, Entry, Key, Landed, Question, TextKeys};
use crate::engine::error::{Error, Kind};
use crate::engine::keys::{Lane, Route};
use crate::engine::provider::openai;
use crate::engine::secret::scrub;
use crate::engine::types::Receipt;

/// Paths whose answers depend on nothing but the request.
const QUESTIONS: [&str; 5] = ["chat/completions", "completions", "responses", "embeddings", "messages"];

/// Headers by which a request chooses among versions of an API, or among accounts.
static CHOOSING: [HeaderName; 5] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
];

/// How the calls of a pipeline use a cache.
#[derive(Debug, Clone)]
pub struct Caching {
    /// The cache.
    pub cache: Arc<Cache>,
    /// Whether it was asked for of these very calls: then it holds for answers that may be others each time, and for any path.
    pub asked_for: bool,
    /// Whether what is kept is not looked at, but replaced.
    pub refresh: bool,
    /// Which of several answers to one question is wanted.
    pub sample: Option<u64>,
}

impl Caching {
    /// As a client uses it.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, asked_for: false, refresh: false, sample: None }
    }

    /// What `call` is found by; `None` if it is none of the cache's business.
    fn key(&self, call: &Call) -> Option<Key> {
        self.question(call).map(|(question, mut asked)| question.key(&mut asked, self.sample))
    }

    /// What the vectors of single texts are found by, which such calls as `call` ask for together; `None` if they are none of the
    /// cache's business.
    pub fn texts(&self, call: &Call) -> Option<TextKeys> {
        self.question(call).map(|(question, mut asked)| question.texts(&mut asked, self.sample))
    }

    /// What `call` asks, and whom.
    fn question<'a>(&self, call: &'a Call) -> Option<(Question<'a>, Vec<Asked>)> {
        if call.once || call.file.is_some() || call.route.method() != Method::POST {
            return None;
        }
        let config = self.cache.config();
        if let Route::Path { path, .. } = &call.route
            && !self.asked_for
        {
            let path = path.split('?').next().unwrap_or_default().trim_matches('/');
            if !QUESTIONS.contains(&path.strip_prefix("v1/").unwrap_or(path)) {
                return None;
            }
        }
        let question = Question::read(&call.body)?;
        let takes_chance = self.asked_for || self.sample.is_some() || config.any_temperature;
        if !takes_chance && question.asks_for_chance() {
            return None;
        }
        let asked = call.lanes.iter().map(|lane| asked(call, lane, config.shared)).collect();
        Some((question, asked))
    }
}

/// Who is asked by `lane`, and as whom unless answers are `shared`.
fn asked(call: &Call, lane: &Lane, shared: bool) -> Asked {
    let target = call.target(lane);
    let own = call.headers.as_deref();
    let header = |name: &HeaderName| own.and_then(|own| own.get(name)).or_else(|| target.headers.get(name));
    let chosen = CHOOSING.iter().map(|name| header(name).map_or(b"".as_slice(), http::HeaderValue::as_bytes));
    let named = [lane.upstream.provider().name(), target.method.as_str(), &*lane.model].map(str::as_bytes);
    let url = target.url_parts().map(str::as_bytes);
    let replaced = |name: &HeaderName| own.is_some_and(|own| own.contains_key(name));
    let usual = target.headers.iter().filter(|(name, _)| !replaced(name));
    let mut secrets: Vec<_> = usual
        .chain(own.into_iter().flatten())
        .filter(|(_, value)| value.is_sensitive() && !shared)
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
        .collect();
    secrets.sort_unstable();
    Asked::of(named.into_iter().chain(url).chain(chosen), secrets.into_iter().flat_map(|(name, value)| [name, value]))
}

/// What only the first of several callers wants of the answer.
type Own<T> = Mutex<Option<Result<(T, Receipt), Error>>>;

/// What becomes of a call.
pub(super) enum Turn<A> {
    /// It is answered.
    Answered(A),
    /// It is asked, and its answer kept.
    Asks(Key),
    /// It is none of the cache's business.
    IsNot,
}

impl Pipeline {
    /// Whether `call` can be answered at once.
    pub(super) fn look_up<T: Answer>(&self, call: &Call) -> Turn<(T, Receipt)> {
        let Some((caching, key)) = self.caching.as_ref().and_then(|caching| Some((caching, caching.key(call)?))) else {
            return Turn::IsNot;
        };
        if caching.refresh {
            return Turn::Asks(key);
        }
        let began = Instant::now();
        let entry = caching.cache.at_hand(&key);
        match entry.and_then(|entry| replay(&caching.cache, &key, call, &entry, began, Cache::hit)) {
            Some(answer) => Turn::Answered(answer),
            None => Turn::Asks(key),
        }
    }

    /// Asks `call`, unless it is kept where it has to be waited for, or somebody asks the same already.
    pub(super) async fn through_cache<T: Answer>(&self, key: Key, call: &Call) -> Result<(T, Receipt), Error> {
        let Some(Caching { cache, refresh, .. }) = &self.caching else { return self.carry(call).await.0 };
        let began = Instant::now();
        // Each looks for itself: to be led and followed costs more than a question to a store.
        if !refresh
            && let Some(entry) = cache.fetch(&key).await
            && let Some(answer) = replay(cache, &key, call, &entry, began, Cache::hit)
        {
            return Ok(answer);
        }
        if *refresh || call.writer.as_ref().is_some_and(|writer| writer.has_reader()) {
            return self.ask_and_keep(cache, key, call).await.0;
        }
        loop {
            let own = Arc::new(Mutex::new(None));
            let joined = cache.flight().join(key, || {
                let (pipeline, call, own) = (self.clone(), call.clone(), Arc::clone(&own));
                async move { pipeline.lead::<T>(key, &call, &own, began).await }
            });
            let landed = if joined.leads { joined.answer.await } else { self.follow(joined.answer, began).await? };
            let own = own.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (own, landed) {
                (Some(own), _) => return own,
                (None, Landed::Answer(entry, was_kept)) => {
                    let count = if was_kept { Cache::hit } else { Cache::shares };
                    return match replay(cache, &key, call, &entry, began, count) {
                        Some(answer) => Ok(answer),
                        // What is kept, or was asked for something else, is no answer to this.
                        None => self.ask_and_keep(cache, key, call).await.0,
                    };
                }
                // Its time was over, or its run was stopped: that is nobody else's matter.
                (None, Landed::Error(error))
                    if matches!(error.kind(), Kind::Deadline | Kind::QueueTimeout | Kind::Stopped | Kind::Closed) => {}
                (None, Landed::Error(error)) => return Err(error.copy()),
            }
        }
    }

    /// For all who wait for `key`; what only the first of them wants of it goes to `own`.
    async fn lead<T: Answer>(&self, key: Key, call: &Call, own: &Own<T>, began: Instant) -> Landed {
        let Some(Caching { cache, .. }) = &self.caching else {
            return Landed::Error(Arc::new(Error::internal("a flight without a cache")));
        };
        // An earlier one may have landed since this one looked; what it put is still at hand.
        if let Some(entry) = cache.at_hand(&key) {
            return Landed::Answer(entry, true);
        }
        let asking = self.ask_and_keep::<T>(cache, key, call);
        let (outcome, entry) = if cache.is_claimed() {
            match self.follow(cache.claim(&key), began).await {
                Ok(Claimed::Kept(entry)) => return Landed::Answer(entry, true),
                Ok(Claimed::Free(Some(claim))) => claim.hold(asking).await,
                Ok(Claimed::Free(None)) => asking.await,
                Err(error) => (Err(error), None),
            }
        } else {
            asking.await
        };
        let landed = match (&outcome, entry) {
            (Ok((_, receipt)), entry) => Landed::Answer(entry.unwrap_or_else(|| Arc::new(Entry::of(receipt))), false),
            (Err(error), _) => Landed::Error(Arc::new(error.copy())),
        };
        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        landed
    }

    /// Waits for another's answer, for as long as this one's own would be waited for.
    async fn follow<A>(&self, answer: impl Future<Output = A>, began: Instant) -> Result<A, Error> {
        let _parked = self.bulk.as_ref().map(|bulk| bulk.parking.park());
        let most = self.timeouts.total.map(|total| total.saturating_add(self.timeouts.queue.unwrap_or_default()));
        let Some(most) = most else { return self.unless_stopped(answer).await };
        let left = most.saturating_sub(began.elapsed());
        self.unless_stopped(timeout(left, answer)).await?.map_err(|_| {
            let seconds = most.as_secs_f64();
            let waited = format!("no answer within {seconds} s from another call, which asked the same");
            Error::new(Kind::Deadline, waited).advise("Raise timeout=, or ask for less.").spent(0, began.elapsed())
        })
    }

    async fn ask_and_keep<T: Answer>(
        &self,
        cache: &Cache,
        key: Key,
        call: &Call,
    ) -> (Result<(T, Receipt), Error>, Option<Arc<Entry>>) {
        cache.misses(1);
        let (outcome, stood_in) = self.carry::<T>(call).await;
        let entry = match &outcome {
            // Another model's answer is none of this one's.
            Ok((_, receipt)) if !stood_in && !names_a_secret(call, receipt) => {
                let entry = Arc::new(Entry::of(receipt));
                cache.put(key, Arc::clone(&entry));
                Some(entry)
            }
            _ => None,
        };
        (outcome, entry)
    }
}

/// The answer that `entry` is to `call`; `None` if it is none.
fn replay<T: Answer>(
    cache: &Cache,
    key: &Key,
    call: &Call,
    entry: &Entry,
    began: Instant,
    count: fn(&Cache, &str, Option<crate::engine::types::Usage>),
) -> Option<(T, Receipt)> {
    let answer = T::read(&entry.body).ok().filter(|answer| answer.check(call, &entry.body).is_ok());
    let Some(answer) = answer else {
        cache.is_broken(key);
        return None;
    };
    if let Some(writer) = &call.writer {
        if writer.is_chat() && openai::parse_chat(&entry.body).is_err() {
            return None;
        }
        writer.begin();
        writer.put_whole(&entry.body).ok()?;
    }
    count(cache, call.lanes.first().map_or("", |lane| &*lane.model), answer.usage());
    let receipt = Receipt {
        status: entry.status,
        headers: entry.headers.clone(),
        body: entry.body.clone(),
        raw: entry.raw.clone(),
        attempts: 0,
        key_id: None,
        queue_time: Duration::ZERO,
        elapsed: began.elapsed(),
        cached: true,
    };
    Some((answer, receipt))
}

/// Whether a server has written a secret into its answer.
fn names_a_secret(call: &Call, receipt: &Receipt) -> bool {
    [Some(&receipt.body), receipt.raw.as_ref()].into_iter().flatten().any(|body| is_secret(call, body))
}

/// Whether a secret that `call` is sent with stands in `text`.
pub fn is_secret(call: &Call, text: &[u8]) -> bool {
    let names = |headers: &HeaderMap| matches!(scrub(headers, text), std::borrow::Cow::Owned(_));
    call.lanes.iter().map(|lane| &lane.upstream.endpoint.headers).chain(call.headers.as_deref()).any(names)
}
