//! A look through a store: everything that is kept, some at a time, whatever the store and however much that is.

use std::sync::Arc;
use std::time::SystemTime;

use super::entry::Entry;
use super::key::Key;

/// What one page of a look through a store holds at most: entries, and bytes of them but for the last.
pub(super) const PAGE_ENTRIES: usize = 256;
pub(super) const PAGE_BYTES: usize = 8 << 20;

/// An entry, as a look through a store finds it.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What it is found by.
    pub key: Key,
    /// The answer.
    pub entry: Arc<Entry>,
    /// The bytes that it takes.
    pub bytes: usize,
    /// When it was put there, if that is known.
    pub stored: Option<SystemTime>,
    /// When it is forgotten; `None`: once there is no more room.
    pub expires: Option<SystemTime>,
}

/// Where the next page begins, in the words of the store that said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub Vec<u8>);

impl Cursor {
    /// After that key, where keys are looked through in their order.
    pub(super) fn after(key: &Key) -> Self {
        Self(key.as_bytes().to_vec())
    }
}

/// Some of what a store holds. Whatever is put or removed meanwhile, what stays is seen.
#[derive(Debug, Default)]
pub struct Page {
    /// Perhaps none, though others follow.
    pub entries: Vec<Kept>,
    /// Entries that cannot be read.
    pub damaged: u64,
    /// For the next page; `None`: this is the last.
    pub next: Option<Cursor>,
}
