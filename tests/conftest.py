"""Fixtures shared by the tests. `mock_server` comes from the wheel's own pytest plugin."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from real_server import RealServer, unavailable_reason

if TYPE_CHECKING:
    from collections.abc import Iterator


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
