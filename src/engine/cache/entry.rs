//! What is kept of an answer, and its bytes in a store that outlives the process.
//!
//! Bytes of a store are never trusted: a disk may have flipped one, another program may have written them. They carry a checksum
//! that the key is part of, so an entry under a wrong key is none, and whatever they are, reading them gives an entry or nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap};
use http::{HeaderName, HeaderValue, StatusCode};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key::Key;
use crate::engine::types::{Receipt, Usage};

/// The first byte of an encoded entry: its format.
const FORMAT: u8 = 1;
/// The second: whether what follows the checksum is compressed.
const PLAIN: u8 = 0;
const LZ4: u8 = 1;

const CHECKSUM: usize = 16;

/// Below this many bytes compression gains less than it costs.
const LEAST_COMPRESSED: usize = 4 * 1024;

/// No answer is larger: the transport ends before.
const MOST_BYTES: usize = 1 << 30;

/// What LZ4 makes of one byte at most.
const MOST_OF_A_BYTE: usize = 255;

/// What an entry takes in memory besides its bytes: about.
const OVERHEAD: usize = 400;

/// Headers that still say something later: of limits, cookies and connections nothing is kept.
static KEPT_HEADERS: [HeaderName; 5] = [
    CONTENT_TYPE,
    DATE,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("request-id"),
    HeaderName::from_static("openai-version"),
];

/// An answer that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Always 2xx.
    pub status: StatusCode,
    /// Those that are kept.
    pub headers: HeaderMap,
    /// In `OpenAI`'s format.
    pub body: Bytes,
    /// As it came, where that is another format.
    pub raw: Option<Bytes>,
}

/// What stands before the bodies.
#[derive(Serialize, Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
    body: usize,
    raw: Option<usize>,
    /// Seconds since 1970; entries of old have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
}

/// What an answer says of itself, as far as it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The model that answered.
    pub model: Option<String>,
    /// What it took.
    pub usage: Option<Usage>,
}

impl Entry {
    /// What is kept of the answer that came with `receipt`.
    pub fn of(receipt: &Receipt) -> Self {
        let kept = KEPT_HEADERS.iter().filter_map(|name| Some((name.clone(), receipt.headers.get(name)?.clone())));
        Self {
            status: receipt.status,
            headers: kept.collect(),
            // Copied: the bytes may be a slice of a larger buffer.
            body: Bytes::copy_from_slice(&receipt.body),
            raw: receipt.raw.as_deref().map(Bytes::copy_from_slice),
        }
    }

    /// The bytes that it takes in memory.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        OVERHEAD + headers + self.body.len() + self.raw.as_ref().map_or(0, Bytes::len)
    }

    /// As a store keeps it under `key`.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let head = Head {
            status: self.status.as_u16(),
            headers: self.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
            body: self.body.len(),
            raw: self.raw.as_ref().map(Bytes::len),
            stored: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()),
        };
        // Text and numbers: writing them cannot fail.
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let length = (head.len() as u32).to_be_bytes();
        let content = [&length, &*head, &*self.body, self.raw.as_deref().unwrap_or_default()].concat();
        let small =
            if content.len() < LEAST_COMPRESSED { None } else { Some(lz4_flex::compress_prepend_size(&content)) };
        let (form, content) = match small {
            Some(small) if small.len() < content.len() => (LZ4, small),
            _ => (PLAIN, content),
        };
        [&[FORMAT, form], &checksum(key, form, &content)[..], &content].concat()
    }

    /// The entry that was kept under `key` as `bytes`; `None` if they are not what was written.
    pub fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        Self::decode_dated(key, bytes).map(|(entry, _)| entry)
    }

    /// The same, and when it was kept, if that was written.
    pub fn decode_dated(key: &Key, bytes: &[u8]) -> Option<(Self, Option<SystemTime>)> {
        let (&[version, form], rest) = bytes.split_first_chunk()?;
        let (sum, content) = rest.split_first_chunk::<CHECKSUM>()?;
        if version != FORMAT || *sum != checksum(key, form, content) {
            return None;
        }
        let content = match form {
            PLAIN => Bytes::copy_from_slice(content),
            LZ4 => {
                let size = u32::from_le_bytes(*content.first_chunk()?);
                // The size is allocated before anything is read.
                if size as usize > MOST_BYTES.min(content.len().saturating_mul(MOST_OF_A_BYTE)) {
                    return None;
                }
                lz4_flex::decompress_size_prepended(content).ok()?.into()
            }
            _ => return None,
        };
        Self::read(&content)
    }

    /// What the answer says of itself.
    pub fn told(&self) -> Told {
        #[derive(Deserialize)]
        struct Answer {
            model: Option<Value>,
            usage: Option<Value>,
        }
        if let Some(head) = self.read_vector(&mut Vec::new()) {
            let count = |tokens| Usage { prompt_tokens: tokens, completion_tokens: 0, total_tokens: tokens };
            return Told { model: Some(head.model.into_owned()), usage: head.tokens.map(count) };
        }
        let Ok(Answer { model, usage }) = serde_json::from_slice(&self.body) else { return Told::default() };
        let usage = usage.and_then(|usage| {
            // Of Responses by other names.
            let count = |names: [&str; 2]| names.iter().find_map(|name| usage.get(name)?.as_u64());
            let prompt_tokens = count(["prompt_tokens", "input_tokens"])?;
            let completion_tokens = count(["completion_tokens", "output_tokens"]).unwrap_or_default();
            let total_tokens = prompt_tokens.saturating_add(completion_tokens);
            Some(Usage { prompt_tokens, completion_tokens, total_tokens })
        });
        Told { model: model.and_then(|model| model.as_str().map(str::to_owned)), usage }
    }

    fn read(content: &Bytes) -> Option<(Self, Option<SystemTime>)> {
        let length = u32::from_be_bytes(*content.first_chunk()?) as usize;
        let begin = size_of::<u32>().checked_add(length)?;
        let head: Head = serde_json::from_slice(content.get(size_of::<u32>()..begin)?).ok()?;
        let middle = begin.checked_add(head.body)?;
        let end = middle.checked_add(head.raw.unwrap_or_default())?;
        if end != content.len() {
            return None;
        }
        let header = |(name, value): (String, String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        let entry = Self {
            status: StatusCode::from_u16(head.status).ok().filter(StatusCode::is_success)?,
            headers: head.headers.into_iter().map(header).collect::<Option<_>>()?,
            body: content.slice(begin..middle),
            raw: head.raw.map(|_| content.slice(middle..end)),
        };
        Some((entry, head.stored.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))))
    }
}

fn checksum(key: &Key, form: u8, content: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Context::new(&SHA256);
    hash.update(key.as_bytes());
    hash.update(&[FORMAT, form]);
    hash.update(content);
    hash.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        Key::from([number; 32])
    }

    fn entry(body: &str, raw: Option<&str>) -> Entry {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Entry { status: StatusCode::OK, headers, body: bytes(body), raw: raw.map(bytes) }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let long = "a long answer ".repeat(10_000);
        for (body, raw) in [("{}", None), ("", Some("")), ("{}", Some("raw")), (&*long, None), (&*long, Some(&*long))] {
            let entry = entry(body, raw);
            let bytes = entry.encode(&key(1));
            assert_eq!(Entry::decode(&key(1), &bytes).as_ref(), Some(&entry));
            assert_eq!(Entry::decode(&key(2), &bytes), None);
            assert!(bytes.len() < LEAST_COMPRESSED + 200, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn an_entry_knows_when_it_was_kept_and_one_of_old_does_not() {
        let (_, stored) = Entry::decode_dated(&key(1), &entry("{}", None).encode(&key(1))).unwrap();
        assert!(stored.unwrap().elapsed().unwrap() < Duration::from_secs(60));
        let head = br#"{"status":200,"headers":[],"body":2,"raw":null}"#;
        let content = [&(head.len() as u32).to_be_bytes(), &head[..], b"{}"].concat();
        let bytes = [&[FORMAT, PLAIN], &checksum(&key(1), PLAIN, &content)[..], &content].concat();
        assert_eq!(Entry::decode_dated(&key(1), &bytes).unwrap().1, None);
    }

    #[test]
    fn an_answer_tells_its_model_and_its_tokens_whatever_their_names() {
        let told = |body: &str| entry(body, None).told();
        let chat = told(r#"{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":4},"choices":[]}"#);
        assert_eq!(chat.model.as_deref(), Some("m"));
        assert_eq!(chat.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((3, 4)));
        let response = told(r#"{"model":7,"usage":{"input_tokens":5}}"#);
        assert_eq!((response.model, response.usage.map(|usage| usage.total_tokens)), (None, Some(5)));
        assert_eq!(told("no JSON"), Told::default());
        let vector = Entry::of_vector("e", Some(6), &[1.0]).unwrap().told();
        assert_eq!((vector.model.as_deref(), vector.usage.map(|usage| usage.total_tokens)), (Some("e"), Some(6)));
    }

    #[test]
    fn no_header_is_kept_that_is_anothers_matter() {
        let headers = ["set-cookie", "x-ratelimit-remaining-requests", "authorization", "x-request-id"];
        let headers = headers.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("v")));
        let receipt = Receipt {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter(headers),
            body: Bytes::from_static(b"{}"),
            raw: None,
            attempts: 1,
            key_id: None,
            queue_time: Duration::ZERO,
            elapsed: Duration::ZERO,
            cached: false,
        };
        let kept = Entry::of(&receipt);
        assert_eq!(kept.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-request-id"]);
    }

    #[test]
    fn no_flipped_bit_and_no_cut_gives_another_answer() {
        for entry in [entry(r#"{"choices":[]}"#, Some("raw")), entry(&"text ".repeat(2000), None)] {
            let bytes = entry.encode(&key(1));
            for place in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << (place % 8);
                assert_eq!(Entry::decode(&key(1), &flipped), None, "byte {place}");
                assert_eq!(Entry::decode(&key(1), &bytes[..place]), None, "cut at {place}");
            }
        }
    }

    #[test]
    fn an_answer_of_one_letter_is_read_however_small_it_was_made() {
        let entry = entry(&"a".repeat(5_000_000), None);
        let bytes = entry.encode(&key(1));
        assert!(bytes.len() < 25_000, "{} bytes", bytes.len());
        assert_eq!(Entry::decode(&key(1), &bytes).as_ref(), Some(&entry));
    }

    #[test]
    fn no_more_memory_is_taken_than_the_bytes_can_become() {
        let content = [&(1_u32 << 30).to_le_bytes()[..], &[0; 60]].concat();
        let bytes = [&[FORMAT, LZ4], &checksum(&key(1), LZ4, &content)[..], &content].concat();
        assert_eq!(Entry::decode(&key(1), &bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_with_a_right_checksum_are_read_without_a_fault(
            form in 0_u8..3,
            content in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [&[FORMAT, form], &checksum(&key(1), form, &content)[..], &content].concat();
            Entry::decode(&key(1), &bytes);
            Entry::decode(&key(1), &content);
        }
    }
}
