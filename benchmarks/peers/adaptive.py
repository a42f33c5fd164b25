"""millstream's window: of a fixed size, or one that steers itself (`--max-concurrency auto`).

More tasks ask than the window lets through, so that it is always full; a latency is noted without the wait for a place.
"""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, run
from millstream import AsyncClient


def max_concurrency() -> str | int:
    """Take this peer's own argument off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--max-concurrency", default="auto")
    given, sys.argv[1:] = parser.parse_known_args()
    return "auto" if given.max_concurrency == "auto" else int(given.max_concurrency)


MAX_CONCURRENCY = max_concurrency()


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    async with AsyncClient(
        api_key=API_KEY,
        base_url=job.base_url,
        model=MODEL,
        max_concurrency=MAX_CONCURRENCY,
        timeout=TIMEOUT_S,
        max_retries=0,
    ) as client:
        latencies: list[float] = []

        async def ask(prompt: str) -> str:
            completion = await client.chat.completions.create(messages=[{"role": "user", "content": prompt}])
            latencies.append(completion.elapsed)
            return completion.text

        pulled = job.pulled(ask)

        async def batch(prompts: list[str]) -> list[str]:
            latencies.clear()
            answers = await pulled(prompts)
            # In place of those with the wait for a place.
            job.latencies[:] = latencies
            return answers

        yield batch


if __name__ == "__main__":
    run(peer, "millstream")
