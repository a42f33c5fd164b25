"""How a run over a file ended: what is told of it, and what the command ends with."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from millstream._progress import dollars, duration
from millstream.cli._exit import DONE, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from millstream._embed_job import EmbedSummary
    from millstream.types import RunSummary

_SHOWN = 20
"""Problems that are listed; the output or its journal has all."""


def interruptions(stop: Callable[[float], None], grace: float) -> list[int]:
    """Make the first Ctrl-C or SIGTERM drain the run and the second end it; the signals that came, as they come."""
    from asyncio import get_running_loop

    loop = get_running_loop()
    seen: list[int] = []

    def interrupt(number: int) -> None:
        seen.append(number)
        if len(seen) == 1 and grace > 0:
            click.echo(f"\nstopping: what is on the wire has {duration(grace)} to end; again stops at once", err=True)
        stop(grace if len(seen) == 1 else 0.0)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, int(number))
    return seen


def exit_code(summary: EmbedSummary | RunSummary, interruption: int | None, *, has_failed: bool) -> int:
    """What the command ends with: as a shell knows it where a signal ended the run."""
    if summary.stopped == "interrupted":
        return INTERRUPTED if interruption is None else 128 + interruption
    return FAILED if summary.stopped or has_failed else DONE


def report(
    summary: EmbedSummary | RunSummary,
    problems: Iterable[str],
    parts: Iterable[str],
    reasons: Mapping[str, str],
    *,
    as_json: bool,
) -> None:
    """Tell ``problems``, a line each, the summary as JSON or in these ``parts``, and why the run stopped, if it did."""
    listed = list(problems)
    for problem in listed[:_SHOWN]:
        click.echo(problem, err=True)
    if (more := len(listed) - _SHOWN) > 0:
        click.echo(f"and {more:,} more", err=True)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    else:
        click.echo(" · ".join(parts), err=True)
    if summary.stopped:
        click.echo(reasons.get(summary.stopped, f"stopped: {summary.stopped}"), err=True)


def done_before(summary: EmbedSummary | RunSummary) -> Iterator[str]:
    """What an earlier run had done, if there was one."""
    if summary.skipped:
        yield f"{summary.skipped:,} done before"
    if summary.failed_before:
        yield f"{summary.failed_before:,} of them failed (--retry-failed asks them again)"


def cost(summary: EmbedSummary | RunSummary, counted: str) -> str:
    """What the run cost, and how many of what is ``counted`` have no price."""
    if not summary.unpriced:
        return f"cost {dollars(summary.cost or 0.0)}"
    if not summary.cost:
        return "cost unknown"
    return f"cost {dollars(summary.cost)} and unknown for {summary.unpriced:,} {counted}"
