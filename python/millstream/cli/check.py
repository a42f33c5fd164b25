"""``millstream check``: what a file of requests holds, what it will cost and how long it will take."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import click

from millstream._millstream import NativeLineReader
from millstream._progress import dollars, duration, quantity
from millstream.cli import _embeddings, _table, _tokens
from millstream.cli._exit import DONE, FAILED, REFUSED, refusing
from millstream.cli._options import (
    Configured,
    Server,
    half_price_option,
    price_options,
    request_options,
    server_options,
)
from millstream.cli._types import COUNT, INPUT, SECONDS

if TYPE_CHECKING:
    from millstream import Prices

_SHOWN = 20
"""Problems that are listed; all are counted."""


@click.command(cls=Configured)
@click.argument("file", metavar="IN", type=INPUT)
@click.option("--column", metavar="NAME", help="Look at a file of texts for `embed`: the column that holds them.")
@click.option("--batch-size", type=click.IntRange(1), help="Texts of a request, with --column.")
@click.option("--max-batch-tokens", type=COUNT, help="Tokens of a request, with --column.")
@click.option("--max-input-tokens", type=COUNT, help="Tokens of a text, with --column.")
@click.option("--answer-tokens", type=COUNT, help="Tokens of a usual answer.  [default: as many as a request allows]")
@click.option("--latency", type=SECONDS, help="Seconds of a usual answer, for the time at --max-concurrency.")
@click.option("--strict", is_flag=True, help="Exit code 2 also for bad lines, as run --strict would refuse them.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@half_price_option
@request_options
@server_options()
@price_options
def check(
    server: Server,
    file: str,
    column: str | None,
    batch_size: int | None,
    max_batch_tokens: int | None,
    max_input_tokens: int | None,
    answer_tokens: float | None,
    latency: float | None,
    strict: bool,
    as_json: bool,
    system: str | None,
    params: dict[str, Any],
    prices: Prices,
    price_factor: float,
) -> int:
    """Validate a file of requests; estimate its tokens, cost and time. Sends nothing and needs no key.

    Lines and options are those of `millstream run`; with --column the file is one of texts, for `millstream embed`.
    Tokens of prompts are estimated from their bytes; those of answers are bounded by what each request allows, or
    guessed with --answer-tokens. The time follows from --rpm and --tpm, and from --max-concurrency with --latency. What
    cannot be known is said to be unknown.

    \b
    Examples:
      millstream check prompts.jsonl --model gpt-4o-mini
      millstream check prompts.jsonl --model gpt-4o-mini --answer-tokens 200 --rpm 500 --tpm 200k
      millstream check prompts.jsonl --model local --max-concurrency 8 --latency 2s --prices mine.json
      millstream check texts.csv --column body --model text-embedding-3-small --tpm 1M

    \b
    Exit codes:
      0  every line is good
      1  some lines are bad: run would report them and do the others
      2  run would refuse the file: a custom_id twice, or with --strict a bad line
    """
    if column is not None:
        sizes = (batch_size, max_input_tokens, max_batch_tokens)
        texts = _embeddings.texts_of(file, column, server, sizes, prices)
        return _report_texts(
            file, texts, _bounds(texts.requests, texts.tokens, server, latency), prices, strict, as_json
        )
    found = _look(file, server.model_name, system, params, answer_tokens, prices)
    found.prompt_cost *= price_factor
    found.answer_cost *= price_factor
    seconds = _bounds(found.requests, found.limit_tokens, server, latency)
    if as_json:
        click.echo(json.dumps(_facts(found, seconds), indent=2))
    else:
        _show(file, found, seconds, prices)
    if found.duplicates or (strict and found.bad):
        return REFUSED
    return FAILED if found.bad else DONE


@dataclass
class _Found:
    """What is in a file."""

    requests: int = 0
    bad: int = 0
    duplicates: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    models: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    open_ended: int = 0
    """Requests that do not say how long an answer may be."""
    limit_tokens: int = 0
    """As a limit of tokens counts them before there are answers."""
    prompt_cost: float = 0.0
    answer_cost: float = 0.0
    unpriced: Counter[str] = field(default_factory=Counter)

    def note(self, line: int, problem: str) -> None:
        if len(self.problems) < _SHOWN:
            self.problems.append((line, problem))


def _look(
    file: str,
    model: str | None,
    system: str | None,
    params: dict[str, Any],
    answer_tokens: float | None,
    prices: Prices,
) -> _Found:
    found = _Found()
    names: dict[bytes, int] = {}
    with refusing():
        lines = NativeLineReader(model, system, params).file(file)
    for line in lines:
        if line.custom_id is not None:
            # A million names take some room; their hashes take less.
            key = blake2b(line.custom_id.encode(), digest_size=12).digest()
            first = names.setdefault(key, line.number)
            if first != line.number:
                found.duplicates += 1
                found.note(line.number, f"custom_id {line.custom_id!r} is that of line {first}")
        problem, body = line.problem, {}
        if problem is None:
            try:
                body = json.loads(line.body)
            except (ValueError, RecursionError) as error:
                problem = str(error)
        if problem is None:
            _count(found, line.url, body, answer_tokens, prices)
        else:
            found.bad += 1
            found.note(line.number, problem)
    return found


def _count(found: _Found, url: str, body: dict[str, Any], answer_tokens: float | None, prices: Prices) -> None:
    most, prompt = _tokens.of_answer(url, body), _tokens.of_prompt(body)
    answer = most if answer_tokens is None else min(int(answer_tokens), int(answer_tokens) if most is None else most)
    model = body.get("model") or "no model"
    found.requests += 1
    found.models[model] += 1
    found.prompt_tokens += prompt
    found.limit_tokens += max(prompt, most or 0)
    if answer is None:
        found.open_ended += 1
    else:
        found.answer_tokens += answer
    price = prices.of(model)
    if price is None:
        found.unpriced[model] += 1
    else:
        found.prompt_cost += price.cost(prompt, 0)
        found.answer_cost += price.cost(0, answer or 0)


def _bounds(requests: int, tokens: int, server: Server, latency: float | None) -> dict[str, float]:
    """Seconds that each bound makes the run take at least. Limits let a minute's worth pass at once."""
    seconds = {}
    if server.rpm is not None:
        seconds[f"{quantity(server.rpm)} requests/min"] = 60 * max(0.0, requests / server.rpm - 1)
    if server.tpm is not None:
        seconds[f"{quantity(server.tpm)} tokens/min"] = 60 * max(0.0, tokens / server.tpm - 1)
    if latency is not None and isinstance(server.max_concurrency, int):
        seconds[f"{server.max_concurrency} in flight"] = requests * latency / server.max_concurrency
    return seconds


def _report_texts(
    file: str, texts: _embeddings.Texts, seconds: dict[str, float], prices: Prices, strict: bool, as_json: bool
) -> int:
    if as_json:
        click.echo(json.dumps(texts.facts(seconds), indent=2))
    else:
        click.echo(file)
        _table.show([*texts.rows_of_table(prices), ("time", _time(seconds))])
        for row, reason in texts.survey.problems:
            click.echo(f"{file}, row {row}: {reason}")
        if (more := texts.bad - len(texts.survey.problems)) > 0:
            click.echo(f"and {more:,} more")
    if not texts.bad:
        return DONE
    return REFUSED if strict else FAILED


def _facts(found: _Found, seconds: dict[str, float]) -> dict[str, Any]:
    known = not found.unpriced
    return {
        "requests": found.requests,
        "bad_lines": found.bad,
        "duplicate_ids": found.duplicates,
        "models": dict(found.models),
        "prompt_tokens": found.prompt_tokens,
        "answer_tokens": None if found.open_ended else found.answer_tokens,
        "cost_usd": found.prompt_cost + found.answer_cost if known and not found.open_ended else None,
        "prompt_cost_usd": found.prompt_cost if known else None,
        "unpriced_models": dict(found.unpriced),
        "seconds": max(seconds.values(), default=None),
        "problems": [{"line": line, "reason": reason} for line, reason in found.problems],
    }


def _show(file: str, found: _Found, seconds: dict[str, float], prices: Prices) -> None:
    click.echo(file)
    _table.show(
        [
            ("requests", f"{found.requests:,}"),
            ("bad lines", f"{found.bad:,}"),
            ("duplicate ids", f"{found.duplicates:,}"),
            *((f"{'' if index else 'models'}", f"{model}: {count:,}") for index, (model, count) in _most(found.models)),
            ("prompt tokens", f"about {quantity(found.prompt_tokens)}"),
            ("answer tokens", _answers(found)),
            ("cost", _cost(found, prices)),
            ("time", _time(seconds)),
        ]
    )
    for line, problem in found.problems:
        click.echo(f"{file}:{line}: {problem}")
    if (more := found.bad + found.duplicates - len(found.problems)) > 0:
        click.echo(f"and {more:,} more")


def _most(models: Counter[str]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(models.most_common(10)))


def _answers(found: _Found) -> str:
    known = f"at most {quantity(found.answer_tokens)}"
    if not found.open_ended:
        return known
    unknown = f"unknown for {found.open_ended:,} without max_tokens (guess with --answer-tokens)"
    return f"{known}, {unknown}" if found.answer_tokens else unknown


def _cost(found: _Found, prices: Prices) -> str:
    if found.unpriced:
        models = ", ".join(model for model, _ in found.unpriced.most_common(3))
        unknown = f"unknown: no price of {models} (--prices FILE)"
        priced = found.prompt_cost + found.answer_cost
        return f"{unknown}; the others {dollars(priced)}" if priced else unknown
    where = f"(prices of {prices.date}; yours: --prices FILE)"
    if found.open_ended:
        return f"{dollars(found.prompt_cost)} for prompts, unknown for answers {where}"
    total = dollars(found.prompt_cost + found.answer_cost)
    return f"at most {total}: prompts {dollars(found.prompt_cost)}, answers {dollars(found.answer_cost)} {where}"


def _time(seconds: dict[str, float]) -> str:
    if not seconds:
        return "unknown: give --rpm, --tpm, or --max-concurrency with --latency"
    bound, longest = max(seconds.items(), key=lambda each: each[1])
    return f"at least {duration(longest)}, by {bound}"
