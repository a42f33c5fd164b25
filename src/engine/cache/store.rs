//! Where answers are kept.

use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::key::Key;
use super::memory::Memory;
use crate::engine::error::Error;

/// Where a cache keeps what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Memory,
}

/// One of the stores.
#[derive(Debug)]
pub(super) enum Store {
    Memory(Memory),
}

impl Store {
    pub(super) fn open(place: &Place, ttl: Option<Duration>, max_bytes: u64) -> Self {
        match place {
            Place::Memory => Self::Memory(Memory::new(max_bytes, ttl)),
        }
    }

    /// What is kept under `key`, if it can be told without waiting.
    pub(super) fn at_hand(&self, key: &Key) -> Option<Arc<Entry>> {
        match self {
            Self::Memory(memory) => memory.get(key),
        }
    }

    /// What is kept under `key`, wherever it is.
    #[expect(clippy::unused_async, reason = "other stores wait")]
    pub(super) async fn fetch(&self, key: &Key) -> Option<Arc<Entry>> {
        match self {
            Self::Memory(memory) => memory.get(key),
        }
    }

    pub(super) fn put(&self, key: Key, entry: Arc<Entry>) {
        match self {
            Self::Memory(memory) => memory.put(key, entry),
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        match self {
            Self::Memory(memory) => memory.remove(key),
        }
    }

    #[expect(clippy::unused_async, reason = "other stores wait")]
    pub(super) async fn clear(&self) -> Result<(), Error> {
        match self {
            Self::Memory(memory) => memory.clear(),
        }
        Ok(())
    }

    /// How many entries there are, and their bytes.
    #[expect(clippy::unused_async, reason = "other stores wait")]
    pub(super) async fn size(&self) -> (u64, u64) {
        match self {
            Self::Memory(memory) => memory.size(),
        }
    }
}
