"""Minutes of limits, retries and latencies, in a moment and to the second."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest
from helpers import KEY, until_async
from millstream import AsyncClient, Client, InternalError, InternalServerError, RateLimiter
from millstream.testing import Answer, MockServer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)


def client_of(server: MockServer, **options: object) -> Client:
    return Client(**{"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": None, **options})  # type: ignore[arg-type]


def async_client_of(server: MockServer, **options: object) -> AsyncClient:
    return AsyncClient(**{"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": None, **options})  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


# ---- a limiter alone ----


def test_three_hundred_acquisitions_at_sixty_a_minute_take_four_minutes(clock: VirtualClock) -> None:
    limiter = RateLimiter(requests_per_minute=60)
    for _ in range(300):
        limiter.acquire_blocking()

    assert clock.now == pytest.approx(240, abs=0.5)


async def test_awaited_one_by_one_or_together_they_take_the_same(clock: VirtualClock) -> None:
    limiter = RateLimiter(requests_per_minute=60)
    for _ in range(150):
        await limiter.acquire()
    assert clock.now == pytest.approx(90, abs=0.5)
    await asyncio.gather(*(limiter.acquire() for _ in range(150)))

    assert clock.now == pytest.approx(240, abs=0.5)


def test_a_limiter_made_outside_is_full_inside_and_after() -> None:
    limiter = RateLimiter(requests_per_minute=1)
    limiter.acquire_blocking()
    with VirtualClock():
        assert limiter.try_acquire() is not None
        assert limiter.try_acquire() is None
    assert limiter.try_acquire() is not None


# ---- a client and a server ----


def test_a_batch_takes_the_time_of_the_servers_rate(clock: VirtualClock) -> None:
    with MockServer(requests_per_minute=600) as server:
        client = client_of(server, rate_limiter=RateLimiter(requests_per_minute=600))
        prompts = [f"item {number}" for number in range(1800)]
        assert client.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]

        assert clock.now == pytest.approx(120, rel=0.01)
        assert (server.stats.requests, server.stats.rejected_429) == (1800, 0)
        assert client.stats().waits.rate_limit.total > 120


@pytest.mark.parametrize("limits", [{"requests_per_minute": 30}, {"tokens_per_minute": 3_000}])
def test_a_pile_loses_nothing_to_a_limit_that_is_smaller_than_its_first_burst(
    clock: VirtualClock, limits: dict[str, int]
) -> None:
    # A short answer, since this server charges the prompt's hundred tokens and not what the answer uses.
    with MockServer(latency=0.5, reply="ok", **limits) as server:
        client = client_of(server, timeout=10)
        prompts = [f"{number:04} {'x' * 395}" for number in range(90)]
        assert client.batch_complete(prompts) == ["ok"] * 90

        assert clock.now == pytest.approx((90 - 30) / 30 * 60, rel=0.05)
        # Only the first burst's.
        assert server.stats.rejected_429 == 64 - 30


async def test_single_calls_over_asyncio_are_on_time(clock: VirtualClock) -> None:
    async with MockServer(latency=2.0) as server, async_client_of(server) as client:
        await asyncio.gather(*(client.complete("hi") for _ in range(30)))
        assert clock.now == pytest.approx(2, abs=0.1)
        for _ in range(20):
            await client.complete("hi")

        assert clock.now == pytest.approx(42, abs=0.5)
        assert client.stats().latency.p50 == pytest.approx(2, rel=0.02)


async def test_what_python_does_next_belongs_to_the_same_moment(clock: VirtualClock) -> None:
    """Ten workers take the next prompt when one is answered: nobody waits a turn longer than the server takes."""
    async with MockServer(latency=1.0) as server, async_client_of(server) as client:
        prompts = iter(range(100))

        async def work() -> None:
            for prompt in prompts:
                await client.complete(str(prompt))

        await asyncio.gather(*(work() for _ in range(10)))

        assert clock.now == pytest.approx(10, abs=0.1)


def test_a_retry_after_of_a_minute_is_waited_for(clock: VirtualClock) -> None:
    with MockServer() as server:
        server.script(Answer(status=429, headers={"retry-after": "60"}))
        assert client_of(server).complete("hi") == "echo: hi"

        first, second = server.requests
        assert 60 <= second.arrived - first.arrived <= 72
        assert 60 <= clock.now <= 72
        assert not any("exchange" in name for request in server.requests for name, _ in request.headers)


def test_backoff_stays_within_its_schedule(clock: VirtualClock) -> None:
    with MockServer() as server:
        server.script(Answer(status=500, times=0))
        with pytest.raises(InternalServerError):
            client_of(server, max_retries=6).complete("hi")

        arrived = [request.arrived for request in server.requests]
        waits = [later - earlier for earlier, later in itertools.pairwise(arrived)]
        assert len(waits) == 6
        for wait, ceiling in zip(waits, (0.5, 1, 2, 4, 8, 8), strict=True):
            assert 0 <= wait <= ceiling + 0.01
        assert clock.now == pytest.approx(sum(waits), abs=0.1)


def durations(seed: int) -> tuple[float, list[float]]:
    with VirtualClock(seed=seed) as clock, MockServer(latency=(1.0, 0.5), seed=3) as server:
        server.script(*[Answer(status=500)] * 5)
        client = client_of(server, max_retries=8)
        for number in range(20):
            client.complete(f"item {number}")
        return clock.now, [request.arrived for request in server.requests]


def test_the_same_seed_takes_the_same_time_to_the_millisecond() -> None:
    once, again, other = durations(1), durations(1), durations(2)

    assert once == again
    assert once != other


def test_a_deadline_ends_a_call_that_hangs(clock: VirtualClock) -> None:
    with MockServer() as server:
        server.script(Answer(fault="hang_before"))
        with pytest.raises(TimeoutError):
            client_of(server, timeout=300.0).complete("hi")

        assert clock.now == pytest.approx(300, abs=0.1)


def test_a_server_that_comes_back_after_an_outage(clock: VirtualClock) -> None:
    with MockServer() as server:
        client = client_of(server, max_retries=100)
        client.complete("before")
        server.stop()
        caller = threading.Thread(target=client.complete, args=("during",))
        caller.start()
        clock.advance(45)
        server.start()
        # Its time passes meanwhile, too.
        back = clock.now
        caller.join(20)

        assert not caller.is_alive()
        assert back >= 45
        # The longest wait between two attempts, and the first second of the breaker's.
        assert clock.now - back < 40
        assert client.stats().retry_causes.connection > 3


# ---- the clock itself ----


def test_time_passes_only_while_a_call_waits_for_it(clock: VirtualClock) -> None:
    with MockServer() as server:
        client_of(server).complete("hi")
        before = clock.now
        time.sleep(0.05)
        assert clock.now == before < 0.1
        clock.advance(3600)
        assert clock.now == pytest.approx(before + 3600, abs=0.01)


def test_it_works_on_after_a_loop_was_left(clock: VirtualClock) -> None:
    with asyncio.Runner() as runner:
        runner.run(clock.sleep(5))
        clock.advance(5)
        runner.run(clock.sleep(5))
    asyncio.run(clock.sleep(5))

    assert clock.now == pytest.approx(20, abs=0.05)


def test_there_is_one_at_a_time_and_it_must_be_active() -> None:
    clock = VirtualClock()
    with pytest.raises(RuntimeError, match="not active"):
        clock.advance(1)
    with clock, pytest.raises(RuntimeError, match="active already"), VirtualClock():
        pass
    with VirtualClock() as second:
        second.advance(1)
        with pytest.raises(ValueError, match="-1"):
            second.advance(-1)
    assert second.now == 1


def test_a_client_made_outside_works_inside_and_after_and_its_counters_go_on() -> None:
    with MockServer() as outside:
        client = client_of(outside)
        client.complete("one")
        with VirtualClock() as clock:
            assert client.complete("two") == "echo: two"
            clock.advance(1000)
        assert client.complete("three") == "echo: three"
        assert client.stats().attempts == 3
        assert [request.arrived < 60 for request in outside.requests] == [True] * 3


async def test_a_call_that_is_under_way_when_the_clock_is_left_ends_with_an_error() -> None:
    with MockServer() as server:
        # In real time, for which the clock waits.
        server.script(Answer(fault="hang_before"))
        with VirtualClock() as clock:
            waiting = asyncio.ensure_future(async_client_of(server, timeout=30.0).complete("hi"))
            await until_async(lambda: server.stats.in_flight == 1)
            assert clock.now == 0
        with pytest.raises(InternalError, match="VirtualClock was left"):
            await waiting


def test_a_hundred_clocks_leave_no_threads_behind() -> None:
    before = threading.active_count(), len(native_threads())
    for _ in range(100):
        with VirtualClock() as clock, MockServer() as server:
            client_of(server).complete("hi")
            clock.advance(1)
    gc.collect()

    assert threading.active_count() == before[0]
    assert len(native_threads()) <= before[1] + 1  # the engine's own may have started


def native_threads() -> list[str]:
    import os

    return os.listdir("/proc/self/task")


async def test_a_clock_that_is_left_before_its_calls_set_out_hangs_nothing() -> None:
    """They wait in the port's outbox until the loop's next turn, and then find another runtime."""
    with MockServer() as server:
        async with AsyncClient(api_key="k", base_url=server.base_url, model="m") as client:
            clock = VirtualClock()
            clock.__enter__()
            # The first sets out at once, the others wait for each other.
            calls = [asyncio.create_task(clock.sleep(0.01)) for _ in range(3)]

            async def leave() -> None:
                clock.__exit__(None, None, None)

            left = asyncio.create_task(leave())
            await asyncio.wait([left, *calls], timeout=10)
            assert all(call.done() for call in (left, *calls))
            await asyncio.gather(*calls, return_exceptions=True)
            assert await asyncio.wait_for(client.complete("hi"), 10) == "echo: hi"
