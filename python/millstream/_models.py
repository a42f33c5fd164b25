"""``client.models``, named as in openai-python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream._not_given import NOT_GIVEN

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
        options = self._client._post_options(None, None, NOT_GIVEN, NOT_GIVEN, 0, None, None, {})
        return _model_list(await self._client._ask(options, self._client._native.models, options))


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
        options = self._client._post_options(None, None, NOT_GIVEN, NOT_GIVEN, 0, None, None, {})
        return _model_list(self._client._ask(options, self._client._native.models, options))


def _model_list(models: list[tuple[str, int, str, Record]]) -> ModelList:
    from millstream.types import Model, ModelList

    return ModelList([Model(*each) for each in models])
