"""Embedding, sentiment, summary and entities of one text, all asked at once: `client.gather`.

Without arguments a small language model on this machine answers. For a provider, with its key in `OPENAI_API_KEY`:

    python examples/several_services.py --base-url https://api.openai.com/v1 --model gpt-4o-mini
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from model import add_arguments, client_for, embedder_for

if TYPE_CHECKING:
    from millstream import AsyncClient

TEXT = (
    "On Monday Maria Keller, the mayor of Graz, opened the new tram line to the airport, two years late. "
    "Passengers were delighted: the ride takes twelve minutes and costs three euros."
)


@dataclass
class Sentiment:
    """How the text feels."""

    sentiment: Literal["positive", "negative", "neutral"]


@dataclass
class Entities:
    """Whom and where it is about."""

    person: str
    place: str


async def ask_all(client: AsyncClient, embedder: AsyncClient, text: str) -> dict[str, Any]:
    """What each service says, or its error: one that fails does not disturb the others."""
    return await client.gather(
        {
            "embedding": embedder.embeddings.create(input=text),
            "sentiment": client.complete(f"What is the sentiment of this text?\n\n{text}", response_model=Sentiment),
            "summary": client.complete(f"Sum up in one sentence:\n\n{text}", max_tokens=40),
            "entities": client.complete(
                f"Who is the person in this text, and what is the place?\n\n{text}", response_model=Entities
            ),
        },
        return_exceptions=True,
    )


async def main() -> int:
    parser = argparse.ArgumentParser(description="Ask several things about one text at once.")
    add_arguments(parser)
    parser.add_argument("--embedding-model", default="text-embedding-3-small", help="with --base-url")
    parser.add_argument("--text", default=TEXT)
    options = parser.parse_args()
    async with client_for(options) as client, embedder_for(options) as embedder:
        answers = await ask_all(client.with_options(timeout=120), embedder, options.text)
    if not isinstance(answers["embedding"], Exception):
        vector = answers["embedding"].data[0].embedding
        answers["embedding"] = f"{len(vector)} numbers: {vector[0]:.3f}, {vector[1]:.3f}, ..."
    for name, answer in answers.items():
        print(f"{name:10} {answer!r}")
    return any(isinstance(answer, Exception) for answer in answers.values())


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
