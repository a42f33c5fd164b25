//! What a run tells at its end.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::lines::Line;
use crate::engine::batch::StopReason;

/// Problems that are told one by one; of the rest only the number is.
pub(super) const MOST_PROBLEMS: usize = 1000;

/// Something wrong with a line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: u64,
    /// What is wrong, and what became of it.
    pub reason: String,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Lines of the input that are not blank.
    pub total: u64,
    /// Answered by this run.
    pub ok: u64,
    /// Failed for good in this run.
    pub failed: u64,
    /// Done by an earlier run.
    pub skipped: u64,
    /// Lines of an earlier run that stand in the output as failed.
    pub failed_before: u64,
    /// Lines that are no requests.
    pub bad_lines: u64,
    /// Tokens of the prompts that this run had answered.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Dollars for the answers whose price is known.
    pub cost: f64,
    /// Answers whose price is not known.
    pub unpriced: u64,
    /// From the start to the last byte on the disk.
    pub elapsed: Duration,
    /// Why it ended before its items did, if it did.
    pub stopped: Option<StopReason>,
    /// What was wrong with lines of the files; the first thousand.
    pub problems: Vec<Problem>,
}

/// What of a run is known while it goes on, besides what its control counts.
#[derive(Debug, Default)]
pub struct Counts {
    pub(super) total: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) bad_lines: AtomicU64,
    pub(super) written: AtomicU64,
    is_open: AtomicBool,
    problems: Mutex<Vec<Problem>>,
}

/// Says that the output is open, until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Counts>);

impl Open {
    pub(super) fn new(counts: &Arc<Counts>) -> Self {
        counts.is_open.store(true, Release);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.is_open.store(false, Release);
    }
}

impl Counts {
    /// Whether the output is open: of a run that was dropped it is until what was answered is written.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Acquire)
    }

    /// Lines of the input that are not blank; zero until they are counted.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Lines that an earlier run has done, as far as the input was read.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// Lines that are no requests, as far as the input was read.
    pub fn bad_lines(&self) -> u64 {
        self.bad_lines.load(Relaxed)
    }

    /// Lines of this run that stand in the output.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    pub(super) fn report(&self, file: &Path, line: Line, reason: &str) {
        self.add(vec![Problem { file: file.to_owned(), line: line.number, reason: reason.to_owned() }]);
    }

    pub(super) fn add(&self, more: Vec<Problem>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_PROBLEMS.saturating_sub(problems.len());
        problems.extend(more.into_iter().take(room));
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
