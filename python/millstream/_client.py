"""`AsyncClient` and `Client`: the same engine awaited or blocked on.

Everything that decides anything is in `_Base` or in the engine; the two faces only differ in how they wait.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Self, overload

from millstream._bridge import wait
from millstream._millstream import ChatMessage, Endpoint, NativeClient
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream.exceptions import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from types import TracebackType

    from millstream._config import CompletionConfig, Timeout
    from millstream._limits import RateLimiter
    from millstream._millstream import BatchTexts, ChatCompletion, _Options
    from millstream._retry import RetryPolicy
    from millstream.types import ClientStats, ModelList

Message = Mapping[str, Any] | ChatMessage
"""One chat message: ``{"role": "user", "content": "..."}``, or an answer's ``message``."""

Prompt = str | Sequence[Message]
"""A user message, or a list of messages."""

OPENAI_BASE_URL = "https://api.openai.com/v1"

# Results are handed to Python in slices with a turn of the event loop between them: a million at once would stall it
# for a third of a second.
_SLICE = 4096


class _Secrets:
    """Key and headers on their way to the native client, so that no traceback with variables shows them."""

    __slots__ = ("headers", "keys")

    def __init__(self, key: str | Sequence[str] | None, headers: Mapping[str, str] | None) -> None:
        self.keys = None if key is None else [key] if isinstance(key, str) else list(key)
        self.headers = headers

    def authorize(self) -> bool:
        """Whether one of the headers can be meant to carry a key."""
        return any(word in str(name).lower() for name in self.headers or () for word in ("auth", "key", "token"))

    def check(self) -> None:
        """Apart from the constructor, whose variables show the keys in a traceback."""
        if self.keys is not None and len(set(self.keys)) < len(self.keys):
            raise ConfigurationError("api_key names the same key twice: its limits would be counted twice, too")


class _Settings(NamedTuple):
    """What a client was told, without its secrets: those are the native client's."""

    base_url: str
    inherit_key: bool
    model: str | None
    config: CompletionConfig | None
    timeout: float | Timeout | None
    connect_timeout: float | None
    queue_timeout: float | None
    retry: RetryPolicy | None
    max_retries: int | None
    idempotency_key: bool
    max_concurrency: int | Literal["auto"] | None
    rate_limiter: RateLimiter | None
    hedge_after: float | Literal["p95"] | None
    fallback_models: tuple[str, ...]
    http2: bool
    allow_http: bool

    def native(
        self, parent: NativeClient | None, secrets: _Secrets, endpoints: list[Endpoint] | None = None
    ) -> NativeClient:
        return NativeClient(
            parent=parent,
            base_url=self.base_url,
            endpoints=endpoints,
            api_keys=secrets.keys,
            inherit_key=self.inherit_key,
            headers=None if secrets.headers is None else _pairs(secrets.headers),
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
            queue_timeout=self.queue_timeout,
            retry=None if self.retry is None else self.retry._native(),
            max_retries=self.max_retries,
            idempotency_key=self.idempotency_key,
            max_concurrency=self.max_concurrency,
            rate_limiter=None if self.rate_limiter is None else self.rate_limiter._native,
            hedge_after=self.hedge_after,
            fallback_models=list(self.fallback_models),
            http2=self.http2,
            allow_http=self.allow_http,
        )


class _Base:
    """What both clients are."""

    __slots__ = ("__weakref__", "_native", "_settings")

    def __init__(
        self,
        *,
        api_key: str | Sequence[str] | None = None,
        base_url: str | None = None,
        endpoints: Sequence[Endpoint] | None = None,
        model: str | None = None,
        fallback_models: Sequence[str] = (),
        config: CompletionConfig | None = None,
        timeout: float | Timeout | None = 600.0,
        connect_timeout: float | None = 5.0,
        queue_timeout: float | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        idempotency_key: bool = True,
        max_concurrency: int | Literal["auto"] | None = None,
        rate_limiter: RateLimiter | None = None,
        hedge_after: float | Literal["p95"] | None = None,
        default_headers: Mapping[str, str] | None = None,
        http2: bool = False,
        allow_http: bool = False,
    ) -> None:
        """Make a client; no thread is started and nothing is sent before the first call.

        Args:
            api_key: Sent as ``Authorization: Bearer``. Default: ``OPENAI_API_KEY``, which is used only for OpenAI's
                own host or for the one in ``OPENAI_BASE_URL``, never for another. A server without keys needs none.
                Several keys: each has its own limits and breaker, every attempt goes by the readiest, and an item
                moves to another when its key fails. (Vendors limit accounts, so keys of one account share limits.)
            base_url: Where the API is, up to and with its ``/v1``. Default: ``OPENAI_BASE_URL``, else OpenAI's.
            endpoints: Several servers and keys, in place of ``base_url`` and ``api_key``.
            model: Model for calls that name none.
            fallback_models: Models to ask, in their order, when the one before has failed every attempt, is not
                there, or is out of quota.
            config: Request fields for calls that do not set them.
            timeout: Seconds that a request may take from its admission on (the wait for a place in flight and for
                the rate limit is not in it), over all attempts and the waits between them. None: no limit. Default
                600, as in openai-python. A `Timeout` limits single phases, too.
            connect_timeout: Seconds that a connection may take to be made. Default 5.
            queue_timeout: Seconds that a request may wait for its admission: for a place in flight and for the rate
                limit. An item of a batch begins to wait when its turn has come. Default: no limit.
            max_retries: Attempts after the first: short for ``retry=RetryPolicy(max_retries=...)``. Default 2, as in
                openai-python.
            retry: How often and when a failed attempt is made again.
            idempotency_key: Send an ``Idempotency-Key`` with every POST, the same over all attempts of one item, so
                that a server that knows it does the work once. One in your own headers stays as it is.
            max_concurrency: Requests in flight at once, by priority and then first come, first served. ``"auto"``,
                the default, starts at 64 and finds what the server takes, see ``docs/concurrency.md``; left out, the
                ``max_concurrent`` of a batch replaces it, while ``"auto"`` or a number given here always holds.
            rate_limiter: Requests and tokens per minute; may be shared with other clients. Limits that the server
                names in its headers are kept without it, for each key and model.
            hedge_after: Send a request a second time when it has taken so many seconds, or longer than 95 % of the
                last ones (``"p95"``); the first answer counts and the other is cancelled. Both may be billed. At
                most one request in twenty. Default: never.
            default_headers: Headers for every request. They may replace ``Authorization``, not ``Host`` or
                ``Content-Length``.
            http2: Offer HTTP/2 to https servers. Off by default, as in httpx: one HTTP/2 connection carries about a
                hundred requests at a time.
            allow_http: Send a key over plain ``http://`` to another machine. Off by default.

        Raises:
            ConfigurationError: An argument is not valid; its name is in the text.
        """
        secrets = _Secrets(api_key, default_headers)
        del api_key, default_headers
        secrets.check()
        if endpoints is not None and (base_url is not None or secrets.keys is not None):
            raise ConfigurationError("endpoints= names servers and keys itself; leave base_url= and api_key= out")
        environment_url = os.environ.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
        base_url = environment_url if base_url is None else str(base_url)
        key_from_environment = secrets.keys is None
        if endpoints is not None:
            endpoints = _endpoints(endpoints, environment_url, secrets)
            base_url = endpoints[0].base_url if endpoints else base_url
        elif key_from_environment:
            key = _environment_key(base_url, environment_url)
            secrets.keys = None if key is None else [key]
            del key
            if secrets.keys is None:
                _check_key_is_not_needed(base_url, secrets)
        self._settings = _Settings(
            base_url=base_url,
            # A key from the environment stays with the host that it is for.
            inherit_key=not key_from_environment,
            model=model,
            config=config,
            timeout=timeout,
            connect_timeout=connect_timeout,
            queue_timeout=queue_timeout,
            retry=retry,
            max_retries=max_retries,
            idempotency_key=idempotency_key,
            max_concurrency=max_concurrency,
            rate_limiter=rate_limiter,
            hedge_after=hedge_after,
            fallback_models=_names("fallback_models", fallback_models),
            http2=http2,
            allow_http=allow_http,
        )
        self._native = self._settings.native(None, secrets, endpoints)

    def with_options(
        self,
        *,
        api_key: str | Sequence[str] | None = None,
        base_url: str | None = None,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        config: CompletionConfig | None = None,
        timeout: float | Timeout | NotGiven | None = NOT_GIVEN,
        queue_timeout: float | NotGiven | None = NOT_GIVEN,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        idempotency_key: bool | None = None,
        max_concurrency: int | Literal["auto"] | None = None,
        rate_limiter: RateLimiter | NotGiven | None = NOT_GIVEN,
        hedge_after: float | Literal["p95"] | NotGiven | None = NOT_GIVEN,
        default_headers: Mapping[str, str] | None = None,
    ) -> Self:
        """A client that differs in what is given and shares the rest: pool, counters, window.

        The arguments are those of the constructor. A key from the environment does not follow to another host.
        """
        secrets = _Secrets(api_key, default_headers)
        del api_key, default_headers
        secrets.check()
        settings = self._settings
        if base_url is not None:
            base_url = str(base_url)
            same_host = _host(base_url) == _host(settings.base_url)
            settings = settings._replace(base_url=base_url)
            inherits = settings.inherit_key or same_host
        else:
            inherits = True
        changes: dict[str, Any] = {
            "model": model,
            "config": config,
            "retry": retry,
            "max_retries": max_retries,
            "idempotency_key": idempotency_key,
            "max_concurrency": max_concurrency,
            "fallback_models": None if fallback_models is None else _names("fallback_models", fallback_models),
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        if retry is not None:
            # It has a number of its own.
            changes["max_retries"] = max_retries
        if not isinstance(timeout, NotGiven):
            from dataclasses import replace

            from millstream._config import Timeout

            if isinstance(settings.timeout, Timeout) and not isinstance(timeout, Timeout):
                timeout = replace(settings.timeout, total=timeout)
            changes["timeout"] = timeout
        if not isinstance(queue_timeout, NotGiven):
            changes["queue_timeout"] = queue_timeout
        if not isinstance(rate_limiter, NotGiven):
            changes["rate_limiter"] = rate_limiter
        if not isinstance(hedge_after, NotGiven):
            changes["hedge_after"] = hedge_after
        settings = settings._replace(**changes)
        other = object.__new__(type(self))
        other._native = settings._replace(inherit_key=inherits).native(self._native, secrets)
        other._settings = settings._replace(inherit_key=settings.inherit_key or secrets.keys is not None)
        return other

    @property
    def base_url(self) -> str:
        """Where requests go."""
        return self._native.base_url

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._native.closed

    def stats(self) -> ClientStats:
        """What this client and those derived from it have done so far."""
        from millstream.types import ClientStats  # not at the top, see `millstream.__getattr__`

        return ClientStats._of(self._native.stats())

    def _options(
        self,
        model: str | None,
        config: CompletionConfig | None,
        timeout: float | Timeout | NotGiven | None,
        queue_timeout: float | NotGiven | None,
        extra_headers: Mapping[str, str] | None,
        params: dict[str, Any],
        priority: int = 0,
    ) -> _Options:
        """The request's fields; the nearest word wins: argument, call's config, client's config, client's model."""
        settings = self._settings
        fields = params
        if settings.config is not None or config is not None:
            sources = (source.to_dict() for source in (settings.config, config) if source is not None)
            fields = {name: value for source in (*sources, params) for name, value in source.items()}
        if fields:
            if fields.get("stream") is False:
                # What every call does anyway.
                del fields["stream"]
            for refused in _NOT_PARAMETERS.keys() & fields.keys():
                raise ConfigurationError(f"{refused}= is not a parameter of this call; {_NOT_PARAMETERS[refused]}")
            configured = fields.pop("model", None)
            model = configured if model is None else model
        model = settings.model if model is None else model
        if (
            model is not None
            and not fields
            and timeout is NOT_GIVEN
            and queue_timeout is NOT_GIVEN
            and extra_headers is None
            and priority == 0
        ):
            # Most calls are like that, and the engine has them ready.
            return model
        given = None if isinstance(timeout, NotGiven) else (timeout,)
        queue = None if isinstance(queue_timeout, NotGiven) else (queue_timeout,)
        return model, fields, given, None if extra_headers is None else _pairs(extra_headers), queue, priority

    def __repr__(self) -> str:
        if not hasattr(self, "_native"):
            # Its making was refused, and a traceback shows its variables.
            return f"<{type(self).__name__} that was not made>"
        return f"{type(self).__name__}(base_url={self.base_url!r}, model={self._settings.model!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds connections and a key, so it cannot be pickled; make one in each process"
        )


_NOT_PARAMETERS = {
    "stream": "this version has no streaming",
    "messages": "a list of messages is a prompt",
    "prompt": "it is the first argument",
    "prompts": "they are the first argument",
    "extra_body": "request fields stand in the call itself",
    # What belongs elsewhere would go to the server unseen.
    "max_concurrency": "it is the client's; a batch takes max_concurrent=",
    "max_concurrent": "only a batch takes it; a client takes max_concurrency=",
    "return_exceptions": "only a batch takes it",
    **dict.fromkeys(
        ("max_retries", "retry", "rate_limiter", "hedge_after", "base_url", "api_key", "fallback_models"),
        "it is the client's: give it to the client or to with_options()",
    ),
    **dict.fromkeys(("endpoints", "default_headers", "connect_timeout"), "it is the client's"),
}


def _host(url: str) -> tuple[str, str | None, int | None]:
    from urllib.parse import urlsplit  # not at the top: it would be a tenth of what importing millstream takes

    try:
        parts = urlsplit(url)
        host = parts.scheme, parts.hostname, parts.port
    except ValueError:
        # Not a URL, which the engine's own check says better.
        return "", url, None
    # The engine takes a backslash for a slash and may find another host than Python does: such a URL is like no other.
    return ("", url, None) if "\\" in url or parts.hostname is None else host


def _environment_key(base_url: str, environment_url: str) -> str | None:
    """The key of the environment, if that is for this host."""
    ours = _host(base_url) in (_host(environment_url), _host(OPENAI_BASE_URL))
    return os.environ.get("OPENAI_API_KEY") or None if ours else None


def _check_key_is_not_needed(base_url: str, secrets: _Secrets) -> None:
    if _host(base_url) == _host(OPENAI_BASE_URL) and not secrets.authorize():
        raise ConfigurationError("no API key: give api_key= or set OPENAI_API_KEY")


def _endpoints(endpoints: Sequence[Endpoint], environment_url: str, secrets: _Secrets) -> list[Endpoint]:
    for each in endpoints:
        if not isinstance(each, Endpoint):
            raise TypeError(f"endpoints must be a list of Endpoint, not of {type(each).__name__}")
    return [_with_environment_key(each, environment_url, secrets) for each in endpoints]


def _with_environment_key(endpoint: Endpoint, environment_url: str, secrets: _Secrets) -> Endpoint:
    if endpoint.has_key:
        return endpoint
    if _environment_key(endpoint.base_url, environment_url) is None:
        _check_key_is_not_needed(endpoint.base_url, secrets)
        return endpoint
    # Not by a variable, which a traceback would show.
    return endpoint._with_key(_environment_key(endpoint.base_url, environment_url) or "")


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a list of names, not str")
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a list of names, each a str")
    if not all(name.strip() for name in names):
        raise ConfigurationError(f"{argument} has an empty name")
    return tuple(names)


def _pairs(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in headers.items()]


def _prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be a list of prompts, not {type(prompts).__name__}; wrap one in a list")
    return prompts if isinstance(prompts, list) else list(prompts)


def _model_list(models: list[tuple[str, int, str]]) -> ModelList:
    from millstream.types import Model, ModelList

    return ModelList([Model(*each) for each in models])


class AsyncClient(_Base):
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
        options = self._options(model, config, timeout, queue_timeout, extra_headers, params, priority)
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
        options = self._options(model, config, timeout, queue_timeout, extra_headers, params, priority)
        outcomes: BatchTexts = await wait(
            self._native.batch_chat,
            _prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
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


def _messages(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str):
        raise TypeError('messages must be a list like [{"role": "user", "content": "..."}], not str')
    return messages


class Client(_Base):
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
        """Ask one prompt; see `AsyncClient.complete`."""
        options = self._options(model, config, timeout, queue_timeout, extra_headers, params, priority)
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
        """Ask many prompts at once; see `AsyncClient.batch_complete`."""
        options = self._options(model, config, timeout, queue_timeout, extra_headers, params, priority)
        outcomes: BatchTexts = self._native.batch_chat(
            None,
            _prompts(prompts),
            system,
            options,
            max_concurrent=max_concurrent,
            stop_on_error=not return_exceptions,
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

    def close(self) -> None:
        """Refuse new calls and close idle connections; those in flight end by themselves. May be called again."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Models:
    """``client.models``."""

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> ModelList:
        """The models that the server offers; see `AsyncModels.list`."""
        return _model_list(self._client._native.models(None))


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
