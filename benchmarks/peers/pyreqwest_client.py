"""pyreqwest, reqwest under asyncio: one call per request, JSON both ways in Rust; under uvloop, its best."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from _common import API_KEY, TIMEOUT_S, Batch, Job, chat_body, run, text_of
from pyreqwest.client import ClientBuilder
from pyreqwest.http import Url


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Batch]:
    builder = ClientBuilder().default_headers({"Authorization": f"Bearer {API_KEY}"}).error_for_status()
    url = Url(job.chat_url)
    async with builder.timeout(timedelta(seconds=TIMEOUT_S)).build() as client:

        async def ask(prompt: str) -> str:
            response = await client.post(url).body_json(chat_body(prompt)).build().send()
            return text_of(await response.json())

        yield job.pulled(ask)


if __name__ == "__main__":
    run(peer, "pyreqwest", "uvloop", loop="uvloop")
