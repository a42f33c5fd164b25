//! Answers in a Redis, for every process on every machine that knows it.
//!
//! Those who ask in one turn of the engine ask together, in one pipeline. What is put is written behind, in groups, over a
//! connection of its own, so that no call waits for it. Nothing here fails a call: a Redis that cannot be reached has nothing, and
//! what cannot be written is not kept; the reason is told once. What stands there may be anybody's, so it is read like the bytes of
//! a disk, and of keys only those are touched that look like this store's own.

mod address;
mod claim;
mod link;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use std::vec;

use futures_util::future::join_all;
use redis::{FromRedisValue, Pipeline, ToRedisArgs, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::address::Address;
pub use self::claim::{Claim, Claimed};
use self::link::{Link, refusal};
use super::behind::{Change, Pending, entries_in, room};
use super::entry::Entry;
use super::fault::Fault;
use super::key::Key;
use super::page::{Cursor, Kept, PAGE_ENTRIES, Page};
use super::store::Found;
use crate::engine::disk::off_the_engine;
use crate::engine::error::{Error, Kind};

/// Before every key, unless another is named.
const NAMESPACE: &str = "millstream:";

/// How long an answer is kept, unless something else is said: an hour.
const TTL: Duration = Duration::from_secs(3600);

/// The most that an answer of the server's takes. A call waits for it, so it is short.
const ANSWER: Duration = Duration::from_millis(500);
/// The same where no call waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that looking through all keys takes for `stats`.
const LOOK: Duration = Duration::from_secs(5);

/// So many are asked for at once at most.
const MOST_ASKED: usize = 256;
/// The same by who pages through all of them.
const ASKED_FOR_A_PAGE: usize = 16;
/// Of what is written about so much goes out at once.
const GROUP_BYTES: usize = 1 << 20;
/// Nothing larger is written, and of what is larger no more is read: those who share the connection would wait for it.
const MOST_BYTES: usize = 16 << 20;
/// What is larger altogether is decoded on another thread.
const MANY_BYTES: usize = 256 << 10;
/// Keys that the server looks at in one step of a look through all of them.
const STEP: usize = 1000;

/// Which Redis, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// The server.
    pub address: Address,
    /// What every key begins with.
    pub namespace: String,
    /// Whether of all processes one asks what several want at once, and the others wait for it.
    pub single_flight: bool,
}

impl RedisConfig {
    /// The Redis at `url`.
    ///
    /// # Errors
    /// As [`Address::parse`], and for a namespace that is empty.
    pub fn new(url: &str, namespace: Option<&str>, single_flight: bool) -> Result<Self, Error> {
        let namespace = namespace.unwrap_or(NAMESPACE);
        if namespace.is_empty() {
            let text = "namespace must not be empty: what is kept would be mixed up with the rest of the database";
            return Err(Error::configuration(text));
        }
        Ok(Self { address: Address::parse(url)?, namespace: namespace.to_owned(), single_flight })
    }
}

/// The store.
#[derive(Debug)]
pub struct Redis {
    inner: Arc<Inner>,
    questions: OnceLock<UnboundedSender<Asked>>,
    orders: OnceLock<UnboundedSender<Order>>,
}

struct Inner {
    config: RedisConfig,
    ttl: Duration,
    /// Whether it is asked how long an answer will live.
    tells_life: bool,
    /// One for those who read and one for those who write, so that neither waits for the other.
    reader: Arc<Link>,
    writer: Arc<Link>,
    pending: Mutex<Pending>,
    fault: Mutex<Fault>,
    /// Entries that could not be read.
    damaged: AtomicU64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Redis").field("config", &self.config).finish_non_exhaustive()
    }
}

type Asked = (Key, oneshot::Sender<Option<Found>>);

/// The bytes under a name, and how long they will live if not for ever.
type Read = (Vec<u8>, Option<Duration>);

/// What the task that writes is told, in this order.
enum Order {
    /// Something is pending.
    Write,
    /// To be released once all that was put before is written: a key's lock and its token.
    Release(Key, String),
    /// Somebody waits until all that was put before is written.
    Flush(oneshot::Sender<()>),
    Clear(oneshot::Sender<Result<(), String>>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Redis {
    /// The store, not yet connected. `tells_life` asks for the rest of each answer's life.
    ///
    /// # Errors
    /// An internal error if TLS cannot be set up.
    pub fn open(config: &RedisConfig, ttl: Option<Duration>, tells_life: bool) -> Result<Self, Error> {
        let link = || Ok::<_, Error>(Arc::new(Link::new(&config.address)?));
        let inner = Inner {
            config: config.clone(),
            ttl: Self::life(ttl),
            tells_life,
            reader: link()?,
            writer: link()?,
            pending: Mutex::default(),
            fault: Mutex::default(),
            damaged: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner), questions: OnceLock::new(), orders: OnceLock::new() })
    }

    /// How long an answer is kept there if `ttl` is what was said of it.
    pub fn life(ttl: Option<Duration>) -> Duration {
        ttl.unwrap_or(TTL).max(Duration::from_millis(1))
    }

    /// What is kept under `key` and not written yet.
    pub fn at_hand(&self, key: &Key) -> Option<Arc<Entry>> {
        lock(&self.inner.pending).get(key).cloned().flatten()
    }

    /// What is kept under `key`.
    pub async fn get(&self, key: &Key) -> Option<Found> {
        if let Some(change) = lock(&self.inner.pending).get(key) {
            return change.clone().map(|entry| (entry, Some(self.inner.ttl)));
        }
        let (sender, answer) = oneshot::channel();
        let questions = self.questions.get_or_init(|| {
            let (questions, asked) = unbounded_channel();
            tokio::spawn(Arc::clone(&self.inner).read(asked));
            questions
        });
        questions.send((*key, sender)).ok()?;
        answer.await.ok().flatten()
    }

    /// What is kept under each of `keys`, in their order.
    pub async fn get_many(&self, keys: Vec<Key>) -> Vec<Option<Found>> {
        join_all(keys.iter().map(|key| self.get(key))).await
    }

    /// Waits while so much is to be written that more might not be kept.
    pub async fn room(&self) {
        room(&self.inner.pending).await;
    }

    /// Keeps it, a little later.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        self.change(key, Some(entry));
    }

    /// Forgets it.
    pub fn remove(&self, key: &Key) {
        self.change(*key, None);
    }

    fn change(&self, key: Key, change: Change) {
        if lock(&self.inner.pending).put(key, change) {
            self.order(Order::Write);
        }
    }

    fn order(&self, order: Order) {
        // Where nobody is left to hear it, the engine has ended.
        let _ = self.orders().send(order);
    }

    fn orders(&self) -> &UnboundedSender<Order> {
        self.orders.get_or_init(|| {
            let (orders, told) = unbounded_channel();
            tokio::spawn(Arc::clone(&self.inner).write(told));
            orders
        })
    }

    /// Returns once all that was put is written, or was given up.
    pub async fn flush(&self) {
        let (sender, done) = oneshot::channel();
        self.order(Order::Flush(sender));
        let _ = done.await;
    }

    /// Forgets all that is this store's.
    ///
    /// # Errors
    /// If the server cannot be reached, or does not let it.
    pub async fn clear(&self) -> Result<(), Error> {
        let (sender, done) = oneshot::channel();
        self.order(Order::Clear(sender));
        let Ok(Err(why)) = done.await else { return Ok(()) };
        let text = format!("cache: {} cannot be cleared: {why}", self.inner.config.address);
        Err(Error::new(Kind::Connection, text)
            .advise("Look whether it runs, and whether this user may SCAN and UNLINK."))
    }

    /// Some of what is kept: one step of a look through all keys, which may find an entry twice.
    ///
    /// # Errors
    /// If the server cannot be reached, or does not let it.
    pub async fn page(&self, from: Option<&Cursor>) -> Result<Page, Error> {
        if from.is_none() {
            self.flush().await;
        }
        let cursor = from.and_then(|from| Some(u64::from_be_bytes(from.0.as_slice().try_into().ok()?)));
        self.inner.page(cursor.unwrap_or_default()).await.map_err(|why| {
            let text = format!("cache: {} cannot be read: {why}", self.inner.config.address);
            Error::new(Kind::Connection, text)
                .advise("Look whether it runs, and whether this user may SCAN and GETRANGE.")
        })
    }

    /// How many entries there are, and the bytes they take, as far as a look of some seconds can tell.
    pub async fn size(&self) -> (u64, u64) {
        self.flush().await;
        let (mut entries, mut bytes) = (0, 0);
        let since = Instant::now();
        let mut cursor = 0;
        while let Ok((next, names)) = self.inner.scan(&self.inner.reader, cursor, STEP, false).await {
            let mut lengths = Pipeline::with_capacity(names.len());
            for name in &names {
                lengths.cmd("STRLEN").arg(name);
            }
            let found =
                if names.is_empty() { Ok(Vec::new()) } else { self.inner.reader.ask(&lengths, ANSWER, false).await };
            for length in found.unwrap_or_default() {
                if let Value::Int(length) = length {
                    entries += 1;
                    bytes += length.unsigned_abs();
                }
            }
            cursor = next;
            if cursor == 0 || since.elapsed() > LOOK {
                break;
            }
        }
        (entries, bytes)
    }

    /// Entries that could not be read so far.
    pub fn damaged(&self) -> u64 {
        self.inner.damaged.load(Relaxed)
    }

    /// Entries that could not be written so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.inner.pending).dropped()
    }

    /// What went wrong and was not told yet.
    pub fn take_fault(&self) -> Option<String> {
        lock(&self.inner.fault).take()
    }
}

impl Inner {
    /// Reads for all who ask. Each group goes out when it is complete, whether or not the one before it was answered.
    async fn read(self: Arc<Self>, mut questions: UnboundedReceiver<Asked>) {
        let mut asked = Vec::new();
        while questions.recv_many(&mut asked, MOST_ASKED).await > 0 {
            tokio::spawn(Arc::clone(&self).look_up(std::mem::take(&mut asked)));
        }
    }

    /// Whoever is not answered has been told that there is nothing.
    async fn look_up(self: Arc<Self>, mut asked: Vec<Asked>) {
        asked.retain(|(_, sender)| !sender.is_closed());
        if asked.is_empty() {
            return;
        }
        let mut questions = Pipeline::with_capacity(asked.len() * 2);
        for (key, _) in &asked {
            ask_for(&mut questions, self.name(key), self.tells_life);
        }
        let answers = match self.reader.ask(&questions, ANSWER, false).await {
            Ok(answers) => answers,
            Err(why) => return self.cannot_be_used(&why),
        };
        let bytes: usize =
            answers.iter().map(|answer| if let Value::BulkString(value) = answer { value.len() } else { 0 }).sum();
        let this = Arc::clone(&self);
        let give = move || {
            let mut answers = answers.into_iter();
            for (key, sender) in asked {
                let _ = sender.send(this.found(&key, &mut answers));
            }
        };
        if bytes > MANY_BYTES {
            let _ = off_the_engine(give).await;
        } else {
            give();
        }
    }

    /// What the next `answers` are.
    fn found(&self, key: &Key, answers: &mut vec::IntoIter<Value>) -> Option<Found> {
        let (bytes, life) = match read_of(answers, self.tells_life) {
            Ok(read) => read?,
            Err(why) => {
                self.cannot_be_used(&why);
                return None;
            }
        };
        let Some(entry) = Entry::decode(key, &bytes) else {
            // The next one that is put takes its place.
            self.damaged.fetch_add(1, Relaxed);
            self.tell("holds what is no answer under a key of this cache; it is asked again");
            return None;
        };
        Some((Arc::new(entry), Some(life.unwrap_or(self.ttl))))
    }

    async fn write(self: Arc<Self>, mut orders: UnboundedReceiver<Order>) {
        let mut told = Vec::new();
        while orders.recv_many(&mut told, usize::MAX).await > 0 {
            let mut releases = Vec::new();
            for order in told.drain(..) {
                match order {
                    Order::Write => {}
                    Order::Release(key, token) => releases.push((key, token)),
                    Order::Flush(done) => {
                        self.write_all(&mut releases).await;
                        let _ = done.send(());
                    }
                    Order::Clear(done) => {
                        lock(&self.pending).clear();
                        let _ = done.send(self.clear().await);
                    }
                }
            }
            self.write_all(&mut releases).await;
        }
    }

    /// Writes until nothing is pending, and releases what is done with.
    async fn write_all(&self, releases: &mut Vec<(Key, String)>) {
        loop {
            let changes = lock(&self.pending).take();
            if changes.is_empty() && releases.is_empty() {
                return;
            }
            let mut groups = groups(changes).into_iter().peekable();
            while let Some(group) = groups.next() {
                let is_last = groups.peek().is_none();
                self.write_group(group, if is_last { std::mem::take(releases) } else { Vec::new() }).await;
            }
        }
    }

    async fn write_group(&self, group: Vec<(Key, Change)>, releases: Vec<(Key, String)>) {
        let changes = group.clone();
        let encode =
            move || changes.into_iter().map(|(key, change)| (key, change.map(|entry| entry.encode(&key)))).collect();
        let encoded: Vec<(Key, Option<Vec<u8>>)> = off_the_engine(encode).await.unwrap_or_default();
        let mut orders = Pipeline::with_capacity(encoded.len() + releases.len());
        let mut dropped = 0;
        for (key, value) in encoded {
            match value {
                Some(value) if value.len() > MOST_BYTES => dropped += 1,
                Some(value) => {
                    let life = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
                    orders.cmd("SET").arg(self.name(&key)).arg(value).arg("PX").arg(life);
                }
                None => {
                    orders.cmd("UNLINK").arg(self.name(&key));
                }
            }
        }
        for (key, token) in &releases {
            orders.add_command(self.release(key, token));
        }
        let written = if orders.is_empty() { Ok(Vec::new()) } else { self.writer.ask(&orders, PATIENCE, false).await };
        match written {
            Ok(answers) => {
                for answer in answers {
                    if let Value::ServerError(error) = answer {
                        dropped += 1;
                        self.cannot_be_used(&refusal(error.code()));
                    }
                }
            }
            Err(why) => {
                dropped = entries_in(&group);
                self.cannot_be_used(&why);
            }
        }
        let mut pending = lock(&self.pending);
        pending.has_dropped(dropped);
        pending.done(group);
    }

    async fn clear(&self) -> Result<(), String> {
        let mut cursor = 0;
        loop {
            let (next, names) = self.scan(&self.writer, cursor, STEP, true).await?;
            if !names.is_empty() {
                let mut removal = Pipeline::with_capacity(1);
                removal.cmd("UNLINK").arg(names);
                let answers = self.writer.ask(&removal, PATIENCE, true).await?;
                if let Some(Value::ServerError(error)) = answers.first() {
                    return Err(refusal(error.code()));
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn page(&self, cursor: u64) -> Result<Page, String> {
        let (next, names) = self.scan(&self.writer, cursor, PAGE_ENTRIES, true).await?;
        let next = (next > 0).then(|| Cursor(next.to_be_bytes().to_vec()));
        let mut page = Page { next, ..Page::default() };
        // In groups: answers may be large, and each question has its time.
        for names in names.chunks(ASKED_FOR_A_PAGE) {
            let mut questions = Pipeline::with_capacity(names.len() * 2);
            for name in names {
                ask_for(&mut questions, name, true);
            }
            let mut answers = self.writer.ask(&questions, PATIENCE, true).await?.into_iter();
            for name in names {
                // What has gone meanwhile is passed over.
                let Some((bytes, life)) = read_of(&mut answers, true)? else { continue };
                let found = self.key(name).and_then(|key| Some((key, Entry::decode_dated(&key, &bytes)?)));
                let Some((key, (entry, stored))) = found else {
                    page.damaged += 1;
                    continue;
                };
                let expires = life.and_then(|left| SystemTime::now().checked_add(left));
                page.entries.push(Kept { key, bytes: bytes.len(), entry: Arc::new(entry), stored, expires });
            }
        }
        Ok(page)
    }

    /// One step of a look through all keys: where the next begins (0: it was the last), and which are this store's.
    async fn scan(
        &self,
        link: &Arc<Link>,
        cursor: u64,
        looked_at: usize,
        insists: bool,
    ) -> Result<(u64, Vec<Vec<u8>>), String> {
        let mut step = Pipeline::with_capacity(1);
        step.cmd("SCAN").arg(cursor).arg("MATCH").arg(self.pattern()).arg("COUNT").arg(looked_at);
        let answer = link.ask(&step, PATIENCE, insists).await?.pop();
        if let Some(Value::ServerError(error)) = &answer {
            return Err(refusal(error.code()));
        }
        let read = answer.and_then(|answer| <(u64, Vec<Vec<u8>>)>::from_redis_value(answer).ok());
        let (next, mut names) = read.ok_or_else(|| "it did not answer as a Redis does".to_owned())?;
        names.retain(|name| self.is_ours(name));
        Ok((next, names))
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.config.namespace)
    }

    /// Every name of ours, and perhaps others.
    fn pattern(&self) -> String {
        let mut pattern = String::new();
        for character in self.config.namespace.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "*"
    }

    /// Whether a key looks like this store's: others may begin with the same.
    fn is_ours(&self, name: &[u8]) -> bool {
        self.key(name).is_some()
    }

    /// The key that `name` stands for.
    fn key(&self, name: &[u8]) -> Option<Key> {
        Key::parse(std::str::from_utf8(name.strip_prefix(self.config.namespace.as_bytes())?).ok()?)
    }

    fn cannot_be_used(&self, why: &str) {
        self.tell(&format!("cannot be used now: {why}. Calls go on without it, and it is tried again"));
    }

    fn tell(&self, what: &str) {
        lock(&self.fault).tell(&format!("{} {what}", self.config.address));
    }
}

/// Asks for what stands under `name` and, if `life`, for how long it still will, as [`read_of`] reads it.
fn ask_for(questions: &mut Pipeline, name: impl ToRedisArgs, life: bool) {
    questions.cmd("GETRANGE").arg(&name).arg(0).arg(MOST_BYTES - 1);
    if life {
        questions.cmd("PTTL").arg(&name);
    }
}

/// What the next `answers` say of a name: its bytes, none of them where no string stands there, and how long they will live.
///
/// # Errors
/// What the server refuses.
fn read_of(answers: &mut vec::IntoIter<Value>, life: bool) -> Result<Option<Read>, String> {
    let value = answers.next();
    let life = match if life { answers.next() } else { None } {
        Some(Value::Int(left)) => u64::try_from(left).ok().map(Duration::from_millis),
        _ => None,
    };
    match value {
        None => Ok(None),
        Some(Value::BulkString(bytes)) if bytes.is_empty() => Ok(None),
        Some(Value::BulkString(bytes)) => Ok(Some((bytes, life))),
        Some(Value::ServerError(error)) if error.code() != "WRONGTYPE" => Err(refusal(error.code())),
        Some(_) => Ok(Some((Vec::new(), life))),
    }
}

/// What is written, in parts of about [`GROUP_BYTES`]; one at least.
fn groups(changes: Vec<(Key, Change)>) -> Vec<Vec<(Key, Change)>> {
    let mut groups = vec![Vec::new()];
    let mut room = GROUP_BYTES;
    for (key, change) in changes {
        let size = change.as_ref().map_or(0, |entry| entry.size());
        if room == 0 {
            groups.push(Vec::new());
            room = GROUP_BYTES;
        }
        room = room.saturating_sub(size);
        if let Some(group) = groups.last_mut() {
            group.push((key, change));
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn key(number: u8) -> Key {
        Key::from([number; 32])
    }

    fn store(namespace: &str) -> Redis {
        let config = RedisConfig::new("redis://localhost", Some(namespace), false).unwrap();
        Redis::open(&config, None, true).unwrap()
    }

    #[test]
    fn what_is_written_goes_out_in_groups_that_lose_nothing() {
        let entry = |bytes: usize| {
            let body = vec![b'x'; bytes].into();
            Some(Arc::new(Entry { status: StatusCode::OK, headers: HeaderMap::new(), body, raw: None }))
        };
        let sizes = |sizes: &[usize]| {
            let changes = sizes.iter().zip(0..).map(|(size, number)| (key(number), entry(*size))).collect();
            groups(changes).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[]), [0]);
        assert_eq!(sizes(&[10; 200]), [200]);
        assert_eq!(sizes(&[600_000; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[5_000_000, 10, 5_000_000]), [1, 2]);
        assert_eq!(groups(vec![(key(1), None), (key(2), None)]).len(), 1);
    }

    #[test]
    fn only_keys_of_its_own_form_are_its_own() {
        let redis = store("a*[b]?\\:");
        assert_eq!(redis.inner.pattern(), "a\\*\\[b\\]\\?\\\\:*");
        let name = redis.inner.name(&key(0xab));
        assert!(redis.inner.is_ours(name.as_bytes()));
        for other in
            [&name[1..], &name[..name.len() - 1], &format!("{name}0"), &format!("{name}:lock"), &name.to_uppercase()]
        {
            assert!(!redis.inner.is_ours(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn nothing_shows_a_login() {
        let config = RedisConfig::new("redis://canary:canary@h/1", None, true).unwrap();
        let shown = format!("{config:?} {:?}", Redis::open(&config, None, false).unwrap());
        assert!(!shown.contains("canary") && shown.contains("redis://***@h:6379/1"), "{shown}");
    }

    #[test]
    fn a_namespace_cannot_be_empty() {
        assert!(RedisConfig::new("redis://h", Some(""), false).unwrap_err().to_string().contains("namespace"));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_server_answers_is_an_entry_or_none() {
        let redis = store("n:");
        let found = |value: Value| redis.inner.found(&key(1), &mut vec![value, Value::Int(-1)].into_iter());
        let entry = Entry { status: StatusCode::OK, headers: HeaderMap::new(), body: "{}".into(), raw: None };
        assert_eq!(found(Value::BulkString(entry.encode(&key(1)))), Some((Arc::new(entry.clone()), Some(TTL))));
        assert_eq!((found(Value::BulkString(Vec::new())), redis.damaged()), (None, 0));
        let rubbish = [
            Value::Nil,
            Value::Int(7),
            Value::Okay,
            Value::BulkString(entry.encode(&key(2))),
            Value::Array(vec![Value::Array(Vec::new())]),
        ];
        for value in rubbish {
            assert_eq!(found(value), None);
        }
        assert_eq!(redis.damaged(), 5);
    }
}
