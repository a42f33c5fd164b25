"""`AsyncClient` and `Client`: the same engine awaited or blocked on.

Everything that decides anything is in `Base` or in the engine; the two faces only differ in how they wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from millstream._base import Base
from millstream._bridge import wait
from millstream._chat import AsyncChat, Chat, Message
from millstream._models import AsyncModels, Models
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._settings import hide
from millstream.exceptions import APIError

if TYPE_CHECKING:
    from types import TracebackType

    from millstream._config import CompletionConfig, Timeout
    from millstream._millstream import BatchOutcomes
    from millstream.exceptions import MillstreamError

Prompt = str | Sequence[Message]
"""A user message, or a list of messages."""

# Results are handed to Python in slices with a turn of the event loop between them: a million at once would stall it
# for a third of a second.
_SLICE = 4096


class AsyncClient(Base):
    """Any number of prompts through an OpenAI-compatible API, awaited.

    May be made at import time, before any event loop runs, and used from any number of loops and threads, one after
    another or at once. A context manager, but usable without: connections close with the client.
    """

    __slots__ = ()

    async def complete(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> str:
        """Ask one prompt.

        Args:
            prompt: A user message, or a list of messages.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for this request.
            **params: Request fields (``temperature=``, ``max_tokens=``, a server's own), sent untouched.

        Returns:
            The answer's text; empty if the model refused or called tools instead.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry; the class says why, see `millstream.exceptions`.
            InputTooLargeError: The request is larger than the rate limiter's whole minute.
        """
        headers, extra_headers = hide(extra_headers), None
        options = self._options(system, model, config, timeout, queue_timeout, priority, headers, params)
        return await wait(self._native.chat, prompt, system, options, text_only=True)

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[str]: ...

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[str | MillstreamError]: ...

    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[Any]:
        """Ask many prompts at once; the answers come back in the prompts' order.

        Args:
            prompts: N prompts, each a user message or a list of messages. None gives none.
            system: A system message to put first in each.
            max_concurrent: Requests in flight at once. Default: the client's.
            return_exceptions: Put an item's error in its place and go on. Otherwise the first error is raised after
                the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds from an item's turn to its admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for each request.
            **params: Request fields, sent untouched.

        Returns:
            N texts; with ``return_exceptions`` the error where an item failed.

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: An item failed, without ``return_exceptions``.
        """
        headers, extra_headers = hide(extra_headers), None
        options = self._options(
            system, model, config, timeout, queue_timeout, priority, headers, params, max_concurrent=max_concurrent
        )
        outcomes: BatchOutcomes = await wait(
            self._native.batch_chat,
            _prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
            text_only=True,
        )
        import asyncio  # not at the top, see `millstream._bridge._running_loop`

        texts = outcomes.take(_SLICE)
        while len(outcomes):
            await asyncio.sleep(0)
            texts += outcomes.take(_SLICE)
        return texts

    @property
    def chat(self) -> AsyncChat:
        """OpenAI's namespace: ``client.chat.completions.create(...)``."""
        return AsyncChat(self)

    @property
    def models(self) -> AsyncModels:
        """OpenAI's namespace: ``client.models.list()``."""
        return AsyncModels(self)

    async def test_connection(self) -> bool:
        """Whether the server answers with this key: it is asked for its models, which costs nothing.

        Returns:
            False if it cannot be reached, refuses the key, or has no list of models. ``models.list()`` says why.

        Raises:
            ClientClosedError: The client was closed.
        """
        try:
            await self.models.list()
        except APIError:
            return False
        return True

    async def aclose(self) -> None:
        """Refuse new calls and close idle connections; those in flight end by themselves. May be called again."""
        self._native.close()

    close = aclose

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Client(Base):
    """Any number of prompts through an OpenAI-compatible API, blocking.

    The same as `AsyncClient` without ``await``. While it waits the GIL is released, so other threads run; Ctrl-C
    ends a wait. It needs no event loop and may be used inside a running one, as in a notebook.
    """

    __slots__ = ()

    def complete(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> str:
        """Ask one prompt.

        Args:
            prompt: A user message, or a list of messages.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for this request.
            **params: Request fields (``temperature=``, ``max_tokens=``, a server's own), sent untouched.

        Returns:
            The answer's text; empty if the model refused or called tools instead.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry; the class says why, see `millstream.exceptions`.
            InputTooLargeError: The request is larger than the rate limiter's whole minute.
        """
        headers, extra_headers = hide(extra_headers), None
        options = self._options(system, model, config, timeout, queue_timeout, priority, headers, params)
        return self._native.chat(None, prompt, system, options, text_only=True)

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[str]: ...

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[str | MillstreamError]: ...

    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> list[Any]:
        """Ask many prompts at once; the answers come back in the prompts' order.

        Args:
            prompts: N prompts, each a user message or a list of messages. None gives none.
            system: A system message to put first in each.
            max_concurrent: Requests in flight at once. Default: the client's.
            return_exceptions: Put an item's error in its place and go on. Otherwise the first error is raised after
                the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds from an item's turn to its admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for each request.
            **params: Request fields, sent untouched.

        Returns:
            N texts; with ``return_exceptions`` the error where an item failed.

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: An item failed, without ``return_exceptions``.
        """
        headers, extra_headers = hide(extra_headers), None
        options = self._options(
            system, model, config, timeout, queue_timeout, priority, headers, params, max_concurrent=max_concurrent
        )
        outcomes: BatchOutcomes = self._native.batch_chat(
            None,
            _prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
            text_only=True,
        )
        return outcomes.take(len(outcomes))

    @property
    def chat(self) -> Chat:
        """OpenAI's namespace: ``client.chat.completions.create(...)``."""
        return Chat(self)

    @property
    def models(self) -> Models:
        """OpenAI's namespace: ``client.models.list()``."""
        return Models(self)

    def test_connection(self) -> bool:
        """Whether the server answers with this key: it is asked for its models, which costs nothing.

        Returns:
            False if it cannot be reached, refuses the key, or has no list of models. ``models.list()`` says why.

        Raises:
            ClientClosedError: The client was closed.
        """
        try:
            self.models.list()
        except APIError:
            return False
        return True

    def close(self) -> None:
        """Refuse new calls and close idle connections; those in flight end by themselves. May be called again."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be a list of prompts, not {type(prompts).__name__}; wrap one in a list")
    return prompts if isinstance(prompts, list) else list(prompts)
