//! The order in which a provider's prompt cache helps most: items that begin alike go one after another, and one of them first.
//!
//! A cache knows the beginning of a prompt once an earlier request with it has ended, so sending a thousand alike at once is paid
//! for a thousand times. Bodies are compared by their first 1, 4, 16 and 64 KiB ([`LEVELS`]): at each length the first item leads,
//! and the others wait until it has ended, well or not. Shorter bodies, of which no cache keeps much, wait for nobody.
//!
//! All this is within a window of items, so the source is still read lazily. None is overtaken for ever: after a window of one
//! group the next has its turn.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::mem;

/// Items that are looked at together.
pub(super) const WINDOW: usize = 10_000;

/// Lengths at which beginnings are compared, in bytes.
const LEVELS: [usize; 4] = [1024, 4 * 1024, 16 * 1024, 64 * 1024];

/// Beginnings that are remembered as known to the cache.
const MOST_WARM: usize = 10_000;

/// What stands for a body's beginning at each length; 0 where it is shorter.
pub(super) type Beginnings = [u64; LEVELS.len()];

/// Those with the same beginnings are neighbours, in their order of arrival.
type Place = (Beginnings, u64);

/// Items `T` that wait for their turn.
#[derive(Debug)]
pub(super) struct Prefix<T> {
    ready: BTreeMap<Place, T>,
    /// By the beginning whose leader they wait for.
    held: HashMap<u64, Vec<(Place, T)>>,
    warm: HashSet<u64>,
    warmed: VecDeque<u64>,
    /// Where the last one stood.
    last: Beginnings,
    streak: usize,
    arrivals: u64,
    waiting: usize,
}

impl<T> Default for Prefix<T> {
    fn default() -> Self {
        Self {
            ready: BTreeMap::new(),
            held: HashMap::new(),
            warm: HashSet::new(),
            warmed: VecDeque::new(),
            last: Beginnings::default(),
            streak: 0,
            arrivals: 0,
            waiting: 0,
        }
    }
}

impl<T> Prefix<T> {
    /// An item with that body comes.
    pub(super) fn push(&mut self, body: &[u8], item: T) {
        self.arrivals += 1;
        self.waiting += 1;
        self.ready.insert((beginnings(body), self.arrivals), item);
    }

    /// The next item, and the beginnings it leads at, which [`Self::ended`] must be told.
    pub(super) fn pop(&mut self) -> Option<(T, Beginnings)> {
        while let Some((place, item)) = self.next() {
            let known = place.0.into_iter().filter(|beginning| *beginning != 0);
            if let Some(beginning) = known.clone().find(|beginning| self.held.contains_key(beginning)) {
                self.held.entry(beginning).or_default().push((place, item));
                continue;
            }
            let mut leads = Beginnings::default();
            for (led, beginning) in leads.iter_mut().zip(place.0) {
                if beginning != 0 && !self.warm.contains(&beginning) {
                    self.held.insert(beginning, Vec::new());
                    *led = beginning;
                }
            }
            self.waiting -= 1;
            return Some((item, leads));
        }
        None
    }

    fn next(&mut self) -> Option<(Place, T)> {
        let [group, ..] = self.last;
        if self.streak >= WINDOW {
            self.last = [group.saturating_add(1), 0, 0, 0];
        }
        let after = self.ready.range((self.last, 0)..).next().or_else(|| self.ready.first_key_value());
        let place = after.map(|(place, _)| *place)?;
        self.streak = if place.0.first() == Some(&group) { self.streak + 1 } else { 0 };
        self.last = place.0;
        self.ready.remove(&place).map(|item| (place, item))
    }

    /// The item that led at these has ended: the others may go.
    pub(super) fn ended(&mut self, leads: Beginnings) {
        for beginning in leads.into_iter().filter(|beginning| *beginning != 0) {
            if self.warm.insert(beginning) {
                self.warmed.push_back(beginning);
            }
            self.ready.extend(self.held.remove(&beginning).unwrap_or_default());
        }
        while self.warmed.len() > MOST_WARM
            && let Some(oldest) = self.warmed.pop_front()
        {
            self.warm.remove(&oldest);
        }
    }

    /// Items that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// All of them, in no order.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.waiting = 0;
        let held = mem::take(&mut self.held).into_values().flatten().map(|(_, item)| item);
        mem::take(&mut self.ready).into_values().chain(held).collect()
    }
}

fn beginnings(body: &[u8]) -> Beginnings {
    let mut hasher = DefaultHasher::new();
    let mut done = 0;
    LEVELS.map(|length| {
        let Some(more) = body.get(done..length) else { return 0 };
        done = length;
        hasher.write(more);
        hasher.finish().max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(system: char, number: usize) -> Vec<u8> {
        [system.to_string().repeat(2000), number.to_string()].concat().into_bytes()
    }

    fn pushed(items: impl IntoIterator<Item = (char, usize)>) -> Prefix<(char, usize)> {
        let mut prefix = Prefix::default();
        for (system, number) in items {
            prefix.push(&body(system, number), (system, number));
        }
        prefix
    }

    #[test]
    fn one_of_each_group_goes_first_and_the_others_once_it_has_ended() {
        let mut prefix = pushed((0..9).map(|number| (['a', 'b', 'c'][number % 3], number)));
        let leaders: Vec<_> = std::iter::from_fn(|| prefix.pop()).collect();
        let mut led: Vec<_> = leaders.iter().map(|(item, _)| *item).collect();
        led.sort_unstable();
        assert_eq!((led, prefix.waiting()), (vec![('a', 0), ('b', 1), ('c', 2)], 6));
        let (_, leads) = leaders.iter().find(|(item, _)| item.0 == 'b').unwrap();
        prefix.ended(*leads);
        let freed: Vec<_> = std::iter::from_fn(|| prefix.pop()).collect();
        assert_eq!(freed, [(('b', 4), [0; 4]), (('b', 7), [0; 4])]);
        assert_eq!(prefix.drain().len(), 4);
    }

    #[test]
    fn those_that_begin_alike_are_neighbours_in_their_order_of_arrival() {
        let mut prefix = pushed((0..30).map(|number| (['a', 'b', 'c'][number % 3], number)));
        for leader in std::iter::from_fn(|| prefix.pop()).collect::<Vec<_>>() {
            prefix.ended(leader.1);
        }
        let order: Vec<_> = std::iter::from_fn(|| prefix.pop()).map(|(item, _)| item).collect();
        let changes = order.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
        assert_eq!((order.len(), changes), (27, 2));
        assert!(order.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1 < pair[1].1));
    }

    #[test]
    fn longer_beginnings_have_leaders_of_their_own() {
        let long = |document: char, number: usize| {
            ["s".repeat(1500), document.to_string().repeat(4000), number.to_string()].concat().into_bytes()
        };
        let mut prefix = Prefix::default();
        for number in 0..6 {
            let document = ['x', 'y'][number % 2];
            prefix.push(&long(document, number), (document, number));
        }
        let (first, leads) = prefix.pop().unwrap();
        assert!(prefix.pop().is_none(), "the system prompt is not known yet");
        prefix.ended(leads);
        // The other documents' first, and those of the first document.
        let next: Vec<_> = std::iter::from_fn(|| prefix.pop()).map(|(item, _)| item).collect();
        let of_first = next.iter().filter(|item| item.0 == first.0).count();
        assert_eq!((of_first, next.len()), (2, 3));
    }

    #[test]
    fn short_items_wait_for_nobody_and_none_is_overtaken_for_ever() {
        let mut prefix = Prefix::default();
        (0..5).for_each(|number| prefix.push(b"short", ('s', number)));
        let order: Vec<_> = std::iter::from_fn(|| prefix.pop()).map(|(item, _)| item.1).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);

        let mut prefix = pushed([('a', 0), ('b', 0)]);
        for leader in [prefix.pop().unwrap(), prefix.pop().unwrap()] {
            prefix.ended(leader.1);
        }
        // Every beginning sorts before one other or after it, so both take the others' place once.
        for (endless, other) in [('a', 'b'), ('b', 'a')] {
            prefix.push(&body(other, 1), (other, 1));
            let comes = (0..2 * WINDOW + 2).any(|number| {
                prefix.push(&body(endless, number), (endless, number));
                prefix.pop().is_some_and(|(item, _)| item.0 == other)
            });
            assert!(comes);
            prefix.drain();
        }
    }
}
