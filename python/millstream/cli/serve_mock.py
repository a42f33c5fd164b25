"""``millstream serve-mock``: a server that plays a provider, in the foreground."""

from __future__ import annotations

import random
import signal
import threading
from typing import TYPE_CHECKING, Any, get_args

import click

from millstream.cli._exit import DONE, Refused
from millstream.cli._types import COUNT, SECONDS
from millstream.testing import Answer, Dialect, Fault, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Sequence

_AHEAD = 20_000
"""Answers that are drawn before they are needed."""

_TOP_UP_S = 0.2
"""Between two looks at how many of them are left."""


@click.command("serve-mock")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port on 127.0.0.1; 0 for any free one.")
@click.option("--reply", default="echo", help='"echo" (of the prompt), "fixed" (about 970 bytes) or a text.')
@click.option("--latency", type=SECONDS, default="0s", help="Before each answer.")
@click.option("--latency-sigma", type=float, help="Draw latencies: lognormal with this sigma, --latency the median.")
@click.option("--chunks", type=click.IntRange(1), help="Pieces of a streamed answer.  [default: its words]")
@click.option("--gap", type=SECONDS, default="0s", help="Between two of these pieces.")
@click.option("--model", "models", multiple=True, default=("mock-model",), help="Id for /v1/models. Repeatable.")
@click.option("--rpm", type=COUNT, help="Most requests per minute, 429 above.  [default: any number]")
@click.option("--tpm", type=COUNT, help="Most tokens per minute, 429 above.  [default: any number]")
@click.option("--max-concurrent", type=click.IntRange(1), help="Most requests at once, 429 above.")
@click.option("--slots", type=click.IntRange(1), help="Requests worked at at once; the others queue.")
@click.option("--dialect", type=click.Choice(get_args(Dialect)), default="openai", help="Whose headers and errors.")
@click.option("--fault-rate", type=click.FloatRange(0, 1), default=0.0, help="Share of requests that meet a fault.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    default=("503", "429", "reset_before"),
    help=f"A fault to draw from: an HTTP status or one of {', '.join(get_args(Fault))}. Repeatable.",
)
@click.option("--seed", type=int, default=0, help="Of the latencies and the faults.")
def serve_mock(
    port: int,
    reply: str,
    latency: float,
    latency_sigma: float | None,
    chunks: int | None,
    gap: float,
    models: Sequence[str],
    rpm: float | None,
    tpm: float | None,
    max_concurrent: int | None,
    slots: int | None,
    dialect: Any,
    fault_rate: float,
    faults: Sequence[str],
    seed: int,
) -> int:
    """Run a server on 127.0.0.1 that plays a provider, until Ctrl-C or SIGTERM.

    It speaks OpenAI's chat completions, completions, responses and embeddings, Anthropic's messages, and Mistral's and
    Azure's chat completions, with limits and faults as told. Nothing leaves the machine and nothing costs anything.

    \b
    Examples:
      millstream serve-mock
      millstream serve-mock --latency 300ms --rpm 600
      millstream serve-mock --fault-rate 0.1 --fault 503 --fault reset_before
      millstream run prompts.jsonl -o answers.jsonl --base-url http://127.0.0.1:8000/v1 --model any
    """
    drawn = _Faults(faults, fault_rate, seed)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    server = MockServer(
        reply=reply,
        stream=Streaming(chunks=chunks, gap=gap),
        latency=latency if latency_sigma is None else (latency, latency_sigma),
        models=models,
        requests_per_minute=None if rpm is None else round(rpm),
        tokens_per_minute=None if tpm is None else round(tpm),
        dialect=dialect,
        max_concurrent=max_concurrent,
        slots=slots,
        record=False,
        port=port,
        seed=seed,
    )
    try:
        server.start()
    except OSError as error:
        raise Refused(f"port {port} cannot be had: {error}") from error
    with server:
        click.echo(f"listening on {server.base_url} (Ctrl-C ends it)")
        drawn.top_up(server)
        while not done.wait(_TOP_UP_S if fault_rate else None):
            drawn.top_up(server)
        stats = server.stats
    click.echo(f"{stats.requests:,} requests, {stats.faulted:,} faults, {stats.rejected_429:,} refused by a limit")
    return DONE


class _Faults:
    """Scripts faults at random, always some requests ahead."""

    def __init__(self, names: Sequence[str], rate: float, seed: int) -> None:
        self._answers = [_answer(name) for name in names]
        self._rate = rate
        self._random = random.Random(seed)
        self._scripted = 0

    def top_up(self, server: MockServer) -> None:
        if not self._rate:
            return
        # Refused requests use up none, so this may script more than needed, never less.
        while self._scripted - server.stats.requests < _AHEAD:
            fine = 0 if self._rate == 1 else min(int(self._random.expovariate(1) / self._hazard()), _AHEAD)
            answers = [self._random.choice(self._answers)]
            if fine:
                answers.insert(0, Answer(times=fine))
            server.script(*answers)
            self._scripted += fine + 1

    def _hazard(self) -> float:
        from math import log1p

        return -log1p(-self._rate)


def _answer(name: str) -> Answer:
    if name.isdigit():
        if not 400 <= int(name) <= 599:
            raise click.BadParameter(f"{name} is no status of an error", param_hint="--fault")
        return Answer(status=int(name))
    for fault in get_args(Fault):
        if name == fault:
            return Answer(fault=fault)
    raise click.BadParameter(f"{name!r} is neither a status nor a fault", param_hint="--fault")
