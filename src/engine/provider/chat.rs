//! A chat request for any provider, and its answer in the one shape that everything above sees.

use std::ops::Range;

use bytes::Bytes;

use super::{Format, Provider, openai};
use crate::engine::error::Error;
use crate::engine::types::Prompt;

/// Everything of a chat request but its prompt, in the provider's format: written once, used for many prompts.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Form);

#[derive(Debug, Clone)]
enum Form {
    OpenAi(openai::Template),
}

impl ChatTemplate {
    /// A template for `model` with an optional system message and further fields.
    ///
    /// `fields` is the inside of a JSON object without the braces (`"temperature":0.5,"n":2`) in `OpenAI`'s names. What the provider
    /// calls otherwise is renamed, and what nobody knows passes untouched.
    ///
    /// # Errors
    /// A configuration error for a field that the provider has no counterpart for, and that would change the answer.
    pub fn new(provider: Provider, model: &str, system: Option<&str>, fields: &str) -> Result<Self, Error> {
        Ok(Self(match provider.format() {
            Format::OpenAi => Form::OpenAi(openai::Template::new(model, system, fields, true)),
            Format::Anthropic | Format::Mistral => {
                return Err(Error::configuration(format!("{provider} is not spoken yet")));
            }
        }))
    }

    /// Where the model's name stands in every body, with its quotes.
    pub fn model(&self) -> Range<usize> {
        match &self.0 {
            Form::OpenAi(template) => template.model(),
        }
    }

    /// The body of the request that asks `prompt`, for a whole answer or for a stream.
    ///
    /// # Errors
    /// A configuration error for a message that the provider cannot be sent.
    pub fn body(&self, prompt: &Prompt, stream: bool) -> Result<Bytes, Error> {
        match &self.0 {
            Form::OpenAi(template) => Ok(template.body(prompt, stream)),
        }
    }

    /// Whether an answer can be so long that the provider only sends it as a stream.
    pub fn must_stream(&self) -> bool {
        match &self.0 {
            Form::OpenAi(_) => false,
        }
    }
}

/// The whole answer of a chat request as a chat completion of `OpenAI`'s; `None` if it is one, or cannot be read as what it should be
/// (which the reading of it then says).
pub fn to_openai(provider: Provider, _body: &[u8]) -> Option<Bytes> {
    match provider.format() {
        Format::OpenAi | Format::Anthropic | Format::Mistral => None,
    }
}
