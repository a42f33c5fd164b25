//! A request's tokens before the server has counted them.
//!
//! Four bytes a token is the usual rule of thumb for English; other languages, code and JSON differ, and so do models. So each
//! model starts at four, and each answer's usage corrects it a little (an exponentially weighted mean, kept within 1 and 8). The
//! true usage settles every reservation besides, so an estimate that is off does not drift.
//!
//! `OpenAI` counts a request against the minute as the larger of `max_tokens` and its own estimate from the characters ("Rate
//! limits" guide), so do we. Anthropic counts prompt and answer apart, the answer first by `max_tokens`.
//!
//! An exact tokenizer would cost four times as much as all the rest of a request (see the page on the architecture).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

const BYTES_PER_TOKEN: f32 = 4.0;
const FEWEST_BYTES_PER_TOKEN: f32 = 1.0;
const MOST_BYTES_PER_TOKEN: f32 = 8.0;

/// Answer of a request that sets no `max_tokens`, until some were seen.
const COMPLETION_TOKENS: f32 = 256.0;

/// Longest answer that is believed: no model writes more, and one absurd usage must not spoil the mean for long.
const MOST_COMPLETION_TOKENS: f32 = 200_000.0;

/// Weight of the newest answer: the last 20 or so decide.
const WEIGHT: f32 = 0.1;

/// Models that are told apart; who names more of them shares one that learns nothing for them.
const MOST_MODELS: usize = 1024;

/// What a request will probably count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Prompt and answer, as `OpenAI` counts them: the larger of `max_tokens` and the prompt.
    pub tokens: u64,
    /// The prompt.
    pub input_tokens: u64,
    /// The answer: `max_tokens`, or else what answers were like so far.
    pub output_tokens: u64,
}

/// What was learnt of one model. Cheap to read and to correct from any thread; a correction lost to another at the same moment
/// does not matter.
#[derive(Debug)]
pub struct ModelTokens {
    bytes_per_token: Mean,
    completion_tokens: Mean,
}

impl Default for ModelTokens {
    fn default() -> Self {
        Self {
            bytes_per_token: Mean::starting_at(BYTES_PER_TOKEN),
            completion_tokens: Mean::starting_at(COMPLETION_TOKENS),
        }
    }
}

impl ModelTokens {
    /// What a request of `body_bytes` that may answer with up to `max_tokens` will probably count.
    pub fn estimate(&self, body_bytes: usize, max_tokens: Option<u64>) -> Estimate {
        let prompt = ((body_bytes as f64 / f64::from(self.bytes_per_token.get())).ceil() as u64).max(1);
        Estimate {
            tokens: prompt.max(max_tokens.unwrap_or(0)),
            input_tokens: prompt,
            output_tokens: max_tokens.unwrap_or_else(|| f64::from(self.completion_tokens.get()).ceil() as u64),
        }
    }

    /// Corrects itself by what a request of `body_bytes` truly used. Zero tokens say that the server does not count.
    pub fn observe(&self, body_bytes: usize, prompt_tokens: u64, completion_tokens: u64) {
        if body_bytes > 0 && prompt_tokens > 0 {
            let bytes = (body_bytes as f64 / prompt_tokens as f64) as f32;
            self.bytes_per_token.observe(bytes.clamp(FEWEST_BYTES_PER_TOKEN, MOST_BYTES_PER_TOKEN));
        }
        if completion_tokens > 0 {
            self.completion_tokens.observe((completion_tokens as f32).min(MOST_COMPLETION_TOKENS));
        }
    }

    /// Bytes of a request's body to one token of its prompt, at present.
    pub fn bytes_per_token(&self) -> f64 {
        f64::from(self.bytes_per_token.get())
    }
}

/// An exponentially weighted mean.
#[derive(Debug)]
struct Mean(AtomicU32);

impl Mean {
    fn starting_at(value: f32) -> Self {
        Self(AtomicU32::new(value.to_bits()))
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn observe(&self, value: f32) {
        let mean = self.get();
        self.0.store((mean + WEIGHT * (value - mean)).to_bits(), Relaxed);
    }
}

/// What was learnt of each model, by its name.
#[derive(Debug, Default)]
pub struct Estimator(Mutex<HashMap<String, Arc<ModelTokens>>>);

impl Estimator {
    /// What is known of `model`; to be kept by whoever asks it often.
    pub fn model(&self, model: &str) -> Arc<ModelTokens> {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(model) {
            return Arc::clone(known);
        }
        let new = Arc::<ModelTokens>::default();
        if models.len() < MOST_MODELS {
            models.insert(model.to_owned(), Arc::clone(&new));
        }
        new
    }
}

/// Tokens to reserve for a request of `body_bytes` to a model that nothing is known of.
pub fn estimate(body_bytes: usize, max_tokens: Option<u64>) -> u64 {
    ModelTokens::default().estimate(body_bytes, max_tokens).tokens
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserves_the_larger_of_prompt_and_max_tokens() {
        assert_eq!(estimate(401, None), 101);
        assert_eq!(estimate(401, Some(50)), 101);
        assert_eq!(estimate(401, Some(1000)), 1000);
        assert_eq!(estimate(0, None), 1);
    }

    #[test]
    fn prompt_and_answer_are_estimated_apart() {
        let model = ModelTokens::default();
        assert_eq!(model.estimate(400, Some(1000)), Estimate { tokens: 1000, input_tokens: 100, output_tokens: 1000 });
        assert_eq!(model.estimate(400, None).output_tokens, 256);
    }

    #[test]
    fn learns_each_models_bytes_per_token_and_length_of_answers() {
        let estimator = Estimator::default();
        let model = estimator.model("chinese");
        for _ in 0..100 {
            model.observe(300, 200, 50);
        }
        let estimate = estimator.model("chinese").estimate(300, None);
        assert_eq!(estimate, Estimate { tokens: 200, input_tokens: 200, output_tokens: 51 });
        assert_eq!(estimator.model("other").estimate(300, None).input_tokens, 75);
    }

    #[test]
    fn a_server_that_counts_nothing_teaches_nothing() {
        let model = ModelTokens::default();
        model.observe(300, 0, 0);
        model.observe(0, 5, 0);
        assert_eq!(model.estimate(400, None), ModelTokens::default().estimate(400, None));
    }

    #[test]
    fn more_models_than_anyone_has_are_not_remembered() {
        let estimator = Estimator::default();
        for number in 0..MOST_MODELS + 10 {
            estimator.model(&number.to_string());
        }
        assert_eq!(estimator.0.lock().unwrap().len(), MOST_MODELS);
    }

    proptest! {
        #[test]
        fn no_usage_however_absurd_leaves_the_bounds(
            usages in prop::collection::vec((any::<usize>(), any::<u64>(), any::<u64>()), 0..50),
        ) {
            let model = ModelTokens::default();
            for (bytes, prompt, completion) in usages {
                model.observe(bytes, prompt, completion);
                prop_assert!((1.0..=8.0).contains(&model.bytes_per_token()));
            }
            prop_assert!(model.estimate(1000, None).output_tokens <= 200_000);
        }
    }
}
