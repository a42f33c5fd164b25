//! What is still to be sent, what is out, and what to make of each outcome.
//!
//! A refusal that may be about one text of a pack (400, 413, 422; 500, which some servers answer to a text that is too long) halves
//! the pack. The halves go first, so that the culprit is found before more is sent; what is found good on the way has its vectors.
//! Where both halves of a pack are answered, its size was at fault, and the packs that follow are smaller. As long as nothing at
//! all was answered, though, only the first few culprits are looked for: then it is the request that the server refuses.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::block::Block;
use super::kept::Kept;
use super::learnt::{Form, Learnt};
use super::pack::PackLimits;
use super::piece::{Piece, Pieces, TooLong};
use super::run::{Embedded, OnError};
use crate::engine::error::{Error, Kind, Verdict};
use crate::engine::types::{Usage, Vectors};

/// Into how many packs texts are spread where one could hold them, so that they are worked at side by side; no pack is made
/// smaller than `SMALLEST_SPREAD` for that.
const SPREAD: usize = 16;
const SMALLEST_SPREAD: usize = 128;
/// Single texts that may be refused before anything is answered, until it counts as the request's fault.
const HOPELESS: usize = 4;
/// What an estimate of tokens may be off by.
const MARGIN: f64 = 0.9;
/// An answer must stay below what is read whole (64 MiB); per number, base64 takes 5.4 bytes and a list up to 24.
const ANSWER_BYTES: f64 = 48.0 * 1024.0 * 1024.0;
const BASE64_BYTES: f64 = 5.4;
const LIST_BYTES: f64 = 24.0;
/// Numbers of a vector, until one was seen.
const USUAL_DIMENSIONS: usize = 4096;
/// Texts that are looked up in a cache at a time: about a millisecond.
const LOOKED_UP: usize = 256;
/// How often a pack whose vectors do not fit the others is asked again.
const MOST_MISFITS: u8 = 2;

/// Texts of one request.
#[derive(Debug)]
pub(super) struct Pack {
    pieces: Vec<u32>,
    /// In which form its vectors are asked for.
    form: Form,
    /// It failed as base64, and now it is seen whether that was why.
    is_trial: bool,
    /// It is half of a pack that failed with a server's fault: sent once, since there are smaller ones to retry.
    is_probe: bool,
    misfits: u8,
    /// The pack that it is a half of.
    parent: Option<Arc<Parent>>,
}

/// A pack that was halved.
#[derive(Debug)]
struct Parent {
    lesson: Option<Lesson>,
    /// Halves that have not been answered.
    unanswered: AtomicU8,
}

/// What it means if both halves are answered.
#[derive(Debug, Clone, Copy)]
enum Lesson {
    Items(usize),
    Tokens(u64),
}

/// What a failure says of those in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One of the texts, or their number, or their length.
    Input,
    /// Perhaps so; perhaps the server's.
    Perhaps,
    /// None of theirs.
    Others,
}

impl Fault {
    fn of(error: &Error) -> Self {
        match error.kind() {
            Kind::Status(400 | 413 | 422) if !error.is_out_of_quota() => Self::Input,
            Kind::InputTooLarge => Self::Input,
            // An answer larger than what is read.
            Kind::InvalidResponse if error.verdict() == Verdict::Final && !error.is_out_of_quota() => Self::Input,
            Kind::Status(500) => Self::Perhaps,
            _ => Self::Others,
        }
    }
}

/// Whether a single text was refused for its length.
fn is_about_length(error: &Error) -> bool {
    const WORDS: [&str; 7] =
        ["too long", "too large", "too many tokens", "context length", "context_length", "maximum", "exceed"];
    let said = |text: &Option<String>| {
        text.as_ref().is_some_and(|text| {
            let text = text.to_lowercase();
            WORDS.iter().any(|word| text.contains(word))
        })
    };
    let http = error.http();
    matches!(error.kind(), Kind::Status(413) | Kind::InputTooLarge)
        || http.is_some_and(|http| said(&http.message) || said(&http.code) || said(&http.body))
}

/// What comes next.
pub(super) enum Next {
    /// A pack, by its number, with its texts.
    Pack(usize),
    /// Something is out, and may come back.
    Wait,
    /// All is done.
    End,
}

/// How packs are made and judged.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) limits: PackLimits,
    /// The user said how many texts go into a pack.
    pub(super) is_sized: bool,
    /// The user said in which form vectors are asked for.
    pub(super) form: Option<Form>,
    pub(super) learnt: Arc<Learnt>,
    pub(super) too_long: TooLong,
    pub(super) on_error: OnError,
    /// The number of the first text.
    pub(super) first: usize,
}

pub(super) struct Queue {
    rules: Rules,
    pieces: Vec<Piece>,
    copies: Vec<(u32, u32)>,
    rows: usize,
    /// The next piece that was in no pack yet; those from `fresh` on are parts made later, and in `again`.
    next: usize,
    fresh: usize,
    /// The most texts of a pack, so that they are spread.
    spread: usize,
    again: VecDeque<Pack>,
    out: HashMap<usize, Pack>,
    /// Number of the next pack.
    number: usize,
    block: Block,
    kept: Option<Kept>,
    /// Rows that the cache had.
    cached: usize,
    answered: usize,
    refused: usize,
    model: String,
    /// Of what was asked.
    usage: Option<Usage>,
    errors: BTreeMap<u32, Error>,
}

impl Queue {
    pub(super) fn new(rules: Rules, pieces: Pieces, block: Block) -> Self {
        let Pieces { all: pieces, copies, rows } = pieces;
        Self {
            next: 0,
            fresh: pieces.len(),
            spread: spread(&rules, pieces.len()),
            pieces,
            copies,
            rows,
            again: VecDeque::new(),
            out: HashMap::new(),
            number: 0,
            block,
            kept: None,
            cached: 0,
            answered: 0,
            refused: 0,
            model: String::new(),
            usage: None,
            errors: BTreeMap::new(),
            rules,
        }
    }

    /// Refuses what is known to be longer than the model takes, before anything is sent.
    ///
    /// # Errors
    /// What ends the call.
    pub(super) fn refuse_known(&mut self) -> Result<(), Error> {
        let Some(most) = self.rules.limits.tokens_per_input else { return Ok(()) };
        let (known, rest) = std::mem::take(&mut self.pieces)
            .into_iter()
            .partition::<Vec<_>, _>(|piece| piece.tokens.is_some_and(|tokens| u64::from(tokens) > most));
        (self.pieces, self.fresh) = (rest, self.fresh - known.len());
        for piece in known {
            let tokens = piece.tokens.unwrap_or_default();
            let error = Error::new(Kind::InputTooLarge, format!("it has {tokens} tokens and the model takes {most}"))
                .advise("Cut it, or give too_long=\"truncate\" or \"chunk-mean\".");
            self.keep_error(piece.row, &error, true)?;
        }
        Ok(())
    }

    /// Puts in its place what a cache has. Only what it has not is sent, and will be kept there.
    pub(super) async fn recall(&mut self, kept: Kept) {
        let mut pieces = std::mem::take(&mut self.pieces).into_iter();
        let (mut fresh, mut found) = (Vec::with_capacity(pieces.len()), Vec::new());
        let (mut numbers, mut tokens) = (Vec::new(), None);
        loop {
            let some: Vec<_> = pieces.by_ref().take(LOOKED_UP).collect();
            if some.is_empty() {
                break;
            }
            let entries = kept.find(&some).await;
            for (mut piece, (key, entry)) in some.into_iter().zip(entries) {
                let head = entry.as_ref().and_then(|entry| {
                    let head = entry.read_vector(&mut numbers);
                    if head.is_none() {
                        kept.is_broken(&key);
                    }
                    head
                });
                // One that does not fit the others is of another time.
                let Some(head) = head.filter(|_| self.block.fit(numbers.len()).is_ok()) else {
                    fresh.push(piece);
                    continue;
                };
                if self.model.is_empty() {
                    self.model = head.model.into_owned();
                }
                if let Some(more) = head.tokens {
                    *tokens.get_or_insert(0) += more;
                }
                self.block.put(&piece, &numbers);
                piece.text = String::new();
                found.push(piece);
            }
            // A run of hits waits for nothing, and gives way to others all the same.
            tokio::task::yield_now().await;
        }
        kept.count(found.len(), tokens.unwrap_or_default(), fresh.len());
        // Nothing was paid, by a server that counts.
        self.usage = tokens.map(|_| Usage::default());
        // Both are in the order of their rows.
        let is_in = |pieces: &[Piece], row: u32| pieces.binary_search_by_key(&row, |piece| piece.row).is_ok();
        let is_whole = |row: u32| is_in(&found, row) && !is_in(&fresh, row);
        let mut rows: Vec<_> = found.iter().map(|piece| piece.row).collect();
        rows.dedup();
        rows.extend(self.copies.iter().map(|(_, like)| *like));
        self.cached = rows.into_iter().filter(|row| is_whole(*row)).count();
        (self.fresh, self.spread) = (fresh.len(), spread(&self.rules, fresh.len()));
        fresh.append(&mut found);
        self.pieces = fresh;
        self.kept = Some(kept);
    }

    /// The most packs that there may still be.
    pub(super) fn left(&self) -> usize {
        self.again.len() + self.out.len() + (self.fresh - self.next)
    }

    /// Takes out the next pack.
    pub(super) fn take(&mut self, bytes_per_token: f64) -> Next {
        let pack = self.again.pop_front().or_else(|| self.fill(bytes_per_token));
        let Some(pack) = pack else {
            return if self.out.is_empty() { Next::End } else { Next::Wait };
        };
        let number = self.number;
        self.number += 1;
        self.out.insert(number, pack);
        Next::Pack(number)
    }

    /// The texts of a pack that is out, its form, and whether it is sent once.
    pub(super) fn texts(&self, number: usize) -> (Vec<&str>, Form, bool) {
        let Some(pack) = self.out.get(&number) else { return (Vec::new(), Form::Float, false) };
        let text = |piece: &u32| self.pieces.get(*piece as usize).map_or("", |piece| piece.text.as_str());
        (pack.pieces.iter().map(text).collect(), pack.form, pack.is_probe)
    }

    fn form(&self) -> Form {
        self.rules.form.unwrap_or_else(|| self.rules.learnt.form())
    }

    /// A pack of the next texts: as many as its limits allow, and at least one.
    fn fill(&mut self, bytes_per_token: f64) -> Option<Pack> {
        let Rules { limits, learnt, .. } = &self.rules;
        let form = self.form();
        let dimensions = self.block.given().or(learnt.dimensions()).unwrap_or(USUAL_DIMENSIONS);
        let bytes = if form == Form::Base64 { BASE64_BYTES } else { LIST_BYTES };
        let answered_whole = (ANSWER_BYTES / (bytes * dimensions as f64)) as usize;
        let most_items = limits.items.min(learnt.items()).min(self.spread).min(answered_whole).max(1);
        let most_tokens = ((limits.tokens_per_request as f64 * MARGIN) as u64).min(learnt.tokens());
        let longest = limits.tokens_per_input.unwrap_or(u64::MAX);
        let mut tokens = 0_u64;
        let mut items = 0;
        for piece in self.pieces.get(self.next..self.fresh).unwrap_or_default().iter().take(most_items) {
            let more = piece.tokens(bytes_per_token);
            // One that is probably too long goes alone: the others need not fail with it.
            let is_suspect = more > longest;
            if items > 0 && (is_suspect || tokens.saturating_add(more) > most_tokens) {
                break;
            }
            (tokens, items) = (tokens.saturating_add(more), items + 1);
            if is_suspect {
                break;
            }
        }
        let start = self.next as u32;
        self.next += items;
        let pieces: Vec<u32> = (start..start + items as u32).collect();
        (items > 0).then_some(Pack { pieces, form, is_trial: false, is_probe: false, misfits: 0, parent: None })
    }

    /// Takes in what became of a pack.
    ///
    /// # Errors
    /// What ends the call.
    pub(super) fn put(
        &mut self,
        number: usize,
        outcome: Result<Vectors, Error>,
        bytes_per_token: f64,
    ) -> Result<(), Error> {
        let Some(pack) = self.out.remove(&number) else { return Ok(()) };
        match outcome {
            Ok(vectors) => self.answered(pack, vectors),
            Err(error) => self.failed(pack, &error, bytes_per_token),
        }
    }

    fn answered(&mut self, pack: Pack, vectors: Vectors) -> Result<(), Error> {
        if let Err(error) = self.block.fit(vectors.dimensions) {
            if self.answered == 0 && self.cached > 0 {
                let advice = "The cache has those of another model of this name: give refresh=True, or clear it.";
                return self.refuse(&pack, &error.advise(advice), false);
            }
            if error.verdict() == Verdict::Retryable && pack.misfits < MOST_MISFITS {
                self.again.push_front(Pack { misfits: pack.misfits + 1, ..pack });
                return Ok(());
            }
            return self.refuse(&pack, &error, false);
        }
        let learnt = &self.rules.learnt;
        learnt.has_dimensions(vectors.dimensions);
        if vectors.is_base64 {
            learnt.gives_base64();
        } else if pack.is_trial {
            learnt.gives_floats_only();
        }
        if let Some(parent) = &pack.parent
            && parent.unanswered.fetch_sub(1, Relaxed) == 1
        {
            match parent.lesson {
                Some(Lesson::Items(items)) => learnt.takes_items(items),
                Some(Lesson::Tokens(tokens)) => learnt.takes_tokens(tokens),
                None => {}
            }
        }
        if let Some(kept) = &self.kept {
            let piece = |input: &u32| self.pieces.get(*pack.pieces.get(*input as usize)? as usize);
            // All of them: the count and the indices were checked.
            let pieces: Vec<_> = vectors.inputs.iter().filter_map(piece).collect();
            kept.keep(&pieces, &vectors);
        }
        for (input, vector) in vectors.inputs.iter().zip(vectors.numbers.chunks_exact(vectors.dimensions.max(1))) {
            let piece = pack.pieces.get(*input as usize).and_then(|piece| self.pieces.get_mut(*piece as usize));
            let Some(piece) = piece else { continue };
            self.block.put(piece, vector);
            // It is not needed any more.
            piece.text = String::new();
        }
        self.answered += pack.pieces.len();
        if self.model.is_empty() {
            self.model = vectors.model;
        }
        if let Some(usage) = vectors.usage {
            let sum = self.usage.get_or_insert_default();
            sum.prompt_tokens = sum.prompt_tokens.saturating_add(usage.prompt_tokens);
            sum.total_tokens = sum.total_tokens.saturating_add(usage.total_tokens);
        }
        Ok(())
    }

    fn failed(&mut self, pack: Pack, error: &Error, bytes_per_token: f64) -> Result<(), Error> {
        if error.kind() == Kind::Stopped {
            // No row's matter: whoever stopped the call asks for all of it again.
            return Err(error.copy());
        }
        let fault = Fault::of(error);
        if pack.is_probe && fault == Fault::Others {
            // Whatever it was, it was no more than one attempt.
            self.again.push_front(Pack { is_probe: false, ..pack });
            return Ok(());
        }
        let is_of_form = matches!(error.kind(), Kind::Status(400 | 422))
            && pack.form == Form::Base64
            && self.rules.form.is_none()
            && self.rules.learnt.is_form_unknown();
        if is_of_form {
            self.again.push_front(Pack { form: Form::Float, is_trial: true, ..pack });
            return Ok(());
        }
        let is_hopeless = self.answered == 0 && self.refused >= HOPELESS;
        if fault == Fault::Others || (pack.pieces.len() > 1 && is_hopeless) {
            return self.refuse(&pack, error, false);
        }
        if pack.pieces.len() > 1 {
            self.halve(&pack, fault, bytes_per_token);
            return Ok(());
        }
        if self.rules.too_long != TooLong::Fails && is_about_length(error) && self.shorten(&pack) {
            return Ok(());
        }
        self.refused += 1;
        let is_own = fault == Fault::Input || self.answered > 0;
        self.refuse(&pack, error, is_own)
    }

    /// Puts both halves of a pack before all others.
    fn halve(&mut self, pack: &Pack, fault: Fault, bytes_per_token: f64) {
        let Rules { limits, .. } = &self.rules;
        let (first, second) = pack.pieces.split_at(pack.pieces.len().div_ceil(2));
        let tokens_of = |pieces: &[u32]| -> u64 {
            let pieces = pieces.iter().filter_map(|piece| self.pieces.get(*piece as usize));
            pieces.map(|piece| piece.tokens(bytes_per_token)).sum()
        };
        // Of the two limits, the one that the pack came nearer to.
        let filled = tokens_of(&pack.pieces) as f64 / limits.tokens_per_request as f64;
        let lesson = if filled > pack.pieces.len() as f64 / limits.items as f64 {
            Lesson::Tokens(tokens_of(first).max(tokens_of(second)))
        } else {
            Lesson::Items(first.len())
        };
        let parent = Arc::new(Parent {
            // A server that fails now and then must not make packs smaller for good.
            lesson: (fault == Fault::Input).then_some(lesson),
            unanswered: 2.into(),
        });
        for half in [second, first] {
            self.again.push_front(Pack {
                pieces: half.to_vec(),
                // Not as base64 again where numbers may have been the remedy: who is at fault is to be found.
                form: pack.form,
                is_trial: false,
                is_probe: fault == Fault::Perhaps && half.len() > 1,
                misfits: 0,
                parent: Some(Arc::clone(&parent)),
            });
        }
    }

    /// Asks a single text again with less of it, or in two parts; whether it is long enough.
    fn shorten(&mut self, pack: &Pack) -> bool {
        let Some(place) = pack.pieces.first().map(|piece| *piece as usize) else { return false };
        let Some(piece) = self.pieces.get_mut(place) else { return false };
        let again =
            |pieces| Pack { pieces, form: pack.form, is_trial: false, is_probe: false, misfits: 0, parent: None };
        if self.rules.too_long == TooLong::IsCut {
            let Some(shorter) = piece.cut() else { return false };
            *piece = shorter;
            self.again.push_front(again(vec![place as u32]));
            return true;
        }
        let Some([first, second]) = piece.halves() else { return false };
        *piece = first;
        let other = self.pieces.len() as u32;
        self.pieces.push(second);
        self.again.push_front(again(vec![other]));
        self.again.push_front(again(vec![place as u32]));
        true
    }

    /// The error of every text of a pack; `is_own` if the text itself is at fault.
    fn refuse(&mut self, pack: &Pack, error: &Error, is_own: bool) -> Result<(), Error> {
        for piece in &pack.pieces {
            let Some(piece) = self.pieces.get_mut(*piece as usize) else { continue };
            let row = piece.row;
            piece.text = String::new();
            self.keep_error(row, error, is_own)?;
        }
        Ok(())
    }

    fn keep_error(&mut self, row: u32, error: &Error, is_own: bool) -> Result<(), Error> {
        let error = error.twin(row as usize).among("texts", self.rules.first + row as usize);
        match self.rules.on_error {
            OnError::Return => {}
            OnError::Blank if is_own => {}
            OnError::Raise | OnError::Blank => return Err(error),
        }
        self.errors.entry(row).or_insert(error);
        Ok(())
    }

    /// All that came.
    pub(super) fn finish(&mut self) -> Embedded {
        let mut block = std::mem::take(&mut self.block);
        for piece in self.pieces.iter().filter(|piece| piece.share.is_some()) {
            block.normalize(piece.row as usize);
        }
        for row in self.errors.keys() {
            block.blank(*row as usize);
        }
        for (row, like) in &self.copies {
            block.copy(*like as usize, *row as usize);
            if let Some(error) = self.errors.get(like) {
                let error = error.twin(self.rules.first + *row as usize);
                self.errors.insert(*row, error);
            }
        }
        let (numbers, dimensions) = block.finish();
        Embedded {
            numbers,
            rows: self.rows,
            dimensions,
            model: std::mem::take(&mut self.model),
            usage: self.usage,
            requests: self.number,
            cached: self.cached,
            errors: std::mem::take(&mut self.errors).into_iter().map(|(row, error)| (row as usize, error)).collect(),
        }
    }
}

/// The most texts of a pack, for so many texts.
fn spread(rules: &Rules, texts: usize) -> usize {
    if rules.is_sized { usize::MAX } else { texts.div_ceil(SPREAD).max(SMALLEST_SPREAD) }
}
