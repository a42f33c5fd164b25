//! What holds a request back: requests and tokens per minute ([`rate`]), requests in flight ([`concurrency`], whose size
//! [`adaptive`] finds), a wait that a server asked for ([`gate`]), and a server that is down ([`breaker`]).

pub mod adaptive;
mod blame;
pub mod breaker;
mod bucket;
pub mod cohort;
pub mod concurrency;
mod cost;
pub mod gate;
mod line;
mod meter;
mod pace;
pub mod rate;
mod reservation;
mod window_log;

#[cfg(test)]
mod against_a_server;

pub use adaptive::{AutoConcurrency, Signal};
pub use breaker::{Breaker, Down, Health, Pass};
pub use concurrency::{Permit, Window};
pub use cost::{Actual, Cost};
pub use gate::{Gate, Passed};
pub use line::Ticket;
pub use meter::{Algorithm, Limit, RateLimits};
pub use rate::{LimitState, RateLimiter, Snapshot};
pub use reservation::{Reservation, Sent};
