//! Vectors that were given before. Each text is looked up by itself, so that a pack holds only what is new.

use std::sync::Arc;

use super::learnt::Form;
use super::piece::Piece;
use super::run::EmbedCalls;
use crate::engine::cache::{Cache, Entry, Key, TextKeys};
use crate::engine::metrics::Metrics;
use crate::engine::pipeline::{Caching, Call, is_secret};
use crate::engine::types::{Usage, Vectors};

/// How one call uses a cache.
pub(super) struct Kept {
    cache: Arc<Cache>,
    keys: TextKeys,
    /// One of no texts.
    call: Call,
    /// What is kept is not looked at, but replaced.
    refresh: bool,
    /// As the cache counts it.
    model: String,
    metrics: Arc<Metrics>,
}

impl Kept {
    /// For such calls; `None` if they are none of the cache's business.
    pub(super) fn of(caching: &Caching, calls: &EmbedCalls, metrics: &Arc<Metrics>) -> Option<Self> {
        let call = calls.call(&[], Form::Float, false);
        Some(Self {
            cache: Arc::clone(&caching.cache),
            keys: caching.texts(&call)?,
            call,
            refresh: caching.refresh,
            model: calls.lanes.first().map(|lane| lane.model.to_string()).unwrap_or_default(),
            metrics: Arc::clone(metrics),
        })
    }

    /// What is kept of each, with its key.
    pub(super) async fn find(&self, pieces: &[Piece]) -> Vec<(Key, Option<Arc<Entry>>)> {
        let keys: Vec<_> = pieces.iter().map(|piece| self.keys.of(&piece.text)).collect();
        let found = if self.refresh { vec![None; keys.len()] } else { self.cache.fetch_many(&keys).await };
        keys.into_iter().zip(found).collect()
    }

    /// Forgets what is no vector.
    pub(super) fn is_broken(&self, key: &Key) {
        self.cache.is_broken(key);
    }

    /// Counts texts that were not asked for, of so many tokens, and others that have to be.
    pub(super) fn count(&self, hits: usize, tokens: u64, misses: usize) {
        if hits > 0 {
            let usage = Usage { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens };
            self.cache.hits(&self.model, hits as u64, usage);
            self.metrics.cache_hits(hits as u64);
        }
        self.cache.misses(misses as u64);
    }

    /// Keeps the vectors of an answer to `pieces`, which stand as their vectors do. Each has its share of the answer's tokens, by
    /// its length.
    pub(super) fn keep(&self, pieces: &[&Piece], vectors: &Vectors) {
        if is_secret(&self.call, vectors.model.as_bytes()) {
            return;
        }
        let total = vectors.usage.map(|usage| usage.prompt_tokens);
        // Tokens where they are known, which they are of all or of none.
        let length = |piece: &Piece| piece.tokens(1.0);
        let whole = pieces.iter().map(|piece| length(piece)).sum::<u64>().max(1);
        // What was given out ends where the lengths so far do, so that all shares together are the whole.
        let (mut so_far, mut given) = (0, 0);
        for (piece, numbers) in pieces.iter().zip(vectors.numbers.chunks_exact(vectors.dimensions.max(1))) {
            so_far += length(piece);
            let tokens = total.map(|total| {
                let until = (u128::from(total) * u128::from(so_far) / u128::from(whole)) as u64;
                until - std::mem::replace(&mut given, until)
            });
            self.cache.put_vector(self.keys.of(&piece.text), &vectors.model, tokens, numbers);
        }
    }
}
