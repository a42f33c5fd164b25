"""millstream: `stream_complete`, which gives texts, or with `--kind chunks` `create(stream=True)`."""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from _common import API_KEY, MODEL, TIMEOUT_S, Job
from _streams import Read, run_streams
from millstream import AsyncClient


def kind() -> str:
    """Take this peer's own argument off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kind", choices=["texts", "chunks"], default="texts")
    given, sys.argv[1:] = parser.parse_known_args()
    return str(given.kind)


KIND = kind()


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Read]:
    async with AsyncClient(
        api_key=API_KEY,
        base_url=job.base_url,
        model=MODEL,
        max_concurrency=job.concurrency,
        timeout=TIMEOUT_S,
        max_retries=0,
    ) as client:

        async def read_chunks(prompt: str) -> AsyncIterator[str]:
            stream = await client.chat.completions.create(messages=[{"role": "user", "content": prompt}], stream=True)
            async for chunk in stream:
                for choice in chunk.choices:
                    if text := choice.delta.content:
                        yield text

        yield read_chunks if KIND == "chunks" else client.stream_complete


if __name__ == "__main__":
    run_streams(peer, "millstream")
