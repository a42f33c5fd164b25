//! What an answer's headers say of the rate limits in force, in every dialect.
//!
//! | dialect | names | what would surprise you |
//! |---|---|---|
//! | `OpenAI` | `x-ratelimit-{limit,remaining,reset}-{requests,tokens,project-tokens}` | `reset` is the time to *full* refill, not to the next slot |
//! | Anthropic | `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}` | resets are moments, remaining tokens rounded to thousands; `priority` and `fast` are pools of their own and not read |
//! | Mistral, Cerebras | `x-ratelimit-{limit,remaining}-{req,tokens}-{minute,month}`, `…-requests-day` | a limit of 0 per minute is for good: the model is not in the plan |
//! | Groq | as `OpenAI` | requests are per *day*, tokens per minute, and only the numbers tell |
//! | Together | `x-ratelimit-limit` beside `x-ratelimit-limit-tokens` | both per *second* |
//! | Azure | `x-ratelimit-remaining-{requests,tokens}` | no limits |
//! | generic | `x-ratelimit-{limit,remaining,reset}`, `ratelimit-…` | any window |
//! | IETF | `RateLimit: "name";r=50;t=30`, `RateLimit-Policy: "name";q=100;w=60` | several policies at once |
//!
//! Where a window is not named it is told from the numbers, if they are clear: a bucket that has `remaining` of `limit` left and
//! is full again after `reset` fills once in `reset · limit / (limit − remaining)`. Limits of one unit and one window (of the
//! organisation and the project) are one reading, the tighter. A header that makes no sense is as if it were absent.
//! Sources: the vendors' pages on rate limits; draft-ietf-httpapi-ratelimit-headers.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};

use super::reset;
use crate::engine::types::{RateReading, Unit};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// How far numbers may be off the window they speak for; the next one is at least 24 times as long.
const TOLERANCE: f64 = 0.1;

/// What the name of every header that is read here begins with.
const PREFIXES: [&str; 4] = ["x-ratelimit-", "x-tokenlimit-", "ratelimit", "anthropic-ratelimit-"];

/// At most one of each unit and window. Empty, and then without an allocation, where no header speaks of rates.
pub type Readings = Vec<RateReading>;

/// Reads `headers`. `now` stands in where the answer has no `Date`.
pub fn read(headers: &HeaderMap, now: SystemTime) -> Readings {
    let mut gathered: Vec<Gathered> = Vec::new();
    let (mut policies, mut states) = (None, None);
    let mut served = None;
    for (name, value) in headers {
        let name = name.as_str();
        // All of the other headers, of which most answers have a dozen, are passed by here.
        if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        match name {
            "ratelimit" => states = text(value),
            "ratelimit-policy" => policies = text(value),
            _ => {
                if let Some((subject, part)) = field(name) {
                    let now = *served.get_or_insert_with(|| date(headers).unwrap_or(now));
                    gather(&mut gathered, subject).take(part, text(value).unwrap_or_default(), now);
                }
            }
        }
    }
    if let Some(states) = states {
        read_structured(&mut gathered, states, policies.unwrap_or_default());
    }
    merge(&gathered)
}

fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok().map(str::trim)
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers.get("date")?)?).ok()
}

// ---- names ----

/// What a header is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subject {
    unit: Unit,
    scope: Scope,
    window: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Account,
    Project,
    UsageBased,
    /// Of requests, by a name that does not say so.
    Unnamed,
    /// The IETF's fields, numbered.
    Policy(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Limit,
    Remaining,
    Reset,
}

fn part(name: &str) -> Option<Part> {
    Some(match name {
        "limit" => Part::Limit,
        "remaining" => Part::Remaining,
        "reset" => Part::Reset,
        _ => return None,
    })
}

/// The subject of the header `name` and which of its numbers it holds.
fn field(name: &str) -> Option<(Subject, Part)> {
    if let Some(rest) = name.strip_prefix("anthropic-ratelimit-") {
        let (what, which) = rest.rsplit_once('-')?;
        return Some((Subject { window: Some(MINUTE), ..subject(what)? }, part(which)?));
    }
    if let Some(which) = name.strip_prefix("x-tokenlimit-") {
        return Some((subject("tokens")?, part(which)?));
    }
    let rest = name.strip_prefix("x-ratelimit-").or_else(|| name.strip_prefix("ratelimit-"))?;
    let (which, what) = rest.split_once('-').unwrap_or((rest, ""));
    Some((subject(what)?, part(which)?))
}

/// `project-tokens`, `req-minute`, `requests-day`, `input-tokens`, …
fn subject(what: &str) -> Option<Subject> {
    let (scope, what) = match (what.strip_prefix("project-"), what.strip_suffix("_usage_based")) {
        (Some(what), _) => (Scope::Project, what),
        (_, Some(what)) => (Scope::UsageBased, what),
        _ => (Scope::Account, what),
    };
    let (what, window) = match what.rsplit_once('-').unwrap_or(("", what)) {
        (before, "second") => (before, Some(SECOND)),
        (before, "minute") => (before, Some(MINUTE)),
        (before, "hour") => (before, Some(HOUR)),
        (before, "day") => (before, Some(DAY)),
        (before, "month") => (before, Some(MONTH)),
        _ => (what, None),
    };
    let (unit, scope) = match what {
        "" => (Unit::Requests, Scope::Unnamed),
        "requests" | "req" => (Unit::Requests, scope),
        "tokens" => (Unit::Tokens, scope),
        "input-tokens" | "tokens-prompt" => (Unit::InputTokens, scope),
        "output-tokens" | "tokens-generated" => (Unit::OutputTokens, scope),
        _ => return None,
    };
    Some(Subject { unit, scope, window })
}

// ---- numbers ----

/// The numbers of one subject.
#[derive(Debug, Clone, Copy)]
struct Gathered {
    subject: Subject,
    limit: Option<f64>,
    remaining: Option<f64>,
    reset: Option<Duration>,
    /// Named in the value of the limit.
    window: Option<Duration>,
}

fn gather(gathered: &mut Vec<Gathered>, subject: Subject) -> &mut Gathered {
    let known = gathered.iter().position(|one| one.subject == subject).unwrap_or_else(|| {
        gathered.push(Gathered { subject, limit: None, remaining: None, reset: None, window: None });
        gathered.len() - 1
    });
    #[expect(clippy::indexing_slicing, reason = "found or pushed a line above")]
    &mut gathered[known]
}

impl Gathered {
    fn take(&mut self, part: Part, value: &str, now: SystemTime) {
        match part {
            Part::Reset => self.reset = reset::parse(value, now),
            Part::Remaining => self.remaining = amount(value),
            Part::Limit => {
                // An early draft of the IETF's put the policy behind the number: `100, 100;w=60`.
                let (first, policy) = value.split_once([',', ';']).unwrap_or((value, ""));
                self.limit = amount(first.trim());
                self.window = window(policy);
            }
        }
    }

    /// Whether a limit of 0 is meant: Mistral's way to say that the plan does not hold the model. From anybody else it would
    /// contradict the answer that it came with.
    fn is_permanent_zero(&self) -> bool {
        self.limit == Some(0.0) && self.subject.window == Some(MINUTE) && self.subject.scope == Scope::Account
    }

    fn reading(&self, per_second: bool) -> Option<RateReading> {
        let limit = self.limit.filter(|limit| *limit > 0.0 || self.is_permanent_zero());
        let remaining = if self.limit == Some(0.0) && limit.is_none() { None } else { self.remaining };
        if limit.is_none() && remaining.is_none() {
            return None;
        }
        let window = if per_second { Some(SECOND) } else { self.subject.window.or(self.window) };
        Some(RateReading {
            unit: self.subject.unit,
            limit,
            remaining: remaining.map(|remaining| remaining.min(limit.unwrap_or(f64::MAX))),
            reset: self.reset,
            window: window.or_else(|| self.told_window()),
        })
    }

    /// The window as the numbers tell it, if they are clear.
    fn told_window(&self) -> Option<Duration> {
        let reset = self.reset?;
        let (limit, remaining) = (self.limit?, self.remaining?);
        // Without a unit in its name a limit is usually counted in fixed windows, whose reset does not depend on what is left.
        if self.subject.scope != Scope::Unnamed && remaining < limit {
            let used = limit - remaining;
            // `remaining` is rounded down, so up to 1 of `used` may not have been used.
            let least = if used > 1.0 { (used - 1.0) / used } else { 1.0 };
            let told = reset.as_secs_f64() * limit / used;
            let fits = |window: &Duration| {
                let share = told / window.as_secs_f64();
                share >= least * (1.0 - TOLERANCE) && share <= 1.0 + TOLERANCE
            };
            if let Some(window) = [SECOND, MINUTE, HOUR, DAY].into_iter().find(fits) {
                return Some(window);
            }
        }
        // Whatever the window, what is left of it is not longer than it.
        let longer = |window: &Duration| reset.as_secs_f64() <= window.as_secs_f64() * (1.0 + TOLERANCE);
        [MINUTE, HOUR, DAY, MONTH].into_iter().find(longer).filter(|window| *window != MINUTE)
    }
}

/// A number that can be an amount.
fn amount(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|amount| amount.is_finite() && *amount >= 0.0)
}

fn merge(gathered: &[Gathered]) -> Readings {
    // Together's is the one dialect with a limit that has no name beside tokens that have one.
    let names = |unit, unnamed| {
        let one = |one: &Gathered| one.subject.unit == unit && (one.subject.scope == Scope::Unnamed) == unnamed;
        gathered.iter().any(one)
    };
    let per_second = names(Unit::Requests, true) && names(Unit::Tokens, false) && !names(Unit::Requests, false);
    let mut readings = Readings::new();
    for (one, reading) in gathered
        .iter()
        .filter_map(|one| one.reading(per_second && one.subject.window.is_none()).map(|reading| (one, reading)))
    {
        // A bare number without a name and a reset may be one of a second as well as one of a day: no evidence at all.
        if one.subject.scope == Scope::Unnamed && reading.window.is_none() && reading.reset.is_none() {
            continue;
        }
        let same = |other: &&mut RateReading| other.unit == reading.unit && other.window == reading.window;
        match readings.iter_mut().find(same) {
            Some(other) => tighten(other, &reading),
            None => readings.push(reading),
        }
    }
    readings
}

/// Two limits at once: the rate of the lower, and what is left of the one that has less.
fn tighten(reading: &mut RateReading, other: &RateReading) {
    let lower = |one: Option<f64>, two: Option<f64>| match (one, two) {
        (Some(one), Some(two)) => Some(one.min(two)),
        (one, two) => one.or(two),
    };
    if reading.remaining.is_none_or(|left| other.remaining.is_some_and(|other| other < left)) {
        reading.reset = other.reset.or(reading.reset);
    }
    reading.limit = lower(reading.limit, other.limit);
    reading.remaining = lower(reading.remaining, other.remaining);
}

// ---- the IETF's structured fields ----

/// `"default";r=50;t=30` with `"default";q=100;w=60`, and the draft before it: `limit=100, remaining=50, reset=30`.
fn read_structured(gathered: &mut Vec<Gathered>, states: &str, policies: &str) {
    if !states.contains(';') {
        let number = |name| parameter(states.split(','), name);
        let window = window(policies);
        let subject = Subject { unit: Unit::Requests, scope: Scope::Policy(0), window };
        let (limit, remaining) = (number("limit"), number("remaining"));
        gathered.push(Gathered { subject, limit, remaining, reset: number("reset").and_then(seconds), window: None });
        return;
    }
    for (index, state) in states.split(',').enumerate() {
        let name = name_of(state);
        let policy = policies.split(',').find(|policy| name_of(policy) == name).unwrap_or_default();
        let Some(unit) = unit_of(policy) else { continue };
        let subject = Subject { unit, scope: Scope::Policy(index), window: window(policy) };
        gathered.push(Gathered {
            subject,
            limit: parameter(policy.split(';'), "q"),
            remaining: parameter(state.split(';'), "r"),
            reset: parameter(state.split(';'), "t").and_then(seconds),
            window: None,
        });
    }
}

fn name_of(item: &str) -> &str {
    item.split(';').next().unwrap_or_default().trim().trim_matches('"')
}

/// What a policy counts; `None` for what no request of ours is counted in (bytes, connections).
fn unit_of(policy: &str) -> Option<Unit> {
    let unit = policy.split(';').find_map(|parameter| parameter.trim().strip_prefix("qu="));
    match unit.map(|unit| unit.trim_matches('"')) {
        None | Some("requests") => Some(Unit::Requests),
        Some("tokens") => Some(Unit::Tokens),
        Some(_) => None,
    }
}

fn window(policy: &str) -> Option<Duration> {
    parameter(policy.split([';', ',']), "w").and_then(seconds).filter(|window| !window.is_zero())
}

fn parameter<'a>(mut parameters: impl Iterator<Item = &'a str>, name: &str) -> Option<f64> {
    parameters.find_map(|parameter| amount(parameter.trim().strip_prefix(name)?.strip_prefix('=')?.trim()))
}

fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok().filter(|seconds| *seconds <= MONTH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: &str = "Thu, 21 Aug 2025 12:40:00 GMT";

    fn readings(pairs: &[(&'static str, &str)]) -> Readings {
        let headers = pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        read(&headers, httpdate::parse_http_date(NOW).unwrap())
    }

    fn reading(unit: Unit, numbers: (f64, f64), reset: f64, window: Option<Duration>) -> RateReading {
        let (limit, remaining) = (Some(numbers.0), Some(numbers.1));
        RateReading { unit, limit, remaining, reset: Some(Duration::from_secs_f64(reset)), window }
    }

    #[test]
    fn an_answer_without_such_headers_says_nothing_and_allocates_nothing() {
        let headers = [("content-type", "application/json"), ("x-request-id", "req_1"), ("date", NOW)];
        assert_eq!(readings(&headers).capacity(), 0);
    }

    #[test]
    fn reads_openai() {
        let read = readings(&[
            ("x-ratelimit-limit-requests", "600"),
            ("x-ratelimit-remaining-requests", "590"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-tokens", "149000"),
            ("x-ratelimit-reset-tokens", "400ms"),
        ]);
        let minute = Some(MINUTE);
        assert_eq!(read[0], reading(Unit::Requests, (600.0, 590.0), 1.0, minute));
        assert_eq!(read[1], reading(Unit::Tokens, (150_000.0, 149_000.0), 0.4, minute));
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn takes_the_tighter_of_organisation_and_project() {
        let read = readings(&[
            ("x-ratelimit-limit-tokens", "100000"),
            ("x-ratelimit-remaining-tokens", "50000"),
            ("x-ratelimit-reset-tokens", "30s"),
            ("x-ratelimit-limit-project-tokens", "20000"),
            ("x-ratelimit-remaining-project-tokens", "10000"),
            ("x-ratelimit-reset-project-tokens", "30.5s"),
            ("x-ratelimit-limit-tokens_usage_based", "800000"),
            ("x-ratelimit-remaining-tokens_usage_based", "5000"),
            ("x-ratelimit-reset-tokens_usage_based", "59.6s"),
        ]);
        assert_eq!(read, [reading(Unit::Tokens, (20_000.0, 5000.0), 59.6, Some(MINUTE))]);
    }

    #[test]
    fn reads_anthropic_by_the_servers_own_clock() {
        let read = readings(&[
            ("date", "Thu, 21 Aug 2025 11:00:00 GMT"),
            ("anthropic-ratelimit-requests-limit", "1000"),
            ("anthropic-ratelimit-requests-remaining", "999"),
            ("anthropic-ratelimit-requests-reset", "2025-08-21T11:00:01Z"),
            ("anthropic-ratelimit-input-tokens-limit", "80000"),
            ("anthropic-ratelimit-input-tokens-remaining", "80000"),
            ("anthropic-ratelimit-input-tokens-reset", "2025-08-21T11:00:00Z"),
            ("anthropic-ratelimit-output-tokens-limit", "16000"),
            ("anthropic-ratelimit-output-tokens-remaining", "4000"),
            ("anthropic-ratelimit-output-tokens-reset", "2025-08-21T11:00:45Z"),
            ("anthropic-ratelimit-tokens-limit", "96000"),
            ("anthropic-ratelimit-tokens-remaining", "84000"),
            ("anthropic-ratelimit-tokens-reset", "2025-08-21T11:00:45Z"),
            ("anthropic-priority-input-tokens-limit", "10000"),
            ("anthropic-priority-input-tokens-remaining", "0"),
            ("anthropic-fast-input-tokens-remaining", "0"),
        ]);
        let minute = Some(MINUTE);
        assert_eq!(read.len(), 4);
        for expected in [
            reading(Unit::Requests, (1000.0, 999.0), 1.0, minute),
            reading(Unit::InputTokens, (80_000.0, 80_000.0), 0.0, minute),
            reading(Unit::OutputTokens, (16_000.0, 4000.0), 45.0, minute),
            reading(Unit::Tokens, (96_000.0, 84_000.0), 45.0, minute),
        ] {
            assert!(read.contains(&expected), "{expected:?} not in {read:?}");
        }
    }

    #[test]
    fn reads_mistral_and_its_permanent_zero() {
        let read = readings(&[
            ("x-ratelimit-limit-req-minute", "0"),
            ("x-ratelimit-remaining-req-minute", "0"),
            ("x-ratelimit-limit-tokens-minute", "500000"),
            ("x-ratelimit-remaining-tokens-minute", "499000"),
            ("x-ratelimit-limit-tokens-month", "1000000000"),
            ("x-ratelimit-remaining-tokens-month", "900000000"),
            ("x-ratelimit-tokens-query-cost", "1000"),
        ]);
        assert_eq!((read[0].limit, read[0].window), (Some(0.0), Some(MINUTE)));
        assert_eq!((read[1].unit, read[1].remaining, read[1].window), (Unit::Tokens, Some(499_000.0), Some(MINUTE)));
        assert_eq!((read[2].unit, read[2].window), (Unit::Tokens, Some(MONTH)));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn a_zero_of_anyone_else_is_no_limit() {
        let zero = [("x-ratelimit-limit-tokens", "0"), ("x-ratelimit-remaining-tokens", "0")];
        assert_eq!(readings(&zero), []);
    }

    #[test]
    fn tells_groqs_day_from_its_minute_by_the_numbers() {
        let read = readings(&[
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-requests", "14370"),
            ("x-ratelimit-reset-requests", "2m59.56s"),
            ("x-ratelimit-limit-tokens", "18000"),
            ("x-ratelimit-remaining-tokens", "15700"),
            ("x-ratelimit-reset-tokens", "7.66s"),
        ]);
        assert_eq!((read[0].unit, read[0].window), (Unit::Requests, Some(DAY)));
        assert_eq!((read[1].unit, read[1].window), (Unit::Tokens, Some(MINUTE)));
    }

    #[test]
    fn numbers_that_fit_no_window_tell_none() {
        let trio = |limit, remaining, reset| {
            let read = readings(&[
                ("x-ratelimit-limit-tokens", limit),
                ("x-ratelimit-remaining-tokens", remaining),
                ("x-ratelimit-reset-tokens", reset),
            ]);
            read[0].window
        };
        assert_eq!(trio("18000", "17997", "7.66s"), None); // as in Groq's own documentation
        assert_eq!(trio("100", "100", "0s"), None);
        assert_eq!(trio("100", "50", "20m"), Some(HOUR)); // a minute it cannot be
    }

    #[test]
    fn reads_together_by_the_second() {
        let read = readings(&[("x-ratelimit-limit", "10"), ("x-ratelimit-limit-tokens", "3000")]);
        let told: Vec<_> = read.iter().map(|one| (one.unit, one.limit, one.window)).collect();
        assert_eq!(told, [(Unit::Requests, Some(10.0), Some(SECOND)), (Unit::Tokens, Some(3000.0), Some(SECOND))]);
    }

    #[test]
    fn a_bare_limit_that_may_be_of_any_window_is_no_evidence() {
        assert!(readings(&[("x-ratelimit-limit", "10")]).is_empty());
        assert!(readings(&[("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "4")]).is_empty());
    }

    #[test]
    fn reads_azure_which_says_only_what_is_left() {
        let read = readings(&[("x-ratelimit-remaining-requests", "9"), ("x-ratelimit-remaining-tokens", "900")]);
        assert_eq!((read[0].limit, read[0].remaining, read[1].remaining), (None, Some(9.0), Some(900.0)));
    }

    #[test]
    fn reads_the_generic_names() {
        for prefix in ["ratelimit", "x-ratelimit"] {
            let headers = [("limit", "100"), ("remaining", "40"), ("reset", "30")]
                .map(|(part, value)| (format!("{prefix}-{part}").parse().unwrap(), HeaderValue::from_static(value)));
            let read = read(&headers.into_iter().collect(), SystemTime::UNIX_EPOCH);
            assert_eq!(read, [reading(Unit::Requests, (100.0, 40.0), 30.0, None)], "{prefix}");
        }
        let with_policy = [("ratelimit-limit", "100, 100;w=10"), ("ratelimit-remaining", "40")];
        let read = readings(&with_policy);
        assert_eq!((read[0].remaining, read[0].window, read.len()), (Some(40.0), Some(Duration::from_secs(10)), 1));
    }

    #[test]
    fn reads_the_structured_fields() {
        let read = readings(&[
            ("ratelimit", r#""default";r=50;t=30, "daily";r=900;t=40000, "bytes";r=1;t=1"#),
            ("ratelimit-policy", r#""default";q=100;w=60, "daily";q=1000;w=86400, "bytes";q=9;w=1;qu="content-bytes""#),
        ]);
        let expected = [
            reading(Unit::Requests, (100.0, 50.0), 30.0, Some(MINUTE)),
            reading(Unit::Requests, (1000.0, 900.0), 40_000.0, Some(DAY)),
        ];
        assert_eq!(read, expected);
        let earlier = [("ratelimit", "limit=100, remaining=50, reset=30"), ("ratelimit-policy", "100;w=60")];
        assert_eq!(readings(&earlier), expected[..1]);
    }

    #[test]
    fn a_bad_header_is_as_if_it_were_absent() {
        for value in ["", "-5", "nan", "inf", "1e400", "many", "5 apples", "\u{7f}"] {
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
            let names = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
            let headers = names.into_iter().map(|name| (name.parse().unwrap(), value.clone())).collect();
            assert_eq!(read(&headers, SystemTime::UNIX_EPOCH), [], "{value:?}");
        }
    }

    fn names() -> impl Strategy<Value = String> {
        let known = "(x-|anthropic-)?ratelimit(-policy)?(-(limit|remaining|reset))?(-(requests|tokens|req-minute|project-tokens|input-tokens|month))?(-(limit|remaining|reset))?";
        prop_oneof![known, "x-ratelimit-[a-z-]{0,20}"]
    }

    fn values() -> impl Strategy<Value = Vec<u8>> {
        let like = "-?[0-9]{0,20}(\\.[0-9]{1,3})?(ms|s|m|h|d|e9)?(;[rqtw]=[0-9]{1,9})?";
        prop_oneof![like.prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..30)]
    }

    proptest! {
        #[test]
        fn never_panics_and_never_tells_a_number_that_is_none(pairs in prop::collection::vec((names(), values()), 0..8)) {
            let pairs = pairs.into_iter().filter_map(|(name, value)| {
                Some((http::HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&value).ok()?))
            });
            for reading in read(&pairs.collect(), SystemTime::now()) {
                let amounts = [reading.limit, reading.remaining].into_iter().flatten();
                for amount in amounts {
                    prop_assert!(amount.is_finite() && amount >= 0.0, "{reading:?}");
                }
                prop_assert!(reading.window.is_none_or(|window| !window.is_zero()));
                prop_assert!(reading.reset.is_none_or(|reset| reset <= Duration::from_secs(31 * 24 * 3600)));
            }
        }

        #[test]
        fn tells_the_window_of_any_continuous_bucket(
            limit in 2_u32..1_000_000, share in 0.0..1.0_f64, window in prop::sample::select(vec![MINUTE, HOUR, DAY]),
        ) {
            let used = (f64::from(limit) * share).ceil().max(2.0);
            let reset = (used * window.as_secs_f64() / f64::from(limit) * 1000.0).ceil() / 1000.0;
            prop_assume!(reset > 0.05);
            let read = readings(&[
                ("x-ratelimit-limit-requests", &limit.to_string()),
                ("x-ratelimit-remaining-requests", &(f64::from(limit) - used).to_string()),
                ("x-ratelimit-reset-requests", &format!("{reset}s")),
            ]);
            prop_assert_eq!(read[0].window, Some(window));
        }
    }
}
