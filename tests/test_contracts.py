"""What the patterns promise that people come from: limiters, retries, both bounds at once, a rate told or found.

Each is a *contract*: the number that a user of the pattern computes on paper, held under concurrency, on a clock that
does not really pass.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pytest
from helpers import KEY
from millstream import (
    AsyncClient,
    BadRequestError,
    Client,
    InternalServerError,
    MillstreamError,
    RateLimiter,
    RetryPolicy,
    retry_with_backoff,
)
from millstream.testing import Answer, MockServer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from millstream.testing import Dialect

Mode = Literal["batch", "gather"]
MODES: tuple[Mode, ...] = ("batch", "gather")


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


def async_client_of(server: MockServer, **options: Any) -> AsyncClient:
    return AsyncClient(**{"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": None, **options})


def client_of(server: MockServer, **options: Any) -> Client:
    return Client(**{"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": None, **options})


async def answers(client: AsyncClient, mode: Mode, prompts: list[str]) -> list[str]:
    if mode == "batch":
        return await client.batch_complete(prompts)
    return await asyncio.gather(*(client.complete(prompt) for prompt in prompts))


def most_within(moments: Iterable[float], seconds: float) -> int:
    """The most of them that fall into one stretch ``[t, t + seconds)``, to the millisecond that timers have."""
    ordered = sorted(moments)
    counts = (sum(1 for other in ordered[at:] if other - start < seconds - 1e-3) for at, start in enumerate(ordered))
    return max(counts)


def test_the_stretch_is_half_open() -> None:
    assert most_within([0, 1, 1.5, 2], 1) == 2
    assert most_within([0.0, 60.0, 120.0], 60) == 1


# ---- a limiter of so many calls a minute ----


@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_300_gathered_calls_at_60_a_minute_take_four_minutes(clock: VirtualClock, algorithm: Any) -> None:
    limiter = RateLimiter(calls_per_minute=60, algorithm=algorithm)
    moments: list[float] = []

    async def call() -> None:
        await limiter.acquire()
        moments.append(clock.now)

    await asyncio.gather(*(call() for _ in range(300)))

    assert clock.now == pytest.approx(240, rel=0.01)
    # A bucket lets its capacity and what refills meanwhile through; a window never more than the limit.
    assert most_within(moments, 60) <= (60 if algorithm == "sliding_window" else 121)


async def test_a_sliding_window_holds_at_the_server_whatever_comes_when(clock: VirtualClock) -> None:
    async with MockServer(latency=(2.0, 0.5)) as server:
        limiter = RateLimiter(calls_per_minute=60, algorithm="sliding_window")
        async with async_client_of(server, rate_limiter=limiter) as client:
            for count, pause in [(20, 50.0), (100, 7.0), (1, 61.0), (90, 0.0)]:
                await asyncio.gather(*(client.complete("hi", temperature=0) for _ in range(count)))
                await clock.sleep(pause)

        assert server.stats.requests == 211
        assert most_within((request.arrived for request in server.requests), 60) <= 60
        assert server.requests[-1].json()["temperature"] == 0


@pytest.mark.parametrize("mode", MODES)
async def test_40_calls_at_2_a_second_with_a_burst_of_3_take_at_least_18_and_a_half_seconds(
    clock: VirtualClock, mode: Mode
) -> None:
    async with MockServer() as server:
        async with async_client_of(server, rate_limiter=RateLimiter(rate=2, max_tokens=3)) as client:
            await answers(client, mode, [f"item {number}" for number in range(40)])
        arrived = [request.arrived for request in server.requests]

        assert 18.5 <= arrived[-1] - arrived[0] <= 19.2
        assert most_within(arrived, 0.49) == 3, "the burst, and no more at once"


async def test_whoever_came_first_goes_first(clock: VirtualClock) -> None:
    limiter = RateLimiter(rate=2, burst=3)
    served: list[int] = []

    async def call(number: int) -> None:
        await limiter.acquire()
        served.append(number)

    await asyncio.gather(*(call(number) for number in range(40)))
    assert served == list(range(40))


# ---- at most so many at once ----


@pytest.mark.parametrize("mode", MODES)
async def test_at_most_five_are_in_flight_and_the_order_is_kept(clock: VirtualClock, mode: Mode) -> None:
    prompts = [f"item {number}" for number in range(40)]
    async with MockServer(latency=(1.0, 0.5)) as server:
        async with async_client_of(server, max_concurrency=5) as client:
            assert await answers(client, mode, prompts) == [f"echo: {prompt}" for prompt in prompts]
        assert server.stats.max_in_flight == 5


async def test_a_semaphore_of_ones_own_works_as_ever(clock: VirtualClock) -> None:
    async with MockServer(latency=1.0) as server, async_client_of(server) as client:
        semaphore = asyncio.Semaphore(5)

        async def ask(number: int) -> str:
            async with semaphore:
                return await client.complete(str(number))

        assert await asyncio.gather(*map(ask, range(20))) == [f"echo: {number}" for number in range(20)]
        assert server.stats.max_in_flight == 5
        assert clock.now == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", ["sliding_window", "token_bucket"])
async def test_a_rate_and_a_bound_in_flight_hold_together(clock: VirtualClock, mode: Mode, algorithm: Any) -> None:
    async with MockServer(latency=(1.0, 0.5)) as server:
        limiter = RateLimiter(requests_per_minute=60, algorithm=algorithm)
        async with async_client_of(server, max_concurrency=10, rate_limiter=limiter) as client:
            await answers(client, mode, [f"item {number}" for number in range(300)])

        assert server.stats.max_in_flight <= 10
        arrived = [request.arrived for request in server.requests]
        for start, until in itertools.combinations(range(0, 300, 10), 2):
            # What left a bucket since any moment is what was in it and what came in.
            assert until - start <= 60 + (arrived[until] - arrived[start]) + 1
        if algorithm == "sliding_window":
            assert most_within(arrived, 60) <= 60
        # By the rate 240 s; a window that empties at once leaves through ten places of about a second.
        assert 239 <= clock.now <= 255


# ---- retries ----


class Recorder:
    """A coroutine function that fails until its ``successes``-th call, and the moments of its calls."""

    def __init__(self, clock: VirtualClock, failures: int, error: Exception) -> None:
        self.clock, self.failures, self.error = clock, failures, error
        self.waits: list[float] = []
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "fine"

    def on_retry(self, error: Exception, attempt: int, wait: float) -> None:
        assert error is self.error
        assert attempt == len(self.waits) + 1
        self.waits.append(wait)


async def test_a_function_is_tried_again_by_the_schedule_1_2_4_8_up_to_the_most(clock: VirtualClock) -> None:
    call = Recorder(clock, 6, OSError("down"))
    done = await retry_with_backoff(
        call, max_retries=7, base_delay=0.01, max_delay=0.08, exponential_base=2.0, jitter=False, on_retry=call.on_retry
    )
    assert done == "fine"
    assert call.waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.08, 0.08])


async def test_jitter_takes_at_most_half_of_each_wait_away(clock: VirtualClock) -> None:
    call = Recorder(clock, 8, OSError("down"))
    await retry_with_backoff(call, max_retries=9, base_delay=0.01, max_delay=0.02, on_retry=call.on_retry)
    for wait, ceiling in zip(call.waits, [0.01, *[0.02] * 7], strict=True):
        assert ceiling / 2 <= wait <= ceiling


async def test_the_last_error_is_raised_at_once_after_so_many_attempts(clock: VirtualClock) -> None:
    call = Recorder(clock, 100, OSError("down"))
    with pytest.raises(OSError, match="down"):
        await retry_with_backoff(call, max_retries=3, base_delay=0.001, on_retry=call.on_retry)
    assert (call.calls, len(call.waits)) == (3, 2)


def test_a_client_with_three_attempts_waits_1_and_2_seconds_and_raises_the_last_error(clock: VirtualClock) -> None:
    with MockServer() as server:
        server.script(*(Answer(status=500, body={"error": {"message": f"number {number}"}}) for number in range(3)))
        policy = RetryPolicy(max_retries=2, base_delay=1.0, max_delay=60.0, jitter="none")
        with client_of(server, retry=policy) as client, pytest.raises(InternalServerError, match="number 2"):
            client.complete("hi")
        arrived = [request.arrived for request in server.requests]

        waits = [later - earlier for earlier, later in itertools.pairwise(arrived)]
        assert waits == pytest.approx([1, 2], abs=0.05)
        assert clock.now == pytest.approx(3, abs=0.1), "none after the last"


def test_what_is_wrong_with_the_request_is_raised_at_once(clock: VirtualClock) -> None:
    with MockServer() as server:
        server.script(Answer(status=400, body={"error": {"message": "invalid model"}}))
        with client_of(server, max_retries=5) as client, pytest.raises(BadRequestError, match="invalid"):
            client.complete("hi")
        assert (server.stats.requests, clock.now < 0.1) == (1, True)


async def test_items_that_fail_do_not_disturb_the_others_under_both_bounds(clock: VirtualClock) -> None:
    async with MockServer(latency=1.0) as server:
        server.when("bad", Answer(status=400, times=0))
        server.when("odd", Answer(status=500, times=3))
        prompts = [
            ("bad" if number % 10 == 0 else "odd" if number == 5 else "good") + f" {number}" for number in range(100)
        ]
        limiter = RateLimiter(requests_per_minute=600)
        async with async_client_of(server, max_concurrency=10, rate_limiter=limiter, max_retries=4) as client:
            outcomes = await client.batch_complete(prompts, return_exceptions=True)

        for prompt, outcome in zip(prompts, outcomes, strict=True):
            assert isinstance(outcome, BadRequestError) if "bad" in prompt else outcome == f"echo: {prompt}"
        assert Counter(isinstance(outcome, MillstreamError) for outcome in outcomes) == {True: 10, False: 90}


# ---- 10 and 20 questions ----


async def test_ten_questions_at_once_take_the_time_of_one(clock: VirtualClock) -> None:
    async with MockServer(latency=2.0) as server, async_client_of(server) as client:
        tasks = [asyncio.create_task(client.complete(str(number))) for number in range(10)]
        assert await asyncio.gather(*tasks) == [f"echo: {number}" for number in range(10)]
        assert clock.now == pytest.approx(2, abs=0.1)


async def test_a_call_that_is_given_up_frees_its_place_and_is_cut() -> None:
    """In real time: `asyncio.wait_for` counts no other."""
    async with MockServer() as server, async_client_of(server, max_concurrency=1) as client:
        server.when("hang", Answer(fault="hang_before"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.complete("hang"), timeout=0.1)
        assert await client.complete("next") == "echo: next"
        assert server.requests[0].aborted


# ---- 600 a minute, told or not ----

CALLS, RATE = 3000, 600


async def carry(
    clock: VirtualClock, mode: Mode, dialect: Dialect = "openai", *, refused_from: float = 0.0, **options: Any
) -> tuple[float, float]:
    """The share of the rate that was used, and of the requests from that second on those that were refused."""
    async with MockServer(requests_per_minute=RATE, latency=(0.5, 0.3), dialect=dialect) as server:
        async with async_client_of(server, **options) as client:
            prompts = [f"item {number}" for number in range(CALLS)]
            assert await answers(client, mode, prompts) == [f"echo: {prompt}" for prompt in prompts]
            assert client.stats().failed == 0
        # A full bucket at the start, the rest evenly; the last answer takes its own time.
        ideal = (CALLS - RATE) / RATE * 60
        last = max(request.arrived for request in server.requests)
        later = [request for request in server.requests if request.arrived >= refused_from]
        return ideal / last, sum(request.status == 429 for request in later) / len(later)


@pytest.mark.parametrize("mode", MODES)
async def test_a_rate_that_was_told_is_used_in_full_and_never_passed(clock: VirtualClock, mode: Mode) -> None:
    used, refused = await carry(clock, mode, rate_limiter=RateLimiter(requests_per_minute=RATE))
    assert used >= 0.98
    assert refused == 0


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "mistral"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_rate_that_headers_tell_is_found_and_hardly_passed(
    clock: VirtualClock, mode: Mode, dialect: Dialect
) -> None:
    used, refused = await carry(clock, mode, dialect)
    assert used >= 0.95
    assert refused <= 0.02


@pytest.mark.parametrize("dialect", ["groq", "azure", "none"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_rate_that_only_refusals_tell_is_found_too(clock: VirtualClock, mode: Mode, dialect: Dialect) -> None:
    used, refused = await carry(clock, mode, dialect, refused_from=60, max_retries=20)
    assert used >= 0.95
    assert refused <= 0.02
