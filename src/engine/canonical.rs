//! JSON text as it is hashed, so that what asks for the same has one hash however it is laid out.
//!
//! The text is looked at and never built anew: numbers and escapes count as they are written, since two that are read alike here
//! may not be at the server.

/// Gives `sink` the JSON without the blanks outside of its strings.
pub fn without_blanks(json: &[u8], mut sink: impl FnMut(&[u8])) {
    let mut rest = json;
    while !rest.is_empty() {
        let quote = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        let (outside, string) = rest.split_at(quote);
        outside.split(u8::is_ascii_whitespace).filter(|part| !part.is_empty()).for_each(&mut sink);
        let (string, after) = string.split_at(length_of_string(string));
        if !string.is_empty() {
            sink(string);
        }
        rest = after;
    }
}

/// A member of an object: its name with the quotes, and its value, both as written.
pub type Member<'a> = (&'a [u8], &'a [u8]);

/// The members of the object that `json` is, in their order; `None` if it is none.
pub fn members(json: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut members = Vec::new();
    let mut rest = inside(json, b'{', b'}')?;
    while !rest.is_empty() {
        if rest.first() != Some(&b'"') {
            return None;
        }
        let (name, after) = rest.split_at(length_of_string(rest));
        let after = after.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let (value, after) = after.split_at(length_of_value(after)?);
        members.push((name, value));
        rest = next_part(after)?;
    }
    Some(members)
}

/// The elements of the array that `json` is; `None` if it is none.
pub fn elements(json: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    let mut rest = inside(json, b'[', b']')?;
    while !rest.is_empty() {
        let (value, after) = rest.split_at(length_of_value(rest)?);
        elements.push(value);
        rest = next_part(after)?;
    }
    Some(elements)
}

fn inside(json: &[u8], open: u8, close: u8) -> Option<&[u8]> {
    Some(json.trim_ascii().strip_prefix(&[open])?.strip_suffix(&[close])?.trim_ascii())
}

/// What follows the comma; nothing at the end.
fn next_part(rest: &[u8]) -> Option<&[u8]> {
    let rest = rest.trim_ascii_start();
    if rest.is_empty() {
        return Some(rest);
    }
    Some(rest.strip_prefix(b",")?.trim_ascii_start()).filter(|rest| !rest.is_empty())
}

/// The length of the value that `text` begins with; `None` if there is none or it has no end.
fn length_of_value(text: &[u8]) -> Option<usize> {
    let length = match text.first()? {
        b'"' => length_of_string(text),
        b'{' | b'[' => length_of_nest(text)?,
        _ => text.iter().position(|byte| b",]} \t\r\n".contains(byte)).unwrap_or(text.len()),
    };
    Some(length).filter(|length| *length > 0)
}

fn length_of_nest(text: &[u8]) -> Option<usize> {
    let (mut place, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(place) {
        match byte {
            b'"' => place += length_of_string(text.get(place..)?) - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(place + 1),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        place += 1;
    }
    None
}

/// The length of the string literal that `text` begins with, quotes included.
fn length_of_string(text: &[u8]) -> usize {
    let mut end = 1;
    while let Some(found) = text.get(end..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        end += found;
        match text.get(end) {
            Some(b'\\') => end += 2,
            _ => return end + 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(part: &[u8]) -> &str {
        std::str::from_utf8(part).unwrap()
    }

    #[test]
    fn members_and_elements_are_cut_out_as_they_are_written() {
        let json = br#" { "a" : 1e0 , "b\"}": [ "]", {"c":"}"} ], "d":null } "#;
        let found = members(json).unwrap();
        let found: Vec<_> = found.into_iter().map(|(name, value)| (text(name), text(value))).collect();
        assert_eq!(found, [("\"a\"", "1e0"), (r#""b\"}""#, r#"[ "]", {"c":"}"} ]"#), ("\"d\"", "null")]);
        let found = elements(br#"[1, "two" ,{"three":[3]}]"#).unwrap();
        assert_eq!(found.into_iter().map(text).collect::<Vec<_>>(), ["1", "\"two\"", r#"{"three":[3]}"#]);
        assert_eq!((members(b"{}").unwrap().len(), elements(b"[ ]").unwrap().len()), (0, 0));
    }

    #[test]
    fn what_is_no_object_has_no_members() {
        for bad in
            ["", "[]", "{", "}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1 2}", "{a:1}", "{\"a\":[1}", "{\"a"]
        {
            assert_eq!(members(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["", "{}", "[1,]", "[,]", "[1 2]", "[{]"] {
            assert_eq!(elements(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_members_of_any_object_are_those_that_a_parser_finds(
            names in prop::collection::btree_map(any::<String>(), prop::collection::vec(any::<String>(), 0..3), 0..5),
        ) {
            let value = serde_json::to_value(&names).unwrap();
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let found = members(pretty.as_bytes()).unwrap();
            prop_assert_eq!(found.len(), names.len());
            for (name, inner) in found {
                let name: String = serde_json::from_slice(name).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Value>(inner).unwrap(), serde_json::to_value(&names[&name]).unwrap());
                prop_assert_eq!(elements(inner).unwrap().len(), names[&name].len());
            }
        }

        #[test]
        fn any_bytes_are_looked_through_without_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let (_, _) = (members(&bytes), elements(&bytes));
            without_blanks(&bytes, |_| {});
        }
    }
}
