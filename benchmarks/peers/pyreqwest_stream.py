"""pyreqwest's stream of bytes, cut into lines by hand and read with orjson; under uvloop, its best."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import orjson
from _common import API_KEY, TIMEOUT_S, Job, chat_body
from _streams import Read, run_streams
from pyreqwest.client import ClientBuilder
from pyreqwest.http import Url


@asynccontextmanager
async def peer(job: Job) -> AsyncIterator[Read]:
    builder = ClientBuilder().default_headers({"Authorization": f"Bearer {API_KEY}"}).error_for_status()
    url = Url(job.chat_url)
    async with builder.timeout(timedelta(seconds=TIMEOUT_S)).build() as client:

        async def read(prompt: str) -> AsyncIterator[str]:
            rest = b""
            request = client.post(url).body_json(chat_body(prompt) | {"stream": True}).build_streamed()
            async with request as response:
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
