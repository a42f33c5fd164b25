//! The mock server's streams over raw sockets: what is written, when, and what it says of it afterwards.

use std::io::{ErrorKind, Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use millstream::mock::{
    Answer, Fault, LineEnd, MockConfig, MockServer, RecordedRequest, StreamFault, Streaming, ToolCall, Write,
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);

/// How the answer's body ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// As HTTP says it ends.
    Whole,
    /// With the connection.
    Closed,
    Reset,
    /// Not within the time that was given.
    Open,
}

struct Streamed {
    head: String,
    body: Vec<u8>,
    /// Chunks of the HTTP body.
    chunks: usize,
    end: End,
}

impl Streamed {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// Data of each event, `[DONE]` included.
    fn data(&self) -> Vec<String> {
        let text = self.text();
        let data = text.split("\n\n").filter(|event| !event.is_empty());
        data.filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: "))).map(str::to_owned).collect()
    }

    fn json(&self) -> Vec<Value> {
        self.data().iter().filter_map(|data| serde_json::from_str(data).ok()).collect()
    }

    /// What the choice says in all, at this place of its delta.
    fn joined(&self, choice: usize, pointer: &str) -> String {
        let deltas = self.json().into_iter().filter_map(|chunk| {
            let choices = chunk["choices"].as_array()?.clone();
            choices.into_iter().find(|of| of["index"] == choice)
        });
        deltas.filter_map(|of| Some(of["delta"].pointer(pointer)?.as_str()?.to_owned())).collect()
    }

    fn finish_reasons(&self) -> Vec<String> {
        let choices = self.json().into_iter().filter_map(|chunk| chunk["choices"].as_array().cloned()).flatten();
        choices.filter_map(|choice| Some(choice["finish_reason"].as_str()?.to_owned())).collect()
    }
}

struct Connection {
    socket: TcpStream,
    buffered: Vec<u8>,
}

impl Connection {
    fn open(server: &MockServer) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, buffered: Vec::new() }
    }

    fn send(&mut self, target: &str, body: &Value) {
        let body = body.to_string();
        let head = format!("POST {target} HTTP/1.1\r\nHost: mock\r\nContent-Length: {}\r\n\r\n", body.len());
        self.socket.write_all((head + &body).as_bytes()).unwrap();
    }

    fn more(&mut self) -> Option<End> {
        let mut some = vec![0; 1 << 16];
        match self.socket.read(&mut some) {
            Ok(0) => Some(End::Closed),
            Ok(count) => {
                self.buffered.extend_from_slice(&some[..count]);
                None
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(End::Reset),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                Some(End::Open)
            }
        }
    }

    /// Bytes up to and with `end`, if they come.
    fn take_to(&mut self, end: &[u8]) -> Result<Vec<u8>, End> {
        loop {
            if let Some(place) = self.buffered.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffered.drain(..place + end.len()).collect());
            }
            self.more().map_or(Ok(()), Err)?;
        }
    }

    fn receive(&mut self) -> Streamed {
        let head = String::from_utf8(self.take_to(b"\r\n\r\n").unwrap()).unwrap();
        let mut streamed = Streamed { head, body: Vec::new(), chunks: 0, end: End::Whole };
        loop {
            let line = match self.take_to(b"\r\n") {
                Ok(line) => String::from_utf8(line).unwrap(),
                Err(end) => return Streamed { end, ..streamed },
            };
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
            while self.buffered.len() < length + 2 {
                if let Some(end) = self.more() {
                    return Streamed { end, ..streamed };
                }
            }
            let chunk: Vec<u8> = self.buffered.drain(..length + 2).collect();
            if length == 0 {
                return streamed;
            }
            streamed.chunks += 1;
            streamed.body.extend_from_slice(&chunk[..length]);
        }
    }
}

fn chat(text: &str) -> Value {
    json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": text}]})
}

fn start() -> MockServer {
    MockServer::start(MockConfig::default()).unwrap()
}

fn ask(server: &MockServer, body: &Value) -> Streamed {
    let mut connection = Connection::open(server);
    connection.send("/v1/chat/completions", body);
    connection.receive()
}

fn until(server: &MockServer, claim: impl Fn(&RecordedRequest) -> bool) {
    let begun = Instant::now();
    while !server.requests().last().is_some_and(&claim) {
        assert!(begun.elapsed() < PATIENCE, "never came true: {:?}", server.requests().last());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn streams_a_role_the_words_a_reason_and_done() {
    let server = start();
    let streamed = ask(&server, &chat("hello \"you\" é"));
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    let data = streamed.data();
    assert_eq!((data.len(), data.last().unwrap().as_str(), streamed.chunks), (7, "[DONE]", 7));
    let chunks = streamed.json();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({"content": "echo:"}));
    assert_eq!(streamed.joined(0, "/content"), "echo: hello \"you\" é");
    assert_eq!((streamed.finish_reasons(), streamed.end), (vec!["stop".to_owned()], End::Whole));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["id"] == chunks[0]["id"]));
    let seen = &server.requests()[0];
    assert_eq!((seen.events, seen.written, seen.completed), (7, streamed.body.len() as u64, true));
}

#[test]
fn usage_comes_last_and_is_null_before_if_it_is_asked_for() {
    let server = start();
    let mut body = chat("one two three");
    body["stream_options"] = json!({"include_usage": true});
    let chunks = ask(&server, &body).json();
    let (last, others) = chunks.split_last().unwrap();
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
}

#[test]
fn a_connection_serves_another_request_after_a_stream() {
    let server = start();
    let mut connection = Connection::open(&server);
    for _ in 0..2 {
        connection.send("/v1/chat/completions", &chat("x"));
        assert_eq!(connection.receive().joined(0, "/content"), "echo: x");
    }
    assert_eq!(server.stats().connections, 1);
}

#[test]
fn says_what_it_is_told_for_every_choice() {
    let server = start();
    let tool = ToolCall { name: "weather".to_owned(), arguments: r#"{"city": "Köln"}"#.to_owned() };
    server.script([Answer {
        reasoning: Some("let me see".to_owned()),
        tool_calls: vec![tool.clone(), tool],
        finish_reason: Some("length".to_owned()),
        ..Answer::text("so be it")
    }]);
    let mut body = chat("x");
    body["n"] = 2.into();
    let streamed = ask(&server, &body);
    for choice in 0..2 {
        assert_eq!(streamed.joined(choice, "/content"), "so be it");
        assert_eq!(streamed.joined(choice, "/reasoning_content"), "let me see");
        assert_eq!(streamed.joined(choice, "/tool_calls/0/function/arguments"), r#"{"city": "Köln"}"#.repeat(2));
        assert_eq!(streamed.joined(choice, "/tool_calls/0/function/name"), "weatherweather");
    }
    assert_eq!(streamed.finish_reasons(), ["length", "length"]);
}

#[test]
fn any_number_of_pieces_in_any_lines_and_writes() {
    let server = start();
    for (write, line_end, end, chunks) in [
        (Write::Ready, LineEnd::Lf, "\n", Some(43)),
        (Write::Event, LineEnd::CrLf, "\r\n", Some(43)),
        (Write::Bytes(1), LineEnd::Cr, "\r", None),
        (Write::Bytes(7), LineEnd::Lf, "\n", None),
        (Write::All, LineEnd::CrLf, "\r\n", Some(1)),
    ] {
        let plan = Streaming { chunks: Some(40), write, line_end, ..Streaming::default() };
        server.script([Answer { stream: Some(plan), ..Answer::text("é ö") }]);
        let mut streamed = ask(&server, &chat("x"));
        let length = streamed.body.len();
        match write {
            Write::Bytes(most) => assert!((length / most..=length / most + 43).contains(&streamed.chunks), "{most}"),
            _ => assert_eq!(Some(streamed.chunks), chunks, "{write:?}"),
        }
        let text = streamed.text();
        assert_eq!(text.matches(end).count(), 86);
        assert_eq!(text.replace(end, "").find(['\r', '\n']), None);
        streamed.body = text.replace(end, "\n").into_bytes();
        assert_eq!(streamed.joined(0, "/content"), "é ö é ö".repeat(10).replace("öé", "ö é"));
    }
}

#[test]
fn keeps_its_pace_and_speaks_up_in_between() {
    let server = start();
    let (first, gap) = (Duration::from_millis(40), Duration::from_millis(10));
    let plan = Streaming {
        first,
        gaps: vec![gap],
        keep_alive: Some(Duration::from_millis(15)),
        comment: "still here".to_owned(),
        ..Streaming::default()
    };
    server.script([Answer::stream(plan)]);
    let begun = Instant::now();
    let streamed = ask(&server, &chat("one two three"));
    assert!(begun.elapsed() >= first + gap * 6, "{:?}", begun.elapsed());
    assert!(streamed.text().starts_with(": still here\n\n: still here\n\ndata: "), "{}", streamed.text());
    assert_eq!(streamed.text().matches(": still here").count(), 2);
    let plan = Streaming { keep_alive: Some(Duration::ZERO), ..Streaming::default() };
    server.script([Answer::stream(plan)]);
    let streamed = ask(&server, &chat("one"));
    assert_eq!(streamed.text().matches(": keep-alive\n\ndata: ").count(), 5);
}

#[test]
fn each_fault_of_a_stream_looks_on_the_wire_as_it_is_named() {
    let server = start();
    for (fault, events, end, done) in [
        (StreamFault::End, 2, End::Whole, false),
        (StreamFault::EndInEvent, 2, End::Whole, false),
        (StreamFault::EndInCharacter, 2, End::Whole, false),
        (StreamFault::Close, 2, End::Closed, false),
        (StreamFault::Reset, 2, End::Reset, false),
        (StreamFault::Stall, 2, End::Open, false),
        (StreamFault::Error, 3, End::Whole, false),
        (StreamFault::BadJson, 7, End::Whole, true),
        (StreamFault::NoFinish, 5, End::Whole, true),
        (StreamFault::NoDone, 5, End::Whole, false),
        (StreamFault::NeverEnds, 6, End::Open, true),
        (StreamFault::Garbage, 6, End::Whole, true),
    ] {
        server.clear();
        server.script([Answer::stream(Streaming::fault(fault, 2))]);
        let mut connection = Connection::open(&server);
        // How long nothing comes before it counts as left open.
        let silence = if end == End::Open { Duration::from_millis(400) } else { Duration::from_secs(10) };
        connection.socket.set_read_timeout(Some(silence)).unwrap();
        connection.send("/v1/chat/completions", &chat("one two"));
        let streamed = connection.receive();
        assert_eq!(streamed.end, end, "{fault:?}");
        let text = String::from_utf8_lossy(&streamed.body).into_owned();
        assert_eq!(text.contains("[DONE]"), done, "{fault:?}");
        until(&server, |seen| seen.events == events);
        if let StreamFault::NoFinish | StreamFault::NoDone = fault {
            assert_eq!(streamed.finish_reasons().len(), usize::from(fault == StreamFault::NoDone));
        }
        match fault {
            StreamFault::EndInEvent => assert!(!text.ends_with("\n\n") && text.contains("\n\ndata: {\"id\"")),
            StreamFault::EndInCharacter => assert_eq!(streamed.body.last(), Some(&0xc3)),
            StreamFault::Error => assert_eq!(streamed.json()[2]["error"]["type"], "server_error"),
            StreamFault::BadJson => assert!(streamed.data()[2].starts_with('{') && streamed.json().len() == 5),
            StreamFault::Garbage => assert!(std::str::from_utf8(&streamed.body).is_err()),
            _ => (),
        }
        drop(connection);
        let faulted = matches!(fault, StreamFault::Close | StreamFault::Reset);
        until(&server, |seen| faulted || seen.completed == (end == End::Whole) && seen.aborted == (end == End::Open));
        assert_eq!(server.stats().faulted, u64::from(faulted), "{fault:?}");
    }
}

#[test]
fn lines_and_comments_without_end_go_on_until_the_client_leaves() {
    let server = start();
    for (fault, flood) in [(StreamFault::EndlessLine, "x"), (StreamFault::EndlessComments, ": keep-alive\n\n")] {
        server.script([Answer::stream(Streaming::fault(fault, 0))]);
        let mut connection = Connection::open(&server);
        connection.send("/v1/chat/completions", &chat("x"));
        while connection.buffered.len() < 1 << 20 {
            assert_eq!(connection.more(), None);
        }
        assert!(String::from_utf8_lossy(&connection.buffered).matches(flood).count() > 1000);
        drop(connection);
        until(&server, |seen| seen.aborted && seen.events == 0);
    }
}

#[test]
fn faults_of_the_socket_hit_a_stream_in_the_middle() {
    let server = start();
    for (fault, end) in [(Fault::ResetInBody, End::Reset), (Fault::Truncate, End::Closed)] {
        server.script([Answer::fault(fault)]);
        let streamed = ask(&server, &chat("one two"));
        assert_eq!((streamed.data().len(), streamed.end), (3, end), "{fault:?}");
    }
    server.script([Answer { drip_interval: Duration::from_micros(1), ..Answer::fault(Fault::Drip) }]);
    let streamed = ask(&server, &chat("x"));
    assert_eq!((streamed.chunks, streamed.joined(0, "/content")), (streamed.body.len(), "echo: x".to_owned()));
}

#[test]
fn json_instead_of_a_stream_and_a_stream_of_anything() {
    let server = start();
    server.script([Answer::stream(Streaming::fault(StreamFault::Json, 0))]);
    let mut connection = Connection::open(&server);
    connection.send("/v1/chat/completions", &chat("x"));
    let head = String::from_utf8(connection.take_to(b"\r\n\r\n").unwrap()).unwrap();
    assert!(head.contains("content-type: application/json") && head.contains("content-length"), "{head}");
    let plan = Streaming { write: Write::Bytes(2), ..Streaming::default() };
    server.script([Answer { body: Some("data: é\n\nrest".into()), ..Answer::stream(plan) }]);
    let streamed = ask(&server, &json!({}));
    assert_eq!((streamed.text().as_str(), streamed.chunks), ("data: é\n\nrest", 7));
    assert!(streamed.head.contains("text/event-stream"));
}

#[test]
fn a_client_that_does_not_read_stops_the_server() {
    let server = start();
    let plan = Streaming { chunks: Some(1_000_000), ..Streaming::default() };
    server.script([Answer::stream(plan)]);
    let mut connection = Connection::open(&server);
    connection.send("/v1/chat/completions", &chat("x"));
    until(&server, |seen| seen.events > 1000);
    let mut before = 0;
    let written = loop {
        let written = server.requests()[0].written;
        if written == before {
            break written;
        }
        before = written;
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(written < 40 << 20, "{written}");
    drop(connection);
    until(&server, |seen| seen.aborted);
    assert!(server.requests()[0].events < 1_000_000);
}
