"""millstream, a whole batch in one call: `AsyncClient.batch_complete`."""

from collections.abc import AsyncIterator, Sequence
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

        async def batch(prompts: Sequence[str]) -> list[str]:
            return await client.batch_complete(prompts, max_concurrent=job.concurrency)

        yield batch


if __name__ == "__main__":
    run(peer, "millstream")
