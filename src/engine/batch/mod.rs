//! Many items through one pipeline.

pub mod adaptive;
pub mod gather;

pub use adaptive::{AdaptiveBatchPolicy, BatchMetrics, Rule};
pub use gather::{Batch, ChatCalls, OnError};
