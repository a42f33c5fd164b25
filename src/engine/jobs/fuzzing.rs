//! What the fuzz targets of `fuzz/` need of this room: it exists in builds for them alone (`--cfg fuzzing`), so that nothing is
//! public for their sake.

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;

use super::files::Held;
use super::journal::Journal;
use super::lines::{Line, Lines};
use super::output::Done;
use crate::engine::error::Error;

/// Where a line begins and how long it is, whether it has its newline, whether it is too long, and what stands in it.
pub type Cut = (u64, u64, bool, bool, Vec<u8>);

/// The lines of `file`, of which `buffer` bytes are read at a time and `longest` of one line.
///
/// # Errors
/// None, since nothing is read from a disk.
pub fn lines(file: &[u8], longest: u64, buffer: usize) -> std::io::Result<Vec<Cut>> {
    let mut lines = Lines::new(BufReader::with_capacity(buffer, file), longest);
    let mut cut = Vec::new();
    while let Some(Line { start, length, is_whole, is_too_long, .. }) = lines.next()? {
        cut.push((start, length, is_whole, is_too_long, lines.text().to_vec()));
    }
    Ok(cut)
}

/// What a run that goes on finds in `output`, which is written to `path` for it: what it is after its repair, and how many of its
/// lines were set aside.
///
/// # Errors
/// As the run's.
pub fn repair(path: &Path, output: &[u8], retry_failed: bool) -> Result<(Vec<u8>, usize), Error> {
    let failed = |error: std::io::Error| super::files::failed(path, "cannot be used", error);
    fs::File::create(path).and_then(|mut file| file.write_all(output)).map_err(failed)?;
    let mut held = Held::open(path)?;
    let mut journal = Journal::default();
    journal.take_in(&mut held, retry_failed)?.apply(&mut held)?;
    let now = fs::read(path).map_err(failed)?;
    assert_eq!(held.length(), now.len() as u64);
    Ok((now, journal.problems.len()))
}

/// Whether a line is one of an output, and whether it says that its item was answered.
pub fn is_answered(line: &[u8]) -> Option<bool> {
    Done::read(line).map(|done| done.is_ok)
}
