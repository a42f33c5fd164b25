"""docs/benchmarks.md after a run of some scenarios: what they measured is replaced, the rest stays."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = "# Benchmarks\n\nNew.\n\n"
TARGETS = "| scenario | what | verdict |\n| -------- | ---- | ------- |\n"


@pytest.fixture
def document(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield import_module("document")
    sys.modules.pop("document")


def test_a_run_replaces_its_own_sections_and_rows_and_keeps_the_others(document):
    old = (
        "# Benchmarks\n\nOld.\n\n## Machine\n\n- cores: 1\n\n"
        f"## Targets\n\n{TARGETS}| fast | rate | met |\n| slow | gone | met |\n| slow | rate | met |\n\n"
        "## Fast (`fast`)\n\nfast then\n\n## Slow (`slow`)\n\nslow then\n\n## Notes\n\nby hand: `slow`\n"
    )
    new = (
        f"{INTRODUCTION}## Machine\n\n- cores: 2\n\n## Targets\n\n{TARGETS}| slow | rate | missed |\n\n"
        "## Slower (`slow`)\n\nslow now\n"
    )

    text = document.merged(old, new, ["slow", "fast"], [("slow", "rate"), ("fast", "rate")])

    table = "| scenario | what | verdict |\n| -------- | ---- | ------- |\n"
    assert text == (
        f"{INTRODUCTION}## Machine\n\n- cores: 2\n\n"
        f"## Targets\n\n{table}| slow     | rate | missed  |\n| fast     | rate | met     |\n\n"
        "## Slower (`slow`)\n\nslow now\n\n## Fast (`fast`)\n\nfast then\n\n## Notes\n\nby hand: `slow`\n"
    )


def test_the_document_itself_is_kept_whole(document):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    introduction, sections = document.sections(text)
    claims = [claim for claim in document.rows_of(sections["Targets"]) if claim[0] != "scenario"]
    assert claims

    assert document.merged(text, introduction, list(sections), claims) == text
