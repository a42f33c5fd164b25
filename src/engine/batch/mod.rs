//! Many items through one pipeline.

pub mod gather;

pub use gather::{Batch, ChatCalls, OnError};
