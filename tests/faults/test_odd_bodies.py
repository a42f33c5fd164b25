"""Odd but legal is an answer, and what only looks like one is none: over sockets, against what is written as right."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY
from millstream import APIError, APIResponseValidationError, AsyncClient, BadRequestError, Client, RetryPolicy
from millstream.testing import Answer, MockServer
from odd_bodies import ANSWERS, ERRORS, NONE
from odd_streams import STREAMS, Cut

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer() as server:
        yield server


@pytest.fixture
def client(server: MockServer) -> Iterator[Client]:
    server.clear()
    policy = RetryPolicy(max_retries=1, base_delay=0.001)
    with Client(base_url=server.base_url, api_key=KEY, model="m", timeout=20, retry=policy) as client:
        yield client


def test_the_tables_are_as_long_as_they_ought_to_be() -> None:
    assert len(ANSWERS) + len(ERRORS) + len(STREAMS) >= 200


def result_of(call: Any) -> Any:
    try:
        return call()
    except APIError as error:
        return error


@pytest.mark.parametrize("name", ANSWERS)
def test_a_body_is_the_answer_that_it_is_or_none(client: Client, server: MockServer, name: str) -> None:
    body, right = ANSWERS[name]
    server.script(Answer(body=body, times=0))
    text = result_of(lambda: client.complete("hi"))
    whole = result_of(lambda: client.chat.completions.create(messages=[{"role": "user", "content": "hi"}]))
    (item,) = client.batch_complete(["hi"], return_exceptions=True)

    if right is NONE:
        for error in (text, whole, item):
            assert type(error) is APIResponseValidationError, repr(error)
            assert (error.attempts, error.retryable) == (2, True)
            assert str(error).isprintable()
        assert server.stats.requests == 6
        return
    assert (text, item) == (right, right)
    assert whole.text == right
    assert server.stats.requests == 3
    # Nothing that is read of the record later fails either.
    assert isinstance(whole.to_dict(), dict)
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert repr(whole)
    for choice in whole.choices:
        assert choice.message.tool_calls is None or list(choice.message.tool_calls) is not None
    assert client.stats().attempts == 3


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_read_as_far_as_it_goes(client: Client, server: MockServer, name: str) -> None:
    body, said = ERRORS[name]
    server.script(Answer(status=400, body=body))
    with pytest.raises(BadRequestError) as caught:
        client.complete("hi")
    error = caught.value
    assert said in str(error)
    assert str(error).isprintable()
    assert len(str(error).encode()) <= 4096
    assert (error.status_code, error.attempts, error.retryable) == (400, 1, False)
    assert str(pickle.loads(pickle.dumps(error)).body) == str(error.body)


def test_a_quota_that_is_used_up_is_known_in_a_list_too(client: Client, server: MockServer) -> None:
    server.script(Answer(status=429, body=b'[{"error":{"message":"said","code":"insufficient_quota"}}]'))
    error = result_of(lambda: client.complete("hi"))
    assert (type(error).__name__, error.attempts) == ("InsufficientQuotaError", 1)


def streamed(client: Client) -> tuple[str, APIError | None]:
    text = ""
    try:
        for piece in client.stream_complete("hi"):
            text += piece
    except APIError as error:
        return text, error
    return text, None


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_whole_or_says_what_is_missing(client: Client, server: MockServer, name: str) -> None:
    body, right = STREAMS[name]
    server.script(Answer(body=body, headers={"content-type": "text/event-stream"}, times=0))
    text, error = streamed(client)

    if isinstance(right, str):
        assert error is None, repr(error)
        assert text == right
        assert server.stats.requests == 1
        return
    assert isinstance(error, APIError)
    assert str(error).isprintable()
    assert text == (right.text if isinstance(right, Cut) else "")
    if isinstance(right, Cut):
        # What was handed out is in the error, and is not asked for again.
        assert (error.partial, error.attempts, server.stats.requests) == (text, 1, 1)
    else:
        assert error.partial in (None, "")
        assert error.attempts == server.stats.requests == 2


async def test_a_stream_reads_the_same_when_it_is_awaited(server: MockServer) -> None:
    for name, (body, right) in STREAMS.items():
        server.clear()
        server.script(Answer(body=body, headers={"content-type": "text/event-stream"}))
        # One for each, or the server would be taken for one that fails everybody.
        async with AsyncClient(base_url=server.base_url, api_key=KEY, model="m", timeout=20, max_retries=0) as client:
            text, failed = "", None
            try:
                async for piece in client.stream_complete("hi"):
                    text += piece
            except APIError as error:
                failed = error
            assert (failed is None) is isinstance(right, str), (name, failed)
            assert failed is None or (failed.partial or "") == text, name
            assert text == (right if isinstance(right, str) else right.text if right else ""), name


def test_counts_that_overflow_are_only_large(client: Client, server: MockServer) -> None:
    """Two models of one client, each with all the tokens that there are."""
    server.script(Answer(body=ANSWERS["the largest usage there is"][0], times=0))
    for model in ("one", "two"):
        assert client.complete("hi", model=model) == "fine"
    stats = client.stats()
    assert stats.prompt_tokens == stats.completion_tokens == 2**64 - 1
    with Client(base_url=server.base_url, api_key=KEY, model="m", cache="memory") as cached:
        for _ in range(4):
            assert cached.complete("hi", temperature=0) == "fine"
