"""What can go wrong above the frames of HTTP/2, and that a request which the server never looked at costs no retry."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from child import Child
from fault_server import echo

h2 = pytest.importorskip("h2")
trustme = pytest.importorskip("trustme")

from h2.errors import ErrorCodes  # noqa: E402
from http2_server import Http2Connection, http2_server  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One process asks for all tests: which certificates are trusted is read once in it.
CLIENT = """
import json, sys
from millstream import APIError, Client, RetryPolicy

for line in sys.stdin:
    ask = json.loads(line)
    policy = RetryPolicy(max_retries=ask["retries"], base_delay=0.001)
    with Client(api_key="sk-test", base_url=ask["base_url"], model="m", http2=True, timeout=ask["timeout"],
                retry=policy) as client:
        if ask["warm"]:
            client.complete("before")
        results = []
        for result in client.batch_complete(ask["prompts"], return_exceptions=True, max_concurrent=8):
            if isinstance(result, str):
                results.append(result)
            elif isinstance(result, APIError):
                results.append([type(result).__name__, result.attempts, result.retryable])
            else:
                results.append(repr(result))
        after = client.complete("after") if ask["heals"] else None
        print(json.dumps([results, after]), flush=True)
"""


class Asker:
    def __init__(self, child: Child) -> None:
        self._child = child

    def __call__(self, server: Any, *prompts: str, heals: bool = True, **options: Any) -> Any:
        ask = {"base_url": server.base_url, "prompts": prompts, "retries": 0, "timeout": 15, "warm": False}
        self._child.say(json.dumps(ask | {"heals": heals} | options))
        results, after = json.loads(self._child.line())
        assert after == (echo("after") if heals else None)
        return results


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@pytest.fixture(scope="module")
def ask(authority: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    bundle = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(bundle)
    try:
        with Child(CLIENT) as child:
            yield Asker(child)
    finally:
        os.environ.pop("SSL_CERT_FILE")
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before


def reset(code: ErrorCodes) -> Callable[[Http2Connection, int], None]:
    def act(connection: Http2Connection, stream: int) -> None:
        connection.h2.reset_stream(stream, code)
        connection.flush()

    return act


def go_away(code: ErrorCodes, *, up_to: int = 0) -> Callable[[Http2Connection, int], None]:
    def act(connection: Http2Connection, stream: int) -> None:
        connection.h2.close_connection(code, last_stream_id=up_to)
        connection.flush()
        connection.end()

    return act


def half_a_body(connection: Http2Connection, stream: int) -> None:
    connection.head(stream)
    connection.h2.send_data(stream, connection.body(stream)[:20])
    connection.flush()


def then(*acts: Callable[[Http2Connection, int], None]) -> Callable[[Http2Connection, int], None]:
    def act(connection: Http2Connection, stream: int) -> None:
        for each in acts:
            each(connection, stream)

    return act


def close(connection: Http2Connection, stream: int) -> None:
    connection.is_over = True


def flood_of_headers(connection: Http2Connection, stream: int) -> None:
    connection.head(stream, *((f"x-{number}", "a" * 1000) for number in range(100)))
    connection.flush()


def garbage(connection: Http2Connection, stream: int) -> None:
    connection.raw.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 10)
    connection.is_over = True


def answer_longer_than_its_length(connection: Http2Connection, stream: int) -> None:
    connection.head(stream, ("content-length", "5"))
    connection.h2.send_data(stream, connection.body(stream), end_stream=True)
    connection.flush()


def silence(connection: Http2Connection, stream: int) -> None: ...


UNPROCESSED = {
    "a refused stream": reset(ErrorCodes.REFUSED_STREAM),
    "a GOAWAY before the request": go_away(ErrorCodes.NO_ERROR),
}

BROKEN = {
    "an internal error": reset(ErrorCodes.INTERNAL_ERROR),
    "a cancelled stream": reset(ErrorCodes.CANCEL),
    "a server that wants calm": reset(ErrorCodes.ENHANCE_YOUR_CALM),
    "a GOAWAY for a fault": go_away(ErrorCodes.PROTOCOL_ERROR),
    "an end in the body": then(half_a_body, close),
    "a reset in the body": then(half_a_body, reset(ErrorCodes.INTERNAL_ERROR)),
    "an end before the head": close,
    "100 kB of headers": flood_of_headers,
    "bytes that are no frame": garbage,
}


@pytest.mark.parametrize("name", UNPROCESSED)
def test_a_request_that_the_server_did_not_look_at_is_sent_again_for_free(
    ask: Asker, authority: Any, name: str
) -> None:
    with http2_server(authority, UNPROCESSED[name], times=1) as server:
        assert ask(server, "hi") == [echo("hi")]
        assert (server.requests, server.answered) == (3, 2)


@pytest.mark.parametrize("name", UNPROCESSED)
def test_what_is_never_looked_at_ends_in_our_own_error(ask: Asker, authority: Any, name: str) -> None:
    with http2_server(authority, UNPROCESSED[name]) as server:
        assert ask(server, "hi", retries=1, heals=False) == [["APIConnectionError", 3, True]]
        assert server.requests == 3


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_a_connection_error_and_is_tried_again(ask: Asker, authority: Any, name: str) -> None:
    with http2_server(authority, BROKEN[name], times=1) as server:
        assert ask(server, "hi") == [["APIConnectionError", 1, True]]
        assert server.requests == 2
    with http2_server(authority, BROKEN[name], times=1) as server:
        assert ask(server, "hi", retries=1) == [echo("hi")]
        assert server.requests == 3


def test_an_answer_longer_than_its_length_is_none(ask: Asker, authority: Any) -> None:
    with http2_server(authority, answer_longer_than_its_length, times=1) as server:
        ((kind, attempts, retryable),) = ask(server, "hi")
        assert kind in ("APIConnectionError", "APIResponseValidationError")
        assert (attempts, retryable) == (1, True)


def test_silence_ends_with_the_deadline(ask: Asker, authority: Any) -> None:
    with http2_server(authority, silence, times=1) as server:
        assert ask(server, "hi", timeout=0.5, heals=False) == [["DeadlineExceeded", 1, True]]


@pytest.mark.parametrize("name", [*UNPROCESSED, *BROKEN])
def test_many_streams_around_a_fault_are_each_answered(ask: Asker, authority: Any, name: str) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    # One that has answered once is waited for: a connection that ends fails all its streams, which is many at once.
    with http2_server(authority, {**UNPROCESSED, **BROKEN}[name], times=3, well=1) as server:
        assert ask(server, *prompts, retries=6, timeout=60, warm=True) == [echo(prompt) for prompt in prompts]
        assert server.answered >= len(prompts) + 2
