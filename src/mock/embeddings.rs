//! Embeddings: vectors of length 1 that a text always gets, and no other text does.

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Refusal, json, tokens_of};

/// `OpenAI`'s.
const MOST_INPUTS: usize = 2048;
/// Numbers of a vector, if the request does not say.
const DIMENSIONS: usize = 8;

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    input: Input,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    encoding_format: Option<Encoding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// What is embedded of one input, and its tokens.
fn of_text(text: &str) -> (Vec<u8>, u64) {
    (text.as_bytes().to_vec(), tokens_of(text.len()))
}

fn of_tokens(tokens: &[u32]) -> (Vec<u8>, u64) {
    (tokens.iter().flat_map(|token| token.to_le_bytes()).collect(), tokens.len() as u64)
}

fn vector(input: &[u8], dimensions: usize) -> Vec<f32> {
    // FNV-1a
    let seed = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mut random = fastrand::Rng::with_seed(seed);
    let raw: Vec<f32> = (0..dimensions).map(|_| random.f32() * 2.0 - 1.0).collect();
    let length = raw.iter().map(|number| number * number).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.into_iter().map(|number| number / length).collect()
}

fn encode(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            BASE64_STANDARD.encode(vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()).into()
        }
    }
}

/// Body of an answer to `POST /v1/embeddings`; with `shuffle` the vectors are in an order drawn from it, as they may be.
pub(super) fn answer(body: &[u8], usual_model: &str, shuffle: Option<&mut fastrand::Rng>) -> Result<Bytes, Refusal> {
    let request: Request = serde_json::from_slice(body)?;
    let inputs: Vec<_> = match &request.input {
        Input::Text(text) => vec![of_text(text)],
        Input::Texts(texts) => texts.iter().map(|text| of_text(text)).collect(),
        Input::Tokens(tokens) => vec![of_tokens(tokens)],
        Input::TokenLists(lists) => lists.iter().map(|tokens| of_tokens(tokens)).collect(),
    };
    if inputs.is_empty() || inputs.len() > MOST_INPUTS || inputs.iter().any(|(input, _)| input.is_empty()) {
        return Err(Refusal::new(format!("'input' must be 1 to {MOST_INPUTS} inputs, none of them empty.")));
    }
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if dimensions == 0 {
        return Err(Refusal::new("'dimensions' must be at least 1."));
    }
    let encoding = request.encoding_format.unwrap_or(Encoding::Float);
    let embedding = |(index, (input, _)): (usize, &(Vec<u8>, u64))| json!({"object": "embedding", "index": index, "embedding": encode(&vector(input, dimensions), encoding)});
    let mut data: Vec<_> = inputs.iter().enumerate().map(embedding).collect();
    if let Some(random) = shuffle {
        random.shuffle(&mut data);
    }
    let tokens: u64 = inputs.iter().map(|(_, tokens)| tokens).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let model = request.model.as_deref().unwrap_or(usual_model);
    Ok(json(&json!({"object": "list", "data": data, "model": model, "usage": usage})))
}
