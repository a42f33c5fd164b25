//! One limit, and how much of it is left.
//!
//! A user's limit is a promise: a token bucket or a sliding window, moved by nobody else. A *learnt* limit was read from a
//! server's headers and is kept twice. The first bucket is our own account of what we sent, settled by usage. The second is
//! what the server last said (its `remaining`, less what it could not have seen yet). The lower one counts, so headers move the
//! level down and never above what we would have allowed ourselves, and whether a vendor gives unused tokens back need not be
//! known: if it does not, the second bucket says so. Nothing has to push our own account *up* either: a bucket that counted
//! too much fills by itself, and by its whole capacity within one window.

use std::time::Duration;

use tokio::time::Instant;

use super::bucket::{NOISE, TokenBucket};
use super::cost;
use super::line::Grant;
use super::pace::Rate;
use super::window_log::WindowLog;
use crate::engine::error::{Error, Kind};
use crate::engine::types::Unit;

/// At most `amount` of a unit per `per`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// What is counted.
    pub unit: Unit,
    /// How many. Less than one is one in a longer time: 0.5 per minute is one in two.
    pub amount: f64,
    /// The window: a second, a minute, a day.
    pub per: Duration,
    /// How many may go at once from a full bucket. Default: `amount`, and at least 1.
    pub burst: Option<f64>,
}

impl Limit {
    /// `amount` per minute.
    pub fn per_minute(unit: Unit, amount: f64) -> Self {
        Self { unit, amount, per: MINUTE, burst: None }
    }

    fn capacity(&self) -> f64 {
        self.burst.unwrap_or(self.amount.max(1.0))
    }

    fn per_second(&self) -> f64 {
        self.amount / self.per.as_secs_f64()
    }

    /// As arguments name it: `requests_per_minute`.
    fn name(&self) -> String {
        let unit = cost::name(self.unit);
        match WINDOWS.iter().find(|(window, _)| *window == self.per) {
            Some((_, window)) => format!("{unit}_per_{window}"),
            None => format!("{unit} per {} s", self.per.as_secs_f64()),
        }
    }

    fn check(&self, algorithm: Algorithm) -> Result<(), Error> {
        let (name, amount) = (self.name(), self.amount);
        if !(amount.is_finite() && amount > 0.0) {
            return Err(Error::configuration(format!("{name} must be a positive number, not {amount}")));
        }
        if self.per.is_zero() {
            return Err(Error::configuration(format!("{name} needs a window that is longer than 0 s")));
        }
        if !self.per_second().is_normal() {
            return Err(Error::configuration(format!("{name} cannot be {amount}: that is beyond what can be counted")));
        }
        let Some(burst) = self.burst else { return Ok(()) };
        if !(burst.is_finite() && burst >= 1.0) {
            return Err(Error::configuration(format!("burst must be a number of at least 1, not {burst}")));
        }
        if algorithm == Algorithm::SlidingWindow {
            return Err(Error::configuration(
                "burst belongs to the token bucket: a sliding window lets its whole limit go at once; leave burst out, or \
                 choose algorithm=\"token_bucket\"",
            ));
        }
        Ok(())
    }
}

pub(super) const MINUTE: Duration = Duration::from_secs(60);

const WINDOWS: [(Duration, &str); 4] = [
    (Duration::from_secs(1), "second"),
    (MINUTE, "minute"),
    (Duration::from_secs(3600), "hour"),
    (Duration::from_secs(86_400), "day"),
];

/// How a limit is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// An even refill: capacity at once, then `amount / per` a second.
    #[default]
    TokenBucket,
    /// Never more than `amount` in any stretch of `per`.
    SlidingWindow,
}

/// The limits of a limiter. Several for one unit (a second, a minute, a day) all hold; a unit without one is not limited.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RateLimits {
    /// All of these hold.
    pub limits: Vec<Limit>,
    /// How they are counted.
    pub algorithm: Algorithm,
}

impl RateLimits {
    /// Requests and tokens per minute, counted by token buckets.
    pub fn per_minute(requests: Option<f64>, tokens: Option<f64>) -> Self {
        let limits = [(Unit::Requests, requests), (Unit::Tokens, tokens)];
        let limits = limits.into_iter().filter_map(|(unit, amount)| Some(Limit::per_minute(unit, amount?)));
        Self { limits: limits.collect(), algorithm: Algorithm::TokenBucket }
    }

    pub(super) fn checked(self) -> Result<Self, Error> {
        for (place, limit) in self.limits.iter().enumerate() {
            limit.check(self.algorithm)?;
            if self.limits.iter().take(place).any(|other| (other.unit, other.per) == (limit.unit, limit.per)) {
                return Err(Error::configuration(format!("{} is given twice", limit.name())));
            }
        }
        Ok(self)
    }
}

/// The share of a told limit below which a refusal is no surprise.
const UNSURE: f64 = 0.05;

#[derive(Debug, Clone)]
enum Gauge {
    Bucket(TokenBucket),
    Log(WindowLog),
}

/// What the server said lately, refilled since.
#[derive(Debug)]
struct Evidence {
    /// When the first request left whose answer is in `latest`.
    since: Instant,
    latest: TokenBucket,
    before: Option<TokenBucket>,
}

/// Requests that left within this of each other may have arrived in another order, so that the younger one's answer does not
/// know of the older. The lowest of what answers said counts for so long, and for as long again.
const OVERTAKING: Duration = Duration::from_millis(500);

impl Evidence {
    fn first(bucket: TokenBucket, sent: Instant) -> Self {
        Self { since: sent, latest: bucket, before: None }
    }

    fn add(&mut self, bucket: TokenBucket, sent: Instant) {
        if sent >= self.since + OVERTAKING {
            self.before = Some(std::mem::replace(&mut self.latest, bucket));
            self.since = sent;
        } else if sent + OVERTAKING > self.since {
            self.latest.set(self.latest.level().min(bucket.level()));
        }
        // An older one is old news: it was answered slowly.
    }

    fn buckets(&self) -> impl Iterator<Item = &TokenBucket> {
        std::iter::once(&self.latest).chain(&self.before)
    }

    fn each(&mut self, change: impl FnMut(&mut TokenBucket)) {
        std::iter::once(&mut self.latest).chain(&mut self.before).for_each(change);
    }

    fn level(&self) -> f64 {
        self.buckets().map(TokenBucket::level).fold(f64::INFINITY, f64::min)
    }
}

#[derive(Debug)]
enum Origin {
    /// Set by the user.
    Given,
    /// Read from headers.
    Learnt(Option<Evidence>),
    /// Found from refusals.
    Paced,
}

/// What one answer says of a learnt limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finding {
    /// Left when the server looked.
    pub(super) remaining: f64,
    /// What it could not have seen: sent, or about to be, after the request that it answers.
    pub(super) newer: f64,
    /// When that request left.
    pub(super) sent: Instant,
}

/// One limit and its level.
#[derive(Debug)]
pub(super) struct Meter {
    limit: Limit,
    gauge: Gauge,
    origin: Origin,
    /// Reservations of an older generation than this were not counted here.
    born: u64,
}

impl Meter {
    pub(super) fn given(limit: Limit, algorithm: Algorithm, born: u64, now: Instant) -> Self {
        let gauge = match algorithm {
            Algorithm::TokenBucket => Gauge::Bucket(TokenBucket::full(limit.capacity(), limit.per_second(), now)),
            Algorithm::SlidingWindow => Gauge::Log(empty_log(&limit)),
        };
        Self { limit, gauge, origin: Origin::Given, born }
    }

    /// A learnt limit counts everything that was ever sent: what the server had not seen yet is in the first finding.
    pub(super) fn learnt(limit: Limit, finding: Option<Finding>, now: Instant) -> Self {
        let gauge = Gauge::Bucket(TokenBucket::full(limit.capacity(), limit.per_second(), now));
        let mut meter = Self { limit, gauge, origin: Origin::Learnt(None), born: 0 };
        if let Some(finding) = finding {
            meter.believe(finding, now);
            meter.start_from_evidence();
        }
        meter
    }

    /// A limit that no header names. It starts empty, since a refusal is what it was found by.
    pub(super) fn paced(rate: Rate, now: Instant) -> Self {
        let limit = paced_limit(rate);
        let mut bucket = TokenBucket::full(limit.capacity(), limit.per_second(), now);
        bucket.set(0.0);
        Self { limit, gauge: Gauge::Bucket(bucket), origin: Origin::Paced, born: 0 }
    }

    /// Follows the rate.
    pub(super) fn pace(&mut self, rate: Rate, is_empty: bool) {
        self.limit = paced_limit(rate);
        if let Gauge::Bucket(bucket) = &mut self.gauge {
            let level = bucket.level();
            bucket.resize(self.limit.capacity(), self.limit.per_second());
            bucket.set(if is_empty { level.min(0.0) } else { level });
        }
    }

    pub(super) fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Not the user's.
    pub(super) fn is_learnt(&self) -> bool {
        !matches!(self.origin, Origin::Given)
    }

    /// Read from headers.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.origin, Origin::Learnt(_))
    }

    /// Found from refusals.
    pub(super) fn is_paced(&self) -> bool {
        matches!(self.origin, Origin::Paced)
    }

    /// Whether a refusal of `amount` is no surprise: there is less than that left, or hardly anything. Some servers round what
    /// is left.
    pub(super) fn explains_refusal(&self, amount: f64) -> bool {
        let unsure = (2.0 * self.charge(amount)).max(UNSURE * self.capacity());
        self.is_told() && self.level() < unsure.min(self.capacity())
    }

    pub(super) fn is(&self, unit: Unit, per: Duration) -> bool {
        self.limit.unit == unit && self.limit.per == per
    }

    pub(super) fn capacity(&self) -> f64 {
        match &self.gauge {
            Gauge::Bucket(bucket) => bucket.capacity(),
            Gauge::Log(log) => log.capacity(),
        }
    }

    pub(super) fn advance(&mut self, now: Instant) {
        match &mut self.gauge {
            Gauge::Bucket(bucket) => bucket.refill(now),
            Gauge::Log(log) => log.expire(now),
        }
        if let Some(evidence) = self.evidence() {
            evidence.each(|bucket| bucket.refill(now));
        }
    }

    pub(super) fn level(&self) -> f64 {
        let own = match &self.gauge {
            Gauge::Bucket(bucket) => bucket.level(),
            Gauge::Log(log) => log.level(),
        };
        match &self.origin {
            Origin::Learnt(Some(evidence)) => own.min(evidence.level()),
            _ => own,
        }
    }

    /// What `amount` counts here. Learnt limits are not the user's promise, and the amount is an estimate: more than all of it
    /// counts as all of it, rather than failing a call that the server may well take.
    pub(super) fn charge(&self, amount: f64) -> f64 {
        if self.is_learnt() { amount.min(self.capacity()) } else { amount }
    }

    /// Whether `amount` can ever pass.
    pub(super) fn fits(&self, amount: f64) -> bool {
        self.charge(amount) <= self.capacity() + NOISE
    }

    pub(super) fn too_large(&self, amount: f64) -> Error {
        let limit = &self.limit;
        let (unit, name) = (cost::name(limit.unit).replace('_', " "), limit.name().replace('_', " "));
        let burst = limit.burst.map(|burst| format!(" with a burst of {burst}")).unwrap_or_default();
        let summary = format!("{amount} {unit} at once can never pass a limit of {} {name}{burst}", limit.amount);
        Error::new(Kind::InputTooLarge, summary)
            .advise("Make the request smaller (also max_tokens, which counts in full), or raise the limit.")
    }

    /// Until `amount` is there, if nobody else takes any; may be more than the capacity (a whole line).
    pub(super) fn seconds_until(&self, amount: f64, now: Instant) -> f64 {
        let own = match &self.gauge {
            Gauge::Bucket(bucket) => bucket.seconds_until(amount, now),
            Gauge::Log(log) => log.seconds_until(amount, now),
        };
        match &self.origin {
            Origin::Learnt(Some(evidence)) => {
                evidence.buckets().map(|bucket| bucket.seconds_until(amount, now)).fold(own, f64::max)
            }
            _ => own,
        }
    }

    pub(super) fn take(&mut self, amount: f64, now: Instant) {
        let charge = self.charge(amount);
        match &mut self.gauge {
            Gauge::Bucket(bucket) => bucket.take(charge, now),
            Gauge::Log(log) => log.take(charge, now),
        }
        if let Some(evidence) = self.evidence() {
            evidence.each(|bucket| bucket.take(charge, now));
        }
    }

    /// Gives back what was taken and never sent.
    pub(super) fn give_back(&mut self, amount: f64, grant: Grant) {
        let charge = self.charge(amount);
        self.correct(charge, grant);
        if let Some(evidence) = self.evidence() {
            evidence.each(|bucket| bucket.add(charge));
        }
    }

    /// Corrects what was sent: `amount` was counted, `actual` was used. What the server makes of that, it will say itself.
    pub(super) fn settle(&mut self, amount: f64, actual: f64, grant: Grant) {
        self.correct(self.charge(amount) - self.charge(actual), grant);
    }

    fn correct(&mut self, amount: f64, grant: Grant) {
        if grant.generation < self.born {
            return;
        }
        match &mut self.gauge {
            Gauge::Bucket(bucket) => bucket.add(amount),
            Gauge::Log(log) => log.correct(amount, grant.at),
        }
    }

    /// The same limit with other numbers. A bucket stays as full as it was, a log keeps what was taken.
    pub(super) fn change(&mut self, limit: Limit, algorithm: Algorithm, now: Instant) {
        match (&mut self.gauge, algorithm) {
            (Gauge::Bucket(bucket), Algorithm::TokenBucket) => bucket.resize(limit.capacity(), limit.per_second()),
            (Gauge::Log(log), Algorithm::SlidingWindow) if self.limit.amount.min(limit.amount) >= 1.0 => {
                log.resize(limit.capacity());
            }
            _ => {
                let used = self.capacity() - self.level();
                let born = self.born;
                *self = Self::given(limit, algorithm, born, now);
                match &mut self.gauge {
                    Gauge::Bucket(bucket) => bucket.add(-used),
                    Gauge::Log(log) => log.take(used.min(2.0 * log.capacity()), now),
                }
            }
        }
        self.limit = limit;
    }

    /// Follows what the server says now.
    pub(super) fn learn(&mut self, amount: Option<f64>, finding: Option<Finding>, now: Instant) {
        let changed = amount.filter(|amount| (amount - self.limit.amount).abs() > NOISE);
        if let (Some(amount), Gauge::Bucket(bucket)) = (changed, &mut self.gauge) {
            self.limit.amount = amount;
            bucket.resize(self.limit.capacity(), self.limit.per_second());
            self.origin = Origin::Learnt(None);
        }
        let Some(finding) = finding else { return };
        self.believe(finding, now);
        if changed.is_some() {
            // Our account was of another bucket; a larger one must not wait for its refill.
            self.start_from_evidence();
        }
    }

    /// The level the server will see when what leaves now arrives: what it said, less what it had not seen. That has been
    /// refilled meanwhile, but not by more than itself, since the server may have looked late; so this is never above
    /// `remaining`. Nor is it below zero: what is more than there is will be refused, and that takes nothing.
    fn believe(&mut self, finding: Finding, now: Instant) {
        let mut bucket = TokenBucket::full(self.limit.capacity(), self.limit.per_second(), now);
        let remaining = finding.remaining.clamp(0.0, bucket.capacity());
        let age = now.saturating_duration_since(finding.sent).as_secs_f64();
        let refilled = (age - bucket.lateness()).max(0.0) * bucket.per_second();
        bucket.set((remaining - (finding.newer - refilled).max(0.0)).max(0.0));
        match self.evidence() {
            Some(evidence) => evidence.add(bucket, finding.sent),
            None => self.origin = Origin::Learnt(Some(Evidence::first(bucket, finding.sent))),
        }
    }

    /// Takes what the server says for our own account, which holds what went by other reckonings: a request that was refused.
    pub(super) fn start_from_evidence(&mut self) {
        if let Origin::Learnt(Some(evidence)) = &self.origin {
            self.gauge = Gauge::Bucket(evidence.latest.clone());
        }
    }

    fn evidence(&mut self) -> Option<&mut Evidence> {
        match &mut self.origin {
            Origin::Learnt(evidence) => evidence.as_mut(),
            Origin::Given | Origin::Paced => None,
        }
    }
}

fn paced_limit(rate: Rate) -> Limit {
    Limit { burst: Some(rate.burst), ..Limit::per_minute(Unit::Requests, rate.per_second * MINUTE.as_secs_f64()) }
}

/// Less than one in a window is one in a longer window.
fn empty_log(limit: &Limit) -> WindowLog {
    let stretch = limit.capacity() / limit.amount;
    WindowLog::empty(limit.capacity(), limit.per.mul_f64(stretch.max(1.0)))
}
