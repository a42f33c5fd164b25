//! A body that should be a chat completion, in each provider's format, is read or refused, and both readings agree.
//!
//! The first byte says whose it is, the rest is the body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream::engine::provider::openai::{parse_chat, parse_models, parse_text};
use millstream::engine::provider::{Provider, to_openai};
use millstream::engine::types::Text;

fuzz_target!(|input: &[u8]| {
    let Some((whose, body)) = input.split_first() else { return };
    let provider = match whose % 3 {
        0 => Provider::OpenAi,
        1 => Provider::Anthropic,
        _ => Provider::Mistral,
    };
    let translated = to_openai(provider, body);
    let body = translated.as_deref().unwrap_or(body);
    let (chat, text) = (parse_chat(body), parse_text(body));
    match (chat, text) {
        (Ok(chat), Ok(text)) => {
            assert!(!chat.choices.is_empty());
            assert_eq!(Text::from(chat), text);
        }
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        (chat, text) => panic!("as a whole {chat:?}, as a text {text:?}"),
    }
    if translated.is_some() {
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok());
    }
    let _ = parse_models(body);
});
