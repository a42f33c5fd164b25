"""OpenAI's own client: `AsyncOpenAI` with `stream=True`, with a pool as large as the concurrency and no retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Job
from _streams import Read, run_streams
from httpx2 import Limits
from openai import AsyncOpenAI, DefaultAsyncHttpxClient


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Read]:
    limits = Limits(max_connections=job.concurrency, max_keepalive_connections=job.concurrency)
    http_client = DefaultAsyncHttpxClient(limits=limits)
    async with AsyncOpenAI(
        api_key=API_KEY, base_url=job.base_url, timeout=TIMEOUT_S, max_retries=0, http_client=http_client
    ) as client:

        async def read(prompt: str) -> AsyncIterator[str]:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
            )
            async for chunk in stream:
                for choice in chunk.choices:
                    if text := choice.delta.content:
                        yield text

        yield read


if __name__ == "__main__":
    run_streams(peer, "openai", "httpx2")
