//! Answers that were given are given again to whoever asks the same: no request, no wait, no tokens.
//!
//! What the same is, [`key`] says; which answers are kept, [`policy`]; what is kept of one, [`entry`], and of a text's vector,
//! `vector`. Where it is kept is a
//! [`store`]'s matter, and a store never fails a call: what cannot be read is not there, what cannot be written is not kept. Those who ask
//! the same at once share one answer ([`flight`]). When the cache is asked is written in `pipeline`.

mod behind;
pub mod disk;
pub mod entry;
mod fault;
pub mod flight;
mod keeper;
pub mod key;
pub mod memory;
pub mod page;
pub mod policy;
pub mod redis;
mod stats;
pub mod store;
mod vector;

pub use entry::{Entry, Told};
pub use keeper::{Cache, CacheConfig, Landed};
pub use key::{Asked, Key, Question, TextKeys};
pub use page::{Cursor, Kept, Page};
pub use policy::AlsoKept;
pub use redis::{Claim, Claimed, RedisConfig};
pub use stats::{Saved, Stats};
pub use store::Place;
