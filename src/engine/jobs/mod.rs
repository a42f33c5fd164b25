//! JSONL in, JSONL out: a file of requests carried through a client.
//!
//! ```text
//! survey (first look: ids, changes) → reader → calls → batch::run → writer → output, which is the journal
//! ```
//!
//! A run can end at any moment and be run again: what stands in the output is not asked again, what does not is. That is all
//! there is to resuming, since the output is the only record: a line of it names its item (`custom_id`) and its request (a hash),
//! torn and damaged lines are repaired before anything is sent and once nothing can refuse the run any more (`journal`), and one
//! process at a time may write it (`files`).

mod calls;
mod files;
#[cfg(test)]
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hash;
mod input;
mod journal;
mod lines;
mod output;
mod reader;
mod reply;
mod report;
mod requests;
mod run;
mod survey;
mod usual;
mod writer;

pub use self::calls::Defaults;
pub use self::hash::RequestHash;
pub use self::output::Layout;
pub use self::report::{Counts, Problem, Summary};
pub use self::requests::{Request, Requests, Settings};
pub use self::run::{Job, Prepared, carry, prepare};
