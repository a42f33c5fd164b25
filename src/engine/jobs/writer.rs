//! Outcomes become lines of the output, as they come or in the input's order.
//!
//! Whatever is there is written with one write, so that a fast run costs few system calls and a slow one keeps nothing back. What
//! was written survives the end of the process; what was brought to the disk, at most a second later, that of the machine.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::files::{Held, Unwritten};
use super::output::{Item, Layout};
use crate::engine::error::Error;
use crate::engine::types::Receipt;

/// How long what was written may not be on the disk.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Ids of answers that an error names one by one.
const MOST_NAMED: usize = 50;

/// What became of an item.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was answered.
    Answered(Box<Receipt>),
    /// It has failed.
    Failed(Error),
    /// It is no request.
    BadLine(String),
    /// It was given up unasked, and is the next run's.
    GivenUp,
}

/// An item that is over.
#[derive(Debug)]
pub(super) struct Finished {
    /// Its place in the order.
    pub(super) index: usize,
    /// What it was.
    pub(super) item: Item,
    /// What became of it.
    pub(super) outcome: Outcome,
    /// The space that it takes until it is written.
    pub(super) space: Space,
}

/// What an item holds of the bounds of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Of what may be read and not yet written.
    pub(super) permits: u32,
    /// Bytes of its answer.
    pub(super) bytes: usize,
}

impl std::ops::AddAssign for Space {
    fn add_assign(&mut self, other: Self) {
        self.permits += other.permits;
        self.bytes += other.bytes;
    }
}

/// A line that is ready.
#[derive(Debug)]
struct Ready {
    text: Vec<u8>,
    custom_id: String,
    is_ok: bool,
    is_paid: bool,
    space: Space,
}

/// What one group of lines came to.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// What its items no longer hold.
    pub(super) freed: Space,
    /// Lines that were written.
    pub(super) lines: u64,
}

/// Lines on their way into one file.
#[derive(Debug)]
struct Out {
    file: Held,
    text: Vec<u8>,
    /// Of each line where it ends in `text`, whose it is, and whether it was paid for.
    lines: Vec<(usize, String, bool)>,
    is_dirty: bool,
}

impl Out {
    fn new(file: Held) -> Self {
        Self { file, text: Vec::new(), lines: Vec::new(), is_dirty: false }
    }

    fn flush(&mut self) -> Result<(), Unwritten> {
        if self.text.is_empty() {
            return Ok(());
        }
        self.is_dirty = true;
        self.file.append(&self.text)?;
        self.text.clear();
        self.lines.clear();
        Ok(())
    }
}

/// Writes the results of a run.
#[derive(Debug)]
pub(super) struct Writer {
    main: Out,
    /// Where failed items go, if not there.
    errors: Option<Out>,
    layout: Layout,
    /// Lines that wait for those before them, if the order is kept.
    order: Option<Order>,
    synced: Instant,
}

#[derive(Debug, Default)]
struct Order {
    next: usize,
    /// `None` is an item that has no line.
    waiting: BTreeMap<usize, Option<Ready>>,
}

impl Writer {
    pub(super) fn new(main: Held, errors: Option<Held>, layout: Layout, ordered: bool) -> Self {
        Self {
            main: Out::new(main),
            errors: errors.map(Out::new),
            layout,
            order: ordered.then(Order::default),
            synced: Instant::now(),
        }
    }

    /// Writes a group of outcomes, or keeps those whose turn it is not.
    ///
    /// # Errors
    /// What the disk says; nothing more can be written then.
    pub(super) fn write(&mut self, group: Vec<Finished>) -> Result<Written, Error> {
        let mut written = Written::default();
        for Finished { index, item, outcome, space } in group {
            let ready = self.line(item, &outcome, space);
            if ready.is_none() {
                written.freed += space;
            }
            let Some(order) = &mut self.order else {
                self.take(ready, &mut written);
                continue;
            };
            order.waiting.insert(index, ready);
            let turns = order.turns();
            for ready in turns {
                self.take(ready, &mut written);
            }
        }
        self.flush()?;
        if self.is_dirty() && self.synced.elapsed() >= SYNC_INTERVAL {
            self.sync()?;
        }
        Ok(written)
    }

    /// Writes what still waits for its turn, since those before it will not come, and brings all to the disk.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn finish(&mut self) -> Result<Written, Error> {
        let mut written = Written::default();
        let waiting = self.order.as_mut().map(|order| std::mem::take(&mut order.waiting)).unwrap_or_default();
        for ready in waiting.into_values() {
            self.take(ready, &mut written);
        }
        self.flush()?;
        self.sync()?;
        Ok(written)
    }

    /// Whether something was written and is not on the disk.
    pub(super) fn is_dirty(&self) -> bool {
        self.outs().any(|out| out.is_dirty)
    }

    /// When it should be.
    pub(super) fn sync_is_due(&self) -> Instant {
        self.synced + SYNC_INTERVAL
    }

    /// Brings what was written to the disk.
    ///
    /// # Errors
    /// What the disk says, or that the file is gone.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        self.synced = Instant::now();
        for out in [Some(&mut self.main), self.errors.as_mut()].into_iter().flatten() {
            out.file.sync()?;
            out.is_dirty = false;
        }
        Ok(())
    }

    /// Ids of answers that are paid for and did not come into the file, those of `group` among them.
    pub(super) fn lost(&mut self, group: Vec<Finished>) -> Vec<String> {
        let mut lost = Vec::new();
        for out in [Some(&mut self.main), self.errors.as_mut()].into_iter().flatten() {
            lost.extend(out.lines.drain(..).filter(|(_, _, is_paid)| *is_paid).map(|(_, id, _)| id));
        }
        let waiting = self.order.as_mut().map(|order| std::mem::take(&mut order.waiting)).unwrap_or_default();
        lost.extend(waiting.into_values().flatten().filter(|ready| ready.is_paid).map(|ready| ready.custom_id));
        let answered = |one: &Finished| matches!(one.outcome, Outcome::Answered(_));
        lost.extend(group.into_iter().filter(answered).map(|one| one.item.custom_id));
        lost
    }

    fn outs(&self) -> impl Iterator<Item = &Out> {
        [Some(&self.main), self.errors.as_ref()].into_iter().flatten()
    }

    fn line(&self, item: Item, outcome: &Outcome, space: Space) -> Option<Ready> {
        let mut text = Vec::with_capacity(512);
        let (is_ok, is_paid) = match outcome {
            Outcome::Answered(receipt) => {
                text.reserve(receipt.body.len());
                self.layout.answer(&mut text, &item, receipt);
                (true, true)
            }
            Outcome::Failed(error) => {
                self.layout.failure(&mut text, &item, error);
                (false, false)
            }
            Outcome::BadLine(reason) => {
                self.layout.bad_line(&mut text, &item, reason);
                (false, false)
            }
            Outcome::GivenUp => return None,
        };
        Some(Ready { text, custom_id: item.custom_id, is_ok, is_paid, space })
    }

    /// Puts a line whose turn it is behind the others.
    fn take(&mut self, ready: Option<Ready>, written: &mut Written) {
        let Some(Ready { text, custom_id, is_ok, is_paid, space }) = ready else { return };
        let out = match &mut self.errors {
            Some(errors) if !is_ok => errors,
            _ => &mut self.main,
        };
        out.text.extend_from_slice(&text);
        out.lines.push((out.text.len(), custom_id, is_paid));
        written.freed += space;
        written.lines += 1;
    }

    fn flush(&mut self) -> Result<(), Error> {
        for out in [Some(&mut self.main), self.errors.as_mut()].into_iter().flatten() {
            if let Err(Unwritten { kept, error }) = out.flush() {
                out.lines.retain(|(end, _, _)| *end > kept);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Order {
    /// The items whose turn it is, as far as they are here.
    fn turns(&mut self) -> Vec<Option<Ready>> {
        let mut turns = Vec::new();
        while let Some(ready) = self.waiting.remove(&self.next) {
            self.next += 1;
            turns.push(ready);
        }
        turns
    }
}

/// `error` with what was paid for and is not in the output.
pub(super) fn with_lost(error: Error, lost: &[String], in_flight: usize) -> Error {
    let error = if lost.is_empty() {
        error.context("every answer before that is in the file")
    } else {
        let named: Vec<String> = lost.iter().take(MOST_NAMED).map(|id| format!("{id:?}")).collect();
        let more = if lost.len() > MOST_NAMED { ", …" } else { "" };
        let text = format!("{} answers that are paid for were not written: {}{more}", lost.len(), named.join(", "));
        error.context(&text)
    };
    let error = if in_flight == 0 {
        error
    } else {
        error.context(&format!("{in_flight} requests were under way and may be paid for, too"))
    };
    error.advise("Make room or mend the file's place, and run again: what is in the file is not asked again.")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::engine::error::Kind;
    use crate::engine::jobs::folder::Folder;
    use crate::engine::jobs::hash::RequestHash;
    use crate::engine::jobs::output::Done;

    fn receipt() -> Box<Receipt> {
        Box::new(Receipt {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: "{}".into(),
            raw: None,
            attempts: 1,
            key_id: None,
            queue_time: Duration::ZERO,
            elapsed: Duration::ZERO,
            cached: false,
        })
    }

    fn finished(index: usize, outcome: Outcome) -> Finished {
        let item = Item {
            line: index as u64 + 1,
            custom_id: format!("i{index}"),
            hash: RequestHash::of("", "", ""),
            metadata: None,
        };
        Finished { index, item, outcome, space: Space { permits: 1, bytes: 2 } }
    }

    fn answered(index: usize) -> Finished {
        finished(index, Outcome::Answered(receipt()))
    }

    fn ids(path: &std::path::Path) -> Vec<String> {
        let text = fs::read(path).unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Done::read(line).unwrap().custom_id.into_owned()).collect()
    }

    #[test]
    fn failures_go_where_they_are_wanted() {
        let folder = Folder::new();
        let (out, errors) = (folder.path("out"), folder.path("errors"));
        let held = |path| Held::open(path).unwrap();
        let mut writer = Writer::new(held(&out), Some(held(&errors)), Layout::default(), false);
        let failed = finished(1, Outcome::Failed(Error::new(Kind::Connection, "cut")));
        let bad = finished(2, Outcome::BadLine("empty".to_owned()));
        let written = writer.write(vec![answered(0), failed, bad, finished(3, Outcome::GivenUp)]).unwrap();
        assert_eq!((written.lines, written.freed), (3, Space { permits: 4, bytes: 8 }));
        writer.finish().unwrap();
        assert_eq!((ids(&out), ids(&errors)), (vec!["i0".to_owned()], vec!["i1".to_owned(), "i2".to_owned()]));
    }

    #[test]
    fn in_order_nothing_is_written_before_its_turn_and_nothing_is_kept_at_the_end() {
        let folder = Folder::new();
        let path = folder.path("out");
        let mut writer = Writer::new(Held::open(&path).unwrap(), None, Layout::default(), true);
        let written = writer.write(vec![answered(2), answered(1)]).unwrap();
        assert_eq!((written.lines, written.freed), (0, Space::default()));
        assert!(ids(&path).is_empty());
        // The first was given up: those behind it have their turn.
        assert_eq!(writer.write(vec![finished(0, Outcome::GivenUp)]).unwrap().lines, 2);
        writer.write(vec![answered(5)]).unwrap();
        assert_eq!(ids(&path), ["i1", "i2"]);
        assert_eq!(writer.finish().unwrap().lines, 1);
        assert_eq!(ids(&path), ["i1", "i2", "i5"]);
    }

    #[test]
    fn what_is_paid_for_and_not_written_is_named() {
        let folder = Folder::new();
        let mut writer = Writer::new(Held::open(&folder.path("out")).unwrap(), None, Layout::default(), true);
        writer.write(vec![answered(1)]).unwrap();
        let failed = finished(3, Outcome::Failed(Error::new(Kind::Connection, "cut")));
        let lost = writer.lost(vec![answered(2), failed]);
        assert_eq!(lost, ["i1", "i2"]);
        let error = with_lost(Error::new(Kind::Journal, "out: no space"), &lost, 3).to_string();
        assert!(error.contains("2 answers that are paid for were not written: \"i1\", \"i2\""), "{error}");
        assert!(error.contains("3 requests were under way"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_order_of_outcomes_is_the_inputs_order(
            order in Just((0..40).collect::<Vec<usize>>()).prop_shuffle(),
            group in 1..9_usize,
        ) {
            let folder = Folder::new();
            let path = folder.path("out");
            let mut writer = Writer::new(Held::open(&path).unwrap(), None, Layout::default(), true);
            let mut freed = Space::default();
            for group in order.chunks(group) {
                freed += writer.write(group.iter().map(|index| answered(*index)).collect()).unwrap().freed;
            }
            prop_assert_eq!(freed, Space { permits: 40, bytes: 80 });
            prop_assert_eq!(ids(&path), (0..40).map(|index| format!("i{index}")).collect::<Vec<_>>());
        }
    }
}
