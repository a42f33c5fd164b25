"""The key shows nowhere but in the request: every repr, error, log and file is searched for it."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import pickle
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, last_request, run_python
from millstream import APIConnectionError, APIError, Client, Endpoint, MillstreamError
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Face

    Make = Callable[..., Face]

CANARY = "sk-canary/0123456789+abcdef"
# What a copy and paste of half of it would show.
PIECE = "0123456789+abc"


def everything_about(thing: Any) -> Iterator[str]:
    """All that can be read off an object from outside."""
    yield repr(thing)
    yield str(thing)
    yield repr(getattr(thing, "__dict__", None))
    for name in dir(thing):
        try:
            value = getattr(thing, name)
        except Exception as error:  # an attribute that refuses is part of what it shows
            yield repr(error)
            continue
        yield f"{name}={value!r}"
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        try:
            yield repr(take(thing))
        except Exception as error:
            yield repr(error)


def full_trace(error: BaseException) -> str:
    """The traceback with the variables of the package's own frames, as error reporters send it."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if "millstream" in frame.filename and "tests" not in frame.filename]
    frames = traceback.StackSummary.from_list(ours)
    return "".join([*frames.format(), *shown.format_exception_only()])


def assert_clean(*texts: str) -> None:
    assert texts
    for text in texts:
        assert CANARY not in text
        assert PIECE not in text
        assert CANARY.replace("/", r"\/") not in text


def assert_error_is_clean(error: BaseException) -> None:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        assert_clean(*everything_about(current), full_trace(current), json.dumps(vars(current), default=repr))
        assert CANARY.encode() not in pickle.dumps(current)
        current = current.__cause__ or current.__context__


def test_the_canary_is_sent(make: Make, mock_server: MockServer) -> None:
    """Or else the other tests would find nothing because there is nothing."""
    make(api_key=CANARY).complete("hi")
    assert last_request(mock_server).header("authorization") == f"Bearer {CANARY}"


def test_a_client_does_not_show_its_key(make: Make, monkeypatch: pytest.MonkeyPatch, mock_server: MockServer) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", mock_server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for face in (
        make(api_key=CANARY),
        make(api_key=None),
        make(default_headers={"Authorization": f"Bearer {CANARY}"}),
        make(default_headers={"x-api-key": CANARY}),
        make().with_options(api_key=CANARY),
    ):
        client = face.client
        for thing in (client, client._native, client._settings, client.chat, client.chat.completions, client.models):
            assert_clean(*everything_about(thing))
        assert_clean(repr(client._settings), repr(client.stats()))


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"max_retries": 1.5},
        {"base_url": "http://gateway.test/v1"},
        {"base_url": f"https://user:{CANARY}@gateway.test/v1"},
        {"base_url": "nonsense"},
        {"api_key": CANARY + "\r\n\x00"},
        {"api_key": CANARY + "é"},
        {"default_headers": {"Authorization": CANARY + "\n"}},
        {"default_headers": {"Authorization": CANARY, "Host": "h"}},
    ],
)
def test_a_refused_argument_does_not_show_the_key(make: Make, options: dict[str, Any]) -> None:
    for build in (
        lambda: make(**{"api_key": CANARY, **options}),
        lambda: make().with_options(**{"api_key": CANARY, **options}),
    ):
        with pytest.raises((MillstreamError, TypeError)) as caught:
            build()
        shown = full_trace(caught.value)
        if "user:" in options.get("base_url", ""):
            # The URL is in the caller's hands and shown as a variable; the error itself must not repeat it.
            shown = "".join(traceback.format_exception_only(caught.value))
        assert_clean(str(caught.value), repr(caught.value), shown)


OTHER = "sk-canary/0123456789+abcother"


def test_an_endpoint_does_not_show_its_key() -> None:
    endpoint = Endpoint("https://h.test/v1", CANARY, rpm=60, model_map={"m": "n"})
    assert_clean(*everything_about(endpoint), f"{endpoint} {endpoint!r}", json.dumps([endpoint], default=repr))
    assert_clean(*everything_about(Endpoint("https://h.test/v1")._with_key(CANARY)))


def test_a_client_of_several_keys_does_not_show_them(make: Make, mock_server: MockServer) -> None:
    endpoints = [Endpoint(mock_server.base_url, CANARY), Endpoint(mock_server.base_url, OTHER)]
    for face in (make(api_key=[CANARY, OTHER]), make(endpoints=endpoints), make().with_options(api_key=[CANARY])):
        face.batch_complete(["hi"] * 20)
        client, stats = face.client, face.client.stats()
        assert_clean(repr(client), repr(client._settings), *everything_about(client), *everything_about(client._native))
        assert_clean(repr(stats), json.dumps(stats.to_dict()), *everything_about(stats.lanes[0]))
    assert {CANARY, OTHER} <= {(last.header("authorization") or "")[7:] for last in mock_server.requests}


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": [CANARY, ""]},
        {"api_key": [CANARY, CANARY]},
        {"api_key": [CANARY, OTHER + "\r\n\x00"]},
        {"api_key": [CANARY, OTHER], "base_url": "http://gateway.test/v1"},
        {"api_key": [CANARY, OTHER], "hedge_after": "p50"},
        {"api_key": [CANARY, 1]},
    ],
)
def test_a_refused_list_of_keys_is_not_shown(make: Make, options: dict[str, Any]) -> None:
    for build in (lambda: make(**options), lambda: make().with_options(**options)):
        with pytest.raises((MillstreamError, TypeError)) as caught:
            build()
        assert_clean(str(caught.value), repr(caught.value), full_trace(caught.value))


def test_errors_that_name_a_key_name_its_fingerprint(make: Make) -> None:
    """One server refuses the keys and echoes them; who comes later is not sent, and told which key was the last."""
    with MockServer() as server:
        echo = {"error": {"message": f"Incorrect API key provided: {CANARY} or {OTHER}."}}
        server.script(Answer(status=401, body=echo, times=0))
        face = make(api_key=[CANARY], base_url=server.base_url)
        with pytest.raises(APIError) as caught:
            face.complete("hi")
        assert caught.value.key_id == Endpoint("https://h.test/v1", CANARY).key_id
        assert CANARY not in str(vars(caught.value))
        server.clear()
        server.script(Answer(status=401, times=0))
        face = make(api_key=[CANARY, OTHER], base_url=server.base_url)
        for kind in (APIError, APIConnectionError):
            with pytest.raises(kind) as caught:
                face.complete("hi")
            assert caught.value.key_id is not None
            assert_error_is_clean(caught.value)


ECHOES: dict[str, Answer] = {
    "message": Answer(status=401, body={"error": {"message": f"Incorrect API key provided: {CANARY}."}}),
    "code, type and param": Answer(status=400, body={"error": {"code": CANARY, "type": CANARY, "param": CANARY}}),
    "plain text": Answer(status=500, body=f"<html>{CANARY}</html>"),
    "escaped slash": Answer(status=400, body=json.dumps({"error": {"message": CANARY}}).replace("/", r"\/")),
    "escaped letters": Answer(status=400, body=json.dumps({"detail": CANARY}).replace("sk-", r"\u0073k-")),
    "nested": Answer(status=422, body={"detail": [{"input": {CANARY: [CANARY]}}]}),
    "request id": Answer(status=429, headers={"x-request-id": CANARY}),
    "redirect": Answer(status=307, headers={"location": f"https://h.test/{CANARY}"}),
    "redirect host": Answer(status=307, headers={"location": f"https://{PIECE.replace('+', '-')}.test/?k={CANARY}"}),
    "bad 200": Answer(body=f"<html>{CANARY}</html>"),
    "error 200": Answer(body={"error": {"message": CANARY, "code": CANARY}}),
    "bad 200 with a request id": Answer(body=b"null", headers={"x-request-id": CANARY}),
    "cut json": Answer(body=f'{{"choices":[{{"message":{{"content":"{CANARY}'),
    "beyond the cut": Answer(status=400, body="x" * 65530 + CANARY),
}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize(
    "options",
    [
        {"api_key": CANARY},
        {"default_headers": {"Authorization": f"Bearer {CANARY}"}},
        {"default_headers": {"api-key": CANARY}},
    ],
    ids=["key", "authorization", "api-key"],
)
def test_a_key_that_the_server_echoes_is_masked(
    make: Make, mock_server: MockServer, echo: str, options: dict[str, Any]
) -> None:
    mock_server.script(ECHOES[echo])
    mock_server.script(ECHOES[echo])
    face = make(max_retries=0, **options)
    with pytest.raises(APIError) as caught:
        face.complete("hi")
    (returned,) = face.batch_complete(["hi"], return_exceptions=True)

    assert CANARY in str(last_request(mock_server).headers)
    assert isinstance(returned, APIError)
    for error in (caught.value, returned):
        assert_error_is_clean(error)


def test_a_key_given_for_one_call_is_masked_too(face: Face, mock_server: MockServer) -> None:
    mock_server.script(ECHOES["message"])
    with pytest.raises(APIError) as caught:
        face.complete("hi", extra_headers={"Authorization": f"Bearer {CANARY}"})
    # The call's own variables hold what the caller passed; the error must not.
    assert_clean(*everything_about(caught.value))


@pytest.mark.parametrize(
    "name", ["Authorization", "X-Session-Id", "X-Password", "X-Credential", "X-Signature", "Cookie"]
)
def test_headers_of_one_call_are_not_in_a_traceback(make: Make, mock_server: MockServer, name: str) -> None:
    face = make(max_retries=0)
    headers = {name: CANARY}
    message = [{"role": "user", "content": "hi"}]
    for options in ({}, {"timeout": -1}, {"model": 5}, {"temperature": float("nan")}):
        for call in (
            lambda: face.complete("hi", extra_headers=headers, **options),
            lambda: face.batch_complete(["hi"], extra_headers=headers, **options),
            lambda: face.create(message, extra_headers=headers, **options),
        ):
            mock_server.script(ECHOES["message"])
            with pytest.raises((MillstreamError, TypeError)) as caught:
                call()
            assert_clean(str(caught.value), full_trace(caught.value))
    assert mock_server.stats.requests == 3


def test_refused_headers_are_not_in_a_traceback(face: Face) -> None:
    for headers in ({"X-A": CANARY + "\n"}, {"X A": CANARY}, {"Host": CANARY}, [CANARY], CANARY):
        for call in (
            lambda: face.complete("hi", extra_headers=headers),
            lambda: face.with_options(default_headers=headers),
            lambda: Client(api_key=KEY, default_headers=headers),  # type: ignore[arg-type]
        ):
            with pytest.raises((MillstreamError, TypeError)) as caught:
                call()
            assert_clean(str(caught.value), full_trace(caught.value))


@pytest.mark.parametrize("key", [CANARY.encode(), {CANARY}, [CANARY.encode()], [CANARY, CANARY]])
def test_a_key_of_the_wrong_type_is_not_shown(key: Any) -> None:
    for build in (lambda: Client(api_key=key), lambda: Client(api_key=KEY).with_options(api_key=key)):
        try:
            build()
        except (MillstreamError, TypeError) as error:
            assert_clean(str(error), full_trace(error))


def test_the_users_own_idempotency_key_is_no_secret(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, body={"error": {"message": "order-0123456789 was used before"}}))
    with pytest.raises(APIError, match="order-0123456789"):
        make().complete("hi", extra_headers={"Idempotency-Key": "order-0123456789"})


@pytest.mark.parametrize("fault", ["reset_before", "truncate", "hang_before"])
def test_errors_of_the_network_do_not_show_the_key(make: Make, mock_server: MockServer, fault: Any) -> None:
    mock_server.script(Answer(fault=fault, times=0))
    with pytest.raises(APIError) as caught:
        make(api_key=CANARY, max_retries=0, timeout=0.2).complete("hi")
    assert_error_is_clean(caught.value)


def test_a_short_placeholder_key_mangles_no_text(make: Make, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, body={"error": {"message": "EMPTY list"}}))
    with pytest.raises(APIError, match="EMPTY list"):
        make(api_key="EMPTY").complete("hi")


def test_an_answer_is_not_touched(make: Make, mock_server: MockServer) -> None:
    """What the model says is the user's, even if it is the key."""
    mock_server.script(Answer(text=f"you said {CANARY}"))
    assert make(api_key=CANARY).complete("hi") == f"you said {CANARY}"


def test_nothing_is_logged_or_warned(make: Make, mock_server: MockServer, capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mock_server.script(ECHOES["plain text"], ECHOES["message"])
            face = make(api_key=f" {CANARY} ")
            with pytest.raises(APIError):
                face.complete("hi")
            face.close()
            gc.collect()
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    output = capfd.readouterr()
    assert_clean(stream.getvalue(), output.out, output.err, *(str(each.message) for each in caught))


def test_an_uncaught_error_prints_no_key_even_with_all_logs_on(mock_server: MockServer) -> None:
    code = """
import faulthandler, logging, os, sys
faulthandler.enable()
logging.basicConfig(level=1)
from millstream import Client
client = Client(base_url=sys.argv[1], model="m")
try:
    client.complete("hi")
except Exception as error:
    logging.exception("failed")
    print(client, error, repr(error), vars(error))
    raise
"""
    mock_server.script(ECHOES["message"])
    done = run_python(
        code, mock_server.base_url, OPENAI_API_KEY=CANARY, OPENAI_BASE_URL=mock_server.base_url, RUST_LOG="trace"
    )
    assert last_request(mock_server).header("authorization") == f"Bearer {CANARY}"
    assert "AuthenticationError" in done.stderr
    assert_clean(done.stdout, done.stderr)


def test_the_mocks_own_records_are_the_only_place(mock_server: MockServer) -> None:
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        response = client.chat.completions.create(messages=[{"role": "user", "content": "hi"}])
        for thing in (response, response.choices[0], response.usage):
            for text in everything_about(thing):
                assert KEY not in text
        assert KEY.encode() not in pickle.dumps(response)


def test_a_token_that_a_function_gives_is_not_in_a_traceback(make: Make, mock_server: MockServer) -> None:
    face = make(api_key=lambda: CANARY, default_query={"key": CANARY}, max_retries=0)
    calls: list[Callable[[], Any]] = [
        lambda: face.complete("hi"),
        lambda: face.create(stream=True),
        lambda: face.run(face.client.post("x", {})),
        lambda: face.run(face.client.embeddings.create(input="hi", extra_query={"key": CANARY})),
        lambda: face.run(face.client.responses.with_raw_response.create(input="hi", extra_headers={"X-Key": CANARY})),
    ]
    for call in calls:
        mock_server.script(Answer(status=401, times=2))
        with pytest.raises(APIError) as caught:
            call()
        assert_clean(full_trace(caught.value), *everything_about(caught.value), repr(face.client))
    assert all(CANARY in (request.header("authorization") or "") for request in mock_server.requests)
