//! The disk is waited for on threads of its own, never on the engine's; and what takes long to compute is computed there.

use tokio::task::spawn_blocking;

use super::error::Error;

/// What `work` returns, which may wait for the disk or take milliseconds.
///
/// # Errors
/// An internal error if its thread ended before it did.
pub async fn off_the_engine<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work)
        .await
        .map_err(|fault| Error::internal("a thread beside the engine's ended before its work").with_source(fault))
}
