//! A request's tokens before the server has counted them.
//!
//! Four bytes a token is the usual rule of thumb for English; other languages, code and JSON differ, and so do models. So each
//! model starts at four, and each answer's usage corrects it in proportion to its size (sums that forget, kept within 1 and 8).
//! The true usage settles every reservation besides, so an estimate that is off does not drift.
//!
//! `OpenAI` counts a request against the minute as the larger of `max_tokens` and its own estimate from the characters ("Rate
//! limits" guide), so do we. Anthropic counts prompt and answer apart, the answer first by `max_tokens`.
//!
//! An exact tokenizer would cost four times as much as all the rest of a request (see the page on the architecture).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const BYTES_PER_TOKEN: f32 = 4.0;
const FEWEST_BYTES_PER_TOKEN: f32 = 1.0;
const MOST_BYTES_PER_TOKEN: f32 = 8.0;

/// Answer of a request that sets no `max_tokens`, until some were seen.
const COMPLETION_TOKENS: f32 = 256.0;

/// Longest answer that is believed: no model writes more, and one absurd usage must not spoil the mean for long.
const MOST_COMPLETION_TOKENS: f32 = 200_000.0;

/// Weight of the newest answer: the last 20 or so decide.
const WEIGHT: f32 = 0.1;

/// Of a body this much is JSON around the first message and no prompt. Without it a run of short prompts would teach that a token
/// is long, and the next long prompt be taken for a short one.
const ENVELOPE_BYTES: usize = 64;

/// How much of an answer's bytes and tokens the next ones leave: the last 50 or so decide, each by its size.
const KEPT: f32 = 0.98;

/// What the first answers are weighed against: a prompt of 500 tokens at the usual rate.
const PRIOR_TOKENS: f32 = 500.0;

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
    prompt_bytes: Sum,
    prompt_tokens: Sum,
    completion_tokens: Mean,
}

impl Default for ModelTokens {
    fn default() -> Self {
        Self {
            prompt_bytes: Sum::starting_at(PRIOR_TOKENS * BYTES_PER_TOKEN),
            prompt_tokens: Sum::starting_at(PRIOR_TOKENS),
            completion_tokens: Mean::starting_at(COMPLETION_TOKENS),
        }
    }
}

impl ModelTokens {
    /// What a request of `body_bytes` that may answer with up to `max_tokens` will probably count.
    pub fn estimate(&self, body_bytes: usize, max_tokens: Option<u64>) -> Estimate {
        let prompt = ((prompt_bytes(body_bytes) as f64 / self.bytes_per_token()).ceil() as u64).max(1);
        Estimate {
            tokens: prompt.max(max_tokens.unwrap_or(0)),
            input_tokens: prompt,
            output_tokens: max_tokens.unwrap_or_else(|| f64::from(self.completion_tokens.get()).ceil() as u64),
        }
    }

    /// Corrects itself by what a request of `body_bytes` truly used. Zero tokens say that the server does not count.
    pub fn observe(&self, body_bytes: usize, prompt_tokens: u64, completion_tokens: u64) {
        if body_bytes > 0 && prompt_tokens > 0 {
            let bytes = prompt_bytes(body_bytes) as f32;
            // One absurd count must not spoil the sums for long.
            let tokens = (prompt_tokens as f32).clamp(bytes / MOST_BYTES_PER_TOKEN, bytes / FEWEST_BYTES_PER_TOKEN);
            self.prompt_bytes.add(bytes);
            self.prompt_tokens.add(tokens);
        }
        if completion_tokens > 0 {
            self.completion_tokens.observe((completion_tokens as f32).min(MOST_COMPLETION_TOKENS));
        }
    }

    /// Bytes of a request's body to one token of its prompt, at present.
    pub fn bytes_per_token(&self) -> f64 {
        let bytes = self.prompt_bytes.get() / self.prompt_tokens.get();
        f64::from(bytes.clamp(FEWEST_BYTES_PER_TOKEN, MOST_BYTES_PER_TOKEN))
    }
}

fn prompt_bytes(body_bytes: usize) -> usize {
    body_bytes.saturating_sub(ENVELOPE_BYTES).max(1)
}

/// A sum that forgets.
#[derive(Debug)]
struct Sum(AtomicU32);

impl Sum {
    fn starting_at(value: f32) -> Self {
        Self(AtomicU32::new(value.to_bits()))
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn add(&self, value: f32) {
        self.0.store((KEPT * self.get() + value).to_bits(), Relaxed);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body with a prompt of so many bytes.
    fn body(prompt: usize) -> usize {
        ENVELOPE_BYTES + prompt
    }

    #[test]
    fn reserves_the_larger_of_prompt_and_max_tokens() {
        let tokens = |bytes, most| ModelTokens::default().estimate(bytes, most).tokens;
        assert_eq!(tokens(body(401), None), 101);
        assert_eq!(tokens(body(401), Some(50)), 101);
        assert_eq!(tokens(body(401), Some(1000)), 1000);
        assert_eq!(tokens(0, None), 1);
    }

    #[test]
    fn prompt_and_answer_are_estimated_apart() {
        let model = ModelTokens::default();
        let estimate = model.estimate(body(400), Some(1000));
        assert_eq!(estimate, Estimate { tokens: 1000, input_tokens: 100, output_tokens: 1000 });
        assert_eq!(model.estimate(body(400), None).output_tokens, 256);
    }

    #[test]
    fn learns_bytes_per_token_and_the_length_of_answers() {
        let model = ModelTokens::default();
        for _ in 0..300 {
            model.observe(body(300), 200, 50);
        }
        let estimate = model.estimate(body(300), None);
        assert_eq!((estimate.tokens, estimate.output_tokens), (200, 51));
    }

    #[test]
    fn many_short_prompts_do_not_make_a_long_one_look_short() {
        let model = ModelTokens::default();
        for _ in 0..300 {
            model.observe(body(41), 10, 1);
        }
        let tokens = model.estimate(body(8000), None).tokens;
        assert!((1940..2060).contains(&tokens), "{tokens}");
    }

    #[test]
    fn a_server_that_counts_nothing_teaches_nothing() {
        let model = ModelTokens::default();
        model.observe(300, 0, 0);
        model.observe(0, 5, 0);
        assert_eq!(model.estimate(400, None), ModelTokens::default().estimate(400, None));
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
