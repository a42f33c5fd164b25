"""millstream, one `await client.complete(prompt)` at a time (or `--concurrency` pullers of them)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, run
from millstream import AsyncClient


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
        yield job.pulled(client.complete)


if __name__ == "__main__":
    run(peer, "millstream")
