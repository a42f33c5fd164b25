//! The mock server in the forms of each API: whole answers and the events of streams.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use millstream::mock::{Answer, Dialect, Embedding, MockConfig, MockServer, StreamFault, Streaming, ToolCall};
use serde_json::{Value, json};

const VERSION: &str = "anthropic-version: 2023-06-01\r\n";

/// Status, head and body of one exchange on a connection of its own.
fn exchange(server: &MockServer, target: &str, headers: &str, body: &Value) -> (u16, String, String) {
    let body = body.to_string();
    let length = body.len();
    let mut socket = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // HTTP/1.0 has no chunks: what comes is the body.
    let head = format!("POST {target} HTTP/1.0\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
}

fn ask(server: &MockServer, target: &str, headers: &str, body: &Value) -> (u16, Value) {
    let (status, _, body) = exchange(server, target, headers, body);
    (status, serde_json::from_str(&body).unwrap())
}

/// Name and data of each event, the data as a string if it is no JSON.
fn events(server: &MockServer, target: &str, headers: &str, body: &Value) -> Vec<(String, Value)> {
    let (status, head, body) = exchange(server, target, headers, body);
    assert!(status == 200 && head.contains("text/event-stream"), "{head}\n{body}");
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim_start().to_owned()
    };
    let events = body.split("\n\n").filter(|event| !event.is_empty());
    events
        .map(|event| {
            let data = field(event, "data:");
            (field(event, "event:"), serde_json::from_str(&data).unwrap_or(Value::String(data)))
        })
        .collect()
}

fn start(dialect: Dialect) -> MockServer {
    MockServer::start(MockConfig { dialect, ..MockConfig::default() }).unwrap()
}

fn talkative() -> Answer {
    let tool = ToolCall { name: "weather".to_owned(), arguments: r#"{"city": "Köln"}"#.to_owned() };
    Answer { reasoning: Some("let me see".to_owned()), tool_calls: vec![tool], times: 2, ..Answer::text("so be it") }
}

/// The strings at this place of the data of all events, joined.
fn joined(events: &[(String, Value)], pointer: &str) -> String {
    events.iter().filter_map(|(_, data)| data.pointer(pointer)?.as_str()).collect()
}

#[test]
fn anthropics_messages_are_blocks() {
    let server = start(Dialect::OpenAi);
    let mut request = json!({"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "hi you"}]});
    let (status, body) = ask(&server, "/v1/messages", VERSION, &request);
    assert_eq!((status, &body["type"], &body["stop_reason"]), (200, &json!("message"), &json!("end_turn")));
    assert_eq!(body["content"], json!([{"type": "text", "text": "echo: hi you"}]));
    assert_eq!((&body["usage"]["input_tokens"], &body["usage"]["output_tokens"]), (&json!(2), &json!(3)));
    server.script([talkative()]);
    let (_, body) = ask(&server, "/v1/messages", VERSION, &request);
    let kinds: Vec<_> = body["content"].as_array().unwrap().iter().map(|block| block["type"].clone()).collect();
    assert_eq!((json!(kinds), &body["stop_reason"]), (json!(["thinking", "text", "tool_use"]), &json!("tool_use")));
    assert_eq!(body["content"][2]["input"], json!({"city": "Köln"}));

    request["stream"] = true.into();
    let seen = events(&server, "/v1/messages", VERSION, &request);
    assert!(seen.iter().all(|(name, data)| data["type"] == **name), "{seen:?}");
    let count = |wanted: &str| seen.iter().filter(|(name, _)| name == wanted).count();
    assert_eq!((count("content_block_start"), count("content_block_stop"), count("ping")), (3, 3, 1));
    assert_eq!(seen[0].0, "message_start");
    assert_eq!(seen[0].1["message"]["usage"]["input_tokens"], 2);
    assert_eq!(joined(&seen, "/delta/thinking"), "let me see");
    assert_eq!(joined(&seen, "/delta/text"), "so be it");
    assert_eq!(joined(&seen, "/delta/partial_json"), r#"{"city": "Köln"}"#);
    let [.., (_, last), (end, _)] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((&last["delta"]["stop_reason"], end.as_str()), (&json!("tool_use"), "message_stop"));
    assert_eq!(last["usage"]["output_tokens"], body["usage"]["output_tokens"]);

    server.script([
        Answer::stream(Streaming::fault(StreamFault::Error, 4)),
        Answer::stream(Streaming {
            keep_alive: Some(Duration::ZERO),
            fault: Some(StreamFault::NoDone),
            ..Streaming::default()
        }),
    ]);
    let seen = events(&server, "/v1/messages", VERSION, &request);
    assert_eq!((seen[4].0.as_str(), &seen[4].1["error"]["type"]), ("error", &json!("overloaded_error")));
    let seen = events(&server, "/v1/messages", VERSION, &request);
    assert_eq!((seen[0].0.as_str(), seen.last().unwrap().0.as_str()), ("ping", "message_delta"));
}

#[test]
fn anthropic_wants_its_version_its_tokens_and_its_roles() {
    let server = start(Dialect::OpenAi);
    let messages = json!([{"role": "user", "content": "four"}]);
    for (headers, body, message) in [
        ("", json!({"max_tokens": 1, "messages": messages}), "anthropic-version"),
        (VERSION, json!({"messages": messages}), "max_tokens: Field required"),
        (VERSION, json!({"max_tokens": 1, "messages": [{"role": "system", "content": "x"}]}), "system"),
    ] {
        let (status, head, body) = exchange(&server, "/v1/messages", headers, &body);
        assert_eq!(status, 400);
        assert!(head.contains("\r\nrequest-id: req_mock_"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
        assert!(body["error"]["message"].as_str().unwrap().contains(message), "{body}");
    }
    let body = json!({"messages": messages, "system": [{"type": "text", "text": "be good"}]});
    assert_eq!(ask(&server, "/v1/messages/count_tokens", VERSION, &body), (200, json!({"input_tokens": 3})));
}

#[test]
fn responses_are_items_and_their_events_typed_and_numbered() {
    let server = start(Dialect::OpenAi);
    let mut request = json!({"model": "m", "instructions": "be good", "input": "hi you"});
    let (status, body) = ask(&server, "/v1/responses", "", &request);
    assert_eq!((status, &body["object"], &body["status"]), (200, &json!("response"), &json!("completed")));
    assert_eq!(body["output"][0]["content"][0]["text"], "echo: hi you");
    assert_eq!(body["usage"]["input_tokens"], 4);
    server.script([talkative(), Answer { finish_reason: Some("length".to_owned()), ..Answer::text("cut") }]);
    request["input"] = json!([{"role": "user", "content": [{"type": "input_text", "text": "listed"}]}]);
    let (_, whole) = ask(&server, "/v1/responses", "", &request);
    request["stream"] = true.into();
    let seen = events(&server, "/v1/responses", "", &request);
    for (number, (name, data)) in seen.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
    }
    let delta_of = |kind: &str| {
        let events = seen.iter().filter(|(name, _)| name == kind);
        events.map(|(_, data)| data["delta"].as_str().unwrap()).collect::<String>()
    };
    assert_eq!(delta_of("response.output_text.delta"), "so be it");
    assert_eq!(delta_of("response.reasoning_summary_text.delta"), "let me see");
    assert_eq!(delta_of("response.function_call_arguments.delta"), r#"{"city": "Köln"}"#);
    let (name, last) = seen.last().unwrap();
    let kinds = last["response"]["output"].as_array().unwrap().iter().map(|item| item["type"].clone());
    assert_eq!(json!(kinds.collect::<Vec<_>>()), json!(["reasoning", "message", "function_call"]));
    assert_eq!((name.as_str(), &last["response"]["usage"]), ("response.completed", &whole["usage"]));
    let seen = events(&server, "/v1/responses", "", &request);
    let (name, last) = seen.last().unwrap();
    let reason = &last["response"]["incomplete_details"]["reason"];
    assert_eq!((name.as_str(), reason), ("response.incomplete", &json!("max_output_tokens")));
}

#[test]
fn mistral_refuses_what_is_not_in_its_schema_and_tells_its_usage_unasked() {
    let server = start(Dialect::Mistral);
    let chat = "/v1/chat/completions";
    let mut request = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    server.script([talkative()]);
    let seen = events(&server, chat, "", &request);
    assert_eq!(joined(&seen, "/choices/0/delta/content/0/thinking/0/text"), "let me see");
    assert_eq!(joined(&seen, "/choices/0/delta/tool_calls/0/function/arguments"), r#"{"city": "Köln"}"#);
    let [.., (_, last), (_, done)] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((&last["usage"]["prompt_tokens"], done), (&json!(1), &json!("[DONE]")));
    request["stream"] = false.into();
    let (_, body) = ask(&server, chat, "", &request);
    assert_eq!(body["choices"][0]["message"]["content"][1], json!({"type": "text", "text": "so be it"}));
    server.script([Answer { content_list: true, ..Answer::default() }]);
    let (_, body) = ask(&server, chat, "", &request);
    assert_eq!(body["choices"][0]["message"]["content"], json!([{"type": "text", "text": "echo: hi"}]));
    for (name, value) in
        [("stream_options", json!({"include_usage": true})), ("seed", json!(1)), ("max_completion_tokens", json!(2))]
    {
        let mut refused = request.clone();
        refused[name] = value.clone();
        let (status, body) = ask(&server, chat, "", &refused);
        assert_eq!((status, &body["detail"][0]["loc"]), (422, &json!(["body", name])));
        assert_eq!((&body["detail"][0]["type"], &body["detail"][0]["input"]), (&json!("extra_forbidden"), &value));
    }
}

#[test]
fn azure_has_the_deployment_in_its_path_and_asks_for_a_key_and_a_version() {
    let server = start(Dialect::OpenAi);
    let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
    let path = "/openai/deployments/my-gpt/chat/completions";
    let versioned = format!("{path}?api-version=2024-10-21");
    let (status, body) = ask(&server, &versioned, "", &request);
    assert_eq!((status, &body["error"]["code"]), (401, &json!("401")));
    let (status, body) = ask(&server, path, "api-key: k\r\n", &request);
    assert_eq!((status, &body["error"]["code"]), (404, &json!("404")));
    let (status, body) = ask(&server, &versioned, "api-key: k\r\n", &request);
    assert_eq!((status, &body["model"]), (200, &json!("my-gpt")));
    request["stream"] = true.into();
    let seen = events(&server, &versioned, "authorization: Bearer token\r\n", &request);
    assert!(seen[0].1["choices"] == json!([]) && seen[0].1["prompt_filter_results"].is_array());
    assert_eq!(joined(&seen, "/choices/0/delta/content"), "echo: hi");
    let recorded = server.requests();
    assert!(recorded.iter().all(|seen| seen.deployment.as_deref() == Some("my-gpt")));
    let (status, body) = ask(&server, "/openai/v1/chat/completions", "api-key: k\r\n", &json!({"messages": []}));
    assert_eq!((status, &body["model"]), (200, &json!("mock-model")));
}

#[test]
fn text_completions_are_whole_or_streamed() {
    let server = start(Dialect::OpenAi);
    let mut request = json!({"model": "m", "prompt": ["one two", "b"], "n": 2});
    let (_, body) = ask(&server, "/v1/completions", "", &request);
    assert_eq!((&body["object"], body["choices"].as_array().unwrap().len()), (&json!("text_completion"), 4));
    assert_eq!(body["choices"][3]["text"], "echo: one two\nb");
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}));
    request = json!({"model": "m", "prompt": "one two", "stream": true, "stream_options": {"include_usage": true}});
    let seen = events(&server, "/v1/completions", "", &request);
    assert_eq!(joined(&seen, "/choices/0/text"), "echo: one two");
    assert_eq!(joined(&seen, "/choices/0/finish_reason"), "stop");
    assert_eq!(seen[seen.len() - 2].1["usage"]["completion_tokens"], 4);
}

#[test]
fn embeddings_belong_to_their_texts_wherever_they_come() {
    let server = MockServer::start(MockConfig {
        embeddings: Embedding { shuffle: true, ..Embedding::default() },
        ..MockConfig::default()
    })
    .unwrap();
    let texts: Vec<_> = (0..20).map(|number| format!("text {number}")).collect();
    let request = json!({"model": "e", "input": texts, "dimensions": 3});
    let vectors = |request: &Value| {
        let (status, body) = ask(&server, "/v1/embeddings", "", request);
        assert_eq!(status, 200, "{body}");
        let data = body["data"].as_array().unwrap().iter();
        (data.map(|one| (one["index"].as_u64().unwrap(), one["embedding"].clone())).collect::<Vec<_>>(), body)
    };
    let (mut first, body) = vectors(&request);
    let (mut second, _) = vectors(&request);
    assert_eq!(body["usage"], json!({"prompt_tokens": 40, "total_tokens": 40}));
    assert_ne!(first, second);
    first.sort_by_key(|(index, _)| *index);
    second.sort_by_key(|(index, _)| *index);
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0].1 != pair[1].1 && pair[0].1.as_array().unwrap().len() == 3));
    let (one, _) = vectors(&json!({"input": "text 0", "dimensions": 3}));
    assert_eq!(one[0], first[0]);
    let (packed, _) = vectors(&json!({"input": "text 0", "dimensions": 3, "encoding_format": "base64"}));
    // Three float32 are 12 bytes are 16 characters.
    assert_eq!(packed[0].1.as_str().unwrap().len(), 16);
    for input in [json!([]), json!(""), json!(vec!["x"; 2049])] {
        assert_eq!(ask(&server, "/v1/embeddings", "", &json!({"input": input})).0, 400);
    }
}

#[test]
fn another_path_gets_back_what_it_sent() {
    let server = start(Dialect::OpenAi);
    let (status, body) = ask(&server, "/v1/rerank?top=3&q=a%20b", "x-tag: t\r\n", &json!({"docs": [1]}));
    let expected = json!({"method": "POST", "path": "/v1/rerank", "query": {"top": "3", "q": "a b"},
        "json": {"docs": [1]}});
    assert_eq!((status, body), (200, expected));
    let seen = &server.requests()[0];
    assert_eq!((seen.path.as_str(), &seen.headers["x-tag"]), ("/v1/rerank?top=3&q=a%20b", &"t".parse().unwrap()));
    for wrong in ["/v1/v1/chat/completions", "/chat/completions", "/rerank"] {
        assert_eq!(ask(&server, wrong, "", &json!({})).0, 404, "{wrong}");
    }
}
