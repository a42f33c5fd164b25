//! What holds a request back: requests and tokens per minute ([`rate`]), requests in flight ([`concurrency`]), and a wait that
//! a server asked for ([`gate`]).

pub mod concurrency;
pub mod gate;
pub mod rate;

pub use concurrency::{Permit, Window};
pub use gate::Gate;
pub use rate::{Cost, RateLimiter, RateLimits, Reservation};
