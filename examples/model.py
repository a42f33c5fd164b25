"""Where the answers of the examples come from: a small model on this machine, or the provider that is named."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from millstream import AsyncClient

# The server that the tests use too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from real_server import RealServer

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", help="an OpenAI-compatible API (default: a small model on this machine)")
    parser.add_argument("--model", help="model name; needed with --base-url")


@asynccontextmanager
async def embedder_for(options: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client for embeddings of the same provider; the small model's are a server of their own."""
    if options.base_url:
        async with AsyncClient(base_url=options.base_url, model=options.embedding_model) as client:
            yield client
    else:
        with RealServer(parallel=1, embeddings=True) as server:
            async with AsyncClient(api_key="unused", base_url=server.base_url, model=server.model) as client:
                yield client


@asynccontextmanager
async def client_for(options: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """A client of the server that the command line names; the key is in OPENAI_API_KEY."""
    if options.base_url:
        async with AsyncClient(base_url=options.base_url, model=options.model) as client:
            yield client
    else:
        with RealServer(parallel=4, context=1024) as server:
            async with AsyncClient(api_key="unused", base_url=server.base_url, model=server.model) as client:
                yield client
