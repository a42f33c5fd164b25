//! Lines of a file, one at a time, each in bounded memory.

use std::io::{self, BufRead, Read};

/// What one line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// Where it begins in the file.
    pub(super) start: u64,
    /// Its bytes in the file, its newline included.
    pub(super) length: u64,
    /// Whether it ends in a newline.
    pub(super) is_whole: bool,
    /// Whether it is longer than what is read of one.
    pub(super) is_too_long: bool,
}

/// Reads lines.
#[derive(Debug)]
pub(super) struct Lines<R> {
    file: R,
    longest: u64,
    number: u64,
    at: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `file`; of one longer than `longest` bytes nothing is kept.
    pub(super) fn new(file: R, longest: u64) -> Self {
        Self { file, longest, number: 0, at: 0, text: Vec::new() }
    }

    /// The next line; [`Self::text`] is what stands in it.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        self.text.clear();
        let start = self.at;
        let mut read = self.file.by_ref().take(self.longest + 1).read_until(b'\n', &mut self.text)? as u64;
        if read == 0 {
            return Ok(None);
        }
        let is_too_long = read > self.longest && self.text.last() != Some(&b'\n');
        let mut is_whole = self.text.last() == Some(&b'\n');
        if is_too_long {
            self.text = Vec::new();
            let (skipped, found) = self.skip()?;
            read += skipped;
            is_whole = found;
        }
        self.at += read;
        self.number += 1;
        Ok(Some(Line { number: self.number, start, length: read, is_whole, is_too_long }))
    }

    /// What stands in the line that was read last, with its newline; nothing if it was too long.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// To the end of the line: how many bytes, and whether there was a newline.
    fn skip(&mut self) -> io::Result<(u64, bool)> {
        let mut skipped = 0;
        loop {
            let buffer = self.file.fill_buf()?;
            if buffer.is_empty() {
                return Ok((skipped, false));
            }
            let newline = memchr::memchr(b'\n', buffer);
            let length = newline.map_or(buffer.len(), |place| place + 1);
            self.file.consume(length);
            skipped += length as u64;
            if newline.is_some() {
                return Ok((skipped, true));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gives_every_line_its_place_and_skips_what_is_too_long() {
        let mut lines = Lines::new(&b"one\n\ntoo long for it\nlast"[..], 5);
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            seen.push((line.number, line.start, line.length, line.is_whole, line.is_too_long, lines.text().to_vec()));
        }
        assert_eq!(
            seen,
            [
                (1, 0, 4, true, false, b"one\n".to_vec()),
                (2, 4, 1, true, false, b"\n".to_vec()),
                (3, 5, 16, true, true, Vec::new()),
                (4, 21, 4, false, false, b"last".to_vec()),
            ]
        );
    }

    #[test]
    fn a_line_of_just_the_longest_length_is_read() {
        let mut lines = Lines::new(&b"12345\n12345"[..], 5);
        assert!(!lines.next().unwrap().unwrap().is_too_long);
        assert_eq!(lines.text(), b"12345\n");
        assert!(!lines.next().unwrap().unwrap().is_too_long);
        assert_eq!(lines.next().unwrap(), None);
    }

    fn all(file: &[u8], longest: u64, at_once: usize) -> Vec<(Line, Vec<u8>)> {
        let mut lines = Lines::new(BufReader::with_capacity(at_once, file), longest);
        std::iter::from_fn(|| lines.next().unwrap().map(|line| (line, lines.text().to_vec()))).collect()
    }

    proptest! {
        #[test]
        fn any_cut_of_a_file_gives_the_same_lines(
            file in "([a-z\r]{0,12}\n?){0,12}",
            at_once in 1..20_usize,
            longest in 0..10_u64,
        ) {
            let whole = all(file.as_bytes(), longest, file.len() + 1);
            prop_assert_eq!(&all(file.as_bytes(), longest, at_once), &whole);
            prop_assert_eq!(whole.iter().map(|(line, _)| line.length).sum::<u64>(), file.len() as u64);
        }
    }
}
