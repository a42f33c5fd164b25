"""Every test that docs/reliability.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:tests|src)/[\w/]+\.(?:py|rs))::(\w+)`")


def named() -> list[tuple[str, str]]:
    """Path and name of each test; none where the page is not (pytest collects before it deselects)."""
    page = ROOT / "docs" / "reliability.md"
    return sorted(set(NAMED.findall(page.read_text(encoding="utf-8")))) if page.exists() else []


@pytest.mark.parametrize(("path", "name"), named())
def test_a_test_that_the_page_names_is_there(path: str, name: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^ *(?:async )?(?:def|fn) {name}\(", source, re.MULTILINE), f"{path} has no {name}"


def test_every_row_names_a_test() -> None:
    assert len(named()) > 80
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ")
        and not line.startswith(("| |", "| Promise", "| Rule", "| Set", "| HTTP", "| bodies", "| streams"))
    ]
    assert len(rows) > 60
    for row in rows:
        assert NAMED.search(row), row


def test_every_table_of_faults_is_named() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in (ROOT / "tests" / "faults").glob("*.py"))
    assert files
    for name in files:
        assert name in page, name
