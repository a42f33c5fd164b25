"""The engine's records in Python's `logging`: what is told, at which level, and what never is."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, run_python, until, until_async
from millstream import APIError, AsyncClient, Client, ConfigurationError, RetryPolicy
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers import Face

    Make = Callable[..., Face]

CANARY = "sk-canary-0123456789abcdef"
PROMPT = "the secret of the prompt"
SAID = "the secret of the answer"
TRACE = 5


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(1)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def events(self) -> list[str]:
        return [record.event for record in self.records]  # type: ignore[attr-defined]

    def of(self, event: str) -> logging.LogRecord:
        return next(record for record in self.records if record.event == event)  # type: ignore[attr-defined]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler at the logger, which takes everything unless a test says otherwise."""
    logger, handler = logging.getLogger("millstream"), Kept()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(TRACE)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def quick(**more: Any) -> RetryPolicy:
    return RetryPolicy(base_delay=0.001, **more)


def test_every_step_of_a_call_is_told_with_its_facts(make: Make, mock_server: MockServer, kept: Kept) -> None:
    mock_server.script(Answer(status=500, headers={"x-request-id": "req_1"}))
    before = time.time()
    make(retry=quick()).complete("hi")
    until(lambda: "answered" in kept.events())

    assert kept.events() == ["admitted", "sent", "retry", "admitted", "sent", "answered"]
    retry: Any = kept.of("retry")
    assert (retry.name, retry.levelno, retry.levelname) == ("millstream", logging.INFO, "INFO")
    assert (retry.attempt, retry.status, retry.request_id, retry.cause) == (1, 500, "req_1", "server_error")
    assert retry.key_id
    assert 0 <= retry.wait < 1
    assert before - 1 <= retry.created <= time.time() + 1
    assert "status 500" in retry.getMessage()
    assert "again in" in retry.getMessage()
    answered: Any = kept.of("answered")
    assert (answered.levelno, answered.status) == (logging.DEBUG, 200)
    assert answered.elapsed > 0
    # All of one call have its number.
    assert len({record.call for record in kept.records}) == 1  # type: ignore[attr-defined]


def test_a_call_that_fails_is_told_once_it_is_given_up(make: Make, mock_server: MockServer, kept: Kept) -> None:
    mock_server.script(Answer(status=400))
    with pytest.raises(APIError):
        make().complete("hi")
    until(lambda: "failed" in kept.events())
    failed: Any = kept.of("failed")
    assert (failed.levelno, failed.status, failed.attempt) == (logging.INFO, 400, 1)


def test_what_concerns_more_than_one_call_is_a_warning(make: Make, mock_server: MockServer, kept: Kept) -> None:
    logging.getLogger("millstream").setLevel(logging.WARNING)
    mock_server.script(Answer(status=401))
    make(api_key=[KEY, KEY + "-other"]).complete("hi")
    until(lambda: kept.records)
    assert kept.events() == ["key lost"]
    assert kept.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(("level", "events"), [(logging.INFO, ["retry"]), (logging.ERROR, [])])
def test_the_level_is_the_loggers(
    make: Make, mock_server: MockServer, kept: Kept, level: int, events: list[str]
) -> None:
    logging.getLogger("millstream").setLevel(level)
    mock_server.script(Answer(status=500))
    make(retry=quick()).complete("hi")
    make().complete("hi")
    assert kept.events() == events


def test_a_level_that_is_set_later_is_noticed(face: Face, kept: Kept) -> None:
    logging.getLogger("millstream").setLevel(logging.ERROR)
    face.with_options(timeout=10).complete("hi")
    assert kept.records == []
    logging.getLogger("millstream").setLevel(logging.DEBUG)

    def is_noticed() -> bool:
        face.complete("hi")
        return bool(kept.records)

    until(is_noticed)


def test_without_a_handler_nothing_is_made(mock_server: MockServer) -> None:
    """As in a program that says nothing of logging: not even a warning goes to stderr."""
    code = """
import sys
from millstream import Client, RetryPolicy
from millstream._millstream import flush_log
client = Client(base_url=sys.argv[1], api_key="sk-test", model="m", retry=RetryPolicy(base_delay=0.001))
print(client.complete("hi"), "logging" in sys.modules)
"""
    mock_server.script(Answer(status=500))
    done = run_python(code, mock_server.base_url)
    assert (done.stdout, done.stderr) == ("echo: hi False\n", "")


def test_the_environment_makes_stderr_listen(mock_server: MockServer) -> None:
    code = """
import sys
from millstream import Client, RetryPolicy
with Client(base_url=sys.argv[1], api_key="sk-test", model="m", retry=RetryPolicy(base_delay=0.001)) as client:
    client.complete("hi")
"""
    mock_server.script(Answer(status=500))
    done = run_python(code, mock_server.base_url, MILLSTREAM_LOG="INFO")
    (line,) = done.stderr.splitlines()
    assert "INFO millstream: call 1: retry: attempt 1, cause server_error, status 500" in line


def test_a_level_that_is_none_is_refused_by_its_name(mock_server: MockServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_LOG", "loud")
    with pytest.raises(ConfigurationError, match="MILLSTREAM_LOG"):
        Client(base_url=mock_server.base_url, api_key=KEY)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text=SAID),
        Answer(text=SAID, headers={"x-request-id": CANARY}),
        Answer(status=500, body={"error": {"message": f"{CANARY} {PROMPT}", "code": CANARY}}),
        Answer(status=400, body={"error": {"message": PROMPT, "type": PROMPT}}, headers={"x-request-id": CANARY}),
        Answer(status=429, body=PROMPT, headers={"retry-after-ms": "1"}),
        Answer(status=307, headers={"location": f"https://h.test/{CANARY}?{PROMPT.replace(' ', '-')}"}),
        Answer(body=SAID + PROMPT + CANARY),
        Answer(fault="reset_before"),
        Answer(fault="truncate", text=SAID),
    ],
)
def test_neither_key_nor_content_is_told_at_any_level(
    make: Make, mock_server: MockServer, kept: Kept, answer: Answer
) -> None:
    mock_server.script(answer)
    face = make(api_key=CANARY, retry=quick())
    try:
        face.complete(PROMPT, system=PROMPT, extra_headers={"X-Session-Id": CANARY})
    except APIError:
        pass
    until(lambda: {"answered", "failed"} & set(kept.events()))
    for record in kept.records:
        for text in (record.getMessage(), repr(vars(record))):
            for secret in (CANARY, PROMPT, SAID, "secret"):
                assert secret not in text


async def test_a_loop_is_told_of_a_retry_while_it_waits(mock_server: MockServer, kept: Kept) -> None:
    """Not only when the call has ended."""
    mock_server.script(Answer(status=500, times=0))
    policy = RetryPolicy(base_delay=60, max_delay=60, jitter="none")
    async with AsyncClient(base_url=mock_server.base_url, api_key=KEY, model="m", retry=policy) as client:
        task = asyncio.create_task(client.complete("hi"))
        await until_async(lambda: "retry" in kept.events())
        assert not task.done()
        assert kept.of("retry").wait == 60  # type: ignore[attr-defined]
        task.cancel()


def test_a_batch_is_told_of_in_order_and_no_thread_of_the_engine_calls_a_handler(
    mock_server: MockServer, kept: Kept
) -> None:
    mock_server.script(*[Answer(status=500), Answer(text="x")] * 50)
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m", retry=quick(max_retries=20)) as client:
        client.batch_complete(["hi"] * 200)
    until(lambda: kept.events().count("answered") == 200)
    assert kept.events().count("retry") == 50
    assert [record.created for record in kept.records] == sorted(record.created for record in kept.records)
    assert {record.threadName for record in kept.records} == {"MainThread"}


def test_a_handler_that_fails_fails_no_call(
    mock_server: MockServer, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise LookupError("no disk")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(kept, "emit", fail)
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        assert client.complete("hi") == "echo: hi"
    assert {type(each.exc_value) for each in unraisable} <= {LookupError}
    assert unraisable


def test_too_many_records_are_counted_and_not_kept(mock_server: MockServer, kept: Kept) -> None:
    """A batch in one blocking call comes by in time; the queue is bounded all the same."""
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        client.batch_complete(["hi"] * 3000)
    lost = [record for record in kept.records if "were lost" in record.getMessage()]
    told = sum(event != "lost" for event in (getattr(record, "event", "lost") for record in kept.records))
    assert told + sum(record.args[0] for record in lost) == 9000  # type: ignore[misc,index]


def test_a_forked_child_tells_its_own_alone(mock_server: MockServer) -> None:
    code = """
import logging, os, sys
from millstream import Client
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(process)d %(message)s")
client = Client(base_url=sys.argv[1], api_key="sk-test", model="m")
client.complete("parent")
pid = os.fork()
client.complete("both")
if pid:
    assert os.waitpid(pid, 0)[1] == 0
print(os.getpid(), "end", flush=True)
"""
    done = run_python(code, mock_server.base_url)
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if "sent" in line]
    counts = [sum(line.startswith(pid) for line in lines) for pid in {line.split()[0] for line in lines}]
    assert sorted(counts) == [1, 2]
