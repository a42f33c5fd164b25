"""millstream, a whole file: requests in one JSONL file, answers in another, with all that resuming needs.

The file is written before the measuring begins, line by line, so that the memory is the run's own. `files_share` is the
share of the CPU time that the threads take which may wait for a disk: to read, check, hash and write. They come and go,
so it is what the two others have not taken, the interpreter's and the engine's. `io_share` is the kernel's part of it.
"""

import json
import os
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from _common import (
    API_KEY,
    MODEL,
    TEXT,
    TIMEOUT_S,
    Job,
    chat_body,
    cpu_seconds,
    make_prompt,
    parse_arguments,
    print_result,
    reset_peak_rss,
    rss_mb,
)
from millstream import Client
from millstream._jobs import FileRun

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def write_requests(path: Path, count: int) -> None:
    text = " ".join(TEXT.split() * 200)
    with path.open("w") as file:
        for index in range(count):
            body = chat_body(make_prompt(index, 100 + index * 7919 % 301, text))
            line = {"custom_id": f"request-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def cpu_of_files() -> tuple[float, float]:
    """User and system seconds of all threads, those that have ended too, but the interpreter's and the engine's."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    user, system = usage.ru_utime, usage.ru_stime
    for thread in Path("/proc/self/task").iterdir():
        if int(thread.name) == os.getpid() or (thread / "comm").read_text().strip() == "millstream":
            after_name = (thread / "stat").read_text().rpartition(")")[2].split()
            user -= int(after_name[11]) / TICKS_PER_S
            system -= int(after_name[12]) / TICKS_PER_S
    return user, system


def carry(client: Client, job: Job, folder: Path, count: int) -> None:
    summary = FileRun(client, folder / "in", folder / "out", max_concurrent=job.concurrency).run_blocking()
    if summary.ok != count:
        raise SystemExit(f"{count} lines did not give {count} answers: {summary}")


def main() -> None:
    job = parse_arguments("asyncio")
    client = Client(
        api_key=API_KEY,
        base_url=job.base_url,
        model=MODEL,
        max_concurrency=job.concurrency,
        timeout=TIMEOUT_S,
        max_retries=0,
    )
    with tempfile.TemporaryDirectory() as place, client:
        folder = Path(place)
        write_requests(folder / "in", job.warmup)
        carry(client, job, folder, job.warmup)
        (folder / "out").unlink()
        write_requests(folder / "in", job.requests)
        reset_peak_rss()
        baseline_mb, files_before = rss_mb("VmRSS"), cpu_of_files()
        cpu_before, start = cpu_seconds(), time.perf_counter()
        carry(client, job, folder, job.requests)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
        user, system = (after - before for after, before in zip(cpu_of_files(), files_before, strict=True))
    result = {
        "requests": job.requests,
        "concurrency": job.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rps": job.requests / seconds,
        "cpu_us_per_request": cpu * 1e6 / job.requests,
        "files_share": (user + system) / cpu,
        "io_share": system / cpu,
        "baseline_rss_mb": baseline_mb,
        "peak_rss_mb": rss_mb("VmHWM"),
        "p50_us": None,
        "p95_us": None,
        "p99_us": None,
    }
    versions = {"millstream": version("millstream")}
    print_result({"peer": Path(sys.argv[0]).stem, "loop": job.loop, "versions": versions, **result})


if __name__ == "__main__":
    main()
