"""What the peers that stream share: the reading and measuring of many streams at once.

A peer is an async context manager that opens its client for a `Job` and yields a `Read`: from a prompt to the texts of
its answer as they come. As many tasks read as streams are wanted at once, each one stream after another.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import (
    Job,
    cpu_seconds,
    make_loop_of,
    make_prompts,
    parse_arguments,
    percentile,
    print_result,
    reset_peak_rss,
    rss_mb,
)

Read = Callable[[str], AsyncIterator[str]]
StreamPeer = Callable[[Job], AbstractAsyncContextManager[Read]]

# A stream of the warm-up is left here: by then buffers have the size that they keep, and one of a million chunks
# that is read to its end takes the memory that is to be measured.
WARMUP_CHUNKS = 100_000


@dataclass(slots=True)
class Tally:
    """What was read."""

    chunks: int = 0
    characters: int = 0
    first: list[float] = field(default_factory=list)


def run_streams(peer: StreamPeer, *packages: str, loop: str = "asyncio") -> None:
    """Measure ``peer`` once, as the command line says, and print the result as one JSON line."""
    job = parse_arguments(loop)
    with asyncio.Runner(loop_factory=make_loop_of(job.loop)) as runner:
        measured = runner.run(_measure(peer, job))
    versions = {name: importlib.metadata.version(name) for name in packages}
    print_result({"peer": Path(sys.argv[0]).stem, "loop": job.loop, "versions": versions, **measured})


async def _measure(peer: StreamPeer, job: Job) -> dict[str, Any]:
    prompts = make_prompts(job.requests)
    async with peer(job) as read:
        warm = await _read_all(read, make_prompts(job.warmup, seed=1), job.concurrency, WARMUP_CHUNKS)
        gc.collect()
        reset_peak_rss()
        baseline_mb, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
        tally = await _read_all(read, prompts, job.concurrency, sys.maxsize)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
        peak_mb = rss_mb("VmHWM")
    if tally.chunks != job.requests * job.chunks:
        raise SystemExit(f"{job.requests} streams of {job.chunks} chunks gave {tally.chunks} of them")
    return {
        "requests": job.requests,
        "concurrency": job.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "chunks": tally.chunks,
        "warmup_chunks": warm.chunks,
        "chunks_per_s": tally.chunks / seconds,
        "cpu_us_per_chunk": cpu * 1e6 / tally.chunks,
        "first_us": percentile(tally.first, 50),
        "baseline_rss_mb": baseline_mb,
        "peak_rss_mb": peak_mb,
        "answers_mb": tally.characters / job.requests * job.concurrency / 2**20,
    }


async def _read_all(read: Read, prompts: Sequence[str], at_once: int, most: int) -> Tally:
    tally, todo = Tally(), iter(prompts)
    async with asyncio.TaskGroup() as readers:
        for _ in range(min(at_once, len(prompts))):
            readers.create_task(_read_each(read, todo, most, tally))
    return tally


async def _read_each(read: Read, prompts: Iterator[str], most: int, tally: Tally) -> None:
    for prompt in prompts:
        chunks, start = 0, time.perf_counter()
        async with aclosing(read(prompt)) as stream:  # type: ignore[type-var]
            async for text in stream:
                if not chunks:
                    tally.first.append(time.perf_counter() - start)
                chunks += 1
                tally.characters += len(text)
                if chunks == most:
                    break
        tally.chunks += chunks
