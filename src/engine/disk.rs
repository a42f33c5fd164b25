//! The disk is waited for on threads of its own, never on the engine's.

use tokio::task::spawn_blocking;

use super::error::Error;

/// What `work` returns, which may wait for the disk.
///
/// # Errors
/// An internal error if its thread ended before it did.
pub async fn off_the_engine<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work)
        .await
        .map_err(|fault| Error::internal("a file's thread ended before its work").with_source(fault))
}
