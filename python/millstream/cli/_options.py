"""Options that several commands have, and the client that they describe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload
from urllib.parse import urlsplit

import click

from millstream import AsyncClient, Client, ConfigurationError, Prices, RateLimiter, create_from_config
from millstream._create import _profiled, _read
from millstream._providers import Provider
from millstream.cli._exit import Refused, in_options, refusing
from millstream.cli._types import COUNT, COUNT_OR_AUTO, FIELDS, SECONDS, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Function = TypeVar("Function", bound="Callable[..., Any]")

CLIENT_KEYS = ("provider", "model", "base_url", "api_key_env", "max_concurrency")
"""Options that the configuration file has outside of its options, since they are a client's."""

_CLIENT = "millstream.client"
"""Where the context keeps what the configuration file says of the client."""


class Configured(click.Command):
    """A command whose options may have their defaults in a configuration file."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the file that the arguments or the environment name before anything needs a default."""
        given, _, _ = self.make_parser(context).parse_args(list(arguments))
        path = given.get("config") or os.environ.get("MILLSTREAM_CONFIG")
        profile = given.get("profile") or os.environ.get("MILLSTREAM_PROFILE")
        if path and not context.resilient_parsing:
            with refusing():
                _configure(context, _profiled(_read(path), profile))
        elif profile and not context.resilient_parsing:
            raise click.UsageError("--profile names a part of a configuration file: give --config, too", context)
        return super().parse_args(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; a refusal names options and not the arguments that are behind them."""
        try:
            return super().invoke(context)
        except ConfigurationError as error:
            raise Refused(in_options(str(error), self)) from error


def _configure(context: click.Context, given: dict[str, Any]) -> None:
    options = given.pop("options", None) or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError("options must be a section of the command line's options")
    options = {str(name).replace("-", "_"): value for name, value in options.items()}
    given_fields = options.pop("param", None) or {}
    if not isinstance(given_fields, Mapping):
        raise ConfigurationError("options.param must be a section of request fields")
    known = _option_names(context)
    for name in options:
        if name not in known:
            raise ConfigurationError(f"options.{name} is not an option of any command")
    for name in given:
        if name.replace("-", "_") in known - set(CLIENT_KEYS):
            raise ConfigurationError(f"{name} is an option of the command line: put it into the section options")
    context.default_map = options
    context.meta[_CLIENT] = given
    context.meta[FIELDS] = given_fields


def _option_names(context: click.Context) -> set[str]:
    return {
        option.name
        for _, command in leaves(context.find_root().command)
        for option in command.params
        if isinstance(option, click.Option) and option.name and option.name not in ("config", "profile")
    }


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """The commands that do something, by their names below ``command``."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for each, below in sorted(command.commands.items()):
        yield from leaves(below, f"{name} {each}".lstrip())


_FILE = (
    click.option(
        "--config",
        envvar="MILLSTREAM_CONFIG",
        type=click.Path(),
        expose_value=False,
        help="TOML, YAML or JSON file with the client, these options and profiles; also MILLSTREAM_CONFIG.",
    ),
    click.option(
        "--profile",
        envvar="MILLSTREAM_PROFILE",
        metavar="NAME",
        expose_value=False,
        help="Profile of that file to use; also MILLSTREAM_PROFILE.",
    ),
)

_SERVER = (
    click.option(
        "--provider", type=click.Choice(get_args(Provider)), help="API that the server speaks.  [default: openai]"
    ),
    click.option("-m", "--model", help="Model for requests that name none."),
    click.option("--base-url", metavar="URL", help="Server, up to and with its /v1.  [default: the provider's]"),
    click.option("--api-key-env", metavar="NAME", help="Environment variable with the key.  [default: the provider's]"),
)

_PACE = (
    click.option("--rpm", type=COUNT, help="Most requests per minute.  [default: what the server says]"),
    click.option("--tpm", type=COUNT, help="Most tokens per minute.  [default: what the server says]"),
    click.option("--max-concurrency", type=COUNT_OR_AUTO, help="Requests in flight at once.  [default: auto]"),
)

_CALL = (
    click.option("--retries", type=click.IntRange(0, 100), help="Attempts after the first.  [default: 2]"),
    click.option("--timeout", type=SECONDS, help="For a request over all its attempts.  [default: 10m]"),
)

_PARAM = (
    click.option(
        "--param",
        "params",
        multiple=True,
        callback=fields_of,
        metavar="NAME=VALUE",
        help="Request field for requests that do not set it; the value is JSON, else text. Repeatable.",
    ),
)


_FIELDS = (click.option("--system", metavar="TEXT", help="System message to put first."), *_PARAM)


def _prices(context: click.Context, parameter: click.Parameter, path: str | None) -> Prices:
    with refusing():
        return Prices(path)


_PRICES = (
    click.option(
        "--prices",
        type=click.Path(dir_okay=False),
        callback=_prices,
        metavar="FILE",
        help="JSON or TOML file of prices (dollars per million tokens) over the known ones; also MILLSTREAM_PRICES.",
    ),
)

_HALF = (
    click.option(
        "--batch",
        "price_factor",
        flag_value=0.5,
        default=1.0,
        show_default=False,
        help="Half the prices, as for `millstream batch`.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the command line and the configuration file say of the client."""

    configured: Mapping[str, Any]
    provider: str | None
    model: str | None
    base_url: str | None
    api_key_env: str | None
    rpm: float | None = None
    tpm: float | None = None
    max_concurrency: int | Literal["auto"] | None = None
    retries: int | None = None
    timeout: float | None = None

    @property
    def model_name(self) -> str | None:
        """The model for requests that name none."""
        return self.model or self.configured.get("model")

    @overload
    def client(self, *, async_mode: Literal[True], cache: str | None = None) -> AsyncClient: ...
    @overload
    def client(self, *, async_mode: Literal[False], cache: str | None = None) -> Client: ...
    def client(self, *, async_mode: bool, cache: str | None = None) -> AsyncClient | Client:
        """Make the client.

        Args:
            async_mode: An `AsyncClient`, else a `Client`.
            cache: Where answers are kept.

        Raises:
            Refused: Something that was given is not valid.
        """
        with refusing():
            options: dict[str, Any] = {}
            if self.rpm is not None or self.tpm is not None:
                options["rate_limiter"] = RateLimiter(requests_per_minute=self.rpm, tokens_per_minute=self.tpm)
            if cache is not None:
                options["cache"] = cache
            return create_from_config(self._mapping(), async_mode=async_mode, **options)

    def pretended(self) -> Client:
        """A client that knows the server and has no key: to be asked about it, and to ask it nothing."""
        known = {
            name: self.configured[name] for name in ("provider", "base_url", "api_version") if name in self.configured
        }
        given = {name: getattr(self, name) for name in ("provider", "base_url") if getattr(self, name) is not None}
        with refusing():
            return create_from_config({**known, **given}, async_mode=False, api_key="none", allow_http=True)

    def _mapping(self) -> dict[str, Any]:
        """What `create_from_config` takes: the file's words, the command line's over them."""
        mapping = dict(self.configured)
        if self.base_url is not None and _host(self.base_url) != _host(mapping.get("base_url")):
            # The file's key is for the file's server.
            mapping.pop("api_key", None)
            mapping.pop("api_key_env", None)
        if self.api_key_env is not None:
            mapping.pop("api_key", None)
        for name in CLIENT_KEYS:
            if getattr(self, name) is not None:
                mapping[name] = getattr(self, name)
        api = {"MAX_RETRIES": self.retries, "TIMEOUT": self.timeout}
        given = {name: value for name, value in api.items() if value is not None}
        if given:
            mapping["api"] = {**(mapping.get("api") or {}), **given}
        return mapping


def _host(url: str | None) -> str | None:
    return None if url is None else urlsplit(url).netloc.lower()


def server_options(*, pace: bool = True) -> Callable[[Function], Function]:
    """The options that describe a client; the command gets them as ``server``.

    Args:
        pace: Also those that say how fast, and how long a request may take.
    """
    groups = (_SERVER, _PACE, _CALL) if pace else (_SERVER,)

    def decorate(function: Function) -> Function:
        @wraps(function)
        def gathered(**given: Any) -> Any:
            configured = click.get_current_context().meta.get(_CLIENT, {})
            names = [each.name for each in fields(Server) if each.name in given]
            server = Server(configured=configured, **{name: given.pop(name) for name in names})
            return function(server=server, **given)

        return _with(*groups, _FILE)(gathered)  # type: ignore[return-value]

    return decorate


def request_options(function: Function) -> Function:
    """``--system`` and ``--param``; the command gets ``system`` and ``params``."""
    return _with(_FIELDS)(function)


def param_option(function: Function) -> Function:
    """``--param`` alone, for requests that are no chats; the command gets ``params``."""
    return _with(_PARAM)(function)


def price_options(function: Function) -> Function:
    """``--prices``; the command gets a `Prices` as ``prices``."""
    return _with(_PRICES)(function)


def half_price_option(function: Function) -> Function:
    """``--batch``; the command gets ``price_factor``."""
    return _with(_HALF)(function)


def _with(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate
