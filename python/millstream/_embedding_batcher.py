"""Single texts that many ask for at once, embedded in packs: for web services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from millstream._arguments import COUNT, SECONDS, check
from millstream.exceptions import ClientClosedError, ConfigurationError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task, TimerHandle
    from types import TracebackType

    from millstream._client import AsyncClient

_KINDS = {
    "max_batch": COUNT._replace(optional=False, least=1),
    "linger": SECONDS._replace(optional=False),
}


class _Asked(NamedTuple):
    text: str
    vector: Future[memoryview[float]]


class EmbeddingBatcher:
    """Makes one request of many concurrent ``await batcher.embed(text)``.

    A text waits until there are ``max_batch`` of them or ``linger`` seconds have passed since the first, whichever is
    sooner; then all go together. What one caller does (is cancelled, asks for something bad) the others do not notice.
    A pack that nobody waits for any more is given up. For one event loop.

    >>> async with EmbeddingBatcher(client, model="text-embedding-3-small") as batcher:
    ...     vector = await batcher.embed("a cat")
    """

    def __init__(self, client: AsyncClient, *, max_batch: int = 128, linger: float = 0.005, **options: Any) -> None:
        """Make one; nothing is sent before the first text.

        Args:
            client: Who sends. It stays open when this is closed.
            max_batch: Texts that go together at most.
            linger: Seconds that the first of them waits for others. Default 5 ms.
            **options: Arguments of `AsyncClient.embed`, the same for all texts: ``model=``, ``dimensions=``, ...

        Raises:
            ConfigurationError: An argument is not valid.
        """
        check({"max_batch": max_batch, "linger": linger}, _KINDS)
        if linger < 0:
            raise ConfigurationError(f"linger must be a number of seconds of at least 0, not {linger}")
        if "on_error" in options:
            raise ConfigurationError("on_error= is not for a batcher: each text's error is raised where it is awaited")
        self._client = client
        self._max_batch = max_batch
        self._linger = linger
        self._options = options
        self._loop: AbstractEventLoop | None = None
        self._waiting: list[_Asked] = []
        self._timer: TimerHandle | None = None
        self._tasks: set[Task[None]] = set()
        self._closed = False

    async def embed(self, text: str) -> memoryview[float]:
        """The vector of a text: float32, a copy of its own.

        Args:
            text: What to embed.

        Raises:
            APIError: This text has no vector, whatever became of the others.
            ClientClosedError: The batcher was closed.
            TypeError: ``text`` is no string.
        """
        import asyncio  # not at the top, see `millstream._bridge._running_loop`

        if self._closed:
            raise ClientClosedError("the batcher is closed")
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._waiting or self._tasks:
                raise RuntimeError("the batcher is used by another event loop; make one for each")
            self._loop = loop
        vector: Future[memoryview[float]] = loop.create_future()
        self._waiting.append(_Asked(text, vector))
        if len(self._waiting) >= self._max_batch:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._linger, self._send)
        return await vector

    def _send(self) -> None:
        """Embed what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asked = [one for one in self._waiting if not one.vector.done()]
        self._waiting = []
        if not asked or self._loop is None:
            return
        task = self._loop.create_task(self._embed(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        left = len(asked)

        def given_up(vector: Future[memoryview[float]]) -> None:
            nonlocal left
            left -= vector.cancelled()
            if left == 0:
                task.cancel()

        for one in asked:
            one.vector.add_done_callback(given_up)

    async def _embed(self, asked: list[_Asked]) -> None:
        from copy import copy

        try:
            embeddings = await self._client.embed([one.text for one in asked], on_error="return", **self._options)
            errors = embeddings.errors
        except BaseException as error:
            for one in asked:
                if not one.vector.done():
                    # Each with a traceback of its own.
                    one.vector.set_exception(copy(error) if isinstance(error, Exception) else error)
            if not isinstance(error, Exception):
                raise
            return
        for row, one in enumerate(asked):
            if one.vector.done():
                continue
            if row in errors:
                one.vector.set_exception(errors[row])
            else:
                # A view would keep the whole pack.
                one.vector.set_result(memoryview(bytes(embeddings[row])).cast("f"))

    async def aclose(self) -> None:
        """Send what waits and wait until all have their vectors. May be called again."""
        import asyncio

        self._closed = True
        self._send()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
