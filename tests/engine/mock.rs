//! The mock server over raw sockets: what a client would see, byte by byte, and what the server says it saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use http::StatusCode;
use millstream::mock::{Answer, Dialect, Fault, Latency, MockConfig, MockLimits, MockServer, MockStats, Reply};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

struct Client {
    socket: TcpStream,
    buffered: Vec<u8>,
}

struct Received {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }
}

impl Client {
    fn connect(server: &MockServer) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, buffered: Vec::new() }
    }

    fn send(&mut self, target: &str, body: &str) {
        let length = body.len();
        let request = format!("POST {target} HTTP/1.1\r\nHost: mock\r\nContent-Length: {length}\r\n\r\n{body}");
        self.socket.write_all(request.as_bytes()).unwrap();
    }

    /// More bytes, or how the connection ended.
    fn more(&mut self) -> Result<usize, ErrorKind> {
        let mut chunk = [0; 4096];
        let count = self.socket.read(&mut chunk).map_err(|error| error.kind())?;
        self.buffered.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    /// Bytes up to the end of the connection, and what that was.
    fn read_to_end(&mut self) -> (Vec<u8>, Result<(), ErrorKind>) {
        loop {
            match self.more() {
                Ok(0) => return (std::mem::take(&mut self.buffered), Ok(())),
                Ok(_) => (),
                Err(kind) => return (std::mem::take(&mut self.buffered), Err(kind)),
            }
        }
    }

    fn read_reply(&mut self) -> Received {
        loop {
            if let Some(end) = self.buffered.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.buffered[..end].to_vec()).unwrap();
                let mut reply = Received { status: head[9..12].parse().unwrap(), head, body: Vec::new() };
                let length: usize = reply.header("content-length").unwrap().parse().unwrap();
                while self.buffered.len() < end + 4 + length {
                    assert_ne!(self.more(), Ok(0), "cut: {}", reply.head);
                }
                reply.body = self.buffered[end + 4..end + 4 + length].to_vec();
                self.buffered.drain(..end + 4 + length);
                return reply;
            }
            assert_ne!(self.more(), Ok(0), "closed without an answer");
        }
    }

    fn ask_with(&mut self, header: &str, text: &str) -> Received {
        let body = chat(text);
        let length = body.len();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\n{header}\r\nContent-Length: {length}");
        self.socket.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        self.read_reply()
    }

    fn ask(&mut self, text: &str) -> Received {
        self.send("/v1/chat/completions", &chat(text));
        self.read_reply()
    }
}

fn chat(text: &str) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string()
}

fn start() -> MockServer {
    MockServer::start(MockConfig::default()).unwrap()
}

fn until(server: &MockServer, claim: impl Fn(MockStats) -> bool) -> Duration {
    let begun = Instant::now();
    while !claim(server.stats()) {
        assert!(begun.elapsed() < PATIENCE, "never came true: {:?}", server.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

#[test]
fn echoes_the_last_user_message_with_its_usage() {
    let server = start();
    let mut client = Client::connect(&server);
    let (first, second) = (client.ask("hello \"you\" é"), client.ask("again"));
    assert_eq!(first.content(), "echo: hello \"you\" é");
    assert_eq!(second.content(), "echo: again");
    let body = first.json();
    assert_eq!(body["model"], "m");
    assert_eq!(body["usage"]["prompt_tokens"], 4);
    assert_eq!(body["usage"]["completion_tokens"], 5);
    assert_ne!(body["id"], second.json()["id"]);
    assert!(first.header("x-request-id").unwrap().starts_with("req_mock_"));
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    assert!(first.header("openai-processing-ms").is_some());
}

#[test]
fn the_fixed_reply_does_not_read_the_request() {
    let config = MockConfig { reply: Reply::Fixed, record: false, ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    let mut client = Client::connect(&server);
    client.send("/v1/chat/completions", "not json");
    let reply = client.read_reply();
    assert_eq!(reply.status, 200);
    assert!((950..1000).contains(&reply.body.len()));
    assert_eq!(client.ask("x").body, reply.body);
    assert!(server.requests().is_empty());
    assert_eq!(server.stats().answered, 2);
}

#[test]
fn bad_json_unknown_paths_and_wrong_methods_are_told_apart() {
    let server = start();
    let mut client = Client::connect(&server);
    for (target, body, status) in [
        ("/v1/chat/completions", "{", 400),
        ("/v1/chat/completions", "{}", 400),
        ("/v2/chat/completions", "{}", 404),
        ("/v1/models", "{}", 405),
    ] {
        client.send(target, body);
        let reply = client.read_reply();
        assert_eq!(reply.status, status, "{target}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn remembers_what_it_saw() {
    let server = start();
    let mut client = Client::connect(&server);
    client.send("http://api.example.com/v1/chat/completions?a=b", &chat("by proxy"));
    assert_eq!(client.read_reply().content(), "echo: by proxy");
    Client::connect(&server).ask("second connection");
    let seen = server.requests();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].path, "http://api.example.com/v1/chat/completions?a=b");
    assert_eq!(seen[0].headers["host"], "mock");
    assert_eq!(seen[0].body, chat("by proxy"));
    assert_eq!((seen[0].index, seen[0].connection, seen[0].in_flight), (0, 0, 1));
    assert_eq!((seen[1].index, seen[1].connection, seen[1].in_flight), (1, 1, 1));
    assert_eq!((seen[1].status, seen[1].completed, seen[1].aborted), (Some(200), true, false));
    assert!(seen[0].arrived <= seen[1].arrived);
    server.clear();
    assert!(server.requests().is_empty());
    assert_eq!(server.stats().answered, 0);
}

#[test]
fn scripted_answers_come_in_order_and_then_the_default() {
    let server = start();
    let with_header = Answer {
        headers: [("retry-after", "3"), ("content-type", "text/html")]
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect(),
        body: Some("<h1>bad gateway</h1>".into()),
        ..Answer::status(502)
    };
    server.script([Answer::status(503), with_header, Answer::text("scripted")]);
    server.when("needle", [Answer { times: 2, ..Answer::status(418) }]);
    let mut client = Client::connect(&server);
    assert_eq!(client.ask("a").json()["error"]["type"], "server_error");
    assert_eq!(client.ask("needle").status, 418);
    let gateway = client.ask("b");
    assert_eq!((gateway.status, gateway.body.as_slice()), (502, b"<h1>bad gateway</h1>".as_slice()));
    assert_eq!(gateway.header("retry-after"), Some("3"));
    assert_eq!(gateway.header("content-type"), Some("text/html"));
    assert_eq!(client.ask("needle").status, 418);
    assert_eq!(client.ask("c").content(), "scripted");
    assert_eq!(client.ask("needle").content(), "echo: needle");
}

#[test]
fn asks_for_the_key() {
    let server = MockServer::start(MockConfig { api_key: Some("sk-1".to_owned()), ..MockConfig::default() }).unwrap();
    let mut client = Client::connect(&server);
    for (header, status) in [
        ("A: b", 401),
        ("Authorization: Bearer sk-2", 401),
        ("authorization: Bearer sk-1", 200),
        ("api-key: sk-1", 200),
    ] {
        write!(client.socket, "GET /v1/models HTTP/1.1\r\nHost: mock\r\n{header}\r\n\r\n").unwrap();
        let reply = client.read_reply();
        assert_eq!(reply.status, status, "{header}");
        let code = if status == 401 { json!("invalid_api_key") } else { Value::Null };
        assert_eq!(reply.json()["error"]["code"], code);
    }
}

#[test]
fn says_429_with_the_wait_when_the_minute_is_used_up() {
    let config = MockConfig { requests_per_minute: Some(2), tokens_per_minute: Some(1000), ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    let mut client = Client::connect(&server);
    let first = client.ask("a");
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("1"));
    assert_eq!(first.header("x-ratelimit-remaining-tokens"), Some("999"));
    client.ask("b");
    let refused = client.ask("c");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["type"], "requests");
    let (ms, s): (u64, u64) = (
        refused.header("retry-after-ms").unwrap().parse().unwrap(),
        refused.header("retry-after").unwrap().parse().unwrap(),
    );
    assert!((20_000..=30_000).contains(&ms), "{ms}");
    assert_eq!(s, ms.div_ceil(1000));
    assert_eq!(server.stats().rejected_429, 1);
    server.clear();
    assert_eq!(client.ask("d").status, 200);
}

#[test]
fn refuses_above_max_concurrent_and_admits_again_afterwards() {
    let server = MockServer::start(MockConfig { max_concurrent: Some(1), ..MockConfig::default() }).unwrap();
    server.when("hang", [Answer::fault(Fault::HangBefore)]);
    let mut hanging = Client::connect(&server);
    hanging.send("/v1/chat/completions", &chat("hang"));
    until(&server, |stats| stats.in_flight == 1);
    let mut client = Client::connect(&server);
    assert_eq!(client.ask("x").status, 429);
    drop(hanging);
    until(&server, |stats| stats.in_flight == 0);
    assert_eq!(client.ask("x").status, 200);
    assert_eq!(server.stats().max_in_flight, 2);
}

#[test]
fn each_fault_looks_on_the_wire_as_it_is_named() {
    let server = start();
    let whole = 400; // less than any echo's head and body
    for (fault, end, gets_a_head) in [
        (Fault::ResetBefore, Err(ErrorKind::ConnectionReset), false),
        (Fault::CloseBefore, Ok(()), false),
        (Fault::ResetInBody, Err(ErrorKind::ConnectionReset), true),
        (Fault::Truncate, Ok(()), true),
    ] {
        server.clear();
        server.script([Answer::fault(fault)]);
        let mut client = Client::connect(&server);
        client.send("/v1/chat/completions", &chat("x"));
        let (bytes, ended) = client.read_to_end();
        assert_eq!(ended, end, "{fault:?}");
        let text = String::from_utf8(bytes).unwrap();
        if gets_a_head {
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let (_, length) = head.split_once("content-length: ").unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            assert_eq!(body.len(), length / 2, "{fault:?}");
            assert!(length > whole);
        } else {
            assert_eq!(text, "", "{fault:?}");
        }
        until(&server, |stats| stats.open_connections == 0);
        let stats = server.stats();
        assert_eq!((stats.requests, stats.faulted, stats.in_flight), (1, 1, 0), "{fault:?}");
        let seen = &server.requests()[0];
        assert_eq!((seen.completed, seen.aborted), (false, false));
        assert_eq!(seen.status.is_some(), gets_a_head);
    }
}

#[test]
fn hangs_until_the_client_leaves_and_calls_that_an_abort() {
    let server = start();
    for fault in [Fault::HangBefore, Fault::HangInBody] {
        server.clear();
        server.script([Answer::fault(fault)]);
        let mut client = Client::connect(&server);
        client.send("/v1/chat/completions", &chat("x"));
        until(&server, |stats| stats.in_flight == 1);
        if fault == Fault::HangInBody {
            assert!(client.more().unwrap() > 0);
        }
        client.socket.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        let (_, ended) = client.read_to_end();
        assert_eq!(ended, Err(ErrorKind::WouldBlock), "{fault:?}");
        client.socket.shutdown(Shutdown::Both).unwrap();
        let noticed = until(&server, |stats| stats.aborted == 1 && stats.open_connections == 0);
        assert!(noticed < Duration::from_secs(1), "{noticed:?}");
        assert_eq!(server.stats().in_flight, 0);
        assert!(server.requests()[0].aborted);
    }
}

#[test]
fn notices_a_client_that_leaves_during_the_latency() {
    let config = MockConfig { latency: Latency::Fixed(Duration::from_secs(60)), ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    let mut client = Client::connect(&server);
    client.send("/v1/chat/completions", &chat("x"));
    until(&server, |stats| stats.in_flight == 1);
    drop(client);
    until(&server, |stats| stats.aborted == 1 && stats.in_flight == 0 && stats.open_connections == 0);
}

#[test]
fn drips_a_whole_body_in_its_time() {
    let server = start();
    let interval = Duration::from_millis(5);
    server.script([Answer { body: Some("0123456789".into()), drip_interval: interval, ..Answer::fault(Fault::Drip) }]);
    let begun = Instant::now();
    let mut client = Client::connect(&server);
    assert_eq!(client.ask("x").body, b"0123456789");
    assert!(begun.elapsed() >= interval * 9);
    assert_eq!(server.stats().answered, 1);
}

#[test]
fn a_latency_of_the_answer_replaces_the_servers() {
    let config = MockConfig { latency: Latency::Fixed(Duration::from_millis(60)), ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    server.script([Answer { latency: Some(Duration::ZERO), ..Answer::text("quick") }]);
    let mut client = Client::connect(&server);
    let begun = Instant::now();
    client.ask("x");
    let quick = begun.elapsed();
    client.ask("x");
    assert!(quick < Duration::from_millis(60), "{quick:?}");
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn answers_without_a_body_are_complete() {
    let server = start();
    server.script([Answer::status(204)]);
    let mut client = Client::connect(&server);
    client.send("/v1/chat/completions", &chat("x"));
    assert!(client.more().unwrap() > 0);
    assert!(client.buffered.starts_with(b"HTTP/1.1 204"));
    client.buffered.clear();
    write!(client.socket, "HEAD /v1/chat/completions HTTP/1.1\r\nHost: mock\r\n\r\n").unwrap();
    assert!(client.more().unwrap() > 0);
    client.buffered.clear();
    assert_eq!(client.ask("still alive").status, 200);
    let stats = server.stats();
    assert_eq!((stats.answered, stats.aborted, stats.connections), (3, 0, 1));
}

#[test]
fn stops_with_requests_in_flight_and_comes_back_to_its_port() {
    let server = start();
    server.script([Answer::fault(Fault::HangBefore)]);
    let mut client = Client::connect(&server);
    client.send("/v1/chat/completions", &chat("x"));
    until(&server, |stats| stats.in_flight == 1);
    let port = server.port();
    server.stop();
    server.stop();
    assert_eq!(client.read_to_end(), (Vec::new(), Ok(())));
    let stats = server.stats();
    assert_eq!((stats.in_flight, stats.aborted, stats.open_connections), (0, 0, 0));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    server.launch().unwrap();
    server.launch().unwrap();
    assert_eq!(server.port(), port);
    assert_eq!(Client::connect(&server).ask("x").status, 200);
}

#[test]
fn reads_a_body_that_comes_in_pieces() {
    let server = start();
    let mut client = Client::connect(&server);
    let body = chat(&"long ".repeat(50_000));
    let (one, two) = body.split_at(1000);
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nContent-Length: {}\r\n\r\n", body.len());
    client.socket.write_all(head.as_bytes()).unwrap();
    client.socket.write_all(one.as_bytes()).unwrap();
    until(&server, |stats| stats.in_flight == 1);
    client.socket.write_all(two.as_bytes()).unwrap();
    assert_eq!(client.read_reply().status, 200);
    assert_eq!(server.requests()[0].body, body);
}

#[test]
fn counts_a_client_that_leaves_in_the_middle_of_its_request() {
    let server = start();
    let mut client = Client::connect(&server);
    write!(client.socket, "POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nContent-Length: 100\r\n\r\n{{").unwrap();
    until(&server, |stats| stats.in_flight == 1);
    drop(client);
    until(&server, |stats| stats.in_flight == 0 && stats.open_connections == 0);
    assert_eq!(server.stats().aborted, 1);
}

#[test]
fn holds_many_connections_at_once() {
    let server = start();
    let mut clients: Vec<_> = (0..300).map(|_| Client::connect(&server)).collect();
    for client in &mut clients {
        client.send("/v1/chat/completions", &chat("x"));
    }
    for client in &mut clients {
        assert_eq!(client.read_reply().status, StatusCode::OK.as_u16());
    }
    let stats = server.stats();
    assert_eq!((stats.connections, stats.open_connections, stats.answered), (300, 300, 300));
    drop(clients);
    until(&server, |stats| stats.open_connections == 0);
}

#[test]
fn each_key_has_limits_and_counters_of_its_own() {
    let two = MockLimits { requests_per_minute: Some(2), ..MockLimits::default() };
    let config = MockConfig {
        requests_per_minute: Some(3),
        keys: vec![("sk-a".to_owned(), two), ("sk-b".to_owned(), MockLimits::default())],
        ..MockConfig::default()
    };
    let server = MockServer::start(config).unwrap();
    let mut client = Client::connect(&server);
    let mut statuses = |header: &str| (0..4).map(|_| client.ask_with(header, "x").status).collect::<Vec<_>>();
    assert_eq!(statuses("Authorization: Bearer sk-a"), [200, 200, 429, 429]);
    assert_eq!(statuses("x-api-key: sk-b"), [200, 200, 200, 429]);
    assert_eq!(statuses("Authorization: Bearer sk-c"), [401; 4]);
    let counted: Vec<_> = server.key_stats().into_iter().map(|(key, of)| (key, of.requests, of.rejected_429)).collect();
    assert_eq!(counted, [("sk-a".to_owned(), 4, 2), ("sk-b".to_owned(), 4, 1)]);
    let keys: Vec<_> = server.requests().into_iter().map(|request| request.key).collect();
    assert_eq!((keys[0].as_deref(), keys[4].as_deref(), &keys[8]), (Some("sk-a"), Some("sk-b"), &None));
}

#[test]
fn limits_change_while_it_runs() {
    let keys = vec![("sk-a".to_owned(), MockLimits::default())];
    let server = MockServer::start(MockConfig { keys, ..MockConfig::default() }).unwrap();
    let mut client = Client::connect(&server);
    let mut ask = || client.ask_with("api-key: sk-a", "x");
    assert_eq!(ask().header("x-ratelimit-limit-requests"), None);
    let one = MockLimits { requests_per_minute: Some(1), ..MockLimits::default() };
    server.set_limits(Some("sk-a"), &one).unwrap();
    assert_eq!([ask().status, ask().status], [200, 429]);
    server.set_limits(None, &MockLimits::default()).unwrap();
    assert_eq!(ask().status, 200);
    for (key, limits) in [
        (Some("sk-b"), MockLimits::default()),
        (None, MockLimits { requests_per_minute: Some(0), ..MockLimits::default() }),
    ] {
        assert_eq!(server.set_limits(key, &limits).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_refusal_is_in_the_words_of_its_provider() {
    for (dialect, id, told, expected) in [
        (Dialect::OpenAi, "x-request-id", [true, true], json!("requests")),
        (Dialect::Anthropic, "request-id", [true, false], json!("rate_limit_error")),
        (Dialect::Mistral, "x-request-id", [false, false], json!("rate_limited")),
        (Dialect::Groq, "x-request-id", [true, false], json!("requests")),
        (Dialect::Together, "x-request-id", [false, false], json!("credit_limit")),
        (Dialect::Azure, "x-request-id", [true, true], json!("requests")),
        (Dialect::None, "x-request-id", [true, true], json!("requests")),
    ] {
        let config = MockConfig { requests_per_minute: Some(1), dialect, ..MockConfig::default() };
        let server = MockServer::start(config).unwrap();
        let mut client = Client::connect(&server);
        client.ask("a");
        let refused = client.ask("b");
        let body = refused.json();
        assert_eq!(refused.status, 429, "{dialect:?}");
        assert_eq!(["retry-after", "retry-after-ms"].map(|name| refused.header(name).is_some()), told, "{dialect:?}");
        let error = if body["error"].is_object() { &body["error"] } else { &body };
        assert_eq!(error["type"], expected, "{dialect:?}");
        assert!(refused.header(id).unwrap().starts_with("req_mock_"), "{dialect:?}");
        if dialect == Dialect::Anthropic {
            assert_eq!((&body["type"], body["request_id"].as_str()), (&json!("error"), refused.header("request-id")));
        }
    }
}

#[test]
fn mistrals_zero_refuses_for_good() {
    let config = MockConfig { requests_per_minute: Some(0), dialect: Dialect::Mistral, ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    let refused = Client::connect(&server).ask("x");
    assert_eq!((refused.status, refused.header("x-ratelimit-limit-req-minute")), (429, Some("0")));
    assert_eq!(refused.header("retry-after"), None);
    assert!(MockServer::new(MockConfig { requests_per_minute: Some(0), ..MockConfig::default() }).is_err());
}

#[test]
fn an_outage_fails_everything_until_it_is_over() {
    let server = start();
    let mut client = Client::connect(&server);
    server.script([Answer::text("kept")]);
    server.outage(StatusCode::SERVICE_UNAVAILABLE, None);
    assert_eq!([client.ask("a").status, client.ask("b").status], [503, 503]);
    server.recover();
    assert_eq!(client.ask("c").content(), "kept");
    server.outage(StatusCode::BAD_GATEWAY, None);
    server.clear();
    assert_eq!(client.ask("d").status, 200);
    server.outage(StatusCode::BAD_GATEWAY, Some(Duration::ZERO));
    assert_eq!(client.ask("e").status, 200);
    assert_eq!(server.stats().failed_in_outage, 0);
    server.outage(StatusCode::BAD_GATEWAY, Some(PATIENCE));
    assert_eq!(client.ask("f").json()["error"]["type"], "server_error");
    assert_eq!(server.stats().failed_in_outage, 1);
}

#[test]
fn beyond_its_slots_requests_queue_and_none_is_refused() {
    let config = MockConfig { slots: Some(1), ..MockConfig::default() };
    let server = MockServer::start(config).unwrap();
    server.when("hang", [Answer::fault(Fault::HangBefore)]);
    let mut working = Client::connect(&server);
    working.send("/v1/chat/completions", &chat("hang"));
    until(&server, |stats| stats.in_flight == 1);
    let mut queued: Vec<_> = (0..3).map(|_| Client::connect(&server)).collect();
    for client in &mut queued {
        client.send("/v1/chat/completions", &chat("x"));
    }
    until(&server, |stats| stats.queued == 3);
    drop(queued.pop());
    until(&server, |stats| stats.queued == 2 && stats.aborted == 1);
    server.set_slots(Some(2));
    for client in &mut queued {
        assert_eq!(client.read_reply().status, 200);
    }
    drop(working);
    until(&server, |stats| stats.in_flight == 0);
    assert_eq!(server.stats().rejected_429, 0);
}

#[test]
fn max_concurrent_changes_while_it_runs() {
    let server = start();
    server.when("hang", [Answer::fault(Fault::HangBefore)]);
    let mut hanging = Client::connect(&server);
    hanging.send("/v1/chat/completions", &chat("hang"));
    until(&server, |stats| stats.in_flight == 1);
    let mut client = Client::connect(&server);
    let mut status = |most| {
        server.set_max_concurrent(most);
        client.ask("x").status
    };
    assert_eq!([status(Some(1)), status(Some(2)), status(None)], [429, 200, 200]);
}

/// One caller on the server's own runtime.
async fn ask(socket: &mut tokio::net::TcpStream) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let body = chat("x");
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: mock\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = vec![0; 8192];
    let length = socket.read(&mut answer).await.unwrap();
    String::from_utf8(answer[..length].to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_limits_passes_in_a_moment_where_time_is_paused() {
    let latency = Latency::Fixed(Duration::from_secs(2));
    let config = MockConfig { latency, requests_per_minute: Some(20), ..MockConfig::default() };
    let server = MockServer::start_here(config).unwrap();
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3600) {
        let answer = ask(&mut socket).await;
        if let Some((_, wait)) = answer.split_once("retry-after-ms: ") {
            let wait = wait.split("\r\n").next().unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }
    // Two seconds each from the burst of 20; then one slot in three seconds, told by refusals that take no time.
    let seen = server.requests();
    let refused: Vec<_> = seen.iter().filter(|request| request.status == Some(429)).collect();
    let passed = seen.len() - refused.len();
    assert!((1200..=1221).contains(&passed), "{passed}");
    assert!(refused.iter().all(|request| request.answered == Some(request.arrived)));
    assert!(refused.iter().all(|request| request.retry_after.is_some_and(|wait| wait <= Duration::from_secs(3))));
    server.stop();
    tokio::task::yield_now().await;
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.is_err());
}
