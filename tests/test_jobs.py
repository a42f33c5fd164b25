"""`FileRun`: JSONL in, JSONL out, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from child import Child, eventually, run, until
from helpers import KEY
from millstream import AsyncClient, Client, ConfigurationError, JournalError
from millstream._jobs import FileRun
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from conftest import Make
    from helpers import Face
    from millstream.types import RunSummary

pytestmark = pytest.mark.timeout(120)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def prompts(count: int) -> list[dict[str, str]]:
    return [{"custom_id": f"i{number}", "prompt": f"p{number}"} for number in range(count)]


def results(path: Path) -> dict[str, Any]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines), "a result stands twice"
    return by_id


def content(result: dict[str, Any]) -> str:
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text


def carry(face: Face, *paths: Path, **how: Any) -> RunSummary:
    file_run = FileRun(face.client, *paths, **how)
    return face.run(file_run.run() if isinstance(face.client, AsyncClient) else file_run.run_blocking())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_a_file_is_asked_and_answered_line_by_line(face: Face, tmp_path: Path, out: Path) -> None:
    body = {"model": "other", "messages": [{"role": "user", "content": "whole"}]}
    lines = [
        {"custom_id": "whole", "method": "POST", "url": "/v1/chat/completions", "body": body, "row": 1},
        {"custom_id": "short", "prompt": "short", "metadata": {"k": "v"}},
        {"custom_id": "vectors", "url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}},
        "nonsense",
    ]
    summary = carry(face, write(tmp_path / "in", *lines), out, system="be brief", temperature=0.5)
    assert (summary.total, summary.ok, summary.failed, summary.bad_lines, summary.skipped) == (4, 3, 0, 1, 0)
    assert summary.problems == [(str(tmp_path / "in"), 4, summary.problems[0][2])]
    assert summary.prompt_tokens > 0
    assert (summary.cost, summary.stopped) == (None, None)
    found = results(out)
    assert (content(found["whole"]), found["whole"]["metadata"]) == ("echo: whole", {"row": 1})
    assert (content(found["short"]), found["short"]["metadata"]) == ("echo: short", {"k": "v"})
    assert len(found["vectors"]["response"]["body"]["data"]) == 2
    assert found["short"]["millstream"]["attempts"] == 1
    assert found["short"]["millstream"]["line"] == 2


def test_settings_of_the_run_are_those_of_short_lines_alone(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    body = {"model": "other", "messages": [{"role": "user", "content": "whole"}]}
    carry(face, write(tmp_path / "in", {"url": "/v1/chat/completions", "body": body}, {"prompt": "s"}), out, seed=7)
    sent = {seen.json()["model"]: seen.json() for seen in mock_server.requests}
    assert sent["other"] == body
    assert sent["m"] == {"model": "m", "messages": [{"role": "user", "content": "s"}], "seed": 7}


def test_prices_make_a_cost(face: Face, tmp_path: Path, out: Path) -> None:
    lines = [{"custom_id": "a", "prompt": "p"}, {"custom_id": "b", "prompt": "p", "model": "unknown"}]
    summary = carry(face, write(tmp_path / "in", *lines), out, prices={"m": (1e6, 2e6)})
    usage = results(out)["a"]["response"]["body"]["usage"]
    assert summary.cost == usage["prompt_tokens"] + 2 * usage["completion_tokens"]
    assert summary.unpriced == 1


def test_what_is_done_is_not_asked_again_and_failures_only_if_wanted(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(20))
    mock_server.when('p7"', Answer(status=400))
    assert (carry(face, file, out).ok, mock_server.stats.requests) == (19, 20)
    assert (carry(face, file, out).skipped, mock_server.stats.requests) == (20, 20)
    summary = carry(face, file, out, retry_failed=True)
    assert (summary.skipped, summary.ok, mock_server.stats.requests) == (19, 1, 21)
    # Lines that are put before others do not move what is done.
    file = write(tmp_path / "in", {"prompt": "new"}, *prompts(20))
    assert (carry(face, file, out).ok, mock_server.stats.requests) == (1, 22)
    assert len(results(out)) == 21


def test_a_run_that_is_refused_leaves_what_failed_before_in_the_output(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(3))
    mock_server.when('p1"', Answer(status=400))
    carry(face, file, out)
    torn = out.read_bytes() + b'{"id":"batch_req_'
    out.write_bytes(torn)
    with pytest.raises(ConfigurationError, match="budget_usd needs the price of 'm'"):
        carry(face, file, out, retry_failed=True, budget_usd=1)
    write(tmp_path / "in", *prompts(3), *prompts(1))
    with pytest.raises(ConfigurationError, match="the same custom_id"):
        carry(face, file, out, retry_failed=True)
    assert out.read_bytes() == torn
    write(tmp_path / "in", *prompts(3))
    assert carry(face, file, out, retry_failed=True, budget_usd=1, prices={"m": (0, 0)}).ok == 1
    assert len(results(out)) == 3


def test_failures_go_into_a_file_of_their_own(face: Face, mock_server: MockServer, tmp_path: Path, out: Path) -> None:
    mock_server.when('p1"', Answer(status=400))
    file, errors = write(tmp_path / "in", *prompts(3), "nonsense"), tmp_path / "errors"
    summary = carry(face, file, out, errors=errors)
    assert (summary.ok, summary.failed, summary.bad_lines) == (2, 1, 1)
    assert results(out).keys() == {"i0", "i2"}
    failed = results(errors)
    assert failed.pop("i1")["response"]["status_code"] == 400
    assert [result["error"]["code"] for result in failed.values()] == ["invalid_request_line"]
    assert carry(face, file, out, errors=errors).skipped == 4


def test_nothing_is_sent_of_a_file_that_is_refused(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    double = write(tmp_path / "double", *prompts(3), {"custom_id": "i1", "prompt": "x"})
    with pytest.raises(ConfigurationError, match="lines 2 and 4 have the same custom_id"):
        carry(face, double, out)
    with pytest.raises(ConfigurationError, match="line 2: it has none of"):
        carry(face, write(tmp_path / "bad", {"prompt": "a"}, {}), out, strict=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        carry(face, tmp_path / "missing", out)
    # Which would wait for somebody to write into it.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="no regular file"):
        carry(face, tmp_path / "pipe", out)
    with pytest.raises(ConfigurationError, match="is the input"):
        carry(face, double, double)
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        carry(face, write(tmp_path / "in", *prompts(1)), link)
    assert mock_server.stats.requests == 0
    assert out.read_bytes() == b""


def test_a_changed_request_is_noticed(face: Face, mock_server: MockServer, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "in", *prompts(2))
    carry(face, file, out)
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match=r"line 1.*another request"):
        carry(face, file, out, model="another")
    write(file, {"custom_id": "i0", "prompt": "p0"}, {"custom_id": "i1", "prompt": "changed"})
    with pytest.raises(ConfigurationError, match=r"line 2.*another request"):
        carry(face, file, out)
    with pytest.raises(ConfigurationError, match="not empty"):
        carry(face, file, out, resume=False)
    assert (mock_server.stats.requests, out.read_bytes()) == (2, before)


def test_a_last_line_torn_at_any_byte_is_asked_again_or_completed(
    make: Make, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    face = make()
    file = write(tmp_path / "in", *prompts(3))
    carry(face, file, out, ordered=True)
    whole = out.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole), 17):
        out.write_bytes(whole[:cut])
        before = mock_server.stats.requests
        summary = carry(face, file, out)
        assert (summary.skipped, summary.ok, mock_server.stats.requests - before) == (2, 1, 1), cut
        assert results(out).keys() == {"i0", "i1", "i2"}
    out.write_bytes(whole[:-1])
    assert carry(face, file, out).skipped == 3
    assert out.read_bytes() == whole


def test_a_damaged_block_is_set_aside_and_reported(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(10))
    carry(face, file, out, ordered=True)
    damaged = bytearray(out.read_bytes())
    start = damaged.index(b'"i4"')
    damaged[start : start + 40] = bytes(40)
    out.write_bytes(damaged)
    summary = carry(face, file, out)
    assert (summary.skipped, summary.ok, mock_server.stats.requests) == (9, 1, 11)
    (where, line, reason) = summary.problems[0]
    assert (where, line) == (str(out), 5)
    assert "out.jsonl.corrupt" in reason
    assert (tmp_path / "out.jsonl.corrupt").read_bytes().count(b"\n") == 1
    assert len(results(out)) == 10


def test_a_file_that_is_no_output_is_left_alone(face: Face, mock_server: MockServer, tmp_path: Path, out: Path) -> None:
    out.write_text("my notes\n")
    with pytest.raises(ConfigurationError, match="none of which is of an output"):
        carry(face, write(tmp_path / "in", *prompts(1)), out)
    assert (out.read_text(), mock_server.stats.requests) == ("my notes\n", 0)


def test_two_runs_do_not_write_one_output(mock_server: MockServer, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "in", *prompts(4))
    with MockServer(latency=30) as slow, Client(base_url=slow.base_url, api_key=KEY, model="m") as first:
        going = FileRun(first, file, out)
        thread = threading.Thread(target=going.run_blocking)
        thread.start()
        until(lambda: slow.stats.in_flight == 4)
        with (
            Client(base_url=mock_server.base_url, api_key=KEY, model="m") as second,
            pytest.raises(JournalError, match="another run"),
        ):
            FileRun(second, file, out).run_blocking()
        going.stop(0)
        thread.join()
    assert mock_server.stats.requests == 0


def test_files_are_their_owners_alone_and_hold_no_key(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    mock_server.script(Answer(status=400, body={"error": {"message": f"bad key {KEY}"}}))
    errors = tmp_path / "errors"
    mask = os.umask(0)
    try:
        carry(face, write(tmp_path / "in", *prompts(4), {"prompt": "a", "api_key": KEY}), out, errors=errors)
    finally:
        os.umask(mask)
    for path in (out, errors):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert KEY not in path.read_text()
    assert "***" in errors.read_text()


def test_bare_results_are_openais_alone_and_remember_as_well(
    face: Face, mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(3))
    carry(face, file, out, bare=True)
    assert {frozenset(line) for line in results(out).values()} == {frozenset(("id", "custom_id", "response", "error"))}
    assert carry(face, file, out, bare=True).skipped == 3
    with pytest.raises(ConfigurationError, match="another request"):
        carry(face, file, out, bare=True, model="another")


def test_the_order_is_kept_if_it_is_wanted(make: Make, tmp_path: Path, out: Path) -> None:
    with MockServer(latency=(0.005, 1.0)) as server:
        carry(make(base_url=server.base_url), write(tmp_path / "in", *prompts(300)), out, ordered=True)
    assert list(results(out)) == [f"i{number}" for number in range(300)]


def test_a_stopped_run_ends_what_is_on_the_wire_and_a_second_stop_does_not(
    make: Make, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(500))

    def stopped(face: Face, server: MockServer, *graces: float) -> RunSummary:
        going = FileRun(face.client, file, out, max_concurrent=20)

        def stop() -> None:
            until(lambda: server.stats.in_flight > 10)
            for grace in graces:
                going.stop(grace)

        thread = threading.Thread(target=stop)
        thread.start()
        summary = face.run(going.run() if isinstance(face.client, AsyncClient) else going.run_blocking())
        thread.join()
        return summary

    with MockServer(latency=0.2) as server:
        summary = stopped(make(base_url=server.base_url), server, 60)
        assert (summary.stopped, summary.failed) == ("interrupted", 0)
        assert 0 < summary.ok == server.stats.requests < 500
        assert len(results(out)) == summary.ok
    with MockServer(latency=60) as server:
        again = stopped(make(base_url=server.base_url), server, 60, 0)
        assert (again.stopped, again.ok, again.skipped > 0) == ("interrupted", 0, True)
    assert len(results(out)) == summary.ok


def test_rules_stop_a_run(face: Face, mock_server: MockServer, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "in", *prompts(1000))
    mock_server.when("p", Answer(status=401, times=0))
    summary = carry(face, file, out, max_concurrent=4)
    assert (summary.stopped, summary.ok) == ("fatal", 0)
    assert mock_server.stats.requests < 100
    with pytest.raises(ConfigurationError, match="max_errors"):
        carry(face, file, out, max_errors=0)


async def test_a_cancelled_run_gives_its_output_back(tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "in", *prompts(2000))
    with MockServer(latency=0.01) as server:
        async with AsyncClient(base_url=server.base_url, api_key=KEY, model="m") as client:
            going = FileRun(client, file, out, max_concurrent=8)
            task = asyncio.create_task(going.run())
            await eventually(lambda: going.progress().get("written", 0) >= 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            done = len(results(out))
            summary = await FileRun(client, file, out).run()
    assert (summary.skipped, summary.ok) == (done, 2000 - done)
    assert len(results(out)) == 2000


# ---- disks ----


def test_a_read_only_place_is_refused_before_anything_is_sent(
    face: Face, mock_server: MockServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened for writing"):
        carry(face, write(tmp_path / "in", *prompts(1)), Path("/proc/out.jsonl"))
    assert mock_server.stats.requests == 0


def test_an_output_that_vanishes_ends_the_run_and_what_it_held_is_saved(
    mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(20))
    mock_server.when('p19"', Answer(latency=60))
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        going = FileRun(client, file, out)

        def delete() -> None:
            until(lambda: going.progress().get("written") == 19)
            out.unlink()
            # Something is written after that.
            mock_server.clear()

        thread = threading.Thread(target=delete)
        thread.start()
        threading.Timer(2.5, going.stop, (0,)).start()
        with pytest.raises(JournalError, match=r"was deleted, moved or replaced.*\.rescued"):
            going.run_blocking()
        thread.join()
    assert len(results(tmp_path / "out.jsonl.rescued")) == 19


FULL = """
    import resource, signal, sys
    from millstream import Client, JournalError
    from millstream._jobs import FileRun

    url, file, out = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with Client(base_url=url, api_key="sk-0123456789", model="m") as client:
        try:
            FileRun(client, file, out, max_concurrent=4).run_blocking()
        except JournalError as error:
            print(error)
"""


def test_a_full_disk_ends_the_run_and_names_what_was_paid_for(
    mock_server: MockServer, tmp_path: Path, out: Path
) -> None:
    file = write(tmp_path / "in", *prompts(500))
    code, said, stderr = run(FULL, mock_server.base_url, str(file), str(out))
    assert (code, stderr) == (0, "")
    written = results(out)
    assert 0 < len(written) < 100
    assert "File too large" in said
    paid = {seen.json()["messages"][0]["content"] for seen in mock_server.requests if seen.completed}
    lost = paid - {content(result).removeprefix("echo: ") for result in written.values()}
    named = {f"p{number}" for number in range(500) if f'"i{number}"' in said}
    told = re.search(r"(\d+) answers that are paid for were not written", said)
    assert told is not None
    # Of many only the first fifty are named; those that were under way when it ended are told by their number.
    assert named <= lost
    assert len(named) == min(int(told[1]), 50)
    assert len(lost) - int(told[1]) <= 4
    with Client(base_url=mock_server.base_url, api_key=KEY, model="m") as client:
        FileRun(client, file, out).run_blocking()
    assert len(results(out)) == 500


# ---- deaths ----

RUN = """
    import sys
    from millstream import Client
    from millstream._jobs import FileRun

    url, file, out = sys.argv[1:]
    with Client(base_url=url, api_key="sk-0123456789", model="m", timeout=60, max_retries=9) as client:
        summary = FileRun(client, file, out, max_concurrent=64).run_blocking()
    print(summary.ok, summary.skipped, summary.failed)
"""


def test_ctrl_c_ends_a_blocking_run_and_what_was_answered_is_written(tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "in", *prompts(5000))
    with MockServer(latency=0.02) as server, Child(RUN, server.base_url, str(file), str(out)) as child:
        until(lambda: out.exists() and out.stat().st_size > 5000)
        child.send(signal.SIGINT)
        code, _, stderr = child.end()
        assert code != 0
        assert "KeyboardInterrupt" in stderr
        paid = sum(seen.completed for seen in server.requests)
        assert paid - 64 <= len(results(out)) <= paid


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing_and_ask_nothing_twice_that_is_written(tmp_path: Path, out: Path) -> None:
    count, kills, at_once = 20_000, 20, 64
    rng = random.Random(5)
    file = write(tmp_path / "in", *prompts(count))
    faults = [Answer(status=503), Answer(fault="reset_before"), Answer(fault="truncate"), Answer(status=500)]
    with MockServer() as server:
        server.script(*(rng.choice(faults) if rng.random() < 0.1 else Answer() for _ in range(2 * count)))
        before_death: list[tuple[int, set[str]]] = []
        for target in sorted(rng.sample(range(1, count - 200), kills)):
            with Child(RUN, server.base_url, str(file), str(out)) as child:
                until(lambda least=target: out.exists() and count_lines(out) >= least, 120)  # type: ignore[misc]
                child.send(signal.SIGKILL)
                child.end()
            until(lambda: server.stats.in_flight == 0)
            whole = out.read_bytes().rpartition(b"\n")[0].splitlines()
            before_death.append((server.stats.requests, {json.loads(line)["custom_id"] for line in whole}))
        code, said, stderr = run(RUN, server.base_url, str(file), str(out), patience=300)
        assert (code, stderr) == (0, "")
        asked = [
            (seen.json()["messages"][0]["content"][1:], seen.completed and seen.status == 200)
            for seen in server.requests
        ]
    found = results(out)
    assert {key: content(result) for key, result in found.items()} == {
        f"i{number}": f"echo: p{number}" for number in range(count)
    }
    for requests, written in before_death:
        again = {f"i{number}" for number, _ in asked[requests:]} & written
        assert not again, "what is written was asked again"
    paid = Counter(number for number, is_paid in asked if is_paid)
    twice = sum(times - 1 for times in paid.values())
    assert twice <= kills * at_once, said


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
