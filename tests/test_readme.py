"""Every Python block of the README runs as it stands, against a mock server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from millstream.testing import MockServer

pytestmark = pytest.mark.tree

README = Path(__file__).resolve().parent.parent / "README.md"


def python_blocks() -> list[str]:
    """Blocks of the README, or none where the file is not (pytest collects before it deselects)."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run(arguments: list[str], folder: Path, server: MockServer) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_API_KEY": "sk-readme", "OPENAI_BASE_URL": server.base_url}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_readme_has_the_blocks_we_think_it_has() -> None:
    blocks = python_blocks()

    assert len(blocks) >= 5
    assert sum("def test_" in block for block in blocks) == 1


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("block", [block for block in python_blocks() if "def test_" not in block])
def test_block_runs(block: str, tmp_path: Path, mock_server: MockServer) -> None:
    done = run(["-W", "error", "-c", block], tmp_path, mock_server)

    assert (done.returncode, done.stderr) == (0, "")
    assert mock_server.requests  # it did talk to the server


@pytest.mark.parametrize("block", [block for block in python_blocks() if "def test_" in block])
def test_block_with_a_test_passes(block: str, tmp_path: Path, mock_server: MockServer) -> None:
    (tmp_path / "test_block.py").write_text(block, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider"], tmp_path, mock_server)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
