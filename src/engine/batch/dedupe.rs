//! Identical requests of one run are sent once: the first leads, and those that come after it wait for its outcome or get it at
//! once.
//!
//! Bodies are told apart by 128 bits of SHA-256, so nothing is kept of them. What was answered is kept up to [`MOST_BYTES`]; an
//! item whose equal was answered longer ago than that is sent again.

use std::collections::{HashMap, VecDeque};

use ring::digest::{SHA256, digest};

/// Answers that are kept for those who may still ask the same.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// What stands for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 16]);

impl Fingerprint {
    pub(super) fn of(body: &[u8]) -> Self {
        Self(digest(&SHA256, body).as_ref().first_chunk().copied().unwrap_or_default())
    }
}

/// What is known of requests: the answers `K` that came, and the followers `F` of those under way.
#[derive(Debug)]
pub(super) struct Dedupe<K, F> {
    requests: HashMap<Fingerprint, State<K, F>>,
    /// The answers and their sizes, the oldest first.
    answered: VecDeque<(Fingerprint, usize)>,
    bytes: usize,
    most_bytes: usize,
    waiting: usize,
}

#[derive(Debug)]
enum State<K, F> {
    UnderWay(Vec<F>),
    Answered(K),
}

/// What an item is to do.
#[derive(Debug, PartialEq)]
pub(super) enum Met<K, F> {
    /// Go: it leads.
    First(F),
    /// It was answered.
    Answered(F, K),
    /// Wait for its leader.
    Follows,
}

impl<K, F> Default for Dedupe<K, F> {
    fn default() -> Self {
        Self { requests: HashMap::new(), answered: VecDeque::new(), bytes: 0, most_bytes: MOST_BYTES, waiting: 0 }
    }
}

impl<K: Clone, F> Dedupe<K, F> {
    /// An item comes.
    pub(super) fn meet(&mut self, request: Fingerprint, item: F) -> Met<K, F> {
        match self.requests.get_mut(&request) {
            None => {
                self.requests.insert(request, State::UnderWay(Vec::new()));
                Met::First(item)
            }
            Some(State::Answered(answer)) => Met::Answered(item, answer.clone()),
            Some(State::UnderWay(followers)) => {
                followers.push(item);
                self.waiting += 1;
                Met::Follows
            }
        }
    }

    /// The leader was answered, which takes `size` bytes to keep; those who followed it.
    pub(super) fn answered(&mut self, request: Fingerprint, answer: K, size: usize) -> Vec<F> {
        let followers = self.left(request);
        self.requests.insert(request, State::Answered(answer));
        self.answered.push_back((request, size));
        self.bytes += size;
        while self.bytes > self.most_bytes
            && let Some((oldest, size)) = self.answered.pop_front()
        {
            self.bytes -= size;
            self.requests.remove(&oldest);
        }
        followers
    }

    /// The leader has ended without an answer; those who followed it. The next of the same leads.
    pub(super) fn left(&mut self, request: Fingerprint) -> Vec<F> {
        let Some(State::UnderWay(followers)) = self.requests.remove(&request) else { return Vec::new() };
        self.waiting -= followers.len();
        followers
    }

    /// Items that wait for their leaders.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// All who wait, whose leaders will not end.
    pub(super) fn abandoned(&mut self) -> Vec<F> {
        self.waiting = 0;
        let followers = self.requests.drain().filter_map(|(_, state)| match state {
            State::UnderWay(followers) => Some(followers),
            State::Answered(_) => None,
        });
        followers.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dedupe() -> Dedupe<&'static str, u32> {
        Dedupe::default()
    }

    #[test]
    fn the_first_leads_others_follow_and_later_ones_have_the_answer_at_once() {
        let mut dedupe = dedupe();
        let (one, other) = (Fingerprint::of(b"one"), Fingerprint::of(b"other"));
        assert_eq!(dedupe.meet(one, 1), Met::First(1));
        assert_eq!(dedupe.meet(other, 2), Met::First(2));
        assert_eq!(dedupe.meet(one, 3), Met::Follows);
        assert_eq!(dedupe.waiting(), 1);
        assert_eq!(dedupe.answered(one, "yes", 3), [3]);
        assert_eq!(dedupe.meet(one, 4), Met::Answered(4, "yes"));
        assert_eq!(dedupe.waiting(), 0);
    }

    #[test]
    fn who_follows_a_leader_that_leaves_is_handed_back_and_the_next_leads() {
        let mut dedupe = dedupe();
        let one = Fingerprint::of(b"one");
        dedupe.meet(one, 1);
        dedupe.meet(one, 2);
        assert_eq!(dedupe.left(one), [2]);
        assert_eq!(dedupe.meet(one, 2), Met::First(2));
        dedupe.meet(one, 3);
        assert_eq!((dedupe.abandoned(), dedupe.waiting()), (vec![3], 0));
    }

    #[test]
    fn the_oldest_answers_are_forgotten_where_they_take_too_much() {
        let mut dedupe = Dedupe { most_bytes: 10, ..dedupe() };
        let (one, other) = (Fingerprint::of(b"one"), Fingerprint::of(b"other"));
        for request in [one, other] {
            dedupe.meet(request, 1);
            dedupe.answered(request, "long", 6);
        }
        assert_eq!(dedupe.meet(one, 2), Met::First(2));
        assert_eq!(dedupe.meet(other, 3), Met::Answered(3, "long"));
    }
}
