"""``python -m millstream.testing``: a mock server in a process of its own.

Prints one line of JSON (``base_url``, ``root_url``, ``port``, ``pid``) when it listens, and runs until
SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, get_args

from millstream.testing import Dialect, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until told to stop."""
    options = _parser().parse_args(arguments)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    if options.exit_on_stdin_eof:
        threading.Thread(target=_wait_for_eof, args=(done,), daemon=True).start()
    tls = (options.tls_cert, options.tls_key) if options.tls_cert else None
    with MockServer(
        reply=options.reply,
        stream=Streaming(chunks=options.chunks, gap=options.gap),
        latency=options.latency,
        models=options.model or ["mock-model"],
        api_key=options.api_key,
        requests_per_minute=options.rpm,
        tokens_per_minute=options.tpm,
        dialect=options.dialect,
        max_concurrent=options.max_concurrent,
        slots=options.slots,
        embedding_dimensions=options.embedding_dimensions,
        record=False,
        tls=tls,
        port=options.port,
        seed=options.seed,
    ) as server:
        facts = {
            "base_url": server.base_url,
            "root_url": server.root_url,
            "port": server.port,
            "pid": os.getpid(),
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        done.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m millstream.testing",
        description="Run a mock of an OpenAI-compatible provider on 127.0.0.1.",
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; default: any free one")
    parser.add_argument("--reply", default="echo", help='"echo", "fixed" (about 970 bytes) or a text; default: echo')
    parser.add_argument(
        "--latency", type=_latency, default=0.0, help="seconds, or MEDIAN,SIGMA of a lognormal; default: 0"
    )
    parser.add_argument("--chunks", type=int, help="pieces of a streamed answer; default: each of its words")
    parser.add_argument(
        "--gap", type=_gaps, default=0.0, help="seconds between two events, or FIRST,SECOND,...; default: 0"
    )
    parser.add_argument("--embedding-dimensions", type=int, default=8, help="numbers of an embedding; default: 8")
    parser.add_argument("--model", action="append", help="id for /v1/models, repeatable; default: mock-model")
    parser.add_argument("--api-key", help="ask for this key; default: none")
    parser.add_argument("--rpm", type=int, help="requests per minute; default: no limit")
    parser.add_argument("--tpm", type=int, help="tokens per minute; default: no limit")
    parser.add_argument("--max-concurrent", type=int, help="requests at once, 429 above; default: no limit")
    parser.add_argument("--slots", type=int, help="requests worked at at once, the others queue; default: any number")
    parser.add_argument(
        "--dialect", choices=get_args(Dialect), default="openai", help="whose rate-limit headers; default: openai"
    )
    parser.add_argument("--tls-cert", help="PEM certificate chain: speak HTTPS (with --tls-key)")
    parser.add_argument("--tls-key", help="PEM private key")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn latencies; default: 0")
    parser.add_argument("--exit-on-stdin-eof", action="store_true", help="stop when stdin ends: with its parent")
    return parser


def _gaps(text: str) -> list[float]:
    return [float(gap) for gap in text.split(",")]


def _latency(text: str) -> float | tuple[float, float]:
    median, comma, sigma = text.partition(",")
    return (float(median), float(sigma)) if comma else float(median)


def _wait_for_eof(done: threading.Event) -> None:
    # Not sys.stdin: a thread blocked in its lock would disturb the interpreter's exit.
    while os.read(0, 4096):
        pass
    done.set()


if __name__ == "__main__":
    raise SystemExit(main())
