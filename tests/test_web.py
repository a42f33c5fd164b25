"""The examples' web services, each in a process of its own, asked by a real client over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import until_async
from millstream.testing import Answer, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.tree

# Not there under the other CPythons, where only the wheel is tested.
httpx = pytest.importorskip("httpx")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
START_S = 30.0
TEXT = "grain goes in and flour comes out"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(params=["fastapi", "aiohttp"])
def service(request: pytest.FixtureRequest, mock_server: MockServer) -> Iterator[str]:
    """A service's address; it asks ``mock_server``."""
    port = str(free_port())
    command = {
        "fastapi": ["-m", "uvicorn", "fastapi_app:app", "--port", port, "--log-level", "warning"],
        "aiohttp": ["aiohttp_app.py", port],
    }
    environment = os.environ | {"OPENAI_API_KEY": "sk-web", "OPENAI_BASE_URL": mock_server.base_url, "MODEL": "m"}
    process = subprocess.Popen([sys.executable, *command[request.param]], cwd=EXAMPLES, env=environment)
    try:
        _wait_until_it_listens(process, int(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(START_S) in (0, -15)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail("the service did not start")


def make_client(service: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=service, timeout=60, limits=limits, trust_env=False)


async def test_answers_as_json(service: str, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT))
    async with make_client(service) as client:
        response = await client.post("/answer", json={"prompt": "hi"})

    assert response.status_code == 200
    assert response.json()["text"] == TEXT
    assert response.json()["tokens"] > 0
    assert mock_server.requests[0].json()["messages"] == [{"role": "user", "content": "hi"}]


async def test_a_failure_of_the_model_is_the_gateways(service: str, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400))
    async with make_client(service) as client:
        response = await client.post("/answer", json={"prompt": "hi"})

    assert response.status_code == 502


async def test_streams_the_texts_as_they_come(service: str, mock_server: MockServer) -> None:
    # It stops after three events: what came of them is here although the answer has not ended.
    mock_server.script(Answer(text=TEXT, stream=Streaming(fault="stall", after=4)))
    async with make_client(service) as client, client.stream("POST", "/stream", json={"prompt": "hi"}) as response:
        assert response.status_code == 200
        received = ""
        async for text in response.aiter_text():
            received += text
            if received == "grain goes in":
                break


async def test_a_stream_is_complete(service: str, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT))
    async with make_client(service) as client:
        response = await client.post("/stream", json={"prompt": "hi"})

    assert (response.status_code, response.text) == (200, TEXT)


async def test_a_client_that_leaves_ends_the_request_to_the_model(service: str, mock_server: MockServer) -> None:
    mock_server.script(Answer(text=TEXT, stream=Streaming(chunks=100_000, gap=0.01)))
    async with make_client(service) as client:
        async with client.stream("POST", "/stream", json={"prompt": "hi"}) as response:
            await anext(response.aiter_text())
            assert mock_server.stats.in_flight == 1
        await until_async(lambda: mock_server.stats.in_flight == 0)

    assert mock_server.stats.aborted == 1


async def test_two_hundred_streams_at_once(service: str, mock_server: MockServer) -> None:
    prompts = [f"prompt number {number} of many" for number in range(200)]
    mock_server.script(Answer(stream=Streaming(gap=0.02), times=len(prompts)))

    async with make_client(service) as client:

        async def ask(prompt: str) -> str:
            async with client.stream("POST", "/stream", json={"prompt": prompt}) as response:
                assert response.status_code == 200
                return "".join([text async for text in response.aiter_text()])

        answers = await asyncio.gather(*map(ask, prompts))

    assert answers == [f"echo: {prompt}" for prompt in prompts]
    assert mock_server.stats.aborted == 0
