"""Analyse many articles: in batches of 50 with a pause between, with progress, and None for an article that failed.

millstream itself needs no batches: one `batch_complete` takes any number of prompts and keeps to the limits. They are
for who wants to store what there is so far, or to leave a shared server some air. Without arguments a small language
model on this machine reads `articles.txt`. For a provider, with its key in `OPENAI_API_KEY`:

    python examples/articles.py --base-url https://api.openai.com/v1 --model gpt-4o-mini --articles FILE
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from millstream import MillstreamError
from model import add_arguments, client_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from millstream import AsyncClient

HERE = Path(__file__).resolve().parent


@dataclass
class Analysis:
    """What is to be known of an article."""

    topic: Literal["business", "politics", "science", "sport", "other"]
    sentiment: Literal["positive", "negative", "neutral"]


async def analyse(
    client: AsyncClient, articles: Sequence[str], *, batch_size: int = 50, pause: float = 1.0
) -> AsyncIterator[list[Analysis | None]]:
    """The analyses of one batch after another, in order; None for an article that failed.

    Args:
        client: Whom to ask.
        articles: N texts.
        batch_size: Articles in a batch.
        pause: Seconds between two batches.
    """
    for first in range(0, len(articles), batch_size):
        if first:
            await asyncio.sleep(pause)
        prompts = [f"Classify this article.\n\n{article}" for article in articles[first : first + batch_size]]
        outcomes = await client.batch_complete(
            prompts, response_model=Analysis, return_exceptions=True, temperature=0, max_tokens=60
        )
        for number, outcome in enumerate(outcomes, first + 1):
            if isinstance(outcome, MillstreamError):
                print(f"article {number}: {outcome}", file=sys.stderr)
        yield [None if isinstance(outcome, MillstreamError) else outcome for outcome in outcomes]


async def main() -> int:
    parser = argparse.ArgumentParser(description="Analyse a file of articles.")
    add_arguments(parser)
    parser.add_argument("--articles", type=Path, default=HERE / "articles.txt", help="file, one article a line")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two batches")
    options = parser.parse_args()
    articles = [line for line in options.articles.read_text(encoding="utf-8").splitlines() if line.strip()]

    analyses: list[Analysis | None] = []
    async with client_for(options) as client:
        async for batch in analyse(client, articles, batch_size=options.batch_size, pause=options.pause):
            analyses += batch
            failed = analyses.count(None)
            print(f"{len(analyses)} of {len(articles)} articles, {failed} failed")
    for article, analysis in zip(articles, analyses, strict=True):
        print(f"{article[:50]:50}  {analysis}")
    return 1 if None in analyses else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
