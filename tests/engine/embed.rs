//! Texts to rows over real sockets: how they are packed, what is learnt of a server, and who is to blame for a refusal.

use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use millstream::engine::batch::{Control, StopReason};
use millstream::engine::embed::{
    Embed, EmbedCalls, Embedded, LearntModels, OnError, PackLimits, PackSizes, Shape, Texts, TooLong,
};
use millstream::engine::error::{Error, Kind};
use millstream::engine::limit::{RateLimiter, RateLimits};
use millstream::engine::pipeline::Pipeline;
use millstream::mock::{Answer, Base64, Embedding, MockConfig, MockServer};
use serde_json::{Value, json};

use super::pipeline::{batch, pipeline};

pub(super) struct Client {
    pub(super) server: MockServer,
    pub(super) pipeline: Pipeline,
    learnt: LearntModels,
}

pub(super) fn client(embeddings: Embedding) -> Client {
    let server = MockServer::start(MockConfig { embeddings, ..MockConfig::default() }).unwrap();
    let pipeline = batch(pipeline(&server), 8).pipeline;
    Client { server, pipeline, learnt: LearntModels::default() }
}

impl Client {
    pub(super) fn embed(&self, sizes: PackSizes) -> Embed {
        let keys = &self.pipeline.keys;
        let endpoints = keys.upstreams().iter().map(|upstream| &*upstream.endpoint);
        Embed {
            calls: EmbedCalls {
                model: "e".to_owned(),
                fields: String::new(),
                lanes: keys.lanes("e"),
                headers: None,
                query: Arc::new([]),
                priority: 0,
            },
            limits: PackLimits::of_all(endpoints, sizes),
            is_sized: sizes.items.is_some(),
            form: None,
            learnt: self.learnt.of("e"),
            too_long: TooLong::Fails,
            on_error: OnError::Raise,
            shape: Shape::default(),
            dedupe: true,
            first: 0,
            pipeline: self.pipeline.clone(),
        }
    }

    async fn all(&self, texts: &[String]) -> Embedded {
        self.embed(PackSizes::default()).run(of(texts)).await.unwrap()
    }

    /// How many texts each request had, in the order of their coming, and in which form it asked.
    fn requests(&self) -> Vec<(usize, String)> {
        let body = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap();
        let seen = self.server.requests();
        let of = |body: Value| {
            let form = body["encoding_format"].as_str().unwrap().to_owned();
            (body["input"].as_array().unwrap().len(), form)
        };
        seen.iter().map(|request| of(body(&request.body))).collect()
    }

    pub(super) fn counts(&self) -> Vec<usize> {
        self.requests().into_iter().map(|(count, _)| count).collect()
    }
}

pub(super) fn of(texts: &[String]) -> Texts {
    Texts { texts: texts.to_vec(), ..Texts::default() }
}

pub(super) fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text {number}")).collect()
}

pub(super) fn items(items: usize) -> PackSizes {
    PackSizes { items: Some(items), ..PackSizes::default() }
}

/// What the server gives each text alone.
pub(super) async fn alone(texts: &[String]) -> Vec<Vec<f32>> {
    let client = client(Embedding::default());
    let embedded = client.embed(items(1)).run(of(texts)).await.unwrap();
    embedded.numbers.chunks(embedded.dimensions).map(<[f32]>::to_vec).collect()
}

pub(super) fn rows(embedded: &Embedded) -> Vec<Vec<f32>> {
    embedded.numbers.chunks(embedded.dimensions.max(1)).map(<[f32]>::to_vec).collect()
}

#[tokio::test]
async fn every_row_is_its_texts_in_whatever_order_and_form_they_come() {
    let texts = texts(300);
    let expected = alone(&texts).await;
    for base64 in [Base64::Given, Base64::Ignored, Base64::Refused] {
        let client = client(Embedding { shuffle: true, base64, ..Embedding::default() });
        let embedded = client.all(&texts).await;
        assert_eq!((embedded.rows, embedded.dimensions, embedded.model.as_str()), (300, 8, "e"));
        for (row, expected) in rows(&embedded).iter().zip(&expected) {
            assert!(row.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-7), "{base64:?}");
        }
        let tokens: usize = texts.iter().map(|text| text.len().div_ceil(4)).sum();
        assert_eq!(embedded.usage.unwrap().prompt_tokens, tokens as u64);
    }
}

#[tokio::test]
async fn texts_are_spread_over_packs_and_a_batch_size_is_kept() {
    let client = client(Embedding::default());
    client.all(&texts(300)).await;
    assert_eq!(client.counts(), [128, 128, 44]);
    client.server.clear();
    let limits = PackLimits { items: 2048, ..PackLimits::USUAL };
    Embed { limits, ..client.embed(PackSizes::default()) }.run(of(&texts(8000))).await.unwrap();
    assert_eq!(client.counts(), [500; 16]);
    client.server.clear();
    client.embed(items(70)).run(of(&texts(100))).await.unwrap();
    assert_eq!(client.counts(), [70, 30]);
}

#[tokio::test]
async fn a_call_that_is_stopped_is_no_result_whatever_becomes_of_errors() {
    for on_error in [OnError::Raise, OnError::Blank, OnError::Return] {
        let client = client(Embedding::default());
        let control = Arc::new(Control::default());
        control.stop(StopReason::Interrupted, Duration::from_secs(60));
        let embed = Embed { on_error, ..client.embed(items(1)) };
        let stopped = embed.run_until(of(&texts(20)), control).await.unwrap_err();
        assert_eq!((stopped.kind(), client.counts().len()), (Kind::Stopped, 0), "{on_error:?}");
    }
}

#[tokio::test]
async fn packs_are_filled_by_tokens_as_well() {
    let client = client(Embedding::default());
    let sizes = PackSizes { tokens_per_request: Some(100), ..PackSizes::default() };
    let texts: Vec<_> = (0..10).map(|number| format!("{number}{}", "x".repeat(119))).collect();
    client.embed(sizes).run(of(&texts)).await.unwrap();
    // 30 tokens each, of 90.
    assert_eq!(client.counts(), [3, 3, 3, 1]);
}

#[tokio::test]
async fn equal_texts_are_sent_once() {
    let client = client(Embedding::default());
    let texts = ["a", "b", "a", "a"].map(str::to_owned);
    let embedded = client.all(&texts).await;
    assert_eq!(client.counts(), [2]);
    let rows = rows(&embedded);
    assert!(rows[0] == rows[2] && rows[0] == rows[3] && rows[0] != rows[1]);
    let all = Embed { dedupe: false, ..client.embed(PackSizes::default()) };
    assert_eq!(all.run(of(&texts)).await.unwrap().numbers, embedded.numbers);
    assert_eq!(client.counts(), [2, 4]);
}

#[tokio::test]
async fn nothing_is_sent_for_nothing() {
    let client = client(Embedding::default());
    let shape = Shape { dimensions: Some(3), ..Shape::default() };
    let embedded = Embed { shape, ..client.embed(PackSizes::default()) }.run(Texts::default()).await.unwrap();
    assert_eq!((embedded.rows, embedded.dimensions, embedded.requests), (0, 3, 0));
}

#[tokio::test]
async fn a_server_that_refuses_base64_is_asked_for_it_once() {
    let client = client(Embedding { base64: Base64::Refused, ..Embedding::default() });
    client.embed(items(10)).run(of(&texts(10))).await.unwrap();
    client.embed(items(10)).run(of(&texts(20))).await.unwrap();
    let forms: Vec<_> = client.requests().into_iter().map(|(_, form)| form).collect();
    assert_eq!(forms, ["base64", "float", "float", "float"]);
}

#[tokio::test]
async fn a_server_that_takes_fewer_texts_gets_fewer_from_then_on() {
    let client = client(Embedding { inputs: 32, ..Embedding::default() });
    let texts = texts(256);
    let embedded = client.all(&texts).await;
    assert_eq!(rows(&embedded), alone(&texts).await);
    assert!(client.counts().iter().any(|count| *count > 32));
    client.server.clear();
    client.all(&texts).await;
    assert_eq!(client.counts(), [32; 8]);
}

#[tokio::test]
async fn one_bad_text_fails_alone_and_the_others_have_their_vectors() {
    let texts = {
        let mut texts = texts(200);
        texts[77] = "BAD".to_owned();
        texts
    };
    let good = alone(&texts).await;
    for status in [400, 413, 422, 500] {
        let client = client(Embedding::default());
        client.server.when("BAD", [Answer { times: 0, ..Answer::status(status) }]);
        for on_error in [OnError::Blank, OnError::Return] {
            let embed = Embed { on_error, ..client.embed(PackSizes::default()) };
            let embedded = embed.run(of(&texts)).await.unwrap();
            assert_eq!(embedded.errors.len(), 1);
            let (row, error) = &embedded.errors[0];
            assert_eq!((*row, error.status(), error.index()), (77, Some(status), Some(77)));
            assert!(error.to_string().starts_with("texts[77]: "), "{error}");
            for (place, (row, good)) in rows(&embedded).iter().zip(&good).enumerate() {
                assert!(if place == 77 { row.iter().all(|number| number.is_nan()) } else { row == good }, "{place}");
            }
        }
        let error = client.embed(PackSizes::default()).run(of(&texts)).await.unwrap_err();
        assert_eq!((error.status(), error.index()), (Some(status), Some(77)));
        // A text's own fault says nothing of how much the server takes.
        assert_eq!(client.learnt.of("e").items(), usize::MAX);
    }
}

#[tokio::test]
async fn a_request_that_fails_for_every_text_is_not_taken_apart_text_by_text() {
    let client = client(Embedding::default());
    client.server.when("\"e\"", [Answer { times: 0, ..Answer::status(400) }]);
    let embed = |on_error| Embed { on_error, ..client.embed(PackSizes::default()) };
    let embedded = embed(OnError::Return).run(of(&texts(1000))).await.unwrap();
    assert_eq!((embedded.errors.len(), embedded.dimensions), (1000, 0));
    assert!(client.counts().len() < 200, "{} requests", client.counts().len());
    let error = embed(OnError::Blank).run(of(&texts(1000))).await.unwrap_err();
    assert_eq!(error.status(), Some(400));
}

#[tokio::test]
async fn a_fault_that_is_no_texts_ends_the_call_unless_all_are_wanted() {
    let client = client(Embedding::default());
    client.server.when("\"e\"", [Answer { times: 0, ..Answer::status(404) }]);
    let embed = |on_error| Embed { on_error, ..client.embed(PackSizes::default()) };
    for on_error in [OnError::Raise, OnError::Blank] {
        assert_eq!(embed(on_error).run(of(&texts(3))).await.unwrap_err().status(), Some(404));
    }
    let embedded = embed(OnError::Return).run(of(&texts(3))).await.unwrap();
    assert_eq!(embedded.errors.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(client.counts(), [3; 3]);
}

#[tokio::test]
async fn a_pack_that_is_larger_than_the_rate_limit_is_sent_in_parts() {
    let mut client = client(Embedding::default());
    let limits = RateLimits::per_minute(None, Some(40_000.0));
    client.pipeline.limiter = Some(Arc::new(RateLimiter::new(limits).unwrap()));
    let texts: Vec<_> = (0..8).map(|number| format!("{number}{}", "x".repeat(19_999))).collect();
    let embedded = client.all(&texts).await;
    assert_eq!((embedded.rows, embedded.errors.len()), (8, 0));
    assert_eq!(client.counts(), [4, 4]);
}

#[tokio::test]
async fn what_is_too_long_is_cut_or_its_parts_are_averaged() {
    let long = "one two three four five six seven eight nine ten".to_owned();
    let texts = ["short".to_owned(), long];
    for sizes in [PackSizes::default(), PackSizes { tokens_per_input: Some(5), ..PackSizes::default() }] {
        let client = client(Embedding { input_tokens: Some(5), ..Embedding::default() });
        let embed = |too_long| Embed { too_long, on_error: OnError::Blank, ..client.embed(sizes) };
        let failed = embed(TooLong::Fails).run(of(&texts)).await.unwrap();
        assert_eq!(failed.errors.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [1]);
        for too_long in [TooLong::IsCut, TooLong::IsSplit] {
            let embedded = embed(too_long).run(of(&texts)).await.unwrap();
            assert!(embedded.errors.is_empty());
            assert_eq!(rows(&embedded)[0], alone(&texts).await[0]);
            let length: f32 = rows(&embedded)[1].iter().map(|number| number * number).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
}

#[tokio::test]
async fn a_text_that_is_known_to_be_too_long_is_not_sent() {
    let client = client(Embedding::default());
    let sizes = PackSizes { tokens_per_input: Some(5), ..PackSizes::default() };
    let given = || Texts { tokens: Some(vec![1, 6, 5]), ..of(&texts(3)) };
    let embed = |on_error| Embed { on_error, ..client.embed(sizes) };
    let error = embed(OnError::Raise).run(given()).await.unwrap_err();
    assert_eq!((error.kind(), error.index(), client.counts().len()), (Kind::InputTooLarge, Some(1), 0));
    let embedded = embed(OnError::Blank).run(given()).await.unwrap();
    assert_eq!((embedded.errors.len(), client.counts()), (1, vec![2]));
    assert!(rows(&embedded)[1].iter().all(|number| number.is_nan()) && !rows(&embedded)[2][0].is_nan());
}

#[tokio::test]
async fn parts_weigh_by_their_length() {
    let client = client(Embedding::default());
    let parts = ["aaa", "b", "whole"].map(str::to_owned).to_vec();
    let vectors = alone(&parts).await;
    let given = Texts { texts: parts, tokens: Some(vec![1, 1, 1]), rows: Some(vec![0, 0, 1]) };
    let embedded = client.embed(PackSizes::default()).run(given).await.unwrap();
    let mut mean: Vec<_> = vectors[0].iter().zip(&vectors[1]).map(|(one, other)| 0.75 * one + 0.25 * other).collect();
    let length = mean.iter().map(|number| number * number).sum::<f32>().sqrt();
    for number in &mut mean {
        *number /= length;
    }
    let rows = rows(&embedded);
    assert!(rows[0].iter().zip(&mean).all(|(one, other)| (one - other).abs() < 1e-6));
    assert_eq!((rows.len(), &rows[1]), (2, &vectors[2]));
}

#[tokio::test]
async fn rows_are_cut_and_brought_to_length_1_on_request() {
    let client = client(Embedding::default());
    let texts = texts(3);
    let whole = alone(&texts).await;
    let shape = Shape { truncate: Some(2), ..Shape::default() };
    let embedded = Embed { shape, ..client.embed(PackSizes::default()) }.run(of(&texts)).await.unwrap();
    for (row, whole) in rows(&embedded).iter().zip(&whole) {
        assert!((row[0] / row[1] - whole[0] / whole[1]).abs() < 1e-3);
        assert!((row[0].hypot(row[1]) - 1.0).abs() < 1e-6);
    }
    let shape = Shape { truncate: Some(9), ..Shape::default() };
    let error = Embed { shape, ..client.embed(PackSizes::default()) }.run(of(&texts)).await.unwrap_err();
    assert!(error.to_string().contains("truncate_dim is 9"), "{error}");
    let shape = Shape { dimensions: Some(9), ..Shape::default() };
    let error = Embed { shape, ..client.embed(PackSizes::default()) }.run(of(&texts)).await.unwrap_err();
    assert!(error.to_string().contains("dimensions=9"), "{error}");
}

pub(super) fn body(rows: &[(usize, &[f32])]) -> String {
    let encode =
        |row: &[f32]| BASE64_STANDARD.encode(row.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>());
    let data: Vec<_> = rows.iter().map(|(index, row)| json!({"index": index, "embedding": encode(row)})).collect();
    json!({"object": "list", "data": data, "model": "e"}).to_string()
}

pub(super) fn answer(body: &str) -> Answer {
    Answer { body: Some(body.to_owned().into()), ..Answer::default() }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_again() {
    let good: [f32; 8] = [1.0; 8];
    for bad in [
        body(&[(0, &good)]),
        body(&[(0, &good), (0, &good)]),
        body(&[(0, &good), (2, &good)]),
        body(&[(0, &good), (1, &good[..7])]),
    ] {
        let client = client(Embedding::default());
        client.server.script([answer(&bad)]);
        let embedded = client.all(&texts(2)).await;
        assert_eq!((embedded.dimensions, client.counts()), (8, vec![2, 2]));
    }
}

#[tokio::test]
async fn vectors_of_another_length_than_the_rest_are_an_error_in_the_end() {
    let client = client(Embedding::default());
    client.server.when("text 1", [Answer { times: 0, ..answer(&body(&[(0, &[1.0])])) }]);
    let embed = Embed { on_error: OnError::Return, ..client.embed(items(1)) };
    let pipeline = batch(pipeline(&client.server), 1).pipeline;
    let embedded = Embed { pipeline, ..embed }.run(of(&texts(3))).await.unwrap();
    let (row, error): &(usize, Error) = &embedded.errors[0];
    assert_eq!((*row, error.kind(), embedded.errors.len()), (1, Kind::InvalidResponse, 1));
    assert_eq!(client.counts().len(), 5);
}

#[tokio::test]
async fn one_busy_moment_makes_no_packs_smaller() {
    let client = client(Embedding::default());
    client.server.script((0..3).map(|_| Answer::status(500)));
    client.all(&texts(128)).await;
    assert_eq!(client.learnt.of("e").items(), usize::MAX);
    client.server.clear();
    client.server.script([Answer::status(429)]);
    client.all(&texts(128)).await;
    assert_eq!(client.counts(), [128, 128]);
}
