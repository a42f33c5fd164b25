//! The engine: everything millstream does, with no Python in it.
//!
//! A lower row never imports an upper one, and siblings do not import each other (`tests/test_architecture.py` guards it):
//!
//! ```text
//! jobs  embed
//! batch
//! pipeline
//! keys  stream  cache
//! provider  limit  retry  transport
//! error  types  config  secret  service  sse  tokens  metrics  multipart  disk  log
//! canonical
//! ```
//!
//! All waiting goes through tokio's clock, so a test can pause it.

pub mod batch;
pub mod cache;
pub mod canonical;
pub mod config;
pub mod disk;
pub mod embed;
pub mod error;
pub mod jobs;
pub mod keys;
pub mod limit;
pub mod log;
pub mod metrics;
pub mod multipart;
pub mod pipeline;
pub mod provider;
pub mod retry;
pub mod secret;
pub mod service;
pub mod sse;
pub mod stream;
pub mod tokens;
pub mod transport;
pub mod types;
