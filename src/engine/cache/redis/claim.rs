//! Of several processes that want the same at once one asks, and the others wait for what it puts.
//!
//! Whoever asks holds a lock beside the key, which lives for some seconds and is renewed for as long as the request goes on. The
//! others look for the answer now and then, and try for the lock each time: if its holder has failed it is free, and if its holder
//! has died it is so a little later. Where the Redis cannot be reached nobody waits for anybody.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value, cmd};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::link::refusal;
use super::{ANSWER, Inner, Order, Redis, ask_for};
use crate::engine::cache::key::Key;
use crate::engine::cache::store::Found;
use crate::engine::retry::{Backoff, Jitter};

/// How long a lock outlives its holder.
const LIFE: Duration = Duration::from_secs(5);
/// Between two renewals: two may be lost.
const RENEWAL: Duration = Duration::from_millis(1500);

/// Between two looks of one who waits.
const PAUSES: Backoff = Backoff {
    base_delay: Duration::from_millis(5),
    max_delay: Duration::from_millis(250),
    exponential_base: 1.5,
    jitter: Jitter::Equal,
};

/// Compare and delete: the lock may have become another's.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
const RENEW: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0";

/// What became of a question that others may ask at the same time.
#[derive(Debug)]
pub enum Claimed<E> {
    /// Somebody has asked it by now.
    Kept(E),
    /// It is for this one to ask; `None` where nobody would wait for it.
    Free(Option<Claim>),
}

/// The lock of a question, released when it is dropped, once what was put before is written.
#[derive(Debug)]
pub struct Claim {
    redis: Arc<Inner>,
    orders: UnboundedSender<Order>,
    key: Key,
    token: String,
}

impl Redis {
    /// Whether processes wait for each other.
    pub fn is_claimed(&self) -> bool {
        self.inner.config.single_flight
    }

    /// Waits for whoever asks for `key`, or is the one who does.
    pub async fn claim(&self, key: &Key) -> Claimed<Found> {
        let mut rng = fastrand::Rng::new();
        let mut looks = 0;
        loop {
            // It is released also if this is dropped before the server says whose the lock is.
            let claim = Claim {
                redis: Arc::clone(&self.inner),
                orders: self.orders().clone(),
                key: *key,
                token: format!("{:032x}", rng.u128(..)),
            };
            let mut questions = Pipeline::with_capacity(3);
            questions.cmd("SET").arg(self.inner.lock_of(key)).arg(&claim.token).arg("NX").arg("PX").arg(millis(LIFE));
            // After that, since whoever held it until now has written before it let go.
            ask_for(&mut questions, self.inner.name(key), self.inner.tells_life);
            let mut answers = match self.inner.reader.ask(&questions, ANSWER, false).await {
                Ok(answers) => answers.into_iter(),
                Err(why) => {
                    self.inner.cannot_be_used(&why);
                    return Claimed::Free(None);
                }
            };
            let locked = answers.next();
            if let Some(found) = self.inner.found(key, &mut answers) {
                return Claimed::Kept(found);
            }
            match locked {
                Some(Value::Okay) => return Claimed::Free(Some(claim)),
                Some(Value::ServerError(error)) => {
                    self.inner.cannot_be_used(&refusal(error.code()));
                    return Claimed::Free(None);
                }
                _ => claim.let_go(),
            }
            sleep(PAUSES.delay(looks, &mut rng)).await;
            looks = looks.saturating_add(1);
        }
    }
}

impl Claim {
    /// `work`, for as long as which the lock is kept.
    pub async fn hold<F: Future>(&self, work: F) -> F::Output {
        let renewing = async {
            loop {
                sleep(RENEWAL).await;
                let mut renewal = Pipeline::with_capacity(1);
                renewal
                    .cmd("EVAL")
                    .arg(RENEW)
                    .arg(1)
                    .arg(self.redis.lock_of(&self.key))
                    .arg(&self.token)
                    .arg(millis(LIFE));
                // One that is lost is another's to ask: that costs a request, and nothing else.
                let _ = self.redis.reader.ask(&renewal, ANSWER, false).await;
            }
        };
        tokio::select! {
            biased;
            output = work => output,
            never = renewing => never,
        }
    }

    /// Lets go of what was not had.
    fn let_go(mut self) {
        self.token.clear();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.token.is_empty() {
            let _ = self.orders.send(Order::Release(self.key, std::mem::take(&mut self.token)));
        }
    }
}

impl Inner {
    /// The lock of `key`: no key of this store's, and one that `clear` leaves to its holder.
    fn lock_of(&self, key: &Key) -> String {
        format!("{}:lock", self.name(key))
    }

    pub(super) fn release(&self, key: &Key, token: &str) -> Cmd {
        let mut release = cmd("EVAL");
        release.arg(RELEASE).arg(1).arg(self.lock_of(key)).arg(token);
        release
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
