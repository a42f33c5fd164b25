"""Whatever a server makes of HTTP/1.1, a call ends in the right answer or in our own error, in time and once paid."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from fault_server import echo, fault_server, with_length
from helpers import KEY, until
from http_faults import CASES
from millstream import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    Client,
    DeadlineExceeded,
    RetryPolicy,
    StreamInterruptedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault_server import FaultServer, Wire
    from http_faults import Outcome

SHORT_S = 0.6
"""The timeout of a call that ends with it."""

GENEROUS_S = 15.0
"""More than any of these calls may take, also on a machine that does other things."""

PATIENT = RetryPolicy(max_retries=20, base_delay=0.001)

KINDS: dict[str, type[APIError]] = {
    "connection": APIConnectionError,
    "invalid": APIResponseValidationError,
    "refused": APIResponseValidationError,
    "deadline": DeadlineExceeded,
}
RETRIED = {"connection", "invalid", "interrupted"}


def client_of(server: FaultServer, outcome: Outcome, **options: Any) -> Client:
    timeout = SHORT_S if outcome == "deadline" else GENEROUS_S
    policy = RetryPolicy(max_retries=1, base_delay=0.001)
    defaults = {"timeout": timeout, "retry": policy, "connect_timeout": 10}
    return Client(base_url=server.base_url, api_key=KEY, model="m", **{**defaults, **options})


def outcome_of(call: Callable[[], str]) -> tuple[str | APIError, float]:
    """The text or the error, and the seconds it took. Anything but our own error goes through."""
    began = time.monotonic()
    try:
        result: str | APIError = call()
    except APIError as error:
        result = error
    return result, time.monotonic() - began


def check_error(error: Any, outcome: Outcome, server: FaultServer, *, attempts: int) -> None:
    kind = KINDS[outcome]
    assert type(error) is kind, repr(error)
    assert error.attempts == attempts
    assert error.retryable is (outcome != "refused")
    assert len(str(error)) < 1500
    assert str(error).isprintable()


def names() -> list[Any]:
    return [pytest.param(name, id=name.replace(" ", "-")) for name in CASES]


@pytest.fixture
def whole_afterwards() -> Callable[[Client, FaultServer], None]:
    """Checks that a client works on, and that it leaves no connection."""

    def check(client: Client, server: FaultServer) -> None:
        server.heal()
        patient = client.with_options(timeout=GENEROUS_S, retry=RetryPolicy(max_retries=1, base_delay=0.001))
        assert [patient.complete(f"after {turn}") for turn in range(3)] == [echo(f"after {turn}") for turn in range(3)]
        assert client.stats().in_flight == 0
        # They share their connections, which stay for as long as one of them may ask.
        patient.close()
        client.close()
        until(lambda: server.open == 0)

    return check


@pytest.mark.parametrize("name", names())
def test_a_fault_that_stays_ends_in_the_answer_or_in_our_own_error(
    name: str, whole_afterwards: Callable[[Client, FaultServer], None]
) -> None:
    case = CASES[name]
    with fault_server(case.act, at=case.at) as server:
        client = client_of(server, case.gives)
        result, seconds = outcome_of(lambda: client.complete("hi"))

        assert seconds < GENEROUS_S
        sent = 2 if case.gives in RETRIED else 1
        if case.gives == "answer":
            assert result == echo("hi")
        else:
            check_error(result, case.gives, server, attempts=sent)
        if case.at == "request":
            assert len(server.requests) == sent
        assert client.stats().attempts == sent
        whole_afterwards(client, server)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gives in RETRIED])
def test_a_fault_that_passes_costs_one_attempt(
    name: str, whole_afterwards: Callable[[Client, FaultServer], None]
) -> None:
    case = CASES[name]
    with fault_server(case.act, at=case.at, times=1) as server:
        client = client_of(server, case.gives)
        assert client.complete("hi") == echo("hi")
        assert len(server.requests) == (2 if case.at == "request" else 1)
        whole_afterwards(client, server)


def read(client: Client, prompt: str) -> tuple[str, APIError | None]:
    """What a stream hands out, and the error that it ends with."""
    text = ""
    try:
        for piece in client.stream_complete(prompt):
            text += piece
    except APIError as error:
        return text, error
    return text, None


@pytest.mark.parametrize("name", names())
def test_a_stream_ends_in_the_whole_text_or_in_our_own_error(
    name: str, whole_afterwards: Callable[[Client, FaultServer], None]
) -> None:
    case = CASES[name]
    with fault_server(case.act, at=case.at) as server:
        client = client_of(server, case.of_stream)
        began = time.monotonic()
        text, error = read(client, "hi")

        assert time.monotonic() - began < GENEROUS_S
        if case.of_stream == "answer":
            assert (text, error) == (echo("hi"), None)
        elif case.of_stream == "interrupted":
            # What was handed out is in the error, and is not asked for again.
            assert isinstance(error, StreamInterruptedError), repr(error)
            assert (error.partial or "") == text
            assert echo("hi").startswith(text)
            assert error.attempts == (1 if text else 2)
        else:
            assert text == (error.partial or "" if error else "")
            kind = StreamInterruptedError if isinstance(error, StreamInterruptedError) else KINDS[case.of_stream]
            assert type(error) is kind, repr(error)
        if case.at == "request" and error is not None:
            assert len(server.requests) == error.attempts
        whole_afterwards(client, server)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.of_stream != "deadline"])
def test_a_stream_that_fails_once_is_whole_or_says_what_is_missing(name: str) -> None:
    case = CASES[name]
    with fault_server(case.act, at=case.at, times=1) as server, client_of(server, case.of_stream) as client:
        text, error = read(client, "hi")
        if error is None:
            assert text == echo("hi")
        else:
            assert (error.partial or "") == text
            assert text or not error.retryable, "nothing was handed out, so it could have been asked again"


@pytest.mark.parametrize("name", names())
def test_the_items_of_a_batch_are_each_answered_once_around_a_fault(
    name: str, whole_afterwards: Callable[[Client, FaultServer], None]
) -> None:
    case = CASES[name]
    prompts = [f"item {index}" for index in range(9)]
    with fault_server(case.act, at=case.at, times=3) as server:
        client = client_of(server, case.gives)
        results = client.batch_complete(prompts, max_concurrent=3, return_exceptions=True)

        failed = [result for result in results if not isinstance(result, str)]
        for prompt, result in zip(prompts, results, strict=True):
            assert result == echo(prompt) if isinstance(result, str) else isinstance(result, KINDS[case.gives])
        # What is asked again is answered; the others fail alone.
        assert len(failed) <= (0 if case.gives in RETRIED or case.gives == "answer" else 3)
        sent = Counter(
            json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"] for request in server.requests
        )
        # An item that met the fault twice was asked three times; no other was asked more than needed.
        assert sum(sent.values()) <= len(prompts) + (3 if case.gives in RETRIED else 0)
        assert set(sent) <= set(prompts)
        whole_afterwards(client, server)


# ---- between two answers ----


NOBODY_ASKED: dict[str, bytes] = {
    "an answer": with_length(b'{"choices":[{"index":0,"message":{"role":"assistant","content":"evil"}}]}'),
    "a timeout of HAProxy": b"HTTP/1.0 408 Request Time-out\r\nConnection: close\r\n\r\n<html>408</html>",
    "garbage": b"\x00\xff" * 100,
    "a line": b"\r\n",
    "an informational answer": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("name", NOBODY_ASKED)
def test_what_nobody_asked_for_is_nobodys_answer(name: str) -> None:
    """Bytes on a connection that is idle, as a confused server or a gateway sends them.

    They have come before the next call begins. What comes after it has left cannot be told from its answer: HTTP/1.1
    has no names for answers.
    """
    sent = 0

    def act(wire: Wire) -> None:
        nonlocal sent
        while True:
            wire.read_request()
            wire.answer_well()
            wire.send(NOBODY_ASKED[name])
            sent += 1

    with fault_server(act, at="accept") as server, client_of(server, "answer") as client:
        for turn in range(20):
            assert client.complete(f"turn {turn}") == echo(f"turn {turn}")
            until(lambda: sent == turn + 1)


def test_garbage_between_answers_costs_a_batch_no_item() -> None:
    def act(wire: Wire) -> None:
        while True:
            wire.read_request()
            wire.answer_well()
            wire.send(NOBODY_ASKED["garbage"])

    prompts = [f"prompt {index}" for index in range(100)]
    with fault_server(act, at="accept") as server, client_of(server, "answer", retry=PATIENT) as client:
        assert client.batch_complete(prompts, max_concurrent=4) == [echo(prompt) for prompt in prompts]


@pytest.mark.parametrize("how", ["finish", "reset", "half"])
def test_a_connection_that_ends_in_the_moment_of_its_reuse_costs_no_retry(how: str) -> None:
    """Each connection serves one answer; the second request on it is met by its end."""

    def act(wire: Wire) -> None:
        wire.read_request()
        wire.answer_well()
        if how == "half":
            wire.read_head()
        if how != "finish":
            wire.reset()

    with fault_server(act, at="accept") as server:
        policy = RetryPolicy(max_retries=0)
        with client_of(server, "answer", retry=policy) as client:
            assert [client.complete(f"turn {turn}") for turn in range(10)] == [
                echo(f"turn {turn}") for turn in range(10)
            ]
        assert len(server.requests) == 10


@pytest.mark.parametrize("status", [400, 401, 413, 429, 500])
def test_an_answer_before_the_end_of_the_request_is_read(status: int) -> None:
    """A gateway refuses a large request by its head alone, and closes: the refusal counts, not the broken pipe."""

    def act(wire: Wire) -> None:
        wire.server.saw(wire.read_head())
        wire.send(with_length(b'{"error":{"message":"early"}}', "Connection: close", status=f"{status} Early"))
        wire.finish()

    with fault_server(act, at="accept") as server, client_of(server, "answer") as client:
        with pytest.raises(APIError, match="early") as caught:
            client.complete("x" * (8 << 20))
        assert caught.value.status_code == status
        assert caught.value.attempts == len(server.requests) == (2 if status in (429, 500) else 1)
