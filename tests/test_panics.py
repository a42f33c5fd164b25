"""A fault of the engine's own is an `InternalError` like any other exception, and nothing else stops working."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from millstream import AsyncClient, Client, InternalError, _bridge, _millstream

if TYPE_CHECKING:
    from millstream.testing import MockServer


@pytest.mark.parametrize("in_engine", [True, False], ids=["in the engine", "while the result is made"])
def test_a_panic_is_our_own_exception(
    mock_server: MockServer, capfd: pytest.CaptureFixture[str], in_engine: bool
) -> None:
    client = Client(base_url=mock_server.base_url, api_key="sk-test", model="m")
    for _ in range(3):
        with pytest.raises(InternalError, match="please report it") as caught:
            _bridge.block(_millstream.panic, in_engine)
        assert isinstance(caught.value, Exception)
        assert client.complete("hi") == "echo: hi"
    assert "a panic for a test" in capfd.readouterr().err


@pytest.mark.parametrize("in_engine", [True, False], ids=["in the engine", "while the result is made"])
def test_a_panic_beside_other_calls_ends_its_own_alone(
    mock_server: MockServer, capfd: pytest.CaptureFixture[str], in_engine: bool
) -> None:
    async def main() -> None:
        async with AsyncClient(base_url=mock_server.base_url, api_key="sk-test", model="m") as client:
            calls = [client.complete(str(number)) for number in range(100)]
            panics = [_bridge.wait(_millstream.panic, in_engine) for _ in range(3)]
            results = await asyncio.gather(*calls[:50], *panics, *calls[50:], return_exceptions=True)
            assert [type(result) for result in results[50:53]] == [InternalError] * 3
            assert results[:50] + results[53:] == [f"echo: {number}" for number in range(100)]
            assert client.stats().in_flight == 0

    asyncio.run(main())
