"""Clients by the provider's name or from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, overload

from millstream._client import AsyncClient, Client
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from millstream._providers import Provider

_ARGUMENTS = ("provider", "model", "api_key", "base_url", "api_version", "auth", "max_concurrency", "fallback_models")
"""Keys that are arguments of a client."""

_API = ("RATE_LIMIT_DELAY", "MAX_RETRIES", "BASE_DELAY", "TIMEOUT", "MAX_TOKENS", "TEMPERATURE")
"""Keys of the section ``api``."""


@overload
def create_client(provider: Provider, *, async_mode: Literal[True] = True, **options: Any) -> AsyncClient: ...
@overload
def create_client(provider: Provider, *, async_mode: Literal[False], **options: Any) -> Client: ...
@overload
def create_client(provider: Provider, *, async_mode: bool, **options: Any) -> AsyncClient | Client: ...
def create_client(provider: Provider, *, async_mode: bool = True, **options: Any) -> AsyncClient | Client:
    """Make a client by its provider's name.

    Args:
        provider: ``"openai"``, ``"anthropic"``, ``"mistral"`` or ``"azure"``.
        async_mode: An `AsyncClient`, else a `Client`.
        **options: The client's own arguments.

    Raises:
        ConfigurationError: There is no such provider, or an argument is not valid.
    """
    _mask(options)
    _check_names("create_client", options)
    return (AsyncClient if async_mode else Client)(provider=provider, **options)


@overload
def create_from_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    profile: str | None = None,
    async_mode: Literal[True] = True,
    **options: Any,
) -> AsyncClient: ...
@overload
def create_from_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    profile: str | None = None,
    async_mode: Literal[False],
    **options: Any,
) -> Client: ...
@overload
def create_from_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    profile: str | None = None,
    async_mode: bool,
    **options: Any,
) -> AsyncClient | Client: ...
def create_from_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    profile: str | None = None,
    async_mode: bool = True,
    **options: Any,
) -> AsyncClient | Client:
    """Make a client from a mapping, or from a TOML, JSON or YAML file.

    Args:
        config: A mapping, or the path of a file that ends in ``.toml``, ``.json``, ``.yaml`` or ``.yml`` (which needs
            PyYAML).
            Its keys are ``provider``, ``model``, ``api_key``, ``api_key_env`` (the environment variable that holds
            the key), ``base_url``, ``api_version``, ``auth``, ``max_concurrency`` and ``fallback_models``, each as the
            client's argument of that name, and a section ``api`` with any of

            - ``RATE_LIMIT_DELAY``: least seconds between the starts of two requests; 0 for none
            - ``MAX_RETRIES``: attempts after the first
            - ``BASE_DELAY``: seconds, most before the first retry
            - ``TIMEOUT``: seconds for a request over all its attempts
            - ``MAX_TOKENS``, ``TEMPERATURE``: fields of every request that does not set them

            A section ``profiles`` holds sections of the same keys by name; a section ``options`` is for the command
            line and not looked at.
        profile: The one of ``profiles`` whose keys go over the others. Default: none.
        async_mode: An `AsyncClient`, else a `Client`.
        **options: Arguments of the client, over those of the file.

    Raises:
        ConfigurationError: A key is not known or its value not valid, or the file is none of the formats.
        OSError: The file cannot be read.
    """
    given = dict(config) if isinstance(config, Mapping) else _read(os.fspath(config))
    del config
    _mask(options)
    _check_names("create_from_config", options)
    given = _profiled(given, profile)
    given.pop("options", None)
    api = given.pop("api", None) or {}
    if not isinstance(api, Mapping):
        raise ConfigurationError("api must be a section of keys")
    variable = given.pop("api_key_env", None)
    _check("", given, (*_ARGUMENTS, "api_key_env", "api"))
    _check("api.", api, _API)
    if variable is not None and "api_key" not in options:
        if "api_key" in given:
            raise ConfigurationError("api_key and api_key_env say the same: give one")
        if not os.environ.get(variable):
            raise ConfigurationError(f"api_key_env names {variable!r}, which is not set")
        given["api_key"] = _Masked(os.environ[variable])
    return (AsyncClient if async_mode else Client)(**{**given, **_of_api(api), **options})


def _check_names(owner: str, options: Mapping[str, Any]) -> None:
    """Refuse what neither the function nor the client takes, in the function's name."""
    known = [*signature(AsyncClient).parameters, "async_mode"]
    if unknown := [name for name in options if name not in known]:
        from millstream._misspelt import refused_call  # not at the top: it is not cheap

        raise refused_call(owner, unknown[0], known)


def _profiled(given: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """The keys of a file with those of one profile over them; sections are laid over each other, too."""
    _mask(given)
    profiles = given.pop("profiles", None) or {}
    if not isinstance(profiles, Mapping) or not all(isinstance(each, Mapping) for each in profiles.values()):
        raise ConfigurationError("profiles must be a section of sections, each with the keys of one profile")
    profiles = {name: dict(each) for name, each in profiles.items()}
    for each in profiles.values():
        _mask(each)
    if profile is None:
        return given
    if profile not in profiles:
        raise ConfigurationError(f"profile {profile!r} is not there; profiles are {', '.join(profiles) or 'none'}")
    over = profiles[profile]
    for key, other in (("api_key", "api_key_env"), ("api_key_env", "api_key")):
        if key in over:
            given.pop(other, None)
    for name, value in over.items():
        below = given.get(name)
        given[name] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return given


class _Masked(str):
    """A key on its way to a client, so that no traceback with variables shows it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def _mask(arguments: dict[str, Any]) -> None:
    key = arguments.get("api_key")
    if isinstance(key, str):
        arguments["api_key"] = _Masked(key)
    elif isinstance(key, (list, tuple)):
        arguments["api_key"] = [_Masked(each) if isinstance(each, str) else each for each in key]


def _of_api(api: Mapping[str, Any]) -> dict[str, Any]:
    from millstream._config import CompletionConfig
    from millstream._limits import RateLimiter
    from millstream._retry import RetryPolicy

    number = {name: _number(name, value) for name, value in api.items() if value is not None}
    options: dict[str, Any] = {}
    retry: dict[str, Any] = {}
    if "MAX_RETRIES" in number:
        retry["max_retries"] = _whole("MAX_RETRIES", number["MAX_RETRIES"])
    if "BASE_DELAY" in number:
        # The longest wait is no shorter.
        retry["base_delay"] = number["BASE_DELAY"]
        retry["max_delay"] = max(number["BASE_DELAY"], RetryPolicy().max_delay)
    if retry:
        options["retry"] = RetryPolicy(**retry)
    if "TIMEOUT" in number:
        options["timeout"] = number["TIMEOUT"]
    fields: dict[str, Any] = {}
    if "MAX_TOKENS" in number:
        fields["max_tokens"] = _whole("MAX_TOKENS", number["MAX_TOKENS"])
    if "TEMPERATURE" in number:
        fields["temperature"] = number["TEMPERATURE"]
    if fields:
        options["config"] = CompletionConfig(**fields)
    delay = number.get("RATE_LIMIT_DELAY", 0)
    if delay < 0:
        raise ConfigurationError(f"api.RATE_LIMIT_DELAY must be at least 0 seconds, not {delay}")
    if delay > 0:
        options["rate_limiter"] = RateLimiter(requests_per_second=1 / delay, burst=1)
    return options


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"api.{name} must be a number, not {value!r}")
    return value


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ConfigurationError(f"api.{name} must be a whole number, not {value}")
    return int(value)


def _check(section: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            advice = f"did you mean {section}{near[0]}?" if near else f"those are {', '.join(known)}"
            raise ConfigurationError(f"{section}{name} is not a key of the configuration: {advice}")


def _read(path: str) -> dict[str, Any]:
    kind = os.path.splitext(path)[1].lower()
    if kind == ".toml":
        import tomllib

        with open(path, "rb") as file:
            try:
                return tomllib.load(file)
            except tomllib.TOMLDecodeError as error:
                raise ConfigurationError(f"{path} is not TOML: {error}") from error
    if kind == ".json":
        import json

        with open(path, encoding="utf-8") as file:
            try:
                loaded = json.load(file)
            except ValueError as error:
                raise ConfigurationError(f"{path} is not JSON: {error}") from error
        return _mapping(loaded, path)
    if kind not in (".yaml", ".yml"):
        raise ConfigurationError(f"config must be a mapping or a .toml, .json, .yaml or .yml file, not {path!r}")
    from importlib import import_module

    try:
        yaml = import_module("yaml")
    except ImportError as error:
        raise ConfigurationError("reading YAML needs PyYAML (pip install pyyaml), TOML needs nothing") from error
    with open(path, encoding="utf-8") as file:
        try:
            loaded = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not YAML: {error}") from error
    return _mapping(loaded, path)


def _mapping(loaded: object, path: str) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise ConfigurationError(f"{path} must hold a mapping of keys")
    return dict(loaded)
