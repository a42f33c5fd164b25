//! A name for each item, the same over all its attempts, so that a server that knows the header does the work once.
//!
//! Both SDKs retry a read timeout without one, so a request that the server did finish is paid for again. The header is
//! Stripe's `Idempotency-Key`, now an IETF draft (draft-ietf-httpapi-idempotency-key-header), and a UUID what every server takes.
//! A server that does not know it ignores it.
//!
//! The names count up from one random UUID a process. That makes them different within it by construction, not by luck; between
//! processes 122 bits from the system see to it; and one costs an addition and not a call of the system. They need not be hard to
//! guess: a server looks for them within one account.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use uuid::Uuid;

/// The header's name.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Makes the names of one process. A forked child needs one of its own, or it would go on where its parent was.
#[derive(Debug)]
pub struct IdempotencyKeys {
    first: u128,
    made: AtomicU64,
}

impl Default for IdempotencyKeys {
    fn default() -> Self {
        Self { first: Uuid::new_v4().as_u128(), made: AtomicU64::new(0) }
    }
}

impl IdempotencyKeys {
    /// A name for an item that is sent with `method` and `headers`: for a POST whose user has not named it.
    pub fn name(&self, method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
        if method != Method::POST || headers.contains_key(IDEMPOTENCY_KEY) {
            return None;
        }
        let id = self.first.wrapping_add(u128::from(self.made.fetch_add(1, Relaxed)));
        let mut text = Uuid::encode_buffer();
        HeaderValue::from_str(Uuid::from_u128(id).hyphenated().encode_lower(&mut text)).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_item_has_a_uuid_of_its_own_and_every_process_other_ones() {
        let makers = [IdempotencyKeys::default(), IdempotencyKeys::default()];
        let names: HashSet<_> = makers
            .iter()
            .flat_map(|keys| (0..1000).map(|_| keys.name(&Method::POST, &HeaderMap::new()).unwrap()))
            .map(|name| Uuid::try_parse(name.to_str().unwrap()).unwrap())
            .collect();
        assert_eq!(names.len(), 2000);
        assert!(names.iter().all(|name| name.get_version_num() == 4));
    }

    #[test]
    fn a_get_needs_none_and_the_users_own_stays() {
        let keys = IdempotencyKeys::default();
        assert_eq!(keys.name(&Method::GET, &HeaderMap::new()), None);
        let own = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static("mine"))]);
        assert_eq!(keys.name(&Method::POST, &own), None);
    }
}
