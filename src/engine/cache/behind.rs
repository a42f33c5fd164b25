//! What is written behind: it waits for its turn, in bounded memory, and can be had from there until then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::entry::Entry;
use super::key::Key;

/// What waits takes so much at most; what comes beyond is not kept.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// What becomes of a key: an entry, or none.
pub(super) type Change = Option<Arc<Entry>>;

/// What is not written yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: HashMap<Key, Change>,
    bytes: usize,
    /// Whether somebody writes, or is about to.
    is_served: bool,
    dropped: u64,
    /// Told whenever there is more room.
    freed: Arc<Notify>,
}

/// Waits while so much is `pending` that more might not be kept.
pub(super) async fn room(pending: &Mutex<Pending>) {
    let lock = || pending.lock().unwrap_or_else(PoisonError::into_inner);
    let freed = Arc::clone(&lock().freed);
    loop {
        let more = freed.notified();
        {
            let pending = lock();
            // If nobody writes, the next put begins it.
            if pending.bytes <= MOST_BYTES / 2 || !pending.is_served {
                return;
            }
        }
        more.await;
    }
}

impl Pending {
    /// What `key` will be.
    pub(super) fn get(&self, key: &Key) -> Option<&Change> {
        self.changes.get(key)
    }

    /// Puts a change in line, if there is room; whether somebody has to begin to write.
    pub(super) fn put(&mut self, key: Key, change: Change) -> bool {
        let size = size(&change);
        if self.bytes + size > MOST_BYTES {
            self.dropped += 1;
            return false;
        }
        self.bytes += size;
        if let Some(old) = self.changes.insert(key, change) {
            self.forget(&old);
        }
        !std::mem::replace(&mut self.is_served, true)
    }

    /// Removes `key` with what is written next, unless it is written then.
    pub(super) fn remove_later(&mut self, key: Key) {
        self.changes.entry(key).or_insert(None);
    }

    /// What is to be written now; with nothing of it, whoever writes has left. It stays to be had until it is [`Self::done`].
    pub(super) fn take(&mut self) -> Vec<(Key, Change)> {
        self.is_served = !self.changes.is_empty();
        self.changes.iter().map(|(key, change)| (*key, change.clone())).collect()
    }

    /// Forgets what was written, or could not be, unless it was changed meanwhile.
    pub(super) fn done(&mut self, changes: Vec<(Key, Change)>) {
        for (key, change) in changes {
            let is_same = match (self.changes.get(&key), &change) {
                (Some(Some(now)), Some(change)) => Arc::ptr_eq(now, change),
                (Some(None), None) => true,
                _ => false,
            };
            if is_same {
                self.changes.remove(&key);
                self.forget(&change);
            }
        }
        self.freed.notify_waiters();
    }

    /// Counts entries that could not be written.
    pub(super) fn has_dropped(&mut self, entries: u64) {
        self.dropped += entries;
    }

    /// Whoever wrote has left.
    pub(super) fn is_left(&mut self) {
        self.is_served = false;
        self.freed.notify_waiters();
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        (self.changes, self.bytes) = (HashMap::new(), 0);
        self.freed.notify_waiters();
    }

    /// Entries that could not be written so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Room for what is written.
    fn forget(&mut self, change: &Change) {
        self.bytes = self.bytes.saturating_sub(size(change));
    }
}

/// How many of them are entries, and not their removal.
pub(super) fn entries_in(changes: &[(Key, Change)]) -> u64 {
    changes.iter().filter(|(_, change)| change.is_some()).count() as u64
}

fn size(change: &Change) -> usize {
    change.as_ref().map_or(0, |entry| entry.size())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn key(number: u8) -> Key {
        Key::from([number; 32])
    }

    fn entry(bytes: usize) -> Arc<Entry> {
        let body = vec![b'x'; bytes].into();
        Arc::new(Entry { status: StatusCode::OK, headers: HeaderMap::new(), body, raw: None })
    }

    #[test]
    fn only_the_first_that_comes_has_to_begin_to_write() {
        let mut pending = Pending::default();
        assert!(pending.put(key(1), Some(entry(10))));
        assert!(!pending.put(key(2), Some(entry(10))));
        let changes = pending.take();
        assert_eq!(changes.len(), 2);
        assert!(!pending.put(key(3), None));
        pending.done(changes);
        assert!(pending.get(&key(1)).is_none() && pending.get(&key(3)).is_some());
        let changes = pending.take();
        pending.done(changes);
        assert!(pending.take().is_empty());
        assert!(pending.put(key(1), Some(entry(10))));
    }

    #[test]
    fn what_is_put_while_it_is_written_is_written_again() {
        let mut pending = Pending::default();
        pending.put(key(1), Some(entry(10)));
        let changes = pending.take();
        let newer = entry(20);
        pending.put(key(1), Some(Arc::clone(&newer)));
        pending.done(changes);
        assert!(Arc::ptr_eq(pending.take()[0].1.as_ref().unwrap(), &newer));
    }

    #[test]
    fn is_bounded_and_counts_what_has_no_room_or_could_not_be_written() {
        let mut pending = Pending::default();
        for number in 0..5 {
            pending.put(key(number), Some(entry(20 << 20)));
        }
        assert_eq!((pending.changes.len(), pending.dropped()), (3, 2));
        let changes = pending.take();
        pending.has_dropped(entries_in(&changes));
        pending.done(changes);
        assert_eq!((pending.changes.len(), pending.dropped()), (0, 5));
        pending.put(key(9), Some(entry(20 << 20)));
        assert_eq!((pending.changes.len(), pending.dropped()), (1, 5));
        pending.clear();
        assert!(pending.take().is_empty() && pending.bytes == 0);
    }
}
