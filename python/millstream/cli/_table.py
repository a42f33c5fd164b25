"""Figures for people: aligned lines and bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(rows: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        click.echo(f"  {name:<16}{value}")


def bars(rows: Sequence[tuple[str, int]]) -> Iterable[tuple[str, str]]:
    """Names and counts with a bar that is as long as the count is large."""
    most = max((count for _, count in rows), default=0) or 1
    width = max((len(f"{count:,}") for _, count in rows), default=0)
    for name, count in rows:
        whole, rest = divmod(count * _BAR * 8 // most, 8)
        yield name, f"{count:>{width},} {'█' * whole}{_EIGHTHS[rest].strip()}"
