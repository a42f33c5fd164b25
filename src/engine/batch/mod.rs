//! Many items through one pipeline.

pub mod adaptive;
pub mod control;
pub mod gather;
pub mod run;

pub use adaptive::{AdaptiveBatchPolicy, BatchMetrics, Rule};
pub use control::{Control, Price, Progress, StopReason, StopRules};
pub use gather::{Batch, ChatCalls, OnError};
pub use run::{Sink, Source, Work, run};
