//! Whether a failed attempt is made again, and when: [`policy`] decides, [`backoff`] is its arithmetic, [`budget`] keeps the
//! retries of all from becoming the load that they wait for, [`idempotency`] lets a server know one, and [`hedge`] does not wait
//! for the failure.

pub mod backoff;
pub mod budget;
pub mod hedge;
pub mod idempotency;
pub mod policy;

pub use backoff::{Backoff, Jitter};
pub use budget::{Allowance, RetryBudget};
pub use hedge::{HedgeAfter, HedgeBudget, HedgePolicy, hedged};
pub use idempotency::{IDEMPOTENCY_KEY, IdempotencyKeys};
pub use policy::{Attempts, Decision, RetryPolicy};
