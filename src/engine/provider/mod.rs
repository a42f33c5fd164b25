//! Wire formats of the APIs: how a request is written and an answer read. No I/O and no clock.
//!
//! All above this room sees one shape, `OpenAI`'s: [`ChatTemplate`] writes a chat request for whatever the server speaks,
//! [`to_openai`] makes a chat completion of its answer and [`StreamReader`] chunks of its stream. What is `OpenAI`'s own passes
//! untouched and is not looked at twice.

pub mod accumulate;
mod anthropic;
mod chat;
pub mod chunk;
pub mod embeddings;
pub mod event;
mod fields;
pub mod lenient;
mod mistral;
pub mod object;
pub mod openai;
pub mod rate_headers;
mod refusal;
mod reset;
pub mod retry_after;
mod stream;
pub mod vectors;

pub use self::chat::{ChatTemplate, to_openai};
pub use self::stream::{Step, StreamReader};
pub use super::service::{Format, Provider};
