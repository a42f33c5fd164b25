//! What holds a request back: requests and tokens per minute ([`rate`]), requests in flight ([`concurrency`]), and a wait that
//! a server asked for ([`gate`]).

mod bucket;
pub mod concurrency;
mod cost;
pub mod gate;
mod line;
mod meter;
pub mod rate;
mod reservation;
mod window_log;

pub use concurrency::{Permit, Window};
pub use cost::{Actual, Cost};
pub use gate::Gate;
pub use meter::{Algorithm, Limit, RateLimits};
pub use rate::{LimitState, RateLimiter, Snapshot};
pub use reservation::{Reservation, Sent};

#[cfg(test)]
mod against_a_server;
