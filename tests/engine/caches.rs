//! What a cache has is not asked again: what of it the server sees, and what becomes of those who wait for the same.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::OnError;
use millstream::engine::cache::{AlsoKept, Cache, CacheConfig, Place, Stats};
use millstream::engine::config::Timeouts;
use millstream::engine::error::Kind;
use millstream::engine::limit::{RateLimiter, RateLimits, Window};
use millstream::engine::pipeline::{Caching, Pipeline};
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::stream::{Feed, Piece, Taken, Wanted, Writer};
use millstream::engine::types::{ChatCompletion, Prompt, Text};
use millstream::mock::{Answer, Latency, MockConfig, MockServer};
use tokio::task::JoinSet;

use super::pipeline::{ask, batch, calls, pipeline, pipeline_over, server, upstream};

fn memory() -> Arc<Cache> {
    Arc::new(Cache::open(CacheConfig::new(Place::Memory, 1 << 20)).unwrap())
}

fn with(pipeline: Pipeline, cache: &Arc<Cache>) -> Pipeline {
    Pipeline { caching: Some(Caching::new(Arc::clone(cache))), ..pipeline }
}

fn slow_server(latency: Duration) -> MockServer {
    MockServer::start(MockConfig { latency: Latency::Fixed(latency), ..MockConfig::default() }).unwrap()
}

async fn counted(cache: &Cache) -> (u64, u64, u64) {
    let Stats { hits, misses, shared, .. } = cache.stats().await;
    (hits, misses, shared)
}

/// The number of requests that the server has seen.
fn seen(server: &MockServer) -> u64 {
    server.stats().requests
}

#[tokio::test]
async fn what_was_answered_is_not_asked_again() {
    let (server, cache) = (server(), memory());
    let pipeline = with(pipeline(&server), &cache);
    let (first, asked) = ask(&pipeline, "hi").await.unwrap();
    let (again, kept) = ask(&pipeline, "hi").await.unwrap();
    assert_eq!((again, &kept.body), (first, &asked.body));
    assert_eq!((asked.cached, asked.attempts, kept.cached, kept.attempts), (false, 1, true, 0));
    assert_eq!(seen(&server), 1);
    ask(&pipeline, "something else").await.unwrap();
    assert_eq!(seen(&server), 2);
    let stats = cache.stats().await;
    assert_eq!((stats.hits, stats.misses, stats.stored, stats.entries), (1, 2, 2, 2));
    let usage = asked.body;
    let saved = stats.saved[0].1;
    assert_eq!((stats.saved[0].0.as_str(), saved.answers), ("mock-model", 1), "{usage:?}");
    assert!(saved.prompt_tokens > 0 && saved.completion_tokens > 0);
    let metrics = pipeline.metrics.snapshot();
    assert_eq!((metrics.requests, metrics.succeeded, metrics.attempts), (3, 3, 2));
}

#[tokio::test]
async fn a_hit_takes_no_place_and_nothing_of_a_limit() {
    let (server, cache) = (server(), memory());
    let limiter = RateLimiter::new(RateLimits::per_minute(Some(1.0), None)).unwrap();
    let pipeline = Pipeline {
        window: Some(Window::fixed(1)),
        limiter: Some(Arc::new(limiter)),
        ..with(pipeline(&server), &cache)
    };
    ask(&pipeline, "hi").await.unwrap();
    // The only request of the minute is spent, and the only place is taken.
    let place = pipeline.window.as_ref().unwrap().acquire(millstream::engine::limit::Ticket::draw(), 0).await;
    for _ in 0..100 {
        assert!(ask(&pipeline, "hi").await.unwrap().1.cached);
    }
    drop(place);
    assert_eq!(seen(&server), 1);
}

#[tokio::test]
async fn those_who_ask_the_same_at_once_are_one_request() {
    let (server, cache) = (slow_server(Duration::from_millis(100)), memory());
    let pipeline = with(pipeline(&server), &cache);
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let pipeline = pipeline.clone();
        asking.spawn(async move { ask(&pipeline, "hi").await.unwrap().1 });
    }
    let receipts = asking.join_all().await;
    assert_eq!(seen(&server), 1);
    assert_eq!(receipts.iter().filter(|receipt| !receipt.cached && receipt.attempts == 1).count(), 1);
    assert_eq!(counted(&cache).await, (0, 1, 49));
    assert_eq!(pipeline.metrics.snapshot().succeeded, 50);
    assert_eq!(cache.flight().count(), 0);
}

#[tokio::test]
async fn one_who_leaves_leaves_the_others_their_answer() {
    for leaves in [0, 1, 2] {
        let (server, cache) = (slow_server(Duration::from_millis(200)), memory());
        let pipeline = with(pipeline(&server), &cache);
        let mut asking: Vec<_> = (0..3)
            .map(|_| {
                let pipeline = pipeline.clone();
                tokio::spawn(async move { ask(&pipeline, "hi").await })
            })
            .collect();
        while seen(&server) == 0 {
            tokio::task::yield_now().await;
        }
        let left = asking.remove(leaves);
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        for each in asking {
            assert!(each.await.unwrap().is_ok());
        }
        assert_eq!(seen(&server), 1, "the one in place {leaves} left");
        assert!(ask(&pipeline, "hi").await.unwrap().1.cached);
    }
}

#[tokio::test]
async fn a_failure_is_shared_and_not_kept() {
    let (server, cache) = (slow_server(Duration::from_millis(100)), memory());
    let pipeline = with(pipeline(&server), &cache);
    server.script([Answer::status(400)]);
    let mut asking = JoinSet::new();
    for _ in 0..5 {
        let pipeline = pipeline.clone();
        asking.spawn(async move { ask(&pipeline, "hi").await.unwrap_err().status() });
    }
    assert_eq!(asking.join_all().await, [Some(400); 5]);
    assert_eq!(seen(&server), 1);
    assert!(!ask(&pipeline, "hi").await.unwrap().1.cached);
}

#[tokio::test]
async fn a_time_that_is_over_is_nobody_elses() {
    let (server, cache) = (slow_server(Duration::from_millis(300)), memory());
    let patient = with(pipeline(&server), &cache);
    let timeouts = Timeouts { total: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let hasty = Pipeline { timeouts, ..patient.clone() };
    // Whichever is first, the one fails by its own time and the other is answered.
    for (first, second) in [(&hasty, &patient), (&patient, &hasty)] {
        let (one, other) = tokio::join!(ask(first, "hi"), ask(second, "hi"));
        let (hastys, patients) = if std::ptr::eq(first, &raw const hasty) { (one, other) } else { (other, one) };
        assert_eq!(hastys.unwrap_err().kind(), Kind::Deadline);
        assert!(patients.is_ok());
        cache.clear().await.unwrap();
    }
}

#[tokio::test]
async fn each_key_has_its_own_answers_unless_they_are_shared() {
    let server = server();
    let config = CacheConfig::new(Place::Memory, 1 << 20);
    for (config, requests) in [(config.clone(), 2), (CacheConfig { shared: true, ..config }, 1)] {
        let cache = Arc::new(Cache::open(config).unwrap());
        let before = seen(&server);
        for key in ["sk-first-0123456789", "sk-other-0123456789"] {
            let pipeline = with(pipeline_over(vec![upstream(&server, key)]), &cache);
            ask(&pipeline, "hi").await.unwrap();
            assert!(ask(&pipeline, "hi").await.unwrap().1.cached);
        }
        assert_eq!(seen(&server) - before, requests);
    }
}

#[tokio::test]
async fn an_answer_that_may_be_another_each_time_is_cached_only_when_asked_for() {
    let (server, cache) = (server(), memory());
    let pipeline = with(pipeline(&server), &cache);
    let asks = async |pipeline: &Pipeline, fields: &str| {
        let mut calls = calls(pipeline);
        calls.template = ChatTemplate::new(Provider::OpenAi, "mock-model", None, fields).unwrap();
        let before = seen(&server);
        for _ in 0..2 {
            let call = calls.call(&Prompt::Text("hi".to_owned())).unwrap();
            pipeline.run::<Text>(&call).await.unwrap();
        }
        seen(&server) - before
    };
    assert_eq!(asks(&pipeline, "\"temperature\":0").await, 1);
    assert_eq!(asks(&pipeline, "\"temperature\":0.7").await, 2);
    let caching = Caching::new(Arc::clone(&cache));
    let asked_for = Pipeline { caching: Some(Caching { asked_for: true, ..caching.clone() }), ..pipeline.clone() };
    assert_eq!(asks(&asked_for, "\"temperature\":0.7").await, 1);
    assert_eq!(asks(&pipeline, "\"temperature\":0.7").await, 2);
    for sample in [0, 1] {
        let caching = Caching { sample: Some(sample), ..caching.clone() };
        let sampled = Pipeline { caching: Some(caching), ..pipeline.clone() };
        assert_eq!(asks(&sampled, "\"temperature\":0.7").await, 1, "sample {sample}");
        assert_eq!(asks(&sampled, "\"temperature\":0.7").await, 0, "sample {sample}");
    }
}

#[tokio::test]
async fn what_is_refreshed_is_asked_and_takes_the_place_of_what_was_kept() {
    let (server, cache) = (server(), memory());
    let pipeline = with(pipeline(&server), &cache);
    server.script([Answer::text("old"), Answer::text("new")]);
    ask(&pipeline, "hi").await.unwrap();
    let caching = Caching { refresh: true, ..Caching::new(Arc::clone(&cache)) };
    let (refreshed, receipt) = ask(&Pipeline { caching: Some(caching), ..pipeline.clone() }, "hi").await.unwrap();
    assert_eq!((Text::from(refreshed).content.as_str(), receipt.cached), ("new", false));
    let (kept, receipt) = ask(&pipeline, "hi").await.unwrap();
    assert_eq!((Text::from(kept).content.as_str(), receipt.cached), ("new", true));
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_kept_only_where_that_is_wanted() {
    let also_keep = AlsoKept { truncated: true, filtered: true, empty: true };
    let config = CacheConfig::new(Place::Memory, 1 << 20);
    for (config, is_kept) in [(config.clone(), false), (CacheConfig { also_keep, ..config }, true)] {
        let server = server();
        let cache = Arc::new(Cache::open(config).unwrap());
        let pipeline = with(pipeline(&server), &cache);
        let ended = |reason: &str| Answer { finish_reason: Some(reason.to_owned()), ..Answer::text("half a") };
        server.script([ended("length"), ended("content_filter"), Answer::text("")]);
        for prompt in ["cut", "filtered", "empty"] {
            ask(&pipeline, prompt).await.unwrap();
        }
        for prompt in ["cut", "filtered", "empty"] {
            assert_eq!(ask(&pipeline, prompt).await.unwrap().1.cached, is_kept, "{prompt}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_replayed_as_a_stream_and_kept_for_who_wants_it_whole() {
    let (server, cache) = (server(), memory());
    let pipeline = with(pipeline(&server), &cache);
    let stream = async || {
        let feed = Arc::new(Feed::default());
        let writer = Writer::new(Arc::clone(&feed), 0, Wanted::Texts);
        let call = calls(&pipeline).stream(&Prompt::Text("hi there".to_owned()), writer).unwrap();
        let (completion, receipt) = pipeline.run::<ChatCompletion>(&call).await.unwrap();
        let Taken::Pieces(pieces) = feed.take() else { panic!("nothing was streamed") };
        let text = |(_, piece): &(u32, Piece)| match piece {
            Piece::Text(text) => String::from_utf8(text.text.to_vec()).unwrap(),
            other => panic!("{other:?} is no text"),
        };
        let texts: String = pieces.iter().map(text).collect();
        assert_eq!(texts, Text::from(completion).content);
        (texts, receipt.cached)
    };
    let (asked, was_cached) = stream().await;
    assert!(!was_cached);
    assert_eq!(stream().await, (asked.clone(), true));
    let (whole, receipt) = ask(&pipeline, "hi there").await.unwrap();
    assert_eq!((Text::from(whole).content, receipt.cached), (asked, true));
    assert_eq!(seen(&server), 1);
}

#[tokio::test]
async fn a_batch_asks_each_question_once_and_pays_once() {
    let (server, cache) = (slow_server(Duration::from_millis(20)), memory());
    let prompts = || (0..100).map(|number| Prompt::Text(format!("question {}", number % 10))).collect::<Vec<_>>();
    for _ in 0..2 {
        let texts = batch(with(pipeline(&server), &cache), 8).run(prompts(), OnError::Keep).await.unwrap();
        for (number, text) in texts.into_iter().enumerate() {
            assert_eq!(text.unwrap(), format!("echo: question {}", number % 10));
        }
    }
    assert_eq!(seen(&server), 10);
    let (hits, misses, shared) = counted(&cache).await;
    assert_eq!((misses, hits + shared), (10, 190));
}

#[tokio::test]
async fn a_run_of_hits_lets_others_have_their_turn() {
    let (server, cache) = (server(), memory());
    let pipeline = with(pipeline(&server), &cache);
    ask(&pipeline, "hi").await.unwrap();
    let hits = tokio::spawn(async move {
        loop {
            assert!(ask(&pipeline, "hi").await.unwrap().1.cached);
        }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    hits.abort();
    assert!(hits.await.unwrap_err().is_cancelled());
}
