"""How long each phase of a call may take, over real sockets."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import socket
from typing import TYPE_CHECKING, Any

import pytest
from helpers import until
from millstream import (
    NOT_GIVEN,
    APITimeoutError,
    ConfigurationError,
    DeadlineExceeded,
    QueueTimeoutError,
    RateLimiter,
    Timeout,
)
from millstream.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Face
    from millstream.testing import MockServer

    Make = Callable[..., Face]

LIMIT_S = 0.2
# A call promises a quarter of this; a machine with other work needs more.
GRACE_S = 1.0


def fails(kind: type[APITimeoutError], call: Callable[[], Any]) -> APITimeoutError:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert isinstance(caught.value, TimeoutError)
    return caught.value


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose line of connections is full, so that another one is never made."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        yield port
        for filler in fillers:
            filler.close()


# ---- the phases ----


def test_a_connection_that_is_not_made_in_time_names_its_argument(make: Make, full_port: int) -> None:
    face = make(base_url=f"http://127.0.0.1:{full_port}/v1", timeout=Timeout(20, connect=LIMIT_S), max_retries=0)
    error = fails(APITimeoutError, lambda: face.complete("hi"))

    assert "connect_timeout = 0.2 s" in str(error)
    assert error.elapsed < 10


def test_a_server_that_does_not_begin_to_answer_is_left_after_first_byte(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before"))
    error = fails(
        APITimeoutError,
        lambda: make(timeout=Timeout(20, first_byte=LIMIT_S), max_retries=0).complete("hi"),
    )

    assert "first_byte = 0.2 s" in str(error)
    assert "Timeout(first_byte=" in str(error)
    assert LIMIT_S <= error.elapsed < 10
    until(lambda: mock_server.stats.in_flight == 0)


def test_an_answer_that_falls_silent_is_left_after_idle(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_in_body"))
    error = fails(APITimeoutError, lambda: make(timeout=Timeout(20, idle=LIMIT_S), max_retries=0).complete("hi"))

    assert "idle = 0.2 s" in str(error)
    assert LIMIT_S <= error.elapsed < 10
    until(lambda: mock_server.stats.in_flight == 0)


def test_an_answer_that_drips_is_not_silent(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="drip", drip_interval=0.002))
    response = make(timeout=Timeout(20, idle=LIMIT_S, first_byte=5)).create()

    assert response.elapsed > LIMIT_S
    assert response.attempts == 1


@pytest.mark.parametrize("fault", ["hang_before", "hang_in_body", "drip"])
@pytest.mark.parametrize("timeout", [0.5, Timeout(0.5)], ids=["number", "Timeout"])
def test_a_call_ends_at_its_total_whatever_the_server_does(
    make: Make, mock_server: MockServer, fault: Any, timeout: Any
) -> None:
    mock_server.script(Answer(fault=fault, drip_interval=0.2, times=0))
    error = fails(DeadlineExceeded, lambda: make(timeout=timeout, max_retries=100).complete("hi"))

    assert 0.5 <= error.elapsed <= 0.5 + GRACE_S


def test_the_total_is_over_all_attempts_that_a_phase_ended(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before", times=0))
    # Where the next wait would pass the total, the last attempt's error ends the call before it.
    with pytest.raises(APITimeoutError) as caught:
        make(timeout=Timeout(1, first_byte=LIMIT_S), max_retries=100).complete("hi")

    assert caught.value.attempts == mock_server.stats.requests >= 2
    assert caught.value.elapsed <= 1 + GRACE_S


def test_an_attempt_that_a_phase_ended_is_made_again(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before"), Answer(fault="hang_in_body"))
    response = make(timeout=Timeout(20, first_byte=LIMIT_S, idle=LIMIT_S)).create()

    assert response.attempts == mock_server.stats.requests == 3


# ---- the queue ----


def test_who_is_not_admitted_in_time_was_never_sent(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=2)
    assert limiter.try_acquire(2)
    face = make(rate_limiter=limiter, queue_timeout=LIMIT_S)
    error = fails(QueueTimeoutError, lambda: face.complete("hi"))

    assert "queue_timeout = 0.2 s" in str(error)
    assert (error.attempts, error.retryable, mock_server.stats.requests) == (0, True, 0)
    assert limiter.waiting == 0


def test_the_queue_timeout_of_a_call_replaces_the_clients(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=60)
    assert limiter.try_acquire(60)
    face = make(rate_limiter=limiter, queue_timeout=0.001)

    assert face.complete("hi", queue_timeout=None)
    assert face.with_options(queue_timeout=20).complete("hi")
    fails(QueueTimeoutError, lambda: face.create())
    fails(QueueTimeoutError, lambda: face.batch_complete(["hi"]))


def test_an_item_of_a_batch_waits_from_its_turn_on(make: Make, mock_server: MockServer) -> None:
    mock_server.when("item", Answer(latency=0.1, times=0))
    answers = make(queue_timeout=5).batch_complete([f"item {index}" for index in range(6)], max_concurrent=1)

    assert len(answers) == 6


def test_the_wait_in_the_queue_is_not_in_the_total(make: Make) -> None:
    limiter = RateLimiter(requests_per_minute=60)
    assert limiter.try_acquire(60)

    assert make(rate_limiter=limiter, timeout=0.5, queue_timeout=20).create().queue_time > 0.5


# ---- the argument ----


def test_a_number_means_the_total_and_leaves_the_other_phases(make: Make, mock_server: MockServer) -> None:
    face = make(timeout=Timeout(20, first_byte=LIMIT_S), max_retries=0)
    mock_server.script(Answer(fault="hang_before", times=0))

    for call in (
        lambda: face.complete("hi", timeout=15),
        lambda: face.complete("hi", timeout=None),
        lambda: face.with_options(timeout=15).complete("hi"),
    ):
        assert "first_byte" in str(fails(APITimeoutError, call))


def test_a_timeout_replaces_every_phase(make: Make, mock_server: MockServer) -> None:
    face = make(timeout=Timeout(20, first_byte=0.001, idle=0.001), max_retries=0)
    mock_server.script(Answer(latency=0.05, times=0))

    assert face.complete("hi", timeout=Timeout(20))
    assert face.batch_complete(["hi"], timeout=Timeout(20, first_byte=10)) == ["echo: hi"]
    assert face.with_options(timeout=Timeout(20)).create().attempts == 1


def test_connections_are_the_clients_so_a_call_cannot_change_their_timeout(make: Make, mock_server: MockServer) -> None:
    face = make(timeout=Timeout(20, connect=3))
    with pytest.raises(ConfigurationError, match=r"timeout\.connect"):
        face.complete("hi", timeout=Timeout(20, connect=4))
    assert mock_server.stats.requests == 0
    assert face.complete("hi", timeout=Timeout(20, connect=3))
    assert face.complete("hi", timeout=Timeout(20))
    assert face.with_options(timeout=Timeout(20, connect=4)).complete("hi")


@pytest.mark.parametrize("phase", ["total", "connect", "first_byte", "idle"])
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_checked_where_it_is_made(phase: str, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=phase):
        Timeout(**{phase: seconds})


@pytest.mark.parametrize("name", ["queue_timeout", "timeout"])
def test_a_senseless_number_is_refused_by_name(make: Make, name: str) -> None:
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError, match=name):
            make(**{name: seconds})
        with pytest.raises(ConfigurationError, match=name):
            make().complete("hi", **{name: seconds})


def test_a_timeout_is_a_frozen_value() -> None:
    timeout = Timeout(30, connect=None, idle=5)

    assert timeout == Timeout(30, idle=5, connect=None) != Timeout(30, idle=5)
    assert pickle.loads(pickle.dumps(timeout)) == copy.deepcopy(timeout) == timeout
    assert repr(Timeout(30)) == "Timeout(total=30, connect=NOT_GIVEN, first_byte=None, idle=None)"
    assert (Timeout().total, Timeout().connect) == (600, NOT_GIVEN)
    assert len({timeout, dataclasses.replace(timeout, idle=6)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        timeout.total = 1  # type: ignore[misc]
