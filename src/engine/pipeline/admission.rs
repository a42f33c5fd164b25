//! How one attempt gets leave to go: places in flight, the user's and the server's limits, the breaker and the gate.
//!
//! It needs all of them at one moment, and each is waited for in a line of its own. Whoever waits may hold what only those need
//! who wait for the same: an item that waits for its model's limit, gate or breaker has no place in flight and nothing of the
//! limit over all keys for longer than a [`MOMENT`], since another model would miss them. The other way round it holds on to
//! what it has: tokens of its model while it waits for a place, a place while it waits for the user's limit, which everybody
//! waits for. So what is held is never waited for by those it waits for, and nobody gives way twice at the same moment.
//!
//! Where a model, a key, a gate or a breaker says wait for long, they come first; otherwise the place comes first, so that who
//! waits in a full window holds no tokens. The user's limit comes after the place in any case: what it grants is sent at once,
//! as a strict window demands. What was let go is taken again with the item's ticket, so its turn is kept.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::call::Call;
use super::parking::Parking;
use super::{CALL_PATIENCE, Item, Pipeline, not_sent};
use crate::engine::error::Error;
use crate::engine::keys::{Lane, Lanes, Occupied};
use crate::engine::limit::{
    Actual, Breaker, Cost, Health, Pass, Passed, Permit, RateLimiter, Reservation, Sent, Signal, Ticket,
};
use crate::engine::metrics::WaitCause;
use crate::engine::types::{Priority, RateReading, Usage};

/// How long an item that has a place holds on to what it has while it waits for the rest: as long as a token takes to refill
/// where they are not short.
const MOMENT: Duration = Duration::from_millis(50);

/// How soon an item that waits for one of several lanes looks whether another is readier, and how often in the end.
const LOOK_ROUND: Duration = Duration::from_millis(500);
const LONGEST_LOOK_ROUND: Duration = Duration::from_secs(4);

/// What an attempt has of all that it needs.
#[derive(Debug, Default)]
struct Hand<'a> {
    /// In the batch's window and the client's.
    places: Option<[Option<Permit>; 2]>,
    /// Of the user's limit over all keys.
    own: Option<Reservation>,
    pass: Option<Pass<'a>>,
    /// Of what the user says that the key may do.
    told: Option<Reservation>,
    /// Of what the server's headers say of the model.
    learnt: Option<Reservation>,
    gate: Option<Passed>,
}

impl Hand<'_> {
    /// Whether it has nothing that `give` says to let go.
    fn is_free(&self, give: Give) -> bool {
        match give {
            Give::Nothing => true,
            Give::Shared => self.own.is_none() && self.places.is_none(),
            Give::All => self.is_free(Give::Shared) && self.told.is_none() && self.learnt.is_none() && !self.is_probe(),
        }
    }

    fn is_probe(&self) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe)
    }

    /// Gives it back; to have passed the gate is no thing to give.
    fn let_go(&mut self, give: Give) {
        match give {
            Give::Nothing => {}
            Give::Shared => (self.places, self.own) = (None, None),
            Give::All => *self = Self { gate: self.gate, ..Self::default() },
        }
    }

    /// Whether it has anything of a lane: then it stays there.
    fn is_bound(&self) -> bool {
        self.pass.is_some() || self.told.is_some() || self.learnt.is_some() || self.gate.is_some()
    }

    fn leave_lane(&mut self) {
        (self.pass, self.told, self.learnt, self.gate) = (None, None, None, None);
    }
}

/// What an item gives back if a wait takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Give {
    Nothing,
    /// What other models and keys want, too: places, and the user's limit over all keys.
    Shared,
    /// What others of the same model want as well.
    All,
}

/// What an attempt takes next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Places,
    Own,
    Pass,
    Told,
    Learnt,
    Gate,
}

/// Where an item is, if it may leave for another lane.
#[derive(Debug, Clone, Copy)]
struct Seat<'a> {
    call: &'a Call,
    lanes: &'a Lanes,
    place: usize,
    breaker: &'a Breaker,
}

impl Seat<'_> {
    /// Returns once the lane is lost, or its wait is much longer than at another.
    async fn is_outdone(self) {
        let readier = pin!(async {
            let mut round = LOOK_ROUND;
            loop {
                tokio::time::sleep(round).await;
                // Thousands may wait, and the longer one has, the longer it will.
                round = (round * 2).min(LONGEST_LOOK_ROUND);
                if self.lanes.is_outdone(self.place, self.call.prompt_bytes(), self.call.max_tokens) {
                    return;
                }
            }
        });
        tokio::select! {
            biased;
            () = self.breaker.tripped() => {}
            () = readier => {}
        }
    }
}

/// Waits for one thing, and gives of `hand` what is said if that takes long; `None` once `seat` is outdone.
async fn obtain<R>(
    hand: &mut Hand<'_>,
    give: Give,
    seat: Option<Seat<'_>>,
    parking: Option<&Arc<Parking>>,
    wait: impl Future<Output = R>,
) -> Option<R> {
    let mut wait = pin!(wait);
    if let Poll::Ready(got) = poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await {
        return Some(got);
    }
    if hand.is_free(give) && seat.is_none() && parking.is_none() {
        return Some(wait.await);
    }
    // In a box of its own, since it is rare.
    let long = Box::pin(async {
        if !hand.is_free(give)
            && let Ok(got) = timeout(MOMENT, wait.as_mut()).await
        {
            return Some(got);
        }
        hand.let_go(give);
        let _parked = parking.map(Parking::park);
        match seat {
            None => Some(wait.await),
            Some(seat) => tokio::select! {
                biased;
                got = wait => Some(got),
                () = seat.is_outdone() => None,
            },
        }
    });
    long.await
}

impl Pipeline {
    /// Waits for everything that holds a request back.
    pub(super) async fn admit<'a>(
        &'a self,
        call: &'a Call,
        lanes: &'a Lanes,
        item: &mut Item,
    ) -> Result<Admission<'a>, Error> {
        let (ticket, priority) = (item.ticket, call.priority);
        // Where all items of a batch wait for the same model, another one would only wait beside them.
        let parking = self.bulk.as_ref().map(|bulk| &bulk.parking).filter(|_| item.stands_in);
        let mut hand = Hand::default();
        let mut place = 0;
        loop {
            if !hand.is_bound() {
                place = lanes.readiest(call.prompt_bytes(), call.max_tokens, item.failed_at);
            }
            let lane = lanes.get(place).ok_or_else(|| Error::internal("a model without a lane"))?;
            if item.shares_place {
                hand.places = Some([None, None]);
            }
            let Some(step) = self.next_step(call, lane, &hand) else {
                if !hand.is_probe() && !lane.breaker.is_closed() {
                    hand.leave_lane();
                    continue;
                }
                return Ok(Admission {
                    hand,
                    place,
                    lane,
                    sent: None,
                    is_alone: lanes.count() == 1,
                    _occupied: lane.occupy(),
                });
            };
            let may_leave = lanes.count() > 1 && !hand.is_probe();
            let seat = may_leave.then_some(Seat { call, lanes, place, breaker: &lane.breaker });
            match step {
                // Pinned where they are made: a future that is handed on by value is stored twice.
                Step::Places => {
                    let places = pin!(self.places(ticket, priority));
                    hand.places = obtain(&mut hand, Give::Nothing, None, parking, places).await;
                }
                Step::Own => {
                    let Some(limiter) = &self.limiter else { continue };
                    let own = pin!(limiter.reserve_as(own_cost(call, lanes), ticket, priority));
                    let own = pin!(self.metrics.wait(WaitCause::RateLimit, own));
                    hand.own = obtain(&mut hand, Give::Nothing, None, parking, own).await.transpose()?;
                }
                Step::Pass => hand.pass = self.pass(call, lane, lanes, item, &mut hand).await?,
                Step::Told | Step::Learnt => {
                    let is_told = matches!(step, Step::Told);
                    let limiter = if is_told { lane.upstream.limiter.as_ref() } else { Some(&lane.limiter) };
                    let Some(limiter) = limiter else { continue };
                    let reserved = pin!(limiter.reserve_as(cost(lane, call), ticket, priority));
                    let reserved = pin!(lane.metrics.wait(WaitCause::RateLimit, reserved));
                    match obtain(&mut hand, Give::Shared, seat, parking, reserved).await.transpose()? {
                        None => hand.leave_lane(),
                        reserved if is_told => hand.told = reserved,
                        reserved => hand.learnt = reserved,
                    }
                }
                Step::Gate => {
                    let passed = pin!(lane.gate.pass_as(ticket, priority));
                    let passed = pin!(lane.metrics.wait(WaitCause::Gate, passed));
                    match obtain(&mut hand, Give::All, seat, parking, passed).await {
                        None => hand.leave_lane(),
                        passed => hand.gate = passed,
                    }
                }
            }
        }
    }

    /// What is missing: the places and the user's limit first, unless something of the lane takes long.
    fn next_step(&self, call: &Call, lane: &Lane, hand: &Hand<'_>) -> Option<Step> {
        let needs_own = self.limiter.is_some() && hand.own.is_none();
        let needs_told = lane.upstream.limiter.is_some() && hand.told.is_none();
        let needs_gate = hand.gate.is_none_or(|passed| !lane.gate.still_lets(passed));
        let needs_places = hand.places.is_none();
        let takes_long = || {
            let told = lane.upstream.limiter.as_ref().filter(|_| needs_told);
            let learnt = Some(&lane.limiter).filter(|_| hand.learnt.is_none());
            let is_slow = |limiter: Option<&Arc<RateLimiter>>, cost: &dyn Fn() -> Cost| {
                limiter.is_some_and(|limiter| limiter.is_limited() && limiter.estimated_wait(cost()) > MOMENT)
            };
            (hand.pass.is_none() && lane.breaker.opens_in() > MOMENT)
                || is_slow(told, &|| cost(lane, call))
                || is_slow(learnt, &|| cost(lane, call))
                || (needs_gate && lane.gate.opens_in() > MOMENT)
        };
        match () {
            () if needs_places && !takes_long() => Some(Step::Places),
            () if needs_own && !needs_places => Some(Step::Own),
            () if hand.pass.is_none() => Some(Step::Pass),
            () if needs_gate => Some(Step::Gate),
            () if hand.learnt.is_none() => Some(Step::Learnt),
            () if needs_told => Some(Step::Told),
            () if needs_places => Some(Step::Places),
            () => None,
        }
    }

    /// A place in the batch's window, and then in the client's.
    async fn places(&self, ticket: Ticket, priority: Priority) -> [Option<Permit>; 2] {
        let windows = [self.bulk.as_ref().and_then(|bulk| bulk.window.as_ref()), self.window.as_ref()];
        let mut permits = [None, None];
        for (window, permit) in windows.into_iter().zip(&mut permits) {
            if let Some(window) = window {
                let place = pin!(window.acquire(ticket, priority));
                *permit = Some(self.metrics.wait(WaitCause::Window, place).await);
            }
        }
        permits
    }

    /// Leave to send to a lane's upstream; `None` if it is time to look whether another is readier.
    async fn pass<'a>(
        &self,
        call: &Call,
        lane: &'a Lane,
        lanes: &Lanes,
        item: &mut Item,
        hand: &mut Hand<'_>,
    ) -> Result<Option<Pass<'a>>, Error> {
        let breaker = &lane.breaker;
        if let Some(pass) = breaker.pass_at_once() {
            return Ok(Some(pass));
        }
        let mut longest = self.patience_left(breaker);
        if !self.holds_on() && item.last.is_some() && !breaker.is_barred() {
            // It has retries left, and a probe's time is no longer than a backoff.
            longest = CALL_PATIENCE;
        }
        let has_hope = |lanes: &Lanes| lanes.iter().any(|lane| !self.patience_left(&lane.breaker).is_zero());
        if lanes.count() > 1 && has_hope(lanes) {
            longest = LOOK_ROUND;
        }
        // A step of priority is worth half a minute: also those go first that come within it.
        let (ticket, priority) = match item.behind {
            Some(ticket) => (ticket, call.priority.saturating_sub(1)),
            None => (item.ticket, call.priority),
        };
        // In a box of its own, since it is rare.
        let pass = Box::pin(timeout(longest, async {
            lane.metrics.wait(WaitCause::Gate, pin!(breaker.pass_as(ticket, priority))).await
        }));
        match obtain(hand, Give::All, None, None, pass).await {
            Some(Ok(pass)) => Ok(Some(pass)),
            _ if lanes.count() > 1 && has_hope(lanes) => Ok(None),
            _ => Err(item.last.take().unwrap_or_else(|| not_sent(lane))),
        }
    }
}

/// By the first lane: which it will be is not known yet.
fn own_cost(call: &Call, lanes: &Lanes) -> Cost {
    lanes.first().map_or_else(Cost::default, |lane| cost(lane, call))
}

fn cost(lane: &Lane, call: &Call) -> Cost {
    Cost::from(lane.tokens.estimate(call.prompt_bytes(), call.max_tokens))
}

/// Everything that one attempt holds.
pub(super) struct Admission<'a> {
    hand: Hand<'a>,
    /// Which of the model's lanes.
    pub(super) place: usize,
    pub(super) lane: &'a Lane,
    /// Where this request stands among those of its lane.
    sent: Option<Sent>,
    /// Whether the lane is the only one, so that a barred key has no stand-in.
    is_alone: bool,
    _occupied: Occupied<'a>,
}

impl Admission<'_> {
    pub(super) fn is_probe(&self) -> bool {
        self.hand.is_probe()
    }

    /// The request goes out: what was reserved is spent, since servers count failed requests too.
    pub(super) fn begin(&mut self) {
        for reservation in [&mut self.hand.own, &mut self.hand.told].into_iter().flatten() {
            reservation.commit();
        }
        self.sent = self.hand.learnt.as_mut().map(Reservation::commit);
        self.permits().for_each(Permit::begin);
        self.hand.pass.iter_mut().for_each(Pass::begin);
    }

    /// It could not go out after all, so nothing is spent.
    pub(super) fn recall(&mut self) {
        let reservations = [&mut self.hand.own, &mut self.hand.told, &mut self.hand.learnt];
        reservations.into_iter().flatten().for_each(Reservation::recall);
        self.sent = None;
    }

    /// How long ago it went out.
    pub(super) fn sent_for(&self) -> Option<Duration> {
        self.sent.as_ref().map(|sent| sent.at().elapsed())
    }

    pub(super) fn observe(&mut self, signal: Signal, tokens: Option<u64>) {
        self.permits().for_each(|permit| permit.observe(signal, tokens));
    }

    pub(super) fn report(&mut self, health: Health) {
        if let Some(pass) = self.hand.pass.take() {
            // Where there is no other key, each item is told itself.
            pass.report(if self.is_alone && health == Health::Barred { Health::Alive } else { health });
        }
    }

    pub(super) fn learn(&self, readings: &[RateReading]) {
        if let Some(sent) = &self.sent {
            self.lane.limiter.learn(sent, readings);
        }
    }

    /// The server refused it for its rate.
    pub(super) fn refused(&self) {
        if let Some(learnt) = &self.hand.learnt {
            self.lane.limiter.refused(learnt);
        }
    }

    pub(super) fn settle(&mut self, usage: Usage) {
        for reservation in [&mut self.hand.own, &mut self.hand.told, &mut self.hand.learnt] {
            if let Some(reservation) = reservation.take() {
                reservation.settle(Actual::from(usage));
            }
        }
    }

    fn permits(&mut self) -> impl Iterator<Item = &mut Permit> {
        self.hand.places.iter_mut().flatten().flatten()
    }
}
