//! Answers on disk, in a `SQLite` database that several processes may share.
//!
//! What is put is written behind, in groups, by whichever blocking thread is free, and can be had from memory until then; what is
//! asked for is read the same way. Nothing here fails a call: a database that cannot be read is set aside and begun anew, and what
//! cannot be written is not kept; the reason is told once.

use std::fs::{self, DirBuilder, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::behind::{Change, Pending, entries_in, room};
use super::entry::Entry;
use super::fault::Fault;
use super::key::Key;
use super::page::{Cursor, Kept, PAGE_BYTES, PAGE_ENTRIES, Page};
use super::store::Found;
use crate::engine::disk::off_the_engine;
use crate::engine::error::Error;

/// The database's name in its folder.
const FILE: &str = "answers.sqlite";
/// Says whose database it is ("mlst").
const APPLICATION: i32 = 0x6d6c_7374;
/// The tables' version; those of another are emptied.
const VERSION: i32 = 1;

/// How long a statement waits for another process.
const BUSY: Duration = Duration::from_secs(5);
/// Of what is kept so much is forgotten at once when it is too much, the oldest first.
const FORGOTTEN: f64 = 0.1;

/// The store.
#[derive(Debug)]
pub struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    ttl: Option<Duration>,
    max_bytes: u64,
    /// One for those who read and one for those who write, so that neither waits for the other.
    reader: Mutex<Option<Opened>>,
    writer: Mutex<Option<Opened>>,
    asked: Mutex<Queue<Asked>>,
    pending: Mutex<Pending>,
    fault: Mutex<Fault>,
    /// Entries that could not be read.
    damaged: AtomicU64,
}

/// A connection, and which file it is to: another may be in its place by now, since a damaged one is set aside.
#[derive(Debug)]
struct Opened {
    connection: Connection,
    file: Option<FileId>,
}

/// Device and number; `None` where there is none, or systems do not tell.
type FileId = (u64, u64);

#[derive(Debug)]
struct Queue<T> {
    waiting: Vec<T>,
    is_served: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), is_served: false }
    }
}

/// What one asks for, and where its answers go, in their order.
type Asked = (Vec<Key>, oneshot::Sender<Vec<Option<Found>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// The store in `folder`, which is made if need be.
    ///
    /// # Errors
    /// A configuration error for a folder or a file that is another user's, open to others, a link, or another program's database.
    pub fn open(folder: &Path, max_bytes: u64, ttl: Option<Duration>) -> Result<Self, Error> {
        let path = private_file(folder)?;
        let inner = Inner {
            path,
            ttl,
            max_bytes,
            reader: Mutex::default(),
            writer: Mutex::default(),
            asked: Mutex::default(),
            pending: Mutex::default(),
            fault: Mutex::default(),
            damaged: AtomicU64::new(0),
        };
        let opened = inner.connect();
        if let Err(Trouble::Foreign) = opened {
            let text = format!("{} is another program's database", inner.path.display());
            return Err(Error::configuration(text).advise("Name another folder for the cache."));
        }
        *lock(&inner.writer) = inner.heard(opened);
        Ok(Self(Arc::new(inner)))
    }

    /// What is kept under `key` and not written yet.
    pub fn at_hand(&self, key: &Key) -> Option<Arc<Entry>> {
        lock(&self.0.pending).get(key).cloned().flatten()
    }

    /// What is kept under `key`.
    pub async fn get(&self, key: &Key) -> Option<Found> {
        if let Some(change) = lock(&self.0.pending).get(key) {
            return change.clone().map(|entry| (entry, self.0.ttl));
        }
        self.get_many(vec![*key]).await.pop().flatten()
    }

    /// What is kept under each of `keys`, in their order, and written already; nothing at all if it cannot be read.
    pub async fn get_many(&self, keys: Vec<Key>) -> Vec<Option<Found>> {
        let (sender, answers) = oneshot::channel();
        let is_served = {
            let mut asked = lock(&self.0.asked);
            asked.waiting.push((keys, sender));
            std::mem::replace(&mut asked.is_served, true)
        };
        if !is_served {
            let served =
                Served { inner: Arc::clone(&self.0), by: Inner::read, end: Inner::give_up_reading, is_done: false };
            spawn_blocking(move || served.serve());
        }
        answers.await.unwrap_or_default()
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
        if lock(&self.0.pending).put(key, change) {
            let served =
                Served { inner: Arc::clone(&self.0), by: Inner::write, end: Inner::give_up_writing, is_done: false };
            spawn_blocking(move || served.serve());
        }
    }

    /// Waits while so much is to be written that more might not be kept.
    pub async fn room(&self) {
        room(&self.0.pending).await;
    }

    /// Returns once all that was put is written.
    pub async fn flush(&self) {
        let inner = Arc::clone(&self.0);
        let _ = off_the_engine(move || inner.write()).await;
    }

    /// Forgets all.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn clear(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.0);
        off_the_engine(move || {
            let mut writer = lock(&inner.writer);
            lock(&inner.pending).clear();
            let cleared = inner.with(&mut writer, |connection| connection.execute_batch("DELETE FROM answers"));
            let Some(()) = cleared else {
                let text = format!("{} cannot be cleared", inner.path.display());
                return Err(Error::configuration(text).advise("Look whether another process holds it."));
            };
            // So that the file is small again; another process that reads it may be in the way.
            let _ = inner.with(&mut writer, |connection| match connection.execute_batch("VACUUM") {
                Err(error) if is_corrupt(&error) => Err(error),
                _ => Ok(()),
            });
            Ok(())
        })
        .await?
    }

    /// Some of what is kept, in the order of the keys: one that is written anew meanwhile keeps its place.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn page(&self, from: Option<&Cursor>) -> Result<Page, Error> {
        let inner = Arc::clone(&self.0);
        let from = from.map_or_else(Vec::new, |from| from.0.clone());
        off_the_engine(move || {
            inner.write();
            let mut reader = lock(&inner.reader);
            inner.with(&mut reader, |connection| read_page(connection, &from)).ok_or_else(|| {
                let text = format!("{} cannot be read", inner.path.display());
                Error::configuration(text).advise("Look whether another process holds it.")
            })
        })
        .await?
    }

    /// How many entries there are, and the bytes they take.
    pub async fn size(&self) -> (u64, u64) {
        let inner = Arc::clone(&self.0);
        let size = off_the_engine(move || {
            inner.write();
            let mut writer = lock(&inner.writer);
            inner.with(&mut writer, |connection| {
                let count: i64 = connection.query_row("SELECT count(*) FROM answers", [], |row| row.get(0))?;
                Ok((count.unsigned_abs(), used_bytes(connection)?))
            })
        });
        size.await.ok().flatten().unwrap_or_default()
    }

    /// Entries that could not be written so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.0.pending).dropped()
    }

    /// Entries that could not be read so far.
    pub fn damaged(&self) -> u64 {
        self.0.damaged.load(Relaxed)
    }

    /// What went wrong and was not told yet.
    pub fn take_fault(&self) -> Option<String> {
        lock(&self.0.fault).take()
    }
}

/// Reading or writing on another thread. If that never runs, or ends before its work, somebody else may begin.
struct Served {
    inner: Arc<Inner>,
    by: fn(&Inner),
    end: fn(&Inner),
    is_done: bool,
}

impl Served {
    fn serve(mut self) {
        (self.by)(&self.inner);
        self.is_done = true;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !self.is_done {
            (self.end)(&self.inner);
        }
    }
}

enum Trouble {
    /// The database is another program's.
    Foreign,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Inner {
    /// Reads for all who ask until nobody does.
    fn read(&self) {
        let mut reader = lock(&self.reader);
        loop {
            let asked = {
                let mut asked = lock(&self.asked);
                asked.is_served = !asked.waiting.is_empty();
                std::mem::take(&mut asked.waiting)
            };
            if asked.is_empty() {
                return;
            }
            for (keys, sender) in asked {
                if !sender.is_closed() {
                    let _ = sender.send(self.find(&mut reader, &keys));
                }
            }
        }
    }

    /// Whoever asks is told that there is nothing.
    fn give_up_reading(&self) {
        *lock(&self.asked) = Queue::default();
    }

    fn give_up_writing(&self) {
        lock(&self.pending).is_left();
    }

    fn find(&self, reader: &mut Option<Opened>, keys: &[Key]) -> Vec<Option<Found>> {
        let found = self.with(reader, |connection| {
            // Several are read as of one moment, which costs one lock.
            let reading = if keys.len() > 1 { Some(connection.unchecked_transaction()?) } else { None };
            let mut find = connection.prepare_cached("SELECT value, expires FROM answers WHERE key = ?1")?;
            let row = |key: &Key, row: &rusqlite::Row<'_>| {
                let expires: Option<i64> = row.get(1)?;
                let left = expires.map(|expires| expires.saturating_sub(now()));
                if left.is_some_and(|left| left <= 0) {
                    return Ok(None);
                }
                let entry = Entry::decode(key, row.get_ref(0)?.as_blob().unwrap_or_default());
                Ok(Some(
                    entry.map(|entry| (Arc::new(entry), left.map(|left| Duration::from_secs(left.unsigned_abs())))),
                ))
            };
            let mut find = |key: &Key| find.query_row([key.as_bytes().as_slice()], |found| row(key, found)).optional();
            let found = keys.iter().map(|key| Ok(find(key)?.flatten())).collect::<rusqlite::Result<Vec<_>>>()?;
            reading.map_or(Ok(()), rusqlite::Transaction::finish)?;
            Ok(found)
        });
        let sound = |(found, key): (Option<Option<Found>>, &Key)| {
            let entry = found?;
            if entry.is_none() {
                self.damaged.fetch_add(1, Relaxed);
                lock(&self.pending).remove_later(*key);
                self.tell(&format!("{}: an entry is damaged and was dropped", self.path.display()));
            }
            entry
        };
        found.unwrap_or_default().into_iter().zip(keys).map(sound).collect()
    }

    /// Writes until nothing is pending.
    fn write(&self) {
        let mut writer = lock(&self.writer);
        loop {
            let changes = lock(&self.pending).take();
            if changes.is_empty() {
                return;
            }
            let written = self.with(&mut writer, |connection| self.write_all(connection, &changes));
            let mut pending = lock(&self.pending);
            if written.is_none() {
                pending.has_dropped(entries_in(&changes));
            }
            pending.done(changes);
        }
    }

    fn write_all(&self, connection: &mut Connection, changes: &[(Key, Change)]) -> rusqlite::Result<()> {
        let expires = self.ttl.map(|ttl| now().saturating_add_unsigned(ttl.as_secs().max(1)));
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut put = transaction
                .prepare_cached("INSERT OR REPLACE INTO answers (key, value, expires) VALUES (?1, ?2, ?3)")?;
            let mut remove = transaction.prepare_cached("DELETE FROM answers WHERE key = ?1")?;
            for (key, change) in changes {
                match change {
                    Some(entry) => put.execute(params![key.as_bytes().as_slice(), entry.encode(key), expires])?,
                    None => remove.execute([key.as_bytes().as_slice()])?,
                };
            }
        }
        if used_bytes(&transaction)? > self.max_bytes {
            transaction.execute("DELETE FROM answers WHERE expires <= ?1", [now()])?;
        }
        while used_bytes(&transaction)? > self.max_bytes {
            let count: i64 = transaction.query_row("SELECT count(*) FROM answers", [], |row| row.get(0))?;
            let some = ((count as f64 * FORGOTTEN).ceil() as i64).max(1);
            let oldest = "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers ORDER BY rowid LIMIT ?1)";
            if transaction.execute(oldest, [some])? == 0 {
                break;
            }
        }
        transaction.commit()
    }

    /// `work` with a connection, made if need be; `None` if it failed. A damaged database is set aside.
    fn with<R>(
        &self,
        opened: &mut Option<Opened>,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<R>,
    ) -> Option<R> {
        if opened.as_ref().is_none_or(|opened| opened.file != file_id(&self.path)) {
            *opened = self.heard(self.connect());
        }
        let Opened { connection, file } = opened.as_mut()?;
        match work(connection) {
            Ok(done) => Some(done),
            Err(error) => {
                let file = *file;
                *opened = None;
                self.failed(&error, file);
                None
            }
        }
    }

    /// `file` is the one that it went wrong with.
    fn failed(&self, error: &rusqlite::Error, file: Option<FileId>) {
        if is_corrupt(error) {
            if file != file_id(&self.path) {
                // Somebody else was faster, and the one in its place may be sound.
                return;
            }
            let aside = self.set_aside();
            self.tell(&format!("{} is damaged ({error}) and was set aside as {aside}", self.path.display()));
        } else {
            self.tell(&format!("{} cannot be used now: {error}", self.path.display()));
        }
    }

    /// The connection, after a second try with a new database if the first one's was damaged.
    fn heard(&self, opened: Result<Opened, Trouble>) -> Option<Opened> {
        match opened {
            Ok(opened) => Some(opened),
            Err(Trouble::Sqlite(error)) => {
                self.failed(&error, file_id(&self.path));
                if is_corrupt(&error) { self.connect().ok() } else { None }
            }
            Err(Trouble::Foreign) => {
                self.tell(&format!("{} has become another program's database", self.path.display()));
                None
            }
        }
    }

    fn connect(&self) -> Result<Opened, Trouble> {
        // Before it is opened: if it is replaced in between, that is seen at the next use.
        let file = file_id(&self.path).or_else(|| {
            self.path.parent().and_then(|folder| private_file(folder).ok()).and_then(|path| file_id(&path))
        });
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY)?;
        let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let (application, version) = (pragma("application_id")?, pragma("user_version")?);
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if application != APPLICATION && tables > 0 {
            return Err(Trouble::Foreign);
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        if (application, version) != (APPLICATION, VERSION) {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; DROP TABLE IF EXISTS answers;
                 CREATE TABLE answers (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL, expires INTEGER);
                 PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT"
            ))?;
        }
        Ok(Opened { connection, file })
    }

    /// Gives the database another name; which.
    fn set_aside(&self) -> String {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".damaged-{}", now()));
        let _ = fs::rename(&self.path, &name);
        for ending in ["-wal", "-shm"] {
            let mut beside = self.path.clone().into_os_string();
            beside.push(ending);
            let _ = fs::remove_file(beside);
        }
        // For the owner alone, as the first one.
        let _ = self.path.parent().map(private_file);
        PathBuf::from(name).display().to_string()
    }

    fn tell(&self, text: &str) {
        lock(&self.fault).tell(text);
    }
}

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).ok().map(|known| (known.dev(), known.ino()))
}

/// An open file cannot be renamed there.
#[cfg(not(unix))]
fn file_id(_path: &Path) -> Option<FileId> {
    None
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The entries whose keys come after `from`.
fn read_page(connection: &Connection, from: &[u8]) -> rusqlite::Result<Page> {
    let mut select =
        connection.prepare_cached("SELECT key, value, expires FROM answers WHERE key > ?1 ORDER BY key LIMIT ?2")?;
    // One more than is taken, which says that there are others.
    let mut rows = select.query(params![from, i64::try_from(PAGE_ENTRIES + 1).unwrap_or(i64::MAX)])?;
    let (mut page, mut looked_at, mut bytes, mut last) = (Page::default(), 0, 0, Vec::new());
    while let Some(row) = rows.next()? {
        if looked_at == PAGE_ENTRIES || bytes >= PAGE_BYTES {
            page.next = Some(Cursor(last));
            break;
        }
        let (name, value) =
            (row.get_ref(0)?.as_blob().unwrap_or_default(), row.get_ref(1)?.as_blob().unwrap_or_default());
        let expires: Option<i64> = row.get(2)?;
        last = name.to_vec();
        (looked_at, bytes) = (looked_at + 1, bytes + value.len());
        if expires.is_some_and(|expires| expires <= now()) {
            continue;
        }
        let key = <[u8; 32]>::try_from(name).ok().map(Key::from);
        let found = key.and_then(|key| Some((key, Entry::decode_dated(&key, value)?)));
        let Some((key, (entry, stored))) = found else {
            page.damaged += 1;
            continue;
        };
        let expires = expires.and_then(|expires| UNIX_EPOCH.checked_add(Duration::from_secs(expires.unsigned_abs())));
        page.entries.push(Kept { key, bytes: value.len(), entry: Arc::new(entry), stored, expires });
    }
    Ok(page)
}

/// What is used of the file.
fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages.saturating_mul(pragma("page_size")?).unsigned_abs())
}

/// Seconds since 1970: what is on disk outlives every clock of a process.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The database's file, made if need be, its owner's alone.
fn private_file(folder: &Path) -> Result<PathBuf, Error> {
    let refused = |path: &Path, why: &str| Error::configuration(format!("cache: {} {why}", path.display()));
    let cannot = |error: std::io::Error| refused(folder, &format!("cannot be used: {error}")).with_source(error);
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(cannot)?;
    let known = fs::symlink_metadata(folder).map_err(cannot)?;
    if !known.is_dir() {
        return Err(refused(folder, "is a link or no folder").advise("Name the folder itself."));
    }
    let path = folder.join(FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
        let me = rustix::process::geteuid().as_raw();
        if known.uid() != me {
            return Err(refused(folder, "belongs to another user").advise("Name a folder of your own."));
        }
        if known.mode() & 0o022 != 0 {
            return Err(refused(folder, "can be written by others").advise("chmod 700 it, or name another."));
        }
        options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path).map_err(|error| refused(&path, &format!("cannot be opened: {error}")))?;
        let known = file.metadata().map_err(cannot)?;
        if !known.is_file() || known.uid() != me {
            return Err(refused(&path, "is no file of this user's"));
        }
        if known.mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        }
    }
    #[cfg(not(unix))]
    options.open(&path).map_err(|error| refused(&path, &format!("cannot be opened: {error}")))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::{HeaderMap, StatusCode};

    use super::super::behind::MOST_BYTES;
    use super::*;

    const MEGABYTE: u64 = 1 << 20;

    /// A folder of a test's own, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("millstream-cache-{}", uuid::Uuid::new_v4())))
        }

        fn disk(&self) -> Disk {
            Disk::open(&self.0, MEGABYTE, None).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.0.join(FILE)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(number: u32) -> Key {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        key.into()
    }

    fn entry(text: &str) -> Arc<Entry> {
        let body = text.to_owned().into();
        Arc::new(Entry { status: StatusCode::OK, headers: HeaderMap::new(), body, raw: None })
    }

    async fn text(disk: &Disk, number: u32) -> Option<String> {
        let (entry, _) = disk.get(&key(number)).await?;
        Some(String::from_utf8(entry.body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_is_put_is_there_at_once_and_for_who_opens_it_later() {
        let folder = Folder::new();
        let disk = folder.disk();
        disk.put(key(1), entry("one"));
        assert_eq!(text(&disk, 1).await.as_deref(), Some("one"));
        disk.flush().await;
        assert!(disk.at_hand(&key(1)).is_none());
        let other = folder.disk();
        assert_eq!(text(&other, 1).await.as_deref(), Some("one"));
        other.put(key(1), entry("new"));
        other.flush().await;
        assert_eq!(text(&disk, 1).await.as_deref(), Some("new"));
        disk.remove(&key(1));
        assert_eq!(text(&disk, 1).await, None);
        disk.flush().await;
        assert_eq!((text(&other, 1).await, disk.take_fault()), (None, None));
    }

    #[tokio::test]
    async fn many_who_read_and_write_at_once_have_each_their_own() {
        let folder = Folder::new();
        let disks = Arc::new([folder.disk(), folder.disk()]);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..400 {
            let disks = Arc::clone(&disks);
            tasks.spawn(async move {
                let disk = &disks[number as usize % 2];
                disk.put(key(number), entry(&format!("answer {number}")));
                tokio::task::yield_now().await;
                assert_eq!(text(disk, number).await, Some(format!("answer {number}")));
            });
        }
        tasks.join_all().await;
        for disk in disks.iter() {
            disk.flush().await;
        }
        for number in 0..400 {
            assert_eq!(text(&disks[0], number).await, Some(format!("answer {number}")));
        }
        assert_eq!(disks[0].size().await.0, 400);
    }

    #[tokio::test]
    async fn who_waits_for_room_has_all_of_it_kept() {
        let folder = Folder::new();
        let disk = folder.disk();
        let large = "x".repeat(MOST_BYTES / 8);
        for number in 0..20 {
            disk.room().await;
            disk.put(key(number), entry(&large));
        }
        assert_eq!(disk.size().await.0, 20);
    }

    #[tokio::test]
    async fn several_are_found_at_once_each_in_its_place() {
        let folder = Folder::new();
        let disk = folder.disk();
        for number in (0..600).step_by(2) {
            disk.put(key(number), entry(&number.to_string()));
        }
        disk.flush().await;
        let found = disk.get_many((0..600).map(key).collect()).await;
        assert_eq!(found.len(), 600);
        for (number, found) in found.into_iter().enumerate() {
            let text = found.map(|(entry, _)| String::from_utf8(entry.body.to_vec()).unwrap());
            assert_eq!(text, (number % 2 == 0).then(|| number.to_string()));
        }
    }

    #[tokio::test]
    async fn is_bounded_and_forgets_the_oldest_first() {
        let folder = Folder::new();
        let disk = Disk::open(&folder.0, MEGABYTE, None).unwrap();
        // Not compressible.
        let long = || (0..20_000).map(|_| fastrand::alphanumeric()).collect::<String>();
        for number in 0..200 {
            disk.put(key(number), entry(&long()));
            disk.flush().await;
        }
        let (entries, bytes) = disk.size().await;
        assert!(entries > 20 && bytes <= MEGABYTE, "{entries} entries, {bytes} bytes");
        assert!(text(&disk, 0).await.is_none() && text(&disk, 199).await.is_some());
        assert!(fs::metadata(folder.file()).unwrap().len() < 2 * MEGABYTE);
    }

    #[tokio::test]
    async fn an_entry_whose_time_is_over_is_not_given() {
        let folder = Folder::new();
        let disk = Disk::open(&folder.0, MEGABYTE, Some(Duration::from_secs(3600))).unwrap();
        disk.put(key(1), entry("one"));
        disk.flush().await;
        assert!(text(&disk, 1).await.is_some());
        let other = Connection::open(folder.file()).unwrap();
        other.execute("UPDATE answers SET expires = ?1", [now()]).unwrap();
        assert!(text(&disk, 1).await.is_none());
        assert_eq!(disk.damaged(), 0);
    }

    #[tokio::test]
    async fn is_empty_once_it_is_cleared() {
        let folder = Folder::new();
        let disk = folder.disk();
        disk.put(key(1), entry("one"));
        disk.flush().await;
        disk.put(key(2), entry("two"));
        disk.clear().await.unwrap();
        assert_eq!((text(&disk, 1).await, text(&disk, 2).await, disk.size().await.0), (None, None, 0));
    }

    #[tokio::test]
    async fn a_look_through_it_sees_everything_once_page_by_page_and_counts_what_is_damaged() {
        let folder = Folder::new();
        let disk = Disk::open(&folder.0, 64 * MEGABYTE, Some(Duration::from_secs(60))).unwrap();
        for number in 0..600 {
            disk.put(key(number), entry("text"));
        }
        disk.flush().await;
        let other = Connection::open(folder.file()).unwrap();
        other.execute("UPDATE answers SET value = x'00' WHERE key = ?1", [key(7).as_bytes().as_slice()]).unwrap();
        other.execute("UPDATE answers SET expires = 1 WHERE key = ?1", [key(8).as_bytes().as_slice()]).unwrap();
        let (mut seen, mut damaged, mut from) = (Vec::new(), 0, None);
        loop {
            let page = disk.page(from.as_ref()).await.unwrap();
            assert!(page.entries.iter().all(|kept| kept.stored < kept.expires && kept.stored.is_some()));
            damaged += page.damaged;
            seen.extend(page.entries.into_iter().map(|kept| kept.key));
            // Written anew, it keeps its place; one that is put before is not seen, one behind is.
            disk.put(key(3), entry("another"));
            disk.put(key(1000), entry("late"));
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        let expected = (0..600).filter(|number| ![7, 8].contains(number)).chain([1000]).map(key);
        assert_eq!((seen, damaged), (expected.collect::<Vec<_>>(), 1));
    }

    #[tokio::test]
    async fn a_damaged_database_is_set_aside_and_told_of_once() {
        let folder = Folder::new();
        drop(folder.disk());
        fs::write(folder.file(), "this is no database, whatever its name says".repeat(100)).unwrap();
        let disk = folder.disk();
        assert!(disk.take_fault().unwrap().contains("set aside"));
        assert!(disk.take_fault().is_none());
        disk.put(key(1), entry("one"));
        disk.flush().await;
        assert_eq!(text(&disk, 1).await.as_deref(), Some("one"));
        let names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name.to_string_lossy().contains(".damaged-")), "{names:?}");
    }

    #[tokio::test]
    async fn no_flipped_byte_gives_a_wrong_answer_or_stops_the_cache() {
        let folder = Folder::new();
        let disk = folder.disk();
        for number in 0..300 {
            disk.put(key(number), entry(&format!("answer {number} ").repeat(20)));
        }
        disk.flush().await;
        drop(disk);
        Connection::open(folder.file()).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let whole = fs::read(folder.file()).unwrap();
        let (mut random, mut opened, mut mended) = (fastrand::Rng::with_seed(7), 0, 0);
        for _ in 0..20 {
            let mut bytes = whole.clone();
            for _ in 0..50 {
                let place = random.usize(..bytes.len());
                bytes[place] ^= random.u8(1..);
            }
            for file in fs::read_dir(&folder.0).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
            fs::write(folder.file(), bytes).unwrap();
            // What is no longer known as ours is refused, and not overwritten.
            let Ok(disk) = Disk::open(&folder.0, MEGABYTE, None) else { continue };
            opened += 1;
            for number in 0..300 {
                let found = text(&disk, number).await;
                assert!(found.is_none_or(|found| found == format!("answer {number} ").repeat(20)));
            }
            // Damage that only a write or a read meets costs what it was at; then the file is a new one.
            let mut found = None;
            for _ in 0..3 {
                disk.put(key(1000), entry("new"));
                disk.flush().await;
                found = text(&disk, 1000).await;
                if found.is_some() {
                    break;
                }
            }
            // In a tree whose order is broken, which SQLite does not look for, a new row may never be found: a miss.
            assert!(found.as_deref().is_none_or(|found| found == "new"));
            mended += u32::from(found.is_some());
        }
        assert!(opened >= 10 && mended * 4 >= opened * 3, "{mended} of {opened}");
    }

    #[tokio::test]
    async fn another_programs_database_is_left_alone() {
        let folder = Folder::new();
        fs::create_dir_all(&folder.0).unwrap();
        Connection::open(folder.file()).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
        let error = Disk::open(&folder.0, MEGABYTE, None).unwrap_err().to_string();
        assert!(error.contains("another program's"), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn is_its_owners_alone_and_never_behind_a_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = Folder::new();
        let disk = folder.disk();
        disk.put(key(1), entry("one"));
        disk.flush().await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.0), 0o700);
        let files: HashSet<_> = fs::read_dir(&folder.0).unwrap().map(|file| mode(&file.unwrap().path())).collect();
        assert_eq!(files, HashSet::from([0o600]));
        drop(disk);

        let refused = |path: &Path| Disk::open(path, MEGABYTE, None).unwrap_err().to_string();
        let link = folder.0.with_extension("link");
        symlink(&folder.0, &link).unwrap();
        let said = refused(&link);
        fs::remove_file(&link).unwrap();
        assert!(said.contains("link"), "{said}");
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused(&folder.0).contains("written by others"));
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(folder.file(), folder.0.join("other")).unwrap();
        symlink(folder.0.join("other"), folder.file()).unwrap();
        assert!(refused(&folder.0).contains("cannot be opened"));
    }
}
