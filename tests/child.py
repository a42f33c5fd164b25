"""Python scripts as child processes, and waiting for a claim with a deadline. For the tests of lives and deaths."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import TracebackType

PATIENCE = 20.0
"""Seconds until something that ought to happen is said not to."""


def until(claim: Callable[[], bool], patience: float = PATIENCE) -> float:
    """Block until ``claim()`` holds; the seconds that took."""
    began = time.monotonic()
    while not claim():
        assert time.monotonic() < began + patience, "never came true"
        time.sleep(0.001)
    return time.monotonic() - began


async def eventually(claim: Callable[[], bool], patience: float = PATIENCE) -> float:
    """As `until`, while the event loop runs."""
    began = time.monotonic()
    while not claim():
        assert time.monotonic() < began + patience, "never came true"
        await asyncio.sleep(0.001)
    return time.monotonic() - began


# A process that a shell started in the background ignores SIGINT, and so would its children.
_INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); del signal\n"


class Child:
    """A script in a Python process of its own; killed at the end of the ``with`` if it still runs.

    Every warning is an error there, so that a resource left open shows in its stderr. A fork beside other threads
    is what our users do and what is tested, so the warning about that (CPython 3.12) is not among them.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        # sys.executable's own options are not inherited: the script sees what a user's would.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-X", "faulthandler"),
                *("-c", _INTERRUPTIBLE + textwrap.dedent(script), *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")},
        )

    @property
    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def line(self) -> str:
        """The next line that the script prints (with ``flush=True``)."""
        line = self._stdout.readline()
        if not line:
            _, stderr = self._process.communicate(timeout=PATIENCE)
            raise AssertionError(f"the script ended with {self._process.returncode}:\n{stderr}")
        return line.rstrip("\n")

    def say(self, line: str = "") -> None:
        """Give the script a line of stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def settle(self) -> None:
        """Wait until the script's main thread sleeps.

        A signal that comes between asyncio's last look for signals and its `epoll_wait` is not seen before the next
        event. That race is CPython's: asyncio alone loses 1 of 8,000 signals sent at that moment.
        """
        status = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/status")

        def switches() -> list[str] | None:
            lines = status.read_text(encoding="ascii").splitlines()
            asleep = any(line.startswith("State:\tS") for line in lines)
            return [line for line in lines if "ctxt_switches" in line] if asleep else None

        def asleep() -> bool:
            before = switches()
            time.sleep(0.01)
            return before is not None and before == switches()

        if status.exists():
            until(asleep)

    def send(self, number: signal.Signals) -> float:
        """Send a signal; the time of it on the clock that all processes share."""
        sent = time.monotonic()
        self._process.send_signal(number)
        return sent

    def end(self, patience: float = PATIENCE) -> tuple[int, str, str]:
        """Close its stdin and wait for its end: exit code, what is left of stdout, stderr."""
        stdout, stderr = self._process.communicate(timeout=patience)
        return self._process.returncode, stdout.rstrip("\n"), stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def run(script: str, *arguments: str, patience: float = PATIENCE) -> tuple[int, str, str]:
    """Run a script to its end: exit code, stdout, stderr."""
    with Child(script, *arguments) as child:
        return child.end(patience)
