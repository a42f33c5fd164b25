"""Every Python block of the pages under ``docs`` runs as it stands, against a mock server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_readme import run

if TYPE_CHECKING:
    from millstream.testing import MockServer

pytestmark = pytest.mark.tree

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks() -> list[tuple[str, str]]:
    """Page and code of each block; none where the pages are not (pytest collects before it deselects)."""
    return [
        (page.name, block)
        for page in sorted(DOCS.glob("*.md"))
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    ]


def test_there_are_blocks_to_run() -> None:
    assert {page for page, _ in blocks()} >= {
        "batch-apis.md",
        "bulk.md",
        "cache.md",
        "concurrency.md",
        "keys.md",
        "limits.md",
        "migrating.md",
        "embeddings.md",
        "openai.md",
        "providers.md",
        "retries.md",
        "statistics.md",
        "streaming.md",
        "structured-output.md",
        "testing.md",
        "web.md",
    }


@pytest.mark.parametrize(("page", "block"), blocks())
def test_block_runs(page: str, block: str, tmp_path: Path, mock_server: MockServer) -> None:
    done = run(["-W", "error", "-c", block], tmp_path, mock_server)

    assert (done.returncode, done.stderr) == (0, ""), page
    assert done.stdout or "assert " in block
