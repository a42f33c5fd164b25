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
    RateLimiter,
    Reservation,
)
from millstream.testing import Answer, MockServer

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
    assert repr(limiter) == "RateLimiter(requests_per_minute=5, tokens_per_minute=None)"
    assert repr(limiter.acquire_blocking(1, 2)) == "Reservation(requests=1, tokens=2)"


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
def test_a_client_at_the_servers_limit_meets_hardly_any_429_and_loses_nothing(
    make: Make, mock_server: MockServer
) -> None:
    """The network moves requests closer together than they were sent, so at the very limit a few are refused."""
    face = make(rate_limiter=RateLimiter(requests_per_minute=600))
    assert len(face.batch_complete(["x"] * 620)) == 620
    assert mock_server.stats.rejected_429 <= 0.02 * 620
    assert mock_server.stats.requests == 620 + mock_server.stats.rejected_429


@pytest.mark.mock_server(requests_per_minute=600)
def test_a_client_without_a_limiter_meets_one(make: Make, mock_server: MockServer) -> None:
    """The counterpart of the test before: the server does refuse what comes too fast."""
    answers = make(max_retries=0).batch_complete(["x"] * 650, return_exceptions=True)
    assert mock_server.stats.rejected_429 > 0
    assert sum(not isinstance(answer, str) for answer in answers) == mock_server.stats.rejected_429


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
