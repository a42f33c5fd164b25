"""The mock server through Python, with nothing but the standard library as its client."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from millstream.testing import Answer, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Connect = Callable[[MockServer], "Client"]

pytest_plugins = ["pytester"]
PATIENCE = 10.0


class Client:
    """One keep-alive connection."""

    def __init__(self, server: MockServer) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)

    def ask(self, text: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
        self.http.request("POST", "/v1/chat/completions", body, headers)
        return self.answer()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        self.http.request("GET", path, headers=headers)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], Any]:
        response = self.http.getresponse()
        body = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(body)

    def close(self) -> None:
        self.http.close()

    def content(self, text: str) -> str:
        status, _, body = self.ask(text)
        assert status == 200, body
        return body["choices"][0]["message"]["content"]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as opened:
        yield lambda server: opened.enter_context(closing(Client(server)))


@pytest.fixture
def client(mock_server: MockServer, connect: Connect) -> Client:
    return connect(mock_server)


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.001)


def test_echo_shows_which_request_an_answer_belongs_to(client: Client) -> None:
    assert client.content("grüße ✓") == "echo: grüße ✓"
    assert client.content("two") == "echo: two"


def test_any_other_reply_is_said_always(connect: Connect) -> None:
    with MockServer(reply="so it is") as server:
        assert connect(server).content("one") == "so it is"


def test_models_are_listed_as_the_provider_does(connect: Connect) -> None:
    with MockServer(models=("a", "b")) as server:
        status, _, body = connect(server).get("/v1/models")
    assert status == 200
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["a", "b"]


def test_records_what_it_saw(mock_server: MockServer, client: Client) -> None:
    client.ask("first", Authorization="Bearer sk-secret", **{"X-Tag": "é"})
    client.ask("second")
    first, second = mock_server.requests
    assert (first.index, first.method, first.path) == (0, "POST", "/v1/chat/completions")
    assert first.header("AUTHORIZATION") == "Bearer sk-secret"
    assert first.header("x-tag") == "é"
    assert first.header("absent") is None
    assert ("authorization", "Bearer sk-secret") in first.headers
    assert first.json()["messages"][0]["content"] == "first"
    assert json.loads(second.body) == second.json()
    assert (second.index, second.connection, second.in_flight) == (1, 0, 1)
    assert (second.status, second.completed, second.aborted) == (200, True, False)
    assert 0 <= first.arrived <= second.arrived
    assert repr(first) == "<RecordedRequest 0 POST /v1/chat/completions status=200>"


def test_clear_makes_it_as_new(mock_server: MockServer, client: Client) -> None:
    client.ask("before")
    mock_server.script(Answer(status=500))
    mock_server.clear()
    assert mock_server.requests == []
    assert mock_server.stats.requests == 0
    assert client.content("after") == "echo: after"
    assert mock_server.stats.open_connections == 1


def test_without_record_it_only_counts(connect: Connect) -> None:
    with MockServer(record=False) as server:
        connect(server).ask("x")
        assert server.requests == []
        assert server.stats.answered == 1


def stream(client: Client, text: str = "one two", **fields: Any) -> list[Any]:
    """The data of each event of a chat completion's stream, all but ``[DONE]`` read as JSON."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}], **fields}
    client.http.request("POST", "/v1/chat/completions", json.dumps(body))
    response = client.http.getresponse()
    assert response.getheader("content-type", "").startswith("text/event-stream")
    lines = response.read().decode().splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(one) if one != "[DONE]" else one for one in data]


def content(events: list[Any]) -> str:
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_streams_to_who_asks_for_it(mock_server: MockServer, client: Client) -> None:
    events = stream(client, stream_options={"include_usage": True})
    assert content(events) == "echo: one two"
    assert [event == "[DONE]" for event in events] == [False] * 6 + [True]
    assert events[-2]["usage"]["completion_tokens"] == 4
    assert client.content("whole") == "echo: whole"
    seen = mock_server.requests[0]
    assert (seen.events, seen.completed) == (7, True)
    assert seen.written > 1000


@pytest.mark.mock_server(reply="fixed", stream=Streaming(chunks=300), record=False)
def test_any_number_of_pieces(client: Client) -> None:
    assert len(stream(client)) == 303
    assert client.ask("x")[2]["choices"][0]["message"]["content"].startswith("A mill stream")


def test_a_stream_says_what_it_is_told(mock_server: MockServer, client: Client) -> None:
    tools = [("weather", {"city": "Paris"}), ("time", "{}")]
    mock_server.script(Answer(tool_calls=tools, reasoning="hm", times=2))
    events = stream(client)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls if "id" in call] == ["weather", "time"]
    assert json.loads("".join(call["function"]["arguments"] for call in calls if call["index"] == 0)) == tools[0][1]
    message = client.ask("x")[2]["choices"][0]
    assert (message["finish_reason"], message["message"]["content"]) == ("tool_calls", None)
    assert json.loads(message["message"]["tool_calls"][0]["function"]["arguments"]) == tools[0][1]


def test_a_stream_keeps_its_pace(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(stream=Streaming(first=0.03, gap=[0.0, 0.02, 0.0], keep_alive=0.01)))
    begun = time.monotonic()
    assert content(stream(client)) == "echo: one two"
    assert time.monotonic() - begun >= 0.05


def test_a_stream_fails_as_told(mock_server: MockServer, connect: Connect) -> None:
    error = {"error": {"type": "overloaded", "message": "no"}}
    mock_server.script(
        Answer(stream=Streaming(fault="end", after=2)),
        Answer(stream=Streaming(fault="error", after=2, error=error)),
        Answer(stream=Streaming(fault="reset", after=0)),
        Answer(stream=Streaming(write=3, line_end="\r\n"), body="data: é\n\n"),
    )
    assert len(stream(connect(mock_server))) == 2
    assert stream(connect(mock_server))[2] == error
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        stream(connect(mock_server))
    client = connect(mock_server)
    client.http.request("POST", "/v1/chat/completions", "{}")
    assert client.http.getresponse().read() == "data: é\n\n".encode()


@pytest.mark.parametrize(
    "options", [{"write": 0}, {"write": "x"}, {"gap": -1.0}, {"fault": "x"}, {"comment": "a\nb"}, {"line_end": "x"}]
)
def test_a_way_to_stream_that_makes_no_sense_is_refused(mock_server: MockServer, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        mock_server.script(Answer(stream=Streaming(**options)))
    with pytest.raises(ValueError):
        MockServer(stream=Streaming(**options))


def post(server: MockServer, target: str, body: Any, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(server.root_url + target, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_each_path_is_answered_in_its_own_form(mock_server: MockServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    claude = {"anthropic-version": "2023-06-01"}
    assert post(mock_server, "/v1/messages", {"messages": messages}, **claude)[0] == 400
    body = post(mock_server, "/v1/messages", {"messages": messages, "max_tokens": 1}, **claude)[1]
    assert body["content"] == [{"type": "text", "text": "echo: hi"}]
    body = post(mock_server, "/v1/responses", {"input": "hi"})[1]
    assert body["output"][0]["content"][0]["text"] == "echo: hi"
    assert post(mock_server, "/v1/completions", {"prompt": "hi"})[1]["choices"][0]["text"] == "echo: hi"
    azure = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
    assert post(mock_server, azure, {"messages": messages})[0] == 401
    body = post(mock_server, azure, {"messages": messages}, **{"api-key": "k"})[1]
    assert body["choices"][0]["message"]["content"] == "echo: hi"
    assert mock_server.requests[-1].deployment == "gpt"
    assert mock_server.requests[-1].query == [("api-version", "2024-10-21")]
    body = post(mock_server, "/v1/rerank?top=3", {"docs": [1]})[1]
    assert body == {"method": "POST", "path": "/v1/rerank", "query": {"top": "3"}, "json": {"docs": [1]}}


@pytest.mark.mock_server(shuffle_embeddings=True)
def test_embeddings_are_numbers_or_their_bytes(mock_server: MockServer) -> None:
    texts = [f"text {number}" for number in range(20)]

    def ask(**fields: Any) -> dict[int, Any]:
        data = post(mock_server, "/v1/embeddings", {"input": texts, **fields})[1]["data"]
        assert [one["index"] for one in data] != list(range(20))
        return {one["index"]: one["embedding"] for one in data}

    plain, packed = ask(dimensions=3), ask(dimensions=3, encoding_format="base64")
    for index, vector in plain.items():
        assert list(struct.unpack("<3f", base64.b64decode(packed[index]))) == pytest.approx(vector)
        assert sum(number**2 for number in vector) == pytest.approx(1)


def test_script_is_used_in_order_of_arrival(mock_server: MockServer, client: Client) -> None:
    mock_server.script(
        Answer(status=429, headers={"Retry-After": "7"}),
        Answer(text="two", times=2),
        Answer(body={"odd": True}),
        Answer(body=b"[1]", headers={"content-type": "text/plain"}),
    )
    status, headers, body = client.ask("a")
    assert (status, headers["retry-after"], body["error"]["code"]) == (429, "7", "rate_limit_exceeded")
    assert [client.content("b"), client.content("c")] == ["two", "two"]
    assert client.ask("d")[2] == {"odd": True}
    _, headers, body = client.ask("e")
    assert (headers["content-type"], body) == ("text/plain", [1])
    assert client.content("f") == "echo: f"
    assert mock_server.stats.rejected_429 == 0


def test_when_goes_before_script_and_serves_only_its_text(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(text="anyone"))
    mock_server.when("item 7", Answer(status=503), Answer(text="seven at last"))
    mock_server.when("for ever", Answer(text="again", times=0))
    assert client.ask("item 7")[0] == 503
    assert client.content("item 1") == "anyone"
    assert client.content("item 7") == "seven at last"
    assert client.content("item 7") == "echo: item 7"
    assert {client.content("for ever") for _ in range(5)} == {"again"}


def test_any_path_can_be_scripted(mock_server: MockServer, client: Client) -> None:
    assert client.get("/v1/files")[0] == 404
    mock_server.script(Answer(body={"object": "list", "data": []}))
    assert client.get("/v1/files")[0] == 200


@pytest.mark.mock_server(api_key="sk-right")
def test_asks_for_the_key_before_anything_else(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(text="scripted"))
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        status, _, body = client.ask("x", **headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert "sk-right" not in json.dumps(body)
    status, _, body = client.ask("x", Authorization="Bearer sk-right")
    assert body["choices"][0]["message"]["content"] == "scripted"


@pytest.mark.mock_server(requests_per_minute=600)
def test_a_client_that_waits_as_told_gets_in(mock_server: MockServer, client: Client) -> None:
    def ask_until_refused() -> dict[str, str]:
        while True:
            status, headers, body = client.ask("x")
            if status == 429:
                assert body["error"]["type"] == "requests"
                assert headers["x-ratelimit-remaining-requests"] == "0"
                return headers

    wait = int(ask_until_refused()["retry-after-ms"]) / 1000
    assert 0 < wait <= 0.1
    time.sleep(wait)  # the claim is about time itself
    assert client.ask("x")[0] == 200
    assert mock_server.stats.rejected_429 == 1


@pytest.mark.mock_server(tokens_per_minute=1000)
def test_tokens_are_charged_by_max_tokens(mock_server: MockServer, client: Client) -> None:
    def ask(max_tokens: int) -> tuple[int, dict[str, str], Any]:
        body = {"max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]}
        client.http.request("POST", "/v1/chat/completions", json.dumps(body))
        return client.answer()

    _, headers, _ = ask(900)
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    assert "x-ratelimit-limit-requests" not in headers
    status, headers, body = ask(500)
    assert (status, body["error"]["type"]) == (429, "tokens")
    assert 20 <= int(headers["retry-after"]) <= 24
    status, headers, body = ask(1001)
    assert status == 429
    assert "retry-after" not in headers
    assert "too large" in body["error"]["message"]


@pytest.mark.mock_server(latency=0.05, max_concurrent=2)
def test_refuses_what_exceeds_max_concurrent(connect: Connect, mock_server: MockServer) -> None:
    ready = threading.Barrier(8)

    def ask(number: int) -> int:
        client = connect(mock_server)
        client.http.connect()
        ready.wait(PATIENCE)
        return client.ask(str(number))[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(8)))
    served = statuses.count(200)
    assert served >= 2
    assert statuses.count(429) == 8 - served == mock_server.stats.rejected_429
    assert mock_server.stats.in_flight == 0


@pytest.mark.mock_server(requests_per_minute=3, keys={"sk-a": {"requests_per_minute": 1}, "sk-b": {}})
def test_each_key_has_limits_of_its_own(mock_server: MockServer, client: Client) -> None:
    def statuses(key: str) -> list[int]:
        return [client.ask("x", Authorization=f"Bearer {key}")[0] for _ in range(4)]

    assert statuses("sk-a") == [200, 429, 429, 429]
    assert statuses("sk-b") == [200, 200, 200, 429]
    assert statuses("sk-c") == [401] * 4
    stats = mock_server.key_stats
    assert {key: (of.requests, of.rejected_429, of.max_in_flight) for key, of in stats.items()} == {
        "sk-a": (4, 3, 1),
        "sk-b": (4, 1, 1),
    }
    assert repr(stats["sk-b"]) == "KeyStats(requests=4, rejected_429=1, in_flight=0, max_in_flight=1)"
    first, refused = mock_server.requests[:2]
    assert (first.key, first.status, first.retry_after) == ("sk-a", 200, None)
    assert first.answered is not None
    assert first.arrived <= first.answered <= refused.arrived
    assert refused.retry_after is not None
    assert 59 <= refused.retry_after <= 60
    assert mock_server.requests[-1].key is None


def test_limits_change_while_it_runs(mock_server: MockServer, client: Client) -> None:
    assert "x-ratelimit-limit-requests" not in client.ask("x")[1]
    mock_server.set_limits(requests_per_minute=1)
    assert [client.ask("x")[0] for _ in range(2)] == [200, 429]
    mock_server.set_limits()
    assert client.ask("x")[0] == 200
    with pytest.raises(ValueError, match="key"):
        mock_server.set_limits("sk-none", requests_per_minute=1)
    with pytest.raises(ValueError, match="requests_per_minute"):
        mock_server.set_limits(requests_per_minute=0)


@pytest.mark.mock_server(
    dialect="anthropic", requests_per_minute=1, input_tokens_per_minute=80_000, output_tokens_per_minute=16_000
)
def test_speaks_of_limits_in_the_words_of_anthropic(client: Client) -> None:
    _, headers, _ = client.ask("x")
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["anthropic-ratelimit-input-tokens-limit"] == "80000"
    assert headers["anthropic-ratelimit-output-tokens-remaining"] == "16000"
    assert datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"]).tzinfo is not None
    status, headers, body = client.ask("x")
    assert (status, body["type"], body["error"]["type"]) == (429, "error", "rate_limit_error")
    assert body["request_id"] == headers["request-id"]
    assert 59 <= int(headers["retry-after"]) <= 60
    assert "retry-after-ms" not in headers


@pytest.mark.parametrize(
    ("dialect", "limits", "said"),
    [
        ("mistral", {"requests_per_minute": 0}, {"x-ratelimit-limit-req-minute": "0"}),
        ("groq", {"requests_per_day": 14_400}, {"x-ratelimit-reset-requests": "6s"}),
        ("together", {"requests_per_minute": 600}, {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9"}),
        ("azure", {"requests_per_minute": 600}, {"x-ratelimit-remaining-requests": "599"}),
        ("none", {"requests_per_minute": 600}, {}),
    ],
)
def test_speaks_of_limits_in_the_words_of_others(
    connect: Connect, dialect: Any, limits: Any, said: dict[str, str]
) -> None:
    with MockServer(dialect=dialect, **limits) as server:
        _, headers, _ = connect(server).ask("x")
    told = {name: value for name, value in headers.items() if "ratelimit" in name}
    assert said.items() <= told.items()
    assert bool(told) == bool(said)


def test_an_outage_fails_everything_until_it_is_over(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(text="kept"))
    mock_server.outage()
    assert [client.ask("x")[0], client.get("/v1/models")[0]] == [503, 503]
    mock_server.recover()
    assert client.content("x") == "kept"
    mock_server.outage(502, seconds=0.05)
    until(lambda: client.ask("x")[0] == 200)
    assert mock_server.stats.failed_in_outage >= 2
    for arguments in ({"status": 100}, {"seconds": -1.0}):
        with pytest.raises(ValueError):
            mock_server.outage(**arguments)


@pytest.mark.mock_server(slots=1)
def test_beyond_its_slots_requests_queue(mock_server: MockServer, connect: Connect) -> None:
    mock_server.when("hang", Answer(fault="hang_before"))
    body = '{"messages":[{"role":"user","content":"%s"}]}'
    working, queued = connect(mock_server), connect(mock_server)
    working.http.request("POST", "/v1/chat/completions", body % "hang")
    until(lambda: mock_server.stats.in_flight == 1)
    queued.http.request("POST", "/v1/chat/completions", body % "x")
    until(lambda: mock_server.stats.queued == 1)
    mock_server.set_slots(2)
    assert queued.answer()[0] == 200
    mock_server.set_max_concurrent(1)
    assert queued.ask("x")[0] == 429
    for change in (mock_server.set_slots, mock_server.set_max_concurrent):
        with pytest.raises(ValueError, match="at least 1"):
            change(0)


def test_a_forked_child_leaves_the_server_to_its_parent(mock_server: MockServer, client: Client) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            mock_server.stop()
            mock_server.stop()
        except BaseException:  # a panic of Rust is none of Exception's
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.content("x") == "echo: x"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset_before", ConnectionResetError),
        ("close_before", http.client.RemoteDisconnected),
        ("reset_in_body", ConnectionResetError),
        ("truncate", http.client.IncompleteRead),
    ],
)
def test_faults_reach_the_client_as_what_they_are(
    mock_server: MockServer, client: Client, fault: Any, error: type[Exception]
) -> None:
    mock_server.script(Answer(fault=fault))
    with pytest.raises(error) as caught:
        client.ask("x")
    assert caught.type is error
    assert mock_server.stats.faulted == 1
    until(lambda: mock_server.stats.open_connections == 0)
    client.http.close()
    assert client.content("after") == "echo: after"


@pytest.mark.parametrize("fault", ["hang_before", "hang_in_body"])
def test_a_hanging_request_ends_with_its_client(mock_server: MockServer, client: Client, fault: Any) -> None:
    mock_server.script(Answer(fault=fault))
    client.http.request("POST", "/v1/chat/completions", '{"messages":[]}')
    until(lambda: mock_server.stats.in_flight == 1)
    client.http.close()
    until(lambda: mock_server.stats.aborted == 1)
    assert mock_server.stats.in_flight == 0
    assert mock_server.requests[0].aborted
    until(lambda: mock_server.stats.open_connections == 0)


def test_stop_ends_a_hanging_request_and_start_returns_to_the_port(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(fault="hang_before"))
    client.http.request("POST", "/v1/chat/completions", '{"messages":[]}')
    until(lambda: mock_server.stats.in_flight == 1)
    port = mock_server.port
    mock_server.stop()
    mock_server.stop()
    with pytest.raises(http.client.RemoteDisconnected):
        client.http.getresponse()
    client.http.close()
    with pytest.raises(ConnectionRefusedError):
        client.http.connect()
    assert mock_server.stats.aborted == 0
    assert mock_server.start().port == port
    assert client.content("back") == "echo: back"


def test_drip_sends_the_whole_body(mock_server: MockServer, client: Client) -> None:
    mock_server.script(Answer(body=b'{"a": 1}', fault="drip", drip_interval=0.002))
    assert client.ask("x")[2] == {"a": 1}


def test_plays_a_plain_http_proxy(mock_server: MockServer, client: Client) -> None:
    client.http.request("GET", "http://api.example.com/v1/models?limit=1")
    assert client.answer()[0] == 200
    assert mock_server.requests[0].path == "http://api.example.com/v1/models?limit=1"


async def test_is_an_async_context_manager_too() -> None:
    async with MockServer() as server:
        port = server.port
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)


def test_has_no_address_before_it_starts(connect: Connect) -> None:
    server = MockServer()
    server.script(Answer(text="scripted before the start"))
    assert repr(server) == "<MockServer not started>"
    with pytest.raises(RuntimeError):
        _ = server.base_url
    with server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1" == server.root_url + "/v1"
        assert repr(server) == f"<MockServer {server.base_url}>"
        assert connect(server).content("x") == "scripted before the start"


def test_a_taken_port_is_an_os_error(mock_server: MockServer) -> None:
    with pytest.raises(OSError, match="in use"):
        MockServer(port=mock_server.port).start()


@pytest.mark.parametrize(
    "arguments",
    [
        {"models": ()},
        {"requests_per_minute": 0},
        {"latency": -1.0},
        {"latency": (0.1, float("nan"))},
        {"keys": {"sk-a": {"tokens_per_minute": 0}}},
        {"keys": {"sk-a": {"rpm": 1}}},
        {"dialect": "klingon"},
        {"slots": 0},
    ],
)
def test_refuses_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        MockServer(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"status": 100},
        {"fault": "explode"},
        {"latency": -1.0},
        {"headers": {"a b": "c"}},
        {"headers": {"Content-Length": "1"}},
    ],
)
def test_refuses_answers_that_make_no_sense(
    connect: Connect, mock_server: MockServer, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        mock_server.script(Answer(text="fine"), Answer(**arguments))
    assert connect(mock_server).content("x") == "echo: x"


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[MockServer, ssl.SSLContext]]:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with MockServer(tls=(chain, str(key))) as server:
        yield server, context


def test_speaks_https(connect: Connect, tls_server: tuple[MockServer, ssl.SSLContext]) -> None:
    server, context = tls_server
    assert server.base_url.startswith("https://")
    client = connect(server)
    client.http = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=PATIENCE, context=context)
    assert client.content("x") == "echo: x"
    server.script(Answer(fault="reset_before"))
    with pytest.raises(ConnectionResetError):
        client.ask("x")


def test_speaks_http2_when_asked_by_alpn(tls_server: tuple[MockServer, ssl.SSLContext]) -> None:
    server, context = tls_server
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as wire:
        assert wire.selected_alpn_protocol() == "h2"
        path, host = b"/v1/models", b"mock"
        # RFC 7541: GET and https from the static table; path and authority as literals.
        block = b"\x82\x87\x04" + bytes([len(path)]) + path + b"\x01" + bytes([len(host)]) + host
        settings = b"\x00\x00\x00\x04\x00" + b"\x00" * 4
        headers = len(block).to_bytes(3, "big") + b"\x01\x05" + (1).to_bytes(4, "big") + block
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers)
        stream, body, ended = wire.makefile("rb"), b"", False
        while not ended:
            length, kind, flags = int.from_bytes(stream.read(3), "big"), *stream.read(2)
            stream.read(4)
            payload = stream.read(length)
            if kind == 0:
                body += payload
                ended = bool(flags & 1)
        assert json.loads(body)["data"][0]["id"] == "mock-model"
    seen = server.requests[0]
    assert (seen.path, seen.completed) == ("/v1/models", True)


def test_unreadable_pem_is_told_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(ValueError):
        MockServer(tls=(empty, empty))


@pytest.fixture
def process() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], dict[str, Any]]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        command = [sys.executable, "-m", "millstream.testing", *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_runs_in_a_process_of_its_own_until_sigterm(process: Any) -> None:
    child, facts = process("--reply", "fixed", "--latency", "0.01,0.5", "--rpm", "100")
    assert facts["pid"] == child.pid
    assert facts["base_url"] == f"http://127.0.0.1:{facts['port']}/v1"
    connection = http.client.HTTPConnection("127.0.0.1", facts["port"], timeout=PATIENCE)
    connection.request("POST", "/v1/chat/completions", "{}")
    response = connection.getresponse()
    assert 950 <= len(response.read()) < 1000
    assert response.getheader("x-ratelimit-limit-requests") == "100"
    connection.close()
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(PATIENCE) == 0


def test_a_process_can_be_told_to_end_with_its_parent(process: Any) -> None:
    child, _ = process("--exit-on-stdin-eof")
    child.stdin.close()
    child.stdin = None
    assert child.wait(PATIENCE) == 0


def test_the_fixture_takes_its_arguments_from_the_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import json, urllib.request, pytest

        @pytest.mark.mock_server(models=("from-the-marker",))
        def test_models(mock_server):
            with urllib.request.urlopen(mock_server.base_url + "/models") as answer:
                assert json.load(answer)["data"][0]["id"] == "from-the-marker"
        """
    )
    pytester.runpytest_subprocess("--strict-markers").assert_outcomes(passed=1)
