"""A Redis of a test's own, on a free port, and the few words that a test says to it as somebody else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PATIENCE = 20.0

Reply = bytes | int | list["Reply"] | None


def require_redis() -> None:
    """Skip where there is no redis-server; fail if MILLSTREAM_REQUIRE_REDIS=1, as CI sets."""
    if shutil.which("redis-server") is None:
        message = "no redis-server on the path"
        if os.environ.get("MILLSTREAM_REQUIRE_REDIS") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """It keeps nothing on disk, so what it had is gone with it."""

    def __init__(self, folder: Path, *options: str, password: str | None = None, starts: bool = True) -> None:
        self.port = free_port()
        self._folder = folder
        self._password = password
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._process: subprocess.Popen[bytes] | None = None
        if starts:
            self.start()

    @property
    def url(self) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, on the same port as before."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._folder), "--loglevel", "warning", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert self.say("PING") == b"PONG"
                return
            except OSError:
                assert self._process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def say(self, *words: str | bytes, database: int = 0) -> Reply:
        """One command, over a connection of its own."""
        before: list[tuple[str | bytes, ...]] = [("AUTH", self._password)] if self._password else []
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            stream = connection.makefile("rwb")
            reply: Reply = None
            for command in [*before, ("SELECT", str(database)), words]:
                parts = [word.encode() if isinstance(word, str) else word for word in command]
                stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
                stream.flush()
                reply = _read(stream)
            return reply

    def keys(self, pattern: str = "*", database: int = 0) -> list[str]:
        found = self.say("KEYS", pattern, database=database)
        assert isinstance(found, list)
        return sorted(key.decode() for key in found if isinstance(key, bytes))


def _read(stream: socket.SocketIO) -> Reply:
    line = stream.readline()
    kind, rest = line[:1], line[1:-2]
    if not line or kind == b"-":
        raise OSError(f"redis-server said {line!r}")
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return [_read(stream) for _ in range(int(rest))]
    return bytes(rest)
