"""Texts to one float32 block, or whatever the client gives: millstream, the official client, baseten's.

``--requests`` is the number of texts, in packs of 128. Which form vectors come in is each client's own choice unless
``--form`` says it. millstream's result is a block; openai's and baseten's are made one with numpy, since that is what
embeddings are for. ``--kind stream`` is `embed_stream`: pages that are looked at and dropped, a tenth as many before
the baseline of the memory; ``--kind cached`` asks for texts that a cache has (``--cache``).
"""

import argparse
import asyncio
import gc
import importlib.metadata
import tempfile
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from _common import API_KEY, MODEL, TIMEOUT_S, cpu_seconds, make_prompts, print_result, reset_peak_rss, rss_mb

PACK = 128

# Of texts: the rows' block, and the longest time in seconds that the event loop stood still.
Embed = Callable[[list[str]], Awaitable[Any]]


def open_millstream(given: argparse.Namespace) -> Any:
    from millstream import AsyncClient, Cache

    gigabyte = 1 << 30
    cache = Cache(given.cache, max_bytes=gigabyte) if given.kind == "cached" else None
    return AsyncClient(
        api_key=API_KEY,
        base_url=given.base_url,
        model=MODEL,
        max_concurrency=given.concurrency,
        timeout=TIMEOUT_S,
        max_retries=0,
        cache=cache,
    )


def millstream(given: argparse.Namespace) -> Embed:
    client = open_millstream(given)

    async def embed(texts: list[str]) -> Any:
        return await client.embed(
            texts, batch_size=PACK, max_concurrent=given.concurrency, encoding_format=given.form, dedupe=False
        )

    return embed


def cached(given: argparse.Namespace) -> Embed:
    client = open_millstream(given)
    # None of what is measured is new: the first call is the warm-up, before the baseline.
    texts = make_prompts(given.requests)

    async def embed(_: list[str]) -> Any:
        embeddings = await client.embed(texts, batch_size=PACK, dedupe=False)
        await client._settings.cache.aflush()
        return embeddings

    return embed


def stream(given: argparse.Namespace) -> Embed:
    client = open_millstream(given)

    def texts(count: int) -> Iterator[str]:
        return (f"a short text, the {number}th" for number in range(count))

    async def embed(prompts: list[str]) -> Any:
        rows = 0
        async for page in client.embed_stream(texts(len(prompts)), batch_size=PACK, dedupe=False):
            rows += len(page)
            last = page
        if rows != len(prompts):
            raise SystemExit(f"{len(prompts)} texts gave {rows} rows")
        return last

    return embed


def openai(given: argparse.Namespace) -> Embed:
    import numpy as np
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key=API_KEY, base_url=given.base_url, timeout=TIMEOUT_S, max_retries=0)
    form = {} if given.form == "base64" else {"encoding_format": given.form}

    async def embed(texts: list[str]) -> Any:
        packs = iter([texts[start : start + PACK] for start in range(0, len(texts), PACK)])
        rows: dict[int, Any] = {}

        async def pull() -> None:
            for number, pack in enumerated:
                answer = await client.embeddings.create(model=MODEL, input=pack, **form)
                rows[number] = np.array([one.embedding for one in answer.data], dtype=np.float32)

        enumerated = enumerate(packs)
        async with asyncio.TaskGroup() as pullers:
            for _ in range(given.concurrency):
                pullers.create_task(pull())
        return np.concatenate([rows[number] for number in sorted(rows)])

    return embed


def baseten(given: argparse.Namespace) -> Embed:
    import numpy as np
    from baseten_performance_client import PerformanceClient, RequestProcessingPreference

    client = PerformanceClient(base_url=given.base_url.removesuffix("/v1"), api_key=API_KEY)
    preference = RequestProcessingPreference(
        batch_size=PACK, max_concurrent_requests=given.concurrency, timeout_s=TIMEOUT_S, max_retries=0
    )

    async def embed(texts: list[str]) -> Any:
        answer = await client.async_embed(texts, model=MODEL, encoding_format=given.form, preference=preference)
        if given.form == "float":
            return answer.numpy()
        # Base64 it hands on as it came.
        block = np.empty((len(texts), len(b64decode(answer.data[0].embedding)) // 4), np.float32)
        for row, one in zip(block, answer.data, strict=True):
            row[:] = np.frombuffer(b64decode(one.embedding), np.float32)
        return block

    return embed


async def longest_stall(over: asyncio.Event) -> float:
    """The longest time by which a timer of 1 ms was late."""
    longest = 0.0
    while not over.is_set():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - start - 0.001)
    return longest


async def measure(given: argparse.Namespace, embed: Embed) -> dict[str, Any]:
    is_stream = given.kind == "stream"
    # A stream makes its own, as many as these.
    texts = [""] * given.requests if is_stream else make_prompts(given.requests)
    await embed(texts[: given.requests // 10] if is_stream else make_prompts(given.concurrency * PACK, seed=1))
    gc.collect()
    reset_peak_rss()
    over = asyncio.Event()
    watch = asyncio.ensure_future(longest_stall(over))
    await asyncio.sleep(0.01)
    baseline, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
    block = await embed(texts)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
    peak = rss_mb("VmHWM")
    over.set()
    stall = await watch
    rows, dimensions = memoryview(block).shape
    if (rows != len(texts) and not is_stream) or block[rows - 1][0] == 0:
        raise SystemExit(f"{len(texts)} texts gave {rows} rows")
    if given.kind == "cached" and block.cached != rows:
        raise SystemExit(f"{rows - block.cached} of {rows} texts were not in the cache")
    rows = len(texts)
    return {
        "requests": rows,
        "concurrency": given.concurrency,
        "seconds": seconds,
        "rps": rows / seconds,
        "cpu_us_per_request": cpu * 1e6 / rows,
        "stall_ms": stall * 1e3,
        "baseline_rss_mb": baseline,
        "peak_rss_mb": peak,
        "answers_mb": None if is_stream else rows * dimensions * 4 / 2**20,
    }


PEERS = {
    "millstream": (millstream, "millstream"),
    "cached": (cached, "millstream"),
    "stream": (stream, "millstream"),
    "openai": (openai, "openai"),
    "baseten": (baseten, "baseten_performance_client"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=PEERS, required=True)
    parser.add_argument("--form", choices=["base64", "float"], default="base64")
    parser.add_argument("--cache", default="memory", choices=["memory", "disk"])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--requests", type=int, default=20_000, help="texts")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--warmup", type=int, help="not used: a pack for each in flight")
    parser.add_argument("--chunks", type=int, help="not used")
    given = parser.parse_args()
    open_client, package = PEERS[given.kind]

    async def run() -> dict[str, Any]:
        return await measure(given, open_client(given))

    with tempfile.TemporaryDirectory() as folder:
        given.cache = folder if given.cache == "disk" else given.cache
        measured = asyncio.run(run())
    versions = {package: importlib.metadata.version(package)}
    print_result({"peer": f"{given.kind}_{given.form}", "loop": "asyncio", "versions": versions, **measured})


if __name__ == "__main__":
    main()
