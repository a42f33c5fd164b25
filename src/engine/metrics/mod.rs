//! What a client has done and how long it took, cheap enough to be always on.
//!
//! Two levels: [`Metrics`] is a client's, [`LaneMetrics`] those of one key with one model, which is what providers limit.
//! An attempt is counted in its lane, and the client's figures are the sum of its lanes; a request belongs to the client alone,
//! since its attempts may go to several keys. A request costs some ten relaxed atomics and one short lock, and allocates nothing
//! once a lane is known.

mod cause;
mod client;
mod lane;
mod timing;
mod wait;

pub use cause::{RetryCause, RetryCounts};
pub use client::{Metrics, OTHER_MODELS, Snapshot};
pub use lane::{AttemptOutcome, InFlight, LaneMetrics, LaneSnapshot};
pub use timing::TimingSnapshot;
pub use wait::{WaitCause, Waits, WaitsSnapshot};
