"""What `client.stats()` says, against what the server saw."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until
from millstream import Client, ClientStats, MillstreamError, RateLimiter
from millstream.testing import Answer, MockServer
from millstream.types import CauseStats, LaneStats, TimingStats, WaitStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]


def lane(stats: ClientStats, model: str) -> LaneStats:
    (found,) = (lane for lane in stats.lanes if lane.model == model)
    return found


def test_a_client_that_did_nothing_has_only_zeros(face: Face, mock_server: MockServer) -> None:
    stats = face.client.stats()

    assert (stats.requests, stats.attempts, stats.queued, stats.lanes) == (0, 0, 0, ())
    assert stats.latency == TimingStats(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert mock_server.stats.connections == 0


@pytest.mark.mock_server(latency=0.03)
def test_latency_covers_what_the_server_took_and_the_quantiles_are_in_order(face: Face) -> None:
    face.batch_complete(["hi"] * 30)
    latency, first_byte = face.client.stats().latency, face.client.stats().first_byte

    assert latency.count == first_byte.count == 30
    assert 0.03 <= first_byte.p50 <= latency.p50 <= latency.p90 <= latency.p95 <= latency.p99 <= latency.max
    assert latency.mean == pytest.approx(latency.total / 30)


def test_every_model_and_every_key_has_figures_of_its_own(make: Make, mock_server: MockServer) -> None:
    face = make()
    other = face.with_options(api_key="sk-other-0123456789")
    keyless = make(api_key=None)
    for asked, model, times in [(face, "a", 1), (face, "b", 2), (other, "a", 3)]:
        for _ in range(times):
            asked.complete("hi", model=model)
    keyless.complete("hi")
    stats = face.client.stats()

    assert [(lane.model, lane.attempts, lane.succeeded) for lane in stats.lanes] == [
        ("a", 1, 1),
        ("b", 2, 2),
        ("a", 3, 3),
    ]
    first, second, third = (lane.key_id for lane in stats.lanes)
    assert first == second != third
    assert keyless.client.stats().lanes[0].key_id == "none"
    assert stats.attempts == stats.succeeded == 6 == sum(lane.latency.count for lane in stats.lanes)
    assert stats.prompt_tokens == sum(lane.prompt_tokens for lane in stats.lanes) == 6
    assert stats.completion_tokens == sum(lane.completion_tokens for lane in stats.lanes) > 0
    assert mock_server.stats.requests == 7


def test_no_part_of_a_key_is_in_the_statistics(face: Face) -> None:
    face.complete("hi")
    text = repr(face.client.stats()) + json.dumps(face.client.stats().to_dict())

    assert len(face.client.stats().lanes[0].key_id) == 8
    assert not any(KEY[start : start + 6] in text for start in range(len(KEY) - 5))


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(status=429, headers={"retry-after-ms": "1"}), "rate_limit"),
        (Answer(status=503, headers={"retry-after-ms": "1"}), "overload"),
        (Answer(status=500, headers={"retry-after-ms": "1"}), "server_error"),
        (Answer(status=408, headers={"retry-after-ms": "1"}), "timeout"),
        (Answer(status=409, headers={"retry-after-ms": "1"}), "other"),
        (Answer(fault="reset_in_body"), "connection"),
        (Answer(body="{}"), "invalid_response"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_retry_is_counted_under_its_cause(make: Make, mock_server: MockServer, answer: Answer, cause: str) -> None:
    face = make()
    mock_server.script(answer)
    face.complete("hi")
    stats = face.client.stats()

    expected = CauseStats(**{name: int(name == cause) for name in CauseStats.__slots__})
    assert stats.retry_causes == stats.failure_causes == expected
    assert lane(stats, "m").retry_causes == expected
    assert (stats.retries, stats.attempts, stats.succeeded, stats.failed) == (1, 2, 1, 0)
    # A wait that the server asked for is the gate's.
    assert stats.waits.backoff.count + stats.waits.gate.count == 1
    assert stats.latency.count == 1, "only an answer has a latency"


def test_a_failure_that_is_not_retried_is_no_retry(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400))
    with pytest.raises(MillstreamError):
        face.complete("hi")
    stats = face.client.stats()

    assert (stats.failed, stats.failure_causes.other, stats.retries) == (1, 1, 0)
    assert stats.waits.backoff.count == 0


def test_a_wait_is_counted_under_what_was_waited_for(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=1200)
    limiter.acquire_blocking(1199)
    face = make(rate_limiter=limiter)
    face.batch_complete(["hi"] * 4)
    waits = face.client.stats().waits

    assert waits.rate_limit.count >= 2
    assert 0.1 <= waits.rate_limit.max <= waits.rate_limit.total
    assert (waits.window.count, waits.gate.count, waits.backoff.count) == (0, 0, 0)


def test_what_goes_on_at_once_is_no_wait(face: Face) -> None:
    face.complete("hi")
    waits = face.client.stats().waits

    assert [timing.count for timing in (waits.window, waits.rate_limit, waits.gate, waits.backoff)] == [0, 0, 0, 0]


def test_in_flight_and_queued_are_told_apart(mock_server: MockServer) -> None:
    mock_server.when("hang", Answer(fault="hang_before", times=0))
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", max_concurrency=2, timeout=1) as client:

        def ask() -> None:
            with pytest.raises(MillstreamError):
                client.complete("hang", timeout=1)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: (client.stats().in_flight, client.stats().queued) == (2, 3))
        for thread in threads:
            thread.join()
        stats = client.stats()

    assert (stats.in_flight, stats.queued, stats.max_in_flight, stats.failed) == (0, 0, 2, 5)
    assert stats.waits.window.count == 3
    assert lane(stats, "m").max_in_flight == 2
    assert stats.failure_causes == CauseStats(0, 0, 0, 0, 0, 0, 0), "cut short by the deadline, not failed"


def test_statistics_are_frozen_and_become_plain_dicts(face: Face) -> None:
    face.complete("hi")
    stats = face.client.stats()
    with pytest.raises(FrozenInstanceError):
        stats.requests = 7  # type: ignore[misc]
    plain: dict[str, Any] = json.loads(json.dumps(stats.to_dict()))

    assert plain["lanes"][0]["latency"]["count"] == 1
    assert plain["waits"].keys() == {"window", "rate_limit", "gate", "backoff"}
    assert plain["retry_causes"] == stats.retry_causes.to_dict()
    assert WaitStats(**{name: TimingStats(**each) for name, each in plain["waits"].items()}) == stats.waits
    assert plain["requests"] == 1
    assert {"attempts", "retries", "succeeded", "failed", "in_flight", "max_in_flight"} <= plain.keys()


def test_the_statistics_read_well(face: Face) -> None:
    assert repr(face.client.stats()).startswith("ClientStats(\n")
    face.complete("hi")
    face.complete("hi", model="other")
    lines = repr(face.client.stats()).splitlines()
    assert "requests=2" in lines[1]
    assert [line.strip().split(",")[1] for line in lines if "LaneStats(" in line] == [" model='m'", " model='other'"]
    assert max(map(len, lines)) < 400
    assert any(line.strip().startswith("latency=<2: p50 ") for line in lines)


def test_a_lane_is_printed_on_several_lines_and_stands_on_one_in_a_list(face: Face) -> None:
    face.complete("hi")
    (only,) = face.client.stats().lanes

    lines = str(only).splitlines()
    assert lines[0] == "LaneStats("
    assert lines[1].startswith(f"    key_id='{only.key_id}', model='m', attempts=1, succeeded=1, ")
    assert [line.strip().partition("=")[0] for line in lines[2:-1]] == ["latency", "first_byte"]
    assert "\n" not in repr(only)
    assert repr(only) in repr(face.client.stats())


def test_levels_are_printed_with_their_units(make: Make) -> None:
    limiter = RateLimiter(requests_per_minute=600, burst=20, tokens_per_day=1_500_000)
    limiter.try_acquire(5, tokens=250)
    face = make(rate_limiter=limiter, max_concurrency=4)

    assert str(face.client.stats().concurrency) == "<0 of 4 in flight, 0 waiting>"
    printed = str(face.client.stats().limiter)
    assert re.fullmatch(
        r"<<600 requests per minute, 20 at once, \d+(\.\d)? left>, "
        r"<1,500,000 tokens per day, 1,499,75\d(\.\d)? left>, 0 waiting>",
        printed,
    ), printed
