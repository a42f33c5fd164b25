//! Whether refusals have to do with how many requests are in flight.
//!
//! A 503 may mean a full server, and then fewer at once are refused less. It may as well be a fault that hits one request in ten,
//! or a server that is down, and then a smaller window costs speed and mends nothing. Two things tell them apart. A request that
//! was refused while no other was in flight was not one too many. And if about the same share is refused after the window was
//! cut to little more than half, the size of the window is not the reason: it is as large again as before, and refusals count
//! for nothing until their share has clearly grown.
//!
//! Refusals come back sooner than answers, so a measure is no smaller than the window: its first outcomes would be refusals only.
//! Where the comparison goes wrong all the same, time and again, the window ends at one, and then what is refused has nobody
//! beside it: that is a measure, too.

/// The window is cut to this share of where the refusals began, and then it is measured.
const CUT_TO: f64 = 0.6;
/// Outcomes that are a measure, and those that are one if most of them are refusals.
const MEASURE: u32 = 100;
const SHORT_MEASURE: u32 = 16;
/// Above this share refusals are no chance; the other is for a short measure.
const NO_CHANCE: f64 = 0.3;
const MOST: f64 = 0.5;
/// At most this part of the share is left if it has to do with the window.
const FEWER: f64 = 0.4;
/// Below so many in flight there is nothing to compare.
const LEAST: usize = 4;
/// Refusals that are found to be chance count again once their share is this much more.
const MUCH_MORE: f64 = 2.0;
const AND_MORE: f64 = 0.1;
/// Answers without any refusal after which a cut is history.
const HISTORY: u32 = 500;

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Too many were in flight.
    Guilty,
    /// Not known yet, or known not to be so: the window stays as it is.
    Open,
    /// It was not the window: it may be as large as it was before.
    Acquitted(usize),
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    refused: u32,
    all: u32,
}

impl Share {
    fn add(&mut self, is_refused: bool) {
        self.refused += u32::from(is_refused);
        self.all += 1;
    }

    fn get(self) -> f64 {
        f64::from(self.refused) / f64::from(self.all.max(1))
    }
}

/// Who is to blame, and what those said that were alone.
#[derive(Debug, Default)]
pub(super) struct Blame {
    state: State,
    /// The limit at which the cuts began that are no history yet.
    peak: usize,
    /// Of those that had nobody beside them since.
    alone: Share,
    /// Answers since the last refusal.
    quiet: u32,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    /// Cuts have begun at the limit `from`.
    Trial { from: usize, above: Share, below: Share },
    /// Such a share is refused whatever the limit.
    Chance { usual: f64, lately: Share },
}

impl Blame {
    /// A request was answered.
    pub(super) fn answered(&mut self, limit: usize, is_alone: bool) {
        self.state.note(limit, false);
        self.quiet += 1;
        if self.peak > 0 && is_alone {
            self.alone.add(false);
        }
        if self.quiet > HISTORY || limit > self.peak {
            (self.peak, self.alone) = (0, Share::default());
        }
        if let State::Trial { from, .. } = self.state
            && (self.quiet > HISTORY || limit > from)
        {
            self.state = State::None;
        }
    }

    /// A request was refused; `is_alone` is whether no other was in flight.
    pub(super) fn refused(&mut self, limit: usize, is_alone: bool) -> Verdict {
        self.quiet = 0;
        if self.peak > 0 && is_alone {
            self.alone.add(true);
            if self.alone.all >= SHORT_MEASURE && self.alone.get() < MOST {
                let before = self.peak;
                let state = State::Chance { usual: self.alone.get(), lately: Share::default() };
                *self = Self { state, ..Self::default() };
                return Verdict::Acquitted(before);
            }
        }
        let verdict = self.state.refused(limit, is_alone);
        match verdict {
            Verdict::Guilty => self.peak = self.peak.max(limit),
            Verdict::Acquitted(_) if !is_alone => (self.peak, self.alone) = (0, Share::default()),
            Verdict::Open | Verdict::Acquitted(_) => {}
        }
        verdict
    }
}

impl State {
    fn note(&mut self, limit: usize, is_refused: bool) {
        match self {
            Self::None => {}
            Self::Trial { from, above, below } => {
                if is_below(limit, *from) {
                    below.add(is_refused);
                } else {
                    above.add(is_refused);
                }
            }
            Self::Chance { lately, .. } => lately.add(is_refused),
        }
    }

    fn refused(&mut self, limit: usize, is_alone: bool) -> Verdict {
        let window = u32::try_from(limit).unwrap_or(u32::MAX);
        self.note(limit, true);
        match *self {
            Self::None if is_alone || limit < LEAST => {
                if is_alone {
                    Verdict::Open
                } else {
                    Verdict::Guilty
                }
            }
            Self::None => {
                *self = Self::Trial { from: limit, above: Share { refused: 1, all: 1 }, below: Share::default() };
                Verdict::Guilty
            }
            Self::Trial { from, .. } if is_alone => {
                *self = Self::None;
                Verdict::Acquitted(from)
            }
            Self::Trial { from, .. } if !is_below(limit, from) => Verdict::Guilty,
            Self::Trial { from, above, below } => {
                let is_measured = below.all >= MEASURE.max(window);
                if is_measured && below.get() < NO_CHANCE && below.get() >= FEWER * above.get() {
                    *self = Self::Chance { usual: below.get(), lately: Share::default() };
                    return Verdict::Acquitted(from);
                }
                let is_clear = below.all >= SHORT_MEASURE.max(window) && below.get() >= MOST;
                if is_clear || is_measured {
                    *self = Self::None;
                    return Verdict::Guilty;
                }
                Verdict::Open
            }
            Self::Chance { usual, lately } => {
                if lately.all >= MEASURE.max(window.saturating_mul(2)) {
                    if lately.get() > usual * MUCH_MORE + AND_MORE {
                        *self = Self::None;
                        return Verdict::Guilty;
                    }
                    *self = Self::Chance { usual, lately: Share::default() };
                }
                Verdict::Open
            }
        }
    }
}

fn is_below(limit: usize, from: usize) -> bool {
    limit as f64 <= from as f64 * CUT_TO
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window that is cut by a tenth where it is guilty; its size after `count` requests of which `refused` says which fail.
    fn limit_after(count: usize, start: usize, refused: impl Fn(usize, &mut fastrand::Rng) -> bool) -> usize {
        let (mut blame, mut limit, mut rng) = (Blame::default(), start, fastrand::Rng::with_seed(1));
        for _ in 0..count {
            if !refused(limit, &mut rng) {
                blame.answered(limit, limit == 1);
                continue;
            }
            match blame.refused(limit, limit == 1) {
                Verdict::Guilty => limit = (limit * 9 / 10).max(1),
                Verdict::Open => {}
                Verdict::Acquitted(before) => limit = before,
            }
        }
        limit
    }

    #[test]
    fn refusals_that_no_smaller_window_avoids_hardly_shrink_it() {
        for share in [0.05, 0.1, 0.2] {
            let limit = limit_after(5000, 64, |_, rng| rng.f64() < share);
            assert!(limit >= 38, "{limit} at {share}");
        }
    }

    #[test]
    fn a_share_that_is_refused_with_nobody_beside_gives_back_all_that_was_cut_before() {
        let mut blame = Blame::default();
        assert_eq!(blame.refused(64, false), Verdict::Guilty);
        let verdicts: Vec<_> = (0..38).map(|_| blame.refused(38, false)).collect();
        assert_eq!(
            verdicts.iter().filter(|verdict| **verdict == Verdict::Guilty).count(),
            1,
            "taken for a full server"
        );
        assert_eq!(blame.refused(3, false), Verdict::Guilty);
        let mut verdict = Verdict::Open;
        for _ in 0..4 {
            assert_eq!(verdict, Verdict::Open);
            (0..3).for_each(|_| blame.answered(1, true));
            verdict = blame.refused(1, true);
        }
        assert_eq!(verdict, Verdict::Acquitted(64));
        assert_eq!(blame.refused(64, false), Verdict::Open, "refusals count for nothing now");
    }

    #[test]
    fn refusals_beyond_a_limit_cut_the_window_to_it() {
        for slots in [2, 10, 20, 60] {
            let limit = limit_after(5000, 64, |limit, rng| rng.usize(0..limit) >= slots);
            assert!(limit <= slots && limit * 10 >= slots * 5, "{limit} for {slots}");
        }
    }

    #[test]
    fn whoever_is_refused_with_nobody_beside_was_not_one_too_many() {
        let mut blame = Blame::default();
        assert_eq!(blame.refused(64, true), Verdict::Open);
        assert_eq!(blame.refused(64, false), Verdict::Guilty);
        assert_eq!(blame.refused(45, false), Verdict::Guilty);
        assert_eq!(blame.refused(31, true), Verdict::Acquitted(64));
    }
}
