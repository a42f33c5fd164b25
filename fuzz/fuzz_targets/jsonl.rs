//! A file of requests gives the same lines however it is read, and each of them is a request that can be sent or says what is
//! wrong with it.
//!
//! The first byte says how much is read at a time, the second how long a line may be, the rest is the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::engine::jobs::fuzzing::lines;
use millstream::engine::jobs::{Request, Settings};
use serde_json::Value;
use serde_json::value::RawValue;

fn check(request: &Request, text: &[u8]) {
    assert!(!request.name.is_empty());
    match &request.content {
        Err(reason) => assert!(!reason.is_empty()),
        Ok(content) => {
            // A raw value, which takes a lone surrogate and a number of any size as servers do.
            let is_json = |text: &str| serde_json::from_str::<&RawValue>(text).is_ok();
            let shown = String::from_utf8_lossy(text);
            assert!(is_json(&content.body) && content.body.trim_start().starts_with('{'), "{shown} → {}", content.body);
            assert!(content.metadata.as_deref().is_none_or(is_json), "{shown} → {:?}", content.metadata);
            let path = &content.path;
            assert!(!path.contains("://") && !path.chars().any(char::is_control), "{path:?}");
            assert!(path.split('/').all(|segment| segment != ".."), "{path:?}");
            // The body of a line, whatever its form, is a request of its own to the same place.
            if let Ok(Value::Object(body)) = serde_json::from_str::<Value>(&content.body) {
                assert!(body.get("model").is_some(), "{shown} → {}", content.body);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let (&[buffer, longest], file) = (match input.split_first_chunk::<2>() {
        Some(split) => split,
        None => return,
    });
    let (buffer, longest) = (usize::from(buffer).max(1), u64::from(longest).max(1));
    let Ok(whole) = lines(file, longest, file.len() + 1) else { return };
    let Ok(by_pieces) = lines(file, longest, buffer) else { return };
    assert_eq!(by_pieces, whole);
    let mut place = 0;
    for (start, length, is_whole, is_too_long, text) in &whole {
        assert_eq!(*start, place);
        place += length;
        let there = file.get(*start as usize..place as usize).unwrap_or_default();
        assert_eq!(*is_whole, there.ends_with(b"\n"));
        if *is_too_long {
            assert!(text.is_empty() && *length > longest);
        } else {
            assert_eq!(text, there);
        }
    }
    assert_eq!(place, file.len() as u64);
    let settings =
        Settings { model: Some("m".to_owned()), system: Some("s".to_owned()), fields: "\"seed\":1".to_owned() };
    for (number, line) in file.split(|byte| *byte == b'\n').enumerate().take(64) {
        let text = line.trim_ascii();
        let request = settings.read(number as u64 + 1, text);
        check(&request, text);
        assert_eq!(settings.read(number as u64 + 1, text), request);
    }
});
