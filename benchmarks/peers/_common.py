"""What every peer shares: its arguments, the prompts, the measuring and the one JSON line it prints.

A peer is an async context manager that opens its client for a `Job` and yields a `Batch`: a coroutine
function from prompts to answers, in order. Clients that know single requests only get their batch from
`Job.pulled`. `run` is the whole program: a warm-up that opens the connections, a baseline of the memory, then
the measured batch.

The memory baseline is taken with the prompts and the client already there, so peak - baseline is what the
batch itself needed; the answers' own size is reported beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import json
import math
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

API_KEY = "sk-bench"
MODEL = "mock-model"
TIMEOUT_S = 60.0
TEXT = "the mill turns while water runs and every grain of rye comes back as flour in the order it was sent"

Ask = Callable[[str], Awaitable[str]]
Batch = Callable[[Sequence[str]], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Job:
    """One measured run. ``base_url`` ends in ``/v1``, as the clients of OpenAI's API expect it.

    ``chunks`` is the number of pieces with text in each stream, where answers are streamed.
    """

    base_url: str
    requests: int
    concurrency: int
    warmup: int
    loop: str
    chunks: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def chat_url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def timed(self, ask: Ask) -> Ask:
        """``ask``, noting how long each call took."""

        async def timed_ask(prompt: str) -> str:
            start = time.perf_counter()
            answer = await ask(prompt)
            self.latencies.append(time.perf_counter() - start)
            return answer

        return timed_ask

    def pulled(self, ask: Ask) -> Batch:
        """A batch made of single requests: ``concurrency`` tasks that pull from one iterator.

        Cheaper than a task per prompt behind a semaphore, so the kinder form for the peers that need it.
        """
        timed_ask = self.timed(ask)

        async def batch(prompts: Sequence[str]) -> list[str]:
            answers = [""] * len(prompts)
            todo = enumerate(prompts)

            async def pull() -> None:
                for index, prompt in todo:
                    answers[index] = await timed_ask(prompt)

            async with asyncio.TaskGroup() as pullers:
                for _ in range(min(self.concurrency, len(prompts))):
                    pullers.create_task(pull())
            return answers

        return batch


Peer = Callable[[Job], AbstractAsyncContextManager[Batch]]


def make_prompts(count: int, *, seed: int = 7) -> list[str]:
    """Return ``count`` different prompts of 100 to 400 characters, the same ones for the same seed."""
    source = random.Random(seed)
    text = " ".join(source.choices(TEXT.split(), k=4000))
    return [make_prompt(index, source.randint(100, 400), text) for index in range(count)]


def make_prompt(index: int, length: int, text: str) -> str:
    offset = index * 31 % (len(text) - length)
    return f"{index}: {text[offset : offset + length]}"[:length]


def chat_body(prompt: str) -> dict[str, Any]:
    """Return the request that every peer sends for a prompt."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def text_of(completion: dict[str, Any]) -> str:
    """Return the answer's text: the least that a client of this API is used for."""
    text: str = completion["choices"][0]["message"]["content"]
    return text


def run(peer: Peer, *packages: str, loop: str = "asyncio") -> None:
    """Measure ``peer`` once, as the command line says, and print the result as one JSON line.

    Args:
        peer: Opens the client and yields its batch function.
        packages: Distributions whose versions belong into the result.
        loop: Event loop used unless ``--loop`` says otherwise: ``asyncio`` or ``uvloop``.
    """
    job = parse_arguments(loop)
    with asyncio.Runner(loop_factory=make_loop_of(job.loop)) as runner:
        measured = runner.run(_measure(peer, job))
    versions = {name: importlib.metadata.version(name) for name in packages}
    print_result({"peer": Path(sys.argv[0]).stem, "loop": job.loop, "versions": versions, **measured})


async def _measure(peer: Peer, job: Job) -> dict[str, Any]:
    prompts = make_prompts(job.requests)
    async with peer(job) as batch:
        check_answers(await batch(make_prompts(job.warmup, seed=1)), job.warmup)
        job.latencies.clear()
        gc.collect()
        reset_peak_rss()
        baseline_mb, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
        loop_before = time.thread_time()
        answers = await batch(prompts)
        loop = time.thread_time() - loop_before
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
        peak_mb = rss_mb("VmHWM")
    check_answers(answers, job.requests)
    return {
        "requests": job.requests,
        "concurrency": job.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rps": job.requests / seconds,
        "cpu_us_per_request": cpu * 1e6 / job.requests,
        "loop_us_per_request": loop * 1e6 / job.requests,
        "p50_us": percentile(job.latencies, 50),
        "p95_us": percentile(job.latencies, 95),
        "p99_us": percentile(job.latencies, 99),
        "baseline_rss_mb": baseline_mb,
        "peak_rss_mb": peak_mb,
        "answers_mb": size_mb(answers),
    }


def check_answers(answers: Sequence[str], count: int) -> None:
    """Refuse to report a speed for work that was not done."""
    if len(answers) != count or not all(isinstance(answer, str) and answer for answer in answers):
        raise SystemExit(f"{count} prompts did not give {count} answers")


def cpu_seconds() -> float:
    """Return user + system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_mb(name: str) -> float:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak since `reset_peak_rss`) in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {name} in /proc/self/status")


def reset_peak_rss() -> None:
    """Start ``VmHWM`` anew (proc(5), clear_refs); where that is refused it is the whole process's peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def size_mb(answers: list[str]) -> float:
    """Return what the list of answers itself takes, each string object counted once."""
    distinct = {id(answer): answer for answer in answers}
    return (sys.getsizeof(answers) + sum(map(sys.getsizeof, distinct.values()))) / 2**20


def percentile(seconds: Iterable[float], percent: int) -> float | None:
    """Return the nearest-rank percentile in µs; None where single requests were not timed."""
    ordered = sorted(seconds)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1] * 1e6 if ordered else None


def print_result(result: dict[str, Any]) -> None:
    """Print the one line that ``benchmarks/run.py`` reads."""
    print(json.dumps(result), flush=True)


def parse_arguments(loop: str) -> Job:
    parser = argparse.ArgumentParser(description="One peer of the benchmark, run once. Prints one JSON line.")
    parser.add_argument(
        "--base-url", required=True, help="of a server of OpenAI's API, such as http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight (default: 64)")
    parser.add_argument("--warmup", type=int, help="requests before the measured ones (default: 2 x concurrency)")
    parser.add_argument("--chunks", type=int, default=0, help="pieces with text in a stream")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default=loop)
    given = parser.parse_args()
    warmup = 2 * given.concurrency if given.warmup is None else given.warmup
    return Job(given.base_url.rstrip("/"), given.requests, given.concurrency, warmup, given.loop, given.chunks)


def make_loop_of(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop
