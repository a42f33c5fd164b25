//! A request's tokens before the server has counted them.
//!
//! Four bytes a token is the usual rule of thumb for English; the true usage settles the reservation afterwards, so an
//! estimate that is off does not drift. `OpenAI` counts a request against the minute as the larger of `max_tokens` and its
//! own estimate from the characters ("Rate limits" guide), so do we.

const BYTES_PER_TOKEN: usize = 4;

/// Tokens to reserve for a request of `body_bytes` that may answer with up to `max_tokens`.
pub fn estimate(body_bytes: usize, max_tokens: Option<u64>) -> u64 {
    let prompt = body_bytes.div_ceil(BYTES_PER_TOKEN) as u64;
    prompt.max(max_tokens.unwrap_or(0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_the_larger_of_prompt_and_max_tokens() {
        assert_eq!(estimate(401, None), 101);
        assert_eq!(estimate(401, Some(50)), 101);
        assert_eq!(estimate(401, Some(1000)), 1000);
        assert_eq!(estimate(0, None), 1);
    }
}
