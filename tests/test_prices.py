"""What a model costs: known ones from the table that is shipped, the user's own over it, and never a guess."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from millstream import ConfigurationError, Price, Prices

if TYPE_CHECKING:
    from pathlib import Path


def known(model: str, prices: Prices | None = None) -> Price:
    price = (prices or Prices()).of(model)
    assert price is not None, model
    return price


def test_the_shipped_table_is_dated_sourced_and_valid() -> None:
    table = json.loads(files("millstream").joinpath("prices.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", table["date"])
    assert Prices().date == table["date"]
    assert all(table["source"])
    assert "change" in table["about"]
    assert "MILLSTREAM_PRICES" in table["about"]
    assert len(table["models"]) > 50
    for model in table["models"]:
        assert known(model).input > 0
    vendors = {re.split(r"[-.\d]", model)[0] for model in table["models"]}
    assert {"gpt", "claude", "mistral"} <= vendors


def test_cost_is_in_dollars_per_million_tokens() -> None:
    assert Price(input=2.5, output=10).cost(1_000_000, 100_000) == pytest.approx(3.5)
    assert Price(input=2.5, output=10).cost(0, 0) == 0


@pytest.mark.parametrize(
    ("model", "as_if"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("openai:gpt-4o-mini", "gpt-4o-mini"),
        ("openai/gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("claude-opus-4-5@20251101", "claude-opus-4-5"),
        ("anthropic:claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("mistral/mistral-large-latest", "mistral-large-latest"),
    ],
)
def test_a_dated_or_prefixed_name_has_the_price_of_its_model(model: str, as_if: str) -> None:
    assert known(model) == known(as_if)


def test_a_version_with_a_price_of_its_own_keeps_it() -> None:
    assert known("gpt-4o-2024-05-13") != known("gpt-4o")


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-audio-preview",
        "gpt-4o-mini-search-preview-2025-03-11",
        "gpt-4",
        "gpt-40",
        "gpt",
        "ft:gpt-4o-2024-08-06:me::id",
        "mistral-large-2411",
        "mistralai/mistral-large-latest",
        "meta-llama/Llama-3-8B",
        "",
        None,
    ],
)
def test_what_is_not_known_is_none_and_never_a_neighbours_price(model: str | None) -> None:
    prices = Prices({"gpt-4": None})
    assert prices.of(model) is None


@pytest.mark.parametrize(
    "given",
    [Price(1, 2), {"input": 1, "output": 2}, (1, 2), [1, 2]],
    ids=lambda given: type(given).__name__,
)
def test_own_prices_go_before_the_table(given: Any) -> None:
    prices = Prices({"gpt-4o": given, "mine": given})
    assert known("gpt-4o", prices) == known("mine", prices) == known("gpt-4o-2024-08-06", prices) == Price(1, 2)
    assert known("gpt-4o-mini", prices) == known("gpt-4o-mini")


def test_the_longest_of_the_names_with_a_star_is_taken_and_a_whole_name_before_it() -> None:
    prices = Prices({"llama*": (1, 1), "llama-70b*": (2, 2), "llama-70b-chat": (3, 3), "*": (4, 4)})
    assert known("llama-8b", prices) == Price(1, 1)
    assert known("llama-70b-base", prices) == Price(2, 2)
    assert known("llama-70b-chat", prices) == Price(3, 3)
    assert known("other", prices) == Price(4, 4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '{"mine": {"input": 1, "output": 2}}'),
        ("p.json", '{"date": "2026-01-01", "models": {"mine": {"input": 1, "output": 2}}}'),
        ("p.toml", "mine = {input = 1, output = 2}"),
        ("p.toml", '[models]\n"mine" = [1, 2]'),
    ],
)
def test_own_prices_are_read_from_a_file_named_or_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert known("mine", Prices(path)) == known("mine", Prices(str(path))) == Price(1, 2)
    monkeypatch.setenv("MILLSTREAM_PRICES", str(path))
    assert known("mine") == Price(1, 2)
    assert known("mine", Prices({"mine": (5, 6)})) == Price(5, 6)


@pytest.mark.parametrize("price", [-1, float("nan"), float("inf"), "1", True, None])
def test_a_price_that_is_no_number_of_dollars_is_refused_by_its_models_name(price: Any) -> None:
    with pytest.raises(ConfigurationError, match="the price of 'mine'"):
        Prices({"mine": (price, 1)})
    with pytest.raises((ConfigurationError, TypeError), match="output"):
        Price(1, price)


@pytest.mark.parametrize("price", [3, "3", (1,), (1, 2, 3), {"input": 1}, {"input": 1, "outptu": 2}])
def test_a_price_of_another_form_is_refused_by_its_models_name(price: Any) -> None:
    with pytest.raises(ConfigurationError, match="the price of 'mine'"):
        Prices({"mine": price})


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.json", "{", "is not JSON"),
        ("p.json", "[1]", "must hold a mapping"),
        ("p.toml", "a = ", "is not TOML"),
        ("p.csv", "", ".json or a .toml"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, complaint: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"{re.escape(str(path))}.*{complaint}"):
        Prices(path)
    monkeypatch.setenv("MILLSTREAM_PRICES", str(path))
    with pytest.raises(ConfigurationError, match="MILLSTREAM_PRICES=.*" + complaint):
        Prices()


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Prices(tmp_path / "absent.json")
