//! What an event of a stream costs: CPU time to cut it out, to read it as a chunk, and to add it up; and what a whole answer
//! costs to read.
//!
//! `cargo run --release --no-default-features --example stream` prints one JSON line, in nanoseconds for each event or answer.

#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::error::Error;
use std::hint::black_box;

use bytes::Bytes;
use millstream::engine::provider::accumulate::Accumulator;
use millstream::engine::provider::chunk::ChatChunk;
use millstream::engine::provider::openai::parse_chat;
use millstream::engine::sse::Decoder;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

const EVENTS: u32 = 100_000;
const REPEATS: usize = 7;

/// Bytes of a usual answer.
const ANSWER: usize = 974;

/// What a server sends at once, about: a read of a socket.
const READ: usize = 16 * 1024;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn cpu_nanoseconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// The median CPU time of `work` for each event.
fn median(mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let start = cpu_nanoseconds();
        work()?;
        times.push((cpu_nanoseconds() - start) / f64::from(EVENTS));
    }
    times.sort_by(f64::total_cmp);
    times.get(REPEATS / 2).copied().ok_or_else(|| "no repeat".into())
}

/// Keeps what was made from being optimised away.
#[expect(clippy::unnecessary_wraps, reason = "the last thing that a repeat does")]
fn used<T>(value: T) -> Outcome<()> {
    black_box(value);
    Ok(())
}

fn events(stream: &Bytes, read: usize, mut take: impl FnMut(Bytes) -> Outcome<()>) -> Outcome<()> {
    let mut decoder = Decoder::default();
    let mut position = 0;
    while position < stream.len() {
        let end = (position + read).min(stream.len());
        decoder.push(stream.slice(position..end));
        position = end;
        while let Some(event) = decoder.next_event()? {
            take(event.data)?;
        }
    }
    Ok(())
}

/// An answer of [`ANSWER`] bytes with all the fields of `OpenAI`.
fn answer() -> Bytes {
    let before = r#"{"id":"chatcmpl-B9MBs8CjcvOLm2izJPPV9HcGiBJ2T","object":"chat.completion","created":1741569952,"model":"gpt-4.1-2025-04-14","choices":[{"index":0,"message":{"role":"assistant","content":""#;
    let after = r#"","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_a1b2c3"}"#;
    let words = "every grain of rye comes back as flour\\n".chars().cycle();
    let text: String = words.take(ANSWER - before.len() - after.len()).collect();
    [before, &text, after].concat().into()
}

fn main() -> Outcome<()> {
    let head = r#""id":"chatcmpl-B9MBs8CjcvOLm2izJPPV9HcGiBJ2T","object":"chat.completion.chunk","created":1741569952"#;
    let mut results = Map::new();
    for (name, body) in [
        (
            "openai",
            format!(
                r#"{{{head},"model":"gpt-4.1-2025-04-14","service_tier":"default","system_fingerprint":"fp_a1b2c3","choices":[{{"index":0,"delta":{{"content":" hello"}},"logprobs":null,"finish_reason":null}}],"usage":null,"obfuscation":"aB3dE5"}}"#
            ),
        ),
        (
            "compatible",
            format!(
                r#"{{{head},"model":"smollm2-135m","choices":[{{"index":0,"delta":{{"content":" hello"}},"finish_reason":null}}]}}"#
            ),
        ),
        (
            "reasoning",
            format!(
                r#"{{{head},"model":"deepseek-r1","choices":[{{"index":0,"delta":{{"content":null,"reasoning_content":" hello"}},"logprobs":null,"finish_reason":null}}]}}"#
            ),
        ),
    ] {
        let stream = Bytes::from(format!("data: {body}\n\n").repeat(EVENTS as usize));
        let chunk = Bytes::from(body);
        let decode = median(|| events(&stream, READ, used))?;
        let bytes = median(|| events(&stream, 1, used))?;
        let read = median(|| (0..EVENTS).try_for_each(|_| used(ChatChunk::read(chunk.clone())?)))?;
        let parsed = ChatChunk::read(chunk.clone())?;
        let mut sum = Accumulator::new();
        sum.push(&ChatChunk::read(chunk.clone())?)?;
        let word = median(|| (0..EVENTS).try_for_each(|_| used(sum.push_word(&chunk))))?;
        let add = median(|| {
            let mut accumulator = Accumulator::new();
            for _ in 0..EVENTS {
                accumulator.push(&parsed)?;
            }
            used(accumulator)
        })?;
        let all = median(|| {
            let mut accumulator = Accumulator::new();
            events(&stream, READ, |data| Ok(accumulator.push(&ChatChunk::read(data)?)?))?;
            used(accumulator.finish())
        })?;
        results.insert(
            name.to_owned(),
            serde_json::json!({
                "bytes": chunk.len() + 8, "decode": decode.round(), "decode_byte_by_byte": bytes.round(),
                "read": read.round(), "accumulate": add.round(), "all": all.round(), "word": word.round(),
            }),
        );
    }
    let answer = answer();
    let read = median(|| (0..EVENTS).try_for_each(|_| used(parse_chat(&answer)?)))?;
    results.insert("answer".to_owned(), serde_json::json!({"bytes": answer.len(), "read": read.round()}));
    println!("{}", Value::Object(results));
    Ok(())
}
