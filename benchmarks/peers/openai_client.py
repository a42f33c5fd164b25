"""OpenAI's own client: `AsyncOpenAI`, with a pool as large as the concurrency and no retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Batch, Job, run
from httpx2 import Limits
from openai import AsyncOpenAI, DefaultAsyncHttpxClient


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    # Its default keeps 100 connections alive, which would have it reconnect all the time at more in flight.
    limits = Limits(max_connections=job.concurrency, max_keepalive_connections=job.concurrency)
    http_client = DefaultAsyncHttpxClient(limits=limits)
    async with AsyncOpenAI(
        api_key=API_KEY, base_url=job.base_url, timeout=TIMEOUT_S, max_retries=0, http_client=http_client
    ) as client:

        async def ask(prompt: str) -> str:
            completion = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}]
            )
            return completion.choices[0].message.content or ""

        yield job.pulled(ask)


if __name__ == "__main__":
    run(peer, "openai", "httpx2")
