"""What the tools for whole files share: a file of prompts goes in, a file of outcomes comes out, and both are counted.

A tool is a function from the file of prompts to the file of outcomes. All of it is measured, from
the opening of its client on. Each keeps its own defaults for retries, and only the concurrency is set. Tools that know
lists only get and give them by `read_prompts` and `write_outcomes`.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from _common import (
    TEXT,
    Job,
    chat_body,
    cpu_seconds,
    make_prompt,
    parse_arguments,
    print_result,
    reset_peak_rss,
    rss_mb,
)

# Of a prompt: its number and the answer's text, None if the tool says that it failed.
Outcome = tuple[int, str | None]
Carry = Callable[[Job, Path, Path], None]


def batch_line(index: int, prompt: str) -> dict[str, Any]:
    """Return a prompt as a line of OpenAI's Batch API."""
    return {"custom_id": str(index), "method": "POST", "url": "/v1/chat/completions", "body": chat_body(prompt)}


def read_prompts(source: Path) -> list[str]:
    """Return the prompts of such lines, for a tool that takes a list."""
    with source.open() as file:
        return [json.loads(line)["body"]["messages"][0]["content"] for line in file]


def write_outcomes(target: Path, answers: Iterable[str | None]) -> None:
    """Write what a tool gave back as a list in the order of the prompts."""
    with target.open("w") as file:
        for index, answer in enumerate(answers):
            file.write(json.dumps([index, answer]) + "\n")


def read_outcomes(target: Path) -> Iterator[Outcome]:
    with target.open() as file:
        for line in file:
            index, answer = json.loads(line)
            yield index, answer


def run_tool(
    carry: Carry,
    *packages: str,
    line: Callable[[int, str], dict[str, Any]] = batch_line,
    read: Callable[[Path], Iterable[Outcome]] = read_outcomes,
) -> None:
    """Measure a tool once, as the command line says, and print the result as one JSON line.

    Args:
        carry: Carries a file of prompts through, into a file that is not there yet.
        packages: Distributions whose versions belong into the result.
        line: The form in which the tool takes a prompt.
        read: Reads what it has written.
    """
    job = parse_arguments("asyncio")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        warm = write_source(folder / "warm", job.warmup, line)
        carry(job, warm, folder / "warm-out")
        source, target = write_source(folder / "in", job.requests, line), folder / "out"
        gc.collect()
        reset_peak_rss()
        baseline_mb, cpu_before, start = rss_mb("VmRSS"), cpu_seconds(), time.perf_counter()
        carry(job, source, target)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
        peak_mb = rss_mb("VmHWM")
        counts = count(job.requests, read(target) if target.exists() else [])
    if not counts["answered"]:
        raise SystemExit(f"{job.requests} prompts gave no answer")
    result = {
        "requests": job.requests,
        "concurrency": job.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        # What came back counts, so that giving up is not fast.
        "rps": counts["answered"] / seconds,
        "cpu_us_per_request": cpu * 1e6 / job.requests,
        "baseline_rss_mb": baseline_mb,
        "peak_rss_mb": peak_mb,
        **counts,
    }
    versions = {name: importlib.metadata.version(name) for name in packages}
    print_result({"peer": Path(sys.argv[0]).stem, "loop": job.loop, "versions": versions, **result})


def write_source(path: Path, number: int, line: Callable[[int, str], dict[str, Any]]) -> Path:
    text = " ".join(TEXT.split() * 200)
    with path.open("w") as file:
        for index in range(number):
            file.write(json.dumps(line(index, make_prompt(index, 100 + index * 7919 % 301, text))) + "\n")
    return path


def count(requests: int, outcomes: Iterable[Outcome]) -> dict[str, int | None]:
    """Return how many prompts were answered, how many a tool says have failed, and of how many it says nothing."""
    answered: Counter[int] = Counter()
    failed: set[int] = set()
    for index, answer in outcomes:
        if answer:
            answered[index] += 1
        else:
            failed.add(index)
    known = failed | answered.keys()
    if not known <= set(range(requests)):
        raise SystemExit("an outcome belongs to no prompt")
    return {
        "answered": len(answered),
        "failed": len(failed - answered.keys()),
        "lost": requests - len(known),
        # No column where there are none.
        "twice": answered.total() - len(answered) or None,
    }
