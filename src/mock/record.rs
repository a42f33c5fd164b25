//! What the server saw: counters always, the requests themselves when asked to keep them.
//!
//! A [`Ticket`] stands for one request from its head to its end. hyper drops the future or the body that owns it when the
//! client leaves, so dropping a ticket that was not completed *is* the detection of an abort.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};
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
    /// When its head arrived, from the server's start.
    pub arrived: Duration,
    /// Requests in flight at its arrival, itself included.
    pub in_flight: u64,
    /// Status of the answer's head; none if it got none.
    pub status: Option<u16>,
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
}

#[derive(Debug)]
struct Record {
    head: Head,
    index: u64,
    connection: u64,
    in_flight: u64,
    body: OnceLock<Bytes>,
    /// 0: none yet.
    status: AtomicU16,
    end: AtomicU8,
}

/// Head of a request, as kept.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) arrived: Duration,
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
        let (status, end) = (self.status.load(Relaxed), self.end.load(Relaxed));
        let Head { method, path, headers, arrived } = self.head.clone();
        RecordedRequest {
            index: self.index,
            method,
            path,
            headers,
            body: self.body.get().cloned().unwrap_or_default(),
            connection: self.connection,
            arrived,
            in_flight: self.in_flight,
            status: (status != 0).then_some(status),
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
    stopping: AtomicBool,
    /// Counts clears, so that a request from before one does not disturb the numbers after it.
    epoch: AtomicU64,
    kept: Mutex<Vec<Arc<Record>>>,
}

impl Ledger {
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
        for counter in [&self.requests, &self.answered, &self.aborted, &self.faulted, &self.rejected_429] {
            counter.store(0, Relaxed);
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

    /// Book a request; `head` is given if it is to be kept.
    pub(super) fn open(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        head: Option<Head>,
        arrival: Option<Arrival>,
    ) -> Ticket {
        self.requests.fetch_add(1, Relaxed);
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Relaxed);
        let record = head.map(|head| self.keep(head, connection.number(), in_flight));
        let epoch = self.epoch.load(Relaxed);
        Ticket { ledger: Arc::clone(self), connection, record, epoch, admitted: false, ended: false, arrival }
    }

    fn keep(&self, head: Head, connection: u64, in_flight: u64) -> Arc<Record> {
        let mut kept = lock(&self.kept);
        let record = Arc::new(Record {
            head,
            index: kept.len() as u64,
            connection,
            in_flight,
            body: OnceLock::new(),
            status: AtomicU16::new(0),
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
    pub(super) fn admit(&mut self, most: Option<u32>) -> bool {
        let Some(most) = most else { return true };
        // No race: requests are admitted on the server's one thread.
        if self.ledger.admitted.load(Relaxed) >= u64::from(most) {
            return false;
        }
        self.ledger.admitted.fetch_add(1, Relaxed);
        self.admitted = true;
        true
    }

    pub(super) fn refused(&self) {
        self.count(&self.ledger.rejected_429);
    }

    pub(super) fn set_body(&self, body: &Bytes) {
        if let Some(record) = &self.record {
            // Set once by construction; a second value would be the same.
            let _ = record.body.set(body.clone());
        }
    }

    pub(super) fn set_status(&self, status: u16) {
        if let Some(record) = &self.record {
            record.status.store(status, Relaxed);
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
