//! How many requests are in flight at once: a FIFO window of fixed size.
//!
//! tokio's semaphore is fair (first come, first served), and a dropped permit, or a dropped wait for one, gives its place to
//! the next.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::error::Error;

/// A window of at most N requests in flight. Clones share it.
#[derive(Debug, Clone)]
pub struct Window(Arc<Semaphore>);

/// A place in the window, given back when dropped.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Window {
    /// A window of `size` places, at least one.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Semaphore::new(size.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Waits for a place, behind those who came before.
    ///
    /// # Errors
    /// Never while the window exists: it is not closed.
    pub async fn acquire(&self) -> Result<Permit, Error> {
        match Arc::clone(&self.0).acquire_owned().await {
            Ok(permit) => Ok(Permit(permit)),
            Err(_) => Err(Error::closed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_permit_or_wait_lets_the_next_one_in() {
        let window = Window::new(1);
        let first = window.acquire().await.unwrap();
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, window.acquire()).await;
        assert!(given_up.is_err());
        let next = tokio::spawn({
            let window = window.clone();
            async move { window.acquire().await.is_ok() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(next.await.unwrap());
    }
}
