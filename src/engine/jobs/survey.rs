//! The first look at the input, before anything is sent: are its ids unique, is it still what was answered before, how long is it.
//!
//! Eight bytes a line are kept, a hash of its id. Only where two are the same is the file read once more, for the ids themselves
//! and the lines they stand in.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Take};
use std::path::Path;
use std::sync::Arc;

use super::calls::{Calls, Defaults};
use super::files::failed;
use super::hash::{RequestHash, key_of};
use super::input::{BadLine, Entry};
use super::journal::{Journal, Known, changed};
use super::lines::{Line, Lines};
use super::report::{MOST_PROBLEMS, Problem};
use crate::engine::error::Error;

/// The longest line that is read: what a vendor takes as a whole file is 200 MB, and a request far less.
const LONGEST_LINE: u64 = 64 << 20;

/// Models that are known by name before the run; a line that names another is of unknown price.
const MOST_MODELS: usize = 10_000;

/// The input, line by line.
pub(super) type Input = Lines<BufReader<Take<File>>>;

/// Opens the input; no more than `length` bytes of it are read, so that what is appended meanwhile is the next run's.
///
/// # Errors
/// A configuration error if it is no file that can be read.
pub(super) fn open(path: &Path, length: Option<u64>) -> Result<(Input, u64), Error> {
    let cannot = |error: io::Error| {
        Error::configuration(format!("{} cannot be read: {error}", path.display())).with_source(error)
    };
    // Before it is opened, which for a pipe waits for somebody to write into it.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        let text = format!("{} is no regular file", path.display());
        return Err(Error::configuration(text).advise("The input is read twice: save what comes out of a pipe first."));
    }
    let file = File::open(path).map_err(cannot)?;
    let length = match length {
        Some(length) => length,
        None => file.metadata().map_err(cannot)?.len(),
    };
    Ok((Lines::new(BufReader::with_capacity(1 << 18, file.take(length)), LONGEST_LINE), length))
}

/// The text of a line that has some.
pub(super) fn text_of(lines: &Input, line: Line) -> Option<&[u8]> {
    let text = lines.text();
    let text = if line.number == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
    Some(text.trim_ascii()).filter(|text| line.is_too_long || !text.is_empty())
}

/// Reads a line.
pub(super) fn read(line: Line, text: &[u8]) -> Result<Entry<'_>, BadLine> {
    if line.is_too_long {
        let reason = format!("it is {} bytes long, and at most {LONGEST_LINE} are read", line.length);
        return Err(BadLine { custom_id: None, reason });
    }
    Entry::read(text)
}

/// The name of a request that has none, from what it asks, so that it stays when lines are put before it.
pub(super) fn name_of(hash: RequestHash) -> String {
    format!("h-{:016x}", hash.short())
}

/// What the first look has found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Lines that are not blank.
    pub(super) total: u64,
    /// Bytes.
    pub(super) length: u64,
    /// Names made of content that more than one line has.
    pub(super) repeated: HashSet<u64>,
    /// Models that lines name, the first of them.
    pub(super) models: BTreeSet<String>,
    /// Lines that are no requests.
    pub(super) problems: Vec<Problem>,
}

/// Looks at every line of `path`.
///
/// # Errors
/// A configuration error for an id that two lines have, for a line whose request is no more the one that was answered, and, if
/// `strict`, for a line that is no request.
pub(super) fn survey(
    path: &Path,
    output: &Path,
    journal: &Journal,
    defaults: &Arc<Defaults>,
    strict: bool,
) -> Result<Survey, Error> {
    let (mut lines, length) = open(path, None)?;
    let mut found = Survey { length, ..Survey::default() };
    // Kept apart, since a name that is made may be made twice.
    let (mut given, mut made) = (Vec::new(), Vec::new());
    let mut bad = 0_u64;
    // What a line's form alone does not tell: whether it can be sent at all.
    let mut calls = strict.then(|| Calls::new(Arc::clone(defaults)));
    while let Some(line) = lines.next().map_err(|error| failed(path, "cannot be read", error))? {
        let Some(text) = text_of(&lines, line) else { continue };
        found.total += 1;
        let entry = read(line, text);
        let (custom_id, is_given) = id_of(&entry, text);
        if is_given { &mut given } else { &mut made }.push(key_of(&custom_id));
        let identity = || request_hash(&entry, text, defaults).identity(&custom_id).short();
        if !journal.is_empty() && journal.knows(&custom_id, identity) == Known::Changed {
            return Err(changed(path, line.number, &custom_id, output));
        }
        if found.models.len() < MOST_MODELS
            && let Some(model) = entry.as_ref().ok().and_then(Defaults::model_of)
        {
            found.models.insert(model);
        }
        let wrong = match (entry, &mut calls) {
            (Ok(entry), Some(calls)) => calls.build(&entry).err(),
            (Ok(_), None) => None,
            (Err(BadLine { reason, .. }), _) => Some(reason),
        };
        if let Some(reason) = wrong {
            bad += 1;
            if found.problems.len() < MOST_PROBLEMS {
                found.problems.push(Problem { file: path.to_owned(), line: line.number, reason });
            }
        }
    }
    if strict && bad > 0 {
        return Err(refuse_bad_lines(path, bad, &found.problems));
    }
    given.sort_unstable();
    made.sort_unstable();
    found.repeated = repeats(&made).collect();
    let mut suspects: HashSet<u64> = repeats(&given).collect();
    suspects.extend(made.iter().filter(|key| given.binary_search(key).is_ok()));
    drop((given, made));
    if !suspects.is_empty() {
        refuse_duplicates(path, length, &suspects)?;
    }
    Ok(found)
}

/// What a line is called, and whether it says so itself.
pub(super) fn id_of<'a>(entry: &'a Result<Entry<'_>, BadLine>, text: &[u8]) -> (Cow<'a, str>, bool) {
    match entry {
        Ok(Entry { custom_id: Some(id), .. }) => (id.as_ref().into(), true),
        Err(BadLine { custom_id: Some(id), .. }) => (id.as_str().into(), true),
        Ok(entry) => (name_of(entry.hash("")).into(), false),
        Err(_) => (name_of(RequestHash::of_bad_line(text)).into(), false),
    }
}

/// Which request a line is.
pub(super) fn request_hash(entry: &Result<Entry<'_>, BadLine>, text: &[u8], defaults: &Defaults) -> RequestHash {
    match entry {
        Ok(entry) => entry.hash(&defaults.usual().used_by(entry)),
        Err(_) => RequestHash::of_bad_line(text),
    }
}

fn repeats(sorted: &[u64]) -> impl Iterator<Item = u64> {
    sorted.iter().zip(sorted.iter().skip(1)).filter(|(one, next)| one == next).map(|(one, _)| *one)
}

/// Reads the file once more for the lines of ids that may be the same.
fn refuse_duplicates(path: &Path, length: u64, suspects: &HashSet<u64>) -> Result<(), Error> {
    let (mut lines, _) = open(path, Some(length))?;
    let mut seen: HashMap<String, (u64, bool)> = HashMap::new();
    while let Some(line) = lines.next().map_err(|error| failed(path, "cannot be read", error))? {
        let Some(text) = text_of(&lines, line) else { continue };
        let entry = read(line, text);
        let (custom_id, is_given) = id_of(&entry, text);
        if !suspects.contains(&key_of(&custom_id)) {
            continue;
        }
        match seen.get(&*custom_id) {
            Some((first, other_is_given)) if is_given || *other_is_given => {
                let text = format!(
                    "{}: lines {first} and {} have the same custom_id, {custom_id:?}",
                    path.display(),
                    line.number
                );
                return Err(Error::configuration(text)
                    .advise("Answers are told apart by it: give each line one of its own. Nothing was sent."));
            }
            Some(_) => {}
            None => drop(seen.insert(custom_id.into_owned(), (line.number, is_given))),
        }
    }
    Ok(())
}

fn refuse_bad_lines(path: &Path, bad: u64, problems: &[Problem]) -> Error {
    const SHOWN: usize = 5;
    let told: Vec<String> =
        problems.iter().take(SHOWN).map(|problem| format!("line {}: {}", problem.line, problem.reason)).collect();
    let more = if bad > SHOWN as u64 { "; …" } else { "" };
    let text = format!("{}: {bad} lines are no requests; {}{more}", path.display(), told.join("; "));
    Error::configuration(text).advise("Mend them, or run without strict=True to have them reported. Nothing was sent.")
}
