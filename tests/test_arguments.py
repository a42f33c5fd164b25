"""Arguments that are wrong are refused before anything is sent, by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, run_python
from millstream import (
    AdaptiveBatchPolicy,
    Client,
    CompletionConfig,
    ConfigurationError,
    RateLimiter,
    RetryPolicy,
    Timeout,
)
from millstream._providers import environment_key
from millstream.testing import MockServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face

    Make = Callable[..., Face]

OF_A_CLIENT = [
    ("model", 5, "a str"),
    ("config", {}, "CompletionConfig"),
    ("timeout", "5", "a number of seconds"),
    ("connect_timeout", "5", "a number of seconds"),
    ("queue_timeout", "10", "a number of seconds"),
    ("max_retries", "3", "an int"),
    ("max_retries", 1.5, "an int"),
    ("retry", 3, "RetryPolicy"),
    ("max_concurrency", "10", None),
    ("max_concurrency", 1.5, "an int"),
    ("rate_limiter", 60, "RateLimiter"),
    ("hedge_after", [], "a number of seconds"),
    ("fallback_models", "m", "a list of names"),
    ("fallback_models", 5, "a list of names"),
    ("default_headers", ["x"], "a dict of names and values"),
    ("api_key", 5, "a str"),
    ("api_key", b"sk-0123456789", "a str"),
    ("idempotency_key", "yes", "True or False"),
    ("http2", 1, "True or False"),
    ("allow_http", None, "True or False"),
    ("endpoints", 5, "a list of Endpoint"),
    ("provider", 5, "a str"),
    ("auth", 5, "a str"),
    ("api_version", 5, "a str"),
]

# Of the constructor alone.
OWN = ("provider", "auth", "api_version", "http2", "allow_http", "endpoints", "connect_timeout")


@pytest.mark.parametrize(("name", "value", "wanted"), OF_A_CLIENT)
def test_a_client_names_the_argument_of_the_wrong_type(make: Make, name: str, value: Any, wanted: str | None) -> None:
    # A word where a number or "auto" may stand is of the right type.
    refused = ConfigurationError if wanted is None else TypeError
    with pytest.raises(refused, match=f"^{name} must be .*{wanted or 'auto'}"):
        make(**{"api_key": KEY, name: value} if name != "endpoints" else {name: value})


@pytest.mark.parametrize(("name", "value", "wanted"), [each for each in OF_A_CLIENT if each[2] and each[0] not in OWN])
def test_so_does_with_options(face: Face, name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
        face.with_options(**{name: value})


OF_A_CALL = [
    ("model", 5, "a str"),
    ("system", 5, "a str"),
    ("config", {}, "CompletionConfig"),
    ("timeout", "5", "a number of seconds"),
    ("queue_timeout", "10", "a number of seconds"),
    ("priority", "high", "an int"),
    ("priority", None, "an int"),
    ("extra_headers", 5, "a dict of names and values"),
    ("extra_headers", ["x"], "a dict of names and values"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), OF_A_CALL)
def test_a_call_names_the_argument_of_the_wrong_type(
    face: Face, mock_server: MockServer, name: str, value: Any, wanted: str
) -> None:
    for call in (lambda: face.complete("hi", **{name: value}), lambda: face.batch_complete(["hi"], **{name: value})):
        with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
            call()
    if name not in ("system", "config"):
        with pytest.raises(TypeError, match=f"^{name} must be .*{wanted}"):
            face.create(**{name: value})
    assert mock_server.stats.requests == 0


def test_a_batch_names_its_own_too(face: Face) -> None:
    with pytest.raises(TypeError, match=r"^max_concurrent must be an int or None, not str"):
        face.batch_complete(["hi"], max_concurrent="10")


@pytest.mark.parametrize(
    ("make_it", "name"),
    [
        (lambda: Timeout("5"), "timeout.total"),  # type: ignore[arg-type]
        (lambda: Timeout(idle="5"), "timeout.idle"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_retries="3"), "max_retries"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_retries=None), "max_retries"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(base_delay="1"), "base_delay"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(statuses=503), "statuses"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute="60"), "requests_per_minute"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).try_acquire("1"), "requests"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).acquire_blocking(max_wait="1"), "max_wait"),  # type: ignore[arg-type]
        (lambda: RateLimiter(requests_per_minute=60).acquire_blocking(priority="1"), "priority"),  # type: ignore[arg-type]
        (lambda: AdaptiveBatchPolicy(initial_batch_size="1"), "initial_batch_size"),  # type: ignore[arg-type]
        (lambda: AdaptiveBatchPolicy().record("1", 1.0, 1, 0), "size"),  # type: ignore[arg-type]
        (lambda: MockServer(requests_per_minute="60"), "requests_per_minute"),  # type: ignore[arg-type]
        (lambda: MockServer(port="80"), "port"),  # type: ignore[arg-type]
    ],
)
def test_the_other_classes_do_too(make_it: Callable[[], object], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be "):
        make_it()


@pytest.mark.parametrize(
    ("make_it", "name"),
    [
        (lambda: MockServer(requests_per_minute=-1), "requests_per_minute"),
        (lambda: MockServer(keys={"k": {"tokens_per_minute": -1}}), "tokens_per_minute"),
        (lambda: MockServer(port=70_000), "port"),
        (lambda: MockServer(slots=-1), "slots"),
        (lambda: Client(api_key=KEY, max_retries=2**70), "max_retries"),
        (lambda: Client(api_key=KEY, model="m").complete("hi", priority=2**31), "priority"),
        (lambda: RetryPolicy(max_retries=-(2**70)), "max_retries"),
    ],
)
def test_a_number_out_of_range_is_named(make_it: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be at "):
        make_it()


class Number:
    """Like one of numpy's."""

    def __index__(self) -> int:
        return 3

    def __float__(self) -> float:
        return 3.0


def test_what_knows_itself_as_a_number_is_one(make: Make) -> None:
    face = make(max_retries=Number(), timeout=Number(), max_concurrency=Number())
    assert face.complete("hi", priority=Number(), queue_timeout=Number()) == "echo: hi"
    assert RateLimiter(requests_per_minute=60).try_acquire(Number()).requests == 3  # type: ignore[arg-type,union-attr]


# ---- misspelt ----


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_concurent", "max_concurrent"),
        ("time_out", "timeout"),
        ("retries", "max_retries"),
        ("sytem", "system"),
        ("prioritys", "priority"),
        ("extra_header", "extra_headers"),
    ],
)
def test_a_misspelt_argument_is_not_sent_to_the_server(
    face: Face, mock_server: MockServer, written: str, meant: str
) -> None:
    for call in (
        lambda: face.complete("hi", **{written: 5}),
        lambda: face.batch_complete(["hi"], **{written: 5}),
        lambda: face.create(**{written: 5}),
    ):
        with pytest.raises(ConfigurationError, match=rf"^{written}= .* did you mean {meant}=\?"):
            call()
    assert mock_server.stats.requests == 0


def test_an_argument_that_create_does_not_have_is_not_sent_either(face: Face) -> None:
    with pytest.raises(ConfigurationError, match=r"^system= is not a parameter of this call"):
        face.create(system="Be brief.")


def test_fields_of_servers_go_through_untouched(face: Face, mock_server: MockServer) -> None:
    # OpenAI's own, those of others, and a misspelling of one: that is the server's business.
    fields = {
        "temprature": 1,
        "top_k": 1,
        "cache_prompt": True,
        "models": ["m"],
        "stop": "x",
        "min_p": 0.1,
        "user": "u",
    }
    face.complete("hi", **fields)
    face.complete("hi", config=CompletionConfig(extra={"sytem": 1, **fields}))
    face.create(extra_body={"sytem": 1, "time_out": 2, "retries": 3, **fields})
    sent = [request.json() for request in mock_server.requests]
    assert all(fields.items() <= body.items() for body in sent)
    assert [body.get("sytem") for body in sent] == [None, 1, 1]


def test_difflib_is_not_imported_for_fields_of_openai(mock_server: MockServer) -> None:
    code = """
import sys
from millstream import Client
client = Client(api_key="k", base_url=sys.argv[1], model="m")
client.complete("hi", temperature=1, response_format={"type": "text"})
assert "difflib" not in sys.modules
client.complete("hi", top_k=1)
assert "difflib" in sys.modules
"""
    done = run_python(code, mock_server.base_url)
    assert (done.returncode, done.stderr) == (0, "")


# ---- hosts ----


def test_the_default_port_is_the_same_host_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for one, other in [("https://h.test/v1", "https://h.test:443/v2"), ("http://h.test:80", "http://h.test/v1")]:
        for here, there in ((one, other), (other, one)):
            monkeypatch.setenv("OPENAI_BASE_URL", there)
            assert environment_key("openai", here, None) == ("OPENAI_API_KEY", None)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://h.test/v1")
    for other in ("https://h.test:444/v1", "http://h.test:443/v1", "http://h.test/v1"):
        assert environment_key("openai", other, None) is None
