"""``millstream embed``: a column of texts in, one row of numbers for each out, whatever happens in between."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until
from millstream import Client, Prices
from millstream.testing import Answer, MockServer
from test_cli import COMMAND, PATIENCE_S, call, run, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Not there under every Python that the wheel is tested with.
arrow = pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

Matrix = list[list[float]]


@pytest.fixture
def here(mock_server: MockServer) -> list[str]:
    return ["--base-url", mock_server.base_url, "--model", "m"]


def text(row: int) -> str:
    return f"text number {row}"


def texts(path: Path, count: int, **instead: Any) -> Path:
    """A file of texts under ``body`` with names under ``name``; ``row_7=None`` puts something else into a row."""
    rows = [(f"n{row}", instead.get(f"row_{row}", text(row))) for row in range(count)]
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("name", "body"), *rows])
    elif path.suffix == ".parquet":
        names, bodies = zip(*rows, strict=True)
        arrow.parquet.write_table(arrow.table({"name": names, "other": names, "body": bodies}), path)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{body}\n" for _, body in rows), encoding="utf-8")
    else:
        lines = [json.dumps({"name": name, "body": body}) for name, body in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def npy(path: Path) -> Matrix:
    """Read by what the format's description says."""
    content = path.read_bytes()
    assert content[:8] == b"\x93NUMPY\x01\x00"
    (length,) = struct.unpack("<H", content[8:10])
    head = content[10 : 10 + length].decode("latin-1")
    assert (10 + length) % 64 == 0
    assert head.endswith("\n")
    said = eval(head)
    assert (said["descr"], said["fortran_order"]) == ("<f4", False)
    count, size = said["shape"]
    numbers = memoryview(content[10 + length :]).cast("f")
    assert len(numbers) == count * size
    return [numbers[row * size : (row + 1) * size].tolist() for row in range(count)]


def right(server: MockServer, wanted: list[str], **how: Any) -> Matrix:
    with Client(base_url=server.base_url, api_key=KEY, model="m") as client:
        return client.embed(wanted, **how).tolist()


def sent(server: MockServer) -> Counter[str]:
    """How often each text was sent."""
    inputs = [request.json()["input"] for request in server.requests]
    return Counter(itertools.chain.from_iterable(inputs))


def beside(out: Path, kind: str) -> Path:
    return out.with_name(f"{out.name}.embed.{kind}")


# ---- files ----


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_every_row_of_every_kind_of_file_has_its_vector_in_order(
    tmp_path: Path, here: list[str], mock_server: MockServer, suffix: str
) -> None:
    out = tmp_path / "out.npy"
    done = call("embed", texts(tmp_path / f"in{suffix}", 700), "-o", out, "--column", "body", *here)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.search(
        r"out.npy: 700 x 8 · 700 embedded · 0 failed · \d+ requests · .* tokens · cost unknown", done.stderr
    )
    assert set(sent(mock_server).values()) == {1}
    assert npy(out) == right(mock_server, [text(row) for row in range(700)])
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{suffix}", "out.npy", "out.npy.embed.journal"]


def test_parquet_has_names_of_their_own_type_and_null_where_a_text_failed(tmp_path: Path, here: list[str]) -> None:
    source, out = texts(tmp_path / "in.parquet", 300, row_7=None), tmp_path / "out.parquet"
    done = call("embed", source, "-o", out, "--column", "body", "--id-column", "name", *here)
    assert done.returncode == 1
    assert "row 7: it has no 'body'" in done.stderr
    table = arrow.parquet.read_table(out)
    assert table.schema.names == ["name", "embedding"]
    assert table.schema.types == [arrow.string(), arrow.list_(arrow.float32(), 8)]
    assert table["name"].to_pylist() == [f"n{row}" for row in range(300)]
    assert [row for row, vector in enumerate(table["embedding"].to_pylist()) if vector is None] == [7]


@pytest.mark.parametrize(("names", "kind"), [([3, None, -(2**40)], arrow.int64()), ([3, "x", None], arrow.string())])
def test_names_of_jsonl_are_whole_numbers_if_all_are(
    tmp_path: Path, here: list[str], names: list[Any], kind: Any
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": name, "text": "x"}) + "\n" for name in names))
    out = tmp_path / "out.parquet"
    assert call("embed", source, "-o", out, "--id-column", "id", *here).returncode == 0
    column = arrow.parquet.read_table(out)["id"]
    assert column.type == kind
    assert column.to_pylist() == [name if name is None or kind == arrow.int64() else str(name) for name in names]


def test_jsonl_has_every_number_and_says_why_a_row_has_none(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.csv", 5, row_2=""), tmp_path / "out.jsonl"
    assert call("embed", source, "-o", out, "--column", "body", "--id-column", "name", *here).returncode == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["id"]) for line in lines] == [(row, f"n{row}") for row in range(5)]
    assert lines.pop(2) == {
        "row": 2,
        "id": "n2",
        "embedding": None,
        "error": {"code": "no_text", "message": "its text is empty"},
    }
    single = [list(memoryview(struct.pack("8f", *line["embedding"])).cast("f")) for line in lines]
    assert single == right(mock_server, [text(row) for row in (0, 1, 3, 4)])
    # The fewest digits that tell a 32-bit number apart.
    assert max(len(number) for number in re.findall(r"-?\d\.[\de-]+", out.read_text())) <= 16


def test_options_reach_the_server_and_the_rows(tmp_path: Path, here: list[str], mock_server: MockServer) -> None:
    out = tmp_path / "out.npy"
    more = ["--dimensions", "16", "--truncate-dim", "4", "--batch-size", "10", "--param", "user=me"]
    assert call("embed", texts(tmp_path / "in.txt", 45), "-o", out, *here, *more).returncode == 0
    bodies = [request.json() for request in mock_server.requests]
    assert sorted(len(body["input"]) for body in bodies) == [5, 10, 10, 10, 10]
    assert {(body["dimensions"], body["user"]) for body in bodies} == {(16, "me")}
    assert npy(out) == right(mock_server, [text(row) for row in range(45)], dimensions=16, truncate_dim=4)


def test_an_empty_file_gives_an_empty_output(tmp_path: Path, here: list[str]) -> None:
    source = tmp_path / "in.txt"
    source.touch()
    for name in ("out.npy", "out.jsonl", "out.parquet"):
        assert call("embed", source, "-o", tmp_path / name, *here).returncode == 0
    assert npy(tmp_path / "out.npy") == []
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert arrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path) -> None:
    source = texts(tmp_path / "in.csv", 1)
    code = "import sys; sys.modules['pyarrow'] = None; from millstream.cli import main; sys.exit(main(sys.argv[1:]))"
    for paths in ([source, "-o", tmp_path / "o.parquet"], [tmp_path / "in.parquet", "-o", tmp_path / "o.npy"]):
        (tmp_path / "in.parquet").touch()
        command = [sys.executable, "-c", code, "embed", *map(str, paths), "--column", "body", "--model", "m"]
        command += ["--base-url", "http://127.0.0.1:9/v1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 2
        assert "pip install pyarrow" in done.stderr


# ---- refusals ----


def refused(*arguments: str | Path, **environment: str) -> str:
    done = call("embed", *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_nothing_is_sent_for_what_cannot_be_done(tmp_path: Path, here: list[str], mock_server: MockServer) -> None:
    source, out = texts(tmp_path / "in.csv", 3), tmp_path / "out.npy"
    good = ["--column", "body", *here]
    assert "has no column 'text'; its columns are 'name', 'body'" in refused(source, "-o", out, *here)
    assert "has no column 'x'" in refused(source, "-o", tmp_path / "o.jsonl", *good, "--id-column", "x")
    parquet = texts(tmp_path / "in.parquet", 3)
    assert "its columns are 'name', 'other', 'body'" in refused(parquet, "-o", out, *here)
    assert "end in one of .parquet, .npy, .jsonl" in refused(source, "-o", tmp_path / "out.txt", *good)
    assert "leave out --id-column" in refused(source, "-o", out, *good, "--id-column", "name")
    assert "--budget-usd needs the price of 'm'" in refused(source, "-o", out, *good, "--budget-usd", "1")
    bad = texts(tmp_path / "bad.csv", 3, row_1="")
    assert "row 1: its text is empty" in refused(bad, "-o", out, *good, "--strict")
    assert "is no file" in refused("-", "-o", out, *good)
    out.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refused(source, "-o", out, *good)
    assert mock_server.stats.requests == 0
    assert not (tmp_path / "elsewhere").exists()
    assert not beside(out, "journal").exists()


def test_a_file_that_is_nobodys_output_is_left_alone(tmp_path: Path, here: list[str], mock_server: MockServer) -> None:
    source, out = texts(tmp_path / "in.txt", 3), tmp_path / "out.npy"
    out.write_text("my notes")
    assert "replace it with --fresh" in refused(source, "-o", out, *here)
    assert (out.read_text(), mock_server.stats.requests) == ("my notes", 0)
    assert call("embed", source, "-o", out, *here, "--fresh").returncode == 0
    assert len(npy(out)) == 3


def test_other_texts_another_model_or_other_vectors_are_refused_and_nothing_is_changed(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 20, row_19=""), tmp_path / "out.npy"
    texts(source, 20)
    mock_server.when('number 3"', Answer(status=400, times=0))
    assert call("embed", source, "-o", out, *here).returncode == 1
    before = [path.read_bytes() for path in (out, beside(out, "journal"), beside(out, "vectors"))]
    seen = mock_server.stats.requests
    same = [source, "-o", out, *here]
    assert "model was 'm' and is 'other'" in refused(*same[:-1], "other")
    assert "dimensions was None and is 4" in refused(*same, "--dimensions", "4")
    assert "normalize was False and is True" in refused(*same, "--normalize")
    texts(source, 20, row_11="changed")
    assert "the texts of" in refused(*same)
    assert "throw away the 19 vectors that are there with --fresh" in refused(*same)
    assert mock_server.stats.requests == seen
    assert [path.read_bytes() for path in (out, beside(out, "journal"), beside(out, "vectors"))] == before
    mock_server.clear()
    assert call("embed", *same, "--fresh").returncode == 0
    assert npy(out)[11] == right(mock_server, ["changed"])[0]


def test_a_finished_job_is_finished_until_its_output_is_gone(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 20), tmp_path / "out.npy"
    assert call("embed", source, "-o", out, *here).returncode == 0
    before, seen = out.read_bytes(), mock_server.stats.requests
    again = call("embed", source, "-o", out, *here)
    assert again.returncode == 0
    assert "0 embedded · 0 failed · 20 done before" in again.stderr
    assert (out.read_bytes(), mock_server.stats.requests) == (before, seen)
    out.unlink()
    assert "its vectors are kept nowhere else" in refused(source, "-o", out, *here)


# ---- failures ----


def test_a_text_that_is_refused_fails_alone_and_is_asked_again_on_demand(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 300), tmp_path / "out.npy"
    mock_server.when('"text number 33"', Answer(status=400, times=0))
    done = call("embed", source, "-o", out, *here)
    assert done.returncode == 1
    assert "in.txt, row 33: 400" in done.stderr
    assert [row for row, vector in enumerate(npy(out)) if vector[0] != vector[0]] == [33]
    assert call("embed", source, "-o", out, *here).returncode == 1
    mock_server.clear()
    seen = mock_server.stats.requests
    again = call("embed", source, "-o", out, *here, "--retry-failed")
    assert (again.returncode, mock_server.stats.requests - seen) == (0, 1)
    assert "1 embedded · 0 failed · 299 done before" in again.stderr
    assert npy(out) == right(mock_server, [text(row) for row in range(300)])
    assert not beside(out, "vectors").exists()


def test_texts_that_all_fail_one_after_the_other_do_not_end_the_run(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    """Where nothing of a pack is answered the engine takes the request to be at fault; here others were answered."""
    source, out = texts(tmp_path / "in.txt", 60), tmp_path / "out.npy"
    mock_server.when("text number 2", Answer(status=400, times=0))
    more = ["--batch-size", "10", "--max-concurrency", "1"]
    done = call("embed", source, "-o", out, *here, *more)
    assert done.returncode == 1, done.stderr
    assert "49 embedded · 11 failed" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-errors", "2"], "as many failures as --max-errors allows"),
        (["--on-error", "raise"], "a text failed, and --on-error is raise"),
        (["--deadline", "300ms"], "--deadline is over"),
        (["--budget-tokens", "1"], "the budget is used up"),
        (["--budget-usd", "0.0000001", "--model", "text-embedding-3-small"], "the budget is used up"),
    ],
)
def test_a_rule_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, options: list[str], said: str) -> None:
    source, out = texts(tmp_path / "in.txt", 400), tmp_path / "out.npy"
    with MockServer(latency=0.05) as server:
        where = ["--base-url", server.base_url, "--model", "m", "--max-concurrency", "1", "--batch-size", "5"]
        if "error" in options[0]:
            server.when("number 2", Answer(status=400, times=0))
        done = call("embed", source, "-o", out, *where, *options)
        assert done.returncode == 1, done.stderr
        assert said in done.stderr
        assert not out.exists()
        first = sum(sent(server).values())
        assert first < 400
        server.clear()
        kept = json.loads(call("stats", out, "--json").stdout)
        again = call("embed", source, "-o", out, *where, *options[2:], "--retry-failed")
        assert again.returncode == 0, again.stderr
        assert f"{400 - kept['embedded']:,} embedded" in again.stderr
        assert npy(out) == right(server, [text(row) for row in range(400)])


def test_a_refused_key_ends_the_run_and_what_had_come_is_kept(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.txt", 50), tmp_path / "out.npy"
    with MockServer(api_key="sk-right-012345") as server:
        where = ["--base-url", server.base_url, "--model", "m", "--batch-size", "10", "--max-concurrency", "1"]
        done = call("embed", source, "-o", out, *where)
        assert done.returncode == 1
        assert "it is no text's fault" in done.stderr
        assert "Error: 401" in done.stderr
        assert server.stats.requests < 5
        assert call("embed", source, "-o", out, *where, "--api-key-env", "K", K="sk-right-012345").returncode == 0


def test_cost_and_tokens_are_the_servers_and_a_cached_answer_costs_nothing(tmp_path: Path, here: list[str]) -> None:
    source = texts(tmp_path / "in.txt", 400)
    arguments = ["embed", source, *here[:2], "--model", "text-embedding-3-small", "--json", "--cache", tmp_path / "c"]
    first = json.loads(call(*arguments, "-o", tmp_path / "a.npy").stdout)
    price = Prices().of("text-embedding-3-small")
    assert price is not None
    assert first["cost"] == pytest.approx(price.cost(first["prompt_tokens"], 0))
    assert (first["ok"], first["rows"], first["stopped"], first["dimensions"]) == (400, 400, None, 8)
    again = json.loads(call(*arguments, "-o", tmp_path / "b.npy").stdout)
    assert (again["ok"], again["prompt_tokens"], again["cost"], again["unpriced"]) == (400, 0, 0, 0)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    facts = json.loads(call("cache", "stats", "--cache", tmp_path / "c", "--json").stdout)
    assert facts["models"] == {"text-embedding-3-small": 400}
    lines = run("cache", "export", "--cache", tmp_path / "c").stdout.splitlines()
    exported = [json.loads(line)["body"]["embedding"] for line in lines]
    assert sorted(exported) == sorted(npy(tmp_path / "a.npy"))


# ---- going on ----


def test_a_journal_torn_at_any_byte_costs_what_the_torn_line_spoke_of(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 30), tmp_path / "out.npy"
    arguments = ["embed", source, "-o", out, *here, "--batch-size", "10", "--max-concurrency", "1"]
    mock_server.when('number 29"', Answer(status=401))
    assert call(*arguments).returncode == 1
    whole, vectors = beside(out, "journal").read_bytes(), beside(out, "vectors").read_bytes()
    expected = right(mock_server, [text(row) for row in range(30)])
    lines = whole.count(b"\n")
    assert lines == 3
    for cut in [*range(1, len(whole), 23), len(whole) - 1]:
        beside(out, "journal").write_bytes(whole[:cut])
        beside(out, "vectors").write_bytes(vectors)
        out.unlink(missing_ok=True)
        seen = mock_server.stats.requests
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
        assert mock_server.stats.requests - seen == 3 - max(whole[:cut].count(b"\n") - 1, 0), cut
        assert npy(out) == expected


def test_damaged_blocks_are_reported_and_asked_again(tmp_path: Path, here: list[str], mock_server: MockServer) -> None:
    source, out = texts(tmp_path / "in.txt", 40), tmp_path / "out.npy"
    arguments = ["embed", source, "-o", out, *here, "--batch-size", "10", "--max-concurrency", "1"]
    mock_server.when('number 39"', Answer(status=401))
    assert call(*arguments).returncode == 1
    vectors, journal = beside(out, "vectors"), beside(out, "journal")
    numbers = bytearray(vectors.read_bytes())
    numbers[15 * 32] ^= 1
    vectors.write_bytes(numbers)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"size":8', b'"size":9')
    journal.write_bytes(b"".join(lines))
    mock_server.when('number 39"', Answer(status=401))
    seen = mock_server.stats.requests
    done = call(*arguments)
    assert "journal, line 3: the vectors of 10 rows are damaged; they are asked for again" in done.stderr
    assert "journal, line 4: damaged" in done.stderr
    assert mock_server.stats.requests - seen == 3
    # Once it is mended, nothing of it is said again.
    last = call(*arguments)
    assert (last.returncode, "asked for again" in last.stderr) == (0, False), last.stderr
    assert npy(out) == right(mock_server, [text(row) for row in range(40)])
    journal.write_bytes(b"x" + journal.read_bytes()[1:])
    assert "its first line is not that of a journal" in refused(*arguments[1:])


def test_vectors_that_are_gone_are_not_paid_for_again_in_silence(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 20), tmp_path / "out.npy"
    mock_server.when('number 19"', Answer(status=401))
    arguments = [source, "-o", out, *here, "--batch-size", "10", "--max-concurrency", "1"]
    assert call("embed", *arguments).returncode == 1
    beside(out, "vectors").unlink()
    assert "which held the vectors of 10 rows" in refused(*arguments)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_lets_what_is_on_the_wire_end_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    source, out = texts(tmp_path / "in.txt", 600), tmp_path / "out.npy"
    with MockServer(latency=0.3) as server:
        arguments = ["embed", source, "-o", out, "--model", "m", "--max-concurrency", "4", "--batch-size", "10"]
        arguments += ["--base-url", server.base_url]
        with started(*arguments) as process:
            until(lambda: server.stats.answered >= 4, PATIENCE_S)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == code
            assert process.stderr is not None
            said = process.stderr.read()
        assert "stopping" in said
        assert "interrupted; the same command again goes on from here" in said
        assert not out.exists()
        facts = json.loads(call("stats", out, "--json").stdout)
        assert facts["embedded"] == 10 * server.stats.requests
        assert (facts["state"], facts["to_do"]) == ("incomplete", 600 - facts["embedded"])
        assert run(*arguments).returncode == 0
        assert set(sent(server).values()) == {1}
        assert npy(out) == right(server, [text(row) for row in range(600)])


def test_what_waits_for_a_limit_is_not_sent_after_ctrl_c(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.txt", 100), tmp_path / "out.npy"
    with MockServer() as server:
        arguments = ["embed", source, "-o", out, "--model", "m", "--base-url", server.base_url, "--batch-size", "10"]
        with started(*arguments, "--rpm", "2", "--grace", "1h") as process:
            until(lambda: len(kept_rows(out)) == 20, PATIENCE_S)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
        assert server.stats.requests == 2
    assert json.loads(call("stats", out, "--json").stdout)["to_do"] == 80


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.txt", 50), tmp_path / "out.npy"
    with MockServer() as server:
        server.when('number 33"', Answer(fault="hang_before"))
        arguments = ["embed", source, "-o", out, "--model", "m", "--base-url", server.base_url, "--batch-size", "10"]
        with started(*arguments, "--grace", "1h") as process:
            until(lambda: len(kept_rows(out)) == 40 and server.stats.in_flight == 1, PATIENCE_S)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "stopping" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 130
    assert json.loads(call("stats", out, "--json").stdout)["embedded"] == 40


def test_two_runs_do_not_make_one_output(tmp_path: Path, mock_server: MockServer, here: list[str]) -> None:
    source, out = texts(tmp_path / "in.txt", 10), tmp_path / "out.npy"
    with (
        MockServer(latency=60) as slow,
        started("embed", source, "-o", out, "--model", "m", "--base-url", slow.base_url),
    ):
        until(lambda: slow.stats.in_flight == 1, PATIENCE_S)
        for extra in ([], ["--fresh"]):
            done = call("embed", source, "-o", out, *here, *extra)
            assert done.returncode == 1
            assert "is being made by another run" in done.stderr
    assert mock_server.stats.requests == 0
    assert call("embed", source, "-o", out, *here).returncode == 0


def test_an_input_that_changes_under_the_run_ends_it(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.txt", 5000), tmp_path / "out.npy"
    with MockServer(latency=0.3) as server:
        arguments = ["embed", source, "-o", out, "--model", "m", "--max-concurrency", "1", "--batch-size", "500"]
        with started(*arguments, "--base-url", server.base_url) as process:
            until(lambda: server.stats.answered >= 1, PATIENCE_S)
            texts(source, 5000, row_4999="another")
            process.wait(PATIENCE_S)
            assert process.stderr is not None
            assert "was changed while it was read" in process.stderr.read()
            assert process.returncode == 1
    assert not out.exists()


def test_a_full_disk_ends_the_run_in_words_and_the_next_one_goes_on(
    tmp_path: Path, here: list[str], mock_server: MockServer
) -> None:
    source, out = texts(tmp_path / "in.txt", 2000), tmp_path / "out.npy"
    arguments = ["embed", str(source), "-o", str(out), *here, "--batch-size", "50", "--max-concurrency", "2"]

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, preexec_fn=small_disk
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    told = re.search(r"the vectors of (\d+) rows that are paid for were not written", done.stderr)
    assert told
    paid = sum(sent(mock_server).values())
    kept = json.loads(call("stats", out, "--json").stdout)["embedded"]
    assert 0 < kept < 2000
    assert paid - kept <= int(told[1]) + 100
    assert call(*arguments).returncode == 0
    assert npy(out) == right(mock_server, [text(row) for row in range(2000)])


def test_no_file_of_a_job_holds_a_text_or_a_key(tmp_path: Path, mock_server: MockServer) -> None:
    source, out = texts(tmp_path / "in.txt", 30), tmp_path / "out.npy"
    mock_server.when('number 3"', Answer(status=400, body={"error": {"message": f"no use of {KEY}"}}, times=0))
    mask = os.umask(0)
    try:
        where = ["--base-url", mock_server.base_url, "--model", "m", "--api-key-env", "K"]
        done = call("embed", source, "-o", out, *where, K=KEY)
    finally:
        os.umask(mask)
    assert done.returncode == 1
    assert KEY not in done.stderr
    for kind in ("journal", "vectors"):
        assert stat.S_IMODE(beside(out, kind).stat().st_mode) == 0o600
        content = beside(out, kind).read_bytes()
        assert KEY.encode() not in content
        assert b"text number" not in content


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal."""
    if path.exists():
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
            yield json.loads(line)


def kept_rows(out: Path) -> set[int]:
    runs = [run for line in lines_of(beside(out, "journal")) for run in line.get("rows", [])]
    return {row for first, end in runs for row in range(first, end)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing_and_ask_nothing_twice_that_is_written(tmp_path: Path) -> None:
    count, kills, size, at_once = 3000, 20, 10, 8
    source, out = texts(tmp_path / "in.csv", count), tmp_path / "out.parquet"
    rng = random.Random(7)
    faults = [Answer(status=503), Answer(fault="reset_before"), Answer(fault="truncate"), Answer(status=500)]
    with MockServer(latency=0.02) as server:
        server.script(*(rng.choice(faults) if rng.random() < 0.1 else Answer() for _ in range(4 * count // size)))
        arguments = ["embed", source, "-o", out, "--column", "body", "--id-column", "name", "--model", "m"]
        arguments += ["--base-url", server.base_url, "--max-concurrency", str(at_once), "--batch-size", str(size)]
        arguments += ["--retries", "9"]
        before_death: list[tuple[int, set[int]]] = []
        for target in sorted(rng.sample(range(1, count - 100), kills)):
            with started(*arguments) as process:
                until(lambda least=target: len(kept_rows(out)) >= least, 120)  # type: ignore[misc]
                process.kill()
                process.wait(PATIENCE_S)
            until(lambda: server.stats.in_flight == 0)
            before_death.append((server.stats.requests, kept_rows(out)))
            assert not out.exists()
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        asked = [request.json()["input"] for request in server.requests]
        paid = Counter(
            each for request in server.requests if request.completed and request.status == 200
            for each in request.json()["input"]
        )  # fmt: skip
        server.clear()
        expected = right(server, [text(row) for row in range(count)])
    table = arrow.parquet.read_table(out)
    assert table["name"].to_pylist() == [f"n{row}" for row in range(count)]
    assert table["embedding"].to_pylist() == expected
    for requests, rows in before_death:
        again = {each for pack in asked[requests:] for each in pack} & {text(row) for row in rows}
        assert not again, "what is written was asked again"
    twice = sum(times - 1 for each, times in paid.items() if each.startswith("text"))
    assert twice <= kills * at_once * size


# ---- check and stats ----


def test_check_estimates_tokens_packs_cost_and_time_and_sends_nothing(
    tmp_path: Path, mock_server: MockServer, here: list[str]
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"t": "x" * 400} for _ in range(1000)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ["--model", "text-embedding-3-small"]
    done = call("check", source, "--column", "t", *here[:2], *model, "--tpm", "50k", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["rows"], facts["tokens"], facts["requests"]) == (0, 1000, 100_000, 8)
    price = Prices().of("text-embedding-3-small")
    assert price is not None
    assert facts["cost_usd"] == pytest.approx(price.cost(100_000, 0))
    assert facts["seconds"] == pytest.approx(60)
    assert json.loads(call("check", source, "--column", "t", *model, "--json").stdout)["requests"] == 4
    sized = ["--batch-size", "100", "--max-input-tokens", "99"]
    facts = json.loads(call("check", source, "--column", "t", *model, *sized, "--json").stdout)
    assert (facts["requests"], facts["too_long"], facts["longest_tokens"]) == (10, 1000, 100)
    assert mock_server.stats.connections == 0
    said = call("check", source, "--column", "t", "--model", "mine").stdout
    assert "unknown: no price of mine" in said


def test_check_counts_the_packs_that_embed_sends(tmp_path: Path, mock_server: MockServer, here: list[str]) -> None:
    source = texts(tmp_path / "in.csv", 777, row_5="", row_6="x" * 50_000)
    more = ["--column", "body", "--batch-size", "50", "--max-batch-tokens", "1k"]
    checked = call("check", source, *more, *here, "--json")
    facts = json.loads(checked.stdout)
    assert (checked.returncode, facts["rows_without_text"]) == (1, 1)
    assert facts["problems"] == [{"row": 5, "reason": "its text is empty"}]
    assert call("check", source, *more, *here, "--strict").returncode == 2
    done = call("embed", source, "-o", tmp_path / "out.npy", *more, *here, "--json")
    assert json.loads(done.stdout)["requests"] == mock_server.stats.requests == facts["requests"]


def test_stats_tell_how_a_job_stands(tmp_path: Path, here: list[str], mock_server: MockServer) -> None:
    source, out = texts(tmp_path / "in.txt", 50), tmp_path / "out.npy"
    mock_server.when('number 3"', Answer(status=400, body={"error": {"code": "bad_text", "message": "no"}}, times=0))
    arguments = ["embed", source, "-o", out, *here[:2], "--model", "text-embedding-3-small"]
    summary = json.loads(call(*arguments, "--json").stdout)
    for path in (out, beside(out, "journal"), beside(out, "vectors")):
        facts = json.loads(call("stats", path, "--json").stdout)
        assert (facts["state"], facts["rows"], facts["embedded"], facts["failed"]) == ("complete", 50, 49, 1)
        assert facts["error_codes"] == {"400 bad_text": 1}
        assert (facts["tokens"], facts["requests"]) == (summary["prompt_tokens"], summary["requests"])
        assert facts["cost_usd"] == pytest.approx(summary["cost"])
    said = call("stats", out).stdout
    for word in ("embedded", "400 bad_text", "complete", "49 x 8", "text-embedding-3-small", "$0.0000"):
        assert word in said
    assert call("stats", out, out).returncode == 2
    absent = call("stats", tmp_path / "absent.npy")
    assert (absent.returncode, "there is no file" in absent.stderr) == (2, True)


def test_progress_is_shown_on_demand(tmp_path: Path, here: list[str]) -> None:
    source = texts(tmp_path / "in.txt", 7)
    assert "7/7" not in call("embed", source, "-o", tmp_path / "a.npy", *here).stderr
    assert "7/7 (100 %)" in call("embed", source, "-o", tmp_path / "b.npy", *here, "--progress").stderr
