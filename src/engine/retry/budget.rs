//! How many retries a client may make beside its requests: a budget that delays and never refuses.
//!
//! When a server falters, retries are load on top of load. Finagle's retry budget (tower's `TpsBudget` too) keeps them to a fifth
//! of the requests of the last ten seconds and ten a second on top, and fails what goes beyond. For a batch a failure is the
//! wrong answer, so here it waits in line, first come, first served.
//!
//! The balance is a token bucket that relaxes towards its reserve of `floor · ttl` with the time constant `ttl`:
//!
//! ```text
//! balance(t + dt) = reserve + (balance(t) - reserve) · e^(-dt / ttl)
//! ```
//!
//! A retry that is answered gives back what it took, as in the AWS SDKs: then it was no load on a server that cannot, and what is
//! to be kept small is the retries that fail. So random failures of one request in three delay nothing, and where most retries
//! fail, too, they are a fifth of the requests.
//!
//! One formula says all of Finagle's three numbers: an empty bucket fills at `reserve / ttl` = `floor` tokens a second; every
//! request adds `share` of a token; and what is not used is forgotten in `ttl`, however much it was.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

/// The numbers of the budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowance {
    /// Retries for each request. Default 0.2.
    pub share: f64,
    /// Retries a second whatever the requests. Default 10.
    pub floor: f64,
    /// How long a request counts. Default 10 s.
    pub ttl: Duration,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { share: 0.2, floor: 10.0, ttl: Duration::from_secs(10) }
    }
}

/// A client's budget of retries.
#[derive(Debug)]
pub struct RetryBudget {
    share: f64,
    reserve: f64,
    ttl: f64,
    level: Mutex<Level>,
    /// One place: whoever holds it is the head of the line. tokio's semaphore is first come, first served.
    head: Semaphore,
    deposited: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    balance: f64,
    at: Instant,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(Allowance::default())
    }
}

impl RetryBudget {
    /// A budget with its reserve full.
    pub fn new(allowance: Allowance) -> Self {
        let ttl = allowance.ttl.as_secs_f64().max(1e-3);
        // A bucket that never holds a whole token would never let anyone go.
        let reserve = (allowance.floor.max(0.0) * ttl).max(2.0);
        Self {
            share: allowance.share.max(0.0),
            reserve,
            ttl,
            level: Mutex::new(Level { balance: reserve, at: Instant::now() }),
            head: Semaphore::new(1),
            deposited: Notify::const_new(),
        }
    }

    /// Counts one request (not its retries).
    pub fn deposit(&self) {
        self.change(|balance| *balance += self.share);
        if self.head.available_permits() == 0 {
            self.deposited.notify_one();
        }
    }

    /// A retry that had leave was answered.
    pub fn give_back(&self) {
        self.change(|balance| *balance += 1.0);
        if self.head.available_permits() == 0 {
            self.deposited.notify_one();
        }
    }

    /// Waits until one more retry is within the budget, behind those who came before. Dropping the future leaves the line and
    /// takes nothing.
    pub async fn delay(&self) {
        // Never closed.
        let Ok(_head) = self.head.acquire().await else { return };
        while let Err(wait) = self.withdraw() {
            tokio::select! {
                () = sleep(wait) => {}
                () = self.deposited.notified() => {}
            }
        }
    }

    /// Retries that could be made now.
    pub fn balance(&self) -> f64 {
        self.change(|balance| *balance)
    }

    /// Takes one token, or says when there will be one if no request comes.
    fn withdraw(&self) -> Result<(), Duration> {
        self.change(|balance| {
            if *balance >= 1.0 {
                *balance -= 1.0;
                return Ok(());
            }
            let seconds = self.ttl * ((self.reserve - *balance) / (self.reserve - 1.0)).ln();
            // A timer of whole milliseconds that fires a hair too early would have to be set again.
            Err(Duration::from_secs_f64(seconds) + Duration::from_millis(1))
        })
    }

    fn change<R>(&self, change: impl FnOnce(&mut f64) -> R) -> R {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(level.at).as_secs_f64();
        level.balance = self.reserve + (level.balance - self.reserve) * (-elapsed / self.ttl).exp();
        level.at = now;
        change(&mut level.balance)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn emptied(allowance: Allowance) -> Arc<RetryBudget> {
        let budget = Arc::new(RetryBudget::new(allowance));
        while budget.balance() >= 1.0 {
            budget.delay().await;
        }
        budget
    }

    async fn take(budget: &RetryBudget, retries: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..retries {
            budget.delay().await;
        }
        start.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_lets_a_burst_of_floor_times_ttl_through_at_once() {
        assert!(take(&RetryBudget::default(), 100).await < 0.001);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_budget_lets_ten_retries_a_second_through_and_refuses_none() {
        let budget = emptied(Allowance::default()).await;
        let seconds = take(&budget, 200).await;
        assert!((19.0..22.0).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_beyond_the_floor_are_a_fifth_of_the_requests() {
        let budget = emptied(Allowance::default()).await;
        let start = Instant::now();
        let requests = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move {
                loop {
                    // 1,000 a second: a fifth of them is 200, and 10 for the floor.
                    sleep(Duration::from_millis(10)).await;
                    (0..10).for_each(|_| budget.deposit());
                }
            }
        });
        take(&budget, 2100).await;
        requests.abort();
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.5..10.7).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deposit_wakes_who_waits() {
        let budget = emptied(Allowance { share: 1.0, floor: 0.0, ttl: Duration::from_secs(3600) }).await;
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { take(&budget, 1).await }
        });
        sleep(Duration::from_secs(1)).await;
        budget.deposit();
        let seconds = waiting.await.unwrap();
        assert!((1.0..1.01).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_that_are_answered_cost_nothing() {
        let budget = emptied(Allowance { share: 0.0, floor: 1.0, ttl: Duration::from_secs(2) }).await;
        budget.give_back();
        let start = Instant::now();
        for _ in 0..1000 {
            budget.delay().await;
            budget.give_back();
        }
        assert!(start.elapsed() < Duration::from_millis(2), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_long_ago_do_not_count() {
        let budget = RetryBudget::default();
        (0..10_000).for_each(|_| budget.deposit());
        assert!(budget.balance() > 2000.0);
        sleep(Duration::from_secs(120)).await;
        assert!((99.9..100.1).contains(&budget.balance()), "{}", budget.balance());
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_first_come_first_served_and_leaving_it_takes_nothing() {
        let budget = emptied(Allowance::default()).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let spawn = |number| {
            let (budget, order) = (Arc::clone(&budget), Arc::clone(&order));
            tokio::spawn(async move {
                budget.delay().await;
                order.lock().unwrap().push(number);
            })
        };
        let tasks: Vec<_> = (0..6).map(spawn).collect();
        tokio::task::yield_now().await;
        tasks[0].abort();
        tasks[3].abort();
        let start = Instant::now();
        for task in tasks {
            let _ = task.await;
        }
        assert_eq!(*order.lock().unwrap(), [1, 2, 4, 5]);
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.3..0.45).contains(&seconds), "{seconds}");
    }
}
