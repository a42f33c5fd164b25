//! Where answers are kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::entry::Entry;
use super::key::Key;
use super::memory::Memory;
use super::page::{Cursor, Page};
use super::redis::{Claimed, Redis, RedisConfig};
use crate::engine::error::Error;

/// Where a cache keeps what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Memory,
    /// In a folder, for every process of this user.
    Disk(PathBuf),
    /// In a Redis, for everybody who knows it.
    Redis(RedisConfig),
}

/// An entry, and how long it will still live, if not for ever.
pub type Found = (Arc<Entry>, Option<Duration>);

/// One of the stores, with so much of it in memory as was asked for.
#[derive(Debug)]
pub(super) struct Store {
    front: Option<Memory>,
    back: Option<Back>,
}

/// What outlives this process.
#[derive(Debug)]
enum Back {
    Disk(Disk),
    Redis(Redis),
}

/// Both are asked in the same words.
macro_rules! either {
    ($back:expr, $store:ident => $work:expr) => {
        match $back {
            Back::Disk($store) => $work,
            Back::Redis($store) => $work,
        }
    };
}

impl Store {
    /// Opens the store at `place`; what is elsewhere has `memory_bytes` of it here, too.
    pub(super) fn open(place: &Place, ttl: Option<Duration>, max_bytes: u64, memory_bytes: u64) -> Result<Self, Error> {
        Ok(match place {
            Place::Memory => Self { front: Some(Memory::new(max_bytes, ttl)), back: None },
            Place::Disk(folder) => Self {
                front: (memory_bytes > 0).then(|| Memory::new(memory_bytes, ttl)),
                back: Some(Back::Disk(Disk::open(folder, max_bytes, ttl)?)),
            },
            Place::Redis(config) => {
                let is_fronted = memory_bytes > 0;
                Self {
                    front: is_fronted.then(|| Memory::new(memory_bytes, Some(Redis::life(ttl)))),
                    back: Some(Back::Redis(Redis::open(config, ttl, is_fronted)?)),
                }
            }
        })
    }

    /// What is kept under `key`, if it can be told without waiting.
    pub(super) fn at_hand(&self, key: &Key) -> Option<Arc<Entry>> {
        let front = self.front.as_ref().and_then(|front| front.get(key));
        front.or_else(|| either!(self.back.as_ref()?, back => back.at_hand(key)))
    }

    /// What is kept under `key`, wherever it is.
    pub(super) async fn fetch(&self, key: &Key) -> Option<Arc<Entry>> {
        if let Some(entry) = self.at_hand(key) {
            return Some(entry);
        }
        let found = either!(self.back.as_ref()?, back => back.get(key).await)?;
        Some(self.keep_in_front(key, found))
    }

    fn keep_in_front(&self, key: &Key, (entry, lives): Found) -> Arc<Entry> {
        if let Some(front) = &self.front {
            front.put_for(*key, Arc::clone(&entry), lives);
        }
        entry
    }

    /// Whether other processes may have to be waited for.
    pub(super) fn is_claimed(&self) -> bool {
        matches!(&self.back, Some(Back::Redis(redis)) if redis.is_claimed())
    }

    /// What another process puts under `key`, or the right to ask for it.
    pub(super) async fn claim(&self, key: &Key) -> Claimed<Arc<Entry>> {
        let Some(Back::Redis(redis)) = &self.back else { return Claimed::Free(None) };
        match redis.claim(key).await {
            Claimed::Kept(found) => Claimed::Kept(self.keep_in_front(key, found)),
            Claimed::Free(claim) => Claimed::Free(claim),
        }
    }

    /// What is kept under each of `keys`, in their order.
    pub(super) async fn fetch_many(&self, keys: &[Key]) -> Vec<Option<Arc<Entry>>> {
        let mut found: Vec<_> = keys.iter().map(|key| self.at_hand(key)).collect();
        let Some(back) = &self.back else { return found };
        let missing = || found.iter().zip(keys).filter(|(found, _)| found.is_none());
        let missing: Vec<_> = missing().map(|(_, key)| *key).collect();
        if missing.is_empty() {
            return found;
        }
        let kept = either!(back, back => back.get_many(missing.clone()).await);
        let mut answers = missing.iter().zip(kept);
        for found in found.iter_mut().filter(|found| found.is_none()) {
            let Some((key, answer)) = answers.next() else { break };
            *found = answer.map(|answer| self.keep_in_front(key, answer));
        }
        found
    }

    pub(super) fn put(&self, key: Key, entry: Arc<Entry>) {
        if let Some(front) = &self.front {
            front.put(key, Arc::clone(&entry));
        }
        if let Some(back) = &self.back {
            either!(back, back => back.put(key, entry));
        }
    }

    /// Waits while so much is to be written that more might not be kept.
    pub(super) async fn room(&self) {
        if let Some(back) = &self.back {
            either!(back, back => back.room().await);
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        if let Some(front) = &self.front {
            front.remove(key);
        }
        if let Some(back) = &self.back {
            either!(back, back => back.remove(key));
        }
    }

    pub(super) async fn clear(&self) -> Result<(), Error> {
        if let Some(front) = &self.front {
            front.clear();
        }
        match &self.back {
            Some(back) => either!(back, back => back.clear().await),
            None => Ok(()),
        }
    }

    /// Some of what is kept, from the beginning or from where an earlier page ended.
    pub(super) async fn page(&self, from: Option<&Cursor>) -> Result<Page, Error> {
        match (&self.back, &self.front) {
            (Some(back), _) => either!(back, back => back.page(from).await),
            (None, Some(front)) => Ok(front.page(from)),
            (None, None) => Ok(Page::default()),
        }
    }

    /// Returns once nothing waits to be written.
    pub(super) async fn flush(&self) {
        if let Some(back) = &self.back {
            either!(back, back => back.flush().await);
        }
    }

    /// How many entries there are, and their bytes.
    pub(super) async fn size(&self) -> (u64, u64) {
        match (&self.back, &self.front) {
            (Some(back), _) => either!(back, back => back.size().await),
            (None, Some(front)) => front.size(),
            (None, None) => (0, 0),
        }
    }

    /// Entries that could not be read.
    pub(super) fn damaged(&self) -> u64 {
        self.back.as_ref().map_or(0, |back| either!(back, back => back.damaged()))
    }

    /// Entries that could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.back.as_ref().map_or(0, |back| either!(back, back => back.dropped()))
    }

    /// What went wrong and was not told yet.
    pub(super) fn take_fault(&self) -> Option<String> {
        either!(self.back.as_ref()?, back => back.take_fault())
    }
}
