//! Values that belong to one process.
//!
//! Threads, sockets and locks do not survive `fork()`: a child that touches its parent's runtime hangs, and one that closes an
//! inherited connection breaks the parent's. A [`PerProcess`] value is made at its first use in a process and made anew in a
//! child, which leaves what it inherited alone for good, without even dropping it. No lock is involved, since one could be held
//! by a thread that the child does not have.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use pyo3::prelude::*;

/// How many forks lie between the process that loaded the module and this one. Cheaper to read than the process id, which is a
/// system call.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Names this process among its ancestors.
pub(crate) fn current() -> u32 {
    GENERATION.load(Relaxed)
}

/// Called in a child right after the fork, before anything else can run in it.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    GENERATION.fetch_add(1, Relaxed);
}

/// A lazily made value, one a process.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    current: ArcSwapOption<Owned<T>>,
}

#[derive(Debug)]
struct Owned<T> {
    process: u32,
    value: Arc<T>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: ArcSwapOption::const_empty() }
    }

    /// This process's value, made with `make` if there is none.
    pub(crate) fn get_or_make<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let process = current();
        let current = self.current.load();
        if let Some(owned) = current.as_ref().filter(|owned| owned.process == process) {
            return Ok(Arc::clone(&owned.value));
        }
        let fresh = Arc::new(Owned { process, value: Arc::new(make()?) });
        let before = self.current.compare_and_swap(&*current, Some(Arc::clone(&fresh)));
        let value = match &*before {
            // Another thread of this process was first.
            Some(owned) if owned.process == process => Arc::clone(&owned.value),
            _ => Arc::clone(&fresh.value),
        };
        if let Some(inherited) = before.as_ref().filter(|owned| owned.process != process) {
            mem::forget(Arc::clone(inherited));
        }
        Ok(value)
    }

    /// This process's value, if it was made.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let current = self.current.load();
        current.as_ref().filter(|owned| owned.process == self::current()).map(|owned| Arc::clone(&owned.value))
    }

    /// Drops this process's value, if there is one.
    pub(crate) fn clear(&self) {
        forget_inherited(self.current.swap(None));
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn forget_inherited<T>(owned: Option<Arc<Owned<T>>>) {
    if let Some(owned) = owned
        && owned.process != current()
    {
        mem::forget(owned);
    }
}
