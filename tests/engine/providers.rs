//! The samples of `tests/data/wire` that every provider's requests, answers and streams are written and read by.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use millstream::engine::error::Kind;
use millstream::engine::provider::openai::{parse_chat, parse_text};
use millstream::engine::provider::{ChatTemplate, Provider, Step, StreamReader, to_openai};
use millstream::engine::types::Prompt;
use serde_json::{Map, Value, json};

fn sample(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire").join(name)).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(&sample(name)).unwrap();
    assert!(!cases.is_empty());
    cases
}

fn provider(case: &Value) -> Provider {
    Provider::named(case["provider"].as_str().unwrap()).unwrap()
}

/// The request's body, of the fields and messages of `ask`.
fn body(provider: Provider, ask: &Value, stream: bool) -> Result<Value, millstream::engine::error::Error> {
    let mut fields: Map<String, Value> = ask.as_object().unwrap().clone();
    let prompt = match fields.shift_remove("messages") {
        Some(messages) => Prompt::Messages(messages.to_string()),
        None => Prompt::Text("hi".into()),
    };
    let text = Value::from(fields).to_string();
    let fields = text.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let body = ChatTemplate::new(provider, "m", None, fields)?.body(&prompt, stream)?;
    Ok(serde_json::from_slice(&body).unwrap())
}

#[test]
fn a_request_is_written_in_the_providers_format() {
    for case in cases("provider_requests.json") {
        assert_eq!(body(provider(&case), &case["ask"], false).unwrap(), case["sent"], "{}", case["claim"]);
    }
}

#[test]
fn nothing_that_would_change_the_answer_is_dropped_in_silence() {
    for case in cases("provider_refusals.json") {
        let error = body(provider(&case), &case["ask"], false).unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration);
        assert!(error.to_string().contains(case["names"].as_str().unwrap()), "{error}");
    }
}

#[test]
fn an_answer_is_read_as_a_chat_completion() {
    for case in cases("provider_answers.json") {
        let body = case["body"].to_string();
        let read = to_openai(provider(&case), body.as_bytes());
        let means = read.as_ref().map_or(Value::Null, |read| serde_json::from_slice(read).unwrap());
        assert_eq!(means, case["means"], "{}", case["claim"]);
        parse_chat(&read.unwrap_or(Bytes::from(body))).unwrap();
    }
}

#[test]
fn what_is_no_answer_of_the_providers_is_left_for_its_reader_to_refuse() {
    for body in ["", "{}", "<html>", "[]", r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#] {
        for provider in Provider::ALL {
            assert!(to_openai(provider, body.as_bytes()).is_none_or(|body| parse_text(&body).is_err()), "{body}");
        }
    }
    let broken = b"{\"content\":[{\"type\":\"text\",\"text\":\"a\\ud83d\"}]}";
    assert_eq!(parse_text(&to_openai(Provider::Anthropic, broken).unwrap()).unwrap().content, "a\u{fffd}");
}

#[test]
fn the_models_name_stands_where_the_template_says() {
    for provider in Provider::ALL {
        let template = ChatTemplate::new(provider, "my \"model\"", Some("s"), "\"top_p\":0.5").unwrap();
        for prompt in [Prompt::Text("hi".into()), Prompt::Messages("[{\"role\":\"user\",\"content\":\"hi\"}]".into())] {
            let body = template.body(&prompt, false).unwrap();
            assert_eq!(&body[template.model()], br#""my \"model\"""#);
        }
    }
}

#[test]
fn a_system_text_stands_above_the_messages() {
    let sent = |provider, prompt| {
        let body = ChatTemplate::new(provider, "m", Some("s"), "").unwrap().body(&prompt, false).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let own =
        Prompt::Messages(json!([{"role": "system", "content": "t"}, {"role": "user", "content": "hi"}]).to_string());
    assert_eq!(sent(Provider::Anthropic, Prompt::Text("hi".into()))["system"], "s");
    assert_eq!(sent(Provider::Anthropic, own)["system"], "s\n\nt");
    assert_eq!(sent(Provider::Mistral, Prompt::Text("hi".into()))["messages"][0]["content"], "s");
}

#[test]
fn a_stream_is_asked_for_as_the_provider_wants_it() {
    for (provider, has_options) in
        [(Provider::OpenAi, true), (Provider::Azure, true), (Provider::Anthropic, false), (Provider::Mistral, false)]
    {
        let sent = body(provider, &json!({"top_p": 0.5}), true).unwrap();
        assert_eq!((&sent["stream"], &sent["top_p"]), (&json!(true), &json!(0.5)), "{provider}");
        assert_eq!(sent.get("stream_options").is_some(), has_options, "{provider}");
    }
}

#[test]
fn an_answer_that_takes_longer_than_ten_minutes_must_be_a_stream() {
    let must = |provider, fields| ChatTemplate::new(provider, "m", None, fields).unwrap().must_stream();
    assert!(!must(Provider::Anthropic, "") && !must(Provider::Anthropic, "\"max_tokens\":21333"));
    assert!(must(Provider::Anthropic, "\"max_tokens\":21334"));
    assert!(!must(Provider::OpenAi, "\"max_tokens\":100000") && !must(Provider::Mistral, "\"max_tokens\":100000"));
}

/// The chunks of a recorded stream, and whether its end was seen.
fn chunks(provider: Provider, name: &str) -> (Vec<Value>, bool) {
    let mut reader = StreamReader::new(provider);
    let (mut chunks, mut ended) = (Vec::new(), false);
    for event in sample(name).split("\n\n").filter(|event| !event.trim().is_empty()) {
        assert!(!ended);
        let line = |field: &str| event.lines().find_map(|line| line.strip_prefix(field));
        match reader.event(line("event: "), &Bytes::from(line("data: ").unwrap().to_owned())) {
            Step::Chunk(chunk) => chunks.push(serde_json::from_slice(&chunk).unwrap()),
            Step::Nothing => {}
            Step::End => ended = true,
        }
    }
    (chunks, ended)
}

#[test]
fn anthropics_stream_is_read_as_chunks() {
    let (chunks, ended) = chunks(Provider::Anthropic, "anthropic_stream.sse");
    assert!(ended);
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["object"]), (&json!("msg_01"), &json!("chat.completion.chunk")));
        assert_eq!(chunk["model"], "claude-sonnet-4-5");
    }
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let call = |index: u64, id: &str, name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
    };
    let arguments = |piece: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"reasoning_content": "Let me "}),
        json!({"reasoning_content": "see."}),
        json!({"thinking_blocks": [{"type": "thinking", "thinking": "Let me see.", "signature": "EqQB"}]}),
        json!({"content": "Okay, \"let's\""}),
        json!({"content": " check…"}),
        call(0, "toolu_01", "get_weather", ""),
        arguments("{\"location\": \"San"),
        arguments(" Francisco\"}"),
        call(1, "toolu_02", "get_time", "{\"zone\":\"UTC\"}"),
        json!({}),
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!((&last["usage"]["prompt_tokens"], &last["usage"]["completion_tokens"]), (&json!(100), &json!(89)));
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
}

#[test]
fn a_real_servers_messages_are_read_whole_and_streamed_as_the_same() {
    let whole =
        parse_chat(&to_openai(Provider::Anthropic, sample("llamacpp_messages.json").as_bytes()).unwrap()).unwrap();
    let (chunks, ended) = chunks(Provider::Anthropic, "llamacpp_messages_stream.sse");
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    let choice = &whole.choices[0];
    assert_eq!(choice.message.content.as_deref(), Some("The capital of Japan is Tokyo."));
    assert_eq!(choice.message.content, Some(pieces.collect()));
    assert!(ended);
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"].as_str(), choice.finish_reason.as_deref());
    assert_eq!(last["usage"]["total_tokens"], whole.usage.unwrap().total_tokens);
}

#[test]
fn an_error_within_anthropics_stream_keeps_its_type() {
    let (chunks, ended) = chunks(Provider::Anthropic, "anthropic_stream_overloaded.sse");
    assert!(!ended);
    assert_eq!(chunks.last().unwrap()["error"]["type"], "overloaded_error");
}

#[test]
fn mistrals_stream_is_read_as_chunks() {
    let (chunks, ended) = chunks(Provider::Mistral, "mistral_stream.sse");
    assert!(ended);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[1], json!({"content": "", "reasoning_content": "hm"}));
    assert_eq!(*deltas[2], json!({"content": "Hello"}));
    assert_eq!(deltas[3]["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[3]["usage"]["total_tokens"], 7);
}

proptest::proptest! {
    #[test]
    fn any_bytes_of_a_stream_are_read_without_panic(data: Vec<u8>, kind in 0_usize..4) {
        let mut reader = StreamReader::new(Provider::ALL[kind]);
        reader.event(None, &Bytes::from(data.clone()));
        let _ = to_openai(Provider::ALL[kind], &data);
    }

    #[test]
    fn any_text_comes_through_anthropics_stream(text in "(?s).{0,50}") {
        let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
        let step = StreamReader::new(Provider::Anthropic).event(None, &Bytes::from(delta.to_string()));
        let Step::Chunk(chunk) = step else { panic!("{step:?}") };
        let chunk: Value = serde_json::from_slice(&chunk).unwrap();
        proptest::prop_assert_eq!(&chunk["choices"][0]["delta"]["content"], &text);
    }

    #[test]
    fn any_prompt_comes_out_of_every_body_as_it_went_in(text in "(?s).{0,50}") {
        for provider in Provider::ALL {
            let prompt = Prompt::Text(text.clone());
            let body = ChatTemplate::new(provider, "m", None, "").unwrap().body(&prompt, false).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            proptest::prop_assert_eq!(&body["messages"][0]["content"], &text);
        }
    }
}
