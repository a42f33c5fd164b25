//! Files carried through over real sockets: what the server saw, and what stands in the output.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::{Control, StopReason, StopRules};
use millstream::engine::config::Endpoint;
use millstream::engine::error::{Error, Kind};
use millstream::engine::jobs::{self, Counts, Defaults, Job, Layout, Summary};
use millstream::engine::keys::UpstreamConfig;
use millstream::engine::limit::Window;
use millstream::engine::pipeline::{Bulk, Pipeline};
use millstream::engine::provider::Provider;
use millstream::engine::service::Service;
use millstream::mock::{Answer, Dialect, MockConfig, MockServer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{pipeline, pipeline_over};

/// A folder, gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("millstream-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn job(&self, lines: &[Value]) -> Job {
        let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
        self.job_of(&(lines.join("\n") + "\n"))
    }

    fn job_of(&self, text: &str) -> Job {
        let job = Job { input: self.0.join("in"), output: self.0.join("out"), resume: true, ..Job::default() };
        fs::write(&job.input, text).unwrap();
        job
    }

    fn results(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.0.join("out")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bulk(pipeline: Pipeline, places: usize) -> Pipeline {
    let bulk = Bulk {
        window: Some(Window::fixed(places)),
        holds_on: true,
        parking: Arc::default(),
        stopped: CancellationToken::new(),
    };
    Pipeline { bulk: Some(bulk), window: None, retry: pipeline.retry.clone().in_bulk(), ..pipeline }
}

fn defaults(pipeline: &Pipeline) -> Defaults {
    Defaults {
        keys: Arc::clone(&pipeline.keys),
        model: Some("default-model".to_owned()),
        system: None,
        fields: String::new(),
        headers: None,
        query: Arc::new([]),
        fallbacks: Vec::new(),
        priority: 0,
    }
}

async fn run(pipeline: Pipeline, job: Job, control: Arc<Control>, counts: Arc<Counts>) -> Result<Summary, Error> {
    let prepared = jobs::prepare(job, defaults(&pipeline), counts).await?;
    jobs::carry(prepared, bulk(pipeline, 8), Vec::new(), control).await
}

async fn carry(pipeline: Pipeline, job: Job) -> Result<Summary, Error> {
    run(pipeline, job, Arc::default(), Arc::default()).await
}

fn server() -> MockServer {
    MockServer::start(MockConfig::default()).unwrap()
}

fn prompts(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"custom_id": format!("i{number}"), "prompt": format!("p{number}")})).collect()
}

fn by_id(results: &[Value]) -> HashMap<String, Value> {
    let map: HashMap<_, _> =
        results.iter().map(|result| (result["custom_id"].as_str().unwrap().to_owned(), result.clone())).collect();
    assert_eq!(map.len(), results.len(), "a result stands twice");
    map
}

fn text(result: &Value) -> &str {
    result["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn every_form_of_line_is_asked_and_an_openai_body_goes_out_as_it_stands() {
    let (server, folder) = (server(), Folder::new());
    let body = r#"{ "model":"m",  "messages":[{"role":"user","content":"as it stands"}],"temperature":0.50 }"#;
    let input = format!(
        "\u{feff}{{\"custom_id\":\"openai\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body},\"row\":7}}\r\n\
         \n\
         {{\"custom_id\":\"prompt\",\"prompt\":\"short\",\"temperature\":0.25}}\n\
         {{\"custom_id\":\"anthropic\",\"params\":{{\"model\":\"m\",\"max_tokens\":9,\"system\":\"s\",\
         \"messages\":[{{\"role\":\"user\",\"content\":\"claude's\"}}]}}}}\n\
         {{\"custom_id\":\"vectors\",\"url\":\"/v1/embeddings\",\"body\":{{\"model\":\"m\",\"input\":[\"a\",\"b\"]}}}}\n\
         nonsense\n\
         {{\"messages\":[{{\"role\":\"user\",\"content\":\"no id\"}}]}}\n\
         {{\"messages\":[{{\"role\":\"user\",\"content\":\"no id\"}}]}}"
    );
    let summary = carry(pipeline(&server), folder.job_of(&input)).await.unwrap();
    assert_eq!((summary.total, summary.ok, summary.failed, summary.bad_lines), (7, 6, 0, 1));
    assert_eq!((summary.problems.len(), summary.problems[0].line), (1, 6));
    let results = by_id(&folder.results());
    assert_eq!(text(&results["openai"]), "echo: as it stands");
    assert_eq!(results["openai"]["metadata"], json!({"row": 7}));
    assert_eq!(text(&results["prompt"]), "echo: short");
    assert_eq!(text(&results["anthropic"]), "echo: claude's");
    assert_eq!(results["vectors"]["response"]["body"]["data"].as_array().unwrap().len(), 2);
    let unnamed: Vec<_> = results.iter().filter(|(id, _)| id.starts_with("h-")).collect();
    assert_eq!(unnamed.len(), 3);
    assert_eq!(unnamed.iter().filter(|(id, _)| id.ends_with("-2")).count(), 1);
    assert_eq!(unnamed.iter().filter(|(_, result)| result["error"]["code"] == "invalid_request_line").count(), 1);
    let sent: Vec<_> = server.requests().iter().map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect();
    assert!(sent.iter().any(|sent| sent == body), "{sent:?}");
    assert!(sent.iter().any(|sent| sent.contains("default-model") && sent.contains("0.25")), "{sent:?}");
}

#[tokio::test]
async fn a_file_of_openais_format_works_with_another_provider() {
    let folder = Folder::new();
    let server = MockServer::start(MockConfig { dialect: Dialect::Anthropic, ..MockConfig::default() }).unwrap();
    let service = Service::of(Provider::Anthropic);
    let endpoint = Endpoint::of(service, &server.root_url(), None, &[], false).unwrap();
    let pipeline = pipeline_over(vec![UpstreamConfig::new(Arc::new(endpoint))]);
    let ask = json!([{"role": "user", "content": "hi"}]);
    let lines = [
        json!({"custom_id": "chat", "url": "/v1/chat/completions", "body": {"model": "m", "max_tokens": 5, "messages": ask}}),
        json!({"custom_id": "own", "params": {"model": "m", "max_tokens": 5, "messages": ask}}),
    ];
    let summary = carry(pipeline, folder.job(&lines)).await.unwrap();
    assert_eq!((summary.ok, summary.problems.len()), (2, 0), "{:?}", folder.results());
    let results = by_id(&folder.results());
    assert_eq!(text(&results["chat"]), "echo: hi");
    assert_eq!(results["own"]["response"]["body"]["content"][0]["text"], "echo: hi");
}

#[tokio::test]
async fn what_is_answered_is_not_asked_again_and_what_failed_only_if_wanted() {
    let (server, folder) = (server(), Folder::new());
    server.when("p3\"", vec![Answer::status(400)]);
    let mut job = folder.job(&prompts(10));
    let first = carry(pipeline(&server), job.clone()).await.unwrap();
    assert_eq!((first.ok, first.failed), (9, 1));
    let asked = server.stats().requests;
    let again = carry(pipeline(&server), job.clone()).await.unwrap();
    assert_eq!((again.total, again.skipped, again.ok, again.failed), (10, 10, 0, 0));
    assert_eq!(server.stats().requests, asked);
    job.retry_failed = true;
    let third = carry(pipeline(&server), job).await.unwrap();
    assert_eq!((third.skipped, third.ok), (9, 1));
    assert_eq!(server.stats().requests, asked + 1);
    assert!(by_id(&folder.results()).values().all(|result| result["response"]["status_code"] == 200));
}

#[tokio::test]
async fn nothing_is_sent_of_a_file_that_is_not_in_order() {
    let (server, folder) = (server(), Folder::new());
    let mut lines = prompts(3);
    lines.push(json!({"custom_id": "i1", "prompt": "other"}));
    let error = carry(pipeline(&server), folder.job(&lines)).await.unwrap_err();
    assert!(error.to_string().contains("lines 2 and 4 have the same custom_id, \"i1\""), "{error}");

    let mut strict = folder.job_of("{\"prompt\":\"a\"}\n{}\n");
    strict.strict = true;
    let error = carry(pipeline(&server), strict).await.unwrap_err();
    assert!(error.to_string().contains("line 2: it has none of"), "{error}");
    assert_eq!(server.stats().requests, 0);

    carry(pipeline(&server), folder.job(&prompts(2))).await.unwrap();
    let changed =
        folder.job(&[json!({"custom_id": "i0", "prompt": "p0"}), json!({"custom_id": "i1", "prompt": "new"})]);
    let error = carry(pipeline(&server), changed.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Configuration);
    assert!(error.to_string().contains("line 2") && error.to_string().contains("another request"), "{error}");
    let error = carry(pipeline(&server), Job { resume: false, ..changed.clone() }).await.unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    let onto_itself = Job { output: changed.input.clone(), ..changed };
    assert!(carry(pipeline(&server), onto_itself).await.unwrap_err().to_string().contains("is the input"));
    assert_eq!(server.stats().requests, 2);
}

#[tokio::test]
async fn the_order_is_kept_where_it_is_wanted_however_answers_come() {
    let folder = Folder::new();
    let latency = millstream::mock::Latency::LogNormal { median: Duration::from_millis(4), sigma: 1.5 };
    let server = MockServer::start(MockConfig { latency, ..MockConfig::default() }).unwrap();
    let job = Job { ordered: true, ..folder.job(&prompts(100)) };
    carry(pipeline(&server), job).await.unwrap();
    let ids: Vec<_> = folder.results().iter().map(|result| result["custom_id"].clone()).collect();
    assert_eq!(ids, (0..100).map(|number| json!(format!("i{number}"))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stopped_run_writes_what_was_on_the_wire_and_the_next_does_the_rest() {
    let folder = Folder::new();
    let latency = millstream::mock::Latency::Fixed(Duration::from_millis(20));
    let server = MockServer::start(MockConfig { latency, ..MockConfig::default() }).unwrap();
    let job = folder.job(&prompts(400));
    let control = Arc::new(Control::new(StopRules::default()));
    let counts: Arc<Counts> = Arc::default();
    let pipeline_of = || pipeline(&server);
    let carried = {
        let (pipeline, control, counts) = (pipeline_of(), Arc::clone(&control), Arc::clone(&counts));
        tokio::spawn(run(pipeline, job.clone(), control, counts))
    };
    while counts.written() < 20 {
        tokio::task::yield_now().await;
    }
    control.stop(StopReason::Interrupted, Duration::from_secs(30));
    let summary = carried.await.unwrap().unwrap();
    assert_eq!(summary.stopped, Some(StopReason::Interrupted));
    assert!((20..400).contains(&summary.ok), "{summary:?}");
    assert_eq!(server.stats().requests, summary.ok);
    assert_eq!(folder.results().len() as u64, summary.ok);
    let rest = carry(pipeline_of(), job).await.unwrap();
    assert_eq!((rest.skipped, rest.ok + rest.skipped, server.stats().requests), (summary.ok, 400, 400));
    assert_eq!(by_id(&folder.results()).len(), 400);
}

#[tokio::test]
async fn a_dropped_run_gives_its_output_back_with_what_was_answered() {
    let folder = Folder::new();
    let latency = millstream::mock::Latency::Fixed(Duration::from_millis(5));
    let server = MockServer::start(MockConfig { latency, ..MockConfig::default() }).unwrap();
    let job = folder.job(&prompts(300));
    let counts: Arc<Counts> = Arc::default();
    let carried = {
        let pipeline = pipeline(&server);
        tokio::spawn(run(pipeline, job.clone(), Arc::default(), Arc::clone(&counts)))
    };
    while counts.written() < 20 {
        tokio::task::yield_now().await;
    }
    carried.abort();
    let _ = carried.await;
    let rest = async {
        loop {
            match carry(pipeline(&server), job.clone()).await {
                Err(error) if error.kind() == Kind::Journal => tokio::task::yield_now().await,
                other => return other.unwrap(),
            }
        }
    };
    let rest = tokio::time::timeout(Duration::from_secs(30), rest).await.unwrap();
    assert!(rest.skipped >= 20);
    assert_eq!((rest.ok + rest.skipped, by_id(&folder.results()).len()), (300, 300));
    assert!(server.stats().requests <= 300 + 8);
}

#[tokio::test]
async fn the_key_is_in_no_file_and_bare_results_are_openais_alone() {
    let (server, folder) = (server(), Folder::new());
    server.script([Answer {
        body: Some(r#"{"error":{"message":"bad sk-canary-0123456789"}}"#.into()),
        ..Answer::status(400)
    }]);
    let job = Job { layout: Layout { bare: true }, ..folder.job(&prompts(5)) };
    carry(pipeline(&server), job.clone()).await.unwrap();
    let text = fs::read_to_string(&job.output).unwrap();
    assert!(text.contains("***") && !text.contains("sk-canary") && !text.contains("millstream"), "{text}");
    let again = carry(pipeline(&server), job).await.unwrap();
    assert_eq!(again.skipped, 5);
}
