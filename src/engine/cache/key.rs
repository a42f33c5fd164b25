//! What an answer is found by: a hash of everything that could change it.
//!
//! That is who is asked (the API, its URL, its version, the model's name there), as whom (the secrets of the headers, hashed, so
//! that no tenant is given another's answer), and the whole body. What does not change an answer is left out: whether it is
//! streamed, how long it may take, headers that carry no credentials.
//!
//! The order of an object's members says nothing where they are the API's own: in the request, in a message, in a part of its
//! content. Below that (a tool's schema, a tool's input) the model is shown them as they stand, so they are hashed as they stand.

use std::fmt::{self, Write as _};

use ring::digest::{Context, SHA256};

use crate::engine::canonical::{Member, elements, members, without_blanks};

/// Hashed first. A change of what is hashed, or of what is kept, is a change of this, and old entries are not found any more.
const DOMAIN: &[u8] = b"millstream cache 1\0";

/// Members of a request that say how its answer is to come, and nothing of what it says.
const NOT_ASKED: [&[u8]; 2] = [b"\"stream\"", b"\"stream_options\""];

/// Members whose elements are messages.
const MESSAGES: [&[u8]; 2] = [b"\"messages\"", b"\"input\""];

/// Members of a request for vectors that say nothing of the one of a text: the texts themselves, which are hashed each for itself,
/// and the form in which numbers are written.
const NOT_OF_A_TEXT: [&[u8]; 2] = [b"\"input\"", b"\"encoding_format\""];

/// Who is asked and as whom, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked([u8; 32]);

/// What stands for a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// What the vectors of single texts are found by, which one request asks for together: all of it but the text is hashed already.
#[derive(Clone)]
pub struct TextKeys(Context);

/// A request's body, looked at once.
#[derive(Debug)]
pub struct Question<'a> {
    members: Vec<Member<'a>>,
}

impl Asked {
    /// By parts that each matter: the API, the method, the URL, headers that choose a version, the model's name, and what
    /// `credentials` are sent, of whom nothing can be told from it.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>, credentials: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(DOMAIN);
        for part in parts {
            update_with_length(&mut context, part);
        }
        context.update(b"\0credentials\0");
        for part in credentials {
            update_with_length(&mut context, part);
        }
        Self(finish(context))
    }
}

impl<'a> Question<'a> {
    /// The question that `body` asks; `None` if it is no JSON object.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        members(body).map(|mut members| {
            members.retain(|(name, _)| !NOT_ASKED.contains(name));
            // Those of one name stay as they stand: which of them counts is the server's to say.
            members.sort_by_key(|(name, _)| *name);
            Self { members }
        })
    }

    /// Whether it asks for an answer that may be another one each time.
    pub fn asks_for_chance(&self) -> bool {
        let mut temperatures = self.members.iter().filter(|(name, _)| *name == b"\"temperature\"");
        temperatures.any(|(_, value)| {
            let number = std::str::from_utf8(value).ok().and_then(|value| value.parse::<f64>().ok());
            number.is_some_and(|number| number > 0.0)
        })
    }

    /// Its key, where any of `asked` may be asked. `sample` tells several answers to one question apart.
    pub fn key(&self, asked: &mut Vec<Asked>, sample: Option<u64>) -> Key {
        let mut context = begin(asked, sample);
        context.update(b"\0body\0");
        update_members(&mut context, &self.members, |context, name, value| {
            let messages = if MESSAGES.contains(&name) { elements(value) } else { None };
            update_value(context, value, messages, |context, message| {
                update_object(context, message, |context, name, value| {
                    let parts = if name == b"\"content\"" { elements(value) } else { None };
                    update_value(context, value, parts, |context, part| update_object(context, part, update_member));
                });
            });
        });
        Key(finish(context))
    }

    /// The keys of single texts, where it asks for the vectors of several; otherwise as [`Self::key`].
    pub fn texts(&self, asked: &mut Vec<Asked>, sample: Option<u64>) -> TextKeys {
        let mut context = begin(asked, sample);
        context.update(b"\0vector\0");
        let said = self.members.iter().filter(|(name, _)| !NOT_OF_A_TEXT.contains(name));
        update_members(&mut context, said, update_member);
        TextKeys(context)
    }
}

impl TextKeys {
    /// The key of `text`.
    pub fn of(&self, text: &str) -> Key {
        let mut context = self.0.clone();
        context.update(text.as_bytes());
        Key(finish(context))
    }
}

/// What every key begins with.
fn begin(asked: &mut Vec<Asked>, sample: Option<u64>) -> Context {
    asked.sort_unstable();
    asked.dedup();
    let mut context = Context::new(&SHA256);
    context.update(DOMAIN);
    for asked in asked.iter() {
        context.update(&asked.0);
    }
    if let Some(sample) = sample {
        context.update(b"\0sample\0");
        context.update(&sample.to_be_bytes());
    }
    context
}

/// An array of things that each are hashed in their own way, or what is none as it stands.
fn update_value(context: &mut Context, value: &[u8], elements: Option<Vec<&[u8]>>, each: impl Fn(&mut Context, &[u8])) {
    let Some(elements) = elements else { return update_as_written(context, value) };
    context.update(b"[");
    for element in elements {
        each(context, element);
        context.update(b",");
    }
    context.update(b"]");
}

fn update_object(context: &mut Context, json: &[u8], each: impl Fn(&mut Context, &[u8], &[u8])) {
    let Some(mut members) = members(json) else { return update_as_written(context, json) };
    members.sort_by_key(|(name, _)| *name);
    update_members(context, &members, each);
}

fn update_members<'a>(
    context: &mut Context,
    members: impl IntoIterator<Item = &'a Member<'a>>,
    each: impl Fn(&mut Context, &[u8], &[u8]),
) {
    context.update(b"{");
    for (name, value) in members {
        context.update(name);
        context.update(b":");
        each(context, name, value);
        context.update(b",");
    }
    context.update(b"}");
}

fn update_member(context: &mut Context, _name: &[u8], value: &[u8]) {
    update_as_written(context, value);
}

fn update_as_written(context: &mut Context, json: &[u8]) {
    without_blanks(json, |part| context.update(part));
}

/// So that where one part ends and the next begins is hashed, too.
fn update_with_length(context: &mut Context, part: &[u8]) {
    context.update(&(part.len() as u64).to_be_bytes());
    context.update(part);
}

fn finish(context: Context) -> [u8; 32] {
    context.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

impl Key {
    /// The key that [`fmt::Display`] wrote as `hex`.
    pub fn parse(hex: &str) -> Option<Self> {
        let mut key = [0; 32];
        let is_ours = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        for (place, byte) in key.iter_mut().enumerate().filter(|_| is_ours) {
            *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
        }
        is_ours.then(|| Self::from(key))
    }

    /// As a store keeps it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TextKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TextKeys")
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();
        self.0.iter().take(4).try_for_each(|byte| write!(shown, "{byte:02x}"))?;
        write!(formatter, "Key({shown}…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn asked(url: &str, credentials: &str) -> Asked {
        Asked::of([b"openai".as_slice(), url.as_bytes()], [credentials.as_bytes()])
    }

    fn key(body: &str) -> Key {
        Question::read(body.as_bytes()).unwrap().key(&mut vec![asked("https://a.test/v1", "Bearer one")], None)
    }

    fn key_for(mut asked: Vec<Asked>, sample: Option<u64>) -> Key {
        Question::read(br#"{"model":"m"}"#).unwrap().key(&mut asked, sample)
    }

    #[test]
    fn layout_and_the_order_of_the_apis_own_members_do_not_count() {
        let one = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a b"}]}],"seed":1}"#;
        let other = r#"{ "seed": 1, "messages":
            [ {"content": [{"text": "a b", "type": "text"}], "role": "user"} ], "model": "m" }"#;
        assert_eq!(key(one), key(other));
        assert_ne!(key(one), key(&one.replace("a b", "ab")));
    }

    #[test]
    fn how_the_answer_is_to_come_does_not_count() {
        let whole = r#"{"model":"m","messages":[]}"#;
        assert_eq!(key(whole), key(r#"{"model":"m","stream":true,"stream_options":{"x":1},"messages":[]}"#));
    }

    #[test]
    fn the_order_of_messages_and_within_a_schema_counts() {
        let tools = |first: &str, second: &str| {
            format!(r#"{{"tools":[{{"function":{{"parameters":{{"{first}":1,"{second}":1}}}}}}]}}"#)
        };
        assert_ne!(key(&tools("a", "b")), key(&tools("b", "a")));
        assert_ne!(key(r#"{"messages":["a","b"]}"#), key(r#"{"messages":["b","a"]}"#));
    }

    #[test]
    fn every_field_counts_and_no_part_runs_into_the_next() {
        let bodies = [
            r#"{"model":"m"}"#,
            r#"{"model":"n"}"#,
            r#"{"model":"m","seed":1}"#,
            r#"{"model":"m","seed":1.0}"#,
            r#"{"model":"m","seed":12345678901234567890123}"#,
            r#"{"model":"m","seed":12345678901234567890124}"#,
            r#"{"model":"m","top_k":1}"#,
            r#"{"model":"m","model":"m"}"#,
            r#"{"messages":[{"a":1},{"b":1}]}"#,
            r#"{"messages":[{"a":1,"b":1}]}"#,
            r#"{"messages":[["a"],"b"]}"#,
            r#"{"messages":[["a","b"]]}"#,
        ];
        for (place, one) in bodies.iter().enumerate() {
            for other in bodies.iter().skip(place + 1) {
                assert_ne!(key(one), key(other), "{one} {other}");
            }
        }
        assert_ne!(Asked::of([b"ab".as_slice(), b"c"], []), Asked::of([b"a".as_slice(), b"bc"], []));
        assert_ne!(Asked::of([b"a".as_slice()], [b"b".as_slice()]), Asked::of([b"a".as_slice(), b"b"], []));
    }

    #[test]
    fn who_is_asked_as_whom_and_for_which_sample_counts() {
        let a = asked("https://a.test/v1", "Bearer one");
        let others = [asked("https://b.test/v1", "Bearer one"), asked("https://a.test/v1", "Bearer two")];
        for other in others {
            assert_ne!(key_for(vec![a], None), key_for(vec![other], None));
            assert_eq!(key_for(vec![a, other], None), key_for(vec![other, a, other], None));
        }
        assert_ne!(key_for(vec![a], None), key_for(vec![a], Some(0)));
        assert_ne!(key_for(vec![a], Some(1)), key_for(vec![a], Some(0)));
    }

    #[test]
    fn a_texts_key_is_its_own_whatever_stands_beside_it_and_however_numbers_come() {
        let keys = |body: &str, sample| {
            Question::read(body.as_bytes()).unwrap().texts(&mut vec![asked("https://a.test/v1", "Bearer one")], sample)
        };
        let one = keys(r#"{"model":"m","input":["a","b"],"encoding_format":"base64"}"#, None);
        let other = keys(r#"{"encoding_format":"float","model":"m","input":["c"]}"#, None);
        assert_eq!(one.of("a"), other.of("a"));
        assert_ne!(one.of("a"), one.of("b"));
        assert_ne!(one.of("a"), keys(r#"{"model":"m","input":["a"]}"#, Some(1)).of("a"));
        for more in [r#","dimensions":3"#, r#","user":"u""#, r#","input_type":"query""#] {
            assert_ne!(one.of("a"), keys(&format!(r#"{{"model":"m","input":["a"]{more}}}"#), None).of("a"), "{more}");
        }
        let whole = r#"{"model":"m"}"#;
        assert_ne!(key(whole), keys(whole, None).of(""));
        let mut others = vec![asked("https://a.test/v1", "Bearer two")];
        assert_ne!(one.of("a"), Question::read(whole.as_bytes()).unwrap().texts(&mut others, None).of("a"));
    }

    #[test]
    fn only_a_temperature_above_zero_asks_for_chance() {
        let asks = |body: &str| Question::read(body.as_bytes()).unwrap().asks_for_chance();
        for none in [r"{}", r#"{"temperature":0}"#, r#"{"temperature":0.0}"#, r#"{"temperature":null}"#] {
            assert!(!asks(none), "{none}");
        }
        for some in [r#"{"temperature":0.1}"#, r#"{"n":1, "temperature" : 1e0 }"#] {
            assert!(asks(some), "{some}");
        }
    }

    #[test]
    fn what_is_no_object_is_no_question() {
        for body in ["", "[]", "\"a\"", "{\"a\":}"] {
            assert!(Question::read(body.as_bytes()).is_none(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn different_requests_have_different_keys(one in "[ a\"\\\\{}\\[\\],:]{0,8}", other in "[ a\"\\\\{}\\[\\],:]{0,8}") {
            let body = |text: &str| json!({"messages": [{"role": "user", "content": text}], "x": Value::from(text)});
            prop_assert_eq!(key(&body(&one).to_string()) == key(&body(&other).to_string()), one == other);
        }
    }
}
