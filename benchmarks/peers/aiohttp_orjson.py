"""aiohttp with orjson on both sides: what a careful person writes by hand in Python."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
from _common import API_KEY, TIMEOUT_S, Batch, Job, chat_body, run, text_of


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=job.concurrency),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        raise_for_status=True,
    ) as session:

        async def ask(prompt: str) -> str:
            async with session.post(job.chat_url, data=orjson.dumps(chat_body(prompt))) as response:
                return text_of(orjson.loads(await response.read()))

        yield job.pulled(ask)


if __name__ == "__main__":
    run(peer, "aiohttp", "orjson")
