"""Arguments that are written wrong: among `**params` they would go to the server, which ignores them.

Imported only where a name turns up that is no request field of OpenAI's, since `difflib` is not cheap.
"""

from __future__ import annotations

from difflib import get_close_matches
from inspect import Parameter, signature
from typing import TYPE_CHECKING

from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

# `difflib`'s ratio. `retries` and `max_retries` are 0.78, llama.cpp's `cache_prompt` and our `prompt` 0.67.
_CLOSE = 0.75

_found: dict[str, str | None] = {}
_MOST_FOUND = 1000


def check_spelling(names: Iterable[str]) -> None:
    """Refuse a name that is nearly that of an argument of ours.

    Raises:
        ConfigurationError: One is; it says which.
    """
    for name in names:
        meant = _nearest(name)
        if meant == name:
            raise ConfigurationError(f"{name}= is not a parameter of this call; give it to the client or to complete()")
        if meant:
            raise ConfigurationError(
                f"{name}= is not a request field that is known: did you mean {meant}=? A server's own field of that "
                "name goes by CompletionConfig(extra={...}), in create() also by extra_body="
            )


def _nearest(name: str) -> str | None:
    """Remembered, since a server's own fields come with every call."""
    if name not in _found:
        if len(_found) >= _MOST_FOUND:
            _found.clear()
        _found[name] = next(iter(get_close_matches(name, _our_names(), 1, _CLOSE)), None)
    return _found[name]


def _our_names() -> tuple[str, ...]:
    from millstream._client import AsyncClient

    functions = (AsyncClient.__init__, AsyncClient.complete, AsyncClient.batch_complete)
    parameters = [each for function in functions for each in signature(function).parameters.values()]
    names = [each.name for each in parameters if each.kind is not Parameter.VAR_KEYWORD and each.name != "self"]
    return tuple(dict.fromkeys([*names, "extra_body", "messages"]))
