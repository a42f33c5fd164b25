//! What holds a request back: requests and tokens per minute ([`rate`]), requests in flight ([`concurrency`]).

pub mod concurrency;
pub mod rate;

pub use concurrency::{Permit, Window};
pub use rate::{Cost, RateLimiter, RateLimits, Reservation};
