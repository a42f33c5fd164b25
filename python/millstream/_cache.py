"""Answers that are given again: where they are kept, for how long, and what that saved."""

from __future__ import annotations

import atexit
import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

from millstream._arguments import SECONDS, TEXT, Kind, check, spelt
from millstream._bridge import wait
from millstream._millstream import NativeCache
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence

    from millstream._millstream import _CacheRow
    from millstream._prices import Prices, PriceTable

    _Flaw: TypeAlias = Literal["truncated", "filtered", "empty"]
    _CacheArgument: TypeAlias = "Cache | str | os.PathLike[str]"

_MEGABYTE = 1 << 20
_SEPARATORS = {os.sep, os.altsep or os.sep}
_PLACES = '"memory", "disk", the path of a folder (such as "./cache"), the URL of a Redis (redis://...) or a Cache'

_FLAG = Kind(lambda value: isinstance(value, bool), "True or False", optional=False)
_KINDS = {
    "ttl": SECONDS,
    **dict.fromkeys(
        ("max_bytes", "memory_bytes"),
        Kind(lambda value: isinstance(value, int) and not isinstance(value, bool), "a number of bytes"),
    ),
    "shared": _FLAG,
    "any_temperature": _FLAG,
    "single_flight": _FLAG,
    "namespace": TEXT,
    "also_keep": Kind(
        lambda value: hasattr(type(value), "__iter__") and not isinstance(value, (str, bytes)),
        'some of "truncated", "filtered" and "empty"',
        optional=False,
    ),
}


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done in this process, and what it holds.

    Attributes:
        hits: Calls that were answered by what was kept.
        misses: Calls that had to be asked.
        shared: Calls that had the answer of another that asked the same at the same time.
        stored: Answers that were kept.
        not_kept: Answers that were not, since they were truncated, filtered or empty.
        broken: Entries that could not be read and were dropped.
        dropped: Answers that could not be written: the store failed, or more waited for it than there is room for.
        entries: Answers that are kept now. In a Redis with very many keys, those that a look of some seconds finds.
        bytes: What they take.
        saved_prompt_tokens: Prompt tokens that were not paid for.
        saved_completion_tokens: Completion tokens that were not paid for.
        saved_dollars: What they would have cost; None if the price of one of the models is not known.
    """

    hits: int
    misses: int
    shared: int
    stored: int
    not_kept: int
    broken: int
    dropped: int
    entries: int
    bytes: int
    saved_prompt_tokens: int
    saved_completion_tokens: int
    saved_dollars: float | None

    @property
    def hit_rate(self) -> float:
        """Share of the calls that were not asked, 0 to 1; 0 before the first."""
        answered = self.hits + self.shared
        return answered / (answered + self.misses) if answered else 0.0


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An answer that a cache holds. What was asked is not kept, and the key is only part of a hash.

    Attributes:
        key: What it is found by: a hash of the whole request, who was asked and as whom.
        stored: Unix time at which it was kept; None if that is not known.
        expires: Unix time at which it is forgotten; None: once there is no more room.
        size: The bytes that it takes.
        model: The model that answered, if the answer names it.
        prompt_tokens: Tokens of the prompt; None if the server did not count them.
        completion_tokens: Tokens of the answer, likewise.
        body: The answer, JSON in OpenAI's format; of a text that was embedded a line of JSON, and its vector's bytes.
    """

    key: bytes
    stored: float | None
    expires: float | None
    size: int
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    body: bytes


class Cache:
    """Answers that are given again to whoever asks the same: no request, no wait for a limit, no tokens.

    Two calls ask the same if the server, its version, the key and the whole request are the same; whether it is
    streamed and how long it may take do not count. Only whole answers are kept. A request with a ``temperature`` above
    0 wants another answer each time, and is cached only when it is asked for: by ``cache=True`` or ``sample_index=`` of
    the call, or by ``any_temperature``. Those who ask the same at the same time share one request.

    A cache may be shared by clients, threads and event loops. A forked process opens one of its own.

    Args:
        where: ``"memory"``: in this process. ``"disk"``: in a folder of the user's (``millstream`` in
            ``XDG_CACHE_HOME`` or ``~/.cache``), for all processes. A path (with a slash in it, or a `pathlib.Path`):
            in that folder, which is made if need be, readable by nobody else. ``"redis://user:password@host:6379/0"``,
            or ``rediss://`` for TLS: in a Redis, for everybody who knows it.
        ttl: Seconds that an answer is kept. Default: for as long as there is room, in a Redis 3,600.
        max_bytes: How much is kept. In memory what is asked again stays longest (default 256 MiB), on disk what came
            last (default 1 GiB). A Redis has its own bound, ``maxmemory``.
        memory_bytes: How much of what is on disk or in a Redis is kept in memory, too. Default 64 MiB; 0 for none.
        namespace: What every key in a Redis begins with. Default ``"millstream:"``.
        single_flight: Of all processes that ask a Redis for the same at the same time one requests it, and the others
            wait. Within a process that is always so.
        shared: Give an answer to whoever asks, with whichever key. Default: each key has its own answers.
        any_temperature: Keep answers of any temperature.
        also_keep: Answers to keep though they are not whole: ``"truncated"``, ``"filtered"``, ``"empty"``.

    Raises:
        ConfigurationError: An argument is not valid; its name is in the text.
        TypeError: One is of a wrong type.
    """

    __slots__ = ("_native",)

    @spelt
    def __init__(
        self,
        where: str | os.PathLike[str] = "memory",
        *,
        ttl: float | None = None,
        max_bytes: int | None = None,
        memory_bytes: int | None = None,
        namespace: str | None = None,
        single_flight: bool = False,
        shared: bool = False,
        any_temperature: bool = False,
        also_keep: Sequence[_Flaw] = (),
    ) -> None:
        place = where if isinstance(where, Place) else Place(where)
        del where
        place.read()
        given = {
            "ttl": ttl,
            "max_bytes": max_bytes,
            "memory_bytes": memory_bytes,
            "namespace": namespace,
            "single_flight": single_flight,
            "shared": shared,
            "any_temperature": any_temperature,
            "also_keep": also_keep,
        }
        check(given, kinds=_KINDS)
        kind = place.kind
        if kind == "memory" and memory_bytes is not None:
            raise ConfigurationError("memory_bytes is for a cache on disk or in a Redis; in memory it is max_bytes")
        if kind == "redis" and max_bytes is not None:
            raise ConfigurationError("max_bytes is for a cache in memory or on disk; a Redis has maxmemory")
        if kind != "redis" and (namespace is not None or single_flight):
            raise ConfigurationError("namespace and single_flight are for a cache in a Redis")
        usual_bytes = 256 * _MEGABYTE if kind == "memory" else 1024 * _MEGABYTE
        self._native = NativeCache(
            place.given(),
            ttl=ttl,
            max_bytes=usual_bytes if max_bytes is None else max_bytes,
            memory_bytes=64 * _MEGABYTE if memory_bytes is None else memory_bytes,
            shared=shared,
            any_temperature=any_temperature,
            also_keep=list(also_keep),
            namespace=namespace,
            single_flight=single_flight,
        )
        if kind != "memory":
            _open.add(self._native)

    @classmethod
    def _at(cls, place: Place) -> Cache:
        """One with the usual options."""
        return cls(place)  # type: ignore[arg-type]

    def stats(self, *, prices: Prices | PriceTable | str | None = None) -> CacheStats:
        """What it has done in this process, and what it holds.

        Args:
            prices: Prices over those that are known, as `Prices` takes them.
        """
        return _stats(self._native.stats(None), prices)

    async def astats(self, *, prices: Prices | PriceTable | str | None = None) -> CacheStats:
        """The same, awaited."""
        return _stats(await wait(self._native.stats), prices)

    def entries(self) -> Iterator[CacheEntry]:
        """Everything that it holds, read some at a time and in no order.

        Others may use the cache meanwhile: what stays is seen once (in a Redis now and then twice), what is put or
        removed may be or not. Entries that cannot be read are left out.

        Raises:
            ConfigurationError: The place cannot be read.
            APIConnectionError: It is a Redis that cannot be reached.
        """
        start: bytes | None = None
        while True:
            rows, _, start = self._native.page(None, start)
            yield from map(_entry, rows)
            if start is None:
                return

    async def aentries(self) -> AsyncGenerator[CacheEntry]:
        """The same, awaited."""
        start: bytes | None = None
        while True:
            rows, _, start = await wait(self._native.page, start)
            for row in rows:
                yield _entry(row)
            if start is None:
                return

    def remove(self, entries: Iterable[CacheEntry]) -> None:
        """Forget some of `entries`; those that are gone already are no error."""
        self._native.remove(None, [entry.key for entry in entries])

    async def aremove(self, entries: Iterable[CacheEntry]) -> None:
        """The same, awaited."""
        await wait(self._native.remove, [entry.key for entry in entries])

    def clear(self) -> None:
        """Forget everything, also what other processes have kept there.

        Raises:
            APIConnectionError: It is in a Redis that cannot be reached.
        """
        self._native.clear(None)

    async def aclear(self) -> None:
        """The same, awaited."""
        await wait(self._native.clear)

    def flush(self) -> None:
        """Wait until all that was kept is on disk or in its Redis. At the end of the program this happens by itself."""
        self._native.flush(None)

    async def aflush(self) -> None:
        """The same, awaited."""
        await wait(self._native.flush)

    def __repr__(self) -> str:
        # A traceback with variables also shows one that could not be made.
        native = getattr(self, "_native", None)
        return f"Cache({native.place!r})" if native is not None else "Cache(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Cache holds what is open, so it cannot be pickled; make one in each process")


def _entry(row: _CacheRow) -> CacheEntry:
    key, stored, expires, size, model, usage, body = row
    prompt_tokens, completion_tokens = (None, None) if usage is None else usage
    return CacheEntry(key, stored, expires, size, model, prompt_tokens, completion_tokens, body)


class Place:
    """Where a cache is. The URL of a Redis may hold a password, so it is no variable that a traceback could show."""

    __slots__ = ("_where", "kind")

    def __init__(self, where: object) -> None:
        self._where = where
        self.kind = ""

    def read(self) -> None:
        """Find out of which kind it is."""
        if isinstance(self._where, str) and "://" in self._where:
            scheme = self._where.partition("://")[0]
            if scheme.lower() not in ("redis", "rediss"):
                raise ConfigurationError(f"cache must be {_PLACES}, not {scheme}://…")
            self.kind = "redis"
        elif self._where == "memory":
            self.kind = "memory"
        elif self._where == "disk":
            caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
            self.kind, self._where = "disk", os.path.join(caches, "millstream")
        elif isinstance(self._where, (str, os.PathLike)):
            path = os.path.expanduser(os.fspath(self._where))
            if isinstance(self._where, str) and not any(separator in path for separator in _SEPARATORS):
                raise ConfigurationError(f"cache must be {_PLACES}, not {self._where!r}")
            self.kind, self._where = "disk", path
        else:
            raise TypeError(f"cache must be a Cache, a str, a path or None, not {type(self._where).__name__}")

    def given(self) -> tuple[str, str]:
        """As the engine takes it."""
        return self.kind, "" if self.kind == "memory" else str(self._where)


# Weak: who drops a cache has no more use for it.
_open: weakref.WeakSet[NativeCache] = weakref.WeakSet()


@atexit.register
def _flush() -> None:
    """Answers of the last moment would be paid for again."""
    for native in list(_open):
        native.flush(None)


def _stats(counters: Mapping[str, object], prices: Prices | PriceTable | str | None) -> CacheStats:
    from millstream._prices import Prices

    fields: dict[str, int] = dict(counters)  # type: ignore[arg-type]
    saved: list[tuple[str, int, int, int]] = fields.pop("saved")  # type: ignore[assignment]
    table = Prices._given(prices)
    dollars: float | None = 0.0
    for model, _, prompt_tokens, completion_tokens in saved:
        price = table.of(model)
        known = price is not None and dollars is not None
        dollars = dollars + price.cost(prompt_tokens, completion_tokens) if known else None  # type: ignore[operator, union-attr]
    return CacheStats(
        **fields,
        saved_prompt_tokens=sum(row[2] for row in saved),
        saved_completion_tokens=sum(row[3] for row in saved),
        saved_dollars=dollars,
    )
