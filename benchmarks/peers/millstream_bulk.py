"""millstream, a run read as it completes: `BatchProcessor.stream`, each result handed to an `async for`.

The CPU time of the loop's thread is all that holds the GIL, since the engine's thread never does.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, run
from millstream import AsyncClient, BatchProcessor


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
        processor = BatchProcessor(client, progress=False)

        async def batch(prompts: Sequence[str]) -> list[str]:
            answers = [""] * len(prompts)
            async for result in processor.stream(list(prompts)):
                answers[result.index] = result.text or ""
            return answers

        yield batch


if __name__ == "__main__":
    run(peer, "millstream")
