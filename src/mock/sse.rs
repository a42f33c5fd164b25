//! The events of a stream, made one after another: a stream of a million pieces is never in memory at once.
//!
//! The JSON of a piece differs from that of the next one in the piece alone (and, in the Responses API, in its number). So a
//! [`Template`] is written once, with holes, and an event is a few copies.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use super::streaming::LineEnd;

/// Where a template takes a piece of the text. No text has it: it begins with a control character.
pub(super) const PIECE: &str = "\u{1}piece";
/// Where a template takes the event's number.
pub(super) const NUMBER: &str = "\u{1}number";

/// What an event is to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    /// It says why the answer ends.
    Finish,
    /// The API's own end marker.
    End,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Piece,
    Number,
}

/// An event with holes.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// Value of its `event:` line, if it has one.
    name: Option<String>,
    data: Vec<Part>,
}

impl Template {
    pub(super) fn new(name: Option<&str>, data: &Value) -> Self {
        let (piece, number) = (Value::from(PIECE).to_string(), Value::from(NUMBER).to_string());
        let mut parts = Vec::new();
        for (place, between) in data.to_string().split(&piece).enumerate() {
            if place > 0 {
                parts.push(Part::Piece);
            }
            for (place, text) in between.split(&number).enumerate() {
                if place > 0 {
                    parts.push(Part::Number);
                }
                parts.push(Part::Text(text.to_owned()));
            }
        }
        Self { name: name.map(str::to_owned), data: parts }
    }

    /// One line of data, whatever it is.
    pub(super) fn line(data: &str) -> Self {
        Self { name: None, data: vec![Part::Text(data.to_owned())] }
    }

    /// `piece` is a JSON string, with its quotes.
    pub(super) fn write(&self, piece: &str, number: u64, end: LineEnd, out: &mut BytesMut) {
        let end = end.as_str().as_bytes();
        if let Some(name) = &self.name {
            out.put_slice(b"event: ");
            out.put_slice(name.as_bytes());
            out.put_slice(end);
        }
        out.put_slice(b"data: ");
        for part in &self.data {
            match part {
                Part::Text(text) => out.put_slice(text.as_bytes()),
                Part::Piece => out.put_slice(piece.as_bytes()),
                Part::Number => out.put_slice(number.to_string().as_bytes()),
            }
        }
        out.put_slice(end);
        out.put_slice(end);
    }
}

/// The words of a text, each with the blanks before it: together they are the text.
pub(super) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let blanks = rest.len() - rest.trim_start().len();
        let end = rest.split_at(blanks).1.find(char::is_whitespace).map_or(rest.len(), |length| blanks + length);
        let (word, others) = rest.split_at(end);
        words.push(word);
        rest = others;
    }
    words
}

/// A text in pieces. See [`super::streaming::Streaming::chunks`].
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    /// As JSON.
    words: Arc<[String]>,
    /// The first word with a blank before it, for the second time.
    again: Arc<str>,
    count: u64,
    /// Bytes of the text that they make.
    length: u64,
}

impl Pieces {
    pub(super) fn new(text: &str, count: Option<u64>) -> Self {
        let words = words(text);
        let first = words.first().copied().unwrap_or_default();
        let again = if first.starts_with(char::is_whitespace) { first.to_owned() } else { format!(" {first}") };
        let turn = words.len().max(1) as u64;
        let count = if words.is_empty() { 0 } else { count.unwrap_or(turn) };
        let last_turn: usize = words.iter().take((count % turn) as usize).map(|word| word.len()).sum();
        let blanks = count.div_ceil(turn).saturating_sub(1) * (again.len() - first.len()) as u64;
        let length = count / turn * text.len() as u64 + last_turn as u64 + blanks;
        let words: Arc<[String]> = words.into_iter().map(json_string).collect();
        Self { words, again: json_string(&again).into(), count, length }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// As a JSON string.
    fn get(&self, place: u64) -> &str {
        let length = self.words.len().max(1) as u64;
        if place >= length && place.is_multiple_of(length) {
            return &self.again;
        }
        self.words.get((place % length) as usize).map_or("\"\"", String::as_str)
    }

    /// The text that the pieces make, which is not the one they were made of if their number was told.
    pub(super) fn text(&self) -> String {
        (0..self.count).filter_map(|place| serde_json::from_str::<String>(self.get(place)).ok()).collect()
    }
}

fn json_string(text: &str) -> String {
    Value::from(text).to_string()
}

#[derive(Debug)]
enum Segment {
    Once(Mark, Template),
    /// For each piece each of the templates.
    Each(Vec<Template>, Pieces, u64),
    Raw(Bytes),
}

impl Segment {
    fn count(&self) -> u64 {
        match self {
            Self::Once(..) | Self::Raw(_) => 1,
            Self::Each(templates, pieces, _) => templates.len() as u64 * pieces.count(),
        }
    }
}

/// The events of one stream, in order.
#[derive(Debug, Default)]
pub(super) struct Events {
    segments: std::collections::VecDeque<Segment>,
    number: u64,
    /// What a keep-alive is in place of a comment.
    ping: Option<Template>,
    error: Option<Template>,
}

impl Events {
    /// Bytes that somebody else made.
    pub(super) fn raw(bytes: Bytes) -> Self {
        Self { segments: [Segment::Raw(bytes)].into(), ..Self::default() }
    }

    pub(super) fn push(&mut self, mark: Mark, template: Template) {
        self.segments.push_back(Segment::Once(mark, template));
    }

    /// For each piece each of the templates.
    pub(super) fn push_each(&mut self, templates: Vec<Template>, pieces: Pieces) {
        if pieces.count() > 0 && !templates.is_empty() {
            self.segments.push_back(Segment::Each(templates, pieces, 0));
        }
    }

    pub(super) fn set_ping(&mut self, ping: Template) {
        self.ping = Some(ping);
    }

    /// What the API says when something goes wrong in the middle.
    pub(super) fn set_error(&mut self, error: Template) {
        self.error = Some(error);
    }

    /// How many are left.
    pub(super) fn count(&self) -> u64 {
        self.segments.iter().map(Segment::count).sum()
    }

    /// What the next event is.
    pub(super) fn peek(&self) -> Option<Mark> {
        self.segments.front().map(|segment| match segment {
            Segment::Once(mark, _) => *mark,
            Segment::Each(..) | Segment::Raw(_) => Mark::Plain,
        })
    }

    /// Leave the next event out.
    pub(super) fn skip(&mut self) {
        self.segments.pop_front();
    }

    /// Write the next event; whether there was one.
    pub(super) fn write_next(&mut self, end: LineEnd, out: &mut BytesMut) -> bool {
        match self.segments.front_mut() {
            None => return false,
            Some(Segment::Once(_, template)) => template.write("\"\"", self.number, end, out),
            Some(Segment::Raw(bytes)) => out.put_slice(bytes),
            Some(Segment::Each(templates, pieces, next)) => {
                let (place, which) = (*next / templates.len() as u64, *next % templates.len() as u64);
                if let Some(template) = templates.get(which as usize) {
                    template.write(pieces.get(place), self.number, end, out);
                }
                *next += 1;
                if *next < templates.len() as u64 * pieces.count() {
                    self.number += 1;
                    return true;
                }
            }
        }
        self.segments.pop_front();
        self.number += 1;
        true
    }

    pub(super) fn write_keep_alive(&self, comment: &str, end: LineEnd, out: &mut BytesMut) {
        if let Some(ping) = &self.ping {
            return ping.write("\"\"", self.number, end, out);
        }
        let end = end.as_str();
        for part in [": ", comment, end, end] {
            out.put_slice(part.as_bytes());
        }
    }

    /// `data` in place of the API's own words.
    pub(super) fn write_error(&self, data: Option<&Bytes>, end: LineEnd, out: &mut BytesMut) {
        let Some(error) = &self.error else { return };
        let mut error = error.clone();
        if let Some(data) = data {
            error.data = vec![Part::Text(String::from_utf8_lossy(data).into_owned())];
        }
        error.write("\"\"", self.number, end, out);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all(mut events: Events, end: LineEnd) -> String {
        let mut out = BytesMut::new();
        while events.write_next(end, &mut out) {}
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn words_together_are_the_text() {
        for text in ["", " ", "a", "echo: one  two\n\nthree ", "\u{3000}é\u{2028}x"] {
            assert_eq!(words(text).concat(), text);
            assert_eq!(Pieces::new(text, None).text(), text);
        }
        assert_eq!(words("echo: one  two "), ["echo:", " one", "  two", " "]);
    }

    #[test]
    fn words_are_repeated_or_left_out_until_the_number_is_right() {
        assert_eq!(Pieces::new("one two", Some(5)).text(), "one two one two one");
        assert_eq!(Pieces::new("one two", Some(1)).text(), "one");
        for (text, count) in [("one two", 5), (" one two", 4), ("one", 3), ("a b c", 2), ("", 7)] {
            let pieces = Pieces::new(text, Some(count));
            assert_eq!(pieces.length(), pieces.text().len() as u64, "{text} {count}");
        }
        assert_eq!(Pieces::new("", Some(3)).count(), 0);
    }

    #[test]
    fn an_event_is_its_template_with_the_holes_filled() {
        let mut events = Events::default();
        let template = |index| Template::new(Some("d"), &json!({"n": NUMBER, "i": index, "t": PIECE}));
        events.push_each(vec![template(0), template(1)], Pieces::new("a \"b\"", None));
        events.push(Mark::End, Template::line("[DONE]"));
        assert_eq!(events.count(), 5);
        let expected = [
            r#"event: d|data: {"n":0,"i":0,"t":"a"}||"#,
            r#"event: d|data: {"n":1,"i":1,"t":"a"}||"#,
            r#"event: d|data: {"n":2,"i":0,"t":" \"b\""}||"#,
            r#"event: d|data: {"n":3,"i":1,"t":" \"b\""}||"#,
            "data: [DONE]||",
        ];
        assert_eq!(all(events, LineEnd::Lf), expected.concat().replace('|', "\n"));
    }

    #[test]
    fn a_million_pieces_cost_no_more_memory_than_one() {
        let pieces = Pieces::new("one two three", Some(1_000_000));
        let mut events = Events::default();
        events.push_each(vec![Template::new(None, &json!(PIECE))], pieces);
        let mut out = BytesMut::new();
        let mut written = 0;
        while events.write_next(LineEnd::Lf, &mut out) {
            written += 1;
            out.clear();
        }
        assert_eq!((written, out.capacity() < 1000), (1_000_000, true));
    }
}
