//! Wire formats of the APIs: how a request is written and an answer read. No I/O and no clock.

pub mod accumulate;
pub mod chunk;
pub mod lenient;
pub mod openai;
pub mod rate_headers;
mod refusal;
mod reset;
pub mod retry_after;
