"""`AsyncClient` and `Client`: the same engine awaited or blocked on.

Everything that decides anything is in `Base` or in the engine; the two faces only differ in how they wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

from millstream import _embed
from millstream._arguments import check
from millstream._base import Base
from millstream._bridge import block, wait
from millstream._chat import AsyncChat, Chat
from millstream._completions import AsyncTextCompletions, TextCompletions
from millstream._embeddings import AsyncEmbeddings
from millstream._embeddings import Embeddings as EmbeddingsOfOpenAI
from millstream._files import form_of, replacing
from millstream._models import AsyncModels, Models
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._prompts import checked_prompt, checked_prompts, kept
from millstream._responses import AsyncResponses, Responses
from millstream._settings import call_cache, hide
from millstream._stream import (
    AsyncEventStream,
    AsyncMergedStream,
    AsyncStream,
    EventStream,
    MergedStream,
    Stream,
)
from millstream.exceptions import APIError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Mapping,
    )
    from os import PathLike
    from types import TracebackType

    from millstream._config import CompletionConfig, Timeout
    from millstream._embed import EncodingFormat, OnError, TooLong
    from millstream._millstream import Completion, Embeddings, NativeStream, Pending, Reply, Response, _Options
    from millstream._prompts import Prompt
    from millstream._structured import ResponseModel
    from millstream.exceptions import MillstreamError

# Results are handed to Python in slices with a turn of the event loop between them: a million at once would stall it
# for a third of a second.
_SLICE = 4096

# To make a value of an answer takes about 10 microseconds and not one.
_READ_SLICE = 256

K = TypeVar("K")
R = TypeVar("R", "Completion", "Response")
T = TypeVar("T")
P = ParamSpec("P")

# Where a key's function must not wait.
_NO_WAITING = "give Client a function that does not wait, or use AsyncClient"


class AsyncClient(Base):
    """Any number of prompts through an OpenAI-compatible API, awaited.

    May be made at import time, before any event loop runs, and used from any number of loops and threads, one after
    another or at once. A context manager, but usable without: connections close with the client.
    """

    __slots__ = ()

    @overload
    async def complete(
        self,
        prompt: Prompt,
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> str: ...

    @overload
    async def complete(
        self,
        prompt: Prompt,
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> T: ...

    @overload
    async def complete(
        self,
        prompt: Prompt,
        *,
        response_model: Mapping[str, Any],
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> Any: ...

    async def complete(
        self,
        prompt: Prompt,
        *,
        response_model: ResponseModel[Any] | Mapping[str, Any] | None = None,
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> Any:
        """Ask one prompt.

        Args:
            prompt: A user message, or a list of messages.
            response_model: The type to return a value of: a pydantic model, a dataclass, a TypedDict, a JSON schema as
                a mapping (then parsed JSON is returned), or a `ResponseFormat`. See ``docs/structured-output.md``.
            validation_retries: How often to ask again, with the fault, when the answer is not of that type. Each is a
                request of its own, with a ``timeout`` of its own.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
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
            **params: Request fields (``temperature=``, ``max_tokens=``, a server's own), sent untouched.

        Returns:
            The answer's text; empty if the model refused or called tools instead. With ``response_model`` a value of
            that type.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry; the class says why, see `millstream.exceptions`.
            APIResponseValidationError: With ``response_model``: no answer is of the type.
            LengthFinishReasonError: With ``response_model``: the answer was cut at its length limit.
            ContentFilterFinishReasonError: With ``response_model``: a filter cut the answer.
            RefusalError: With ``response_model``: the model refused.
            InputTooLargeError: The request is larger than the rate limiter's whole minute.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        if response_model is None:
            options = self._options(
                system,
                model,
                config,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                params,
                caching=call_cache(cache, refresh, sample_index),
            )
            return await self._ask(options, self._native.chat, prompt, system, options, text_only=True)
        from millstream._structured import Tries, response_format, value_of

        form = response_format(response_model)
        params = form._fields(params)
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            caching=call_cache(cache, refresh, sample_index),
        )
        tries = Tries(value_of, form, checked_prompt(prompt), validation_retries)
        while tries.open:
            tries.take(await self._ask(options, self._native.chat, tries.prompt, system, options, text_only=False))
        return tries.result

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[str]: ...

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[str | MillstreamError]: ...

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[T]: ...

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[T | MillstreamError]: ...

    @overload
    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: Mapping[str, Any],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[Any]: ...

    async def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[Any] | Mapping[str, Any] | None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[Any]:
        """Ask many prompts at once; the answers come back in the prompts' order.

        Args:
            prompts: N prompts, each a user message or a list of messages. None gives none.
            response_model: The type to return values of, as in `complete`.
            validation_retries: How often to ask again for items whose answers are not of that type: once all are
                answered, these alone, in a batch of their own.
            system: A system message to put first in each.
            max_concurrent: Requests in flight at once. Default: the client's.
            return_exceptions: Put an item's error in its place and go on. Otherwise the first error is raised after
                the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item over all its attempts, without the waits for a place or a limit, or a
                `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds that an item may wait for a place or a limit from its turn on, a wait that a server
                asked for included; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            N texts, or values of ``response_model``; with ``return_exceptions`` the error where an item failed.

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: An item failed, without ``return_exceptions``; as in `complete` with ``response_model``.
        """
        import asyncio  # not at the top, see `millstream._bridge._running_loop`

        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        if response_model is not None:
            from millstream._structured import BatchTries, response_format

            form = response_format(response_model)
            params = form._fields(params)
            options = self._options(
                system,
                model,
                config,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                params,
                max_concurrent=max_concurrent,
                caching=call_cache(cache, refresh, sample_index),
            )
            batch = BatchTries(form, checked_prompts(prompts), validation_retries, keep_errors=return_exceptions)
            for asked in batch.rounds():
                if self._settings.token is not None:
                    await self._settings.token.ask_awaiting(options)
                outcomes = await wait(
                    self._native.batch_chat,
                    asked,
                    system,
                    options,
                    max_concurrent=max_concurrent,
                    stop_on_error=not return_exceptions,
                    text_only=False,
                )
                while len(outcomes):
                    batch.take(outcomes.take(_READ_SLICE))
                    await asyncio.sleep(0)
            return batch.results
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            max_concurrent=max_concurrent,
            caching=call_cache(cache, refresh, sample_index),
        )
        if self._settings.token is not None:
            await self._settings.token.ask_awaiting(options)
        outcomes = await wait(
            self._native.batch_chat,
            checked_prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
            text_only=True,
        )
        texts = outcomes.take(_SLICE)
        while len(outcomes):
            await asyncio.sleep(0)
            texts += outcomes.take(_SLICE)
        return texts

    def stream_complete(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> AsyncStream[str]:
        """Ask one prompt and read the answer as it comes.

        Nothing is sent before the stream is first read. An attempt that fails before its first piece is made again as
        other calls are; after it, a fault is an error.

        Args:
            prompt: A user message, or a list of messages.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds to the end of the stream over all attempts, or a `Timeout`, whose ``idle`` bounds the time
                between two pieces; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            An iterator of the text's pieces; afterwards it has the whole answer.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            StreamInterruptedError: While it is read: the stream ended too soon. ``partial`` has the text so far.
            APIError: While it is read: no answer, or the server reported an error in the middle of it.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            caching=call_cache(cache, refresh, sample_index),
        )
        native = self._native.chat_stream(prompt, system, options, text_only=True, with_usage=False)
        if self._settings.token is None:
            return AsyncStream(native)
        asked = kept(prompt)

        def start() -> Awaitable[NativeStream]:
            return self._open(
                options, self._native.chat_stream, asked, system, options, text_only=True, with_usage=False
            )

        return AsyncStream(native, start)

    @overload
    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> AsyncMergedStream[tuple[int, str]]: ...

    @overload
    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> AsyncMergedStream[tuple[int, str | MillstreamError]]: ...

    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> AsyncMergedStream[Any]:
        """Ask many prompts at once and read all answers as they come, merged into one stream.

        Args:
            prompts: N prompts, each a user message or a list of messages.
            system: A system message to put first in each.
            max_concurrent: Streams in flight at once. Default: the client's.
            return_exceptions: Hand out an item's error as its last piece and go on. Otherwise the first error is
                raised after the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item to its end over all its attempts, without the waits for a place or a limit,
                or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds that an item may wait for a place or a limit from its turn on, a wait that a server
                asked for included; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            An iterator of pairs: a prompt's index and a piece of its text (or, with ``return_exceptions``, its error).

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: While it is read: an item failed, without ``return_exceptions``.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            max_concurrent=max_concurrent,
            caching=call_cache(cache, refresh, sample_index),
        )
        token = self._settings.token
        asked = checked_prompts(prompts)
        if token is not None:
            asked = [kept(prompt) for prompt in asked]

        def native() -> NativeStream:
            return self._native.stream_many(
                asked, system, options, max_concurrent=max_concurrent, stop_on_error=not return_exceptions
            )

        if token is None:
            return AsyncMergedStream(native())

        async def start() -> NativeStream:
            await token.ask_awaiting(options)
            return native()

        return AsyncMergedStream(native(), start)

    async def gather(self, calls: Mapping[K, Awaitable[Any]], *, return_exceptions: bool = False) -> dict[K, Any]:
        """Make several calls of any kind at once: names to calls in, names to results out.

        Args:
            calls: A name for each call. With `AsyncClient` the calls are anything that can be awaited:
                ``client.complete(...)`` as it is, without ``await``. With `Client` they are functions without
                arguments, such as ``lambda: client.complete(...)``, and each runs in a thread of its own.
            return_exceptions: Put a failed call's error in its place. Otherwise the first error is raised after the
                others were aborted.

        Returns:
            What each call returned, by its name, in the order of ``calls``.

        Raises:
            TypeError: ``calls`` is not a mapping, or one of them is not a call.
            Exception: The first error of a call, as it is, without ``return_exceptions``.
        """
        from millstream._gather import gather

        return await gather(calls, return_exceptions)

    async def post(
        self,
        path: str,
        json: Mapping[str, Any] | None = None,
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
    ) -> Reply:
        """Post JSON to any path of the server, with limits, retries, keys and window as for every other call.

        Args:
            path: Below the base URL: ``"rerank"``. It may have a query.
            json: The body. Its ``model``, if it has one, is whose limits count.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature and the path.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path, "json": json})
        if json is not None and json.get("stream"):
            raise ConfigurationError("post() reads whole answers; leave stream out")
        options = self._post_options(
            None,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            json or {},
            caching=call_cache(cache, refresh, sample_index),
        )
        return await self._ask(options, self._native.post, path, options, "Reply")

    async def get(
        self,
        path: str,
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> Reply:
        """Get any path of the server, with limits, retries and keys as for every other call.

        Args:
            path: Below the base URL: ``"batches/batch_1"``. It may have a query.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        return await self._ask(options, self._native.get, path, options)

    async def upload(
        self,
        path: str,
        file: str | PathLike[str],
        *,
        fields: Mapping[str, str] | None = None,
        name: str = "file",
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> Reply:
        """Post a file to any path of the server, as ``multipart/form-data``.

        The file is read once and is in memory while it is sent. Every attempt carries the same ``Idempotency-Key``.

        Args:
            path: Below the base URL: ``"files"``.
            file: The file to send.
            fields: Text fields to send before it: ``{"purpose": "batch"}``.
            name: The name of the file's field.
            filename: The file's name as the server sees it. Default: its own.
            content_type: The type of its content.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid, or the file cannot be read; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        form = form_of(file, fields, name, filename, content_type)
        return await self._ask(options, self._native.upload, path, options, file, form, False)

    async def download(
        self,
        path: str,
        file: str | PathLike[str],
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> None:
        """Get any path of the server and write the answer, of any kind and size, to a file.

        It is written piece by piece to a file beside it, of which an attempt that breaks off leaves nothing, and takes
        its name when it is whole.

        Args:
            path: Below the base URL: ``"files/file-1/content"``. It may have a query.
            file: Where to write it, readable by you alone. One that is there is replaced.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Raises:
            ConfigurationError: An argument is not valid, or the file cannot be written.
            APIError: No answer after every retry.
            OSError: The file cannot be made.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        with replacing(file) as beside:
            await self._ask(options, self._native.download, path, options, beside)

    def _ask(
        self,
        options: _Options,
        start: Callable[Concatenate[Pending, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]:
        """`wait`; with a token where the key is a function."""
        token = self._settings.token
        if token is None:
            return wait(start, *args, **kwargs)
        return token.call_awaiting(options, lambda: wait(start, *args, **kwargs))

    async def _open(
        self, options: _Options, start: Callable[P, NativeStream], /, *args: P.args, **kwargs: P.kwargs
    ) -> NativeStream:
        """A stream whose first piece is there."""

        async def opened() -> NativeStream:
            native = start(*args, **kwargs)
            try:
                await wait(native.opened)
            except BaseException:
                # The exception's traceback holds this frame.
                native.close()
                raise
            return native

        token = self._settings.token
        return await (opened() if token is None else token.call_awaiting(options, opened))

    async def _post_or_stream(
        self, options: _Options, path: str, kind: type[R], stream: bool | None
    ) -> R | AsyncEventStream[R]:
        """The answer, a record of that kind, or the stream that adds up to one."""
        name: Any = kind.__name__
        post: Any = self._native.post
        if not stream:
            answer: R = await self._ask(options, post, path, options, name)
            return answer
        return AsyncEventStream(await self._open(options, self._native.post_stream, path, options, name))

    @property
    def chat(self) -> AsyncChat:
        """OpenAI's namespace: ``client.chat.completions.create(...)``."""
        return AsyncChat(self)

    @property
    def responses(self) -> AsyncResponses:
        """OpenAI's namespace: ``client.responses.create(...)``."""
        return AsyncResponses(self)

    @property
    def completions(self) -> AsyncTextCompletions:
        """OpenAI's namespace of text completions: ``client.completions.create(...)``."""
        return AsyncTextCompletions(self)

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        max_input_tokens: int | None = None,
        max_concurrent: int | None = None,
        encoding_format: EncodingFormat | None = None,
        too_long: TooLong = "error",
        count_tokens: Callable[[str], int] | None = None,
        dedupe: bool = True,
        on_error: OnError = "raise",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Embeddings:
        """Embed texts with as few HTTP requests as make sense.

        Args:
            texts: N strings, none empty. Order is kept.
            model: Model to ask. Default: the client's. No other stands in for it: its vectors would not compare.
            dimensions: Numbers of each vector, if the model leaves a choice; an error if the server gives others.
            truncate_dim: Keep only so many numbers of each (Matryoshka models) and bring them to length 1.
            normalize: Bring each vector to length 1.
            batch_size: Texts of one request. Default: what the server takes, by its documentation or its refusals, but
                spread over up to 16 requests of at least 128.
            max_batch_tokens: Tokens of one request, by estimate. Default: what the server takes (OpenAI 300,000).
            max_input_tokens: Tokens of one text. Default: what the server takes (OpenAI 8192), if that is known.
            max_concurrent: Requests in flight. Default: the client's window.
            encoding_format: Form to ask for. Default: ``"base64"``, a quarter of the bytes, until a server refuses it;
                then ``"float"``. Either is read, whatever was asked.
            too_long: What becomes of a text that is longer than the model takes: its error, its beginning, or the mean
                of its parts' vectors by their length, brought to length 1.
            count_tokens: The exact tokens of a text. Default: an estimate by its bytes, corrected by each answer.
            dedupe: Send equal texts once.
            on_error: What becomes of a text that has no vector: ``"raise"`` its error; ``"nan"`` a row of NaN and the
                error in ``.errors``, if it is the text's own fault; ``"return"`` the same whatever went wrong.
            timeout: Seconds for each request over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: Whether the client's cache is used, which has each text by itself. Default: if it has one.
            refresh: Ask for every text, and replace what the cache has of it.
            extra_body: Further request fields.
            **params: Request fields (``user=``, a server's own ``input_type=``), sent untouched.

        Returns:
            float32, shape (N, D); row i belongs to the i-th text. numpy, torch and pyarrow read it without a copy.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            InputTooLargeError: ``count_tokens`` says that a text is too long.
            APIError: A text has no vector; ``.index`` is its number.
            TypeError: ``texts`` is one string, or one of them is none.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        plan = _embed.plan(
            self,
            lambda fields: self._post_options(
                "embeddings",
                model,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                fields,
                extra_body,
                caching=call_cache(cache, refresh, None),
            ),
            dimensions=dimensions,
            truncate_dim=truncate_dim,
            normalize=normalize,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            max_input_tokens=max_input_tokens,
            max_concurrent=max_concurrent,
            encoding_format=encoding_format,
            too_long=too_long,
            count_tokens=count_tokens,
            dedupe=dedupe,
            on_error=on_error,
            params=params,
        )
        return await _embed.embed_awaiting(self, plan, texts)

    async def embed_one(self, text: str, **options: Any) -> memoryview[float]:
        """Embed one text.

        Args:
            text: What to embed.
            **options: As of `embed`.

        Returns:
            float32, one dimension: ``numpy.asarray`` reads it without a copy, ``.tolist()`` makes a list.

        Raises:
            APIError: As of `embed`.
            TypeError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        return (await self.embed([text], **options))[0]

    def embed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        page_size: int = 2048,
        model: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        max_input_tokens: int | None = None,
        max_concurrent: int | None = None,
        encoding_format: EncodingFormat | None = None,
        too_long: TooLong = "error",
        count_tokens: Callable[[str], int] | None = None,
        dedupe: bool = True,
        on_error: OnError = "raise",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> AsyncGenerator[Embeddings]:
        """Embed any number of texts, a page of rows at a time, in their order.

        Texts are read as pages are taken: at most four pages are asked for or lie ready, so memory does not grow with
        the number of texts. Leaving the loop early ends what is in flight.

        Args:
            texts: Strings, none empty, from an iterable; for `AsyncClient` also from an async one.
            page_size: Rows of a page. The last one may have fewer.
            model: Model to ask. Default: the client's. No other stands in for it: its vectors would not compare.
            dimensions: Numbers of each vector, if the model leaves a choice; an error if the server gives others.
            truncate_dim: Keep only so many numbers of each (Matryoshka models) and bring them to length 1.
            normalize: Bring each vector to length 1.
            batch_size: Texts of one request. Default: what the server takes, by its documentation or its refusals, but
                spread over up to 16 requests of at least 128.
            max_batch_tokens: Tokens of one request, by estimate. Default: what the server takes (OpenAI 300,000).
            max_input_tokens: Tokens of one text. Default: what the server takes (OpenAI 8192), if that is known.
            max_concurrent: Requests in flight. Default: the client's window.
            encoding_format: Form to ask for. Default: ``"base64"``, a quarter of the bytes, until a server refuses it;
                then ``"float"``. Either is read, whatever was asked.
            too_long: What becomes of a text that is longer than the model takes: its error, its beginning, or the mean
                of its parts' vectors by their length, brought to length 1.
            count_tokens: The exact tokens of a text. Default: an estimate by its bytes, corrected by each answer.
            dedupe: Send equal texts once.
            on_error: What becomes of a text that has no vector: ``"raise"`` its error; ``"nan"`` a row of NaN and the
                error in ``.errors``, if it is the text's own fault; ``"return"`` the same whatever went wrong.
            timeout: Seconds for each request over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: Whether the client's cache is used, which has each text by itself. Default: if it has one.
            refresh: Ask for every text, and replace what the cache has of it.
            extra_body: Further request fields.
            **params: Request fields (``user=``, a server's own ``input_type=``), sent untouched.

        Returns:
            Pages of rows, as of `embed`; ``page.start`` is the number of its first text.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            InputTooLargeError: ``count_tokens`` says that a text is too long.
            APIError: A text has no vector; ``.index`` is its number.
            TypeError: ``texts`` is one string, or one of them is none.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        plan = _embed.plan(
            self,
            lambda fields: self._post_options(
                "embeddings",
                model,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                fields,
                extra_body,
                caching=call_cache(cache, refresh, None),
            ),
            dimensions=dimensions,
            truncate_dim=truncate_dim,
            normalize=normalize,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            max_input_tokens=max_input_tokens,
            max_concurrent=max_concurrent,
            encoding_format=encoding_format,
            too_long=too_long,
            count_tokens=count_tokens,
            dedupe=dedupe,
            on_error=on_error,
            params=params,
        )
        _embed.check_texts(texts)
        check({"page_size": page_size}, _embed._KINDS)
        return _embed.pages_awaiting(self, plan, texts, page_size)

    @property
    def embeddings(self) -> AsyncEmbeddings:
        """OpenAI's namespace: ``client.embeddings.create(...)``."""
        return AsyncEmbeddings(self)

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

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> str: ...

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> T: ...

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        response_model: Mapping[str, Any],
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> Any: ...

    def complete(
        self,
        prompt: Prompt,
        *,
        response_model: ResponseModel[Any] | Mapping[str, Any] | None = None,
        validation_retries: int = 1,
        system: str | None = None,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> Any:
        """Ask one prompt.

        Args:
            prompt: A user message, or a list of messages.
            response_model: The type to return a value of: a pydantic model, a dataclass, a TypedDict, a JSON schema as
                a mapping (then parsed JSON is returned), or a `ResponseFormat`. See ``docs/structured-output.md``.
            validation_retries: How often to ask again, with the fault, when the answer is not of that type. Each is a
                request of its own, with a ``timeout`` of its own.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
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
            **params: Request fields (``temperature=``, ``max_tokens=``, a server's own), sent untouched.

        Returns:
            The answer's text; empty if the model refused or called tools instead. With ``response_model`` a value of
            that type.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: No answer after every retry; the class says why, see `millstream.exceptions`.
            APIResponseValidationError: With ``response_model``: no answer is of the type.
            LengthFinishReasonError: With ``response_model``: the answer was cut at its length limit.
            ContentFilterFinishReasonError: With ``response_model``: a filter cut the answer.
            RefusalError: With ``response_model``: the model refused.
            InputTooLargeError: The request is larger than the rate limiter's whole minute.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        if response_model is None:
            options = self._options(
                system,
                model,
                config,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                params,
                caching=call_cache(cache, refresh, sample_index),
            )
            return self._ask(options, self._native.chat, prompt, system, options, text_only=True)
        from millstream._structured import Tries, response_format, value_of

        form = response_format(response_model)
        params = form._fields(params)
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            caching=call_cache(cache, refresh, sample_index),
        )
        tries = Tries(value_of, form, checked_prompt(prompt), validation_retries)
        while tries.open:
            tries.take(self._ask(options, self._native.chat, tries.prompt, system, options, text_only=False))
        return tries.result

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[str]: ...

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[str | MillstreamError]: ...

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[T]: ...

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[T],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[T | MillstreamError]: ...

    @overload
    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: Mapping[str, Any],
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[Any]: ...

    def batch_complete(
        self,
        prompts: Iterable[Prompt],
        *,
        response_model: ResponseModel[Any] | Mapping[str, Any] | None = None,
        validation_retries: int = 1,
        system: str | None = None,
        max_concurrent: int | None = None,
        return_exceptions: bool = False,
        model: str | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> list[Any]:
        """Ask many prompts at once; the answers come back in the prompts' order.

        Args:
            prompts: N prompts, each a user message or a list of messages. None gives none.
            response_model: The type to return values of, as in `complete`.
            validation_retries: How often to ask again for items whose answers are not of that type: once all are
                answered, these alone, in a batch of their own.
            system: A system message to put first in each.
            max_concurrent: Requests in flight at once. Default: the client's.
            return_exceptions: Put an item's error in its place and go on. Otherwise the first error is raised after
                the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item over all its attempts, without the waits for a place or a limit, or a
                `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds that an item may wait for a place or a limit from its turn on, a wait that a server
                asked for included; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower,
                first come, first served within one. Each step is worth 30 s of waiting, so nothing starves.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            N texts, or values of ``response_model``; with ``return_exceptions`` the error where an item failed.

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: An item failed, without ``return_exceptions``; as in `complete` with ``response_model``.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        if response_model is not None:
            from millstream._structured import BatchTries, response_format

            form = response_format(response_model)
            params = form._fields(params)
            options = self._options(
                system,
                model,
                config,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                params,
                max_concurrent=max_concurrent,
                caching=call_cache(cache, refresh, sample_index),
            )
            batch = BatchTries(form, checked_prompts(prompts), validation_retries, keep_errors=return_exceptions)
            for asked in batch.rounds():
                if self._settings.token is not None:
                    self._settings.token.ask(options, _NO_WAITING)
                outcomes = block(
                    self._native.batch_chat,
                    asked,
                    system,
                    options,
                    max_concurrent=max_concurrent,
                    stop_on_error=not return_exceptions,
                    text_only=False,
                )
                while len(outcomes):
                    batch.take(outcomes.take(_READ_SLICE))
            return batch.results
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            max_concurrent=max_concurrent,
            caching=call_cache(cache, refresh, sample_index),
        )
        if self._settings.token is not None:
            self._settings.token.ask(options, _NO_WAITING)
        outcomes = block(
            self._native.batch_chat,
            checked_prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
            text_only=True,
        )
        return outcomes.take(len(outcomes))

    def stream_complete(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> Stream[str]:
        """Ask one prompt and read the answer as it comes.

        Nothing is sent before the stream is first read. An attempt that fails before its first piece is made again as
        other calls are; after it, a fault is an error.

        Args:
            prompt: A user message, or a list of messages.
            system: A system message to put first.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds to the end of the stream over all attempts, or a `Timeout`, whose ``idle`` bounds the time
                between two pieces; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            An iterator of the text's pieces; afterwards it has the whole answer.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            StreamInterruptedError: While it is read: the stream ended too soon. ``partial`` has the text so far.
            APIError: While it is read: no answer, or the server reported an error in the middle of it.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            caching=call_cache(cache, refresh, sample_index),
        )
        native = self._native.chat_stream(prompt, system, options, text_only=True, with_usage=False)
        if self._settings.token is None:
            return Stream(native)
        asked = kept(prompt)

        def start() -> NativeStream:
            return self._open(
                options, self._native.chat_stream, asked, system, options, text_only=True, with_usage=False
            )

        return Stream(native, start)

    @overload
    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> MergedStream[tuple[int, str]]: ...

    @overload
    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> MergedStream[tuple[int, str | MillstreamError]]: ...

    def stream_many(
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
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
        **params: Any,
    ) -> MergedStream[Any]:
        """Ask many prompts at once and read all answers as they come, merged into one stream.

        Args:
            prompts: N prompts, each a user message or a list of messages.
            system: A system message to put first in each.
            max_concurrent: Streams in flight at once. Default: the client's.
            return_exceptions: Hand out an item's error as its last piece and go on. Otherwise the first error is
                raised after the others were aborted.
            model: Model to ask. Default: the client's.
            config: Request fields, over the client's own.
            timeout: Seconds for each item to its end over all its attempts, without the waits for a place or a limit,
                or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds that an item may wait for a place or a limit from its turn on, a wait that a server
                asked for included; None for no limit. Default: the client's.
            priority: Who goes first among those who wait for a place in flight or a rate limit: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.
            **params: Request fields, sent untouched.

        Returns:
            An iterator of pairs: a prompt's index and a piece of its text (or, with ``return_exceptions``, its error).

        Raises:
            TypeError: ``prompts`` is one string, or one of them is neither a string nor a list.
            ConfigurationError: An argument is not valid; nothing was sent.
            APIError: While it is read: an item failed, without ``return_exceptions``.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        options = self._options(
            system,
            model,
            config,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            params,
            max_concurrent=max_concurrent,
            caching=call_cache(cache, refresh, sample_index),
        )
        token = self._settings.token
        asked = checked_prompts(prompts)
        if token is not None:
            asked = [kept(prompt) for prompt in asked]

        def native() -> NativeStream:
            return self._native.stream_many(
                asked, system, options, max_concurrent=max_concurrent, stop_on_error=not return_exceptions
            )

        if token is None:
            return MergedStream(native())

        def start() -> NativeStream:
            token.ask(options, _NO_WAITING)
            return native()

        return MergedStream(native(), start)

    def gather(self, calls: Mapping[K, Callable[[], Any]], *, return_exceptions: bool = False) -> dict[K, Any]:
        """Make several calls of any kind at once: names to calls in, names to results out.

        Args:
            calls: A name for each call. With `AsyncClient` the calls are anything that can be awaited:
                ``client.complete(...)`` as it is, without ``await``. With `Client` they are functions without
                arguments, such as ``lambda: client.complete(...)``, and each runs in a thread of its own.
            return_exceptions: Put a failed call's error in its place. Otherwise the first error is raised after the
                others were aborted.

        Returns:
            What each call returned, by its name, in the order of ``calls``.

        Raises:
            TypeError: ``calls`` is not a mapping, or one of them is not a call.
            Exception: The first error of a call, as it is, without ``return_exceptions``.
        """
        from millstream._gather import gather_blocking

        return gather_blocking(calls, return_exceptions)

    def post(
        self,
        path: str,
        json: Mapping[str, Any] | None = None,
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        sample_index: int | None = None,
    ) -> Reply:
        """Post JSON to any path of the server, with limits, retries, keys and window as for every other call.

        Args:
            path: Below the base URL: ``"rerank"``. It may have a query.
            json: The body. Its ``model``, if it has one, is whose limits count.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: False: leave the client's cache out. True: use it, whatever the temperature and the path.
            refresh: Ask anew, and keep the answer in place of the one that is kept.
            sample_index: Which of several answers to one question is wanted, each kept apart. Default: the only one.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path, "json": json})
        if json is not None and json.get("stream"):
            raise ConfigurationError("post() reads whole answers; leave stream out")
        options = self._post_options(
            None,
            None,
            timeout,
            queue_timeout,
            priority,
            max_retries,
            hidden,
            json or {},
            caching=call_cache(cache, refresh, sample_index),
        )
        return self._ask(options, self._native.post, path, options, "Reply")

    def get(
        self,
        path: str,
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> Reply:
        """Get any path of the server, with limits, retries and keys as for every other call.

        Args:
            path: Below the base URL: ``"batches/batch_1"``. It may have a query.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        return self._ask(options, self._native.get, path, options)

    def upload(
        self,
        path: str,
        file: str | PathLike[str],
        *,
        fields: Mapping[str, str] | None = None,
        name: str = "file",
        filename: str | None = None,
        content_type: str = "application/octet-stream",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> Reply:
        """Post a file to any path of the server, as ``multipart/form-data``.

        The file is read once and is in memory while it is sent. Every attempt carries the same ``Idempotency-Key``.

        Args:
            path: Below the base URL: ``"files"``.
            file: The file to send.
            fields: Text fields to send before it: ``{"purpose": "batch"}``.
            name: The name of the file's field.
            filename: The file's name as the server sees it. Default: its own.
            content_type: The type of its content.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Returns:
            The answer, a JSON object, whose fields are attributes.

        Raises:
            ConfigurationError: An argument is not valid, or the file cannot be read; nothing was sent.
            APIResponseValidationError: The answer is no JSON object, or an error with status 200.
            APIError: No answer after every retry.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        form = form_of(file, fields, name, filename, content_type)
        return self._ask(options, self._native.upload, path, options, file, form, False)

    def download(
        self,
        path: str,
        file: str | PathLike[str],
        *,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
    ) -> None:
        """Get any path of the server and write the answer, of any kind and size, to a file.

        It is written piece by piece to a file beside it, of which an attempt that breaks off leaves nothing, and takes
        its name when it is whole.

        Args:
            path: Below the base URL: ``"files/file-1/content"``. It may have a query.
            file: Where to write it, readable by you alone. One that is there is replaced.
            timeout: Seconds over all attempts, or a `Timeout`; None for no limit. Default: the client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for this request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.

        Raises:
            ConfigurationError: An argument is not valid, or the file cannot be written.
            APIError: No answer after every retry.
            OSError: The file cannot be made.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        check({"path": path})
        options = self._post_options(None, None, timeout, queue_timeout, priority, max_retries, hidden, {})
        with replacing(file) as beside:
            self._ask(options, self._native.download, path, options, beside)

    def _ask(
        self,
        options: _Options,
        start: Callable[Concatenate[Pending | None, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """A native call; with a token where the key is a function."""
        token = self._settings.token
        if token is None:
            return block(start, *args, **kwargs)
        return token.call(options, lambda: block(start, *args, **kwargs))

    def _open(
        self, options: _Options, start: Callable[P, NativeStream], /, *args: P.args, **kwargs: P.kwargs
    ) -> NativeStream:
        """A stream whose first piece is there."""

        def opened() -> NativeStream:
            native = start(*args, **kwargs)
            try:
                block(native.opened)
            except BaseException:
                native.close()
                raise
            return native

        token = self._settings.token
        return opened() if token is None else token.call(options, opened)

    def _post_or_stream(self, options: _Options, path: str, kind: type[R], stream: bool | None) -> R | EventStream[R]:
        """The answer, a record of that kind, or the stream that adds up to one."""
        name: Any = kind.__name__
        post: Any = self._native.post
        if not stream:
            answer: R = self._ask(options, post, path, options, name)
            return answer
        return EventStream(self._open(options, self._native.post_stream, path, options, name))

    @property
    def chat(self) -> Chat:
        """OpenAI's namespace: ``client.chat.completions.create(...)``."""
        return Chat(self)

    @property
    def responses(self) -> Responses:
        """OpenAI's namespace: ``client.responses.create(...)``."""
        return Responses(self)

    @property
    def completions(self) -> TextCompletions:
        """OpenAI's namespace of text completions: ``client.completions.create(...)``."""
        return TextCompletions(self)

    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        max_input_tokens: int | None = None,
        max_concurrent: int | None = None,
        encoding_format: EncodingFormat | None = None,
        too_long: TooLong = "error",
        count_tokens: Callable[[str], int] | None = None,
        dedupe: bool = True,
        on_error: OnError = "raise",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Embeddings:
        """Embed texts with as few HTTP requests as make sense.

        Args:
            texts: N strings, none empty. Order is kept.
            model: Model to ask. Default: the client's. No other stands in for it: its vectors would not compare.
            dimensions: Numbers of each vector, if the model leaves a choice; an error if the server gives others.
            truncate_dim: Keep only so many numbers of each (Matryoshka models) and bring them to length 1.
            normalize: Bring each vector to length 1.
            batch_size: Texts of one request. Default: what the server takes, by its documentation or its refusals, but
                spread over up to 16 requests of at least 128.
            max_batch_tokens: Tokens of one request, by estimate. Default: what the server takes (OpenAI 300,000).
            max_input_tokens: Tokens of one text. Default: what the server takes (OpenAI 8192), if that is known.
            max_concurrent: Requests in flight. Default: the client's window.
            encoding_format: Form to ask for. Default: ``"base64"``, a quarter of the bytes, until a server refuses it;
                then ``"float"``. Either is read, whatever was asked.
            too_long: What becomes of a text that is longer than the model takes: its error, its beginning, or the mean
                of its parts' vectors by their length, brought to length 1.
            count_tokens: The exact tokens of a text. Default: an estimate by its bytes, corrected by each answer.
            dedupe: Send equal texts once.
            on_error: What becomes of a text that has no vector: ``"raise"`` its error; ``"nan"`` a row of NaN and the
                error in ``.errors``, if it is the text's own fault; ``"return"`` the same whatever went wrong.
            timeout: Seconds for each request over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: Whether the client's cache is used, which has each text by itself. Default: if it has one.
            refresh: Ask for every text, and replace what the cache has of it.
            extra_body: Further request fields.
            **params: Request fields (``user=``, a server's own ``input_type=``), sent untouched.

        Returns:
            float32, shape (N, D); row i belongs to the i-th text. numpy, torch and pyarrow read it without a copy.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            InputTooLargeError: ``count_tokens`` says that a text is too long.
            APIError: A text has no vector; ``.index`` is its number.
            TypeError: ``texts`` is one string, or one of them is none.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        plan = _embed.plan(
            self,
            lambda fields: self._post_options(
                "embeddings",
                model,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                fields,
                extra_body,
                caching=call_cache(cache, refresh, None),
            ),
            dimensions=dimensions,
            truncate_dim=truncate_dim,
            normalize=normalize,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            max_input_tokens=max_input_tokens,
            max_concurrent=max_concurrent,
            encoding_format=encoding_format,
            too_long=too_long,
            count_tokens=count_tokens,
            dedupe=dedupe,
            on_error=on_error,
            params=params,
        )
        return _embed.embed(self, plan, texts)

    def embed_one(self, text: str, **options: Any) -> memoryview[float]:
        """Embed one text.

        Args:
            text: What to embed.
            **options: As of `embed`.

        Returns:
            float32, one dimension: ``numpy.asarray`` reads it without a copy, ``.tolist()`` makes a list.

        Raises:
            APIError: As of `embed`.
            TypeError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        return (self.embed([text], **options))[0]

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        page_size: int = 2048,
        model: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        max_input_tokens: int | None = None,
        max_concurrent: int | None = None,
        encoding_format: EncodingFormat | None = None,
        too_long: TooLong = "error",
        count_tokens: Callable[[str], int] | None = None,
        dedupe: bool = True,
        on_error: OnError = "raise",
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        priority: int = 0,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, object] | None = None,
        max_retries: int | None = None,
        cache: bool | None = None,
        refresh: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> Generator[Embeddings]:
        """Embed any number of texts, a page of rows at a time, in their order.

        Texts are read as pages are taken: at most four pages are asked for or lie ready, so memory does not grow with
        the number of texts. Leaving the loop early ends what is in flight.

        Args:
            texts: Strings, none empty, from an iterable; for `AsyncClient` also from an async one.
            page_size: Rows of a page. The last one may have fewer.
            model: Model to ask. Default: the client's. No other stands in for it: its vectors would not compare.
            dimensions: Numbers of each vector, if the model leaves a choice; an error if the server gives others.
            truncate_dim: Keep only so many numbers of each (Matryoshka models) and bring them to length 1.
            normalize: Bring each vector to length 1.
            batch_size: Texts of one request. Default: what the server takes, by its documentation or its refusals, but
                spread over up to 16 requests of at least 128.
            max_batch_tokens: Tokens of one request, by estimate. Default: what the server takes (OpenAI 300,000).
            max_input_tokens: Tokens of one text. Default: what the server takes (OpenAI 8192), if that is known.
            max_concurrent: Requests in flight. Default: the client's window.
            encoding_format: Form to ask for. Default: ``"base64"``, a quarter of the bytes, until a server refuses it;
                then ``"float"``. Either is read, whatever was asked.
            too_long: What becomes of a text that is longer than the model takes: its error, its beginning, or the mean
                of its parts' vectors by their length, brought to length 1.
            count_tokens: The exact tokens of a text. Default: an estimate by its bytes, corrected by each answer.
            dedupe: Send equal texts once.
            on_error: What becomes of a text that has no vector: ``"raise"`` its error; ``"nan"`` a row of NaN and the
                error in ``.errors``, if it is the text's own fault; ``"return"`` the same whatever went wrong.
            timeout: Seconds for each request over all its attempts, or a `Timeout`; None for no limit. Default: the
                client's.
            queue_timeout: Seconds until the admission; None for no limit. Default: the client's.
            priority: Who goes first among those who wait: higher before lower.
            extra_headers: Headers for each request.
            extra_query: Parts of the URL's query, in place of the client's of the same names.
            max_retries: Attempts after the first. Default: the client's.
            cache: Whether the client's cache is used, which has each text by itself. Default: if it has one.
            refresh: Ask for every text, and replace what the cache has of it.
            extra_body: Further request fields.
            **params: Request fields (``user=``, a server's own ``input_type=``), sent untouched.

        Returns:
            Pages of rows, as of `embed`; ``page.start`` is the number of its first text.

        Raises:
            ConfigurationError: An argument is not valid; nothing was sent.
            InputTooLargeError: ``count_tokens`` says that a text is too long.
            APIError: A text has no vector; ``.index`` is its number.
            TypeError: ``texts`` is one string, or one of them is none.
        """
        hidden, extra_headers, extra_query = hide(extra_headers, extra_query), None, None
        plan = _embed.plan(
            self,
            lambda fields: self._post_options(
                "embeddings",
                model,
                timeout,
                queue_timeout,
                priority,
                max_retries,
                hidden,
                fields,
                extra_body,
                caching=call_cache(cache, refresh, None),
            ),
            dimensions=dimensions,
            truncate_dim=truncate_dim,
            normalize=normalize,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            max_input_tokens=max_input_tokens,
            max_concurrent=max_concurrent,
            encoding_format=encoding_format,
            too_long=too_long,
            count_tokens=count_tokens,
            dedupe=dedupe,
            on_error=on_error,
            params=params,
        )
        _embed.check_texts(texts)
        check({"page_size": page_size}, _embed._KINDS)
        return _embed.pages(self, plan, texts, page_size)

    @property
    def embeddings(self) -> EmbeddingsOfOpenAI:
        """OpenAI's namespace: ``client.embeddings.create(...)``."""
        return EmbeddingsOfOpenAI(self)

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
