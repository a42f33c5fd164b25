//! Several keys and endpoints, each with its own limits and its own breaker; every attempt goes by the readiest.
//!
//! An [`Upstream`] is one key at one server, with what the user says that it may do altogether. A [`Lane`] is one model of one
//! upstream, which is what providers limit and what fails alone: what the server's headers say, a wait that it asks for, and
//! the breaker hold for the lane.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::config::{self, Endpoint};
use super::error::Error;
use super::limit::{Breaker, Cost, Gate, RateLimiter, RateLimits, Snapshot};
use super::metrics::{LaneMetrics, Metrics};
use super::provider::openai::quoted;
use super::secret::KeyId;
pub use super::service::Route;
use super::service::{Provider, Service};
use super::tokens::ModelTokens;
use super::transport::{Target, Transport};

/// How one upstream is made.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamConfig {
    /// Where it is and with which key.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the traffic while it and the others are ready. Default 1.
    pub weight: f64,
    /// What this key may do, as the user says; the server's headers say the rest.
    pub limits: Option<RateLimits>,
    /// Its name of a model, where that differs (Azure's deployments).
    pub model_map: HashMap<String, String>,
}

impl UpstreamConfig {
    /// The only upstream of a client.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, weight: 1.0, limits: None, model_map: HashMap::new() }
    }
}

/// One key at one server.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is and with which key.
    pub endpoint: Arc<Endpoint>,
    /// The pool of connections.
    pub transport: Arc<Transport>,
    /// What the user says that the key may do.
    pub limiter: Option<Arc<RateLimiter>>,
    /// A short fingerprint of the key.
    pub key_id: KeyId,
    chat: Arc<Target>,
    weight: f64,
    model_map: HashMap<String, String>,
    in_flight: AtomicUsize,
    /// When its next turn is, by a clock that every request sets forward to its own turn (start-time fair queueing).
    next_turn: AtomicU64,
    clock: Arc<AtomicU64>,
}

/// The time from one turn to the next of an upstream with a weight of 1.
const TURN: f64 = 1e6;

impl Upstream {
    fn new(config: UpstreamConfig, transport: Arc<Transport>, clock: Arc<AtomicU64>) -> Result<Self, Error> {
        let endpoint = config.endpoint;
        Ok(Self {
            chat: target(&endpoint, &Route::Chat, ""),
            transport,
            limiter: config.limits.map(RateLimiter::new).transpose()?.map(Arc::new),
            key_id: endpoint.key_id,
            weight: config.weight,
            model_map: config.model_map,
            in_flight: AtomicUsize::new(0),
            next_turn: AtomicU64::new(0),
            clock,
            endpoint,
        })
    }

    /// Requests under way for each unit of weight, with `more` of them.
    fn load(&self, more: usize) -> f64 {
        (self.in_flight.load(Relaxed) + more) as f64 / self.weight
    }

    /// When it is its turn among those that are equally ready. One that was not is none the earlier for it.
    fn turn(&self) -> u64 {
        self.next_turn.load(Relaxed).max(self.clock.load(Relaxed))
    }

    /// A request takes the turn.
    fn take_turn(&self) {
        let turn = self.turn();
        self.clock.store(turn, Relaxed);
        self.next_turn.store(turn.saturating_add((TURN / self.weight) as u64), Relaxed);
    }

    /// The API that it speaks.
    pub fn provider(&self) -> Provider {
        self.endpoint.service.provider
    }

    /// Where chat requests for `model` go.
    fn chat(&self, model: &str) -> Arc<Target> {
        if self.endpoint.service.names_model_in_path(&self.endpoint.base_url) {
            target(&self.endpoint, &Route::Chat, model)
        } else {
            Arc::clone(&self.chat)
        }
    }
}

fn target(endpoint: &Endpoint, route: &Route, model: &str) -> Arc<Target> {
    target_of(endpoint, &endpoint.service, route, model)
}

fn target_of(endpoint: &Endpoint, service: &Service, route: &Route, model: &str) -> Arc<Target> {
    let url = service.url(&endpoint.base_url, route, model);
    Arc::new(Target::new(route.method(), &url, endpoint.headers.clone()))
}

/// Routes besides chat whose targets a lane remembers; who asks more paths than these (one for each file, say) has the rest made
/// anew each time.
const MOST_ROUTES: usize = 16;

/// One model of one upstream.
#[derive(Debug)]
pub struct Lane {
    /// Whose it is.
    pub upstream: Arc<Upstream>,
    /// The model's name there.
    pub model: Arc<str>,
    /// The same as it stands in a request's body.
    pub quoted_model: Box<str>,
    /// What the server's headers say of its limits.
    pub limiter: Arc<RateLimiter>,
    /// Closed while the server has asked for a wait.
    pub gate: Gate,
    /// Open while the server fails, or bars the key: of this model, for another may be served by other machines.
    pub breaker: Breaker,
    /// What a request of it costs, learnt from its answers.
    pub tokens: Arc<ModelTokens>,
    /// What became of its requests.
    pub metrics: Arc<LaneMetrics>,
    /// The server has refused to count the tokens of a stream.
    pub refuses_usage: AtomicBool,
    chat: Arc<Target>,
    others: Mutex<HashMap<Route, Arc<Target>>>,
}

impl Lane {
    /// Where requests of one kind go; parts of `query` stand in the URL in place of the endpoint's of the same names.
    pub fn target(&self, route: &Route, query: &[(String, String)]) -> Arc<Target> {
        if !query.is_empty() {
            let endpoint = &self.upstream.endpoint;
            return target_of(endpoint, &endpoint.service.with_query(query), route, &self.model);
        }
        if *route == Route::Chat {
            return Arc::clone(&self.chat);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = others.get(route) {
            return Arc::clone(known);
        }
        let target = target(&self.upstream.endpoint, route, &self.model);
        if others.len() < MOST_ROUTES {
            others.insert(route.clone(), Arc::clone(&target));
        }
        target
    }

    /// Until a request of `cost` could go, as far as that is known.
    fn ready_in(&self, cost: Cost) -> Duration {
        let own = self.upstream.limiter.as_ref().map_or(Duration::ZERO, |limiter| limiter.estimated_wait(cost));
        let waits = [own, self.limiter.estimated_wait(cost), self.gate.opens_in(), self.breaker.opens_in()];
        waits.into_iter().max().unwrap_or_default()
    }

    /// Counts a request as under way until the guard is dropped.
    pub fn occupy(&self) -> Occupied<'_> {
        self.upstream.take_turn();
        self.upstream.in_flight.fetch_add(1, Relaxed);
        Occupied(&self.upstream.in_flight)
    }
}

/// One request under way on an upstream.
#[derive(Debug)]
pub struct Occupied<'a>(&'a AtomicUsize);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One model over all upstreams; never empty.
#[derive(Debug, Clone)]
pub struct Lanes(Arc<[Arc<Lane>]>);

/// How much later another upstream may be ready and still be preferred to the one that has just failed the item.
const SECOND_OPINION: Duration = Duration::from_secs(5);

impl Lanes {
    /// The readiest for a request of about `bytes` bytes; `failed` is the one that has just failed it.
    pub fn readiest(&self, bytes: usize, max_tokens: Option<u64>, failed: Option<usize>) -> usize {
        if self.0.len() == 1 {
            return 0;
        }
        let rank = |place: usize, lane: &Lane| {
            let wait = lane.ready_in(Cost::from(lane.tokens.estimate(bytes, max_tokens)));
            let wait = if failed == Some(place) { wait + SECOND_OPINION } else { wait };
            // A key that is lost is no choice for as long as another works, however long that one's line.
            (!lane.breaker.opens_in().is_zero(), wait)
        };
        let ranks: Vec<_> = self.0.iter().enumerate().map(|(place, lane)| rank(place, lane)).collect();
        let best = ranks.iter().min();
        let ready = || {
            let ranked = self.0.iter().zip(&ranks).enumerate();
            ranked.filter(|(_, (_, rank))| Some(*rank) == best).map(|(place, (lane, _))| (place, &lane.upstream))
        };
        // By turns, which weigh the requests over time, as long as none has more under way than its weight allows.
        let most = ready().map(|(_, upstream)| upstream.load(1)).fold(f64::INFINITY, f64::min);
        let has_room = ready().filter(|(_, upstream)| upstream.load(0) < most);
        has_room.min_by_key(|(_, upstream)| upstream.turn()).map_or(0, |(place, _)| place)
    }

    /// Whether whoever waits for the lane at `place` would do better to leave its line: another is ready much earlier.
    pub fn is_outdone(&self, place: usize, bytes: usize, max_tokens: Option<u64>) -> bool {
        let wait = |lane: &Arc<Lane>| lane.ready_in(Cost::from(lane.tokens.estimate(bytes, max_tokens)));
        let Some(here) = self.get(place).map(wait).filter(|wait| *wait > SECOND_OPINION) else { return false };
        // Not for one that is lost: nobody would choose it.
        let works = |lane: &&Arc<Lane>| lane.breaker.opens_in().is_zero();
        self.0.iter().filter(works).any(|lane| wait(lane) + SECOND_OPINION < here)
    }

    /// The lane at a place that [`Self::readiest`] named.
    pub fn get(&self, place: usize) -> Option<&Arc<Lane>> {
        self.0.get(place)
    }

    /// The first of them.
    pub fn first(&self) -> Option<&Arc<Lane>> {
        self.0.first()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.0.iter()
    }
}

/// Models that are remembered; who names more of them (one for each tenant, say) learns nothing of the rest.
const MOST_MODELS: usize = 1024;

/// All upstreams of a client.
#[derive(Debug)]
pub struct Keys {
    upstreams: Vec<Arc<Upstream>>,
    metrics: Arc<Metrics>,
    models: Mutex<HashMap<String, Lanes>>,
}

impl Keys {
    /// One upstream for each of `configs`, with the transport beside it.
    ///
    /// # Errors
    /// A configuration error if there is none, if they do not all take the same bodies, or for a weight or limit that makes no
    /// sense.
    pub fn new(configs: Vec<(UpstreamConfig, Arc<Transport>)>, metrics: Arc<Metrics>) -> Result<Self, Error> {
        if configs.is_empty() {
            return Err(Error::configuration("endpoints is empty; name at least one"));
        }
        config::one_format(configs.iter().map(|(config, _)| &*config.endpoint))?;
        let clock = Arc::default();
        let upstreams = configs
            .into_iter()
            .map(|(config, transport)| Upstream::new(config, transport, Arc::clone(&clock)).map(Arc::new));
        Ok(Self { upstreams: upstreams.collect::<Result<_, _>>()?, metrics, models: Mutex::default() })
    }

    /// The lanes of `model`, made at its first use.
    pub fn lanes(&self, model: &str) -> Lanes {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lanes) = models.get(model) {
            return lanes.clone();
        }
        let is_remembered = models.len() < MOST_MODELS;
        let lane = |upstream: &Arc<Upstream>| {
            let name = upstream.model_map.get(model).map_or(model, String::as_str);
            Arc::new(Lane {
                model: Arc::from(name),
                quoted_model: quoted(name).into(),
                limiter: Arc::new(RateLimiter::learning()),
                gate: Gate::default(),
                breaker: Breaker::default(),
                tokens: Arc::default(),
                metrics: self.metrics.lane(upstream.key_id, name),
                chat: upstream.chat(name),
                others: Mutex::default(),
                refuses_usage: AtomicBool::new(false),
                upstream: Arc::clone(upstream),
            })
        };
        let lanes = Lanes(self.upstreams.iter().map(lane).collect());
        if is_remembered {
            models.insert(model.to_owned(), lanes.clone());
        }
        lanes
    }

    /// The API that they speak; of those that share a format, the first one's.
    pub fn provider(&self) -> Provider {
        self.upstreams.first().map_or_else(Provider::default, |upstream| upstream.provider())
    }

    /// Every upstream.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// What the servers' headers said of each model asked so far.
    pub fn limits(&self) -> Vec<LearntLimits> {
        let models: Vec<_> = self.models.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let limits = |lane: &Arc<Lane>| LearntLimits {
            key_id: lane.upstream.key_id,
            model: Arc::clone(&lane.model),
            limits: lane.limiter.snapshot(),
        };
        models.iter().flat_map(|lanes| lanes.iter().map(limits)).collect()
    }
}

/// What was learnt of one lane's limits.
#[derive(Debug, Clone)]
pub struct LearntLimits {
    /// Whose.
    pub key_id: KeyId,
    /// The model's name there.
    pub model: Arc<str>,
    /// Every limit with its level.
    pub limits: Snapshot,
}
