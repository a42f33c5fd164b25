//! What the server saw: counters always, the requests themselves when asked to keep them.
//!
//! A [`Ticket`] stands for one request from its head to its end. hyper drops the future or the body that owns it when the
//! client leaves, so dropping a ticket that was not completed *is* the detection of an abort.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::connection::{Connection, Doom};
use crate::traffic::{Arrival, WaitingExchange};

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Place in the order of arrival, from 0.
    pub index: u64,
    /// HTTP method.
    pub method: Method,
    /// Request target as sent: a path with its query, or a whole URL where the server plays a proxy.
    pub path: String,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body as sent. Empty until it has arrived whole.
    pub body: Bytes,
    /// Number of the connection that carried it, from 0.
    pub connection: u64,
    /// Which of the server's keys it carried.
    pub key: Option<String>,
    /// Azure's deployment that its path names.
    pub deployment: Option<String>,
    /// When its head arrived, from the making of the server.
    pub arrived: Duration,
    /// Requests in flight at its arrival, itself included.
    pub in_flight: u64,
    /// Status of the answer's head; none if it got none.
    pub status: Option<u16>,
    /// When that head was handed over, on the clock of `arrived`.
    pub answered: Option<Duration>,
    /// The wait that it asked for.
    pub retry_after: Option<Duration>,
    /// Bytes of the answer's body that were handed to the socket: fewer than it has as long as the client does not read.
    pub written: u64,
    /// Events of a stream that were handed over whole, an end marker included and comments not.
    pub events: u64,
    /// The whole answer was handed to the socket.
    pub completed: bool,
    /// The client left before that.
    pub aborted: bool,
}

/// Counters since the start or the last [`super::MockServer::clear`].
///
/// `requests` = `answered` + `aborted` + `faulted` + `in_flight`, and those cut short by stopping the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MockStats {
    /// Requests whose head arrived.
    pub requests: u64,
    /// Requests whose whole answer, whatever its status, was handed to the socket.
    pub answered: u64,
    /// Requests whose client left before its answer was whole.
    pub aborted: u64,
    /// Requests whose connection the server ended, as told by a fault.
    pub faulted: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// Most requests in flight at once.
    pub max_in_flight: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Requests refused by a limit (not scripted ones).
    pub rejected_429: u64,
    /// Requests answered by an outage.
    pub failed_in_outage: u64,
    /// Requests that wait for a slot now.
    pub queued: u64,
}

/// Counters of one of the server's keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyStats {
    /// Requests with this key whose head arrived.
    pub requests: u64,
    /// Those refused by a limit.
    pub rejected_429: u64,
    /// Those being answered now.
    pub in_flight: u64,
    /// Most in flight at once.
    pub max_in_flight: u64,
}

#[derive(Debug, Default)]
struct KeyCounters {
    requests: AtomicU64,
    rejected_429: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) at: Duration,
    pub(super) retry_after: Option<Duration>,
}

#[derive(Debug)]
struct Record {
    head: Head,
    index: u64,
    connection: u64,
    in_flight: u64,
    body: OnceLock<Bytes>,
    reply: OnceLock<Reply>,
    written: AtomicU64,
    events: AtomicU64,
    end: AtomicU8,
}

/// Head of a request, as kept.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) arrived: Duration,
    pub(super) key: Option<String>,
    pub(super) deployment: Option<String>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered = 1,
    Aborted = 2,
    Faulted = 3,
    Stopped = 4,
}

impl Record {
    fn snapshot(&self) -> RecordedRequest {
        let (reply, end) = (self.reply.get(), self.end.load(Relaxed));
        let Head { method, path, headers, arrived, key, deployment } = self.head.clone();
        RecordedRequest {
            index: self.index,
            method,
            path,
            headers,
            body: self.body.get().cloned().unwrap_or_default(),
            connection: self.connection,
            key,
            deployment,
            arrived,
            in_flight: self.in_flight,
            status: reply.map(|reply| reply.status),
            answered: reply.map(|reply| reply.at),
            retry_after: reply.and_then(|reply| reply.retry_after),
            written: self.written.load(Relaxed),
            events: self.events.load(Relaxed),
            completed: end == End::Answered as u8,
            aborted: end == End::Aborted as u8,
        }
    }
}

/// The server's books. Counters are relaxed atomics: one thread writes them, readers want a recent value.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    requests: AtomicU64,
    answered: AtomicU64,
    aborted: AtomicU64,
    faulted: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    admitted: AtomicU64,
    connections: AtomicU64,
    next_connection: AtomicU64,
    open_connections: AtomicU64,
    rejected_429: AtomicU64,
    failed_in_outage: AtomicU64,
    /// In the order of the configuration.
    keys: Vec<KeyCounters>,
    stopping: AtomicBool,
    /// Counts clears, so that a request from before one does not disturb the numbers after it.
    epoch: AtomicU64,
    kept: Mutex<Vec<Arc<Record>>>,
}

impl Ledger {
    pub(super) fn new(keys: usize) -> Self {
        Self { keys: (0..keys).map(|_| KeyCounters::default()).collect(), ..Self::default() }
    }

    pub(super) fn key_stats(&self) -> impl Iterator<Item = KeyStats> {
        self.keys.iter().map(|counters| KeyStats {
            requests: counters.requests.load(Relaxed),
            rejected_429: counters.rejected_429.load(Relaxed),
            in_flight: counters.in_flight.load(Relaxed),
            max_in_flight: counters.max_in_flight.load(Relaxed),
        })
    }

    pub(super) fn stats(&self) -> MockStats {
        MockStats {
            requests: self.requests.load(Relaxed),
            answered: self.answered.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            faulted: self.faulted.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open_connections: self.open_connections.load(Relaxed),
            rejected_429: self.rejected_429.load(Relaxed),
            failed_in_outage: self.failed_in_outage.load(Relaxed),
            queued: 0,
        }
    }

    pub(super) fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.kept).iter().map(|record| record.snapshot()).collect()
    }

    /// Forget all but what is going on now.
    pub(super) fn clear(&self) {
        let mut kept = lock(&self.kept);
        kept.clear();
        self.epoch.fetch_add(1, Relaxed);
        let total =
            [&self.requests, &self.answered, &self.aborted, &self.faulted, &self.rejected_429, &self.failed_in_outage];
        let of_keys = self.keys.iter().flat_map(|key| [&key.requests, &key.rejected_429]);
        for counter in total.into_iter().chain(of_keys) {
            counter.store(0, Relaxed);
        }
        for key in &self.keys {
            key.max_in_flight.store(key.in_flight.load(Relaxed), Relaxed);
        }
        self.max_in_flight.store(self.in_flight.load(Relaxed), Relaxed);
        self.connections.store(self.open_connections.load(Relaxed), Relaxed);
    }

    /// From now on a request that ends unanswered was not aborted by its client.
    pub(super) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Relaxed);
    }

    /// Book a connection; its number.
    pub(super) fn connection_opened(&self) -> u64 {
        self.connections.fetch_add(1, Relaxed);
        self.open_connections.fetch_add(1, Relaxed);
        self.next_connection.fetch_add(1, Relaxed)
    }

    pub(super) fn connection_closed(&self) {
        self.open_connections.fetch_sub(1, Relaxed);
    }

    /// Book a request with the `key`th of the keys; `head` is given if it is to be kept.
    pub(super) fn open(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        head: Option<Head>,
        key: Option<usize>,
        arrival: Option<Arrival>,
    ) -> Ticket {
        self.requests.fetch_add(1, Relaxed);
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Relaxed);
        if let Some(key) = key.and_then(|key| self.keys.get(key)) {
            key.requests.fetch_add(1, Relaxed);
            key.max_in_flight.fetch_max(key.in_flight.fetch_add(1, Relaxed) + 1, Relaxed);
        }
        let record = head.map(|head| self.keep(head, connection.number(), in_flight));
        let epoch = self.epoch.load(Relaxed);
        Ticket { ledger: Arc::clone(self), connection, record, key, epoch, admitted: false, ended: false, arrival }
    }

    fn keep(&self, head: Head, connection: u64, in_flight: u64) -> Arc<Record> {
        let mut kept = lock(&self.kept);
        let record = Arc::new(Record {
            head,
            index: kept.len() as u64,
            connection,
            in_flight,
            body: OnceLock::new(),
            reply: OnceLock::new(),
            written: AtomicU64::new(0),
            events: AtomicU64::new(0),
            end: AtomicU8::new(0),
        });
        kept.push(Arc::clone(&record));
        record
    }
}

/// One request in flight. Dropped without [`Ticket::complete`], it was aborted.
#[derive(Debug)]
pub(super) struct Ticket {
    ledger: Arc<Ledger>,
    connection: Arc<Connection>,
    record: Option<Arc<Record>>,
    key: Option<usize>,
    epoch: u64,
    admitted: bool,
    ended: bool,
    arrival: Option<Arrival>,
}

impl Ticket {
    /// End the connection that carries this request, and with it the request.
    pub(super) fn doom(&mut self, doom: Doom) {
        self.end(End::Faulted); // before the client can see it
        self.connection.doom(doom);
    }

    /// Time may pass on a paused clock until the guard is dropped: this request is kept waiting on purpose.
    pub(super) fn wait(&self) -> Option<WaitingExchange> {
        self.arrival.as_ref().map(Arrival::wait)
    }

    /// Take one of `most` places, if one is free. Held to the ticket's end.
    pub(super) fn admit(&mut self, most: u64) -> bool {
        // No race: requests are admitted on the server's one thread.
        if self.ledger.admitted.load(Relaxed) >= most {
            return false;
        }
        self.ledger.admitted.fetch_add(1, Relaxed);
        self.admitted = true;
        true
    }

    pub(super) fn refused(&self) {
        self.count(&self.ledger.rejected_429);
        if let Some(key) = self.key.and_then(|key| self.ledger.keys.get(key)) {
            self.count(&key.rejected_429);
        }
    }

    pub(super) fn failed_in_outage(&self) {
        self.count(&self.ledger.failed_in_outage);
    }

    pub(super) fn set_body(&self, body: &Bytes) {
        if let Some(record) = &self.record {
            // Set once by construction; a second value would be the same.
            let _ = record.body.set(body.clone());
        }
    }

    /// The head of the answer goes out now.
    pub(super) fn set_reply(&self, reply: impl FnOnce() -> Reply) {
        if let Some(record) = &self.record {
            // An answer has one head.
            let _ = record.reply.set(reply());
        }
    }

    /// So much of the answer's body was handed over.
    pub(super) fn wrote(&self, bytes: usize, events: u64) {
        if let Some(record) = &self.record {
            record.written.fetch_add(bytes as u64, Relaxed);
            record.events.fetch_add(events, Relaxed);
        }
    }

    /// The whole answer was handed over.
    pub(super) fn complete(&mut self) {
        self.end(End::Answered);
    }

    fn end(&mut self, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(record) = &self.record {
            record.end.store(end as u8, Relaxed);
        }
        match end {
            End::Answered => self.count(&self.ledger.answered),
            End::Aborted => self.count(&self.ledger.aborted),
            End::Faulted => self.count(&self.ledger.faulted),
            End::Stopped => (),
        }
        if self.admitted {
            self.ledger.admitted.fetch_sub(1, Relaxed);
        }
        if let Some(key) = self.key.and_then(|key| self.ledger.keys.get(key)) {
            key.in_flight.fetch_sub(1, Relaxed);
        }
        self.ledger.in_flight.fetch_sub(1, Relaxed);
    }

    fn count(&self, counter: &AtomicU64) {
        if self.ledger.epoch.load(Relaxed) == self.epoch {
            counter.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(if self.connection.is_doomed() {
            End::Faulted
        } else if self.ledger.stopping.load(Relaxed) {
            End::Stopped
        } else {
            End::Aborted
        });
    }
}

/// Lock; nothing here can be left half done by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
