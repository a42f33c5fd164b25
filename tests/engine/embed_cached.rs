//! Texts to rows with a cache: what of them the server sees, and what is paid.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use millstream::engine::cache::{Cache, CacheConfig, Place};
use millstream::engine::embed::learnt::Form;
use millstream::engine::embed::{Embed, OnError, PackSizes, TooLong};
use millstream::engine::limit::{RateLimiter, RateLimits, Ticket, Window};
use millstream::engine::pipeline::{Caching, Pipeline};
use millstream::mock::{Answer, Embedding};
use serde_json::Value;

use super::embed::{Client, alone, answer, body, client, items, of, rows, texts};

impl Client {
    /// What embeds in packs of ten, through `cache`.
    fn through(&self, cache: &Arc<Cache>) -> Embed {
        let caching = Some(Caching::new(Arc::clone(cache)));
        Embed { pipeline: Pipeline { caching, ..self.pipeline.clone() }, ..self.embed(items(10)) }
    }
}

fn memory() -> Arc<Cache> {
    Arc::new(Cache::open(CacheConfig::new(Place::Memory, 1 << 20)).unwrap())
}

/// Every text that the server was asked for, in the order of their coming.
fn asked(client: &Client) -> Vec<String> {
    let seen = client.server.requests();
    let body = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap();
    let texts = |body: Value| body["input"].as_array().unwrap().clone();
    seen.iter().flat_map(|request| texts(body(&request.body))).map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn only_texts_that_are_new_to_the_cache_are_asked_and_paid_for() {
    let (client, cache) = (client(Embedding::default()), memory());
    let (old, expected) = (texts(25), alone(&texts(40)).await);
    let first = client.through(&cache).run(of(&old)).await.unwrap();
    assert_eq!((first.cached, first.requests), (0, 3));
    client.server.clear();
    // Old and new ones mixed, and one of each twice.
    let mut mixed = texts(40);
    mixed.reverse();
    mixed.extend([mixed[0].clone(), mixed[39].clone()]);
    let again = client.through(&cache).run(of(&mixed)).await.unwrap();
    assert_eq!((again.cached, again.rows, again.requests), (26, 42, 2));
    let mut seen = asked(&client);
    seen.sort();
    let mut new = texts(40).split_off(25);
    let tokens: usize = new.iter().map(|text| text.len().div_ceil(4)).sum();
    new.sort();
    assert_eq!(seen, new);
    assert_eq!(again.usage.unwrap().prompt_tokens, tokens as u64);
    for (row, text) in rows(&again).iter().zip(&mixed) {
        let number: usize = text.trim_start_matches("text ").parse().unwrap();
        assert_eq!(row, &expected[number]);
    }
    let stats = cache.stats().await;
    assert_eq!((stats.hits, stats.misses, stats.stored), (25, 40, 40));
    // What was not paid for is what the first call paid.
    assert_eq!(stats.saved[0].1.prompt_tokens, first.usage.unwrap().prompt_tokens);
    assert_eq!(client.pipeline.metrics.snapshot().cache_hits, 25);
}

#[tokio::test]
async fn what_the_cache_has_takes_no_place_and_nothing_of_a_limit() {
    let (client, cache) = (client(Embedding::default()), memory());
    let texts = texts(10);
    let window = Window::fixed(1);
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(1.0), None)).unwrap());
    let embed = || {
        let mut embed = client.through(&cache);
        (embed.pipeline.window, embed.pipeline.limiter) = (Some(window.clone()), Some(Arc::clone(&limiter)));
        embed
    };
    let first = embed().run(of(&texts)).await.unwrap();
    // The only request of the minute is spent, and the only place is taken.
    let place = window.acquire(Ticket::draw(), 0).await;
    let kept = embed().run(of(&texts)).await.unwrap();
    drop(place);
    assert_eq!((kept.cached, kept.requests, kept.model), (10, 0, first.model));
    assert_eq!(kept.usage.unwrap().prompt_tokens, 0);
    assert_eq!(kept.numbers, first.numbers);
}

#[tokio::test]
async fn what_changes_a_vector_is_part_of_its_key_and_its_form_is_not() {
    let (client, cache) = (client(Embedding::default()), memory());
    let texts = texts(5);
    let with = |change: fn(&mut Embed)| {
        let mut embed = client.through(&cache);
        change(&mut embed);
        embed.run(of(&texts))
    };
    with(|_| {}).await.unwrap();
    let same: [fn(&mut Embed); 3] = [
        |embed| embed.form = Some(Form::Float),
        |embed| embed.shape.truncate = Some(2),
        |embed| embed.shape.normalize = true,
    ];
    for change in same {
        assert_eq!(with(change).await.unwrap().cached, 5);
    }
    let other: [fn(&mut Embed); 3] = [
        |embed| embed.calls.fields = "\"dimensions\":4".to_owned(),
        |embed| embed.calls.fields = "\"user\":\"u\"".to_owned(),
        |embed| {
            let mut key = HeaderValue::from_static("Bearer sk-another");
            key.set_sensitive(true);
            embed.calls.headers = Some(Arc::new(HeaderMap::from_iter([(AUTHORIZATION, key)])));
        },
    ];
    for change in other {
        assert_eq!(with(change).await.unwrap().cached, 0);
        assert_eq!(with(change).await.unwrap().cached, 5);
    }
}

#[tokio::test]
async fn a_refresh_asks_for_all_and_replaces_what_is_kept() {
    let (client, cache) = (client(Embedding::default()), memory());
    let texts = texts(5);
    client.through(&cache).run(of(&texts)).await.unwrap();
    let mut embed = client.through(&cache);
    embed.pipeline.caching.as_mut().unwrap().refresh = true;
    assert_eq!(embed.run(of(&texts)).await.unwrap().cached, 0);
    assert_eq!((client.counts(), cache.stats().await.stored), (vec![5, 5], 10));
}

#[tokio::test]
async fn a_text_that_fails_is_not_kept_and_its_neighbours_are() {
    let (client, cache) = (client(Embedding::default()), memory());
    client.server.when("BAD", [Answer { times: 0, ..Answer::status(400) }]);
    let mut texts = texts(8);
    texts[3] = "BAD".to_owned();
    for cached in [0, 7] {
        let embed = Embed { on_error: OnError::Blank, ..client.through(&cache) };
        let embedded = embed.run(of(&texts)).await.unwrap();
        assert_eq!((embedded.cached, embedded.errors.len(), embedded.errors[0].0), (cached, 1, 3));
    }
    assert_eq!(cache.stats().await.entries, 7);
}

#[tokio::test]
async fn parts_of_a_text_are_kept_each_for_itself() {
    let (client, cache) = (client(Embedding::default()), memory());
    let long = (0..40).map(|number| format!("word {number}")).collect::<Vec<_>>().join(" ");
    let texts = vec!["short".to_owned(), long];
    let sizes = PackSizes { tokens_per_input: Some(20), ..PackSizes::default() };
    let limits = client.embed(sizes).limits;
    let embed = || Embed { too_long: TooLong::IsSplit, limits, ..client.through(&cache) };
    let first = embed().run(of(&texts)).await.unwrap();
    let again = embed().run(of(&texts)).await.unwrap();
    assert_eq!((first.cached, again.cached, again.requests), (0, 2, 0));
    for (one, other) in first.numbers.iter().zip(&again.numbers) {
        assert!((one - other).abs() < 1e-6);
    }
    let part = asked(&client).into_iter().find(|text| text.starts_with("word 0")).unwrap();
    // A text whose rest is new is not the cache's.
    let half = embed().run(of(&[format!("{part}{}", "x".repeat(part.len()))])).await.unwrap();
    assert_eq!(half.cached, 0);
}

#[tokio::test]
async fn vectors_of_another_model_of_the_same_name_do_not_mix() {
    let (client, cache) = (client(Embedding::default()), memory());
    client.through(&cache).run(of(&texts(3))).await.unwrap();
    client.server.when("text", [Answer { times: 0, ..answer(&body(&[(0, &[1.0]), (1, &[1.0])])) }]);
    let error = client.through(&cache).run(of(&texts(5))).await.unwrap_err();
    assert!(error.to_string().contains("refresh=True"), "{error}");
    assert_eq!(client.counts(), [3, 2]);
}

#[tokio::test]
async fn what_is_on_disk_is_found_by_another_process() {
    let folder = std::env::temp_dir().join(format!("millstream-texts-{}", uuid::Uuid::new_v4()));
    let open = || Arc::new(Cache::open(CacheConfig::new(Place::Disk(folder.clone()), 1 << 30)).unwrap());
    let client = client(Embedding::default());
    let (texts, cache) = (texts(1000), open());
    let first = client.through(&cache).run(of(&texts)).await.unwrap();
    cache.flush().await;
    drop(cache);
    let again = client.through(&open()).run(of(&texts)).await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!((again.cached, again.requests), (1000, 0));
    assert_eq!(again.numbers, first.numbers);
}
