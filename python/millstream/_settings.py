"""What a client is told: its settings, its secrets, and what the environment adds to them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from millstream import _logging
from millstream._arguments import check
from millstream._millstream import Endpoint, NativeClient, is_secret_header
from millstream._providers import Server, check_key_is_not_needed, environment_key, is_own_host, model_name
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from millstream._cache import Cache
    from millstream._config import CompletionConfig, Timeout
    from millstream._limits import RateLimiter
    from millstream._retry import RetryPolicy
    from millstream._token import Token


ApiKey = str | Sequence[str] | Callable[[], str] | Callable[[], Awaitable[str]]
"""One, several, or a function that gives one."""


class Hidden:
    """What of a call may hold a secret, on its way to the native client: no traceback with variables shows it."""

    __slots__ = ("headers", "key", "query")

    key: Any
    """A str once it is there; checked where it is asked for."""

    def __init__(self, headers: Mapping[str, str] | None, query: Mapping[str, object] | None) -> None:
        self.headers = headers
        self.query = query
        self.key = None


def hide(headers: Mapping[str, str] | Hidden | None, query: Mapping[str, object] | None) -> Hidden | None:
    """What may hold a secret, hidden. The caller lets go of its own names for it before anything can fail."""
    if isinstance(headers, Hidden):
        return headers
    return None if headers is None and query is None else Hidden(headers, query)


CallCache = tuple[bool | None, bool, int | None]
"""Whether the cache is used, whether what it has is replaced, and which of several answers is wanted."""


def call_cache(cache: bool | None, refresh: bool, sample_index: int | None) -> CallCache | None:
    """What one call says of the cache; None for nothing."""
    if cache is None and refresh is False and sample_index is None:
        return None
    check({"cache": cache, "refresh": refresh, "sample_index": sample_index})
    if cache is False and (refresh or sample_index is not None):
        raise ConfigurationError("cache=False leaves nothing to refresh= or sample_index=")
    return cache, refresh, sample_index


class Secrets:
    """Key and headers on their way to the native client, so that no traceback with variables shows them."""

    __slots__ = ("headers", "keys", "query", "token", "usual_headers")

    keys: list[str] | None
    token: Callable[[], str | Awaitable[str]] | None

    def __init__(
        self, key: ApiKey | None, headers: Mapping[str, str] | None, query: Mapping[str, object] | None = None
    ) -> None:
        # Checked later: this frame's variables show the key.
        self.token = None
        self.keys = key  # type: ignore[assignment]
        if callable(key):
            self.keys, self.token = None, key
        self.headers = headers
        self.query = query
        self.usual_headers: list[tuple[str, str]] = []

    def authorize(self) -> bool:
        """Whether one of the headers can be meant to carry a key."""
        return any(is_secret_header(str(name)) for name in self.headers or ())

    def check(self) -> None:
        """Apart from the constructor, whose variables show the keys in a traceback."""
        if isinstance(self.keys, str):
            self.keys = [self.keys]
        elif isinstance(self.keys, bytes) or not isinstance(self.keys, Iterable | None):
            raise TypeError(
                f"api_key must be a str, a list of them, a function or None, not {type(self.keys).__name__}"
            )
        elif self.keys is not None:
            self.keys = list(self.keys)
        if self.headers is not None and not isinstance(self.headers, Mapping):
            raise TypeError(
                f"default_headers must be a dict of names and values or None, not {type(self.headers).__name__}"
            )
        if self.query is not None and not isinstance(self.query, Mapping):
            raise TypeError(
                f"default_query must be a dict of names and values or None, not {type(self.query).__name__}"
            )
        if self.keys is not None and len(set(self.keys)) < len(self.keys):
            raise ConfigurationError("api_key names the same key twice: its limits would be counted twice, too")

    def find_usual_headers(self, settings: Settings, base_url: str) -> None:
        """Of the organization and of the environment; the latter stay with the hosts that they are for."""
        variables = _HEADER_VARIABLES.get(settings.server.provider)
        own = variables is not None and is_own_host(settings.server.provider, base_url)
        found = self.usual_headers
        if own and variables is not None:
            for line in os.environ.get(variables, "").splitlines():
                name, colon, value = line.partition(":")
                if colon and name.strip():
                    found.append((name.strip(), value.strip()))
        if settings.server.provider == "openai":
            for header, given, variable in (
                ("OpenAI-Organization", settings.organization, "OPENAI_ORG_ID"),
                ("OpenAI-Project", settings.project, "OPENAI_PROJECT_ID"),
            ):
                value_or_none = given if given is not None else os.environ.get(variable) if own else None
                if value_or_none:
                    found.append((header, value_or_none))


_HEADER_VARIABLES = {"openai": "OPENAI_CUSTOM_HEADERS", "anthropic": "ANTHROPIC_CUSTOM_HEADERS"}


class Settings(NamedTuple):
    """What a client was told, without its secrets: those are the native client's."""

    server: Server
    auth: str | None
    """As given; the environment may say otherwise of its own key."""
    key_auth: str | None
    api_version: str | None
    inherit_key: bool
    token: Token | None
    organization: str | None
    project: str | None
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
    cache: Cache | None
    http2: bool
    allow_http: bool

    def native(
        self, parent: NativeClient | None, secrets: Secrets, endpoints: list[Endpoint] | None = None
    ) -> NativeClient:
        _logging.prepare()
        return NativeClient(
            parent=parent,
            provider=self.server.provider,
            auth=self.key_auth,
            api_version=self.api_version,
            base_url=self.server.base_url,
            endpoints=endpoints,
            api_keys=secrets.keys,
            inherit_key=self.inherit_key,
            headers=secrets.headers,
            usual_headers=secrets.usual_headers,
            query=secrets.query,
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
            cache=None if self.cache is None else self.cache._native,
            http2=self.http2,
            allow_http=self.allow_http,
        )


NOT_PARAMETERS = {
    "stream": "use stream_complete(), stream_many() or chat.completions.create(stream=True)",
    "messages": "a list of messages is a prompt",
    "prompt": "it is the first argument",
    "prompts": "they are the first argument",
    "extra_body": "request fields stand in the call itself",
    **dict.fromkeys(
        ("response_model", "validation_retries"),
        "complete() and batch_complete() take it, and chat.completions.parse() has response_format=",
    ),
    # What belongs elsewhere would go to the server unseen.
    "max_concurrency": "it is the client's; a batch takes max_concurrent=",
    "max_concurrent": "only a batch takes it; a client takes max_concurrency=",
    "return_exceptions": "only a batch takes it",
    **dict.fromkeys(
        (
            "retry",
            "rate_limiter",
            "hedge_after",
            "base_url",
            "api_key",
            "fallback_models",
            "idempotency_key",
        ),
        "it is the client's: give it to the client or to with_options()",
    ),
    **dict.fromkeys(
        (
            "endpoints",
            "default_headers",
            "connect_timeout",
            "http2",
            "allow_http",
            "provider",
            "auth",
            "api_version",
            "default_query",
            "organization",
            "project",
        ),
        "it is the client's",
    ),
}


def with_environment_keys(endpoints: Sequence[Endpoint], secrets: Secrets) -> list[Endpoint]:
    for each in endpoints:
        if not isinstance(each, Endpoint):
            raise TypeError(f"endpoints must be a list of Endpoint, not of {type(each).__name__}")
    return [_with_environment_key(each, secrets) for each in endpoints]


def _with_environment_key(endpoint: Endpoint, secrets: Secrets) -> Endpoint:
    if endpoint.has_key:
        return endpoint
    found = environment_key(endpoint.provider, endpoint.base_url, endpoint.auth)
    if found is None:
        if not secrets.authorize():
            check_key_is_not_needed(endpoint.provider, endpoint.base_url)
        return endpoint
    variable, auth = found
    # Not by a variable, which a traceback would show.
    return endpoint._with_key(os.environ[variable], auth)


def model_names(names: Sequence[str], server: Server) -> tuple[str, ...]:
    """The models that stand in, as their server knows them."""
    if isinstance(names, str):
        raise TypeError("fallback_models must be a list of names, not str")
    if not all(isinstance(name, str) for name in names):
        raise TypeError("fallback_models must be a list of names, each a str")
    if not all(name.strip() for name in names):
        raise ConfigurationError("fallback_models has an empty name")
    return tuple(model_name(name, server) for name in names)
