//! What is sent: a text, the beginning of one, or one of several parts of one.

use std::collections::HashMap;

/// What becomes of a text that the model does not take whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// The server's refusal is its error.
    Fails,
    /// It is cut.
    IsCut,
    /// It is split, and its vector is the mean of its parts', by their length.
    IsSplit,
}

/// Texts to embed, one for each row; or parts of some, which stand together.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// What is sent.
    pub texts: Vec<String>,
    /// The tokens of each, where they are known exactly.
    pub tokens: Option<Vec<u32>>,
    /// The row of each, where some rows have several; in order, none left out.
    pub rows: Option<Vec<u32>>,
}

/// The least that is worth cutting further.
const SHORTEST: usize = 16;
/// How often one text is cut or split after a refusal.
const MOST_CUTS: u8 = 12;
/// What an estimate may be off by.
const MARGIN: f64 = 0.9;

/// One string that is sent.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) text: String,
    /// If known exactly.
    pub(super) tokens: Option<u32>,
    pub(super) row: u32,
    /// Of its row's vector; `None`: it is all of it.
    pub(super) share: Option<f32>,
    cuts: u8,
}

impl Piece {
    /// About how many tokens it has.
    pub(super) fn tokens(&self, bytes_per_token: f64) -> u64 {
        self.tokens.map_or_else(|| (self.text.len() as f64 / bytes_per_token).ceil() as u64, u64::from).max(1)
    }

    /// The beginning of it, a quarter shorter; `None` if there is little left or it was cut often enough.
    pub(super) fn cut(&mut self) -> Option<Self> {
        self.may_be_shorter().then(|| {
            let end = boundary(&self.text, self.text.len() / 4 * 3);
            self.text.truncate(end);
            Self { text: std::mem::take(&mut self.text), tokens: None, cuts: self.cuts + 1, ..*self }
        })
    }

    /// Its two halves.
    pub(super) fn halves(&mut self) -> Option<[Self; 2]> {
        self.may_be_shorter().then(|| {
            let (share, length) = (self.share.unwrap_or(1.0), self.text.len());
            let second = self.text.split_off(gap(&self.text, length / 2).min(length));
            let half = |text: String| Self {
                share: Some(share * text.len() as f32 / length as f32),
                text,
                tokens: None,
                row: self.row,
                cuts: self.cuts + 1,
            };
            [half(std::mem::take(&mut self.text)), half(second)]
        })
    }

    fn cut_to(mut self, most: usize) -> Self {
        self.text.truncate(boundary(&self.text, most));
        self
    }

    /// Itself in parts of at most so many bytes, which are about equal.
    fn split(self, most: usize) -> Vec<Self> {
        let (length, share) = (self.text.len(), self.share.unwrap_or(1.0));
        let most = length.div_ceil(length.div_ceil(most.max(1)).max(1)).max(SHORTEST);
        let mut parts = Vec::new();
        let mut rest = self.text.as_str();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(if rest.len() <= most { rest.len() } else { gap(rest, most) });
            parts.push(Self {
                text: part.to_owned(),
                tokens: None,
                row: self.row,
                share: Some(share * part.len() as f32 / length as f32),
                cuts: 0,
            });
            rest = after;
        }
        parts
    }

    fn may_be_shorter(&self) -> bool {
        self.cuts < MOST_CUTS && self.text.len() > SHORTEST
    }
}

/// What is sent for some texts.
pub(super) struct Pieces {
    pub(super) all: Vec<Piece>,
    /// Rows that are the same as others: of each the row and whose it is like.
    pub(super) copies: Vec<(u32, u32)>,
    pub(super) rows: usize,
}

impl Pieces {
    /// Cuts or splits what has probably more than `most_tokens`, unless its tokens are known exactly: then that was done where they
    /// were counted. With `dedupe` a text that was there before is left out; not where rows have several parts.
    pub(super) fn of(
        texts: Texts,
        dedupe: bool,
        too_long: TooLong,
        most_tokens: Option<u64>,
        bytes_per_token: f64,
    ) -> Self {
        let Texts { texts, tokens, rows } = texts;
        // One for each is what none says.
        let rows = rows.filter(|rows| rows.iter().enumerate().any(|(place, row)| place != *row as usize));
        let copies = if dedupe && rows.is_none() { copies(&texts) } else { Vec::new() };
        let lengths = rows.as_ref().map(|rows| Lengths::of(rows, &texts));
        let count = lengths.as_ref().map_or(texts.len(), |lengths| lengths.0.len());
        let most_bytes = most_tokens.filter(|_| tokens.is_none() && too_long != TooLong::Fails);
        let most_bytes = most_bytes.map(|most| ((most as f64 * bytes_per_token * MARGIN) as usize).max(SHORTEST));
        let mut left_out = copies.iter().map(|(row, _)| *row as usize).peekable();
        let mut pieces = Vec::with_capacity(texts.len() - copies.len());
        for (place, text) in texts.into_iter().enumerate() {
            if left_out.next_if_eq(&place).is_some() {
                continue;
            }
            let row = rows.as_ref().and_then(|rows| rows.get(place).copied()).unwrap_or(place as u32);
            let share = lengths.as_ref().and_then(|lengths| lengths.share(row, &text));
            let tokens = tokens.as_ref().and_then(|tokens| tokens.get(place).copied());
            let piece = Piece { text, tokens, row, share, cuts: 0 };
            match most_bytes.filter(|most| piece.text.len() > *most) {
                None => pieces.push(piece),
                Some(most) if too_long == TooLong::IsCut => pieces.push(piece.cut_to(most)),
                Some(most) => pieces.extend(piece.split(most)),
            }
        }
        Self { all: pieces, copies, rows: count }
    }
}

/// Texts that were there before, and where.
fn copies(texts: &[String]) -> Vec<(u32, u32)> {
    let mut first: HashMap<&str, u32> = HashMap::with_capacity(texts.len());
    let place = |(place, text): (usize, _)| (place as u32, *first.entry(text).or_insert(place as u32));
    texts.iter().map(String::as_str).enumerate().map(place).filter(|(place, first)| place != first).collect()
}

/// Of each row how many parts it has, and their bytes.
struct Lengths(Vec<(u32, usize)>);

impl Lengths {
    fn of(rows: &[u32], texts: &[String]) -> Self {
        let mut lengths = vec![(0, 0); rows.iter().max().map_or(0, |last| *last as usize + 1)];
        for (row, text) in rows.iter().zip(texts) {
            if let Some((parts, bytes)) = lengths.get_mut(*row as usize) {
                *parts += 1;
                *bytes += text.len();
            }
        }
        Self(lengths)
    }

    /// The share of one of several parts.
    fn share(&self, row: u32, part: &str) -> Option<f32> {
        let (_, bytes) = self.0.get(row as usize).filter(|(parts, _)| *parts > 1)?;
        Some(part.len() as f32 / (*bytes).max(1) as f32)
    }
}

/// The end of the last whole character within so many bytes; at least one character's.
fn boundary(text: &str, most: usize) -> usize {
    let end = (1..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.unwrap_or_else(|| text.chars().next().map_or(0, char::len_utf8))
}

/// The same, but after the last space in its second half, if there is one.
fn gap(text: &str, most: usize) -> usize {
    let end = boundary(text, most);
    let space =
        text.get(..end).and_then(|part| part.char_indices().rev().find(|(_, character)| character.is_whitespace()));
    let after = space.map(|(place, character)| place + character.len_utf8());
    after.filter(|after| *after > end / 2).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(texts: &[&str], too_long: TooLong, most_tokens: u64) -> Pieces {
        let texts = Texts { texts: texts.iter().map(ToString::to_string).collect(), ..Texts::default() };
        Pieces::of(texts, true, too_long, Some(most_tokens), 4.0)
    }

    fn sent(pieces: &Pieces) -> Vec<(&str, u32)> {
        pieces.all.iter().map(|piece| (piece.text.as_str(), piece.row)).collect()
    }

    #[test]
    fn equal_texts_are_sent_once() {
        let pieces = pieces(&["a", "b", "a", "a"], TooLong::Fails, 10);
        assert_eq!((sent(&pieces), pieces.rows), (vec![("a", 0), ("b", 1)], 4));
        assert_eq!(pieces.copies, [(2, 0), (3, 0)]);
    }

    #[test]
    fn what_is_too_long_goes_as_it_is_or_cut_or_in_parts() {
        let long = "eins zwei drei vier fünf sechs sieben acht neun zehn";
        assert_eq!(sent(&pieces(&[long], TooLong::Fails, 5)), [(long, 0)]);
        let cut = pieces(&[long], TooLong::IsCut, 5);
        assert_eq!(sent(&cut), [("eins zwei drei vie", 0)]);
        let split = pieces(&["a", long], TooLong::IsSplit, 5);
        assert!(split.all.len() > 2 && split.all[1..].iter().all(|piece| piece.row == 1));
        assert_eq!(split.all[0].share, None);
        assert_eq!(split.rows, 2);
    }

    #[test]
    fn parts_that_were_made_elsewhere_weigh_by_their_length() {
        let texts = ["aaa", "b", "cc"].map(str::to_owned).to_vec();
        let texts = Texts { texts, tokens: None, rows: Some(vec![0, 0, 1]) };
        let Pieces { all: pieces, rows, .. } = Pieces::of(texts, true, TooLong::IsSplit, None, 4.0);
        assert_eq!(pieces.iter().map(|piece| piece.share).collect::<Vec<_>>(), [Some(0.75), Some(0.25), None]);
        assert_eq!(rows, 2);
    }

    #[test]
    fn a_refused_text_is_cut_until_little_is_left() {
        let mut piece = Piece { text: "é".repeat(1000), ..Piece::default() };
        let mut cuts = 0;
        while let Some(shorter) = piece.cut() {
            (piece, cuts) = (shorter, cuts + 1);
        }
        assert!((10..=usize::from(MOST_CUTS)).contains(&cuts), "{cuts}");
        assert!(!piece.text.is_empty());
    }

    proptest! {
        #[test]
        fn parts_are_the_text_and_their_shares_one(text in "\\PC{0,300}", most in 1..60_u64) {
            let pieces = pieces(&[&text], TooLong::IsSplit, most);
            prop_assert_eq!(pieces.all.iter().map(|piece| piece.text.as_str()).collect::<String>(), text.clone());
            let shares: f32 = pieces.all.iter().map(|piece| piece.share.unwrap_or(1.0)).sum();
            prop_assert!((shares - 1.0).abs() < 1e-4, "{}", shares);
            let mut piece = Piece { text: text.clone(), ..Piece::default() };
            if let Some([first, second]) = piece.halves() {
                prop_assert!(!first.text.is_empty() && !second.text.is_empty());
                prop_assert_eq!(first.text + &second.text, text);
            }
        }
    }
}
