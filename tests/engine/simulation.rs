//! A simulated server behind a real window, in paused time: a batch without end meets slots, a queue, refusals or nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::engine::limit::{Signal, Ticket, Window};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How long the server works on one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Service {
    /// Always as long, in seconds.
    Fixed(f64),
    /// Lognormal with this mean and this sigma of the logarithm.
    Lognormal(f64, f64),
    /// Seven in ten answers are of about 20 tokens, the others of about 400; 50 ms and 7 ms a token.
    Mixed,
}

impl Service {
    fn draw(self, rng: &mut fastrand::Rng) -> (Duration, Option<u64>) {
        let mut normal = || {
            let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
            radius * (std::f64::consts::TAU * rng.f64()).cos()
        };
        let (seconds, tokens) = match self {
            Self::Fixed(seconds) => (seconds, None),
            Self::Lognormal(mean, sigma) => (mean * (sigma * normal() - sigma * sigma / 2.0).exp(), None),
            Self::Mixed => {
                let (size, speed) = ((0.3 * normal()).exp(), (0.1 * normal()).exp());
                let tokens = (if rng.f64() < 0.7 { 20.0 } else { 400.0 } * size).round().max(1.0);
                (0.05 + 0.007 * tokens * speed, Some(tokens as u64))
            }
        };
        (Duration::from_secs_f64(seconds), tokens)
    }
}

/// What the server does with more requests than it has slots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Beyond {
    /// They wait, first come first served.
    Queue,
    /// Refused after 5 ms, as overload.
    Refuse,
}

/// A server, and who asks it.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    /// From which second on it has how many slots; more and more, or fewer.
    pub(crate) slots: Vec<(u64, usize)>,
    pub(crate) beyond: Beyond,
    pub(crate) service: Service,
    /// Requests per second that the caller is allowed.
    pub(crate) rate: Option<f64>,
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
}

impl Scene {
    pub(crate) fn new(slots: usize, service: Service, seconds: u64) -> Self {
        Self { slots: vec![(0, slots)], beyond: Beyond::Queue, service, rate: None, seconds, seed: 1 }
    }
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// When, in seconds.
    pub(crate) at: f64,
    /// In seconds.
    pub(crate) latency: f64,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) answers: Vec<Answer>,
    /// When the limit became what.
    pub(crate) limits: Vec<(f64, usize)>,
    pub(crate) refused: usize,
}

impl Log {
    /// Answers per second and the 95th percentile of the latency, from one second to another.
    pub(crate) fn between(&self, from: f64, to: f64) -> (f64, f64) {
        let within = self.answers.iter().filter(|answer| (from..to).contains(&answer.at));
        let mut latencies: Vec<f64> = within.map(|answer| answer.latency).collect();
        latencies.sort_by(f64::total_cmp);
        let p95 = latencies.get(latencies.len() * 95 / 100).copied().unwrap_or_default();
        (latencies.len() as f64 / (to - from), p95)
    }

    /// The limit at a moment.
    pub(crate) fn limit_at(&self, second: f64) -> usize {
        self.limits.iter().take_while(|(at, _)| *at <= second).last().map_or(0, |(_, limit)| *limit)
    }
}

struct World {
    scene: Scene,
    window: Window,
    server: Arc<Semaphore>,
    start: Instant,
    end: Instant,
    next_start: Mutex<Instant>,
    rng: Mutex<fastrand::Rng>,
    log: Mutex<Log>,
}

impl World {
    /// Waits for the rate that the caller is allowed.
    async fn allowed(&self) {
        if let Some(rate) = self.scene.rate {
            let turn = {
                let mut next = self.next_start.lock().unwrap();
                let turn = (*next).max(Instant::now());
                *next = turn + Duration::from_secs_f64(1.0 / rate);
                turn
            };
            sleep_until(turn).await;
        }
    }

    async fn serve(&self) -> (Signal, Option<u64>) {
        let (service, tokens) = self.scene.service.draw(&mut self.rng.lock().unwrap());
        let _slot = match self.scene.beyond {
            Beyond::Queue => self.server.acquire().await.unwrap(),
            Beyond::Refuse => {
                if let Ok(slot) = self.server.try_acquire() {
                    slot
                } else {
                    sleep(Duration::from_millis(5)).await;
                    return (Signal::Overload, None);
                }
            }
        };
        sleep(service).await;
        (Signal::Ok, tokens)
    }

    async fn ask_for_ever(self: Arc<Self>) {
        loop {
            let mut permit = self.window.acquire(Ticket::draw(), 0).await;
            self.allowed().await;
            permit.begin();
            let began = Instant::now();
            let (signal, tokens) = self.serve().await;
            permit.observe(signal, tokens);
            let limit = self.window.limit();
            let at = self.start.elapsed().as_secs_f64();
            let mut log = self.log.lock().unwrap();
            if signal == Signal::Ok {
                log.answers.push(Answer { at, latency: began.elapsed().as_secs_f64() });
            } else {
                log.refused += 1;
            }
            if log.limits.last().is_none_or(|(_, last)| *last != limit) {
                log.limits.push((at, limit));
            }
        }
    }

    async fn resize(self: Arc<Self>) {
        for steps in self.scene.slots.windows(2) {
            let [(_, before), (second, after)] = *steps else { return };
            sleep_until(self.start + Duration::from_secs(second)).await;
            if after > before {
                self.server.add_permits(after - before);
            } else {
                let taken = self.server.acquire_many((before - after) as u32).await.unwrap();
                taken.forget();
            }
        }
    }
}

/// Asks without end through `window`, with at most `askers` at once.
pub(crate) fn run(scene: &Scene, window: Window, askers: usize) -> Log {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let world = Arc::new(World {
            scene: scene.clone(),
            window,
            server: Arc::new(Semaphore::new(scene.slots[0].1)),
            start,
            end: start + Duration::from_secs(scene.seconds),
            next_start: Mutex::new(start),
            rng: Mutex::new(fastrand::Rng::with_seed(scene.seed)),
            log: Mutex::default(),
        });
        world.log.lock().unwrap().limits.push((0.0, world.window.limit()));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&world).resize());
        for _ in 0..askers {
            tasks.spawn(Arc::clone(&world).ask_for_ever());
        }
        while timeout_at(world.end, tasks.join_next()).await.is_ok_and(|joined| joined.is_some_and(|task| task.is_ok()))
        {
        }
        tasks.shutdown().await;
        std::mem::take(&mut *world.log.lock().unwrap())
    })
}
