"""The pytest plugin: fixture ``mock_server``.

Loaded by pytest wherever millstream is installed, so it imports late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.testing import MockServer


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "mock_server(**arguments): arguments of millstream.testing.MockServer for the fixture mock_server",
    )


@pytest.fixture
def mock_server(request: pytest.FixtureRequest) -> Iterator[MockServer]:
    """A `millstream.testing.MockServer` that listens, new for each test."""
    from millstream.testing import MockServer

    marker = request.node.get_closest_marker("mock_server")
    with MockServer(**(marker.kwargs if marker else {})) as server:
        yield server
