//! A stream gives the same events however it is cut, each of them UTF-8 and within the limit.
//!
//! The first byte says how long the pieces are, the rest is the stream.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::engine::sse::{Decoder, Event};

const LIMIT: usize = 256;

/// The events up to the first that is too large, and whether one was.
fn decode(stream: &[u8], read: usize) -> (Vec<Event>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut events = Vec::new();
    for piece in stream.chunks(read) {
        decoder.push(Bytes::copy_from_slice(piece));
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

fuzz_target!(|input: &[u8]| {
    let Some((read, stream)) = input.split_first() else { return };
    let whole = decode(stream, usize::MAX);
    for event in &whole.0 {
        assert!(std::str::from_utf8(&event.data).is_ok());
        // What is not UTF-8 becomes a character of three bytes.
        assert!(event.data.len() <= 3 * LIMIT);
    }
    assert_eq!(decode(stream, 1), whole);
    assert_eq!(decode(stream, usize::from(*read).max(1)), whole);
});
