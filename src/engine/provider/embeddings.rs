//! Embeddings in `OpenAI`'s format: lists of numbers, or base64 of little-endian 32-bit floats, which is a quarter of the bytes.
//!
//! An embedding belongs to the input that its `index` names, wherever in the body it stands. An answer in which an input has
//! none or two is broken: to guess would put vectors beside texts that are not theirs.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::object::any_usage;
use super::openai::{not_an_answer, parse_object};
use crate::engine::error::Error;
use crate::engine::types::{Embedding, Embeddings};

#[derive(Deserialize)]
struct Wire {
    data: Vec<WireEmbedding>,
    model: Option<Value>,
    usage: Option<Value>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct WireEmbedding {
    index: Option<u64>,
    embedding: Vector,
}

struct Vector(Vec<f64>);

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either)
    }
}

struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = Vector;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of numbers, or base64")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vector, A::Error> {
        let mut vector = Vec::new();
        while let Some(number) = numbers.next_element()? {
            vector.push(number);
        }
        Ok(Vector(vector))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vector, E> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|error| E::custom(format!("bad base64 ({error})")))?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(E::custom("base64 that is cut within a number"));
        }
        Ok(Vector(numbers.iter().map(|number| f64::from(f32::from_le_bytes(*number))).collect()))
    }
}

/// Reads embeddings and brings them into the order of their inputs.
///
/// # Errors
/// `InvalidResponse`, retryable, if they are none, or do not belong to inputs one by one.
pub fn parse_embeddings(body: &[u8]) -> Result<Embeddings, Error> {
    let wire = match serde_json::from_slice::<Wire>(body) {
        Ok(Wire { error: Some(_), .. }) => return Err(not_embeddings(body, "it has an error")),
        Ok(wire) => wire,
        Err(error) => return Err(not_embeddings(body, &format!("its \"data\" cannot be read ({error})"))),
    };
    let count = wire.data.len();
    let mut data: Vec<Option<Embedding>> = Vec::new();
    data.resize_with(count, || None);
    for (position, WireEmbedding { index, embedding: Vector(vector) }) in wire.data.into_iter().enumerate() {
        let index = index.unwrap_or(position as u64);
        let place = usize::try_from(index).ok().and_then(|index| data.get_mut(index));
        match place {
            Some(place @ None) => *place = Some(Embedding { position, vector }),
            Some(Some(_)) => return Err(not_embeddings(body, &format!("two embeddings have the index {index}"))),
            None => return Err(not_embeddings(body, &format!("an embedding of {count} has the index {index}"))),
        }
    }
    Ok(Embeddings {
        data: data.into_iter().flatten().collect(),
        model: wire.model.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned(),
        usage: wire.usage.as_ref().and_then(any_usage),
    })
}

/// Refuses embeddings, read of `body`, of another number than that of the inputs.
///
/// # Errors
/// `InvalidResponse`, retryable.
pub fn check_count(embeddings: &Embeddings, inputs: usize, body: &[u8]) -> Result<(), Error> {
    one_each(embeddings.data.len(), inputs, body)
}

pub(super) fn one_each(count: usize, inputs: usize, body: &[u8]) -> Result<(), Error> {
    if count == inputs {
        return Ok(());
    }
    Err(not_an_answer(&format!("it has {count} embeddings for {inputs} inputs"), body))
}

/// What an error says of itself comes before what is missing in it.
pub(super) fn not_embeddings(body: &[u8], why: &str) -> Error {
    parse_object(body).err().unwrap_or_else(|| not_an_answer(why, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(body: &Value) -> Result<Vec<Vec<f64>>, String> {
        let embeddings = parse_embeddings(body.to_string().as_bytes()).map_err(|error| error.to_string())?;
        Ok(embeddings.data.into_iter().map(|embedding| embedding.vector).collect())
    }

    #[test]
    fn both_forms_are_read_and_stand_where_their_index_says() {
        let base64 = BASE64_STANDARD.encode([0.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        let body =
            serde_json::json!({"data": [{"index": 1, "embedding": base64}, {"index": 0, "embedding": [0.1, 3]}]});
        assert_eq!(vectors(&body).unwrap(), [vec![0.1, 3.0], vec![0.5, -2.0]]);
        let embeddings = parse_embeddings(body.to_string().as_bytes()).unwrap();
        assert_eq!(embeddings.data[0].position, 1);
        assert!(check_count(&embeddings, 2, b"").is_ok());
        assert!(check_count(&embeddings, 3, b"").unwrap_err().to_string().contains("2 embeddings for 3 inputs"));
    }

    #[test]
    fn without_an_index_they_are_in_order() {
        let body = serde_json::json!({"data": [{"embedding": [1]}, {"embedding": [2]}]});
        assert_eq!(vectors(&body).unwrap(), [[1.0], [2.0]]);
    }

    #[test]
    fn an_answer_that_cannot_be_placed_is_none() {
        let of = |indices: [i64; 2]| serde_json::json!({"data": indices.map(|index| serde_json::json!({"index": index, "embedding": [1]}))});
        assert!(vectors(&of([0, 0])).unwrap_err().contains("two embeddings have the index 0"));
        assert!(vectors(&of([0, 2])).unwrap_err().contains("an embedding of 2 has the index 2"));
        assert!(vectors(&of([0, -1])).is_err());
        for data in ["\"AAA=\"", "\"AAAAAAA=\"", "\"!\"", "[null]", "{}"] {
            let body = format!("{{\"data\":[{{\"index\":0,\"embedding\":{data}}}]}}");
            assert!(parse_embeddings(body.as_bytes()).is_err(), "{data}");
        }
        assert!(vectors(&serde_json::json!({"error": {"message": "busy"}})).unwrap_err().contains("busy"));
    }
}
