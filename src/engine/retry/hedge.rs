//! A second request for one that takes too long, and whichever answers first ("The Tail at Scale", Dean and Barroso, 2013).
//!
//! Started after the 95th percentile of the usual time, a hedge costs a twentieth more requests and cuts the tail. It is a second
//! paid request, though, so it is off unless asked for, and kept within a share of all requests: when everything is slow, a
//! second request of each only makes it slower. The loser is dropped, which closes its connection.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use crate::engine::error::Error;

/// Hedges that may be made at once after a long time without any, and the most that is saved up.
const BURST: f64 = 10.0;

/// When a second request is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// After this time.
    Fixed(Duration),
    /// After the time within which 95 of 100 requests were answered lately.
    P95,
}

/// Whether and when requests are hedged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HedgePolicy {
    /// When a second request is begun.
    pub after: HedgeAfter,
    /// The most hedges for each request.
    pub share: f64,
}

impl HedgePolicy {
    /// A policy with the usual share of a twentieth.
    pub fn new(after: HedgeAfter) -> Self {
        Self { after, share: 0.05 }
    }

    /// These numbers, if they make sense.
    ///
    /// # Errors
    /// A configuration error if the time is zero or the share is not above 0 and at most 1.
    pub fn validated(self) -> Result<Self, Error> {
        if self.after == HedgeAfter::Fixed(Duration::ZERO) {
            return Err(Error::configuration(
                "hedge_after must be more than 0 seconds: at once would send everything twice",
            ));
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(Error::configuration(format!(
                "hedge_share must be above 0 and at most 1 (0.05: one hedge for twenty requests), not {}",
                self.share
            )));
        }
        Ok(self)
    }
}

/// Hedges in proportion to requests: a bucket that each request adds `share` to and each hedge takes one from. It starts empty,
/// and unlike a retry a hedge that it does not allow is simply not made.
#[derive(Debug)]
pub struct HedgeBudget {
    share: f64,
    saved: Mutex<f64>,
}

impl HedgeBudget {
    /// A budget of `share` hedges for each request.
    pub fn new(share: f64) -> Self {
        Self { share, saved: Mutex::new(0.0) }
    }

    /// Counts one request.
    pub fn deposit(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = (*saved + self.share).min(BURST);
    }

    /// Takes one hedge, if there is one.
    pub fn withdraw(&self) -> bool {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        // Twenty times a twentieth is a hair less than one.
        let whole = *saved >= 1.0 - 1e-9;
        if whole {
            *saved -= 1.0;
        }
        whole
    }
}

/// `primary`, and if it takes longer than `after` a backup beside it: the first `Ok`, or the last `Err`.
///
/// `backup` is asked once, when the time has come; it makes none by `None` (the budget is used up). A primary that fails before
/// then is not backed up: that is a retry's matter. Whichever loses is dropped unfinished.
///
/// # Errors
/// What the one that failed last failed with.
pub async fn hedged<T, E, Backup>(
    primary: impl Future<Output = Result<T, E>>,
    backup: impl FnOnce() -> Option<Backup>,
    after: Duration,
) -> Result<T, E>
where
    Backup: Future<Output = Result<T, E>>,
{
    let mut primary = pin!(primary);
    if let Ok(outcome) = timeout(after, primary.as_mut()).await {
        return outcome;
    }
    let Some(backup) = backup() else { return primary.await };
    let mut backup = pin!(backup);
    tokio::select! {
        // A primary that is done as its hedge begins has won.
        biased;
        outcome = primary.as_mut() => match outcome {
            Ok(answer) => Ok(answer),
            Err(_) => backup.await,
        },
        outcome = backup.as_mut() => match outcome {
            Ok(answer) => Ok(answer),
            Err(_) => primary.await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};

    use super::*;

    const AFTER: Duration = Duration::from_millis(100);

    async fn in_ms(
        milliseconds: u64,
        outcome: Result<&'static str, &'static str>,
    ) -> Result<&'static str, &'static str> {
        sleep(Duration::from_millis(milliseconds)).await;
        outcome
    }

    async fn timed<T>(work: impl Future<Output = T>) -> (T, u128) {
        let start = Instant::now();
        let output = work.await;
        (output, start.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_answer_has_no_backup() {
        let backup = || -> Option<std::future::Ready<_>> { panic!("a backup was made") };
        let quick = hedged(in_ms(99, Ok("primary")), backup, AFTER);
        assert_eq!(timed(quick).await, (Ok("primary"), 99));
        let failed = hedged(in_ms(50, Err("primary")), backup, AFTER);
        assert_eq!(timed(failed).await, (Err("primary"), 50));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_wins_whoever_gives_it() {
        let slow = hedged(in_ms(900, Ok("primary")), || Some(in_ms(50, Ok("backup"))), AFTER);
        assert_eq!(timed(slow).await, (Ok("backup"), 150));
        let slower = hedged(in_ms(200, Ok("primary")), || Some(in_ms(500, Ok("backup"))), AFTER);
        assert_eq!(timed(slower).await, (Ok("primary"), 200));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_waits_for_the_other_and_the_last_one_counts() {
        let primary_fails = hedged(in_ms(120, Err("primary")), || Some(in_ms(50, Ok("backup"))), AFTER);
        assert_eq!(timed(primary_fails).await, (Ok("backup"), 150));
        let backup_fails = hedged(in_ms(300, Ok("primary")), || Some(in_ms(50, Err("backup"))), AFTER);
        assert_eq!(timed(backup_fails).await, (Ok("primary"), 300));
        let both_fail = hedged(in_ms(300, Err("primary")), || Some(in_ms(50, Err("backup"))), AFTER);
        assert_eq!(timed(both_fail).await, (Err("primary"), 300));
        let both_fail = hedged(in_ms(120, Err("primary")), || Some(in_ms(50, Err("backup"))), AFTER);
        assert_eq!(timed(both_fail).await, (Err("backup"), 150));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_budget_the_primary_is_waited_for() {
        let alone = hedged(in_ms(300, Ok("primary")), || None::<std::future::Ready<_>>, AFTER);
        assert_eq!(timed(alone).await, (Ok("primary"), 300));
    }

    #[tokio::test(start_paused = true)]
    async fn the_loser_is_dropped_when_the_other_has_won_and_both_with_the_call() {
        let alive = Arc::new(());
        let hang = |alive: &Arc<()>| {
            let held = Arc::clone(alive);
            async move {
                let outcome = pending::<Result<&str, &str>>().await;
                drop(held);
                outcome
            }
        };
        assert_eq!(hedged(hang(&alive), || Some(in_ms(50, Ok("backup"))), AFTER).await, Ok("backup"));
        assert_eq!(Arc::strong_count(&alive), 1);
        assert_eq!(hedged(in_ms(200, Ok("primary")), || Some(hang(&alive)), AFTER).await, Ok("primary"));
        assert_eq!(Arc::strong_count(&alive), 1);
        let both = hedged(hang(&alive), || Some(hang(&alive)), AFTER);
        assert!(timeout(Duration::from_secs(1), both).await.is_err());
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn hedges_are_a_share_of_the_requests_and_are_not_saved_up_for_ever() {
        let budget = HedgeBudget::new(0.05);
        assert!(!budget.withdraw());
        (0..20).for_each(|_| budget.deposit());
        assert!(budget.withdraw() && !budget.withdraw());
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
    }

    #[test]
    fn refuses_what_is_no_policy_by_name() {
        let policy = HedgePolicy::new(HedgeAfter::P95);
        assert!(policy.validated().is_ok());
        for (broken, name) in [
            (HedgePolicy::new(HedgeAfter::Fixed(Duration::ZERO)), "hedge_after"),
            (HedgePolicy { share: 0.0, ..policy }, "hedge_share"),
            (HedgePolicy { share: f64::NAN, ..policy }, "hedge_share"),
        ] {
            assert!(broken.validated().unwrap_err().to_string().contains(name));
        }
    }
}
