"""``client.chat.completions``, named as in openai-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, overload

from millstream._millstream import ChatMessage
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._raw import AsyncWithRawResponse, WithRawResponse
from millstream._settings import call_cache, hide
from millstream._stream import AsyncStream, Stream

if TYPE_CHECKING:
    from millstream._client import AsyncClient, Client
    from millstream._config import Timeout
    from millstream._millstream import ChatCompletion, ChatCompletionChunk
    from millstream._structured import ResponseModel
    from millstream.types import ParsedChatCompletion, ParsedMessage

T = TypeVar("T")

Message = Union[Mapping[str, Any], ChatMessage, "ParsedMessage[Any]"]
"""One chat message: ``{"role": "user", "content": "..."}``, or an answer's ``message``."""


class AsyncChat:
    """``client.chat``."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def completions(self) -> AsyncCompletions:
        """Chat completions."""
        return AsyncCompletions(self._client)


class AsyncCompletions:
    """``client.chat.completions``."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> AsyncWithRawResponse[ChatCompletion]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return AsyncWithRawResponse(self.create)

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> AsyncStream[ChatCompletionChunk]: ...

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...

    async def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Ask for a chat completion, as in openai-python.

        Args:
            messages: The conversation; an answer's ``message`` may go in as it is.
            stream: Return once the first piece is there, and read the others as they come. The tokens are counted in
                any case (``stream.usage``); the chunk that only counts them is handed out if
                ``stream_options={"include_usage": True}`` asks for it.
            model: Model to ask. Default: the client's.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields, as openai-python wants them; here they may as well stand in
                ``params``.
            **params: Request fields, sent untouched.

        Returns:
            The whole answer; with ``stream`` a stream of its chunks.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._client._options(
            None,
            model,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            extra_body=extra_body,
            caching=call_cache(cache, refresh, sample_index),
        )
        if not stream:
            return await self._client._ask(
                options, self._client._native.chat, _messages(messages), None, options, text_only=False
            )
        native = await self._client._open(
            options,
            self._client._native.chat_stream,
            _messages(messages),
            None,
            options,
            text_only=False,
            with_usage=_wants_usage(params, extra_body),
        )
        return AsyncStream(native)

    @overload
    async def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: ResponseModel[T],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[T]: ...

    @overload
    async def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: Mapping[str, Any],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[Any]: ...

    async def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: ResponseModel[Any] | Mapping[str, Any],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[Any]:
        """Ask for a chat completion and read it as a value of a type, as in openai-python.

        Args:
            messages: The conversation; an answer's ``message`` may go in as it is.
            response_format: The type: a pydantic model, a dataclass, a TypedDict, a JSON schema as a mapping (then the
                value is parsed JSON), or a `ResponseFormat`. See ``docs/structured-output.md``.
            validation_retries: How often to ask again, with the fault, when the answer is not of that type. Each is a
                request of its own, with a ``timeout`` of its own. openai-python never does.
            model: Model to ask. Default: the client's.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: As in `create`.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields, as in `create`.
            **params: Request fields, sent untouched.

        Returns:
            The completion, with the value in ``choices[0].message.parsed``: None if the model refused
            (``message.refusal`` says why) or called tools instead.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
            APIResponseValidationError: No answer is of the type.
            LengthFinishReasonError: An answer was cut at its length limit.
            ContentFilterFinishReasonError: A filter cut an answer.
        """
        from millstream import _structured

        form = _structured.response_format(response_format)
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = form._fields({**params, **(extra_body or {})})
        options = self._client._options(
            None,
            model,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            extra_body=fields,
            caching=call_cache(cache, refresh, sample_index),
        )
        tries = _structured.Tries(_structured.parsed_of, form, _messages(messages), validation_retries)
        while tries.open:
            tries.take(
                await self._client._ask(
                    options, self._client._native.chat, tries.prompt, None, options, text_only=False
                )
            )
        return _structured.with_failed_tries(tries)


class Chat:
    """``client.chat``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def completions(self) -> Completions:
        """Chat completions."""
        return Completions(self._client)


class Completions:
    """``client.chat.completions``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> WithRawResponse[ChatCompletion]:
        """The same with the HTTP answer: status, headers, bytes, and `parse()` for the record."""
        return WithRawResponse(self.create)

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> Stream[ChatCompletionChunk]: ...

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...

    def create(
        self,
        *,
        messages: Sequence[Message],
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
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Ask for a chat completion, as in openai-python.

        Args:
            messages: The conversation; an answer's ``message`` may go in as it is.
            stream: Return once the first piece is there, and read the others as they come. The tokens are counted in
                any case (``stream.usage``); the chunk that only counts them is handed out if
                ``stream_options={"include_usage": True}`` asks for it.
            model: Model to ask. Default: the client's.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields, as openai-python wants them; here they may as well stand in
                ``params``.
            **params: Request fields, sent untouched.

        Returns:
            The whole answer; with ``stream`` a stream of its chunks.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._client._options(
            None,
            model,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            extra_body=extra_body,
            caching=call_cache(cache, refresh, sample_index),
        )
        if not stream:
            return self._client._ask(
                options, self._client._native.chat, _messages(messages), None, options, text_only=False
            )
        native = self._client._open(
            options,
            self._client._native.chat_stream,
            _messages(messages),
            None,
            options,
            text_only=False,
            with_usage=_wants_usage(params, extra_body),
        )
        return Stream(native)

    @overload
    def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: ResponseModel[T],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[T]: ...

    @overload
    def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: Mapping[str, Any],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[Any]: ...

    def parse(
        self,
        *,
        messages: Sequence[Message],
        response_format: ResponseModel[Any] | Mapping[str, Any],
        validation_retries: int = 1,
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
    ) -> ParsedChatCompletion[Any]:
        """Ask for a chat completion and read it as a value of a type, as in openai-python.

        Args:
            messages: The conversation; an answer's ``message`` may go in as it is.
            response_format: The type: a pydantic model, a dataclass, a TypedDict, a JSON schema as a mapping (then the
                value is parsed JSON), or a `ResponseFormat`. See ``docs/structured-output.md``.
            validation_retries: How often to ask again, with the fault, when the answer is not of that type. Each is a
                request of its own, with a ``timeout`` of its own. openai-python never does.
            model: Model to ask. Default: the client's.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: As in `create`.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            extra_body: Further request fields, as in `create`.
            **params: Request fields, sent untouched.

        Returns:
            The completion, with the value in ``choices[0].message.parsed``: None if the model refused
            (``message.refusal`` says why) or called tools instead.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
            APIResponseValidationError: No answer is of the type.
            LengthFinishReasonError: An answer was cut at its length limit.
            ContentFilterFinishReasonError: A filter cut an answer.
        """
        from millstream import _structured

        form = _structured.response_format(response_format)
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        fields = form._fields({**params, **(extra_body or {})})
        options = self._client._options(
            None,
            model,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            extra_body=fields,
            caching=call_cache(cache, refresh, sample_index),
        )
        tries = _structured.Tries(_structured.parsed_of, form, _messages(messages), validation_retries)
        while tries.open:
            tries.take(
                self._client._ask(options, self._client._native.chat, tries.prompt, None, options, text_only=False)
            )
        return _structured.with_failed_tries(tries)


def _messages(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str):
        raise TypeError('messages must be a list like [{"role": "user", "content": "..."}], not str')
    return messages


def _wants_usage(params: Mapping[str, Any], extra_body: Mapping[str, Any] | None) -> bool:
    options = {**params, **(extra_body or {})}.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))
