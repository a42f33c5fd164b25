"""What a model's tokens cost.

The table that is shipped (``prices.json``) is small and dated: list prices of well-known models of OpenAI, Anthropic
and Mistral. Prices change and contracts differ, so every one of them can be replaced. What is not known is None
everywhere, never 0: a sum that silently leaves something out is worse than none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from millstream.exceptions import ConfigurationError

_VARIABLE = "MILLSTREAM_PRICES"

# A vendor's name before the model's, as a client takes it.
_VENDOR = re.compile(r"^(?:openai|anthropic|mistral)[:/]")

# The versions of a model, in the vendors' unmistakable ways: gpt-4o-2024-08-06, claude-opus-4-5-20251101 (on Vertex
# with @). Mistral's -2512 is a version with a price of its own, so only those in the table are known.
_VERSION = re.compile(r"[-@](?:20\d\d-[01]\d-[0-3]\d|20\d\d[01]\d[0-3]\d)$")

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in US dollars per million.

    Attributes:
        input: Dollars per million tokens of prompts.
        output: Dollars per million tokens of answers.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, value in (("input", self.input), ("output", self.output)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be dollars per million tokens, not {type(value).__name__}")
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name} must be at least 0 dollars per million tokens, not {value}")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for so many tokens, at the full price: what a prompt cache saves is not in it.

        Args:
            prompt_tokens: Tokens of prompts.
            completion_tokens: Tokens of answers, those of reasoning included, as in ``usage``.
        """
        return (prompt_tokens * self.input + completion_tokens * self.output) / _MILLION


PriceTable: TypeAlias = Mapping[str, Price | Mapping[str, float] | Sequence[float] | None]


class Prices:
    """Prices by the model's name.

    >>> Prices().of("gpt-4o-mini").cost(prompt_tokens=1_000_000, completion_tokens=100_000)
    0.21

    The nearest word wins: ``own``, then the file that ``MILLSTREAM_PRICES`` names, then the table that is shipped (see
    `date`). A price is found by the model's name, without a vendor before it (``openai:``, ``mistral/``); else without
    a date behind it (``gpt-4o-2024-08-06`` is ``gpt-4o``); else by the longest of the names that end in ``*``, of which
    the shipped table has none. Nothing is guessed: ``gpt-4o-audio-preview`` is not ``gpt-4o``.

    Args:
        own: Prices over those of the table: a mapping of names to `Price`, ``{"input": 2.5, "output": 10}`` or ``(2.5,
            10)``, where None makes a price unknown; or the path of a ``.json`` or ``.toml`` file with such a mapping,
            at the top or under ``models``.

    Raises:
        ConfigurationError: A price is not a number of dollars, or a file is none of the formats.
        OSError: A file cannot be read.
    """

    __slots__ = ("_date", "_layers")

    def __init__(self, own: PriceTable | str | os.PathLike[str] | None = None) -> None:
        self._date, shipped = _shipped()
        self._layers = [shipped]
        if path := os.environ.get(_VARIABLE):
            self._layers.insert(0, _read(path, f"{_VARIABLE}={path}"))
        if isinstance(own, Mapping):
            self._layers.insert(0, _table(own, "prices"))
        elif isinstance(own, (str, os.PathLike)):
            self._layers.insert(0, _read(os.fspath(own), os.fspath(own)))
        elif own is not None:
            raise TypeError(f"own must be a mapping of prices, a path or None, not {type(own).__name__}")

    @classmethod
    def _given(cls, prices: Prices | PriceTable | str | os.PathLike[str] | None) -> Prices:
        """What an argument ``prices=`` means."""
        return prices if isinstance(prices, Prices) else cls(prices)

    def of(self, model: str | None) -> Price | None:
        """The price of a model; None if it is not known."""
        if not model:
            return None
        name = _VENDOR.sub("", model)
        names = dict.fromkeys((model, name, _VERSION.sub("", name)))
        for layer in self._layers:
            for each in names:
                if each in layer:
                    return layer[each]
            patterns = [key for key in layer if key.endswith("*") and name.startswith(key[:-1])]
            if patterns:
                return layer[max(patterns, key=len)]
        return None

    def _per_token(self, model: str | None, *, for_budget: bool) -> tuple[float, float] | None:
        """Dollars for one token of a prompt and one of an answer, as the engine counts them; None if not known.

        Raises:
            ConfigurationError: They are not known, and a budget is to be kept.
        """
        price = self.of(model)
        if price is not None:
            return price.input / _MILLION, price.output / _MILLION
        if for_budget:
            raise ConfigurationError(
                f"budget_usd needs the price of {model!r}, which is not known: give "
                f"prices={{{model!r}: (input, output)}} in dollars per million tokens"
            )
        return None

    @property
    def date(self) -> str:
        """The day of the table that is shipped, as ``2026-11-22``."""
        return self._date

    def __repr__(self) -> str:
        return f"Prices({sum(map(len, self._layers))} models, table of {self.date})"


@cache
def _shipped() -> tuple[str, dict[str, Price | None]]:
    import json
    from importlib.resources import files

    content = json.loads(files("millstream").joinpath("prices.json").read_text(encoding="utf-8"))
    return content["date"], _table(content["models"], "prices.json")


def _read(path: str, where: str) -> dict[str, Price | None]:
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".json", ".toml"):
        raise ConfigurationError(f"{where}: prices are read from a .json or a .toml file")
    with open(path, "rb") as file:
        content = file.read()
    try:
        if kind == ".json":
            import json

            table = json.loads(content)
        else:
            import tomllib

            table = tomllib.loads(content.decode())
    except ValueError as error:
        raise ConfigurationError(f"{where} is not {kind[1:].upper()}: {error}") from error
    if isinstance(table, dict) and isinstance(table.get("models"), dict) and "input" not in table["models"]:
        table = table["models"]
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must hold a mapping of models to prices")
    return _table(table, where)


def _table(table: Mapping[str, Any], where: str) -> dict[str, Price | None]:
    return {model: _price(price, f"{where}: the price of {model!r}") for model, price in table.items()}


def _price(price: Any, where: str) -> Price | None:
    if price is None or isinstance(price, Price):
        return price
    try:
        if isinstance(price, Mapping):
            return Price(**price)
        if isinstance(price, Sequence) and not isinstance(price, str):
            return Price(*price)
    except (TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{where} is not valid: {error}") from error
    raise ConfigurationError(f'{where} must be as {{"input": 2.5, "output": 10}} in dollars per million tokens')
