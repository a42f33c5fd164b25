//! The Python module: a table of contents.
//!
//! The only room that knows pyo3. A function here extracts its arguments, hands the engine's work to the runtime and converts the
//! result; it decides nothing.

#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands arguments over by value")]

mod batch;
mod batch_policy;
mod bridge;
mod cache;
mod chunks;
mod client;
mod clock;
mod embeddings;
mod endpoint;
mod errors;
mod events;
mod exit;
mod jobs;
mod json;
mod limiter;
mod log;
mod mock;
mod outcome;
mod process;
mod receipt;
mod records;
mod replies;
mod requests;
mod retry;
mod rules;
mod runtime;
mod service;
mod stats;
mod stream;
mod vendor;

#[pyo3::pymodule(gil_used = false)]
mod _millstream {
    #[pymodule_export]
    use super::batch::{NativeBatch, NativeManner};
    #[pymodule_export]
    use super::batch_policy::NativeAdaptiveBatchPolicy;
    #[pymodule_export]
    use super::bridge::{Pending, Port, echo, panic};
    #[pymodule_export]
    use super::cache::NativeCache;
    #[pymodule_export]
    use super::chunks::{
        ChatCompletionChunk, ChoiceDelta, ChunkChoice, CustomCallDelta, FunctionCallDelta, ToolCallDelta,
    };
    #[pymodule_export]
    use super::client::{BatchOutcomes, NativeClient, is_secret_header};
    #[pymodule_export]
    use super::clock::NativeVirtualClock;
    #[pymodule_export]
    use super::embeddings::{Embeddings, NativeEmbedding, NativeTexts, numbers_as_json};
    #[pymodule_export]
    use super::endpoint::Endpoint;
    #[pymodule_export]
    use super::events::StreamEvent;
    #[pymodule_export]
    use super::exit::quiesce;
    #[pymodule_export]
    use super::jobs::NativeFileRun;
    #[pymodule_export]
    use super::limiter::{NativeRateLimiter, Reservation};
    #[pymodule_export]
    use super::log::{flush_log, refresh_log};
    #[pymodule_export]
    use super::mock::{KeyStats, MockServer, MockStats, RecordedRequest};
    #[pymodule_export]
    use super::outcome::BatchResult;
    #[pymodule_export]
    use super::process::after_fork_in_child;
    #[pymodule_export]
    use super::records::{ChatCompletion, ChatMessage, Choice, CustomCall, FunctionCall, ToolCall, Usage};
    #[pymodule_export]
    use super::replies::{Completion, CreateEmbeddingResponse, Embedding, Reply, Response};
    #[pymodule_export]
    use super::requests::{NativeLine, NativeLineReader, NativeLines};
    #[pymodule_export]
    use super::retry::{NativeRetryPolicy, check_timeout};
    #[pymodule_export]
    use super::rules::check_rules;
    #[pymodule_export]
    use super::stream::NativeStream;
    #[pymodule_export]
    use super::vendor::{chat_answer, chat_body};

    /// The version of the crate, which is the package's.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// `release` or `debug`: a benchmark of a debug build says nothing.
    #[pymodule_export]
    const BUILD_PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
}
