//! Many texts in, one block of numbers out: row i belongs to text i.
//!
//! Texts travel in packs, as large as the server takes ([`pack`]); their vectors are copied into the block as the answers come
//! ([`block`]), so memory stays at the result and what is in flight. A pack that the server refuses is halved until it is known
//! which text is at fault, and what the server turned out not to take is remembered ([`run`], [`learnt`]). With a cache only texts
//! that are new to it are sent (`kept`).

pub mod block;
mod kept;
pub mod learnt;
pub mod pack;
mod piece;
mod queue;
pub mod run;

pub use block::Shape;
pub use learnt::{Learnt, LearntModels};
pub use pack::{PackLimits, PackSizes};
pub use piece::{Texts, TooLong};
pub use run::{Embed, EmbedCalls, Embedded, OnError};
