//! Embeddings: vectors of length 1 that a text always gets, and no other text does.

use std::collections::HashMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::api::{Refusal, json, tokens_of};
use super::config::{Base64, Embedding};

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

/// Body of an answer to `POST /v1/embeddings`, in an order drawn from `random` if it is to be shuffled.
pub(super) fn answer(
    body: &[u8],
    usual_model: &str,
    config: Embedding,
    random: &mut fastrand::Rng,
) -> Result<Bytes, Refusal> {
    let request: Request = serde_json::from_slice(body)?;
    let inputs: Vec<_> = match &request.input {
        Input::Text(text) => vec![of_text(text)],
        Input::Texts(texts) => texts.iter().map(|text| of_text(text)).collect(),
        Input::Tokens(tokens) => vec![of_tokens(tokens)],
        Input::TokenLists(lists) => lists.iter().map(|tokens| of_tokens(tokens)).collect(),
    };
    let most = config.inputs;
    if inputs.is_empty() || inputs.len() > most || inputs.iter().any(|(input, _)| input.is_empty()) {
        return Err(Refusal::new(format!("'input' must be 1 to {most} inputs, none of them empty.")));
    }
    if let Some(most) = config.input_tokens
        && inputs.iter().any(|(_, tokens)| *tokens > most)
    {
        return Err(Refusal::new(format!("This model's maximum context length is {most} tokens; an input is longer.")));
    }
    let dimensions = request.dimensions.unwrap_or(config.dimensions);
    if dimensions == 0 {
        return Err(Refusal::new("'dimensions' must be at least 1."));
    }
    let encoding = encoding(request.encoding_format, config)?;
    let embedding = |(index, (input, _)): (usize, &(Vec<u8>, u64))| json!({"object": "embedding", "index": index, "embedding": encode(&vector(input, dimensions), encoding)});
    let mut data: Vec<_> = inputs.iter().enumerate().map(embedding).collect();
    if config.shuffle {
        random.shuffle(&mut data);
    }
    let tokens: u64 = inputs.iter().map(|(_, tokens)| tokens).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let model = request.model.as_deref().unwrap_or(usual_model);
    Ok(json(&json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

fn encoding(asked: Option<Encoding>, config: Embedding) -> Result<Encoding, Refusal> {
    match (asked, config.base64) {
        (Some(Encoding::Base64), Base64::Refused) => Err(Refusal::new("'encoding_format' must be 'float'.")),
        (Some(Encoding::Base64), Base64::Given) => Ok(Encoding::Base64),
        _ => Ok(Encoding::Float),
    }
}

/// What a benchmark's answer depends on: how many inputs, of how many numbers, in which form.
type Kind = (usize, usize, bool);

/// Answers made once and sent again: vectors that say nothing of the texts, since making them is most of the work.
#[derive(Debug, Default)]
pub(super) struct Fixed(HashMap<Kind, Bytes>);

/// The least that has to be read of a request. Most of it is texts, which are counted and not looked at.
#[derive(Deserialize)]
struct Counted {
    input: Vec<IgnoredAny>,
    dimensions: Option<usize>,
    encoding_format: Option<Encoding>,
}

impl Fixed {
    /// The answer to a request with a list of texts.
    pub(super) fn answer(&mut self, body: &[u8], model: &str, config: Embedding) -> Result<Bytes, Refusal> {
        let Counted { input, dimensions, encoding_format } = serde_json::from_slice(body)?;
        let encoding = encoding(encoding_format, config)?;
        let kind = (input.len(), dimensions.unwrap_or(config.dimensions), encoding == Encoding::Base64);
        if let Some(made) = self.0.get(&kind) {
            return Ok(made.clone());
        }
        let inputs: Vec<_> = (0..kind.0).map(|place| format!("text {place}")).collect();
        let format = if kind.2 { "base64" } else { "float" };
        let request = json!({"model": model, "input": inputs, "dimensions": kind.1, "encoding_format": format});
        let made = answer(request.to_string().as_bytes(), model, config, &mut fastrand::Rng::with_seed(0))?;
        self.0.insert(kind, made.clone());
        Ok(made)
    }
}
