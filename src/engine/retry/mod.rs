//! Whether a failed attempt is made again, and when: [`policy`] decides, [`backoff`] is its arithmetic.

pub mod backoff;
pub mod policy;

pub use backoff::Backoff;
pub use policy::{Decision, RetryPolicy};
