//! A stream of any provider adds up to the same answer whether its words are read quickly or its chunks whole, and the answer
//! can be read.
//!
//! The first byte says whose it is, the rest is the stream.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::engine::provider::accumulate::{Accumulator, text_in};
use millstream::engine::provider::chunk::ChatChunk;
use millstream::engine::provider::event::{Event, EventKind, EventSum};
use millstream::engine::provider::{Provider, Step, StreamReader};
use millstream::engine::sse::Decoder;

fuzz_target!(|input: &[u8]| {
    let Some((whose, stream)) = input.split_first() else { return };
    let provider = match whose % 3 {
        0 => Provider::OpenAi,
        1 => Provider::Anthropic,
        _ => Provider::Mistral,
    };
    let mut decoder = Decoder::default();
    decoder.push(Bytes::copy_from_slice(stream));
    let mut events = Vec::new();
    while let Ok(Some(event)) = decoder.next_event() {
        events.push(event);
    }
    events.extend(decoder.finish());

    let mut reader = StreamReader::new(provider);
    let (mut quick, mut whole) = (Accumulator::new(), Accumulator::new());
    for event in &events {
        let Step::Chunk(body) = reader.event(event.name(), &event.data) else { continue };
        let Ok(chunk) = ChatChunk::read(body.clone()) else { continue };
        let added = whole.push(&chunk);
        match quick.push_word(&body) {
            Some(word) => assert!(std::str::from_utf8(&word).is_ok() && added.is_ok()),
            None => assert_eq!(quick.push(&chunk).is_ok(), added.is_ok()),
        }
        if added.is_err() {
            return;
        }
        assert_eq!(quick.text(), whole.text());
    }
    assert_eq!(quick.is_complete(), whole.is_complete());
    let text = whole.text().to_owned();
    let (quick, whole) = (quick.finish(), whole.finish());
    assert_eq!(quick, whole);
    assert_eq!(text_in(&whole), text);

    for kind in [EventKind::Completions, EventKind::Responses] {
        let mut sum = EventSum::default();
        for event in &events {
            if let Ok(mut event) = Event::read(kind, event.data.clone())
                && sum.push(&mut event).is_err()
            {
                break;
            }
        }
        let _ = sum.is_complete();
        let _ = sum.finish();
    }
});
