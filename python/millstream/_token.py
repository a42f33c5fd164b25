"""A key that a function gives, for tokens that expire: asked before each call, and again where the server refuses it.

The engine does not call back into Python: the token travels with the call, so all attempts of one call use the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from millstream._settings import Hidden
from millstream.exceptions import AuthenticationError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


T = TypeVar("T")

_UNAUTHORIZED = 401


class Token:
    """The function, and the way of what it gives into a call. No variable of a frame holds the token."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], str | Awaitable[str]]) -> None:
        self._function = function

    def ask(self, options: Any, advice: str) -> None:
        """Ask a function that does not wait.

        Raises:
            ConfigurationError: It does; ``advice`` says what to do.
        """
        hidden = _hidden(options)
        hidden.key = self._function()
        if hasattr(hidden.key, "__await__"):
            if hasattr(hidden.key, "close"):
                hidden.key.close()  # a coroutine that is never awaited would warn
            hidden.key = None
            raise ConfigurationError(f"api_key is an async function, which cannot be awaited here: {advice}")
        _check(hidden)

    async def ask_awaiting(self, options: Any) -> None:
        """Ask a function of either kind."""
        hidden = _hidden(options)
        hidden.key = self._function()
        if hasattr(hidden.key, "__await__"):
            hidden.key = await hidden.key
        _check(hidden)

    def call(self, options: Any, start: Callable[[], T]) -> T:
        """``start`` with a token, and once more with another if the first is refused."""
        advice = "give Client a function that does not wait, or use AsyncClient"
        self.ask(options, advice)
        try:
            return start()
        except AuthenticationError as error:
            if error.status_code != _UNAUTHORIZED:
                raise
        self.ask(options, advice)
        return start()

    async def call_awaiting(self, options: Any, start: Callable[[], Awaitable[T]]) -> T:
        """The same, awaited."""
        await self.ask_awaiting(options)
        try:
            return await start()
        except AuthenticationError as error:
            if error.status_code != _UNAUTHORIZED:
                raise
        await self.ask_awaiting(options)
        return await start()


def _hidden(options: Any) -> Hidden:
    hidden = options[3]
    assert isinstance(hidden, Hidden)
    return hidden


def _check(hidden: Hidden) -> None:
    if not isinstance(hidden.key, str):
        kind = type(hidden.key).__name__
        hidden.key = None
        raise TypeError(f"api_key() must return a str, not {kind}")
