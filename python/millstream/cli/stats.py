"""``millstream stats``: what became of the requests of a run, from its output."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from math import ceil, log
from typing import TYPE_CHECKING, Any

import click

from millstream._progress import dollars, quantity
from millstream.cli import _embeddings, _table
from millstream.cli._exit import DONE, Refused
from millstream.cli._options import half_price_option, price_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millstream import Prices

_QUANTILES = (0.5, 0.9, 0.95, 0.99)
_BINS = 12


@click.command()
@click.argument("files", metavar="OUT...", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@half_price_option
@price_options
def stats(files: Sequence[str], as_json: bool, prices: Prices, price_factor: float) -> int:
    """Show what became of a run: outcomes, error codes, latencies, tokens and cost.

    Give its output, and the file of --errors if it had one; or the output of `millstream embed`, even before it is
    there. A run that is still going may be looked at, too. What a cache holds, `millstream cache stats` says.

    \b
    Examples:
      millstream stats answers.jsonl
      millstream stats answers.jsonl errors.jsonl --prices mine.json
      millstream stats answers.jsonl --json | jq .latency_seconds.p95
      millstream stats vectors.parquet
    """
    jobs = [job for job in map(_embeddings.job_of, files) if job is not None]
    if jobs and len(files) > 1:
        raise Refused("of embeddings give one output at a time")
    if jobs:
        place, state = jobs[0]
        if as_json:
            click.echo(json.dumps(_embeddings.facts_of(place, state, prices), indent=2))
        else:
            click.echo(place.output)
            _embeddings.show_job(place, state, prices)
        return DONE
    for file in files:
        if not os.path.exists(file):
            raise Refused(f"there is no file {file}")
    figures = _Figures()
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                if line.strip():
                    figures.take(line, prices)
    figures.cost *= price_factor
    if as_json:
        click.echo(json.dumps(figures.facts(), indent=2))
    else:
        click.echo(" ".join(files))
        figures.show()
    return DONE


@dataclass
class _Figures:
    """What lines of output add up to."""

    answered: int = 0
    failed: int = 0
    unreadable: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    cached: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0
    unpriced: Counter[str] = field(default_factory=Counter)
    # 8 bytes a line, so a million lines are no matter.
    latencies: array[float] = field(default_factory=lambda: array("d"))
    queued: array[float] = field(default_factory=lambda: array("d"))

    def take(self, line: bytes, prices: Prices) -> None:
        try:
            content = json.loads(line)
            response, error = content["response"], content["error"]
        except (ValueError, TypeError, KeyError, RecursionError):
            self.unreadable += 1
            return
        self._take_extra(content.get("millstream"))
        code = _code(response, error)
        if code is not None:
            self.failed += 1
            self.codes[code] += 1
            return
        self.answered += 1
        self._take_usage(response.get("body"), prices)

    def _take_extra(self, extra: Any) -> None:
        if not isinstance(extra, dict):
            return
        for name, seen in (("latency_ms", self.latencies), ("queue_ms", self.queued)):
            value = extra.get(name)
            if isinstance(value, (int, float)):
                seen.append(value / 1000)
        if isinstance(extra.get("attempts"), int):
            self.attempts += extra["attempts"]
        self.cached += extra.get("cached") is True
        if isinstance(extra.get("key_id"), str):
            self.keys[extra["key_id"]] += 1

    def _take_usage(self, body: Any, prices: Prices) -> None:
        body = body if isinstance(body, dict) else {}
        model = body["model"] if isinstance(body.get("model"), str) else "unknown model"
        self.models[model] += 1
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        prompt = _first(usage, "prompt_tokens", "input_tokens")
        completion = _first(usage, "completion_tokens", "output_tokens")
        price = prices.of(model)
        if prompt is None:
            self.uncounted += 1
        else:
            self.prompt_tokens += prompt
            self.completion_tokens += completion or 0
        if price is None or prompt is None:
            self.unpriced[model] += 1
        else:
            self.cost += price.cost(prompt, completion or 0)

    def facts(self) -> dict[str, Any]:
        return {
            "answered": self.answered,
            "failed": self.failed,
            "unreadable_lines": self.unreadable,
            "error_codes": dict(self.codes),
            "attempts": self.attempts,
            "cached": self.cached,
            "keys": dict(self.keys),
            "models": dict(self.models),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": None if self.unpriced else self.cost,
            "known_cost_usd": self.cost,
            "unpriced_models": dict(self.unpriced),
            "latency_seconds": _quantiles(self.latencies),
            "queue_seconds": _quantiles(self.queued),
        }

    def show(self) -> None:
        outcomes = [("answered", self.answered), ("failed", self.failed)]
        if self.unreadable:
            outcomes.append(("unreadable", self.unreadable))
        _table.show(_table.bars(outcomes))
        if self.codes:
            click.echo("errors")
            _table.show(_table.bars(self.codes.most_common(20)))
        if self.latencies:
            click.echo("latency")
            _table.show(_table.bars(_histogram(self.latencies)))
            _table.show((name, f"{seconds:.3f} s") for name, seconds in _quantiles(self.latencies).items())
        if self.queued:
            click.echo("wait before it")
            _table.show((name, f"{seconds:.3f} s") for name, seconds in _quantiles(self.queued).items())
        click.echo("used")
        _table.show(self._used())

    def _used(self) -> list[tuple[str, str]]:
        rows = [
            *(("" if index else "models", f"{model}: {count:,}") for index, (model, count) in _ranked(self.models)),
            *(("" if index else "keys", f"{key}: {count:,}") for index, (key, count) in _ranked(self.keys)),
        ]
        if self.attempts:
            rows.append(("attempts", f"{self.attempts:,}"))
        if self.cached:
            rows.append(("cached", f"{self.cached:,}"))
        tokens = f"{quantity(self.prompt_tokens)} in, {quantity(self.completion_tokens)} out"
        rows.append(("tokens", f"{tokens}, not counted for {self.uncounted:,}" if self.uncounted else tokens))
        rows.append(("cost", self._money()))
        return rows

    def _money(self) -> str:
        if not self.unpriced:
            return dollars(self.cost)
        models = ", ".join(model for model, _ in self.unpriced.most_common(3))
        unknown = f"unknown for {self.unpriced.total():,} answers of {models} (--prices FILE)"
        return f"{dollars(self.cost)}, {unknown}" if self.cost else unknown


def _code(response: Any, error: Any) -> str | None:
    """What a line failed with; None if it did not."""
    if isinstance(error, dict):
        return str(error.get("code") or "error")
    if not isinstance(response, dict):
        return "no response"
    status = response.get("status_code")
    if isinstance(status, int) and 200 <= status < 300:
        return None
    body = response.get("body")
    told = body.get("error") if isinstance(body, dict) else None
    word = (told.get("code") or told.get("type")) if isinstance(told, dict) else None
    return f"{status} {word}" if word else str(status)


def _first(usage: dict[str, Any], *names: str) -> int | None:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), None)


def _ranked(counts: Counter[str]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(counts.most_common(10)))


def _quantiles(seconds: array[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    found = {f"p{round(100 * share)}": ordered[ceil(share * len(ordered)) - 1] for share in _QUANTILES}
    return {**found, "max": ordered[-1]}


def _histogram(seconds: array[float]) -> list[tuple[str, int]]:
    """Counts in bins that grow by a factor, since latencies span some: each by its upper end."""
    least, most = max(min(seconds), 1e-4), max(max(seconds), 1e-4)
    bins = _BINS if most > least * 1.05 else 1
    step = log(most / least) / bins
    counts = [0] * bins
    for each in seconds:
        place = ceil(log(max(each, least) / least) / step) - 1 if step else 0
        counts[min(max(place, 0), bins - 1)] += 1
    ends = [least * (most / least) ** ((index + 1) / bins) for index in range(bins)]
    return [(f"<= {_seconds(end)}", count) for end, count in zip(ends, counts, strict=True)]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
