//! The vector of one text as an entry: a line of JSON that says what it is, and its numbers as bytes.
//!
//! As bytes, since a number takes four of them and is read by copying it; in `OpenAI`'s format it would take six or twenty.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::entry::Entry;

/// What stands before the numbers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head<'a> {
    /// The model that answered.
    #[serde(borrow)]
    pub model: Cow<'a, str>,
    /// The text's, as far as the server told: it counts those of all texts of a request together.
    pub tokens: Option<u64>,
    /// How many numbers follow.
    dimensions: usize,
}

const NUMBER: usize = size_of::<f32>();

impl Entry {
    /// What is kept of a text's vector; `None` if it is none to rely on.
    pub fn of_vector(model: &str, tokens: Option<u64>, numbers: &[f32]) -> Option<Self> {
        if numbers.is_empty() || !numbers.iter().all(|number| number.is_finite()) {
            return None;
        }
        let head = Head { model: model.into(), tokens, dimensions: numbers.len() };
        // Text and numbers: writing them cannot fail.
        let mut body = serde_json::to_vec(&head).unwrap_or_default();
        body.push(b'\n');
        body.reserve_exact(numbers.len() * NUMBER);
        body.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        Some(Self { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from(body), raw: None })
    }

    /// Reads a vector into `numbers`, in place of what is in it; `None` if this is none.
    pub fn read_vector(&self, numbers: &mut Vec<f32>) -> Option<Head<'_>> {
        let end = memchr::memchr(b'\n', &self.body)?;
        let (head, bytes) = (self.body.get(..end)?, self.body.get(end + 1..)?);
        let head: Head<'_> = serde_json::from_slice(head).ok()?;
        let (bytes, rest) = bytes.as_chunks::<NUMBER>();
        if bytes.is_empty() || bytes.len() != head.dimensions || !rest.is_empty() {
            return None;
        }
        numbers.clear();
        numbers.extend(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cache::Key;

    fn read(entry: &Entry) -> Option<(String, Option<u64>, Vec<f32>)> {
        let mut numbers = vec![9.0; 3];
        entry.read_vector(&mut numbers).map(|head| (head.model.into_owned(), head.tokens, numbers))
    }

    #[test]
    fn what_is_no_number_or_no_vector_is_not_kept() {
        for numbers in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY]] {
            assert_eq!(Entry::of_vector("m", None, numbers), None, "{numbers:?}");
        }
        let entry = Entry::of_vector("m", None, &[1.0, 2.0]).unwrap();
        for body in [&entry.body[..entry.body.len() - 1], &entry.body[..entry.body.len() - 4], b"{}", b"{}\n", b""] {
            let other = Entry { body: Bytes::copy_from_slice(body), ..entry.clone() };
            assert_eq!(read(&other), None, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn a_vector_is_read_as_it_was_kept_also_from_a_disk(
            model in "\\PC{0,20}",
            tokens in any::<Option<u64>>(),
            numbers in prop::collection::vec(any::<f32>().prop_filter("finite", |number| number.is_finite()), 1..50),
        ) {
            let entry = Entry::of_vector(&model, tokens, &numbers).unwrap();
            prop_assert_eq!(read(&entry), Some((model, tokens, numbers)));
            let key = Key::from([1; 32]);
            prop_assert_eq!(Entry::decode(&key, &entry.encode(&key)), Some(entry));
        }

        #[test]
        fn any_bytes_are_read_without_a_fault(body in prop::collection::vec(any::<u8>(), 0..20)) {
            let is_one = body.len() == 2 * NUMBER;
            let body = [&b"{\"model\":\"m\",\"tokens\":1,\"dimensions\":2}\n"[..], &body].concat();
            for start in [0, 5, 45] {
                let body = Bytes::copy_from_slice(body.get(start..).unwrap_or_default());
                let entry = Entry { status: StatusCode::OK, headers: HeaderMap::new(), body, raw: None };
                prop_assert_eq!(read(&entry).is_some(), is_one && start == 0);
            }
        }
    }
}
