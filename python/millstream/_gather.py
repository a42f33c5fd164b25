"""Several calls at once: a mapping of names to calls becomes one of names to results.

Not ``asyncio.gather``, which lets the others go on after an error, and not a ``TaskGroup``, which wraps the error into
a group. Here nothing is under way any more once there is a result or an error.

Blocking calls run in threads. What blocks in the engine cannot be ended from another thread, but what is awaited can:
so such a thread awaits it, on an event loop of its own. Code that is not millstream's runs on to its end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from millstream._bridge import this_thread, wait

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from millstream._millstream import Pending

K = TypeVar("K")
P = ParamSpec("P")
T = TypeVar("T")


async def gather(calls: Mapping[K, Awaitable[Any]], return_exceptions: bool) -> dict[K, Any]:
    """Await all of them; see `AsyncClient.gather`."""
    # Not at the top, see `millstream._bridge._running_loop`.
    import asyncio
    from inspect import isawaitable, iscoroutine

    _check_mapping(calls)
    for name, call in calls.items():
        if not isawaitable(call):
            for other in calls.values():
                if iscoroutine(other):
                    other.close()
            raise TypeError(
                f"gather(): {name!r} must be something to await, like client.complete(...) without await, "
                f"not {type(call).__name__}{_hint(call)}"
            )
    loop = asyncio.get_running_loop()
    for name, call in calls.items():
        if asyncio.isfuture(call) and call.get_loop() is not loop:
            raise ValueError(f"gather(): {name!r} is a future of another event loop")
    if not calls:
        return {}
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    done: set[asyncio.Future[Any]] = set()
    ends = asyncio.ALL_COMPLETED if return_exceptions else asyncio.FIRST_EXCEPTION
    try:
        done, _ = await asyncio.wait(tasks.values(), return_when=ends)
        await _cancel(tasks.values())
        return _results(tasks, done, return_exceptions)
    except BaseException:
        await _cancel(tasks.values())
        raise
    finally:
        # An exception holds the frames that it went through, and a task holds the exception.
        tasks.clear()
        done.clear()


async def _cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    """End those that have not ended, and wait until they have."""
    from asyncio import wait

    for task in tasks:
        task.cancel()
    if under_way := [task for task in tasks if not task.done()]:
        await wait(under_way)
    for task in tasks:
        if not task.cancelled():
            # Now it counts as seen, and is not complained about as never retrieved.
            task.exception()


def gather_blocking(calls: Mapping[K, Callable[[], Any]], return_exceptions: bool) -> dict[K, Any]:
    """Run all of them in threads; see `Client.gather`."""
    # Not at the top: most programs do not come here.
    from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, ThreadPoolExecutor, wait
    from contextvars import copy_context

    _check_mapping(calls)
    for name, call in calls.items():
        if not callable(call):
            raise TypeError(
                f"gather(): {name!r} must be a function without arguments, like lambda: client.complete(...), "
                f"not {type(call).__name__}"
            )
    if not calls:
        return {}
    gathered = {name: Gathered(call) for name, call in calls.items()}

    def abort() -> None:
        for call in gathered.values():
            call.abort()

    outer = this_thread.gathered
    ends = ALL_COMPLETED if return_exceptions else FIRST_EXCEPTION
    with (
        ThreadPoolExecutor(len(gathered), "millstream-gather") as threads,
        nullcontext() if outer is None else outer.abortable(abort),
    ):
        try:
            futures = {name: threads.submit(copy_context().run, call.run) for name, call in gathered.items()}
            done, _ = wait(futures.values(), return_when=ends)
        finally:
            abort()
    try:
        return _results(futures, done, return_exceptions)
    finally:
        futures.clear()
        done.clear()


class Gathered:
    """One call of a blocking `gather`, in a thread of its own, that can be aborted from another."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._aborted = False
        self._abort: Callable[[], object] | None = None

    def run(self) -> Any:
        """Make the call, in this thread."""
        import asyncio

        if self._aborted:
            raise asyncio.CancelledError
        this_thread.gathered = self
        try:
            with asyncio.Runner() as self._runner:
                return self._call()
        finally:
            this_thread.gathered = None

    def block(self, start: Callable[Concatenate[Pending | None, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a native call and wait for its result, in this thread; the wait ends once it is aborted."""
        from asyncio import _get_running_loop, current_task

        if _get_running_loop() is not None:
            # The call runs a loop that it blocks, and there cannot be two.
            return start(None, *args, **kwargs)

        async def awaited() -> T:
            task = current_task()
            assert task is not None
            with self.abortable(lambda: loop.call_soon_threadsafe(task.cancel)):
                return await wait(start, *args, **kwargs)

        loop = self._runner.get_loop()
        try:
            return self._runner.run(awaited())
        except BaseException as error:
            # The loop's frames say nothing, and hold the task, which holds the error.
            error.__traceback__ = None
            raise

    @contextmanager
    def abortable(self, abort: Callable[[], object]) -> Iterator[None]:
        """While this lasts, `abort` calls ``abort`` too."""
        from asyncio import CancelledError

        with self._lock:
            if self._aborted:
                raise CancelledError
            self._abort = abort
        try:
            yield
        finally:
            with self._lock:
                self._abort = None

    def abort(self) -> None:
        """End the native call that is under way; another one is not begun. From any thread."""
        with self._lock:
            self._aborted = True
            if self._abort is not None:
                self._abort()


def _check_mapping(calls: object) -> None:
    if not isinstance(calls, Mapping):
        raise TypeError(f"gather() takes a mapping of names to calls, not {type(calls).__name__}")


def _hint(call: Any) -> str:
    if hasattr(call, "get_final"):
        return "; give its get_final()"
    return "; call it" if callable(call) else ""


def _results(
    futures: Mapping[K, asyncio.Future[Any] | concurrent.futures.Future[Any]], done: Collection[Any], keep_errors: bool
) -> dict[K, Any]:
    """What each has to say; all have ended, those that are not in ``done`` because they were told to."""
    if keep_errors:
        return {name: _result_or_error(future) for name, future in futures.items()}
    ended = [_error(future) for future in futures.values() if future in done]
    errors = [error for error in ended if error is not None]
    ended.clear()
    if errors:
        # Who was cancelled by somebody else says less than who failed.
        errors.sort(key=_is_cancelled)
        try:
            raise errors[0]
        finally:
            errors.clear()
    return {name: future.result() for name, future in futures.items()}


def _result_or_error(future: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> Any:
    error = _error(future)
    if isinstance(error, Exception) or _is_cancelled(error):
        return error
    return future.result()


def _error(future: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> BaseException | None:
    if future.cancelled():
        from asyncio import CancelledError

        return CancelledError()
    return future.exception()


def _is_cancelled(error: BaseException | None) -> bool:
    from asyncio import CancelledError

    return isinstance(error, CancelledError)
