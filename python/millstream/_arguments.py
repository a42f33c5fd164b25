"""What each argument must be, by its name: the one place where a wrong type, or a name that is none, is refused.

The engine checks values. A wrong type would never reach it, and the native module's own words for it do not name what a
user wrote. Nothing here is in the way of a call that gives nothing but its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypeGuard, TypeVar, cast

from millstream._not_given import NOT_GIVEN
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
C = TypeVar("C", bound=type)


class Kind(NamedTuple):
    """What an argument may be."""

    accepts: Callable[[object], bool]
    wanted: str
    optional: bool = True
    least: int = -(2**63)
    most: int = 2**63 - 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(value: object) -> TypeGuard[SupportsIndex]:
    # Also numpy's. `isinstance` of a protocol is a hundred times as slow.
    return hasattr(type(value), "__index__") and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or hasattr(type(value), "__float__")


def _is_function(value: object) -> bool:
    return callable(value)


def _is_list(value: object) -> bool:
    return hasattr(type(value), "__iter__") and not isinstance(value, (str, bytes))


def _is_config(value: object) -> bool:
    from millstream._config import CompletionConfig  # not at the top, see `millstream.__getattr__`

    return isinstance(value, CompletionConfig)


def _is_retry_policy(value: object) -> bool:
    from millstream._retry import RetryPolicy  # not at the top, see `millstream.__getattr__`

    return isinstance(value, RetryPolicy)


def _is_rate_limiter(value: object) -> bool:
    from millstream._limits import RateLimiter  # which imports this module

    return isinstance(value, RateLimiter)


TEXT = Kind(_is_text, "a str")
INTEGER = Kind(_is_integer, "an int")
FLAG = Kind(lambda value: isinstance(value, bool), "True or False", optional=False)
NUMBER = Kind(_is_number, "a number")
SECONDS = Kind(_is_number, "a number of seconds")
NAMES = Kind(_is_list, "a list of names", optional=False)
COUNT = Kind(_is_integer, "an int", least=0, most=2**32 - 1)

KINDS: Mapping[str, Kind] = {
    # A client's and its calls'.
    "endpoints": Kind(_is_list, "a list of Endpoint"),
    "model": TEXT,
    "provider": TEXT,
    "auth": TEXT,
    "api_version": TEXT,
    "fallback_models": NAMES,
    "config": Kind(_is_config, "a millstream.CompletionConfig"),
    "timeout": Kind(
        lambda value: _is_number(value) or hasattr(value, "_phases"), "a number of seconds, a millstream.Timeout"
    ),
    "connect_timeout": SECONDS,
    "queue_timeout": SECONDS,
    "max_retries": INTEGER,
    "retry": Kind(_is_retry_policy, "a millstream.RetryPolicy"),
    "idempotency_key": FLAG,
    "max_concurrency": Kind(lambda value: _is_integer(value) or _is_text(value), 'an int, "auto"'),
    "rate_limiter": Kind(_is_rate_limiter, "a millstream.RateLimiter"),
    "hedge_after": Kind(lambda value: _is_number(value) or _is_text(value), 'a number of seconds, "p95"'),
    "http2": FLAG,
    "allow_http": FLAG,
    "system": TEXT,
    "organization": TEXT,
    "project": TEXT,
    "dimensions": INTEGER,
    "encoding_format": TEXT,
    "path": TEXT._replace(optional=False),
    "json": Kind(lambda value: isinstance(value, Mapping), "a dict"),
    "max_concurrent": INTEGER,
    # A call's; a client's is more than that.
    "cache": FLAG._replace(optional=True),
    "refresh": FLAG,
    "sample_index": INTEGER,
    "priority": Kind(_is_integer, "an int", optional=False, least=-(2**31), most=2**31 - 1),
    # A `Timeout`'s.
    "timeout.total": SECONDS,
    "timeout.connect": SECONDS,
    "timeout.first_byte": SECONDS,
    "timeout.idle": SECONDS,
    # A `RetryPolicy`'s.
    "max_rate_limit_retries": INTEGER,
    "statuses": Kind(_is_list, "a collection of ints"),
    "base_delay": SECONDS._replace(optional=False),
    "max_delay": SECONDS._replace(optional=False),
    "exponential_base": NUMBER._replace(optional=False),
    "respect_retry_after": FLAG,
    "longest_retry_after": SECONDS._replace(optional=False),
    "connection_faults": FLAG,
    "invalid_responses": FLAG,
    "on_retry": Kind(_is_function, "a function"),
    "retry_on": Kind(
        lambda value: _is_function(value) or isinstance(value, tuple),
        "an exception class, a tuple of them or a function",
        optional=False,
    ),
    # A `RateLimiter`'s, besides its limits, which are numbers.
    "max_wait": SECONDS,
    **dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), NUMBER._replace(optional=False)),
    # An `AdaptiveBatchPolicy`'s.
    "rule": TEXT._replace(optional=False),
    "initial_batch_size": INTEGER._replace(optional=False),
    "max_batch_size": INTEGER._replace(optional=False),
}


def check(given: Mapping[str, object], kinds: Mapping[str, Kind] = KINDS, default: Kind = NUMBER) -> None:
    """Refuse what is not of its kind; a name without one is of the default kind.

    Raises:
        TypeError: Something is of the wrong type; its name is in the text.
        ConfigurationError: A number is out of its range.
    """
    for name, value in given.items():
        kind = kinds.get(name, default)
        if value is NOT_GIVEN or (value is None and kind.optional):
            continue
        if not kind.accepts(value):
            wanted = f"{kind.wanted} or None" if kind.optional else kind.wanted
            raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
        if _is_integer(value) and not kind.least <= index(value) <= kind.most:
            bound = f"at least {kind.least}" if index(value) < kind.least else f"at most {kind.most}"
            raise ConfigurationError(f"{name} must be {bound}, not {value}")


def spelt(method: F) -> F:
    """A method that takes no ``**params`` and says which argument was meant where it has none of that name.

    Python's own words name neither the class that the user wrote nor what it has.
    """
    code = method.__code__
    known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    positions = code.co_argcount - 1

    @wraps(method)
    def checked(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        unknown = next((name for name in kwargs if name not in known), None)
        if unknown is not None or len(args) > positions:
            from millstream._misspelt import refused_call  # not at the top: it is not cheap

            owner = type(self).__name__ if method.__name__ == "__init__" else method.__name__
            # A traceback shows variables: one may be a key, and what is not made has no repr.
            del self, args, kwargs
            raise refused_call(owner, unknown, known, positions)
        # On their way they are no variables of this frame, for the same reason.
        given, named = iter((args,)), iter((kwargs,))
        del args, kwargs
        return method(self, *next(given), **next(named))

    return cast("F", checked)


def spelt_class(cls: C) -> C:
    """The same for the constructor that a dataclass was given."""
    cls.__init__ = spelt(cls.__init__)  # type: ignore[misc]
    return cls
