"""A server on bare sockets that breaks HTTP itself: below every HTTP library, so that nothing puts the bytes right.

A fault is a function that gets a `Wire`, one accepted connection, and does to it what it likes. The server counts what
really happened: connections made and still open, requests that came in whole. Once its faults are used up it answers
well, each prompt with its own text, so that an answer that went to the wrong caller shows.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fault = Callable[["Wire"], None]

PATIENCE_S = 20.0
"""How long a server waits for a client that does nothing, so that no test hangs on it."""


class Left(Exception):
    """The client has gone, or the server stops."""


class Wire:
    """One accepted connection."""

    def __init__(self, connection: socket.socket, server: FaultServer) -> None:
        self.request = b""
        """The last request that was read, head and body."""
        self.server = server
        self._socket = connection
        self._unread = b""

    def _more(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            raise Left from error
        if not data:
            raise Left
        self._unread += data

    def read_head(self) -> bytes:
        """The head of the next request; its body stays where it is."""
        while b"\r\n\r\n" not in self._unread:
            self._more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def read_request(self) -> bytes:
        """The next request, which counts."""
        head = self.read_head()
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:-2])
        length = int(fields.get(b"content-length", b"0"))
        while len(self._unread) < length:
            self._more()
        body, self._unread = self._unread[:length], self._unread[length:]
        self.request = head + body
        self.server.saw(self.request)
        return self.request

    def send(self, data: bytes) -> None:
        """All of it, as far as the client takes it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Left from error

    def drip(self, data: bytes, interval_s: float) -> None:
        """Byte by byte."""
        for byte in data:
            self.send(bytes([byte]))
            if self.server.stopping.wait(interval_s):
                raise Left

    def finish(self) -> None:
        """Close in good order (FIN), once all that was sent has gone out."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self.wait_until_left()

    def reset(self) -> None:
        """Close with a reset (RST): what the client has not read yet may be lost."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def wait_until_left(self) -> None:
        """Silence, until the client goes."""
        with suppress(OSError):
            while self._socket.recv(65536):
                pass

    def right_body(self) -> tuple[bytes, str]:
        """The body of a right answer to the last request, and its content type: the prompt, streamed if wanted."""
        body = json.loads(self.request.partition(b"\r\n\r\n")[2] or b"{}")
        text = echo(body.get("messages", [{}])[-1].get("content", ""))
        if body.get("stream"):
            return stream_body(text), "text/event-stream"
        return chat_body(text), "application/json"

    def answer_well(self) -> None:
        body, kind = self.right_body()
        self.send(with_length(body, kind=kind) if kind == "application/json" else chunked(body, kind=kind))


class FaultServer:
    """Does ``fault`` to the first ``times`` connections or requests, and answers the others well.

    ``at="request"``: the fault begins once a request has come in whole; ``at="accept"``: with the connection.
    """

    def __init__(self, fault: Fault, *, times: int | None = None, at: Literal["request", "accept"] = "request") -> None:
        self.fault, self.times, self.at = fault, times, at
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def saw(self, request: bytes) -> None:
        with self._lock:
            self.requests.append(request)

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self.times = 0

    def _takes_fault(self) -> bool:
        with self._lock:
            if self.times is not None:
                if self.times == 0:
                    return False
                self.times -= 1
            return True

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(PATIENCE_S)
            with self._lock:
                self.connections += 1
                self.open += 1
                self._sockets.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        wire = Wire(connection, self)
        try:
            self._serve_wire(wire)
        except Left:
            pass
        finally:
            connection.close()
            with self._lock:
                self.open -= 1
                self._sockets.discard(connection)

    def _serve_wire(self, wire: Wire) -> None:
        if self.at == "accept" and self._takes_fault():
            self.fault(wire)
            return
        while not self.stopping.is_set():
            wire.read_request()
            if self.at == "request" and self._takes_fault():
                self.fault(wire)
                return
            wire.answer_well()

    def stop(self) -> None:
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(PATIENCE_S)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a thread of the fault server hangs"


@contextmanager
def fault_server(
    fault: Fault, *, times: int | None = None, at: Literal["request", "accept"] = "request"
) -> Iterator[FaultServer]:
    server = FaultServer(fault, times=times, at=at)
    try:
        yield server
    finally:
        server.stop()


# ---- right answers ----


def echo(prompt: str) -> str:
    return f"fine: {prompt[:40]}"


def chat_body(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()


def stream_body(text: str) -> bytes:
    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return b"data: %b\n\n" % json.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]}).encode()

    half = len(text) // 2
    return event({"content": text[:half]}) + event({"content": text[half:]}) + event({}, "stop") + b"data: [DONE]\n\n"


def with_length(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*chunks: bytes, headers: tuple[str, ...] = (), kind: str = "application/json", end: bool = True) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Transfer-Encoding: chunked", *headers]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body + (b"0\r\n\r\n" if end else b"")
