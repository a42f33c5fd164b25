//! What it costs to make one block of numbers of an answer with embeddings: the engine's reader alone, without a socket.
//!
//! `decode --form base64 --requests 100` reads the answer of 128 vectors of 1536 numbers so many times and prints one JSON line;
//! `benchmarks/peers/decode.py` does the same in Python.

#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::env;
use std::error::Error;
use std::hint::black_box;

use base64_simd::STANDARD;
use millstream::engine::provider::vectors::parse_vectors;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

const ROWS: usize = 128;
const DIMENSIONS: usize = 1536;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    if cfg!(debug_assertions) {
        return Err("this is a debug build; build it with --release".into());
    }
    let (mut form, mut requests) = ("base64".to_owned(), 100);
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--form" if ["base64", "float"].contains(&value.as_str()) => form = value,
            "--requests" => requests = value.parse()?,
            _ => return Err(format!("unknown argument: {name} {value}").into()),
        }
    }
    let body = answer(&form);
    let mut times = Vec::new();
    for _ in 0..requests {
        let start = cpu_microseconds();
        black_box(parse_vectors(&body)?);
        times.push(cpu_microseconds() - start);
    }
    times.sort_by(f64::total_cmp);
    let micros = times.get(times.len() / 2).ok_or("--requests must be at least 1")?;
    let line = json!({
        "peer": format!("engine_{form}"), "requests": requests, "bytes": body.len(),
        "cpu_us_per_request": micros, "rps": 1e6 / micros,
    });
    println!("{line}");
    Ok(())
}

fn answer(form: &str) -> Vec<u8> {
    let number = |place: usize| ((place * 2_654_435_761) % 1_000_003) as f32 / 1_000_003.0 - 0.5;
    let data = (0..ROWS).map(|index| {
        let numbers: Vec<_> = (0..DIMENSIONS).map(|place| number(index * DIMENSIONS + place)).collect();
        let bytes: Vec<_> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        // As short as the number allows, as a server writes it.
        let embedding =
            if form == "float" { format!("{numbers:?}") } else { format!("{:?}", STANDARD.encode_to_string(bytes)) };
        format!(r#"{{"object":"embedding","index":{index},"embedding":{embedding}}}"#)
    });
    let data = data.collect::<Vec<_>>().join(",");
    format!(r#"{{"object":"list","data":[{data}],"model":"m","usage":{{"prompt_tokens":1000,"total_tokens":1000}}}}"#)
        .into()
}

fn cpu_microseconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
