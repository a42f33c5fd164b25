"""``millstream cache``: what it says of a cache that other processes filled, and what it takes out of it."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY
from millstream import Cache, Client, Prices
from millstream.testing import Answer, MockServer
from redis_server import RedisServer, require_redis
from test_cli import call, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fill(server: MockServer, folder: Path | str, count: int, model: str = "gpt-4o-mini", **how: Any) -> None:
    cache = Cache(folder, **how)
    with Client(base_url=server.base_url, api_key=KEY, model=model, cache=cache) as client:
        client.batch_complete([f"question {number}" for number in range(count)])
    cache.flush()


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_stats_say_what_is_kept_of_which_models_and_what_it_is_worth(mock_server: MockServer, folder: Path) -> None:
    fill(mock_server, folder, 300)
    fill(mock_server, folder, 2, model="mine", ttl=1000)
    facts = json.loads(call("cache", "stats", "--cache", folder, "--json").stdout)
    assert (facts["entries"], facts["unreadable_or_expired"], facts["with_expiry"]) == (302, 0, 2)
    assert facts["models"] == {"gpt-4o-mini": 300, "mine": 2}
    assert facts["bytes"] > 0
    assert (facts["worth_usd"], facts["unpriced_models"]) == (None, {"mine": 2})
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert 0 < facts["known_worth_usd"] < price.cost(facts["prompt_tokens"], facts["completion_tokens"])
    assert facts["oldest"] <= facts["newest"]
    done = run("cache", "stats", "--cache", folder)
    assert done.returncode == 0
    for said in ("302", "gpt-4o-mini: 300", "unknown for 2 answers of mine", "counted by each process for itself"):
        assert said in done.stdout


def test_looking_into_a_cache_takes_nothing_out_of_it_however_small_it_is_elsewhere(
    mock_server: MockServer, folder: Path
) -> None:
    fill(mock_server, folder, 20)
    with Client(base_url=mock_server.base_url, api_key=KEY, model="gpt-4o-mini", cache=folder) as client:
        for command in (["stats"], ["export"], ["clear", "--older-than", "1d", "--yes"]):
            assert run("cache", command[0], "--cache", folder, *command[1:]).returncode == 0
        client.batch_complete([f"question {number}" for number in range(20)])
    assert mock_server.stats.requests == 20


def test_what_is_damaged_is_counted_and_left_out(mock_server: MockServer, folder: Path) -> None:
    import sqlite3

    fill(mock_server, folder, 3)
    with sqlite3.connect(folder / "answers.sqlite") as database:
        database.execute("UPDATE answers SET value = x'00' WHERE rowid = 1")
    database.close()
    facts = json.loads(call("cache", "stats", "--cache", folder, "--json").stdout)
    assert (facts["entries"], facts["unreadable_or_expired"]) == (3, 1)
    assert len(lines_of(run("cache", "export", "--cache", folder).stdout)) == 2


def test_export_writes_the_answers_and_neither_what_was_asked_nor_a_key(mock_server: MockServer, folder: Path) -> None:
    mock_server.script(*[Answer(text="of no question")] * 600)
    fill(mock_server, folder, 600)
    out = folder.parent / "answers.jsonl"
    mask = os.umask(0)
    try:
        done = call("cache", "export", "--cache", folder, "-o", out)
    finally:
        os.umask(mask)
    assert (done.returncode, done.stdout) == (0, "")
    assert "600 answers" in done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    text = out.read_text(encoding="utf-8")
    assert KEY not in text
    assert "question 1" not in text
    lines = lines_of(text)
    assert len({line["id"] for line in lines}) == 600
    assert {line["body"]["choices"][0]["message"]["content"] for line in lines} == {"of no question"}
    assert {(line["model"], line["expires"]) for line in lines} == {("gpt-4o-mini", None)}
    assert all(line["prompt_tokens"] > 0 and line["stored"].startswith("20") for line in lines)
    assert len(lines_of(run("cache", "export", "--cache", folder).stdout)) == 600


def test_export_through_a_link_or_into_no_folder_is_refused(mock_server: MockServer, folder: Path) -> None:
    fill(mock_server, folder, 1)
    done = call("cache", "export", "--cache", folder, "-o", folder / "absent" / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_clear_asks_and_says_how_many(mock_server: MockServer, folder: Path) -> None:
    fill(mock_server, folder, 5)
    refused = run("cache", "clear", "--cache", folder, stdin="n\n")
    assert refused.returncode == 130
    assert "forget all 5 answers?" in refused.stdout
    assert Cache(folder).stats().entries == 5
    done = run("cache", "clear", "--cache", folder, stdin="y\n")
    assert (done.returncode, "5 answers removed" in done.stdout) == (0, True)
    assert Cache(folder).stats().entries == 0
    assert "nothing is kept" in call("cache", "clear", "--cache", folder, "--yes").stdout


def test_clear_takes_only_what_the_options_name(
    mock_server: MockServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(mock_server, folder, 3, model="one")
    fill(mock_server, folder, 1500, model="two")
    assert "0 answers removed" in call("cache", "clear", "--cache", folder, "--older-than", "1h", "--yes").stdout
    assert "1,500 answers removed" in call("cache", "clear", "--cache", folder, "--model", "two", "--yes").stdout
    assert {line["model"] for line in lines_of(run("cache", "export", "--cache", folder).stdout)} == {"one"}
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    assert "3 answers removed" in call("cache", "clear", "--cache", folder, "--older-than", "1h", "--yes").stdout


def test_the_usual_place_is_that_of_cache_disk_and_is_not_made_by_looking(
    mock_server: MockServer, tmp_path: Path
) -> None:
    place = {"XDG_CACHE_HOME": str(tmp_path)}
    assert json.loads(call("cache", "stats", "--json", **place).stdout)["entries"] == 0
    assert "nothing is kept" in call("cache", "clear", "--yes", **place).stdout
    assert run("cache", "export", **place).stdout == ""
    assert not list(tmp_path.iterdir())
    fill(mock_server, tmp_path / "millstream", 2)
    assert json.loads(call("cache", "stats", "--json", **place).stdout)["entries"] == 2


def test_a_place_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others").mkdir(mode=0o700)
    (tmp_path / "others" / "notes").write_text("mine")
    for where in ("absent", "empty", "others"):
        done = call("cache", "stats", "--cache", tmp_path / where)
        assert (done.returncode, "there is no cache at" in done.stderr) == (2, True), where
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["notes"]


async def test_entries_are_the_same_awaited(mock_server: MockServer, folder: Path) -> None:
    fill(mock_server, folder, 300)
    cache = Cache(folder)
    entries = list(cache.entries())
    assert [entry async for entry in cache.aentries()] == entries
    assert len({entry.key for entry in entries}) == 300
    cache.remove(entries[:100])
    await cache.aremove(entries[:100])
    assert list(cache.entries()) == entries[100:]
    assert Cache("memory").stats().entries == len(list(Cache("memory").entries())) == 0


def test_a_redis_is_a_cache_like_any_other(mock_server: MockServer, tmp_path: Path) -> None:
    require_redis()
    with RedisServer(tmp_path, password="canary") as redis:
        fill(mock_server, redis.url, 250, ttl=1000)
        fill(mock_server, redis.url, 3, model="mine")
        redis.say("SET", f"millstream:{'0' * 64}", "rubbish")
        redis.say("SET", "millstream:of another", "theirs")
        place = {"MILLSTREAM_CACHE": redis.url}
        done = call("cache", "stats", "--json", **place)
        facts = json.loads(done.stdout)
        assert (facts["entries"], facts["unreadable_or_expired"], facts["with_expiry"]) == (254, 1, 253)
        assert facts["models"] == {"gpt-4o-mini": 250, "mine": 3}
        exported = run("cache", "export", **place)
        lines = lines_of(exported.stdout)
        assert len({line["id"] for line in lines}) == 253
        assert all(line["stored"] < line["expires"] for line in lines)
        cleared = call("cache", "clear", "--model", "mine", "--yes", **place)
        assert "3 answers removed" in cleared.stdout
        assert Cache(redis.url).stats().entries == 251
        assert call("cache", "clear", "--yes", **place).returncode == 0
        assert redis.keys() == ["millstream:of another"]
        redis.kill()
        lost = run("cache", "export", **place)
        assert (lost.returncode, "cannot be" in lost.stderr) == (1, True)
        for said in (done, exported, cleared, lost):
            assert "canary" not in said.stdout + said.stderr
