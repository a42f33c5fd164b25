"""``client.chat.completions``, named as in openai-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from millstream._bridge import wait
from millstream._millstream import ChatMessage
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._settings import hide

if TYPE_CHECKING:
    from millstream._client import AsyncClient, Client
    from millstream._config import Timeout
    from millstream._millstream import ChatCompletion

Message = Mapping[str, Any] | ChatMessage
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
        headers, extra_headers = hide(extra_headers), None
        options = self._client._options(
            None, model, None, timeout, queue_timeout, priority, headers, params, extra_body=extra_body
        )
        return await wait(self._client._native.chat, _messages(messages), None, options, text_only=False)


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
        headers, extra_headers = hide(extra_headers), None
        options = self._client._options(
            None, model, None, timeout, queue_timeout, priority, headers, params, extra_body=extra_body
        )
        return self._client._native.chat(None, _messages(messages), None, options, text_only=False)


def _messages(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str):
        raise TypeError('messages must be a list like [{"role": "user", "content": "..."}], not str')
    return messages
