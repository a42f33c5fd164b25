"""What goes wrong, what is tried again and when, and how the exception tells it."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import pickle
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import millstream
import pytest
from helpers import KEY, chat_body, http_answer, made, raw_server, until, until_async
from millstream import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    BadRequestError,
    Client,
    ConfigurationError,
    DeadlineExceeded,
    InsufficientQuotaError,
    InternalServerError,
    MillstreamError,
    OverloadedError,
    RateLimitError,
    exceptions,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face
    from millstream.testing import Fault

    Make = Callable[..., Face]

BY_STATUS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "InsufficientQuotaError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "APIStatusError",
    408: "APIStatusError",
    409: "ConflictError",
    410: "APIStatusError",
    413: "APIStatusError",
    418: "APIStatusError",
    422: "UnprocessableEntityError",
    425: "APIStatusError",
    429: "RateLimitError",
    451: "APIStatusError",
    499: "APIStatusError",
    500: "InternalServerError",
    501: "InternalServerError",
    502: "InternalServerError",
    503: "OverloadedError",
    504: "InternalServerError",
    529: "OverloadedError",
    599: "InternalServerError",
}
RETRIED = {408, 409, 425, 429} | {status for status in BY_STATUS if status >= 500}

BASES: dict[str, tuple[type[BaseException], ...]] = {
    "MillstreamError": (Exception,),
    "ConfigurationError": (MillstreamError, ValueError),
    "InputTooLargeError": (ConfigurationError,),
    "BatchStoppedError": (MillstreamError,),
    "ClientClosedError": (MillstreamError, RuntimeError),
    "JournalError": (MillstreamError, OSError),
    "InternalError": (MillstreamError, RuntimeError),
    "LengthFinishReasonError": (MillstreamError,),
    "ContentFilterFinishReasonError": (MillstreamError,),
    "RefusalError": (MillstreamError,),
    "APIError": (MillstreamError,),
    "APIResponseValidationError": (APIError,),
    "APIStatusError": (APIError,),
    "BadRequestError": (APIStatusError,),
    "AuthenticationError": (APIStatusError,),
    "PermissionDeniedError": (APIStatusError,),
    "NotFoundError": (APIStatusError,),
    "ConflictError": (APIStatusError,),
    "UnprocessableEntityError": (APIStatusError,),
    "RateLimitError": (APIStatusError,),
    "InsufficientQuotaError": (RateLimitError,),
    "InternalServerError": (APIStatusError,),
    "OverloadedError": (InternalServerError,),
    "APIConnectionError": (APIError, ConnectionError),
    "StreamInterruptedError": (APIConnectionError,),
    "APITimeoutError": (APIConnectionError, TimeoutError),
    "QueueTimeoutError": (APITimeoutError,),
    "DeadlineExceeded": (APITimeoutError,),
}
AT_ONCE = {"retry-after-ms": "1"}


def fails(face: Face, kind: type[Exception] = APIError, **arguments: Any) -> Any:
    """The error of a call that must fail."""
    with pytest.raises(kind) as caught:
        face.complete("hi", **arguments)
    return caught.value


def gaps(server: MockServer) -> list[float]:
    """Seconds between the arrivals of requests, as the server saw them."""
    arrivals = [request.arrived for request in server.requests]
    return [later - earlier for earlier, later in itertools.pairwise(arrivals)]


# ---- the tree ----


def test_the_tree_is_openais_and_complete() -> None:
    assert sorted(exceptions.__all__) == sorted(BASES)
    for name, bases in BASES.items():
        kind = getattr(exceptions, name)
        # Where another test has imported openai, its classes are among them.
        assert tuple(base for base in kind.__bases__ if not base.__module__.startswith("openai")) == bases, name
        assert getattr(millstream, name) is kind
        assert kind.__doc__


@pytest.mark.parametrize("status", BY_STATUS)
def test_each_status_is_its_own_class_and_retried_or_not(make: Make, mock_server: MockServer, status: int) -> None:
    headers = {"x-request-id": "req_1", **AT_ONCE}
    body = {"error": {"message": "so it is", "type": "t", "code": "c", "param": "p"}}
    mock_server.script(Answer(status=status, body=body, headers=headers, times=0))
    error = fails(make(max_retries=1))

    assert type(error) is getattr(exceptions, BY_STATUS[status])
    assert (error.status_code, error.type, error.code, error.param) == (status, "t", "c", "p")
    assert (error.request_id, error.retry_after, error.body) == ("req_1", 0.001, body["error"])
    assert error.retryable is (status in RETRIED)
    assert error.attempts == mock_server.stats.requests == (2 if status in RETRIED else 1)
    assert error.elapsed > 0
    assert str(error).startswith(f"{status} from 127.0.0.1: so it is (request req_1), after {error.attempts} attempt")
    assert error.message == str(error) == error.args[0]


def test_a_conflict_is_tried_once_more_only(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=409, headers=AT_ONCE, times=0))
    assert fails(make(max_retries=5)).attempts == mock_server.stats.requests == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "plain"}, "plain"),
        ({"message": "flat"}, "flat"),
        ({"detail": [{"msg": "listed"}]}, "listed"),
        ({"error": {"message": "m", "code": 503}}, "m"),
        (b"<html>", "Bad Request"),
        (b"", "Bad Request"),
        (b"[1]", "Bad Request"),
        (b"\xff\xfe", "Bad Request"),
        (b"[" * 60_000, "Bad Request"),
        (b'{"a":' * 60_000, "Bad Request"),
        (b'{"error":{"message":"\\ud83d"}}', "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_any_error_body_is_read_as_far_as_it_goes(face: Face, mock_server: MockServer, body: Any, message: str) -> None:
    mock_server.script(Answer(status=400, body=body))
    error = fails(face, BadRequestError)
    assert message in str(error)
    assert pickle.loads(pickle.dumps(error)).body == error.body


def test_an_errors_body_is_openai_pythons(face: Face, mock_server: MockServer) -> None:
    mock_server.script(
        Answer(status=400, body={"error": {"message": "m", "extra": [1]}}),
        Answer(status=400, body={"detail": "d"}),
        Answer(status=400, body=b"text"),
        Answer(status=400, body=b"x" * 200_000),
    )
    bodies = [fails(face).body for _ in range(4)]
    assert bodies[:3] == [{"message": "m", "extra": [1]}, {"detail": "d"}, "text"]
    assert bodies[3] == "x" * 65536


def test_errors_survive_pickling(make: Make, mock_server: MockServer) -> None:
    mock_server.script(
        Answer(fault="reset_before"),
        Answer(body={}),
        # The last of this client, for it holds everyone who comes after.
        Answer(status=429, body={"error": {"message": "m", "code": "c"}}, headers={"retry-after": "7"}),
        Answer(fault="hang_before"),
    )
    face = make(max_retries=0)
    for error in [fails(face) for _ in range(3)] + [fails(make(timeout=0.05), DeadlineExceeded)]:
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error)
        assert (str(other), repr(other), vars(other)) == (str(error), repr(error), vars(error))
    for name in BASES:
        other = pickle.loads(pickle.dumps(made(getattr(exceptions, name), "text")))
        assert (type(other).__name__, str(other)) == (name, "text")


def test_errors_of_the_network_are_also_pythons_own(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="reset_before"), Answer(fault="hang_before"))
    face = make(max_retries=0)
    fails(face, builtins.ConnectionError)
    error = fails(face, builtins.TimeoutError, timeout=0.1)
    assert isinstance(error, asyncio.TimeoutError)
    assert isinstance(error, ConnectionError)
    fails(face, builtins.ValueError, timeout=-1)


# ---- an answer that is none ----

BAD_ANSWERS: dict[str, Any] = {
    "empty": b"",
    "html": b"<html>busy</html>",
    "null": b"null",
    "list": b"[]",
    "object": {},
    "no choice": {"choices": []},
    "empty choice": {"choices": [{}]},
    "empty message": {"choices": [{"message": {}}]},
    "error": {"error": {"message": "overloaded", "type": "server_error"}},
    "error text": {"error": "overloaded"},
    "cut": b'{"choices":[{"message":{"content":"cut',
    "event stream": b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
    "not gzip": Answer(body=b"plain", headers={"content-encoding": "gzip"}),
    "unknown encoding": Answer(body=b"x", headers={"content-encoding": "br"}),
    "no content": Answer(status=204),
}


def bad_answer(name: str, **more: Any) -> Answer:
    bad = BAD_ANSWERS[name]
    if isinstance(bad, Answer):
        return Answer(status=bad.status, body=bad.body, headers=bad.headers, **more)
    return Answer(body=bad, headers={"x-request-id": "req_bad"}, **more)


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_200_is_retried(face: Face, mock_server: MockServer, name: str) -> None:
    mock_server.script(bad_answer(name))
    assert face.complete("hi") == "echo: hi"
    assert mock_server.stats.requests == 2


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_200_that_stays_is_a_validation_error(make: Make, mock_server: MockServer, name: str) -> None:
    mock_server.script(bad_answer(name, times=0))
    error = fails(make(max_retries=1), APIResponseValidationError)

    assert error.attempts == mock_server.stats.requests == 2
    assert (error.status_code, error.retryable) == (None, True)


def test_a_bad_200_says_how_it_begins_and_which_request_it_was(make: Make, mock_server: MockServer) -> None:
    mock_server.script(bad_answer("html"), bad_answer("error"))
    face = make(max_retries=0)
    error = fails(face, APIResponseValidationError)
    assert "<html>busy</html>" in str(error)
    assert error.request_id == "req_bad"
    error = fails(face, APIResponseValidationError)
    assert "overloaded" in str(error)
    assert (error.type, error.request_id) == ("server_error", "req_bad")


def test_a_list_of_models_that_is_none_is_a_validation_error(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(body={}, times=0))
    with pytest.raises(APIResponseValidationError):
        make(max_retries=0).models()


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"choices":[{"message":{"content":"fine"}}]}',
        b'{"choices":[{"message":{"content":"fine"}}],"error":null}',
        b'{"choices":[{"message":{"content":"fine"}}],"id":7,"created":1.5,"usage":"none","model":null}',
        b'{"choices":[{"message":{"content":[{"type":"text","text":"fi"},{"type":"text","text":"ne"}]}}]}',
        b'{"choices":[{"message":{"content":"bad"}}],"choices":[{"message":{"content":"fine"}}]}',
        b' \n {"choices":[{"message":{"content":"fine","role":null,"tool_calls":null},"index":"0"}]} \n ',
    ],
)
def test_an_odd_but_legal_answer_is_an_answer(face: Face, mock_server: MockServer, body: bytes) -> None:
    mock_server.script(Answer(body=body))
    assert face.complete("hi") == "fine"
    assert mock_server.stats.requests == 1


def test_a_cut_emoji_does_not_lose_a_paid_answer(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(body=b'{"choices":[{"message":{"content":"a\\ud83d"}}]}', times=2))
    assert face.complete("hi") == "a\N{REPLACEMENT CHARACTER}"
    assert face.create().to_dict() == {"choices": [{"message": {"content": "a\N{REPLACEMENT CHARACTER}"}}]}
    assert mock_server.stats.requests == 2


# ---- whether to try again, and when ----


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize("word", ["insufficient_quota", "billing_hard_limit_reached"])
def test_a_spent_quota_is_not_retried(face: Face, mock_server: MockServer, field: str, word: str) -> None:
    body = {"error": {"message": "You exceeded your current quota", field: word}}
    mock_server.script(Answer(status=429, body=body, headers={"x-should-retry": "true", **AT_ONCE}, times=0))
    error = fails(face, InsufficientQuotaError)

    assert isinstance(error, RateLimitError)
    assert error.attempts == mock_server.stats.requests == 1
    assert error.retryable is False
    assert "waiting does not help" in str(error)


@pytest.mark.parametrize(
    ("headers", "at_least"),
    [
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "nonsense", "retry-after": "0.25"}, 0.25),
        ({"Retry-After": "1"}, 1.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_no_attempt_comes_sooner_than_the_server_asked(
    face: Face, mock_server: MockServer, headers: dict[str, str], at_least: float, status: int
) -> None:
    mock_server.script(Answer(status=status, headers=headers))
    face.complete("hi")

    (gap,) = gaps(mock_server)
    assert at_least <= gap < at_least * 1.2 + 0.5


def test_a_date_is_waited_for_by_the_servers_own_clock(face: Face, mock_server: MockServer) -> None:
    long_ago = 1_600_000_000
    headers = {"date": formatdate(long_ago, usegmt=True), "retry-after": formatdate(long_ago + 1, usegmt=True)}
    mock_server.script(Answer(status=503, headers=headers))
    face.complete("hi")

    (gap,) = gaps(mock_server)
    assert 1 <= gap < 1.7


@pytest.mark.parametrize("value", ["0", "-5", "inf", "1e400", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_senseless_retry_after_leaves_the_wait_to_us(face: Face, mock_server: MockServer, value: str) -> None:
    mock_server.script(Answer(status=503, headers={"retry-after": value}))
    assert face.complete("hi") == "echo: hi"
    (gap,) = gaps(mock_server)
    assert gap < 0.5 + 0.5


def test_more_than_two_minutes_are_not_waited_for(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=429, headers={"retry-after": "121"}, times=0))
    started = time.monotonic()
    error = fails(make(timeout=None), RateLimitError)

    assert time.monotonic() - started < 1
    assert error.attempts == mock_server.stats.requests == 1
    assert error.retry_after == 121
    assert "121 s" in str(error)


def test_a_wait_beyond_the_deadline_fails_at_once_and_names_the_wait(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=429, headers={"retry-after": "30"}, times=0))
    started = time.monotonic()
    error = fails(make(timeout=5), RateLimitError)

    assert time.monotonic() - started < 1
    assert error.attempts == mock_server.stats.requests == 1
    assert error.retry_after == 30
    assert "30 s" in str(error)


@pytest.mark.parametrize(("status", "word", "attempts"), [(503, "false", 1), (429, "false", 1), (400, "true", 2)])
def test_x_should_retry_wins(make: Make, mock_server: MockServer, status: int, word: str, attempts: int) -> None:
    mock_server.script(Answer(status=status, headers={"x-should-retry": word, **AT_ONCE}, times=0))
    assert fails(make(max_retries=1)).attempts == mock_server.stats.requests == attempts


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_max_retries_are_the_attempts_after_the_first(make: Make, mock_server: MockServer, max_retries: int) -> None:
    mock_server.script(Answer(status=503, headers=AT_ONCE, times=0))
    assert fails(make(max_retries=max_retries)).attempts == mock_server.stats.requests == max_retries + 1


def test_two_retries_are_the_default(mock_server: MockServer) -> None:
    mock_server.script(Answer(status=503, headers=AT_ONCE, times=0))
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m") as client, pytest.raises(OverloadedError):
        client.complete("hi")
    assert mock_server.stats.requests == 3


def test_a_retry_sends_the_same_bytes_again(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=500), Answer(fault="reset_in_body"))
    face.complete("grüße", temperature=0.1)

    first, second, third = mock_server.requests
    assert first.body == second.body == third.body
    assert first.headers == second.headers == third.headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_that_names_the_host_and_goes_nowhere(
    face: Face, mock_server: MockServer, status: int
) -> None:
    with MockServer() as elsewhere:
        target = f"{elsewhere.base_url.replace('127.0.0.1', 'localhost')}/chat/completions?token=secret"
        mock_server.script(Answer(status=status, headers={"location": target}, times=0))
        error = fails(face, APIStatusError)

        assert (elsewhere.stats.requests, elsewhere.stats.connections) == (0, 0)
    assert (error.status_code, error.attempts, mock_server.stats.requests) == (status, 1, 1)
    assert "localhost" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("location", [None, "/v2", "", "http://[", "\xff"])
def test_a_redirect_to_nowhere_is_an_error_too(face: Face, mock_server: MockServer, location: str | None) -> None:
    headers = {} if location is None else {"location": location}
    mock_server.script(Answer(status=302, headers=headers, times=0))
    assert "redirect" in str(fails(face, APIStatusError))
    assert mock_server.stats.requests == 1


# ---- one deadline over everything ----


def slow(server: MockServer, kind: str) -> None:
    fault: dict[str, Fault] = {"hang": "hang_before", "hang in body": "hang_in_body"}
    match kind:
        case "drip":
            server.script(Answer(fault="drip", drip_interval=0.1, times=0))
        case "slow attempts":
            server.script(Answer(status=503, latency=0.2, headers=AT_ONCE, times=0))
        case "waits":
            server.script(Answer(status=503, headers={"retry-after-ms": "150"}, times=0))
        case "own waits":
            server.script(Answer(status=503, times=0))
        case _:
            server.script(Answer(fault=fault[kind], times=0))


@pytest.mark.parametrize("kind", ["hang", "hang in body", "drip", "slow attempts", "waits", "own waits"])
def test_a_call_ends_with_its_timeout_whatever_it_waits_for(make: Make, mock_server: MockServer, kind: str) -> None:
    slow(mock_server, kind)
    started = time.monotonic()
    error = fails(make(timeout=0.5, max_retries=1000))
    took = time.monotonic() - started

    assert took < 0.5 + 1
    assert error.elapsed <= took
    assert error.attempts == mock_server.stats.requests
    if kind in ("hang", "hang in body", "drip", "slow attempts"):
        assert type(error) is DeadlineExceeded
        assert "0.5 s" in str(error)
        assert took >= 0.5
    until(lambda: mock_server.stats.in_flight == 0)


def test_a_timeout_closes_the_connection(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before"))
    # Time enough for a busy machine to send it.
    fails(make(timeout=0.5), DeadlineExceeded)
    until(lambda: mock_server.stats.open_connections == 0 and mock_server.requests[0].aborted)


def test_a_calls_timeout_wins_over_the_clients(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before"), Answer(text="late", latency=0.3))
    fails(make(timeout=None), DeadlineExceeded, timeout=0.1)
    assert make(timeout=0.1).complete("hi", timeout=None) == "late"


def test_the_timeout_of_a_batch_is_for_each_item(make: Make, mock_server: MockServer) -> None:
    with MockServer(latency=0.1) as server:
        answers = make(base_url=server.base_url, timeout=0.3, max_concurrency=1).batch_complete(["a"] * 6)
    assert len(answers) == 6


# ---- the network ----


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_refused_connection_is_retried_and_named(make: Make) -> None:
    error = fails(make(base_url=f"http://127.0.0.1:{free_port()}/v1", max_retries=1), APIConnectionError)
    assert type(error) is APIConnectionError
    assert error.attempts == 2
    assert "no connection to 127.0.0.1" in str(error)


def test_a_server_that_comes_back_is_found_again(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=0)
    face.complete("hi")
    mock_server.stop()
    fails(face, APIConnectionError)
    mock_server.start()
    assert face.complete("hi") == "echo: hi"


def test_a_connection_that_is_not_made_in_time_is_a_timeout(make: Make) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Linux lets a few more in than told; after them the handshake is not answered.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        face = make(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", connect_timeout=0.2, max_retries=0)
        started = time.monotonic()
        error = fails(face, APITimeoutError)
        for filler in fillers:
            filler.close()
    assert time.monotonic() - started < 2
    assert type(error) is APITimeoutError
    assert isinstance(error, TimeoutError)
    assert "connect_timeout" in str(error)


def test_an_unknown_host_is_a_connection_error(make: Make) -> None:
    error = fails(make(base_url="https://no-such-host.invalid/v1", max_retries=0), APIConnectionError)
    assert "no-such-host.invalid" in str(error)


@pytest.mark.parametrize("fault", ["reset_before", "close_before", "reset_in_body", "truncate"])
def test_a_broken_connection_is_retried(face: Face, mock_server: MockServer, fault: Fault) -> None:
    mock_server.script(Answer(fault=fault))
    assert face.complete("hi") == "echo: hi"
    assert mock_server.stats.requests == 2
    assert face.client.stats().attempts == 2


@pytest.mark.parametrize("fault", ["reset_before", "close_before", "reset_in_body", "truncate"])
def test_a_connection_that_keeps_breaking_is_a_connection_error(
    make: Make, mock_server: MockServer, fault: Fault
) -> None:
    mock_server.script(Answer(fault=fault, times=0))
    error = fails(make(max_retries=1))

    assert type(error) is APIConnectionError
    assert error.attempts == mock_server.stats.requests
    assert (error.status_code, error.body, error.retryable) == (None, None, True)
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_answer_without_an_end_is_no_answer(make: Make, status: int) -> None:
    """A body cut short of its length counts for nothing, even if it is JSON that ends."""
    cut = http_answer(chat_body() + b" " * 100, status=f"{status} Some").removesuffix(b" " * 50)
    with raw_server(cut) as server:
        error = fails(make(base_url=server.base_url, max_retries=1), APIConnectionError)
        assert error.attempts == len(server.requests) == 2


async def test_a_cancelled_call_is_cancelled_and_nothing_else(mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before", times=0))
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        call = asyncio.create_task(client.complete("hi"))
        await until_async(lambda: mock_server.stats.in_flight == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(client.complete("hi"), 0.05)
        assert not isinstance(caught.value, MillstreamError)
    until(lambda: mock_server.stats.in_flight == 0)


# ---- the text ----


def hostile_answers() -> list[Answer]:
    junk = "\x1b[31m\x00\r\n\x07\u0085" + "é" * 100_000
    return [
        Answer(status=400, body={"error": {"message": junk, "type": junk, "code": junk, "param": junk}}),
        Answer(status=400, body={"detail": {junk: junk}}),
        Answer(status=400, body=junk),
        Answer(body=junk),
        Answer(body={"error": {"message": junk}}),
        Answer(status=400, headers={"x-request-id": "r" * 10_000}),
        Answer(status=302, headers={"location": f"http://{'h' * 10_000}.test/"}),
        Answer(
            status=503, body={"error": {"message": junk}}, headers={"retry-after": "121", "x-request-id": "r" * 9000}
        ),
    ]


def test_an_errors_text_is_short_and_harmless_whatever_the_server_sends(make: Make, mock_server: MockServer) -> None:
    face = make(max_retries=0)
    answers = hostile_answers()
    mock_server.script(*answers)
    for _ in answers:
        error = fails(face)
        for text in (str(error), repr(error)):
            assert len(text.encode()) <= 4096
            assert text.isprintable()
        assert len(error.request_id or "") <= 4096
    assert mock_server.stats.requests == len(answers)


def test_a_deadline_names_the_last_attempts_error(make: Make, mock_server: MockServer) -> None:
    """The limiter's wait before a retry is where a deadline finds an earlier error."""
    limiter = millstream.RateLimiter(requests_per_minute=1)
    mock_server.script(Answer(status=503, body={"error": {"message": "x" * 10_000}}, headers=AT_ONCE, times=0))
    error = fails(make(timeout=0.3, rate_limiter=limiter), DeadlineExceeded)

    assert "503 from 127.0.0.1" in str(error)
    assert len(str(error).encode()) <= 4096
    assert error.attempts == mock_server.stats.requests == 1
