"""``client.responses``, named as in openai-python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from millstream._millstream import Response
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._raw import AsyncWithRawResponse, WithRawResponse
from millstream._settings import call_cache, hide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream._client import AsyncClient, Client
    from millstream._config import Timeout
    from millstream._stream import AsyncEventStream, EventStream


class AsyncResponses:
    """``client.responses``."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> AsyncWithRawResponse[Response]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return AsyncWithRawResponse(self.create)

    @overload
    async def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] | None = None,
        model: str | None = None,
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
    ) -> Response: ...

    @overload
    async def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
        model: str | None = None,
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
    ) -> AsyncEventStream[Response]: ...

    @overload
    async def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: bool | None = None,
        model: str | None = None,
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
    ) -> Response | AsyncEventStream[Response]: ...

    async def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002 - OpenAI's name
        stream: bool | None = None,
        model: str | None = None,
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
    ) -> Response | AsyncEventStream[Response]:
        """Ask for a response, as in openai-python.

        Args:
            input: A text, or a list of items (messages, results of functions). None where ``prompt=`` has it.
            stream: Return once the first event is there, and read the others as they come.
            model: Model to ask. Default: the client's.
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
            The whole answer; with ``stream`` a stream of its events, whose ``response`` it is at the end.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = params if input is None else {"input": input, **params}
        if stream:
            fields["stream"] = True
        options = self._client._post_options(
            "responses",
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
        return await self._client._post_or_stream(options, "responses", Response, stream)


class Responses:
    """``client.responses``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> WithRawResponse[Response]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return WithRawResponse(self.create)

    @overload
    def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] | None = None,
        model: str | None = None,
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
    ) -> Response: ...

    @overload
    def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
        model: str | None = None,
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
    ) -> EventStream[Response]: ...

    @overload
    def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,
        stream: bool | None = None,
        model: str | None = None,
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
    ) -> Response | EventStream[Response]: ...

    def create(
        self,
        *,
        input: str | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002 - OpenAI's name
        stream: bool | None = None,
        model: str | None = None,
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
    ) -> Response | EventStream[Response]:
        """Ask for a response, as in openai-python.

        Args:
            input: A text, or a list of items (messages, results of functions). None where ``prompt=`` has it.
            stream: Return once the first event is there, and read the others as they come.
            model: Model to ask. Default: the client's.
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
            The whole answer; with ``stream`` a stream of its events, whose ``response`` it is at the end.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = params if input is None else {"input": input, **params}
        if stream:
            fields["stream"] = True
        options = self._client._post_options(
            "responses",
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
        return self._client._post_or_stream(options, "responses", Response, stream)
