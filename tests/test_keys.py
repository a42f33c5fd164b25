"""Several keys and endpoints: who gets which request, and what becomes of an item whose key or server is lost."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, last_request, until
from millstream import (
    APIConnectionError,
    APIError,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    ConfigurationError,
    Endpoint,
    InsufficientQuotaError,
    OverloadedError,
    RateLimiter,
)
from millstream.testing import Answer, MockServer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face
    from millstream.types import LaneStats

    Make = Callable[..., Face]

A, B, C = "sk-a-0123456789", "sk-b-0123456789", "sk-c-0123456789"
SPENT = Answer(status=429, body={"error": {"code": "insufficient_quota", "message": "spent"}})


def key_id(key: str) -> str:
    return Endpoint("https://h.test/v1", key).key_id


def prompts(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


def echoes(count: int) -> list[str]:
    return [f"echo: {prompt}" for prompt in prompts(count)]


def asked(server: MockServer) -> Counter[str | None]:
    """Requests by the key that they came with."""
    return Counter((request.header("authorization") or "").removeprefix("Bearer ") for request in server.requests)


def lanes(face: Face) -> dict[tuple[str, str], LaneStats]:
    return {(lane.key_id, lane.model): lane for lane in face.client.stats().lanes}


# ---- who gets which request ----


@pytest.mark.mock_server(latency=0.01)
def test_keys_that_are_equally_ready_share_the_work(make: Make, mock_server: MockServer) -> None:
    face = make(api_key=[A, B, C], max_concurrency=15)
    assert face.batch_complete(prompts(300)) == echoes(300)

    assert asked(mock_server).keys() == {A, B, C}
    assert min(asked(mock_server).values()) > 60


@pytest.mark.mock_server(latency=0.01)
def test_a_weight_is_a_share_of_the_requests_in_flight(make: Make, mock_server: MockServer) -> None:
    endpoints = [Endpoint(mock_server.base_url, A, weight=3), Endpoint(mock_server.base_url, B)]
    make(endpoints=endpoints, max_concurrency=16).batch_complete(prompts(400))

    share = asked(mock_server)[A] / 400
    assert 0.65 < share < 0.85


def test_the_limits_of_each_key_hold_and_add_up() -> None:
    with (
        VirtualClock() as clock,
        MockServer(keys={A: {"requests_per_minute": 60}, B: {"requests_per_minute": 120}}) as server,
    ):
        endpoints = [Endpoint(server.base_url, A, rpm=60), Endpoint(server.base_url, B, rpm=120)]
        with Client(endpoints=endpoints, model="m", timeout=None) as client:
            assert client.batch_complete(prompts(540)) == echoes(540)

        # 180 at once, the other 360 at three a second.
        assert clock.now == pytest.approx(120, rel=0.01)
        assert {key: (stats.requests, stats.rejected_429) for key, stats in server.key_stats.items()} == {
            A: (180, 0),
            B: (360, 0),
        }


def test_limits_that_nobody_told_are_learnt_for_each_key() -> None:
    with (
        VirtualClock() as clock,
        MockServer(keys={A: {"requests_per_minute": 60}, B: {"requests_per_minute": 120}}) as server,
    ):
        with Client(api_key=[A, B], base_url=server.base_url, model="m", timeout=None) as client:
            assert client.batch_complete(prompts(540)) == echoes(540)
            learnt = {lane.key_id: lane.limiter for lane in client.stats().lanes}

        assert clock.now == pytest.approx(120, rel=0.02)
        assert sum(stats.rejected_429 for stats in server.key_stats.values()) <= 10
        for key, amount in [(A, 60), (B, 120)]:
            limiter = learnt[key_id(key)]
            assert limiter is not None
            assert [(limit.unit, limit.per, limit.amount) for limit in limiter.limits] == [("requests", 60, amount)]


def test_a_key_that_was_told_to_wait_leaves_the_work_to_the_others(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=429, headers={"retry-after": "60"}))
    face = make(api_key=[A, B])
    assert face.batch_complete(prompts(20)) == echoes(20)

    refused = mock_server.requests[0].header("authorization")
    later = [request.header("authorization") for request in mock_server.requests if request.status == 200]
    assert refused == f"Bearer {A}"
    assert set(later) == {f"Bearer {B}"} or later.count(refused) < 20, "nobody waits for a minute"
    assert face.client.stats().succeeded == 20


# ---- a key or a server that is lost ----


def test_a_revoked_key_costs_no_item(make: Make) -> None:
    with MockServer(keys={B: {}}) as server:
        face = make(api_key=[A, B], base_url=server.base_url)
        assert face.batch_complete(prompts(200)) == echoes(200)
        lost, kept = lanes(face)[key_id(A), "m"], lanes(face)[key_id(B), "m"]

        assert (lost.succeeded, kept.succeeded) == (0, 200)
        assert 1 <= lost.attempts < 100, "only those that were under way when it was found out"
        assert face.client.stats().failed == 0
        assert face.complete("more") == "echo: more"
        assert asked(server)[A] == lost.attempts, "it is left alone for a minute"


@pytest.mark.mock_server(latency=0.01)
def test_a_spent_quota_costs_no_item(make: Make, mock_server: MockServer) -> None:
    mock_server.script(SPENT)
    face = make(api_key=[A, B], max_concurrency=8)
    assert face.batch_complete(prompts(100)) == echoes(100)

    stats = face.client.stats()
    assert (stats.succeeded, stats.failed, stats.attempts) == (100, 0, 101)
    # The key of the refused request was not asked again by those who came after it.
    refused = mock_server.requests[0].header("authorization")
    last = [request.header("authorization") for request in mock_server.requests[-50:]]
    assert refused not in last


def test_moving_to_another_key_takes_no_wait_and_one_attempt(make: Make, mock_server: MockServer) -> None:
    mock_server.script(SPENT)
    response = make(api_key=[A, B], max_retries=1).create()

    assert response.attempts == 2
    assert response.elapsed < 0.4, "less than a backoff's mean"
    assert asked(mock_server) == {A: 1, B: 1}


def test_no_retries_means_that_nothing_moves_either(make: Make, mock_server: MockServer) -> None:
    mock_server.script(SPENT)
    with pytest.raises(InsufficientQuotaError):
        make(api_key=[A, B], max_retries=0).complete("hi")
    assert mock_server.stats.requests == 1


def test_a_dead_server_costs_no_item(make: Make, mock_server: MockServer) -> None:
    with MockServer() as dead:
        dead.stop()
        face = make(endpoints=[Endpoint(dead.base_url, A), Endpoint(mock_server.base_url, B)])
        assert face.batch_complete(prompts(300)) == echoes(300)

        stats = face.client.stats()
        assert (stats.succeeded, stats.failed, mock_server.stats.requests) == (300, 0, 300)
        assert 1 <= stats.failure_causes.connection == stats.attempts - 300 < 150


def test_a_single_call_goes_round_a_dead_server_at_once(make: Make, mock_server: MockServer) -> None:
    with MockServer() as dead:
        dead.stop()
        face = make(endpoints=[Endpoint(dead.base_url, A), Endpoint(mock_server.base_url, B)])
        attempts = [face.create().attempts for _ in range(20)]

        assert attempts[0] == 2
        assert attempts[-5:] == [1] * 5, "by then the dead one is known"


@pytest.mark.mock_server(latency=0.01)
def test_a_server_that_dies_in_the_middle_costs_no_item(mock_server: MockServer) -> None:
    with MockServer(latency=0.01) as dying:
        endpoints = [Endpoint(dying.base_url, A), Endpoint(mock_server.base_url, B)]

        def stop_in_the_middle() -> None:
            until(lambda: dying.stats.requests >= 50)
            dying.stop()

        killer = threading.Thread(target=stop_in_the_middle)
        killer.start()
        with Client(endpoints=endpoints, model="m", timeout=20) as client:
            assert client.batch_complete(prompts(600)) == echoes(600)
        killer.join()

        assert dying.stats.requests >= 50
        assert client.stats().failed == 0
        assert client.stats().failure_causes.connection >= 1


def test_a_server_that_comes_back_is_asked_again() -> None:
    with VirtualClock() as clock, MockServer() as good, MockServer() as back:
        back.outage(503, seconds=10)
        endpoints = [Endpoint(back.base_url, A), Endpoint(good.base_url, B)]
        with Client(endpoints=endpoints, model="m", timeout=None) as client:
            client.batch_complete(prompts(100))
            assert client.stats().failed == 0
            in_outage = back.stats.requests
            clock.advance(30)
            client.batch_complete(prompts(1000))

        assert back.stats.failed_in_outage == in_outage
        # Slowly at first, while the other takes the rest.
        assert back.stats.requests - in_outage > 200


def test_when_all_keys_are_lost_the_item_gets_its_own_error(make: Make) -> None:
    with MockServer(api_key=KEY) as server:
        face = make(api_key=[A, B, C], base_url=server.base_url)
        with pytest.raises(AuthenticationError) as caught:
            face.complete("hi")
        error = caught.value

        assert (error.status_code, error.attempts, server.stats.requests) == (401, 3, 3)
        assert error.key_id in {key_id(A), key_id(B), key_id(C)}
        assert not any(key in repr(vars(error)) + str(error) for key in (A, B, C))
        # The copy that went through a process pool says the same.
        assert pickle.loads(pickle.dumps(error)).key_id == error.key_id


def test_when_all_keys_are_lost_every_item_of_a_batch_is_told_at_once() -> None:
    with VirtualClock() as clock, MockServer(api_key=KEY) as server:
        with Client(api_key=[A, B], base_url=server.base_url, model="m", timeout=None, max_concurrency=8) as client:
            outcomes = client.batch_complete(prompts(40), return_exceptions=True)

        # Who was under way got the server's own word; the others are not sent, and told so.
        kinds = Counter(type(outcome) for outcome in outcomes)
        assert kinds.keys() == {AuthenticationError, APIConnectionError}
        assert kinds[AuthenticationError] >= 2
        assert all(outcome.key_id in {key_id(A), key_id(B)} for outcome in outcomes if isinstance(outcome, APIError))
        assert clock.now < 1


@pytest.mark.parametrize("keys", [[A], [A, B]], ids=["one", "two"])
def test_an_error_names_the_key_by_its_fingerprint(make: Make, mock_server: MockServer, keys: list[str]) -> None:
    mock_server.script(Answer(status=400))
    with pytest.raises(BadRequestError) as caught:
        make(api_key=keys).complete("hi")

    assert caught.value.key_id == key_id(A)
    assert len(caught.value.key_id) == 8


def test_an_error_of_a_request_that_never_went_out_names_no_key(make: Make, mock_server: MockServer) -> None:
    limiter = RateLimiter(requests_per_minute=1)
    limiter.acquire_blocking()
    with pytest.raises(APIConnectionError) as caught:
        make(rate_limiter=limiter, queue_timeout=0.05).complete("hi")

    assert caught.value.key_id is None
    assert mock_server.stats.requests == 0


# ---- models ----


def test_each_endpoint_has_its_own_names_of_models(make: Make, mock_server: MockServer) -> None:
    face = make(endpoints=[Endpoint(mock_server.base_url, A, model_map={"m": 'deployment "1"'})])
    face.complete('say "m"')
    face.complete("hi", model="other")
    face.batch_complete(["m"])

    assert [request.json()["model"] for request in mock_server.requests] == [
        'deployment "1"',
        "other",
        'deployment "1"',
    ]
    assert mock_server.requests[0].json()["messages"][0]["content"] == 'say "m"'
    assert lanes(face).keys() == {(key_id(A), 'deployment "1"'), (key_id(A), "other")}


def test_an_item_that_moves_takes_the_name_of_the_endpoint_that_it_moves_to(
    make: Make, mock_server: MockServer
) -> None:
    mock_server.script(SPENT)
    endpoints = [
        Endpoint(mock_server.base_url, A, model_map={"m": "a-name"}),
        Endpoint(mock_server.base_url, B, model_map={"m": "b-name"}),
    ]
    make(endpoints=endpoints).complete("hi")

    sent = [(request.header("authorization"), request.json()["model"]) for request in mock_server.requests]
    assert sent == [(f"Bearer {A}", "a-name"), (f"Bearer {B}", "b-name")]


def models(server: MockServer) -> list[str]:
    return [request.json()["model"] for request in server.requests]


def test_another_model_answers_when_the_first_has_failed_every_attempt(make: Make, mock_server: MockServer) -> None:
    mock_server.when('"model":"a"', Answer(status=503, headers={"retry-after-ms": "1"}, times=0))
    response = make(model="a", fallback_models=["b", "c"], max_retries=2).create()

    assert models(mock_server) == ["a", "a", "a", "b"]
    assert (response.model, response.attempts) == ("b", 4)


@pytest.mark.parametrize("status", [402, 403, 404])
def test_a_model_that_is_not_there_or_not_paid_for_is_replaced_at_once(
    make: Make, mock_server: MockServer, status: int
) -> None:
    mock_server.when('"model":"a"', Answer(status=status, times=0))
    assert make(model="a", fallback_models=["b"]).complete("hi") == "echo: hi"
    assert models(mock_server) == ["a", "b"]


@pytest.mark.parametrize("status", [400, 401, 422])
def test_another_model_is_not_asked_what_was_wrong_in_the_request_or_the_key(
    make: Make, mock_server: MockServer, status: int
) -> None:
    mock_server.when('"model":"a"', Answer(status=status, times=0))
    with pytest.raises(APIError) as caught:
        make(model="a", fallback_models=["b"]).complete("hi")

    assert caught.value.status_code == status
    assert models(mock_server) == ["a"]


def test_when_every_model_fails_the_last_ones_error_is_raised(make: Make, mock_server: MockServer) -> None:
    mock_server.when('"model":"a"', Answer(status=404, times=0))
    mock_server.when('"model":"b"', Answer(status=503, headers={"retry-after-ms": "1"}, times=0))
    with pytest.raises(OverloadedError) as caught:
        make(model="a", fallback_models=["a", "b"], max_retries=1).complete("hi")

    assert models(mock_server) == ["a", "b", "b"]
    assert caught.value.attempts == 3


def test_the_items_of_a_batch_fall_back_one_by_one(make: Make, mock_server: MockServer) -> None:
    mock_server.when("item 3", Answer(status=404))
    assert make(model="a", fallback_models=["b"]).batch_complete(prompts(10)) == echoes(10)
    assert Counter(models(mock_server)) == {"a": 10, "b": 1}


def test_a_batch_falls_back_from_a_model_that_is_down() -> None:
    with VirtualClock() as clock, MockServer() as server:
        server.when('"model":"a"', Answer(status=503, times=0))
        with Client(base_url=server.base_url, api_key=A, model="a", fallback_models=["b"]) as client:
            assert client.batch_complete(prompts(50)) == echoes(50)
        assert clock.now < 300


def test_a_derived_client_may_have_other_stand_ins_or_none(make: Make, mock_server: MockServer) -> None:
    mock_server.when('"model":"a"', Answer(status=404, times=0))
    face = make(model="a", fallback_models=["b"])
    with pytest.raises(APIError):
        face.with_options(fallback_models=[]).complete("hi")
    face.with_options(fallback_models=["c"]).complete("hi")

    assert models(mock_server) == ["a", "a", "c"]


# ---- what an Endpoint is ----


def test_an_endpoint_shows_everything_but_its_key() -> None:
    endpoint = Endpoint("https://h.test/v1", A, weight=2, rpm=60, tpm=1000.5, model_map={"m": "n"})

    assert (endpoint.base_url, endpoint.has_key, endpoint.weight) == ("https://h.test/v1", True, 2.0)
    assert (endpoint.rpm, endpoint.tpm, endpoint.model_map) == (60.0, 1000.5, {"m": "n"})
    assert repr(endpoint) == (
        f'Endpoint("https://h.test/v1", api_key=<{endpoint.key_id}>, weight=2, rpm=60, tpm=1000.5)'
    )
    assert not any(A[start : start + 6] in repr(endpoint) for start in range(len(A) - 5))
    with pytest.raises(TypeError):
        vars(endpoint)
    with pytest.raises(AttributeError):
        endpoint.api_key  # type: ignore[attr-defined]


def test_an_endpoint_without_a_key_says_so() -> None:
    endpoint = Endpoint("http://127.0.0.1/v1")
    assert (endpoint.has_key, endpoint.key_id) == (False, "none")
    assert repr(endpoint) == 'Endpoint("http://127.0.0.1/v1", api_key=None, weight=1, rpm=None, tpm=None)'


def test_the_same_key_has_the_same_fingerprint_everywhere(make: Make) -> None:
    assert key_id(A) == key_id(f" {A}\n") != key_id(B)
    face = make(api_key=A)
    face.complete("hi")
    assert face.client.stats().lanes[0].key_id == key_id(A)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_endpoint_is_not_pickled_or_copied(take: Callable[[Endpoint], Any]) -> None:
    with pytest.raises(TypeError, match="holds a key") as caught:
        take(Endpoint("https://h.test/v1", A))
    assert A not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"base_url": "nonsense"}, "base_url"),
        ({"base_url": f"https://user:{A}@h.test"}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": A + "\n\x00"}, "api_key"),
        ({"weight": 0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"rpm": 0}, "rpm"),
        ({"tpm": -1}, "tpm"),
        ({"tpm": float("inf")}, "tpm"),
    ],
)
def test_an_endpoint_is_checked_where_it_is_made(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        Endpoint(**{"base_url": "https://h.test/v1", **arguments})
    assert A not in str(caught.value)


@pytest.mark.parametrize("face", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"endpoints": [Endpoint("http://127.0.0.1/v1", A)], "base_url": "http://127.0.0.1/v1"}, "endpoints"),
        ({"endpoints": [Endpoint("http://127.0.0.1/v1", A)], "api_key": B}, "endpoints"),
        ({"endpoints": []}, "endpoints"),
        ({"api_key": []}, "api_key"),
        ({"api_key": [A, ""]}, "api_key"),
        ({"api_key": [A, B, A]}, "api_key"),
        ({"endpoints": [Endpoint("http://gateway.test/v1", A)]}, "allow_http"),
        ({"fallback_models": [" "], "api_key": A}, "fallback_models"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    face: type[Client | AsyncClient], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        face(model="m", **options)
    assert A not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoints": "https://h.test/v1"},
        {"endpoints": [1]},
        {"api_key": [A, 1]},
        {"fallback_models": "b"},
        {"fallback_models": [1]},
    ],
)
def test_what_is_of_the_wrong_type_is_a_type_error(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        make(**options)


# ---- the environment's key ----


def test_an_endpoint_without_a_key_takes_the_environments_only_for_its_host(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", C)
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    with MockServer() as foreign:
        endpoints = [Endpoint(mock_server.base_url), Endpoint(foreign.base_url), Endpoint(mock_server.base_url, A)]
        face = make(endpoints=endpoints, max_concurrency=12)
        face.batch_complete(prompts(120))

        assert asked(mock_server).keys() == {C, A}
        assert asked(foreign).keys() == {""}
        assert not any(C in str(request.headers) for request in foreign.requests)
    assert not endpoints[0].has_key, "the caller's own is as it was"


def test_openai_without_a_key_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        Client(endpoints=[Endpoint("http://127.0.0.1/v1"), Endpoint("https://api.openai.com/v1")], model="m")


# ---- the user's own headers ----


def test_own_headers_go_to_every_endpoint_and_over_the_keys(make: Make, mock_server: MockServer) -> None:
    with MockServer() as other:
        endpoints = [Endpoint(mock_server.base_url, A), Endpoint(other.base_url, B)]
        face = make(endpoints=endpoints, default_headers={"X-Team": "t", "x-api-key": C}, max_concurrency=8)
        face.batch_complete(prompts(80))

        for server, key in [(mock_server, A), (other, B)]:
            request = last_request(server)
            assert (request.header("x-team"), request.header("x-api-key")) == ("t", C)
            assert request.header("authorization") == f"Bearer {key}"


def test_a_secret_header_is_refused_if_any_endpoint_would_send_it_readable(make: Make, mock_server: MockServer) -> None:
    endpoints = [Endpoint(mock_server.base_url), Endpoint("http://gateway.test/v1")]
    with pytest.raises(ConfigurationError, match="allow_http") as caught:
        make(endpoints=endpoints, default_headers={"x-api-key": C})
    assert C not in str(caught.value)
    face = make(endpoints=endpoints)
    with pytest.raises(ConfigurationError, match="allow_http"):
        face.complete("hi", extra_headers={"Authorization": f"Bearer {C}"})
    assert mock_server.stats.requests == 0


def test_a_secret_header_that_one_of_several_servers_echoes_is_masked(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, body={"error": {"message": f"bad {C} and {A}"}}))
    endpoints = [Endpoint(mock_server.base_url, A), Endpoint("http://127.0.0.1:9/v1", B)]
    with pytest.raises(BadRequestError) as caught:
        make(endpoints=endpoints, default_headers={"x-api-key": C}).complete("hi")
    assert str(caught.value).count("***") == 2
    assert not any(key in repr(vars(caught.value)) for key in (A, C))


# ---- derived clients ----


def test_a_derived_client_shares_keys_connections_and_what_was_learnt(make: Make) -> None:
    with MockServer(keys={key: {"requests_per_minute": 600} for key in (A, B)}) as server:
        face = make(api_key=[A, B], base_url=server.base_url, max_concurrency=8)
        face.batch_complete(prompts(40))
        connections = server.stats.connections
        other = face.with_options(timeout=5, max_retries=1, model="m")
        other.batch_complete(prompts(40))

        assert server.stats.connections == connections
        assert asked(server).keys() == {A, B}
        for lane in other.client.stats().lanes:
            assert lane.limiter is not None
            (limit,) = lane.limiter.limits
            assert limit.amount == 600
            assert limit.level < 600 - lane.attempts + 10, "both clients' requests are off it"


@pytest.mark.parametrize("suffix", ["", "/"], ids=["bare", "slash"])
def test_a_derived_client_keeps_all_keys_whatever_else_it_changes(
    make: Make, mock_server: MockServer, suffix: str
) -> None:
    url = mock_server.root_url.replace("http://", "HTTP://") + "/v1" + suffix
    face = make(api_key=[A, B], base_url=url, max_concurrency=8)
    for options in ({"model": "n"}, {"default_headers": {"X-Team": "t"}}, {"base_url": mock_server.base_url}):
        mock_server.clear()
        face.with_options(**options).batch_complete(prompts(40))
        assert asked(mock_server).keys() == {A, B}, options


def test_a_derived_client_with_other_headers_keeps_every_endpoint(make: Make, mock_server: MockServer) -> None:
    with MockServer() as other:
        endpoints = [
            Endpoint(mock_server.base_url, A, weight=3, model_map={"m": "a-name"}),
            Endpoint(other.base_url, B, rpm=6000),
        ]
        face = make(endpoints=endpoints, max_concurrency=8).with_options(default_headers={"X-Team": "t"})
        face.batch_complete(prompts(80))

        assert (asked(mock_server).keys(), asked(other).keys()) == ({A}, {B})
        assert set(models(mock_server)) == {"a-name"}
        assert last_request(other).header("x-team") == "t"


def test_a_derived_client_with_another_key_or_server_knows_nothing_of_the_limits(make: Make) -> None:
    with MockServer(requests_per_minute=600) as server, MockServer(requests_per_minute=60) as other:
        face = make(api_key=[A, B], base_url=server.base_url)
        face.batch_complete(prompts(30))
        rekeyed = face.with_options(api_key=C)
        rekeyed.complete("hi")
        moved = face.with_options(base_url=other.base_url)
        moved.complete("hi")

        assert asked(server)[C] == 1
        # Counters are the family's, so the new key has a lane of its own beside the others.
        assert lanes(rekeyed)[key_id(C), "m"].attempts == 1
        assert asked(other) in ({A: 1}, {B: 1}), "an explicit key goes along"


def test_the_keys_of_endpoints_stay_with_their_hosts(make: Make, mock_server: MockServer) -> None:
    with MockServer() as other:
        other_name = other.base_url.replace("127.0.0.1", "localhost")
        face = make(endpoints=[Endpoint(mock_server.base_url, A), Endpoint(mock_server.base_url, B)])
        face.with_options(base_url=other_name).complete("hi")
        assert last_request(other).header("authorization") is None
        face.with_options(base_url=other_name, api_key=C).complete("hi")
        assert last_request(other).header("authorization") == f"Bearer {C}"


# ---- statistics ----


def test_every_key_with_every_model_is_a_lane(make: Make) -> None:
    with MockServer(keys={key: {"requests_per_minute": 600} for key in (A, B)}) as server:
        face = make(api_key=[A, B], base_url=server.base_url, max_concurrency=8)
        for model in ("m", "n"):
            face.batch_complete(prompts(20), model=model)
        stats = face.client.stats()

        assert set(lanes(face)) == {(key_id(key), model) for key in (A, B) for model in ("m", "n")}
        assert sum(lane.attempts for lane in stats.lanes) == stats.attempts == 40
        assert {key: server.key_stats[key].requests for key in (A, B)} == {
            key: sum(lane.attempts for lane in stats.lanes if lane.key_id == key_id(key)) for key in (A, B)
        }
        assert all(lane.limiter is not None and lane.limiter.limits[0].amount == 600 for lane in stats.lanes)


def test_nothing_learnt_is_none(make: Make, mock_server: MockServer) -> None:
    face = make()
    face.complete("hi")
    assert lanes(face)[key_id(KEY), "m"].limiter is None
    assert face.client.stats().limiter is None
    with_limiter = make(rate_limiter=RateLimiter(requests_per_minute=60))
    with_limiter.complete("hi")
    limiter = with_limiter.client.stats().limiter
    assert limiter is not None
    assert (limiter.limits[0].amount, round(limiter.limits[0].level)) == (60, 59)


@pytest.mark.parametrize(("given", "limit"), [(None, 64), ("auto", 64), (1, 1), (500, 500)])
def test_the_window_is_fixed_or_finds_its_size(make: Make, given: Any, limit: int) -> None:
    face = make(max_concurrency=given)
    face.complete("hi")
    window = face.client.stats().concurrency
    assert (window.limit, window.in_flight, window.waiting) == (limit, 0, 0)


@pytest.mark.mock_server(latency=0.1)
@pytest.mark.parametrize(("given", "of_the_batch", "most"), [(None, 200, 200), ("auto", 5, 5), (3, 200, 3)])
def test_a_batchs_own_number_holds_and_replaces_only_a_window_that_nobody_asked_for(
    make: Make, mock_server: MockServer, given: Any, of_the_batch: int, most: int
) -> None:
    make(max_concurrency=given).batch_complete(prompts(min(200, 8 * most)), max_concurrent=of_the_batch)
    assert mock_server.stats.max_in_flight == most


def test_keys_hold_in_gathered_calls_too() -> None:
    async def ask(server: MockServer) -> list[str]:
        async with AsyncClient(api_key=[A, B], base_url=server.base_url, model="m") as client:
            return await asyncio.gather(*(client.complete(prompt) for prompt in prompts(100)))

    with MockServer(keys={B: {}}) as server:
        assert asyncio.run(ask(server)) == echoes(100)
        assert server.key_stats[B].requests == 100
