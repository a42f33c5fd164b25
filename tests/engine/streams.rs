//! Streams whose consumer is slow, and streams that end too soon.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::config::Timeouts;
use millstream::engine::error::{Error, Kind};
use millstream::engine::limit::{AutoConcurrency, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::stream::{Feed, Taken, Wanted, Writer};
use millstream::engine::types::{ChatCompletion, Prompt, Receipt};
use millstream::mock::{Answer, StreamFault, Streaming};
use tokio::task::JoinSet;

use super::pipeline::{calls, pipeline, server};

async fn stream(pipeline: &Pipeline, feed: &Arc<Feed>) -> Result<(ChatCompletion, Receipt), Error> {
    let writer = Writer::new(Arc::clone(feed), 0, Wanted::Texts);
    let call = calls(pipeline).stream(&Prompt::Text("hi".to_owned()), writer).unwrap();
    pipeline.run(&call).await
}

/// A window that steers itself, before many streams whose time runs out and at its smallest after any of them. Nobody reads
/// them.
async fn window_after(streaming: Streaming) -> (usize, usize) {
    const STREAMS: usize = 8;
    let server = server();
    // A few such words fill a feed.
    let text = Some("x".repeat(64 * 1024));
    let answer = || Answer { text: text.clone(), ..Answer::stream(streaming.clone()) };
    server.script((0..STREAMS).map(|_| answer()));
    let window = Window::auto(AutoConcurrency { initial: STREAMS, ..AutoConcurrency::default() });
    let before = window.limit();
    let pipeline = Pipeline {
        window: Some(window),
        timeouts: Timeouts { total: Some(Duration::from_secs(1)), ..Timeouts::default() },
        ..pipeline(&server)
    };
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let pipeline = pipeline.clone();
        streams.spawn(async move {
            let feed = Arc::default();
            let error = stream(&pipeline, &feed).await.unwrap_err();
            assert_eq!((error.kind(), error.partial().is_some()), (Kind::Deadline, true), "{error}");
            assert!(matches!(feed.take(), Taken::Pieces(_)));
            pipeline.window.unwrap().limit()
        });
    }
    (before, streams.join_all().await.into_iter().min().unwrap())
}

#[tokio::test]
async fn a_time_that_the_consumer_took_does_not_shrink_the_window() {
    let endless = Streaming { chunks: Some(10_000), ..Streaming::default() };
    let (before, after) = window_after(endless).await;
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_time_that_the_server_took_shrinks_the_window() {
    let silent = Streaming { chunks: Some(10), fault: Some(StreamFault::Stall), after: 2, ..Streaming::default() };
    let (before, after) = window_after(silent).await;
    assert!(after < before, "{after} of {before}");
}
