"""Who serves an API: where, with which of the environment's keys, and by which names of models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

Provider = Literal["openai", "anthropic", "mistral", "azure"]
Auth = Literal["bearer", "x-api-key", "api-key"]

# What each has of OpenAI's paths, besides chats; Azure has all, by deployment or for the whole resource.
_CREATE = ("responses", "completions", "embeddings")
_PATHS: dict[str, tuple[str, ...]] = {"anthropic": (), "mistral": ("embeddings",)}

_DEFAULT_PORTS = {"http": 80, "https": 443}


class _Vendor(NamedTuple):
    base_url: str | None
    """None where each customer has a server of his own."""
    url_variable: str | None
    keys: tuple[tuple[str, Auth | None], ...]
    """Variables that hold a key, and the header for it; None: the provider's usual one."""
    other_hosts: tuple[str, ...] = ()


_VENDORS: dict[str, _Vendor] = {
    "openai": _Vendor("https://api.openai.com/v1", "OPENAI_BASE_URL", (("OPENAI_API_KEY", None),)),
    "anthropic": _Vendor(
        "https://api.anthropic.com/v1",
        "ANTHROPIC_BASE_URL",
        (("ANTHROPIC_API_KEY", None), ("ANTHROPIC_AUTH_TOKEN", "bearer")),
    ),
    "mistral": _Vendor(
        "https://api.mistral.ai/v1",
        None,
        (("MISTRAL_API_KEY", None),),
        ("https://api.eu.mistral.ai", "https://api.us.mistral.ai"),
    ),
    "azure": _Vendor(
        None, "AZURE_OPENAI_ENDPOINT", (("AZURE_OPENAI_API_KEY", None), ("AZURE_OPENAI_AD_TOKEN", "bearer"))
    ),
}


class Server(NamedTuple):
    """Where a client's requests go."""

    provider: str
    base_url: str
    has_prefixes: bool
    """Whether ``provider/model`` means the provider: not where a server of one's own may name its models so."""
    is_named: bool
    """Whether the provider was named, so that ``provider:model`` means it."""


def server(provider: str | None, base_url: str | None, model: str | None) -> Server:
    """The server of a client, of its arguments, the environment and a prefix of its model."""
    is_named = provider is not None
    if provider is None and base_url is None and not os.environ.get("OPENAI_BASE_URL"):
        provider, _ = _split(model or "")
        is_named = provider is not None
    if provider is None:
        provider = "openai"
    if provider not in _VENDORS:
        known = ", ".join(repr(name) for name in get_args(Provider))
        raise ConfigurationError(
            f"provider must be one of {known}, not {provider!r}; every server that speaks OpenAI's API is used by "
            "base_url= alone"
        )
    vendor = _VENDORS[provider]
    own = base_url
    if own is None and vendor.url_variable is not None:
        own = os.environ.get(vendor.url_variable) or None
    where = vendor.base_url if own is None else str(own)
    if where is None:
        raise ConfigurationError(f"{provider} has no server for all: give base_url= or set {vendor.url_variable}")
    return Server(provider, where, has_prefixes=own is None, is_named=is_named or own is None)


def _split(model: str) -> tuple[str | None, str]:
    """A known provider before a model's name, and the rest."""
    for mark in ":/":
        name, found, rest = model.partition(mark)
        if found and name in _VENDORS and rest:
            return name, rest
    return None, model


def model_name(model: str, server: Server) -> str:
    """A model's name as its server knows it."""
    if not isinstance(model, str) or (":" not in model and "/" not in model):
        return model
    provider, name = _split(model)
    if provider is None or not server.is_named or ("/" in model[: len(provider) + 1] and not server.has_prefixes):
        return model
    if provider == server.provider:
        return name
    if not server.has_prefixes:
        return model
    raise ConfigurationError(
        f"model {model!r} is {provider}'s and this client is {server.provider}'s; make a client for it: "
        f"AsyncClient(provider={provider!r}, model={name!r})"
    )


def host_of(url: str) -> tuple[str, str | None, int | None]:
    from urllib.parse import urlsplit  # not at the top: it would be a tenth of what importing millstream takes

    try:
        parts = urlsplit(url)
        host = parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        # Not a URL, which the engine's own check says better.
        return "", url, None
    # The engine takes a backslash for a slash and may find another host than Python does: such a URL is like no other.
    return ("", url, None) if "\\" in url or parts.hostname is None else host


def is_own_host(provider: str, base_url: str) -> bool:
    """Whether it is the vendor's own host, or the one that the environment names as the vendor's."""
    vendor = _VENDORS[provider]
    variable = vendor.url_variable and os.environ.get(vendor.url_variable)
    return host_of(base_url) in [host_of(url) for url in (vendor.base_url, variable, *vendor.other_hosts) if url]


def environment_key(provider: str, base_url: str, auth: str | None) -> tuple[str, str | None] | None:
    """The variable that holds a key for this host, and the header for it; never for a host that it is not for.

    The variable's name, not its value, which a traceback would show.
    """
    vendor = _VENDORS[provider]
    if not is_own_host(provider, base_url):
        return None
    known: Sequence[tuple[str, str | None]] = vendor.keys
    if auth is not None:
        # The one that is meant for that header goes first.
        known = sorted(known, key=lambda each: each[1] != auth)
    return next(((name, auth or own) for name, own in known if os.environ.get(name)), None)


def check_key_is_not_needed(provider: str, base_url: str) -> None:
    """A vendor's own server takes nobody without a key."""
    vendor = _VENDORS[provider]
    host = host_of(base_url)
    own = [host_of(url) for url in (vendor.base_url, *vendor.other_hosts) if url]
    if host in own or (provider == "azure" and str(host[1]).endswith(".azure.com")):
        variables = " or ".join(name for name, _ in vendor.keys)
        raise ConfigurationError(f"no API key: give api_key= or set {variables}")


def check_path(provider: str, path: str) -> None:
    """Refuse a call for which the provider has nothing: the server's 404 would name a path that nobody wrote."""
    has = _PATHS.get(provider, _CREATE)
    if path not in has:
        calls = " and ".join(f"{each}.create" for each in ("chat.completions", *has))
        raise ConfigurationError(
            f"{provider} has no {path}.create: use {calls}; post() sends to any other path of the server as it is"
        )
