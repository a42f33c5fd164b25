//! Answers in memory, bounded by their bytes; what is asked again stays longest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::entry::Entry;
use super::key::Key;
use super::page::{Cursor, Kept as Seen, PAGE_BYTES, PAGE_ENTRIES, Page};

/// What an answer is thought to take, for the size of the first table.
const USUAL_BYTES: u64 = 4 * 1024;
/// So many at most are made room for before they come.
const MOST_EXPECTED: u64 = 4096;

#[derive(Debug, Clone)]
struct Kept {
    entry: Arc<Entry>,
    expires: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, _key: &Key, kept: &Kept) -> u64 {
        kept.entry.size() as u64
    }
}

/// The store.
#[derive(Debug)]
pub struct Memory {
    kept: Cache<Key, Kept, Bytes>,
    ttl: Option<Duration>,
}

impl Memory {
    /// One of at most `max_bytes`, whose entries live for `ttl`.
    pub fn new(max_bytes: u64, ttl: Option<Duration>) -> Self {
        let expected = (max_bytes / USUAL_BYTES).clamp(1, MOST_EXPECTED) as usize;
        // One shard: its bound is that of one, and those who ask are few threads.
        let options =
            OptionsBuilder::new().estimated_items_capacity(expected).weight_capacity(max_bytes).shards(1).build();
        let kept = match options {
            Ok(options) => {
                Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            // Nothing of it is missing.
            Err(_) => Cache::with_weighter(expected, max_bytes, Bytes),
        };
        Self { kept, ttl }
    }

    /// What is kept under `key` and still lives.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let kept = self.kept.get(key)?;
        if kept.expires.is_some_and(|expires| expires <= Instant::now()) {
            self.remove(key);
            return None;
        }
        Some(kept.entry)
    }

    /// Keeps it, unless it is larger than the whole store.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        self.put_for(key, entry, self.ttl);
    }

    /// The same, for as long as it says.
    pub fn put_for(&self, key: Key, entry: Arc<Entry>, ttl: Option<Duration>) {
        let expires = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        self.kept.insert(key, Kept { entry, expires });
    }

    /// Forgets it.
    pub fn remove(&self, key: &Key) {
        self.kept.remove(key);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.kept.clear();
    }

    /// Some of what is kept, in the order of the keys.
    pub fn page(&self, from: Option<&Cursor>) -> Page {
        let (now, today) = (Instant::now(), SystemTime::now());
        let after = |key: &Key| from.is_none_or(|from| *from.0 < key.as_bytes()[..]);
        let mut kept: Vec<_> = self.kept.iter().filter(|(key, _)| after(key)).collect();
        kept.sort_unstable_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
        let (mut page, mut bytes) = (Page::default(), 0);
        for (place, (key, Kept { entry, expires })) in kept.into_iter().enumerate() {
            if place == PAGE_ENTRIES || bytes >= PAGE_BYTES {
                page.next = page.entries.last().map(|last: &Seen| Cursor::after(&last.key));
                break;
            }
            bytes += entry.size();
            let lives = expires.map(|expires| expires.saturating_duration_since(now));
            let expires = lives.and_then(|lives| today.checked_add(lives));
            page.entries.push(Seen { key, bytes: entry.size(), entry, stored: None, expires });
        }
        page.entries.retain(|seen| seen.expires.is_none_or(|expires| expires > today));
        page
    }

    /// How many there are, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        (self.kept.len() as u64, self.kept.weight())
    }
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
    fn is_bounded_by_bytes_and_keeps_nothing_larger_than_itself() {
        let memory = Memory::new(100_000, None);
        for number in 0..100 {
            memory.put(key(number), entry(10_000));
        }
        let (entries, bytes) = memory.size();
        assert!((5..=9).contains(&entries) && bytes <= 100_000, "{entries} entries, {bytes} bytes");
        memory.put(key(200), entry(200_000));
        assert!(memory.get(&key(200)).is_none());
        assert!(memory.size().1 <= 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_lives_as_long_as_it_may() {
        let memory = Memory::new(1_000_000, Some(Duration::from_secs(60)));
        memory.put(key(1), entry(10));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(memory.get(&key(1)).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(memory.get(&key(1)).is_none());
        assert_eq!(memory.size(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_through_it_sees_everything_once_page_by_page() {
        let memory = Memory::new(100_000_000, Some(Duration::from_secs(60)));
        let keys = (0..600_u32).map(|number| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            Key::from(key)
        });
        let keys: Vec<_> = keys.collect();
        for key in &keys {
            memory.put(*key, entry(10));
        }
        let (mut seen, mut pages, mut from) = (Vec::new(), 0, None);
        loop {
            let page = memory.page(from.as_ref());
            assert!(page.entries.iter().all(|kept| kept.expires.is_some() && kept.bytes > 10));
            (pages, from) = (pages + 1, page.next);
            seen.extend(page.entries.into_iter().map(|kept| kept.key));
            if from.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages), (keys, 3));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(memory.page(None).entries.is_empty());
    }

    #[test]
    fn is_empty_once_it_is_cleared() {
        let memory = Memory::new(1_000_000, None);
        memory.put(key(1), entry(10));
        memory.put(key(2), entry(10));
        memory.remove(&key(2));
        assert!(memory.get(&key(1)).is_some() && memory.get(&key(2)).is_none());
        memory.clear();
        assert_eq!(memory.size(), (0, 0));
    }
}
