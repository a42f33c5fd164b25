"""What both programs share: the server's process, and what the kernel says of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

HERE = Path(__file__).resolve().parent
API_KEY = "sk-soak-0123456789"
MODEL = "mock-model"


class Server:
    """``server.py`` in a process of its own, for as long as the block lasts."""

    def __init__(self, *arguments: object) -> None:
        argv = [sys.executable, str(HERE / "server.py"), *map(str, arguments)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.base_url: str = self._line()["base_url"]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stats(self) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def status_kb(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(name)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def prompt_of(index: int) -> str:
    """Each its own, of different lengths."""
    return f"item {index}: " + "lorem ipsum dolor sit amet " * (index * 7919 % 23)


def answer_to(prompt: str) -> str:
    return f"echo: {prompt}"


def verdict(what: str, value: float, most: float, unit: str = "") -> tuple[bool, str]:
    """Whether a figure is held, and a line that says so."""
    held = value <= most
    return held, f"{'met' if held else 'NOT MET'}: {what} {value:,.3f}{unit}, at most {most:,g}{unit}"
