//! The cache as a client sees it: a store, its rules and its counters.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::flight::Flight;
use super::key::Key;
use super::page::{Cursor, Page};
use super::policy::AlsoKept;
use super::redis::Claimed;
use super::stats::{Counters, Stats};
use super::store::{Place, Store};
use crate::engine::error::Error;
use crate::engine::types::Usage;

/// How a cache is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Where answers are kept.
    pub place: Place,
    /// How long; `None`: for as long as there is room, and in a Redis an hour.
    pub ttl: Option<Duration>,
    /// How much may be kept; a Redis has its own bound.
    pub max_bytes: u64,
    /// How much of what is kept elsewhere is in memory, too; 0 for none.
    pub memory_bytes: u64,
    /// Whether an answer is given to whoever asks, with whichever key.
    pub shared: bool,
    /// Whether answers are kept that may be others each time.
    pub any_temperature: bool,
    /// Answers that are kept though they are not whole.
    pub also_keep: AlsoKept,
}

impl CacheConfig {
    /// One with the usual rules.
    pub fn new(place: Place, max_bytes: u64) -> Self {
        Self {
            place,
            ttl: None,
            max_bytes,
            memory_bytes: 0,
            shared: false,
            any_temperature: false,
            also_keep: AlsoKept::default(),
        }
    }

    /// Checks it.
    ///
    /// # Errors
    /// A configuration error for a size that keeps nothing.
    pub fn validated(self) -> Result<Self, Error> {
        if self.max_bytes == 0 {
            return Err(Error::configuration("max_bytes must be at least 1; leave the cache out to keep nothing"));
        }
        Ok(self)
    }
}

/// What came of a question that several wait for.
#[derive(Debug, Clone)]
pub enum Landed {
    /// An answer, and whether it was kept before.
    Answer(Arc<Entry>, bool),
    /// An error.
    Error(Arc<Error>),
}

/// Answers that are given again.
#[derive(Debug)]
pub struct Cache {
    config: CacheConfig,
    store: Store,
    counters: Counters,
    flight: Flight<Landed>,
}

impl Cache {
    /// Opens one.
    ///
    /// # Errors
    /// As [`CacheConfig::validated`], and if the place cannot be used at all: another user's, another program's.
    pub fn open(config: CacheConfig) -> Result<Self, Error> {
        let config = config.validated()?;
        let store = Store::open(&config.place, config.ttl, config.max_bytes, config.memory_bytes)?;
        Ok(Self { config, store, counters: Counters::default(), flight: Flight::default() })
    }

    /// How it was made.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Those who ask the same at once.
    pub fn flight(&self) -> &Flight<Landed> {
        &self.flight
    }

    /// What is kept under `key`, if that can be told without waiting.
    pub fn at_hand(&self, key: &Key) -> Option<Arc<Entry>> {
        self.store.at_hand(key)
    }

    /// What is kept under `key`.
    pub async fn fetch(&self, key: &Key) -> Option<Arc<Entry>> {
        self.store.fetch(key).await
    }

    /// What is kept under each of `keys`, in their order.
    pub async fn fetch_many(&self, keys: &[Key]) -> Vec<Option<Arc<Entry>>> {
        self.store.fetch_many(keys).await
    }

    /// Waits while so much is to be written that more might not be kept: whoever has many vectors to keep goes at the store's pace.
    pub async fn room(&self) {
        self.store.room().await;
    }

    /// Keeps a text's vector.
    pub fn put_vector(&self, key: Key, model: &str, tokens: Option<u64>, numbers: &[f32]) {
        if let Some(entry) = Entry::of_vector(model, tokens, numbers) {
            self.counters.stored();
            self.store.put(key, Arc::new(entry));
        } else {
            self.counters.not_kept();
        }
    }

    /// Whether other processes may have to be waited for before a question is asked.
    pub fn is_claimed(&self) -> bool {
        self.store.is_claimed()
    }

    /// What another process has asked for under `key`, once it is there, or the right to ask for it.
    pub async fn claim(&self, key: &Key) -> Claimed<Arc<Entry>> {
        self.store.claim(key).await
    }

    /// Keeps an answer if it is whole.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        if self.config.also_keep.keeps(&entry.body) {
            self.counters.stored();
            self.store.put(key, entry);
        } else {
            self.counters.not_kept();
        }
    }

    /// Forgets an entry that is not the answer it should be.
    pub fn is_broken(&self, key: &Key) {
        self.counters.broken();
        self.store.remove(key);
    }

    /// Counts a call that it answered.
    pub fn hit(&self, model: &str, usage: Option<Usage>) {
        self.hits(model, 1, usage.unwrap_or_default());
    }

    /// Counts so many texts or calls that it answered, whose tokens are `usage`.
    pub fn hits(&self, model: &str, count: u64, usage: Usage) {
        self.counters.hits(model, count, usage);
    }

    /// Counts a call that had another's answer.
    pub fn shares(&self, model: &str, usage: Option<Usage>) {
        self.counters.shares(model, usage);
    }

    /// Counts so many texts or calls that had to be asked.
    pub fn misses(&self, count: u64) {
        self.counters.misses(count);
    }

    /// Forgets what is kept under `key`.
    pub fn remove(&self, key: &Key) {
        self.store.remove(key);
    }

    /// Some of what is kept: the first page, or the one that an earlier page says comes next.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn page(&self, from: Option<&Cursor>) -> Result<Page, Error> {
        self.store.page(from).await
    }

    /// Forgets all.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn clear(&self) -> Result<(), Error> {
        self.store.clear().await
    }

    /// Returns once all that was put is where it is kept.
    pub async fn flush(&self) {
        self.store.flush().await;
    }

    /// What went wrong with the store, once: no call fails of it.
    pub fn take_fault(&self) -> Option<String> {
        self.store.take_fault()
    }

    /// The counters now.
    pub async fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot(self.store.size().await);
        stats.broken += self.store.damaged();
        stats.dropped = self.store.dropped();
        stats
    }
}
