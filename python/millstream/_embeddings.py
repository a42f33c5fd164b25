"""``client.embeddings``, named as in openai-python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from millstream._arguments import check
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._raw import AsyncWithRawResponse, WithRawResponse
from millstream._settings import call_cache, hide
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream._client import AsyncClient, Client
    from millstream._config import Timeout
    from millstream._millstream import CreateEmbeddingResponse

Input = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""A text, several, the tokens of one, or those of several."""


class AsyncEmbeddings:
    """``client.embeddings``."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> AsyncWithRawResponse[CreateEmbeddingResponse]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return AsyncWithRawResponse(self.create)

    async def create(
        self,
        *,
        input: Input,  # noqa: A002 - OpenAI's name
        model: str | None = None,
        dimensions: int | None = None,
        encoding_format: str | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> CreateEmbeddingResponse:
        """Ask for the embeddings of texts, as in openai-python.

        The vectors are lists of floats, whatever form they travel in, and in the order of the inputs.

        Args:
            input: A text, a list of them, a list of tokens, or a list of such lists.
            model: Model to ask. Default: the client's.
            dimensions: Numbers of each vector, if the model leaves a choice.
            encoding_format: The form that is asked for: ``"base64"``, a quarter of the bytes, or ``"float"``, which
                every server knows. Either is read, whatever was asked. Default ``"base64"``, as in openai-python.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields.
            **params: Request fields, sent untouched.

        Returns:
            One embedding for each input.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: An input has no embedding, or two.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = _fields(input, dimensions, encoding_format, params)
        options = self._client._post_options(
            "embeddings",
            model,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            fields,
            extra_body,
            caching=call_cache(cache, refresh, sample_index),
        )
        return await self._client._ask(options, self._client._native.embeddings, options, _count(input))


class Embeddings:
    """``client.embeddings``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> WithRawResponse[CreateEmbeddingResponse]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return WithRawResponse(self.create)

    def create(
        self,
        *,
        input: Input,  # noqa: A002 - OpenAI's name
        model: str | None = None,
        dimensions: int | None = None,
        encoding_format: str | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> CreateEmbeddingResponse:
        """Ask for the embeddings of texts, as in openai-python.

        The vectors are lists of floats, whatever form they travel in, and in the order of the inputs.

        Args:
            input: A text, a list of them, a list of tokens, or a list of such lists.
            model: Model to ask. Default: the client's.
            dimensions: Numbers of each vector, if the model leaves a choice.
            encoding_format: The form that is asked for: ``"base64"``, a quarter of the bytes, or ``"float"``, which
                every server knows. Either is read, whatever was asked. Default ``"base64"``, as in openai-python.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields.
            **params: Request fields, sent untouched.

        Returns:
            One embedding for each input.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: An input has no embedding, or two.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = _fields(input, dimensions, encoding_format, params)
        options = self._client._post_options(
            "embeddings",
            model,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            fields,
            extra_body,
            caching=call_cache(cache, refresh, sample_index),
        )
        return self._client._ask(options, self._client._native.embeddings, options, _count(input))


def _fields(
    input: Input,  # noqa: A002
    dimensions: int | None,
    encoding_format: str | None,
    params: dict[str, Any],
) -> dict[str, Any]:
    check({"dimensions": dimensions, "encoding_format": encoding_format})
    if not isinstance(input, (str, list, tuple)):
        raise TypeError(f"input must be a str or a list, not {type(input).__name__}")
    if not input:
        raise ConfigurationError("input is empty")
    fields = {"input": input, "encoding_format": encoding_format or "base64", **params}
    return fields if dimensions is None else {**fields, "dimensions": dimensions}


def _count(input: Input) -> int:  # noqa: A002
    """How many texts; a list of numbers is one."""
    return 1 if isinstance(input, str) or isinstance(input[0], int) else len(input)
