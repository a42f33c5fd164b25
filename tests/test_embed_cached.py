"""`embed` with a cache: every text by itself, so that only what is new is sent and paid for."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY
from millstream import AsyncClient, BadRequestError, Cache, Client, ConfigurationError, EmbeddingBatcher, Embeddings
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Make
    from helpers import Face


def embed(face: Face, texts: list[str], **arguments: Any) -> Embeddings:
    return face.run(face.client.embed(texts, **arguments))


def asked(server: MockServer) -> list[str]:
    """The texts that the server was asked for."""
    return [text for request in server.requests for text in json.loads(request.body)["input"]]


def test_only_texts_that_are_new_are_sent(make: Make, mock_server: MockServer) -> None:
    cache = Cache()
    face = make(cache=cache)
    first = embed(face, ["a", "b", "c"])
    again = embed(face, ["d", "c", "b", "a", "a"])

    assert asked(mock_server) == ["a", "b", "c", "d"]
    assert (first.cached, first.requests, again.cached, again.requests) == (0, 1, 4, 1)
    assert first.usage is not None
    assert again.usage is not None
    assert (first.usage.prompt_tokens, again.usage.prompt_tokens) == (3, 1)
    rows = first.tolist()
    assert again.tolist()[1:] == [rows[2], rows[1], rows[0], rows[0]]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.saved_prompt_tokens) == (3, 4, 4, 3)
    assert face.client.stats().cache_hits == 3
    assert pickle.loads(pickle.dumps(again)).cached == 4


def test_what_is_all_kept_is_not_asked_for_in_whatever_way_it_is_wanted(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    whole = embed(face, ["a", "b"])
    assert embed(face, ["b"], encoding_format="float").tolist() == [whole.tolist()[1]]
    assert embed(face, ["a"], truncate_dim=2).shape == (1, 2)
    assert face.run(face.client.embed_one("a")).tolist() == whole.tolist()[0]
    pages, error = face.read(face.client.embed_stream(["a", "b", "a"], page_size=2))
    assert error is None
    assert [page.tolist() for page in pages] == [whole.tolist(), [whole.tolist()[0]]]
    kept = embed(face, ["a", "b"])
    assert (kept.requests, kept.cached, kept.model) == (0, 2, "m")
    assert kept.usage is not None
    assert kept.usage.total_tokens == 0
    assert len(mock_server.requests) == 1


def test_what_makes_another_vector_is_asked_for(make: Make, mock_server: MockServer) -> None:
    cache = Cache()
    face = make(cache=cache)
    embed(face, ["a"])
    for arguments in ({"dimensions": 4}, {"model": "other"}, {"user": "u"}, {"extra_headers": {"openai-project": "p"}}):
        assert embed(face, ["a"], **arguments).cached == 0
        assert embed(face, ["a"], **arguments).cached == 1
    assert embed(make(cache=cache, api_key="sk-another-12345678"), ["a"]).cached == 0
    assert len(mock_server.requests) == 6


def test_a_call_may_leave_the_cache_out_or_replace_what_it_has(make: Make, mock_server: MockServer) -> None:
    cache = Cache()
    face = make(cache=cache)
    assert [embed(face, ["a"]).cached, embed(face, ["a"], cache=False).cached] == [0, 0]
    assert cache.stats().stored == 1
    assert embed(face, ["a"], refresh=True).cached == 0
    assert embed(face, ["a"]).cached == 1
    assert (cache.stats().stored, len(mock_server.requests)) == (2, 3)
    with pytest.raises(ConfigurationError, match="refresh="):
        embed(face, ["a"], cache=False, refresh=True)
    with pytest.raises(ConfigurationError, match="need a cache"):
        embed(make(), ["a"], refresh=True)


def test_a_text_that_fails_is_asked_again_and_its_neighbours_are_not(make: Make, mock_server: MockServer) -> None:
    face = make(cache="memory")
    mock_server.when("BAD", Answer(status=400, times=0))
    for cached in (0, 2):
        embeddings = embed(face, ["a", "BAD", "c"], on_error="nan")
        assert (embeddings.cached, embeddings.errors.keys()) == (cached, {1})
        assert isinstance(embeddings.errors[1], BadRequestError)


def test_vectors_on_disk_outlive_the_process_and_are_the_owners_alone(mock_server: MockServer, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(700)]
    first = None
    for cached in (0, 700):
        cache = Cache(tmp_path / "cache")
        with Client(api_key=KEY, base_url=mock_server.base_url, model="m", cache=cache) as client:
            embeddings = client.embed(texts)
            assert embeddings.cached == cached
            first = first or embeddings
            assert embeddings == first
        cache.flush()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert b"text 7" not in kept
    assert KEY.encode() not in kept


def test_damaged_vectors_are_asked_for_again(mock_server: MockServer, tmp_path: Path) -> None:
    import sqlite3

    folder = tmp_path / "cache"
    options: Any = {"api_key": KEY, "base_url": mock_server.base_url, "model": "m"}
    cache = Cache(folder)
    with Client(cache=cache, **options) as client:
        whole = client.embed(["a", "b", "c"])
    cache.flush()
    with sqlite3.connect(folder / "answers.sqlite") as database:
        key, value = database.execute("SELECT key, value FROM answers LIMIT 1").fetchone()
        value = value[:-1] + bytes([value[-1] ^ 1])
        database.execute("UPDATE answers SET value = ? WHERE key = ?", (value, key))
    database.close()
    again = Cache(folder)
    with Client(cache=again, **options) as client:
        embeddings = client.embed(["a", "b", "c"])
        assert (embeddings.cached, embeddings == whole) == (2, True)
        with pytest.warns(RuntimeWarning, match="damaged"):
            again.stats()
    assert again.stats().broken == 1


async def test_a_batcher_sends_what_is_new(mock_server: MockServer) -> None:
    options: Any = {"api_key": KEY, "base_url": mock_server.base_url, "model": "m", "cache": "memory"}
    async with AsyncClient(**options) as client, EmbeddingBatcher(client, linger=0.01) as batcher:
        one = await batcher.embed("a")
        vectors = await asyncio.gather(*(batcher.embed(text) for text in ("a", "b", "b", "a")))
    assert asked(mock_server) == ["a", "b"]
    assert vectors[0].tolist() == vectors[3].tolist() == one.tolist()
    assert vectors[1].tolist() == vectors[2].tolist() != one.tolist()
