//! When a run ends before its items do, and how it stands meanwhile.
//!
//! A stopped run takes no new item. What only waits (for a place, a limit, another attempt) is given up at once, since nothing is
//! paid for it; what is on the wire may end, for as long as the grace lasts. What ends a run is a call of [`Control::stop`] or a
//! rule of [`StopRules`], and the first reason is the one that is told.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::engine::error::{Error, Kind};
use crate::engine::types::Usage;

/// How long what is on the wire may take to end once a rule has stopped the run.
const GRACE: Duration = Duration::from_secs(30);

/// Outcomes that an error rate is taken over, unless said otherwise.
const WINDOW: usize = 100;

/// Why a run ended before its items did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// So many items have failed.
    MaxErrors,
    /// So large a share of the last items has failed.
    ErrorRate,
    /// No item can succeed: the key is refused, or money or quota is used up.
    Fatal,
    /// The run's time is over.
    Deadline,
    /// The run's tokens or money are used up.
    Budget,
    /// The user stopped it.
    Interrupted,
}

impl StopReason {
    /// The name by which users know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxErrors => "max_errors",
            Self::ErrorRate => "error_rate",
            Self::Fatal => "fatal",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What a token costs, in dollars.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// One of the prompt.
    pub input: f64,
    /// One of the answer.
    pub output: f64,
}

impl Price {
    fn of(self, usage: Usage) -> f64 {
        self.input * usage.prompt_tokens as f64 + self.output * usage.completion_tokens as f64
    }
}

/// What ends a run early; `None` is no rule.
#[derive(Debug, Clone, PartialEq)]
pub struct StopRules {
    /// Failed items that are one too many: 1 stops at the first.
    pub max_errors: Option<u64>,
    /// Share of the last `window` items, once there are as many.
    pub max_error_rate: Option<f64>,
    /// Items that `max_error_rate` looks at.
    pub window: usize,
    /// Whether a refused key or a used-up quota ends the run.
    pub fatal: bool,
    /// From the start of the run.
    pub deadline: Option<Duration>,
    /// Of prompts and answers together.
    pub max_tokens: Option<u64>,
    /// Dollars. Answers without a known price do not count.
    pub max_cost: Option<f64>,
}

impl Default for StopRules {
    fn default() -> Self {
        Self {
            max_errors: None,
            max_error_rate: None,
            window: WINDOW,
            fatal: false,
            deadline: None,
            max_tokens: None,
            max_cost: None,
        }
    }
}

impl StopRules {
    /// The rules, if they can be kept.
    ///
    /// # Errors
    /// A configuration error that names the argument.
    pub fn validated(self) -> Result<Self, Error> {
        let refuse = |text: String| Err(Error::configuration(text));
        match self {
            Self { max_errors: Some(0), .. } => refuse("max_errors must be at least 1, not 0".into()),
            Self { window: 0, .. } => refuse("error_window must be at least 1, not 0".into()),
            Self { max_tokens: Some(0), .. } => refuse("budget_tokens must be at least 1, not 0".into()),
            Self { deadline: Some(Duration::ZERO), .. } => refuse("deadline must be more than 0 seconds".into()),
            Self { max_error_rate: Some(rate), .. } if !(rate > 0.0 && rate <= 1.0) => {
                refuse(format!("max_error_rate must be a share above 0 and at most 1, not {rate}"))
            }
            Self { max_cost: Some(cost), .. } if !(cost > 0.0 && cost.is_finite()) => {
                refuse(format!("budget_usd must be above 0, not {cost}"))
            }
            rules => Ok(rules),
        }
    }
}

/// How a run stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Items that were answered.
    pub succeeded: u64,
    /// Items that failed for good.
    pub failed: u64,
    /// Items that were taken and have no outcome yet.
    pub in_flight: u64,
    /// Tokens of the prompts that were answered, as far as servers count them.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Dollars for the answers whose price is known.
    pub cost: f64,
    /// Answers whose price is not known.
    pub unpriced: u64,
}

/// The switch of one run and its counters.
#[derive(Debug, Default)]
pub struct Control {
    rules: StopRules,
    stopped: CancellationToken,
    /// When what is on the wire is given up, too; nothing before the run is stopped.
    grace_ends: watch::Sender<Option<Instant>>,
    reason: OnceLock<StopReason>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    /// The last items, `true` for a failed one.
    last: VecDeque<bool>,
    failed_of_last: usize,
}

impl Control {
    /// The control of a run that begins now.
    pub fn new(rules: StopRules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Ends the run; what is on the wire may take as long as `grace` to end. A second call may shorten the grace.
    pub fn stop(&self, reason: StopReason, grace: Duration) {
        let _ = self.reason.set(reason);
        let ends = Instant::now() + grace;
        self.grace_ends.send_modify(|known| *known = Some(known.map_or(ends, |known| known.min(ends))));
        self.stopped.cancel();
    }

    /// Why the run ended before its items did, if it did.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    /// Told when the run is stopped.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    /// How the run stands.
    pub fn progress(&self) -> Progress {
        self.lock().progress
    }

    /// Returns once the run's time is over, and what is on the wire must be given up; may never return.
    pub(super) async fn over(&self) {
        if let Some(deadline) = self.rules.deadline
            && self.stopped.run_until_cancelled(tokio::time::sleep(deadline)).await.is_some()
        {
            self.stop(StopReason::Deadline, Duration::ZERO);
        }
        self.stopped.cancelled().await;
        let mut told = self.grace_ends.subscribe();
        loop {
            let ends = *told.borrow_and_update();
            let Some(ends) = ends else { return };
            tokio::select! {
                () = tokio::time::sleep_until(ends) => return,
                // A second stop shortens the grace.
                _ = told.changed() => {}
            }
        }
    }

    /// An item was taken.
    pub(super) fn begin(&self) {
        self.lock().progress.in_flight += 1;
    }

    /// An item has ended: well with what it used, or not.
    pub(super) fn end(&self, outcome: Result<Option<Usage>, &Error>, price: Option<Price>) {
        let mut state = self.lock();
        state.progress.in_flight = state.progress.in_flight.saturating_sub(1);
        match outcome {
            // Neither: it will be asked again by the next run.
            Err(error) if error.kind() == Kind::Stopped => return,
            Err(_) => state.progress.failed += 1,
            Ok(usage) => state.progress.count(usage, price),
        }
        self.judge(state, outcome.is_err(), outcome.err());
    }

    /// Stops the run if its rules say so, now that one more item has ended.
    fn judge(&self, mut state: MutexGuard<'_, State>, has_failed: bool, error: Option<&Error>) {
        state.look_back(has_failed, self.rules.window);
        let reason = self.broken(&state, error);
        drop(state);
        if let Some(reason) = reason {
            self.stop(reason, GRACE);
        }
    }

    /// An item has ended as another did that asked the same: nothing was paid for it.
    pub(super) fn share(&self, outcome: Result<(), &Error>) {
        let mut state = self.lock();
        match outcome {
            Err(error) if error.kind() == Kind::Stopped => return,
            Err(_) => state.progress.failed += 1,
            Ok(()) => state.progress.succeeded += 1,
        }
        self.judge(state, outcome.is_err(), outcome.err());
    }

    /// An item that was answered has failed after all: its answer is not what was asked for.
    pub fn reject(&self) {
        let mut state = self.lock();
        state.progress.succeeded = state.progress.succeeded.saturating_sub(1);
        state.progress.failed += 1;
        state.unlook();
        self.judge(state, true, None);
    }

    /// An item that was answered is asked again.
    pub fn reopen(&self) {
        let mut state = self.lock();
        state.progress.succeeded = state.progress.succeeded.saturating_sub(1);
        state.unlook();
    }

    fn broken(&self, state: &State, error: Option<&Error>) -> Option<StopReason> {
        let (rules, progress) = (&self.rules, &state.progress);
        let tokens = progress.prompt_tokens.saturating_add(progress.completion_tokens);
        let share = state.failed_of_last as f64 / rules.window as f64;
        if rules.fatal && error.is_some_and(is_fatal) {
            Some(StopReason::Fatal)
        } else if rules.max_errors.is_some_and(|most| progress.failed >= most) {
            Some(StopReason::MaxErrors)
        } else if state.last.len() == rules.window && rules.max_error_rate.is_some_and(|most| share >= most) {
            Some(StopReason::ErrorRate)
        } else if rules.max_tokens.is_some_and(|most| tokens >= most)
            || rules.max_cost.is_some_and(|most| progress.cost >= most)
        {
            Some(StopReason::Budget)
        } else {
            None
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn count(&mut self, usage: Option<Usage>, price: Option<Price>) {
        self.succeeded += 1;
        let used = usage.unwrap_or_default();
        self.prompt_tokens = self.prompt_tokens.saturating_add(used.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(used.completion_tokens);
        match (usage, price) {
            (Some(usage), Some(price)) => self.cost += price.of(usage),
            _ => self.unpriced += 1,
        }
    }
}

impl State {
    /// Takes back the last item that went well.
    fn unlook(&mut self) {
        if let Some(place) = self.last.iter().rposition(|has_failed| !has_failed) {
            self.last.remove(place);
        }
    }

    fn look_back(&mut self, has_failed: bool, window: usize) {
        if self.last.len() == window && self.last.pop_front() == Some(true) {
            self.failed_of_last -= 1;
        }
        self.last.push_back(has_failed);
        self.failed_of_last += usize::from(has_failed);
    }
}

/// Whether the next item would fail of the same.
fn is_fatal(error: &Error) -> bool {
    error.is_of_account() || error.kind() == Kind::Closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(status: u16) -> Error {
        Error::new(Kind::Status(status), "no")
    }

    fn used(tokens: u64) -> Usage {
        Usage { prompt_tokens: tokens, completion_tokens: tokens, total_tokens: 2 * tokens }
    }

    fn control(rules: StopRules) -> Control {
        Control::new(rules.validated().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn without_rules_nothing_stops_a_run() {
        let control = Control::default();
        for _ in 0..1000 {
            control.begin();
            control.end(Err(&failed(401)), None);
        }
        assert_eq!((control.reason(), control.progress().failed), (None, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_errors_stop_it_and_the_first_reason_stays() {
        let control = control(StopRules { max_errors: Some(2), fatal: true, ..StopRules::default() });
        control.end(Err(&failed(500)), None);
        assert_eq!(control.reason(), None);
        control.end(Err(&failed(500)), None);
        control.end(Err(&failed(401)), None);
        assert_eq!(control.reason(), Some(StopReason::MaxErrors));
        assert!(control.stopped().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_rate_is_of_the_last_items_and_not_of_the_first_few() {
        let rules = StopRules { max_error_rate: Some(0.5), window: 4, ..StopRules::default() };
        let control = control(rules);
        let error = failed(500);
        for outcome in [Err(&error), Ok(None), Ok(None), Ok(None), Err(&error), Err(&error)] {
            assert_eq!(control.reason(), None);
            control.end(outcome, None);
        }
        assert_eq!(control.reason(), Some(StopReason::ErrorRate));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_and_a_used_up_quota_are_fatal_and_a_forbidden_item_is_not() {
        for (error, is_fatal) in [
            (failed(401), true),
            (failed(402), true),
            (failed(429).out_of_quota(), true),
            (failed(403), false),
            (failed(429), false),
        ] {
            let control = control(StopRules { fatal: true, ..StopRules::default() });
            control.end(Err(&error), None);
            assert_eq!(control.reason(), is_fatal.then_some(StopReason::Fatal), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn budgets_of_tokens_and_of_money_stop_it() {
        let tokens = control(StopRules { max_tokens: Some(20), ..StopRules::default() });
        tokens.end(Ok(Some(used(9))), None);
        assert_eq!(tokens.reason(), None);
        tokens.end(Ok(Some(used(1))), None);
        assert_eq!(tokens.reason(), Some(StopReason::Budget));

        let price = Some(Price { input: 0.1, output: 0.4 });
        let money = control(StopRules { max_cost: Some(1.0), ..StopRules::default() });
        money.end(Ok(Some(used(1))), price);
        money.end(Ok(Some(used(10))), None);
        assert_eq!((money.reason(), money.progress().unpriced), (None, 1));
        money.end(Ok(Some(used(1))), price);
        assert_eq!(money.reason(), Some(StopReason::Budget));
        assert!((money.progress().cost - 1.0).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_stops_it_and_a_second_stop_shortens_the_grace() {
        let control = control(StopRules { deadline: Some(Duration::from_secs(60)), ..StopRules::default() });
        let begun = Instant::now();
        control.over().await;
        assert_eq!((control.reason(), begun.elapsed()), (Some(StopReason::Deadline), Duration::from_secs(60)));

        let control = Control::default();
        control.stop(StopReason::Interrupted, Duration::from_secs(30));
        let begun = Instant::now();
        let over = async {
            control.over().await;
            begun.elapsed()
        };
        let again = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            control.stop(StopReason::Interrupted, Duration::from_secs(60));
            control.stop(StopReason::Interrupted, Duration::from_secs(10));
        };
        let (ended, ()) = tokio::join!(over, again);
        assert_eq!(ended, Duration::from_secs(15));
    }

    #[test]
    fn rules_that_cannot_be_kept_are_refused() {
        for rules in [
            StopRules { max_errors: Some(0), ..StopRules::default() },
            StopRules { max_error_rate: Some(1.1), ..StopRules::default() },
            StopRules { max_error_rate: Some(f64::NAN), ..StopRules::default() },
            StopRules { max_cost: Some(0.0), ..StopRules::default() },
            StopRules { max_tokens: Some(0), ..StopRules::default() },
            StopRules { window: 0, ..StopRules::default() },
        ] {
            assert!(rules.clone().validated().is_err(), "{rules:?}");
        }
    }
}
