//! JSON that a strict parser refuses but a paid answer may come in.
//!
//! Models cut off in the middle of an emoji make servers send a lone surrogate (`"\ud83d"`), which is legal JSON text but no
//! Unicode; others send bytes that are not UTF-8. Both become U+FFFD. Duplicate keys keep the last one. `NaN` and `Infinity`, which
//! Python's own writer puts where a log probability is none, and numbers beyond a double become `null`. Everything else that is not
//! JSON stays an error.

use std::borrow::Cow;

use serde_json::Value;

/// Parses `body`, replacing what cannot be Unicode.
///
/// # Errors
/// What serde says, if it is not JSON even so.
pub fn parse(body: &[u8]) -> Result<Value, serde_json::Error> {
    let text = String::from_utf8_lossy(body);
    let text = replace_lone_surrogates(text.trim_start_matches('\u{feff}'));
    serde_json::from_str(&text).or_else(|error| match replace_odd_numbers(&text) {
        Cow::Owned(repaired) => serde_json::from_str(&repaired),
        Cow::Borrowed(_) => Err(error),
    })
}

/// Outside of strings, `NaN`, `Infinity` and what is too large for a double become `null`.
fn replace_odd_numbers(text: &str) -> Cow<'_, str> {
    let is_word = |character: char| character.is_ascii_alphanumeric() || matches!(character, '+' | '-' | '.');
    let mut repaired = String::new();
    let mut copied = 0;
    let mut rest = text;
    while let Some(start) = rest.find(|character| character == '"' || is_word(character)) {
        rest = rest.get(start..).unwrap_or_default();
        let length =
            if rest.starts_with('"') { string_length(rest) } else { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) };
        let (word, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        if is_odd_number(word) {
            let place = text.len() - rest.len();
            repaired.push_str(text.get(copied..place).unwrap_or_default());
            repaired.push_str("null");
            copied = place + word.len();
        }
        rest = after;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    repaired.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(repaired)
}

/// Of the string that `text` begins with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| end + 2)
}

fn is_odd_number(word: &str) -> bool {
    match word.strip_prefix('-').unwrap_or(word) {
        "NaN" | "Infinity" => true,
        // Rust reads words like "inf" as numbers, too.
        number => {
            number.starts_with(|first: char| first.is_ascii_digit()) && number.parse().is_ok_and(f64::is_infinite)
        }
    }
}

/// Every `\uD800`–`\uDFFF` escape without its partner becomes `\ufffd`.
fn replace_lone_surrogates(text: &str) -> Cow<'_, str> {
    let mut repaired = String::new();
    let mut copied = 0;
    let mut position = 0;
    while let Some(found) = text.get(position..).and_then(|rest| rest.find('\\')) {
        let escape = position + found;
        match code_unit(text, escape) {
            Some(0xD800..=0xDBFF) if matches!(code_unit(text, escape + 6), Some(0xDC00..=0xDFFF)) => {
                position = escape + 12;
            }
            Some(0xD800..=0xDFFF) => {
                repaired.push_str(text.get(copied..escape).unwrap_or_default());
                repaired.push_str("\\ufffd");
                position = escape + 6;
                copied = position;
            }
            // Any other escape is a backslash and one character, which may itself be a backslash.
            _ => {
                position =
                    escape + 1 + text.get(escape + 1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            }
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    repaired.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(repaired)
}

/// The code unit of the `\uXXXX` escape that starts at `position`.
fn code_unit(text: &str, position: usize) -> Option<u16> {
    let digits = text.get(position..position + 6)?.strip_prefix("\\u")?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lone_surrogate_becomes_the_replacement_character() {
        for (body, expected) in [
            (r#""a\ud83d""#, "a\u{fffd}"),
            (r#""\ude00b""#, "\u{fffd}b"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\ud83dé\ud83d""#, "\u{fffd}é\u{fffd}"),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_become_the_replacement_character() {
        assert_eq!(parse(b"\"a\xffb\"").unwrap(), "a\u{fffd}b");
    }

    #[test]
    fn skips_a_byte_order_mark_and_keeps_the_last_of_duplicate_keys() {
        assert_eq!(parse("\u{feff}{\"a\":1,\"a\":2}".as_bytes()).unwrap(), serde_json::json!({"a": 2}));
    }

    proptest! {
        #[test]
        fn leaves_every_valid_text_as_it_is(text in "\\PC*") {
            let body = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(parse(body.as_bytes()).unwrap(), Value::String(text));
        }

        #[test]
        fn never_panics_on_any_bytes(body: Vec<u8>) {
            let _ = parse(&body);
        }

        #[test]
        fn makes_valid_text_of_any_run_of_escapes(units in prop::collection::vec(any::<u16>(), 0..20)) {
            let escapes: Vec<_> = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let body = format!("\"{}\"", escapes.concat());
            prop_assert_eq!(parse(body.as_bytes()).unwrap(), String::from_utf16_lossy(&units));
        }
    }

    #[test]
    fn odd_numbers_become_null_and_texts_stay() {
        let read = |text: &str| parse(text.as_bytes()).ok();
        assert_eq!(read("[NaN,-Infinity,Infinity,1e400,-1e999]"), Some(json!([null, null, null, null, null])));
        assert_eq!(read(r#"{"NaN":"NaN \" Infinity","a":NaN}"#), Some(json!({"NaN": "NaN \" Infinity", "a": null})));
        assert_eq!(read(r#"["é",1e308,NaN]"#), Some(json!(["é", 1e308, null])));
        for none in ["[nan]", "[inf]", "[infinity]", "[NaN", "NaNa", "[+1e400]", "[1e400x]", "\"NaN", "[\"\\"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_json_is_not_changed(text in "[\\[\\]{}:,\"\\\\eNaInfity0-9.+ é-]{0,30}") {
            let strict: Option<Value> = serde_json::from_str(&text).ok();
            let read = parse(text.as_bytes()).ok();
            prop_assert!(strict.is_none() || strict == read);
        }
    }
}
