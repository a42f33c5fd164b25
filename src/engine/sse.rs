//! Server-sent events: bytes in any cut become events.
//!
//! The grammar is the HTML standard's ("Server-sent events", section "Interpreting an event stream"): lines end with LF, CR or
//! CRLF, a byte order mark may lead, a line that begins with a colon is a comment, an empty line dispatches, an event without
//! data is none. One difference is on purpose: an event that the stream ends in is not lost, since servers forget the last
//! empty line ([`Decoder::finish`]).
//!
//! A line that lies within one chunk is a slice of it and is not copied, and neither is the event of a single `data` line, which
//! every LLM API sends. Each byte is looked at once and what came of a line is never scanned again, so a stream of single bytes
//! or a line without an end costs no more than its length.
//!
//! Comments are no events. A reader that wants to know whether a server still works asks whether [`Decoder::next_event`] gave
//! something, not whether bytes came: some servers send comments for as long as a request is queued.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use bytes::{Buf, Bytes};
use memchr::{memchr, memchr2};

use super::error::{Error, Kind, Verdict};

/// The largest event and the longest line by default, in bytes: 16 MiB, far beyond what any API sends.
pub const LIMIT: usize = 16 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// What `event:` said, UTF-8. None means `message`.
    pub name: Option<Bytes>,
    /// The `data` lines, joined with LF. Valid UTF-8: what was not is U+FFFD.
    pub data: Bytes,
    /// The last `id:` of the stream up to here, UTF-8.
    pub id: Option<Bytes>,
}

impl Event {
    /// What `event:` said, as text.
    pub fn name(&self) -> Option<&str> {
        std::str::from_utf8(self.name.as_deref()?).ok()
    }
}

/// Takes chunks and gives events. Never waits and does no I/O.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// What is left of the chunk in hand.
    chunk: Bytes,
    /// Chunks after it: empty for a caller that takes all events before it pushes again.
    later: VecDeque<Bytes>,
    /// What came of the line whose end is in a chunk to come.
    line: Vec<u8>,
    /// The last line ended with CR, so that a LF at once belongs to it.
    after_return: bool,
    at_start: bool,
    name: Option<Bytes>,
    data: Data,
    id: Option<Bytes>,
    reconnection_time: Option<Duration>,
}

/// The data of an event that is not dispatched yet.
#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    Line(Bytes),
    Lines(Vec<u8>),
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Decoder {
    /// A decoder for one stream from its first byte. An event with the line that is being read may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            chunk: Bytes::new(),
            later: VecDeque::new(),
            line: Vec::new(),
            after_return: false,
            at_start: true,
            name: None,
            data: Data::None,
            id: None,
            reconnection_time: None,
        }
    }

    /// Takes the next bytes of the stream. Take all events that they hold before the next push, or the chunks pile up.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            self.later.push_back(chunk);
        }
    }

    /// The next event of what was pushed, or none until more is pushed.
    ///
    /// # Errors
    /// `InvalidResponse`, final, if an event or a line is larger than the limit, now and whenever it is asked again: the stream cannot be
    /// read any further.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        while let Some(line) = self.next_line()? {
            let event = self.read(line);
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// The event that the stream ended in, if there is one. To be asked once, when [`next_event`](Self::next_event) gives none
    /// and no more bytes come.
    ///
    /// Whether a server forgot the last empty line or was cut off cannot be told from here: the data may be half of what was
    /// meant, so a reader that cannot make sense of it has an interrupted stream, not a broken answer.
    pub fn finish(&mut self) -> Option<Event> {
        let line = mem::take(&mut self.line);
        if !line.is_empty() {
            self.read(line.into());
        }
        self.dispatch()
    }

    /// Whether an event has begun and not ended. A comment is none.
    pub fn is_within_event(&self) -> bool {
        !matches!(self.data, Data::None) || self.line.first().is_some_and(|first| *first != b':')
    }

    /// How long the server wants to be left alone before a new connection, from its last `retry:`.
    pub fn reconnection_time(&self) -> Option<Duration> {
        self.reconnection_time
    }

    /// The next line without its end, if that is there.
    fn next_line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.chunk.is_empty() {
                match self.later.pop_front() {
                    Some(chunk) => self.chunk = chunk,
                    None => return Ok(None),
                }
                continue;
            }
            if mem::take(&mut self.after_return) && self.chunk.starts_with(b"\n") {
                self.chunk.advance(1);
                continue;
            }
            let end = memchr2(b'\n', b'\r', &self.chunk);
            self.check(end.unwrap_or(self.chunk.len()))?;
            let Some(end) = end else {
                self.line.extend_from_slice(&self.chunk);
                self.chunk.clear();
                continue;
            };
            let rest = self.chunk.split_to(end);
            self.after_return = self.chunk.starts_with(b"\r");
            self.chunk.advance(1);
            if self.line.is_empty() {
                return Ok(Some(rest));
            }
            self.line.extend_from_slice(&rest);
            return Ok(Some(mem::take(&mut self.line).into()));
        }
    }

    /// Whether `more` bytes of the line in hand keep within the limit with all that is held for the event.
    fn check(&self, more: usize) -> Result<(), Error> {
        let held = self.data.len() + self.name.as_ref().map_or(0, Bytes::len) + self.line.len();
        if held.saturating_add(more) <= self.limit {
            return Ok(());
        }
        let summary = format!("the stream cannot be read: an event in it is larger than {} bytes", self.limit);
        Err(Error::new(Kind::InvalidResponse, summary).verdict_is(Verdict::Final))
    }

    /// Reads one line; an empty one may give an event.
    fn read(&mut self, mut line: Bytes) -> Option<Event> {
        if mem::take(&mut self.at_start) && line.starts_with(BYTE_ORDER_MARK) {
            line.advance(BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = memchr(b':', &line).unwrap_or(line.len());
        match line.get(..colon) {
            Some(b"data") => self.data.add(value(line, colon)),
            Some(b"event") => self.name = Some(utf8(value(line, colon))).filter(|name| !name.is_empty()),
            Some(b"id") => {
                let id = value(line, colon);
                if memchr(0, &id).is_none() {
                    // It is kept for the whole stream, and must not keep the chunk alive that it came in.
                    self.id = (!id.is_empty()).then(|| utf8(Bytes::copy_from_slice(&id)));
                }
            }
            Some(b"retry") => {
                if let Some(milliseconds) = digits(&value(line, colon)) {
                    self.reconnection_time = Some(Duration::from_millis(milliseconds));
                }
            }
            // A comment, or a field that nobody knows.
            _ => {}
        }
        None
    }

    /// The event that is complete now, if it has data.
    fn dispatch(&mut self) -> Option<Event> {
        let name = self.name.take();
        let data = match mem::take(&mut self.data) {
            Data::None => return None,
            Data::Line(line) => line,
            Data::Lines(lines) => lines.into(),
        };
        Some(Event { name, data: utf8(data), id: self.id.clone() })
    }
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Line(line) => line.len(),
            Self::Lines(lines) => lines.len(),
        }
    }

    fn add(&mut self, line: Bytes) {
        *self = match mem::take(self) {
            Self::None => Self::Line(line),
            Self::Line(first) => Self::Lines([&*first, b"\n", &*line].concat()),
            Self::Lines(mut lines) => {
                lines.push(b'\n');
                lines.extend_from_slice(&line);
                Self::Lines(lines)
            }
        };
    }
}

/// What follows a field's colon, without one space.
fn value(mut line: Bytes, colon: usize) -> Bytes {
    line.advance((colon + 1).min(line.len()));
    if line.starts_with(b" ") {
        line.advance(1);
    }
    line
}

/// The same text with U+FFFD for what is not UTF-8. Line by line this gives what decoding the whole stream first would: the ends
/// of lines are ASCII, which is never part of a longer sequence.
fn utf8(text: Bytes) -> Bytes {
    if std::str::from_utf8(&text).is_ok() { text } else { String::from_utf8_lossy(&text).into_owned().into() }
}

/// A number of ASCII digits alone.
fn digits(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, StreamExt, stream};
    use proptest::prelude::*;
    use sse_stream::SseByteStream;

    use super::*;

    fn take(decoder: &mut Decoder) -> Vec<Event> {
        std::iter::from_fn(|| decoder.next_event().unwrap()).collect()
    }

    /// All events of the chunks, the one that the stream ends in included.
    fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (events, refused) = decode_within(LIMIT, chunks);
        assert!(!refused);
        events
    }

    /// The events before the first that is too large, and whether there is such a one.
    fn decode_within<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, bool) {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(Bytes::copy_from_slice(chunk));
            loop {
                match decoder.next_event() {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(_) => return (events, true),
                }
            }
        }
        events.extend(decoder.finish());
        (events, false)
    }

    fn event(name: &str, data: &str, id: &str) -> Event {
        let some = |text: &str| (!text.is_empty()).then(|| Bytes::copy_from_slice(text.as_bytes()));
        Event { name: some(name), data: Bytes::copy_from_slice(data.as_bytes()), id: some(id) }
    }

    fn data_of(stream: &[u8]) -> Vec<String> {
        decode([stream]).into_iter().map(|event| String::from_utf8(event.data.to_vec()).unwrap()).collect()
    }

    #[test]
    fn follows_the_grammar_of_the_standard() {
        let cases: [(&[u8], &[&str]); 21] = [
            (b"data: a\n\n", &["a"]),
            (b"data:a\n\ndata:  b\n\n", &["a", " b"]),
            (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", &["a", "b", "c"]),
            (b"data: a\ndata: b\ndata\ndata: c\n\n", &["a\nb\n\nc"]),
            (b"data\n\n", &[""]),
            (b"data:\n\n", &[""]),
            (b"data\ndata\n\n", &["\n"]),
            (b": a comment\n\n:\n\ndata: a\n: inside\n\n", &["a"]),
            (b"event: a\n\ndata: b\n\n", &["b"]),
            (b"\n\n\n\r\r\n", &[]),
            (b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n", &["a"]),
            (b"\xEF\xBB\xBF\xEF\xBB\xBFdata: a\n\n", &[]),
            (b"\xEF\xBB\xBF", &[]),
            (b"datum: a\nDATA: b\n data: c\ndata : d\n\n", &[]),
            (b"data: {\"a\": \"b:c\"}\n\n", &["{\"a\": \"b:c\"}"]),
            (b"data: a\xFFb\xE2\x82\n\n", &["a\u{fffd}b\u{fffd}"]),
            (b"data: a\0b\n\n", &["a\0b"]),
            // What the stream ends in.
            (b"data: a", &["a"]),
            (b"data: a\n", &["a"]),
            (b"data: a\r", &["a"]),
            (b"data: a\n\nevent: b", &["a"]),
        ];
        for (stream, expected) in cases {
            assert_eq!(data_of(stream), expected, "{:?}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn an_events_name_is_its_own_and_an_id_stays() {
        assert_eq!(
            decode([
                &b"event: a\nid: 1\ndata: x\n\ndata: y\n\nid: 2\n\nid: 3\0\nevent:\ndata: z\n\nid\ndata: w\n\n"[..]
            ]),
            [event("a", "x", "1"), event("", "y", "1"), event("", "z", "2"), event("", "w", "")]
        );
    }

    #[test]
    fn reads_the_reconnection_time_from_digits_alone() {
        let mut decoder = Decoder::default();
        decoder.push(Bytes::from_static(
            b"retry: 1500\nretry: 1.5\nretry: -1\nretry: +1\nretry:\nretry: 99999999999999999999\n",
        ));
        assert!(decoder.next_event().unwrap().is_none());
        assert_eq!(decoder.reconnection_time(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_carriage_return_ends_a_line_before_it_is_known_what_follows() {
        let mut decoder = Decoder::default();
        decoder.push(Bytes::from_static(b"data: a\r\n\r"));
        assert_eq!(take(&mut decoder), [event("", "a", "")]);
        decoder.push(Bytes::from_static(b"\ndata: b\r"));
        decoder.push(Bytes::new());
        decoder.push(Bytes::from_static(b"\n\r"));
        assert_eq!(take(&mut decoder), [event("", "b", "")]);
    }

    #[test]
    fn comments_alone_give_no_event() {
        let mut decoder = Decoder::new(64);
        for _ in 0..1000 {
            decoder.push(Bytes::from_static(b": keep-alive\n"));
            assert!(decoder.next_event().unwrap().is_none());
        }
        decoder.push(Bytes::from_static(b"data: a\n\n"));
        assert_eq!(take(&mut decoder), [event("", "a", "")]);
    }

    #[test]
    fn an_event_within_one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"event: a\ndata: hello\n\n");
        let mut decoder = Decoder::default();
        decoder.push(chunk.clone());
        let event = decoder.next_event().unwrap().unwrap();
        assert_eq!(event.data.as_ptr(), chunk.slice(15..).as_ptr());
        assert_eq!(event.name.unwrap().as_ptr(), chunk.slice(7..).as_ptr());
    }

    #[test]
    fn keeps_chunks_that_are_pushed_before_the_events_are_taken() {
        let mut decoder = Decoder::default();
        for chunk in ["data: a\n\nda", "ta: b\n", "\ndata: c\n\n"] {
            decoder.push(Bytes::from_static(chunk.as_bytes()));
        }
        assert_eq!(take(&mut decoder), [event("", "a", ""), event("", "b", ""), event("", "c", "")]);
    }

    #[test]
    fn refuses_what_is_larger_than_the_limit_and_holds_no_more() {
        let endless: [&[u8]; 4] = [b"data: aaaa", b"data: aaaa\n", b"data\n", b": aaaa"];
        for piece in endless {
            let mut decoder = Decoder::new(1000);
            let refused = (0..).find_map(|_| {
                decoder.push(Bytes::from_static(piece));
                decoder.next_event().err()
            });
            assert_eq!(refused.map(|error| error.kind()), Some(Kind::InvalidResponse), "{piece:?}");
            assert!(decoder.next_event().unwrap_err().to_string().contains("larger than 1000 bytes"));
            assert!(decoder.data.len() + decoder.line.len() <= 1000);
        }
    }

    #[test]
    fn takes_an_event_of_just_the_limit() {
        let stream = [&b"data:"[..], &[b'a'; 95], b"\n\n"].concat();
        for (limit, fits) in [(100, true), (99, false)] {
            let mut decoder = Decoder::new(limit);
            decoder.push(stream.clone().into());
            assert_eq!(decoder.next_event().is_ok(), fits);
        }
    }

    /// Pieces of streams: whatever the grammar knows, and what it does not.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof!["[a-z:\\[\\] ]{0,8}", "[é€😀\u{feff}\u{2028}]{0,3}"];
        let field =
            prop_oneof![6 => Just("data"), 5 => prop::sample::select(vec!["event", "id", "retry", "", "other"])];
        let colon = prop_oneof![Just(": "), Just(":"), Just(":  "), Just("")];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just("\n\n"), Just("\r\n\r\n"), Just("\r\r")];
        let line = (field, colon, text, end).prop_map(|(field, colon, text, end)| [field, colon, &text, end].concat());
        (prop_oneof![9 => Just(""), 1 => Just("\u{feff}")], prop::collection::vec(line, 0..20))
            .prop_map(|(mark, lines)| [mark, &lines.concat()].concat().into_bytes())
    }

    /// A stream in pieces whose lengths are taken from `cuts` in turn.
    fn cut<'a>(mut stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for length in cuts.iter().cycle() {
            let (piece, rest) = stream.split_at((*length).min(stream.len()));
            pieces.push(piece);
            stream = rest;
            if stream.is_empty() {
                break;
            }
        }
        pieces
    }

    /// What the crate `sse-stream` reads, as the standard asks: blocks without data are no events, and an id stays.
    fn by_sse_stream(stream: &[u8]) -> Vec<Event> {
        let mut last_id = None;
        let chunks = stream::iter([Ok::<_, Infallible>(Bytes::copy_from_slice(stream))]);
        let blocks: Vec<_> = SseByteStream::new(chunks).collect().now_or_never().unwrap();
        let events = blocks.into_iter().map(Result::unwrap).filter_map(|block| {
            last_id = block.id.or(last_id.take());
            let some = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Bytes::from);
            Some(Event { name: some(block.event), data: block.data?.into(), id: some(last_id.clone()) })
        });
        events.collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_cut_of_a_stream_gives_the_same_events(
            stream in prop_oneof![streams(), prop::collection::vec(any::<u8>(), 0..200)],
            cuts in prop::collection::vec(1..40_usize, 1..10),
            limit in prop_oneof![Just(LIMIT), 0..40_usize],
        ) {
            let whole = decode_within(limit, [&stream[..]]);
            prop_assert_eq!(&decode_within(limit, cut(&stream, &cuts)), &whole);
            prop_assert_eq!(&decode_within(limit, cut(&stream, &[1])), &whole);
        }

        #[test]
        fn reads_what_another_decoder_reads(mut stream in streams()) {
            // It drops what is not ended by an empty line.
            stream.extend(b"\n\n");
            prop_assert_eq!(decode([&stream[..]]), by_sse_stream(&stream));
        }

        #[test]
        fn gives_only_valid_utf8(stream: Vec<u8>) {
            for event in decode([&[b"data:"[..].to_vec(), stream].concat()[..]]) {
                prop_assert!(std::str::from_utf8(&event.data).is_ok());
            }
        }
    }
}
