//! Runs of any length in paused time: every item comes out once, however the run goes and ends.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::{
    Bulk, ChatCalls, Control, Ended, Item, Manner, Order, Page, Price, Rates, StopReason, StopRules,
};
use millstream::engine::config::Timeouts;
use millstream::engine::error::{Error, Kind};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::types::{Prompt, Receipt, Text};
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockServer};
use millstream::traffic::Traffic;
use tokio::time::{Instant, sleep};

use super::pipeline::{batch, pipeline};

type Texts = Bulk<Text, String>;

fn keep(text: Text, _: Receipt) -> String {
    text.content
}

fn here(latency: u64) -> MockServer {
    let latency = Latency::Fixed(Duration::from_millis(latency));
    MockServer::start_here(MockConfig { latency, ..MockConfig::default() }).unwrap()
}

struct Run {
    bulk: Arc<Texts>,
    pipeline: Pipeline,
    manner: Arc<Manner>,
}

impl Run {
    fn new(server: &MockServer, max_concurrent: usize, rules: StopRules, order: Order) -> Self {
        let batch = batch(Pipeline { window: None, ..pipeline(server) }, max_concurrent);
        let manner = Manner { calls: batch.calls, timeouts: None, rates: Rates::default(), dedupe: false };
        let control = Arc::new(Control::new(rules));
        Self { bulk: Arc::new(Bulk::new(control, order, keep)), pipeline: batch.pipeline, manner: Arc::new(manner) }
    }

    fn plain(server: &MockServer, max_concurrent: usize) -> Self {
        Self::new(server, max_concurrent, StopRules::default(), Order::Arrival)
    }

    fn manner(mut self, change: impl FnOnce(&mut Manner)) -> Self {
        change(Arc::get_mut(&mut self.manner).unwrap());
        self
    }

    fn item(&self, index: usize, text: impl Into<String>) -> Item {
        Item { index, prompt: Ok(Prompt::Text(text.into())), manner: Arc::clone(&self.manner) }
    }

    /// Submits all, a page whenever there is room, and closes.
    async fn feed(&self, texts: Vec<String>) {
        let mut items = texts.into_iter().enumerate().map(|(index, text)| self.item(index, text)).peekable();
        while items.peek().is_some() && !self.bulk.is_over() {
            self.bulk.submit(&mut items);
            let room = Arc::new(tokio::sync::Notify::new());
            let told = Arc::clone(&room);
            self.bulk.when_room(move || told.notify_one());
            room.notified().await;
        }
        self.bulk.close();
    }

    async fn read(&self) -> Vec<Ended<String>> {
        let mut all = Vec::new();
        loop {
            match self.bulk.take(100) {
                Page::Ended(page) => all.extend(page),
                Page::End => return all,
                Page::Nothing => {
                    let ready = Arc::new(tokio::sync::Notify::new());
                    let told = Arc::clone(&ready);
                    self.bulk.when_ready(move || told.notify_one());
                    ready.notified().await;
                }
            }
        }
    }

    /// All outcomes, by their numbers; each comes once.
    async fn all(&self, texts: Vec<String>) -> Vec<Ended<String>> {
        let run = Arc::clone(&self.bulk).run(self.pipeline.clone());
        let (outcome, (), mut all) = tokio::join!(run, self.feed(texts), self.read());
        outcome.unwrap();
        all.sort_by_key(|ended| ended.index);
        all
    }
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("<item {index}>")).collect()
}

fn kinds(all: &[Ended<String>], kind: Kind) -> usize {
    all.iter().filter(|ended| matches!(&ended.outcome, Err(error) if error.kind() == kind)).count()
}

fn assert_once_each(all: &[Ended<String>], count: usize) {
    assert!(all.iter().map(|ended| ended.index).eq(0..count), "{:?}", all.len());
    assert!(
        all.iter().all(|ended| ended.outcome.as_ref().err().is_none_or(|error| error.index() == Some(ended.index)))
    );
}

#[tokio::test(start_paused = true)]
async fn every_item_comes_out_once_and_the_window_is_always_full() {
    let _traffic = Traffic::watch();
    let server = here(100);
    let run = Run::plain(&server, 50);
    let start = Instant::now();
    let all = run.all(texts(5000)).await;
    assert_once_each(&all, 5000);
    assert!(all.iter().all(|ended| ended.outcome.as_ref().unwrap() == &format!("echo: <item {}>", ended.index)));
    let seconds = start.elapsed().as_secs_f64();
    assert!((10.0..10.5).contains(&seconds), "{seconds}");
    assert_eq!(server.stats().max_in_flight, 50);
    let progress = run.bulk.control().progress();
    assert_eq!((progress.succeeded, progress.failed, progress.in_flight), (5000, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn large_items_that_wait_for_another_are_read_no_further_ahead_than_their_bytes() {
    const MIB: usize = 1 << 20;
    for (order, dedupe) in [(Order::Prefix, false), (Order::Arrival, true)] {
        let server = here(3_600_000);
        let run = Run::new(&server, 16, StopRules::default(), order).manner(|manner| manner.dedupe = dedupe);
        let engine = tokio::spawn(Arc::clone(&run.bulk).run(run.pipeline.clone()));
        let text = "x".repeat(MIB);
        let mut items = (0..1000).map(|index| run.item(index, text.clone())).peekable();
        for _ in 0..20 {
            run.bulk.submit(&mut items);
            sleep(Duration::from_secs(1)).await;
        }
        let ahead = items.peek().unwrap().index;
        // 64 MiB that wait, 8 MiB before them, and the one under way.
        assert!((64..=64 + 8 + 2).contains(&ahead), "{order:?}: {ahead}");
        engine.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_the_source_back() {
    let _traffic = Traffic::watch();
    let server = here(1);
    let run = Run::plain(&server, 16);
    let engine = tokio::spawn(Arc::clone(&run.bulk).run(run.pipeline.clone()));
    let mut items = (0..100_000).map(|index| run.item(index, format!("{index}"))).peekable();
    for _ in 0..100 {
        run.bulk.submit(&mut items);
        sleep(Duration::from_secs(1)).await;
    }
    let ahead = items.peek().unwrap().index;
    assert!((512..=2 * 512 + 32).contains(&ahead), "{ahead}");
    assert!(server.stats().requests <= 512 + 16, "{}", server.stats().requests);
    run.bulk.take(512);
    sleep(Duration::from_secs(1)).await;
    assert!(run.bulk.submit(&mut items) > 256);
    engine.abort();
    assert!(engine.await.unwrap_err().is_cancelled());
    assert!(run.bulk.is_over());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_before_it_began_is_over_and_its_items_are_given_up() {
    let _traffic = Traffic::watch();
    let run = Run::plain(&here(0), 4);
    let engine = Arc::clone(&run.bulk).run(run.pipeline.clone());
    run.bulk.submit([run.item(0, "one")].into_iter());
    drop(engine);
    assert_eq!((kinds(&run.read().await, Kind::Stopped), run.bulk.is_over()), (1, true));
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_up_what_waits_at_once_and_lets_what_is_on_the_wire_end() {
    let _traffic = Traffic::watch();
    let server = here(2000);
    server.when("<item 3>", [Answer { times: 0, ..Answer::status(500) }]);
    let run = Run::plain(&server, 8);
    let start = Instant::now();
    let stop = async {
        sleep(Duration::from_secs(3)).await;
        run.bulk.control().stop(StopReason::Interrupted, Duration::from_secs(30));
    };
    let (all, ()) = tokio::join!(run.all(texts(500)), stop);
    assert_once_each(&all, 500);
    let answered = all.iter().filter(|ended| ended.outcome.is_ok()).count();
    assert!((15..=17).contains(&answered), "{answered}");
    assert_eq!(kinds(&all, Kind::Stopped), 500 - answered);
    let seconds = start.elapsed().as_secs_f64();
    assert!((4.0..4.2).contains(&seconds), "{seconds}");
    assert_eq!(server.stats().aborted, 0);
    assert_eq!(run.bulk.control().progress().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_grace_ends_and_a_second_stop_ends_it_sooner() {
    let _traffic = Traffic::watch();
    for (again, expected) in [(None, 31.0), (Some(10), 11.0)] {
        let server = here(0);
        server.script((0..8).map(|_| Answer::fault(Fault::HangBefore)));
        let run = Run::plain(&server, 8);
        let control = Arc::clone(run.bulk.control());
        let run = Run { pipeline: Pipeline { timeouts: Timeouts::default(), ..run.pipeline.clone() }, ..run };
        let start = Instant::now();
        let stop = async {
            sleep(Duration::from_secs(1)).await;
            control.stop(StopReason::Interrupted, Duration::from_secs(30));
            if let Some(seconds) = again {
                sleep(Duration::from_secs(seconds)).await;
                control.stop(StopReason::Interrupted, Duration::ZERO);
            }
        };
        let (all, ()) = tokio::join!(run.all(texts(20)), stop);
        assert_once_each(&all, 20);
        assert_eq!(kinds(&all, Kind::Stopped), 20);
        let seconds = start.elapsed().as_secs_f64();
        assert!((expected..expected + 0.1).contains(&seconds), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn rules_stop_a_run_and_every_item_is_accounted_for() {
    let _traffic = Traffic::watch();
    let price = Price { input: 0.001, output: 0.001 };
    for (rules, status, reason) in [
        (StopRules { max_errors: Some(3), ..StopRules::default() }, 400, StopReason::MaxErrors),
        (StopRules { max_error_rate: Some(0.5), window: 10, ..StopRules::default() }, 400, StopReason::ErrorRate),
        (StopRules { fatal: true, ..StopRules::default() }, 401, StopReason::Fatal),
        (StopRules { max_tokens: Some(500), ..StopRules::default() }, 200, StopReason::Budget),
        (StopRules { max_cost: Some(0.5), ..StopRules::default() }, 200, StopReason::Budget),
        (StopRules { deadline: Some(Duration::from_secs(5)), ..StopRules::default() }, 200, StopReason::Deadline),
    ] {
        let server = here(1000);
        if status != 200 {
            server.script([Answer { times: 0, ..Answer::status(status) }]);
        }
        let run = Run::new(&server, 4, rules.validated().unwrap(), Order::Arrival).manner(|manner| {
            manner.rates = Rates::new(vec![("m".to_owned(), Some(price))]);
        });
        let all = run.all(texts(500)).await;
        assert_once_each(&all, 500);
        assert_eq!(run.bulk.control().reason(), Some(reason));
        assert!(kinds(&all, Kind::Stopped) > 400, "{reason:?}");
        assert!(server.stats().requests < 100, "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn identical_requests_are_sent_once_and_all_get_the_answer() {
    let _traffic = Traffic::watch();
    let server = here(10);
    let run = Run::plain(&server, 16).manner(|manner| manner.dedupe = true);
    let all = run.all((0..2000).map(|index| format!("<{}>", index % 20)).collect()).await;
    assert_once_each(&all, 2000);
    assert!(all.iter().all(|ended| ended.outcome.as_ref().unwrap() == &format!("echo: <{}>", ended.index % 20)));
    assert_eq!(all.iter().filter(|ended| ended.cached).count(), 1980);
    assert_eq!(server.stats().requests, 20);
    assert_eq!(run.bulk.control().progress().succeeded, 2000);
}

#[tokio::test(start_paused = true)]
async fn followers_share_a_refusal_and_are_asked_themselves_where_their_leader_ran_out_of_time() {
    let _traffic = Traffic::watch();
    let server = here(10);
    server.when("<bad>", [Answer { times: 0, ..Answer::status(400) }]);
    server.when("<slow>", [Answer::fault(Fault::HangBefore)]);
    let run = Run::plain(&server, 4).manner(|manner| {
        manner.dedupe = true;
        let total = Some(Duration::from_secs(5));
        manner.timeouts = Some(Timeouts { total, ..Timeouts::default() });
    });
    let all = run.all(["<bad>", "<slow>"].into_iter().cycle().take(60).map(str::to_owned).collect()).await;
    assert_once_each(&all, 60);
    assert_eq!((kinds(&all, Kind::Status(400)), kinds(&all, Kind::Deadline)), (30, 1));
    // The refusal, the one that hung, and the one that was answered.
    assert_eq!(server.stats().requests, 3);
}

#[tokio::test(start_paused = true)]
async fn followers_of_a_leader_that_is_aborted_are_given_up_with_it() {
    let _traffic = Traffic::watch();
    let server = here(0);
    server.script([Answer::fault(Fault::HangBefore)]);
    let rules = StopRules { deadline: Some(Duration::from_secs(5)), ..StopRules::default() };
    let run = Run::new(&server, 4, rules, Order::Arrival).manner(|manner| manner.dedupe = true);
    let all = run.all(vec!["same".to_owned(); 50]).await;
    assert_once_each(&all, 50);
    assert_eq!(kinds(&all, Kind::Stopped), 50);
}

#[tokio::test(start_paused = true)]
async fn a_systems_first_item_warms_the_cache_for_the_others_even_if_it_fails() {
    let _traffic = Traffic::watch();
    let server = here(100);
    server.script([Answer::status(400)]);
    let run = Run::new(&server, 64, StopRules::default(), Order::Prefix);
    let manner = |system: char| {
        let template = ChatTemplate::new(Provider::OpenAi, "mock-model", Some(&system.to_string().repeat(4000)), "");
        let calls = ChatCalls::new(template.unwrap(), run.pipeline.keys.lanes("mock-model"));
        Arc::new(Manner { calls, timeouts: None, rates: Rates::default(), dedupe: false })
    };
    let manners = ['a', 'b'].map(manner);
    let items = (0..60).map(|index| Item { manner: Arc::clone(&manners[index % 2]), ..run.item(index, "hi") });
    assert_eq!(run.bulk.submit(items), 60);
    run.bulk.close();
    let (outcome, all) = tokio::join!(Arc::clone(&run.bulk).run(run.pipeline.clone()), run.read());
    outcome.unwrap();
    assert_eq!((all.len(), kinds(&all, Kind::Status(400))), (60, 1));
    let requests = server.requests();
    let first_of = |system: &str| {
        let of_it = requests.iter().filter(|request| {
            let body = String::from_utf8_lossy(&request.body);
            body.contains(&system.repeat(100))
        });
        of_it.map(|request| request.arrived.as_millis()).collect::<Vec<_>>()
    };
    for system in ["a", "b"] {
        let arrived = first_of(system);
        let (first, others) = arrived.split_first().unwrap();
        assert_eq!(others.len(), 29);
        assert!(others.iter().all(|other| *other >= first + 100), "{arrived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_that_cannot_be_asked_or_is_asked_again_is_one_like_the_others() {
    let _traffic = Traffic::watch();
    let server = here(10);
    let run = Run::plain(&server, 4);
    let engine = tokio::spawn(Arc::clone(&run.bulk).run(run.pipeline.clone()));
    let bad = Item { prompt: Err(Error::configuration("no prompt")), ..run.item(0, "") };
    run.bulk.submit([bad, run.item(1, "one")].into_iter());
    sleep(Duration::from_secs(1)).await;
    let Page::Ended(page) = run.bulk.take(9) else { panic!() };
    assert_eq!((page.len(), kinds(&page, Kind::Configuration)), (2, 1));
    run.bulk.control().reopen();
    assert!(run.bulk.submit_first(run.item(1, "one again")));
    run.bulk.close();
    let all = run.read().await;
    assert_eq!(all[0].outcome.as_ref().unwrap(), "echo: one again");
    engine.await.unwrap().unwrap();
    assert!(!run.bulk.submit_first(run.item(1, "too late")));
    let progress = run.bulk.control().progress();
    assert_eq!((progress.succeeded, progress.failed), (1, 1));
}
