"""Who goes first: higher priority before lower, first come first served within one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from helpers import KEY, until_async
from millstream import AsyncClient, RateLimiter
from millstream.testing import MockServer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator


def client_of(server: MockServer, **options: object) -> AsyncClient:
    defaults = {"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": None}
    return AsyncClient(**{**defaults, **options})  # type: ignore[arg-type]


def order(server: MockServer) -> list[str]:
    return [request.json()["messages"][-1]["content"] for request in server.requests]


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


@pytest.mark.mock_server(latency=0.02)
async def test_an_interactive_call_passes_a_batch_in_the_line_of_the_window(mock_server: MockServer) -> None:
    async with client_of(mock_server, max_concurrency=2) as client:
        bulk = asyncio.create_task(client.batch_complete([f"item {number}" for number in range(60)]))
        await until_async(lambda: mock_server.stats.requests >= 4)
        before = mock_server.stats.requests
        await client.complete("now", priority=1)
        await bulk

    assert order(mock_server).index("now") <= before + 2, "the places in flight, not the line"


async def test_calls_of_one_priority_go_in_the_order_of_their_coming(mock_server: MockServer) -> None:
    async with client_of(mock_server, max_concurrency=1) as client:
        await asyncio.gather(*(client.complete(f"item {number}") for number in range(30)))

    assert order(mock_server) == [f"item {number}" for number in range(30)]


@pytest.mark.mock_server(latency=0.05)
async def test_every_call_has_a_priority(mock_server: MockServer) -> None:
    """`complete`, `batch_complete` and `create`, with some below the default."""
    async with client_of(mock_server, max_concurrency=1) as client:
        first = asyncio.create_task(client.complete("first"))
        await until_async(lambda: mock_server.stats.in_flight == 1)
        message = [{"role": "user", "content": "two above"}]
        calls = [
            client.batch_complete(["below"], priority=-1),
            client.complete("as usual"),
            client.complete("above", priority=1),
            client.chat.completions.create(messages=message, priority=2),
        ]
        await asyncio.gather(first, *calls)

    assert order(mock_server) == ["first", "two above", "above", "as usual", "below"]


async def test_an_interactive_call_passes_a_batch_in_the_line_of_a_limit(clock: VirtualClock) -> None:
    with MockServer(requests_per_minute=60) as server:
        limiter = RateLimiter(requests_per_minute=60)
        async with client_of(server, rate_limiter=limiter) as client:
            bulk = asyncio.create_task(client.batch_complete(["item"] * 100))
            await clock.sleep(10.5)
            asked = clock.now
            await client.complete("now", priority=1)

            assert clock.now - asked <= 1.1, "the next that the limit lets through"
            await bulk
        assert server.stats.rejected_429 == 0
        assert clock.now == pytest.approx(41, abs=1)


async def test_an_interactive_call_passes_a_batch_in_the_line_of_a_learnt_limit(clock: VirtualClock) -> None:
    with MockServer(requests_per_minute=60) as server:
        async with client_of(server) as client:
            bulk = asyncio.create_task(client.batch_complete(["item"] * 150))
            await clock.sleep(20.5)
            asked = clock.now
            await client.complete("now", priority=1)

            assert clock.now - asked <= 2.1
            await bulk


async def test_nobody_starves_behind_a_higher_priority(clock: VirtualClock) -> None:
    """Each step is worth 30 s of waiting: a stream of higher ones cannot hold a lower one for longer."""
    with MockServer(latency=1.0) as server:
        async with client_of(server, max_concurrency=1) as client:
            done: list[float] = []

            async def low() -> None:
                await client.complete("low")
                done.append(clock.now)

            async def high() -> None:
                while not done and clock.now < 200:
                    await client.complete("high", priority=1)

            # Two of them, so that one always waits in line.
            await asyncio.gather(high(), high(), low())

        assert 29 <= done[0] <= 40
