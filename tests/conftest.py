"""Fixtures shared by the tests. `mock_server` comes from the wheel's own pytest plugin."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, Face
from millstream import AsyncClient, Client
from real_server import RealServer, unavailable_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream.testing import MockServer

    Make = Callable[..., Face]


@pytest.fixture(scope="session")
def real_server_available() -> None:
    """Skip where the packages are missing; fail if MILLSTREAM_REQUIRE_REAL=1, as `make test` sets."""
    if reason := unavailable_reason():
        message = f"no real server: {reason}; see CONTRIBUTING.md"
        if os.environ.get("MILLSTREAM_REQUIRE_REAL") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


@pytest.fixture(scope="session")
def real_server(real_server_available: None) -> Iterator[RealServer]:
    """One real server for the whole session. Do not stop or kill it; start your own for that."""
    with RealServer(parallel=4) as server:
        yield server


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, server, price or proxy of whoever runs the tests."""
    ours = ("MILLSTREAM_CACHE", "MILLSTREAM_CONFIG", "MILLSTREAM_PRICES", "MILLSTREAM_PROFILE")
    of_users = (*ours, "OPENAI_", "ANTHROPIC_", "MISTRAL_", "AZURE_OPENAI_")
    for name in list(os.environ):
        if name.startswith(of_users) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(params=[Client, AsyncClient], ids=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest, mock_server: MockServer) -> Iterator[Make]:
    """Makes clients of the mock server; the test runs once with `Client` and once with `AsyncClient`."""
    faces: list[Face] = []
    with asyncio.Runner() as runner:

        def make(**options: Any) -> Face:
            where = {} if "endpoints" in options else {"api_key": KEY, "base_url": mock_server.base_url}
            defaults = {**where, "model": "m", "timeout": 20}
            faces.append(Face(request.param(**{**defaults, **options}), runner))
            return faces[-1]

        yield make
        for face in faces:
            face.close()


@pytest.fixture
def face(make: Make) -> Face:
    """One client of the mock server, see `make`."""
    return make()
