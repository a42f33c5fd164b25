"""Vendors' batch APIs over real sockets: nothing is lost, nothing paid for twice, every answer is at its item."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import UserString
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until
from millstream import (
    APIConnectionError,
    APIError,
    BadRequestError,
    Client,
    ConfigurationError,
    MillstreamError,
    VendorBatches,
)
from millstream._fields import REQUEST_FIELDS
from millstream._millstream import NativeLineReader
from millstream._vendor_apis import VENDORS, Limits
from millstream._vendor_files import Preparation
from millstream._vendor_lines import BadLineError, line_of, request_of, vendor_line
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Make
    from millstream import BatchJob
    from millstream.types import BatchJobResult, BatchJobStatus

VIAS = ["openai", "anthropic", "mistral"]
READER = NativeLineReader("m", None, {})
MAKES = {"openai": "/v1/batches", "anthropic": "/v1/messages/batches", "mistral": "/v1/batch/jobs"}


class Jobs:
    """Jobs of one client, awaited or blocking, called the same way."""

    def __init__(self, make: Make, via: str, **defaults: Any) -> None:
        self.face = make(provider=via)
        self.via = via
        self.batches = VendorBatches(self.face.client, **defaults)

    def do(self, target: object, name: str, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.face.client, Client):
            return getattr(target, f"{name}_blocking")(*arguments, **options)
        return self.face.run(getattr(target, name)(*arguments, **options))

    def submit(self, items: Any, **options: Any) -> BatchJob:
        job: BatchJob = self.do(self.batches, "submit", items, **options)
        return job

    def wait(self, job: BatchJob, **options: Any) -> BatchJobStatus:
        status: BatchJobStatus = self.do(job, "wait", **{"poll": 0.01, "timeout": 20, **options})
        return status

    def fetch(self, job: BatchJob) -> BatchJobResult:
        result: BatchJobResult = self.do(job, "fetch")
        return result

    def results(self, job: BatchJob) -> list[dict[str, Any]]:
        self.wait(job)
        results: list[dict[str, Any]] = self.do(job, "results")
        return results


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=VIAS)
def jobs(request: pytest.FixtureRequest, make: Make) -> Jobs:
    return Jobs(make, request.param)


def text_of(line: dict[str, Any]) -> Any:
    return line["response"]["body"]["choices"][0]["message"]["content"]


def texts(lines: list[dict[str, Any]]) -> list[Any]:
    return [text_of(line) if line["error"] is None else line["error"]["code"] for line in lines]


def made(server: MockServer, via: str) -> int:
    """How many batches the server has."""
    with Client(base_url=server.base_url, api_key=KEY, provider=via) as client:  # type: ignore[arg-type]
        listed = client.get(f"{MAKES[via]}?limit=100&page_size=100")
    return len(listed.data)


def change_part(output: str, part: int, **facts: Any) -> None:
    """Change what is known of one batch of a job."""
    path = Path(f"{output}.batch.json")
    state = json.loads(path.read_text())
    state["parts"][part] |= facts
    path.write_text(json.dumps(state))


def asked(server: MockServer, method: str, path: str) -> int:
    return sum((request.method, request.path) == (method, path) for request in server.requests)


def chat(custom_id: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


# ---- there and back ----


def test_every_form_of_an_item_is_answered_at_its_place(jobs: Jobs) -> None:
    job = jobs.submit(
        [
            "one",
            [{"role": "user", "content": "two"}],
            {"prompt": "three", "custom_id": "third/with a name that no vendor takes", "color": "red"},
            {"messages": [{"role": "user", "content": "four"}], "metadata": {"row": 4}},
            {"model": "other", "messages": [{"role": "user", "content": "five"}]},
            chat("sixth", "six", source="web"),
            {"custom_id": "seventh", "body": {"messages": [{"role": "user", "content": "caf\u00e9"}]}},
        ],
        output="out.jsonl",
    )
    lines = jobs.results(job)

    words = ["one", "two", "three", "four", "five", "six", "caf\u00e9"]
    assert texts(lines) == [f"echo: {word}" for word in words]
    assert [line["custom_id"] for line in lines][2] == "third/with a name that no vendor takes"
    assert [line["custom_id"] for line in lines][5:] == ["sixth", "seventh"]
    assert len({line["custom_id"] for line in lines}) == 7
    assert [line.get("metadata") for line in lines[2:6]] == [{"color": "red"}, {"row": 4}, None, {"source": "web"}]
    assert [line["millstream"]["line"] for line in lines] == list(range(1, 8))
    assert [line["response"]["status_code"] for line in lines] == [200] * 7
    result = jobs.fetch(job)
    assert (result.total, result.ok, result.failed, result.pending, result.problems) == (7, 7, 0, 0, [])
    assert result.prompt_tokens == sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in lines) > 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 7


def test_each_vendor_gets_the_lines_that_it_takes(jobs: Jobs, mock_server: MockServer) -> None:
    body = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stop": ["x"],
        "seed": 7,
    }
    if jobs.via == "anthropic":
        del body["seed"]
    jobs.submit([{"custom_id": "a", "body": body}], output="out")

    posts = [request for request in mock_server.requests if request.method == "POST"]
    (make,) = [request for request in posts if request.path == MAKES[jobs.via]]
    if jobs.via == "anthropic":
        (request,) = make.json()["requests"]
        assert request["custom_id"] == "a"
        assert (request["params"]["system"], request["params"]["stop_sequences"]) == ("s", ["x"])
        assert request["params"]["model"] == "m"
        assert request["params"]["max_tokens"] > 0
        return
    (upload,) = [request for request in posts if request.path == "/v1/files"]
    assert b'name="purpose"\r\n\r\nbatch\r\n' in upload.body
    line = json.loads(upload.body.split(b"\r\n\r\n")[2].split(b"\r\n")[0])
    if jobs.via == "openai":
        url = "/v1/chat/completions"
        assert line == {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **body}}
        assert make.json()["completion_window"] == "24h"
    else:
        random_seed = {**{name: value for name, value in body.items() if name != "seed"}, "random_seed": 7}
        assert line == {"custom_id": "a", "body": random_seed}
        assert make.json()["model"] == "m"
    assert make.header("idempotency-key")


def test_an_answer_of_any_vendor_is_a_chat_completion(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="yes", tool_calls=[("weather", {"city": "Paris"})], finish_reason="tool_calls"))
    (line,) = jobs.results(jobs.submit(["weather?"]))

    choice = line["response"]["body"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    assert choice["message"]["content"] == "yes"


def test_a_batch_line_of_anthropics_goes_there_as_it_is(make: Make, mock_server: MockServer) -> None:
    params = {"model": "c", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "x"}}
    jobs = Jobs(make, "anthropic")
    job = jobs.submit([{"custom_id": "a", "params": params}, {"url": "/v1/messages", "body": params}])

    (request,) = [request for request in mock_server.requests if request.method == "POST"]
    assert [each["params"] for each in request.json()["requests"]] == [params, params]
    assert texts(jobs.results(job)) == ["echo: hi", "echo: hi"]


def test_embeddings_are_a_batch_of_their_own(make: Make) -> None:
    jobs = Jobs(make, "openai")
    job = jobs.submit([{"model": "e", "input": ["a", "b"]}, "hi", {"url": "/v1/embeddings", "body": {"input": "c"}}])
    lines = jobs.results(job)

    assert len(job.batch_ids) == 3  # two urls, and two models of one
    assert [len(lines[place]["response"]["body"]["data"]) for place in (0, 2)] == [2, 1]
    assert text_of(lines[1]) == "echo: hi"


def test_defaults_are_for_shorthands(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "openai", system="brief", temperature=0.5, model="usual")
    jobs.submit(["a", {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "b"}]}}])

    upload = next(request for request in mock_server.requests if request.path == "/v1/files")
    bodies = [json.loads(line)["body"] for line in upload.body.split(b"\r\n\r\n")[2].split(b"\r\n")[0].splitlines()]
    user = [{"role": "user", "content": "a"}]
    system = {"role": "system", "content": "brief"}
    assert bodies[0] == {"model": "usual", "temperature": 0.5, "messages": [system, *user]}
    assert bodies[1] == {"model": "usual", "messages": [{"role": "user", "content": "b"}]}


def test_another_vendor_than_the_clients_is_found_in_the_environment(
    make: Make, mock_server: MockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", mock_server.root_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-1")
    jobs = Jobs(make, "openai")
    job = jobs.submit([{"model": "c", "messages": [{"role": "user", "content": "hi"}]}], via="anthropic", output="out")

    assert (job.via, mock_server.requests[0].header("x-api-key")) == ("anthropic", "sk-ant-1")
    assert texts(jobs.results(jobs.batches.open("out"))) == ["echo: hi"]
    with pytest.raises(ConfigurationError, match="via must be one of"):
        jobs.submit(["a"], via="gemini")


# ---- cut into batches ----


def test_items_are_cut_by_number_by_size_and_by_model(make: Make) -> None:
    jobs = Jobs(make, "openai")
    items = [
        {"model": f"m{number % 2}", "messages": [{"role": "user", "content": str(number)}]} for number in range(10)
    ]
    job = jobs.submit(items, output="by-number", max_items=2)
    assert [part.items for part in jobs.wait(job).parts] == [2, 2, 2, 2, 1, 1]
    assert texts(jobs.results(job)) == [f"echo: {number}" for number in range(10)]

    job = jobs.submit(["x" * 500] * 4, output="by-size", max_bytes=1500)
    assert [part.items for part in jobs.wait(job).parts] == [2, 2]
    job = jobs.submit(["x" * 500, "y" * 5000], output="one-too-large", max_bytes=1500)
    assert texts(jobs.results(job))[1] == "invalid_request_line"


@pytest.mark.parametrize(("via", "most"), [("openai", 50_000), ("anthropic", 100_000)])
def test_one_item_more_than_the_vendor_takes_is_another_batch(via: str, most: int) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
    items = ({"params": body} if via == "anthropic" else body for _ in range(most + 1))
    vendor = VENDORS[via]
    state = Preparation(None, vendor, "", READER, vendor.limits, True, Event()).run(items)

    assert [part.items for part in state.parts] == [most, 1]


def test_inputs_of_embeddings_are_counted() -> None:
    limits = Limits(100, 10**6, 5)
    items = ({"model": "m", "input": ["a", "b"]} for _ in range(3))
    state = Preparation(None, VENDORS["openai"], "", READER, limits, True, Event()).run(items)

    assert [part.items for part in state.parts] == [2, 1]


@pytest.mark.parametrize("first", [True, False])
def test_an_item_that_is_too_large_for_any_batch_leaves_no_empty_one(tmp_path: Path, first: bool) -> None:
    from millstream._vendor_state import Place

    few, many = {"model": "m", "input": ["a"]}, {"model": "m", "input": ["a"] * 6}
    large = {"model": "m", "input": "x" * 2000}
    items = [many, few, large] if first else [few, many, large]
    place = Place(tmp_path / "o")
    state = Preparation(place, VENDORS["openai"], "", READER, Limits(100, 1000, 5), False, Event()).run(items)

    assert ([part.items for part in state.parts], state.bad_lines) == ([1], 2)
    problems = re.findall(r"too large for a batch, which may have [\d,]+ \w+", place.items.read_text())
    assert sorted(problems) == [f"too large for a batch, which may have {most}" for most in ("1,000 bytes", "5 inputs")]


def test_metadata_that_is_no_json_is_its_own_lines_fault(jobs: Jobs) -> None:
    bad = [{"prompt": "x", "metadata": {"score": value}} for value in (float("nan"), float("inf"), object())]
    Path("in.jsonl").write_text('{"prompt":"x","row":NaN}\n{"prompt":"x","row":1e999}\n{"prompt":"y"}\n')
    for items, good in (([*bad, "y"], 3), ("in.jsonl", 2)):
        lines = jobs.results(jobs.submit(items, output=f"out-{good}"))
        assert texts(lines) == ["invalid_request_line"] * good + ["echo: y"]


def test_items_of_many_models_need_few_open_files(tmp_path: Path) -> None:
    from millstream._vendor_state import Place

    items = ({"model": f"m{number % 100}", "messages": [{"role": "user", "content": "a"}]} for number in range(300))
    vendor = VENDORS["openai"]
    open_files = set()

    def watched() -> Iterator[object]:
        for item in items:
            open_files.add(len(os.listdir("/proc/self/fd")))
            yield item

    before = len(os.listdir("/proc/self/fd"))
    state = Preparation(Place(tmp_path / "o"), vendor, "", READER, vendor.limits, True, Event()).run(watched())

    assert sum(part.items for part in state.parts) == 300
    assert max(open_files) < before + 70


# ---- lines that are none ----


def test_a_bad_line_is_an_error_with_its_line_and_stops_no_other(jobs: Jobs, mock_server: MockServer) -> None:
    good = json.dumps(chat("good", "hi"))
    lines = [
        "\ufeff" + good,
        "",
        "{oops",
        '{"bogus": 1}',
        json.dumps({"prompt": "last"}),
        '{"custom_id": "s", "stream": true, "prompt": "x"}',
        '"text"',
    ]
    Path("in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    job = jobs.submit("in.jsonl")

    assert job.output == Path("in.out.jsonl")
    results = jobs.results(job)
    assert [line["millstream"]["line"] for line in results] == [1, 3, 4, 5, 6, 7]
    bad = "invalid_request_line"
    assert texts(results) == ["echo: hi", bad, bad, "echo: last", bad, bad]
    assert results[4]["custom_id"] == "s"
    assert "no JSON object" in results[1]["error"]["message"]
    result = jobs.fetch(job)
    assert (result.total, result.ok, result.bad_lines, result.failed) == (6, 2, 4, 4)

    seen = len(mock_server.requests)
    with pytest.raises(ConfigurationError, match=r"line 3: it is no JSON.*nothing was sent"):
        jobs.submit("in.jsonl", output="strict", strict=True)
    assert len(mock_server.requests) == seen


def test_two_lines_of_one_name_are_refused_before_anything_is_sent(jobs: Jobs, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="custom_id 'a' is on line 1 and on line 3"):
        jobs.submit([chat("a", "x"), chat("b", "x"), chat("a", "y")], output="out")
    with pytest.raises(ConfigurationError, match="nothing to submit"):
        jobs.submit([], output="out")
    assert not mock_server.requests
    assert not list(Path().iterdir())
    # What was refused is in nobody's way.
    assert texts(jobs.results(jobs.submit(["x"], output="out"))) == ["echo: x"]


def test_a_line_without_a_name_is_named_by_what_it_asks(jobs: Jobs) -> None:
    first = jobs.results(jobs.submit(["a", "b", "a"], output="one"))
    second = jobs.results(jobs.submit(["new", "b", "a"], output="two"))

    names = [line["custom_id"] for line in first]
    assert all(name.startswith("h-") for name in names)
    assert names[2] == f"{names[0]}-2"
    assert [line["custom_id"] for line in second][1:] == [names[1], names[0]]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (7, "must be an object"),
        ({"custom_id": 7, "prompt": "x"}, "custom_id must be a string"),
        ({"custom_id": "", "prompt": "x"}, "custom_id must not be empty"),
        ({"method": "GET", "body": {}}, "method must be"),
        ({"url": "https://evil.test/v1/x", "body": {}}, "url must be a path"),
        ({"url": "//evil.test", "body": {}}, "url must be a path"),
        ({"body": "x"}, "body must be a JSON object"),
        ({"prompt": "x", "API_KEY": "sk"}, "may not set"),
        ({"prompt": 7}, "a string or a list of messages"),
        ({"messages": []}, "a string or a list of messages"),
        ({"model": "m", "messages": []}, "messages must be a list"),
        ({"prompt": "x", "stream": True}, 'leave "stream" out'),
        ({"prompt": "half \ud83d"}, "half of a character"),
        ({"prompt": "x", "temperature": float("nan")}, "not JSON compliant"),
        ({"prompt": "x", "metadata": {"score": float("inf")}}, "not JSON compliant"),
        ({"prompt": "x", "seed": object()}, "not JSON serializable"),
    ],
)
def test_what_is_no_request_is_said(item: object, problem: str) -> None:
    with pytest.raises(BadLineError, match=problem):
        vendor_line("openai", "a", request_of(READER.read(1, line_of(item))))


def test_a_url_is_not_doubled() -> None:
    for url in ("/v1/embeddings", "v1/embeddings", "/embeddings", "embeddings"):
        line = line_of({"url": url, "body": {"model": "m"}})
        assert READER.read(1, line).url == "/v1/embeddings"


# What a row may well have for itself.
OWN = {"messages", "metadata", "models", "moderation", "stream", "stream_options", "user"}


@pytest.mark.parametrize("name", sorted(REQUEST_FIELDS - OWN))
def test_a_field_of_a_request_is_one_beside_a_prompt_too(name: str) -> None:
    line = READER.read(1, line_of({"prompt": "x", name: "a", "color": "red"}))
    assert json.loads(line.body)[name] == "a"
    assert line.metadata == '{"color":"red"}'


@pytest.mark.parametrize(
    "item",
    [{"messages": [{"role": "user", "content": "x"}]}, b"in.jsonl", bytearray(b"x"), memoryview(b"x"), UserString("x")],
    ids=lambda item: type(item).__name__,
)
def test_one_item_is_not_taken_for_several(jobs: Jobs, mock_server: MockServer, item: Any) -> None:
    with pytest.raises(TypeError, match=f"not one {type(item).__name__}: wrap it in a list"):
        jobs.submit(item, output="out")
    assert (mock_server.requests, os.listdir()) == ([], [])


# ---- what becomes of items ----


def test_items_fail_one_by_one(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.when("item 1", Answer(status=400))
    mock_server.when("item 3", Answer(status=500))
    job = jobs.submit([chat(f"c{number}", f"item {number}") for number in range(5)])
    lines = jobs.results(job)

    assert [line["response"]["status_code"] for line in lines] == [200, 400, 200, 500, 200]
    assert all(line["error"] is None for line in lines)
    assert "told to answer 400" in json.dumps(lines[1]["response"]["body"])
    result = jobs.fetch(job)
    assert (result.ok, result.failed) == (3, 2)


def test_items_that_expire_are_errors_and_the_others_answers(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.set_batches(expire_after=0.2)
    mock_server.when("item 2", Answer(fault="hang_before"))
    job = jobs.submit([chat(f"c{number}", f"item {number}") for number in range(4)])

    assert texts(jobs.results(job)) == ["echo: item 0", "echo: item 1", "batch_expired", "echo: item 3"]
    assert jobs.fetch(job).failed == 1


def test_what_is_cancelled_keeps_what_was_answered(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.when("item 1", Answer(fault="hang_before"))
    job = jobs.submit([chat(f"c{number}", f"item {number}") for number in range(3)])
    assert not jobs.do(job, "status").done

    jobs.do(job, "cancel")
    assert texts(jobs.results(job)) == ["echo: item 0", "batch_cancelled", "echo: item 2"]
    # There is nothing left to cancel.
    assert jobs.do(job, "cancel").done


def test_batches_that_were_never_made_are_cancelled_without_asking(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(), Answer(status=400))
    with pytest.raises(BadRequestError):
        jobs.submit([chat("a", "x"), chat("b", "y")], output="out", max_items=1)
    job = jobs.batches.open("out")
    jobs.do(job, "cancel")

    assert texts(jobs.results(job)) == ["echo: x", "batch_cancelled"]
    assert made(mock_server, jobs.via) == 1


@pytest.mark.parametrize("via", ["openai", "mistral"])
def test_a_batch_that_could_not_begin_says_so_for_every_item(make: Make, via: str, mock_server: MockServer) -> None:
    jobs = Jobs(make, via)
    job = jobs.submit([chat("a", "x"), chat("b", "y")])
    errors: Any = [{"code": "bad_thing", "line": 2, "message": "wrong model"}]
    failed = {"openai": {"status": "failed", "errors": {"object": "list", "data": errors}}}
    body = failed.get(via, {"status": "FAILED", "errors": errors})
    mock_server.when(f"GET {MAKES[via]}/{job.batch_ids[0]}", Answer(body={"id": job.batch_ids[0], **body}, times=9))
    lines = jobs.results(job)

    assert [line["error"]["code"] for line in lines] == ["batch_failed", "bad_thing"]
    assert all("wrong model" in line["error"]["message"] for line in lines)


def test_results_come_as_their_batches_end(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.when("slow", Answer(latency=0.3))
    job = jobs.submit([chat("a", "fast"), chat("b", "slow"), chat("c", "quick")], max_items=1)
    first = jobs.fetch(job)
    assert (first.ok, first.pending) == (2, 1)

    assert texts(jobs.results(job)) == ["echo: fast", "echo: slow", "echo: quick"]
    downloads = len(mock_server.requests)
    last = jobs.fetch(job)
    assert (last.ok, last.pending) == (3, 0)
    # Everything is there: nothing is asked for.
    assert len(mock_server.requests) == downloads
    assert len(job.output.read_text().splitlines()) == 3


# ---- nothing twice ----


def test_the_answer_to_the_request_for_a_batch_is_lost_and_the_batch_found(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(fault="reset_before"), Answer(fault="truncate"))
    job = jobs.submit([chat("a", "x"), chat("b", "y")], max_items=1)

    assert made(mock_server, jobs.via) == 2
    assert asked(mock_server, "POST", MAKES[jobs.via]) == 2
    assert texts(jobs.results(job)) == ["echo: x", "echo: y"]


def test_a_batch_that_was_not_made_is_asked_for_again(jobs: Jobs, mock_server: MockServer) -> None:
    limited = Answer(status=429, headers={"retry-after": "0"})
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(status=503, headers={"retry-after": "0"}), limited)
    job = jobs.submit([chat("a", "x")])

    assert (made(mock_server, jobs.via), asked(mock_server, "POST", MAKES[jobs.via])) == (1, 3)
    assert asked(mock_server, "POST", "/v1/files") == (jobs.via != "anthropic")
    assert texts(jobs.results(job)) == ["echo: x"]


@pytest.mark.parametrize("refusal", [429, 400])
def test_a_refusal_does_not_forget_what_was_asked_before(jobs: Jobs, mock_server: MockServer, refusal: int) -> None:
    # It is made and its answer lost; the list has it a while later.
    refused = Answer(status=refusal, headers={"retry-after": "0"})
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(fault="reset_before"), refused)
    mock_server.when(f"GET {MAKES[jobs.via]}", Answer(body={"data": [], "has_more": False}))
    if refusal == 400:
        with pytest.raises(BadRequestError):
            jobs.submit([chat("a", "x")], output="out")
        assert json.loads(Path("out.batch.json").read_text())["parts"][0]["asked"]
    job = jobs.submit([chat("a", "x")], output="out")

    assert (made(mock_server, jobs.via), asked(mock_server, "POST", MAKES[jobs.via])) == (1, 2)
    assert texts(jobs.results(job)) == ["echo: x"]


@pytest.mark.parametrize("via", ["openai", "mistral"])
def test_a_batch_with_a_token_is_found_by_a_clock_that_is_hours_ahead(
    make: Make, via: str, mock_server: MockServer
) -> None:
    jobs = Jobs(make, via)
    job = jobs.submit([chat("a", "x")], output="out")
    jobs.submit([chat("a", "x")], output="later")
    change_part("out", 0, batch_id=None, asked=time.time() + 5 * 3600)

    assert jobs.submit([chat("a", "x")], output="out").batch_ids == job.batch_ids
    assert made(mock_server, via) == 2


def test_a_refused_job_goes_on_when_it_is_submitted_again(jobs: Jobs, mock_server: MockServer) -> None:
    items = [chat(f"c{number}", str(number)) for number in range(3)]
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(), Answer(status=400))
    with pytest.raises(BadRequestError):
        jobs.submit(items, output="out", max_items=1)
    with pytest.raises(ConfigurationError, match="has other items"):
        jobs.submit(items[:2], output="out")

    # How they are cut is the first call's.
    job = jobs.submit(items, output="out")
    assert made(mock_server, jobs.via) == 3
    assert texts(jobs.results(job)) == ["echo: 0", "echo: 1", "echo: 2"]
    again = jobs.submit(items, output="out")
    assert (made(mock_server, jobs.via), again.batch_ids) == (3, job.batch_ids)
    assert not list(Path().glob("*part*")) + list(Path().glob("*again*"))


def test_what_was_to_be_sent_and_is_gone_is_made_again(jobs: Jobs, mock_server: MockServer) -> None:
    items = [chat(f"c{number}", str(number)) for number in range(3)]
    mock_server.when(f"POST {MAKES[jobs.via]}", Answer(), Answer(status=400))
    with pytest.raises(BadRequestError):
        jobs.submit(items, output="out", max_items=1)
    Path("out.batch.part-3").unlink()

    assert texts(jobs.results(jobs.submit(items, output="out"))) == ["echo: 0", "echo: 1", "echo: 2"]
    assert not list(Path().glob("*again*"))


CHILD = """
import sys
from millstream import Client, VendorBatches
url, key, via, count = sys.argv[1:]
items = [{"custom_id": f"c{n}", "prompt": f"item {n}"} for n in range(int(count))]
with Client(base_url=url, api_key=key, provider=via, model="m", max_retries=0) as client:
    job = VendorBatches(client).submit_blocking(items, output="out", max_items=1)
    job.wait_blocking(poll=0.01)
    job.fetch_blocking()
"""


def child(server: MockServer, via: str, count: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", CHILD, server.base_url, KEY, via, str(count)]
    return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_when(process: subprocess.Popen[bytes], claim: Callable[[], bool]) -> None:
    with process:
        until(lambda: claim() or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("is_made", [True, False], ids=["made", "not made"])
def test_killed_between_the_request_for_a_batch_and_its_answer(
    via: str, is_made: bool, mock_server: MockServer
) -> None:
    # Told 503, the server has made none.
    mock_server.when(f"POST {MAKES[via]}", Answer(status=200 if is_made else 503, fault="hang_before"))
    kill_when(child(mock_server, via, 2), lambda: asked(mock_server, "POST", MAKES[via]) == 1)
    assert made(mock_server, via) == is_made
    with child(mock_server, via, 2) as second:
        assert second.communicate(timeout=60)[1].decode().count("Error") == 0
        assert second.returncode == 0

    assert made(mock_server, via) == 2
    # What was uploaded is not uploaded again.
    assert asked(mock_server, "POST", "/v1/files") == (0 if via == "anthropic" else 2)
    lines = sorted(Path("out").read_text().splitlines(), key=lambda line: json.loads(line)["custom_id"])
    assert texts([json.loads(line) for line in lines]) == ["echo: item 0", "echo: item 1"]


@pytest.mark.slow
@pytest.mark.parametrize("via", VIAS)
def test_killed_at_every_request_nothing_is_lost_or_made_twice(via: str) -> None:
    count = 4
    # An answer takes a moment, so that the kill is before some answers and after others.
    with MockServer(latency=0.02) as server:
        kills = 0
        for number in range(1, 40):
            seen = server.stats.requests
            process = child(server, via, count)
            with process:
                until(lambda: server.stats.requests >= seen + number or process.poll() is not None)
                process.kill()
                process.communicate()
            kills += process.returncode == -signal.SIGKILL
            if process.returncode == 0:
                break
        assert process.returncode == 0
        assert kills > 3
        assert made(server, via) == count
    lines = [json.loads(line) for line in Path("out").read_text().splitlines()]
    assert sorted(texts(lines)) == [f"echo: item {number}" for number in range(count)]
    assert not list(Path().glob("*.part-*")) + list(Path().glob("*.results-*"))


def test_two_batches_that_may_be_ours_are_not_guessed_at(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "anthropic")
    jobs.submit([chat("other", "x")], output="other")
    jobs.submit([chat("another", "x")], output="another")
    mock_server.when("POST /v1/messages/batches", Answer(status=503, headers={"retry-after": "0"}))

    with pytest.raises(ConfigurationError, match=r"any of the batches msgbatch_mock_1, msgbatch_mock_0 may be batch 1"):
        jobs.submit([chat("a", "y")], output="out")
    assert made(mock_server, "anthropic") == 2


def test_results_of_another_batch_are_not_taken_for_ours(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "anthropic")
    jobs.submit([chat("other", "x")], output="other")
    mock_server.when("POST /v1/messages/batches", Answer(status=503, headers={"retry-after": "0"}))
    job = jobs.submit([chat("a", "y")], output="out")
    jobs.wait(job)
    with pytest.raises(ConfigurationError, match="it is another one"):
        jobs.fetch(job)

    # As the error says.
    change_part("out", 0, batch_id=None, asked=None, is_over=False)
    assert texts(jobs.results(jobs.submit([chat("a", "y")], output="out"))) == ["echo: y"]


def test_a_batch_is_never_asked_for_twice_at_once(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "openai")
    jobs.face = make(hedge_after=0.01, fallback_models=["other"])
    jobs.batches = VendorBatches(jobs.face.client)
    mock_server.when("POST /v1/", Answer(latency=0.2, times=0))
    jobs.submit(["a"])

    assert [request.path for request in mock_server.requests] == ["/v1/files", "/v1/batches"]


def test_a_batch_is_found_on_a_later_page(jobs: Jobs, mock_server: MockServer) -> None:
    # Another page for each 100.
    for number in range(3):
        jobs.submit([chat("a", "x"), chat("b", "x")], output=f"o{number}")
    (wanted,) = jobs.batches.open("o0").batch_ids
    change_part("o0", 0, batch_id=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("millstream._vendor_apis._PAGE", 1)
        if jobs.via == "anthropic":
            with pytest.raises(ConfigurationError, match=f"mock_2, .*{wanted} may be"):
                jobs.submit([chat("a", "x"), chat("b", "x")], output="o0")
        else:
            assert jobs.submit([chat("a", "x"), chat("b", "x")], output="o0").batch_ids == [wanted]
    assert made(mock_server, jobs.via) == 3


# ---- files ----


def test_files_are_their_owners_alone_and_hold_no_key(jobs: Jobs) -> None:
    jobs.results(jobs.submit(["a secret prompt"], output="out"))

    files = [path for path in Path().iterdir() if path.is_file()]
    assert {path.name for path in files} == {"out", "out.batch.json", "out.batch.items"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not any(KEY in path.read_text() for path in files)
    # Prompts are only in what the vendor answers.
    assert not any("a secret prompt" in path.read_text() for path in files if path.name != "out")


def test_an_output_that_holds_something_else_is_left_alone(jobs: Jobs, mock_server: MockServer) -> None:
    Path("out").write_text("mine")
    with pytest.raises(ConfigurationError, match="of no batch job"):
        jobs.submit(["a"], output="out")
    assert (Path("out").read_text(), mock_server.requests) == ("mine", [])
    assert os.listdir() == ["out"]
    os.symlink("out", "link.batch.items")
    with pytest.raises(OSError, match="symbolic links"):
        jobs.submit(["a"], output="link")
    assert (Path("out").read_text(), mock_server.requests) == ("mine", [])


def test_an_output_that_was_torn_is_repaired_and_one_that_is_gone_fetched_again(
    jobs: Jobs, mock_server: MockServer
) -> None:
    mock_server.when("slow", Answer(latency=0.2))
    job = jobs.submit([chat("a", "fast"), chat("b", "slow")], output="out", max_items=1)
    jobs.fetch(job)
    with Path("out").open("a") as file:
        file.write('{"custom_id": "b", "resp')
    assert texts(jobs.results(job)) == ["echo: fast", "echo: slow"]

    Path("out").unlink()
    assert texts(jobs.results(job)) == ["echo: fast", "echo: slow"]
    # As if the last batch were still to be fetched.
    change_part("out", 1, is_fetched=False)
    Path("out").write_text("short")
    with pytest.raises(ConfigurationError, match="was changed since"):
        jobs.fetch(job)


def test_a_job_is_opened_by_its_output_at_its_own_server_alone(jobs: Jobs, make: Make) -> None:
    job = jobs.submit(["a"], output="out")
    assert jobs.batches.open("out").batch_ids == job.batch_ids
    with pytest.raises(ConfigurationError, match="there is no batch job of none"):
        jobs.batches.open("none")
    elsewhere = VendorBatches(jobs.face.with_options(base_url="http://127.0.0.1:9/v1").client)
    with pytest.raises(ConfigurationError, match="and the client at"):
        elsewhere.open("out")
    Path("out.batch.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not the state of a batch job"):
        jobs.batches.open("out")


def test_two_at_work_on_one_job_are_one_too_many(jobs: Jobs) -> None:
    import fcntl

    job = jobs.submit(["a"], output="out")
    with Path("out.batch.items").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another process"):
            jobs.fetch(job)
    assert jobs.fetch(job).ok == 1


def test_a_result_of_no_item_is_reported_and_not_written(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "anthropic")
    job = jobs.submit([chat("a", "x"), chat("b", "y")])
    jobs.wait(job)
    result = {"custom_id": "a", "result": {"type": "canceled"}}
    body = "\n".join([json.dumps(result), json.dumps(result), "junk", '{"custom_id": []}']) + "\n"
    mock_server.when(f"GET /v1/messages/batches/{job.batch_ids[0]}/results", Answer(body=body))
    fetched = jobs.fetch(job)

    assert len(fetched.problems) == 3
    assert "result 2 is of no item that is still open: 'a'" in fetched.problems[0]
    assert texts(jobs.results(job)) == ["batch_cancelled", "no_result"]


@pytest.mark.parametrize("via", VIAS)
def test_a_result_that_is_no_json_is_an_error_and_keeps_no_other_back(
    make: Make, via: str, mock_server: MockServer
) -> None:
    jobs = Jobs(make, via)
    job = jobs.submit([chat(name, "x") for name in "abcd"], output="out")
    jobs.wait(job)
    (batch_id,) = job.batch_ids
    message = {"id": "m", "model": "m", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}
    answer = message | {"type": "message", "stop_reason": "end_turn"} if via == "anthropic" else answer

    def result(name: str, status: int = 200, **more: Any) -> str:
        if via == "anthropic":
            what = {"type": "succeeded", "message": answer | more}
            if status != 200:
                what = {"type": "errored", "error": {"error": {"type": "api_error", "message": float("nan")}}}
            return json.dumps({"custom_id": name, "result": what})
        return json.dumps({"custom_id": name, "response": {"status_code": status, "body": answer | more}})

    nan = float("nan")
    body = "\n".join([result("a"), result("b", logprobs=nan), result("c", 500, why=-float("inf")), result("d")]) + "\n"
    path = f"{MAKES[via]}/{batch_id}/results"
    if via != "anthropic":
        change_part("out", 0, is_over=True, status="completed", results=["files/f/content"])
        path = "/v1/files/f/content"
    mock_server.when(f"GET {path}", Answer(body=body))
    result_of_all = jobs.fetch(job)

    assert (result_of_all.ok, result_of_all.failed, result_of_all.pending, result_of_all.problems) == (2, 2, 0, [])
    lines = [json.loads(line, parse_constant=pytest.fail) for line in Path("out").read_text().splitlines()]
    assert texts(lines) == ["hi", "invalid_response", "invalid_response", "hi"]
    assert [line["custom_id"] for line in lines] == list("abcd")
    assert batch_id in lines[1]["error"]["message"]


@pytest.mark.parametrize("loss", ["gone", "empty", "torn", "short"])
def test_without_its_items_nothing_is_fetched_and_they_are_made_again(
    jobs: Jobs, mock_server: MockServer, loss: str
) -> None:
    # By its metadata an item is known to be whole again; the line that is none has its place there, too.
    items = [chat("a", "x", row=1), chat("b", "y"), {"bad": "line"}, chat("c", "z")]
    job = jobs.submit(items, output="out", max_items=2)
    jobs.wait(job)
    path = Path("out.batch.items")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    left = {"empty": b"", "torn": whole[:-5], "short": b"".join(lines[1:])}
    path.unlink()
    if loss in left:
        path.write_bytes(left[loss])
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"out\.batch\.items .*submit the same items") as caught:
            jobs.fetch(job)
        assert (loss == "gone") == ("is gone" in str(caught.value))
        assert not Path("out").exists()
        assert path.exists() == (loss != "gone")

    # As the error says.
    again = jobs.submit(items, output="out")
    assert (again.batch_ids, made(mock_server, jobs.via), path.read_bytes()) == (job.batch_ids, 2, whole)
    assert not list(Path().glob("*part*")) + list(Path().glob("*again*"))
    fetched = jobs.results(again)
    assert texts(fetched) == ["echo: x", "echo: y", "invalid_request_line", "echo: z"]
    assert fetched[0]["metadata"] == {"row": 1}
    path.unlink()
    Path("out.batch.json").unlink()
    with pytest.raises(ConfigurationError, match="are gone: put them back"):
        jobs.fetch(again)


# ---- waiting ----


def test_waiting_asks_less_and_less_and_tells_each_status(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.set_batches(delay=0.4)
    job = jobs.submit(["a"])
    seen: list[BatchJobStatus] = []
    status = jobs.wait(job, poll=0.02, max_poll=0.1, on_status=seen.append)

    assert (seen[-1], status.done, status.completed, status.items) == (status, True, 1, 1)
    assert not seen[0].done
    moments = [request.arrived for request in mock_server.requests if request.path.endswith(job.batch_ids[0])]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert len(moments) == len(seen)
    assert gaps[0] < gaps[-1]


def test_waiting_ends_in_time(jobs: Jobs, mock_server: MockServer) -> None:
    mock_server.set_batches(delay=3600)
    job = jobs.submit(["a"])
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s"):
        jobs.wait(job, timeout=0.05)
    with pytest.raises(ConfigurationError, match="poll must be positive"):
        jobs.wait(job, poll=0)


def test_waiting_outlives_an_outage_but_not_a_lost_key(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "openai")
    job = jobs.submit(["a"])
    path = f"GET /v1/batches/{job.batch_ids[0]}"
    mock_server.when(path, Answer(status=503, headers={"retry-after": "0"}, times=5), Answer(status=401))
    with pytest.raises(APIError) as caught:
        jobs.wait(job)
    assert caught.value.status_code == 401
    assert jobs.wait(job).done


async def test_a_wait_that_is_cancelled_leaves_the_job_as_it_was(mock_server: MockServer) -> None:
    from millstream import AsyncClient

    mock_server.set_batches(delay=0.3)
    async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        job = await VendorBatches(client).submit(["a"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await job.wait(poll=0.01)
        await job.wait(poll=0.01)
        assert texts(await job.results()) == ["echo: a"]


async def test_a_submit_that_is_cancelled_can_go_on(mock_server: MockServer) -> None:
    from millstream import AsyncClient

    def endless() -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield f"item {number}"

    async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        batches = VendorBatches(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await batches.submit(endless(), output="out")
        assert mock_server.requests == []
        mock_server.when("POST /v1/batches", Answer(fault="hang_before"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await batches.submit(["a"], output="out")
        job = await batches.submit(["a"], output="out")
        assert texts(await job.results()) == ["echo: a"]
    assert made(mock_server, "openai") == 1


def test_both_ways_work_with_either_client(make: Make) -> None:
    client = make(provider="openai").client
    batches = VendorBatches(client)

    async def awaited() -> list[dict[str, Any]]:
        job = await batches.submit(["a"], output="awaited")
        await job.wait(poll=0.01)
        return await job.results()

    assert texts(asyncio.run(awaited())) == ["echo: a"]
    job = batches.submit_blocking(["a"], output="blocking")
    job.wait_blocking(poll=0.01)
    assert texts(job.results_blocking()) == ["echo: a"]


def test_a_server_that_is_not_there_is_an_error(make: Make, mock_server: MockServer) -> None:
    jobs = Jobs(make, "openai")
    jobs.face = jobs.face.with_options(max_retries=0)
    jobs.batches = VendorBatches(jobs.face.client)
    mock_server.stop()
    with pytest.raises(APIConnectionError):
        jobs.submit(["a"], output="out")
    assert issubclass(APIConnectionError, MillstreamError)
    mock_server.start()
    assert texts(jobs.results(jobs.submit(["a"], output="out"))) == ["echo: a"]


def test_a_line_names_neither_a_server_nor_a_key_and_neither_is_written_anywhere(
    jobs: Jobs, mock_server: MockServer, tmp_path: Path
) -> None:
    secret = {"prompt": "b", "custom_id": "b", "base_url": "http://evil", "api_key": "sk-canary-123456789"}
    job = jobs.submit(["a", secret])
    assert texts(jobs.results(job)) == ["echo: a", "invalid_request_line"]
    for path in tmp_path.rglob("*"):
        assert b"sk-canary" not in path.read_bytes(), path
    assert not any(b"sk-canary" in request.body for request in mock_server.requests)
