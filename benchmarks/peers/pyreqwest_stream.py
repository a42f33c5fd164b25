"""pyreqwest's stream of bytes, cut into lines by hand and read with orjson; under uvloop, its best.

By default it reads 64 KiB ahead before it gives the first byte, so `--read-ahead 0` is its best time to a first chunk.
"""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import orjson
from _common import API_KEY, TIMEOUT_S, Job, chat_body
from _streams import Read, run_streams
from pyreqwest.client import ClientBuilder
from pyreqwest.http import Url


def read_ahead() -> int | None:
    """Take this peer's own argument off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--read-ahead", type=int)
    given, sys.argv[1:] = parser.parse_known_args()
    return None if given.read_ahead is None else int(given.read_ahead)


READ_AHEAD = read_ahead()


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Read]:
    builder = ClientBuilder().default_headers({"Authorization": f"Bearer {API_KEY}"}).error_for_status()
    url = Url(job.chat_url)
    async with builder.timeout(timedelta(seconds=TIMEOUT_S)).build() as client:

        async def read(prompt: str) -> AsyncIterator[str]:
            rest = b""
            builder = client.post(url).body_json(chat_body(prompt) | {"stream": True})
            if READ_AHEAD is not None:
                builder = builder.streamed_read_buffer_limit(READ_AHEAD)
            async with builder.build_streamed() as response:
                while (piece := await response.body_reader.read_chunk()) is not None:
                    *lines, rest = (rest + bytes(piece)).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data: {"):
                            for choice in orjson.loads(line[6:])["choices"]:
                                if text := choice["delta"].get("content"):
                                    yield text

        yield read


if __name__ == "__main__":
    run_streams(peer, "pyreqwest", "orjson", "uvloop", loop="uvloop")
