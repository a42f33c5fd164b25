"""Embeddings of a real language model, beside those that the official client gets. About ten texts a second."""

from __future__ import annotations

import json
import math
import subprocess
from array import array
from typing import TYPE_CHECKING, Any

import openai
import pytest
from helpers import until
from millstream import AsyncClient, Client, EmbeddingBatcher, InternalServerError
from real_server import RealServer
from test_cli import COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.real

TEXTS = ["a cat", "a dog", "the stock market fell today", "ein Hund", "a cat"]
# Tokens of a text that the server takes.
CONTEXT = 32


@pytest.fixture(scope="module")
def server(real_server_available: None) -> Iterator[RealServer]:
    with RealServer(parallel=1, context=CONTEXT, embeddings=True) as server:
        yield server


@pytest.fixture
def client(server: RealServer) -> Iterator[Client]:
    with Client(api_key="unused", base_url=server.base_url, model=server.model, timeout=110) as client:
        yield client


@pytest.mark.parametrize("form", ["base64", "float"])
def test_every_number_is_the_official_clients(server: RealServer, client: Client, form: str) -> None:
    with openai.OpenAI(api_key="unused", base_url=server.base_url) as official:
        # It asks for base64, and decodes that, unless it is told otherwise.
        asked: Any = {"encoding_format": "float"} if form == "float" else {}
        answers = [official.embeddings.create(model=server.model, input=text, **asked) for text in TEXTS]
    embeddings = client.embed(TEXTS, batch_size=1, max_concurrent=1, encoding_format=form)

    assert embeddings.shape == (5, 576)
    for row, answer in zip(embeddings, answers, strict=True):
        # Of numbers on the wire the nearest 32-bit floats.
        theirs = array("f", answer.data[0].embedding)
        assert row.tolist() == theirs.tolist()
    assert embeddings[0].tolist() == embeddings[4].tolist()
    assert embeddings.usage is not None
    assert embeddings.usage.prompt_tokens > 0


def test_what_means_the_same_is_near(client: Client) -> None:
    cat, dog, market = client.embed(["a small cat sleeps", "a small dog sleeps", "7 * 8 = 56"], normalize=True).tolist()

    def cosine(one: list[float], other: list[float]) -> float:
        return math.sumprod(one, other) if hasattr(math, "sumprod") else sum(map(float.__mul__, one, other))

    assert cosine(cat, dog) > cosine(cat, market)
    assert cosine(cat, cat) == pytest.approx(1, abs=1e-5)


def test_one_text_that_is_too_long_fails_alone(client: Client) -> None:
    """The server answers 500 for the whole pack."""
    long = "word " * (2 * CONTEXT)
    fast = client.with_options(max_retries=0)
    embeddings = fast.embed([*TEXTS, long], on_error="nan")
    assert [type(error) for error in embeddings.errors.values()] == [InternalServerError]
    assert list(embeddings.errors) == [5]
    assert not any(math.isnan(number) for row in embeddings[:5].tolist() for number in row)
    for too_long in ("truncate", "chunk-mean"):
        assert not fast.embed([*TEXTS, long], too_long=too_long).errors


async def test_single_texts_are_embedded_together(server: RealServer) -> None:
    import asyncio

    async with (
        AsyncClient(api_key="unused", base_url=server.base_url, model=server.model, timeout=110) as client,
        EmbeddingBatcher(client) as batcher,
    ):
        vectors = await asyncio.gather(*(batcher.embed(text) for text in TEXTS))
        assert client.stats().requests == 1
    assert [len(vector) for vector in vectors] == [576] * 5


def test_a_killed_embed_goes_on_and_every_number_is_the_official_clients(server: RealServer, tmp_path: Path) -> None:
    """The command line over a file, dead in its midst."""
    texts = [f"{text}, number {row}" for row, text in enumerate(TEXTS * 3)]
    source, out = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("".join(f"{text}\n" for text in texts))
    command = [*COMMAND, "embed", str(source), "-o", str(out), "--model", server.model, "--batch-size", "1"]
    command += ["--base-url", server.base_url, "--max-concurrency", "1"]
    journal = tmp_path / "out.npy.embed.journal"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 4, 60)
        process.kill()
    assert not out.exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["skipped"] >= 4
    assert (summary["ok"] + summary["skipped"], summary["dimensions"]) == (len(texts), 576)
    with openai.OpenAI(api_key="unused", base_url=server.base_url) as official:
        theirs = [official.embeddings.create(model=server.model, input=text).data[0].embedding for text in texts]
    numbers = memoryview(out.read_bytes()[-4 * 576 * len(texts) :]).cast("f")
    assert numbers.tolist() == [number for vector in theirs for number in array("f", vector)]
