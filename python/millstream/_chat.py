"""``client.chat.completions``, named as in openai-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union, overload

from millstream._bridge import wait
from millstream._millstream import ChatMessage
from millstream._not_given import NOT_GIVEN, NotGiven

if TYPE_CHECKING:
    from millstream._client import AsyncClient, Client
    from millstream._config import Timeout
    from millstream._millstream import ChatCompletion
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

    async def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> ChatCompletion:
        """Ask for a chat completion, as in openai-python.

        Args:
            messages: The conversation; an answer's ``message`` may go in as it is.
            model: Model to ask. Default: the client's.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for this request.
            extra_body: Further request fields, as openai-python wants them; here they may as well stand in
                ``params``.
            **params: Request fields, sent untouched.

        Returns:
            The whole answer.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry.
        """
        fields = {**params, **(extra_body or {})}
        options = self._client._options(model, None, timeout, queue_timeout, extra_headers, fields, priority)
        return await wait(self._client._native.chat, _messages(messages), None, options, text_only=False)

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
        fields = form._fields({**params, **(extra_body or {})})
        options = self._client._options(model, None, timeout, queue_timeout, extra_headers, fields, priority)
        tries = _structured.Tries(_structured.parsed_of, form, _messages(messages), validation_retries)
        while tries.open:
            tries.take(await wait(self._client._native.chat, tries.prompt, None, options, text_only=False))
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

    def create(
        self,
        *,
        messages: Sequence[Message],
        model: str | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> ChatCompletion:
        """Ask for a chat completion; see `AsyncCompletions.create`."""
        fields = {**params, **(extra_body or {})}
        options = self._client._options(model, None, timeout, queue_timeout, extra_headers, fields, priority)
        return self._client._native.chat(None, _messages(messages), None, options, text_only=False)

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
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> ParsedChatCompletion[Any]:
        """Ask for a chat completion and read it as a value of a type; see `AsyncCompletions.parse`."""
        from millstream import _structured

        form = _structured.response_format(response_format)
        fields = form._fields({**params, **(extra_body or {})})
        options = self._client._options(model, None, timeout, queue_timeout, extra_headers, fields, priority)
        tries = _structured.Tries(_structured.parsed_of, form, _messages(messages), validation_retries)
        while tries.open:
            tries.take(self._client._native.chat(None, tries.prompt, None, options, text_only=False))
        return _structured.with_failed_tries(tries)


def _messages(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str):
        raise TypeError('messages must be a list like [{"role": "user", "content": "..."}], not str')
    return messages
