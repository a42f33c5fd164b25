"""httpx as its users write it: `AsyncClient.post(json=)` and `response.json()`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from _common import API_KEY, TIMEOUT_S, Batch, Job, chat_body, run, text_of


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {API_KEY}"},
        limits=httpx.Limits(max_connections=job.concurrency, max_keepalive_connections=job.concurrency),
        timeout=TIMEOUT_S,
    ) as client:

        async def ask(prompt: str) -> str:
            response = await client.post(job.chat_url, json=chat_body(prompt))
            return text_of(response.raise_for_status().json())

        yield job.pulled(ask)


if __name__ == "__main__":
    run(peer, "httpx", "httpcore")
