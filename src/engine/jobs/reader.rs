//! From the input to work: lines become calls, those that are done are passed over.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::calls::{Calls, Defaults, Priced};
use super::files::failed;
use super::hash::key_of;
use super::input::BadLine;
use super::journal::{Journal, Known};
use super::lines::Line;
use super::output::Item;
use super::report::Counts;
use super::survey::{Input, Survey, id_of, open, read, request_hash, text_of};
use crate::engine::batch::Price;
use crate::engine::error::Error;

/// Lines that are read in one go, so that changing threads costs nothing.
const CHUNK: usize = 256;
/// Bytes after which a chunk is full, too.
const CHUNK_BYTES: usize = 1 << 20;

/// A line that has no answer yet.
#[derive(Debug)]
pub(super) struct Next {
    /// Its place among those that have none.
    pub(super) index: usize,
    /// What it is.
    pub(super) item: Item,
    /// What to ask, or what is wrong with the line.
    pub(super) ask: Result<Priced, String>,
    /// Its bytes.
    pub(super) bytes: usize,
}

/// Reads the input a second time.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    input: Input,
    journal: Journal,
    defaults: Arc<Defaults>,
    calls: Calls,
    /// Names made of content that several lines have, and how many were seen so far.
    repeated: HashSet<u64>,
    seen: HashMap<u64, u32>,
    next: usize,
    counts: Arc<Counts>,
}

impl Reader {
    pub(super) fn new(
        path: PathBuf,
        survey: &mut Survey,
        journal: Journal,
        defaults: Arc<Defaults>,
        counts: Arc<Counts>,
    ) -> Result<Self, Error> {
        let (input, _) = open(&path, Some(survey.length))?;
        Ok(Self {
            path,
            input,
            journal,
            calls: Calls::new(Arc::clone(&defaults)),
            defaults,
            repeated: std::mem::take(&mut survey.repeated),
            seen: HashMap::new(),
            next: 0,
            counts,
        })
    }

    /// What models cost; one that is missing has no known price.
    pub(super) fn prices_are(&mut self, prices: HashMap<String, Price>) {
        self.calls.prices = prices;
    }

    /// The next lines without an answer; none at the end of the input.
    pub(super) fn chunk(&mut self) -> Result<Vec<Next>, Error> {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut bytes = 0;
        while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
            let Some(line) = self.input.next().map_err(|error| failed(&self.path, "cannot be read", error))? else {
                break;
            };
            if let Some(next) = self.next_of(line) {
                bytes += next.bytes;
                chunk.push(next);
            }
        }
        Ok(chunk)
    }

    fn next_of(&mut self, line: Line) -> Option<Next> {
        let text = text_of(&self.input, line)?;
        let entry = read(line, text);
        let (custom_id, is_given) = id_of(&entry, text);
        let custom_id =
            if is_given { custom_id.into_owned() } else { told_apart(&mut self.seen, &self.repeated, &custom_id) };
        let hash = request_hash(&entry, text, &self.defaults);
        if self.journal.knows(&custom_id, || hash.identity(&custom_id).short()) != Known::No {
            self.counts.skipped.fetch_add(1, Relaxed);
            return None;
        }
        let metadata = entry.as_ref().ok().and_then(|entry| entry.metadata.as_deref().map(str::to_owned));
        let item = Item { line: line.number, custom_id, hash, metadata };
        let ask = match &entry {
            Ok(entry) => self.calls.build(entry).inspect_err(|reason| self.counts.report(&self.path, line, reason)),
            Err(BadLine { reason, .. }) => Err(reason.clone()),
        };
        let index = self.next;
        self.next += 1;
        Some(Next { index, item, ask, bytes: line.length as usize })
    }
}

/// The name of the next line of this content: the first has it alone, the others a number behind it.
fn told_apart(seen: &mut HashMap<u64, u32>, repeated: &HashSet<u64>, name: &str) -> String {
    let key = key_of(name);
    if !repeated.contains(&key) {
        return name.to_owned();
    }
    let seen = seen.entry(key).or_default();
    *seen += 1;
    if *seen == 1 { name.to_owned() } else { format!("{name}-{seen}") }
}
