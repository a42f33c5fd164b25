"""millstream with a cache that has every answer (`--place memory`, `disk`, `redis`), in one call of `batch_complete`.

Of what is on disk or in a Redis nothing is in memory, too. `--place redis-py` is no client of an API: it GETs the same
values from the same Redis, in pipelines of as many as are in flight. A Redis is started for it, on any core.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, make_prompts, run
from millstream import AsyncClient, Cache


def chosen_place() -> str:
    """Take this peer's own argument off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--place", choices=["memory", "disk", "redis", "redis-py"], required=True)
    given, sys.argv[1:] = parser.parse_known_args()
    return str(given.place)


PLACE = chosen_place()
# What Redis says once it listens.
READY = "Ready to accept connections"


@contextmanager
def redis_url(folder: str) -> Iterator[str]:
    """Start a Redis that keeps nothing on disk."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    cores = range(os.cpu_count() or 1)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    assert process.stdout is not None
    try:
        if not any(READY in line for line in process.stdout):
            raise SystemExit("redis-server did not start")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def filled(job: Job, cache: Cache) -> AsyncIterator[Batch]:
    """A client whose cache has an answer for every prompt of the job."""
    async with AsyncClient(
        api_key=API_KEY,
        base_url=job.base_url,
        model=MODEL,
        max_concurrency=job.concurrency,
        timeout=TIMEOUT_S,
        max_retries=0,
        cache=cache,
    ) as client:

        async def batch(prompts: Sequence[str]) -> list[str]:
            return await client.batch_complete(prompts, max_concurrent=job.concurrency)

        await batch(make_prompts(job.requests))
        await cache.aflush()
        before = await cache.astats()
        yield batch
        after = await cache.astats()
        if after.dropped or after.misses - before.misses > job.warmup:
            raise SystemExit(f"a prompt was asked again: {after}")


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    with tempfile.TemporaryDirectory() as folder:
        if PLACE == "memory":
            async with filled(job, Cache(max_bytes=1 << 30)) as batch:
                yield batch
        elif PLACE == "disk":
            async with filled(job, Cache(os.path.join(folder, "cache"), memory_bytes=0, max_bytes=1 << 30)) as batch:
                yield batch
        else:
            with redis_url(folder) as url:
                async with filled(job, Cache(url, memory_bytes=0)) as batch:
                    if PLACE == "redis-py":
                        batch = await bare(job, url)
                    yield batch


async def bare(job: Job, url: str) -> Batch:
    """The values alone, by redis-py (with hiredis)."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    keys = [key async for key in client.scan_iter("millstream:*", count=10_000)]

    async def batch(prompts: Sequence[str]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(prompts), job.concurrency):
            pipeline = client.pipeline(transaction=False)
            for place in range(start, min(start + job.concurrency, len(prompts))):
                pipeline.get(keys[place % len(keys)])
            answers += ["found" if value else "" for value in await pipeline.execute()]
        return answers

    return batch


if __name__ == "__main__":
    run(peer, "millstream", *(["redis", "hiredis"] if PLACE == "redis-py" else []))
