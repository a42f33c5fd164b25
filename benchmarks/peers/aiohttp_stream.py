"""aiohttp with orjson, reading lines: what a careful person writes by hand in Python."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
from _common import API_KEY, TIMEOUT_S, Job, chat_body
from _streams import Read, run_streams


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Read]:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=job.concurrency),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        raise_for_status=True,
    ) as session:

        async def read(prompt: str) -> AsyncIterator[str]:
            body = orjson.dumps(chat_body(prompt) | {"stream": True})
            async with session.post(job.chat_url, data=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        for choice in orjson.loads(line[6:])["choices"]:
                            if text := choice["delta"].get("content"):
                                yield text

        yield read


if __name__ == "__main__":
    run_streams(peer, "aiohttp", "orjson")
