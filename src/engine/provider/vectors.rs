//! Embeddings at the speed of the wire: the body becomes one block of 32-bit floats, with no list in between.
//!
//! The body's frame (objects, their fields, whatever else a server adds) is small and left to `serde_json`; its vectors are all of
//! the bytes and are read by hand. Base64 is found by its closing quote and decoded where it lies; numbers are read as they stand,
//! once, straight to 32 bits. Both are twice as fast or more than through `serde_json`, which looks at every byte of a string
//! and makes 64-bit numbers of every list (128 vectors of 1536 numbers on two shared cores: base64 0.3 ms against 0.75, numbers
//! 7-10 ms against 15).
//!
//! Whatever was asked for, either form is read. A vector belongs to the input that its `index` names.

use std::borrow::Cow;

use base64_simd::{Out, STANDARD};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::embeddings::{not_embeddings, one_each};
use super::object::any_usage;
use crate::engine::error::Error;
use crate::engine::types::{Usage, Vectors};

/// The longest vector that is believed: ten times the longest of any model known. Memory for all rows is taken by its length.
const MOST_DIMENSIONS: usize = 65_536;

/// Bytes that take about 2 ms, of base64 and of lists of numbers.
const LONG: usize = 4 << 20;
const LONG_LISTS: usize = 256 << 10;
/// Within so many bytes the first vector begins.
const LOOKED_THROUGH: usize = 16 << 10;

/// Why a body cannot be read.
type Read<T> = Result<T, String>;

/// Reads embeddings.
///
/// # Errors
/// `InvalidResponse`, retryable, if they are none, are not all of one length, or do not belong to inputs one by one.
pub fn parse_vectors(body: &[u8]) -> Result<Vectors, Error> {
    read(body).map_err(|why| not_embeddings(body, &why))
}

/// Whether reading `body` takes milliseconds, which whoever has something else to do should not wait for.
pub fn takes_long(body: &[u8]) -> bool {
    body.len() > LONG || (body.len() > LONG_LISTS && has_lists(body))
}

fn has_lists(body: &[u8]) -> bool {
    const NAME: &[u8] = b"\"embedding\"";
    let start = body.get(..LOOKED_THROUGH).unwrap_or(body);
    // It may also be the name of what kind of object this is.
    let value = |place: usize| start.get(place + NAME.len()..)?.trim_ascii_start().strip_prefix(b":");
    let mut values = memchr::memmem::find_iter(start, NAME).filter_map(value);
    values.next().is_some_and(|value| value.trim_ascii_start().starts_with(b"["))
}

/// Refuses embeddings, read of `body`, of another number than that of the inputs.
///
/// # Errors
/// `InvalidResponse`, retryable.
pub fn check_count(vectors: &Vectors, inputs: usize, body: &[u8]) -> Result<(), Error> {
    one_each(vectors.inputs.len(), inputs, body)
}

fn read(body: &[u8]) -> Read<Vectors> {
    let mut reader = Reader { rest: body };
    let mut rows = Rows { body_bytes: body.len(), ..Rows::default() };
    let mut vectors = Vectors::default();
    let mut has_data = false;
    reader.object(|reader, field| {
        match field {
            "data" => {
                has_data = true;
                reader.array(|reader| rows.read(reader))?;
            }
            "model" => reader.value::<Value>()?.as_str().unwrap_or_default().clone_into(&mut vectors.model),
            "usage" => vectors.usage = usage(&reader.value()?),
            "error" if !reader.value::<Value>()?.is_null() => return Err("it has an error".to_owned()),
            "error" => {}
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    if !has_data {
        return Err("it has no \"data\"".to_owned());
    }
    if reader.peek().is_some() {
        return Err("more follows its end".to_owned());
    }
    rows.check_inputs()?;
    let Rows { numbers, dimensions, inputs, is_base64, .. } = rows;
    Ok(Vectors { numbers, dimensions, inputs, is_base64, ..vectors })
}

/// Tokens; some count only the total, and an embedding has no answer besides its prompt.
fn usage(said: &Value) -> Option<Usage> {
    any_usage(said).or_else(|| {
        let total_tokens = said.get("total_tokens")?.as_u64()?;
        Some(Usage { prompt_tokens: total_tokens, completion_tokens: 0, total_tokens })
    })
}

/// The vectors so far.
#[derive(Default)]
struct Rows {
    body_bytes: usize,
    numbers: Vec<f32>,
    dimensions: usize,
    inputs: Vec<u32>,
    is_base64: bool,
    /// Bytes of one vector, before they are numbers.
    bytes: Vec<u8>,
}

impl Rows {
    fn read(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        let (before, bytes_before) = (self.numbers.len(), reader.rest.len());
        let position = self.inputs.len() as u32;
        let mut index = Some(position);
        reader.object(|reader, field| {
            match field {
                "index" => {
                    index = reader.value::<Option<u64>>()?.map_or(Some(position), |index| u32::try_from(index).ok());
                }
                // A second one takes the first one's place, as in any JSON object.
                "embedding" => {
                    self.numbers.truncate(before);
                    self.vector(reader)?;
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        let count = self.numbers.len() - before;
        if before == 0 && self.inputs.is_empty() {
            self.dimensions = count;
            // About as many more, by the first one's share of the body.
            let bytes = bytes_before.saturating_sub(reader.rest.len()).max(1);
            self.numbers.reserve_exact(count.saturating_mul(self.body_bytes / bytes));
        }
        if count == 0 || count > MOST_DIMENSIONS {
            return Err(format!("embedding {position} has {count} numbers"));
        }
        if count != self.dimensions {
            return Err(format!("embedding {position} has {count} numbers and the first {}", self.dimensions));
        }
        self.inputs.push(index.ok_or("an embedding has no index that can be")?);
        Ok(())
    }

    fn vector(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        match reader.peek() {
            Some(b'[') => reader.numbers(&mut self.numbers),
            Some(b'"') => {
                self.is_base64 = true;
                let text = reader.string()?;
                self.decode(&text)
            }
            _ => Err("an embedding is neither a list of numbers nor base64".to_owned()),
        }
    }

    fn decode(&mut self, text: &[u8]) -> Read<()> {
        // Longer than the bytes that it says.
        self.bytes.resize(text.len(), 0);
        let bytes = STANDARD
            .decode(text, Out::from_slice(&mut self.bytes))
            .map_err(|_| "an embedding is no base64".to_owned())?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err("an embedding's base64 is cut within a number".to_owned());
        }
        self.numbers.extend(numbers.iter().map(|number| f32::from_le_bytes(*number)));
        Ok(())
    }

    /// Every input has one: as many rows as inputs, and no input twice.
    fn check_inputs(&self) -> Read<()> {
        let count = self.inputs.len();
        let mut is_taken = vec![false; count];
        for index in &self.inputs {
            match is_taken.get_mut(*index as usize) {
                Some(taken @ false) => *taken = true,
                Some(true) => return Err(format!("two embeddings have the index {index}")),
                None => return Err(format!("an embedding of {count} has the index {index}")),
            }
        }
        Ok(())
    }
}

/// What has not been read of a JSON text.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn skip_byte(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    fn expect(&mut self, byte: u8) -> Read<()> {
        if self.peek() != Some(byte) {
            return Err(format!("{:?} is missing in it", char::from(byte)));
        }
        self.skip_byte();
        Ok(())
    }

    /// A value of which `serde_json` knows the end.
    fn value<T: Deserialize<'a>>(&mut self) -> Read<T> {
        let mut values = serde_json::Deserializer::from_slice(self.rest).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                self.rest = self.rest.get(values.byte_offset()..).unwrap_or_default();
                Ok(value)
            }
            Some(Err(error)) => Err(format!("it cannot be read ({error})")),
            None => Err("it ends early".to_owned()),
        }
    }

    fn skip(&mut self) -> Read<()> {
        self.value::<IgnoredAny>().map(drop)
    }

    /// Each field of an object: `field` reads its value.
    fn object(&mut self, mut field: impl FnMut(&mut Self, &str) -> Read<()>) -> Read<()> {
        self.list(b'{', b'}', |reader| {
            let name = reader.value::<Cow<'_, str>>()?;
            reader.expect(b':')?;
            field(reader, &name)
        })
    }

    /// Each item of an array.
    fn array(&mut self, item: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        self.list(b'[', b']', item)
    }

    fn list(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        self.expect(open)?;
        if self.peek() == Some(close) {
            self.skip_byte();
            return Ok(());
        }
        loop {
            item(self)?;
            match self.peek() {
                Some(b',') => self.skip_byte(),
                Some(byte) if byte == close => {
                    self.skip_byte();
                    return Ok(());
                }
                _ => return Err(format!("{:?} is missing in it", char::from(close))),
            }
        }
    }

    /// A string, which is not looked into unless something in it is escaped.
    fn string(&mut self) -> Read<Cow<'a, [u8]>> {
        let inside = self.rest.get(1..).unwrap_or_default();
        let end = memchr::memchr(b'"', inside).ok_or("it ends early")?;
        let (text, after) = inside.split_at(end);
        if memchr::memchr(b'\\', text).is_some() {
            // Some escape every slash.
            return self.value::<String>().map(|text| Cow::Owned(text.into_bytes()));
        }
        self.rest = after;
        self.skip_byte();
        Ok(Cow::Borrowed(text))
    }

    /// A list of numbers, onto the end of `numbers`.
    fn numbers(&mut self, numbers: &mut Vec<f32>) -> Read<()> {
        self.array(|reader| {
            reader.peek();
            // JSON has no infinity, which the parser would take.
            let digits = reader.rest.strip_prefix(b"-").unwrap_or(reader.rest);
            if !digits.first().is_some_and(u8::is_ascii_digit) {
                return Err("a number of an embedding is none".to_owned());
            }
            let (number, length) = fast_float2::parse_partial::<f32, _>(reader.rest)
                .map_err(|_| "a number of an embedding is none".to_owned())?;
            // Too large for 32 bits, it would be an infinity that spoils every distance.
            if !number.is_finite() {
                return Err("a number of an embedding is too large".to_owned());
            }
            numbers.push(number);
            reader.rest = reader.rest.get(length..).unwrap_or_default();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn base64(numbers: &[f32]) -> String {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        STANDARD.encode_to_string(&bytes)
    }

    fn of(body: &str) -> Result<Vectors, String> {
        parse_vectors(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_are_in_the_order_of_the_body_and_know_their_inputs() {
        let body = json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 1, "embedding": base64(&[0.5, -2.0])},
                {"index": 0, "embedding": [0.1, 3]},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        });
        let vectors = of(&body.to_string()).unwrap();
        assert_eq!(vectors.numbers, [0.5, -2.0, 0.1, 3.0]);
        assert_eq!((vectors.inputs, vectors.dimensions), (vec![1, 0], 2));
        assert_eq!((vectors.model.as_str(), vectors.is_base64), ("m", true));
        assert_eq!(vectors.usage.map(|usage| usage.prompt_tokens), Some(7));
    }

    #[test]
    fn white_space_odd_fields_and_any_order_do_no_harm() {
        let body = " {\n \"usage\" : {\"total_tokens\":3} , \"data\" : [ { \"x\" : [[{}]], \"embedding\" : [ -1.5e-3 ,\t0 , 7E2 ] } ] , \
                    \"error\" : null }\r\n ";
        let vectors = of(body).unwrap();
        assert_eq!((vectors.numbers, vectors.inputs), (vec![-1.5e-3, 0.0, 700.0], vec![0]));
        assert_eq!(vectors.usage.map(|usage| usage.prompt_tokens), Some(3));
        assert!(!vectors.is_base64);
    }

    #[test]
    fn escaped_slashes_are_base64_still() {
        let numbers = [f32::from_le_bytes([255, 255, 127, 63])];
        let text = base64(&numbers);
        assert!(text.contains('/'));
        let body = format!("{{\"data\":[{{\"embedding\":\"{}\"}}]}}", text.replace('/', "\\/"));
        assert_eq!(of(&body).unwrap().numbers, numbers);
    }

    #[test]
    fn what_cannot_be_placed_or_read_is_refused() {
        let data = |indices: [i64; 2]| {
            json!({"data": indices.map(|index| json!({"index": index, "embedding": [1]}))}).to_string()
        };
        assert!(of(&data([0, 0])).unwrap_err().contains("two embeddings have the index 0"));
        assert!(of(&data([0, 2])).unwrap_err().contains("an embedding of 2 has the index 2"));
        assert!(of(&data([0, -1])).is_err());
        assert!(of(&data([0, 1 << 40])).is_err());
        let uneven = json!({"data": [{"embedding": [1, 2]}, {"embedding": [1]}]}).to_string();
        assert!(of(&uneven).unwrap_err().contains("embedding 1 has 1 numbers and the first 2"));
        for vector in [
            "\"AAA=\"", "\"!\"", "\"AAAA", "[null]", "[nan]", "[-inf]", "[1e39]", "[1 2]", "[1,]", "[1", "{}", "[]",
            "\"\"", "3",
        ] {
            assert!(of(&format!("{{\"data\":[{{\"index\":0,\"embedding\":{vector}}}]}}")).is_err(), "{vector}");
        }
        for body in
            ["", "[]", "{}", "{\"data\":{}}", "{\"data\":[{}]}", "{\"data\":[]} x", "{\"data\":[]", "{\"data\" []}"]
        {
            assert!(of(body).is_err(), "{body}");
        }
        assert!(of("{\"error\":{\"message\":\"busy\"},\"data\":[]}").unwrap_err().contains("busy"));
    }

    #[test]
    fn lists_take_long_much_sooner_than_base64() {
        let body = |vector: &str, bytes: usize| {
            let data = format!(r#"{{"data":[{{"object":"embedding","index":0,"embedding" : {vector}"#);
            format!("{data}{}", " ".repeat(bytes))
        };
        assert!(takes_long(body("[1,", LONG_LISTS).as_bytes()));
        assert!(!takes_long(body("[1,", LONG_LISTS / 2).as_bytes()));
        assert!(!takes_long(body("\"AAAA", LONG_LISTS).as_bytes()));
        assert!(takes_long(body("\"AAAA", LONG).as_bytes()));
    }

    #[test]
    fn as_many_as_inputs_or_none() {
        let vectors = of("{\"data\":[{\"embedding\":[1]}]}").unwrap();
        assert!(check_count(&vectors, 1, b"").is_ok());
        assert!(check_count(&vectors, 2, b"").unwrap_err().to_string().contains("1 embeddings for 2 inputs"));
    }

    proptest! {
        #[test]
        fn any_number_comes_as_the_nearest_that_there_is(numbers in prop::collection::vec(any::<f32>().prop_filter("finite", |number| number.is_finite()), 1..20)) {
            let wide: Vec<f64> = numbers.iter().map(|number| f64::from(*number)).collect();
            let row = |embedding: Value| json!({"data": [{"embedding": embedding}]}).to_string();
            prop_assert_eq!(&of(&row(json!(wide))).unwrap().numbers, &numbers);
            prop_assert_eq!(&of(&row(json!(numbers))).unwrap().numbers, &numbers);
            prop_assert_eq!(&of(&row(json!(base64(&numbers)))).unwrap().numbers, &numbers);
        }

        #[test]
        fn no_bytes_are_too_odd_to_be_refused(body in prop::collection::vec(any::<u8>(), 0..200), cut in 0..120_usize) {
            let _ = parse_vectors(&body);
            let whole = json!({"data": [{"index": 0, "embedding": [0.25, -1]}, {"index": 1, "embedding": base64(&[1.0, 2.0])}], "model": "m"}).to_string();
            let _ = parse_vectors(whole.as_bytes().get(..cut).unwrap_or_default());
        }
    }
}
