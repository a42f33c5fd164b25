"""Calls of a vendor's files and batches, awaited or blocking by the same code.

Coroutines of `Awaiting` wait in the running loop. Those of `Blocking` block and never suspend, so `run` carries a
coroutine made of them through without a loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from millstream._bridge import block, wait
from millstream._config import Timeout
from millstream._not_given import NOT_GIVEN, NotGiven
from millstream._settings import Hidden
from millstream._vendor_state import create

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path
    from threading import Event

    from millstream._base import Base
    from millstream._files import Form
    from millstream._millstream import Reply, _Options

T = TypeVar("T")

# For hundreds of megabytes. What is silent for so long is dead.
_FILE_TIMEOUT = Timeout(3600.0, idle=120.0)


def run(work: Coroutine[Any, Any, T]) -> T:
    """What ``work``, made of blocking calls, returns."""
    try:
        work.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    work.close()
    raise RuntimeError("a blocking call has waited")


class Calls(Protocol):
    """What is asked of a vendor, and how to wait."""

    async def native(self, options: _Options, start: Callable[..., T], *args: object) -> T:
        """A native call, with a token where the key is a function."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def aside(self, stop: Event, work: Callable[[], T]) -> T:
        """Work on files, which ends early when ``stop`` is set."""
        ...


class Awaiting:
    """In the running event loop."""

    def __init__(self, client: Base) -> None:
        self._token = client._settings.token

    async def native(self, options: _Options, start: Callable[..., T], *args: object) -> T:
        """A native call, with a token where the key is a function."""
        if self._token is None:
            return await wait(start, *args)
        return await self._token.call_awaiting(options, lambda: wait(start, *args))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        import asyncio

        await asyncio.sleep(seconds)

    async def aside(self, stop: Event, work: Callable[[], T]) -> T:
        """In a thread, so that the loop goes on. Cancelled, it waits for the thread, which stops at the next line."""
        import asyncio

        future = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([future])
            future.exception()
            raise


class Blocking:
    """In the thread that asks."""

    def __init__(self, client: Base) -> None:
        self._token = client._settings.token

    async def native(self, options: _Options, start: Callable[..., T], *args: object) -> T:
        """A native call, with a token where the key is a function."""
        if self._token is None:
            return block(start, *args)
        return self._token.call(options, lambda: block(start, *args))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)  # noqa: ASYNC251 - that is what it is for

    async def aside(self, stop: Event, work: Callable[[], T]) -> T:
        """Here and now."""
        return work()


class Http:
    """The requests of one client, made by ``calls``."""

    def __init__(self, client: Base, calls: Calls) -> None:
        self._client = client
        self.calls = calls

    async def get(self, path: str) -> Any:
        """A JSON object."""
        options = self._options()
        reply = await self.calls.native(options, self._client._native.get, path, options)
        return reply.to_dict()

    async def post(self, path: str) -> Any:
        """Post nothing, as often as it takes."""
        options = self._options()
        reply: Reply = await self.calls.native(options, self._client._native.post, path, options, "Reply")
        return reply.to_dict()

    async def post_once(self, path: str, json: Mapping[str, Any], name: str) -> Any:
        """Post what must not be done twice; ``name`` is its ``Idempotency-Key``."""
        options = self._options(json, name=name)
        reply: Reply = await self.calls.native(options, self._client._native.post, path, options, "Reply", True)
        return reply.to_dict()

    async def upload(self, path: str, file: Path, form: Form) -> Any:
        """Post a file in a form."""
        options = self._options(timeout=_FILE_TIMEOUT)
        reply = await self.calls.native(options, self._client._native.upload, path, options, file, form, False)
        return reply.to_dict()

    async def upload_once(self, path: str, file: Path, name: str) -> Any:
        """Post a file that is the JSON text of what must not be done twice."""
        options = self._options(timeout=_FILE_TIMEOUT, name=name)
        reply = await self.calls.native(options, self._client._native.upload, path, options, file, None, True)
        return reply.to_dict()

    async def download(self, path: str, file: Path) -> None:
        """Get a file; one that is there is replaced."""
        options = self._options(timeout=_FILE_TIMEOUT)
        create(file).close()
        await self.calls.native(options, self._client._native.download, path, options, file)

    def _options(
        self,
        json: Mapping[str, Any] | None = None,
        timeout: Timeout | NotGiven = NOT_GIVEN,
        name: str | None = None,
    ) -> _Options:
        hidden = None if name is None else Hidden({"Idempotency-Key": name}, None)
        return self._client._post_options(None, None, timeout, NOT_GIVEN, 0, None, hidden, json or {})
