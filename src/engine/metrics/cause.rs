//! Why attempts fail and are made again, and how often.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use crate::engine::error::{Error, Kind, Pressure};

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryCause {
    /// 429, or a burst that grew too fast.
    RateLimit,
    /// 503, 529: the server has more to do than it can.
    Overload,
    /// No complete answer: refused, reset, cut.
    Connection,
    /// Not in time: the connection, a phase of the answer, the call, or 408.
    Timeout,
    /// Another status from 500 on.
    ServerError,
    /// A 2xx that is not an answer.
    InvalidResponse,
    /// Anything else.
    Other,
}

impl RetryCause {
    /// Every cause, in the order of [`RetryCounts`].
    pub const ALL: [Self; 7] = [
        Self::RateLimit,
        Self::Overload,
        Self::Connection,
        Self::Timeout,
        Self::ServerError,
        Self::InvalidResponse,
        Self::Other,
    ];

    /// What `error` is counted as.
    pub fn of(error: &Error) -> Self {
        match (error.pressure(), error.kind()) {
            (Pressure::RateLimit | Pressure::Ramp, _) => Self::RateLimit,
            (Pressure::Overload, _) => Self::Overload,
            (_, Kind::Connection | Kind::StreamInterrupted) => Self::Connection,
            (
                _,
                Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout | Kind::Deadline | Kind::Status(408),
            ) => Self::Timeout,
            (_, Kind::Status(500..)) => Self::ServerError,
            (_, Kind::InvalidResponse) => Self::InvalidResponse,
            _ => Self::Other,
        }
    }

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::RateLimit => "rate_limit",
            Self::Overload => "overload",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::ServerError => "server_error",
            Self::InvalidResponse => "invalid_response",
            Self::Other => "other",
        }
    }
}

/// How often for each cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryCounts([u64; RetryCause::ALL.len()]);

impl RetryCounts {
    /// How often for `cause`.
    pub fn of(&self, cause: RetryCause) -> u64 {
        self.0.get(cause as usize).copied().unwrap_or_default()
    }

    /// How often in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every cause and how often.
    pub fn iter(&self) -> impl Iterator<Item = (RetryCause, u64)> {
        RetryCause::ALL.into_iter().zip(self.0)
    }

    pub(super) fn count(&mut self, cause: RetryCause) {
        if let Some(count) = self.0.get_mut(cause as usize) {
            *count += 1;
        }
    }
}

impl AddAssign for RetryCounts {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

impl Add for RetryCounts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Sum for RetryCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_one_cause() {
        let cases = [
            (Kind::Status(429), RetryCause::RateLimit),
            (Kind::Status(503), RetryCause::Overload),
            (Kind::Status(529), RetryCause::Overload),
            (Kind::Status(500), RetryCause::ServerError),
            (Kind::Status(408), RetryCause::Timeout),
            (Kind::ConnectTimeout, RetryCause::Timeout),
            (Kind::Deadline, RetryCause::Timeout),
            (Kind::Connection, RetryCause::Connection),
            (Kind::InvalidResponse, RetryCause::InvalidResponse),
            (Kind::Status(400), RetryCause::Other),
        ];
        for (kind, cause) in cases {
            assert_eq!(RetryCause::of(&Error::new(kind, "x")), cause, "{kind:?}");
        }
        let ramp = Error::new(Kind::Status(500), "x").with_pressure(Pressure::Ramp);
        assert_eq!(RetryCause::of(&ramp), RetryCause::RateLimit);
    }

    #[test]
    fn counts_are_kept_apart_by_cause_and_add_up() {
        let mut counts = RetryCounts::default();
        for cause in RetryCause::ALL {
            assert_eq!(RetryCause::ALL.get(cause as usize), Some(&cause));
            counts.count(cause);
        }
        counts.count(RetryCause::Timeout);
        assert_eq!((counts.of(RetryCause::Timeout), counts.of(RetryCause::Other), counts.total()), (2, 1, 8));
        assert_eq!([counts, counts].into_iter().sum::<RetryCounts>().total(), 16);
    }
}
