//! What a request takes of the limits: estimated before it goes, known once it is answered.

use crate::engine::error::Error;
use crate::engine::tokens::Estimate;
use crate::engine::types::{Unit, Usage};

/// What one reservation takes. A unit that no limit counts costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Requests.
    pub requests: f64,
    /// Tokens of prompt and answer, as the vendor counts them against the minute.
    pub tokens: f64,
    /// Tokens of the prompt.
    pub input_tokens: f64,
    /// Tokens of the answer.
    pub output_tokens: f64,
}

impl Cost {
    /// One request of about `tokens` tokens.
    pub fn request(tokens: u64) -> Self {
        Self { requests: 1.0, tokens: tokens as f64, ..Self::default() }
    }

    /// What it takes of one unit.
    pub fn of(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Tokens => self.tokens,
            Unit::InputTokens => self.input_tokens,
            Unit::OutputTokens => self.output_tokens,
        }
    }

    pub(super) fn checked(self) -> Result<Self, Error> {
        for unit in UNITS {
            let amount = self.of(unit);
            if !(amount.is_finite() && amount >= 0.0) {
                let name = name(unit);
                return Err(Error::configuration(format!("{name} must be a number of at least 0, not {amount}")));
            }
        }
        Ok(self)
    }

    pub(super) fn plus(self, other: Self, sign: f64) -> Self {
        Self {
            requests: self.requests + sign * other.requests,
            tokens: self.tokens + sign * other.tokens,
            input_tokens: self.input_tokens + sign * other.input_tokens,
            output_tokens: self.output_tokens + sign * other.output_tokens,
        }
    }
}

impl From<Estimate> for Cost {
    /// One request of that size.
    fn from(estimate: Estimate) -> Self {
        Self {
            requests: 1.0,
            tokens: estimate.tokens as f64,
            input_tokens: estimate.input_tokens as f64,
            output_tokens: estimate.output_tokens as f64,
        }
    }
}

/// What was truly used; `None` leaves the estimate as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Actual {
    /// Tokens of prompt and answer.
    pub tokens: Option<u64>,
    /// Tokens of the prompt.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: Option<u64>,
}

impl Actual {
    /// That many tokens in all; how they were split is not known.
    pub fn tokens(total: u64) -> Self {
        Self { tokens: Some(total), ..Self::default() }
    }

    pub(super) fn of(self, unit: Unit) -> Option<f64> {
        let tokens = match unit {
            Unit::Requests => None,
            Unit::Tokens => self.tokens,
            Unit::InputTokens => self.input_tokens,
            Unit::OutputTokens => self.output_tokens,
        };
        tokens.map(|tokens| tokens as f64)
    }
}

impl From<Usage> for Actual {
    fn from(usage: Usage) -> Self {
        Self {
            tokens: Some(usage.total_tokens),
            input_tokens: Some(usage.prompt_tokens),
            output_tokens: Some(usage.completion_tokens),
        }
    }
}

pub(super) const UNITS: [Unit; 4] = [Unit::Requests, Unit::Tokens, Unit::InputTokens, Unit::OutputTokens];

/// The unit as arguments and error texts name it.
pub(super) fn name(unit: Unit) -> &'static str {
    match unit {
        Unit::Requests => "requests",
        Unit::Tokens => "tokens",
        Unit::InputTokens => "input_tokens",
        Unit::OutputTokens => "output_tokens",
    }
}
