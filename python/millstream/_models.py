"""``client.models``, named as in openai-python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream._bridge import block, wait

if TYPE_CHECKING:
    from millstream._client import AsyncClient, Client
    from millstream.types import ModelList, Record


class AsyncModels:
    """``client.models``."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> ModelList:
        """The models that the server offers.

        Raises:
            APIError: No answer after every retry.
        """
        return _model_list(await wait(self._client._native.models))


class Models:
    """``client.models``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> ModelList:
        """The models that the server offers.

        Raises:
            APIError: No answer after every retry.
        """
        return _model_list(block(self._client._native.models))


def _model_list(models: list[tuple[str, int, str, Record]]) -> ModelList:
    from millstream.types import Model, ModelList

    return ModelList([Model(*each) for each in models])
