//! A real loopback HTTP server that plays an OpenAI-compatible provider, for tests and benchmarks.
//!
//! A client written in Rust cannot be intercepted from Python, and faults of a socket (a reset, a cut body, silence)
//! cannot be faked above it: so this is a server on 127.0.0.1, on an OS thread and a tokio runtime of its own, never the
//! client's. It speaks the APIs of several providers, whole and streamed, keeps requests-per-minute and tokens-per-minute limits as the provider does,
//! misbehaves on demand at the level of the socket, and tells what it saw.
//!
//! The way of one request, in this order: outage, API key (401), limits of `POST` requests (429), scripted answers ([`Answer`],
//! first [`MockServer::when`], then [`MockServer::script`]) or the default reply of its path, a slot, the latency. So a refused request uses up
//! no scripted answer.
//!
//! ```
//! use millstream::mock::{Answer, Fault, MockConfig, MockServer};
//!
//! # fn main() -> std::io::Result<()> {
//! let server = MockServer::start(MockConfig::default())?;
//! server.script([Answer::status(503), Answer::fault(Fault::ResetBefore)]); // then the default reply
//! let url = format!("{}/chat/completions", server.base_url());
//! # assert!(url.starts_with("http://127.0.0.1:") && url.ends_with("/v1/chat/completions"));
//! // … let the client under test loose on `url`, then:
//! assert_eq!(server.stats().requests, server.requests().len() as u64);
//! server.stop();
//! # Ok(())
//! # }
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `config` | what a server is started with |
//! | `server` | start, stop, the accept loop |
//! | `connection` | one socket: plain or TLS, HTTP/1.1 or HTTP/2, and how it is made to die |
//! | `exchange` | one request from its head to its answer |
//! | `body` | an answer's body, whole or spoilt |
//! | `script` | scripted answers and whom they are for |
//! | `limits` | the token buckets, for everyone or for each key |
//! | `dialect` | headers and errors of each provider |
//! | `slots` | requests worked at once, and the queue for them |
//! | `api` | what is asked and said, whatever the API |
//! | `route` | which API a path belongs to |
//! | `chat` | chat completions, also Mistral's and Azure's, and models |
//! | `anthropic` | Anthropic's Messages |
//! | `responses`, `completions`, `embeddings` | `OpenAI`'s other APIs |
//! | `batches` | files, batches and their results, of three vendors |
//! | `streaming` | how an answer is streamed |
//! | `sse` | the events of a stream |
//! | `stream_body` | a stream's body: its pace, its writes, its faults |
//! | `record` | what the server saw |

mod anthropic;
mod api;
mod batches;
mod body;
mod chat;
mod completions;
mod config;
mod connection;
mod dialect;
mod embeddings;
mod exchange;
mod limits;
mod record;
mod responses;
mod route;
mod script;
mod server;
mod slots;
mod sse;
mod stream_body;
mod streaming;

pub use api::ToolCall;
pub use config::{Base64, Dialect, Embedding, Latency, MockConfig, MockLimits, Reply, TlsFiles};
pub use record::{KeyStats, MockStats, RecordedRequest};
pub use script::{Answer, Fault};
pub use server::MockServer;
pub use streaming::{LineEnd, StreamFault, Streaming, Write};
