//! A stream's body: events at their time, in the writes that were asked for, up to the fault.
//!
//! It makes an event only when hyper has room for it, so a client that does not read stops it. Like every body it owns the
//! request's [`Ticket`].

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::OnItsWay;
use super::connection::Doom;
use super::record::Ticket;
use super::sse::{Events, Mark};
use super::streaming::{StreamFault, Streaming, Write};
use crate::traffic::WaitingExchange;

/// Most bytes of one chunk of [`Write::All`].
const MOST_AT_ONCE: usize = 1 << 20;
/// Bytes that events are written to before they are handed over: one allocation for many.
const SCRATCH: usize = 16 << 10;
const GARBAGE: &[u8] = b"\x00\xff\xfe no event\r\rdata:{\"choices\":[\n\n";

enum Stage {
    Events,
    /// The same bytes for ever.
    Flood(Bytes),
    Over,
    Doomed(Doom, OnItsWay),
    Silent,
}

pub(super) struct StreamBody {
    events: Events,
    plan: Streaming,
    /// Between two writes of [`Write::Bytes`].
    drip: Duration,
    stage: Stage,
    scratch: BytesMut,
    /// Made and not yet handed over, and how many events end in it.
    made: Bytes,
    made_events: u64,
    /// Events made in all.
    count: u64,
    fault_is_due: bool,
    /// When the last event was due, if there was a gap before it.
    clock: Option<Instant>,
    /// When the next one is, if there is a gap before it.
    due: Option<Instant>,
    /// When something was last said.
    spoke: Option<Instant>,
    /// No write before that.
    pause: Option<Instant>,
    /// hyper is to write what it has before it gets more.
    flush: bool,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: Option<WaitingExchange>,
    ticket: Ticket,
}

impl StreamBody {
    pub(super) fn new(events: Events, plan: Streaming, drip: Duration, ticket: Ticket) -> Self {
        let mut body = Self {
            fault_is_due: plan.fault.is_some(),
            events,
            plan,
            drip,
            stage: Stage::Events,
            scratch: BytesMut::new(),
            made: Bytes::new(),
            made_events: 0,
            count: 0,
            clock: None,
            due: None,
            spoke: None,
            pause: None,
            flush: false,
            timer: None,
            waiting: None,
            ticket,
        };
        body.schedule();
        body
    }

    /// Plans the next event. The pace is kept whatever the timers' grain: a gap begins when the last one was to end.
    fn schedule(&mut self) {
        let gap = self.plan.gap_before(self.count);
        if gap.is_zero() {
            (self.clock, self.due) = (None, None);
            return;
        }
        self.due = self.clock.unwrap_or_else(Instant::now).checked_add(gap);
        self.clock = self.due;
    }

    fn poll_until(&mut self, moment: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(moment)));
        if timer.deadline() != moment {
            timer.as_mut().reset(moment);
        }
        if timer.as_mut().poll(cx).is_pending() {
            if self.waiting.is_none() {
                self.waiting = self.ticket.wait();
            }
            return Poll::Pending;
        }
        self.waiting = None;
        Poll::Ready(())
    }

    /// Waits for the next event, or makes a keep-alive.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.fault() {
            return Poll::Ready(());
        }
        if let Some(due) = self.due {
            let silence = self.plan.keep_alive.filter(|silence| !silence.is_zero());
            let beat = silence.map(|silence| *self.spoke.get_or_insert_with(Instant::now) + silence);
            if let Some(beat) = beat.filter(|beat| *beat < due) {
                ready!(self.poll_until(beat, cx));
                self.spoke = Some(beat);
                self.events.write_keep_alive(&self.plan.comment, self.plan.line_end, &mut self.scratch);
                self.made = self.scratch.split().freeze();
                return Poll::Ready(());
            }
            ready!(self.poll_until(due, cx));
            self.spoke = Some(due);
            self.due = None;
        }
        self.make();
        Poll::Ready(())
    }

    /// The next event, with [`Write::All`] also those after it.
    fn make(&mut self) {
        self.scratch.reserve(SCRATCH / 16);
        loop {
            match (self.events.peek(), self.plan.fault) {
                (None, fault) => {
                    self.stage = if fault == Some(StreamFault::NeverEnds) { Stage::Silent } else { Stage::Over };
                    if fault == Some(StreamFault::Garbage) {
                        self.scratch.put_slice(GARBAGE);
                    }
                    break;
                }
                (Some(Mark::Finish), Some(StreamFault::NoFinish)) | (Some(Mark::End), Some(StreamFault::NoDone)) => {
                    self.events.skip();
                    continue;
                }
                _ => self.make_event(),
            }
            let goes_on = self.plan.write == Write::All && self.due.is_none() && !self.fault_is_now();
            if !goes_on || self.scratch.len() >= MOST_AT_ONCE {
                break;
            }
        }
        self.made = self.scratch.split().freeze();
    }

    fn make_event(&mut self) {
        if self.plan.keep_alive == Some(Duration::ZERO) {
            self.events.write_keep_alive(&self.plan.comment, self.plan.line_end, &mut self.scratch);
        }
        if self.scratch.capacity() < SCRATCH / 8 {
            self.scratch.reserve(SCRATCH);
        }
        self.events.write_next(self.plan.line_end, &mut self.scratch);
        self.made_events += 1;
        self.count += 1;
        self.schedule();
    }

    fn fault_is_now(&self) -> bool {
        self.fault_is_due && self.count >= self.plan.after
    }

    /// Does what is to go wrong here; whether anything is.
    fn fault(&mut self) -> bool {
        if !self.fault_is_now() {
            return false;
        }
        self.fault_is_due = false;
        let end = self.plan.line_end.as_str();
        self.stage = match self.plan.fault {
            Some(StreamFault::End) => Stage::Over,
            Some(fault @ (StreamFault::EndInEvent | StreamFault::EndInCharacter)) => {
                self.write_half();
                if fault == StreamFault::EndInCharacter {
                    self.scratch.put_u8(0xc3);
                }
                Stage::Over
            }
            Some(StreamFault::Close) => Stage::Doomed(Doom::Close, OnItsWay::default()),
            Some(StreamFault::Reset) => Stage::Doomed(Doom::Reset, OnItsWay::default()),
            Some(StreamFault::Stall) => Stage::Silent,
            Some(StreamFault::Error) => {
                self.events.write_error(self.plan.error.as_ref(), self.plan.line_end, &mut self.scratch);
                self.made_events += 1;
                Stage::Over
            }
            Some(StreamFault::BadJson) => {
                self.scratch.put_slice(format!("data: {{\"choices\": [{end}{end}").as_bytes());
                self.made_events += 1;
                Stage::Events
            }
            Some(StreamFault::EndlessLine) => {
                self.scratch.put_slice(b"data: ");
                Stage::Flood(Bytes::from(vec![b'x'; SCRATCH]))
            }
            Some(StreamFault::EndlessComments) => {
                Stage::Flood(Bytes::from(format!(": {}{end}{end}", self.plan.comment)))
            }
            // Those have a time of their own.
            Some(
                StreamFault::NoFinish
                | StreamFault::NoDone
                | StreamFault::NeverEnds
                | StreamFault::Garbage
                | StreamFault::Json,
            )
            | None => return false,
        };
        self.made = self.scratch.split().freeze();
        true
    }

    fn write_half(&mut self) {
        let mut whole = BytesMut::new();
        self.events.write_next(self.plan.line_end, &mut whole);
        whole.truncate(whole.len() / 2);
        // Not inside of a character: that is another fault.
        let half = String::from_utf8_lossy(&whole);
        self.scratch.put_slice(half.trim_end_matches(char::REPLACEMENT_CHARACTER).as_bytes());
    }

    fn hand_over(&mut self) -> Bytes {
        let frame = match self.plan.write {
            Write::Bytes(most) => self.made.split_to(most.min(self.made.len())),
            Write::Ready | Write::Event | Write::All => std::mem::take(&mut self.made),
        };
        self.flush = matches!(self.plan.write, Write::Bytes(_) | Write::Event);
        if !self.drip.is_zero() {
            self.pause = Instant::now().checked_add(self.drip);
        }
        let events = if self.made.is_empty() { std::mem::take(&mut self.made_events) } else { 0 };
        self.ticket.wrote(frame.len(), events);
        frame
    }

    fn poll_flood(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(due) = self.due {
            ready!(self.poll_until(due, cx));
        }
        if let Stage::Flood(bytes) = &self.stage {
            self.made = bytes.clone();
        }
        self.count += 1;
        self.schedule();
        Poll::Ready(())
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if std::mem::take(&mut self.flush) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(pause) = self.pause {
                ready!(self.poll_until(pause, cx));
                self.pause = None;
            }
            if !self.made.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(self.hand_over()))));
            }
            match &mut self.stage {
                Stage::Events => ready!(self.poll_next(cx)),
                Stage::Flood(_) => ready!(self.poll_flood(cx)),
                Stage::Over => {
                    self.ticket.complete();
                    return Poll::Ready(None);
                }
                Stage::Doomed(doom, on_its_way) => {
                    let doom = *doom;
                    ready!(on_its_way.poll(cx));
                    // The connection's task drops this body in a moment.
                    self.ticket.doom(doom);
                    self.stage = Stage::Silent;
                    return Poll::Pending;
                }
                Stage::Silent => {
                    if self.waiting.is_none() {
                        self.waiting = self.ticket.wait();
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
