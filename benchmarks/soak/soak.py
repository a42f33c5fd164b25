"""A million requests by one client, in lists, files and single calls, at a server with faults: nothing grows.

``python benchmarks/soak/soak.py [--requests N] [--seconds S] [--csv FILE] [--svg FILE]``. Resident memory, open files
and the p99 of single calls are sampled after each window of requests, when nothing is in flight. A tenth of the windows
is the warm-up; over the others a straight line is laid. Exits with 1 if a figure is not held.

No fault is a 429: one is enough to be believed, so that each would slow the run down to what it says of the server.

The p99 is of calls to a second server, without faults and with a latency of its own, in the same process and by the
same kind of client: a retry is no drift. Median of the last third of the windows against that of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import statistics
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from common import API_KEY, MODEL, Server, answer_to, open_files, prompt_of, status_kb, verdict
from millstream import AsyncClient, BatchProcessor, Timeout
from plot import draw

AT_ONCE = 64
SHARE = 0.02
LATENCY_S = 0.05
# A hanging attempt is given up after this.
SILENCE_S = 1.5
# Of each window.
IN_LISTS, IN_FILES, ALONE = 12_000, 6_000, 2_000
WINDOW = IN_LISTS + IN_FILES + ALONE
LEAST_WINDOWS = 10
MOST_KB_PER_1000 = 20.0
MOST_FILES = 8
MOST_DRIFT = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    requests: int
    seconds: float
    rss_kb: int
    open_files: int
    p99_ms: float
    failed: int


class Load:
    """What one window sends."""

    def __init__(self, client: AsyncClient, probe: AsyncClient, folder: Path) -> None:
        self.client = client
        self.probe = probe
        self.folder = folder
        self.next = 0
        self.failed = 0

    def prompts(self, count: int) -> list[str]:
        begin, self.next = self.next, self.next + count
        return [prompt_of(index) for index in range(begin, self.next)]

    def check(self, prompts: list[str], answers: list[object]) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            if isinstance(answer, BaseException):
                self.failed += 1
            elif answer != answer_to(prompt):
                raise SystemExit(f"{answer!r} is no answer to {prompt!r}")

    async def lists(self) -> None:
        prompts = self.prompts(IN_LISTS)
        self.check(prompts, await self.client.batch_complete(prompts, return_exceptions=True))

    async def files(self) -> None:
        source, target = self.folder / "in", self.folder / "out"
        prompts = self.prompts(IN_FILES)
        await asyncio.to_thread(write_lines, source, prompts)
        summary = await BatchProcessor(self.client).run_file(source, target)
        self.failed += len(prompts) - summary.ok
        target.unlink()

    async def alone(self) -> float:
        """Single calls to both servers; the p99 of those to the one without faults, in milliseconds."""
        places = asyncio.Semaphore(AT_ONCE)

        async def ask(client: AsyncClient, prompt: str) -> tuple[object, float]:
            async with places:
                start = time.perf_counter()
                try:
                    answer: object = await client.complete(prompt)
                except Exception as error:
                    answer = error
                return answer, time.perf_counter() - start

        prompts = self.prompts(ALONE)
        half = ALONE // 2
        faulty = await asyncio.gather(*(ask(self.client, prompt) for prompt in prompts[:half]))
        well = await asyncio.gather(*(ask(self.probe, prompt) for prompt in prompts[half:]))
        self.check(prompts, [answer for answer, _ in (*faulty, *well)])
        return statistics.quantiles([seconds for _, seconds in well], n=100)[98] * 1000


def write_lines(path: Path, prompts: list[str]) -> None:
    import json

    with path.open("w") as file:
        for number, prompt in enumerate(prompts):
            file.write(json.dumps({"custom_id": str(number), "prompt": prompt}) + "\n")


async def run(requests: int, most_seconds: float, folder: Path) -> list[Sample]:
    samples: list[Sample] = []
    timeout = Timeout(120.0, first_byte=SILENCE_S, idle=SILENCE_S)
    with (
        Server("--requests", 2 * requests, "--share", SHARE, "--without", "429") as faulty,
        Server("--latency", LATENCY_S) as well,
    ):
        async with (
            AsyncClient(
                api_key=API_KEY,
                base_url=faulty.base_url,
                model=MODEL,
                timeout=timeout,
                max_retries=5,
                max_concurrency=AT_ONCE,
            ) as client,
            AsyncClient(api_key=API_KEY, base_url=well.base_url, model=MODEL, max_concurrency=AT_ONCE) as probe,
        ):
            load = Load(client, probe, folder)
            start = time.perf_counter()
            while load.next < requests and time.perf_counter() - start < most_seconds:
                await load.lists()
                await load.files()
                p99_ms = await load.alone()
                gc.collect()
                seconds = time.perf_counter() - start
                sample = Sample(load.next, seconds, status_kb("VmRSS"), open_files(), p99_ms, load.failed)
                samples.append(sample)
                print(
                    f"{sample.requests:>9,} requests {seconds:7.1f} s  {sample.rss_kb / 1024:6.1f} MB "
                    f"{sample.open_files:4} files  p99 {p99_ms:6.1f} ms  {sample.failed} failed",
                    file=sys.stderr,
                    flush=True,
                )
    return samples


def after_warm_up(samples: list[Sample]) -> list[Sample]:
    return samples[len(samples) // 10 :]


def slope(samples: list[Sample], name: str) -> float:
    """Growth per 1,000 requests, by least squares."""
    places = [sample.requests / 1000 for sample in samples]
    return statistics.linear_regression(places, [getattr(sample, name) for sample in samples]).slope


def drift(samples: list[Sample]) -> float:
    """Of the p99, in percent."""
    third = max(1, len(samples) // 3)
    first, last = (statistics.median(sample.p99_ms for sample in part) for part in (samples[:third], samples[-third:]))
    return (last / first - 1) * 100


def judge(samples: list[Sample]) -> list[tuple[bool, str]]:
    steady = after_warm_up(samples)
    thousands = (steady[-1].requests - steady[0].requests) / 1000
    return [
        verdict("failed requests", samples[-1].failed, 0),
        verdict("RSS per 1,000 requests", slope(steady, "rss_kb"), MOST_KB_PER_1000, " kB"),
        verdict("growth of open files over the run", slope(steady, "open_files") * thousands, MOST_FILES),
        verdict("drift of the p99", drift(steady), MOST_DRIFT, " %"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="end then, however many were sent")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = asyncio.run(run(max(given.requests, LEAST_WINDOWS * WINDOW), given.seconds, Path(folder)))
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in fields(Sample))
            writer.writerows(
                (*(round(value, 2) if isinstance(value, float) else value for value in astuple(sample)),)
                for sample in samples
            )
    if given.svg:
        given.svg.write_text(draw(samples, len(samples) // 10), encoding="utf-8")
    verdicts = judge(samples)
    for _, line in verdicts:
        print(line)
    return 0 if all(held for held, _ in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
