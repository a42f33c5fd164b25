"""Names that are written wrong: among ``**params`` they would go to the server, which ignores them.

One that is nearly an argument of ours is refused. One that is nearly a request field is sent, since the server may know
it, with a warning. Imported only where a name turns up that is no request field of OpenAI's: `difflib` is not cheap.
"""

from __future__ import annotations

import sys
import warnings
from difflib import SequenceMatcher, get_close_matches
from inspect import Parameter, signature
from typing import TYPE_CHECKING, NamedTuple

from millstream._fields import REQUEST_FIELDS, SERVERS_FIELDS
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# `difflib`'s ratio. `retries` and `max_retries` are 0.78, llama.cpp's `cache_prompt` and our `prompt` 0.67.
_CLOSE = 0.75
# Fields of servers are many and alike; `streaming` and `stream` are 0.8.
_CLOSE_FIELD = 0.8

_BATCH = {
    **dict.fromkeys(
        ("progress", "show_progress", "on_progress", "callback", "on_result"),
        "stream_many() hands out each prompt's answer as it comes, and client.stats() counts",
    ),
    **dict.fromkeys(
        ("on_error", "raise_on_error", "ignore_errors", "return_errors"),
        "a batch puts each error in its place with return_exceptions=True",
    ),
    **dict.fromkeys(
        ("batch_size", "chunk_size", "max_workers", "n_jobs"),
        "a batch takes all prompts at once, and max_concurrent= bounds those in flight",
    ),
    **dict.fromkeys(
        ("requests_per_minute", "tokens_per_minute", "rpm", "tpm"),
        "limits are the client's: rate_limiter=RateLimiter(requests_per_minute=..., tokens_per_minute=...)",
    ),
}

# Names that OpenAI's fields have elsewhere, too far off for `difflib`.
_ELSEWHERE = {"max_output_tokens": "max_completion_tokens", "temp": "temperature"}


class _Finding(NamedTuple):
    """What is wrong with a name."""

    text: str
    is_refused: bool


_found: dict[tuple[str, frozenset[str]], _Finding | None] = {}
_warned: set[str] = set()
_MOST_FOUND = 1000


def check_spelling(names: Iterable[str], known: frozenset[str]) -> None:
    """Refuse a name that is nearly that of an argument of ours; warn, once, of one that is nearly a ``known`` field's.

    Raises:
        ConfigurationError: One is; it says which.
    """
    for name in names:
        # Remembered, since a server's own fields come with every call.
        key = name, known
        if key not in _found:
            if len(_found) >= _MOST_FOUND:
                _found.clear()
                _warned.clear()
            _found[key] = _look(name, known)
        finding = _found[key]
        if finding is None:
            continue
        if finding.is_refused:
            raise ConfigurationError(finding.text)
        if name not in _warned:
            # Where warnings are errors it is one every time.
            warnings.warn(finding.text, UserWarning, stacklevel=_callers_level())
            _warned.add(name)


def _look(name: str, known: frozenset[str]) -> _Finding | None:
    ours = _our_names()
    if name in ours:
        return _Finding(
            f"{name}= is not a parameter of this call; give it to the client or to complete()", is_refused=True
        )
    if name in SERVERS_FIELDS:
        return None
    sent = f"{name}= is no request field that is known, and goes to the server as it is: "
    without = f"{_way_out(known)}, sends it without this warning."
    if name in _BATCH:
        return _Finding(f"{sent}{_BATCH[name]}. {without}", is_refused=False)
    plain = {_plain(each): each for each in known}
    meant = plain.get(_plain(name)) or (_ELSEWHERE.get(name) if _ELSEWHERE.get(name) in known else None)
    if meant is None:
        meant = next(iter(get_close_matches(name, [*ours, *known], 1, _CLOSE)), None)
        if meant in ours:
            return _Finding(
                f"{name}= is not a request field that is known: did you mean {meant}=? A server's own field of that "
                f"name goes by {_way_out(known)}",
                is_refused=True,
            )
        if meant is None or SequenceMatcher(None, meant, name).ratio() < _CLOSE_FIELD:
            return None
    return _Finding(f"{sent}did you mean {meant}=? {without}", is_refused=False)


def _way_out(known: frozenset[str]) -> str:
    """Where names are not looked at. A config's fields are a chat's."""
    body = "extra_body={...}"
    return f"CompletionConfig(extra={{...}}), in create() also {body}" if known is REQUEST_FIELDS else body


def _plain(name: str) -> str:
    """Without what differs between ``top_p``, ``top-p`` and ``topP``."""
    return "".join(filter(str.isalnum, name)).lower()


def _callers_level() -> int:
    """The first frame that is not ours, for `warnings.warn` in the caller of this.

    A task has none but those of its loop; then it is the one that runs the loop.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("millstream.", "asyncio.")):
        level, frame = level + 1, frame.f_back
    return level


def _our_names() -> tuple[str, ...]:
    from millstream._client import AsyncClient

    functions = (AsyncClient.__init__, AsyncClient.complete, AsyncClient.batch_complete)
    parameters = [each for function in functions for each in signature(function).parameters.values()]
    names = [each.name for each in parameters if each.kind is not Parameter.VAR_KEYWORD and each.name != "self"]
    return tuple(dict.fromkeys([*names, "extra_body", "messages"]))


_CLIENTS = {
    **dict.fromkeys(
        ("requests_per_minute", "tokens_per_minute", "rpm", "tpm"),
        "it is a limiter's: rate_limiter=RateLimiter(requests_per_minute=..., tokens_per_minute=...)",
    ),
    "max_concurrent": "did you mean max_concurrency=? A batch takes max_concurrent=",
    "azure_endpoint": 'give provider="azure" and base_url=',
    "azure_deployment": 'give provider="azure" and model=',
    "azure_ad_token": 'give api_key= and auth="bearer"',
    "azure_ad_token_provider": 'give the function as api_key= and auth="bearer"',
    "http_client": "connections are the engine's own; http2=, connect_timeout= and allow_http= are about them",
}


def refused_call(owner: str, name: str | None, known: Sequence[str], positions: int = 0) -> TypeError:
    """What is wrong with a call that gives a name that is not ``known``; without one: that gives no name at all."""
    if name is None:
        return TypeError(f"{owner}() takes its arguments by name, as in {owner}({known[positions]}=...)")
    return TypeError(f"{owner}() has no argument {name}=: {_advice(name, known)}")


def _advice(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    if "extra" in known and (not near or name in REQUEST_FIELDS or name in SERVERS_FIELDS):
        return f'a field without an argument of its own goes by extra={{"{name}": ...}}'
    if "default_headers" in known:
        if name in REQUEST_FIELDS:
            return f"a request field is given to calls, or to all of a client's by config=CompletionConfig({name}=...)"
        if name in _CLIENTS:
            return _CLIENTS[name]
        if name in _our_names():
            return "calls take it" if "http2" in known else "calls take it, or the client when it is made"
    return f"did you mean {near[0]}=?" if near else f"it takes {', '.join(known)}"
