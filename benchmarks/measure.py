"""Running things: the server on its core, one contender on the other, the machine's description."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scenarios import Contender, Result, Scenario

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "target/release/examples"
FAULTY_SERVER = HERE / "faulty_server.py"
# Contenders that are written in Rust.
NATIVE = ("floor", "limiter", "decode", "cache")
BUILD = ("cargo", "build", "--release", "--locked", "--no-default-features", *(f"--example={name}" for name in NATIVE))
SERVER_FLAGS = ("--reply", "fixed", "--exit-on-stdin-eof")
SERVER_START_S = 20
RUN_LIMIT_S = 300
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class RunError(Exception):
    """A program of the benchmark did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Server:
    """The mock server, running in a process of its own."""

    base_url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return its user + system time so far (in steps of 10 ms)."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / TICKS_PER_S


@contextlib.contextmanager
def serve(command: Sequence[str], scenario: Scenario, core: int) -> Iterator[Server]:
    """Start the server pinned to ``core``; it ends when its standard input does."""
    argv = ["taskset", "-c", str(core), *command, "--latency", str(scenario.latency_s), *SERVER_FLAGS]
    if scenario.chunks:
        argv += ["--chunks", str(scenario.chunks), "--gap", scenario.gaps_s]
    argv += [*scenario.server_flags, *scenario.faulty]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not select.select([process.stdout], [], [], SERVER_START_S)[0]:
            raise RunError(f"the server said nothing for {SERVER_START_S} s: {' '.join(argv)}")
        line = process.stdout.readline()
        if not line:
            raise RunError(f"the server ended with code {process.wait()}: {' '.join(argv)}")
        base_url = json.loads(line)["base_url"].rstrip("/")
        yield Server(base_url if base_url.endswith("/v1") else base_url + "/v1", process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def interpreter(contender: Contender) -> Path:
    """Return the Python that a contender runs under; where it is not there, the contender cannot run."""
    if not contender.environment:
        return Path(sys.executable)
    return HERE.parent / f".venv-bench-{contender.environment}/bin/python"


def run_contender(
    contender: Contender,
    scenario: Scenario,
    requests: int,
    server: Server | None,
    cores: str,
    payload: Path,
) -> Result:
    """Run a contender once, pinned to ``cores``, and return the line it printed.

    With a server, ``server_busy`` is added: the share of its core that the server used meanwhile. Near 1
    the server is what was measured, and the contender may be faster than it looks.
    """
    program, *fixed = contender.program
    argv = ["taskset", "-c", cores]
    argv += [str(EXAMPLES / program)] if program in NATIVE else [str(interpreter(contender)), str(HERE / program)]
    argv += [*fixed, "--requests", str(requests)]
    warmup = scenario.warmup or scenario.concurrency * (1 if scenario.rate(contender) < 1000 else 2)
    if server:
        argv += ["--concurrency", str(scenario.concurrency), "--warmup", str(warmup), "--chunks", str(scenario.chunks)]
        argv += (
            ["--url", f"{server.base_url}/chat/completions", "--payload-file", str(payload)]
            if program == "floor"
            else ["--base-url", server.base_url]
        )
    server_before = server.cpu_seconds() if server else 0.0
    result = _last_json_line(argv)
    if server:
        done, speed = requests + warmup, result.get("rps", 0.0)
        if scenario.chunks:
            done, speed = result["chunks"] + result["warmup_chunks"], result["chunks_per_s"]
        result["server_busy"] = (server.cpu_seconds() - server_before) / done * speed
    return result


def _last_json_line(argv: Sequence[str]) -> Result:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"took more than {RUN_LIMIT_S} s: {' '.join(argv)}") from error
    if done.returncode != 0:
        raise RunError(f"code {done.returncode}: {' '.join(argv)}\n{done.stderr.strip()[-1500:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def build_native() -> None:
    """Build the contenders that are written in Rust: quick when nothing changed."""
    subprocess.run(BUILD, cwd=HERE.parent, check=True)


def allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one; the server and the clients inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def build_profile() -> str:
    """Return ``release`` or ``debug``: how the installed millstream was built."""
    from millstream._millstream import BUILD_PROFILE

    return str(BUILD_PROFILE)


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to know about this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "CPU": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Rust": rustc or "unknown",
    }
