"""What `AsyncClient` and `Client` have in common: everything that decides anything and is not in the engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from millstream._arguments import check, spelt
from millstream._fields import PATH_FIELDS, REQUEST_FIELDS
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._providers import (
    Auth,
    Provider,
    Server,
    check_key_is_not_needed,
    check_path,
    environment_key,
    host_of,
    model_name,
    server,
)
from millstream._settings import (
    NOT_PARAMETERS,
    Hidden,
    Secrets,
    Settings,
    model_names,
    with_environment_keys,
)
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from millstream._cache import Cache, Place, _CacheArgument
    from millstream._config import CompletionConfig, Timeout
    from millstream._limits import RateLimiter
    from millstream._millstream import Endpoint, _Options
    from millstream._retry import RetryPolicy
    from millstream._settings import ApiKey, CallCache
    from millstream._token import Token
    from millstream.types import ClientStats


# What no way leads to: a config's or an `extra_body`'s names are otherwise the server's business.
_NEVER = frozenset({"stream", "messages"})

# What would go to the server unseen; the others are request fields of one path or another.
_ELSEWHERE = NOT_PARAMETERS.keys() - {"stream", "messages", "prompt", "prompts"}


def _hidden(cache: _CacheArgument | None) -> Cache | Place | None:
    """Where a cache is, so that no traceback shows a password; its caller lets go of its own name for it."""
    if cache is None:
        return None
    from millstream._cache import Cache, Place  # not at the top: few need it

    return cache if isinstance(cache, Cache) else Place(cache)


def _opened(cache: Cache | Place | None) -> Cache | None:
    from millstream._cache import Cache, Place

    return Cache._at(cache) if isinstance(cache, Place) else cache


def _token(secrets: Secrets) -> Token | None:
    if secrets.token is None:
        return None
    from millstream._token import Token  # not at the top: few need it

    return Token(secrets.token)


class Base:
    """What both clients are."""

    __slots__ = ("__weakref__", "_native", "_settings")

    @spelt
    def __init__(
        self,
        *,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        provider: Provider | None = None,
        auth: Auth | None = None,
        api_version: str | None = None,
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
        cache: _CacheArgument | None = None,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        organization: str | None = None,
        project: str | None = None,
        http2: bool = False,
        allow_http: bool = False,
    ) -> None:
        """Make a client; no thread is started and nothing is sent before the first call.

        Args:
            api_key: Sent as ``Authorization: Bearer``, or in the provider's own header. Default: ``OPENAI_API_KEY`` (or
                the provider's, see ``docs/providers.md``), which is used only for the vendor's own host or for the one
                in ``OPENAI_BASE_URL``, never for another. A server without keys needs none.
                Several keys: each has its own limits and breaker, every attempt goes by the readiest, and an item
                moves to another when its key fails. (Vendors limit accounts, so keys of one account share limits.)
                A function (`AsyncClient`: an async one, too), for tokens that expire: it is called before each call
                (of `stream_complete` and `stream_many` when they are first read), and once more if the server answers
                401, not for a batch. All attempts of one call, and all items of a batch, use the same token.
            base_url: Where the API is, up to and with its ``/v1``. Default: ``OPENAI_BASE_URL``, else OpenAI's; for
                another provider its own.
            provider: The API that the server speaks: ``"openai"`` (which most others speak, too), ``"anthropic"``,
                ``"mistral"`` or ``"azure"``. Default: the one before the colon or slash of
                ``model="anthropic:claude-..."``, if no ``base_url`` is given, else ``"openai"``.
            auth: The header that carries the key: ``"bearer"``, ``"x-api-key"`` or ``"api-key"``. Default: the
                provider's usual one.
            api_version: Azure's ``api-version`` (default: ``OPENAI_API_VERSION``) or ``anthropic-version`` (default:
                ``2023-06-01``).
            endpoints: Several servers and keys, in place of ``base_url`` and ``api_key``.
            model: Model for calls that name none.
            fallback_models: Models to ask, in their order, when the one before has failed every attempt, is not
                there, or is out of quota.
            config: Request fields for calls that do not set them.
            timeout: Seconds that a request may take from its admission on (the wait for a place in flight and for
                the rate limit is not in it), over all attempts and the waits between them; an item of a batch waits
                for a limit outside it also between two attempts. None: no limit. Default 600, as in openai-python.
                A `Timeout` limits single phases, too.
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
            cache: Give an answer again to whoever asks the same: ``"memory"``, ``"disk"``, the path of a folder,
                ``"redis://..."``, or a `Cache`. See ``docs/cache.md``.
                Default: ask each time.
            default_headers: Headers for every request. They may replace the key's, not ``Host`` or
                ``Content-Length``. Before them go those of ``OPENAI_CUSTOM_HEADERS`` or ``ANTHROPIC_CUSTOM_HEADERS``
                (lines of ``Name: value``), for the same hosts as the environment's key.
            default_query: Parts of every URL's query.
            organization: ``OpenAI-Organization``. Default: ``OPENAI_ORG_ID``, for the same hosts as the key.
            project: ``OpenAI-Project``. Default: ``OPENAI_PROJECT_ID``, for the same hosts as the key.
            http2: Offer HTTP/2 to https servers. Off by default, as in httpx: one HTTP/2 connection carries about a
                hundred requests at a time.
            allow_http: Send a key over plain ``http://`` to another machine. Off by default.

        Raises:
            ConfigurationError: An argument is not valid; its name is in the text.
            TypeError: One is of a wrong type, or there is none of that name.
        """
        secrets, place = Secrets(api_key, default_headers, default_query), _hidden(cache)
        del api_key, default_headers, default_query, cache
        secrets.check()
        check(
            {
                "provider": provider,
                "auth": auth,
                "api_version": api_version,
                "endpoints": endpoints,
                "organization": organization,
                "project": project,
                "model": model,
                "fallback_models": fallback_models,
                "config": config,
                "timeout": timeout,
                "connect_timeout": connect_timeout,
                "queue_timeout": queue_timeout,
                "max_retries": max_retries,
                "retry": retry,
                "idempotency_key": idempotency_key,
                "max_concurrency": max_concurrency,
                "rate_limiter": rate_limiter,
                "hedge_after": hedge_after,
                "http2": http2,
                "allow_http": allow_http,
            }
        )
        if endpoints is not None:
            # Names alone: a traceback shows variables.
            others = {"base_url": base_url, "provider": provider, "auth": auth, "api_version": api_version}
            named = [name for name, value in others.items() if value is not None]
            if named or secrets.keys is not None or secrets.token is not None:
                raise ConfigurationError(
                    f"endpoints= names servers and keys itself; leave {'= and '.join(named) or 'api_key'}= out"
                )
        key_from_environment = secrets.keys is None and secrets.token is None
        key_auth: str | None = auth
        if endpoints is not None:
            endpoints = with_environment_keys(endpoints, secrets)
            first = endpoints[0] if endpoints else None
            where = Server(first.provider, first.base_url, False, False) if first else server(None, None, None)
        else:
            configured = model if model is not None or config is None else config.to_dict().get("model")
            where = server(provider, base_url, configured)
            if key_from_environment:
                if found := environment_key(where.provider, where.base_url, auth):
                    variable, key_auth = found
                    secrets.keys = [os.environ[variable]]
                elif not secrets.authorize():
                    check_key_is_not_needed(where.provider, where.base_url)
        self._settings = Settings(
            server=where,
            auth=auth,
            key_auth=key_auth,
            api_version=api_version,
            # A key from the environment stays with the host that it is for.
            inherit_key=not key_from_environment,
            token=_token(secrets),
            organization=organization,
            project=project,
            model=None if model is None else model_name(model, where),
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
            fallback_models=model_names(fallback_models, where),
            cache=None if place is None else _opened(place),
            http2=http2,
            allow_http=allow_http,
        )
        secrets.find_usual_headers(self._settings, where.base_url)
        self._native = self._settings.native(None, secrets, endpoints)

    @spelt
    def with_options(
        self,
        *,
        api_key: ApiKey | None = None,
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
        cache: _CacheArgument | NotGiven | None = NOT_GIVEN,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        organization: str | None = None,
        project: str | None = None,
    ) -> Self:
        """A client that differs in what is given and shares the rest: pool, counters, window.

        The arguments are those of the constructor. A key from the environment does not follow to another host, and
        another host has a window of its own.
        """
        secrets = Secrets(api_key, default_headers, default_query)
        place = cache if isinstance(cache, NotGiven) else _hidden(cache)
        del api_key, default_headers, default_query, cache
        secrets.check()
        settings = self._settings
        if base_url is not None:
            base_url = str(base_url)
            same_host = host_of(base_url) == host_of(settings.server.base_url)
            settings = settings._replace(server=settings.server._replace(base_url=base_url, has_prefixes=False))
            inherits = settings.inherit_key or same_host
        else:
            inherits = True
        if secrets.keys is not None or secrets.token is not None:
            settings = settings._replace(key_auth=settings.auth, token=_token(secrets))
            inherits = secrets.token is None
        changes: dict[str, Any] = {
            "model": model,
            "config": config,
            "retry": retry,
            "max_retries": max_retries,
            "idempotency_key": idempotency_key,
            "max_concurrency": max_concurrency,
            "fallback_models": fallback_models,
            "organization": organization,
            "project": project,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        given = {"timeout": timeout, "queue_timeout": queue_timeout, "hedge_after": hedge_after}
        check({**changes, **given, "rate_limiter": rate_limiter})
        if model is not None:
            changes["model"] = model_name(model, settings.server)
        if fallback_models is not None:
            changes["fallback_models"] = model_names(fallback_models, settings.server)
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
        if not isinstance(place, NotGiven):
            changes["cache"] = None if place is None else _opened(place)
        settings = settings._replace(**changes)
        secrets.find_usual_headers(settings, settings.server.base_url)
        other = object.__new__(type(self))
        other._native = settings._replace(inherit_key=inherits).native(self._native, secrets)
        other._settings = settings._replace(
            inherit_key=settings.inherit_key or secrets.keys is not None or secrets.token is not None
        )
        return other

    @property
    def base_url(self) -> str:
        """Where requests go."""
        return self._native.base_url

    @property
    def provider(self) -> str:
        """The API that its server speaks."""
        return self._settings.server.provider

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
        system: str | None,
        model: str | None,
        config: CompletionConfig | None,
        timeout: float | Timeout | NotGiven | None,
        queue_timeout: float | NotGiven | None,
        priority: int,
        max_retries: int | None,
        hidden: Hidden | None,
        params: dict[str, Any],
        *,
        max_concurrent: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        caching: CallCache | None = None,
    ) -> _Options:
        """The request's fields; the nearest word wins: argument, call's config, client's config, client's model."""
        settings = self._settings
        if settings.token is not None and hidden is None:
            hidden = Hidden(None, None)
        if params and not params.keys() <= REQUEST_FIELDS:
            _check_names(params)
        fields = params if extra_body is None else {**params, **extra_body}
        if config is not None:
            check({"config": config})
        if settings.config is not None or config is not None:
            sources = (source.to_dict() for source in (settings.config, config) if source is not None)
            fields = {name: value for source in (*sources, fields) for name, value in source.items()}
        if fields:
            if fields.get("stream") is False:
                # What every call does anyway.
                del fields["stream"]
            _refuse_others(_NEVER & fields.keys())
            configured = fields.pop("model", None)
            model = configured if model is None else model
        model = settings.model if model is None else model_name(model, settings.server)
        if (
            type(model) is str
            and not fields
            and system is None
            and max_concurrent is None
            and timeout is NOT_GIVEN
            and queue_timeout is NOT_GIVEN
            and hidden is None
            and max_retries is None
            and caching is None
            and priority == 0
        ):
            # Most calls are like that, and the engine has them ready.
            return model
        check(
            {
                "system": system,
                "model": model,
                "timeout": timeout,
                "queue_timeout": queue_timeout,
                "priority": priority,
                "max_concurrent": max_concurrent,
                "max_retries": max_retries,
            }
        )
        given = None if isinstance(timeout, NotGiven) else (timeout,)
        queue = None if isinstance(queue_timeout, NotGiven) else (queue_timeout,)
        return model, fields, given, hidden, queue, priority, max_retries, caching

    def _post_options(
        self,
        path: str | None,
        model: str | None,
        timeout: float | Timeout | NotGiven | None,
        queue_timeout: float | NotGiven | None,
        priority: int,
        max_retries: int | None,
        hidden: Hidden | None,
        params: Mapping[str, Any],
        extra_body: Mapping[str, Any] | None = None,
        *,
        caching: CallCache | None = None,
    ) -> _Options:
        """Those of a call that is no chat: the fields of a config are a chat's. No ``path`` is any, unknown to us."""
        settings = self._settings
        if settings.token is not None and hidden is None:
            hidden = Hidden(None, None)
        if path is not None:
            check_path(settings.server.provider, path)
            _refuse_others(_ELSEWHERE & params.keys())
            if not params.keys() <= PATH_FIELDS[path]:
                _check_spelling(params, PATH_FIELDS[path])
        fields = {**params, **(extra_body or {})}
        configured = fields.pop("model", None)
        model = configured if model is None else model
        if model is None and path is not None:
            model = settings.model
            if model is None and settings.config is not None:
                model = settings.config.to_dict().get("model")
            if model is None:
                raise ConfigurationError("model is missing: give model= to the call or to the client")
        elif model is not None:
            model = model_name(model, settings.server)
        check(
            {
                "model": model,
                "timeout": timeout,
                "queue_timeout": queue_timeout,
                "priority": priority,
                "max_retries": max_retries,
            }
        )
        given = None if isinstance(timeout, NotGiven) else (timeout,)
        queue = None if isinstance(queue_timeout, NotGiven) else (queue_timeout,)
        return model, fields, given, hidden, queue, priority, max_retries, caching

    def __repr__(self) -> str:
        if not hasattr(self, "_native"):
            # Its making was refused, and a traceback shows its variables.
            return f"<{type(self).__name__} that was not made>"
        return f"{type(self).__name__}(base_url={self.base_url!r}, model={self._settings.model!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds connections and a key, so it cannot be pickled; make one in each process"
        )


def _refuse_others(fields: Iterable[str]) -> None:
    """Refuse what belongs elsewhere."""
    for refused in NOT_PARAMETERS.keys() & fields:
        raise ConfigurationError(f"{refused}= is not a parameter of this call; {NOT_PARAMETERS[refused]}")


def _check_names(params: dict[str, Any]) -> None:
    """Refuse what would go to the server unseen: an argument of ours in the wrong place, or misspelt."""
    _refuse_others(params)
    _check_spelling(params, REQUEST_FIELDS)


def _check_spelling(params: Mapping[str, Any], known: frozenset[str]) -> None:
    from millstream._misspelt import check_spelling  # not at the top: most calls give no such name

    check_spelling(params.keys() - known, known)
