//! Values that belong to one process and to one clock.
//!
//! Threads, sockets and locks do not survive `fork()`: a child that touches its parent's runtime hangs, and one that closes an
//! inherited connection breaks the parent's. A [`PerProcess`] value is made at its first use in a process and made anew in a
//! child, which leaves what it inherited alone for good, without even dropping it. No lock is involved, since one could be held
//! by a thread that the child does not have.
//!
//! A `millstream.testing.VirtualClock` has a runtime of its own, so what is bound to a runtime (connections) or reads the clock
//! (limits) is made anew in it as well; what was left behind is alive and simply dropped.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use pyo3::prelude::*;

use super::runtime::Runtime;

/// How many forks lie between the process that loaded the module and this one (upper half; cheaper to read than the process id,
/// which is a system call), and the number of the virtual clock (lower half), 0 for the real one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Virtual clocks so far.
static CLOCKS: AtomicU32 = AtomicU32::new(0);

const CLOCK_BITS: u32 = 32;

fn process_of(generation: u64) -> u32 {
    (generation >> CLOCK_BITS) as u32
}

/// Names this process among its ancestors.
pub(crate) fn current() -> u32 {
    process_of(GENERATION.load(Relaxed))
}

/// Called in a child right after the fork, before anything else can run in it. A virtual clock stays with the parent.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    GENERATION.store(u64::from(current() + 1) << CLOCK_BITS, Relaxed);
}

/// From now on values belong to a new virtual clock.
pub(crate) fn enter_virtual_clock() {
    let clock = CLOCKS.fetch_add(1, Relaxed) + 1;
    GENERATION.store(u64::from(current()) << CLOCK_BITS | u64::from(clock), Relaxed);
}

/// From now on values belong to the real clock.
pub(crate) fn leave_virtual_clock() {
    GENERATION.store(u64::from(current()) << CLOCK_BITS, Relaxed);
}

/// A lazily made value, one a process and clock.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    current: ArcSwapOption<Owned<T>>,
    any_clock: bool,
}

#[derive(Debug)]
struct Owned<T> {
    generation: u64,
    value: Arc<T>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: ArcSwapOption::const_empty(), any_clock: false }
    }

    /// A value that has nothing to do with a runtime or a clock.
    pub(crate) const fn for_any_clock() -> Self {
        Self { current: ArcSwapOption::const_empty(), any_clock: true }
    }

    fn generation(&self) -> u64 {
        let generation = GENERATION.load(Relaxed);
        if self.any_clock { generation >> CLOCK_BITS << CLOCK_BITS } else { generation }
    }

    /// This process's value, if it was made.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let current = self.current.load();
        current.as_ref().filter(|owned| owned.generation == self.generation()).map(|owned| Arc::clone(&owned.value))
    }

    /// This process's value, made with `make` if there is none.
    pub(crate) fn get_or_make<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let generation = self.generation();
        let current = self.current.load();
        if let Some(owned) = current.as_ref().filter(|owned| owned.generation == generation) {
            return Ok(Arc::clone(&owned.value));
        }
        let fresh = Arc::new(Owned { generation, value: Arc::new(Runtime::on_its_clock(make)?) });
        let before = self.current.compare_and_swap(&*current, Some(Arc::clone(&fresh)));
        let value = match &*before {
            // Another thread of this process was first.
            Some(owned) if owned.generation == generation => Arc::clone(&owned.value),
            _ => Arc::clone(&fresh.value),
        };
        if let Some(inherited) = before.as_ref().filter(|owned| process_of(owned.generation) != process_of(generation))
        {
            mem::forget(Arc::clone(inherited));
        }
        Ok(value)
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
        && process_of(owned.generation) != current()
    {
        mem::forget(owned);
    }
}
