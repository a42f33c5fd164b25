"""Embeddings for ``check`` and ``stats``: what a file of texts will take, and how far its vectors are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millstream._columns import Column, Pack, Survey, Unusable, packs
from millstream._embed_job import limits
from millstream._embed_work import Place, look
from millstream._progress import dollars, quantity
from millstream.cli import _table
from millstream.cli._exit import refusing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream import Prices
    from millstream._embed_work import State
    from millstream.cli._options import Server

_BYTES_PER_TOKEN = 4
_SHOWN = 20


@dataclass
class Texts:
    """What a column of texts holds."""

    model: str | None
    most_tokens: int | None = None
    """Tokens that a text may have, if that is known."""
    survey: Survey = field(default_factory=Survey)
    requests: int = 0
    tokens: int = 0
    longest: int = 0
    too_long: int = 0
    price: float | None = None
    """Dollars per token."""

    @property
    def rows(self) -> int:
        return self.survey.rows

    @property
    def bad(self) -> int:
        return self.survey.unusable

    def facts(self, seconds: dict[str, float]) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "rows_without_text": self.bad,
            "model": self.model,
            "tokens": self.tokens,
            "longest_tokens": self.longest,
            "too_long": self.too_long if self.most_tokens else None,
            "requests": self.requests,
            "cost_usd": None if self.price is None else self.tokens * self.price,
            "seconds": max(seconds.values(), default=None),
            "problems": [{"row": row, "reason": reason} for row, reason in self.survey.problems],
        }

    def rows_of_table(self, prices: Prices) -> list[tuple[str, Any]]:
        where = f"(prices of {prices.date}; yours: --prices FILE)"
        unknown = f"unknown: no price of {self.model or 'no model'} (--prices FILE)"
        too_long = f", {self.too_long:,} of more than {self.most_tokens:,}" if self.too_long else ""
        return [
            ("rows", f"{self.rows:,}"),
            ("without a text", f"{self.bad:,}"),
            ("model", self.model or "none: give --model"),
            ("tokens", f"about {quantity(self.tokens)}; the longest text {quantity(self.longest)}{too_long}"),
            ("requests", f"about {self.requests:,}"),
            ("cost", unknown if self.price is None else f"about {dollars(self.tokens * self.price)} {where}"),
        ]


def texts_of(
    file: str,
    column: str,
    server: Server,
    sizes: tuple[int | None, int | None, int | None],
    prices: Prices,
) -> Texts:
    """Look through a column as ``millstream embed`` would.

    Args:
        file: The file.
        column: Its column of texts.
        server: Whom to ask, of which only the limits are wanted.
        sizes: Texts of a request, tokens of a text, tokens of a request, as far as the user says.
        prices: What tokens cost.
    """
    found = Texts(server.model_name)
    known = prices._per_token(found.model, for_budget=False)
    found.price = None if known is None else known[0]
    with refusing():
        read = Column(file, column)
        with server.pretended() as client:
            most, found.most_tokens, most_bytes = limits(client, *sizes)
        for pack in packs(_rows(read, found), most, most_bytes):
            found.requests += 1
            found.tokens += _tokens(pack)
    return found


def _rows(column: Column, found: Texts) -> Iterator[tuple[int, str, int]]:
    for block in column.blocks():
        found.survey.take(block, _SHOWN)
        for row, (text, size) in enumerate(zip(block.texts, block.sizes, strict=True), block.start):
            if isinstance(text, Unusable):
                continue
            tokens = -(-size // _BYTES_PER_TOKEN)
            found.longest = max(found.longest, tokens)
            found.too_long += found.most_tokens is not None and tokens > found.most_tokens
            yield row, text, size


def _tokens(pack: Pack) -> int:
    return sum(-(-len(text.encode(errors="surrogatepass")) // _BYTES_PER_TOKEN) for text in pack.texts)


def job_of(file: str) -> tuple[Place, State] | None:
    """The job that made or makes this file, if it is one of embeddings."""
    place = Place.of(file)
    with refusing():
        state = look(place)
    return None if state is None else (place, state)


def facts_of(place: Place, state: State, prices: Prices) -> dict[str, Any]:
    """How a job stands, by its journal."""
    model = state.job.get("model")
    price = prices._per_token(model, for_budget=False)
    is_made = state.end is not None and not state.todo and place.output.exists()
    return {
        "output": str(place.output),
        "state": "complete" if is_made else "incomplete",
        "rows": len(state.status),
        "embedded": state.done,
        "failed": state.failed,
        "to_do": state.todo,
        "error_codes": dict(Counter(code for code, _ in state.failures.values())),
        "model": model,
        "dimensions": state.size,
        "requests": state.requests,
        "tokens": state.tokens,
        "rows_not_counted": state.uncounted,
        "cost_usd": None if price is None or state.uncounted else state.tokens * price[0],
    }


def show_job(place: Place, state: State, prices: Prices) -> None:
    """The same for people."""
    facts = facts_of(place, state, prices)
    outcomes = [("embedded", state.done), ("failed", state.failed), ("to do", state.todo)]
    _table.show(_table.bars(outcomes))
    codes = Counter(code for code, _ in state.failures.values())
    if codes:
        _table.show([("errors", "")])
        _table.show(_table.bars(codes.most_common(_SHOWN)))
    goes_on = "incomplete: the same command again goes on from here"
    vectors = f"{state.done:,} x {state.size}, {quantity(state.done * state.size * 4)} bytes"
    tokens = quantity(state.tokens)
    rows = [
        ("state", "complete" if facts["state"] == "complete" else goes_on),
        ("model", facts["model"]),
        ("vectors", vectors),
        ("requests", f"{state.requests:,}"),
        ("tokens", f"{tokens}, not counted for {state.uncounted:,} rows" if state.uncounted else tokens),
        ("cost", "unknown (--prices FILE)" if facts["cost_usd"] is None else dollars(facts["cost_usd"])),
    ]
    _table.show(rows)
