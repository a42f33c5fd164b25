//! What a server turned out to take, for one model: kept for a client's life and shared by all its calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Models that are remembered; who names more of them learns nothing of the rest.
const MOST_MODELS: usize = 1024;

/// In which form vectors are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Bytes of 32-bit floats: a quarter of the bytes.
    Base64,
    /// Lists of numbers, which every server knows.
    Float,
}

impl Form {
    /// As the request says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base64 => "base64",
            Self::Float => "float",
        }
    }
}

const UNKNOWN: u8 = 0;
const GIVES_BASE64: u8 = 1;
const FLOATS_ONLY: u8 = 2;

/// What was learnt of one model. A lesson lost to another at the same moment is learnt again.
#[derive(Debug)]
pub struct Learnt {
    items: AtomicUsize,
    tokens: AtomicU64,
    base64: AtomicU8,
    dimensions: AtomicUsize,
}

impl Default for Learnt {
    fn default() -> Self {
        Self {
            items: AtomicUsize::new(usize::MAX),
            tokens: AtomicU64::new(u64::MAX),
            base64: AtomicU8::new(UNKNOWN),
            dimensions: AtomicUsize::new(0),
        }
    }
}

impl Learnt {
    /// The most texts that a request may hold, as far as refusals tell.
    pub fn items(&self) -> usize {
        self.items.load(Relaxed)
    }

    /// The most tokens that it may hold, by estimate.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Relaxed)
    }

    /// A request of more texts than that was refused.
    pub fn takes_items(&self, items: usize) {
        self.items.fetch_min(items.max(1), Relaxed);
    }

    /// A request of more tokens than that was refused.
    pub fn takes_tokens(&self, tokens: u64) {
        self.tokens.fetch_min(tokens.max(1), Relaxed);
    }

    /// The form to ask for.
    pub fn form(&self) -> Form {
        if self.base64.load(Relaxed) == FLOATS_ONLY { Form::Float } else { Form::Base64 }
    }

    /// Whether base64 has neither been given nor found to be refused.
    pub fn is_form_unknown(&self) -> bool {
        self.base64.load(Relaxed) == UNKNOWN
    }

    /// Base64 was given.
    pub fn gives_base64(&self) {
        self.base64.store(GIVES_BASE64, Relaxed);
    }

    /// What was refused as base64 was answered with numbers.
    pub fn gives_floats_only(&self) {
        self.base64.store(FLOATS_ONLY, Relaxed);
    }

    /// How long its vectors are, once one was seen.
    pub fn dimensions(&self) -> Option<usize> {
        Some(self.dimensions.load(Relaxed)).filter(|dimensions| *dimensions > 0)
    }

    /// A vector of that length was seen.
    pub fn has_dimensions(&self, dimensions: usize) {
        self.dimensions.store(dimensions, Relaxed);
    }
}

/// What was learnt of each model of a client.
#[derive(Debug, Default)]
pub struct LearntModels(Mutex<HashMap<String, Arc<Learnt>>>);

impl LearntModels {
    /// What was learnt of `model`.
    pub fn of(&self, model: &str) -> Arc<Learnt> {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(model) {
            return Arc::clone(known);
        }
        let learnt = Arc::<Learnt>::default();
        if models.len() < MOST_MODELS {
            models.insert(model.to_owned(), Arc::clone(&learnt));
        }
        learnt
    }
}
