"""The examples run as they stand: against a mock server, and against a real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from millstream.testing import Answer

if TYPE_CHECKING:
    from millstream.testing import MockServer
    from real_server import RealServer

pytestmark = pytest.mark.tree

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

ANALYSIS = {"topic": "sport", "sentiment": "positive"}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=os.environ | {"OPENAI_API_KEY": "sk-example"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_articles_come_in_batches_with_progress_and_none_for_a_failed_one(
    mock_server: MockServer, tmp_path: Path
) -> None:
    mock_server.when("a poisoned one", Answer(status=400, body={"error": {"message": "no"}}, times=0))
    mock_server.script(Answer(text=json.dumps(ANALYSIS), times=0))
    articles = [f"Article {number}." for number in range(110)]
    articles[60] = "Article 60 is a poisoned one."
    (tmp_path / "articles.txt").write_text("\n".join(articles))

    where = ["--base-url", mock_server.base_url, "--model", "m", "--articles", str(tmp_path / "articles.txt")]
    done = run("articles.py", *where, "--pause", "0.3")

    assert done.returncode == 1
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith("article 61: ")
    assert "400 from 127.0.0.1: no" in complaint
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "50 of 110 articles, 0 failed",
        "100 of 110 articles, 1 failed",
        "110 of 110 articles, 1 failed",
    ]
    assert [line.rpartition("  ")[2] for line in lines[3:]] == [
        "None" if number == 60 else "Analysis(topic='sport', sentiment='positive')" for number in range(110)
    ]
    arrivals = sorted(request.arrived for request in mock_server.requests)
    assert len(arrivals) == 110
    for first in (50, 100):
        assert arrivals[first] - arrivals[first - 1] >= 0.3


def test_several_services_are_asked_at_once(mock_server: MockServer) -> None:
    mock_server.when("sentiment of this", Answer(text='{"sentiment": "positive"}', latency=0.3))
    mock_server.when("Sum up", Answer(text="A tram came.", latency=0.3))
    mock_server.when("Who is", Answer(text='{"person": "Maria Keller", "place": "Graz"}', latency=0.3))
    done = run("several_services.py", "--base-url", mock_server.base_url, "--model", "m")

    assert (done.returncode, done.stderr) == (0, "")
    embedding, *others = (line.split(None, 1) for line in done.stdout.splitlines())
    assert embedding[0] == "embedding"
    assert "numbers: " in embedding[1]
    assert others == [
        ["sentiment", "Sentiment(sentiment='positive')"],
        ["summary", "'A tram came.'"],
        ["entities", "Entities(person='Maria Keller', place='Graz')"],
    ]
    assert mock_server.stats.max_in_flight >= 3


def test_a_service_that_fails_does_not_disturb_the_others(mock_server: MockServer) -> None:
    mock_server.when("sentiment of this", Answer(status=400, body={}))
    mock_server.when("Who is", Answer(text='{"person": "Maria Keller", "place": "Graz"}'))
    done = run("several_services.py", "--base-url", mock_server.base_url, "--model", "m")

    assert (done.returncode, done.stderr) == (1, "")
    answers = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert answers["sentiment"].startswith("BadRequestError(")
    assert answers["entities"] == "Entities(person='Maria Keller', place='Graz')"


@pytest.mark.real
def test_articles_of_a_real_model(real_server: RealServer) -> None:
    done = run(
        "articles.py",
        *["--base-url", real_server.base_url, "--model", real_server.model, "--batch-size", "3", "--pause", "0"],
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 of 5 articles")
    assert lines[1].startswith("5 of 5 articles")
    assert sum("Analysis(topic=" in line for line in lines[2:]) >= 4


@pytest.mark.real
def test_several_services_of_a_real_model(real_server_available: None) -> None:
    done = run("several_services.py")

    assert (done.returncode, done.stderr) == (0, "")
    answers = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert list(answers) == ["embedding", "sentiment", "summary", "entities"]
    assert answers["embedding"].startswith("'576 numbers: ")
    assert answers["sentiment"].startswith("Sentiment(sentiment='")
    assert len(answers["summary"]) > 10
