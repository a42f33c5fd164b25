//! A chat request for any provider, and its answer in the one shape that everything above sees.

use std::ops::Range;

use bytes::Bytes;

use super::{Format, Provider, anthropic, mistral, openai};
use crate::engine::error::Error;
use crate::engine::types::Prompt;

/// Everything of a chat request but its prompt, in the provider's format: written once, used for many prompts.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Form);

#[derive(Debug, Clone)]
enum Form {
    OpenAi(openai::Template),
    Anthropic(anthropic::Template),
    Mistral(mistral::Template),
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
            Format::Anthropic => Form::Anthropic(anthropic::Template::new(model, system, fields)?),
            Format::Mistral => Form::Mistral(mistral::Template::new(model, system, fields)?),
        }))
    }

    /// Where the model's name stands in every body, with its quotes.
    pub fn model(&self) -> Range<usize> {
        match &self.0 {
            Form::OpenAi(template) => template.model(),
            Form::Anthropic(template) => template.model(),
            Form::Mistral(template) => template.model(),
        }
    }

    /// The body of the request that asks `prompt`, for a whole answer or for a stream.
    ///
    /// # Errors
    /// A configuration error for a message that the provider cannot be sent.
    pub fn body(&self, prompt: &Prompt, stream: bool) -> Result<Bytes, Error> {
        match &self.0 {
            Form::OpenAi(template) => Ok(template.body(prompt, stream)),
            Form::Anthropic(template) => template.body(prompt, stream),
            Form::Mistral(template) => template.body(prompt, stream),
        }
    }

    /// Whether an answer can be so long that the provider only sends it as a stream.
    pub fn must_stream(&self) -> bool {
        match &self.0 {
            Form::OpenAi(_) | Form::Mistral(_) => false,
            Form::Anthropic(template) => template.must_stream(),
        }
    }
}

/// The whole answer of a chat request as a chat completion of `OpenAI`'s; `None` if it is one, or cannot be read as what it should be
/// (which the reading of it then says).
pub fn to_openai(provider: Provider, body: &[u8]) -> Option<Bytes> {
    match provider.format() {
        Format::OpenAi => None,
        Format::Anthropic => anthropic::to_openai(body),
        Format::Mistral => mistral::to_openai(body),
    }
}
