"""millstream, one call per prompt: `asyncio.gather` of 1,000 at a time, held back by the client's own window.

More at once would measure CPython's garbage collector, which walks every task and future that waits.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, run
from millstream import AsyncClient

CALLS_AT_ONCE = 1000


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    async with AsyncClient(
        api_key=API_KEY,
        base_url=job.base_url,
        model=MODEL,
        max_concurrency=job.concurrency,
        timeout=TIMEOUT_S,
        max_retries=0,
    ) as client:

        async def batch(prompts: Sequence[str]) -> list[str]:
            answers: list[str] = []
            for start in range(0, len(prompts), CALLS_AT_ONCE):
                answers += await asyncio.gather(*map(client.complete, prompts[start : start + CALLS_AT_ONCE]))
            return answers

        yield batch


if __name__ == "__main__":
    run(peer, "millstream")
