//! An answer's body: whole, cut in the middle, or byte by byte.
//!
//! The body owns the request's [`Ticket`], so that a client which leaves while it is sent is noticed. A cut body announces
//! its full length, hands over the first half and then, after a moment for it to reach the client, ends the connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Sleep, sleep};

use super::connection::Doom;
use super::record::Ticket;
use crate::traffic::WaitingExchange;

/// A reset destroys what the client has not received yet; this is the time given to the first half to get there. It passes
/// whatever clock the server runs on, since a socket knows no other.
const BEFORE_THE_CUT: Duration = Duration::from_millis(10);

/// That time.
#[derive(Default)]
pub(super) struct OnItsWay(Option<JoinHandle<()>>);

impl OnItsWay {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.0.get_or_insert_with(|| spawn_blocking(|| std::thread::sleep(BEFORE_THE_CUT)));
        Pin::new(wait).poll(cx).map(drop)
    }
}

/// What happens to a body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoiling {
    None,
    /// Half of it, then this end of the connection, or silence.
    Cut(Option<Doom>),
    /// A byte at a time, with this time between two.
    Drip(Duration),
    /// Nothing more.
    Hang,
}

pub(super) struct AnswerBody {
    left: Bytes,
    /// Bytes that are announced and never sent.
    withheld: usize,
    spoiling: Spoiling,
    timer: Option<Pin<Box<Sleep>>>,
    on_its_way: OnItsWay,
    waiting: Option<WaitingExchange>,
    ticket: Ticket,
}

impl AnswerBody {
    pub(super) fn new(mut data: Bytes, spoiling: Spoiling, mut ticket: Ticket) -> Self {
        let length = data.len();
        if let Spoiling::Cut(_) = spoiling {
            data.truncate(length / 2);
        } else if data.is_empty() {
            ticket.complete(); // hyper does not poll an empty body
        }
        let withheld = length - data.len();
        Self { left: data, withheld, spoiling, timer: None, on_its_way: OnItsWay::default(), waiting: None, ticket }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>, doom: Option<Doom>) -> Poll<Option<Bytes>> {
        if !self.left.is_empty() {
            return Poll::Ready(Some(std::mem::take(&mut self.left)));
        }
        ready!(self.on_its_way.poll(cx));
        match doom {
            // The connection's task drops this body in a moment.
            Some(doom) => self.ticket.doom(doom),
            None => self.waiting = self.ticket.wait(),
        }
        self.spoiling = Spoiling::Hang;
        Poll::Pending
    }

    fn poll_drip(&mut self, cx: &mut Context<'_>, interval: Duration) -> Poll<Option<Bytes>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
        }
        self.waiting = None;
        let byte = self.left.split_to(1);
        if self.left.is_empty() {
            self.ticket.complete();
        } else {
            self.timer = Some(Box::pin(sleep(interval)));
            self.waiting = self.ticket.wait();
        }
        Poll::Ready(Some(byte))
    }

    fn poll_whole(&mut self) -> Poll<Option<Bytes>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        self.ticket.complete();
        Poll::Ready(Some(std::mem::take(&mut self.left)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.spoiling {
            Spoiling::None => self.poll_whole(),
            Spoiling::Cut(doom) => self.poll_cut(cx, doom),
            Spoiling::Drip(interval) => self.poll_drip(cx, interval),
            Spoiling::Hang => Poll::Pending,
        };
        if let Poll::Ready(Some(data)) = &data {
            self.ticket.wrote(data.len(), 0);
        }
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && !matches!(self.spoiling, Spoiling::Cut(_) | Spoiling::Hang)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.left.len() + self.withheld) as u64)
    }
}
