//! What an output already holds, and its repair. The output is the journal: there is no other file that could disagree with it.
//!
//! A line that was cut by a crash (it has no newline) is cut off, or completed if only its newline is missing. A damaged line
//! elsewhere is set aside in `OUT.corrupt`, and its item is asked again. A file in which no line is one of an output is somebody
//! else's and is not touched.

use std::io::BufReader;
use std::path::Path;

use super::files::{Held, beside, failed, set_aside};
use super::hash::key_of;
use super::lines::{Line, Lines};
use super::output::{Done, may_begin};
use super::report::Problem;
use crate::engine::error::{Error, Kind};

/// Longer lines are none of ours: an answer has at most 64 MiB.
const LONGEST_LINE: u64 = 160 << 20;

/// What an answer is to.
const UNKNOWN: u64 = 0;

/// What is done, in 16 bytes an item.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Of each item the hash of its id and of its identity, sorted.
    done: Vec<(u64, u64)>,
    /// Of them those that failed.
    pub(super) failed: u64,
    /// Damaged lines that were set aside.
    pub(super) problems: Vec<Problem>,
}

/// Whether an item is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is not.
    No,
    /// It is.
    Done,
    /// Another request of that name is.
    Changed,
}

/// What is to become of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// A failed item that is asked again.
    Drop,
    SetAside,
    /// The torn end.
    Cut,
}

/// What must be done to an output before lines are appended to it. Until the run begins it is as it was: whatever refuses the run
/// has changed nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Its last line is whole and lacks its newline.
    AddNewline,
    /// What follows so many bytes is torn.
    Cut(u64),
    /// Lines are taken out: damaged ones, and those of failed items that are asked again.
    TakeOut {
        /// Whether these are.
        retry_failed: bool,
    },
}

impl Repair {
    /// Does it.
    ///
    /// # Errors
    /// A journal error if it cannot be done.
    pub(super) fn apply(self, file: &mut Held) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::AddNewline => file.append(b"\n").map_err(|unwritten| unwritten.error),
            Self::Cut(end) => file.cut(end),
            Self::TakeOut { retry_failed } => rewrite(file, retry_failed),
        }
    }
}

impl Journal {
    /// Takes in what `file` holds, without the failed items if these are to be asked again; what must be done to it.
    ///
    /// # Errors
    /// A configuration error if it is no output, a journal error if it cannot be read.
    pub(super) fn take_in(&mut self, file: &mut Held, retry_failed: bool) -> Result<Repair, Error> {
        if file.length() == 0 {
            return Ok(Repair::None);
        }
        let path = file.path().to_owned();
        let (mut kept, mut is_rewritten, mut end, mut lacks_newline) = (0_u64, false, 0, false);
        let mut corrupt = Vec::new();
        each_line(file, |line, text| {
            let fate = self.fate(line, text, retry_failed);
            match fate {
                Fate::Keep => {
                    (kept, end) = (kept + 1, line.start + line.length);
                    lacks_newline = !line.is_whole;
                }
                // Somebody's run wrote it, or will have.
                Fate::Drop => (kept, is_rewritten) = (kept + 1, true),
                Fate::SetAside => corrupt.push(line.number),
                Fate::Cut => {}
            }
            Ok(())
        })?;
        if kept == 0 && !corrupt.is_empty() {
            let text = format!("{} holds {} lines, none of which is of an output", path.display(), corrupt.len());
            return Err(Error::configuration(text).advise("It is left as it is: name another file for the results."));
        }
        let repair = if is_rewritten || !corrupt.is_empty() {
            Repair::TakeOut { retry_failed }
        } else if lacks_newline {
            Repair::AddNewline
        } else if end < file.length() {
            Repair::Cut(end)
        } else {
            Repair::None
        };
        let aside = beside(&path, ".corrupt");
        self.problems.extend(corrupt.into_iter().map(|line| Problem {
            file: path.clone(),
            line,
            reason: format!("damaged; it was set aside in {}, and its item is asked again", aside.display()),
        }));
        self.done.sort_unstable();
        self.done.dedup();
        Ok(repair)
    }

    /// What becomes of a line; what it says is taken in.
    fn fate(&mut self, line: Line, text: &[u8], retry_failed: bool) -> Fate {
        let fate = fate(line, text, retry_failed);
        if fate == Fate::Keep
            && let Some(done) = Done::read(text)
        {
            let identity = done.identity.map_or(UNKNOWN, |identity| identity.short().max(1));
            self.done.push((key_of(&done.custom_id), identity));
            self.failed += u64::from(!done.is_ok);
        }
        fate
    }

    /// Whether the item of that id and identity is done.
    pub(super) fn knows(&self, custom_id: &str, identity: impl FnOnce() -> u64) -> Known {
        let key = key_of(custom_id);
        let start = self.done.partition_point(|(other, _)| *other < key);
        let mut of_this = self.done.iter().skip(start).take_while(|(other, _)| *other == key).peekable();
        if of_this.peek().is_none() {
            return Known::No;
        }
        let identity = identity().max(1);
        if of_this.any(|(_, known)| [UNKNOWN, identity].contains(known)) { Known::Done } else { Known::Changed }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.done.is_empty()
    }
}

fn rewrite(file: &mut Held, retry_failed: bool) -> Result<(), Error> {
    let path = file.path().to_owned();
    let aside = beside(&path, ".corrupt");
    file.replace(|old, new| {
        let mut lines = Lines::new(BufReader::with_capacity(1 << 20, old), LONGEST_LINE);
        let cannot_read = |error| failed(&path, "cannot be read", error);
        while let Some(line) = lines.next().map_err(cannot_read)? {
            let text = trimmed(lines.text());
            match fate(line, text, retry_failed) {
                Fate::Keep => new
                    .write_all(text)
                    .and_then(|()| new.write_all(b"\n"))
                    .map_err(|error| failed(&path, "cannot be written anew", error))?,
                Fate::SetAside => set_aside(&aside, &[text, b"\n"].concat())?,
                Fate::Drop | Fate::Cut => {}
            }
        }
        Ok(())
    })
}

fn each_line(file: &mut Held, mut look: impl FnMut(Line, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let path = file.path().to_owned();
    let cannot_read = |error| failed(&path, "cannot be read", error);
    let file = file.read().map_err(cannot_read)?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 20, file), LONGEST_LINE);
    while let Some(line) = lines.next().map_err(cannot_read)? {
        look(line, trimmed(lines.text()))?;
    }
    Ok(())
}

fn fate(line: Line, text: &[u8], retry_failed: bool) -> Fate {
    match Done::read(text) {
        Some(done) if retry_failed && !done.is_ok => Fate::Drop,
        Some(_) => Fate::Keep,
        None if text.is_empty() && !line.is_too_long => Fate::Cut,
        None if !line.is_whole && may_begin(text) => Fate::Cut,
        None => Fate::SetAside,
    }
}

fn trimmed(text: &[u8]) -> &[u8] {
    text.trim_ascii_end()
}

/// Refuses an output that holds something, for a run that would begin anew.
pub(super) fn refuse_results(file: &Held) -> Result<(), Error> {
    if file.length() == 0 {
        return Ok(());
    }
    let text = format!("{} is not empty", file.path().display());
    Err(Error::configuration(text)
        .advise("Continue it with resume=True, or name another file; nothing is overwritten."))
}

/// The error of an item whose request is no more what was answered.
pub(super) fn changed(input: &Path, line: u64, custom_id: &str, output: &Path) -> Error {
    Error::new(
        Kind::Configuration,
        format!(
            "{}, line {line}: {} holds an answer to another request of the name {custom_id:?}",
            input.display(),
            output.display()
        ),
    )
    .advise(
        "The input, or the model and settings of the run, were changed since. Give the line another custom_id, put them back, \
         write to another file, or, if it had failed and was mended, run with retry_failed=True. Nothing was sent.",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::jobs::folder::Folder;
    use crate::engine::jobs::hash::RequestHash;

    fn hash() -> RequestHash {
        RequestHash::of("p", "{}", "")
    }

    fn line(id: &str, is_ok: bool) -> String {
        let status = if is_ok { 200 } else { 500 };
        format!(
            "{{\"id\":\"batch_req_{}\",\"custom_id\":\"{id}\",\"response\":{{\"status_code\":{status},\"body\":{{\"é\":1}}}},\
             \"error\":null}}\n",
            hash().identity(id)
        )
    }

    fn knows(journal: &Journal, id: &str) -> Known {
        journal.knows(id, || hash().identity(id).short())
    }

    fn take_in(folder: &Folder, text: &[u8], retry_failed: bool) -> Result<(Journal, Vec<u8>), Error> {
        let path = folder.path("out");
        fs::write(&path, text).unwrap();
        let mut file = Held::open(&path)?;
        let mut journal = Journal::default();
        let repair = journal.take_in(&mut file, retry_failed)?;
        assert_eq!(fs::read(&path).unwrap(), text, "nothing is changed before the run begins");
        repair.apply(&mut file)?;
        let now = fs::read(&path).unwrap();
        assert_eq!(file.length(), now.len() as u64);
        Ok((journal, now))
    }

    #[test]
    fn a_torn_last_line_is_cut_off_at_every_byte_and_whole_without_its_newline() {
        let folder = Folder::new();
        let (first, last) = (line("a", true), line("b", true));
        for cut in 0..=last.len() {
            let text = [first.as_bytes(), &last.as_bytes()[..cut]].concat();
            let (journal, now) = take_in(&folder, &text, false).unwrap();
            let is_whole = cut + 1 >= last.len();
            let expected = if is_whole { format!("{first}{last}") } else { first.clone() };
            assert_eq!(String::from_utf8(now).unwrap(), expected, "{cut}");
            assert_eq!(knows(&journal, "a"), Known::Done);
            assert_eq!(knows(&journal, "b"), if is_whole { Known::Done } else { Known::No });
            assert!(journal.problems.is_empty());
        }
    }

    #[test]
    fn only_a_torn_line_leaves_an_empty_output() {
        let (_, now) = take_in(&Folder::new(), &line("a", true).as_bytes()[..40], false).unwrap();
        assert!(now.is_empty());
    }

    #[test]
    fn a_damaged_block_is_set_aside_and_reported_and_its_items_are_open_again() {
        let folder = Folder::new();
        let mut text: Vec<u8> = (0..9).flat_map(|number| line(&format!("i{number}"), true).into_bytes()).collect();
        let length = text.len() / 9;
        // Over the ends of two lines, so that three are one.
        text[3 * length - 20..4 * length + 20].fill(0);
        let (journal, now) = take_in(&folder, &text, false).unwrap();
        let open: Vec<_> = (0..9).filter(|number| knows(&journal, &format!("i{number}")) == Known::No).collect();
        assert_eq!(open, [2, 3, 4]);
        assert_eq!(now.len(), 6 * length);
        assert_eq!((journal.problems.len(), journal.problems[0].line), (1, 3));
        assert_eq!(fs::read(folder.path("out.corrupt")).unwrap().len(), 3 * length);
        let (again, same) = take_in(&folder, &now, false).unwrap();
        assert_eq!((same, again.problems.len()), (now, 0));
    }

    #[test]
    fn somebody_elses_file_is_not_touched() {
        let folder = Folder::new();
        for text in ["notes", "a\nb\n", "{\"prompt\":\"a\"}\n", "[]"] {
            let error = take_in(&folder, text.as_bytes(), false).unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration, "{text}");
            assert_eq!(fs::read_to_string(folder.path("out")).unwrap(), text);
            assert!(!folder.path("out.corrupt").exists());
        }
    }

    #[test]
    fn failed_items_are_done_unless_they_are_to_be_asked_again() {
        let folder = Folder::new();
        let text = [line("a", true), line("b", false), line("c", true)].concat();
        let (journal, now) = take_in(&folder, text.as_bytes(), false).unwrap();
        assert_eq!((knows(&journal, "b"), now), (Known::Done, text.clone().into_bytes()));
        let (journal, now) = take_in(&folder, text.as_bytes(), true).unwrap();
        assert_eq!((knows(&journal, "a"), knows(&journal, "b")), (Known::Done, Known::No));
        assert_eq!(String::from_utf8(now).unwrap(), [line("a", true), line("c", true)].concat());
        let (_, now) = take_in(&folder, line("b", false).as_bytes(), true).unwrap();
        assert!(now.is_empty());
    }

    #[test]
    fn another_request_of_the_same_name_is_noticed_but_not_in_others_outputs() {
        let folder = Folder::new();
        let others = "{\"id\":\"batch_req_1\",\"custom_id\":\"o\",\"response\":{\"status_code\":200},\"error\":null}\n";
        let (journal, _) = take_in(&folder, [&line("a", true), others].concat().as_bytes(), false).unwrap();
        assert_eq!(journal.knows("a", || 1), Known::Changed);
        assert_eq!(journal.knows("o", || 1), Known::Done);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_was_damaged_every_line_that_is_left_is_whole(
            changes in prop::collection::vec((0..2000_usize, any::<u8>()), 0..6),
            cut in 0..2000_usize,
        ) {
            let folder = Folder::new();
            let mut text: Vec<u8> = (0..12).flat_map(|number| line(&format!("i{number}"), number % 4 > 0).into_bytes()).collect();
            for (place, byte) in changes {
                let place = place % text.len();
                text[place] = byte;
            }
            text.truncate(cut.max(300));
            if let Ok((_, now)) = take_in(&folder, &text, false) {
                prop_assert!(now.is_empty() || now.ends_with(b"\n"));
                for line in now.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    prop_assert!(Done::read(line).is_some());
                }
            }
        }
    }
}
