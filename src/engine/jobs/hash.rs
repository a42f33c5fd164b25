//! What tells one request from another, however its JSON is laid out.
//!
//! SHA-256 cut to 128 bits, over the path and the request with the blanks between its parts removed. The order of its fields
//! counts: two requests that differ in it are two for a server's prompt cache, too.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

use ring::digest::{Context, SHA256};

use crate::engine::canonical::without_blanks;

/// Says which request an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestHash(u128);

impl RequestHash {
    /// Of a request to `path`, and of what it takes from the run's defaults.
    pub fn of(path: &str, json: &str, defaults: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(path.as_bytes());
        context.update(b"\0");
        without_blanks(json.as_bytes(), |part| context.update(part));
        if !defaults.is_empty() {
            context.update(b"\0");
            context.update(defaults.as_bytes());
        }
        Self::finish(context)
    }

    /// Of a line that is no request.
    pub fn of_bad_line(line: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"\0bad\0");
        context.update(line);
        Self::finish(context)
    }

    /// Of an item: its id and its request together.
    #[must_use]
    pub fn identity(self, custom_id: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(custom_id.as_bytes());
        context.update(b"\0");
        context.update(&self.0.to_be_bytes());
        Self::finish(context)
    }

    /// The hash that [`fmt::Display`] wrote as `hex`.
    pub fn parse(hex: &str) -> Option<Self> {
        let is_ours = hex.len() == 32 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(hex, 16).ok().filter(|_| is_ours).map(Self)
    }

    /// Its first 64 bits: what is kept in memory, and the name of an item that has none.
    pub fn short(self) -> u64 {
        (self.0 >> 64) as u64
    }

    fn finish(context: Context) -> Self {
        Self(context.finish().as_ref().first_chunk().copied().map_or(0, u128::from_be_bytes))
    }
}

impl fmt::Display for RequestHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// 64 bits of an id, the same for the whole of a run. Two ids that share them are told apart where it matters.
pub(super) fn key_of(custom_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(custom_id.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn of(json: &str) -> RequestHash {
        RequestHash::of("chat/completions", json, "")
    }

    #[test]
    fn only_blanks_between_parts_do_not_count() {
        assert_eq!(of(r#"{"a": "x y", "b" :[1, 2] }"#), of(r#"{"a":"x y","b":[1,2]}"#));
        assert_ne!(of(r#"{"a":"x y"}"#), of(r#"{"a":"xy"}"#));
        assert_ne!(of(r#"{"a":"x \" y"}"#), of(r#"{"a":"x \"y"}"#));
        assert_ne!(of(r#"{"a":1}"#), RequestHash::of("embeddings", r#"{"a":1}"#, ""));
        assert_ne!(of(r#"{"a":1}"#), RequestHash::of("chat/completions", r#"{"a":1}"#, "m"));
    }

    #[test]
    fn is_written_as_it_is_read() {
        let hash = of("{}");
        assert_eq!(RequestHash::parse(&hash.to_string()), Some(hash));
        for other in ["", "abc", "123", "g0000000000000000000000000000000", "+0000000000000000000000000000000"] {
            assert_eq!(RequestHash::parse(other), None, "{other}");
        }
        assert_ne!(hash.identity("a"), hash.identity("b"));
    }

    #[test]
    fn cut_text_ends_the_hash_and_not_the_program() {
        for cut in [r#"{"a"#, r#"{"a\"#, "\"", "\\", ""] {
            of(cut);
        }
    }

    proptest! {
        #[test]
        fn the_layout_of_any_json_does_not_count(texts in prop::collection::vec(any::<String>(), 0..6)) {
            let value = json!({"model": "m", "messages": texts, "n": 1.5, "nested": {"": null}});
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(of(&pretty), of(&value.to_string()));
            let other = Value::from(texts.iter().map(|text| format!("{text} ")).collect::<Vec<_>>());
            let other = json!({"model": "m", "messages": other, "n": 1.5, "nested": {"": null}});
            prop_assert_eq!(of(&pretty) == of(&other.to_string()), texts.is_empty());
        }
    }
}
