//! What a cache has done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::engine::types::Usage;

/// Models whose savings are told apart; those of all further ones are kept under no name.
const MOST_MODELS: usize = 256;

/// Counters that every call of a cache may touch.
#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    shared: AtomicU64,
    stored: AtomicU64,
    not_kept: AtomicU64,
    broken: AtomicU64,
    saved: Mutex<HashMap<Box<str>, Saved>>,
}

/// What was not paid for of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// Answers that were not asked for.
    pub answers: u64,
    /// Their prompts' tokens, where the server had counted them.
    pub prompt_tokens: u64,
    /// And their own.
    pub completion_tokens: u64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls, and texts to embed, that were answered by what was kept.
    pub hits: u64,
    /// Those that had to be asked.
    pub misses: u64,
    /// Calls that had the answer of another that asked the same at the same time.
    pub shared: u64,
    /// Answers and vectors that were kept.
    pub stored: u64,
    /// Answers that were not: truncated, filtered, empty.
    pub not_kept: u64,
    /// Entries that could not be read and were dropped.
    pub broken: u64,
    /// Answers that could not be kept: more of them waited to be written than there is room for, or the store failed.
    pub dropped: u64,
    /// Entries there are now.
    pub entries: u64,
    /// What they take.
    pub bytes: u64,
    /// What was saved, by model.
    pub saved: Vec<(String, Saved)>,
}

impl Counters {
    pub(super) fn hits(&self, model: &str, count: u64, usage: Usage) {
        self.hits.fetch_add(count, Relaxed);
        self.save(model, count, usage);
    }

    pub(super) fn shares(&self, model: &str, usage: Option<Usage>) {
        self.shared.fetch_add(1, Relaxed);
        self.save(model, 1, usage.unwrap_or_default());
    }

    fn save(&self, model: &str, count: u64, usage: Usage) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let model = if saved.len() < MOST_MODELS || saved.contains_key(model) { model } else { "" };
        if !saved.contains_key(model) {
            saved.insert(model.into(), Saved::default());
        }
        if let Some(saved) = saved.get_mut(model) {
            saved.answers += count;
            saved.prompt_tokens = saved.prompt_tokens.saturating_add(usage.prompt_tokens);
            saved.completion_tokens = saved.completion_tokens.saturating_add(usage.completion_tokens);
        }
    }

    pub(super) fn misses(&self, count: u64) {
        self.misses.fetch_add(count, Relaxed);
    }

    pub(super) fn stored(&self) {
        self.stored.fetch_add(1, Relaxed);
    }

    pub(super) fn not_kept(&self) {
        self.not_kept.fetch_add(1, Relaxed);
    }

    pub(super) fn broken(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    pub(super) fn snapshot(&self, (entries, bytes): (u64, u64)) -> Stats {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut saved: Vec<_> = saved.iter().map(|(model, saved)| (model.to_string(), *saved)).collect();
        saved.sort_by(|(one, _), (other, _)| one.cmp(other));
        Stats {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            shared: self.shared.load(Relaxed),
            stored: self.stored.load(Relaxed),
            not_kept: self.not_kept.load(Relaxed),
            broken: self.broken.load(Relaxed),
            dropped: 0,
            entries,
            bytes,
            saved,
        }
    }
}
