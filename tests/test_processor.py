"""`BatchProcessor`: any source, any end, every item exactly once."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until, until_async
from millstream import (
    AdaptiveBatchPolicy,
    APIResponseValidationError,
    AsyncClient,
    BadRequestError,
    BatchProcessor,
    BatchResults,
    BatchStoppedError,
    Client,
    ConfigurationError,
    Progress,
)
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture
def client(mock_server: MockServer) -> Iterator[Client]:
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", timeout=20) as client:
        yield client


def prompts_seen(server: MockServer) -> Counter[str]:
    return Counter(request.json()["messages"][-1]["content"] for request in server.requests)


def items(count: int) -> list[str]:
    return [f"<item {number}>" for number in range(count)]


def echoes(prompts: list[str]) -> list[str | None]:
    return [f"echo: {prompt}" for prompt in prompts]


# ---- sources ----


async def counted(source: list[str]) -> AsyncIterator[str]:
    for item in source:
        await asyncio.sleep(0)
        yield item


def queued(source: list[str]) -> asyncio.Queue[str | None]:
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    for item in [*source, None]:
        queue.put_nowait(item)
    return queue


class OldSequence:
    """Iterable by its indices alone, as some data sets are."""

    def __getitem__(self, place: int) -> str:
        return items(300)[place]


SOURCES: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "set": dict.fromkeys,
    "by index": lambda _: OldSequence(),
    "async generator": counted,
    "queue": queued,
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_every_kind_of_source_is_read_whole_and_in_order(
    client: Client, mock_server: MockServer, kind: str
) -> None:
    prompts = items(300)
    source = SOURCES[kind](prompts)
    results = await BatchProcessor(client).process_all(source.keys() if kind == "set" else source)

    assert results.texts() == echoes(prompts)
    assert [result.index for result in results] == list(range(300))
    assert [result.input for result in results] == prompts
    assert prompts_seen(mock_server) == Counter(prompts)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt", "parquet"])
async def test_files_are_read_line_by_line(client: Client, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"items.{suffix}"
    rows = [{"custom_id": f"id-{number}", "prompt": f"<item {number}>", "kind": "x"} for number in range(40)]
    if suffix == "jsonl":
        path.write_text("\n\n".join(json.dumps({**row, "kind": None, "temperature": 0.5}) for row in rows))
    elif suffix == "txt":
        path.write_text("\n".join(str(row["prompt"]) for row in rows))
    elif suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        tab = "\t" if suffix == "tsv" else ","
        path.write_text("\n".join(tab.join(map(str, row)) for row in [list(rows[0]), *(r.values() for r in rows)]))
    for source in (path, str(path)):
        results = await BatchProcessor(client).process_all(source)
        assert results.texts() == echoes(items(40))
        if suffix != "txt":
            assert [result.custom_id for result in results] == [row["custom_id"] for row in rows]


async def test_a_column_of_no_request_is_data_and_not_a_field_of_the_request(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    path = tmp_path / "items.csv"
    path.write_text("prompt,kind\nhi,letter\n")
    results = await BatchProcessor(client).process_all(path)
    assert "kind" not in mock_server.requests[-1].json()
    assert results[0].input == {"prompt": "hi", "kind": "letter"}


async def test_lines_of_openais_batch_files_are_requests(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    path = tmp_path / "items.jsonl"
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path.write_text(json.dumps(line) + "\n{broken\n")
    good, bad = await BatchProcessor(client).process_all(path)
    assert (good.custom_id, good.text, mock_server.requests[-1].json()) == ("a", "echo: hi", body)
    assert isinstance(bad.error, ConfigurationError)
    assert "line 2" in str(bad.error)


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
async def test_columns_and_tables_are_sources(client: Client, package: str) -> None:
    library = pytest.importorskip(package)
    rows = {"text": items(600), "number": list(range(600))}
    table = library.table(rows) if package == "pyarrow" else library.DataFrame(rows)
    processor = BatchProcessor(client, template="{text}")
    whole = await processor.process_all(table)
    assert whole.texts() == echoes(items(600))
    assert whole[3].input == {"text": "<item 3>", "number": 3}
    assert (await BatchProcessor(client).process_all(table["text"])).texts() == echoes(items(600))


async def test_one_item_is_no_source_and_a_missing_file_is_missed_before_anything_is_sent(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    processor = BatchProcessor(client)
    for one in ("a prompt", b"bytes", {"prompt": "hi"}, 7, None):
        with pytest.raises(TypeError, match="items must be"):
            await processor.process_all(one)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        await processor.process_all(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match=r"\.jsonl"):
        await processor.process_all(tmp_path)
    assert mock_server.stats.requests == 0


async def test_no_items_give_no_results(client: Client, mock_server: MockServer) -> None:
    processor = BatchProcessor(client)
    for nothing in ([], iter(()), counted([]), queued([])):
        results = await processor.process_all(nothing)
        assert (len(results), results.summary().total) == (0, 0)
    assert [result async for result in processor.stream([])] == []
    assert mock_server.stats.connections == 0


async def test_what_a_source_raises_ends_the_run_and_closes_the_connections(
    client: Client, mock_server: MockServer
) -> None:
    def broken() -> Iterator[str]:
        yield from items(20)
        raise RuntimeError("the disk is gone")

    mock_server.script(Answer(fault="hang_before", times=0))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        await BatchProcessor(client).process_all(broken())
    await until_async(lambda: mock_server.stats.in_flight == 0)


async def test_a_source_that_raises_at_once_hangs_nobody(client: Client, mock_server: MockServer) -> None:
    def broken() -> Iterator[str]:
        raise RuntimeError("no disk")
        yield ""

    for read in (BatchProcessor(client).process_all, BatchProcessor(client).process_in_batches):
        with pytest.raises(RuntimeError, match="no disk"):
            await asyncio.wait_for(read(broken()), 5)
    with pytest.raises(RuntimeError, match="no disk"):
        await anext(BatchProcessor(client).stream(broken()))
    assert mock_server.stats.connections == 0


async def test_a_stop_does_not_wait_for_a_source_that_gives_nothing(client: Client) -> None:
    empty: asyncio.Queue[str] = asyncio.Queue()
    processor = BatchProcessor(client)
    for read in (processor.process_all, processor.process_in_batches, processor.process_queue):
        running = asyncio.create_task(read(empty))
        await asyncio.sleep(0.02)
        processor.stop()
        results = await asyncio.wait_for(running, 5)
        assert (len(results), results.stopped) == (0, "interrupted")


async def test_a_blocking_source_is_read_by_one_thread_that_is_not_the_loops(client: Client) -> None:
    threads = set()

    def slow() -> Iterator[str]:
        for item in items(50):
            threads.add(threading.get_ident())
            time.sleep(0.002)
            yield item

    longest, last = 0.0, time.monotonic()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    ticks = asyncio.create_task(tick())
    results = await BatchProcessor(client).process_all(slow())
    ticks.cancel()
    assert len(results) == 50
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_slow_source_gets_each_result_when_it_is_there_and_not_when_a_page_is_full(client: Client) -> None:
    may_go_on = threading.Event()

    def hesitant() -> Iterator[str]:
        yield "first"
        assert may_go_on.wait(10)
        yield "second"

    stream = BatchProcessor(client).stream(hesitant())
    assert (await anext(stream)).text == "echo: first"
    may_go_on.set()
    assert (await anext(stream)).text == "echo: second"


async def test_the_producer_is_never_more_than_a_bound_ahead_of_a_slow_reader(client: Client) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"<item {read}>"

    async def endless_async() -> AsyncIterator[str]:
        for item in endless():
            yield item

    processor = BatchProcessor(client, max_concurrent=8)
    for source in (endless, endless_async):
        read = 0
        async with processor.stream(source()) as stream:
            for taken in range(1, 1500):
                await anext(stream)
                assert read - taken < 2500
            for _ in range(200):
                await asyncio.sleep(0.001)
            assert read < 1500 + 2500


# ---- items ----


async def test_an_item_is_a_prompt_messages_or_a_whole_request(client: Client, mock_server: MockServer) -> None:
    messages = [{"role": "user", "content": "two"}]
    whole = {
        "messages": [{"role": "user", "content": "three"}],
        "custom_id": "c",
        "system": "own",
        "model": "other",
        "temperature": 0.5,
        "deadline": 5,
        "priority": 3,
    }
    processor = BatchProcessor(client, system="usual", max_tokens=9)
    results = await processor.process_all(["one", messages, whole, {"prompt": "four", "max_tokens": 4}])
    assert results.texts() == echoes(["one", "two", "three", "four"])
    assert [result.custom_id for result in results] == [None, None, "c", None]
    bodies = {body["messages"][-1]["content"]: body for body in (request.json() for request in mock_server.requests)}
    system = {name: body["messages"][0]["content"] for name, body in bodies.items()}
    assert system == {"one": "usual", "two": "usual", "three": "own", "four": "usual"}
    assert [bodies[name]["max_tokens"] for name in ("one", "three", "four")] == [9, 9, 4]
    assert (bodies["three"]["model"], bodies["three"]["temperature"]) == ("other", 0.5)
    assert not {"custom_id", "deadline", "priority", "system"} & bodies["three"].keys()


async def test_an_item_that_is_no_request_fails_alone_and_says_why(client: Client, mock_server: MockServer) -> None:
    bad = [7, None, {}, {"text": "no template"}, {"prompt": "a", "messages": []}, [], "\ud800", {"prompt": object()}]
    bad += [{"prompt": "hi", "stream": True}, {"prompt": "hi", "deadline": -1}]
    results = await BatchProcessor(client).process_all(["fine", *bad, "fine"])
    assert [result.ok for result in results] == [True, *[False] * len(bad), True]
    for result in results[1:-1]:
        assert isinstance(result.error, ConfigurationError), result
        assert result.error.index == result.index
    assert mock_server.stats.requests == 2


async def test_a_deadline_of_an_item_is_its_own(client: Client, mock_server: MockServer) -> None:
    mock_server.when("slow", Answer(fault="hang_before", times=0))
    fine, late = await BatchProcessor(client).process_all(["fine", {"prompt": "slow", "deadline": 0.2}])
    assert (fine.ok, type(late.error).__name__, late.attempts) == (True, "DeadlineExceeded", 1)


@pytest.mark.parametrize(
    ("template", "item", "asked"),
    [
        ("Summarize: {text}", {"text": "a {b}"}, "Summarize: a {b}"),
        ("Summarize: {text}", "a {b}", "Summarize: a {b}"),
        ("{} and {{}}", "a", "a and {}"),
        ("{0[name]:>3}", {"name": "x"}, "  x"),
        ("{price:.2f}", {"price": 1}, "1.00"),
        ([{"role": "user", "content": "Say {word}"}], {"word": "hi"}, "Say hi"),
        (lambda item: f"upper {item.upper()}", "a", "upper A"),
        (lambda item: {"prompt": item["text"], "temperature": 0}, {"text": "t"}, "t"),
    ],
)
async def test_a_template_makes_a_request_of_an_item(client: Client, template: Any, item: Any, asked: str) -> None:
    results = await BatchProcessor(client, template=template).process_all([item])
    assert (results.texts(), results[0].input) == ([f"echo: {asked}"], item)
    assert (await BatchProcessor(client).map(template, iter([item]))).texts() == [f"echo: {asked}"]


async def test_a_template_that_does_not_fit_fails_its_item_and_a_broken_one_is_refused(client: Client) -> None:
    (result,) = await BatchProcessor(client, template="{titel}").process_all([{"title": "x"}])
    assert "titel" in str(result.error)
    assert "title" in str(result.error)
    (result,) = await BatchProcessor(client, template=lambda item: item["x"]).process_all([{}])
    assert "KeyError" in str(result.error)
    with pytest.raises(ConfigurationError, match="template"):
        BatchProcessor(client, template="{text")
    with pytest.raises(TypeError, match="template"):
        BatchProcessor(client, template=7)  # type: ignore[arg-type]


# ---- order, exactly once ----


async def test_results_come_as_they_complete_and_process_all_restores_the_order(
    client: Client, mock_server: MockServer
) -> None:
    prompts = items(8)
    for place, prompt in enumerate(prompts):
        mock_server.when(prompt, Answer(text=str(place), latency=0.02 * (len(prompts) - place), times=0))
    processor = BatchProcessor(client)
    assert [result.index async for result in processor.stream(prompts)] == list(reversed(range(8)))
    assert [result.index async for result in processor.as_completed(iter(prompts))] == list(reversed(range(8)))
    assert (await processor.process_all(prompts)).texts() == [str(place) for place in range(8)]


async def mixed_faults(server: MockServer, count: int, concurrent: int) -> None:
    """One in ten requests fails, in every way."""
    faults = [Answer(status=500), Answer(status=503), Answer(status=429), Answer(fault="reset_before")]
    faults += [Answer(fault="truncate"), Answer(fault="close_before"), Answer(body={})]
    fine = Answer()
    server.script(*(fine if place % 10 else faults[place // 10 % len(faults)] for place in range(count)))
    async with AsyncClient(api_key=KEY, base_url=server.base_url, model="m", max_retries=6, timeout=60) as client:
        processor = BatchProcessor(client, max_concurrent=concurrent)
        results = await processor.process_all(f"<item {number}>" for number in range(count))
        assert results.texts() == echoes(items(count))
        assert [result.index for result in results] == list(range(count))
        assert results.summary().attempts <= server.stats.requests <= 1.15 * count
        assert processor.progress().done == count


async def test_under_mixed_faults_every_item_has_its_own_answer_once(mock_server: MockServer) -> None:
    await mixed_faults(mock_server, 2000, 64)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.mock_server(record=False)
async def test_a_hundred_thousand_items_under_mixed_faults(mock_server: MockServer) -> None:
    await mixed_faults(mock_server, 100_000, 256)


async def test_identical_requests_are_sent_once_where_their_answers_are_the_same(
    client: Client, mock_server: MockServer
) -> None:
    prompts = [f"<{number % 10}>" for number in range(200)]
    for options, requests in (
        ({}, 200),
        ({"temperature": 0}, 10),
        ({"temperature": 0, "dedupe": False}, 200),
        ({"temperature": 1, "dedupe": True}, 10),
    ):
        mock_server.clear()
        results = await BatchProcessor(client, **options).process_all(prompts)
        assert results.texts() == echoes(prompts)
        assert mock_server.stats.requests == requests, options
        cached = [result for result in results if result.cached]
        assert len(cached) == results.summary().cached == 200 - requests
        assert all((result.attempts, result.usage) == (0, None) for result in cached)
        paid = [result.usage.prompt_tokens for result in results if result.usage is not None]
        assert results.summary().prompt_tokens == sum(paid)


@pytest.mark.mock_server(latency=0.2)
async def test_a_shared_refusal_has_the_items_own_index(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, times=0))
    results = await BatchProcessor(client, dedupe=True).process_all(["same"] * 5)
    assert [error.index for error in results.errors.values()] == list(range(5))  # type: ignore[attr-defined]
    assert mock_server.stats.requests == 1


@pytest.mark.mock_server(latency=0.05)
async def test_by_prefix_one_of_each_system_prompt_goes_first(client: Client, mock_server: MockServer) -> None:
    systems = [letter * 3000 for letter in "abc"]
    requests = [{"prompt": f"<item {number}>", "system": systems[number % 3]} for number in range(90)]
    results = await BatchProcessor(client, order="prefix").process_all(requests)
    assert results.texts() == echoes(items(90))
    seen = sorted(mock_server.requests, key=lambda request: request.arrived)
    for system in systems:
        first, *others = [r.arrived for r in seen if r.json()["messages"][0]["content"] == system]
        assert len(others) == 29
        assert min(others) - first >= 0.04


# ---- errors and stops ----


async def test_on_error_says_what_becomes_of_a_failed_item(client: Client, mock_server: MockServer) -> None:
    mock_server.when("<item 3>", Answer(status=400, times=0))

    def processor(on_error: Any) -> BatchProcessor:
        return BatchProcessor(client, on_error=on_error)

    returned = await processor("return").process_all(items(6))
    assert {index: type(error) for index, error in returned.errors.items()} == {3: BadRequestError}
    with pytest.raises(BadRequestError):
        returned.raise_first()
    nothing = await processor("none").process_all(items(6))
    assert (nothing[3].text, nothing[3].error, nothing[3].ok, len(nothing)) == (None, None, False, 6)
    assert (nothing.summary().failed, nothing.raise_first()) == (1, nothing)
    skipped = await processor("skip").process_all(items(6))
    assert [result.index for result in skipped] == [0, 1, 2, 4, 5]
    with pytest.raises(BadRequestError) as caught:
        await processor("raise").process_all(items(6))
    assert caught.value.index == 3
    with pytest.raises(ConfigurationError, match="on_error"):
        processor("ignore")


async def test_the_first_error_is_raised_after_the_others_were_aborted(client: Client, mock_server: MockServer) -> None:
    mock_server.when("<item 39>", Answer(status=400, latency=0.05))
    mock_server.script(Answer(fault="hang_before", times=0))
    with pytest.raises(BadRequestError):
        await BatchProcessor(client, on_error="raise").process_all(items(40))
    await until_async(lambda: mock_server.stats.in_flight == 0)


def usual() -> dict[str, Any]:
    return {"max_concurrent": 4, "stop_on_fatal": False}


@pytest.mark.mock_server(latency=0.005)
@pytest.mark.parametrize(
    ("rule", "status", "reason"),
    [
        ({"max_errors": 3}, 400, "max_errors"),
        ({"max_error_rate": 0.5}, 400, "error_rate"),
        ({"stop_on_fatal": True}, 401, "fatal"),
        ({"stop_on_fatal": True}, 402, "fatal"),
        ({"budget_tokens": 500}, 200, "budget"),
        ({"budget_usd": 0.001, "prices": {"m": (1.0, 2.0)}}, 200, "budget"),
        ({"deadline": 0.3}, 200, "deadline"),
    ],
)
@pytest.mark.parametrize("sized", [True, False], ids=["list", "generator"])
async def test_a_rule_stops_the_run_and_every_item_read_has_one_result(
    client: Client, mock_server: MockServer, rule: dict[str, Any], status: int, reason: str, sized: bool
) -> None:
    if status != 200:
        mock_server.script(Answer(status=status, times=0))
    read = 0

    def generated() -> Iterator[str]:
        nonlocal read
        for read, item in enumerate(items(5000), 1):
            yield item

    processor = BatchProcessor(client, **{**usual(), **rule})
    results = await processor.process_all(items(5000) if sized else generated())
    assert results.stopped == results.summary().stopped == reason
    assert [result.index for result in results] == list(range(len(results)))
    # The thread may be about to hand over one more.
    assert len(results) == 5000 if sized else 0 <= read - len(results) <= 1
    given_up = [result.error for result in results if isinstance(result.error, BatchStoppedError)]
    assert {error.reason for error in given_up} == {reason}
    assert results.summary().given_up == len(given_up) > 0
    assert mock_server.stats.requests < 1000
    # The next run is a new one.
    mock_server.clear()
    assert (await BatchProcessor(client).process_all(["hi"])).stopped is None


def test_rules_that_cannot_be_kept_are_refused_where_they_are_given(client: Client) -> None:
    for options in (
        {"max_errors": 0},
        {"max_error_rate": 1.5},
        {"deadline": 0},
        {"budget_tokens": 0},
        {"budget_usd": -1},
        {"batch_size": 0},
        {"order": "size"},
        {"validation_retries": -1},
        {"stream": True},
        {"max_error": 1},
    ):
        with pytest.raises(ConfigurationError):
            BatchProcessor(client, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="client"):
        BatchProcessor("sk-key")  # type: ignore[arg-type]


async def test_a_batch_of_no_items_is_refused_and_not_the_usual_size(client: Client, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        await BatchProcessor(client).process_in_batches(items(3), batch_size=0)
    assert mock_server.stats.requests == 0


@pytest.mark.parametrize("name", ["in.csv", "in.TSV", "in.parquet"])
def test_a_table_is_no_file_of_requests(client: Client, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt\nhi\n")
    with pytest.raises(ConfigurationError, match="process_all"):
        BatchProcessor(client).run_file_blocking(tmp_path / name, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_a_budget_in_dollars_needs_a_price(client: Client, mock_server: MockServer) -> None:
    with pytest.raises(ConfigurationError, match="budget_usd"):
        await BatchProcessor(client, budget_usd=1).process_all(["hi"])
    assert mock_server.stats.requests == 0
    processor = BatchProcessor(client, budget_usd=1, prices={"m": (1.0, 2.0)})
    fine, other = await processor.process_all(["hi", {"prompt": "hi", "model": "unknown"}])
    assert fine.ok
    assert "budget_usd" in str(other.error)


async def test_cost_is_known_where_the_price_is_and_never_zero_where_it_is_not(client: Client) -> None:
    summary = (await BatchProcessor(client).process_all(["hi"])).summary()
    assert (summary.cost, summary.unpriced) == (None, 1)
    summary = (await BatchProcessor(client, prices={"m": (1.0, 2.0)}).process_all(["hi"])).summary()
    assert summary.cost == pytest.approx((summary.prompt_tokens + 2 * summary.completion_tokens) / 1e6)
    assert summary.cost
    assert summary.unpriced == 0


def test_an_answer_of_a_stand_in_costs_what_that_costs(mock_server: MockServer, tmp_path: Path) -> None:
    mock_server.when('"model":"m"', Answer(status=404, times=0))
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt":"hi"}\n')
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m", fallback_models=["other"]) as client:
        for price, cost in (((3.0, 3.0), 3e-6), (None, None)):
            processor = BatchProcessor(client, prices={"m": (1.0, 1.0), "other": price})
            of_items = processor.process_all_blocking(["hi"]).summary()
            of_lines = processor.run_file_blocking(file, tmp_path / f"{cost}.jsonl")
            for summary in (of_items, of_lines):
                tokens = summary.prompt_tokens + summary.completion_tokens
                assert summary.cost == (None if cost is None else pytest.approx(cost * tokens))
                assert summary.unpriced == (cost is None)
        with pytest.raises(ConfigurationError, match="price of 'other'"):
            BatchProcessor(client, prices={"m": (1.0, 1.0)}, budget_usd=1).process_all_blocking(["hi"])


@pytest.mark.mock_server(latency=0.3)
async def test_stop_lets_what_is_on_the_wire_end_and_gives_up_the_rest(client: Client, mock_server: MockServer) -> None:
    processor = BatchProcessor(client, max_concurrent=4)
    running = asyncio.create_task(processor.process_all(items(1000)))
    await until_async(lambda: mock_server.stats.in_flight == 4)
    processor.stop()
    results = await running
    assert (len(results), results.stopped) == (1000, "interrupted")
    assert results.summary().ok == 4
    assert (mock_server.stats.aborted, mock_server.stats.requests) == (0, 4)


async def test_a_second_stop_ends_what_is_on_the_wire(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(fault="hang_before", times=0))
    processor = BatchProcessor(client, max_concurrent=4)
    running = asyncio.create_task(processor.process_all(items(100)))
    await until_async(lambda: mock_server.stats.in_flight == 4)
    processor.stop()
    await asyncio.sleep(0.05)
    assert not running.done()
    processor.stop()
    results = await asyncio.wait_for(running, 5)
    assert results.summary().given_up == len(results) == 100
    await until_async(lambda: mock_server.stats.in_flight == 0)


# ---- ends that the reader makes ----


async def test_leaving_a_stream_in_any_way_closes_the_connections(client: Client, mock_server: MockServer) -> None:
    mock_server.when("<item 0>", Answer(text="first"))
    mock_server.script(Answer(fault="hang_before", times=0))
    processor = BatchProcessor(client, max_concurrent=8)

    async def broken_off() -> None:
        async for _ in processor.stream(items(100)):
            break

    async def closed() -> None:
        async with processor.stream(iter(items(100))) as stream:
            await anext(stream)

    async def cancelled() -> None:
        async def read() -> None:
            async for _ in processor.stream(items(100)):
                pass

        task = asyncio.create_task(read())
        await until_async(lambda: mock_server.stats.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def all_cancelled() -> None:
        task = asyncio.create_task(processor.process_all(items(100)))
        await until_async(lambda: mock_server.stats.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for leave in (broken_off, closed, cancelled, all_cancelled):
        await leave()
        gc.collect()
        await until_async(lambda: mock_server.stats.in_flight == 0)
        assert client.stats().in_flight == 0


def test_leaving_a_blocking_stream_closes_the_connections_and_ends_its_thread(
    client: Client, mock_server: MockServer
) -> None:
    mock_server.script(Answer(text="first"))
    for _ in range(2):
        for result in BatchProcessor(client, max_concurrent=1).stream_blocking(items(100)):
            assert result.ok
            mock_server.script(Answer(fault="hang_before", times=0))
            break
        until(lambda: mock_server.stats.in_flight == 0)
        mock_server.clear()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "millstream-blocking"])


# ---- in batches, worker ----


@pytest.mark.mock_server(latency=0.01)
async def test_batches_go_one_after_another_and_the_order_is_kept(client: Client, mock_server: MockServer) -> None:
    processor = BatchProcessor(client)
    results = await processor.process_in_batches(items(25), batch_size=10)
    assert results.texts() == echoes(items(25))
    assert mock_server.stats.max_in_flight == 10
    assert [metric["batch_size"] for metric in processor.metrics] == [10, 10, 5]
    assert {metric["success_rate"] for metric in processor.metrics} == {1.0}
    arrived = [request.arrived for request in sorted(mock_server.requests, key=lambda request: request.arrived)]
    assert arrived[10] - arrived[9] >= 0.005


async def test_there_is_a_pause_between_batches_by_either_name_and_none_after_the_last(
    client: Client, mock_server: MockServer
) -> None:
    processor = BatchProcessor(client, batch_size=2)
    for pause in ({"delay": 0.2}, {"delay_between_batches": 0.2}):
        mock_server.clear()
        started = time.monotonic()
        await processor.process_in_batches(iter(items(4)), **pause)
        ended = time.monotonic() - started
        arrived = sorted(request.arrived for request in mock_server.requests)
        assert arrived[2] - arrived[1] >= 0.15
        assert ended < 0.4 + 1
    processor = BatchProcessor(client, batch_size=2)
    running = asyncio.create_task(processor.process_in_batches(items(10), delay=60))
    await until_async(lambda: processor.progress().done == 2)
    processor.stop()
    results = await asyncio.wait_for(running, 5)
    assert (len(results), results.summary().ok, results.stopped) == (10, 2, "interrupted")


async def test_the_batch_size_follows_the_policy(client: Client, mock_server: MockServer) -> None:
    processor = BatchProcessor(client, adaptive=AdaptiveBatchPolicy(initial_batch_size=10))
    results = await processor.process_in_batches(items(120))
    assert [metric["batch_size"] for metric in processor.metrics] == [10, 10, 10, 13, 16, 20, 26, 15]
    assert len(results) == 120
    mock_server.script(Answer(status=400, times=0))
    processor = BatchProcessor(client, adaptive=True)
    await processor.process_in_batches(items(37))
    assert [metric["batch_size"] for metric in processor.metrics] == [10, 10, 10, 7]
    assert processor.batch_size == 4


async def test_a_rule_stops_batches_too(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, times=0))
    results = await BatchProcessor(client, batch_size=5, max_errors=12).process_in_batches(items(100))
    assert (len(results), results.stopped) == (100, "max_errors")
    assert mock_server.stats.requests <= 15


def test_batches_are_contiguous_slices(client: Client) -> None:
    processor = BatchProcessor(client, batch_size=10)
    assert processor.batch_size == 10
    assert processor.create_batches(items(25), 5) == [items(25)[start : start + 5] for start in range(0, 25, 5)]
    assert [len(batch) for batch in processor.create_batches(iter(items(25)))] == [10, 10, 5]
    assert processor.create_batches([]) == []


async def test_a_worker_flushes_when_its_batch_is_full_or_lingers_too_long(client: Client) -> None:
    queue: asyncio.Queue[str | None] = asyncio.Queue(maxsize=3)
    handled: list[list[str | None]] = []

    async def produce() -> None:
        for item in items(7):
            await queue.put(item)
        await queue.join()
        assert [len(texts) for texts in handled] == [5, 2]
        await queue.put("late")
        await queue.put(None)

    def handle(results: BatchResults) -> None:
        handled.append(results.texts())

    producer = asyncio.create_task(produce())
    results = await BatchProcessor(client).process_queue(queue, batch_size=5, linger=0.1, handle=handle)
    await producer
    await asyncio.wait_for(queue.join(), 1)
    assert [len(texts) for texts in handled] == [5, 2, 1]
    assert (len(results), results.summary().ok) == (0, 8)
    rest = await BatchProcessor(client).process_queue(queued(items(7)), batch_size=3)
    assert rest.texts() == echoes(items(7))


# ---- values of a type ----

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def test_answers_that_do_not_fit_are_asked_again_as_often_as_is_allowed(
    client: Client, mock_server: MockServer
) -> None:
    from dataclasses import make_dataclass

    kind = make_dataclass("Number", [("n", int)])
    mock_server.when("<item 1>", Answer(text="no"), Answer(text='{"n": 1}'))
    mock_server.when("<item 2>", Answer(text="never", times=0))
    mock_server.script(Answer(text='{"n": 7}', times=0))
    processor = BatchProcessor(client, response_model=kind)
    for results in (await processor.process_all(items(300)), await processor.process_all(iter(items(300)))):
        assert len(results) == 300
        assert results.parsed[0] == kind(7)
        assert isinstance(results[2].error, APIResponseValidationError)
        assert (results[2].attempts, results[2].parsed) == (2, None)
        assert results[2].error.index == 2
        summary = results.summary()
        assert (summary.ok, summary.failed) == (299, 1)
        progress = processor.progress()
        assert (progress.done, progress.failed, progress.in_flight) == (299, 1, 0)
    assert results.parsed.count(kind(7)) >= 298


async def test_an_answer_that_fits_at_last_tells_of_all_attempts(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="no"), Answer(text='{"n": 1}'))
    (result,) = await BatchProcessor(client, response_model=NUMBER).process_all(["hi"])
    assert (result.parsed, result.attempts, result.ok) == ({"n": 1}, 2, True)
    assert len(mock_server.requests[-1].json()["messages"]) == 3


async def test_validation_failures_count_for_the_rules(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="never", times=0))
    processor = BatchProcessor(client, response_model=NUMBER, validation_retries=0, max_errors=3, max_concurrent=2)
    results = await processor.process_all(items(2000))
    assert (len(results), results.stopped) == (2000, "max_errors")
    assert results.summary().given_up > 0


# ---- blocking ----


def test_the_blocking_forms_work_without_a_loop(client: Client) -> None:
    processor = BatchProcessor(client, batch_size=3)
    assert processor.process_all_blocking(items(10)).texts() == echoes(items(10))
    assert processor.process_in_batches_blocking(iter(items(10))).texts() == echoes(items(10))
    assert processor.map_blocking("<item {n}>", [{"n": 0}, {"n": 1}]).texts() == echoes(items(2))
    assert processor.process_item_blocking("hi").text == "echo: hi"
    assert sorted(result.index for result in processor.stream_blocking(items(1000))) == list(range(1000))


async def test_the_blocking_forms_work_inside_a_running_loop(client: Client) -> None:
    processor = BatchProcessor(client)
    assert processor.process_all_blocking(items(10)).texts() == echoes(items(10))
    with processor.stream_blocking(iter(items(10))) as stream:
        assert {result.text for result in stream} == set(echoes(items(10)))
    assert (await processor.process_all(items(3))).texts() == echoes(items(3))


async def test_a_key_that_a_function_gives_is_asked_for_once_a_run(mock_server: MockServer) -> None:
    asked = 0

    async def key() -> str:
        nonlocal asked
        asked += 1
        return f"sk-{asked}"

    async with AsyncClient(api_key=key, base_url=mock_server.base_url, model="m") as client:
        processor = BatchProcessor(client)
        await processor.process_all(["a", {"prompt": "b", "temperature": 1}])
        await asyncio.to_thread(processor.process_all_blocking, ["c"])
    seen = {
        request.json()["messages"][-1]["content"]: dict(request.headers)["authorization"]
        for request in mock_server.requests
    }
    assert seen == {"a": "Bearer sk-1", "b": "Bearer sk-1", "c": "Bearer sk-2"}


# ---- results ----


async def test_results_are_a_sequence_that_pickles_and_shows_no_walls_of_text(
    client: Client, mock_server: MockServer
) -> None:
    mock_server.when("<item 1>", Answer(status=400))
    mock_server.script(Answer(text="long " * 100, times=0))
    results = await BatchProcessor(client).process_all(items(3))
    copy = pickle.loads(pickle.dumps(results))
    assert copy == results
    assert hash(copy[0]) == hash(results[0])
    assert copy[0].response.text == results[0].text
    assert type(copy[1].error) is BadRequestError
    assert len({*map(repr, results)}) == 3
    assert all(len(repr(result)) < 150 for result in results)
    assert len(repr(results)) < 150
    assert str(results.summary()).startswith("Successful 2/3")
    assert (results[0].key_id, results[0].attempts) == (copy[0].key_id, 1)
    assert results[0].latency > 0
    part = results[1:]
    assert (part, len(part), part[0]) == (BatchResults([results[1], results[2]]), 2, results[1])
    assert (part.summary().ok, part.summary().failed) == (1, 1)


async def test_to_dicts_has_the_names_that_are_asked_for_and_says_timeout(
    client: Client, mock_server: MockServer
) -> None:
    mock_server.when("<item 1>", Answer(fault="hang_before", times=0))
    results = await BatchProcessor(client, timeout=0.2).process_all(items(2))
    rows = results.to_dicts(index="index", prompt="input", response="text", error="error")
    assert rows[0] == {"index": 0, "prompt": "<item 0>", "response": "echo: <item 0>", "error": None}
    assert rows[1] == {"index": 1, "prompt": "<item 1>", "response": None, "error": "timeout"}
    assert results.to_dicts()[1]["error_type"] == "DeadlineExceeded"
    with pytest.raises(ConfigurationError, match="answer"):
        results.to_dicts(text="answer")


@pytest.mark.parametrize("package", ["pandas", "polars", "arrow"])
async def test_results_become_tables(client: Client, package: str) -> None:
    pytest.importorskip("pyarrow" if package == "arrow" else package)
    results = await BatchProcessor(client, template="{a}").process_all([{"a": "x"}, {"a": "y"}])
    table = getattr(results, f"to_{package}")()
    assert len(table) == 2
    texts = table["text"]
    assert (texts.to_pylist() if package == "arrow" else list(texts)) == ["echo: x", "echo: y"]
    assert len(getattr(BatchResults([]), f"to_{package}")()) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for package, method in (("pandas", "to_pandas"), ("polars", "to_polars"), ("pyarrow", "to_arrow")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigurationError, match=f"pip install {package}"):
            getattr(BatchResults([]), method)()


async def test_progress_counts_and_is_handed_to_a_function(client: Client) -> None:
    seen: list[Progress] = []
    processor = BatchProcessor(client, progress=seen.append)
    assert processor.progress() == Progress()
    await processor.process_all(items(50))
    assert (seen[-1].done, seen[-1].total, seen[-1].in_flight) == (50, 50, 0)
    assert processor.progress().done == 50
    assert processor.progress().prompt_tokens == seen[-1].prompt_tokens > 0


# ---- files and vendors ----


async def test_a_file_is_carried_by_the_processors_fields_rules_and_progress(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"custom_id": "i{n}", "prompt": "p{n}"}}\n' for n in range(30)))
    seen: list[Progress] = []
    processor = BatchProcessor(client, system="Be brief.", max_tokens=7, progress=seen.append)
    summary = await processor.run_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    again = await asyncio.to_thread(processor.run_file_blocking, tmp_path / "in.jsonl", tmp_path / "out.jsonl")

    assert (summary.ok, summary.failed, again.ok, again.skipped) == (30, 0, 0, 30)
    assert seen[-1].total == 30
    assert {request.json()["max_tokens"] for request in mock_server.requests} == {7}
    assert {request.json()["messages"][0]["content"] for request in mock_server.requests} == {"Be brief."}
    assert prompts_seen(mock_server) == Counter(f"p{n}" for n in range(30))


async def test_a_processor_stops_its_file_and_goes_on_with_it(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    mock_server.script(Answer(latency=0.02, times=0))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"custom_id": "i{n}", "prompt": "p{n}"}}\n' for n in range(400)))
    processor = BatchProcessor(client, max_concurrent=4)
    going = asyncio.create_task(processor.run_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl"))
    await until_async(lambda: processor.progress().done >= 20)
    processor.stop(grace=10)
    stopped = await going
    rest = await BatchProcessor(client).run_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")

    assert stopped.stopped == "interrupted"
    assert 20 <= stopped.ok < 400
    assert (rest.ok, rest.skipped, rest.stopped) == (400 - stopped.ok, stopped.ok, None)
    assert prompts_seen(mock_server) == Counter(f"p{n}" for n in range(400))


async def test_what_a_file_cannot_have_is_refused_before_anything_is_sent(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    paths = (tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ConfigurationError, match="template"):
        await BatchProcessor(client, template="Summarize: {text}").run_file(*paths)
    with pytest.raises(ConfigurationError, match="budget_usd needs the price"):
        await BatchProcessor(client, budget_usd=1.0).run_file(*paths)
    assert not mock_server.requests


async def test_items_go_to_a_vendors_batch_api(client: Client, tmp_path: Path) -> None:
    processor = BatchProcessor(client, max_tokens=7)
    job = await processor.submit(["a", "b"], output=tmp_path / "out.jsonl")
    await job.wait(poll=0.05)
    answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in await job.results()]
    assert answers == ["echo: a", "echo: b"]


# ---- what is in hand when something ends ----


async def test_a_stopped_run_has_a_result_for_items_that_wait_for_room(client: Client, mock_server: MockServer) -> None:
    large = [f"{number} " + "x" * 40_000 for number in range(900)]
    processor = BatchProcessor(client, budget_tokens=100_000)
    indexes = []
    async for result in processor.stream(large):
        indexes.append(result.index)
        # A consumer that works on each.
        sum(range(20_000))
    assert sorted(indexes) == list(range(900))


async def test_a_template_is_not_called_again_for_an_answer_that_fits(client: Client, mock_server: MockServer) -> None:
    mock_server.script(Answer(text='{"city": "Rome"}', times=0))
    called: Counter[str] = Counter()

    def once(item: str) -> str:
        called[item] += 1
        if called[item] > 1:
            raise RuntimeError("it was called again")
        return item

    processor = BatchProcessor(client, template=once, response_model={"type": "object", "title": "City"})
    results = await processor.process_all(items(20))
    assert results.parsed == [{"city": "Rome"}] * 20
    assert set(called.values()) == {1}


async def test_a_template_that_fails_the_second_time_fails_its_item_alone(
    client: Client, mock_server: MockServer
) -> None:
    mock_server.when("<item 3>", Answer(text="no JSON", times=0))
    mock_server.script(Answer(text="{}", times=0))
    called: Counter[str] = Counter()

    def once(item: str) -> str:
        called[item] += 1
        if called[item] > 1:
            raise RuntimeError("it was called again")
        return item

    results = await BatchProcessor(client, template=once, response_model={"type": "object"}).process_all(items(9))
    assert {index: str(error) for index, error in results.errors.items()} == {
        3: "the item cannot be asked: RuntimeError: it was called again"
    }


async def test_what_was_answered_beside_the_first_error_goes_out_before_it(
    client: Client, mock_server: MockServer
) -> None:
    mock_server.when("<item 7>", Answer(status=400, body={"error": {"message": "no"}}, latency=0.1, times=0))
    stream = BatchProcessor(client, on_error="raise").stream(items(8))
    seen = [(await anext(stream)).index for _ in range(7)]
    with pytest.raises(BadRequestError):
        await anext(stream)
    assert sorted(seen) == list(range(7))


async def test_a_line_that_is_no_text_fails_alone_and_says_where_it_stands(client: Client, tmp_path: Path) -> None:
    for suffix, lines in (
        (".jsonl", [b'{"prompt": "a"}', b'{"prompt": "\xff"}', b'{"prompt": "c"}']),
        (".txt", [b"a", b"\xff", b"c"]),
        (".csv", [b"prompt", b"a", b"\xff", b"c"]),
    ):
        path = tmp_path / f"items{suffix}"
        path.write_bytes(b"\n".join(lines))
        results = await BatchProcessor(client).process_all(path)
        assert [result.text for result in results] == ["echo: a", None, "echo: c"], suffix
        number = 3 if suffix == ".csv" else 2
        assert f"{path}, line {number}: is not UTF-8" in str(results[1].error)


async def test_cells_of_a_table_are_numbers_where_a_request_wants_them_and_empty_ones_say_nothing(
    client: Client, mock_server: MockServer, tmp_path: Path
) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        f"prompt,system,deadline,priority,model\na,,5,1,\nb,Be brief.,,,n\nc,,soon,,\n{'x' * 200_000},,,,\n"
    )
    results = await BatchProcessor(client).process_all(path)
    assert [result.ok for result in results] == [True, True, False, True]
    assert "column deadline: 'soon' is no number" in str(results[2].error)
    sent = {request.json()["messages"][-1]["content"][:3]: request.json() for request in mock_server.requests}
    assert (sent["a"]["model"], len(sent["a"]["messages"])) == ("m", 1)
    assert (sent["b"]["model"], sent["b"]["messages"][0]["content"]) == ("n", "Be brief.")


async def test_a_handler_that_raises_leaves_nobody_waiting_for_the_queue(client: Client) -> None:
    queue = queued(items(5))

    def handle(results: BatchResults) -> None:
        raise RuntimeError("no room for results")

    with pytest.raises(RuntimeError, match="no room"):
        await BatchProcessor(client).process_queue(queue, batch_size=10, linger=0.05, handle=handle)
    async with asyncio.timeout(5):
        await queue.join()


async def test_to_stop_what_has_ended_changes_nothing(client: Client) -> None:
    processor = BatchProcessor(client)
    stream = processor.stream(items(3))
    assert len([result async for result in stream]) == 3
    processor.stop()
    summary = stream.summary()
    assert summary is not None
    assert summary.stopped is None
