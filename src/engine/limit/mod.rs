//! What holds a request back: requests and tokens per minute ([`rate`]), requests in flight ([`concurrency`], whose size
//! [`adaptive`] finds), a wait that a server asked for ([`gate`]), and a server that is down ([`breaker`]).

pub mod adaptive;
pub mod breaker;
pub mod concurrency;
pub mod gate;
pub mod rate;

pub use adaptive::{AutoConcurrency, Signal};
pub use breaker::{Breaker, Health, Pass};
pub use concurrency::{Permit, Ticket, Window};
pub use gate::Gate;
pub use rate::{Cost, RateLimiter, RateLimits, Reservation};
