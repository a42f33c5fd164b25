"""Requests and tokens per minute, alone and inside of clients."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until, until_async
from millstream import (
    AsyncClient,
    Client,
    ConfigurationError,
    DeadlineExceeded,
    InputTooLargeError,
    MillstreamError,
    QueueTimeoutError,
    RateLimiter,
    Reservation,
)
from millstream.testing import Answer, MockServer
from millstream.types import LimitLevel, RateLimiterSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]

# A limit whose next token is a minute away.
SLOW = 1
# A limit whose next token is a millisecond away.
FAST = 60_000


async def line_is(limiter: RateLimiter, length: int) -> None:
    await until_async(lambda: limiter.waiting == length)


def emptied(**limits: float) -> RateLimiter:
    """A limiter from which everything was taken."""
    limiter = RateLimiter(**limits)
    limiter.acquire_blocking(limits.get("requests_per_minute", 0), limits.get("tokens_per_minute", 0))
    return limiter


# ---- alone ----


async def test_a_full_bucket_lets_a_minute_through_at_once_and_then_no_more() -> None:
    limiter = RateLimiter(requests_per_minute=5, tokens_per_minute=100)
    reservations = [await limiter.acquire(tokens=20) for _ in range(5)]

    assert all(isinstance(each, Reservation) for each in reservations)
    assert (reservations[0].requests, reservations[0].tokens) == (1, 20)
    assert limiter.try_acquire(1, 0) is None
    assert limiter.try_acquire(0, 1) is None
    assert limiter.try_acquire(0, 0) is not None
    assert limiter.waiting == 0


def test_every_way_to_acquire_takes_from_the_same_bucket() -> None:
    limiter = RateLimiter(requests_per_minute=5)

    async def take_three() -> None:
        await limiter.acquire()
        async with limiter as entered:
            assert entered is limiter
            with limiter:
                pass

    asyncio.run(take_three())
    assert limiter.acquire_blocking().requests == 1
    assert limiter.try_acquire() is not None
    assert limiter.try_acquire() is None


async def test_a_rate_is_no_lock() -> None:
    limiter = RateLimiter(requests_per_minute=2)
    async with limiter:
        pass
    reservation = await limiter.acquire()
    del reservation
    gc.collect()
    assert limiter.try_acquire() is None


@pytest.mark.parametrize("dimension", ["requests", "tokens"])
def test_the_refill_is_the_limit_a_minute(dimension: str) -> None:
    started = time.monotonic()
    limiter = emptied(**{f"{dimension}_per_minute": 600})
    for _ in range(5):
        limiter.acquire_blocking(**{"requests": 0, dimension: 1})
    assert 0.5 <= time.monotonic() - started < 1.5


@pytest.mark.parametrize("amounts", [{"requests": 11}, {"tokens": 101}, {"requests": 1, "tokens": 1e300}])
async def test_a_reservation_larger_than_the_minute_is_an_error_not_a_wait(amounts: dict[str, float]) -> None:
    limiter = RateLimiter(requests_per_minute=10, tokens_per_minute=100)
    for acquire in (limiter.acquire_blocking, limiter.try_acquire):
        with pytest.raises(InputTooLargeError, match="can never pass"):
            acquire(**amounts)
    with pytest.raises(ConfigurationError):
        await limiter.acquire(**amounts)
    assert limiter.try_acquire(10, 100) is not None


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), float("-inf")])
async def test_a_senseless_amount_is_refused(amount: float) -> None:
    limiter = RateLimiter(requests_per_minute=10)
    with pytest.raises(ValueError):
        await limiter.acquire(amount)
    with pytest.raises(ValueError):
        limiter.try_acquire(tokens=amount)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_senseless_limit_is_refused_by_name(name: str, limit: float) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RateLimiter(**{name: limit})


def test_a_dimension_that_is_not_given_is_not_limited() -> None:
    RateLimiter(requests_per_minute=1).acquire_blocking(tokens=1e12)
    RateLimiter(tokens_per_minute=1).acquire_blocking(requests=1e12)
    RateLimiter().acquire_blocking(1e12, 1e12)


async def test_settling_gives_back_what_was_too_much_once() -> None:
    limiter = RateLimiter(tokens_per_minute=100)
    reservation = await limiter.acquire(tokens=100)
    reservation.settle(30)
    reservation.settle(0)

    assert limiter.try_acquire(tokens=71) is None
    assert limiter.try_acquire(tokens=70) is not None


async def test_settling_takes_what_was_too_little_as_debt() -> None:
    limiter = RateLimiter(tokens_per_minute=FAST)
    reservation = await limiter.acquire(tokens=1)
    assert limiter.try_acquire(tokens=FAST - 100) is not None
    reservation.settle(400)

    started = time.monotonic()
    await limiter.acquire(tokens=1)
    assert time.monotonic() - started >= 0.25


async def test_settling_lets_the_line_move() -> None:
    limiter = RateLimiter(tokens_per_minute=100)
    reservation = await limiter.acquire(tokens=100)
    waiter = asyncio.create_task(limiter.acquire(tokens=50))
    await line_is(limiter, 1)
    reservation.settle(10)
    async with asyncio.timeout(1):
        await waiter


async def test_tasks_are_served_first_come_first_served() -> None:
    limiter = emptied(requests_per_minute=FAST)
    served: list[int] = []

    async def take(number: int) -> None:
        # Uneven: a heavy one must hold the line rather than be overtaken.
        await limiter.acquire(100 if number % 7 == 0 else 1)
        served.append(number)

    tasks = []
    for number in range(50):
        tasks.append(asyncio.create_task(take(number)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert served == list(range(50))


def test_threads_are_served_first_come_first_served() -> None:
    limiter = emptied(tokens_per_minute=600)
    served: list[int] = []
    lock = threading.Lock()

    def take(number: int) -> None:
        reservation = limiter.acquire_blocking(0, 1)
        with lock:
            served.append(number)
        assert reservation.tokens == 1

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        until(lambda: limiter.waiting + len(served) == len(threads))
    for thread in threads:
        thread.join(10)
    # 0.1 s lies between two of them: far more than a thread needs to be told.
    assert served == list(range(8))


async def test_nobody_overtakes_the_line() -> None:
    limiter = emptied(requests_per_minute=10)
    waiter = asyncio.create_task(limiter.acquire(10))
    await line_is(limiter, 1)
    # 0 requests are there, but others came before.
    assert limiter.try_acquire(0) is None
    waiter.cancel()
    await line_is(limiter, 0)
    assert limiter.try_acquire(0) is not None


async def test_cancelling_leaves_the_line_and_takes_nothing() -> None:
    limiter = RateLimiter(requests_per_minute=FAST)
    await limiter.acquire(FAST - 1)
    heavy = asyncio.create_task(limiter.acquire(FAST))
    await line_is(limiter, 1)
    light = asyncio.create_task(limiter.acquire(1))
    await line_is(limiter, 2)
    heavy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await heavy
    async with asyncio.timeout(1):
        await light
    assert limiter.waiting == 0

    slow = emptied(requests_per_minute=SLOW)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow.acquire(), 0.05)
    await line_is(slow, 0)


async def test_a_thousand_cancelled_waits_leave_nothing_behind() -> None:
    limiter = emptied(requests_per_minute=SLOW)
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(1000)]
    await line_is(limiter, 1000)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await line_is(limiter, 0)


def test_loops_and_threads_share_one_state() -> None:
    limiter = RateLimiter(requests_per_minute=100)

    def take(number: int) -> int:
        if number % 2:
            return sum(limiter.try_acquire() is not None for _ in range(20))

        async def take_all() -> int:
            return sum(limiter.try_acquire() is not None for _ in range(20))

        return asyncio.run(take_all())

    with ThreadPoolExecutor(8) as pool:
        assert 100 <= sum(pool.map(take, range(8))) <= 103


def test_repr_says_the_limits() -> None:
    limiter = RateLimiter(requests_per_minute=5)
    assert repr(limiter) == "RateLimiter(requests_per_minute=5)"
    assert repr(RateLimiter(rate=2, max_tokens=3)) == "RateLimiter(requests_per_second=2, burst=3)"
    window = RateLimiter(tokens_per_day=1e6, algorithm="sliding_window")
    assert repr(window) == "RateLimiter(tokens_per_day=1000000.0, algorithm='sliding_window')"
    assert repr(limiter.acquire_blocking(1, 2)) == "Reservation(requests=1, tokens=2)"


# ---- every way to say a limit ----


@pytest.mark.parametrize(
    ("name", "unit", "per"),
    [
        ("requests_per_second", "requests", 1),
        ("requests_per_minute", "requests", 60),
        ("requests_per_day", "requests", 86400),
        ("tokens_per_minute", "tokens", 60),
        ("tokens_per_day", "tokens", 86400),
        ("input_tokens_per_minute", "input_tokens", 60),
        ("output_tokens_per_minute", "output_tokens", 60),
    ],
)
async def test_every_limit_counts_its_unit(name: str, unit: str, per: float) -> None:
    limiter = RateLimiter(**{name: 20})
    assert limiter.snapshot() == RateLimiterSnapshot((LimitLevel(unit, per, 20, 20, 20),), 0)
    taken = await limiter.acquire(**{"requests": 0, unit: 20})
    assert getattr(taken, unit) == 20
    assert limiter.try_acquire(**{"requests": 0, unit: 20}) is None
    others = {"requests", "tokens", "input_tokens", "output_tokens"} - {unit}
    assert limiter.try_acquire(**{"requests": 0} | dict.fromkeys(others, 1000.0)) is not None
    with pytest.raises(InputTooLargeError, match="can never pass"):
        limiter.try_acquire(**{"requests": 0, unit: 21})


def test_other_spellings_are_the_same_limits() -> None:
    def limits(**arguments: float) -> object:
        return RateLimiter(**arguments).snapshot()

    assert limits(calls_per_minute=60) == limits(requests_per_minute=60)
    assert limits(rate=2.0) == limits(requests_per_second=2)
    assert limits(rate=2.0, max_tokens=3) == limits(requests_per_second=2, burst=3)
    assert limits(rate=2.0, max_tokens=3) == RateLimiterSnapshot((LimitLevel("requests", 1, 2, 3, 3),), 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"calls_per_minute": 1, "requests_per_minute": 1}, "requests_per_minute and calls_per_minute"),
        ({"rate": 1, "requests_per_second": 1}, "requests_per_second and rate"),
        ({"rate": 1, "burst": 2, "max_tokens": 2}, "burst and max_tokens"),
        ({"max_tokens": 1000}, "tokens_per_minute"),
        ({"requests_per_minute": 1, "max_tokens": 1000}, "max_tokens"),
        ({"burst": 2}, "burst"),
        ({"tokens_per_minute": 2, "burst": 2}, "burst"),
        ({"requests_per_minute": 2, "burst": 0.5}, "burst"),
        ({"requests_per_minute": 2, "burst": 2, "algorithm": "sliding_window"}, "burst"),
        ({"requests_per_minute": 2, "algorithm": "leaky"}, "algorithm"),
    ],
)
def test_limits_that_do_not_fit_together_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RateLimiter(**arguments)


def test_all_limits_hold_and_the_burst_belongs_to_the_shortest() -> None:
    limiter = RateLimiter(requests_per_minute=600, requests_per_day=1000, tokens_per_minute=100, burst=5)
    assert [limit.capacity for limit in limiter.snapshot().limits] == [5, 1000, 100]
    assert [limiter.try_acquire(tokens=1) is not None for _ in range(6)] == [True] * 5 + [False]


def test_less_than_one_a_minute_is_one_in_a_longer_time() -> None:
    for algorithm in ("token_bucket", "sliding_window"):
        limiter = RateLimiter(requests_per_minute=0.5, algorithm=algorithm)
        assert limiter.try_acquire() is not None
        assert limiter.try_acquire() is None
        assert 119 < limiter.estimated_wait() < 122


def test_a_sliding_window_makes_room_a_window_after_what_was_taken() -> None:
    limiter = RateLimiter(requests_per_second=3, algorithm="sliding_window")
    times = []
    for _ in range(7):
        limiter.acquire_blocking()
        times.append(time.monotonic())
    # A fourth within a second of the first would be one too many; clocks are read after the fact.
    assert times[3] - times[0] > 0.9
    assert times[6] - times[0] > 1.9
    assert times[2] - times[0] < 0.5


# ---- priorities, longest waits ----


async def test_a_higher_priority_goes_first() -> None:
    limiter = emptied(requests_per_minute=600)
    served: list[str] = []

    async def take(name: str, priority: int) -> None:
        await limiter.acquire(priority=priority)
        served.append(name)

    tasks = []
    for name, priority in [("late", -1), ("first", 0), ("second", 0), ("urgent", 5)]:
        tasks.append(asyncio.create_task(take(name, priority)))
        await line_is(limiter, len(tasks))
    await asyncio.gather(*tasks)
    assert served == ["urgent", "first", "second", "late"]


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    limiter = emptied(requests_per_minute=SLOW)
    started = time.monotonic()
    with pytest.raises(QueueTimeoutError, match="max_wait of 5 s") as caught:
        await limiter.acquire(max_wait=5)
    with pytest.raises(TimeoutError):
        limiter.acquire_blocking(max_wait=0)
    assert time.monotonic() - started < 1
    assert isinstance(caught.value, MillstreamError)
    assert limiter.waiting == 0


async def test_a_wait_that_becomes_too_long_ends() -> None:
    limiter = emptied(requests_per_minute=600)
    waiter = asyncio.create_task(limiter.acquire(max_wait=0.9))
    await line_is(limiter, 1)
    urgent = asyncio.create_task(limiter.acquire(100, priority=1))
    with pytest.raises(QueueTimeoutError):
        await waiter
    assert limiter.waiting == 1
    urgent.cancel()


async def test_a_wait_in_time_is_served() -> None:
    limiter = emptied(requests_per_minute=600)
    assert 0 < limiter.estimated_wait() < 0.7
    assert (await limiter.acquire(max_wait=5)).requests == 1


@pytest.mark.parametrize("max_wait", [-1, float("nan")])
def test_a_senseless_wait_is_refused_by_name(max_wait: float) -> None:
    with pytest.raises(ConfigurationError, match="max_wait"):
        RateLimiter().acquire_blocking(max_wait=max_wait)


# ---- what is given back ----


def left(limiter: RateLimiter) -> float:
    return round(limiter.snapshot().limits[0].level)


async def test_a_block_that_fails_gives_back_and_one_that_ends_well_keeps() -> None:
    limiter = RateLimiter(tokens_per_minute=100)

    async def fail() -> None:
        async with limiter.reserve(tokens=60):
            assert left(limiter) == 40
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert left(limiter) == 100
    with pytest.raises(KeyError), limiter.reserve(tokens=60):
        raise KeyError
    assert left(limiter) == 100
    async with limiter.reserve(tokens=30) as reservation:
        assert reservation.tokens == 30
    with limiter.reserve(tokens=30):
        pass
    assert left(limiter) == 40


@pytest.mark.parametrize(("end", "remains"), [(Reservation.commit, 40), (lambda held: held.settle(10), 90)])
def test_what_was_sent_or_settled_is_not_given_back(end: Callable[[Reservation], None], remains: int) -> None:
    limiter = RateLimiter(tokens_per_minute=100)

    def fail() -> None:
        with limiter.reserve(tokens=60) as reservation:
            end(reservation)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert left(limiter) == remains


async def test_an_awaited_reservation_is_given_back_when_it_is_dropped() -> None:
    limiter = RateLimiter(tokens_per_minute=100)
    reservation = await limiter.reserve(tokens=100)
    waiter = asyncio.create_task(limiter.acquire(tokens=50))
    await line_is(limiter, 1)
    del reservation
    gc.collect()
    async with asyncio.timeout(1):
        await waiter
    released = await limiter.reserve(tokens=50)
    released.release()
    released.settle(1000)
    assert left(limiter) == 50


async def test_a_cancelled_block_gives_back() -> None:
    limiter = RateLimiter(tokens_per_minute=100)

    async def work() -> None:
        async with limiter.reserve(tokens=100):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await until_async(lambda: left(limiter) == 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(limiter) == 100


async def test_prompt_and_answer_are_settled_apart() -> None:
    limiter = RateLimiter(input_tokens_per_minute=100, output_tokens_per_minute=100)
    reservation = await limiter.acquire(input_tokens=50, output_tokens=80)
    reservation.settle(input_tokens=60, output_tokens=20)
    assert [round(limit.level) for limit in limiter.snapshot().limits] == [40, 80]


# ---- limits that change ----


async def test_new_limits_count_for_those_who_wait() -> None:
    limiter = emptied(requests_per_minute=SLOW)
    waiter = asyncio.create_task(limiter.acquire())
    await line_is(limiter, 1)
    limiter.set_limits(requests_per_second=1000)
    async with asyncio.timeout(1):
        await waiter
    assert repr(limiter) == "RateLimiter(requests_per_second=1000)"


async def test_whoever_waits_for_more_than_the_new_limits_is_told() -> None:
    limiter = emptied(tokens_per_minute=100)
    waiter = asyncio.create_task(limiter.acquire(tokens=100))
    await line_is(limiter, 1)
    limiter.set_limits(tokens_per_minute=50)
    with pytest.raises(InputTooLargeError):
        await waiter


def test_limits_that_are_refused_change_nothing() -> None:
    limiter = RateLimiter(requests_per_minute=10)
    limiter.acquire_blocking(4)
    for bad in ({"requests_per_minute": -1}, {"burst": 2}):
        with pytest.raises(ConfigurationError):
            limiter.set_limits(**bad)
    assert repr(limiter) == "RateLimiter(requests_per_minute=10)"
    limiter.set_limits(requests_per_minute=20)
    assert left(limiter) == 12


# ---- inside of clients ----


@pytest.mark.mock_server(requests_per_minute=600)
def test_a_client_just_below_the_servers_limit_never_meets_a_429(make: Make, mock_server: MockServer) -> None:
    face = make(rate_limiter=RateLimiter(requests_per_minute=590), max_retries=0)
    prompts = [f"item {number}" for number in range(610)]
    started = time.monotonic()
    assert face.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
    took = time.monotonic() - started

    assert (mock_server.stats.requests, mock_server.stats.rejected_429) == (610, 0)
    # 20 beyond the burst, 9.8 a second.
    assert 1.9 < took < 4


@pytest.mark.mock_server(requests_per_minute=600)
def test_a_client_at_the_servers_limit_never_meets_a_429(make: Make, mock_server: MockServer) -> None:
    """The network moves requests closer together than they were sent; a full bucket refills late for that."""
    face = make(rate_limiter=RateLimiter(requests_per_minute=600))
    assert len(face.batch_complete(["x"] * 620)) == 620
    assert (mock_server.stats.requests, mock_server.stats.rejected_429) == (620, 0)


@pytest.mark.mock_server(requests_per_minute=600)
def test_a_client_that_is_told_no_limit_learns_it_from_headers(make: Make, mock_server: MockServer) -> None:
    started = time.monotonic()
    answers = make().batch_complete(["x"] * 620)
    assert answers == ["echo: x"] * 620
    assert mock_server.stats.rejected_429 <= 0.02 * 620
    # 20 beyond the burst, 10 a second.
    assert time.monotonic() - started > 1.9


@pytest.mark.mock_server(requests_per_minute=600)
async def test_clients_that_share_a_limiter_share_its_minute(mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=590)
    arguments: dict[str, Any] = {
        "api_key": KEY,
        "base_url": mock_server.base_url,
        "model": "m",
        "rate_limiter": limiter,
        "max_retries": 0,
    }
    async with AsyncClient(**arguments) as first, AsyncClient(**arguments) as second:
        await asyncio.gather(
            first.batch_complete(["x"] * 200),
            second.batch_complete(["x"] * 200),
            asyncio.to_thread(Client(**arguments).batch_complete, ["x"] * 200),
        )
    assert (mock_server.stats.requests, mock_server.stats.rejected_429) == (600, 0)


@pytest.mark.mock_server(latency=0.02)
def test_tokens_are_reserved_by_max_tokens_and_settled_with_the_usage(make: Make, mock_server: MockServer) -> None:
    """Without settling, 30 requests of 5,000 would need 90 s."""
    limiter = RateLimiter(tokens_per_minute=60_000)
    face = make(rate_limiter=limiter)
    started = time.monotonic()
    face.batch_complete(["hi"] * 30, max_tokens=5000)

    assert time.monotonic() - started < 3
    assert mock_server.stats.max_in_flight == 12
    assert mock_server.stats.requests == 30

    # 30 answers of 4 tokens were used up of the minute, but the refill.
    assert limiter.try_acquire(tokens=59_000) is not None


@pytest.mark.mock_server(tokens_per_minute=60_000, reply="ok")
def test_a_client_with_the_servers_token_limit_never_meets_a_429(make: Make, mock_server: MockServer) -> None:
    face = make(rate_limiter=RateLimiter(tokens_per_minute=60_000), max_retries=0)
    # 1,000 tokens each: one is a second beyond the burst.
    face.batch_complete(["x" * 4000] * 61)
    assert (mock_server.stats.requests, mock_server.stats.rejected_429) == (61, 0)


def test_a_request_larger_than_the_minute_is_never_sent(make: Make, mock_server: MockServer) -> None:
    face = make(rate_limiter=RateLimiter(tokens_per_minute=100))
    with pytest.raises(InputTooLargeError):
        face.complete("hi", max_tokens=101)
    with pytest.raises(InputTooLargeError):
        face.complete("hi", max_completion_tokens=101)
    assert mock_server.stats.requests == 0
    assert face.complete("hi", max_tokens=100) == "echo: hi"


def test_every_attempt_takes_a_request_of_its_own(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=5)
    mock_server.script(*(Answer(status=503, headers={"retry-after-ms": "1"}) for _ in range(3)))
    make(rate_limiter=limiter, max_retries=3).complete("hi")

    assert mock_server.stats.requests == 4
    assert limiter.try_acquire() is not None
    assert limiter.try_acquire() is None


def test_the_wait_for_the_limit_is_not_in_the_timeout_of_the_first_attempt(make: Make, mock_server: MockServer) -> None:
    face = make(rate_limiter=emptied(requests_per_minute=120), timeout=0.2)
    response = face.create()
    assert response.queue_time > 0.3
    assert response.elapsed < 0.2


def test_a_retry_does_not_wait_for_the_limit_beyond_the_timeout(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=503, headers={"retry-after-ms": "1"}, times=0))
    face = make(rate_limiter=RateLimiter(requests_per_minute=SLOW), timeout=0.3)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        face.complete("hi")
    assert time.monotonic() - started < 1.3
    assert mock_server.stats.requests == 1


async def test_a_cancelled_call_leaves_the_line_of_the_limit(mock_server: MockServer) -> None:
    limiter = emptied(requests_per_minute=SLOW)
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", rate_limiter=limiter) as client:
        batch = asyncio.create_task(client.batch_complete(["hi"] * 20))
        await line_is(limiter, 20)
        batch.cancel()
        await line_is(limiter, 0)
    assert mock_server.stats.requests == 0
