//! The size of a window that steers itself. A pure state machine: what begins and ends in, a limit out.
//!
//! Few servers say how many requests they work on at once; they queue the rest, and then more in flight brings longer waits and
//! no more answers. The size sought is that *knee*. With `c` in flight and `r` answers (or tokens) per second and request in
//! flight, the throughput is `c r`. Below the knee `r` is constant, above it `c r` is. So from one reading below the knee and
//! one above it
//!
//! ```text
//! knee = c_high · r_high / r_low        (throughput above, over the pace below)
//! ```
//!
//! which is the bandwidth-delay product that BBR looks for, and by Little's law the concurrency at which Vegas and Netflix's
//! Gradient2 find no queue; unlike theirs it needs no latency remembered from before, so it cannot drift with the queue that it
//! causes itself. The limit goes round: a look at a lower load, a look at a higher one, then a while at the knee. Each look
//! measures one cohort ([`super::cohort`]). `docs/concurrency.md` has a worked example, and the figures reached in simulations.
//!
//! Servers that refuse instead of queueing are met with additive increase and multiplicative decrease under a ceiling, once per
//! round trip, unless fewer in flight proves to change nothing (`super::blame`). There is no growth while less than half of the limit is in flight (Netflix concurrency-limits): then something
//! else is what holds the requests back.

use std::time::Duration;

use super::blame::{Blame, Verdict};
use super::cohort::{Answered, Cohort, Flight, Reading};
use crate::engine::error::{Error, Kind, Pressure};

/// Bounds of a window that steers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoConcurrency {
    /// Where it starts. Default 64.
    pub initial: usize,
    /// The least. Default 1.
    pub min: usize,
    /// The most. Default 1,000; a caller lowers it to what the process may open.
    pub max: usize,
}

impl Default for AutoConcurrency {
    fn default() -> Self {
        Self { initial: 64, min: 1, max: 1000 }
    }
}

impl AutoConcurrency {
    fn clamp(&self, limit: f64) -> usize {
        // A cast of a float ends at the bounds of the integer.
        (limit as usize).min(self.max).max(self.min).max(1)
    }
}

/// How a request ended, as far as the server's load is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Answered.
    Ok,
    /// Refused because the server has too much to do at once.
    Overload,
    /// Refused for its rate, which a rate limiter handles.
    RateLimited,
    /// No answer in time.
    Timeout,
    /// Ended for a reason that says nothing of the server's load.
    Ignored,
}

impl Signal {
    /// What a failure says. `rate_told` is whether the server named a rate: by headers with its limits. A 429 without these
    /// and without `Retry-After` is taken for a limit of concurrency, which is what servers that count requests in flight send.
    pub fn of_failure(error: &Error, rate_told: bool) -> Self {
        match (error.pressure(), error.kind()) {
            (Pressure::Overload, _) => Self::Overload,
            (Pressure::RateLimit, _) if !rate_told && error.retry_after().is_none() => Self::Overload,
            (Pressure::RateLimit | Pressure::Ramp, _) => Self::RateLimited,
            (Pressure::None, Kind::Deadline | Kind::ConnectTimeout | Kind::Status(408 | 504)) => Self::Timeout,
            (Pressure::None, _) => Self::Ignored,
        }
    }
}

/// A look down goes this factor below the knee, a look up this factor above it.
const LOW: f64 = 1.3;
const HIGH: f64 = 1.35;
/// The deepest look down, where several in a row found a queue.
const DEEPEST: f64 = 3.0;
/// An estimate this near to the higher or the lower load says that the knee is beyond.
const AT_HIGH: f64 = 0.91;
const AT_LOW: f64 = 1.02;
/// The weight of one estimate once the knee is known.
const WEIGHT: f64 = 0.5;
/// While doubling: the pace falls below this share of the last once the knee is passed.
const KNEE_PASSED: f64 = 0.7;
/// The last quarter of a first burst takes this much longer than the first if the server queues most of it.
const QUEUED_BURST: f64 = 2.5;
/// Cohorts at the knee between looks: it grows to this while the knee stays.
const LONGEST_HOLD: u32 = 10;
/// A cohort is so large that its mean has about this relative error, within bounds, and at least this share of the limit.
const PRECISION: f64 = 0.11;
const COHORT: (f64, f64) = (16.0, 200.0);
const COHORT_SHARE: f64 = 0.75;
/// A steady knee is measured with cohorts larger by up to this factor.
const MOST_PATIENCE: f64 = 2.0;
/// The share of a cohort that must have ended.
const COHORT_OVER: f64 = 0.95;
/// Held just below the knee where all take equally long, since one too many would wait a whole turn; and above it by this share
/// of the latency's spread, since with random service times a small queue keeps the server busy.
const JUST_BELOW: f64 = 0.97;
const HEADROOM: f64 = 0.2;
/// Refusals cut the limit to this, or to the gentle one where only few were refused.
const CUT: f64 = 0.7;
const GENTLE_CUT: f64 = 0.95;
/// More than one in so many refused is not few.
const FEW: u64 = 8;
/// Round trips between two tries to pass a level at which the server refused.
const TRY_AGAIN: f64 = 8.0;
/// So far above the level of the last refusal, it is history.
const HISTORY: f64 = 1.25;

/// What the present cohort is for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Doubling until the first sign of the knee.
    Start { last: Option<Reading> },
    /// Below the knee, as far as is known.
    Low,
    /// Above it; what was read below.
    High { low: Reading },
    /// At it, for so many cohorts more; the first reading there.
    Hold { left: u32, first: Option<Reading> },
}

/// Finds the limit.
#[derive(Debug)]
pub struct Controller {
    config: AutoConcurrency,
    limit: usize,
    phase: Phase,
    knee: Knee,
    refusals: Refusals,
    blame: Blame,
    cohort: Cohort,
    first_burst: bool,
    load: Load,
}

/// What is known of the knee.
#[derive(Debug)]
struct Knee {
    at: f64,
    /// The next estimate replaces what was known.
    unsure: bool,
    /// The factor of the next look down.
    depth: f64,
    /// Looks in a row that found the knee at or below the lower load.
    below: u32,
    hold: u32,
    patience: f64,
    /// Of the latencies, over the mean: of the last cohorts, and of those without a queue.
    spread: f64,
    quiet_spread: f64,
}

/// What is known of a level at which the server refuses.
#[derive(Debug)]
struct Refusals {
    /// The limit stays below.
    ceiling: f64,
    level: f64,
    /// Whether it is the ceiling that holds the limit down, not a queue.
    binds: bool,
    cut_at: f64,
    answered: u64,
    refused: u64,
}

/// Requests under way.
#[derive(Debug, Default)]
struct Load {
    begun: u64,
    running: usize,
    /// Summed over time, in request-seconds.
    area: f64,
    updated: f64,
}

impl Load {
    fn advance(&mut self, now: f64) {
        self.area += self.running as f64 * (now - self.updated).max(0.0);
        self.updated = self.updated.max(now);
    }

    fn begin(&mut self, now: f64) -> Flight {
        self.advance(now);
        let flight = Flight { number: self.begun, began: now, ahead: self.running, area: self.area };
        self.begun += 1;
        self.running += 1;
        flight
    }

    fn end(&mut self, now: f64, flight: &Flight, tokens: Option<u64>) -> Answered {
        self.advance(now);
        let latency = (now - flight.began).max(0.0);
        let load = if latency > 0.0 { (self.area - flight.area) / latency } else { self.running as f64 };
        self.running -= 1;
        Answered { latency, load, tokens }
    }
}

impl Controller {
    /// One that starts at the initial limit.
    pub fn new(config: AutoConcurrency) -> Self {
        let initial = config.clamp(config.initial as f64);
        let mut controller = Self {
            config,
            limit: initial,
            phase: Phase::Start { last: None },
            knee: Knee {
                at: initial as f64,
                unsure: true,
                depth: LOW,
                below: 0,
                hold: 0,
                patience: 1.0,
                spread: 0.5,
                quiet_spread: 0.2,
            },
            refusals: Refusals {
                ceiling: config.clamp(f64::INFINITY) as f64,
                level: f64::INFINITY,
                binds: false,
                cut_at: f64::NEG_INFINITY,
                answered: 0,
                refused: 0,
            },
            blame: Blame::default(),
            cohort: Cohort::default(),
            first_burst: true,
            load: Load::default(),
        };
        controller.measure_at(initial as f64);
        controller
    }

    /// The limit now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Requests under way now.
    pub fn running(&self) -> usize {
        self.load.running
    }

    /// Goes on from another limit, within the bounds.
    pub fn set_limit(&mut self, limit: usize) -> usize {
        self.knee.at = self.config.clamp(limit as f64) as f64;
        self.knee.unsure = true;
        self.refusals.ceiling = self.refusals.ceiling.max(self.knee.at);
        self.hold(0);
        self.measure_at(self.knee.at);
        self.limit
    }

    /// A request goes out.
    pub fn begin(&mut self, now: Duration) -> Flight {
        let flight = self.load.begin(now.as_secs_f64());
        self.cohort.begin(&flight);
        flight
    }

    /// It ended; the limit from here on. `tokens` are those of the answer, if the server said.
    pub fn end(&mut self, now: Duration, flight: &Flight, signal: Signal, tokens: Option<u64>) -> usize {
        let now = now.as_secs_f64();
        let is_full = self.load.running * 2 >= self.limit;
        let ended = self.load.end(now, flight, tokens);
        let is_alone = self.load.running == 0;
        self.cohort.end(flight, (signal == Signal::Ok).then_some(ended));
        match signal {
            Signal::Ok => {
                self.blame.answered(self.limit, is_alone);
                self.answered(is_full);
            }
            Signal::Overload | Signal::Timeout => {
                self.refusals.refused += 1;
                match self.blame.refused(self.limit, is_alone) {
                    // Those that were sent before the last cut say nothing new: one cut per round trip.
                    Verdict::Guilty if flight.began > self.refusals.cut_at => self.cut(now),
                    Verdict::Guilty | Verdict::Open => {}
                    Verdict::Acquitted(before) => {
                        self.set_limit(before.max(self.limit));
                    }
                }
            }
            Signal::RateLimited | Signal::Ignored => {}
        }
        if self.cohort.is_over(COHORT_OVER) {
            self.finish(now);
        }
        self.limit
    }

    // ---- refusals: AIMD under a ceiling ----

    fn cut(&mut self, now: f64) {
        let limit = self.limit as f64;
        let refusals = &mut self.refusals;
        let ceiling = if refusals.refused * FEW > refusals.answered {
            limit * CUT
        } else {
            (limit * GENTLE_CUT).min(limit - 1.0)
        };
        let ceiling = ceiling.max(self.config.min.max(1) as f64);
        *refusals = Refusals { ceiling, level: limit, binds: true, cut_at: now, answered: 0, refused: 0 };
        self.knee.at = ceiling;
        self.hold(LONGEST_HOLD);
        self.measure_at(ceiling);
    }

    /// One answer raises the ceiling so that a round trip raises it by one, or by a part of one next to the level of the last
    /// refusal.
    fn answered(&mut self, is_full: bool) {
        let top = self.config.max as f64;
        let refusals = &mut self.refusals;
        refusals.answered += 1;
        if refusals.ceiling >= top || !is_full {
            return;
        }
        let next_to = refusals.ceiling + 1.0 >= refusals.level && refusals.ceiling < refusals.level + 1.0;
        let step = if next_to { 1.0 / TRY_AGAIN } else { (refusals.ceiling / 16.0).max(1.0) };
        refusals.ceiling = (refusals.ceiling + step / refusals.ceiling).min(top);
        if refusals.binds {
            self.knee.at = refusals.ceiling;
            self.limit = self.config.clamp(refusals.ceiling.floor());
            if refusals.ceiling > refusals.level * HISTORY || refusals.ceiling >= top {
                refusals.binds = false;
                self.look_down();
            }
        }
    }

    // ---- queues: looks below and above the knee ----

    fn finish(&mut self, now: f64) {
        let reading = self.cohort.reading(now);
        let burst = if std::mem::take(&mut self.first_burst) { self.cohort.burst_ratio() } else { None };
        let Some(reading) = reading.filter(|reading| reading.load * 2.0 >= self.limit as f64) else {
            // Too little was in flight to say anything of the limit.
            self.measure_at(self.limit as f64);
            return;
        };
        self.knee.spread = self.knee.spread.midpoint(reading.spread());
        match self.phase {
            Phase::Start { last } => self.start(reading, last, burst),
            Phase::Low => {
                self.knee.quiet_spread += 0.3 * (reading.spread() - self.knee.quiet_spread);
                self.phase = Phase::High { low: reading };
                self.measure_at(self.above());
            }
            Phase::High { low } => self.estimate(&low, &reading),
            Phase::Hold { left, first } => self.watch(left, first, reading),
        }
    }

    fn start(&mut self, reading: Reading, last: Option<Reading>, burst: Option<f64>) {
        if burst.is_some_and(|ratio| ratio > QUEUED_BURST) {
            self.fall_to(self.limit as f64 / 4.0);
            return;
        }
        if let Some(last) = last {
            let pace = reading.pace_over(&last);
            if pace < KNEE_PASSED {
                let (low, high) = (last.load.min(reading.load), last.load.max(reading.load));
                self.fall_to((reading.load * pace).clamp(low, high));
                return;
            }
        }
        if self.limit >= self.top() {
            self.knee.at = self.limit as f64;
            self.hold(LONGEST_HOLD);
            self.measure_at(self.knee.at);
        } else {
            self.phase = Phase::Start { last: Some(reading) };
            self.measure_at(self.limit as f64 * 2.0);
        }
    }

    fn estimate(&mut self, low: &Reading, high: &Reading) {
        let knee = high.load * high.pace_over(low);
        if high.load <= low.load * 1.03 {
            // Not the limit but the supply decided how many were in flight.
            self.settle();
        } else if knee >= high.load * AT_HIGH {
            self.knee.at = high.load.max(self.limit as f64);
            self.knee.below = 0;
            self.knee.depth = LOW;
            if self.limit >= self.top() { self.settle() } else { self.search() }
        } else if knee <= low.load * AT_LOW {
            self.knee.below += 1;
            if self.knee.below >= 2 {
                self.knee.at = low.load;
                self.knee.depth = (self.knee.depth * 1.5).min(DEEPEST);
                self.search();
            } else {
                // Once may be chance: a step down, and soon another look.
                self.knee.at *= (low.load / self.knee.at).powf(WEIGHT);
                self.knee.hold = self.knee.hold.min(1);
                self.hold(self.knee.hold);
            }
        } else {
            let deep = self.knee.depth > LOW;
            let weight = if deep || self.knee.unsure { 1.0 } else { WEIGHT };
            self.knee.at *= (knee / self.knee.at).powf(weight);
            self.knee.below = 0;
            self.knee.depth = LOW;
            self.knee.unsure = false;
            if deep { self.hold(0) } else { self.settle() }
        }
        self.go_on();
    }

    /// At the knee. A pace that falls without a change of ours means a server that has become smaller (or requests that have
    /// become longer, which the next look down tells apart); one that has become larger shows at the next look up only.
    fn watch(&mut self, left: u32, first: Option<Reading>, reading: Reading) {
        if let Some(first) = first {
            let pace = reading.pace_over(&first);
            if pace.ln() < -(0.06 + 3.0 * reading.noise()) {
                self.refusals.binds = false;
                self.fall_to(self.knee.at * pace.max(0.25) * 1.1);
                return;
            }
        }
        self.phase = Phase::Hold { left: left.saturating_sub(1), first: first.or(Some(reading)) };
        self.go_on();
    }

    /// Measures next what the phase asks for.
    fn go_on(&mut self) {
        self.knee.at = self.knee.at.clamp(self.config.min.max(1) as f64, self.top() as f64);
        match self.phase {
            Phase::Hold { left: 0, .. } if !self.refusals.binds => self.look_down(),
            _ => {
                let room = JUST_BELOW + HEADROOM * self.knee.quiet_spread;
                self.measure_at(self.knee.at * room);
            }
        }
    }

    fn look_down(&mut self) {
        self.phase = Phase::Low;
        self.measure_at(self.below());
    }

    /// The knee is at about `knee` or below.
    fn fall_to(&mut self, knee: f64) {
        self.knee.at = knee.max(1.0);
        self.knee.depth = 2.0;
        self.knee.below = 1;
        self.search();
        self.look_down();
    }

    /// Something has changed: look again at once.
    fn search(&mut self) {
        self.knee.unsure = true;
        self.knee.patience = 1.0;
        self.knee.hold = 0;
        self.hold(0);
    }

    /// Nothing has changed: stay longer, and measure with more requests.
    fn settle(&mut self) {
        self.knee.hold = (self.knee.hold + 1).min(LONGEST_HOLD);
        self.knee.patience = (self.knee.patience * 1.5).min(MOST_PATIENCE);
        self.hold(self.knee.hold);
    }

    fn hold(&mut self, left: u32) {
        self.phase = Phase::Hold { left, first: None };
    }

    fn top(&self) -> usize {
        self.config.clamp(self.refusals.ceiling.floor())
    }

    fn below(&self) -> f64 {
        (self.knee.at / self.knee.depth).round().max(1.0)
    }

    fn above(&self) -> f64 {
        (self.knee.at * HIGH).round().max(self.below() + 1.0)
    }

    /// Sets the limit, and measures those that begin once it is reached.
    fn measure_at(&mut self, limit: f64) {
        let before = self.limit;
        self.limit = self.config.clamp(limit.round().min(self.refusals.ceiling));
        let filling = if self.load.running == 0 { 0 } else { self.limit.saturating_sub(before) };
        let (least, most) = COHORT;
        let size = (self.knee.spread / PRECISION).powi(2).clamp(least, most) * self.knee.patience;
        let size = size.max(self.limit as f64 * COHORT_SHARE).ceil();
        self.cohort = Cohort::new(self.load.begun + filling as u64, size as usize);
    }
}
