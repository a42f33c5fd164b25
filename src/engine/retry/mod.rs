//! Whether a failed attempt is made again, and when: [`policy`] decides, [`backoff`] is its arithmetic, [`budget`] keeps the
//! retries of all from becoming the load that they wait for and [`idempotency`] lets a server know one.

pub mod backoff;
pub mod budget;
pub mod idempotency;
pub mod policy;

pub use backoff::{Backoff, Jitter};
pub use budget::{Allowance, RetryBudget};
pub use idempotency::{IDEMPOTENCY_KEY, IdempotencyKeys};
pub use policy::{Attempts, Decision, RetryPolicy};
