"""What several test files share: both clients behind one face, servers that speak bytes, waiting for a claim."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from millstream import AsyncClient, ChatCompletion, Client, MillstreamError, ModelList
    from millstream.testing import MockServer, RecordedRequest
    from millstream.types import ParsedChatCompletion

T = TypeVar("T")

KEY = "sk-test-0123456789"
PATIENCE_S = 10.0


class Face:
    """One client, awaited or blocking, called the same way: a test written once runs over both."""

    def __init__(self, client: Client | AsyncClient, runner: asyncio.Runner) -> None:
        self.client = client
        self._runner = runner

    def run(self, result: T | Awaitable[T]) -> T:
        if not inspect.isawaitable(result):
            return result

        async def await_it() -> T:
            return await result

        return self._runner.run(await_it())

    def complete(self, prompt: Any, **arguments: Any) -> str:
        return self.run(self.client.complete(prompt, **arguments))

    def batch_complete(self, prompts: Any, **arguments: Any) -> list[Any]:
        return self.run(self.client.batch_complete(prompts, **arguments))

    def create(self, messages: Any = "hi", **arguments: Any) -> ChatCompletion:
        if messages == "hi":
            messages = [{"role": "user", "content": "hi"}]
        return self.run(self.client.chat.completions.create(messages=messages, **arguments))

    def read(self, stream: Any, most: int | None = None) -> tuple[list[Any], BaseException | None]:
        """What a stream hands out, the first ``most`` of it, and the error that it ends with."""
        pieces: list[Any] = []

        async def read_async() -> None:
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == most:
                    break

        try:
            if hasattr(stream, "__aiter__"):
                self._runner.run(read_async())
            else:
                for piece in stream:
                    pieces.append(piece)
                    if len(pieces) == most:
                        break
        except Exception as error:
            return pieces, error
        return pieces, None

    def parse(self, messages: Any = "hi", **arguments: Any) -> ParsedChatCompletion[Any]:
        if messages == "hi":
            messages = [{"role": "user", "content": "hi"}]
        return self.run(self.client.chat.completions.parse(messages=messages, **arguments))

    def models(self) -> ModelList:
        return self.run(self.client.models.list())

    def with_options(self, **options: Any) -> Face:
        return Face(self.client.with_options(**options), self._runner)

    def close(self) -> None:
        self.run(self.client.close())


def made(kind: type[MillstreamError], text: str) -> MillstreamError:
    """An exception of that class; some are made of an answer, too."""
    return kind(text, None) if "completion" in inspect.signature(kind).parameters else kind(text)


def last_request(server: MockServer) -> RecordedRequest:
    return server.requests[-1]


def until(claim: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for a claim about another thread or process to come true."""
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.001)


async def until_async(claim: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """The same in a running loop, which goes on meanwhile."""
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline, "never came true"
        await asyncio.sleep(0.001)


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, without proxies unless ``environment`` names one."""
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


class RawServer:
    """Sends the given bytes to each request it reads, whatever they are, and closes the connection after the last.

    ``replies`` are for one connection; every connection gets them anew. Where they are used up and ``close`` is not
    set, the connection stays open.
    """

    def __init__(self, replies: Sequence[bytes], *, close: bool = True) -> None:
        self.replies = replies
        self.close_after = close
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopping.is_set():
                connection.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection), connection.makefile("rb") as stream:
            try:
                for reply in self.replies:
                    request = self._read_request(stream)
                    if not request:
                        return
                    self.requests.append(request)
                    connection.sendall(reply)
                if not self.close_after:
                    self._stopping.wait(PATIENCE_S)
            except OSError:
                pass

    @staticmethod
    def _read_request(stream: Any) -> bytes:
        head = b""
        length = 0
        while line := stream.readline():
            head += line
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            if line == b"\r\n":
                return bytes(head + stream.read(length))
        return b""

    def stop(self) -> None:
        self._stopping.set()
        socket.create_connection(("127.0.0.1", self.port), PATIENCE_S).close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listener.close()


@contextmanager
def raw_server(*replies: bytes, close: bool = True) -> Iterator[RawServer]:
    server = RawServer(replies, close=close)
    try:
        yield server
    finally:
        server.stop()


def http_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An HTTP/1.1 answer with a right content length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat_body(content: str = "fine") -> bytes:
    """The smallest chat completion."""
    message = f'{{"role":"assistant","content":"{content}"}}'
    return f'{{"choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}]}}'.encode()
