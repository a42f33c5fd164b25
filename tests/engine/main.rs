//! The one integration binary of the engine and the mock server.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail")]

mod bulk;
mod caches;
mod concurrency;
mod embed;
mod embed_cached;
mod jobs;
mod mock;
mod mock_apis;
mod mock_stream;
mod outages;
mod paused;
mod pipeline;
mod places;
mod providers;
mod random_faults;
mod retries;
mod several_keys;
mod simulation;
mod steering;
mod streams;
mod waits;
mod wire;
