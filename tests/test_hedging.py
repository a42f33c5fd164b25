"""A second request for one that takes too long: when, how many, and what becomes of the loser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until
from millstream import Client, ConfigurationError
from millstream.testing import Answer, MockServer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Face

    Make = Callable[..., Face]

HANGS = Answer(fault="hang_before")


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


def client_of(server: MockServer, **options: Any) -> Client:
    return Client(**{"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": 600, **options})


def test_a_slow_answer_gets_a_second_request_and_the_loser_is_cut(make: Make, mock_server: MockServer) -> None:
    face = make(hedge_after=0.5)
    # Twenty requests earn one hedge, which none of them may need, however busy the machine.
    face.batch_complete(["fast"] * 20)
    mock_server.when("slow", HANGS)
    response = face.create([{"role": "user", "content": "slow"}])

    assert (response.text, response.attempts) == ("echo: slow", 2)
    until(lambda: mock_server.stats.aborted == 1)
    loser, winner = mock_server.requests[20:]
    assert (loser.aborted, winner.completed) == (True, True)
    assert loser.connection != winner.connection
    assert loser.json() == winner.json()
    assert loser.header("idempotency-key") == winner.header("idempotency-key"), "a server that knows it does it once"
    stats = face.client.stats()
    assert (stats.requests, stats.attempts, stats.succeeded, stats.in_flight) == (21, 22, 21, 0)


def test_no_request_is_made_twice_unless_asked_for(clock: VirtualClock) -> None:
    with MockServer() as server, client_of(server) as client:
        client.batch_complete(["fast"] * 40)
        server.when("slow", Answer(latency=300))
        client.complete("slow")
        assert server.stats.requests == 41
        assert clock.now >= 300


def test_what_is_fast_is_never_asked_twice(clock: VirtualClock) -> None:
    with MockServer(latency=0.2) as server, client_of(server, hedge_after=0.5) as client:
        client.batch_complete(["fast"] * 500)
        assert server.stats.requests == 500


def test_there_are_no_more_than_one_in_twenty(clock: VirtualClock) -> None:
    """When everything is slow, a second request for each would only make it slower."""
    with MockServer(latency=1.0) as server, client_of(server, hedge_after=0.5, max_concurrency=200) as client:
        for _ in range(20):
            client.batch_complete(["slow"] * 50)
        twins = server.stats.requests - 1000

        assert 0 < twins <= 50
        assert client.stats().attempts == server.stats.requests
        assert client.stats().succeeded == 1000


def test_a_twin_needs_a_place_in_flight_like_everyone(clock: VirtualClock) -> None:
    with MockServer(latency=1.0) as server, client_of(server, hedge_after=0.5, max_concurrency=10) as client:
        client.batch_complete(["slow"] * 300)
        assert server.stats.max_in_flight == 10


def test_p95_is_the_time_that_the_last_ones_took(clock: VirtualClock) -> None:
    with MockServer(latency=0.2) as server, client_of(server, hedge_after="p95") as client:
        # A tenth takes a second. What is fast comes last and earns the hedge.
        server.script(Answer(latency=1.0, times=30))
        client.batch_complete(["slower"] * 30)
        client.batch_complete(["fast"] * 200)
        assert client.stats().latency.p95 == pytest.approx(1, rel=0.02)
        server.when("slow", Answer(latency=120))
        before = clock.now
        response = client.chat.completions.create(messages=[{"role": "user", "content": "slow"}])

        assert response.attempts == 2
        assert clock.now - before == pytest.approx(1.2, rel=0.05), "the twin went out then and took the usual time"


def test_p95_too_makes_no_more_than_one_in_twenty(clock: VirtualClock) -> None:
    with MockServer(latency=(1.0, 0.3)) as server, client_of(server, hedge_after="p95") as client:
        client.batch_complete(["usual"] * 1000)
        assert 0 < server.stats.requests - 1000 <= 50


def test_before_anything_was_measured_nothing_is_slow(clock: VirtualClock) -> None:
    with MockServer(latency=60) as server, client_of(server, hedge_after="p95") as client:
        client.complete("first")
        assert server.stats.requests == 1


def test_an_error_before_the_time_is_a_retrys_matter(clock: VirtualClock) -> None:
    with MockServer() as server, client_of(server, hedge_after=60.0) as client:
        client.batch_complete(["fast"] * 20)
        server.when("bad", Answer(status=500))
        response = client.chat.completions.create(messages=[{"role": "user", "content": "bad"}])
        assert (response.attempts, client.stats().retries) == (2, 1)


def test_the_twin_goes_by_another_key_if_there_is_one(make: Make, mock_server: MockServer) -> None:
    face = make(api_key=["sk-a-0123456789", "sk-b-0123456789"], hedge_after=0.05)
    face.batch_complete(["fast"] * 20)
    mock_server.when("slow", HANGS)
    face.complete("slow")
    until(lambda: mock_server.stats.aborted == 1)

    loser, winner = mock_server.requests[20:]
    assert loser.header("authorization") != winner.header("authorization")


def test_a_derived_client_may_hedge_otherwise_or_not_at_all(make: Make, mock_server: MockServer) -> None:
    face = make(hedge_after=0.05)
    face.batch_complete(["fast"] * 20)
    mock_server.when("slow", Answer(latency=0.3))
    face.with_options(hedge_after=None).complete("slow")
    assert mock_server.stats.requests == 21
    mock_server.when("slow", Answer(latency=0.3))
    face.with_options(timeout=5).complete("slow")
    assert mock_server.stats.requests == 23


@pytest.mark.parametrize("hedge_after", [0, -1, float("nan"), "p99", "fast"])
def test_a_senseless_time_is_refused_by_name(make: Make, hedge_after: Any) -> None:
    with pytest.raises(ConfigurationError, match="hedge_after"):
        make(hedge_after=hedge_after)
