"""``millstream cache``: what is kept of answers, how much it is, and an end to it."""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from millstream._cache import Cache, CacheEntry, Place
from millstream._files import replacing
from millstream._progress import dollars, duration, quantity
from millstream.cli import _table
from millstream.cli._exit import DONE, Refused, refusing
from millstream.cli._options import price_options
from millstream.cli._types import CACHE, OUTPUT, SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream import Prices

_REMOVED_AT_ONCE = 1000
_ANY_BYTES = 1 << 62
_FILE = "answers.sqlite"

_PER_PROCESS = (
    "hits, misses and what they saved are counted by each process for itself: Cache.stats() in it, or its own summary"
)

_where = click.option(
    "--cache",
    "where",
    type=CACHE,
    default="disk",
    envvar="MILLSTREAM_CACHE",
    metavar="PATH|URL",
    help="Folder of the cache, or URL of a Redis; also MILLSTREAM_CACHE, where a password is safer.",
)


def _filters(function: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option("--older-than", type=SECONDS, help="Only answers that were kept so long ago, such as 30d."),
        click.option("--model", help="Only answers of this model."),
    ):
        function = option(function)
    return function


@click.group()
def cache() -> None:
    """Look into a cache of answers, empty it, or write down what it holds.

    Without --cache it is the one of cache="disk": millstream in XDG_CACHE_HOME, or ~/.cache/millstream. Others may use
    it meanwhile.

    \b
    Examples:
      millstream cache stats
      millstream cache stats --cache ./cache --json
      millstream cache export --cache ./cache -o answers.jsonl
      millstream cache clear --older-than 30d --yes
    """


@cache.command()
@_where
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@price_options
def stats(where: str, as_json: bool, prices: Prices) -> int:
    """Show how much is kept, of which models, since when, and what it would cost to ask for all of it again.

    \b
    Examples:
      millstream cache stats
      millstream cache stats --cache ./cache --prices mine.json
      millstream cache stats --json | jq .entries
    """
    opened = _open(where)
    found = _Found()
    if opened is not None:
        held = opened.stats()
        found.entries, found.bytes = held.entries, held.bytes
        for entry in opened.entries():
            found.take(entry, prices)
    if as_json:
        click.echo(json.dumps({"place": _name(where), **found.facts()}, indent=2))
    else:
        click.echo(_name(where))
        found.show()
    return DONE


@cache.command()
@_where
@_filters
@click.option("-y", "--yes", is_flag=True, help="Do not ask first.")
def clear(where: str, older_than: float | None, model: str | None, yes: bool) -> int:
    """Forget what is kept, for every process that uses the cache; what is asked next is paid for.

    \b
    Examples:
      millstream cache clear
      millstream cache clear --cache ./cache --yes
      millstream cache clear --older-than 30d --model gpt-4o-mini --yes
    """
    opened = _open(where)
    held = 0 if opened is None else opened.stats().entries
    if opened is None or not held:
        click.echo(f"{_name(where)}: nothing is kept")
        return DONE
    wanted = _wanted(older_than, model)
    if not yes:
        what = f"all {held:,} answers" if wanted is None else f"those of the {held:,} answers that the options name"
        click.confirm(f"{_name(where)}: forget {what}?", abort=True)
    if wanted is None:
        opened.clear()
        removed = held
    else:
        removed = _remove(opened, wanted)
    opened.flush()
    click.echo(f"{_name(where)}: {removed:,} answers removed")
    return DONE


@cache.command()
@_where
@_filters
@click.option("-o", "--output", type=OUTPUT, help="Where the lines go, readable by you alone.  [default: stdout]")
def export(where: str, older_than: float | None, model: str | None, output: str | None) -> int:
    """Write every answer that is kept as a line of JSON.

    A line has the answer ("body"), its "model", "prompt_tokens" and "completion_tokens" as far as it names them, when
    it was "stored" and when it "expires" (null: once there is no more room), and its "id", a hash. What was asked is
    not kept, nor is any key; an answer may repeat what it was asked.

    \b
    Examples:
      millstream cache export -o answers.jsonl
      millstream cache export --cache ./cache --model gpt-4o-mini | jq .body.choices[0].message.content
    """
    opened = _open(where)
    wanted = _wanted(older_than, model)
    count = 0
    with _written_to(output) as out:
        for entry in () if opened is None else opened.entries():
            if wanted is None or wanted(entry):
                out.write(_line(entry))
                count += 1
    click.echo(f"{_name(where)}: {count:,} answers" + (f" in {output}" if output else ""), err=True)
    return DONE


def _open(where: str) -> Cache | None:
    """The cache; None where the usual one was never begun. Looking for one makes none."""
    with refusing():
        if "://" not in where:
            folder = _folder(where)
            if not os.path.isfile(os.path.join(folder, _FILE)):
                if where == "disk":
                    return None
                raise Refused(f"there is no cache at {where}")
            # Whatever its users have as the bound: looking into it, and removing of it, must not forget the oldest.
            return Cache(os.path.join(folder, ""), memory_bytes=0, max_bytes=_ANY_BYTES)
        return Cache(where, memory_bytes=0)


def _folder(where: str) -> str:
    place = Place(where)
    place.read()
    return place.given()[1]


def _name(where: str) -> str:
    if where == "disk":
        return _folder(where)
    # A URL may have a password in it.
    scheme, separator, rest = where.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else where


def _wanted(older_than: float | None, model: str | None) -> Callable[[CacheEntry], bool] | None:
    """What the options name; None: everything."""
    if older_than is None and model is None:
        return None
    latest = None if older_than is None else time.time() - older_than

    def is_wanted(entry: CacheEntry) -> bool:
        is_old = latest is None or (entry.stored is not None and entry.stored <= latest)
        return is_old and model in (None, entry.model)

    return is_wanted


def _remove(opened: Cache, wanted: Callable[[CacheEntry], bool]) -> int:
    removed = 0
    some: list[CacheEntry] = []
    for entry in filter(wanted, opened.entries()):
        some.append(entry)
        if len(some) == _REMOVED_AT_ONCE:
            opened.remove(some)
            removed += len(some)
            some = []
    opened.remove(some)
    return removed + len(some)


@contextmanager
def _written_to(output: str | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with refusing(OSError), replacing(output) as beside, open(beside, "wb") as file:
        yield file


def _line(entry: CacheEntry) -> bytes:
    body: Any
    try:
        body = json.loads(entry.body)
    except (ValueError, RecursionError):
        body = _vector(entry.body) or {"base64": base64.b64encode(entry.body).decode()}
    line = {
        "id": entry.key.hex(),
        "stored": _moment(entry.stored),
        "expires": _moment(entry.expires),
        "model": entry.model,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "body": body,
    }
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _vector(body: bytes) -> dict[str, Any] | None:
    """The vector of one text, which is kept as a line of JSON and its numbers' bytes; None if it is none."""
    head, _, numbers = body.partition(b"\n")
    try:
        if json.loads(head)["dimensions"] * 4 != len(numbers):
            return None
        return {"object": "embedding", "embedding": list(struct.unpack(f"<{len(numbers) // 4}f", numbers))}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@dataclass
class _Found:
    """What entries add up to."""

    entries: int = 0
    bytes: int = 0
    readable: int = 0
    expiring: int = 0
    models: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0
    unpriced: Counter[str] = field(default_factory=Counter)
    oldest: float | None = None
    newest: float | None = None

    def take(self, entry: CacheEntry, prices: Prices) -> None:
        self.readable += 1
        self.expiring += entry.expires is not None
        model = entry.model or "unknown model"
        self.models[model] += 1
        if entry.stored is not None:
            self.oldest = entry.stored if self.oldest is None else min(self.oldest, entry.stored)
            self.newest = entry.stored if self.newest is None else max(self.newest, entry.stored)
        price = prices.of(entry.model)
        if entry.prompt_tokens is None:
            self.uncounted += 1
        self.prompt_tokens += entry.prompt_tokens or 0
        self.completion_tokens += entry.completion_tokens or 0
        if price is None or entry.prompt_tokens is None:
            self.unpriced[model] += 1
        else:
            self.cost += price.cost(entry.prompt_tokens, entry.completion_tokens or 0)

    @property
    def unreadable(self) -> int:
        return max(self.entries - self.readable, 0)

    def facts(self) -> dict[str, Any]:
        return {
            "entries": self.entries,
            "bytes": self.bytes,
            "unreadable_or_expired": self.unreadable,
            "with_expiry": self.expiring,
            "oldest": _moment(self.oldest),
            "newest": _moment(self.newest),
            "models": dict(self.models),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "worth_usd": None if self.unpriced else self.cost,
            "known_worth_usd": self.cost,
            "unpriced_models": dict(self.unpriced),
            "not_kept_across_processes": ["hits", "misses", "saved_tokens", "saved_dollars"],
        }

    def show(self) -> None:
        rows: list[tuple[str, Any]] = [("answers", f"{self.entries:,}"), ("bytes", f"{self.bytes:,}")]
        if self.unreadable:
            rows.append(("of them", f"{self.unreadable:,} expired or damaged: never given again"))
        if self.oldest is not None and self.newest is not None:
            now = time.time()
            ages = [duration(max(now - moment, 0)) for moment in (self.oldest, self.newest)]
            rows.append(("kept since", f"{_moment(self.oldest)}, {ages[0]} ago; the last one {ages[1]} ago"))
        if self.expiring:
            rows.append(("with an expiry", f"{self.expiring:,}"))
        for index, (model, count) in enumerate(self.models.most_common(10)):
            rows.append(("" if index else "models", f"{model}: {count:,}"))
        if self.readable:
            rows += [("tokens", self._tokens()), ("worth", self._worth())]
        rows.append(("not known here", _PER_PROCESS))
        _table.show(rows)

    def _tokens(self) -> str:
        tokens = f"{quantity(self.prompt_tokens)} in, {quantity(self.completion_tokens)} out"
        return f"{tokens}, not counted for {self.uncounted:,}" if self.uncounted else tokens

    def _worth(self) -> str:
        if not self.unpriced:
            return f"{dollars(self.cost)} to ask for all of it again"
        models = ", ".join(model for model, _ in self.unpriced.most_common(3))
        unknown = f"unknown for {self.unpriced.total():,} answers of {models} (--prices FILE)"
        return f"{dollars(self.cost)}, {unknown}" if self.cost else unknown
