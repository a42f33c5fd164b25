//! One file carried through: read on a blocking thread, asked by the pullers of [`crate::engine::batch`], written on a blocking
//! thread.
//!
//! What is read and not yet written is bounded, so memory does not grow with the file: by the bytes of the lines, and by those of
//! the answers that wait for the disk or, in order, for their turn. Whatever ends the run (a rule, the user, a full disk, a
//! dropped future), what was answered before is written first.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_channel::{Receiver, Sender};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::calls::Defaults;
use super::files::{Held, are_one};
use super::journal::{Journal, Repair, refuse_results};
use super::output::{Item, Layout};
use super::reader::{Next, Reader};
use super::reply::Reply;
use super::report::{Counts, Open, Problem, Summary};
use super::survey;
use super::writer::{Finished, Outcome, Space, Writer, Written, with_lost};
use crate::engine::batch::{self, Control, Price, Sink, Source, Work};
use crate::engine::disk::off_the_engine;
use crate::engine::error::{Error, Kind};
use crate::engine::pipeline::Pipeline;
use crate::engine::types::{self, Receipt};

/// Lines that are read ahead of the pullers.
const READ_AHEAD: usize = 1024;
/// KiB of lines that are read and not yet written.
const MOST_KIB: u32 = 64 * 1024;
/// KiB that a line counts for besides its own, for what is known of it.
const KIB_PER_LINE: u32 = 4;
/// Bytes of answers that are not yet written, from which on no further line is taken.
const MOST_UNWRITTEN: usize = 32 << 20;
/// Outcomes that are written in one go.
const GROUP: usize = 1024;

/// A file to carry through.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the options of a run, by name")]
pub struct Job {
    /// Requests, one a line.
    pub input: PathBuf,
    /// Results, one a line.
    pub output: PathBuf,
    /// Where failed items go, if not there.
    pub errors: Option<PathBuf>,
    /// Whether results stand in the input's order.
    pub ordered: bool,
    /// Whether what the output holds is gone on with; if not, it must be empty.
    pub resume: bool,
    /// Whether items that failed in an earlier run are asked again.
    pub retry_failed: bool,
    /// Whether a line that is no request ends the run before anything is sent.
    pub strict: bool,
    /// How results are written.
    pub layout: Layout,
}

/// A file whose input was looked at and whose output is locked. Nothing of either is changed yet.
#[derive(Debug)]
pub struct Prepared {
    /// The models that lines name, and the run's own with those that stand in for it; the first of them, if they are many.
    pub models: Vec<String>,
    reader: Reader,
    outputs: Outputs,
    counts: Arc<Counts>,
    began: Instant,
    open: Open,
    input: PathBuf,
    failed_before: u64,
}

/// The outputs, locked and as they were found.
#[derive(Debug)]
struct Outputs {
    main: (Held, Repair),
    errors: Option<(Held, Repair)>,
    layout: Layout,
    ordered: bool,
}

impl Outputs {
    /// Repairs them, and has them written to.
    fn begin(self) -> Result<Writer, Error> {
        let Self { mut main, mut errors, layout, ordered } = self;
        for (file, repair) in [Some(&mut main), errors.as_mut()].into_iter().flatten() {
            repair.apply(file)?;
        }
        Ok(Writer::new(main.0, errors.map(|(file, _)| file), layout, ordered))
    }
}

/// Opens the files of `job` and looks at all that can be refused before anything is sent. Lines will be asked as `defaults` say.
///
/// # Errors
/// A configuration error for files and lines that cannot be used; a journal error for an output that another run has.
pub async fn prepare(job: Job, defaults: Defaults, counts: Arc<Counts>) -> Result<Prepared, Error> {
    off_the_engine(move || look(job, Arc::new(defaults), counts)).await?
}

/// Carries the file through, with what models cost.
///
/// # Errors
/// A journal error for an output that can no more be written. Dropping the future aborts what is in flight; what was answered is
/// written all the same.
pub async fn carry(
    prepared: Prepared,
    pipeline: Pipeline,
    prices: Vec<(String, Price)>,
    control: Arc<Control>,
) -> Result<Summary, Error> {
    let Prepared { mut reader, outputs, counts, began, open, input, failed_before, .. } = prepared;
    reader.prices_are(prices.into_iter().collect());
    // With what says that the outputs are open: this may be dropped meanwhile.
    let (open, writer) = off_the_engine(move || (open, outputs.begin())).await?;
    let writer = writer?;
    let (lines, feed) = async_channel::bounded(READ_AHEAD);
    let (finished, outcomes) = unbounded_channel();
    let bounds = Arc::new(Bounds::default());
    // A set of one, since it is aborted with this future.
    let mut reading = JoinSet::new();
    reading.spawn(read(reader, lines, Arc::clone(&bounds)));
    let desk = Arc::new(Desk {
        feed,
        pending: Mutex::default(),
        finished,
        bounds: Arc::clone(&bounds),
        counts: Arc::clone(&counts),
        late: Mutex::default(),
        input,
    });
    // Not aborted with this future: what was answered is written.
    let mut writing = tokio::spawn(write(open, writer, outcomes, bounds, Arc::clone(&counts)));
    let carried = batch::run::<Reply, _, _>(pipeline, Arc::clone(&desk), Arc::clone(&desk), Arc::clone(&control));
    let (carried, failed) = tokio::select! {
        carried = carried => (carried, None),
        // Before its channel is closed it ends only if it cannot go on.
        failed = &mut writing => (Ok(()), Some(failed)),
    };
    let in_flight = desk.pending().len();
    let late = std::mem::take(&mut *desk.late());
    drop(desk);
    let written = match failed {
        Some(failed) => failed,
        None => writing.await,
    };
    match written {
        Ok(Ok(())) => carried?,
        Ok(Err((error, mut lost))) => {
            lost.extend(late);
            return Err(with_lost(error, &lost, in_flight));
        }
        Err(fault) => return Err(Error::internal("the writer ended before its work").with_source(fault)),
    }
    if control.reason().is_none() {
        while let Some(read) = reading.join_next().await {
            read.map_err(|fault| Error::internal("the reader ended before its work").with_source(fault))??;
        }
    }
    let progress = control.progress();
    Ok(Summary {
        total: counts.total(),
        ok: progress.succeeded,
        failed: progress.failed,
        skipped: counts.skipped(),
        failed_before,
        bad_lines: counts.bad_lines(),
        prompt_tokens: progress.prompt_tokens,
        completion_tokens: progress.completion_tokens,
        cost: progress.cost,
        unpriced: progress.unpriced,
        elapsed: began.elapsed(),
        stopped: control.reason(),
        problems: counts.problems(),
    })
}

/// Everything that can be refused is refused here, before anything is sent.
fn look(job: Job, defaults: Arc<Defaults>, counts: Arc<Counts>) -> Result<Prepared, Error> {
    let began = Instant::now();
    let Job { input, output, errors, ordered, resume, retry_failed, strict, layout } = job;
    survey::open(&input, None)?;
    let outputs = || [Some(&output), errors.as_ref()].into_iter().flatten();
    if outputs().any(|path| are_one(&input, path)) {
        return Err(Error::configuration(format!("{} is the input, too", input.display())));
    }
    let open = Open::new(&counts);
    let mut main = Held::open(&output)?;
    if errors.as_ref().is_some_and(|errors| are_one(&output, errors)) {
        return Err(Error::configuration(format!("{} is the output, too: leave errors out", output.display())));
    }
    let errors = errors.as_deref().map(Held::open).transpose()?;
    let mut journal = Journal::default();
    let mut look_at = |file: &mut Held| {
        if resume { journal.take_in(file, retry_failed) } else { refuse_results(file).map(|()| Repair::None) }
    };
    let repair = look_at(&mut main)?;
    let errors = errors.map(|mut file| look_at(&mut file).map(|repair| (file, repair))).transpose()?;
    let mut survey = survey::survey(&input, &output, &journal, &defaults, strict)?;
    counts.total.store(survey.total, Relaxed);
    let failed_before = journal.failed;
    counts.add(std::mem::take(&mut journal.problems));
    counts.add(std::mem::take(&mut survey.problems));
    let models = std::mem::take(&mut survey.models)
        .into_iter()
        .chain(defaults.model.clone())
        .chain(defaults.fallbacks.iter().cloned())
        .collect();
    let reader = Reader::new(input.clone(), &mut survey, journal, defaults, Arc::clone(&counts))?;
    let outputs = Outputs { main: (main, repair), errors, layout, ordered };
    Ok(Prepared { models, reader, outputs, counts, began, open, input, failed_before })
}

/// What is read and not yet written.
#[derive(Debug)]
struct Bounds {
    /// KiB of lines that may yet be read.
    permits: Semaphore,
    /// Bytes of answers.
    unwritten: AtomicUsize,
    /// Told when there are fewer.
    freed: Notify,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { permits: Semaphore::new(MOST_KIB as usize), unwritten: AtomicUsize::new(0), freed: Notify::new() }
    }
}

impl Bounds {
    fn free(&self, space: Space) {
        self.permits.add_permits(space.permits as usize);
        if space.bytes > 0 {
            self.unwritten.fetch_sub(space.bytes, Relaxed);
            self.freed.notify_waiters();
        }
    }

    async fn room(&self) {
        while self.unwritten.load(Relaxed) >= MOST_UNWRITTEN {
            let freed = self.freed.notified();
            if self.unwritten.load(Relaxed) >= MOST_UNWRITTEN {
                freed.await;
            }
        }
    }
}

/// What a line counts for among those that are read and not yet written.
fn permits_of(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024).unwrap_or(MOST_KIB).saturating_add(KIB_PER_LINE).min(MOST_KIB)
}

/// Reads the input for as long as somebody takes its lines.
async fn read(mut reader: Reader, lines: Sender<Next>, bounds: Arc<Bounds>) -> Result<(), Error> {
    loop {
        let chunk;
        (reader, chunk) = off_the_engine(move || {
            let chunk = reader.chunk();
            (reader, chunk)
        })
        .await?;
        let chunk = chunk?;
        if chunk.is_empty() {
            return Ok(());
        }
        for next in chunk {
            if let Ok(permits) = bounds.permits.acquire_many(permits_of(next.bytes)).await {
                // Given back when the line's result is written.
                permits.forget();
            }
            if lines.send(next).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Writes outcomes until nobody sends any more.
async fn write(
    // First, so that it is dropped last: the output is closed before it.
    _open: Open,
    mut writer: Writer,
    mut outcomes: UnboundedReceiver<Finished>,
    bounds: Arc<Bounds>,
    counts: Arc<Counts>,
) -> Result<(), (Error, Vec<String>)> {
    let fault = |error| (error, Vec::new());
    loop {
        let mut group = Vec::new();
        let is_over = if writer.is_dirty() {
            let wait = tokio::time::timeout_at(writer.sync_is_due(), outcomes.recv_many(&mut group, GROUP));
            wait.await.is_ok_and(|received| received == 0)
        } else {
            outcomes.recv_many(&mut group, GROUP).await == 0
        };
        let written;
        (writer, written) = off_the_engine(move || {
            let written = match (is_over, group.is_empty()) {
                (true, _) => writer.finish(),
                (false, true) => writer.sync().map(|()| Written::default()),
                (false, false) => writer.write(group),
            };
            (writer, written)
        })
        .await
        .map_err(fault)?;
        match written {
            Ok(written) => {
                counts.written.fetch_add(written.lines, Relaxed);
                bounds.free(written.freed);
                if is_over {
                    return Ok(());
                }
            }
            Err(error) => {
                outcomes.close();
                let mut rest = Vec::new();
                while let Ok(finished) = outcomes.try_recv() {
                    rest.push(finished);
                }
                return Err((error, writer.lost(rest)));
            }
        }
    }
}

/// An item that is asked.
#[derive(Debug)]
struct Pending {
    item: Item,
    permits: u32,
}

/// Whether a failure says something of the item: neither of the key, nor of a server that it was not even sent to.
fn is_of_the_item(error: &Error) -> bool {
    let is_unsent = error.kind() == Kind::Connection && error.attempts() == 0;
    !error.is_of_account() && error.kind() != Kind::Closed && !is_unsent
}

/// Where lines are taken and outcomes handed in.
#[derive(Debug)]
struct Desk {
    feed: Receiver<Next>,
    pending: Mutex<HashMap<usize, Pending>>,
    finished: UnboundedSender<Finished>,
    bounds: Arc<Bounds>,
    counts: Arc<Counts>,
    /// What was answered once nothing could be written any more.
    late: Mutex<Vec<String>>,
    /// The file that lines are of.
    input: PathBuf,
}

impl Desk {
    fn late(&self) -> MutexGuard<'_, Vec<String>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<usize, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_in(&self, index: usize, Pending { item, permits }: Pending, outcome: Outcome) -> Result<(), Error> {
        let bytes = match &outcome {
            Outcome::Answered(receipt) => receipt.body.len(),
            _ => 0,
        };
        self.bounds.unwritten.fetch_add(bytes, Relaxed);
        let space = Space { permits, bytes };
        // It is closed only once nothing can be written any more, and the run ends of that.
        let Err(SendError(refused)) = self.finished.send(Finished { index, item, outcome, space }) else {
            return Ok(());
        };
        if matches!(refused.outcome, Outcome::Answered(_)) {
            self.late().push(refused.item.custom_id);
        }
        Err(Error::new(Kind::Journal, "the results can no more be written"))
    }
}

impl Source for Desk {
    async fn next(&self) -> Option<Work> {
        loop {
            let Next { index, item, ask, bytes } = self.feed.recv().await.ok()?;
            let pending = Pending { item, permits: permits_of(bytes) };
            match ask {
                Ok((call, rates)) => {
                    self.pending().insert(index, pending);
                    return Some(Work { rates, ..Work::new(index, Ok(call)) });
                }
                Err(reason) => {
                    self.counts.bad_lines.fetch_add(1, Relaxed);
                    self.hand_in(index, pending, Outcome::BadLine(reason)).ok()?;
                }
            }
        }
    }

    fn left(&self) -> usize {
        // It is closed once the whole input is read.
        if self.feed.is_closed() { self.feed.len() } else { usize::MAX }
    }
}

impl Sink<Reply> for Desk {
    async fn room(&self) {
        self.bounds.room().await;
    }

    fn put(&self, index: usize, outcome: types::Outcome<(Reply, Receipt)>) -> Result<(), Error> {
        let Some(pending) = self.pending().remove(&index) else {
            return Err(Error::internal("an outcome of no item"));
        };
        let outcome = match outcome {
            Ok((_, receipt)) => Outcome::Answered(Box::new(receipt)),
            Err(error) if error.kind() == Kind::Stopped => Outcome::GivenUp,
            Err(error) if !is_of_the_item(&error) => {
                // The next run asks it: what kept it from an answer may be mended by then.
                let (file, line) = (self.input.clone(), pending.item.line);
                self.counts.add(vec![Problem { file, line, reason: error.by_itself().to_string() }]);
                Outcome::GivenUp
            }
            Err(error) => Outcome::Failed(error.by_itself()),
        };
        self.hand_in(index, pending, outcome)
    }
}
