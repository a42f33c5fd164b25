//! Many items through one pipeline.

pub mod adaptive;
pub mod bulk;
pub mod control;
mod dedupe;
pub mod gather;
mod inlet;
mod outlet;
mod prefix;
mod rates;
pub mod run;

pub use adaptive::{AdaptiveBatchPolicy, BatchMetrics, Rule};
pub use bulk::{Bulk, Ended, Item, Manner, Order, Page};
pub use control::{Control, Price, Progress, StopReason, StopRules};
pub use gather::{Batch, ChatCalls, OnError};
pub use rates::Rates;
pub use run::{Sink, Source, Work, run};
