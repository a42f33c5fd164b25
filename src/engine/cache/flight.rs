//! Single flight: of those who ask the same at once one asks, and all have its answer.
//!
//! The work belongs to nobody and is driven by whoever still waits for it, so each of them can leave, the first as well; once the
//! last has left it is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::key::Key;

type Work<V> = BoxFuture<'static, V>;
/// Each with a number, since a later one of the same key is another.
type UnderWay<V> = HashMap<Key, (u64, WeakShared<Work<V>>)>;

/// What is asked now.
#[derive(Debug)]
pub struct Flight<V: Clone>(Arc<Board<V>>);

#[derive(Debug)]
struct Board<V: Clone> {
    under_way: Mutex<UnderWay<V>>,
    next: AtomicU64,
}

/// A place among those who wait for one answer.
#[derive(Debug)]
pub struct Joined<V: Clone> {
    /// Gives the answer. Dropped, it leaves the others.
    pub answer: Shared<Work<V>>,
    /// Whether the work was begun for this one.
    pub leads: bool,
}

impl<V: Clone> Default for Flight<V> {
    fn default() -> Self {
        Self(Arc::new(Board { under_way: Mutex::default(), next: AtomicU64::new(0) }))
    }
}

impl<V: Clone + Send + Sync + 'static> Flight<V> {
    /// Joins those who wait for `key`, or is the first of them: then `begin` makes the work.
    pub fn join<F>(&self, key: Key, begin: impl FnOnce() -> F) -> Joined<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = self.0.lock();
        if let Some(answer) = under_way.get(&key).and_then(|(_, answer)| answer.upgrade()) {
            return Joined { answer, leads: false };
        }
        let number = self.0.next.fetch_add(1, Relaxed);
        let landing = Landing { board: Arc::clone(&self.0), key, number };
        let work = begin();
        let answer = async move {
            let answer = work.await;
            // Whoever comes from here on finds what the work has left behind, or asks anew.
            drop(landing);
            answer
        };
        let answer = answer.boxed().shared();
        if let Some(weak) = answer.downgrade() {
            under_way.insert(key, (number, weak));
        }
        Joined { answer, leads: true }
    }

    /// Questions that are asked now.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}

impl<V: Clone> Board<V> {
    fn lock(&self) -> MutexGuard<'_, UnderWay<V>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the work off the board, however it ends.
struct Landing<V: Clone> {
    board: Arc<Board<V>>,
    key: Key,
    number: u64,
}

impl<V: Clone> Drop for Landing<V> {
    fn drop(&mut self) {
        let mut under_way = self.board.lock();
        // Another one may stand there by now, since this was left by all.
        if under_way.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    const KEY: [u8; 32] = [1; 32];

    #[derive(Default)]
    struct Server {
        begun: AtomicUsize,
        answered: AtomicUsize,
    }

    impl Server {
        fn ask(self: &Arc<Self>) -> impl Future<Output = usize> + use<> {
            let server = Arc::clone(self);
            async move {
                let number = server.begun.fetch_add(1, Relaxed);
                sleep(Duration::from_secs(1)).await;
                server.answered.fetch_add(1, Relaxed);
                number
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_the_same_at_once_ask_once() {
        let (flight, server) = (Flight::default(), Arc::new(Server::default()));
        let joined: Vec<_> = (0..100).map(|_| flight.join(KEY.into(), || server.ask())).collect();
        let other = flight.join([2; 32].into(), || server.ask());
        assert_eq!(joined.iter().filter(|joined| joined.leads).count(), 1);
        assert_eq!(flight.count(), 2);
        let answers = futures_util::future::join_all(joined.into_iter().map(|joined| joined.answer)).await;
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        other.answer.await;
        assert_eq!((server.begun.load(Relaxed), flight.count()), (2, 0));
        assert!(flight.join(KEY.into(), || server.ask()).leads);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_leaves_the_others_and_the_work_goes_on() {
        let (flight, server) = (Flight::default(), Arc::new(Server::default()));
        let first = flight.join(KEY.into(), || server.ask());
        let second = flight.join(KEY.into(), || server.ask());
        let first = tokio::spawn(first.answer);
        let second = tokio::spawn(second.answer);
        sleep(Duration::from_millis(500)).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(second.await.unwrap(), 0);
        assert_eq!((server.begun.load(Relaxed), server.answered.load(Relaxed)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn once_all_have_left_the_work_is_dropped_and_the_next_begins_anew() {
        let (flight, server) = (Flight::default(), Arc::new(Server::default()));
        let joined = [flight.join(KEY.into(), || server.ask()), flight.join(KEY.into(), || server.ask())];
        let waiting: Vec<_> = joined.into_iter().map(|joined| tokio::spawn(joined.answer)).collect();
        sleep(Duration::from_millis(500)).await;
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        for each in waiting {
            assert!(each.await.unwrap_err().is_cancelled());
        }
        assert_eq!(flight.count(), 0);
        assert_eq!(flight.join(KEY.into(), || server.ask()).answer.await, 1);
        assert_eq!(server.answered.load(Relaxed), 1);
    }
}
