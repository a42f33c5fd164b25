//! From a stream on its socket to whoever reads it: a bounded queue, and what has been read so far.
//!
//! The engine puts pieces into a [`Feed`]; the consumer takes all that wait in one go, so that a busy one costs one wake-up for
//! many. A feed that is full stops the engine from reading the socket, which stops the server: a slow consumer never makes memory
//! grow. Several streams may share a feed.

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::Error;
use super::provider::accumulate::{self, Accumulator};
use super::provider::chunk::ChatChunk;
use super::provider::event::{Event, EventKind, EventSum};

/// A feed with so many bytes or pieces in it takes no more.
const MOST_BYTES: usize = 256 * 1024;
const MOST_PIECES: usize = 4096;

thread_local! {
    /// How often this thread has put pieces into a feed.
    static PUTS: Cell<u64> = const { Cell::new(0) };
}

/// A number that changes whenever this thread puts pieces into a feed: while it does, streams are being read.
pub fn puts_here() -> u64 {
    PUTS.get()
}

/// One piece of a stream, as its consumer wants it.
#[derive(Debug)]
pub enum Piece {
    /// Text of the first choice.
    Text(Slice),
    /// A chunk that is only a word of the first choice: nobody need read more of it before it is asked for.
    Word {
        /// The chunk.
        body: Bytes,
        /// The word, UTF-8.
        text: Bytes,
    },
    /// A whole chunk.
    Chunk(Box<ChatChunk>),
    /// A whole event of another API.
    Event(Box<Event>),
    /// The end of one of several streams that failed.
    Failed(Error),
}

impl Piece {
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.keeps,
            Self::Word { body, .. } => body.len(),
            Self::Chunk(chunk) => chunk.body.len(),
            Self::Event(event) => event.body.len(),
            Self::Failed(_) => 0,
        }
    }
}

/// A text that is mostly a slice of what came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The text, UTF-8.
    pub text: Bytes,
    /// How many bytes it keeps in memory.
    keeps: usize,
}

impl From<String> for Slice {
    fn from(text: String) -> Self {
        Self { keeps: text.len(), text: text.into() }
    }
}

/// What waits in a feed.
#[derive(Debug)]
pub enum Taken {
    /// Pieces, each with the number of its stream; at least one.
    Pieces(Vec<(u32, Piece)>),
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will come.
    End,
}

/// Called once, as soon as there is something to take.
type Waiter = Box<dyn FnOnce() + Send>;

/// A bounded queue of pieces.
#[derive(Default)]
pub struct Feed {
    queue: Mutex<Queue>,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    pieces: Vec<(u32, Piece)>,
    bytes: usize,
    waiter: Option<Waiter>,
    is_ended: bool,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.bytes >= MOST_BYTES || self.pieces.len() >= MOST_PIECES
    }

    fn has_news(&self) -> bool {
        self.is_ended || !self.pieces.is_empty()
    }
}

impl Feed {
    /// Adds what `pieces` yields; how full it is only [`Self::room`] asks.
    pub fn put(&self, pieces: impl Iterator<Item = (u32, Piece)>) {
        PUTS.set(PUTS.get().wrapping_add(1));
        let mut queue = self.lock();
        for piece in pieces {
            queue.bytes += piece.1.size();
            queue.pieces.push(piece);
        }
        let waiter = if queue.has_news() { queue.waiter.take() } else { None };
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
    }

    fn is_full(&self) -> bool {
        self.lock().is_full()
    }

    /// Waits until the consumer has taken enough for more to be read.
    pub async fn room(&self) {
        loop {
            let taken = self.room.notified();
            if !self.lock().is_full() {
                return;
            }
            taken.await;
        }
    }

    /// Nothing more will come.
    pub fn end(&self) {
        let mut queue = self.lock();
        queue.is_ended = true;
        let waiter = queue.waiter.take();
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
    }

    /// All that waits.
    pub fn take(&self) -> Taken {
        let mut queue = self.lock();
        if queue.pieces.is_empty() {
            return if queue.is_ended { Taken::End } else { Taken::Nothing };
        }
        let pieces = mem::take(&mut queue.pieces);
        queue.bytes = 0;
        drop(queue);
        self.room.notify_waiters();
        Taken::Pieces(pieces)
    }

    /// Calls `waiter` as soon as there is something to take or the feed has ended, which may be at once. One waits at a time: a
    /// later one takes its place.
    pub fn when_ready(&self, waiter: impl FnOnce() + Send + 'static) {
        let mut queue = self.lock();
        if !queue.has_news() {
            queue.waiter = Some(Box::new(waiter));
            return;
        }
        drop(queue);
        waiter();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        formatter.debug_struct("Feed").field("pieces", &queue.pieces.len()).field("is_ended", &queue.is_ended).finish()
    }
}

/// What a consumer wants of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The first choice's text.
    Texts,
    /// Every chunk, but not the one that only counts tokens, which nobody asked for.
    Chunks,
    /// Every chunk.
    ChunksAndUsage,
}

/// What a stream is read as.
#[derive(Debug, Clone)]
pub enum Part {
    /// Of a chat, as it came.
    Unread(Bytes),
    /// Of a chat.
    Chat(Box<ChatChunk>),
    /// Of another API.
    Event(Box<Event>),
}

impl Part {
    /// Whether it may be kept back, since nothing of the answer is in it.
    fn is_opening(&self) -> bool {
        match self {
            Self::Unread(_) => false,
            Self::Chat(chunk) => !chunk.says_something(),
            Self::Event(event) => !event.says_something(),
        }
    }

    fn has_content(&self) -> bool {
        match self {
            Self::Unread(_) => false,
            Self::Chat(chunk) => chunk.says_something(),
            Self::Event(event) => event.has_content(),
        }
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Unread(_) | Self::Chat(_) => false,
            Self::Event(event) => event.is_last(),
        }
    }

    /// As the consumer wants it, if at all.
    fn into_piece(self, wanted: Wanted) -> Option<Piece> {
        match self {
            Self::Unread(_) => None,
            Self::Event(event) => Some(Piece::Event(event)),
            Self::Chat(chunk) => match wanted {
                Wanted::Texts => chunk.into_text().filter(|text| !text.is_empty()).map(|text| Piece::Text(text.into())),
                Wanted::Chunks if chunk.choices.is_empty() => None,
                Wanted::Chunks | Wanted::ChunksAndUsage => Some(Piece::Chunk(chunk)),
            },
        }
    }
}

/// What the parts add up to.
#[derive(Debug)]
enum Sum {
    Chat(Accumulator),
    Events(EventSum),
}

impl Default for Sum {
    fn default() -> Self {
        Self::Chat(Accumulator::default())
    }
}

impl Sum {
    fn of(events: Option<EventKind>) -> Self {
        if events.is_some() { Self::Events(EventSum::default()) } else { Self::default() }
    }

    fn push(&mut self, part: &mut Part) -> Result<(), Error> {
        match (self, part) {
            (Self::Chat(sum), Part::Chat(chunk)) => sum.push(chunk),
            (Self::Events(sum), Part::Event(event)) => sum.push(event),
            (Self::Chat(_) | Self::Events(_), _) => Ok(()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Chat(sum) => sum.text(),
            Self::Events(sum) => sum.text(),
        }
    }
}

/// Parts that are kept back at most: what Responses sends before anything of the answer.
const MOST_HELD: usize = 2;

/// One stream: what came of it so far, and where it goes.
#[derive(Debug)]
pub struct Writer {
    feed: Option<Arc<Feed>>,
    number: u32,
    wanted: Wanted,
    /// Of another API than chat's.
    events: Option<EventKind>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    sum: Sum,
    /// Once the sum was emptied.
    whole: Option<Whole>,
    /// What comes first and has nothing of the answer is kept back until the next, so that a stream which breaks there can be asked
    /// again.
    held: Vec<Part>,
    /// How long it has waited for the consumer to take what came, and since when it does.
    stalled: Duration,
    stalls_since: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    has_delivered: bool,
    begun: Option<Instant>,
}

/// What is kept of a sum for the sake of its text, which may be long: no copy of it where it can be helped.
#[derive(Debug)]
enum Whole {
    /// The body of a chat's answer.
    Chat(Bytes),
    Text(String),
}

/// When the pieces of a stream came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// When the request was sent, the last time.
    pub begun: Option<Instant>,
    /// The first with content.
    pub first: Option<Instant>,
    /// The last.
    pub last: Option<Instant>,
}

impl Pace {
    /// From the request to the first piece with content.
    pub fn to_first(&self) -> Option<Duration> {
        Some(self.first?.duration_since(self.begun?))
    }

    /// From the first piece with content to the last.
    pub fn duration(&self) -> Option<Duration> {
        Some(self.last?.duration_since(self.first?))
    }
}

impl Writer {
    /// Into `feed`, as its stream of that number.
    pub fn new(feed: Arc<Feed>, number: u32, wanted: Wanted) -> Self {
        Self { feed: Some(feed), number, wanted, events: None, progress: Mutex::default() }
    }

    /// Into `feed`, a stream of another API than chat's.
    pub fn of_events(feed: Arc<Feed>, kind: EventKind) -> Self {
        let progress = Progress { sum: Sum::of(Some(kind)), ..Progress::default() };
        let (wanted, progress) = (Wanted::ChunksAndUsage, Mutex::new(progress));
        Self { feed: Some(feed), number: 0, wanted, events: Some(kind), progress }
    }

    /// For a stream that nobody sees: only what it adds up to is wanted.
    pub fn unseen() -> Self {
        Self { feed: None, number: 0, wanted: Wanted::Chunks, events: None, progress: Mutex::default() }
    }

    /// Whether somebody reads its pieces as they come.
    pub fn has_reader(&self) -> bool {
        self.feed.is_some()
    }

    /// Whether it is a chat's.
    pub fn is_chat(&self) -> bool {
        self.events.is_none()
    }

    /// An attempt begins. One before it, which ended before anything was delivered, is forgotten.
    pub fn begin(&self) {
        *self.lock() = Progress { begun: Some(Instant::now()), sum: Sum::of(self.events), ..Progress::default() };
    }

    /// Waits until more should be read, and says how long that took: the time is the consumer's.
    pub async fn room(&self) -> Duration {
        let Some(feed) = self.feed.as_ref().filter(|feed| feed.is_full()) else { return Duration::ZERO };
        let begun = Instant::now();
        self.lock().stalls_since = Some(begun);
        feed.room().await;
        let mut progress = self.lock();
        progress.stalls_since = None;
        progress.stalled += begun.elapsed();
        begun.elapsed()
    }

    /// Whether it waits for the consumer now.
    pub fn is_stalled(&self) -> bool {
        self.lock().stalls_since.is_some()
    }

    /// How long this attempt has waited for the consumer in all.
    pub fn stalled(&self) -> Duration {
        let progress = self.lock();
        progress.stalled + progress.stalls_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Reads one part.
    ///
    /// # Errors
    /// As [`ChatChunk::read`] and [`Event::read`].
    pub fn read(&self, body: Bytes) -> Result<Part, Error> {
        match self.events {
            None => ChatChunk::read(body).map(Box::new).map(Part::Chat),
            Some(kind) => Event::read(kind, body).map(Box::new).map(Part::Event),
        }
    }

    /// Reads the body of a part, if that is to be done before it is known what came before it.
    ///
    /// # Errors
    /// As [`Self::read`]. A chat's is read when it is added, see [`Self::put`].
    pub fn take(&self, body: Bytes) -> Result<Part, Error> {
        if self.is_chat() { Ok(Part::Unread(body)) } else { self.read(body) }
    }

    /// Adds an answer that came whole, as its only part.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn put_whole(&self, body: &Bytes) -> Result<(), Error> {
        let part = match self.events {
            None => ChatChunk::read(body.clone()).map(Box::new).map(Part::Chat),
            Some(kind) => Event::of_whole(kind, body).map(Box::new).map(Part::Event),
        };
        self.put(vec![part?])?;
        self.complete();
        Ok(())
    }

    /// Adds parts that came together.
    ///
    /// # Errors
    /// As [`ChatChunk::read`] and [`Accumulator::push`], once what came before is delivered.
    pub fn put(&self, parts: Vec<Part>) -> Result<(), Error> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut progress = self.lock();
        let now = Instant::now();
        let mut pieces = Vec::with_capacity(parts.len() + MOST_HELD);
        let outcome = parts.into_iter().try_for_each(|part| self.add(&mut progress, part, now, &mut pieces));
        self.deliver(&mut progress, pieces);
        outcome
    }

    fn add(&self, progress: &mut Progress, part: Part, now: Instant, pieces: &mut Vec<Piece>) -> Result<(), Error> {
        let mut part = match part {
            Part::Unread(body) => {
                // Nearly every chunk says a word and nothing else.
                if progress.has_delivered
                    && let Sum::Chat(sum) = &mut progress.sum
                    && let Some(text) = sum.push_word(&body)
                {
                    progress.first.get_or_insert(now);
                    progress.last = Some(now);
                    pieces.push(match self.wanted {
                        Wanted::Texts => Piece::Text(Slice { text, keeps: body.len() }),
                        Wanted::Chunks | Wanted::ChunksAndUsage => Piece::Word { body, text },
                    });
                    return Ok(());
                }
                self.read(body)?
            }
            part => part,
        };
        progress.sum.push(&mut part)?;
        if part.has_content() {
            progress.first.get_or_insert(now);
            progress.last = Some(now);
        }
        // Of a chat one, as ever: what follows it is the answer.
        let most_held = if self.events.is_some() { MOST_HELD } else { 1 };
        let is_first = !progress.has_delivered && pieces.is_empty() && progress.held.len() < most_held;
        if is_first && part.is_opening() {
            progress.held.push(part);
            return Ok(());
        }
        let held = mem::take(&mut progress.held).into_iter();
        pieces.extend(held.chain([part]).filter_map(|part| part.into_piece(self.wanted)));
        progress.has_delivered |= self.feed.is_some() && !pieces.is_empty();
        Ok(())
    }

    /// Delivers what was kept back; the stream is complete.
    pub fn complete(&self) {
        let mut progress = self.lock();
        let held = mem::take(&mut progress.held).into_iter();
        self.deliver(&mut progress, held.filter_map(|part| part.into_piece(self.wanted)).collect());
    }

    fn deliver(&self, progress: &mut Progress, pieces: Vec<Piece>) {
        let Some(feed) = &self.feed else { return };
        if !pieces.is_empty() {
            progress.has_delivered = true;
            feed.put(pieces.into_iter().map(|piece| (self.number, piece)));
        }
    }

    /// Whether the consumer has been given anything, so that the stream cannot be begun again.
    pub fn has_delivered(&self) -> bool {
        self.lock().has_delivered
    }

    /// Whether every choice was told to be at its end.
    pub fn is_complete(&self) -> bool {
        match &self.lock().sum {
            Sum::Chat(sum) => sum.is_complete(),
            Sum::Events(sum) => sum.is_complete(),
        }
    }

    /// Whether there is an answer at the provider's mark of the end.
    pub fn has_answer(&self) -> bool {
        match &self.lock().sum {
            // What is missing in it, the reading of it says.
            Sum::Chat(_) => true,
            Sum::Events(sum) => sum.has_answer(),
        }
    }

    /// The first choice's text so far.
    pub fn text(&self) -> String {
        let progress = self.lock();
        match &progress.whole {
            None => progress.sum.text().to_owned(),
            Some(Whole::Text(text)) => text.clone(),
            Some(Whole::Chat(body)) => accumulate::text_in(body),
        }
    }

    /// When its pieces came.
    pub fn pace(&self) -> Pace {
        let progress = self.lock();
        Pace { begun: progress.begun, first: progress.first, last: progress.last }
    }

    /// What all of it adds up to, once it is complete: the body of an answer as if it had not been streamed.
    pub fn body(&self) -> Bytes {
        let mut progress = self.lock();
        let (body, whole) = match mem::take(&mut progress.sum) {
            Sum::Chat(sum) => {
                let body = sum.finish();
                (body.clone(), Whole::Chat(body))
            }
            Sum::Events(sum) => {
                let text = sum.text().to_owned();
                (sum.finish(), Whole::Text(text))
            }
        };
        progress.whole = Some(whole);
        body
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
